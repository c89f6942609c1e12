"""Objectives whose mask gradients are the importance of SaL's heads and neurons, and its loss: as for TAP, on T5.

LFPR (Poh et al., Pattern Recognition Letters 183, 2024) reports SaL, and publishes neither its code nor which steps it
looks at. Here, as for TAP: decode greedily, find the step at which each sample's highest logit is first reached, and
take the gradient of the largest logit at the median of these steps. A sample's steps are those up to and with its 1:
what it is filled with after its end is no answer. SaL's logits are trained with a sigmoid, as TAP's are, so that their
largest means the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lfpr.checks import check_batches, check_count, check_kind
from lfpr.modes import evaluating
from lfpr.sal.config import PAD
from lfpr.sal.model import Batch, SaL, steps_of
from lfpr.tap.objectives import answer_loss, median_step, projection


def peak_steps(model: SaL, batch: Batch) -> Tensor:
    """t* [B], int64: the decoding step at which each sample's highest logit is first reached, up to and with its end
    (LFPR, time step selection). In evaluation mode. Raises ValueError for anything but a SaL and a batch, or if the
    model gives NaN."""
    check_kind("model", model, SaL)
    with evaluating(model):
        logits, ids = model.generate(batch)
    highest = logits.amax(-1)
    after = torch.arange(highest.shape[1], device=highest.device) >= steps_of(ids)[:, None]
    return highest.masked_fill(after, -torch.inf).argmax(-1)


def peak_step(model: SaL, batches: Iterable[Batch]) -> int:
    """The time step of the label-free objective: int(median of t*) over all samples. Raises as `peak_steps`, and
    ValueError if there are no batches."""
    check_kind("model", model, SaL)
    return median_step(lambda batch: peak_steps(model, batch), batches)


def label_free(model: SaL, step: int) -> Callable[[Batch], Tensor]:
    """The label-free objective at decoding step `step`: the sum over the batch of the largest logit. For
    `lfpr.collect_gradients(..., per_sample=True)`.

    The encoder runs once; the answer before the step is decoded from what it gives, without gradient, and then goes
    through the decoder in one pass, whose gradient flows through all of it and the encoder. Raises ValueError for a
    step that the model does not decode.
    """
    check_kind("model", model, SaL)
    step = check_count("step", step, 0, model.config.new_tokens - 1)

    def objective(batch: Batch) -> Tensor:
        encoded = model.encode(batch)
        previous = model.begin(len(encoded.x))
        if step:
            _, previous = model.greedy(encoded, step)
            previous = F.pad(previous, (0, 1 + step - previous.shape[1]), value=PAD)  # all have ended
        return model.decode(encoded, previous)[:, step].amax(-1).sum()

    return objective


def labelled(model: SaL, reduction: str = "mean") -> Callable[[Batch], Tensor | tuple[Tensor, Tensor]]:
    """SaL's loss, which is M4C's (`lfpr.tap.decoding_loss`), of batches with `previous` [B, T], `targets` [B, T, V] and
    `loss_mask` [B, T] (`SaLDataset(..., targets=True)`): for Fisher importance, and to train. Raises ValueError for
    another reduction, for anything but a SaL, and for batches without these."""
    check_kind("model", model, SaL)
    return answer_loss(model, reduction)


def projected(model: SaL, seed: int = 0) -> Callable[[Batch], Tensor]:
    """A random projection of the logits of every step of the answers in `previous`, as `lfpr.tap.objectives.projected`:
    of batches as `Answered` gives."""
    check_kind("model", model, SaL)
    return projection(model, seed)


class Answered:
    """`batches` with the model's own answers as their labels: `previous`, `targets` and `loss_mask`, as
    `SaLDataset(..., targets=True)` gives, up to the longest answer of a batch."""

    def __init__(self, batches: Iterable[Batch], model: SaL) -> None:
        check_batches("batches", batches)
        check_kind("model", model, SaL)
        self.batches, self.model = batches, model

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            logits, ids = self.model.generate(batch)
            steps = torch.arange(logits.shape[1], device=ids.device)
            mask = (steps < steps_of(ids)[:, None]).float()
            answers = ids[:, 1 : 1 + len(steps)]
            targets = F.one_hot(answers, logits.shape[-1]).to(logits.dtype)
            yield batch | {"previous": ids[:, : len(steps)], "targets": targets, "loss_mask": mask}
