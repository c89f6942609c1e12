"""Measured latency: tables, and searches against brute force."""

import itertools
import json
import math

import numpy as np
import pytest
import small_models as small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfpr.checks import BudgetError
from lfpr.encoder import prunable
from lfpr.latency.cost import LatencyCost, monotone
from lfpr.latency.search import BINS
from lfpr.masks import Importance, Masks
from lfpr.search import search, search_proportional


@pytest.fixture(scope="module")
def measured():
    arrays, importance = small.reference_importance("bert")
    return importance, LatencyCost([0, *arrays["lut_mha"]], [0, *arrays["lut_ffn"]], 4, "milliseconds")


def value(importance, masks):
    return ((importance.heads * masks.heads).sum() + (importance.neurons * masks.neurons).sum()).item()


tables = st.lists(st.integers(0, 6), min_size=3, max_size=3)
wide = st.lists(st.integers(0, 6), min_size=4, max_size=4)


@settings(max_examples=60, deadline=None)
@given(tables, wide, st.lists(st.integers(0, 9), min_size=14, max_size=14), st.floats(0.05, 1), st.booleans())
def test_latency_search_is_near_optimal_and_within_the_constraint(attention, ffn, scores, constraint, minimum):
    attention, ffn = np.cumsum([*attention, 1]) / 7, np.cumsum([*ffn, 1]) / 3  # widths 0 ... 3 and 0 ... 4
    importance = Importance(torch.tensor(scores[:6]).view(2, 3).double(), torch.tensor(scores[6:]).view(2, 4).double())
    cost, least = LatencyCost(attention, ffn, 2), int(minimum)
    ranked = [np.sort(row)[::-1] for part in (importance.heads, importance.neurons) for row in part.numpy()]
    choices = [range(least, 4)] * 2 + [range(2 * least, 5)] * 2
    options = [
        (cost.of(widths[:2], widths[2:]), sum(row[:width].sum() for row, width in zip(ranked, widths, strict=True)))
        for widths in itertools.product(*choices)
    ]
    if not any(latency / cost.full <= constraint for latency, _ in options):
        with pytest.raises(BudgetError) as error:
            search(importance, cost, constraint, min_heads=least, min_neurons=2 * least)
        assert error.value.smallest == pytest.approx(min(options)[0] / cost.full)
        return
    masks = search(importance, cost, constraint, min_heads=least, min_neurons=2 * least)
    assert cost.fraction(masks) <= constraint
    assert min(masks.heads_kept) >= least and min(masks.neurons_kept) >= 2 * least
    smallest = min(options)[0]
    budget = smallest + (constraint * cost.full - smallest) * (1 - 4 / BINS)
    assert value(importance, masks) >= max(
        total for latency, total in options if latency <= budget or latency == smallest
    )
    assert search(importance, cost, constraint, min_heads=least, min_neurons=2 * least).equal(masks)


def test_whole_sub_layers_are_dropped_where_narrowing_gains_nothing():
    flat = [0.0, 5, 5, 5, 6]
    importance = Importance(torch.tensor([[4.0, 3, 2, 1], [9, 9, 9, 9]]), torch.tensor([[1.0, 1, 1, 1]] * 2))
    cost = LatencyCost(flat, [0.0, 1, 2, 3, 4], 2)
    masks = search(importance, cost, 10 / 20)
    assert masks.heads_kept == [0, 4] and sum(masks.neurons_kept) == 4
    assert search(importance, cost, 1.0).equal(Masks(torch.ones(2, 4), torch.ones(2, 4)))
    assert search(importance, cost, 0.5, multiple_of=2).neurons_kept in ([4, 0], [2, 2], [0, 4])


def pooled(values):
    """Pool adjacent violators."""
    pools = []  # mean, size
    for value in values:
        pool = (float(value), 1)
        while pools and pools[-1][0] > pool[0]:
            mean, size = pools.pop()
            pool = ((mean * size + pool[0] * pool[1]) / (size + pool[1]), size + pool[1])
        pools.append(pool)
    return np.concatenate([np.full(size, mean) for mean, size in pools])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=12))
def test_monotone_is_the_nearest_rising_sequence(values):
    found = monotone(values)
    np.testing.assert_allclose(found, pooled(values), rtol=1e-12, atol=1e-12)
    assert (np.diff(found) >= -1e-12).all()
    assert found.mean() == pytest.approx(np.mean(values))
    if values == sorted(values):
        np.testing.assert_allclose(found, values)
    for other in (np.maximum.accumulate(values), np.full(len(values), np.mean(values)), np.sort(values)):
        assert np.square(found - values).sum() <= np.square(other - values).sum() + 1e-9


