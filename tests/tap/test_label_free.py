"""Label-free scoring as in LFPR's code, with dropout; the losses; and how far rankings agree."""

import copy

import pytest
import small_tap as small
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F

import lfpr
from lfpr.experiments import open_experiment
from lfpr.paper.agreement import scoring_agreement, spearman
from lfpr.tap.label_free import decoding_loss, label_free, labelled


@pytest.fixture(scope="module")
def tap():
    return small.tap()


@pytest.fixture(scope="module")
def batch():
    return small.Questions(6)[list(range(6))]


def gradients(tap, batch, objective, per_sample=False):
    return lfpr.collect_gradients(lfpr.prunable(tap), [batch], objective, per_sample)


@pytest.mark.parametrize("step", [0, 1, 3])
def test_published_scoring_without_dropout_is_the_plain_one(tap, batch, step):
    plain, published = (gradients(tap, batch, label_free(tap, step, dropout)) for dropout in (None, 0.0))
    torch.testing.assert_close(published.heads, plain.heads, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(published.neurons, plain.neurons, rtol=1e-4, atol=1e-5)


def test_published_scoring_drops_out_the_same_in_each_call(tap, batch):
    objective = label_free(tap, 2, 0.1)
    before = torch.get_rng_state()
    first, second = gradients(tap, batch, objective), gradients(tap, batch, objective)
    assert first.equal(second)  # the seed is reset at each call
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in tap.modules())
    assert {module.p for module in tap.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    assert not first.equal(gradients(tap, batch, label_free(tap, 2, 0.1, seed=1)))
    assert not first.equal(gradients(tap, batch, label_free(tap, 2)))


def test_published_scoring_restores_the_model_after_an_error(tap, batch):
    broken = {name: value for name, value in batch.items() if name != "ocr_phoc"}
    with pytest.raises(KeyError):
        label_free(tap, 1, 0.1)(broken)
    assert not tap.training and tap.input_dropout.p == 0


def published_loop(model, batch, step: int, dropout: float) -> torch.Tensor:
    """The order of work in LFPR's code, every pass whole and with gradient: seed, inputs, then step + 1 times TextBERT,
    MMT over all decoding positions, and the argmax of all of them as the next pass's previous answers."""
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    torch.manual_seed(0)
    encoded = model.encode(batch)
    kept, words = torch.arange(11), 11
    previous = torch.zeros(6, step + 1, dtype=torch.long)
    previous[:, 0] = model.config.bos_index
    for t in range(step + 1):
        if t:
            text = model.text_bert(batch["text"], kept, batch["text"] != 0)
            encoded.x = torch.cat([text, encoded.x[:, words:]], 1)
        scores = model.score(encoded, previous)
        previous = torch.cat([previous[:, :1], scores.argmax(-1)[:, :-1]], 1)
    return scores[:, step].amax(-1).sum()


@pytest.mark.parametrize("step", [0, 1, 3])
def test_published_scoring_works_in_the_published_order(tap, batch, step):
    with torch.random.fork_rng():
        wanted = published_loop(tap, batch, step, 0.3)
    torch.testing.assert_close(label_free(tap, step, 0.3)(batch), wanted)


def test_published_scoring_sums_over_samples(tap, batch):
    found = gradients(tap, batch, label_free(tap, 1, 0.1), per_sample=True)
    together = gradients(tap, batch, label_free(tap, 1, 0.1))
    torch.testing.assert_close(found.neurons.sum(0), together.neurons[0], rtol=1e-3, atol=1e-5)


def test_bad_objectives_are_named(tap):
    for dropout in (-0.1, 1):
        with pytest.raises(ValueError, match=rf"dropout = {dropout}: must be in \[0, 1\)"):
            label_free(tap, 1, dropout)
    with pytest.raises(ValueError, match="reduction = 'max': must be 'mean', 'sum' or 'parts'"):
        decoding_loss(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.ones(1, 1), "max")


def test_losses_by_hand(tap, batch):
    scores = tap(batch, batch["previous"])
    per_step = F.binary_cross_entropy_with_logits(scores, batch["targets"], reduction="none").sum(-1)
    wanted = per_step[batch["loss_mask"] > 0].sum()
    total, steps = labelled(tap, "parts")(batch)
    assert steps == batch["loss_mask"].sum() == 1 + 2 + 3 + 4 + 1 + 2
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(labelled(tap, "sum")(batch), wanted)
    torch.testing.assert_close(labelled(tap)(batch), wanted / steps)


def test_spearman_is_scipys():
    a, b = torch.rand(4, 12, generator=torch.Generator().manual_seed(0)), torch.rand(4, 12)
    a[0] = a[1]  # equal entries share their rank
    assert spearman(a, b) == pytest.approx(spearmanr(a.flatten(), b.flatten()).statistic)
    assert spearman(a, 3 * a - 1) == pytest.approx(1)


def test_rankings_are_compared_through_the_experiment(tmp_path):
    tap = open_experiment(runs=tmp_path, train_images=24, val_images=16, num_samples=40, score_batch=20)
    rows = scoring_agreement(tap)
    assert [(row["with"], row["kind"], row["dropout"]) for row in rows] == [
        (name, kind, dropout)
        for name, dropout in (("published", 0.1), ("batches of 8", 0.0), ("another sample", 0.0))
        for kind in ("head", "neuron")
    ]
    assert all(0.5 < row["spearman"] < 1 and 0.2 < row["overlap"] <= 1 for row in rows)
    stages = [stage.provenance["parameters"] for stage in tap.runs.finished("importance")]
    scored = {(s["published"], s["batch"], s["per_sample"], s["seed"]) for s in stages}
    assert scored == {(False, 20, True, 0), (False, 20, True, 1), (False, 8, False, 0), (True, 8, False, 0)}
