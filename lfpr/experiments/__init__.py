"""The experiments: which model, data and metric, in which profile, and their stages from importance to retraining.

`open_experiment("tap-textvqa", profile="mini")` gives an `Experiment`, whose methods are the paper's stages; a `Cell`
says which pruned model is meant. Profiles:

* `mini` (default): a small trained baseline from `data/mini` on rendered scenes, written to disk in TAP's formats or as
  MSCOCO captions.
* `full`: the user's own data and checkpoint, below `data_root` or given by `checkpoint` (see `data/README.md`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfpr.budget import check_choice
from lfpr.experiments.cell import CELL_FIELDS, Cell
from lfpr.experiments.parameters import nearest
from lfpr.experiments.specs import SPECS, ExperimentSpec
from lfpr.files import checkout
from lfpr.lazy import lazy

if TYPE_CHECKING:
    from lfpr.experiments.experiment import Experiment
    from lfpr.experiments.task import Task

__all__ = [
    "EXPERIMENTS",
    "PROFILES",
    "SPECS",
    "Cell",
    "ExperimentSpec",
    "from_parameters",
    "open_experiment",
    "read_parameters",
]

EXPERIMENTS = tuple(SPECS)
PROFILES = ("mini", "full")

HINTS = {
    (str, float): "; YAML reads 1e-5 as text, and 1.0e-5 as a number",
    (bool, str): "; YAML reads yes and no as True and False: quote them",
}
"""Types of a setting's value and of its default -> what may have gone wrong on the way from the shell."""

_opened: dict[tuple, Task] = {}
"""The last task that was opened, in the kernel of a grid's notebooks: model and data are read once for all of them."""


def open_experiment(
    experiment: str = "tap-textvqa",
    profile: str = "mini",
    runs: str | Path | None = None,
    data_root: str | Path | None = None,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    **settings: Any,
) -> Experiment:
    """One of `EXPERIMENTS`, its inputs checked: model, data and all stages, which are kept below `runs`.

    runs: by default the folder of that name in the checkout. data_root, checkpoint: the user's files of profile "full";
    without a checkpoint the published one is looked for, below data_root and beside it.
    device: where every stage runs: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1". settings: override those of
    the profile, by name: fields of its `SETTINGS`, or of what is in them (`lr` of `rest`); None leaves the profile's
    value.

    Raises ValueError naming the parameter for an unknown experiment, profile, device or setting, and FileNotFoundError
    or CheckpointError for missing inputs, before any work.
    """
    check_choice("experiment", experiment, EXPERIMENTS)
    check_choice("profile", profile, PROFILES)
    for name, path in (("runs", runs), ("data_root", data_root), ("checkpoint", checkpoint)):
        if not isinstance(path, str | Path | None):
            raise ValueError(f"{name} = {path!r}: must be a path")
    data_root, checkpoint = data_root or None, checkpoint or None
    if profile == "full" and not data_root:
        raise ValueError(f"profile = 'full' needs data_root (found {data_root!r}), see data/README.md")
    runs, spec = _runs(runs), SPECS[experiment]
    module, name = spec.task.split(":")
    task_class = getattr(importlib.import_module(module), name)
    settings = {name: value for name, value in settings.items() if value is not None}
    settings = override(task_class.default_settings(spec, profile), settings, experiment)
    from lfpr.experiments.experiment import Experiment

    arguments = spec, profile, runs, data_root, checkpoint, settings, device or "auto"
    if not os.environ.get("LFPR_WARM"):  # elsewhere nobody else may have the model that one changes
        return Experiment(spec, task_class(*arguments))
    key = tuple(map(repr, (experiment, *arguments[1:])))
    if key not in _opened:
        _opened.clear()
        _opened[key] = task_class(*arguments)
    return Experiment(spec, _opened[key])


def override(settings: Any, values: Mapping[str, Any], experiment: str) -> Any:
    """A profile's settings with other `values`, by name; names are those of its fields, or of the fields of dataclasses
    among them. Raises ValueError naming what is unknown and the nearest name, or a value of another type."""
    inner = {
        name: field.name
        for field in fields(settings)
        if is_dataclass(part := getattr(settings, field.name))
        for name in (f.name for f in fields(part))
        if name not in CELL_FIELDS
    }
    known = {field.name: getattr(settings, field.name) for field in fields(settings)}
    known |= {name: getattr(known[whole], name) for name, whole in inner.items() if name not in known}
    changed: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in known:
            near = nearest(str(name), known)
            raise ValueError(f"unknown setting {name!r} of {experiment}: {near}there are {sorted(known)}")
        if isinstance(known[name], tuple) and isinstance(value, list):  # YAML has no tuples
            value = tuple(value)
        _check_type(name, value, known[name])
        changed.setdefault("" if hasattr(settings, name) else inner[name], {})[name] = value
    whole = changed.pop("", {})
    parts = {name: replace(whole.pop(name, known[name]), **new) for name, new in changed.items()}
    return replace(settings, **whole, **parts)


def _check_type(name: str, value: Any, default: Any) -> None:
    """ValueError for a value of another type than the setting's, if that is not None."""
    if default is None or is_dataclass(default):
        fits = default is None or isinstance(value, type(default))
    elif isinstance(default, float):
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        fits = type(value) is type(default)
    if not fits:
        hint = HINTS.get((type(value), type(default)), "")
        raise ValueError(f"{name} = {value!r}: must be of type {type(default).__name__}, such as {default!r}{hint}")


def _runs(runs: str | Path | None) -> Path:
    if runs:
        return Path(runs).absolute()
    root = checkout()
    if root is None:
        raise ValueError("runs = None: outside a checkout of the project, say where artifacts are to be kept")
    return root / "runs"


__getattr__, __dir__ = lazy(
    __name__, names=dict.fromkeys(("from_parameters", "read_parameters"), "lfpr.experiments.notebook")
)
