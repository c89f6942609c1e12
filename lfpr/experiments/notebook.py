"""The head of every notebook: its parameters checked, its experiment opened, the command that repeats it printed."""

from __future__ import annotations

import ast
import json
import math
import shlex
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import asdict
from typing import Any

import yaml

from lfpr.experiments import open_experiment
from lfpr.experiments.cell import CELL_FIELDS, Cell
from lfpr.experiments.experiment import Experiment
from lfpr.experiments.parameters import OPENING, check_names, check_parameters, declared, of_checkout

INJECTED = "# Parameters"  # how papermill begins the cell that it adds


def from_parameters(
    notebook: str, namespace: MutableMapping[str, Any], own: Iterable[str] = ()
) -> tuple[Experiment, Cell]:
    """The experiment and the cell that a notebook's parameters name; to be called with its `globals()`.

    Parameters are those of `open_experiment`, fields of `Cell`, settings of the experiment's profile, one by one or any
    others together in a mapping `settings`, and the notebook's `own`. Prints the command that runs the notebook again
    with them, the experiment and the cell.

    Raises ValueError, before any work, for a parameter that the notebook does not have, naming the nearest one, or for
    a value that is not allowed.
    """
    values = read_parameters(notebook, namespace)
    cell = Cell(**{name: value for name, value in values.items() if name in CELL_FIELDS})
    settings = {str(name): value for name, value in (values.pop("settings", None) or {}).items()}
    others = {*OPENING, *CELL_FIELDS, *own}
    settings |= {name: value for name, value in values.items() if name not in others and value is not None}
    experiment = open_experiment(**{name: values[name] for name in OPENING if name in values}, **settings)
    cell = experiment.cell(cell)
    if values.get("submission"):
        experiment.task.require_test()
    if any(name in values for name in CELL_FIELDS):
        experiment.check(cell)
    print(experiment)
    if "method" in values:
        print(f"cell: {', '.join(f'{name} {value}' for name, value in asdict(cell).items() if value is not None)}")
    return experiment, cell


def read_parameters(notebook: str, namespace: MutableMapping[str, Any]) -> dict[str, Any]:
    """The values of a notebook's parameters; prints the command that runs it again with them. Relative paths become the
    checkout's, in `namespace`, too. Raises ValueError for a parameter that the notebook does not have, naming the
    nearest one, or for a value that is not allowed."""
    defaults = declared(notebook)
    check_names(notebook, _injected(namespace), defaults)
    values = {name: namespace[name] for name in defaults}
    check_parameters(notebook, values)
    print(command(notebook, {name: value for name, value in values.items() if value != defaults[name]}))
    values = of_checkout(values)
    namespace.update(values)
    if values.get("settings"):
        values["settings"] = of_checkout(values["settings"])
    return values


def command(notebook: str, parameters: Mapping[str, Any]) -> str:
    """The papermill command that runs a notebook of its folder with these parameters, for a shell."""
    words = ["papermill", f"{notebook}.ipynb", "OUT.ipynb"]
    for name, value in parameters.items():
        if isinstance(value, str):
            words += ["-r" if _is_read(value) else "-p", name, value]
        elif isinstance(value, int | float | None):
            words += ["-p", name, str(value)]
        else:  # as YAML: in JSON, 1e-05 would be text to it
            plain = json.loads(json.dumps({name: value}, default=lambda v: v.item() if hasattr(v, "item") else str(v)))
            words += ["-y", yaml.safe_dump(plain, default_flow_style=True, width=math.inf, sort_keys=False).strip()]
    return shlex.join(words)


def _is_read(text: str) -> bool:
    """Whether papermill's -p would take this text for another value."""
    if text in ("True", "False", "None"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


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
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            return [name for name in names if not name.startswith("PAPERMILL_")]  # its own, of --inject-paths
    return []
