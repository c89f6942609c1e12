"""What the notebooks show of an experiment: a module per kind of model, with functions of the same names."""

from __future__ import annotations

import importlib
from types import ModuleType

from lfpr.experiments.experiment import Experiment


def of(experiment: Experiment) -> ModuleType:
    """The module that draws what notebooks show of this experiment: `reading`, `examples`, `statistics`, `objective`,
    `compare`, `changes` and `kinds`."""
    return importlib.import_module(experiment.spec.pictures)
