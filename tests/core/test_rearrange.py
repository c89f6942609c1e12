"""Rearrangement against the published masks, a plain recomputation, and its own objective."""

import importlib
import tracemalloc
from unittest.mock import patch

import numpy as np
import pytest
import small_models as small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfpr.gradients import MaskGradients
from lfpr.masks import Masks
from lfpr.rearrange import rearrange


def recomputed(mask, gradients):
    """The published rule, with sums computed anew in each step; float64."""
    gradients = gradients.double()
    order = gradients.square().sum(0).argsort(stable=True).tolist()
    pruned = order[: int((mask == 0).sum())]
    for index in order[len(pruned) :] if pruned and len(pruned) < len(order) else []:
        pruned.append(index)
        vectors = gradients[:, pruned]
        rests = (vectors.sum(1, keepdim=True) - vectors).square().sum(0)
        del pruned[int(rests.argmin())]
    result = torch.ones_like(mask)
    result[pruned] = 0
    return result


def removed(mask, gradients):
    return gradients.double()[:, mask == 0].sum(1).square().sum().item()


@pytest.mark.parametrize("name", ["bert", "clip"])
def test_rearranged_masks_equal_the_published_ones(name):
    arrays = {key: torch.from_numpy(value) for key, value in np.load(small.REFERENCE / f"{name}_seed7.npz").items()}
    gradients = MaskGradients(arrays["head_grads"], arrays["neuron_grads"])
    for constraint in (0.3, 0.5, 0.7):
        masks = Masks(arrays[f"mac_{constraint}_head"], arrays[f"mac_{constraint}_neuron"])
        expected = Masks(arrays[f"rearranged_{constraint}_head"], arrays[f"rearranged_{constraint}_neuron"])
        before = masks.neurons.clone()
        found = rearrange(masks, gradients)
        assert found.equal(expected) and not found.equal(masks)
        assert torch.equal(masks.neurons, before)  # the input is not changed


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 12), st.floats(0, 1), st.sampled_from([1, 4, 128]))
def test_same_result_as_recomputing_the_sums(seed, width, batches, keep, block):
    generator = torch.Generator().manual_seed(seed)
    gradients = MaskGradients(
        torch.randn(batches, 2, 3, generator=generator), torch.randn(batches, 2, width, generator=generator)
    )
    masks = Masks(
        (torch.rand(2, 3, generator=generator) < keep).float(),
        (torch.rand(2, width, generator=generator) < keep).float(),
    )
    with patch.object(importlib.import_module("lfpr.rearrange"), "BLOCK", block):
        found = rearrange(masks, gradients)
    assert found.heads_kept == masks.heads_kept and found.neurons_kept == masks.neurons_kept
    for layer in range(2):
        expected = recomputed(masks.neurons[layer], gradients.neurons[:, layer])
        assert torch.equal(found.neurons[layer], expected)
        # never worse than pruning the least important ones
        least = torch.ones(width)
        order = gradients.neurons[:, layer].double().square().sum(0).argsort(stable=True)
        least[order[: width - masks.neurons_kept[layer]]] = 0
        ours, theirs = (removed(mask, gradients.neurons[:, layer]) for mask in (found.neurons[layer], least))
        assert ours <= theirs * (1 + 1e-9)


def test_a_layer_of_real_width_takes_little_more_memory_than_its_gradients():
    generator = torch.Generator().manual_seed(0)
    neurons = torch.randn(16, 1, 1536, generator=generator)
    masks = Masks(torch.ones(1, 1), (torch.arange(1536) >= 768).float()[None])
    tracemalloc.start()
    rearrange(masks, MaskGradients(torch.ones(16, 1, 1), neurons))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.6 * 768**2 * 8 + 3 * 128 * 768 * 8  # NumPy's: half of the members' products, and three blocks


def test_gradients_that_cancel_are_removed_together():
    gradients = torch.tensor([[1.0, 3.0, -3.0, 4.0]])  # the least important part alone, or the pair that cancels
    one = MaskGradients(gradients[:, None], gradients[:, None])
    assert rearrange(Masks(torch.ones(1, 4), torch.tensor([[0.0, 0, 1, 1]])), one).neurons.tolist() == [[1, 0, 0, 1]]


def test_equal_gradients_are_pruned_in_order():
    same = MaskGradients(torch.zeros(2, 1, 4), torch.zeros(2, 1, 6))
    found = rearrange(Masks(torch.tensor([[1.0, 0, 0, 1]]), torch.tensor([[1.0, 0, 1, 0, 1, 0]])), same)
    again = rearrange(found, same)
    assert found.equal(again) and found.neurons_kept == [3]


def test_bad_masks_and_gradients_are_refused():
    masks, gradients = (
        Masks(torch.ones(2, 3), torch.ones(2, 5)),
        MaskGradients(torch.ones(4, 2, 3), torch.ones(4, 2, 5)),
    )
    with pytest.raises(ValueError, match=r"grads\.neurons: shape \(4, 2, 6\) does not fit masks \(2, 5\)"):
        rearrange(masks, MaskGradients(gradients.heads, torch.ones(4, 2, 6)))
    with pytest.raises(ValueError, match=r"masks\.heads: expected zeros and ones; rearrange before rescaling"):
        rearrange(Masks(masks.heads * 0.5, masks.neurons), gradients)
    with pytest.raises(ValueError, match=r"grads\.heads: 24 values are NaN or infinite"):
        rearrange(masks, MaskGradients(gradients.heads * float("nan"), gradients.neurons))
