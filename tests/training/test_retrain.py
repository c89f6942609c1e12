"""ReSt's training loop: interrupted, in several processes, in mixed precision, and what it trains and logs."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_tap as small
import torch
from torch.utils.data import DataLoader

import lfpr
from lfpr import tap as stages
from lfpr.experiments.runs import Stage
from lfpr.tap.objectives import labelled
from lfpr.training.processes import OneProcess, plan, shares, take_step
from lfpr.training.resume import FILE


class Killed(Exception):
    pass


def killed_at(model, iteration: int):
    """The loss, killed at this iteration."""
    loss, calls = labelled(model, "parts"), []

    def counting(batch):
        calls.append(1)
        if len(calls) == iteration:
            raise Killed
        return loss(batch)

    return counting


def assert_same(found: dict, wanted: dict, tolerance: float = 0.0) -> None:
    for part in ("masks", "state") if not tolerance else ("masks",):
        for name, value in wanted[part].items():
            torch.testing.assert_close(found[part][name], value, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found["logits"], wanted["logits"], rtol=tolerance, atol=tolerance)
    if not tolerance:
        assert found["log"] == wanted["log"]
    for row, other in zip(found["log"], wanted["log"], strict=True):
        assert row == pytest.approx(other, rel=tolerance or 1e-12)


@pytest.mark.parametrize("killed, left", [(2, 4), (3, 2), (4, 2)])
def test_interrupted_training_resumes_bit_for_bit(tmp_path, killed, left):
    keep = {"checkpoint": tmp_path, "checkpoint_every": 2}
    model = small.tap(dropout=0.2).train()
    whole = small.numbers(*small.retrain(small.tap(dropout=0.2).train()))  # dropout: the random numbers go on too
    with pytest.raises(Killed):
        small.retrain(model, killed_at(model, killed), **keep)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert (tmp_path / FILE).exists() == (killed > 2) and len(list(tmp_path.iterdir())) == (killed > 2)
    batches = small.loader()
    resumed = small.retrain(small.tap(dropout=0.2).train(), batches=batches, **keep)
    assert_same(small.numbers(*resumed), whole)
    assert len(batches.dataset.read) == left  # what was trained on before is not even read
    seconds = [row["seconds"] for row in resumed[2]]
    assert seconds == sorted(seconds)
    again = small.retrain(small.tap(dropout=0.2).train(), lambda batch: pytest.fail("trained anew"), **keep)
    assert_same(small.numbers(*again), whole)  # interrupted after the last iteration: only folded


def test_checkpoints_of_another_training_or_unreadable_are_refused(tmp_path):
    keep = {"checkpoint": tmp_path, "checkpoint_every": 1}
    small.retrain(small.tap(), **keep)
    with pytest.raises(ValueError, match="of another training: its settings is .*'lr': 0.001.*, not .*'lr': 0.5"):
        small.retrain(small.tap(), settings=replace(small.SETTINGS, lr=0.5), **keep)
    with pytest.raises(ValueError, match="its batches is 4, not 2"):
        small.retrain(small.tap(), batches=small.loader(8, 4), **keep)
    with pytest.raises(ValueError, match="its order of the data is"):
        small.retrain(small.tap(), batches=small.loader(15, 4), **keep)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:500])
    with pytest.raises(ValueError, match=f"{FILE} cannot be read .*; remove the folder to start anew"):
        small.retrain(small.tap(), **keep)
    torch.save({"about": print, "state": print}, tmp_path / FILE)  # a pickled function: never run
    with pytest.raises(ValueError, match="cannot be read"):
        small.retrain(small.tap(), **keep)


def test_a_training_goes_on_on_another_device(tmp_path):
    from fake_device import fake_device

    keep = {"checkpoint": tmp_path, "checkpoint_every": 2}
    with pytest.raises(Killed):
        small.retrain(model := small.tap(dropout=0.2).train(), killed_at(model, 4), **keep)
    with fake_device() as device:
        _, _, log = small.retrain(small.tap(dropout=0.2).train().to(device), **keep)
    assert [row["iteration"] for row in log] == [1, 2, 3, 4]


def shared(batches, count: int, start: int = 0) -> list[list]:
    """The batches that each of `count` processes gets."""
    order = plan(batches)
    places = [SimpleNamespace(num_processes=count, process_index=rank) for rank in range(count)]
    return [list(shares(batches, order, start, place)) for place in places]


ROWS = [[0, 1, 2], [3, 4], [5]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(torch.arange(6), batch_size=None, sampler=ROWS),
        lambda: DataLoader(torch.arange(6), batch_sampler=ROWS),
        lambda: [torch.tensor(row) for row in ROWS],
    ],
    ids=["index lists", "batch sampler", "list"],
)
def test_processes_share_every_batch(make):
    (one,) = shared(make(), 1)
    assert [(batch.tolist(), counts) for batch, counts in one] == [(row, True) for row in ROWS]
    first, second = ([(batch.tolist(), counts) for batch, counts in part] for part in shared(make(), 2))
    assert first == [([0, 2], True), ([3], True), ([5], True)]
    assert second == [([1], True), ([4], True), ([5], False)]  # one question for two: the second's does not count
    assert [batch.tolist() for batch, _ in shared(make(), 1, start=2)[0]] == [[5]]
    assert [batch.tolist() for batch, _ in shared(iter(make()), 1, start=1)[0]] == ROWS[1:]


def test_batches_that_cannot_be_shared_are_refused():
    nested = {"a": torch.arange(4), "b": [torch.arange(8).view(4, 2), (torch.zeros(4),)]}
    (first,), (second,) = shared([nested], 2)
    assert first[0]["a"].tolist() == [0, 2] and second[0]["b"][0].tolist() == [[2, 3], [6, 7]]
    with pytest.raises(ValueError, match="a batch holds str"):
        shared([{"a": torch.arange(4), "words": ["a", "b", "c", "d"]}], 2)


def test_a_pair_of_sum_and_count_is_their_quotient():
    pair, mean = (small.retrain(model := small.tap(), labelled(model, reduction)) for reduction in ("parts", "mean"))
    assert_same(small.numbers(*pair), small.numbers(*mean))


def test_only_what_is_named_is_trained():
    before = small.tap()
    norm = "mmt.encoder.layer.0.output.LayerNorm."
    model = small.tap()
    extra = list(model.mmt.encoder.layer[0].output.LayerNorm.parameters())
    frozen = model.text_bert.embeddings.word_embeddings.weight.requires_grad_(False)
    model, masks, log = small.retrain(model, parameters=extra)
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before.state_dict()[n])}
    folded = {f"mmt.encoder.layer.0.{name}.dense.weight" for name in ("attention.output", "output")}
    wholly = ("classifier.", "ocr_ptr_net.", "mmt.encoder.layer.1.")
    assert changed - folded == {n for n in model.state_dict() if n.startswith((norm, *wholly))}
    assert folded <= changed and not frozen.requires_grad and model.classifier["module"].weight.requires_grad
    assert [row["iteration"] for row in log] == [1, 2, 3, 4] and all(row["grad_norm"] > 0 for row in log)
    assert sum(p.numel() for p in masks.parameters()) == 2 * (4 + 32)


def test_scores_are_logged_and_change_nothing():
    plain = small.numbers(*small.retrain(small.tap(dropout=0.2).train()))
    model, seen = small.tap(dropout=0.2).train(), []

    def score() -> float:
        assert not model.training and not model.mmt.encoder.layer[0].training and not torch.is_grad_enabled()
        seen.append(torch.rand(3))  # must not disturb the dropout of training
        return len(seen) / 10

    _, masks, log = small.retrain(model, score=score, score_every=3)
    assert model.training and [row.pop("score", None) for row in log] == [None, None, 0.1, 0.2]
    assert_same(small.numbers(model, masks, log), plain)


def test_bfloat16_is_near_float32():
    plain = small.numbers(*small.retrain(small.tap()))
    half = small.numbers(*small.retrain(small.tap(), settings=replace(small.SETTINGS, mixed_precision="bf16")))
    assert {value.dtype for value in half["state"].values()} == {torch.float32}
    losses, wanted = ([row["loss"] for row in found["log"]] for found in (half, plain))
    assert losses != wanted and losses == pytest.approx(wanted, rel=0.02)


def test_precision_is_free_after_a_trainer_has_set_another():
    from accelerate import Accelerator

    assert Accelerator(cpu=True).mixed_precision == "no"  # as a Trainer in the same notebook leaves it
    settings = replace(small.SETTINGS, mixed_precision="bf16")
    assert {
        value.dtype for value in small.numbers(*small.retrain(small.tap(), settings=settings))["state"].values()
    } == {torch.float32}
    assert Accelerator(cpu=True).mixed_precision == "no"


def test_fp16_looks_for_a_scale_without_overflow():
    """A GPU's way, of a GradScaler that works on CPUs as well: the first steps overflow and are left out."""
    weight = torch.nn.Parameter(torch.ones(3))
    one = OneProcess(torch.device("cpu"), "fp16")
    one.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    optimiser, taken, norms = one.prepare(torch.optim.SGD([weight], lr=0.1)), [], []
    while not any(taken):
        before = weight.detach().clone()
        optimiser.zero_grad()
        one.backward((16 * weight).sum())
        norms.append(one.clip_grad_norm_([weight], 1.0).item())
        taken.append(take_step(optimiser, one))
        assert torch.equal(before, weight) != taken[-1]
    assert taken[0] is False and norms[-1] == pytest.approx(16 * 3**0.5)
    assert torch.allclose(weight, 1 - 0.1 * torch.ones(3) / 3**0.5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"settings": {"last_layers": 3}}, "last_layers = 3: the encoder has only 2 layers"),
        ({"settings": {"last_layers": -1}}, "last_layers = -1: must be a whole number of at least 0"),
        ({"settings": {"lr": 0}}, "lr = 0: must be above 0"),
        ({"settings": {"mixed_precision": "fp8"}}, r"mixed_precision = 'fp8': must be one of \['no', 'bf16', 'fp16'\]"),
        ({"checkpoint_every": 0}, "checkpoint_every = 0: must be a whole number of at least 1"),
        ({"score_every": 2}, "score_every = 2: must be above 0 with score, and 0 without"),
        ({"score": float}, "score_every = 0: must be above 0 with score"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        small.retrain(small.tap(), settings=replace(small.SETTINGS, **change.pop("settings", {})), **change)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU: fp16 works")
def test_fp16_needs_a_gpu():
    with pytest.raises(ValueError, match="mixed_precision = 'fp16': needs a GPU"):
        small.retrain(small.tap(), settings=replace(small.SETTINGS, mixed_precision="fp16"))


def test_a_loss_that_is_not_finite_stops(tmp_path):
    model = small.tap()
    with pytest.raises(FloatingPointError, match="the loss of iteration 1 is nan; lower lr or mask_lr"):
        small.retrain(model, lambda batch: labelled(model)(batch) * torch.nan)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Stage:
    return small.stage(tmp_path_factory.mktemp("runs"))


def without_retraining(whole: Stage, runs: Path) -> Path:
    """A copy of the runs in which all but the retraining is finished."""
    shutil.copytree(whole.folder.parents[3], runs, ignore=shutil.ignore_patterns("retrain"))
    return runs


def test_an_interrupted_stage_resumes(whole, tmp_path, monkeypatch):
    runs = without_retraining(whole, tmp_path / "runs")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(stages, "labelled", lambda model, reduction: killed_at(model, 4))
        small.stage(runs, checkpoint_every=2)
    assert len(list(runs.glob("*/*/retrain/*.checkpoint"))) == 1
    losses = []

    def counted(model, reduction):
        loss = labelled(model, reduction)
        return lambda batch: losses.append(loss(batch)) or losses[-1]

    with monkeypatch.context() as patched:
        patched.setattr(stages, "labelled", counted)
        resumed = small.stage(runs, checkpoint_every=2)
    assert len(losses) == whole.result["iterations"] - 2
    assert resumed.folder.name == whole.folder.name and resumed.result["score"] == whole.result["score"]
    for name in ("masks.safetensors", "model/model.safetensors"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert not list(runs.glob("*/*/retrain/*.checkpoint"))


def test_a_stage_logs_scores_if_asked(whole, tmp_path):
    scored = small.stage(without_retraining(whole, tmp_path / "runs"), score_every=3)
    log, plain = (json.loads((stage.folder / "log.json").read_text()) for stage in (scored, whole))
    iterations = whole.result["iterations"]
    found = [row["iteration"] for row in log if "score" in row]
    assert found == sorted({*range(3, iterations + 1, 3), iterations}) and log[-1]["score"] == scored.result["score"]
    assert [row["loss"] for row in log] == [row["loss"] for row in plain]
    assert not any("score" in row for row in plain)


@pytest.fixture(scope="module")
def launched(whole, tmp_path_factory) -> Path:
    """What two CPU processes make: of the tiny TAP `result.pt` and `checkpoint`, of the stage `runs`."""
    folder, root = tmp_path_factory.mktemp("launched"), Path(__file__).parents[2]
    runs = without_retraining(whole, folder / "runs")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(root / "tests" / "small_tap.py"), *map(str, (folder / "result.pt", folder / "checkpoint", runs))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_equal_one(launched):
    one = small.numbers(*small.retrain(small.tap()))
    assert_same(torch.load(launched / "result.pt", weights_only=True), one, 2e-5)
    assert [file.name for file in (launched / "checkpoint").iterdir()] == [FILE]


def test_two_processes_build_one_stage(whole, launched):
    runs = launched / "runs"
    (folder,) = (file.parent for file in runs.glob("*/*/retrain/*/provenance.json"))
    assert folder.name == whole.folder.name and not list(runs.glob("*/*/retrain/*.checkpoint"))
    for name in ("heads", "neurons"):
        found, wanted = (getattr(lfpr.Masks.load(f / "masks.safetensors"), name) for f in (folder, whole.folder))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    losses, wanted = ([row["loss"] for row in json.loads((f / "log.json").read_text())] for f in (folder, whole.folder))
    assert losses == pytest.approx(wanted, rel=1e-4)


def test_folding_can_be_a_step_of_its_own():
    folded, masks, _ = small.retrain(small.tap())
    model, again, _ = small.retrain(small.tap(), fold=False)
    assert all(torch.equal(a, b) for a, b in zip(masks.parameters(), again.parameters(), strict=True))
    plain, state = model.state_dict(), folded.state_dict()
    changed = {name for name in state if not torch.equal(plain[name], state[name])}
    layers = [f"mmt.encoder.layer.{i}" for i in range(2)]
    assert changed == {f"{layer}.{part}.dense.weight" for layer in layers for part in ("attention.output", "output")}
    lfpr.fold(lfpr.prunable(model), again)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_one_process_on_a_cpu_needs_no_accelerate():
    code = "import sys, lfpr; lfpr.ReSt(); from lfpr.training.processes import find_accelerator; "
    code += "from torch import device; find_accelerator('bf16', device('cpu'))\n"
    environment = os.environ | {"PYTHONPATH": str(Path(lfpr.__file__).parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", f"{code}assert 'accelerate' not in sys.modules"]
    subprocess.run(command, check=True, env=environment, timeout=60)
