"""Faults: processes that are killed, interrupted or meet; full disks and folders that cannot be written to; files that
were cut, changed or deleted. Nothing is lost, nothing half-made is taken for whole, and what is made in the end is the
same, bit by bit."""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import faulty
import nbformat
import numpy as np
import pandas as pd
import pytest
import small_tap as small
import torch
import yaml
from faulty import ended, full_disk, start
from matplotlib.figure import Figure
from safetensors.torch import load_file
from small_models import build
from small_notebooks import made_up
from small_tables import small_results

import lfpr
from lfpr.__main__ import main
from lfpr.experiments import check_runs, open_experiment
from lfpr.experiments.check_runs import damaged
from lfpr.experiments.run_grid import Grid
from lfpr.experiments.runs import Runs, finished_stages, load_stage, provenance_table
from lfpr.files import NotSaved, checkout, write_json, write_whole
from lfpr.layerwise import Spool
from lfpr.manifest import NAME, Damaged
from lfpr.mini.coco import write_coco
from lfpr.paper import collect
from lfpr.paper.schema import TOLERANCE, write_tables
from lfpr.paper.style import save as save_figure
from lfpr.paper.tables import write_table
from lfpr.released.masks import save_masks
from lfpr.released.tap import save_tap
from lfpr.training.resume import FILE, load_checkpoint, save_checkpoint

TIMES = ("seconds", "minutes", "megabytes")
PLAN = {"profile": "mini", "cells": [{"method": "label-free", "constraint": 0.4, "percent": 50, "last_layers": 1}]}
SCORED = ("prune", "retrain")
IMPORTANCE, VALUES, SWAPS = 1e-4, 1e-3, 2  # what docs/runs.md says of other threads and processors
KILLED, FAILED = -signal.SIGKILL, 1


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes that `faulty` starts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    assert ended(start(faulty.stage, runs)) == 0
    return runs


@pytest.fixture
def runs(undisturbed, tmp_path) -> Path:
    """A copy of finished stages, to damage."""
    return Path(shutil.copytree(undisturbed, tmp_path / "runs"))


def without_times(value):
    """A JSON value without what differs from run to run."""
    if isinstance(value, list):
        return [without_times(each) for each in value]
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if name not in TIMES}
    return value


def contents(runs: Path) -> dict[str, object]:
    """All that finished stages hold, by file, but for times and who made them."""
    files = (path for folder in finished_stages(runs, "*/*/*/*") for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(runs)): read(path) for path in files if path.name not in ("provenance.json", NAME)}


def read(path: Path) -> object:
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.name == "delta.safetensors":  # its header has two entries, in any order
        return {name: value.numpy().tobytes() for name, value in load_file(path).items()}
    return path.read_bytes()


def table(runs: Path, monkeypatch) -> str:
    """The table of scores that these runs give."""
    amounts = {"train_images": 24, "val_images": 16, "num_samples": 40, "score_batch": 20, "retrain_batch": 9}
    with monkeypatch.context() as patched:
        patched.setattr(collect, "open_experiment", lambda *args, **more: open_experiment(*args, **more | amounts))
        tables, missing = collect.collect({"tap-textvqa": PLAN}, runs)
    assert missing == ["tap-textvqa: unpruned"] and len(tables["results"]) == 2
    return tables["results"].drop(columns=["seconds", "minutes"]).to_csv()


# ---- killed, interrupted, full

FAULTS = [
    ("lfpr.mini.datasets:_write_image", 5, faulty.kill),
    ("lfpr.mini.datasets:seal", 1, faulty.kill),
    ("lfpr.tap.model:TAP.generate", 2, faulty.kill),  # in scoring heads and neurons
    ("lfpr.masks:save_file", 1, faulty.fill_disk),
    ("pathlib:Path.rename", 1, faulty.kill),  # all but finished
    ("lfpr.tap.model:TAP.generate", 1, faulty.interrupt),
    ("lfpr.tap.model:TAP.generate", 3, faulty.kill),
    ("lfpr.tap.evaluate:save_file", 1, faulty.fill_disk),
    ("lfpr.tap.model:TAP.generate", 5, faulty.kill),  # in scoring the pruned model
    ("lfpr.manifest:write_json", 1, faulty.kill),
    ("lfpr.files:os.replace", 1, faulty.kill),  # of the teacher's answers, written and not yet in place
    ("lfpr.training.retrain:_Training.step", 2, faulty.interrupt),
    ("lfpr.training.retrain:_Training.step", 4, faulty.kill),  # after the first checkpoint
    ("lfpr.training.resume:torch.save", 1, faulty.fill_disk),
    ("lfpr.training.resume:torch.save", 1, faulty.kill_half_written),
    ("lfpr.training.retrain:_Training.step", 3, faulty.kill),  # after the second one
    ("lfpr.experiments.tap:TAPTask.answer", 1, faulty.fill_disk),
    ("lfpr.experiments.runs:shutil.rmtree", 0, faulty.kill_at_checkpoint),
]


