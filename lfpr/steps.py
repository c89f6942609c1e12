"""Pruning in steps: part of the way, refit, score anew, and on.

One score says what parts are worth beside all others; the more of these go, the less it holds. So the budget is reached
over a geometric sequence of larger ones, `constraint ** (i / steps)` for i = 1 … steps, each searched with scores of
the model as it is then, and each followed by reconstruction (as in iterative magnitude and Fisher pruning).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import nn

from lfpr.checks import check_callable, check_constraint, check_count, check_kind, check_models
from lfpr.cost import LinearCost
from lfpr.encoder import PrunableEncoder
from lfpr.masks import Importance, Masks
from lfpr.oddities import copy_of
from lfpr.reconstruct import Refit, check_options, reconstruct
from lfpr.search import search, search_for
from lfpr.shrink import counterparts, fold, shrink


class Stepwise(NamedTuple):
    """A model pruned in steps: `wide`, with columns of zeros where `masks` are zero, in `part` of it, and `small`,
    without them; what reconstruction did after each step."""

    wide: nn.Module
    part: nn.Module
    masks: Masks
    small: nn.Module
    reports: tuple[tuple[Refit, ...], ...]


def prune_in_steps(
    model: nn.Module,
    cost: LinearCost,
    constraint: float,
    steps: int,
    score: Callable[[PrunableEncoder], Importance],
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    part: nn.Module | None = None,
    find: Callable[[Importance, LinearCost, float], Masks] = search,
    **options: Any,
) -> Stepwise:
    """Prune a copy of `model` in `steps`, refitting its output projections after each.

    `score(encoder)` gives the importance of the copy's encoder, whose removed parts add nothing: their importance must
    come out smallest, as that by gradients does, being zero. `batches()` gives the batches of `reconstruct`, as
    `forward`, `part` and `options` are; `find(importance, cost, constraint)` searches. Raises ValueError for fewer than
    one step, and as `search` and `reconstruct`.
    """
    check_models(model=model, part=part)
    constraint, steps = check_constraint(constraint), check_count("steps", steps, 1)
    for name, function in (("score", score), ("batches", batches), ("forward", forward), ("find", find)):
        check_callable(name, function)
    if find is search:
        search_for(cost)
    check_options(**options)
    wide = copy_of(model)
    _, encoder = counterparts(model, wide, part)
    reports = []
    for step in range(1, steps + 1):
        budget = constraint if step == steps else constraint ** (step / steps)
        masks = find(score(encoder), cost, budget)
        check_kind("find(importance, cost, constraint)", masks, Masks)
        fold(encoder, masks)
        reports.append(reconstruct(model, wide, batches(), forward, part, **options))
    own = encoder.part
    return Stepwise(wide, own, masks, shrink(wide, masks, own), tuple(reports))
