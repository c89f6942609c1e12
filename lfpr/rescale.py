"""Rescaling: mask values by least squares, so that each pruned sub-layer reproduces what a teacher computes there.

Layer by layer, first heads, then neurons: the kept parts' mask values are multiplied by the scales s that minimise

    |teacher - student(s)|² + ridge · mean(diag G) · |s - 1|²

over all tokens, both sides taken where the sub-layer's output joins the residual stream, and the student's input being
what the already rescaled layers give (Kwon et al., NeurIPS 2022, mask tuning). With A the contributions of the parts
to the output at s = 1, one column for each part and one row for each token and feature, G = AᵀA and Aᵀ(teacher -
student) are all that is needed, and neither needs A: for neurons with activations X [T, n] and output weights W [n, d],
G = (W Wᵀ) ∘ (XᵀX) and Aᵀe = Σ_t X ∘ (e Wᵀ). A head is the block of its head_dim columns: sum over the blocks. Both are
sums over tokens, so batches stream through (`lfpr.layerwise`), and memory does not grow with the sample.

The ridge pulls scales towards 1, which is what makes a scale of a part that the sample hardly uses stay sane. Since s =
1 is feasible, the optimum is never worse than the mask as given; this is checked, and a sub-layer without gain is left
as it was. Not covered: layers whose sub-layers' outputs are themselves scaled before they join the residual stream.

Sub-layers that come nearer to the teacher's need not make a model that does: where much is pruned, the whole change of
the mask values can cost what it was to win. So one batch in five is held back, and on it the outputs of the model
choose how much of the change is made, from nothing to all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lfpr.checks import (
    check_above,
    check_at_least,
    check_callable,
    check_flag,
    check_folder,
    check_list,
    check_masks,
    check_number,
    check_run,
    no_empty_batches,
)
from lfpr.encoder import PrunableEncoder
from lfpr.layerwise import Replay, Side, Walk
from lfpr.masks import Masks
from lfpr.modes import evaluating

STEP_SIZES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class SubLayerFit:
    """What rescaling did to the heads or the neurons of one layer.

    `before` and `after` are the squared error over all tokens, as a share of the teacher's squared output, with the
    mask as given and as returned (NaN where nothing is kept); `condition` that of G (infinite if singular); `ridge` the
    one used. `declined` says why the sub-layer was left as it was, its `scales` [kept] all 1; None if it was rescaled.
    """

    layer: int
    part: str  # "heads" or "neurons"
    scales: Tensor
    before: float
    after: float
    condition: float
    ridge: float
    declined: str | None = None


@dataclass(frozen=True, eq=False)
class Rescaled(Masks):
    """Masks with the `report` of how they were fitted, and the `step_size`, how much of that change was made; they are
    saved as plain `Masks`. `errors`, by step size: the squared difference of the model's outputs to the teacher's on
    what was held back, as a share of that of the smallest step; empty if there was nothing to choose from."""

    report: tuple[SubLayerFit, ...] = ()
    step_size: float = 1.0
    errors: Mapping[float, float] = field(default_factory=dict)

    def to(self, *args: Any, **kwargs: Any) -> Rescaled:
        """Both tensors moved or cast as by `torch.Tensor.to`; what is said of them stays as it is."""
        return replace(self, heads=self.heads.to(*args, **kwargs), neurons=self.neurons.to(*args, **kwargs))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all, that `Masks.load` reads: without the report."""
        Masks(self.heads, self.neurons).save(path)


