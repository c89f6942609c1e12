"""The ways to give heads and neurons an importance, a row each: adding one is a row here and its look in the figures.

Some give masks instead, which are not searched. Methods by gradients differ in the task's objective. Controls take one
part of Fisher's importance away, to see what each part is worth; each is again an importance, so search and constraints
apply to it unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lfpr.encoder import PrunableEncoder
from lfpr.experiments.cell import Cell
from lfpr.experiments.runs import Stage
from lfpr.files import checkout
from lfpr.gradients import collect_gradients
from lfpr.importance import activation_importance, magnitude, random_importance
from lfpr.kprune import KPrune, kprune
from lfpr.masks import Importance, Masks
from lfpr.released.masks import load_masks, save_head_mask
from lfpr.sensitivity import all_but_one
from lfpr.surgeon import surgeon_importance

if TYPE_CHECKING:
    from lfpr.experiments.experiment import Experiment


class Pruned(NamedTuple):
    """A pruned model of a cell, with its masks [L, H] and [L, N]; `difference`: the largest between the masked model
    and the small one, before it is refitted, None where these take turns; `report`: what was refitted, a dataclass
    each."""

    model: nn.Module
    masks: Masks
    difference: float | None
    report: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Method:
    """How a method's importance of a resolved cell is computed or loaded; `gradients`: its masks can be rearranged.

    Without a `common_scale` of heads and neurons, both are kept in the same proportion; `sampled`: it looks at data, as
    many samples as the setting `samples` says; `anew`: the same of a copy of the model that is pruned in part, without
    being kept. A method that is `whole` prunes and refits a resolved cell's model itself. A method with `masks` gives
    masks of a resolved cell, and no importance; `complete` gives the cell in the one form that names its stage, checked
    against the experiment.
    """

    importance: Callable[[Experiment, Cell], Importance] | None = None
    gradients: bool = False
    common_scale: bool = True
    sampled: bool = True
    samples: str = "num_samples"
    masks: Callable[[Experiment, Cell], Masks] | None = None
    anew: Callable[[Experiment, Cell, nn.Module, PrunableEncoder], Importance] | None = None
    whole: Callable[[Experiment, Cell, Path], Pruned] | None = None
    complete: Callable[[Experiment, Cell], Cell] = lambda experiment, cell: cell


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


def by_gradients_anew(
    experiment: Experiment, cell: Cell, model: nn.Module, encoder: PrunableEncoder, kind: str = "squared"
) -> Importance:
    """`by_gradients` of a copy of the model."""
    task = experiment.task
    objective, per_sample = task.objective(cell, model), task.per_sample(cell)
    return collect_gradients(encoder, task.batches(cell), objective, per_sample, progress=cell.method).importance(kind)


def by_surgeon(experiment: Experiment, cell: Cell) -> Importance:
    """What removing a head or neuron costs once the rest is refitted."""

    return _kept(experiment, cell, lambda: surgeon_anew(experiment, cell, experiment.model, experiment.encoder))


def surgeon_anew(experiment: Experiment, cell: Cell, model: nn.Module, encoder: PrunableEncoder) -> Importance:
    """`by_surgeon` of a copy of the model."""
    objective = experiment.task.objective(cell, model)
    return surgeon_importance(encoder, experiment.task.batches(cell), objective, progress=cell.method)


def by_kprune(experiment: Experiment, cell: Cell, folder: Path, published: bool = False) -> Pruned:
    """K-prune with the published settings, or those of the experiment's that are tuned for it."""
    settings = KPrune() if published else experiment.settings.kprune
    task, batches = experiment.task, list(experiment.task.predicted(cell.seed))
    cost, part = experiment.cost, experiment.part
    model, masks, rounds = kprune(
        experiment.model, batches, task.predictions, cost, cell.constraint, settings, part, folder
    )
    return Pruned(model, masks, None, rounds)


def by_activations(experiment: Experiment, cell: Cell) -> Importance:
    """What heads and neurons add to the residual stream."""
    task = experiment.task
    return _kept(experiment, cell, lambda: activation_importance(experiment.encoder, task.batches(cell), task.run))


def _kept(experiment: Experiment, cell: Cell, compute: Callable[[], Importance]) -> Importance:
    """An importance of the cell's sample, computed once."""

    def build(folder: Path) -> dict:
        compute().save(folder / "importance.safetensors")
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


# ---- methods that give masks


