"""The released solvers of rescaling against the masks they made."""

import pytest
import small_models as small
import torch

from lfpr import released
from lfpr.released import rescaling
from lfpr.rescale import rescale


@pytest.fixture(scope="module")
def bert():
    return small.reference("bert")


@pytest.mark.parametrize("name", ["bert", "clip"])
def test_released_rescaling_equals_the_released_masks(name):
    model, encoder, batches, masks = small.reference(name)
    for constraint in (0.3, 0.5, 0.7):
        teacher = masks("teacher", constraint) if name == "bert" else None
        found = released.rescale(encoder, masks("rearranged", constraint), batches, lambda b: model(**b), teacher)
        expected = masks("rescaled", constraint)
        torch.testing.assert_close(found.heads, expected.heads, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.neurons, expected.neurons, rtol=0, atol=1e-4)


def test_released_rescaling_stops_for_good_at_a_wild_scale(bert):
    model, encoder, batches, masks = bert
    one = masks("rearranged", 0.5)
    one.neurons[1] = 0
    one.neurons[1, 0] = 1  # a single neuron, which is solved without damping
    with torch.no_grad():
        encoder.parts[1].ffn_out.weight[:, 0] *= 1e-3
    try:
        teacher, forward = masks("teacher", 0.5), lambda b: model(**b)
        found = released.rescale(encoder, one, batches, forward, teacher)
        sane = rescale(encoder, one, batches, forward, teacher, ridge=0)
        fork = released.rescale(encoder, one, batches, forward)
    finally:
        with torch.no_grad():
            encoder.parts[1].ffn_out.weight[:, 0] *= 1e3
    assert [(fit.layer, fit.part) for fit in found.report][-1] == (1, "neurons") and len(found.report) == 4
    assert "the released code stops here" in found.report[-1].declined
    assert torch.equal(found.heads[2:], one.heads[2:]) and torch.equal(found.neurons[1:], one.neurons[1:])
    assert not torch.equal(found.neurons[0], one.neurons[0])
    assert len(fork.report) == 8 and fork.neurons.abs().max() > 10  # no limit
    assert len(sane.report) == 8 and sane.neurons.abs().max() <= 10 and sane.report[3].ridge > 0


def test_all_tokens_can_be_fitted_with_a_teacher(bert, monkeypatch):
    monkeypatch.setattr(rescaling, "LIMIT", 1e9)  # otherwise it stops before the last layer
    model, encoder, batches, masks = bert
    student, teacher = masks("rearranged", 0.7), masks("teacher", 0.7)
    first, every = (
        released.rescale(encoder, student, batches, lambda b: model(**b), teacher, first_token=first)
        for first in (True, False)
    )
    assert torch.equal(first.heads, every.heads) and torch.equal(first.neurons[:-1], every.neurons[:-1])
    assert not torch.equal(first.neurons[-1], every.neurons[-1])
