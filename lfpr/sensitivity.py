"""Sensitivity pruning: in each step, one more layer keeps only its most important head ("all but one").

In each step, head importance is taken under the current masks; of the layers that still have several heads, the one
that holds the highest score keeps that head alone (the CLIP fork of Kwon et al.'s framework; after Michel, Levy and
Neubig, "Are sixteen heads really better than one?", NeurIPS 2019). Neurons are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from lfpr.checks import check_callable, check_flag, check_kind, check_masks, check_run
from lfpr.cost import LinearCost
from lfpr.encoder import PrunableEncoder
from lfpr.gradients import collect_gradients
from lfpr.masks import Masks


def all_but_one(
    encoder: PrunableEncoder,
    batches: Iterable[Any],
    objective: Callable[[Any], Tensor],
    masks: Masks | None = None,
    cost: LinearCost | None = None,
    per_sample: bool = False,
    progress: str | None = None,
) -> Iterator[tuple[int, Masks] | tuple[int, Masks, int]]:
    """Sensitivity pruning: yield `(step, masks)` after each step, `step` being the number of layers that have at most
    one head left (the CLIP fork of Kwon et al.'s code; after Michel, Levy and Neubig, NeurIPS 2019).

    With a `cost`, such as `MacCost`, yields `(step, masks, cost of the masks)`. To resume, give the `masks` of the last
    step done: steps follow from them. `batches`, `objective` (see `collect_gradients`) and `per_sample` are used anew
    in each step, so `batches` must be iterable again: ValueError for an iterator. There are as many steps as layers
    with more than one head; equal scores are taken in the order of layer and head. ValueError too for masks of another
    shape, and a cost of another encoder.
    """
    check_run(encoder, batches, often=True, objective=objective)
    check_flag("per_sample", per_sample)
    check_kind("progress", progress, str, None)
    masks = Masks.ones(encoder) if masks is None else masks
    check_masks("masks", masks, encoder)
    if cost is not None:
        check_callable("cost.kept", getattr(cost, "kept", None))
        cost.kept(masks)  # raises if it counts other encoders
    return _steps(encoder, batches, objective, masks, cost, per_sample, progress)


def _steps(encoder, batches, objective, masks, cost, per_sample, progress):  # a generator, so that errors come at once
    while (masks.heads.count_nonzero(1) > 1).any():
        gradients = collect_gradients(encoder, batches, objective, per_sample, masks, progress)
        scores = gradients.importance().heads.to(masks.heads.device)
        open_layers = masks.heads.count_nonzero(1).gt(1)[:, None]
        scores = scores.masked_fill(~open_layers | (masks.heads == 0), -1)
        layer, head = divmod(int(scores.argmax()), scores.shape[1])
        heads = masks.heads.clone()
        heads[layer] = 0
        heads[layer, head] = masks.heads[layer, head]
        masks = Masks(heads, masks.neurons.clone())
        step = int((heads.count_nonzero(1) <= 1).sum())
        yield (step, masks) if cost is None else (step, masks, cost.kept(masks))
