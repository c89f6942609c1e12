"""Every stage runs on the device: nothing stays behind on the CPU, and results are those of the CPU."""

from dataclasses import replace

import pytest
import torch
from fake_device import DEVICE, Elsewhere, LeftBehind, fake_device, reads

import lfpr
from lfpr.device import OnDevice, describe, find_device, moved, synchronise
from lfpr.experiments import Cell, sentences
from lfpr.experiments.sentences import load_encoder

VARYING = ("largest_difference", "seconds")
SMALL = {
    "tap-textvqa": {"train_images": 20, "val_images": 8, "num_samples": 16, "score_batch": 8, "rescale_samples": 8,
                    "reconstruct_samples": 16},
    "clip-mscoco": {"train_images": 48, "val_images": 16, "num_samples": 16, "score_batch": 8, "rescale_samples": 8,
                    "reconstruct_samples": 16, "rescale_batch": 8, "retrain_batch": 8, "retrain_passes": 0.4,
                    "eval_batch": 8},
    "minilm-texts": {"num_samples": 16, "score_batch": 8, "rescale_samples": 16, "reconstruct_samples": 16},
}  # fmt: skip


def stages(exp):
    """All that an experiment computes, as numbers and tensors by name."""
    own = exp.spec.method
    found = {"baseline": exp.baseline().result}
    for method in exp.spec.methods if exp.spec.ways else (own,):
        found[f"importance {method}"] = exp.importance(Cell(method))
    for scoring in ("batched", "released") if exp.name.startswith("tap") else ():
        found[f"importance {scoring}"] = exp.importance(Cell(own, scoring=scoring))
    method = "fisher" if "fisher" in exp.spec.methods else own
    cell = exp.cell(Cell(method, 0.4, rescaled=bool(exp.spec.ways), percent=20))
    found["pruned"] = exp.prune(cell).result
    refitted = {"reconstructed": Cell("surgeon", 0.4, reconstructed=True, steps=2), "K-prune": Cell("kprune", 0.6)}
    for name, each in refitted.items():
        result = exp.prune(each).result
        found[name] = result if exp.spec.ways else {"heads": len(result["heads"])}  # few tokens: chance
    if exp.spec.ways:
        other = replace(cell, rescaled="released")
        found["released rescaling"] = exp.rescaled(exp.searched(other), other)
    stage = exp.prune(cell)
    widths = {"heads": [1], "neurons": [8], "repeats": 1, "warmup": 0}
    lfpr.LatencyCost.measure(exp.encoder, next(iter(exp.task.calibration(0))), exp.task.run, **widths)
    if exp.spec.ways:
        released = exp.with_settings(released_files=True)
        files = [path.name for path in released.prune(cell).folder.rglob("*.*")]
        assert {"pruned_model.ckpt", "cfg.txt"} <= set(files) or {"head_mask.pt", "neuron_mask.pt"} <= set(files)
        stage = exp.retrain(cell)
        found["retrained"] = {name: round(stage.result[name], 2) for name in ("scale_min", "scale_max")}
        exp.speed(cell)
    for name in exp.spec.studies[:1]:
        found[f"study {name}"] = exp.study(name)[0]
    for name, use in exp.downstream(stage).items():
        found[name] = {key: use.result[key] for key in ("score", "reranked")}
    return found


def same(a, b):
    """Equal up to rounding."""
    if hasattr(a, "heads"):
        pairs = [(a.heads, b.heads), (a.neurons, b.neurons)]
        return all(x.device.type == "cpu" and torch.allclose(x.double(), y.double(), 1e-3, 1e-6) for x, y in pairs)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key not in VARYING)
    return a == b or (isinstance(a, float) and abs(a - b) < 0.011 * max(1, abs(a)))  # dropout differs


@pytest.fixture
def two_layers(monkeypatch):
    """The encoder of sentences, of which two layers do for what is tried here."""

    def load(folder=None):
        model, tokenizer = load_encoder(folder)
        model.encoder.layer = model.encoder.layer[:2]
        model.config.num_hidden_layers = 2
        return model, tokenizer

    monkeypatch.setattr(sentences, "load_encoder", load)


