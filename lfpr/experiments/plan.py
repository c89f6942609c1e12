"""What a grid would run and about how long that takes: `make paper` before it starts.

    python -m lfpr.experiments.plan --grid workflow/grid.yaml:default --cores 2

Expected times add up what `workflow/seconds.yaml` holds, measured on one core with the mini profile: of each
experiment, its notebooks and whatever else runs once, and one importance, one pruning and one retraining. `any` is
what runs once for all. Those of the profile full depend on the user's data and machine: they are not known.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from lfpr.experiments.grid import Cell, cells, load_grid

NOTEBOOKS = ("01_data", "02_importance", "03_prune", "04_retrain", "05_evaluate")
CELLS = ("importance", "pruned", "retrained")
SCORED_AT_ONCE = ("magnitude", "l1", "random")
SAMPLING = ("num_samples", "step")  # options of a cell that ask for an importance of its own
ALL = "any"


@dataclass(frozen=True)
class Step:
    """`runs` jobs, or cells, of one kind, and their expected seconds; None if they were never measured."""

    experiment: str
    name: str
    runs: int
    seconds: float | None


def plan(grid: dict, measured: dict[str, dict]) -> list[Step]:
    """The steps of `grid` (see `lfpr.experiments.grid.load_grid`) with the expected seconds of all their runs.

    `measured`: seconds by experiment and step. Those of a cell may depend on the share of the model that is kept:
    `{0.5: 58, 1: 24}` is 58 up to one half, and 24 above.
    """
    steps = []
    for experiment, entry in grid.items():
        found = cells(entry)
        known = measured.get(experiment, {}) if entry["profile"] == "mini" else {}  # real data take their own time
        shown = [NOTEBOOKS[0], *entry.get("notebooks", NOTEBOOKS[1:])]
        once = [*shown, *(name for name in known if name not in NOTEBOOKS + CELLS)]
        steps += [Step(experiment, name, 1, known.get(name)) for name in once]
        retrained = [cell for cell in found if "retrained" in cell.stages]
        for name, chosen in zip(CELLS, (_scored(found), found, retrained), strict=True):
            each = [_of_cell(known.get(name), cell) for cell in chosen]
            steps.append(Step(experiment, name, len(each), None if None in each else sum(each)))
    return steps + [Step(ALL, name, 1, seconds) for name, seconds in measured.get(ALL, {}).items()]


def _scored(found: list[Cell]) -> list[Cell]:
    """One cell for each importance that gradients must be computed for."""
    keys = {(c.place["method"], c.place["seed"], *map(c.options.get, SAMPLING)): c for c in found}
    return [cell for cell in keys.values() if cell.place["method"] not in SCORED_AT_ONCE]


def _of_cell(seconds: float | dict[float, float] | None, cell: Cell) -> float | None:
    """Those of the first share that the cell does not exceed."""
    if not isinstance(seconds, dict):
        return seconds
    constraint, percentile = cell.place["constraint"], cell.place["percentile"]
    kept = 1 - percentile / 100 if constraint is None else constraint
    return next(seconds[limit] for limit in sorted(seconds) if kept <= limit)


def render(steps: list[Step], cores: int) -> Iterator[str]:
    """The lines of a table, and what the whole takes on `cores` cores."""
    yield f"{'experiment':14} {'step':16} {'runs':>5} {'minutes':>8}"
    for step in steps:
        minutes = "?" if step.seconds is None else f"{step.seconds / 60:.1f}"
        yield f"{step.experiment:14} {step.name:16} {step.runs:5} {minutes:>8}"
    total = sum(step.seconds or 0 for step in steps) / 60
    unknown = sorted({step.experiment for step in steps if step.seconds is None})
    yield f"{'total':14} {'':16} {sum(step.runs for step in steps):5} {total:8.1f}"
    share = f"about {total / cores:.0f} minutes on {cores} cores"
    yield share + (f", and the time of {', '.join(unknown)}, not measured yet" if unknown else "")
    yield "What runs/ already holds is not run again."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grid", default="workflow/grid.yaml:default", help="FILE.yaml:NAME")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="how many jobs run at once")
    parser.add_argument("--seconds", default="workflow/seconds.yaml", help="measured seconds by experiment and step")
    arguments = parser.parse_args()
    if arguments.cores < 1:
        parser.error(f"cores = {arguments.cores}: must be at least 1")
    measured = yaml.safe_load(Path(arguments.seconds).read_text())
    print("\n".join(render(plan(load_grid(arguments.grid), measured), arguments.cores)))


if __name__ == "__main__":
    main()
