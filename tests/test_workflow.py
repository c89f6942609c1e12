"""The profiles run jobs with bounded threads, the generic one through its submit script; and the plan adds up."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from lfpr.experiments import EXPERIMENTS, grid, open_experiment, plan

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
PLAN = {
    "tap-textvqa": {
        "profile": "mini",
        "cells": [
            {"method": "label-free", "constraint": [0.4, 0.8], "seed": [0, 1]},
            {"method": ["random", "l1"], "constraint": 0.4, "stages": "pruned"},
            {"method": "label-free", "percentile": 50},
            {"method": "label-free", "constraint": 0.4, "stages": "pruned", "num_samples": 10},
        ],
    }
}
needs_cluster_generic = pytest.mark.skipif(
    not importlib.util.find_spec("snakemake_executor_plugin_cluster_generic"),
    reason="needs snakemake-executor-plugin-cluster-generic",
)
needs_slurm = pytest.mark.skipif(
    not importlib.util.find_spec("snakemake_executor_plugin_slurm"), reason="needs snakemake-executor-plugin-slurm"
)


@pytest.fixture
def project(tmp_path):
    """A folder with a space in its name, the profiles and a workflow of two jobs."""
    folder = tmp_path / "a project"
    shutil.copytree(PROFILES, folder / "workflow" / "profiles")
    (folder / "Snakefile").write_text(TWO_RULES)
    return folder


def snakemake(folder, profile, *options):
    options = ("--seconds-between-status-checks", "1", *options)
    command = [sys.executable, "-m", "snakemake", "--profile", f"workflow/profiles/{profile}", *options]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
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


def start(folder, profile, *options):
    """The smoke grid's run, in a session of its own."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"]
    command += ["--profile", f"workflow/profiles/{profile}", "--cores", "2", "--config", "grid=smoke", "out=paper"]
    command += ["--seconds-between-status-checks", "1"]
    log = (folder / "log.txt").open("a")
    return subprocess.Popen([*command, *options], cwd=folder, stdout=log, stderr=log, start_new_session=True)


def kill_when(running, folder, stages):
    """Kill the run, without warning, once that many stages are finished."""
    while len(list(folder.glob("runs/*/*/*/*/provenance.json"))) < stages:
        assert running.poll() is None, (folder / "log.txt").read_text()
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def planned(folder):
    """How many jobs of each rule would run."""
    (folder / "log.txt").unlink()
    assert start(folder, "local", "--dry-run").wait() == 0
    text = (folder / "log.txt").read_text()
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE)}


@needs_cluster_generic
def test_a_grid_killed_three_times_ends_with_the_tables_and_reruns_what_changed(tmp_path):
    folder = tmp_path / "a project"
    for name in ("notebooks", "workflow"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "data").symlink_to(ROOT / "data")
    for profile, stages in (("generic", 2), ("local", 6), ("generic", 14)):  # jobs that were submitted live on
        kill_when(start(folder, profile), folder, stages)
    assert start(folder, "generic").wait() == 0, (folder / "log.txt").read_text()
    submitted = {file.name.split(".")[1] for file in (folder / ".snakemake" / "submitted").glob("*.log")}
    assert submitted == {"data", "cells", "notebook", "tables", "paper"}
    assert not list(folder.glob("runs/*/*/*/*.unfinished"))

    experiment = open_experiment("clip-mscoco", runs=tmp_path / "elsewhere")
    experiment.data_root = folder / "runs" / "data" / "mscoco-mini"
    results = pd.read_csv(folder / "paper" / "results.csv").set_index(["method", "retrained"])
    assert results.score["unpruned", False] == pytest.approx(experiment.baseline().result["score"], abs=1e-6)
    assert len(results) == 5
    for method in ("label-free", "random"):
        score = experiment.prune(method, constraint=0.4).result["score"]
        assert results.score[method, False] == pytest.approx(score, abs=1e-6)
    score = experiment.retrain("label-free", constraint=0.4).result["score"]
    assert results.score["label-free", True] == pytest.approx(score, abs=1e-6)

    assert planned(folder) == {}
    grids = folder / "workflow" / "grid.yaml"
    grids.write_text(grids.read_text().replace("smoke:", "unused:\n  tap-textvqa: {profile: mini, cells: []}\nsmoke:"))
    assert planned(folder) == {}  # another grid's plan
    grids.write_text(
        grids.read_text().replace("[label-free, random], constraint: 0.4}", "[label-free], constraint: 0.5}", 1)
    )
    assert planned(folder) == {"cells": 2, "notebook": 1, "tables": 1, "paper": 1, "total": 5}


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


