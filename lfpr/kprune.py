"""K-prune: masks and weights found together, one sub-layer after the other, so that a model keeps what it knows.

In each of 2L rounds, from the first attention to the last FFN,

1. all heads and neurons from this sub-layer on are scored on the model as it is then, by what they know:
   - predictive, ½ Σ_batches (∂KL/∂mask)² / rows, KL being T² times the mean divergence of the student's predictions,
     softened by a temperature T, from the teacher's, and masks being per feature (input of the output projection);
   - representational, the mean over tokens of x² · mean(w²), for a feature x and its column w of the projection;
   - score = (λ_pred · predictive + λ_rep · representational) / cost of the part, a head's the features' mean times μ;
2. one threshold on these scores spends what is left of the budget, and decides on this sub-layer alone;
3. the kept columns of its output projection are solved by least squares, ΔW = (XᵀX)⁻¹ Xᵀ(teacher - student), taken
   where its output joins the residual stream: it makes up for all that was pruned so far.

In the first round there is no divergence yet. Park, Choi and Kang, "Accurate retraining-free pruning for pretrained
encoder-based language models", ICLR 2024 (arXiv 2308.03449), on 100,000 tokens. As there, no ridge and no held-back
data guard the least squares, and where they have no single solution (fewer tokens than features) the weights stay.
Unlike there, the budget may be met exactly, and nothing goes if all fits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lfpr.checks import (
    BudgetError,
    check_above,
    check_at_least,
    check_batches,
    check_callable,
    check_constraint,
    check_folder,
    check_kind,
    check_list,
    check_models,
    check_number,
    no_empty_batches,
    settle,
)
from lfpr.cost import LinearCost
from lfpr.encoder import PrunableEncoder
from lfpr.gradients import collect_gradients
from lfpr.importance import activation_importance, watched
from lfpr.layerwise import Replay, Side, Slot, Walk
from lfpr.masks import Masks
from lfpr.modes import evaluating
from lfpr.oddities import check_one_stack, copy_of
from lfpr.shrink import counterparts, shrink


@dataclass(frozen=True)
class KPrune:
    """Settings, by default those of the published run: `temperature` T, λ_pred `predictive`, λ_rep `representational`
    and μ `heads`. Published results tune all but the temperature for each task: see `tune`."""

    temperature: float = 2.0
    predictive: float = 1.0
    representational: float = 2.5e-4
    heads: float = 64.0

    def __post_init__(self) -> None:
        settle(self, check_above, "temperature", "heads")
        settle(self, check_above, "representational")  # without these, the first round would know nothing
        settle(self, check_at_least, "predictive")


CANDIDATES = tuple(KPrune(representational=rep, heads=mu) for mu in (1, 8, 64) for rep in (2.5e-5, 2.5e-4, 2.5e-3))


@dataclass(frozen=True)
class KPruneRound:
    """What one round did. `part` is "heads" or "neurons", `kept` how many of them; `threshold` what their scores
    exceed, -inf if all that was left fits. `before` and `after` the least squares: the squared error over all tokens,
    as a share of the teacher's squared output. `declined` says why the weights were left alone, else None."""

    layer: int
    part: str
    kept: int
    threshold: float
    before: float
    after: float
    declined: str | None = None


