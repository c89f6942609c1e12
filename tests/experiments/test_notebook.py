"""The head of a notebook: parameters checked before any work, the experiment opened, the command printed."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from papermill.cli import papermill

from lfpr.experiments import Cell, from_parameters, open_experiment, read_parameters
from lfpr.experiments.grid import settings as plan_settings
from lfpr.experiments.notebook import _injected, command, is_own
from lfpr.experiments.parameters import declared, of_checkout
from lfpr.experiments.run_notebook import parse
from lfpr.files import DataError, checkout
from lfpr.masks import Masks
from lfpr.paper.collect import saved_score
from lfpr.released import save_masks

DEFAULTS = declared("03_prune")


def test_papermill_may_inject_paths_of_its_own():
    cell = "# Parameters\nPAPERMILL_INPUT_PATH = 'a'\nPAPERMILL_OUTPUT_PATH = 'b'\nconstrain = 1\n"
    assert _injected({"In": [cell]}) == ["constrain"]


def head(tmp_path, injected=None, **values):
    """What the header of 03 gives, as papermill would run it."""
    cells = ["", "experiment = ...", *([f"# Parameters\n{injected}\n"] if injected else []), "from_parameters(...)"]
    return from_parameters("03_prune", DEFAULTS | {"runs": str(tmp_path), "In": cells} | values)


def test_parameters_name_the_experiment_and_the_cell(tmp_path, capsys):
    exp, cell = head(tmp_path, experiment="clip-mscoco", constraint=0.6, seed=2)
    assert exp.name == "clip-mscoco" and exp.runs.folder == tmp_path / "clip-mscoco" / "mini"
    assert cell == exp.cell(Cell(constraint=0.6, seed=2)) and cell.method == "fisher" and cell.rescaled
    first, *_, last = capsys.readouterr().out.splitlines()
    printed = shlex.split(first)
    assert printed[:3] == ["papermill", "03_prune.ipynb", "OUT.ipynb"]
    named = dict(zip(printed[4::3], printed[5::3], strict=True))
    assert named == {"experiment": "clip-mscoco", "constraint": "0.6", "seed": "2", "runs": str(tmp_path)}
    assert last.startswith("cell: method fisher, constraint 0.6, seed 2")


def test_any_setting_of_the_profile_goes_through_one_mapping(tmp_path, capsys):
    exp, _ = head(tmp_path, experiment="clip-mscoco", settings={"on_error": "skip", "lr": 2e-5, "shortlists": [8, 4]})
    assert (exp.settings.on_error, exp.settings.rest.lr, exp.settings.shortlists) == ("skip", 2e-5, (8, 4))
    printed = shlex.split(capsys.readouterr().out.splitlines()[0])
    assert printed[printed.index("-y") + 1] == "{settings: {on_error: skip, lr: 2.0e-05, shortlists: [8, 4]}}"
    exp, cell = head(tmp_path, settings={"num_samples": 7})  # what a cell leaves to the profile
    assert exp.settings.num_samples == cell.num_samples == 7
    with pytest.raises(ValueError, match="num_samples is a parameter of its own"):
        head(tmp_path, settings={"num_samples": 7}, num_samples=8)
    exp, _ = head(tmp_path, settings=None, device="cpu")
    assert exp.device.type == "cpu" and exp.settings == open_experiment(runs=tmp_path).settings


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"on_error": "skip"}, "unknown setting 'on_error' of tap-textvqa: there are .*'lr'"),
        ({"lrr": 1}, "unknown setting 'lrr' of tap-textvqa: did you mean lr"),
        ({"profile": "full"}, "profile is a parameter of its own"),
        ({"constraint": 0.4}, "unknown setting 'constraint'"),
        ({"lr": "1e-5"}, "lr = '1e-5': must be a finite number; YAML reads 1e-5 as text, and 1.0e-5 as a number"),
        ({"eval_precision": False}, "eval_precision = False: must be text; YAML reads .*quote"),
        ({1: 2}, "unknown setting 1 of tap-textvqa"),
        ("lr", "settings = 'lr': must be a mapping"),
    ],
)
def test_wrong_settings_are_said_before_any_work(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        head(tmp_path, settings=settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "injected, values, message",
    [
        ("constrain = 0.6", {}, "parameter constrain: 03_prune has none of this name; did you mean constraint?"),
        ("a = 1\nrescale = True", {}, "parameter a: 03_prune has none"),
        (
            "rescaled = 'false'",
            {"rescaled": "false"},
            "rescaled = 'false': must be True or False or 'released' or None; papermill's -p reads True and False, but",
        ),
        ("constraint = 6", {"constraint": 6}, r"constraint = 6: must be in \(0, 1\]"),
        ("constraint = 'sixty'", {"constraint": "sixty"}, "constraint = 'sixty': must be"),
        ("experiment = 'tap'", {"experiment": "tap"}, "experiment = 'tap': must be one of"),
        ("method = 'l2'", {"method": "l2"}, "method = 'l2': must be one of"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(tmp_path, injected, values, message):
    with pytest.raises(ValueError, match=message):
        head(tmp_path, injected, **values)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "values, message",
    [
        ({"studies": "scoring"}, r"studies = 'scoring': must be a list of some of \['scoring'\]"),
        ({"studies": ["scales"]}, r"studies = \['scales'\]: must be a list of some of \['scoring'\]"),
        ({"submission": True}, "submission = True: must be text or a path"),
        ({"submission": "x.json"}, "the profile 'mini' has no test split"),
        ({"submission": "x.json", "experiment": "clip-mscoco"}, "clip-mscoco: has no test split"),
        ({"step": 2, "experiment": "clip-mscoco"}, "step = 2: clip-mscoco decodes no steps"),
        ({"masks": "nowhere", "experiment": "clip-mscoco"}, r"masks = ['\"].*/nowhere['\"]: no mask file"),
    ],
)
def test_what_05_would_find_at_its_end_is_said_at_once(tmp_path, values, message):
    values = declared("05_evaluate") | {"runs": str(tmp_path)} | values
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        from_parameters("05_evaluate", values, own=["studies", "submission"])
    assert not list(tmp_path.iterdir())


def test_relative_paths_are_the_checkout_s_wherever_a_notebook_runs(tmp_path, monkeypatch):
    root, settings = checkout(), {"scores": "runs/scores", "lr": 1e-5}
    for folder in (root, root / "notebooks", tmp_path):
        monkeypatch.chdir(folder)
        namespace = declared("03_prune") | {"runs": "runs/made-up"}
        exp, _ = from_parameters("03_prune", namespace)
        assert exp.runs.folder == root / "runs" / "made-up" / "tap-textvqa" / "mini"
        assert namespace["runs"] == str(root / "runs" / "made-up")
        with pytest.raises(DataError, match=re.escape(f"no file {root / 'runs' / 'scores' / 'head_grads.npy'}")):
            from_parameters("03_prune", namespace | {"settings": settings})
        assert plan_settings({"settings": settings}) == settings | {"scores": str(root / "runs" / "scores")}
        with pytest.raises(FileNotFoundError, match=re.escape(f"{root / 'outputs' / '0.75'}")):
            from_parameters("03_prune", namespace | {"masks": "outputs/0.75"})
        paper = {"folder": "paper_figures", "runs": tmp_path / "runs"}
        read_parameters("06_paper", paper)
        assert paper == {"folder": str(root / "paper_figures"), "runs": str(tmp_path / "runs")}
        encoder = declared("07_any_transformer") | {"samples": "tests/real_samples", "figures_folder": "~/figures"}
        read_parameters("07_any_transformer", encoder)
        assert encoder["samples"] == str(root / "tests" / "real_samples") and encoder["runs"] is None
        assert encoder["figures_folder"] == str(Path.home() / "figures")
    assert not (root / "runs" / "made-up").exists() and not list(tmp_path.iterdir())


def test_a_name_on_a_hub_is_no_path_unless_the_checkout_has_it(monkeypatch):
    names = {"first_level": "openai/clip-vit-base-patch32", "checkpoint": "data/mini/clip-mscoco", "model_folder": None}
    assert of_checkout(names) == names | {"checkpoint": str(checkout() / "data" / "mini" / "clip-mscoco")}


@pytest.mark.parametrize(
    "parameters",
    [
        {"runs": "/tmp/a b/é'x $HOME/`id`", "method": 'say "hi"; exit', "seed": 3},
        {"runs": "2024", "checkpoint": "None", "data_root": "1e-5", "device": "nan"},
        {"settings": {"lr": 1e-5, "first_level": "é'x $HOME", "shortlists": (8, 4), "released_files": True}},
        {"studies": ["scoring", "no"], "constraint": 1e-05, "rescaled": False, "masks": "a\nb", "steps": None},
        {"seed": np.int64(3), "settings": {"lr": np.float64(1e-5), "scores": Path("a b")}},
    ],
)
def test_the_printed_command_gives_a_shell_the_same_parameters(parameters):
    words = shlex.join([sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"])
    script = f'papermill() {{ {words} "$@"; }}\n{command("03_prune", parameters)}'
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=True, timeout=60)
    read = papermill.make_context("papermill", json.loads(done.stdout)).params
    assert (read["notebook_path"], read["output_path"]) == ("03_prune.ipynb", "OUT.ipynb")
    found = parse(read["parameters"], read["parameters_yaml"], read["parameters_raw"])
    plain = json.dumps(parameters, default=lambda value: value.item() if hasattr(value, "item") else str(value))
    assert repr(found) == repr(json.loads(plain))  # 3 is not "3", nor True 1


def test_lists_are_given_as_yaml():
    assert command("05_evaluate", {"studies": ["scoring"], "seed": 1}) == (
        """papermill 05_evaluate.ipynb OUT.ipynb -y '{studies: [scoring]}' -p seed 1"""
    )


def test_only_the_place_may_differ_from_the_own_way(tmp_path):
    exp, cell = head(tmp_path, constraint=0.6, seed=3, method="random")
    assert is_own(exp, cell)
    for option in (
        {"rescaled": True},
        {"num_samples": 3},
        {"scoring": "batched"},
        {"percent": 5},
        {"trained": "masks"},
    ):
        assert not is_own(exp, exp.cell(Cell(constraint=0.6, **option)))


def test_masks_without_a_search_are_their_method_s_own_way(tmp_path):
    """03 and 04 ask of every cell; these have no constraint to be placed by."""
    exp, walked = head(tmp_path, experiment="clip-mscoco", heads_removed=7, seed=8)
    save_masks(Masks.ones(exp.encoder), tmp_path / "masks")
    for cell in (walked, exp.cell(Cell(masks=str(tmp_path / "masks")))):
        assert is_own(exp, cell) and not is_own(exp, replace(cell, trained="all"))
        assert saved_score(exp, cell, retrained=False) is None


def test_scores_that_are_to_be_renewed_are_not_compared(tmp_path, monkeypatch):
    exp, cell = head(tmp_path, constraint=0.4)
    rows = {**cell.place, "experiment": exp.name, "profile": "mini", "variant": None, "retrained": False, "score": 0.5}
    pd.DataFrame([rows]).to_csv(tmp_path / "results.csv", index=False)
    assert saved_score(exp, cell, False, tmp_path) == 0.5
    monkeypatch.setenv("LFPR_UPDATE", "1")
    assert saved_score(exp, cell, False, tmp_path) is None
