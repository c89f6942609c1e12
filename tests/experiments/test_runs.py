"""Stages: made once, keyed by parameters, whole or not there."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import lfpr.experiments.runs
from lfpr.experiments.runs import (
    Runs,
    Unfinished,
    file_hash,
    fingerprint,
    finished_stages,
    minutes_per_stage,
    provenance_table,
    write_json,
)


def test_a_stage_is_built_once_and_keyed_by_all_parameters(tmp_path):
    runs, built = Runs(tmp_path, "tap", "mini"), []

    def build(folder):
        (folder / "file.txt").write_text("x")
        built.append(1)
        return {"score": 0.5}

    first = runs.stage("prune", {"method": "random", "seed": 1, "inputs": {"data": "a"}}, build)
    again = runs.stage("prune", {"seed": 1, "inputs": {"data": "a"}, "method": "random"}, build)
    other = runs.stage("prune", {"method": "random", "seed": 1, "inputs": {"data": "b"}}, build)
    assert first == again and len(built) == 2 and other.folder != first.folder
    assert first.folder.name.startswith("random-1-") and (first.folder / "file.txt").read_text() == "x"
    assert first.result == {"score": 0.5} and first.provenance["parameters"]["method"] == "random"
    assert {"seconds", "peak_memory_mb", "versions", "machine", "finished"} <= set(first.provenance)
    assert {stage.folder for stage in runs.finished("prune")} == {first.folder, other.folder}


def test_a_killed_build_leaves_finished_stages_and_is_repeated(tmp_path):
    runs = Runs(tmp_path, "tap", "mini")
    kept = runs.stage("prune", {"seed": 0}, lambda folder: {"score": 1})

    def killed(folder):
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.stage("prune", {"seed": 1}, killed)
    assert [stage.folder for stage in runs.finished("prune")] == [kept.folder]
    repeated = runs.stage("prune", {"seed": 1}, lambda folder: {"score": 2})
    assert repeated.result == {"score": 2} and not (repeated.folder / "half.txt").exists()


def test_parallel_jobs_share_a_stage(tmp_path):
    built = []

    def job(_):
        return (
            Runs(tmp_path, "tap", "mini").stage("baseline", {}, lambda folder: built.append(1) or {"score": 1}).result
        )

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(job, range(8))) == [{"score": 1}] * 8
    assert len(built) == 1


def test_hashes_tell_contents_apart(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"1" * 1000)
    b.write_bytes(b"1" * 999 + b"2")
    assert file_hash(a) != file_hash(b) and file_hash(a) == file_hash(a) and len(file_hash(a)) == 10
    assert fingerprint({"x": 1, "y": 2}) == fingerprint({"y": 2, "x": 1}) != fingerprint({"x": 1, "y": 3})


def test_json_is_written_whole(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, 2]})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, 2]}


def test_a_stage_can_be_looked_up_without_being_built(tmp_path):
    runs = Runs(tmp_path, "tap", "mini")
    kept = runs.stage("prune", {"seed": 0}, lambda folder: {"score": 1})
    with runs.load_only():
        assert runs.stage("prune", {"seed": 0}, None) == kept
        with pytest.raises(Unfinished, match="stage prune with {'seed': 1} is not finished"):
            runs.stage("prune", {"seed": 1}, None)
    assert [path.name for path in (tmp_path / "tap/mini/prune").iterdir() if path.is_dir()] == [kept.folder.name]
    assert runs.stage("prune", {"seed": 1}, lambda folder: {"score": 2}).result == {"score": 2}


def test_provenance_says_who_made_what(tmp_path):
    runs = Runs(tmp_path, "tap", "mini")

    def build(folder):
        runs.stage("prune", {"seed": 0}, lambda folder: time.sleep(0.3) or {})
        return {}

    runs.stage("retrain", {"seed": 0, "method": "random"}, build)
    table = provenance_table(tmp_path).set_index("stage")
    assert set(table.index) == {"prune", "retrain"}
    assert table.seconds["prune"] >= 0.3 and table.seconds["retrain"] < table.seconds["prune"]  # its own seconds alone
    row = table.loc["retrain"]
    assert (row.experiment, row.profile) == ("tap", "mini") and row.label.startswith("random-0-")
    assert row.threads == torch.get_num_threads() and row.host and row.peak_memory_mb > 50
    assert row.commit == lfpr.experiments.runs.commit()
    minutes = minutes_per_stage(table.reset_index())
    assert minutes.index.tolist() == [("tap", "mini", "prune"), ("tap", "mini", "retrain")]
    assert minutes.stages.tolist() == [1, 1] and minutes.minutes.tolist() == [0, 0]


def test_provenance_of_older_and_unfinished_stages(tmp_path):
    assert provenance_table(tmp_path).empty and minutes_per_stage(provenance_table(tmp_path)).empty
    old = {"parameters": {}, "seconds": 90.0, "peak_memory_mb": 700, "finished": "2026-01-01T00:00:00Z"}
    write_json(tmp_path / "tap/mini/retrain/a/provenance.json", old)
    write_json(tmp_path / "tap/mini/retrain/b/provenance.json", old | {"seconds": 30, "peak_memory_mb": 900})
    write_json(tmp_path / "tap/mini/retrain/c.unfinished/provenance.json", old)
    table = provenance_table(tmp_path)
    assert table.label.tolist() == ["a", "b"] and table.commit.isna().all()
    assert minutes_per_stage(table).loc[("tap", "mini", "retrain")].tolist() == [2, 2, 900]


def copied_commit(package: Path) -> str | None:
    """What a copy of runs.py in `package` says its commit is, in a process of its own."""
    shutil.copy(Path(lfpr.experiments.runs.__file__), package / "runs.py")
    code = "import runpy, sys; print(runpy.run_path(sys.argv[1])['commit']())"
    out = subprocess.run([sys.executable, "-c", code, package / "runs.py"], capture_output=True, text=True, check=True)
    return None if out.stdout.strip() == "None" else out.stdout.strip()


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_commit_is_that_of_the_source_and_never_fails(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    assert copied_commit(package) is None  # no checkout
    git("init")
    assert copied_commit(package) is None  # in a checkout, but not of it
    git("add", "."), git("commit", "-m", "first")
    head = git("rev-parse", "HEAD")
    (tmp_path / "figure.png").write_text("made by a run, and no source")
    assert copied_commit(package) == head
    (package / "new.py").write_text("")
    assert copied_commit(package) == f"{head}+"
    monkeypatch.setenv("PATH", "")
    assert copied_commit(package) is None  # no git


def test_stages_are_found_while_others_come_and_go(tmp_path, monkeypatch):
    for name in ("mini/prune/a", "mini/prune/b.unfinished", "data/gone/a"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "provenance.json").write_text("{}")
    scan = os.scandir

    def scandir(path="."):
        if Path(path).name == "gone":
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert finished_stages(tmp_path, "*/*/*") == [tmp_path / "mini" / "prune" / "a"]
