"""Models side by side: their sizes, and their speed measured in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from lfpr.checks import check_callable, check_count, check_kind, check_named
from lfpr.cost import MacCost
from lfpr.encoder import PrunableEncoder
from lfpr.latency.cost import take_turns
from lfpr.modes import evaluating


def side_by_side(
    models: Mapping[str, nn.Module],
    run: Callable[[nn.Module], Any],
    encoder: Callable[[nn.Module], PrunableEncoder],
    sequence_length: int,
    samples: int,
    sample: str,
    repeats: int,
) -> dict[str, dict]:
    """For each model: `parameters` and `macs` (for one sequence of `sequence_length` tokens) of what `encoder(model)`
    gives, `megabytes` (10⁶ bytes) of all its weights in float32, and `ms_per_SAMPLE` (named by `sample`) of
    `run(model)`, a run over `samples` of them, in evaluation mode: the median of `repeats` runs that alternate between
    the models. Raises ValueError for bad arguments."""
    check_named("models", models)
    check_callable("run", run)
    check_callable("encoder", encoder)
    check_kind("sample", sample, str)
    samples, sequence_length = check_count("samples", samples, 1), check_count("sequence_length", sequence_length, 1)
    repeats = check_count("repeats", repeats, 1)
    with evaluating(*models.values()):
        seconds = take_turns({name: partial(run, model) for name, model in models.items()}, repeats)
    table = {}
    for name, model in models.items():
        pruned = encoder(model)
        cost = MacCost(pruned, sequence_length)
        table[name] = {
            "parameters": pruned.num_parameters,
            "macs": cost.of(sum(pruned.heads_per_layer), sum(pruned.neurons_per_layer)),
            "megabytes": sum(p.numel() * 4 for p in model.parameters()) / 1e6,
            f"ms_per_{sample}": 1000 * statistics.median(seconds[name]) / samples,
        }
    return table
