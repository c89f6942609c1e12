"""Stages: made once, keyed by parameters, whole or not there."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from lfpr.runs import Runs, file_hash, fingerprint, write_json


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
