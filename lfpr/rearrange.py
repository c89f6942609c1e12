"""Rearrangement: swap what a layer prunes so that the gradients of what goes cancel out.

Mask search ranks parts by the diagonal of the Fisher information. Within a layer, with the number of pruned parts
fixed, the off-diagonal says more: removing the set P changes the objective by about |Σ_{p ∈ P} g_p|², g_p [B] being the
gradients of part p over the batches. Greedily (Kwon et al., NeurIPS 2022): start from the least important parts; take
each other part in order of importance, add it, and drop the member whose removal leaves the smallest |Σ g|². A part may
drop itself, so |Σ g|² never grows.

With r_j = g_j·Σ g over the set, leaving out j gives |Σ|² - 2 r_j + |g_j|²: a step is one look at the set instead of a
sum over set and batches, and adding or dropping is a row of products added to r. Products are kept among members alone,
and those of members with newcomers for a block of newcomers at a time.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lfpr.checks import check_kind
from lfpr.gradients import MaskGradients
from lfpr.masks import Masks

BLOCK = 128  # newcomers whose products with the members are computed at once


def rearrange(masks: Masks, grads: MaskGradients) -> Masks:
    """0/1 masks that keep as many heads and neurons in each layer as `masks`, so chosen that the gradients of what goes
    cancel out: Kwon et al.'s (NeurIPS 2022) greedy mask rearrangement.

    `masks` are 0/1 (rearrange before rescaling), `grads` [B, L, H] and [B, L, N] of the same encoder. Equally important
    parts are pruned in order of index. Raises ValueError for other masks, other shapes, or gradients that are NaN or
    infinite, or of no batches.
    """
    check_kind("masks", masks, Masks)
    check_kind("grads", grads, MaskGradients)
    grads.check("grads")
    for name, mask, gradient in (("heads", masks.heads, grads.heads), ("neurons", masks.neurons, grads.neurons)):
        if mask.shape != gradient.shape[1:]:
            raise ValueError(f"grads.{name}: shape {tuple(gradient.shape)} does not fit masks {tuple(mask.shape)}")
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError(f"masks.{name}: expected zeros and ones; rearrange before rescaling")
    return Masks(_rearranged(masks.heads, grads.heads), _rearranged(masks.neurons, grads.neurons))


def _rearranged(mask: Tensor, gradients: Tensor) -> Tensor:
    result = torch.ones_like(mask)
    for layer, row in enumerate(mask):
        pruned = _pruned(gradients[:, layer].T.detach().cpu(), int((row == 0).sum()))
        result[layer, torch.from_numpy(pruned).to(mask.device)] = 0
    return result


def _pruned(gradients: Tensor, count: int) -> np.ndarray:
    """Indices of the `count` parts to prune, from gradients [parts, B]."""
    order = gradients.double().square().sum(1).argsort(stable=True)  # least important first
    if count in (0, len(order)):
        return order[:count].numpy()
    ranks = np.arange(count)  # of the members, each in a slot of its own
    members = gradients[order[:count]].double().numpy()
    products = _Products(members)
    lengths = np.square(members).sum(1)
    sums = members @ members.sum(0)  # of each member's products with all of them
    for start in range(count, len(order), BLOCK):
        fresh = gradients[order[start : start + BLOCK]].double().numpy()
        among, crossed = fresh @ fresh.T, fresh @ members.T
        for new, row in enumerate(crossed):
            length, own = among[new, new], row.sum() + among[new, new]
            rest = lengths - 2 * (sums + row)
            least = rest.min()
            if length - 2 * own < least:
                continue  # the newcomer drops itself
            equal = np.flatnonzero(rest == least)
            slot = equal[ranks[equal].argmin()]
            sums += row - products[slot]
            sums[slot] = own - row[slot]
            row[slot] = lengths[slot] = length
            products[slot] = row
            ranks[slot], members[slot], crossed[new + 1 :, slot] = start + new, fresh[new], among[new + 1 :, new]
    return order.numpy()[ranks]


class _Products:
    """Products of all pairs of vectors [m, B], each pair once: `products[i]` are those of vector i with all [m]."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.slots = np.arange(len(vectors))
        self.ends = self.slots * (self.slots + 1) // 2  # where a vector's products with those before it begin
        self.pairs = np.empty(len(vectors) * (len(vectors) + 1) // 2)
        for start in range(0, len(vectors), BLOCK):
            rows = vectors[start : start + BLOCK]
            known = np.tri(len(rows), start + len(rows), start, dtype=bool)
            end = self.ends[start] + known.sum()
            self.pairs[self.ends[start] : end] = (rows @ vectors[: start + len(rows)].T)[known]

    def places(self, slot: int) -> np.ndarray:
        """Where its products are, [m]."""
        return self.ends[np.maximum(self.slots, slot)] + np.minimum(self.slots, slot)

    def __getitem__(self, slot: int) -> np.ndarray:
        return self.pairs[self.places(slot)]

    def __setitem__(self, slot: int, products: np.ndarray) -> None:
        self.pairs[self.places(slot)] = products
