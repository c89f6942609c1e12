"""The grid of runs behind the paper's tables and figures: what a plan in `workflow/grid.yaml` means, cell by cell.

A cell is one pruned model; its scores before and after retraining are rows of `results.csv`.
`lfpr.experiments.run_grid` runs cells as notebooks, `lfpr.paper.collect` collects what they left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

import yaml

from lfpr.experiments.cell import CELL_FIELDS, Cell
from lfpr.experiments.kinds import check_count, check_type
from lfpr.experiments.parameters import check_names, nearest, of_checkout
from lfpr.experiments.specs import SPECS
from lfpr.files import shipped
from lfpr.reading import read_text

NOTEBOOKS = {"pruned": "03_prune", "retrained": "04_retrain"}
"""Stage of a cell -> the notebook that runs it."""
STAGES = tuple(NOTEBOOKS)
MOST_NODES = 100_000
"""Values in a file of grids: a dozen lines of aliases can stand for more than a machine can hold."""
DIRECT = ["heads_removed", "masks"]
"""Fields of a cell that name masks without a search."""


@dataclass(frozen=True)
class Planned:
    """A cell of a plan, and which of its stages are scored."""

    cell: Cell
    stages: tuple[str, ...] = STAGES


PLAN = {
    "profile": str, "cells": list, "jobs": int, "notebooks": list, "studies": list, "settings": dict, "data_root": str,
    "checkpoint": str,
}  # fmt: skip
"""What a plan may say; the first two it must."""


def load_grid(source: str) -> dict[str, dict]:
    """The plans of grid `NAME` of `FILE.yaml` by experiment, given as `FILE.yaml:NAME`. Raises ValueError naming what
    is wrong with the file, or with a plan, but for its cells (`cells`)."""
    path, _, name = source.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"grid = {source!r}: expected FILE.yaml:NAME, and there is no file {path!r}")
    grids = _read(path)
    if name not in grids:
        raise ValueError(f"grid = {name!r}: must be one of {sorted(map(str, grids))}")
    for experiment, plan in check_type(f"{path}: {name}", grids[name], dict).items():
        if experiment not in SPECS:
            near = nearest(str(experiment), SPECS)
            raise ValueError(f"{path}: experiment = {experiment!r}: {near}must be one of {list(SPECS)}")
        _check_plan(f"{path}: {experiment}", plan)
    return grids[name]


def _read(path: str) -> dict:
    """The grids of a file. Raises ValueError naming it: also for aliases that stand for more than `MOST_NODES`."""
    text = read_text(path, "grids")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if (nodes := _nodes(node, {})) > MOST_NODES:
            raise ValueError(f"{nodes:.3g} values when its aliases are written out, expected at most {MOST_NODES}")
        grids = node and loader.construct_document(node)
    except Exception as error:  # the loader raises nearly anything for a value that is not of its tag's kind
        raise ValueError(f"{path} is not a YAML file of grids: {error}") from error
    return check_type(f"{path}: its content", grids, dict)


def _nodes(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node of YAML stands for, without end if it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        held = node.value if isinstance(node, yaml.CollectionNode) else ()
        held = chain.from_iterable(held) if isinstance(node, yaml.MappingNode) else held
        known[id(node)] = 1 + sum(_nodes(each, known) for each in held)
    return known[id(node)]


def _check_plan(where: str, plan: dict) -> None:
    check_names(f"{where}, the plan", check_type(f"{where}: its plan", plan, dict), PLAN)
    for name in [*list(PLAN)[:2], *plan]:
        check_type(f"{where}: {name}", plan.get(name), PLAN[name])
    check_count(f"{where}: jobs", plan.get("jobs", 1), 1)
    for entry in plan["cells"]:
        check_type(f"{where}: a cell", entry, dict)
    for entry in plan.get("notebooks", ()):
        check_type(f"{where}: a notebook", entry, str | dict)
        for name, values in entry.items() if isinstance(entry, dict) else ():
            check_type(f"{where}: parameters of {name}", values, dict)


def cells(plan: dict) -> list[Planned]:
    """The cells of an experiment's plan: each entry stands for all combinations of its lists.

    Raises ValueError for an entry without a method, with both or neither of constraint and percentile (but for what
    names its masks: `DIRECT`), with an unknown stage or field, or for a cell that is there twice.
    """
    planned = [cell for entry in plan["cells"] for cell in _combinations(dict(entry))]
    keys = [(each.cell, stage) for each in planned for stage in each.stages]
    twice = [key for i, key in enumerate(keys) if key in keys[:i]]
    if twice:
        raise ValueError(f"cell {twice[0][0].name} is in the plan twice")
    return planned


def _combinations(entry: dict[str, Any]) -> Iterator[Planned]:
    stages = tuple(_list(entry.pop("stages", STAGES)))
    placed = sum(any(name in entry for name in names) for names in (["constraint"], ["percentile"], DIRECT))
    if "method" not in entry or placed != 1 or any(stage not in STAGES for stage in stages):
        raise ValueError(
            f"cell {entry}, stages {list(stages)}: needs a method, a constraint or a percentile (or one of {DIRECT}), "
            f"and stages of {list(STAGES)}"
        )
    if unknown := set(entry) - set(CELL_FIELDS):
        raise ValueError(f"cell {entry}: unknown {sorted(unknown)}; there are {list(CELL_FIELDS)}")
    for values in product(*map(_list, entry.values())):
        yield Planned(Cell(**dict(zip(entry, values, strict=True))), stages)


def share(plan: dict, job: int) -> list[Planned]:
    """The cells of `job` 0 … `plan["jobs"]` - 1: dealt out so that neighbours, which cost alike, are apart."""
    jobs = plan.get("jobs", 1)
    if not 0 <= job < jobs:
        raise ValueError(f"job = {job}: the plan has jobs 0 … {jobs - 1}")
    return cells(plan)[job::jobs]


def inputs(plan: dict, data: str | Path) -> dict[str, str]:
    """Where a plan's experiment finds the user's files: `data_root` and `checkpoint` of the plan, below `data`; `data`
    itself, and what is found there, if it has none.

    Empty for the profile mini. Raises ValueError if the profile full has no `data`.
    """
    if plan["profile"] == "mini":
        return {}
    if not data:
        raise ValueError("profile = 'full' needs data, the folder of the user's own files (see data/README.md)")
    paths = {"data_root": ""} | {name: plan[name] for name in ("data_root", "checkpoint") if name in plan}
    return {name: str(Path(data, path)) for name, path in paths.items()}


def settings(plan: dict) -> dict[str, Any]:
    """The settings of a plan; relative paths are the checkout's, as for its notebooks."""
    return of_checkout(plan.get("settings", {}))


def sources(experiment: str, plan: dict, data: str | Path) -> list[str]:
    """The files that an experiment starts from: its checkpoint's and, of the user's own data, questions or captions,
    vocabularies and word vectors.

    Features and images are not among them: there are too many to ask each for its date. Raises FileNotFoundError or
    CheckpointError naming all files of the user's that are missing.
    """
    checkpoint, files = shipped(experiment), []
    if paths := inputs(plan, data):
        from lfpr.experiments import open_experiment  # a plan of mini's needs no more than files' names

        options = paths | settings(plan)
        task = open_experiment(experiment, plan["profile"], runs=data, device="cpu", **options).task
        task.require_files()
        checkpoint, files = Path(task.checkpoint), [row.path for row in task.locate() if row.path]
    files += [checkpoint, *checkpoint.glob("*")]
    return sorted({str(file) for file in files if file.is_file()})


def _list(value: Any) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]
