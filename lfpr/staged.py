"""What the experiments, TAP's and CLIP's, do in the same way: name cells, search masks, measure speed."""

from __future__ import annotations

from pathlib import Path

from lfpr.grid import PLACE
from lfpr.masks import Importance, Masks
from lfpr.runs import Stage
from lfpr.saving import load_pruned
from lfpr.search import search, search_proportional, search_threshold
from lfpr.tap.settings import HEURISTICS, choose


class Staged:
    """Needs ``cost``, ``unscaled``, ``cell``, ``prune``, ``retrain``, ``compare``, ``model`` and ``_stage``."""

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

    def speed(self, **cell) -> Stage:
        """``compare`` of the unpruned, the pruned and the retrained model of a cell (see ``prune``), measured here."""

        def build(folder: Path) -> dict:
            stages = {"pruned": self.prune(**cell), "retrained": self.retrain(**cell)}
            models = {name: load_pruned(stage.folder / "model") for name, stage in stages.items()}
            return self.compare({"unpruned": self.model} | models)

        return self._stage("speed", self.cell(**cell), build)
