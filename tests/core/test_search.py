"""Costs against counted parameters and FLOPs; searches against brute force."""

import itertools
import re

import numpy as np
import pytest
import small_models as small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from lfpr.checks import BudgetError
from lfpr.cost import LinearCost, MacCost, ParameterCost
from lfpr.encoder import prunable
from lfpr.importance import magnitude, random_importance
from lfpr.masks import Importance, Masks
from lfpr.search import _SEARCHES, register, search, search_proportional, search_threshold
from lfpr.shrink import shrink


@pytest.mark.parametrize("family", small.FAMILIES)
def test_costs_equal_what_is_counted_in_the_shrunk_model(family):
    model, inputs = small.build(family), small.batch(family)
    encoder = prunable(model)
    masks = small.random_masks(encoder, 4)
    pruned = shrink(model, masks)
    assert ParameterCost(encoder).kept(masks) == prunable(pruned).num_parameters
    assert ParameterCost(encoder).full == encoder.num_parameters == ParameterCost(prunable(pruned)).full
    tokens = small.forward(model, inputs).shape[1]
    pruned.set_attn_implementation("eager")  # the counter does not know the fused attention of CPUs
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small.forward(pruned, inputs)
    layer = re.compile(re.escape(f".{prunable(pruned).path}.") + r"\d+$")
    flops = sum(sum(ops.values()) for name, ops in counter.get_flop_counts().items() if layer.search(name))
    assert flops == 2 * 3 * MacCost(encoder, tokens).kept(masks)


scores = st.lists(st.integers(0, 5).map(float), min_size=18, max_size=18)


@settings(max_examples=60, deadline=None)
@given(scores, st.integers(0, 20), st.integers(1, 9), st.integers(1, 9), st.floats(0.02, 1.0))
def test_search_is_optimal_and_within_the_constraint(values, fixed, head, neuron, constraint):
    importance = Importance(torch.tensor(values[:6]).view(2, 3), torch.tensor(values[6:]).view(2, 6))
    cost = LinearCost("units", fixed + 6 * head + 12 * neuron, fixed, head, neuron)
    heads, neurons = (sorted(part, reverse=True) for part in (values[:6], values[6:]))
    totals = [
        sum(heads[:h]) + sum(neurons[:n])
        for h, n in itertools.product(range(7), range(13))
        if cost.of(h, n) / cost.full <= constraint
    ]
    if not totals:
        for find in (search, search_proportional):
            with pytest.raises(BudgetError) as error:
                find(importance, cost, constraint)
            assert error.value.smallest == fixed / cost.full > constraint
        return
    masks = search(importance, cost, constraint)
    assert cost.fraction(masks) <= constraint
    assert (importance.heads * masks.heads).sum() + (importance.neurons * masks.neurons).sum() == max(totals)
    assert search(importance, cost, constraint).equal(masks)
    together = search_proportional(importance, cost, constraint)
    h, n = sum(together.heads_kept), sum(together.neurons_kept)
    assert cost.fraction(together) <= constraint
    assert h in (n * 6 // 12, (n * 6 + 5) // 12) or n == h * 12 // 6
    assert constraint < 1 or (h, n) == (6, 12)


@settings(max_examples=60, deadline=None)
@given(scores, st.integers(0, 20), st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 1.0), st.integers(0, 11))
def test_widths_for_hardware_are_the_best_of_their_kind(values, fixed, head, neuron, constraint, kind):
    multiple, min_heads, min_neurons = (1, 2, 3)[kind % 3], kind % 2, kind // 3
    importance = Importance(torch.tensor(values[:6]).view(2, 3), torch.tensor(values[6:]).view(2, 6))
    cost = LinearCost("units", fixed + 6 * head + 12 * neuron, fixed, head, neuron)
    tops = [np.r_[0, np.sort(row)[::-1].cumsum()] for part in (importance.heads, importance.neurons) for row in part]
    widths = itertools.product(*[range(min_heads, 4)] * 2, *[range(0, 7, multiple)] * 2)
    allowed = [w for w in widths if min(w[2:]) >= min_neurons]
    totals = [
        sum(top[width] for top, width in zip(tops, w, strict=True))
        for w in allowed
        if cost.of(w[0] + w[1], w[2] + w[3]) / cost.full <= constraint
    ]
    arguments = {"multiple_of": multiple, "min_heads": min_heads, "min_neurons": min_neurons}
    if not totals:
        with pytest.raises(BudgetError) as error:
            search(importance, cost, constraint, **arguments)
        least = min(cost.of(w[0] + w[1], w[2] + w[3]) for w in allowed)
        assert error.value.smallest == least / cost.full
        return
    masks = search(importance, cost, constraint, **arguments)
    assert cost.fraction(masks) <= constraint
    assert (importance.heads * masks.heads).sum() + (importance.neurons * masks.neurons).sum() == max(totals)
    assert min(masks.heads_kept) >= min_heads and min(masks.neurons_kept) >= min_neurons
    assert all(n % multiple == 0 for n in masks.neurons_kept)


