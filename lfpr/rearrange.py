"""Rearrangement: swap what a layer prunes so that the gradients of what goes cancel out.

Mask search ranks parts by the diagonal of the Fisher information. Within a layer, with the number of pruned parts
fixed, the off-diagonal says more: removing the set P changes the objective by about |Σ_{p ∈ P} g_p|², g_p [B] being the
gradients of part p over the batches. Greedily (Kwon et al., NeurIPS 2022): start from the least important parts; take
each other part in order of importance, add it, and drop the member whose removal leaves the smallest |Σ g|². A part may
drop itself, so |Σ g|² never grows.

With K = G Gᵀ, the products of all pairs of gradients, and r = K·1_P, leaving out j gives |Σ|² - 2 r_j + K_jj: a step is
one look at the set instead of a sum over set and batches, and adding or dropping is a row of K added to r.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lfpr.gradients import MaskGradients
from lfpr.masks import Masks


def rearrange(masks: Masks, grads: MaskGradients) -> Masks:
    """0/1 masks that keep as many heads and neurons in each layer as `masks`, so chosen that the gradients of what goes
    cancel out: Kwon et al.'s (NeurIPS 2022) greedy mask rearrangement.

    `masks` are 0/1 (rearrange before rescaling), `grads` [B, L, H] and [B, L, N] of the same encoder. Equally important
    parts are pruned in order of index. Raises ValueError for other masks, other shapes, or gradients that are NaN or
    infinite.
    """
    for name, mask, gradient in (("heads", masks.heads, grads.heads), ("neurons", masks.neurons, grads.neurons)):
        if mask.shape != gradient.shape[1:]:
            raise ValueError(f"grads.{name}: shape {tuple(gradient.shape)} does not fit masks {tuple(mask.shape)}")
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError(f"masks.{name}: expected zeros and ones; rearrange before rescaling")
        if not gradient.isfinite().all():
            raise ValueError(f"grads.{name}: NaN or infinite gradients")
    return Masks(_rearranged(masks.heads, grads.heads), _rearranged(masks.neurons, grads.neurons))


def _rearranged(mask: Tensor, gradients: Tensor) -> Tensor:
    result = torch.ones_like(mask)
    for layer, row in enumerate(mask):
        pruned = _pruned(gradients[:, layer].T.double().cpu(), int((row == 0).sum()))
        result[layer, torch.from_numpy(pruned).to(mask.device)] = 0
    return result


def _pruned(gradients: Tensor, count: int) -> np.ndarray:
    """Indices of the `count` parts to prune, from gradients [parts, B]."""
    order = gradients.square().sum(1).argsort(stable=True)  # least important first
    if count in (0, len(order)):
        return order[:count].numpy()
    ranked = gradients[order].numpy()  # from here on, parts are known by their rank
    products = ranked @ ranked.T  # NumPy computes one half only
    lengths = products.diagonal().copy()
    member = np.full(len(order), np.inf)  # 0 for members, infinite for others
    member[:count] = 0
    sums = products[:count].sum(0)  # of each part with all members
    for rank in range(count, len(order)):
        sums += products[rank]
        member[rank] = 0
        known = slice(rank + 1)
        dropped = (lengths[known] - 2 * sums[known] + member[known]).argmin()
        sums -= products[dropped]
        member[dropped] = np.inf
    return order.numpy()[member == 0]
