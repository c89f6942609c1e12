"""Notebooks looked at before they run: where they are, the parameters that they declare, what they are made of.

Nothing here starts a kernel or imports Jupyter: what is wrong with a parameter is said at once.
"""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lfpr.experiments.cell import CELL_FIELDS, Cell
from lfpr.experiments.runs import fingerprint
from lfpr.experiments.specs import SPECS
from lfpr.files import checkout

KINDS = {bool: "True or False", float: "a number", str: "text", list: "a list", dict: "a mapping"}


def root() -> Path:
    """The checkout that holds notebooks and grids. Raises FileNotFoundError where the package is installed without."""
    if (found := checkout()) is None:
        raise FileNotFoundError("lfpr is not used from a checkout, and notebooks/ and workflow/ are not installed")
    return found


def find_notebook(name: str, folder: Path | None = None) -> Path:
    """Notebook `name`, or its file, of `folder`, or else of the checkout. Raises ValueError naming the nearest one."""
    folder = folder or root() / "notebooks"
    names = sorted(path.stem for path in folder.glob("*.ipynb"))
    stem = Path(name).name.removesuffix(".ipynb")
    if stem not in names:
        raise ValueError(f"notebook = {name!r}: {_must_be(stem, names)}")
    return folder / f"{stem}.ipynb"


def declared(notebook: Path) -> dict[str, Any]:
    """The parameters of a notebook, with their defaults: the literals of its cell tagged `parameters`."""
    values = {}
    for cell in _cells(notebook):
        if "parameters" in cell["metadata"].get("tags", []):
            for statement in ast.parse(_source(cell)).body:
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                values |= {target.id: ast.literal_eval(statement.value) for target in targets}
    return values


def check_parameters(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """Raises ValueError for a parameter that the notebook does not declare, naming the nearest one, and for a value of
    another kind than its default, or that no cell and no experiment has."""
    defaults = declared(notebook)
    for name, value in parameters.items():
        if name not in defaults:
            raise ValueError(f"parameter {name!r} of {notebook.stem}: {_must_be(name, defaults)}")
        default = defaults[name]
        if default is not None and _kind(value) is not _kind(default):
            kind = KINDS.get(_kind(default), type(default).__name__)
            raise ValueError(f"{name} = {value!r}: must be {kind}, such as {default!r}")
    Cell(**{name: value for name, value in parameters.items() if name in CELL_FIELDS})
    if (experiment := parameters.get("experiment")) is not None and experiment not in SPECS:
        raise ValueError(f"experiment = {experiment!r}: {_must_be(experiment, SPECS)}")


def source_hash(notebook: Path) -> str:
    """Identifies what a notebook says and does; not what it once put out."""
    cells = _cells(notebook)
    return fingerprint([[cell["cell_type"], _source(cell), cell["metadata"].get("tags", [])] for cell in cells])


def _kind(value: Any) -> type:
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def _must_be(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"there are {', '.join(names)}"


def _cells(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def _source(cell: dict) -> str:
    return "".join(cell["source"])
