"""What a plan of the grid stands for, and its cells computed and collected on a little data."""

import json
from pathlib import Path

import pytest
import yaml

from lfpr.experiments import SPECS, Cell, open_experiment
from lfpr.experiments.grid import Planned, cells, inputs, load_grid, share, sources
from lfpr.files import CheckpointError, checkout
from lfpr.paper import collect, schema

GRIDS = checkout() / "workflow" / "grid.yaml"
SMALL = {"train_images": 24, "val_images": 16, "num_samples": 40, "score_batch": 20, "rescale_samples": 40}
PLAN = {
    "profile": "mini",
    "jobs": 2,
    "cells": [
        {"method": "label-free", "constraint": [0.4, 0.8], "stages": "pruned"},
        {"method": "random", "constraint": 0.4, "seed": [0, 1], "stages": "pruned"},
        {"method": "label-free", "percentile": 50, "stages": "pruned"},
        {"method": "fisher", "constraint": 0.4, "stages": "pruned", "rescaled": True},
        {"method": "label-free", "constraint": 0.4, "stages": "pruned", "num_samples": 20},
    ],
}


def test_entries_stand_for_all_combinations_of_their_lists():
    found = [planned.cell for planned in cells(PLAN)]
    methods = [cell.method for cell in found]
    assert methods == ["label-free", "label-free", "random", "random", "label-free", "fisher", "label-free"]
    assert found[3] == Cell("random", 0.4, seed=1)
    assert found[3].place == {"method": "random", "heuristic": "sum", "constraint": 0.4, "percentile": None, "seed": 1}
    assert found[4].heuristic == "threshold" and found[4].constraint is None
    assert [cell.variant for cell in found] == [""] * 5 + ["rescaled=True", "num_samples=20"]
    assert all(planned.stages == ("pruned",) for planned in cells(PLAN))
    assert cells({"cells": [{"method": "l1", "constraint": 1}]}) == [Planned(Cell("l1", 1), ("pruned", "retrained"))]


def test_entries_without_a_search_need_no_constraint():
    entry = {"method": "sensitivity", "heads_removed": [7, 21], "stages": "pruned"}
    found = [planned.cell for planned in cells({"cells": [entry, {"method": "given", "masks": "a/b"}]})]
    assert found == [Cell("sensitivity", heads_removed=7), Cell(heads_removed=21), Cell(masks="a/b")]
    assert len({cell.name for cell in found}) == 3


def test_jobs_share_the_cells():
    both = [share(PLAN, job) for job in (0, 1)]
    assert sorted(map(str, both[0] + both[1])) == sorted(map(str, cells(PLAN))) and len(both[0]) == 4
    with pytest.raises(ValueError, match="job = 2: the plan has jobs 0 … 1"):
        share(PLAN, 2)


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"constraint": 0.4}, "needs a method"),
        ({"method": "random"}, "a constraint or a percentile"),
        ({"method": "random", "constraint": 0.4, "percentile": 50}, "a constraint or a percentile"),
        ({"method": "random", "constraint": 0.4, "stages": "prunned"}, "prunned"),
        ({"method": "random", "constraint": [0.4, 0.4]}, "cell random-0.4-seed0 is in the plan twice"),
        ({"method": "random", "constraint": 0.4, "sample": 3}, r"unknown \['sample'\]; there are \['method'"),
        ({"method": "random", "constraint": 4}, "constraint = 4: must be in"),
        ({"method": "sensitivity", "heads_removed": 7, "constraint": 0.4}, "a constraint or a percentile"),
        ({"method": "given"}, r"\(or one of \['heads_removed', 'masks'\]\)"),
    ],
)
def test_bad_entries_are_named(entry, message):
    with pytest.raises(ValueError, match=message):
        cells({"cells": [entry]})


