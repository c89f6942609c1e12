"""Mask search under a measured latency, where the cost of a layer is a table and not a sum over its parts.

A sub-layer of a given width keeps its most important parts, so what is left to choose is one width for each sub-layer:
a knapsack with multiple choice. Narrow sub-layers cost as much as somewhat wider ones, so some are best dropped whole.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lfpr.latency.cost import LatencyCost, fit_plateau
from lfpr.masks import Importance, Masks
from lfpr.search import BudgetError, check_constraint, check_widths, keep, positive

BINS = 4096  # units that the budget is divided into


def search_latency(
    importance: Importance,
    cost: LatencyCost,
    constraint: float,
    published: bool | None = None,
    multiple_of: int = 1,
    min_heads: int = 0,
    min_neurons: int = 0,
) -> Masks:
    """As `search`, under a measured latency: each sub-layer of each layer may have any width, or be dropped whole.

    Solved by dynamic programming over the budget (beyond what the smallest widths cost) in 4096 units, latencies
    rounded up: total importance is at least the best within the budget less one unit for each sub-layer. What rounding
    leaves over is spent. Never over the constraint by the table. Raises as `search`, and ValueError for scores of
    another shape than the table's.

    `published` follows the code of Kwon et al. (NeurIPS 2022): fitted plateaus instead of the table, which the result
    can exceed; layers dropped in order of importance; and its budget, which shrinks with each combination it tries.
    """
    check_constraint(constraint)
    for name, scores, table in (("heads", importance.heads, cost.attention), ("neurons", importance.neurons, cost.ffn)):
        if scores.shape != (cost.num_layers, len(table) - 1):
            expected = (cost.num_layers, len(table) - 1)
            raise ValueError(f"importance.{name}: shape {tuple(scores.shape)}, the latency table is for {expected}")
    published = cost.published if published is None else published
    check_widths(importance, published, multiple_of, min_heads, min_neurons)
    scores = (positive("heads", importance.heads), positive("neurons", importance.neurons))
    if published:
        return keep(importance, *_published_latency(*scores, cost, constraint))
    options, costs, values = [], [], []
    for part, table, least, step in (
        (scores[0], cost.attention, min_heads, 1),
        (scores[1], cost.ffn, -(-min_neurons // multiple_of) * multiple_of, multiple_of),
    ):
        widths = np.arange(least, len(table), step)
        for row in part:
            options.append(widths)
            costs.append(table[widths])
            values.append(np.concatenate([[0.0], np.sort(row)[::-1].cumsum()])[widths])
    smallest = sum(c.min() for c in costs) / cost.full
    if smallest > constraint:
        raise BudgetError(constraint, smallest, "latency")

    def kept(chosen: list[int]) -> list[int]:
        return [int(widths[i]) for widths, i in zip(options, chosen, strict=True)]

    def fits(chosen: list[int]) -> bool:
        widths = kept(chosen)
        return cost.of(widths[: cost.num_layers], widths[cost.num_layers :]) / cost.full <= constraint

    chosen = kept(_spend(_allocate(costs, values, constraint * cost.full), costs, values, constraint * cost.full, fits))
    indices = []
    for part, widths in ((scores[0], chosen[: cost.num_layers]), (scores[1], chosen[cost.num_layers :])):
        best = np.argsort(-part, axis=1, kind="stable") + np.arange(cost.num_layers)[:, None] * part.shape[1]
        indices.append(np.concatenate([row[:width] for row, width in zip(best, widths, strict=True)]))
    return keep(importance, *indices)


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
    chosen, rest = [], BINS
    for pick, unit in zip(reversed(picks), reversed(units), strict=True):
        chosen.append(int(pick[rest]))
        rest -= int(unit[chosen[-1]])
    return chosen[::-1]


def _spend(
    chosen: list[int],
    costs: list[np.ndarray],
    values: list[np.ndarray],
    budget: float,
    fits: Callable[[list[int]], bool],
) -> list[int]:
    """Take options of more value while the budget allows one, each time the one that gains most."""
    while True:
        best, gain = None, 0.0
        left = budget * (1 + 1e-12) - sum(c[i] for c, i in zip(costs, chosen, strict=True))  # `fits` is exact
        for group, (cost, value) in enumerate(zip(costs, values, strict=True)):
            now = chosen[group]
            for option in np.flatnonzero((cost - cost[now] <= left) & (value > value[now] + gain))[-2:]:
                moved = [*chosen[:group], int(option), *chosen[group + 1 :]]
                if fits(moved):
                    best, gain = moved, value[option] - value[now]
        if best is None:
            return chosen
        chosen = best


def _published_latency(
    heads: np.ndarray, neurons: np.ndarray, cost: LatencyCost, constraint: float
) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the heads and neurons that the published latency search keeps."""
    base_heads, base_latency, head_slope = fit_plateau(cost.attention[1:])
    base_neurons, ffn_latency, neuron_slope = fit_plateau(cost.ffn[1:])
    if not neuron_slope:
        raise ValueError("the published search needs an FFN latency that rises with the number of neurons")
    num_layers = cost.num_layers
    best_heads, best_neurons = (np.argsort(-part, axis=1, kind="stable") for part in (heads, neurons))
    drop_heads, drop_neurons = (
        np.take_along_axis(part, best[:, :base], 1).sum(1).argsort(kind="stable")
        for part, best, base in ((heads, best_heads, base_heads), (neurons, best_neurons, base_neurons))
    )

    def beyond(part: np.ndarray, best: np.ndarray, base: int, dropped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flat indices of what is beyond the plateaus, best first, and cumulative importance; dropped layers last."""
        flat = (best + np.arange(num_layers)[:, None] * part.shape[1])[:, base:]
        scores = np.where(np.isin(np.arange(num_layers), dropped)[:, None], 0.0, part).ravel()[flat].ravel()
        order = np.argsort(-scores, kind="stable")
        return flat.ravel()[order], np.concatenate([[0.0], scores[order].cumsum()])

    def plateau(part: np.ndarray, best: np.ndarray, base: int, remaining: np.ndarray) -> np.ndarray:
        return (best[remaining, :base] + remaining[:, None] * part.shape[1]).ravel()

    budget, most, found = constraint * cost.full, 0.0, None
    for h in range(num_layers):
        more_heads, head_total = beyond(heads, best_heads, base_heads, drop_heads[:h])
        for n in range(num_layers):
            budget -= (num_layers - h) * base_latency + (num_layers - n) * ffn_latency  # published: never reset
            if budget < 0:
                continue
            more_neurons, neuron_total = beyond(neurons, best_neurons, base_neurons, drop_neurons[:n])
            count = np.arange(1, (num_layers - h) * (heads.shape[1] - base_heads) + 1)
            affordable = ((budget - head_slope * count) / neuron_slope).astype(np.int64)
            count, affordable = count[affordable >= 0], affordable[affordable >= 0].clip(max=len(more_neurons))
            total = head_total[count] + neuron_total[affordable]
            if len(total) and total.max() > most:
                most, i = total.max(), int(total.argmax())
                found = (
                    np.concatenate([plateau(heads, best_heads, base_heads, drop_heads[h:]), more_heads[: count[i]]]),
                    np.concatenate(
                        [plateau(neurons, best_neurons, base_neurons, drop_neurons[n:]), more_neurons[: affordable[i]]]
                    ),
                )
    if found is None:
        smallest = num_layers * (base_latency + ffn_latency) / cost.full
        raise BudgetError(constraint, smallest, "latency that the published search can reach")
    return found
