"""From finished runs to the tidy tables behind every figure.

    python -m lfpr.paper.collect --grid workflow/grid.yaml:default

Computing and plotting are separate: this module alone knows the runs, `lfpr.paper.figures` alone draws, and between
them are CSV files in `paper_figures/`. One row of `results.csv` is one score.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from lfpr.experiments import open_experiment
from lfpr.experiments.cells import run
from lfpr.experiments.grid import PLACE, Cell, cells, inputs, load_grid, parser
from lfpr.experiments.runs import Stage, write_json
from lfpr.masks import Masks
from lfpr.paper.schema import TABLES, write_tables
from lfpr.paper.studies import (
    COMPARED,
    SHOWN,
    cascade_rows,
    growth_rows,
    minutes_rows,
    scale_rows,
    scoring_rows,
    sensitivity_rows,
    speed_rows,
)


def collect(grid: dict, runs: str | Path, data: str | Path = "") -> dict[str, pd.DataFrame]:
    """The tables of `lfpr.paper.schema.TABLES` that the grid's experiments have.

    `data`: the folder of the user's own files, for the profile full. Runs that are missing are computed.
    """
    tables: dict[str, list] = {name: [] for name in TABLES}
    for name, plan in grid.items():
        experiment = open_experiment(name, plan["profile"], runs, **inputs(plan, data))
        about = {"experiment": name, "profile": plan["profile"]}
        place = PLACE | {"method": "unpruned", "constraint": 1.0, "retrained": False}
        size = {"fraction": 1.0, "parameters": experiment.encoder.num_parameters}
        tables["results"].append(about | place | experiment.baseline().result | size)
        for method in COMPARED:
            tables["importance"] += importance_rows(experiment, method)
        for cell in cells(plan):
            stages = run(experiment, cell)
            for stage, done in stages.items():
                row = about | cell.place | {"variant": cell.variant, "retrained": stage == "retrained"}
                tables["results"].append(row | _cost(done) | done.result)
            if cell.variant:
                continue
            if experiment.kind == "clip":
                tables["cascade"] += cascade_rows(experiment, cell, stages)
                tables["growth"] += growth_rows(experiment, cell, stages)
            tables["layers"] += layer_rows(experiment, cell, next(iter(stages.values())))
            shown = cell.place["method"], cell.place["constraint"]
            if shown == (SHOWN["method"], SHOWN["constraint"]) and "retrained" in stages:
                tables["mask_values"] += mask_rows(experiment, cell, stages["retrained"])
        tables["speed"] += speed_rows(experiment)
        if experiment.kind == "clip":
            tables["sensitivity"] += sensitivity_rows(experiment)
            tables["scales"] += scale_rows(experiment)
        if plan.get("scoring"):
            tables["scoring"] += scoring_rows(experiment)
    tables["minutes"] += minutes_rows(runs)
    return {key: pd.DataFrame(rows).reindex(columns=TABLES[key]) for key, rows in tables.items() if rows}


def _cost(stage: Stage) -> dict:
    """What a pruned model's file takes on disk, and its stage took in all where the result says nothing else."""
    size = sum(file.stat().st_size for file in (stage.folder / "model").iterdir())
    return {"megabytes": size / 1e6, "minutes": stage.provenance["seconds"] / 60}


def saved_score(experiment, place: dict, retrained: bool, folder: str | Path) -> float | None:
    """The score of this cell of `experiment`, in its own way, in `folder/results.csv`; None if it is not there.

    `place`: the keys of `lfpr.experiments.grid.PLACE`. For notebooks to compare a score with the committed one.
    """
    path = Path(folder, "results.csv")
    if not path.is_file():
        return None
    rows = pd.read_csv(path)
    wanted = {"experiment": experiment.name, "profile": experiment.profile, "retrained": retrained} | place
    for column, value in wanted.items():
        rows = rows[rows[column].isna() if value is None else rows[column].astype(type(value)) == value]
    rows = rows[rows.variant.isna()]
    return None if rows.empty else float(rows.score.iloc[0])


def importance_rows(experiment, method: str, seed: int = 0) -> list[dict]:
    """A row per head and neuron: its importance."""
    scores = experiment.importance(method, seed)
    about = {"experiment": experiment.name, "method": method}
    return [
        about | {"kind": kind, "layer": layer, "index": index, "importance": value}
        for kind, table in (("head", scores.heads), ("neuron", scores.neurons))
        for layer, row in enumerate(table.tolist())
        for index, value in enumerate(row)
    ]


def layer_rows(experiment, cell: Cell, pruned: Stage) -> list[dict]:
    """A row per layer of a pruned model: the heads and neurons kept, and how many there were."""
    encoder = experiment.encoder
    full = {"full_heads": encoder.num_heads, "full_neurons": encoder.num_neurons}
    kept = zip(pruned.result["heads"], pruned.result["neurons"], strict=True)
    return [
        {"experiment": experiment.name} | cell.place | {"layer": layer, "heads": heads, "neurons": neurons} | full
        for layer, (heads, neurons) in enumerate(kept)
    ]


def mask_rows(experiment, cell: Cell, retrained: Stage) -> list[dict]:
    """A row per kept head and neuron: its mask value after retraining (1 before)."""
    masks = Masks.load(retrained.folder / "masks.safetensors")
    return [
        {"experiment": experiment.name} | cell.place | {"kind": kind, "layer": layer, "value": value}
        for kind, table in (("head", masks.heads), ("neuron", masks.neurons))
        for layer, row in enumerate(table)
        for value in row[row != 0].tolist()
    ]


def main() -> None:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--out", default="paper_figures", help="folder of the tables")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    grid = load_grid(arguments.grid)
    tables = collect(grid, arguments.runs, arguments.data)
    write_tables(tables, arguments.out)
    rows = {name: len(table) for name, table in tables.items()}
    if arguments.stamp:
        write_json(arguments.stamp, rows)
    print(f"{arguments.out}: {rows}")


if __name__ == "__main__":
    main()
