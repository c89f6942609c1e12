"""The profiles run jobs with bounded threads, the generic one through its submit script; what a grid of jobs goes
through; and `make`."""

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from small_notebooks import made_up, ran

from lfpr.experiments import Cell, open_experiment
from lfpr.experiments.grid import load_grid
from lfpr.experiments.run_grid import Grid, others
from lfpr.experiments.runs import finished_stages

ROOT = Path(__file__).parents[1]
PROFILES = ROOT / "workflow" / "profiles"
TWO_RULES = """
rule all:
    default_target: True
    input: "out/b.txt"

rule first:
    output: "out/a.txt"
    threads: 2
    shell: "echo first $OMP_NUM_THREADS > {output}"

rule second:
    input: "out/a.txt"
    output: "out/b.txt"
    shell: "cat {input} > {output}; echo second $OMP_NUM_THREADS >> {output}"
"""
needs_cluster_generic = pytest.mark.skipif(
    not importlib.util.find_spec("snakemake_executor_plugin_cluster_generic"),
    reason="needs snakemake-executor-plugin-cluster-generic",
)
needs_slurm = pytest.mark.skipif(
    not importlib.util.find_spec("snakemake_executor_plugin_slurm"), reason="needs snakemake-executor-plugin-slurm"
)


@pytest.fixture
def project(tmp_path):
    """A folder whose name a shell could take apart, the profiles and a workflow of two jobs."""
    folder = tmp_path / "é'x $HOME  `id`"
    shutil.copytree(PROFILES, folder / "workflow" / "profiles")
    (folder / "Snakefile").write_text(TWO_RULES)
    interpreter(folder)
    return folder


def interpreter(folder):
    """This Python as one in a folder, as `make setup` puts it there."""
    place = folder / ".venv"
    place.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg", "share"):
        if (there := Path(sys.prefix, name)).exists():
            (place / name).symlink_to(there)
    (place / ".done").touch()
    return place / "bin" / "python"


def snakemake(folder, profile, *options):
    options = ("--seconds-between-status-checks", "1", *options)
    python = folder / ".venv" / "bin" / "python"
    command = [python, "-m", "snakemake", "--profile", f"workflow/profiles/{profile}", *options]
    path = os.pathsep.join([str(python.parent), os.environ["PATH"]])  # as the Snakefile has it
    environment = os.environ | {"PATH": path}
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, env=environment)
    assert run.returncode == 0, run.stderr + run.stdout
    return run.stdout + run.stderr


@needs_cluster_generic
def test_the_generic_profile_submits_jobs_through_its_script(project):
    output = snakemake(project, "generic")
    assert (project / "out" / "b.txt").read_text().split() == ["first", "2", "second", "1"]  # threads are bounded
    submitted = project / ".snakemake" / "submitted"
    assert sorted(file.name.split(".")[1] for file in submitted.glob("*.log")) == ["first", "second"]
    assert [file.read_text().strip() for file in submitted.glob("*.exit")] == ["0", "0"]
    ids = re.findall(r"external jobid '(\d+)'", output)
    assert sorted(ids) == sorted(file.stem for file in submitted.glob("*.exit")) and len(ids) == 2


def test_the_local_profile_bounds_threads(project):
    snakemake(project, "local", "--cores", "2")
    assert (project / "out" / "b.txt").read_text().split() == ["first", "2", "second", "1"]


@needs_slurm
def test_the_slurm_profile_plans_its_jobs(project):
    output = snakemake(project, "slurm", "--dry-run")
    assert "mem_mb=8000" in output and "runtime=240" in output and not (project / "out").exists()


def start(folder, profile, *options, grid="smoke", python=sys.executable):
    """A grid's run, in a session of its own."""
    command = [python, "-m", "snakemake", "--snakefile", "workflow/Snakefile"]
    command += ["--profile", f"workflow/profiles/{profile}", "--cores", "2", "--config", f"grid={grid}", "out=paper"]
    command += ["--seconds-between-status-checks", "1"]
    log = (folder / "log.txt").open("a")
    return subprocess.Popen([*command, *options], cwd=folder, stdout=log, stderr=log, start_new_session=True)


def kill_when(running, folder, stages):
    """Kill the run, without warning, once that many stages are finished."""
    while len(finished_stages(folder / "runs", "*/*/*/*")) < stages:
        assert running.poll() is None, (folder / "log.txt").read_text()
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def planned(folder, grid="smoke", python=sys.executable):
    """How many jobs of each rule would run."""
    (folder / "log.txt").unlink()
    assert start(folder, "local", "--dry-run", grid=grid, python=python).wait() == 0
    text = (folder / "log.txt").read_text()
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE)}


