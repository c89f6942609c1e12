"""From finished runs to the tidy tables behind every figure: `python -m lfpr collect`.

Computing and drawing are separate: this module reads what the notebooks of a grid left in `runs/` and computes nothing;
the figures read the CSV files that it writes. One row of `results.csv` is one score.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lfpr.clip.retrieval import image_speedup
from lfpr.experiments import open_experiment
from lfpr.experiments.cell import Cell
from lfpr.experiments.experiment import Experiment
from lfpr.experiments.grid import NOTEBOOKS, Planned, cells, inputs, load_grid, settings
from lfpr.experiments.methods import METHODS
from lfpr.experiments.notebook import is_own
from lfpr.experiments.runs import Stage, Unfinished, minutes_per_stage, provenance_table
from lfpr.files import checkout, write_json
from lfpr.masks import Masks
from lfpr.paper.schema import TABLES, write_tables

COMPARED = ("label-free", "fisher", "magnitude", "random")
"""Methods whose rankings are compared."""

Rows = list[dict[str, Any]]


def shown(experiment: Experiment) -> Cell:
    """The cell whose speed and mask values are shown: label-free, at the experiment's own constraint."""
    return experiment.cell(Cell("label-free"))


class Collector:
    """Gathers rows by table; what is not finished is listed in `missing`."""

    def __init__(self) -> None:
        self.rows: dict[str, Rows] = {name: [] for name in TABLES}
        self.missing: list[str] = []

    def add(self, table: str, what: str, rows: Callable[[], Rows]) -> None:
        """Add `rows()` to a table, or `what` to the missing."""
        try:
            self.rows[table] += rows()
        except Unfinished:
            self.missing.append(what)

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables that have rows, with the columns of the schema."""
        return {key: pd.DataFrame(rows).reindex(columns=TABLES[key]) for key, rows in self.rows.items() if rows}


def collect(
    grid: dict[str, dict], runs: str | Path, data: str | Path = ""
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """The tidy tables of a grid's finished runs, by name, and what of the grid is not finished.

    grid: plans by experiment (`lfpr.experiments.grid.load_grid`). data: the folder of the user's own files, for the
    profile full. Raises `Damaged` for a stage that is not as it was made: no table is written without it.
    """
    collector = Collector()
    for name, plan in grid.items():
        options = inputs(plan, data) | settings(plan)
        experiment = open_experiment(name, plan["profile"], runs, device="cpu", **options)
        with experiment.runs.load_only():
            _experiment(collector, experiment, plan)
    collector.add("minutes", "minutes", lambda: minutes_rows(runs))
    return collector.tables(), collector.missing


def _experiment(collector: Collector, experiment: Experiment, plan: dict) -> None:
    name, notebooks = experiment.name, str(plan.get("notebooks", ()))
    if experiment.task.unscored:
        collector.missing.append(f"{name}: {experiment.task.unscored}")
        return
    collector.add("results", f"{name}: unpruned", lambda: [unpruned_row(experiment)])
    if "02_importance" in notebooks:
        for method in COMPARED:
            rows = lambda method=method: importance_rows(experiment, experiment.cell(Cell(method)))  # noqa: E731
            collector.add("importance", f"{name}: importance by {method}", rows)
    for planned in cells(plan):
        _cell(collector, experiment, planned)
    if "05_evaluate" in notebooks:
        collector.add("speed", f"{name}: speed", lambda: speed_rows(experiment))
    for study in plan.get("studies", ()):
        rows = lambda study=study: [{"experiment": name} | row for row in experiment.study(study)]  # noqa: E731
        collector.add(study, f"{name}: {study}", rows)


def _cell(collector: Collector, experiment: Experiment, planned: Planned) -> None:
    """The rows of one cell of the plan."""
    cell = experiment.cell(planned.cell)
    stages: dict[str, Stage] = {}
    for name in planned.stages:
        try:
            stage = {"pruned": experiment.prune, "retrained": experiment.retrain}[name](cell)
            row = result_row(experiment, planned.cell, stage, name == "retrained")
        except Unfinished:
            collector.missing.append(f"{experiment.name}: {planned.cell.name} {name} ({NOTEBOOKS[name]})")
            continue
        stages[name] = stage
        collector.rows["results"].append(row)
    unsearched = planned.cell.heuristic == "none" and len(planned.cell.options) == 1
    if unsearched and "cascade" in experiment.spec.downstream:
        what = f"{experiment.name}: cascade of {planned.cell.name}"
        collector.add("cascade", what, lambda: cascade_rows(experiment, cell, stages))
    if planned.cell.variant or not stages:
        return
    collector.rows["layers"] += layer_rows(experiment, cell, next(iter(stages.values())))
    if replace(cell, seed=0) == shown(experiment) and "retrained" in stages:
        collector.rows["mask_values"] += mask_rows(experiment, cell, stages["retrained"])
    if "cascade" in experiment.spec.downstream:
        what = f"{experiment.name}: cascade of {planned.cell.name}"
        for table in (cascade_rows, growth_rows):
            key = table.__name__.removesuffix("_rows")
            collector.add(key, what, lambda table=table: table(experiment, cell, stages))


# ---- rows


def unpruned_row(experiment: Experiment) -> dict[str, Any]:
    """The unpruned model's scores."""
    about = _about(experiment, Cell("unpruned", 1.0)) | {"variant": "", "retrained": False}
    return about | experiment.baseline().result | {"fraction": 1.0, "parameters": experiment.encoder.num_parameters}