def test_an_experiment_starts_from_its_checkpoint_and_its_texts(tmp_path, monkeypatch):
    for name in ("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "PYTORCH_TRANSFORMERS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "no cache"))
    names = [
        "save/finetuned/textvqa_tap_base_best.ckpt",
        *(f"data/imdb/m4c_textvqa/imdb_{split}_ocr_en.npy" for split in ("train", "val")),
        "data/m4c_vocabs/textvqa/fixed_answer_vocab_textvqa_5k.txt",
        "data/1600-400-20/objects_vocab.txt",
        "data/bert-base-uncased/vocab.txt",
        "data/.vector_cache/wiki.en.bin",
    ]
    others = ("data/feat_resx/train/1.npy", "data/ocr_feat_resx/textvqa_conf/train_images/1.npy", "data/imdb/cc/x.npy")
    for name in (*names, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = sorted(str(tmp_path / name) for name in names)
    assert sources("tap-textvqa", {"profile": "full"}, tmp_path) == expected
    assert sources("tap-textvqa", {"profile": "full", "data_root": "data"}, tmp_path) == expected
    for name in names[0], names[5]:
        (tmp_path / name).rename(tmp_path / "away")
        error = CheckpointError if name == names[0] else FileNotFoundError
        with pytest.raises(error, match=rf"(?s){name}.*missing files or folders: 1; see data/README.md"):
            sources("tap-textvqa", {"profile": "full"}, tmp_path)
        (tmp_path / "away").rename(tmp_path / name)
    (tmp_path / names[-1]).unlink()  # word vectors, which not all settings need
    hashed = {"profile": "full", "settings": {"word_vectors": "hashed"}}
    assert sources("tap-textvqa", hashed, tmp_path) == [file for file in expected if "wiki" not in file]
    shipped = {name: sources(name, {"profile": "mini"}, "") for name in load_grid(f"{GRIDS}:default")}
    assert all(Path(file).is_file() for files in shipped.values() for file in files)
    assert len(shipped["tap-textvqa"]) == 1 and any("model.safetensors" in file for file in shipped["clip-mscoco"])


def test_bad_sources_are_named(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        load_grid("nowhere.yaml:default")
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"tiny": {"tap-textvqa": PLAN}}))
    assert load_grid(f"{path}:tiny") == {"tap-textvqa": PLAN}
    with pytest.raises(ValueError, match=r"grid = 'default': must be one of \['tiny'\]"):
        load_grid(f"{path}:default")


@pytest.mark.parametrize(
    "grid, message",
    [
        ("[1, 2]", ""),
        ("", ""),
        ("tiny: [", ""),
        ("tiny: 3", "tiny = 3: must be a mapping"),
        ("tiny: {tap-textvq: {}}", r"experiment = 'tap-textvq': did you mean tap-textvqa\?"),
        ("tiny: {3: {}}", "experiment = 3: must be one of"),
        ("tiny: {tap-textvqa: [1]}", r"its plan = \[1\]: must be a mapping"),
        ("tiny: {tap-textvqa: {cells: []}}", "tap-textvqa: profile = None: must be text"),
        ("tiny: {tap-textvqa: {profile: mini}}", "tap-textvqa: cells = None: must be a list"),
        ("tiny: {tap-textvqa: {profile: mini, cells: 3}}", "cells = 3: must be a list"),
        ("tiny: {tap-textvqa: {profile: mini, cells: [fisher]}}", "a cell = 'fisher': must be a mapping"),
        (
            "tiny: {tap-textvqa: {profile: mini, cells: [], job: 2}}",
            r"the plan has none of this name; did you mean jobs\?",
        ),
        ("tiny: {tap-textvqa: {profile: mini, cells: [], jobs: 0}}", "jobs = 0: must be a whole number of at least 1"),
        ("tiny: {tap-textvqa: {profile: mini, cells: [], jobs: '2'}}", "jobs = '2': must be a whole number"),
        ("tiny: {tap-textvqa: {profile: mini, cells: [], studies: scoring}}", "studies = 'scoring': must be a list"),
        ("tiny: {tap-textvqa: {profile: mini, cells: [], settings: lr}}", "settings = 'lr': must be a mapping"),
        ("tiny: {tap-textvqa: {profile: mini, cells: [], notebooks: [[a]]}}", r"a notebook = \['a'\]: must be text or"),
        (
            "tiny: {tap-textvqa: {profile: mini, cells: [], notebooks: [{a: 3}]}}",
            "parameters of a = 3: must be a mapping",
        ),
    ],
)
def test_a_bad_plan_is_named(tmp_path, grid, message):
    (tmp_path / "grid.yaml").write_text(grid)
    with pytest.raises(ValueError, match=rf"(?s)grid.yaml.*{message}"):
        load_grid(f"{tmp_path / 'grid.yaml'}:tiny")


@pytest.mark.parametrize(
    "cell, message",
    [
        ({"rescaled": "false"}, "rescaled = 'false': must be True or False or"),
        ({"rescaled": ["false", True]}, "rescaled = 'false': must be"),
        ({"constraint": "0.4"}, "constraint = '0.4': must be a finite number"),
        ({"constraint": [[0.4]]}, r"constraint = \[0.4\]: must be"),
        ({"stages": [["pruned"]]}, "stages .*: needs"),
    ],
)
def test_a_cell_of_a_grid_is_taken_as_it_is_meant(cell, message):
    with pytest.raises(ValueError, match=message):
        cells({"cells": [{"method": "fisher", "constraint": 0.4} | cell]})


