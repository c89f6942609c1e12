"""Label-free pruning and retraining of transformers, and structured post-training pruning in general.

    encoder = lfpr.prunable(model)
    gradients = lfpr.collect_gradients(encoder, batches, objective)
    masks = lfpr.search(gradients.importance(), lfpr.ParameterCost(encoder), constraint=0.4)
    small = lfpr.shrink(model, masks)

`lfpr.tap` (the TAP model, its data and metrics), `lfpr.experiments` and `lfpr.paper.figures` are imported when first
used, since they bring in heavier packages.
"""

import importlib

from lfpr.cost import MacCost, ParameterCost
from lfpr.encoder import FAMILIES, Family, PrunableEncoder, UnsupportedArchitecture, encoders, prunable
from lfpr.export import export_onnx
from lfpr.gradients import MaskGradients, collect_gradients
from lfpr.importance import activation_importance, magnitude, random_importance
from lfpr.latency.cost import LatencyCost
from lfpr.latency.search import search_latency
from lfpr.masks import Importance, Masks
from lfpr.rearrange import rearrange
from lfpr.rescale import Rescaled, SubLayerFit, rescale
from lfpr.retrain import ReSt, TrainableMasks, retrain
from lfpr.save import load_pruned, save_pruned
from lfpr.search import BudgetError, search, search_proportional, search_threshold
from lfpr.sensitivity import all_but_one
from lfpr.shrink import NotEquivalent, fold, shrink, verify_equivalent

__all__ = [
    "FAMILIES",
    "BudgetError",
    "Family",
    "Importance",
    "LatencyCost",
    "MacCost",
    "MaskGradients",
    "Masks",
    "NotEquivalent",
    "ParameterCost",
    "PrunableEncoder",
    "ReSt",
    "Rescaled",
    "SubLayerFit",
    "TrainableMasks",
    "UnsupportedArchitecture",
    "activation_importance",
    "all_but_one",
    "collect_gradients",
    "encoders",
    "export_onnx",
    "fold",
    "load_pruned",
    "magnitude",
    "open_experiment",
    "prunable",
    "random_importance",
    "rearrange",
    "rescale",
    "retrain",
    "save_pruned",
    "search",
    "search_latency",
    "search_proportional",
    "search_threshold",
    "shrink",
    "verify_equivalent",
]

_LAZY = {"clip", "comparisons", "experiments", "explore", "figures", "grid", "mini", "page", "paper", "results", "runs",
         "sentences", "tables", "tap"}  # fmt: skip


def __getattr__(name: str):
    if name in _LAZY:
        return importlib.import_module(f"lfpr.{name}")
    if name == "open_experiment":
        return importlib.import_module("lfpr.experiments").open_experiment
    raise AttributeError(f"module 'lfpr' has no attribute {name!r}")
