"""The head of every notebook: its parameters checked, its experiment opened, the command that repeats it printed."""

from __future__ import annotations

import ast
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from lfpr.experiments import open_experiment
from lfpr.experiments.cell import CELL_FIELDS, Cell
from lfpr.experiments.experiment import Experiment
from lfpr.experiments.parameters import check_names, declared

OPENING = ("experiment", "profile", "runs", "data_root", "checkpoint", "device")
INJECTED = "# Parameters"  # how papermill begins the cell that it adds


def from_parameters(notebook: str, namespace: Mapping[str, Any], own: Iterable[str] = ()) -> tuple[Experiment, Cell]:
    """The experiment and the cell that a notebook's parameters name; to be called with its `globals()`.

    Parameters are those of `open_experiment`, fields of `Cell`, settings of the experiment's profile, one by one or any
    others together in a mapping `settings`, and the notebook's `own`. Prints the command that runs the notebook again
    with them, the experiment and the cell.

    Raises ValueError, before any work, for a parameter that the notebook does not have, naming the nearest one, or for
    a value that is not allowed.
    """
    values = read_parameters(notebook, namespace)
    cell = Cell(**{name: value for name, value in values.items() if name in CELL_FIELDS})
    settings = values.pop("settings", None) or {}
    if not isinstance(settings, Mapping) or (
        wrong := [name for name in settings if name in OPENING or values.get(name) is not None]
    ):
        what = f"{wrong[0]} is a parameter of its own" if isinstance(settings, Mapping) else "must be a mapping"
        raise ValueError(f"settings = {settings!r}: {what}; settings are such as {{lr: 1.0e-5}}")
    settings = {str(name): value for name, value in settings.items()}
    settings = {name: values[name] for name in values if name not in {*OPENING, *CELL_FIELDS, *own}} | settings
    experiment = open_experiment(**{name: values[name] for name in OPENING if name in values}, **settings)
    cell = experiment.cell(cell)
    _check_own(experiment, values)
    if any(name in values for name in CELL_FIELDS):
        experiment.check(cell)
    print(experiment)
    if "method" in values:
        print(f"cell: {', '.join(f'{name} {value}' for name, value in asdict(cell).items() if value is not None)}")
    return experiment, cell


def _check_own(experiment: Experiment, values: Mapping[str, Any]) -> None:
    """Raises ValueError or FileNotFoundError for what 05 would find at its end."""
    studies, submission = values.get("studies") or [], values.get("submission")
    if not isinstance(studies, list | tuple) or set(studies) - set(experiment.spec.studies):
        raise ValueError(f"studies = {studies!r}: must be a list of some of {list(experiment.spec.studies)}")
    if submission is not None:
        if not isinstance(submission, str) or not submission:
            raise ValueError(f"submission = {submission!r}: must be a file, such as answers.json")
        experiment.task.require_test()


def read_parameters(notebook: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a notebook's parameters; prints the command that runs it again with them. Raises ValueError for a
    parameter that the notebook does not have."""
    defaults = declared(notebook)
    check_names(notebook, _injected(namespace), defaults)
    values = {name: namespace[name] for name in defaults}
    print(command(notebook, {name: value for name, value in values.items() if value != defaults[name]}))
    return values


def command(notebook: str, parameters: Mapping[str, Any]) -> str:
    """The papermill command that runs a notebook with these parameters."""
    words = ["papermill", f"{notebook}.ipynb", "OUT.ipynb"]
    for name, value in parameters.items():
        plain = isinstance(value, str | int | float | None)
        words += ["-p", name, str(value)] if plain else ["-y", json.dumps({name: value})]
    return shlex.join(words)


def is_own(experiment: Experiment, cell: Cell) -> bool:
    """Whether a resolved cell differs from the experiment's own way in nothing but its place on the curve, or, without
    a search, in which masks it takes."""
    place = ("method", "constraint", "percentile", "seed", "heads_removed", "masks")
    return cell == experiment.cell(Cell(**{name: getattr(cell, name) for name in place}))


def _injected(namespace: Mapping[str, Any]) -> list[str]:
    """The names that papermill's own cell assigns, read from the history of this kernel."""
    for source in reversed(namespace.get("In", ())):
        if source.startswith(INJECTED):
            targets = (s.targets[0] for s in ast.parse(source).body if isinstance(s, ast.Assign))
            return [target.id for target in targets if isinstance(target, ast.Name)]
    return []
