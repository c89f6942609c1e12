"""Mask search: which heads and neurons to keep under a constraint on the cost, from one importance score for each.

With a cost that counts heads and neurons, the best mask for a given number of heads keeps the most important heads and
spends the rest of the budget on the most important neurons. So walking over all numbers of heads finds the largest
total importance (Kwon et al., NeurIPS 2022; the `sum` search of LFPR). With sorted cumulative sums the walk is one
vector operation.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .cost import LinearCost
from .masks import Importance, Masks


class BudgetError(ValueError):
    """A constraint that no mask can meet; `smallest` is the smallest reachable fraction."""

    def __init__(self, constraint: float, smallest: float, unit: str) -> None:
        super().__init__(
            f"constraint = {constraint}: cannot be reached, {smallest:.6f} of the {unit} remain "
            "when all heads and neurons are removed"
        )
        self.constraint, self.smallest = constraint, smallest


def search(importance: Importance, cost: LinearCost, constraint: float, published: bool | None = None) -> Masks:
    """The masks of largest total importance that cost at most `constraint` of the full cost.

    Returns 0/1 masks [L, H] and [L, N]. Equal scores are taken in the order of layer and index, equal totals with the
    fewest heads; so the result is deterministic. Raises ValueError for a constraint outside (0, 1] or a score that is
    negative, NaN or infinite, and `BudgetError` if even the empty mask costs too much.

    `published` (by default, what the cost says) follows the published code: at least one head is kept, and the
    constraint is exceeded where the heads alone cost more than it allows.
    """
    _check_constraint(constraint)
    heads, neurons = _descending("heads", importance.heads), _descending("neurons", importance.neurons)
    published = cost.published if published is None else published
    count = np.arange(1 if published else 0, len(heads) + 1)  # numbers of heads to try
    if published:
        rest = (constraint * cost.full - cost.fixed - cost.head * count) / cost.neuron
        affordable = np.maximum(0, rest.astype(np.int64))
    else:
        budget = _budget(cost, constraint)
        count = count[cost.fixed + cost.head * count <= budget]
        affordable = (budget - cost.fixed - cost.head * count) // cost.neuron
    affordable = np.minimum(affordable, len(neurons))
    total = _cumulative(importance.heads, heads)[count] + _cumulative(importance.neurons, neurons)[affordable]
    best = int(total.argmax())  # the first of the largest
    return _keep(importance, heads[: count[best]], neurons[: affordable[best]])


def search_proportional(importance: Importance, cost: LinearCost, constraint: float) -> Masks:
    """Masks that keep heads and neurons in the same proportion, the largest that the constraint allows.

    Heads are ranked among heads and neurons among neurons, so the two scores need no common scale: the allocation for
    magnitude and random scores, which `search` would spend on neurons alone. Raises as `search`.
    """
    _check_constraint(constraint)
    heads, neurons = _descending("heads", importance.heads), _descending("neurons", importance.neurons)
    budget = _budget(cost, constraint)
    # proportions at which one more head, or one more neuron, is kept
    by_neuron, by_head = np.arange(len(neurons) + 1), np.arange(len(heads) + 1)
    num_neurons = np.concatenate([by_neuron, by_head * len(neurons) // len(heads)])
    num_heads = np.concatenate([by_neuron * len(heads) // len(neurons), by_head])
    spent = cost.fixed + cost.head * num_heads + cost.neuron * num_neurons
    best = int(np.where(spent <= budget, spent, -1).argmax())
    return _keep(importance, heads[: num_heads[best]], neurons[: num_neurons[best]])


def search_threshold(importance: Importance, percentile: float) -> Masks:
    """Masks that keep every head and neuron whose importance exceeds the given percentile of all of them together.

    `percentile` in [0, 100) is the percentage removed (LFPR's `threshold` search); what it costs is up to the scores.
    Raises ValueError for another percentile or scores that are NaN or infinite.
    """
    if not 0 <= percentile < 100:
        raise ValueError(f"percentile = {percentile}: must be in [0, 100)")
    heads, neurons = _scores("heads", importance.heads), _scores("neurons", importance.neurons)
    threshold = np.percentile(np.concatenate([heads, neurons]), percentile)
    return _keep(importance, np.flatnonzero(heads > threshold), np.flatnonzero(neurons > threshold))


def _check_constraint(constraint: float) -> None:
    if not 0 < constraint <= 1:
        raise ValueError(f"constraint = {constraint}: must be in (0, 1]")


def _budget(cost: LinearCost, constraint: float) -> int:
    """The largest whole cost whose fraction is at most the constraint, whatever the rounding of the product."""
    budget = int(constraint * cost.full) + 1
    while budget / cost.full > constraint:
        budget -= 1
    if budget < cost.fixed:
        raise BudgetError(constraint, cost.fixed / cost.full, cost.unit)
    return budget


def _scores(name: str, scores: Tensor) -> np.ndarray:
    flat = scores.detach().double().cpu().flatten().numpy()
    if not np.isfinite(flat).all():
        raise ValueError(f"importance.{name}: {np.count_nonzero(~np.isfinite(flat))} scores are NaN or infinite")
    return flat


def _descending(name: str, scores: Tensor) -> np.ndarray:
    """Flat indices, most important first; equal scores in order."""
    flat = _scores(name, scores)
    if (flat < 0).any():
        raise ValueError(f"importance.{name}: {np.count_nonzero(flat < 0)} scores are negative")
    return np.argsort(-flat, kind="stable")


def _cumulative(scores: Tensor, order: np.ndarray) -> np.ndarray:
    """Total importance of the first 0, 1, 2, ... parts."""
    return np.concatenate([[0.0], _scores("", scores)[order].cumsum()])


def _keep(importance: Importance, heads: np.ndarray, neurons: np.ndarray) -> Masks:
    masks = Masks(
        torch.zeros(importance.heads.shape, device=importance.heads.device),
        torch.zeros(importance.neurons.shape, device=importance.neurons.device),
    )
    masks.heads.view(-1)[torch.from_numpy(heads)] = 1
    masks.neurons.view(-1)[torch.from_numpy(neurons)] = 1
    return masks
