"""What the experiments, TAP's and CLIP's, do in the same way: name cells, search masks, retrain, measure speed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

from torch import nn

from lfpr.checks import HEURISTICS, choose
from lfpr.grid import PLACE
from lfpr.masks import Importance, Masks
from lfpr.processes import with_helpers
from lfpr.retrain import TrainableMasks
from lfpr.runs import Stage, write_json
from lfpr.saving import load_pruned
from lfpr.search import search, search_proportional, search_threshold


class Staged:
    """Needs ``settings``, ``runs``, ``inputs``, ``model``, ``cost``, ``unscaled``, ``cell``, ``prune``, ``retrain``,
    ``teach``, ``compare``, ``_finish``, ``_given`` (what it was made of, but for the settings) and ``_shared`` (names
    of what does not depend on them)."""

    def with_settings(self, **settings) -> Self:
        """The same experiment with other values of these settings; what does not depend on them is shared."""
        other = type(self)(*self._given, replace(self.settings, **settings))
        other.__dict__ |= {name: self.__dict__[name] for name in self._shared if name in self.__dict__}
        return other

    def masks(
        self,
        importance: Importance,
        method: str,
        heuristic: str = "sum",
        constraint: float = 0.4,
        percentile: float = 50,
    ) -> Masks:
        """Mask search: ``sum`` under ``constraint``, the kept share of ``cost``, or ``threshold`` at ``percentile``.

        Methods in ``unscaled`` have scores without a common scale of heads and neurons: both are kept in proportion.
        """
        choose("heuristic", heuristic, HEURISTICS)
        if heuristic == "threshold":
            return search_threshold(importance, percentile)
        find = search_proportional if method in self.unscaled else search
        return find(importance, self.cost, constraint)

    def budget_of(self, heuristic: str = "sum", constraint: float = 0.4, percentile: float = 50, seed: int = 0) -> dict:
        """These parameters of a cell, checked; the one that ``heuristic`` does not use is None."""
        choose("heuristic", heuristic, HEURISTICS)
        if heuristic == "sum" and not 0 < constraint <= 1:
            raise ValueError(f"constraint = {constraint}: must be in (0, 1]")
        if heuristic == "threshold" and not 0 <= percentile < 100:
            raise ValueError(f"percentile = {percentile}: must be in [0, 100)")
        used = {"sum": {"constraint": constraint}, "threshold": {"percentile": percentile}}[heuristic]
        return {"heuristic": heuristic, "seed": seed, "constraint": None, "percentile": None} | used

    def place(self, **cell) -> dict:
        """Where a cell stands on its curve: the keys of ``lfpr.grid.PLACE``, None where the heuristic has no use."""
        checked = self.cell(**cell)
        return {name: checked[name] for name in PLACE}

    def _stage(self, name: str, parameters: dict, build: Callable[[Path], dict]) -> Stage:
        return self.runs.stage(name, parameters | {"inputs": self.inputs}, build)

    def _retrained(
        self,
        parameters: dict,
        prune: Callable[[], Stage],
        train: Callable[[Path], tuple[nn.Module, TrainableMasks, list[dict]]],
    ) -> Stage:
        """The stage ``retrain``, with ``percent`` and the settings ``rest`` among its parameters.

        ``train(checkpoint)`` gives the trained model, its mask values and its log, and goes on from that folder, which
        outlives an interrupted build. ``prune()`` is the stage it starts from. Raises ``ValueError``, before any work,
        for a percent out of range.
        """
        percent = parameters["percent"]
        if not 0 < percent <= 100:
            raise ValueError(f"percent = {percent}: must be in (0, 100]")
        path = self.runs.path("retrain", parameters | {"inputs": self.inputs})
        checkpoint = path.with_name(f"{path.name}.checkpoint")

        def build(folder: Path, call: Callable[[], None]) -> dict:
            pruned = prune()
            self.teach()
            call()  # the processes that share the batches
            model, values, log = train(checkpoint)
            values.spread(Masks.load(pruned.folder / "masks.safetensors")).save(folder / "masks.safetensors")
            write_json(folder / "log.json", log)
            numbers = {"percent": percent, "last_layers": parameters["rest"]["last_layers"], "iterations": len(log)}
            return self._finish(model, folder) | numbers | {"minutes": log[-1]["seconds"] / 60}

        def main(call: Callable[[], None]) -> Stage:
            return self._stage("retrain", parameters, lambda folder: build(folder, call))

        stage = with_helpers(main, lambda: train(checkpoint))
        shutil.rmtree(checkpoint, ignore_errors=True)
        return stage

    def speed(self, **cell) -> Stage:
        """``compare`` of the unpruned, the pruned and the retrained model of a cell (see ``prune``), measured here."""

        def build(folder: Path) -> dict:
            stages = {"pruned": self.prune(**cell), "retrained": self.retrain(**cell)}
            models = {name: load_pruned(stage.folder / "model") for name, stage in stages.items()}
            return self.compare({"unpruned": self.model} | models)

        return self._stage("speed", self.cell(**cell), build)
