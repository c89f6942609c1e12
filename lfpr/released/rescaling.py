"""Rescaling as released: the least squares of Kwon et al.'s framework (NeurIPS 2022) and of its fork for CLIP.

The same walk through the layers as `lfpr.rescale`, another solver: a ridge of 1 on the *normal equations*,
|G δ - Aᵀe|² + |δ|² for scales 1 + δ; a constant column beside the heads, dropped afterwards; the heads of the first
layer left alone; and no check that a layer gains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lfpr.checks import check_flag, no_empty_batches
from lfpr.encoder import PrunableEncoder
from lfpr.layerwise import LayerRun, Replay, Walk
from lfpr.masks import Masks
from lfpr.modes import evaluating
from lfpr.rescale import (
    Equations,
    Rescaled,
    SubLayerFit,
    check_rescale,
    condition_number,
    fit_masks,
    masked,
    rescaled,
    sides,
)

LIMIT = 10.0
_STOPS = "the released code stops here"


@torch.no_grad()
def rescale(
    encoder: PrunableEncoder,
    masks: Masks,
    batches: Iterable[Any],
    forward: Callable[[Any], Any],
    teacher: Masks | None = None,
    tokens: Callable[[Any], Tensor] | None = None,
    folder: str | Path | None = None,
    first_token: bool | None = None,
) -> Rescaled:
    """`masks` with the values of what is kept as the released code fits them, and a report per sub-layer.

    With a `teacher` it is Kwon et al.'s: the teacher's FFN output is taken before its neuron mask, the last FFN is
    fitted on the first token alone (unless `first_token` is False, as they do where every token has an answer), and
    everything from the first sub-layer with a scale beyond ±10 on stays binary. Without one it is that of the fork for
    CLIP, which has no limit and fits all tokens. Arguments and errors are those of `lfpr.rescale`.
    """
    check_rescale(encoder, masks, batches, forward, teacher, tokens, folder)
    first_token = teacher is not None if first_token is None else check_flag("first_token", first_token)
    limit, report = None if teacher is None else LIMIT, []
    student, teacher_side = sides(encoder, masks, teacher)
    with (
        evaluating(encoder.module),
        no_empty_batches(encoder),
        Replay(encoder, batches, forward, tokens, folder) as replay,
    ):
        walk = _Walk(replay, student, teacher_side, masked(student, forward))
        for fit in fit_masks(walk, lambda system: system.released(limit), first_token, _Equations):
            report.append(fit)
            if fit.declined and fit.declined.endswith(_STOPS):
                break
    return rescaled(student, tuple(report), masks)


class _Walk(Walk):
    """With a masked teacher, the released target lacks its neuron mask, so it is not what the next layer gets."""

    def ffn_target(self, layer: int, run: LayerRun) -> Tensor | None:
        if self.teacher.masks is None:
            return super().ffn_target(layer, run)
        unmasked = self.teacher.encoder.parts[layer].ffn_out(run.activation)
        return self.replay.ffn_sum(layer, run) - run.fed + unmasked


class _Equations(Equations):
    """With what a constant column beside the heads needs."""

    def __init__(self, encoder: PrunableEncoder, layer: int, part: str, mask: Tensor) -> None:
        super().__init__(encoder, layer, part, mask)
        self.sums = torch.zeros_like(self.right)  # Σ_t X
        self.error_sum, self.rows = self.right.new_zeros(()), 0

    def add(self, x: Tensor, student: Tensor, target: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        x, error = super().add(x, student, target, weights)
        if self.part == "heads":
            self.sums += x.double().sum(0)
            self.error_sum = self.error_sum + error.double().sum()
            self.rows += error.numel()
        return x, error

    def released(self, limit: float | None) -> SubLayerFit:
        """The solution of min |G δ - Aᵀe|² + |δ|², as both released frameworks define it."""
        if self.part == "heads" and self.layer == 0:
            return self.declined("the released code leaves the first layer's heads alone")
        if not len(self.kept):
            return self.declined(f"no {self.part} are kept")
        gram, right = self.normal()
        full, goal = gram, right
        if self.part == "heads":  # a column of ones, which starts at 1 as the scales do
            weight = self.weight.double().sum(1)
            ones = (weight * self.sums).view(len(self.kept), self.size).sum(1).cpu()
            full = torch.cat(
                [torch.cat([gram, ones[:, None]], 1), torch.cat([ones, ones.new_tensor([self.rows])])[None]]
            )
            goal = torch.cat([right - ones, ones.new_tensor([self.error_sum.item() - self.rows])])
        values, vectors = torch.linalg.eigh(full)
        if len(full) == 1:  # a single neuron is solved without damping
            step = goal / full[0]
        else:
            step = (vectors @ (values / (values.square() + 1) * (vectors.T @ goal)))[: len(gram)]
        if limit is not None and (1 + step).abs().max() > limit:
            reached = f"[{1 + step.min().item():.3g}, {1 + step.max().item():.3g}]"
            return self.declined(f"scales in {reached} leave ±{limit:g}: {_STOPS}")
        return self.fit(1 + step, self.after(gram, right, step), condition_number(values), 0.0)