def test_the_plan_counts_what_the_grid_runs():
    measured = {"tap-textvqa": {"01_data": 60, "pruned": 10, "importance": 20, "retrained": {0.5: 100, 1: 30}}}
    steps = {step.name: step for step in plan.plan(PLAN, measured | {"any": {"06_paper": 15}})}
    runs = {name: step.runs for name, step in steps.items()}
    assert runs == dict.fromkeys([*plan.NOTEBOOKS, "06_paper"], 1) | {"importance": 3, "pruned": 8, "retrained": 5}
    seconds = {name: step.seconds for name, step in steps.items() if step.seconds is not None}
    assert seconds == {
        "01_data": 60,
        "importance": 60,
        "pruned": 80,
        "retrained": 2 * 100 + 2 * 30 + 100,
        "06_paper": 15,
    }
    assert steps["06_paper"].experiment == "any"
    lines = list(plan.render(list(steps.values()), cores=2))
    assert lines[-2] == "about 5 minutes on 2 cores, and the time of tap-textvqa, not measured yet"
    assert ["tap-textvqa", "retrained", "5", "6.0"] in [line.split() for line in lines]
    own_files = {"tap-textvqa": PLAN["tap-textvqa"] | {"profile": "full"}}
    assert all(step.seconds is None for step in plan.plan(own_files, measured))


def test_seconds_are_of_known_steps():
    measured = yaml.safe_load((ROOT / "workflow" / "seconds.yaml").read_text())
    assert set(measured) <= {*EXPERIMENTS, plan.ALL}
    for steps in measured.values():
        for seconds in steps.values():
            values = seconds.values() if isinstance(seconds, dict) else [seconds]
            assert all(value > 0 for value in values)
            assert not isinstance(seconds, dict) or max(seconds) == 1  # the whole model is covered
    assert set(plan.NOTEBOOKS) <= {file.stem for file in (ROOT / "notebooks").glob("*.ipynb")}


def test_the_plan_needs_no_torch():
    code = """
import sys, types
package = types.ModuleType("lfpr")  # without what lfpr itself imports
package.__path__ = [sys.argv.pop()]
sys.modules["lfpr"] = package
import lfpr.experiments.plan
lfpr.experiments.plan.main()
print({"torch", "transformers", "pandas"} & set(sys.modules))
"""
    command = [sys.executable, "-c", code, "--cores", "3", ROOT / "lfpr"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    *_, time_line, _, imported = run.stdout.splitlines()
    assert re.match(r"about \d+ minutes on 3 cores", time_line) and imported == "set()"


def test_the_workflow_runs_the_notebooks_of_the_plan():
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--profile", PROFILES / "local"]
    run = subprocess.run([*command, "--dry-run", "--forceall"], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    counted = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", run.stdout, re.MULTILINE)}
    default = grid.load_grid(f"{ROOT / 'workflow' / 'grid.yaml'}:default")
    assert counted["data"] == len(default)
    assert counted["notebook"] == sum(len(entry.get("notebooks", plan.NOTEBOOKS[1:])) for entry in default.values())
    assert counted["cells"] == sum(entry.get("jobs", 1) for entry in default.values())
    assert counted["tables"] == counted["paper"] == 1
