"""Objectives whose mask gradients are the importance of TAP's heads and neurons: LFPR's label-free one, and the loss.

LFPR (Poh et al. 2024): pick the decoding step t at which the model is surest, then take the gradient of the largest
logit of that step. No answer is needed. The framework of Kwon et al. uses the training loss instead (Fisher).

LFPR's code computes it with dropout, other at each batch: `lfpr.released.scoring`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from lfpr.tap.model import TAP, Batch


def peak_steps(model: TAP, batch: Batch) -> Tensor:
    """t* [B], int64: the decoding step at which each sample's highest logit over all steps and classes is first reached
    (LFPR, Poh et al. 2024, time step selection)."""
    return model.generate(batch)[0].amax(-1).argmax(-1)


def peak_step(model: TAP, batches: Iterable[Batch]) -> int:
    """The time step of the label-free objective: int(median of t*) over all samples (LFPR, Poh et al. 2024, time step
    selection). Raises ValueError if there are no batches."""
    steps = [peak_steps(model, batch) for batch in batches]
    if not steps:
        raise ValueError("peak_step: batches is empty; at least one sample is needed")
    return int(torch.cat(steps).double().quantile(0.5))


def label_free(model: TAP, step: int) -> Callable[[Batch], Tensor]:
    """The label-free objective at decoding step `step`: the sum over the batch of the largest logit (LFPR, Poh et al.
    2024). For `lfpr.collect_gradients(..., per_sample=True)`.

    Decoded indices carry no gradient, so a single teacher-forced pass with gradient gives the released value. The
    encoder positions run only once: the steps before `step` are decoded from their keys and values, without gradient,
    and then the answer so far, with gradient.

    Raises ValueError for a step that the model does not decode.
    """
    check_step(model, step)

    def objective(batch: Batch) -> Tensor:
        encoded = model.prefill(batch, DynamicCache())
        previous = model.begin(len(encoded.num_ocr))
        if step:
            ahead = replace(encoded, cache=DynamicCache([layer[:2] for layer in encoded.cache]))
            previous = torch.cat([previous, model.greedy(ahead, step)[1]], 1)
        return model.decode(encoded, previous)[:, step].amax(-1).sum()

    return objective


def check_step(model: TAP, step: int) -> None:
    """ValueError for a step that the model does not decode."""
    if not 0 <= step < model.config.decoding_steps:
        raise ValueError(f"step = {step}: must be in 0 … {model.config.decoding_steps - 1}")


def decoding_loss(
    logits: Tensor, targets: Tensor, mask: Tensor, reduction: str = "mean"
) -> Tensor | tuple[Tensor, Tensor]:
    """M4C's loss (Hu et al., CVPR 2020): binary cross-entropy of logits and targets [B, T, C], summed over classes,
    averaged over the steps where `mask` [B, T] is 1.

    `reduction="sum"` sums over the valid steps instead; `"parts"` gives this sum and the number of steps, to be
    divided when those of several processes are added. Raises ValueError for another reduction.
    """
    if reduction not in ("mean", "sum", "parts"):
        raise ValueError(f"reduction = {reduction!r}: must be 'mean', 'sum' or 'parts'")
    total = (F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1) * mask).sum()
    if reduction == "mean":
        return total / mask.sum().clamp(min=1)
    return total if reduction == "sum" else (total, mask.sum())


def labelled(model: TAP, reduction: str = "mean") -> Callable[[Batch], Tensor | tuple[Tensor, Tensor]]:
    """The labelled loss of batches with `previous` [B, T], `targets` [B, T, V + num_ocr] and `loss_mask` [B, T]
    (`TAPDataset(..., targets=True)`): for Fisher importance (Kwon et al., NeurIPS 2022), and to train.

    Steps beyond the longest answer of a batch add nothing and are not computed. `reduction` as in `decoding_loss`.
    """

    def objective(batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        steps = max(1, int(batch["loss_mask"].sum(1).max()))
        previous, targets, mask = (batch[name][:, :steps] for name in ("previous", "targets", "loss_mask"))
        return decoding_loss(model(batch, previous), targets, mask, reduction)

    return objective
