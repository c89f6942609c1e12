"""The parameters of notebooks, before any runs: what a notebook declares, and what is wrong with what it is to get.

Nothing here starts a kernel, or imports Jupyter or torch: what is wrong is said at once.
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


def project() -> Path:
    """The checkout, with its notebooks and grids. Raises FileNotFoundError where the package is installed without."""
    if (root := checkout()) is None:
        raise FileNotFoundError("lfpr is not used from a checkout: there are no notebooks/ and no workflow/")
    return root


def find_notebook(name: str, folder: Path | None = None) -> Path:
    """Notebook `name`, or its file, of `folder`, or else of the checkout. Raises ValueError naming the nearest one."""
    folder = folder or project() / "notebooks"
    names = sorted(path.stem for path in folder.glob("*.ipynb"))
    stem = Path(name).name.removesuffix(".ipynb")
    if stem not in names:
        raise ValueError(f"notebook = {name!r}: {nearest(stem, names)}{folder} has {names}")
    return folder / f"{stem}.ipynb"


def declared(notebook: str | Path) -> dict[str, Any]:
    """The parameters of a notebook of the checkout, or in a file, with their defaults: the literals of its cell tagged
    `parameters`; none if it has no such cell."""
    path = Path(notebook) if Path(notebook).suffix == ".ipynb" else project() / "notebooks" / f"{notebook}.ipynb"
    sources = [_source(cell) for cell in _cells(path) if "parameters" in cell["metadata"].get("tags", ())]
    return {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for source in sources
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }


def check_names(notebook: str, names: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise ValueError for the first of `names` that is not `allowed`, with the nearest one that is."""
    allowed = list(allowed)
    for name in names:
        if name not in allowed:
            raise ValueError(
                f"parameter {name}: {notebook} has none of this name; {nearest(name, allowed)}it has {allowed}"
            )


def check_parameters(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """Raise ValueError for a parameter that the notebook does not declare, and for a value of another kind than its
    default (None is what each says of it), or that no cell and no experiment has."""
    defaults = declared(notebook)
    check_names(notebook.stem, parameters, defaults)
    for name, value in parameters.items():
        if None not in (value, defaults[name]) and _kind(value) is not _kind(defaults[name]):
            kind = KINDS.get(_kind(defaults[name]), _kind(defaults[name]).__name__)
            raise ValueError(f"{name} = {value!r}: must be {kind}, such as {defaults[name]!r}")
    Cell(**{name: value for name, value in parameters.items() if name in CELL_FIELDS})
    experiment = parameters.get("experiment")
    if experiment is not None and experiment not in SPECS:
        raise ValueError(f"experiment = {experiment!r}: {nearest(experiment, SPECS)}must be one of {list(SPECS)}")


def source_hash(notebook: Path) -> str:
    """Identifies what a notebook says and does; not what it once put out."""
    cells = _cells(notebook)
    return fingerprint([[cell["cell_type"], _source(cell), cell["metadata"].get("tags", [])] for cell in cells])


def nearest(name: str, names: Iterable[str]) -> str:
    """A question whether the nearest one of `names` was meant; "" if none is near."""
    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean {near[0]}? " if near else ""


def _kind(value: Any) -> type:
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def _cells(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def _source(cell: dict) -> str:
    return "".join(cell["source"])
