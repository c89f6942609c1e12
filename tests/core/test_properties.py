"""Properties that hold for all families, dtypes and scores; masked against shrunk is in test_shrink."""

import tempfile
from pathlib import Path

import pytest
import small_models as small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfpr import released
from lfpr.cost import LinearCost, ParameterCost
from lfpr.encoder import prunable
from lfpr.gradients import MaskGradients, collect_gradients
from lfpr.masks import Importance, Masks
from lfpr.search import search, search_proportional, search_threshold
from lfpr.shrink import shrink, verify_equivalent

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=small.FAMILIES)
def family(request):
    return request.param


def test_per_sample_gradients_sum_to_the_batch_gradient(family):
    model, batches = small.build(family), [small.batch(family), small.batch(family, samples=2, seed=5)]
    encoder = prunable(model)
    start = small.random_masks(encoder, 0)

    def objective(batch):
        return small.forward(model, batch)[:, 0].square().sum()  # the first token, which is never padding

    whole = collect_gradients(encoder, batches, objective, masks=start)
    each = collect_gradients(encoder, batches, objective, per_sample=True, masks=start)
    for one, total in ((each.heads, whole.heads), (each.neurons, whole.neurons)):
        assert len(one) == 5 and total[0].abs().max() > 1e-2
        sums = torch.stack([one[:3].sum(0), one[3:].sum(0)])
        torch.testing.assert_close(sums, total, rtol=1e-4, atol=1e-5 * total.abs().max().item())


@pytest.mark.parametrize(
    ("model_dtype", "masks_dtype"), [(a, b) for a in DTYPES for b in DTYPES if (a, b) != (torch.float32,) * 2], ids=str
)
def test_masked_equals_shrunk_in_mixed_dtypes(family, model_dtype, masks_dtype):
    model, batch = small.build(family).to(model_dtype), small.batch(family)
    batch = {name: x.to(model_dtype) if x.is_floating_point() else x for name, x in batch.items()}
    masks = small.random_masks(prunable(model), 3).to(masks_dtype)
    pruned = shrink(model, masks)
    assert {p.dtype for p in pruned.parameters()} == {model_dtype}
    # the masks change outputs by 2 to 10; bfloat16 has 8 bits, and the two round in different places
    atol = 1e-4 if model_dtype == torch.float32 else 0.2
    verify_equivalent(model, masks, pruned, [batch], small.forward, atol=atol)


@pytest.mark.parametrize("masks_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model_dtype", DTYPES, ids=str)
def test_gradients_in_mixed_dtypes_lead_to_masks_within_the_constraint(model_dtype, masks_dtype):
    model, batch = small.build("bert").to(model_dtype), small.batch("bert")
    encoder = prunable(model)
    cost, start = ParameterCost(encoder), Masks.ones(encoder).to(masks_dtype)

    def objective(batch):
        return small.forward(model, batch)[:, 0].square().sum()

    for per_sample in (False, True):
        gradients = collect_gradients(encoder, [batch], objective, per_sample, start)
        assert gradients.heads.dtype == gradients.neurons.dtype == torch.float32
        masks = search(gradients.importance(), cost, 0.5)
        assert 0.48 < cost.fraction(masks) <= 0.5
        rounded = gradients.importance().to(torch.bfloat16)
        assert search(rounded, cost, 0.5).equal(search(rounded.to(torch.float64), cost, 0.5))
        assert search(rounded, cost, 0.5).heads.dtype == torch.float32


importances = st.lists(st.floats(0, 8, width=32), min_size=18, max_size=18).map(
    lambda v: Importance(torch.tensor(v[:6]).view(2, 3), torch.tensor(v[6:]).view(2, 6))
)


@settings(max_examples=40, deadline=None)
@given(importances, st.integers(0, 9), st.integers(1, 9), st.integers(1, 9), st.tuples(*[st.floats(0.35, 1.0)] * 2))
def test_a_looser_constraint_never_keeps_less_importance(importance, fixed, head, neuron, constraints):
    cost = LinearCost("units", fixed + 6 * head + 12 * neuron, fixed, head, neuron)  # fixed is at most a third of it
    tight, loose = sorted(constraints)
    for arguments in ({}, {"multiple_of": 2}):
        totals = []
        for constraint in (tight, loose):
            masks = search(importance, cost, constraint, **arguments)
            kept = (importance.heads * masks.heads).double().sum() + (importance.neurons * masks.neurons).double().sum()
            totals.append(kept.item())
        assert totals[0] <= totals[1] + 1e-9
    fewer, more = (search_proportional(importance, cost, constraint) for constraint in (tight, loose))
    assert (fewer.heads <= more.heads).all() and (fewer.neurons <= more.neurons).all()


@settings(max_examples=40, deadline=None)
@given(importances, st.tuples(*[st.floats(0, 99)] * 2))
def test_a_lower_percentile_keeps_all_that_a_higher_one_does(importance, percentiles):
    more, fewer = (search_threshold(importance, p) for p in sorted(percentiles))
    assert (fewer.heads <= more.heads).all() and (fewer.neurons <= more.neurons).all()


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from([Masks, Importance, MaskGradients]),
    sizes=st.tuples(*[st.integers(0, 4)] * 4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 99),
)
def test_files_of_masks_scores_and_gradients_round_trip(kind, sizes, dtype, seed):
    torch.manual_seed(seed)
    *leading, heads, neurons = sizes if kind is MaskGradients else sizes[1:]
    value = kind(torch.randn(*leading, heads, dtype=dtype), torch.randn(*leading, neurons, dtype=dtype))
    value = kind(value.heads.transpose(0, -2), value.neurons.transpose(0, -2))  # not contiguous for gradients
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.safetensors"
        value.save(path)
        loaded = kind.load(path)
        assert type(loaded) is kind and loaded.equal(value)
        assert loaded.heads.dtype == loaded.neurons.dtype == dtype
        if kind is Masks:
            released.save_masks(value, folder)
            assert released.load_masks(folder).equal(value.to(torch.float32))