@torch.no_grad()
def kprune(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Tensor],
    cost: LinearCost,
    constraint: float,
    settings: KPrune = KPrune(),
    part: nn.Module | None = None,
    folder: str | Path | None = None,
) -> tuple[nn.Module, Masks, tuple[KPruneRound, ...]]:
    """A pruned copy of `model` that costs at most `constraint`, its 0/1 masks [L, H] and [L, N], and its 2L rounds.

    `forward(model, batch)` runs a model and gives logits [rows, classes]; of classes that cannot be predicted they may
    be -1e4 or -inf. `batches` are iterated often and must be the same each time, as those of a list are; models run in
    evaluation mode. Tokens that no token attends to are padding and do not count. `part` is a submodule of `model` that
    says which encoder is meant, where there are several; `folder` is where the temporary file goes. Raises ValueError
    for bad arguments, batches (see `layerwise.Replay`), logits or activations, and `BudgetError` as `search` does.
    """
    constraint = _check(model, batches, forward, cost, constraint, part, folder)
    check_kind("settings", settings, KPrune)
    pruned = copy_of(model)
    encoder, student = counterparts(model, pruned, part)
    check_one_stack(encoder, "kprune")
    masks, rounds, spent = Masks.ones(encoder), [], cost.fixed
    cost.check("model", masks)
    with (
        evaluating(model, pruned),
        no_empty_batches(encoder),
        Replay(encoder, batches, lambda b: forward(model, b), folder=folder) as replay,
    ):
        walk, logits = Walk(replay, Side(student), Side(encoder)), []  # the teacher's
        for batch in batches:
            divergence(found := forward(model, batch), found)  # raises for anything but logits
            logits.append(replay.spool.put(found))

        def objective(pair: tuple[Slot, Any]) -> Tensor:
            return divergence(replay.spool.get(pair[0]), forward(pruned, pair[1]), settings.temperature).mean()

        for number, (layer, name) in enumerate(walk.sub_layers()):
            features = _features(student, layer)
            slopes = None  # in the first round the student is the teacher: no divergence
            if number and settings.predictive:
                with watched(features) as seen:  # what is represented, in the same passes
                    slopes = collect_gradients(features, zip(logits, batches, strict=True), objective).importance()
                known = seen()
            else:
                known = activation_importance(features, batches, lambda b: forward(pruned, b))
            unit = settings.representational / student.hidden_size  # a mean over outputs, not a sum
            heads, neurons = known.heads * unit, known.neurons * unit
            if slopes is not None:
                unit = settings.predictive / 2 / sum(slot.shape[0] for slot in logits)
                heads, neurons = heads + slopes.heads * unit, neurons + slopes.neurons * unit
            heads = heads.unflatten(1, (-1, student.head_dim)).mean(2) * settings.heads / cost.head
            scores, costs = [heads[number % 2 :], neurons / cost.neuron], [cost.head, cost.neuron]  # not decided yet
            bound = threshold(scores, costs, spent, cost.full, constraint)
            kept = scores[number % 2][0] > bound
            spent += int(kept.sum()) * costs[number % 2]
            getattr(masks, name)[layer] = kept
            system = _LeastSquares(student, layer, name, kept)
            walk.visit(layer, name, system.add)
            rounds.append(KPruneRound(layer, name, int(kept.sum()), bound, *system.solve()))
    return shrink(pruned, masks, student.part), masks, tuple(rounds)


def tune(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Tensor],
    cost: LinearCost,
    constraint: float,
    candidates: Sequence[KPrune] = CANDIDATES,
    held_back: float = 0.2,
    part: nn.Module | None = None,
    folder: str | Path | None = None,
) -> tuple[KPrune, tuple[tuple[KPrune, float], ...]]:
    """The settings whose pruned model predicts most like `model` on batches that pruning has not seen, and for each
    candidate the mean divergence KL(teacher || student) there. Give it training data: no labels are needed. The last
    `held_back` of the batches, a share in (0, 1), are held back; each candidate is a `kprune` on the others. Raises as
    that, and ValueError for too few batches or candidates, or if no divergence is finite.
    """
    check_batches("batches", batches)
    batches = list(batches)
    _check(model, batches, forward, cost, constraint, part, folder)
    candidates = check_list(
        "candidates", candidates, lambda name, value: check_kind(name, value, KPrune), 1, "settings"
    )
    allowed = f"in (0, 1) and leave some of the {len(batches)} batches"
    held_back = check_number("held_back", held_back, allowed, lambda share: 0 < share < 1)
    first = len(batches) - math.ceil(held_back * len(batches))
    check_number("held_back", held_back, allowed, lambda _: first > 0)
    table = []
    for settings in candidates:
        small, _, _ = kprune(model, batches[:first], forward, cost, constraint, settings, part, folder)
        with evaluating(model, small), torch.no_grad():
            values = torch.cat([divergence(forward(model, b), forward(small, b)) for b in batches[first:]])
        table.append((settings, values.mean().item()))
    best = min(table, key=lambda row: math.inf if math.isnan(row[1]) else row[1])
    if not math.isfinite(best[1]):
        raise ValueError(f"candidates: none of {len(table)} has a finite divergence")
    return best[0], tuple(table)


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """temperature² · KL(teacher || student) of softened predictions for each row of logits [rows, classes]: [rows]. A
    logit of -inf is a probability of 0. Raises ValueError for other shapes, and a temperature that is not above 0."""
    temperature = check_above("temperature", temperature)
    for logits in (teacher, student):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else (type(logits).__name__,)
        if len(shape) != 2 or 0 in shape or shape != tuple(teacher.shape):
            raise ValueError(f"forward: expected logits [rows, classes], the same shape each time, found {shape}")
    p, q = ((logits.float() / temperature).log_softmax(1) for logits in (teacher, student))
    return torch.where(p.exp() == 0, 0.0, p.exp() * (p - q)).sum(1) * temperature**2  # 0 · inf would be NaN