def test_a_run_that_fails_again_and_again_goes_on_and_ends_the_same(undisturbed, tmp_path, monkeypatch):
    runs, before = tmp_path / "runs", {}
    for place, call, happens in FAULTS:
        status = ended(start(faulty.stage, runs, place, call, happens))
        assert status == (FAILED if happens in (faulty.fill_disk, faulty.interrupt) else KILLED), place
        after = contents(runs)
        assert before.items() <= after.items() and list(damaged(runs)) == [], place
        before = after
    assert list(runs.glob("*/*/*/*.checkpoint"))
    assert ended(start(faulty.stage, runs)) == 0
    assert contents(runs) == contents(undisturbed)
    assert table(runs, monkeypatch) == table(undisturbed, monkeypatch)
    left = [path for path in runs.glob("*/*/*/*") if path.suffix in (".unfinished", ".checkpoint")]
    assert left == [] and not list(runs.rglob(".*"))


def test_two_processes_with_one_seed_agree_bit_by_bit(undisturbed, tmp_path):
    assert ended(start(faulty.stage, tmp_path)) == 0
    assert contents(tmp_path) == contents(undisturbed) and len(contents(tmp_path)) > 15


def pairs(first, second) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(first.heads, second.heads), (first.neurons, second.neurons)]


def differences(found: Path, wanted: Path) -> tuple[float, int, float, float]:
    """How far these runs are apart: importance (of the largest one), heads and neurons that other masks have instead,
    trained mask values, and points of scores."""

    def each(stage: str, name: str, read: Callable) -> list:
        return [read(next(runs.glob(f"*/*/{stage}/*/{name}"))) for runs in (found, wanted)]

    first, second = each("importance", "importance.safetensors", lfpr.Importance.load)
    importance = max(((a - b).abs().max() / b.max()).item() for a, b in pairs(first, second))
    first, second = each("prune", "masks.safetensors", lfpr.Masks.load)
    swaps = sum(((a != 0) & (b == 0)).sum().item() for a, b in pairs(first, second))
    first, second = each("retrain", "masks.safetensors", lfpr.Masks.load)
    values = max((a - b).abs().max().item() for a, b in pairs(first, second))
    score = [each(stage, "result.json", lambda path: json.loads(path.read_text())["score"]) for stage in SCORED]
    return importance, swaps, values, max(100 * abs(a - b) for a, b in score)


def test_what_may_differ_is_documented():
    text = " ".join((checkout() / "docs" / "runs.md").read_text().split())
    assert f"within {IMPORTANCE:g} of the largest one" in text and f"mask values | within {VALUES:g}" in text
    assert f"at most {SWAPS} heads or neurons" in text and f"within {TOLERANCE:g} points" in text


@pytest.mark.parametrize("threads", [2, 4])
def test_other_numbers_of_threads_change_roundings_alone(undisturbed, tmp_path, threads):
    assert ended(start(faulty.stage, tmp_path, threads=threads)) == 0
    importance, swaps, values, points = differences(tmp_path, undisturbed)
    assert importance <= IMPORTANCE and swaps <= SWAPS and values <= VALUES and points <= TOLERANCE


def test_other_instructions_of_the_processor_change_roundings_alone(undisturbed, tmp_path):
    code = "import sys, small_tap, torch; torch.set_num_threads(1); small_tap.stage(sys.argv[1], checkpoint_every=2)"
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    older = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, env=os.environ | older | path, timeout=300)
    importance, swaps, values, points = differences(tmp_path, undisturbed)
    assert importance <= IMPORTANCE and swaps <= SWAPS and values <= VALUES and points <= TOLERANCE


