"""Mask search as released: LFPR's accounting of parameters, and the searches of Kwon et al. (NeurIPS 2022).

`search` keeps at least one head and exceeds the constraint where the heads alone cost more than it allows. Under a
latency it fits plateaus to the table (`fit_plateau`), which the result can exceed too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lfpr.checks import BudgetError, check_at_least, check_constraint, check_kind, check_list
from lfpr.cost import LinearCost, ParameterCost
from lfpr.encoder import PrunableEncoder
from lfpr.latency.cost import LatencyCost, latency_table
from lfpr.latency.search import checked_importance
from lfpr.masks import Importance, Masks
from lfpr.search import best_split, keep, rank


def parameter_cost(encoder: PrunableEncoder) -> LinearCost:
    """Parameters as LFPR's code counts them: the biases and normalisation of one attention output are charged, those of
    the other layers and of the FFNs are not, so masks come out slightly larger than the constraint says."""
    exact = ParameterCost(encoder)
    fixed = 3 * encoder.hidden_size  # one output bias and one LayerNorm
    return LinearCost(exact.unit, exact.full, fixed, exact.head, exact.neuron, exact.shapes)


def latency_cost(attention: Sequence[float], ffn: Sequence[float], num_layers: int) -> LatencyCost:
    """From the look-up tables of Kwon et al., which start at one head and one neuron, in ms."""
    tables = (check_list(name, table, check_at_least) for name, table in (("attention", attention), ("ffn", ffn)))
    return LatencyCost(*([0.0, *table] for table in tables), num_layers, "milliseconds")


def search(importance: Importance, cost: LinearCost | LatencyCost, constraint: float) -> Masks:
    """0/1 masks [L, H] and [L, N] as Kwon et al.'s and LFPR's code finds them, which may exceed the constraint.

    Under a `LatencyCost`: fitted plateaus instead of the table; layers dropped in order of importance; and the released
    budget, which shrinks with each combination it tries. Raises ValueError for a constraint outside (0, 1] and for
    importance that is negative, NaN or infinite, or not of the table's shape, and `BudgetError` where the latency
    cannot be reached.
    """
    if isinstance(cost, LatencyCost):
        constraint, heads, neurons = checked_importance(importance, cost, constraint)
        return keep(importance, *_search_latency(heads, neurons, cost, constraint))
    check_kind("importance", importance, Importance)
    check_kind("cost", cost, LinearCost)
    constraint = check_constraint(constraint)
    cost.check("importance", importance)
    heads, neurons = rank("heads", importance.heads), rank("neurons", importance.neurons)
    count = np.arange(1, len(heads.index) + 1)  # numbers of heads to try
    rest = (constraint * cost.full - cost.fixed - cost.head * count) / cost.neuron
    return best_split(importance, heads, neurons, count, np.maximum(0, rest.astype(np.int64)))


def fit_plateau(table: Sequence[float]) -> tuple[int, float, float]:
    """(threshold, constant, slope) of Kwon et al.'s fit to a latency table for 1, 2, ... heads or neurons.

    The latency is `constant` up to `threshold` parts, and `constant + slope · (parts - threshold)` beyond; the constant
    is the mean below the threshold, the slope that of least squares, at least 0. Of all thresholds, the best fit.
    """
    table = latency_table("table", [0.0, *check_list("table", table, check_at_least)])[1:]
    best = (np.inf, 0, 0.0, 0.0)
    for threshold in range(1, len(table) + 1):
        constant = table[:threshold].mean()
        x, y = np.arange(1, len(table) - threshold + 1), table[threshold:] - constant
        slope = max(0.0, (x * y).sum() / (x * x).sum()) if len(x) else 0.0
        error = np.square(table[:threshold] - constant).sum() + np.square(y - slope * x).sum()
        if error < best[0]:
            best = (error, threshold, float(constant), float(slope))
    return best[1:]


def _search_latency(
    heads: np.ndarray, neurons: np.ndarray, cost: LatencyCost, constraint: float
) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the heads and neurons that the released latency search keeps."""
    base_heads, base_latency, head_slope = fit_plateau(cost.attention[1:])
    base_neurons, ffn_latency, neuron_slope = fit_plateau(cost.ffn[1:])
    if not neuron_slope:
        raise ValueError("the released search needs an FFN latency that rises with the number of neurons")
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
            budget -= (num_layers - h) * base_latency + (num_layers - n) * ffn_latency  # as released: never reset
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
        raise BudgetError(constraint, smallest, "latency that the released search can reach")
    return found