def threshold(scores: list[Tensor], costs: list[int], spent: int, full: int, constraint: float) -> float:
    """The smallest score, or -inf, such that all parts with larger ones fit, and equal ones go together. `costs` are
    those of a part of each tensor of scores; `spent` is what is already used of `constraint` · `full`."""
    values, order = torch.cat([part.flatten() for part in scores]).sort()
    each = torch.cat(
        [torch.full((part.numel(),), price, device=part.device) for part, price in zip(scores, costs, strict=True)]
    )[order]
    bounds = torch.cat([values.new_full((1,), -math.inf), values])
    dropped = torch.cat([each.new_zeros(1), each.cumsum(0)])[torch.searchsorted(values, bounds, right=True)]
    return bounds[(spent + each.sum() - dropped).double() / full <= constraint][0].item()


def _features(encoder: PrunableEncoder, first: int) -> PrunableEncoder:
    """The encoder from layer `first` on as if each head were of one feature: masks and scores are then per feature."""
    view = copy.copy(encoder)
    view.layers, view.parts, view.ffns = encoder.layers[first:], encoder.parts[first:], encoder.ffns[first:]
    view.attentions = [copy.copy(part) for part in encoder.attentions[first:]]
    for part in view.attentions:
        part.count, part.size = part.count * part.size, 1
    view.num_layers, view.head_dim = len(view.parts), 1
    view.heads_per_layer = [part.count for part in view.attentions]
    view.neurons_per_layer = encoder.neurons_per_layer[first:]
    return view


class _LeastSquares:
    """Normal equations of the `kept` columns of an output projection; its other columns become zero. In float64: there
    is no ridge, and float32 products of activations that nearly depend on each other would be noise."""

    def __init__(self, encoder: PrunableEncoder, layer: int, part: str, kept: Tensor) -> None:
        self.layer, self.part = layer, part
        linear, size = encoder.parts[layer].projection(part)
        self.weight, kept = linear.weight, kept.repeat_interleave(size).to(encoder.device)
        self.weight[:, ~kept] = 0
        self.columns = kept.nonzero().flatten()
        n = len(self.columns)
        self.moments = self.weight.new_zeros(n, n, dtype=torch.float64)  # XᵀX
        self.right = self.moments.new_zeros(n, len(self.weight))  # Xᵀ(teacher - student)
        self.squares = self.moments.new_zeros(2)  # of the error and of the teacher's output

    def add(self, x: Tensor, student: Tensor, target: Tensor, weights: Tensor | None) -> None:
        """Add the tokens of one call, as `Walk.visit` gives them."""
        rows = slice(None) if weights is None else weights.flatten().nonzero().flatten()
        x, student, target = (value.flatten(0, 1)[rows] for value in (x, student, target))
        x, target, error = x[:, self.columns].double(), target.double(), target.double() - student.double()
        self.moments += x.T @ x
        self.right += x.T @ error
        self.squares += torch.stack([error.square().sum(), target.square().sum()])

    def solve(self) -> tuple[float, float, str | None]:
        """Set the weights. Relative squared errors before and after that, and why the weights were left alone."""
        if not (self.moments.isfinite().all() and self.right.isfinite().all()):
            raise ValueError(f"layer {self.layer}: NaN or infinite activations at its {self.part}")
        before, n = (self.squares[0] / self.squares[1]).item(), len(self.columns)
        if not n:
            return before, before, f"no {self.part} are kept"
        factor, failed = torch.linalg.cholesky_ex(self.moments)
        alone = factor.diagonal().square() / self.moments.diagonal()  # share of a feature that those before do not tell
        if failed or not alone.min() > n * torch.finfo(alone.dtype).eps:
            return before, before, "the normal equations are singular"
        step = torch.cholesky_solve(self.right, factor)  # [n, d]
        self.weight[:, self.columns] += step.T.to(self.weight.dtype)
        return before, max(0.0, before - ((step * self.right).sum() / self.squares[1]).item()), None


def _check(model: Any, batches: Any, forward: Any, cost: Any, constraint: Any, part: Any, folder: Any) -> float:
    """The constraint. Raises for arguments that `kprune` cannot take."""
    check_models(model=model, part=part)
    check_batches("batches", batches, often=True)
    check_callable("forward", forward)
    check_kind("cost", cost, LinearCost)
    check_folder("folder", folder)
    constraint = check_constraint(constraint)
    if cost.fixed / cost.full > constraint:
        raise BudgetError(constraint, cost.fixed / cost.full, cost.unit)
    return constraint
