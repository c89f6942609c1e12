"""Controls: Fisher's scores with one of their parts taken away, to see what each part is worth.

Each is again an importance, so search, constraints and heuristics apply to it unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lfpr.masks import Importance


def uniform(importance: Importance) -> Importance:
    """Ranks within the layer, as a share of its heads [L, H] or neurons [L, N]: no layer is worth more than another.

    For `search_proportional`, which then keeps the same share of heads and neurons in every layer (to within one).
    """
    return Importance(*((1 + _ranks(part)) / part.shape[1] for part in (importance.heads, importance.neurons)))


def with_neurons_by(importance: Importance, other: Importance) -> Importance:
    """`importance` with its neuron scores [L, N] dealt out within each layer in the order of `other`'s.

    The r-th best neuron of a layer by `other` gets the layer's r-th largest score, so that any search keeps the same
    heads and as many neurons in each layer as with `importance`, but those that `other` prefers.
    """
    ordered = importance.neurons.sort(dim=1).values
    return Importance(importance.heads, ordered.gather(1, _ranks(other.neurons)))


def _ranks(scores: Tensor) -> Tensor:
    """For each entry of [L, n], how many in its row are smaller; of equal ones, the first is the largest."""
    order = scores.flip(1).argsort(dim=1, stable=True)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(scores.shape[1]).expand_as(order))
    return ranks.flip(1)