@pytest.mark.parametrize("killed", [False, True])
def test_two_processes_that_want_one_stage_make_it_once(undisturbed, tmp_path, killed):
    inside, waiting = faulty.CONTEXT.Event(), faulty.CONTEXT.Event()
    first = start(faulty.wait_inside, tmp_path, inside, waiting, *[faulty.kill] * killed)
    assert inside.wait(faulty.PATIENCE)
    second = start(faulty.join, tmp_path, waiting)
    assert ended(first) == (KILLED if killed else 0) and ended(second) == 0  # a dead process holds no lock
    assert contents(tmp_path) == contents(undisturbed)
    assert provenance_table(tmp_path).stage.is_unique and list(damaged(tmp_path)) == []


def test_an_interruption_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(folder):
        (folder / "half.txt").write_text("half")
        faulty.interrupt()

    with pytest.raises(KeyboardInterrupt) as stopped:
        Runs(tmp_path, "tap", "mini").stage("prune", {"seed": 1}, interrupted)
    (note,) = stopped.value.__notes__
    assert note == f"stage prune was interrupted: the same again goes on from what {tmp_path}/tap/mini/prune has"

    def loss(batch):
        faulty.interrupt()

    with pytest.raises(KeyboardInterrupt) as stopped:
        small.retrain(small.tap(), loss, checkpoint=tmp_path / "checkpoint")
    (note,) = stopped.value.__notes__
    assert note == f"retraining was interrupted: called again, it goes on from the checkpoint in {tmp_path}/checkpoint"


# ---- damaged


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = (cut, flip, Path.unlink)


def test_every_file_of_a_stage_that_was_cut_changed_or_deleted_is_named(runs):
    faults = 0
    for folder in finished_stages(runs, "*/*/*/*"):
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            whole = path.read_bytes()
            for damage in DAMAGES:
                damage(path)
                with pytest.raises(Damaged) as error:
                    load_stage(folder)
                said = str(error.value)
                assert str(folder) in said and f"remove the folder {folder}, and what needs it makes it anew" in said
                assert str(path) in said or path.name == NAME  # a changed list of hashes puts the blame on a file
                path.write_bytes(whole)
                faults += 1
        load_stage(folder)
    assert faults > 80


def test_what_is_damaged_is_listed_removed_and_made_anew(runs, undisturbed, monkeypatch, capsys):
    def check(*options) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", [])
        return main(["check", "--runs", str(runs), *options]), capsys.readouterr().out

    assert check() == (0, "")
    stages = {folder.parent.name: folder for folder in finished_stages(runs, "*/*/*/*")}
    flip(stages["importance"] / "importance.safetensors")
    cut(stages["prune"] / "model" / "model.safetensors")
    (stages["pseudo-labels"] / "provenance.json").unlink()
    shutil.rmtree(stages["encoded"])
    (stages["retrain"] / "log.json").unlink()
    flip(next((runs / "data" / "textvqa-mini").rglob("*.npy")))
    checkpoint = stages["retrain"].with_name(f"{stages['retrain'].name}.checkpoint")
    write_whole(checkpoint / FILE, lambda path: path.write_text("no checkpoint"))
    with pytest.raises(Damaged, match=r"importance\.safetensors is damaged"):
        open_experiment(runs=runs).runs.finished("importance")
    status, said = check()
    assert status == 1 and [line.split(":")[0] for line in said.splitlines()] == ["damaged"] * 7
    for name in ("importance.safetensors", "model.safetensors", "provenance.json is missing", ".npy", FILE):
        assert name in said
    assert f"{stages['encoded']} was made, or begun, and is gone" in said
    status, said = check("--remove")
    assert status == 0 and len(said.splitlines()) == 7 and check() == (0, "")
    assert ended(start(faulty.stage, runs)) == 0
    assert contents(runs) == contents(undisturbed) and check() == (0, "")


def test_stages_without_a_manifest_are_taken_as_they_were(tmp_path):
    """As earlier versions made them."""
    stage = Runs(tmp_path, "tap", "mini").stage("prune", {}, lambda folder: {"score": 1})
    (stage.folder / NAME).unlink()
    with pytest.raises(Damaged, match=f"{NAME} is missing"):
        load_stage(stage.folder)
    provenance = {name: value for name, value in stage.provenance.items() if name != "sealed"}
    (stage.folder / "provenance.json").write_text(json.dumps(provenance))
    assert load_stage(stage.folder).result == {"score": 1}
    (stage.folder / "result.json").write_text("{")
    with pytest.raises(Damaged, match=r"result\.json cannot be read"):
        load_stage(stage.folder)
    (stage.folder / "result.json").write_text("{}")
    for text in ("[]", "3"):
        (stage.folder / "provenance.json").write_text(text)
        with pytest.raises(Damaged, match=r"provenance\.json cannot be read"):
            load_stage(stage.folder)
    for text in ("{}", "[]", "[" * 100_000):
        (stage.folder / NAME).write_text(text)
        with pytest.raises(Damaged, match=f"{NAME} cannot be read"):
            load_stage(stage.folder)