@needs_cluster_generic
def test_a_grid_killed_three_times_ends_with_the_tables_and_reruns_what_changed(tmp_path):
    folder = tmp_path / "a project"
    for name in ("notebooks", "workflow"):
        shutil.copytree(ROOT / name, folder / name)
    for profile, stages in (("generic", 2), ("local", 6), ("generic", 10)):  # jobs that were submitted live on
        kill_when(start(folder, profile), folder, stages)
    assert start(folder, "generic").wait() == 0, (folder / "log.txt").read_text()
    assert not re.search(r"Select jobs|Execute \d", (folder / "log.txt").read_text())
    submitted = {file.name.split(".")[1] for file in (folder / ".snakemake" / "submitted").glob("*.log")}
    assert submitted == {"cells", "tables", "paper"}
    assert not list(folder.glob("runs/*/*/*/*.unfinished"))

    executed = sorted(path.stem for path in folder.glob("runs/notebooks/smoke/clip-mscoco/*.ipynb"))
    names = [f"{name}-{method}-0.4-seed0" for name in ("03_prune", "04_retrain") for method in ("label-free", "random")]
    assert executed == ["01_data", *names]

    experiment = open_experiment("clip-mscoco", runs=tmp_path / "elsewhere")
    experiment.task.data_root = folder / "runs" / "data" / "mscoco-mini"
    results = pd.read_csv(folder / "paper" / "results.csv").set_index(["method", "retrained"])
    assert results.score["unpruned", False] == pytest.approx(experiment.baseline().result["score"], abs=1e-6)
    assert len(results) == 5
    for method in ("label-free", "random"):
        score = experiment.prune(Cell(method, 0.4)).result["score"]
        assert results.score[method, False] == pytest.approx(score, abs=1e-6)
    score = experiment.retrain(Cell("label-free", 0.4)).result["score"]
    assert results.score["label-free", True] == pytest.approx(score, abs=1e-6)

    assert planned(folder) == {}
    grids = folder / "workflow" / "grid.yaml"
    grids.write_text(grids.read_text().replace("smoke:", "unused:\n  tap-textvqa: {profile: mini, cells: []}\nsmoke:"))
    assert planned(folder) == {}  # another grid's plan
    grids.write_text(
        grids.read_text().replace("[label-free, random], constraint: 0.4}", "[label-free], constraint: 0.5}", 1)
    )
    assert planned(folder) == {"cells": 2, "tables": 1, "paper": 1, "total": 4}


def test_submitted_jobs_have_a_state_and_can_be_ended(project):
    def call(name, *arguments):
        script = project / "workflow" / "profiles" / "generic" / f"{name}.sh"
        run = subprocess.run([script, *arguments], cwd=project, capture_output=True, text=True, check=True, timeout=60)
        return run.stdout.strip()

    def submit(command):
        (project / "job.sh").write_text(command)
        return call("submit", "3", "1000", project / "job.sh")

    def settled(job):
        for _ in range(600):
            state = call("status", job)
            if state != "running":
                return state
            time.sleep(0.1)
        return "still running"

    assert settled(submit("echo $OMP_NUM_THREADS > threads.txt")) == "success"
    assert (project / "threads.txt").read_text() == "3\n"
    assert settled(submit("exit 3")) == "failed"
    job = submit("sleep 300; touch survived.txt")
    assert call("status", job) == "running"
    call("cancel", job)
    assert settled(job) == "failed" and not (project / "survived.txt").exists()


