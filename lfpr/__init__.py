"""Label-free pruning and retraining of transformers, and structured post-training pruning in general.

    encoder = lfpr.prunable(model)
    gradients = lfpr.collect_gradients(encoder, batches, objective)
    masks = lfpr.search(gradients.importance(), lfpr.ParameterCost(encoder), constraint=0.4)
    small = lfpr.shrink(model, masks)

Measured latency, retraining and ONNX, the models `lfpr.tap` and `lfpr.clip`, `lfpr.released` (what others released),
`lfpr.experiments` and `lfpr.paper` are imported when they are first used.
"""

from lfpr.budget import BudgetError
from lfpr.cost import MacCost, ParameterCost
from lfpr.encoder import PrunableEncoder, encoders, prunable
from lfpr.families import FAMILIES, Family, UnsupportedArchitecture
from lfpr.gradients import MaskGradients, collect_gradients
from lfpr.importance import activation_importance, magnitude, random_importance
from lfpr.lazy import lazy
from lfpr.masks import Importance, Masks
from lfpr.rearrange import rearrange
from lfpr.rescale import Rescaled, SubLayerFit, rescale
from lfpr.save import load_delta, load_pruned, save_delta, save_pruned
from lfpr.search import search, search_proportional, search_threshold
from lfpr.sensitivity import all_but_one
from lfpr.shrink import NotEquivalent, fold, shrink, verify_equivalent

_ROOMS = ("clip", "experiments", "latency", "mini", "paper", "released", "tap", "training")
_NAMES = {
    "LatencyCost": "lfpr.latency.cost",
    "ReSt": "lfpr.training.retrain",
    "TrainableMasks": "lfpr.training.retrain",
    "export_onnx": "lfpr.export",
    "open_experiment": "lfpr.experiments",
    "retrain": "lfpr.training.retrain",
}

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
    "load_delta",
    "load_pruned",
    "magnitude",
    "open_experiment",
    "prunable",
    "random_importance",
    "rearrange",
    "rescale",
    "retrain",
    "save_delta",
    "save_pruned",
    "search",
    "search_proportional",
    "search_threshold",
    "shrink",
    "verify_equivalent",
]

__getattr__, __dir__ = lazy(__name__, _ROOMS, _NAMES)
