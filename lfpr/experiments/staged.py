"""The stages that TAP's and CLIP's experiments share: mask search, pruning, retraining, and measuring speed.

A cell is one pruned model, named by `method`, `heuristic`, its `constraint` or `percentile`, `seed`, and
whether its masks are `rearranged` and `rescaled`. What is None is the experiment's own (`own`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Self

import torch
from torch import nn

from lfpr.experiments.checks import HEURISTICS, choose
from lfpr.experiments.grid import PLACE
from lfpr.experiments.runs import Stage, write_json
from lfpr.masks import Importance, Masks
from lfpr.rearrange import rearrange
from lfpr.save import load_pruned
from lfpr.search import search, search_proportional, search_threshold
from lfpr.shrink import shrink
from lfpr.training.processes import with_helpers
from lfpr.training.retrain import TrainableMasks


class Staged:
    """Needs of an experiment:

    - `settings`, `runs`, `inputs` (hashes of what all stages depend on), `model` and the `part` of it that is
      pruned (None: all), `cost`; `_given` (what it was made of, but for the settings) and `_shared` (names of
      what does not depend on them);
    - `own` (method, rearranged, rescaled, trained), `methods`, `controls` (methods that only compare),
      `unscaled` (methods whose scores of heads and neurons have no common scale) and `with_gradients` (those whose
      masks can be rearranged), `ways` of retraining;
    - `importance`, `gradients`, `rescale`, `verify`, `teach`, `compare`, `_sampling`, `_rescaling` and
      `_evaluation` (settings that name what depends on them), `_finish` (save and score), `_amounts` and
      `_train` (of retraining).
    """

    controls: tuple[str, ...] = ()

    def with_settings(self, **settings) -> Self:
        """The same experiment with other values of these settings; what does not depend on them is shared."""
        other = type(self)(*self._given, replace(self.settings, **settings))
        other.__dict__ |= {name: self.__dict__[name] for name in self._shared if name in self.__dict__}
        return other

    # ---- cells

    def cell(
        self,
        method: str | None = None,
        heuristic: str = "sum",
        constraint: float = 0.4,
        percentile: float = 50,
        seed: int = 0,
        rearranged: bool | None = None,
        rescaled: bool | None = None,
    ) -> dict:
        """The parameters that name a pruned model, checked; None for the budget that `heuristic` does not use.

        Raises `ValueError` naming the parameter, also if masks are to be rearranged by a method without gradients.
        """
        method = self.own["method"] if method is None else method
        choose("method", method, self.methods + self.controls)
        choose("heuristic", heuristic, HEURISTICS)
        if heuristic == "sum" and not 0 < constraint <= 1:
            raise ValueError(f"constraint = {constraint}: must be in (0, 1]")
        if heuristic == "threshold" and not 0 <= percentile < 100:
            raise ValueError(f"percentile = {percentile}: must be in [0, 100)")
        if rearranged and method not in self.with_gradients:
            raise ValueError(f"rearranged = True: method {method!r} has no gradients, as {self.with_gradients} have")
        if rearranged is None:
            rearranged = self.own["rearranged"] and method in self.with_gradients
        rescaled = self.own["rescaled"] if rescaled is None else rescaled
        budget = {"constraint": constraint, "percentile": None}
        if heuristic == "threshold":
            budget = {"constraint": None, "percentile": percentile}
        cell = {"method": method, "heuristic": heuristic, "seed": seed, **budget}
        cell |= {"rearranged": bool(rearranged), "rescaled": bool(rescaled)}
        return cell | self._sampling | (self._rescaling if rescaled else {}) | self._evaluation

    def place(self, **cell) -> dict:
        """Where a cell stands on its curve: keys of `lfpr.experiments.grid.PLACE`, None where of no use."""
        checked = self.cell(**cell)
        return {name: checked[name] for name in PLACE}

    # ---- masks

    def masks(
        self,
        importance: Importance,
        method: str,
        heuristic: str = "sum",
        constraint: float = 0.4,
        percentile: float = 50,
    ) -> Masks:
        """Mask search: `sum` under `constraint`, the kept share of `cost`, or `threshold` at `percentile`.

        Methods in `unscaled` have scores without a common scale of heads and neurons: both are kept in proportion.
        """
        choose("heuristic", heuristic, HEURISTICS)
        if heuristic == "threshold":
            return search_threshold(importance, percentile)
        find = search_proportional if method in self.unscaled else search
        return find(importance, self.cost, constraint)

    def found(self, cell: dict) -> Masks:
        """The masks of a cell (see `cell`) after search and, if it says so, rearrangement; not rescaled."""
        method, seed = cell["method"], cell["seed"]
        budget = [cell[name] for name in ("heuristic", "constraint", "percentile")]
        masks = self.masks(self.importance(method, seed), method, *budget)
        return rearrange(masks, self.gradients(method, seed)) if cell["rearranged"] else masks

    # ---- stages

    def prune(
        self,
        method: str | None = None,
        heuristic: str = "sum",
        constraint: float = 0.4,
        percentile: float = 50,
        seed: int = 0,
        rearranged: bool | None = None,
        rescaled: bool | None = None,
    ) -> Stage:
        """Search, rearrange, rescale (mask tuning, Kwon et al.), shrink, verify, save, score.

        Files: `masks.safetensors`, the pruned model in `model/` and, of CLIP, `features.safetensors` of the
        validation images. Parameters as in `cell`.
        """
        cell = self.cell(method, heuristic, constraint, percentile, seed, rearranged, rescaled)

        def build(folder: Path) -> dict:
            masks = self.found(cell)
            masks = self.rescale(masks, seed, folder=folder) if cell["rescaled"] else masks
            pruned = shrink(self.model, masks, self.part)
            largest = self.verify(masks, pruned)
            masks.save(folder / "masks.safetensors")
            return self._finish(pruned, folder) | scale_range(masks) | {"largest_difference": largest}

        return self._stage("prune", cell, build)

    def retrain(
        self,
        method: str | None = None,
        heuristic: str = "sum",
        constraint: float = 0.4,
        percentile: float = 50,
        seed: int = 0,
        percent: float | None = None,
        last_layers: int | None = None,
        trained: str | None = None,
        rearranged: bool | None = None,
        rescaled: bool | None = None,
    ) -> Stage:
        """Retrain the pruned model without labels, and go on after an interruption: ReSt of TAP, distillation of CLIP.

        percent: of the training questions or images; last_layers: trained wholly; both by default the papers'.
        trained: one of `ways`. Files: `masks.safetensors` (heads [L, H], neurons [L, N], zero where removed),
        `log.json` (loss, gradient norm and seconds of each iteration) and those of `prune`. Raises `ValueError`,
        before any work, for a parameter out of range.
        """
        chosen = method, heuristic, constraint, percentile, seed, rearranged, rescaled
        cell = self.cell(*chosen)
        trained = self.own["trained"] if trained is None else trained
        choose("trained", trained, self.ways)
        amounts, rest = self._amounts(cell, percent, last_layers, trained)
        if not 0 < amounts["percent"] <= 100:
            raise ValueError(f"percent = {amounts['percent']}: must be in (0, 100]")
        parameters = cell | amounts | {"trained": trained, "rest": asdict(rest)}
        path = self.runs.path("retrain", parameters | {"inputs": self.inputs})
        checkpoint = path.with_name(f"{path.name}.checkpoint")  # outlives an interrupted build

        def train() -> tuple[nn.Module, TrainableMasks, list[dict]]:
            model = load_pruned(self.prune(*chosen).folder / "model")
            torch.manual_seed(seed)
            return model, *self._train(model, amounts["percent"], rest, trained, seed, checkpoint)

        def build(folder: Path, call: Callable[[], None]) -> dict:
            pruned = self.prune(*chosen)
            self.teach()
            call()  # the processes that share the batches
            model, values, log = train()
            values.spread(Masks.load(pruned.folder / "masks.safetensors")).save(folder / "masks.safetensors")
            write_json(folder / "log.json", log)
            numbers = {"percent": amounts["percent"], "last_layers": rest.last_layers, "iterations": len(log)}
            return self._finish(model, folder) | numbers | {"minutes": log[-1]["seconds"] / 60}

        def main(call: Callable[[], None]) -> Stage:
            return self._stage("retrain", parameters, lambda folder: build(folder, call))

        stage = with_helpers(main, train)
        shutil.rmtree(checkpoint, ignore_errors=True)
        return stage

    def speed(self, **cell) -> Stage:
        """`compare` of the unpruned, the pruned and the retrained model of a cell (see `prune`), measured here."""

        def build(folder: Path) -> dict:
            stages = {"pruned": self.prune(**cell), "retrained": self.retrain(**cell)}
            models = {name: load_pruned(stage.folder / "model") for name, stage in stages.items()}
            return self.compare({"unpruned": self.model} | models)

        return self._stage("speed", self.cell(**cell), build)

    def _stage(self, name: str, parameters: dict, build: Callable[[Path], dict]) -> Stage:
        return self.runs.stage(name, parameters | {"inputs": self.inputs}, build)


def scale_range(masks: Masks) -> dict:
    """The smallest and the largest mask value of what is kept; None if that is nothing."""
    kept = torch.cat([part[part != 0] for part in (masks.heads, masks.neurons)])
    return {f"scale_{name}": getattr(kept, name)().item() if len(kept) else None for name in ("min", "max")}
