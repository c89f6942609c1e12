"""Mask search: which heads and neurons to keep under a constraint on the cost, from one importance score for each.

With a cost that counts heads and neurons, the best mask for a given number of heads keeps the most important heads and
spends the rest of the budget on the most important neurons. So walking over all numbers of heads finds the largest
total importance (Kwon et al., NeurIPS 2022; the `sum` search of LFPR). With sorted cumulative sums the walk is one
vector operation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lfpr.cost import LinearCost
from lfpr.latency.cost import LatencyCost
from lfpr.masks import Importance, Masks


class BudgetError(ValueError):
    """A constraint that no mask can meet; `smallest` is the smallest reachable fraction."""

    def __init__(self, constraint: float, smallest: float, unit: str) -> None:
        super().__init__(
            f"constraint = {constraint}: cannot be reached, {smallest:.6f} of the {unit} remain "
            "when all heads and neurons that may go are removed"
        )
        self.constraint, self.smallest = constraint, smallest


def search(
    importance: Importance,
    cost: LinearCost | LatencyCost,
    constraint: float,
    published: bool | None = None,
    multiple_of: int = 1,
    min_heads: int = 0,
    min_neurons: int = 0,
) -> Masks:
    """The masks of largest total importance that cost at most `constraint` of the full cost (mask search of Kwon et
    al., NeurIPS 2022; the `sum` search of LFPR).

    Returns 0/1 masks [L, H] and [L, N]. Every layer keeps at least `min_heads` heads and `min_neurons` neurons, and a
    multiple of `multiple_of` neurons (a divisor of N; 8 or 64 suit most hardware): the best masks of that kind. Equal
    scores are taken in the order of layer and index, equal totals with the fewest heads; so the result is
    deterministic. A `LatencyCost` is searched by `search_latency`.

    Raises ValueError for a constraint outside (0, 1], a score that is negative, NaN or infinite, or widths that layers
    cannot have, and `BudgetError` if even the smallest masks cost too much.

    `published` (by default, what the cost says) follows the published code: at least one head is kept, and the
    constraint is exceeded where the heads alone cost more than it allows.
    """
    if isinstance(cost, LatencyCost):
        from lfpr.latency.search import search_latency  # which needs this module

        return search_latency(importance, cost, constraint, published, multiple_of, min_heads, min_neurons)
    check_constraint(constraint)
    published = cost.published if published is None else published
    check_widths(importance, published, multiple_of, min_heads, min_neurons)
    heads = _ranked("heads", importance.heads, 1, min_heads)
    neurons = _ranked("neurons", importance.neurons, multiple_of, min_neurons)
    count = np.arange(1 if published else heads.forced, len(heads.index) + 1)  # numbers of heads to try
    step = cost.neuron * multiple_of
    if published:
        rest = (constraint * cost.full - cost.fixed - cost.head * count) / step
        affordable = np.maximum(0, rest.astype(np.int64))
    else:
        budget = _budget(cost, constraint, cost.head * heads.forced + step * neurons.forced)
        count = count[cost.fixed + cost.head * count + step * neurons.forced <= budget]
        affordable = (budget - cost.fixed - cost.head * count) // step
    affordable = np.minimum(affordable, len(neurons.index))
    total = heads.total[count] + neurons.total[affordable]
    best = int(total.argmax())  # the first of the largest
    return keep(importance, heads.index[: count[best]], neurons.index[: affordable[best]])


def search_proportional(importance: Importance, cost: LinearCost, constraint: float) -> Masks:
    """Masks that keep heads and neurons in the same proportion, the largest that the constraint allows.

    Heads are ranked among heads and neurons among neurons, so the two scores need no common scale: the allocation for
    magnitude and random scores, which `search` would spend on neurons alone. Returns 0/1 masks [L, H] and [L, N].
    Raises as `search`, and ValueError for a cost that does not count heads and neurons.
    """
    check_constraint(constraint)
    if not isinstance(cost, LinearCost):
        raise ValueError(f"cost: expected a cost that counts heads and neurons, found {type(cost).__name__}")
    heads, neurons = (
        _ranked(name, part, 1, 0).index[:, 0]
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

    `percentile` in [0, 100) is the percentage removed (LFPR's `threshold` search); what it costs is up to the scores.
    Returns 0/1 masks [L, H] and [L, N], on which a score equal to the threshold is removed. Raises ValueError for
    another percentile or scores that are NaN or infinite.
    """
    if not 0 <= percentile < 100:
        raise ValueError(f"percentile = {percentile}: must be in [0, 100)")
    heads, neurons = _scores("heads", importance.heads).ravel(), _scores("neurons", importance.neurons).ravel()
    threshold = np.percentile(np.concatenate([heads, neurons]), percentile)
    return keep(importance, np.flatnonzero(heads > threshold), np.flatnonzero(neurons > threshold))


