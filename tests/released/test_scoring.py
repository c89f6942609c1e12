"""Label-free scoring as in LFPR's code, with dropout, against the plain objective and the released order of work."""

import copy

import pytest
import small_tap as small
import torch

import lfpr
from lfpr.released import scoring
from lfpr.tap.objectives import label_free


@pytest.fixture(scope="module")
def tap():
    return small.tap()


@pytest.fixture(scope="module")
def batch():
    return small.Questions(6)[list(range(6))]


def gradients(tap, batch, objective, per_sample=False):
    return lfpr.collect_gradients(lfpr.prunable(tap), [batch], objective, per_sample)


@pytest.mark.parametrize("step", [0, 1, 3])
def test_scoring_without_dropout_is_the_plain_one(tap, batch, step):
    plain, released = (gradients(tap, batch, f) for f in (label_free(tap, step), scoring.label_free(tap, step, 0.0)))
    torch.testing.assert_close(released.heads, plain.heads, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(released.neurons, plain.neurons, rtol=1e-4, atol=1e-5)


def test_scoring_drops_out_the_same_in_each_call(tap, batch):
    objective = scoring.label_free(tap, 2, 0.1)
    before = torch.get_rng_state()
    first, second = gradients(tap, batch, objective), gradients(tap, batch, objective)
    assert first.equal(second)  # the seed is reset at each call
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in tap.modules())
    assert {module.p for module in tap.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    assert not first.equal(gradients(tap, batch, scoring.label_free(tap, 2, 0.1, seed=1)))
    assert not first.equal(gradients(tap, batch, label_free(tap, 2)))


def test_scoring_restores_the_model_after_an_error(tap, batch):
    broken = {name: value for name, value in batch.items() if name != "ocr_phoc"}
    with pytest.raises(KeyError):
        scoring.label_free(tap, 1, 0.1)(broken)
    assert not tap.training and tap.input_dropout.p == 0


def released_loop(model, batch, step: int, dropout: float) -> torch.Tensor:
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
        logits = model.decode(encoded, previous)
        previous = torch.cat([previous[:, :1], logits.argmax(-1)[:, :-1]], 1)
    return logits[:, step].amax(-1).sum()


@pytest.mark.parametrize("step", [0, 1, 3])
def test_scoring_works_in_the_released_order(tap, batch, step):
    with torch.random.fork_rng():
        wanted = released_loop(tap, batch, step, 0.3)
    torch.testing.assert_close(scoring.label_free(tap, step, 0.3)(batch), wanted)


def test_scoring_sums_over_samples(tap, batch):
    apart = gradients(tap, batch, scoring.label_free(tap, 1, 0.1), per_sample=True)
    together = gradients(tap, batch, scoring.label_free(tap, 1, 0.1))
    torch.testing.assert_close(apart.neurons.sum(0), together.neurons[0], rtol=1e-3, atol=1e-5)


def test_bad_parameters_are_named(tap):
    for dropout in (-0.1, 1):
        with pytest.raises(ValueError, match=rf"dropout = {dropout}: must be in \[0, 1\)"):
            scoring.label_free(tap, 1, dropout)
    with pytest.raises(ValueError, match="step = 4: must be in 0 … 3"):
        scoring.label_free(tap, 4)