def test_files_of_grids_that_make_no_sense_are_refused(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("a: &a {profile: mini, cells: &c []}\nd: {clip-mscoco: {<<: *a, studies: *c}}\n1: {}\n")
    assert load_grid(f"{path}:d") == {"clip-mscoco": {"profile": "mini", "cells": [], "studies": []}}
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    for content, says in (
        (laughs, "values when its aliases are written out, expected at most 100000"),
        ("a: &a [*a]", "inf values when its aliases are written out"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: [", "is not a YAML file of grids"),
        ("[" * 3000, "is not a YAML file of grids"),
        ("a: !!int ''", "is not a YAML file of grids"),
        ("[a]", "must be a mapping"),
        ("", "must be a mapping"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=rf"grid\.yaml.*{says}"):
            load_grid(f"{path}:a")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        load_grid(f"{path}:a")


def test_users_files_are_below_one_folder():
    plan = {"profile": "full", "data_root": "tap", "checkpoint": "checkpoints/tap.ckpt"}
    assert inputs(plan, "/data") == {"data_root": "/data/tap", "checkpoint": "/data/checkpoints/tap.ckpt"}
    assert inputs({"profile": "full", "checkpoint": "x.ckpt"}, "/data") == {
        "data_root": "/data",
        "checkpoint": "/data/x.ckpt",
    }
    assert inputs({"profile": "full"}, "/data") == {"data_root": "/data"}
    assert inputs(PLAN, "") == {}
    with pytest.raises(ValueError, match="profile = 'full' needs data"):
        inputs(plan, "")


@pytest.mark.parametrize("grid", ["default", "full", "published"])
def test_committed_grids_are_plans_of_all_experiments(grid):
    plans = load_grid(f"{GRIDS}:{grid}")
    assert sorted(plans) == sorted(name for name, spec in SPECS.items() if spec.ways)  # the others are not retrained
    for name, plan in plans.items():
        found = [planned.cell for planned in cells(plan)]
        assert Cell("label-free", SPECS[name].constraint) in found  # whose speed is measured, and mask values shown
        both = {(p.cell.method, p.cell.constraint) for p in cells(plan) if not p.cell.variant and len(p.stages) == 2}
        own = {(method, SPECS[name].constraint) for method in ("label-free", "random")}
        assert own <= both  # whose scores 06_paper compares
        assert {"label-free", "random"} <= {cell.method for cell in found}
        assert inputs(plan, "data") or plan["profile"] == "mini"
        assert all(share(plan, job) for job in range(plan["jobs"]))


def test_studies_of_a_plan_are_those_of_its_experiment():
    for grid in ("default", "smoke", "full", "published"):
        for name, plan in load_grid(f"{GRIDS}:{grid}").items():
            assert set(plan.get("studies", ())) <= set(SPECS[name].studies)
            for planned in cells(plan):
                planned.cell.resolved(SPECS[name], SPECS[name].methods)


def test_cells_are_computed_and_collected(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "open_experiment", lambda *args, **more: open_experiment(*args, **more | SMALL))
    experiment = open_experiment("tap-stvqa", runs=tmp_path / "runs", **SMALL)
    experiment.baseline()
    done = [experiment.prune(planned.cell) for planned in cells(PLAN)]
    assert [stage.result["fraction"] <= 0.4 for stage in done[2:4]] == [True, True]
    more = PLAN | {"cells": [*PLAN["cells"], {"method": "l1", "constraint": 0.2}], "notebooks": ["05_evaluate"]}
    tables, missing = collect.collect({"tap-stvqa": more}, tmp_path / "runs")
    assert missing == [
        "tap-stvqa: l1-0.2-seed0 pruned (03_prune)",
        "tap-stvqa: l1-0.2-seed0 retrained (04_retrain)",
        "tap-stvqa: speed",
    ]
    table = tables["results"]
    assert list(table.columns) == list(schema.TABLES["results"]) and len(table) == 1 + len(done)
    assert table.method.iloc[0] == "unpruned" and table.anls.notna().all()
    assert table.score.iloc[1:].tolist() == [stage.result["score"] for stage in done]
    variants = table[table.variant.fillna("") != ""]
    assert variants.variant.tolist() == ["rescaled=True", "num_samples=20"]
    # kept per layer and importances are of the experiment's own way alone
    assert tables["layers"].groupby(["method", "constraint", "seed"], dropna=False).ngroups == 5
    schema.write_tables(tables, tmp_path / "out")
    assert json.loads((done[0].folder / "result.json").read_text())["score"] == pytest.approx(table.score[1])