@dataclass(frozen=True)
class _Ranked:
    """Groups of parts in the order in which they are kept; the first `forced` groups always are."""

    index: np.ndarray  # [groups, parts of a group], flat
    total: np.ndarray  # [groups + 1], importance of the first 0, 1, 2, ... groups
    forced: int


def _ranked(name: str, scores: Tensor, size: int, minimum: int) -> _Ranked:
    """Groups of `size` parts of one layer, the layer's best together, by their importance; equal ones in order."""
    scores = positive(name, scores)
    num_layers, width = scores.shape
    within = np.argsort(-scores, axis=1, kind="stable")
    index = (within + np.arange(num_layers)[:, None] * width).reshape(-1, size)
    value = np.take_along_axis(scores, within, 1).reshape(-1, size).sum(1)
    forced = np.arange(len(index)) % (width // size) < -(-minimum // size)
    order = np.lexsort((-value, ~forced))  # stable
    return _Ranked(index[order], np.concatenate([[0.0], value[order].cumsum()]), int(forced.sum()))


def check_constraint(constraint: float) -> None:
    """ValueError unless the constraint is in (0, 1]."""
    if not 0 < constraint <= 1:
        raise ValueError(f"constraint = {constraint}: must be in (0, 1]")


def check_widths(importance: Importance, published: bool, multiple_of: int, min_heads: int, min_neurons: int) -> None:
    """ValueError for widths that layers cannot have, or that the published search does not know."""
    num_heads, num_neurons = importance.heads.shape[1], importance.neurons.shape[1]
    if multiple_of < 1 or num_neurons % multiple_of:
        raise ValueError(f"multiple_of = {multiple_of}: must divide the {num_neurons} neurons of a layer")
    for name, value, most in (("min_heads", min_heads, num_heads), ("min_neurons", min_neurons, num_neurons)):
        if not 0 <= value <= most:
            raise ValueError(f"{name} = {value}: must be from 0 to {most}")
    if published and (multiple_of, min_heads, min_neurons) != (1, 0, 0):
        raise ValueError("published = True: the published search has no multiple_of, min_heads or min_neurons")


def _budget(cost: LinearCost, constraint: float, least: int = 0) -> int:
    """The largest whole cost whose fraction is at most the constraint, whatever the rounding of the product."""
    budget = int(constraint * cost.full) + 1
    while budget / cost.full > constraint:
        budget -= 1
    if budget < cost.fixed + least:
        raise BudgetError(constraint, (cost.fixed + least) / cost.full, cost.unit)
    return budget


def _scores(name: str, scores: Tensor) -> np.ndarray:
    found = scores.detach().double().cpu().numpy()
    if not np.isfinite(found).all():
        raise ValueError(f"importance.{name}: {np.count_nonzero(~np.isfinite(found))} scores are NaN or infinite")
    return found


def positive(name: str, scores: Tensor) -> np.ndarray:
    """Scores as float64; ValueError if one is negative, NaN or infinite."""
    found = _scores(name, scores)
    if (found < 0).any():
        raise ValueError(f"importance.{name}: {np.count_nonzero(found < 0)} scores are negative")
    return found


def keep(importance: Importance, heads: np.ndarray, neurons: np.ndarray) -> Masks:
    """Masks of the shape of `importance` that keep parts by their flat indices."""
    masks = Masks(
        torch.zeros(importance.heads.shape, device=importance.heads.device),
        torch.zeros(importance.neurons.shape, device=importance.neurons.device),
    )
    masks.heads.view(-1)[torch.from_numpy(heads.ravel())] = 1
    masks.neurons.view(-1)[torch.from_numpy(neurons.ravel())] = 1
    return masks