def result_row(experiment: Experiment, cell: Cell, stage: Stage, retrained: bool) -> dict[str, Any]:
    """The scores of a stage of a cell as it is in the plan; what its file takes on disk and its stage took in all,
    where the result says nothing else."""
    about = _about(experiment, cell) | {"variant": cell.variant, "retrained": retrained}
    size = sum(file.stat().st_size for file in (stage.folder / "model").iterdir())
    cost = {"megabytes": size / 1e6, "minutes": stage.provenance["seconds"] / 60}
    sampled = METHODS[cell.method].sampled
    about |= {"num_samples": experiment.cell(cell).num_samples if sampled else None}
    return about | cost | stage.result | {"seconds": experiment.seconds(cell, retrained)}


def importance_rows(experiment: Experiment, cell: Cell) -> Rows:
    """A row per head and neuron: its importance."""
    importance = experiment.importance(cell)
    about = {"experiment": experiment.name, "method": cell.method}
    return [
        about | {"kind": kind, "layer": layer, "index": index, "importance": value}
        for kind, table in (("head", importance.heads), ("neuron", importance.neurons))
        for layer, row in enumerate(table.tolist())
        for index, value in enumerate(row)
    ]


def layer_rows(experiment: Experiment, cell: Cell, pruned: Stage) -> Rows:
    """A row per attention of a pruned model, and the FFN of the same number: the heads and neurons kept, and how many
    there were."""
    encoder, kept, rows = experiment.encoder, pruned.result, []
    for layer, heads in enumerate(kept["heads"]):
        row = {"experiment": experiment.name} | cell.place | {"layer": layer, "heads": heads}
        row["full_heads"] = encoder.num_heads
        if layer < len(kept["neurons"]):  # no FFN is beside a cross-attention
            row |= {"neurons": kept["neurons"][layer], "full_neurons": encoder.num_neurons}
        rows.append(row)
    return rows


def mask_rows(experiment: Experiment, cell: Cell, retrained: Stage) -> Rows:
    """A row per kept head and neuron: its mask value after retraining (1 before)."""
    masks = Masks.load(retrained.folder / "masks.safetensors")
    return [
        {"experiment": experiment.name} | cell.place | {"kind": kind, "layer": layer, "value": value}
        for kind, table in (("head", masks.heads), ("neuron", masks.neurons))
        for layer, row in enumerate(table)
        for value in row[row != 0].tolist()
    ]


def speed_rows(experiment: Experiment) -> Rows:
    """A row per model of the cell that is `shown`: unpruned, pruned, retrained."""
    cell = shown(experiment)
    about = {"experiment": experiment.name, "constraint": cell.constraint}
    return [
        about | {"model": model, "ms": next(value for name, value in row.items() if name.startswith("ms_per_"))} | row
        for model, row in experiment.speed(cell).result.items()
    ]


