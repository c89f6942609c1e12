"""Objectives whose mask gradients score TAP's heads and neurons: LFPR's label-free one, and the labelled loss.

LFPR (Poh et al. 2024): pick the decoding step t at which the model is surest, then score by the gradient of the largest
score of that step. No answer is needed. The framework of Kwon et al. uses the training loss instead (Fisher).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from lfpr.tap.model import TAP, Batch


def peak_steps(model: TAP, batch: Batch) -> Tensor:
    """t* [B]: the first step at which each sample's highest score over all steps and classes is reached."""
    return model.generate(batch)[0].amax(-1).argmax(-1)


def peak_step(model: TAP, batches: Iterable[Batch]) -> int:
    """The time step of the label-free objective: int(median of t*) over all samples (LFPR, time step selection)."""
    steps = [peak_steps(model, batch) for batch in batches]
    if not steps:
        raise ValueError("peak_step: batches is empty; at least one sample is needed")
    return int(torch.cat(steps).double().quantile(0.5))


def label_free(model: TAP, step: int) -> Callable[[Batch], Tensor]:
    """The label-free objective at decoding step ``step``: the sum over the batch of the largest score (LFPR).

    Decoded indices carry no gradient, so the steps before ``step`` are decoded without one; a single teacher-forced
    pass with gradient then gives the published value.
    """
    if not 0 <= step < model.config.decoding_steps:
        raise ValueError(f"step = {step}: must be in 0 … {model.config.decoding_steps - 1}")

    def objective(batch: Batch) -> Tensor:
        first = torch.full_like(batch["num_ocr"], model.config.bos_index)[:, None]
        previous = torch.cat([first, model.generate(batch, step)[1]], 1) if step else first
        return model(batch, previous)[:, step].amax(-1).sum()

    return objective


def decoding_loss(scores: Tensor, targets: Tensor, mask: Tensor, reduction: str = "mean") -> Tensor:
    """M4C's loss: binary cross-entropy of scores [B, T, C], summed over classes, averaged over the valid steps [B, T].

    ``reduction="sum"`` sums over the valid steps instead.
    """
    loss = F.binary_cross_entropy_with_logits(scores, targets, reduction="none").sum(-1) * mask
    return loss.sum() / mask.sum().clamp(min=1) if reduction == "mean" else loss.sum()


def labelled(model: TAP, reduction: str = "mean") -> Callable[[Batch], Tensor]:
    """The labelled loss of batches with ``previous``, ``targets``, ``loss_mask``: for Fisher scores (Kwon et al.).

    Steps beyond the longest answer of a batch add nothing and are not computed.
    """

    def objective(batch: Batch) -> Tensor:
        steps = max(1, int(batch["loss_mask"].sum(1).max()))
        previous, targets, mask = (batch[name][:, :steps] for name in ("previous", "targets", "loss_mask"))
        return decoding_loss(model(batch, previous), targets, mask, reduction)

    return objective