def test_what_fails_stops_no_other_job_and_is_named(tmp_path):
    folder = tmp_path / "é'x $HOME" / "a project"
    shutil.copytree(ROOT / "workflow", folder / "workflow")
    made_up(folder / "notebooks")
    python = interpreter(folder)
    fails = {
        "profile": "mini",
        "jobs": 1,
        "cells": [{"method": ["l1", "random"], "constraint": 0.4, "stages": "pruned"}],
    }
    works = {"profile": "mini", "jobs": 1, "cells": [{"method": ["fisher", "random"], "constraint": 0.4}]}
    grid = {"tiny": {"tap-textvqa": fails, "tap-stvqa": works}}
    (folder / "workflow" / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    assert start(folder, "local", grid="tiny", python=python).wait() != 0
    log = (folder / "log.txt").read_text()
    done = folder / "runs" / "notebooks" / "tiny"
    error = (
        f"failed: {done / 'tap-textvqa' / '03_prune-l1-0.4-seed0.ipynb'}: ValueError: method = 'l1': a made-up failure"
    )
    assert log.count(error) == 2  # by its job, and at the end
    assert [file.parent.name for file in done.glob("*/cells-*.json")] == ["tap-stvqa"]
    assert len(ran(folder / "notebooks")) == 1 + 2 + 1 + 4
    assert planned(folder, "tiny", python) == {"cells": 1, "tables": 1, "paper": 1, "total": 3}

    path = folder / "notebooks" / "03_prune.ipynb"
    path.write_text(path.read_text().replace('method == \\"l1\\"', "False"))
    assert start(folder, "local", "--until", "cells", grid="tiny", python=python).wait() == 0, (
        folder / "log.txt"
    ).read_text()
    assert sorted(line.split()[0] for line in ran(folder / "notebooks")) == ["03_prune"] * 4  # what the change concerns


def test_the_plan_needs_neither_torch_nor_jupyter():
    code = """
import sys, types
for name in ("lfpr", "lfpr.experiments"):  # without what the packages themselves import
    package = types.ModuleType(name)
    package.__path__ = ["/".join([sys.argv[1], *name.split(".")])]
    sys.modules[name] = package
from lfpr.experiments import run_grid
sys.argv[1:] = ["--cores", "3"]
run_grid.plan_main()
print({"torch", "transformers", "pandas", "papermill", "nbformat", "jupyter_client"} & set(sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", code, ROOT], cwd="/", capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    *_, time_line, imported = run.stdout.splitlines()
    assert re.match(r"\d+ notebooks to run, about \d+ minutes on 3 cores", time_line) and imported == "set()"


def test_the_workflow_runs_the_notebooks_of_the_plan():
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--profile", PROFILES / "local"]
    command += ["--dry-run", "--forceall", "--printshellcmds", "--quiet", "host", "--config", "device=cpu"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    shown = re.findall(r"-m lfpr (\w+) (.*)", run.stdout)
    assert {name for name, options in shown if "--device cpu" in options} == {"grid"} < {name for name, _ in shown}
    counted = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", run.stdout, re.MULTILINE)}
    default = load_grid(f"{ROOT / 'workflow' / 'grid.yaml'}:default")
    jobs = sum(plan.get("jobs", 1) for plan in default.values())
    assert counted == {"cells": jobs, "encoder": 1, "tables": 1, "paper": 1, "total": jobs + 3}
    grid = Grid("default", default, ROOT / "runs")
    for experiment, plan in default.items():
        shares = [grid.steps(experiment, job) for job in range(plan["jobs"])]
        assert sorted(step.name for steps in shares for step in steps) == sorted(s.name for s in grid.steps(experiment))
        assert {"01_data", *(name for name, *_ in others(plan))} <= {step.notebook.stem for step in shares[0]}


def make(*arguments, cwd=ROOT, **variables):
    environment = {key: value for key, value in os.environ.items() if key != "MAKEFLAGS"} | variables
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def paper(*arguments, **variables):
    """The commands of `make paper`."""
    return " ".join(make("-n", "paper", *arguments, **variables).stdout.split())


def test_make_lists_its_targets():
    listed = make().stdout
    assert listed == make("help").stdout
    (names,) = re.findall(r"^\.PHONY: (.+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    lines = [line for line in listed.splitlines() if line.startswith("make ")]
    assert [line.split()[1] for line in lines] == names.split() and all(len(line.split()) > 3 for line in lines)
    for option in ("GRID=full", "FULL=1 DATA=FOLDER", "DRY=1", "OUT=FOLDER", "UPDATE=1", "LAB_ARGS"):
        assert option in listed


def test_make_docs_writes_the_reference_and_the_notebooks_as_they_are():
    commands = make("-n", "docs").stdout
    (notebooks,) = [line for line in commands.splitlines() if "nbconvert" in line]
    assert "-m pdoc" in commands and "--to html" in notebooks and "--execute" not in notebooks
    assert re.search(r"--output-dir (\S+)", notebooks)[1].startswith(
        "docs/api/"
    )  # which git ignores, and `make clean` removes


def test_make_works_in_a_folder_whose_name_a_shell_could_take_apart(tmp_path):
    folder = tmp_path / "a b" / "é'x $HOME" / "lfpr"
    shutil.copytree(ROOT / "workflow", folder / "workflow")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    interpreter(folder)
    out = f"{tmp_path}/it's $HOME # no: é"
    done = make("paper", "GRID=smoke", "DRY=1", f"OUT={out}", "DEVICE=cpu", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "notebooks to run, about" in done.stdout and re.search(r"^cells +2$", done.stdout, re.MULTILINE)
    done = make("-n", "paper", f"OUT={out}", f"DATA={folder}", f"PROFILE={folder}", cwd=folder)
    lines = done.stdout.replace("\\\n", " ").splitlines()
    (running,) = [shlex.split(line) for line in lines if "snakemake" in line]
    assert running[running.index("--profile") + 1] == str(folder)
    given = dict(word.split("=", 1) for word in running[running.index("--config") + 1 :])
    assert [yaml.safe_load(given[name]) for name in ("out", "data")] == [out, str(folder)]
    assert shlex.split(lines[-1])[-1] == out


def test_make_paper_ends_with_the_comparison():
    commands = paper(OMP_NUM_THREADS="1")
    cores = len(os.sched_getaffinity(0))  # not the threads of a job
    assert f"--cores {cores} " in commands and "'out='\\''runs/paper'\\'''" in commands and "lfpr plan" not in commands
    assert commands.endswith("-m lfpr reproduce --committed paper_figures --new 'runs/paper'")
    assert paper("GRID=smoke", "OUT=/tmp/x").endswith("--new '/tmp/x' --subset")
    assert paper("UPDATE=1").endswith("--new 'runs/paper' --update README.md docs/results.md")
    assert "reproduce" not in paper("FULL=1", "DATA=/data")
    dry = paper("DRY=1")
    assert "-m lfpr plan --grid workflow/grid.yaml:default" in dry and "--dry-run" in dry and "reproduce" not in dry
    refused = make("-n", "paper", "GRID=smoke", "UPDATE=1")
    assert refused.returncode != 0 and "UPDATE=1: the committed tables are those of GRID=default" in refused.stderr
