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
from typing import TYPE_CHECKING, Any, get_type_hints

from lfpr.checks import check_choice
from lfpr.experiments.cell import CELL_FIELDS, Cell
from lfpr.experiments.kinds import check_type
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

    runs: by default the folder of that name in the checkout; relative paths are the current folder's, and in parameters
    of notebooks and in settings of grids the checkout's. data_root, checkpoint: the user's files of profile "full";
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
        check_type(name, None if isinstance(path, str) and not path else path, str | Path | None)
    data_root, checkpoint = data_root or None, checkpoint or None
    if profile == "full" and not data_root:
        raise ValueError(f"profile = 'full' needs data_root (found {data_root!r}), see data/README.md")
    runs, spec, task_class = _runs(runs), SPECS[experiment], _task(experiment)
    settings = settings_of(experiment, profile, settings)
    from lfpr.experiments.experiment import Experiment

    arguments = spec, profile, runs, data_root, checkpoint, settings, "auto" if device in (None, "") else device
    if not os.environ.get("LFPR_WARM"):  # elsewhere nobody else may have the model that one changes
        return Experiment(spec, task_class(*arguments))
    key = tuple(map(repr, (experiment, *arguments[1:])))
    if key not in _opened:
        _opened.clear()
        _opened[key] = task_class(*arguments)
    return Experiment(spec, _opened[key])


def settings_of(experiment: str, profile: str, values: Mapping[str, Any]) -> Any:
    """The settings of an experiment's profile with other `values`, by name, that are not None; names are those of its
    fields, or of the fields of dataclasses among them. Raises ValueError naming what is unknown and the nearest name,
    or a value that is not allowed."""
    settings = _task(experiment).default_settings(SPECS[experiment], profile)
    inner = [field.name for field in fields(settings) if is_dataclass(getattr(settings, field.name))]
    known = {
        name: (part, kind)
        for part in (*inner, "")  # "": its own fields, before others of their names
        for name, kind in get_type_hints(type(getattr(settings, part) if part else settings)).items()
        if not part or name not in CELL_FIELDS
    }
    changed: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in known:
            near = nearest(str(name), known)
            raise ValueError(f"unknown setting {name!r} of {experiment}: {near}there are {sorted(known)}")
        if value is not None:
            part, kind = known[name]
            changed.setdefault(part, {})[name] = check_type(name, value, kind)
    own = changed.pop("", {})
    parts = {part: replace(own.pop(part, getattr(settings, part)), **new) for part, new in changed.items()}
    return replace(settings, **own, **parts)


def _task(experiment: str) -> type[Task]:
    module, name = SPECS[experiment].task.split(":")
    return getattr(importlib.import_module(module), name)


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
