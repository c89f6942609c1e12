"""Mask search: which heads and neurons to keep under a constraint on the cost, from the importance of each.

With a cost that counts heads and neurons, the best mask for a given number of heads keeps the most important heads and
spends the rest of the budget on the most important neurons. So walking over all numbers of heads finds the largest
total importance (Kwon et al., NeurIPS 2022; the `sum` search of LFPR). With sorted cumulative sums the walk is one
vector operation. Costs of another kind bring their own search: `register`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lfpr.checks import (
    BudgetError,
    check_callable,
    check_constraint,
    check_finite,
    check_kind,
    check_percentile,
    check_widths,
)
from lfpr.cost import LinearCost
from lfpr.masks import Importance, Masks

_SEARCHES: dict[type, Callable[..., Masks]] = {}


def register(cost_type: type, find: Callable[..., Masks]) -> None:
    """Let `search` call `find` with its own arguments, all by position, for costs of this type. Raises ValueError for
    anything but a class and a function."""
    check_kind("cost_type", cost_type, type)
    check_callable("find", find)
    _SEARCHES[cost_type] = find


def search(
    importance: Importance,
    cost: LinearCost | Any,
    constraint: float,
    multiple_of: int = 1,
    min_heads: int = 0,
    min_neurons: int = 0,
) -> Masks:
    """The masks of largest total importance that cost at most `constraint` of the full cost (mask search of Kwon et
    al., NeurIPS 2022; the `sum` search of LFPR).

    Returns 0/1 masks [L, H] and [L, N]. Every layer keeps at least `min_heads` heads and `min_neurons` neurons, and a
    multiple of `multiple_of` neurons (a divisor of N; 8 or 64 suit most hardware): the best masks of that kind. Equal
    importance is taken in the order of layer and index, equal totals with the fewest heads; so the result is
    deterministic. A `LatencyCost` is searched by `lfpr.latency.search.search_latency`.

    Raises ValueError for a constraint outside (0, 1], importance that is negative, NaN or infinite or of another
    encoder than the cost, widths that layers cannot have, or a cost that nothing can search, and `BudgetError` if even
    the smallest masks cost too much.
    """
    check_kind("importance", importance, Importance)
    return search_for(cost)(importance, cost, constraint, multiple_of, min_heads, min_neurons)


def search_for(cost: Any) -> Callable[..., Masks]:
    """The function that searches under a cost of its type. Raises ValueError if there is none."""
    for cost_type, find in _SEARCHES.items():
        if isinstance(cost, cost_type):
            return find
    known = [cost_type.__name__ for cost_type in _SEARCHES]
    raise ValueError(f"cost: expected one of {known}, found {type(cost).__name__}")


def _search_linear(
    importance: Importance, cost: LinearCost, constraint: float, multiple_of: int, min_heads: int, min_neurons: int
) -> Masks:
    constraint = check_constraint(constraint)
    cost.check("importance", importance)
    multiple_of, min_heads, min_neurons = check_widths(importance, multiple_of, min_heads, min_neurons)
    heads = rank("heads", importance.heads, 1, min_heads)
    neurons = rank("neurons", importance.neurons, multiple_of, min_neurons)
    step = cost.neuron * multiple_of
    budget = _budget(cost, constraint, cost.head * heads.forced + step * neurons.forced)
    count = np.arange(heads.forced, len(heads.index) + 1)  # numbers of heads to try
    count = count[cost.fixed + cost.head * count + step * neurons.forced <= budget]
    affordable = (budget - cost.fixed - cost.head * count) // step
    return best_split(importance, heads, neurons, count, affordable)


register(LinearCost, _search_linear)


def search_proportional(importance: Importance, cost: LinearCost, constraint: float) -> Masks:
    """Masks that keep heads and neurons in the same proportion, the largest that the constraint allows.

    Heads are ranked among heads and neurons among neurons, so the two need no common scale: the allocation for
    magnitude and random importance, which `search` would spend on neurons alone. Returns 0/1 masks [L, H] and [L, N].
    Raises as `search`, and ValueError for a cost that does not count heads and neurons.
    """
    check_kind("importance", importance, Importance)
    check_kind("cost", cost, LinearCost)
    constraint = check_constraint(constraint)
    cost.check("importance", importance)
    heads, neurons = (
        rank(name, part, 1, 0).index[:, 0]
        for name, part in (("heads", importance.heads), ("neurons", importance.neurons))
    )
    budget = _budget(cost, constraint)
    # proportions at which one more head, or one more neuron, is kept
    by_neuron, by_head = np.arange(len(neurons) + 1), np.arange(len(heads) + 1)
    num_neurons = np.concatenate([by_neuron, by_head * len(neurons) // len(heads)])
    num_heads = np.concatenate([by_neuron * len(heads) // len(neurons), by_head])
    spent = cost.fixed + cost.head * num_heads + cost.neuron * num_neurons
    best = int(np.where(spent <= budget, spent, -1).argmax())
    return keep(importance, heads[: num_heads[best]], neurons[: num_neurons[best]])


def search_threshold(importance: Importance, percentile: float) -> Masks:
    """Masks that keep every head and neuron whose importance exceeds the given percentile of all of them together.

    `percentile` in [0, 100) is the percentage removed (LFPR's `threshold` search); what it costs is up to the
    importance. Returns 0/1 masks [L, H] and [L, N], on which importance equal to the threshold is removed. Raises
    ValueError for another percentile or importance that is negative, NaN or infinite.
    """
    check_kind("importance", importance, Importance)
    percentile = check_percentile(percentile)
    heads, neurons = positive("heads", importance.heads).ravel(), positive("neurons", importance.neurons).ravel()
    threshold = np.percentile(np.concatenate([heads, neurons]), percentile)
    return keep(importance, np.flatnonzero(heads > threshold), np.flatnonzero(neurons > threshold))


@dataclass(frozen=True)
class Ranked:
    """Groups of parts in the order in which they are kept; the first `forced` groups always are."""

    index: np.ndarray  # [groups, parts of a group], flat
    total: np.ndarray  # [groups + 1], importance of the first 0, 1, 2, ... groups
    forced: int


def rank(name: str, importance: Tensor, size: int = 1, minimum: int = 0) -> Ranked:
    """Groups of `size` parts of one layer, the layer's best together, by their importance; equal ones in order."""
    values = positive(name, importance)
    if size == 1 and minimum == 0:
        order = _descending(values.ravel())
        return Ranked(order[:, None], np.concatenate([[0.0], values.ravel()[order].cumsum()]), 0)
    num_layers, width = values.shape
    within = np.argsort(-values, axis=1, kind="stable")
    index = (within + np.arange(num_layers)[:, None] * width).reshape(-1, size)
    value = np.take_along_axis(values, within, 1).reshape(-1, size).sum(1)
    forced = np.arange(len(index)) % (width // size) < -(-minimum // size)
    order = np.lexsort((-value, ~forced))  # stable
    return Ranked(index[order], np.concatenate([[0.0], value[order].cumsum()]), int(forced.sum()))


def _descending(values: np.ndarray) -> np.ndarray:
    """Indices of the largest values first, equal ones in order: without any, by a sort that need not be stable, which
    takes a sixth of the time."""
    order = np.argsort(-values)
    ranked = values[order]
    return np.argsort(-values, kind="stable") if (ranked[1:] == ranked[:-1]).any() else order


def best_split(
    importance: Importance, heads: Ranked, neurons: Ranked, count: np.ndarray, affordable: np.ndarray
) -> Masks:
    """Of some numbers of heads, each beside the groups of neurons it leaves room for, the masks of most importance."""
    affordable = np.minimum(affordable, len(neurons.index))
    best = int((heads.total[count] + neurons.total[affordable]).argmax())  # the first of the largest
    return keep(importance, heads.index[: count[best]], neurons.index[: affordable[best]])


def _budget(cost: LinearCost, constraint: float, least: int = 0) -> int:
    """The largest whole cost whose fraction is at most the constraint, whatever the rounding of the product."""
    budget = int(constraint * cost.full) + 1
    while budget / cost.full > constraint:
        budget -= 1
    if budget < cost.fixed + least:
        raise BudgetError(constraint, (cost.fixed + least) / cost.full, cost.unit)
    return budget


def positive(name: str, importance: Tensor) -> np.ndarray:
    """Importance as float64; ValueError if a value is negative, NaN or infinite, or there is none."""
    if not importance.numel():
        raise ValueError(f"importance.{name}: shape {tuple(importance.shape)} holds nothing to rank")
    check_finite(f"importance.{name}", importance)
    values = importance.detach().double().cpu().numpy()
    if (values < 0).any():
        raise ValueError(f"importance.{name}: {np.count_nonzero(values < 0)} values are negative")
    return values


def keep(importance: Importance, heads: np.ndarray, neurons: np.ndarray) -> Masks:
    """Masks of the shape of `importance` that keep parts by their flat indices."""
    masks = Masks(
        torch.zeros(importance.heads.shape, device=importance.heads.device),
        torch.zeros(importance.neurons.shape, device=importance.neurons.device),
    )
    masks.heads.view(-1)[torch.from_numpy(heads.ravel())] = 1
    masks.neurons.view(-1)[torch.from_numpy(neurons.ravel())] = 1
    return masks
