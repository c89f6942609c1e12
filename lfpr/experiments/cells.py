"""Computes the cells of a grid.

    python -m lfpr.experiments.cells --grid workflow/grid.yaml:default --experiment tap-textvqa [--job 0]

runs an experiment's cells, all of them or one job's share, into `runs/`; finished stages are not run again. The first
job also makes what the tables beside the scores need (`lfpr.paper.studies`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from tqdm import tqdm

from lfpr.experiments import TAPExperiment, open_experiment
from lfpr.experiments.grid import Cell, cells, inputs, load_grid, parser, share
from lfpr.experiments.runs import Stage, write_json
from lfpr.paper.studies import cascade_rows, study


def run(experiment: TAPExperiment, cell: Cell) -> dict[str, Stage]:
    """The finished stages of a cell, by name. `experiment` is an opened one (`lfpr.open_experiment`)."""
    settings = {name: value for name, value in cell.options.items() if name in experiment.settings.__dataclass_fields__}
    options = {name: value for name, value in cell.options.items() if name not in settings}
    place = {name: value for name, value in cell.place.items() if value is not None}
    chosen = experiment.with_settings(**settings) if settings else experiment
    stages = {"pruned": chosen.prune, "retrained": chosen.retrain}
    return {name: stages[name](**place, **options) for name in cell.stages}


def main() -> None:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--experiment", required=True, help="one of the grid's experiments")
    options.add_argument("--job", type=int, help="which share of the cells; all by default")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    grid = load_grid(arguments.grid)
    if arguments.experiment not in grid:
        raise ValueError(f"experiment = {arguments.experiment!r}: the grid has {list(grid)}")
    plan = grid[arguments.experiment]
    chosen = cells(plan) if arguments.job is None else share(plan, arguments.job)
    given = inputs(plan, arguments.data)
    experiment = open_experiment(arguments.experiment, plan["profile"], arguments.runs, **given)
    if not arguments.job:
        experiment.teach()  # once for all jobs, which prune meanwhile
    for cell in tqdm([cell for cell in chosen if "pruned" in cell.stages], desc=f"{arguments.experiment}: prune"):
        run(experiment, replace(cell, stages=("pruned",)))
    done = []
    for cell in tqdm(chosen, desc=f"{arguments.experiment}: retrain"):
        stages = run(experiment, cell)
        if experiment.kind == "clip" and not cell.variant:
            cascade_rows(experiment, cell, stages)
        done.append(cell.place | {"variant": cell.variant} | {name: s.result for name, s in stages.items()})
    if not arguments.job:
        study(experiment, plan.get("scoring", False))
    if arguments.stamp:
        write_json(arguments.stamp, done)


if __name__ == "__main__":
    main()
