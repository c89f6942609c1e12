"""The parameters of notebooks, before any runs: what a notebook declares, and what is wrong with what it is to get.

Values are taken as they are meant, never as what they merely count as: text is no number, and no True or False (so
papermill's -p gives `rescaled` False, and neither false nor -r does). Relative paths are the checkout's, wherever a
notebook was started.

Nothing here starts a kernel, or imports Jupyter, or torch but for `settings`: what is wrong is said at once.
"""

from __future__ import annotations

import ast
import difflib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lfpr.experiments.cell import CELL_FIELDS, Cell
from lfpr.experiments.kinds import check_count, check_range, check_type
from lfpr.experiments.runs import fingerprint
from lfpr.experiments.specs import SPECS
from lfpr.files import checkout

OPENING = ("experiment", "profile", "runs", "data_root", "checkpoint", "device")
"""Parameters that are no settings."""
MODELS = ("checkpoint", "model_folder", "first_level")
"""Parameters and settings that name a folder or file, or a model on a hub."""
PATHS = ("runs", "data_root", "masks", "submission", "samples", "folder", "figures_folder", "scores", *MODELS)
COUNTS = {"limit": (1,), "num_texts": (1, 100)}
"""Parameters that count what notebooks take, and their smallest and largest value."""


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
                f"parameter {name}: {notebook} has none of this name; {nearest(str(name), allowed)}it has {allowed}"
            )


def check_parameters(notebook: str | Path, parameters: Mapping[str, Any]) -> None:
    """Raise ValueError for a parameter that the notebook does not declare, and for a value of another kind than its
    default, or that no cell, setting or study of the experiment has."""
    defaults = declared(notebook)
    check_names(Path(notebook).stem, parameters, defaults)
    given = {name: value for name, value in parameters.items() if value is not None}  # None is what each says of it
    for name, value in given.items():
        default = defaults[name]
        if name in PATHS and value != "":
            check_path(name, value)
        elif default is not None and name not in CELL_FIELDS:
            check_type(name, value, type(default))
        if name in COUNTS:
            check_count(name, value, *COUNTS[name])
        if isinstance(default, list) and name.removesuffix("s") in CELL_FIELDS:
            _ = [Cell(**{name.removesuffix("s"): one}) for one in value]
    cell = Cell(**{name: value for name, value in parameters.items() if name in CELL_FIELDS})
    experiment = given.get("experiment", defaults.get("experiment"))
    if experiment is None:
        return
    if experiment not in SPECS:
        raise ValueError(f"experiment = {experiment!r}: {nearest(experiment, SPECS)}must be one of {list(SPECS)}")
    spec = SPECS[experiment]
    cell.resolved(spec, spec.methods)  # which of them can be rearranged, the experiment says
    studies = given.get("studies", [])
    if not isinstance(studies, list | tuple) or any(name not in spec.studies for name in studies):
        raise ValueError(f"studies = {studies!r}: must be a list of some of {list(spec.studies)}")
    if "settings" in given:
        check_settings(experiment, given.get("profile", defaults["profile"]), given)


def check_settings(experiment: str, profile: str, parameters: Mapping[str, Any]) -> None:
    """Raise ValueError for a parameter `settings` that is no mapping, or has a name or value that the profile of the
    experiment has not, or a name that is a parameter of its own."""
    from lfpr.experiments import PROFILES, settings_of

    settings = parameters["settings"]
    if not isinstance(settings, Mapping):
        raise ValueError(f"settings = {settings!r}: must be a mapping, such as {{lr: 1.0e-5}}")
    if wrong := [name for name in settings if name in OPENING or parameters.get(name) is not None]:
        raise ValueError(f"settings = {settings!r}: {wrong[0]} is a parameter of its own")
    check_range("profile", profile, f"one of {list(PROFILES)}", PROFILES.__contains__)
    settings_of(experiment, profile, settings)
    for name in set(settings) & set(PATHS):
        check_path(name, settings[name])


def check_path(name: str, value: Any) -> None:
    """Raise ValueError for what is no path, and for one of the spellings of None, True and False that come as text."""
    if str(check_type(name, value, str | Path)).lower() in ("none", "null", "true", "false"):
        raise ValueError(f"{name} = {value!r}: must be a path, or None as papermill's -p reads it; a file is ./{value}")


def of_checkout(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same parameters or settings, with relative paths as the checkout's. What may be a model's name on a hub stays
    as it is, unless the checkout has a file or folder of that name."""
    found = dict(values)
    for name in PATHS:
        if values.get(name):
            place = project() / os.path.expanduser(values[name])
            found[name] = str(place) if name not in MODELS or place.exists() else values[name]
    return found


def source_hash(notebook: Path) -> str:
    """Identifies what a notebook says and does; not what it once put out."""
    cells = _cells(notebook)
    return fingerprint([[cell["cell_type"], _source(cell), cell["metadata"].get("tags", [])] for cell in cells])


def nearest(name: str, names: Iterable[str]) -> str:
    """A question whether the nearest one of `names`, in whatever case, was meant; "" if none is near."""
    cased = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name.lower(), cased, 1)
    return f"did you mean {cased[near[0]]}? " if near else ""


def _cells(notebook: Path) -> list[dict]:
    try:
        return json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{notebook}: is no notebook: {error!r}") from None


def _source(cell: dict) -> str:
    return "".join(cell["source"])