def cascade_rows(experiment: Experiment, cell: Cell, stages: dict[str, Stage]) -> Rows:
    """A row per stage of a cell and cascade of it; `m` is text where there are several."""
    rows = [about | result for about, result in _cascades(experiment, cell, stages)]
    rows += [about | result for about, result in _cascades(experiment, cell, stages, "levels")]
    return [row | {"m": ", ".join(map(str, row["m"])) if isinstance(row["m"], list) else row["m"]} for row in rows]


def growth_rows(experiment: Experiment, cell: Cell, stages: dict[str, Stage]) -> Rows:
    """A row per stage of a cell and number of queries: the share of images that these brought to the full model so far,
    and how much less time encoding all images has then taken."""
    rows = []
    for about, result in _cascades(experiment, cell, stages):
        for queries, share in result["growth"]:
            speedup = image_speedup(result["ms_full"], result["ms_pruned"], share)
            rows.append(about | {"m": result["m"], "queries": queries, "reranked": share, "speedup": speedup})
    return rows


def _cascades(
    experiment: Experiment, cell: Cell, stages: dict[str, Stage], name: str = "cascade"
) -> Iterator[tuple[dict, dict]]:
    about = {"experiment": experiment.name} | {key: cell.place[key] for key in ("method", "constraint", "seed")}
    for made, stage in stages.items():
        if name in (found := experiment.downstream(stage)):
            yield about | {"retrained": made == "retrained"}, found[name].result


def minutes_rows(runs: str | Path) -> Rows:
    """Minutes and memory of all finished stages, by experiment, profile and stage."""
    return minutes_per_stage(provenance_table(runs)).reset_index().rename(columns={"stages": "runs"}).to_dict("records")


def _about(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    return {"experiment": experiment.name, "profile": experiment.profile} | cell.place


def saved_score(experiment: Experiment, cell: Cell, retrained: bool, folder: str | Path | None = None) -> float | None:
    """The score of a resolved cell in `folder/results.csv`, by default the committed one in `paper_figures`; None if it
    is not there, if the cell is not the experiment's own way, or if the committed ones are to be renewed (`LFPR_UPDATE`
    in the environment, as `make paper UPDATE=1` has it). For notebooks to compare a score with."""
    if os.environ.get("LFPR_UPDATE"):
        return None
    root = checkout()
    path = Path(folder or (root or Path()) / "paper_figures", "results.csv")
    if not path.is_file() or not is_own(experiment, cell):
        return None
    rows = pd.read_csv(path)
    for column, value in (_about(experiment, cell) | {"retrained": retrained}).items():
        rows = rows[rows[column].isna() if value is None else rows[column].astype(type(value)) == value]
    rows = rows[rows.variant.isna()]
    return None if rows.empty else float(rows.score.iloc[0])


def main() -> None:
    """`python -m lfpr collect --grid FILE.yaml:NAME --out FOLDER`: write the tables, name what is missing."""
    root = checkout() or Path()
    options = argparse.ArgumentParser(prog="lfpr collect", description=__doc__.split("\n")[0])
    options.add_argument("--grid", default=f"{root / 'workflow/grid.yaml'}:default", help="FILE.yaml:NAME")
    options.add_argument("--runs", default=str(root / "runs"), help="folder of the runs")
    options.add_argument("--data", default="", help="the folder of the user's own files, for the profile full")
    options.add_argument("--out", default=str(root / "runs" / "paper"), help="folder of the tables")
    options.add_argument("--stamp", help="file to write when done, with the numbers of rows")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    tables, missing = collect(load_grid(arguments.grid), arguments.runs, arguments.data)
    write_tables(tables, arguments.out)
    rows = {name: len(table) for name, table in tables.items()}
    print(f"{arguments.out}: {rows}")
    for name in missing:
        print(f"not finished: {name}", file=sys.stderr)
    if arguments.stamp:
        write_json(arguments.stamp, {"rows": rows, "missing": missing})


if __name__ == "__main__":
    main()
