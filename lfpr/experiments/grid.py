"""The grid of runs behind the paper's tables and figures: what a plan in `workflow/grid.yaml` means, cell by cell.

A cell is one pruned model; its scores before and after retraining are rows of `results.csv`. `lfpr.experiments.cells`
computes cells, `lfpr.paper.collect` collects them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from lfpr.files import shipped

STAGES = ("pruned", "retrained")
PLACE = {"method": None, "heuristic": "sum", "constraint": None, "percentile": None, "seed": 0}
"""What places a cell on a curve, with the defaults; all else in a plan's entry makes it a variant."""
TEXTS = ("annotations/captions_*.json", "imdb/**/*.npy", "original_dl/**/imdb_*.npy", "m4c_vocabs/**/*.txt")
"""Below `data_root`: the files of questions, captions and vocabularies."""


@dataclass(frozen=True)
class Cell:
    """One pruned model. `place`: keys of `PLACE`; `options`: what differs from the experiment's own way (settings
    of the experiment such as num_samples, parameters of its stages such as rescaled); `stages`: which are scored."""

    place: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    stages: tuple[str, ...] = STAGES

    @property
    def variant(self) -> str:
        """ "" for the experiment's own way, else what differs, such as "num_samples=100"."""
        return ", ".join(f"{name}={value}" for name, value in sorted(self.options.items()))


def load_grid(source: str) -> dict:
    """The grid `NAME` of `FILE.yaml`, given as `FILE.yaml:NAME`. Raises `ValueError` naming what is wrong."""
    path, _, name = source.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"grid = {source!r}: expected FILE.yaml:NAME, and there is no file {path!r}")
    grids = yaml.safe_load(Path(path).read_text())
    if name not in grids:
        raise ValueError(f"grid = {name!r}: must be one of {sorted(grids)}")
    return grids[name]


def cells(plan: dict) -> list[Cell]:
    """The cells of an experiment's plan: each entry stands for all combinations of its lists.

    Raises `ValueError` for an entry without a method, with both or neither of constraint and percentile, with an
    unknown stage, or for a cell that is there twice.
    """
    found: list[Cell] = []
    for entry in plan["cells"]:
        entry = dict(entry)
        stages = tuple(_list(entry.pop("stages", STAGES)))
        if "method" not in entry or ("constraint" in entry) == ("percentile" in entry) or set(stages) - set(STAGES):
            raise ValueError(f"cell {entry}, stages {list(stages)}: needs a method, a constraint or a percentile, and "
                             f"stages of {list(STAGES)}")  # fmt: skip
        entry.setdefault("heuristic", "sum" if "constraint" in entry else "threshold")
        for values in product(*map(_list, entry.values())):
            chosen = dict(zip(entry, values, strict=True))
            place = {name: chosen.pop(name, default) for name, default in PLACE.items()}
            found.append(Cell(place, chosen, stages))
    keys = [(*cell.place.values(), cell.variant, stage) for cell in found for stage in cell.stages]
    twice = [key for i, key in enumerate(keys) if key in keys[:i]]
    if twice:
        raise ValueError(f"cell {twice[0]} is in the plan twice")
    return found


def share(plan: dict, job: int) -> list[Cell]:
    """The cells of `job` 0 … `plan["jobs"]` - 1: dealt out so that neighbours, which cost alike, are apart."""
    jobs = plan.get("jobs", 1)
    if not 0 <= job < jobs:
        raise ValueError(f"job = {job}: the plan has jobs 0 … {jobs - 1}")
    return cells(plan)[job::jobs]


def inputs(plan: dict, data: str | Path) -> dict[str, str]:
    """Where a plan's experiment finds the user's files: `data_root` and `checkpoint` of the plan, below `data`.

    Empty for the profile mini. Raises `ValueError` if the profile full has no `data`.
    """
    if plan["profile"] == "mini":
        return {}
    if not data:
        raise ValueError("profile = 'full' needs data, the folder of the user's own files (see data/README.md)")
    return {name: str(Path(data, plan[name])) for name in ("data_root", "checkpoint")}


def sources(experiment: str, plan: dict, data: str | Path) -> list[str]:
    """The files that an experiment starts from: its checkpoint's and, of the user's own data, questions or captions.

    Features and images are not among them: there are too many to ask each for its date.
    """
    given = inputs(plan, data)
    checkpoint = Path(given["checkpoint"]) if given else shipped(experiment)
    files = [checkpoint] if checkpoint.is_file() else [file for file in checkpoint.glob("*") if file.is_file()]
    files += [file for pattern in TEXTS for file in Path(given["data_root"]).glob(pattern)] if given else []
    return sorted(map(str, files)) or [str(checkpoint)]


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all commands on a grid share."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--grid", default="workflow/grid.yaml:default", help="FILE.yaml:NAME")
    options.add_argument("--runs", default="runs", help="folder of the runs")
    options.add_argument("--stamp", help="file to write when done, with the numbers of what was done")
    options.add_argument("--data", default="", help="the folder of the user's own files, for the profile full")
    return options


def _list(value: Any) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]