def test_a_checkpoint_that_was_changed_is_refused(tmp_path):
    keep = {"checkpoint": tmp_path, "checkpoint_every": 1}
    small.retrain(small.tap(), **keep)
    path = tmp_path / FILE
    value = load_checkpoint(tmp_path, {})["tensors"][0].numpy().tobytes()
    whole = path.read_bytes()
    place = whole.index(value) + len(value) // 2
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ValueError, match=f"{FILE} cannot be read .*wrong checksum.*; remove the folder to start anew"):
        small.retrain(small.tap(), **keep)


# ---- nowhere to write


def saves(folder: Path) -> Iterator[tuple[Path, Callable[[], object]]]:
    """Everything that saves something: the file, or folder, that it names when it cannot, and a call."""
    model, tap = build("bert"), small.tap()
    masks = lfpr.Masks.ones(lfpr.prunable(tap))
    yield folder / "masks.safetensors", lambda: masks.save(folder / "masks.safetensors")
    yield folder / "model", lambda: lfpr.save_pruned(model, folder / "model")
    yield folder / "delta", lambda: lfpr.save_delta(tap, masks, tap, folder / "delta")
    yield folder / FILE, lambda: save_checkpoint(folder, {}, {"a": torch.ones(99)})
    yield folder / "head_mask.pt", lambda: save_masks(masks, folder)
    yield folder / "pruned_model.ckpt", lambda: save_tap(tap, folder)
    yield folder / "a.json", lambda: write_json(folder / "a.json", list(range(99)))
    yield folder / "results.csv", lambda: write_tables({"results": small_results()}, folder)
    yield folder / "a.csv", lambda: write_table(pd.DataFrame({"a": [1.0]}), folder, "a", "A table of a number")
    yield folder / "f.pdf", lambda: save_figure(Figure(), folder, "f")
    yield folder / "tap" / "mini" / "s", lambda: Runs(folder, "tap", "mini").stage("s", {}, lambda _: {"score": 1})
    yield folder / "coco", lambda: write_coco(folder / "coco", 1, 1)
    yield folder, lambda: Spool(folder).put(torch.ones(99999))


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path):
    for number in range(13):
        folder = tmp_path / str(number)
        folder.mkdir()
        place, save = list(saves(folder))[number]
        with full_disk(), pytest.raises(NotSaved, match="make room, or name a folder that may be written to") as error:
            save()
        assert str(place) in str(error.value) and error.value.errno in (errno.EFBIG, errno.ENOSPC), place
        assert not [path for path in files(folder) if ".unfinished" not in str(path)]
        save()  # once there is room
        before = files(folder)
        with full_disk(), contextlib.suppress(NotSaved):  # stages and data sets are there, and not written again
            save()
        before.pop(folder / "model" / "pruning.json", None)  # a model without it is incomplete
        assert before.items() <= files(folder).items(), place
    assert len(list(saves(folder))) == 13


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    for place, save in saves(tmp_path / "file"):
        with pytest.raises(OSError) as error:
            save()
        assert str(place) in str(error.value) and [path.name for path in tmp_path.iterdir()] == ["file"], place


def save_array(value: torch.Tensor, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, value.numpy())


@pytest.mark.parametrize("save", [torch.save, save_array])
def test_the_last_bytes_are_not_lost_without_a_word(tmp_path, save):
    path = tmp_path / "a"
    write_whole(path, lambda partial: save(torch.ones(99), partial))
    whole = path.read_bytes()
    for room in range(len(whole) - 200, len(whole)):  # which is less than the buffers of files
        with full_disk(room), pytest.raises(NotSaved):
            write_whole(path, lambda partial: save(torch.zeros(99), partial))
        assert path.read_bytes() == whole