def walk(experiment: Experiment, cell: Cell) -> Stage:
    """Sensitivity pruning from its first step to its last (`lfpr.all_but_one`) on the sample of a resolved cell, each
    step a stage of its own, so that an interrupted walk goes on.

    Files, of step 1, 2, ...: `head_mask_0.pt`, `head_mask_1.pt`, ..., as the fork for CLIP writes them.
    """
    task, encoder = experiment.task, experiment.encoder
    key = {"seed": cell.seed} | task.sampling(cell)

    def build(folder: Path) -> dict:
        batches, objective, masks, removed = task.batches(cell), task.objective(cell), Masks.ones(encoder), []
        for step in range(1, encoder.num_layers + 1):

            def one(folder: Path, step: int = step, masks: Masks = masks) -> dict:
                _, after = next(all_but_one(encoder, batches, objective, masks, progress="sensitivity"))
                save_head_mask(after, step, folder)
                return {"removed": int((after.heads == 0).sum())}

            stage = task.stage("walk-step", key | {"step": step}, one)
            masks = load_masks(stage.folder / f"head_mask_{step - 1}.pt", encoder=encoder).to(encoder.device)
            save_head_mask(masks, step, folder)
            removed.append(stage.result["removed"])
        return {"removed": removed} | task.sample_numbers(cell)

    return task.stage("walk", key, build)


def _walked(experiment: Experiment, cell: Cell) -> Masks:
    step = cell.heads_removed // (experiment.encoder.num_heads - 1)
    encoder = experiment.encoder
    masks = load_masks(walk(experiment, cell).folder / f"head_mask_{step - 1}.pt", encoder=encoder)
    return masks.to(encoder.device)


def _heads_removed(experiment: Experiment, cell: Cell) -> Cell:
    """Says how many heads are removed, instead of after which step. Raises ValueError for what no step leaves."""
    layers, removed = experiment.encoder.num_layers, experiment.encoder.num_heads - 1
    if cell.step is not None and not 1 <= cell.step <= layers:
        raise ValueError(f"step = {cell.step}: sensitivity pruning of {layers} layers has steps 1 … {layers}")
    heads = cell.heads_removed if cell.step is None else cell.step * removed
    allowed = [step * removed for step in range(1, layers + 1)]
    if heads not in allowed:
        raise ValueError(f"heads_removed = {heads}: must be one of {allowed}, a layer's {removed} in each step")
    return replace(cell, heads_removed=heads, step=None)


def given_file(cell: Cell) -> Path:
    """Where the masks of a cell are: its path as it is, or else in the checkout."""
    path = Path(cell.masks)
    return path if path.exists() or path.is_absolute() or checkout() is None else checkout() / path


def _given(experiment: Experiment, cell: Cell) -> Masks:
    return load_masks(given_file(cell), encoder=experiment.encoder).to(experiment.encoder.device)


def _fitting(experiment: Experiment, cell: Cell) -> Cell:
    """The cell. Raises as `load_masks`, naming the field, for files that are missing, broken or of another model."""
    try:
        _given(experiment, cell)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"masks = {cell.masks!r}: {error}") from error
    return cell


METHODS: dict[str, Method] = {
    "label-free": Method(by_gradients, gradients=True, anew=by_gradients_anew),
    "fisher": Method(by_gradients, gradients=True, anew=by_gradients_anew),
    "self-fisher": Method(by_gradients, gradients=True, anew=by_gradients_anew),
    "true-fisher": Method(by_gradients, gradients=True, anew=by_gradients_anew),
    "surgeon": Method(by_surgeon, anew=surgeon_anew),
    "kprune": Method(whole=by_kprune, samples="reconstruct_samples"),
    "kprune-published": Method(whole=partial(by_kprune, published=True), samples="reconstruct_samples"),
    "absolute": Method(partial(by_gradients, kind="absolute"), anew=partial(by_gradients_anew, kind="absolute")),
    "magnitude": Method(lambda experiment, cell: magnitude(experiment.encoder), common_scale=False, sampled=False),
    "l1": Method(lambda experiment, cell: magnitude(experiment.encoder, norm=1), common_scale=False, sampled=False),
    "random": Method(
        lambda experiment, cell: random_importance(experiment.encoder, cell.seed), common_scale=False, sampled=False
    ),
    "activation": Method(by_activations),
    "uniform": Method(lambda experiment, cell: uniform(_fisher(experiment, cell)), common_scale=False),
    "sensitivity": Method(masks=_walked, complete=_heads_removed, samples="sensitivity_samples"),
    "given": Method(masks=_given, complete=_fitting, sampled=False),
    **{f"split-{other}": Method(partial(_split, other=other)) for other in ("activation", "magnitude", "random")},
}
"""Name -> its `Method`. An experiment's spec says which of them it offers."""
