"""Rescaling: mask values by least squares, so that each pruned sub-layer reproduces what a teacher computes there.

Layer by layer, first heads, then neurons: the kept parts' mask values are multiplied by the scales s that minimise

    |teacher - student(s)|² + ridge · mean(diag G) · |s - 1|²

over all tokens, both sides taken where the sub-layer's output joins the residual stream, and the student's input being
what the already rescaled layers give (Kwon et al., NeurIPS 2022, mask tuning). With A the contributions of the parts
to the output at s = 1, one column for each part and one row for each token and feature, G = AᵀA and Aᵀ(teacher -
student) are all that is needed, and neither needs A: for neurons with activations X [T, n] and output weights W [n, d],
G = (W Wᵀ) ∘ (XᵀX) and Aᵀe = Σ_t X ∘ (e Wᵀ). A head is the block of its head_dim columns: sum over the blocks. Both are
sums over tokens, so batches stream through; layers' inputs wait in a temporary file (`replay.py`), and memory does not
grow with the sample. A batch costs one teacher pass and at most 2⅓ student passes, where the published code makes six.

The ridge pulls scales towards 1, which is what makes a scale of a part that the sample hardly uses stay sane. Since s =
1 is feasible, the optimum is never worse than the mask as given; this is checked, and a sub-layer without gain is left
as it was. Not covered: layers whose sub-layers' outputs are themselves scaled before they join the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lfpr.encoder import PrunableEncoder, mask_rows
from lfpr.layerwise import Call, Replay
from lfpr.masks import Masks
from lfpr.shrink import _evaluating

PUBLISHED_LIMIT = 10.0
_STOPS = "the published code stops here"


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
    """Masks with the `report` of how they were fitted; they are saved as plain `Masks`."""

    report: tuple[SubLayerFit, ...] = ()

    def to(self, *args: Any, **kwargs: Any) -> Rescaled:
        """Both tensors moved or cast as by `torch.Tensor.to`; the report stays as it is."""
        return Rescaled(self.heads.to(*args, **kwargs), self.neurons.to(*args, **kwargs), self.report)

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
    first_token: bool | None = None,
    published: bool = False,
    folder: str | Path | None = None,
) -> Rescaled:
    """`masks` [L, H] and [L, N] with the values of what is kept fitted to the teacher by least squares, and a report
    per sub-layer (mask tuning of Kwon et al., NeurIPS 2022).

    `forward(batch)` runs the module; batches are iterated once, in evaluation mode. `teacher` are the masks of the
    model to reproduce, by default none. `ridge` >= 0 is relative to the mean diagonal of G; where a scale's absolute
    value exceeds `limit` (None for no limit), the ridge is raised tenfold until none does. `tokens(batch)` gives the
    weights [B, S] of the encoder's positions, by default 1 for every token that any token attends to, so that padding
    does not count. With `first_token`, the last layer's FFN is fitted on the first token alone, for classifiers that
    read only that. `folder` is where the temporary file goes.

    `published=True` is the published code, for parity: ridge 1 on the normal equations |G δ - Aᵀe|² + |δ|² instead of
    `ridge`; a constant column beside the heads, dropped afterwards; heads of the first layer left alone; a layer is not
    checked for gain. With a `teacher` it is Kwon et al.'s: the teacher's FFN output is taken before its neuron mask,
    `first_token` is on by default, and everything from the first sub-layer with a scale beyond ±10 on stays binary.
    Without one it is that of the fork for CLIP, which has no limit.

    Raises ValueError for bad arguments, masks or batches (see `replay.Replay`), or NaN activations, naming the layer.
    """
    _check(encoder, masks, teacher, ridge, limit)
    first_token = (published and teacher is not None) if first_token is None else first_token
    if published:
        limit = None if teacher is None else PUBLISHED_LIMIT
    device = encoder.device
    heads, neurons = masks.heads.float().to(device, copy=True), masks.neurons.float().to(device, copy=True)
    report: list[SubLayerFit] = []
    with _evaluating(encoder.module), Replay(encoder, batches, forward, tokens, folder) as replay:
        walk = _Walk(replay, heads, neurons, teacher, published)
        for layer in range(encoder.num_layers):
            for part, mask in (("heads", heads[layer]), ("neurons", neurons[layer])):
                equations = _Equations(encoder, layer, part, mask, constant=published and part == "heads")
                last = first_token and layer == encoder.num_layers - 1 and part == "neurons"
                walk.visit(layer, part, equations, last)
                if published and part == "heads" and layer == 0:
                    fit = equations.declined("the published code leaves the first layer's heads alone")
                elif published:
                    fit = equations.published(limit)
                else:
                    fit = equations.solve(ridge, limit)
                report.append(fit)
                mask[equations.kept] *= fit.scales.to(mask)
                if fit.declined and fit.declined.endswith(_STOPS):
                    return _result(masks, heads, neurons, report)
    return _result(masks, heads, neurons, report)


def _result(given: Masks, heads: Tensor, neurons: Tensor, report: list[SubLayerFit]) -> Rescaled:
    return Rescaled(heads.to(given.heads.device), neurons.to(given.neurons.device), tuple(report))


class _Walk:
    """Takes all calls through the layers, teacher and student side by side, one sub-layer at a time."""

    def __init__(self, replay: Replay, heads: Tensor, neurons: Tensor, teacher: Masks | None, published: bool) -> None:
        self.replay, self.heads, self.neurons = replay, heads, neurons  # the student's masks, changed meanwhile
        self.teacher = teacher and teacher.to(heads.device)
        # the published target lacks the teacher's neuron mask, so it is not what the next layer gets
        self.unmasked = published and teacher is not None
        self.student = [call.x for call in replay.calls]
        self.guide = [replay.spool.put(replay.spool.get(call.x)) for call in replay.calls]
        self.targets = [None] * len(replay.calls)  # the teacher's FFN sums, if they are not in `guide`

    def visit(self, layer: int, part: str, equations: _Equations, first_token: bool) -> None:
        """Add all tokens of one sub-layer to its equations."""
        for number, call in enumerate(self.replay.calls):
            weights = None if call.weights is None else self.replay.spool.get(call.weights)
            if part == "heads":
                pair = self._attention(layer, number, call, equations)
            else:
                pair = self._ffn(layer, number, call) if len(equations.kept) else None
            if pair is None:
                continue
            x, student, target = pair
            if first_token:
                x, student, target = x[:, :1], student[:, :1], target[:, :1]
                weights = None if weights is None else weights[:, :1]
            equations.add(x, student, target, weights)

    def _attention(self, layer: int, number: int, call: Call, equations: _Equations) -> tuple[Tensor, ...] | None:
        replay, spool = self.replay, self.replay.spool
        x = spool.get(self.student[number])
        if layer:  # the layer before has its final masks now
            x = replay.run(layer - 1, call, x, self.heads[layer - 1], self.neurons[layer - 1]).output
            spool.put(x, self.student[number])
        guide = spool.get(self.guide[number])
        mask = (None, None) if self.teacher is None else (self.teacher.heads[layer], self.teacher.neurons[layer])
        run = replay.run(layer, call, guide, *mask)
        spool.put(run.output, self.guide[number])
        if replay.post_norm or self.unmasked:
            target = replay.ffn_sum(run)
            if self.unmasked:
                target = target - run.fed + replay.encoder.parts[layer].ffn_out(run.activation)
            self.targets[number] = spool.put(target, self.targets[number])
        if not len(equations.kept):
            return None
        own = replay.run(layer, call, x, self.heads[layer], None, attention_only=True)
        return own.context, replay.attention_sum(x, own), replay.attention_sum(guide, run)

    def _ffn(self, layer: int, number: int, call: Call) -> tuple[Tensor, ...]:
        x = self.replay.spool.get(self.student[number])
        run = self.replay.run(layer, call, x, self.heads[layer], self.neurons[layer])
        target = self.replay.spool.get(self.targets[number] or self.guide[number])
        return run.activation, self.replay.ffn_sum(run), target


class _Equations:
    """The normal equations of one sub-layer, summed over tokens; products in float32, sums in float64."""

    def __init__(self, encoder: PrunableEncoder, layer: int, part: str, mask: Tensor, constant: bool) -> None:
        self.layer, self.part, self.constant = layer, part, constant
        parts = encoder.parts[layer]
        linear, self.size = (parts.attention_output, parts.head_dim) if part == "heads" else (parts.ffn_out, 1)
        self.kept = mask.nonzero().flatten()
        self.columns = (self.kept[:, None] * self.size + torch.arange(self.size, device=mask.device)).flatten()
        values = mask[self.kept].repeat_interleave(self.size)
        self.weight = linear.weight.float().T[self.columns] * values[:, None]  # [n, d]
        n = len(self.columns)
        self.moments = self.weight.new_zeros(n, n, dtype=torch.float64)  # XᵀX
        self.right = self.weight.new_zeros(n, dtype=torch.float64)  # Aᵀe, per column
        self.sums = self.weight.new_zeros(n, dtype=torch.float64)  # Σ_t X
        self.error = self.scale = self.error_sum = self.rows = 0.0

    def add(self, x: Tensor, student: Tensor, target: Tensor, weights: Tensor | None) -> None:
        """x [B, S, all columns], what the student and the teacher give [B, S, d], weights [B, S]."""
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
        self.error += error.double().square().sum().item()
        self.scale += target.double().square().sum().item()
        if self.constant:
            self.sums += x.double().sum(0)
            self.error_sum += error.double().sum().item()
            self.rows += error.numel()

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
        condition, turned = _condition(values), vectors.T @ right
        usable = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
        while True:
            shift = values.clamp(min=0) + ridge * unit
            step = vectors @ torch.where(usable | (ridge > 0), turned / shift, 0)
            if limit is None or (1 + step).abs().max() <= limit:
                break
            ridge = max(10 * ridge, 1e-6)
        after = self._after(gram, right, step)
        if not after <= self.error:
            return self.declined("no gain", condition, ridge)
        return self._fit(1 + step, after, condition, ridge)

    def published(self, limit: float | None) -> SubLayerFit:
        """The solution of min |G δ - Aᵀe|² + |δ|², as both published frameworks define it."""
        if not len(self.kept):
            return self.declined(f"no {self.part} are kept")
        gram, right = self.normal()
        full, goal = gram, right
        if self.constant:  # a column of ones, which starts at 1 as the scales do
            weight = self.weight.double().sum(1)
            ones = (weight * self.sums).view(len(self.kept), self.size).sum(1).cpu()
            full = torch.cat(
                [torch.cat([gram, ones[:, None]], 1), torch.cat([ones, ones.new_tensor([self.rows])])[None]]
            )
            goal = torch.cat([right - ones, ones.new_tensor([self.error_sum - self.rows])])
        values, vectors = torch.linalg.eigh(full)
        if len(full) == 1:  # a single neuron is solved without damping
            step = goal / full[0]
        else:
            step = (vectors @ (values / (values.square() + 1) * (vectors.T @ goal)))[: len(gram)]
        if limit is not None and (1 + step).abs().max() > limit:
            reached = f"[{1 + step.min().item():.3g}, {1 + step.max().item():.3g}]"
            return self.declined(f"scales in {reached} leave ±{limit:g}: {_STOPS}")
        return self._fit(1 + step, self._after(gram, right, step), _condition(values), 0.0)

    def declined(self, why: str, condition: float = float("nan"), ridge: float = float("nan")) -> SubLayerFit:
        ones = torch.ones(len(self.kept), dtype=torch.float64)
        return self._fit(ones, self.error, condition, ridge, why)

    def _after(self, gram: Tensor, right: Tensor, step: Tensor) -> float:
        return max(0.0, self.error - (2 * right @ step - step @ gram @ step).item())

    def _fit(self, scales: Tensor, after: float, condition: float, ridge: float, why: str | None = None) -> SubLayerFit:
        scale = self.scale or float("nan")
        return SubLayerFit(self.layer, self.part, scales, self.error / scale, after / scale, condition, ridge, why)


def _condition(values: Tensor) -> float:
    return (values[-1] / values[0]).item() if values[0] > 0 else float("inf")


def _check(encoder: PrunableEncoder, masks: Masks, teacher: Masks | None, ridge: float, limit: float | None) -> None:
    for name, given in (("masks", masks), ("teacher", teacher)):
        if given is None and name == "teacher":
            continue
        if not isinstance(given, Masks):
            raise ValueError(f"{name}: expected Masks, found {type(given).__name__}")
        for part, values, widths in (
            ("heads", given.heads, encoder.heads_per_layer),
            ("neurons", given.neurons, encoder.neurons_per_layer),
        ):
            mask_rows(part, values, widths)
            if not values.isfinite().all():
                raise ValueError(f"{name}.{part}: NaN or infinite values")
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge = {ridge}: must be at least 0 and finite")
    if limit is not None and not limit > 1:
        raise ValueError(f"limit = {limit}: must be above 1, or None")
