"""Label-free pruning and retraining of transformers, and structured post-training pruning in general.

    encoder = lfpr.prunable(model)
    gradients = lfpr.collect_gradients(encoder, batches, objective)
    masks = lfpr.search(gradients.importance(), lfpr.ParameterCost(encoder), constraint=0.4)
    small = lfpr.shrink(model, masks)

Other scores than those of gradients, saving, measured latency, retraining and ONNX, the models `lfpr.tap`, `lfpr.sal`
and `lfpr.clip`, `lfpr.released` (what others released), `lfpr.experiments` and `lfpr.paper` are imported when they are
first used. Once transformers can load models, its `from_pretrained` reads pruned ones, too (`lfpr.hub`).
"""

import importlib

from lfpr.checks import BudgetError
from lfpr.cost import MacCost, ParameterCost
from lfpr.encoder import PrunableEncoder, encoders, prunable
from lfpr.families import FAMILIES, Family, UnsupportedArchitecture
from lfpr.gradients import MaskGradients, collect_gradients
from lfpr.lazy import lazy, when_imported
from lfpr.masks import Importance, Masks
from lfpr.rearrange import rearrange
from lfpr.search import search, search_proportional, search_threshold
from lfpr.shrink import NotEquivalent, fold, shrink, verify_equivalent

_ROOMS = ("clip", "experiments", "fisher", "kprune", "latency", "mini", "paper", "released", "sal", "save", "tap")
_ROOMS += ("training",)
_NAMES = {
    "KPrune": "lfpr.kprune",
    "KPruneRound": "lfpr.kprune",
    "LatencyCost": "lfpr.latency.cost",
    "ReSt": "lfpr.training.retrain",
    "Refit": "lfpr.reconstruct",
    "Rescaled": "lfpr.rescale",
    "Stepwise": "lfpr.steps",
    "SubLayerFit": "lfpr.rescale",
    "TrainableMasks": "lfpr.training.retrain",
    "activation_importance": "lfpr.importance",
    "all_but_one": "lfpr.sensitivity",
    "export_onnx": "lfpr.export",
    "load_delta": "lfpr.save",
    "load_pruned": "lfpr.save",
    "magnitude": "lfpr.importance",
    "open_experiment": "lfpr.experiments",
    "prune_in_steps": "lfpr.steps",
    "random_importance": "lfpr.importance",
    "reconstruct": "lfpr.reconstruct",
    "removal_costs": "lfpr.surgeon",
    "rescale": "lfpr.rescale",
    "retrain": "lfpr.training.retrain",
    "save_delta": "lfpr.save",
    "save_pruned": "lfpr.save",
    "summary": "lfpr.summary",
    "surgeon_importance": "lfpr.surgeon",
}

__all__ = [
    "FAMILIES",
    "BudgetError",
    "Family",
    "Importance",
    "KPrune",
    "KPruneRound",
    "LatencyCost",
    "MacCost",
    "MaskGradients",
    "Masks",
    "NotEquivalent",
    "ParameterCost",
    "PrunableEncoder",
    "ReSt",
    "Refit",
    "Rescaled",
    "Stepwise",
    "SubLayerFit",
    "TrainableMasks",
    "UnsupportedArchitecture",
    "activation_importance",
    "all_but_one",
    "collect_gradients",
    "encoders",
    "export_onnx",
    "fold",
    "load_delta",
    "load_pruned",
    "magnitude",
    "open_experiment",
    "prunable",
    "prune_in_steps",
    "random_importance",
    "rearrange",
    "reconstruct",
    "removal_costs",
    "rescale",
    "retrain",
    "save_delta",
    "save_pruned",
    "search",
    "search_proportional",
    "search_threshold",
    "shrink",
    "summary",
    "surgeon_importance",
    "verify_equivalent",
]

__getattr__, __dir__ = lazy(__name__, _ROOMS, _NAMES)
when_imported("transformers.quantizers.auto", lambda: importlib.import_module("lfpr.hub"))