def test_bad_widths_are_refused():
    cost, importance = LinearCost("units", 4, 0, 1, 1), Importance(torch.ones(1, 2), torch.ones(1, 6))
    for arguments, message in (
        ({"multiple_of": 4}, "multiple_of = 4: must divide the 6 neurons of a layer"),
        ({"multiple_of": 0}, "multiple_of = 0"),
        ({"min_heads": 3}, "min_heads = 3: must be a whole number from 0 to 2"),
        ({"min_neurons": -1}, "min_neurons = -1: must be a whole number from 0 to 6"),
    ):
        with pytest.raises(ValueError, match=message):
            search(importance, cost, 0.5, **arguments)


def test_more_budget_never_means_less_importance():
    _, importance = small.reference_importance("bert")
    cost = ParameterCost(prunable(small.reference_bert()))
    totals = []
    for constraint in np.linspace(0.05, 1, 40):
        masks = search(importance, cost, constraint)
        totals.append(((importance.heads * masks.heads).sum() + (importance.neurons * masks.neurons).sum()).item())
    assert totals == sorted(totals)
    assert totals[-1] == pytest.approx((importance.heads.sum() + importance.neurons.sum()).item())


def test_a_constraint_met_exactly_in_decimal_is_spent_wholly():
    cost = LinearCost("units", 10, 0, 1, 1)
    for tenths in range(1, 11):
        masks = search(Importance(torch.ones(1, 4), torch.ones(1, 6)), cost, tenths / 10)
        assert cost.kept(masks) == tenths


def test_zero_scores_and_ties_are_taken_in_order():
    cost = LinearCost("units", 8, 0, 1, 1)
    zero = search(Importance(torch.zeros(2, 2), torch.zeros(2, 2)), cost, 0.25)
    assert zero.heads_kept == [0, 0] and zero.neurons.tolist() == [[1, 1], [0, 0]]
    even = search_proportional(Importance(torch.ones(2, 2), torch.ones(2, 2)), cost, 0.5)
    assert even.heads.tolist() == even.neurons.tolist() == [[1, 1], [0, 0]]


def test_bad_scores_and_constraints_are_refused():
    cost = LinearCost("units", 4, 0, 1, 1)
    good = Importance(torch.ones(1, 2), torch.ones(1, 2))
    for find in (search, search_proportional):
        for constraint in (0, -0.1, 1.01, float("nan")):
            with pytest.raises(ValueError, match=f"constraint = {constraint}"):
                find(good, cost, constraint)
        with pytest.raises(ValueError, match=r"importance\.heads: 1 values are NaN"):
            find(Importance(torch.tensor([[1.0, float("nan")]]), torch.ones(1, 2)), cost, 0.5)
        with pytest.raises(ValueError, match=r"importance\.neurons: 2 values are negative"):
            find(Importance(torch.ones(1, 2), -torch.ones(1, 2)), cost, 0.5)
    for percentile in (-1, 100, float("nan")):
        with pytest.raises(ValueError, match="percentile"):
            search_threshold(good, percentile)
    with pytest.raises(ValueError, match=r"cost: expected one of \['LinearCost'.*found dict"):
        search(good, {}, 0.5)
    encoder = prunable(small.build("bert"))
    with pytest.raises(ValueError, match="sequence_length = 0"):
        MacCost(encoder, 0)


def test_magnitude_and_random_scores():
    model = small.build("bert")
    with torch.no_grad():
        model.encoder.layer[1].attention.self.value.weight[12:24] *= 10
        model.encoder.layer[2].output.dense.weight[:, 5] *= 10
    scores = magnitude(prunable(model))
    assert scores.heads.argmax() == 1 * 4 + 1 and scores.neurons.argmax() == 2 * 40 + 5
    layer = model.encoder.layer[0]
    total = sum(p.double().square().sum() for n, p in layer.named_parameters() if "weight" in n and "Norm" not in n)
    torch.testing.assert_close(scores.heads[0].sum() + scores.neurons[0].sum(), total)
    a, b, c = (random_importance(prunable(model), seed) for seed in (1, 1, 2))
    assert a.equal(b) and not a.equal(c)
    masks = search_proportional(a, ParameterCost(prunable(model)), 0.5)
    assert sum(masks.heads_kept) == 5 and sum(masks.neurons_kept) in range(50, 60)


def test_a_cost_of_another_kind_brings_its_own_search():
    class Count:
        """How many parts are kept."""

    def largest(importance, cost, constraint, multiple_of, min_heads, min_neurons):
        keep = [part >= part.flatten().quantile(1 - constraint) for part in (importance.heads, importance.neurons)]
        return Masks(*(part.float() for part in keep))

    importance = Importance(torch.rand(2, 4), torch.rand(2, 10))
    with pytest.raises(ValueError, match=r"cost: expected one of \['LinearCost'.*, found Count"):
        search(importance, Count(), 0.5)
    register(Count, largest)
    try:
        masks = search(importance, Count(), 0.5)
    finally:
        del _SEARCHES[Count]
    assert sum(masks.heads_kept) == 4 and sum(masks.neurons_kept) == 10