@pytest.mark.parametrize("name", SMALL)
def test_every_stage_runs_on_the_device_and_gives_what_the_cpu_gives(name, tmp_path, two_layers):
    options = SMALL[name]
    expected = stages(lfpr.open_experiment(name, runs=tmp_path / "cpu", device="cpu", **options))
    with fake_device():
        exp = lfpr.open_experiment(name, runs=tmp_path / "fake", **options)
        assert exp.device == DEVICE and isinstance(next(exp.model.parameters()), Elsewhere)
        found = stages(exp)
    for part, value in expected.items():
        assert same(value, found[part]), part
    assert reads  # results were read back


def test_what_stays_behind_is_noticed():
    linear = torch.nn.Linear(2, 2)
    with fake_device() as device:
        linear.to(device)
        assert linear(torch.ones(3, 2, device=device)).device == device
        with pytest.raises(LeftBehind, match=r"\(3, 2\)\] stayed on the CPU"):
            linear(torch.ones(3, 2))


def test_batches_move_with_all_that_is_in_them():
    x, y = torch.ones(2), torch.zeros(3)
    batch = {"x": x, "more": [y, "words"], "pair": (x, 3)}
    with fake_device() as device:
        there = moved(batch, device)
        assert [type(there["x"]), type(there["more"][0]), type(there["pair"][0])] == [Elsewhere] * 3
        assert there["more"][1] == "words" and there["pair"][1] == 3 and type(there["pair"]) is tuple
        again = OnDevice([batch, batch], device)
        assert len(again) == 2 and all(isinstance(b["x"], Elsewhere) for _ in range(2) for b in again)
    assert batch["x"] is x


@pytest.mark.skipif(torch.accelerator.is_available(), reason="of machines without an accelerator")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu", ""])
def test_a_device_that_is_not_there_is_refused_before_any_work(device, tmp_path):
    assert find_device() == find_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=rf"device = '{device}': must be one of \['auto', 'cpu'\] on this machine"):
        find_device(device)
    if device:
        with pytest.raises(ValueError, match="device = "):
            lfpr.open_experiment(runs=tmp_path, device=device)
        assert not list(tmp_path.iterdir())


def pretend(monkeypatch, kind, count, current=0):
    """An accelerator that answers questions, and a list of those that were asked to become current, or waited for."""
    asked = []
    answers = {"is_available": True, "device_count": count, "current_device_index": current}
    for name, value in answers.items():
        monkeypatch.setattr(torch.accelerator, name, lambda value=value: value)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    for name in ("set_device_index", "synchronize"):
        monkeypatch.setattr(torch.accelerator, name, asked.append)
    return asked


def test_an_accelerator_is_found_and_numbered(monkeypatch):
    current = pretend(monkeypatch, "cuda", 2, 1)
    assert find_device() == find_device("cuda") == torch.device("cuda:1")
    assert find_device("cuda:0") == torch.device("cuda:0") and find_device("cpu") == torch.device("cpu")
    assert current == [1, 1, 0]  # what is measured is measured there
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert find_device() == torch.device("cuda:0") and find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"\['auto', 'cpu', 'cuda', 'cuda:0', 'cuda:1'\]"):
        find_device("cuda:2")


def test_an_accelerator_without_float64_is_not_taken(monkeypatch):
    assert pretend(monkeypatch, "mps", 1) == [] and find_device() == torch.device("cpu")
    with pytest.raises(ValueError, match=r"device = 'mps': must be one of \['auto', 'cpu'\]"):
        find_device("mps")


def test_the_clock_waits_for_the_device_that_is_measured(monkeypatch):
    waited = pretend(monkeypatch, "cuda", 2)
    for device in (None, torch.device("cuda:1"), torch.device("cpu")):
        synchronise(device)
    assert waited == [None, torch.device("cuda:1")]


def test_only_copies_to_the_device_do_not_wait():
    class Batch:
        def to(self, device, non_blocking):
            return device.type, non_blocking

    assert moved(Batch(), torch.device("cuda:0")) == ("cuda", True)
    assert moved([Batch()], torch.device("cpu")) == [("cpu", False)]


def test_provenance_names_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert describe(torch.device("cuda:1")) == "cuda:1 (GPU 1)" and describe(torch.device("cpu")) == "cpu"
    with fake_device():
        stage = lfpr.open_experiment("tap-textvqa", runs=tmp_path, **SMALL["tap-textvqa"]).prune(Cell("random", 0.4))
    assert stage.provenance["device"] == str(DEVICE)
