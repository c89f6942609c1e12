"""A grid of made-up notebooks: what runs, in which order, what is not run again, and what happens to what fails."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import yaml
from small_notebooks import made_up, ran

from lfpr.__main__ import COMMANDS, main
from lfpr.experiments import check_runs, run_grid
from lfpr.experiments.parameters import check_parameters, declared, find_notebook, source_hash
from lfpr.experiments.run_grid import Grid, failures, plan_lines
from lfpr.experiments.run_notebook import output_name, parse
from lfpr.files import checkout

PLAN = {
    "profile": "mini",
    "jobs": 2,
    "notebooks": ["02_importance", "05_evaluate", {"05_evaluate": {"seed": 1}}],
    "studies": ["scoring"],
    "cells": [
        {"method": "label-free", "constraint": [0.4, 0.8]},
        {"method": "random", "constraint": 0.4, "stages": "pruned"},
        {"method": "label-free", "constraint": 0.4, "stages": "retrained", "trained": "masks"},
    ],
}


@pytest.fixture
def grid(tmp_path):
    return Grid("tiny", {"tap-textvqa": PLAN}, tmp_path / "runs", made_up(tmp_path / "notebooks"))


def test_a_job_prunes_then_retrains_and_the_first_does_the_rest(grid, tmp_path):
    names = [[step.name for step in grid.steps("tap-textvqa", job)] for job in (0, 1)]
    assert names[0] == [
        "01_data",
        "03_prune-label-free-0.4-seed0",
        "04_retrain-label-free-0.4-seed0",
        "03_prune-random-0.4-seed0",
        "02_importance",
        "05_evaluate",
        "05_evaluate-seed=1",
    ]
    assert names[1] == [
        "03_prune-label-free-0.8-seed0",
        "04_retrain-label-free-0.8-seed0",
        "04_retrain-label-free-0.4-seed0-trained=masks",
    ]
    steps = {step.name: step for step in grid.steps("tap-textvqa")}
    assert sorted(steps) == sorted(names[0] + names[1])
    step = steps["04_retrain-label-free-0.4-seed0-trained=masks"]
    assert step.output == tmp_path / "runs" / "notebooks" / "tiny" / "tap-textvqa" / f"{step.name}.ipynb"
    shared = {"experiment": "tap-textvqa", "profile": "mini", "runs": str(tmp_path / "runs")}
    assert step.parameters == shared | {"method": "label-free", "constraint": 0.4, "trained": "masks"}
    assert steps["05_evaluate"].parameters == shared | {"studies": ["scoring"]}
    assert steps["05_evaluate-seed=1"].parameters == shared | {"studies": ["scoring"], "seed": 1}
    assert "runs" not in Grid("tiny", grid.plans, checkout() / "runs").steps("tap-textvqa", 1)[0].parameters


def test_the_users_files_are_parameters(grid, tmp_path):
    for name in ("03_prune", "04_retrain"):
        path = grid.notebooks / f"{name}.ipynb"
        text = path.read_text().replace(
            "runs = None", 'data_root = \\"\\"  # a\\ncheckpoint = \\"\\"  # b\\nruns = None'
        )
        path.write_text(text)
    plan = PLAN | {"profile": "full", "data_root": "tap", "checkpoint": "tap.ckpt"}
    step = Grid("tiny", {"tap-textvqa": plan}, tmp_path / "runs", grid.notebooks, "/data").steps("tap-textvqa", 1)[0]
    assert step.parameters["data_root"] == "/data/tap" and step.parameters["checkpoint"] == "/data/tap.ckpt"
    with pytest.raises(ValueError, match="parameter data_root: 01_data has none of this name"):
        Grid("tiny", {"tap-textvqa": plan}, tmp_path / "runs", grid.notebooks, "/data").steps("tap-textvqa", 0)


def test_what_is_there_is_not_run_again_unless_its_source_parameters_or_inputs_changed(grid, monkeypatch):
    def run(changed=grid):
        return run_grid.run(changed, changed.steps("tap-textvqa"), "tiny")

    outcome = run()
    assert len(outcome.ran) == 10 and not outcome.there and not outcome.failed
    assert [line.split()[0] for line in ran(grid.notebooks)][:3] == ["01_data", "03_prune", "04_retrain"]
    outcome = run()
    assert len(outcome.there) == 10 and not outcome.ran and ran(grid.notebooks) == []

    source = grid.notebooks / "03_prune.ipynb"
    notebook = nbformat.read(source, as_version=4)
    notebook.cells[1].execution_count, notebook.metadata.executed = 7, True
    nbformat.write(notebook, source)
    run_grid._source_hash.cache_clear()
    assert not run().ran  # what a notebook once put out does not matter
    notebook.cells[0].source = "# Another title"
    nbformat.write(notebook, source)
    run_grid._source_hash.cache_clear()
    assert [name.split("-")[0] for name in run().ran] == ["03_prune"] * 3

    steps = {step.name: step.output for step in grid.steps("tap-textvqa")}
    cut = steps["01_data"].read_text()
    steps["01_data"].write_text(cut[: len(cut) // 2])  # a job was killed while it wrote
    interrupted = json.loads(steps["02_importance"].read_text())
    interrupted["metadata"]["lfpr"]["complete"] = False
    steps["02_importance"].write_text(json.dumps(interrupted))
    steps["03_prune-random-0.4-seed0"].unlink()
    assert sorted(run().ran) == ["01_data", "02_importance", "03_prune-random-0.4-seed0"]

    other = PLAN | {"cells": [PLAN["cells"][0], {"method": "random", "constraint": 0.5, "stages": "pruned"}]}
    other |= {"studies": []}
    outcome = run(Grid("tiny", {"tap-textvqa": other}, grid.runs, grid.notebooks))
    assert sorted(outcome.ran) == ["03_prune-random-0.5-seed0", "05_evaluate", "05_evaluate-seed=1"]
    monkeypatch.setattr(run_grid, "_input_hash", lambda file: "another checkpoint")
    assert len(run().ran) == 10 and not run().ran


def test_what_fails_keeps_its_traceback_stops_no_other_and_is_named(grid, tmp_path, capfd):
    plan = PLAN | {"cells": [{"method": ["random", "l1", "label-free"], "constraint": 0.4, "stages": "pruned"}]}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"tiny": {"tap-textvqa": plan | {"notebooks": []}}}))
    folders = ["--notebooks", str(grid.notebooks), "--runs", str(tmp_path / "runs")]
    command = [sys.executable, "-m", "lfpr", "grid", "--grid", f"{tmp_path / 'grid.yaml'}:tiny", *folders]
    command += ["--experiment", "tap-textvqa", "--stamp", tmp_path / "stamp.json"]
    environment = os.environ | {"TQDM_DISABLE": "1"}
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 1 and done.stderr == "" and not (tmp_path / "stamp.json").exists()
    lines = done.stdout.splitlines()
    place = tmp_path / "runs" / "notebooks" / "tiny" / "tap-textvqa"
    error = "ValueError: method = 'l1': a made-up failure"
    assert re.fullmatch(r"1/4, about \d minutes? left: tap-textvqa 01_data \d+\.\d s", lines[0])
    assert re.fullmatch(
        rf"2/4, about \d minutes? left: tap-textvqa 03_prune-l1-0.4-seed0 \d+\.\d s FAILED: {error}", lines[2]
    )
    assert re.fullmatch(r"3/4, about \d minutes? left: tap-textvqa 03_prune-label-free-0.4-seed0 \d+\.\d s", lines[3])
    assert re.fullmatch(r"tap-textvqa: 3 notebooks ran, 0 were there, 1 failed; \d+ CPU-seconds", lines[4])
    assert lines[5:] == [f"failed: {place / '03_prune-l1-0.4-seed0.ipynb'}: {error}"]
    assert list(failures(tmp_path / "runs" / "notebooks")) == [(place / "03_prune-l1-0.4-seed0.ipynb", error)]
    notebook = nbformat.read(place / "03_prune-l1-0.4-seed0.ipynb", as_version=4)
    errors = [output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert "made-up failure" in "".join(errors[0].traceback)

    for name in ("01_data", "03_prune"):  # a repaired notebook runs once more, the others' stamps are written
        path = grid.notebooks / f"{name}.ipynb"
        path.write_text(path.read_text().replace('method == \\"l1\\"', "False"))
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0 and "4 notebooks ran" in done.stdout
    assert len(json.loads((tmp_path / "stamp.json").read_text())["notebooks"]) == 4
    assert not list(failures(tmp_path / "runs" / "notebooks"))


def test_an_interrupted_notebook_is_run_again(grid, tmp_path):
    path = grid.notebooks / "01_data.ipynb"
    path.write_text(
        path.read_text().replace(
            "if runs:", 'import time, os\\nif not os.path.exists(\\"go\\"): time.sleep(60)\\nif runs:'
        )
    )
    (tmp_path / "grid.yaml").write_text(
        yaml.safe_dump({"tiny": {"tap-textvqa": PLAN | {"cells": [], "notebooks": []}}})
    )
    folders = ["--notebooks", str(grid.notebooks), "--runs", str(tmp_path / "runs")]
    command = [sys.executable, "-m", "lfpr", "grid", "--grid", f"{tmp_path / 'grid.yaml'}:tiny", *folders]
    command += ["--experiment", "tap-textvqa"]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for _ in range(600):
        if (grid.notebooks / "log.txt").exists():
            break
        time.sleep(0.1)
    job.terminate()
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 143 and "Traceback" not in output
    (grid.notebooks / "go").touch()
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "1 notebooks ran, 0 were there" in done.stdout


def test_the_plan_says_what_is_there_and_expects_what_it_knows(grid, tmp_path):
    lines = [line.split() for line in plan_lines(grid, cores=2)]
    assert ["tap-textvqa", "01_data", "1", "0", "unknown"] in lines
    prune = run_grid.committed_seconds()["tap-textvqa", "mini", "prune"]  # of paper_figures/minutes.csv
    assert prune > 1 and ["tap-textvqa", "03_prune", "3", "0", f"{3 * prune / 60:.1f}"] in lines
    assert " ".join(lines[-1]).startswith(
        "10 notebooks to run, about 1 minutes on 2 cores, and those that were not run"
    )
    run_grid.run(grid, grid.steps("tap-textvqa", 0), "tiny")
    lines = [line.split() for line in plan_lines(grid, cores=2)]
    assert ["tap-textvqa", "01_data", "0", "1", "0.0"] in lines
    assert ["tap-textvqa", "03_prune", "1", "2", "1.5"] in lines  # 90 seconds, says the stages' provenance
    assert ["tap-textvqa", "04_retrain", "2", "1", "3.0"] in lines
    assert " ".join(lines[-1]) == "3 notebooks to run, about 2 minutes on 2 cores"
    run_grid.run(grid, grid.steps("tap-textvqa", 1), "tiny")
    *_, last = plan_lines(grid, cores=1)
    assert last == "0 notebooks to run, about 0 minutes on 1 cores"


def test_a_notebook_declares_its_parameters(tmp_path):
    folder = made_up(tmp_path / "notebooks")
    prune = find_notebook("03_prune", folder)
    assert find_notebook("03_prune.ipynb", folder) == prune == folder / "03_prune.ipynb"
    assert declared(prune)["experiment"] == "tap-textvqa" and declared(prune)["constraint"] is None
    assert (
        source_hash(prune) == source_hash(find_notebook("03_prune", folder)) != source_hash(folder / "04_retrain.ipynb")
    )
    check_parameters(find_notebook("01_data"), {"limit": None})  # all, as it says
    check_parameters(prune, {"constraint": 0.6, "experiment": "clip-mscoco", "method": None, "studies": ["scales"]})
    with pytest.raises(ValueError, match=r"notebook = '03_pruned': did you mean 03_prune\?"):
        find_notebook("03_pruned", folder)
    for parameters, message in (
        ({"constrant": 0.6}, r"parameter constrant: 03_prune has none of this name; did you mean constraint\?"),
        ({"constraint": "much"}, "constraint = 'much'"),
        ({"constraint": 6}, r"constraint = 6: must be in \(0, 1\]"),
        ({"constraint": 0.4, "percentile": 50}, "give one of them"),
        ({"seed": "one"}, "seed = 'one': must be a whole number"),
        ({"seed": True}, "seed = True: must be a whole number"),
        ({"profile": 3}, "profile = 3: must be text; papermill's -p reads numbers, -r text"),
        ({"experiment": "tap-textvq"}, r"experiment = 'tap-textvq': did you mean tap-textvqa\?"),
    ):
        with pytest.raises(ValueError, match=message):
            check_parameters(prune, parameters)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", "[" * 10**5, "\udcff"])
def test_what_is_no_notebook_is_named(tmp_path, text):
    (tmp_path / "03_prune.ipynb").write_bytes(text.encode(errors="surrogateescape"))
    for read in (declared, source_hash):
        with pytest.raises(ValueError, match="03_prune.ipynb: is no notebook: "):
            read(tmp_path / "03_prune.ipynb")


def test_values_are_read_as_papermill_reads_them():
    given = [("a", "0.6"), ("b", "3"), ("c", "True"), ("d", "None"), ("e", "label-free")]
    assert parse(given, ["{b: 4, f: [1, two]}"]) == {
        "a": 0.6,
        "b": 3,
        "c": True,
        "d": None,
        "e": "label-free",
        "f": [1, "two"],
    }
    with pytest.raises(ValueError, match="must be a mapping"):
        parse([], ["- 3"])
    assert output_name("03_prune", {}) == "03_prune"
    assert output_name("03_prune", {"constraint": 0.6, "seed": 1}) == "03_prune-constraint=0.6-seed=1"
    path = output_name("06_paper", {"folder": "/a/b"})
    assert re.fullmatch(r"06_paper-folder=_a_b-[0-9a-f]{10}", path) and path != output_name(
        "06_paper", {"folder": "/a_b"}
    )


def lfpr(*arguments, cwd):
    command = [sys.executable, "-m", "lfpr", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """A command's complaint, from another folder; no kernel was started, and no file written."""

    def refuse(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(run_grid.signal, "signal", lambda *_: None)
        monkeypatch.setattr(sys, "argv", sys.argv)
        with pytest.raises(SystemExit) as stopped:
            sys.exit(main(arguments))
        said = capsys.readouterr()
        assert stopped.value.code == 2 and said.out == "" and list(tmp_path.iterdir()) == []
        return said.err

    return refuse


def test_one_notebook_runs_from_the_shell_wherever_that_is(grid, tmp_path):
    out = tmp_path / "out" / "pruned.ipynb"
    folders = ["--notebooks", grid.notebooks, "--out", out]
    done = lfpr("run", "03_prune", "-p", "constraint", "0.6", "-p", "method", "l1", *folders, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout.strip() == str(out) and "made-up failure" in done.stderr
    assert "IPKernelApp" not in done.stderr
    place = find_notebook("01_data", grid.notebooks)
    write_quick = place.read_text().replace("1 / 0", "print(42)")
    place.write_text(write_quick)
    done = lfpr("run", "01_data", "-y", "{method: random, seed: 2}", *folders, cwd="/")
    assert done.returncode == 0 and done.stderr == ""
    cells = nbformat.read(out, as_version=4).cells
    assert "01_data tap-textvqa random None 2 None" in cells[3].outputs[0].text
    assert cells[4].outputs[0].text == "42\n"  # nothing is left out of a notebook that is run alone


def test_what_is_wrong_is_said_before_a_kernel_starts(refused):
    assert "did you mean constraint?" in refused("run", "03_prune", "-p", "constrant", "0.6")
    assert "constraint = 6: must be in (0, 1]" in refused("run", "03_prune", "-p", "constraint", "6")
    assert "did you mean 03_prune?" in refused("run", "03_prun")
    assert "must be a mapping" in refused("run", "03_prune", "-y", "- 1")
    assert "the grid has ['tap-textvqa'" in refused("grid", "--experiment", "tap")
    assert "must be one of ['default'" in refused("plan", "--grid", "tiny")
    assert "cores = 0: must be a whole number of at least 1" in refused("plan", "--cores", "0")
    assert "must be one of run, grid, plan, collect, reproduce" in refused("prune")


@pytest.mark.parametrize(
    "command, message",
    [
        (
            "run 03_prune -p rescaled false",
            "rescaled = 'false': must be True or False or 'released' or None; papermill's",
        ),
        ("run 03_prune -p Constraint 0.4", "did you mean constraint?"),
        ("run 03_prune -r constraint 0.4", "constraint = '0.4': must be a finite number or None"),
        ("run 03_prune -r rescaled None", "rescaled = 'None': must be"),
        ("run 03_prune -p runs none", "runs = 'none': must be a path, or None"),
        ("run 03_prune -p seed 1.5", "seed = 1.5: must be a whole number"),
        ("run 03_prune -p constraint nan", "constraint = nan: must be"),
        ("run 03_prune -p method l2", "method = 'l2': must be one of"),
        ("run 03_prune -y settings:{lr:1}", "must be a mapping"),
        ("run 03_prune -y {settings:[lr]}", "settings = ['lr']: must be a mapping"),
        ("run 05_evaluate -y {studies:[scales]}", "studies = ['scales']: must be a list of some of"),
        ("run 06_paper -p folders x", "did you mean folder?"),
        ("run 07_any_transformer -p num_texts 0", "num_texts = 0: must be a whole number from 1 to 100"),
        ("run 00_explore -p experiment clip", "experiment = 'clip': must be one of"),
        ("run nowhere", "notebook = 'nowhere'"),
        ("run 03_prune --notebooks nowhere", "notebook = '03_prune': nowhere has []"),
        ("grid --experiment tap-textvq", "experiment = 'tap-textvq': did you mean tap-textvqa?"),
        ("grid --experiment tap-textvqa --job 9", "job = 9: the plan has jobs"),
        ("grid --experiment tap-textvqa --max-memory-mb nan", "max_memory_mb = nan: must be above 0"),
        ("grid --experiment tap-textvqa --device gpu", "device = 'gpu': must be one of"),
        ("plan --grid nowhere.yaml:tiny", "there is no file 'nowhere.yaml'"),
        ("plan --grid published", "profile = 'full' needs data"),
        ("collect --grid nowhere.yaml:tiny", "there is no file 'nowhere.yaml'"),
        ("reproduce --new nowhere", "no file paper_figures/results.csv"),
    ],
)
def test_bad_values_end_a_command_with_a_line(refused, command, message):
    (said,) = refused(*command.split()).strip().splitlines()
    assert said.startswith(f"python -m lfpr {command.split()[0]}: ") and message in said


def test_alone_it_lists_the_commands():
    done = lfpr(cwd="/")
    assert done.returncode == 0 and done.stderr == ""
    for command in ("run", "grid", "plan", "collect", "reproduce"):
        assert f"python -m lfpr {command}" in done.stdout


def test_commands_are_functions_without_arguments():
    for place in COMMANDS.values():
        module, _, function = place.partition(":")
        source = Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py").read_text()
        assert re.search(rf"^def {function}\(", source, re.MULTILINE), place


def test_each_line_of_a_log_says_how_far_the_whole_grid_is(grid, capsys):
    run_grid.run(grid, grid.steps("tap-textvqa", 0), "job 0", jobs_at_once=2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and all(re.match(r"\d/10, about \d+ minutes? left: job 0 0\d_", line) for line in lines)
    assert [line[0] for line in lines] == list("1234567") and re.search(r"seed0 \d+\.\d s$", lines[1])
    run_grid.run(grid, grid.steps("tap-textvqa", 1), "job 1", jobs_at_once=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": job 1")[0] for line in lines[-1:]] == ["10/10"] and lines[0].startswith("8/10, about ")
    run_grid.run(grid, grid.steps("tap-textvqa", 1), "job 1", jobs_at_once=2)
    assert capsys.readouterr().out == ""  # nothing was run


def test_the_time_left_is_that_of_what_is_not_there_shared_by_the_jobs(grid, monkeypatch):
    seconds = {"03_prune": 90.0, "04_retrain": 180.0}
    monkeypatch.setattr(run_grid.Durations, "expected", lambda self, step: seconds.get(step.notebook.stem))
    tally = lambda jobs: str(run_grid.Tally(grid, grid.every_step(), jobs))  # noqa: E731
    assert tally(1) == "0/10, about 23 minutes left"  # 3 of 90 s, 3 of 180 s, and 4 unknown ones as their mean
    assert tally(2) == "0/10, about 12 minutes left"
    (step,) = [step for step in grid.every_step() if step.notebook.stem == "01_data"]
    run_grid.run(grid, [step], "tiny")
    assert tally(1) == "1/10, about 21 minutes left"
    source = grid.notebooks / "01_data.ipynb"
    source.write_text(source.read_text().replace("# A notebook", "# Another"))
    run_grid._source_hash.cache_clear()
    assert tally(1).startswith("0/10")  # made of another source
    seconds.clear()
    assert tally(1) == "0/10"


def test_a_terminal_has_one_line_that_is_written_anew(grid, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(run_grid.shutil, "get_terminal_size", lambda: os.terminal_size((50, 24)))
    failing = {"tap-textvqa": PLAN | {"cells": [{"method": "l1", "constraint": 0.4}]}}
    grid = replace(grid, plans=failing)
    run_grid.run(grid, grid.steps("tap-textvqa", 0), "tiny")
    written = capsys.readouterr().out.split(run_grid.CLEAR)
    assert all("\n" not in line and len(line) < 50 for line in written if "FAILED" not in line)
    assert sum("FAILED: ValueError: method = 'l1'" in line for line in written) == 2 and written[-1] == ""


def test_before_the_first_run_nothing_is_damaged(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check_runs, "default_runs", lambda: tmp_path / "runs")
    assert main(["check", "--remove"]) == 0 and capsys.readouterr().out == ""
    assert main(["check", "--runs", f"{tmp_path}/none"]) == 2 and "no such folder" in capsys.readouterr().err