@torch.no_grad()
def rescale(
    encoder: PrunableEncoder,
    masks: Masks,
    batches: Iterable[Any],
    forward: Callable[[Any], Any],
    teacher: Masks | None = None,
    ridge: float = 0.1,
    limit: float | None = 10.0,
    tokens: Callable[[Any], Tensor] | None = None,
    first_token: bool = False,
    folder: str | Path | None = None,
    step_sizes: Sequence[float] = STEP_SIZES,
) -> Rescaled:
    """`masks` [L, H] and [L, N] with the values of what is kept fitted to the teacher by least squares, and a report
    per sub-layer (mask tuning of Kwon et al., NeurIPS 2022).

    `forward(batch)` runs the module, in evaluation mode, and returns what it is to reproduce, tensors; batches are
    iterated once. By these outputs on one batch in five (or the only one), which is not fitted, one of `step_sizes`, 0
    to 1, is chosen; a single one needs no choice, and takes all batches to fit. `teacher` are the masks of the
    model to reproduce, by default none. `ridge` >= 0 is relative to the mean diagonal of G; where a scale's absolute
    value exceeds `limit` (None for no limit), the ridge is raised tenfold until none does. `tokens(batch)` gives the
    weights [B, S] of the encoder's positions, by default 1 for every token that any token attends to, so that padding
    does not count. With `first_token`, the last layer's FFN is fitted on the first token alone, for classifiers that
    read only that. `folder` is where the temporary file goes.

    Raises ValueError for bad arguments, masks or batches (see `layerwise.Replay`), or NaN activations, naming the
    layer.
    """
    check_rescale(encoder, masks, batches, forward, teacher, tokens, folder)
    check_flag("first_token", first_token)
    ridge, limit = (
        check_at_least("ridge", ridge),
        None if limit is None else check_above("limit", limit, 1, finite=False),
    )
    sizes = sorted(set(check_list("step_sizes", step_sizes, _check_size)))
    student, teacher_side = sides(encoder, masks, teacher)
    start = Masks(student.masks.heads.clone(), student.masks.neurons.clone())

    def giving(batch: Any) -> Any:
        output = forward(batch)
        if len(sizes) > 1 and not _outputs(output):
            raise ValueError(
                f"forward: expected to return the model's outputs, tensors, found {type(output).__name__}: one of "
                "step_sizes is chosen by them; step_sizes=[1] needs none"
            )
        return output

    with (
        evaluating(encoder.module),
        no_empty_batches(encoder),
        Replay(encoder, batches, giving, tokens, folder, len(sizes) > 1) as replay,
    ):
        walk = Walk(replay, student, teacher_side, masked(student, forward))
        report = tuple(fit_masks(walk, lambda equations: equations.solve(ridge, limit), first_token))
        trials = {size: _between(start, student.masks, size) for size in sizes}
        errors = _errors(replay, giving, trials, teacher_side.masks) if len(sizes) > 1 else {}
    best = min(sizes, key=errors.__getitem__) if errors else sizes[0]
    unit = errors.get(sizes[0]) or 1.0
    found = rescaled(Side(encoder, trials[best]), report, masks)
    return replace(found, step_size=best, errors={size: error / unit for size, error in errors.items()})


def _check_size(name: str, value: Any) -> float:
    return check_number(name, value, "from 0 to 1", lambda size: 0 <= size <= 1)


def _between(start: Masks, end: Masks, size: float) -> Masks:
    """Masks a share of the way from `start` to `end`."""
    return Masks(*(torch.lerp(*pair, size) for pair in ((start.heads, end.heads), (start.neurons, end.neurons))))


def _errors(
    replay: Replay, forward: Callable[[Any], Any], trials: Mapping[float, Masks], teacher: Masks | None
) -> dict[float, float]:
    """By the key of the masks tried, how far the model's outputs are from the teacher's on what was held back."""
    errors = dict.fromkeys(trials, 0.0)
    for held in replay.held:
        weights = [replay.spool.get(slot) for slot in held.weights if slot is not None]
        with replay.encoder.masked(teacher) if teacher else nullcontext():
            goals = _outputs(forward(held.batch()))
        for size, masks in trials.items():
            with replay.encoder.masked(masks):
                found = _outputs(forward(held.batch()))
            errors[size] += sum(_gap(*pair, weights) for pair in zip(goals, found, strict=True))
    if not all(map(math.isfinite, errors.values())):
        raise ValueError("forward: NaN or infinite outputs on the batches held back")
    return errors