def test_finished_work_can_be_read_where_nothing_can_be_written(undisturbed, tmp_path, monkeypatch):
    def refuse(lock, *_, **__):
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), lock.lock_file)

    stage = small.stage(undisturbed, checkpoint_every=2)
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert small.stage(undisturbed, checkpoint_every=2) == stage
    with pytest.raises(NotSaved, match=r"textvqa-mini cannot be written \(Read-only file system\)"):
        small.stage(tmp_path)


def test_no_space_is_said_as_the_system_says_it(tmp_path):
    write_json(tmp_path / "a.json", "old")

    def write(path):
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(NotSaved, match=r"a\.json cannot be written \(No space left on device\)") as error:
        write_whole(tmp_path / "a.json", write)
    assert error.value.errno == errno.ENOSPC and files(tmp_path) == {tmp_path / "a.json": b'"old"'}
    with pytest.raises(RuntimeError, match="something else"):
        write_whole(tmp_path / "a.json", lambda path: (_ for _ in ()).throw(RuntimeError("something else")))


# ---- grids


@pytest.fixture
def grid(tmp_path) -> tuple[Grid, list[str], Path]:
    """A grid of made-up notebooks, the command that runs it, and a file that says what is to happen to one of them."""
    happens = tmp_path / "happens.txt"
    notebooks = made_up(tmp_path / "notebooks")
    fault = f"""import os, signal, time
from pathlib import Path
happens = Path({str(happens)!r})
if method == "random" and happens.exists():
    who, number = happens.read_text().split()
    happens.unlink()
    os.kill({{"kernel": os.getpid(), "runner": os.getppid()}}[who], int(number))
    time.sleep(60)
"""
    path = notebooks / "03_prune.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].source = fault + notebook.cells[2].source
    nbformat.write(notebook, path)
    plan = {"profile": "mini", "cells": [{"method": ["absolute", "random"], "constraint": 0.4, "stages": "pruned"}]}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"tiny": {"tap-textvqa": plan}}))
    command = [sys.executable, "-m", "lfpr", "grid", "--grid", f"{tmp_path / 'grid.yaml'}:tiny"]
    command += ["--notebooks", str(notebooks), "--runs", str(tmp_path / "runs"), "--experiment", "tap-textvqa"]
    return Grid("tiny", {"tap-textvqa": plan}, tmp_path / "runs", notebooks), command, happens


def call(command: list[str], begin: Callable = lambda: None) -> subprocess.CompletedProcess:
    def start() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell takes from what it runs in the background
        begin()

    return subprocess.run(command, capture_output=True, text=True, timeout=faulty.PATIENCE, preexec_fn=start)


def test_a_grid_that_is_killed_interrupted_or_starved_goes_on(grid):
    grid, command, happens = grid
    steps = grid.steps("tap-textvqa")

    def there() -> list[str]:
        return [step.name for step in steps if grid.there(step)]

    first, whole = ["01_data", "03_prune-absolute-0.4-seed0"], [step.name for step in steps]
    done = call(command, begin=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500)))
    assert done.returncode == 1 and f"failed: {steps[0].output}: NotSaved: " in done.stdout and there() == []
    assert f"{steps[0].output} cannot be written (File too large)" in done.stdout
    happens.write_text(f"runner {signal.SIGKILL:d}")
    assert call(command).returncode == KILLED and there() == first
    happens.write_text(f"runner {signal.SIGINT:d}")
    done = call(command)
    assert done.returncode == 130 and there() == first
    assert done.stderr == "python -m lfpr grid: interrupted; the same command goes on from what is finished\n"
    happens.write_text(f"kernel {signal.SIGKILL:d}")
    done = call(command)
    assert done.returncode == 1 and "the kernel died: ended by SIGKILL" in done.stdout and there() == first
    done = call(command)
    assert done.returncode == 0 and "1 notebooks ran, 2 were there, 0 failed" in done.stdout and there() == whole

    folder = steps[0].output.parent
    stamps = [folder / "cells-0.json", folder.parent / "tables.json", folder.parent / "06_paper.ipynb"]
    for stamp in stamps:
        write_json(stamp, {})
    runs = Runs(grid.runs, "tap-textvqa", "mini")
    stage = runs.stage("importance", {"method": "random"}, lambda folder: {"samples": 1})
    cut(stage.folder / "result.json")
    assert "result.json is damaged" in dict(damaged(grid.runs))[stage.folder]
    check_runs.remove(stage.folder, grid.runs)
    assert there() == [] and steps[0].output.exists()  # run again: who knows which one needs it
    assert not any(stamp.exists() for stamp in stamps)