class Ticks:
    """A clock that advances by the weights that the layer at hand has used since the last look."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("family", ["bert", "clip_text", "distilbert"])
def test_measuring_interpolates_medians_of_the_shrunk_layers(family, monkeypatch):
    model, inputs, clock = small.build(family).train(), small.batch(family), Ticks()
    linear = torch.nn.Linear.forward

    def counting(self, x):
        clock.now += self.weight.numel()
        return linear(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", counting)
    encoder = prunable(model)
    H, N, d = encoder.num_heads, encoder.num_neurons, encoder.hidden_size
    before = [p.shape for p in model.parameters()]
    cost = LatencyCost.measure(
        encoder, inputs, lambda b: small.forward(model, b), neurons=[N // 4], repeats=3, warmup=1, clock=clock
    )
    np.testing.assert_allclose(cost.attention, [4 * encoder.head_dim * d * h for h in range(H + 1)])
    np.testing.assert_allclose(cost.ffn, [2 * d * n for n in range(N + 1)])
    assert cost.measured["neurons"] == [0, N // 4, N] and cost.measured["heads"] == list(range(H + 1))
    assert cost.measured["input"] == [*small.forward(model, inputs).shape]
    assert cost.full == encoder.num_layers * (4 * d * d + 2 * d * N) and cost.unit == "seconds"
    assert [p.shape for p in model.parameters()] == before and model.training
    masks = small.random_masks(encoder, 1)
    assert cost.kept(masks) == 4 * encoder.head_dim * d * sum(masks.heads_kept) + 2 * d * sum(masks.neurons_kept)


def test_measuring_takes_real_time():
    model, inputs = small.build("vit"), small.batch("vit")
    cost = LatencyCost.measure(prunable(model), inputs, lambda b: small.forward(model, b), [2], [20], repeats=2)
    assert (np.diff(cost.attention) >= 0).all() and (np.diff(cost.ffn) >= 0).all() and cost.full > 0
    assert len(cost.attention) == 5 and len(cost.ffn) == 41
    masks = search(Importance(torch.rand(3, 4), torch.rand(3, 40)), cost, 1.0)
    assert cost.fraction(masks) <= 1


def test_tables_save_and_load(tmp_path, measured):
    importance, cost = measured
    cost.save(tmp_path / "a" / "latency.json")
    loaded = LatencyCost.load(tmp_path / "a" / "latency.json")
    assert loaded.full == cost.full and loaded.unit == "milliseconds"
    assert search(importance, loaded, 0.5).equal(search(importance, cost, 0.5))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["latency.json"]
    values = json.loads((tmp_path / "a" / "latency.json").read_text())
    bad = tmp_path / "bad.json"
    for content in ("{", "[]", json.dumps(values | {"format": 9}), json.dumps(values | {"ffn": [1, -1]}), "{}"):
        bad.write_text(content)
        with pytest.raises(ValueError, match=r"bad\.json is not a latency table"):
            LatencyCost.load(bad)
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.json"):
        LatencyCost.load(tmp_path / "none.json")


def test_bad_arguments_are_refused(measured):
    importance, cost = measured
    for table, message in (
        ([], r"attention = \[\]: must be a list of at least 2 numbers"),
        ([1.0], r"attention = \[1\.0\]: must be a list of at least 2 numbers"),
        ([0, math.nan], r"attention\[1\] = nan: must be at least 0 and finite"),
        ([0, -1.0, 2], r"attention\[1\] = -1\.0: must be at least 0"),
        ([0.0, 0.0], "attention: the last of its latencies, of the full width, must be above 0"),
        ([[0, 1]], r"attention\[0\] = \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            LatencyCost(table, [0, 1], 2)
    with pytest.raises(ValueError, match="num_layers = 0"):
        LatencyCost([0, 1], [0, 1], 0)
    with pytest.raises(ValueError, match=r"importance\.heads: shape \(2, 4\), the latency table is for \(4, 4\)"):
        search(Importance(torch.ones(2, 4), torch.ones(2, 96)), cost, 0.5)
    with pytest.raises(ValueError, match=r"masks\.neurons: shape \(4, 9\), the table is for \(4, 96\)"):
        cost.kept(Masks(torch.ones(4, 4), torch.ones(4, 9)))
    with pytest.raises(ValueError, match="constraint = 0"):
        search(importance, cost, 0)
    with pytest.raises(ValueError, match="cost: expected LinearCost, found LatencyCost"):
        search_proportional(importance, cost, 0.5)
    model = small.build("bert")
    with pytest.raises(ValueError, match=r"heads\[0\] = 9: must be a whole number from 0 to 4"):
        LatencyCost.measure(prunable(model), small.batch("bert"), lambda b: small.forward(model, b), heads=[9])
    with pytest.raises(ValueError, match="repeats = 0"):
        LatencyCost.measure(prunable(model), small.batch("bert"), lambda b: small.forward(model, b), repeats=0)