def _gap(goal: Tensor, found: Tensor, weights: list[Tensor]) -> float:
    """The squared difference of two outputs [B, ...]; where they are of tokens [B, S, ...], by their weights."""
    gap = (goal.double() - found.double()).masked_fill(goal == found, 0).square()  # infinite logits are equal
    of_tokens = next((each for each in weights if each.shape == gap.shape[:2]), None)
    if of_tokens is not None:
        of_tokens = of_tokens.to(gap).view(*gap.shape[:2], *[1] * (gap.ndim - 2))
        gap = gap.masked_fill(of_tokens == 0, 0) * of_tokens
    return gap.sum().item()


def _outputs(tree: Any) -> list[Tensor]:
    """The floating tensors of what a model gives: tensors, or mappings, lists and tuples of them."""
    if isinstance(tree, Tensor):
        return [tree] if tree.is_floating_point() else []
    items = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for item in items for tensor in _outputs(item)]


def sides(encoder: PrunableEncoder, masks: Masks, teacher: Masks | None) -> tuple[Side, Side]:
    """Student and teacher, their masks on the encoder's device; the student's are a copy in float32."""
    heads, neurons = (part.float().to(encoder.device, copy=True) for part in (masks.heads, masks.neurons))
    return Side(encoder, Masks(heads, neurons)), Side(encoder, teacher and teacher.to(encoder.device))


