"""From finished runs to the tidy tables behind every figure.

    python -m lfpr.results --grid workflow/grid.yaml:default

Computing and plotting are separate: this module alone knows the runs, ``lfpr.figures`` alone draws, and between them
are CSV files in ``paper_figures/``. One row of ``results.csv`` is one score.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
import yaml

from lfpr.experiments import TAPExperiment, choose, open_experiment
from lfpr.masks import Masks
from lfpr.runs import Stage, write_json
from lfpr.tables import TABLES, write_file

SHOWN = ("label-free", 0.4)  # method and constraint whose mask values are kept for the figure


def load_grid(source: str) -> dict:
    """The grid ``NAME`` of ``FILE.yaml``, given as ``FILE.yaml:NAME``. Raises ``ValueError`` naming what is wrong."""
    path, _, name = source.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"grid = {source!r}: expected FILE.yaml:NAME, and there is no file {path!r}")
    grids = yaml.safe_load(Path(path).read_text())
    choose("grid", name, sorted(grids))
    return grids[name]


def collect(grid: dict, runs: str | Path, **inputs) -> dict[str, pd.DataFrame]:
    """The tables ``results``, ``layers``, ``importance`` and ``mask_values`` of a grid's runs.

    ``inputs`` (``data_root``, ``checkpoint``) go to ``open_experiment``. Runs that are missing are computed.
    """
    tables: dict[str, list] = {"results": [], "layers": [], "importance": [], "mask_values": []}
    for name, plan in grid.items():
        experiment = open_experiment(name, plan["profile"], runs, **inputs)
        encoder = experiment.encoder
        about = {"experiment": name, "profile": plan["profile"]}
        unpruned = {"method": "unpruned", "heuristic": "sum", "constraint": 1.0, "seed": 0, "retrained": False}
        size = {"fraction": 1.0, "parameters": encoder.num_parameters}
        tables["results"].append(about | unpruned | experiment.baseline().result | size)
        for method, seeds in plan["methods"].items():
            tables["importance"] += importance_rows(experiment, method, seeds[0])
            for constraint in plan["constraints"]:
                for seed in seeds:
                    cell = {"method": method, "heuristic": "sum", "constraint": constraint, "seed": seed}
                    pruned = experiment.prune(**cell)
                    retrained = experiment.retrain(**cell)
                    tables["results"] += [
                        about | cell | _numbers(pruned, False),
                        about | cell | _numbers(retrained, True),
                    ]
                    tables["layers"] += layer_rows(experiment, pruned)
                    if (method, constraint) == SHOWN:
                        tables["mask_values"] += mask_rows(experiment, retrained)
    return {key: pd.DataFrame(rows).reindex(columns=TABLES[key]) for key, rows in tables.items()}


def write(tables: dict[str, pd.DataFrame], folder: str | Path) -> None:
    """One CSV file a table, six significant digits, atomically."""
    for name, table in tables.items():
        write_file(Path(folder, f"{name}.csv"), table.to_csv(index=False, float_format="%.6g").encode())


def _numbers(stage: Stage, retrained: bool) -> dict:
    columns = ("score", "questions", "fraction", "parameters", "percent", "last_layers", "iterations", "minutes")
    return {"retrained": retrained} | {name: stage.result.get(name) for name in columns}


def importance_rows(experiment: TAPExperiment, method: str, seed: int = 0) -> list[dict]:
    """A row per head and neuron: its importance."""
    scores = experiment.importance(method, seed)
    about = {"experiment": experiment.name, "method": method}
    return [
        about | {"kind": kind, "layer": layer, "index": index, "importance": value}
        for kind, table in (("head", scores.heads), ("neuron", scores.neurons))
        for layer, row in enumerate(table.tolist())
        for index, value in enumerate(row)
    ]


def layer_rows(experiment: TAPExperiment, pruned: Stage) -> list[dict]:
    """A row per layer of a pruned model: the heads and neurons kept, and how many there were."""
    encoder = experiment.encoder
    full = {"full_heads": encoder.num_heads, "full_neurons": encoder.num_neurons}
    kept = zip(pruned.result["heads"], pruned.result["neurons"], strict=True)
    return [
        _about(experiment, pruned) | {"layer": layer, "heads": heads, "neurons": neurons} | full
        for layer, (heads, neurons) in enumerate(kept)
    ]


def mask_rows(experiment: TAPExperiment, retrained: Stage) -> list[dict]:
    """A row per kept head and neuron: its mask value after ReSt (1 before)."""
    masks = Masks.load(retrained.folder / "masks.safetensors")
    return [
        _about(experiment, retrained) | {"kind": kind, "layer": layer, "value": value}
        for kind, table in (("head", masks.heads), ("neuron", masks.neurons))
        for layer, row in enumerate(table)
        for value in row[row != 0].tolist()
    ]


def _about(experiment: TAPExperiment, stage: Stage) -> dict:
    parameters = stage.provenance["parameters"]
    return {"experiment": experiment.name} | {
        name: parameters[name] for name in ("method", "heuristic", "constraint", "seed")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grid", default="workflow/grid.yaml:default", help="FILE.yaml:NAME")
    parser.add_argument("--runs", default="runs", help="folder of the runs")
    parser.add_argument("--out", default="paper_figures", help="folder of the tables")
    parser.add_argument("--stamp", help="file to write when done: the number of rows of each table")
    parser.add_argument("--data-root", help="the user's data, for the profile full")
    parser.add_argument("--checkpoint", help="the user's checkpoint, for the profile full")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    grid = load_grid(arguments.grid)
    tables = collect(grid, arguments.runs, data_root=arguments.data_root, checkpoint=arguments.checkpoint)
    write(tables, arguments.out)
    rows = {name: len(table) for name, table in tables.items()}
    if arguments.stamp:
        write_json(arguments.stamp, rows)
    print(f"{arguments.out}: {rows}")


if __name__ == "__main__":
    main()
