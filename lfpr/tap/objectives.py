"""Objectives whose mask gradients are the importance of TAP's heads and neurons: LFPR's label-free one, and the loss.

LFPR (Poh et al. 2024): pick the decoding step t at which the model is surest, then take the gradient of the largest
logit of that step. No answer is needed. The framework of Kwon et al. uses the training loss instead (Fisher).

LFPR's code computes it with dropout, other at each batch: `lfpr.released.scoring`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lfpr.checks import check_batches, check_choice, check_count, check_entries, check_kind, check_seed, check_tensor
from lfpr.fisher import independent_projection
from lfpr.modes import evaluating
from lfpr.tap.bert import GrowingCache
from lfpr.tap.model import TAP, Batch

REDUCTIONS = ("mean", "sum", "parts")
Answerer = Callable[[Batch, Tensor], Tensor]
"""Logits [B, T, classes] of a batch after the answers so far [B, T]."""


def peak_steps(model: TAP, batch: Batch) -> Tensor:
    """t* [B], int64: the decoding step at which each sample's highest logit over all steps and classes is first reached
    (LFPR, Poh et al. 2024, time step selection). In evaluation mode. Raises ValueError for anything but a TAP and a
    batch, or if the model gives NaN."""
    check_kind("model", model, TAP)
    with evaluating(model):
        return model.generate(batch)[0].amax(-1).argmax(-1)


def peak_step(model: TAP, batches: Iterable[Batch]) -> int:
    """The time step of the label-free objective: int(median of t*) over all samples (LFPR, Poh et al. 2024, time step
    selection). Raises as `peak_steps`, and ValueError if there are no batches."""
    check_kind("model", model, TAP)
    return median_step(lambda batch: peak_steps(model, batch), batches)


def median_step(steps: Callable[[Batch], Tensor], batches: Iterable[Batch]) -> int:
    """int(median) of `steps(batch)` over all samples. Raises ValueError if there are no batches."""
    check_batches("batches", batches)
    found = [steps(batch) for batch in batches]
    if not found:
        raise ValueError("batches: there is none")
    return int(torch.cat(found).double().quantile(0.5))


def label_free(model: TAP, step: int) -> Callable[[Batch], Tensor]:
    """The label-free objective at decoding step `step`: the sum over the batch of the largest logit (LFPR, Poh et al.
    2024). For `lfpr.collect_gradients(..., per_sample=True)`.

    Decoded indices carry no gradient, so a single teacher-forced pass with gradient gives the released value. The
    encoder positions run only once: the steps before `step` are decoded from their keys and values, without gradient,
    and then the answer so far, with gradient.

    Raises ValueError for a step that the model does not decode.
    """
    step = check_step(model, step)

    def objective(batch: Batch) -> Tensor:
        encoded = model.prefill(batch, GrowingCache())
        previous = model.begin(len(encoded.num_ocr))
        if step:
            ahead = replace(encoded, cache=encoded.cache.copy())
            previous = torch.cat([previous, model.greedy(ahead, step)[1]], 1)
        return model.decode(encoded, previous)[:, step].amax(-1).sum()

    return objective


class Answered:
    """`batches` with the model's own answers as their labels: `previous`, `targets` and `loss_mask`, as
    `TAPDataset(..., targets=True)` gives, up to the longest answer of a batch."""

    def __init__(self, batches: Iterable[Batch], model: TAP) -> None:
        check_batches("batches", batches)
        check_kind("model", model, TAP)
        self.batches, self.model = batches, model

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            logits, answers = self.model.generate(batch, stop=True)
            ended = (answers == self.model.config.eos_index).cumsum(1)
            mask = (ended - (answers == self.model.config.eos_index).int() == 0).float()  # its </s> among them
            previous = torch.cat([self.model.begin(len(answers)), answers[:, :-1]], 1)
            targets = F.one_hot(answers, logits.shape[-1]).to(logits.dtype)
            yield batch | {"previous": previous, "targets": targets, "loss_mask": mask}


def projected(model: TAP, seed: int = 0) -> Callable[[Batch], Tensor]:
    """A random projection of the logits of every step of the answers in `previous`, whose expected squared gradients
    are the true Fisher information of M4C's loss (`lfpr.fisher`): of batches as `Answered` gives."""
    check_kind("model", model, TAP)
    return projection(model, seed)


def projection(model: Answerer, seed: int = 0) -> Callable[[Batch], Tensor]:
    """`projected` of any model that gives logits of a batch and the answers so far. Raises ValueError for a bad seed,
    and for batches without these."""
    generator = torch.Generator().manual_seed(check_seed(seed))

    def objective(batch: Batch) -> Tensor:
        check_entries("batch", batch, "previous", "loss_mask")
        logits = model(batch, batch["previous"])
        return independent_projection(logits.flatten(0, 1), batch["loss_mask"].flatten(), generator)

    return objective


def check_step(model: TAP, step: int) -> int:
    """The step. ValueError for one that the model does not decode, and for anything but a TAP."""
    check_kind("model", model, TAP)
    return check_count("step", step, 0, model.config.decoding_steps - 1)


def decoding_loss(
    logits: Tensor, targets: Tensor, mask: Tensor, reduction: str = "mean"
) -> Tensor | tuple[Tensor, Tensor]:
    """M4C's loss (Hu et al., CVPR 2020): binary cross-entropy of logits and targets [B, T, C], summed over classes,
    averaged over the steps where `mask` [B, T] is 1.

    `reduction="sum"` sums over the valid steps instead; `"parts"` gives this sum and the number of steps, to be
    divided when those of several processes are added. Raises ValueError for another reduction or other shapes.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_tensor("logits", logits, 3)
    for name, value, shape in (("targets", targets, logits.shape), ("mask", mask, logits.shape[:2])):
        check_tensor(name, value, len(shape))
        if value.shape != shape:
            raise ValueError(f"{name}: shape {tuple(value.shape)}, expected {tuple(shape)} as of the logits")
    total = (F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1) * mask).sum()
    if reduction == "mean":
        return total / mask.sum().clamp(min=1)
    return total if reduction == "sum" else (total, mask.sum())


def labelled(model: TAP, reduction: str = "mean") -> Callable[[Batch], Tensor | tuple[Tensor, Tensor]]:
    """The labelled loss of batches with `previous` [B, T], `targets` [B, T, V + num_ocr] and `loss_mask` [B, T]
    (`TAPDataset(..., targets=True)`): for Fisher importance (Kwon et al., NeurIPS 2022), and to train.

    Steps beyond the longest answer of a batch add nothing and are not computed. `reduction` as in `decoding_loss`.
    Raises ValueError for another one, for anything but a TAP, and for batches without these.
    """
    check_kind("model", model, TAP)
    return answer_loss(model, reduction)


def answer_loss(model: Answerer, reduction: str = "mean") -> Callable[[Batch], Tensor | tuple[Tensor, Tensor]]:
    """`labelled` of any model that gives logits of a batch and the answers so far. Raises as that."""
    check_choice("reduction", reduction, REDUCTIONS)

    def objective(batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        check_entries("batch", batch, "previous", "targets", "loss_mask")
        steps = max(1, int(batch["loss_mask"].sum(1).max()))
        previous, targets, mask = (batch[name][:, :steps] for name in ("previous", "targets", "loss_mask"))
        return decoding_loss(model(batch, previous), targets, mask, reduction)

    return objective