def masked(student: Side, forward: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Runs a student that is an encoder under masks, as they are then."""

    def run(batch: Any) -> Any:
        with student.encoder.masked(student.masks):
            return forward(batch)

    return run


def fit_masks(
    walk: Walk, fit: Callable[[Equations], SubLayerFit], first_token: bool, equations: type[Equations] | None = None
) -> Iterator[SubLayerFit]:
    """Walk through all sub-layers, multiply the student's masks by the scales that `fit` finds, and yield each fit."""
    encoder, masks = walk.student.encoder, walk.student.masks
    for layer, part in walk.sub_layers():
        mask = getattr(masks, part)[layer]
        system = (equations or Equations)(encoder, layer, part, mask)
        only_first = first_token and layer == len(encoder.ffns) - 1 and part == "neurons"
        walk.visit(layer, part, system.add if len(system.kept) else None, only_first)
        result = fit(system)
        mask[system.kept] *= result.scales.to(mask)
        yield result


def rescaled(student: Side, report: tuple[SubLayerFit, ...], masks: Masks) -> Rescaled:
    """The student's masks where `masks` were, with the report."""
    return Rescaled(student.masks.heads.to(masks.heads.device), student.masks.neurons.to(masks.neurons.device), report)


class Equations:
    """The normal equations of one sub-layer, summed over tokens; products in float32, sums in float64."""

    def __init__(self, encoder: PrunableEncoder, layer: int, part: str, mask: Tensor) -> None:
        self.layer, self.part = layer, part
        row = (encoder.attentions if part == "heads" else encoder.ffns)[layer]
        linear, self.size = row.output, row.size
        self.kept = mask.nonzero().flatten()
        self.columns = (self.kept[:, None] * self.size + torch.arange(self.size, device=mask.device)).flatten()
        values = mask[self.kept].repeat_interleave(self.size)
        self.weight = linear.weight.float().T[self.columns] * values[:, None]  # [n, d]
        n = len(self.columns)
        self.moments = self.weight.new_zeros(n, n, dtype=torch.float64)  # XᵀX
        self.right = self.weight.new_zeros(n, dtype=torch.float64)  # Aᵀe, per column
        self.error, self.scale = self.right.new_zeros(2)  # squared, of the student and of the teacher

    def add(self, x: Tensor, student: Tensor, target: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add tokens: x [B, S, all columns], what student and teacher give [B, S, d], weights [B, S]. Returns the
        columns of what is kept [T, n] and the error [T, d] of the T tokens that count."""
        x, target = x.flatten(0, 1).float(), target.flatten(0, 1).float()
        error = target - student.flatten(0, 1).float()
        if weights is not None:
            weights = weights.flatten()
            rows = weights.nonzero().flatten()
            root = weights[rows].sqrt()[:, None]
            x, error, target = x[rows] * root, error[rows] * root, target[rows] * root
        x = x[:, self.columns]
        self.moments += x.T @ x
        self.right += ((error @ self.weight.T) * x).double().sum(0)
        self.error = self.error + error.double().square().sum()
        self.scale = self.scale + target.double().square().sum()
        return x, error

    def normal(self) -> tuple[Tensor, Tensor]:
        """G [k, k] and Aᵀe [k] over kept heads or neurons, on the CPU."""
        if not (self.moments.isfinite().all() and self.right.isfinite().all()):
            raise ValueError(f"layer {self.layer}: NaN or infinite activations at its {self.part}")
        weight, k = self.weight.double(), len(self.kept)
        gram = ((weight @ weight.T) * self.moments).view(k, self.size, k, self.size).sum((1, 3))
        return gram.cpu(), self.right.view(k, self.size).sum(1).cpu()

    def solve(self, ridge: float, limit: float | None) -> SubLayerFit:
        """Scales within ±limit that minimise the error with a ridge towards 1."""
        if not len(self.kept):
            return self.declined(f"no {self.part} are kept")
        gram, right = self.normal()
        unit = gram.diagonal().mean().item()
        if not unit > 0:
            return self.declined(f"the kept {self.part} contribute nothing")
        values, vectors = torch.linalg.eigh(gram)
        condition, turned = condition_number(values), vectors.T @ right
        usable = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
        while True:
            shift = values.clamp(min=0) + ridge * unit
            step = vectors @ torch.where(usable | (ridge > 0), turned / shift, 0)
            if limit is None or (1 + step).abs().max() <= limit:
                break
            ridge = max(10 * ridge, 1e-6)
        after = self.after(gram, right, step)
        if not after <= self.error.item():
            return self.declined("no gain", condition, ridge)
        return self.fit(1 + step, after, condition, ridge)

    def declined(self, why: str, condition: float = float("nan"), ridge: float = float("nan")) -> SubLayerFit:
        """The fit that leaves the sub-layer as it is."""
        ones = torch.ones(len(self.kept), dtype=torch.float64, device="cpu")
        return self.fit(ones, self.error.item(), condition, ridge, why)

    def after(self, gram: Tensor, right: Tensor, step: Tensor) -> float:
        """The squared error at scales of 1 + `step`."""
        return max(0.0, self.error.item() - (2 * right @ step - step @ gram @ step).item())

    def fit(self, scales: Tensor, after: float, condition: float, ridge: float, why: str | None = None) -> SubLayerFit:
        """A fit with its errors made relative."""
        scale = self.scale.item() or float("nan")
        before = self.error.item() / scale
        return SubLayerFit(self.layer, self.part, scales, before, after / scale, condition, ridge, why)


def condition_number(values: Tensor) -> float:
    """Of a matrix by its eigenvalues, the smallest first; infinite if it is singular."""
    return (values[-1] / values[0]).item() if values[0] > 0 else float("inf")


def check_rescale(
    encoder: Any, masks: Any, batches: Any, forward: Any, teacher: Any = None, tokens: Any = None, folder: Any = None
) -> None:
    """ValueError for arguments that no rescaling takes."""
    check_run(encoder, batches, forward=forward)
    check_masks("masks", masks, encoder)
    if teacher is not None:
        check_masks("teacher", teacher, encoder)
    check_callable("tokens", tokens, optional=True)
    check_folder("folder", folder)
