"""Mask search under a measured latency, where the cost of a layer is a table and not a sum over its parts.

A sub-layer of a given width keeps its most important parts, so what is left to choose is one width for each sub-layer:
a knapsack with multiple choice. Narrow sub-layers cost as much as somewhat wider ones, so some are best dropped whole.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lfpr.checks import BudgetError, check_constraint, check_kind, check_widths
from lfpr.latency.cost import LatencyCost
from lfpr.masks import Importance, Masks
from lfpr.search import keep, positive, register

BINS = 4096  # units that the budget is divided into


def search_latency(
    importance: Importance,
    cost: LatencyCost,
    constraint: float,
    multiple_of: int = 1,
    min_heads: int = 0,
    min_neurons: int = 0,
) -> Masks:
    """As `search`, under a measured latency: each sub-layer of each layer may have any width, or be dropped whole.

    Solved by dynamic programming over the budget (beyond what the smallest widths cost) in 4096 units, latencies
    rounded up: total importance is at least the best within the budget less one unit for each sub-layer. What rounding
    leaves over is spent. Never over the constraint by the table. Raises as `search`, and ValueError for importance of
    another shape than the table's.
    """
    constraint, *parts = checked_importance(importance, cost, constraint)
    multiple_of, min_heads, min_neurons = check_widths(importance, multiple_of, min_heads, min_neurons)
    options, costs, values = [], [], []
    for part, table, least, step in (
        (parts[0], cost.attention, min_heads, 1),
        (parts[1], cost.ffn, -(-min_neurons // multiple_of) * multiple_of, multiple_of),
    ):
        widths = np.arange(least, len(table), step)
        for row in part:
            options.append(widths)
            costs.append(table[widths])
            values.append(np.concatenate([[0.0], np.sort(row)[::-1].cumsum()])[widths])
    smallest = sum(c.min() for c in costs) / cost.full
    if smallest > constraint:
        raise BudgetError(constraint, smallest, "latency")

    def kept(selected: list[int]) -> list[int]:
        return [int(widths[i]) for widths, i in zip(options, selected, strict=True)]

    def fits(selected: list[int]) -> bool:
        widths = kept(selected)
        return cost.of(widths[: cost.num_layers], widths[cost.num_layers :]) / cost.full <= constraint

    budget = constraint * cost.full
    selected = kept(_spend(_allocate(costs, values, budget), costs, values, budget, fits))
    indices = []
    for part, widths in ((parts[0], selected[: cost.num_layers]), (parts[1], selected[cost.num_layers :])):
        best = np.argsort(-part, axis=1, kind="stable") + np.arange(cost.num_layers)[:, None] * part.shape[1]
        indices.append(np.concatenate([row[:width] for row, width in zip(best, widths, strict=True)]))
    return keep(importance, *indices)


register(LatencyCost, search_latency)


def checked_importance(
    importance: Importance, cost: LatencyCost, constraint: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """The constraint, and importance of heads [L, H] and neurons [L, N] as float64, after all is checked that any
    search needs."""
    check_kind("importance", importance, Importance)
    check_kind("cost", cost, LatencyCost)
    constraint = check_constraint(constraint)
    for name, part, table in (("heads", importance.heads, cost.attention), ("neurons", importance.neurons, cost.ffn)):
        if part.shape != (cost.num_layers, len(table) - 1):
            expected = (cost.num_layers, len(table) - 1)
            raise ValueError(f"importance.{name}: shape {tuple(part.shape)}, the latency table is for {expected}")
    return constraint, positive("heads", importance.heads), positive("neurons", importance.neurons)


def _allocate(costs: list[np.ndarray], values: list[np.ndarray], budget: float) -> list[int]:
    """For each group, the option to take for the largest total value within the budget, costs rounded up to units."""
    left = budget - sum(c.min() for c in costs)
    best, picks, units = np.zeros(BINS + 1), [], []
    for cost, value in zip(costs, values, strict=True):
        extra = cost - cost.min()
        unit = np.ceil(extra * (BINS / left)) if left > 0 else np.where(extra > 0, BINS + 1, 0)
        unit = np.minimum(unit, BINS + 1).astype(np.int64)
        reached, pick = np.full(BINS + 1, -np.inf), np.zeros(BINS + 1, np.int64)
        # an option that costs no less than a later one, which is worth as much or more, is never better
        later = np.concatenate([np.minimum.accumulate(unit[::-1])[::-1][1:], [BINS + 1]])
        for i in np.flatnonzero(unit < later):
            candidate = best[: BINS + 1 - unit[i]] + value[i]
            better = candidate > reached[unit[i] :]
            np.copyto(reached[unit[i] :], candidate, where=better)
            np.copyto(pick[unit[i] :], i, where=better)
        best = reached
        picks.append(pick)
        units.append(unit)
    selected, rest = [], BINS
    for pick, unit in zip(reversed(picks), reversed(units), strict=True):
        selected.append(int(pick[rest]))
        rest -= int(unit[selected[-1]])
    return selected[::-1]


def _spend(
    selected: list[int],
    costs: list[np.ndarray],
    values: list[np.ndarray],
    budget: float,
    fits: Callable[[list[int]], bool],
) -> list[int]:
    """Take options of more value while the budget allows one, each time the one that gains most."""
    while True:
        best, gain = None, 0.0
        left = budget * (1 + 1e-12) - sum(c[i] for c, i in zip(costs, selected, strict=True))  # `fits` is exact
        for group, (cost, value) in enumerate(zip(costs, values, strict=True)):
            now = selected[group]
            for option in np.flatnonzero((cost - cost[now] <= left) & (value > value[now] + gain))[-2:]:
                moved = [*selected[:group], int(option), *selected[group + 1 :]]
                if fits(moved):
                    best, gain = moved, value[option] - value[now]
        if best is None:
            return selected
        selected = best
