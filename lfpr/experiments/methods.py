"""The ways to give heads and neurons an importance, a row each: adding one is a row here and its look in the figures.

Methods by gradients differ in the task's objective. Controls take one part of Fisher's importance away, to see what
each part is worth; each is again an importance, so search and constraints apply to it unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lfpr.experiments.cell import Cell
from lfpr.importance import activation_importance, magnitude, random_importance
from lfpr.masks import Importance

if TYPE_CHECKING:
    from lfpr.experiments.experiment import Experiment


@dataclass(frozen=True)
class Method:
    """How a method's importance of a resolved cell is computed or loaded; `gradients`: its masks can be rearranged.

    Without a `common_scale` of heads and neurons, both are kept in the same proportion; `sampled`: it looks at data.
    """

    importance: Callable[[Experiment, Cell], Importance]
    gradients: bool = False
    common_scale: bool = True
    sampled: bool = True


def by_gradients(experiment: Experiment, cell: Cell, kind: str = "squared") -> Importance:
    """Squared (or absolute) gradients of the objective with respect to the masks, summed over the sample."""

    def build(folder: Path) -> dict:
        gradients = experiment.collect(cell)
        if METHODS[cell.method].gradients and experiment.spec.rearranged:  # its own way needs them again
            gradients.save(folder / "gradients.safetensors")
        gradients.importance(kind).save(folder / "importance.safetensors")
        if getattr(experiment.settings, "released_files", False):
            experiment.task.save_released_scores(gradients, cell, folder)
        return experiment.task.sample_numbers(cell)

    stage = experiment.task.stage("importance", experiment.sample_key(cell), build)
    return Importance.load(stage.folder / "importance.safetensors")


def by_activations(experiment: Experiment, cell: Cell) -> Importance:
    """What heads and neurons add to the residual stream."""

    def build(folder: Path) -> dict:
        batches = experiment.task.batches(cell)
        importance = activation_importance(experiment.encoder, batches, experiment.task.run)
        importance.save(folder / "importance.safetensors")
        return experiment.task.sample_numbers(cell)

    stage = experiment.task.stage("importance", experiment.sample_key(cell), build)
    return Importance.load(stage.folder / "importance.safetensors")


def uniform(importance: Importance) -> Importance:
    """Ranks within the layer, as a share of its heads [L, H] or neurons [L, N]: no layer is worth more than another.

    For `search_proportional`, which then keeps the same share of heads and neurons in every layer (to within one).
    """
    return Importance(*((1 + _ranks(part)) / part.shape[1] for part in (importance.heads, importance.neurons)))


def with_neurons_by(importance: Importance, other: Importance) -> Importance:
    """`importance` with that of its neurons [L, N] dealt out within each layer in the order of `other`'s.

    The r-th best neuron of a layer by `other` gets the layer's r-th largest importance, so that any search keeps the
    same heads and as many neurons in each layer as with `importance`, but those that `other` prefers.
    """
    ordered = importance.neurons.sort(dim=1).values
    return Importance(importance.heads, ordered.gather(1, _ranks(other.neurons)))


def _ranks(values: Tensor) -> Tensor:
    """For each entry of [L, n], how many in its row are smaller; of equal ones, the first is the largest."""
    order = values.flip(1).argsort(dim=1, stable=True)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(values.shape[1]).expand_as(order))
    return ranks.flip(1)


def _fisher(experiment: Experiment, cell: Cell) -> Importance:
    return experiment.importance(replace(cell, method="fisher"))


def _split(experiment: Experiment, cell: Cell, other: str) -> Importance:
    return with_neurons_by(_fisher(experiment, cell), experiment.importance(replace(cell, method=other)))


METHODS: dict[str, Method] = {
    "label-free": Method(by_gradients, gradients=True),
    "fisher": Method(by_gradients, gradients=True),
    "absolute": Method(partial(by_gradients, kind="absolute")),
    "magnitude": Method(lambda experiment, cell: magnitude(experiment.encoder), common_scale=False, sampled=False),
    "l1": Method(lambda experiment, cell: magnitude(experiment.encoder, norm=1), common_scale=False, sampled=False),
    "random": Method(
        lambda experiment, cell: random_importance(experiment.encoder, cell.seed), common_scale=False, sampled=False
    ),
    "activation": Method(by_activations),
    "uniform": Method(lambda experiment, cell: uniform(_fisher(experiment, cell)), common_scale=False),
    **{f"split-{other}": Method(partial(_split, other=other)) for other in ("activation", "magnitude", "random")},
}
"""Name -> its `Method`. An experiment's spec says which of them it offers."""
