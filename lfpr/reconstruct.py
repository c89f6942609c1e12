"""Reconstruction: the output projections of a pruned model refitted by least squares to what the unpruned one computes.

Layer by layer, first attention, then FFN: with X [T, n] the activations of what is kept (and a column of ones, if the
projection has a bias) and E [T, d] what the teacher's sub-layer gives more than the student's, both taken where the
sub-layer joins the residual stream, the weights move by

    D = argmin |E - X D|² + ridge · mean(diag XᵀX) · |D|² = (XᵀX + λI)⁻¹ XᵀE

so that the pruned sub-layer makes up for what is gone, and for the errors of the layers before it, which are refitted
by then. It is what optimal brain surgeon does to the weights that stay (Hassibi and Stork, NeurIPS 1992; for groups:
ZipLM, Kurtic et al., NeurIPS 2023; without a ridge: K-prune, Park et al., ICLR 2024). No labels, no gradients, nothing
to pay at inference.

XᵀX and XᵀE are sums over tokens, so batches stream through (`lfpr.layerwise`) and memory does not grow with the sample.
A fifth of the samples is held back: their own sums tell, for each ridge, the error on tokens that were not fitted. The
best ridge is used on all tokens; where none beats the weights as they are, the sub-layer is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lfpr.checks import (
    check_above,
    check_batches,
    check_callable,
    check_folder,
    check_list,
    check_models,
    no_empty_batches,
)
from lfpr.encoder import Part
from lfpr.layerwise import HELD_BACK, Replay, Side, Walk
from lfpr.modes import evaluating
from lfpr.shrink import counterparts

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Refit:
    """What reconstruction did to one output projection.

    Errors are squared and summed, as a share of the teacher's squared output: `before` and `after` over all tokens;
    `held_before` and `held_after` over the tokens held back, by weights fitted to the others. `ridge` is the one
    chosen, `condition` that of XᵀX + λI, estimated. `declined` says why the weights were left alone; None if they were
    refitted.
    """

    layer: int
    part: str  # "heads" or "neurons"
    kept: int
    before: float
    after: float
    held_before: float
    held_after: float
    ridge: float
    condition: float
    declined: str | None = None


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    small: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any],
    part: nn.Module | None = None,
    ridges: Sequence[float] = RIDGES,
    tokens: Callable[[Any], Tensor] | None = None,
    folder: str | Path | None = None,
) -> tuple[Refit, ...]:
    """Refit the attention and FFN output projections of `small`, in place, to what `model` computes; a report per
    sub-layer, in their order.

    small: `model` pruned, by `shrink` or by columns of zeros in its output projections, which stay zero. batches:
    unlabelled samples, at least 2, iterated once; `forward(model, batch)` runs the model, in evaluation mode. part: as
    in `shrink`. ridges: to choose from, relative to the mean diagonal of XᵀX; several raise nothing but the time.
    `tokens(batch)` gives the weights [B, S] of the encoder's positions, by default 1 for every token that any token
    attends to, so that padding does not count. `folder` is where a temporary file goes.

    Raises ValueError for bad ridges or batches (see `layerwise.Replay`), models that do not belong together, or NaN
    activations, naming the layer; `small` is then as it was up to that layer.
    """
    check_models(model=model, small=small, part=part)
    check_batches("batches", batches)
    check_callable("forward", forward)
    ridges = check_options(ridges, tokens, folder)
    teacher, student = counterparts(model, small, part)
    report = []
    with (
        evaluating(model, small),
        no_empty_batches(teacher),
        Replay(teacher, batches, lambda batch: forward(model, batch), tokens, folder) as replay,
    ):
        if replay.samples < 2:
            raise ValueError("batches: 1 sample in all, expected at least 2: some are held back to choose the ridge")
        walk = Walk(replay, Side(student), Side(teacher), lambda batch: forward(small, batch))
        for layer, kind in walk.sub_layers():
            own = (student.attentions if kind == "heads" else student.ffns)[layer]
            system = _LeastSquares(own, layer)
            walk.visit(layer, kind, system.add)
            report.append(system.refit(ridges))
    return tuple(report)


def check_options(
    ridges: Sequence[float] = RIDGES,
    tokens: Callable[[Any], Tensor] | None = None,
    folder: str | Path | None = None,
) -> tuple[float, ...]:
    """The ridges in order. ValueError if an option of `reconstruct` is none that it takes."""
    check_callable("tokens", tokens, optional=True)
    check_folder("folder", folder)
    return tuple(sorted(check_list("ridges", ridges, check_above)))


class _LeastSquares:
    """The normal equations of one output projection, once over the fitted samples and once over those held back;
    in float64, since with few tokens or a small ridge they are near to singular."""

    def __init__(self, part: Part, layer: int) -> None:
        self.layer, self.kind, self.linear, size = layer, part.kind, part.output, part.size
        weight = self.linear.weight
        groups = weight.any(0).unflatten(0, (-1, size)).any(1)  # a part whose columns are all zero was removed
        self.kept = int(groups.sum())
        self.columns = groups.repeat_interleave(size).nonzero().flatten()
        n, d = len(self.columns) + (self.linear.bias is not None), weight.shape[0]
        self.gram, self.right = weight.new_zeros(2, n, n, dtype=torch.float64), weight.new_zeros(2, n, d).double()
        self.error, self.scale = weight.new_zeros(2, 2, dtype=torch.float64)
        self.seen = 0

    def add(self, x: Tensor, student: Tensor, target: Tensor, weights: Tensor | None) -> None:
        """Add tokens: x [B, S, all columns], what student and teacher give [B, S, d], weights [B, S]."""
        x, error, target = x.float()[..., self.columns], (target.float() - student.float()), target.float()
        if self.linear.bias is not None:
            x = torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)
        back = (self.seen + torch.arange(len(x), device=x.device)) % HELD_BACK == 1
        self.seen += len(x)
        weights = x.new_ones(x.shape[:2]) if weights is None else weights
        for held, samples in enumerate((~back, back)):
            rows = samples[:, None] & (weights > 0)  # [B, S]
            root = weights[rows].sqrt()[:, None]
            a, e, goal = ((tensor[rows] * root).double() for tensor in (x, error, target))
            self.gram[held] += a.T @ a
            self.right[held] += a.T @ e
            self.error[held] += e.square().sum()
            self.scale[held] += goal.square().sum()

    def refit(self, ridges: Sequence[float]) -> Refit:
        """Move the weights by the solution under the ridge that is best on what was held back."""
        if not (self.gram.isfinite().all() and self.right.isfinite().all()):
            raise ValueError(f"layer {self.layer}: NaN or infinite activations at its {self.kind}")
        if not len(self.gram[0]):
            return self.report("nothing is kept, and there is no bias")
        trials = {}
        for ridge in ridges:
            step, _ = _solve(self.ridged(self.gram[0], ridge), self.right[0])
            trials[ridge] = _left(self.gram[1], self.right[1], self.error[1], step)
        best = min(trials, key=trials.__getitem__)
        gram, right = self.gram.sum(0), self.right.sum(0)
        matrix = self.ridged(gram, best)
        step, factor = _solve(matrix, right)
        condition = float("inf") if factor is None else _condition(matrix, factor)
        held, after = trials[best], _left(gram, right, self.error.sum(), step)
        if not (held < self.error[1] and after <= self.error.sum()):
            return self.report("no gain on the samples held back", ridge=best, condition=condition)
        n = len(self.columns)
        self.linear.weight[:, self.columns] += step[:n].T.to(self.linear.weight.dtype)
        if self.linear.bias is not None:
            self.linear.bias.add_(step[n].to(self.linear.bias.dtype))
        return self.report(None, after.item(), held.item(), best, condition)

    def ridged(self, gram: Tensor, ridge: float) -> Tensor:
        """XᵀX + λI, without λ in the row of the bias."""
        n, diagonal = len(self.columns), gram.diagonal()
        unit = diagonal[:n].mean() if n else diagonal.sum()
        shift = torch.full_like(diagonal, 1e-12 * unit.item())
        shift[:n] += ridge * unit
        shift.clamp_(min=torch.finfo(gram.dtype).tiny)  # activations that are all zero move nothing
        return gram + shift.diag()

    def report(
        self,
        declined: str | None,
        after: float | None = None,
        held: float | None = None,
        ridge: float = float("nan"),
        condition: float = float("nan"),
    ) -> Refit:
        """A report with the errors made relative; those that are None are as before."""
        whole, back = (value.item() or float("nan") for value in (self.scale.sum(), self.scale[1]))
        before, held_before = self.error.sum().item(), self.error[1].item()
        errors = (before / whole, (before if after is None else after) / whole)
        errors += (held_before / back, (held_before if held is None else held) / back)
        return Refit(self.layer, self.kind, self.kept, *errors, ridge, condition, declined)


def _solve(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor | None]:
    """D [n, d] that solves the equations, and the Cholesky factor of their matrix; zeros and None if it has none."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return (torch.zeros_like(right), None) if failed else (torch.cholesky_solve(right, factor), factor)


def _left(gram: Tensor, right: Tensor, error: Tensor, step: Tensor) -> Tensor:
    """The squared error that is left after a step D, of XᵀX, XᵀE and |E|² of the same tokens."""
    return (error - 2 * (step * right).sum() + (step * (gram @ step)).sum()).clamp(min=0)


def _condition(matrix: Tensor, factor: Tensor, rounds: int = 20) -> float:
    """The condition number of a positive definite matrix, estimated from below by power iterations on it and on its
    inverse, whose Cholesky factor is given."""
    start = torch.linspace(1, 2, len(matrix), dtype=matrix.dtype, device=matrix.device)[:, None]
    largest = smallest = start / start.norm()
    for _ in range(rounds):
        largest, smallest = matrix @ largest, torch.cholesky_solve(smallest, factor)
        high, low = largest.norm(), smallest.norm()
        largest, smallest = largest / high, smallest / low
    return (high * low).item()
