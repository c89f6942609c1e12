"""What others released, imitated and read: the files of LFPR and of the fork for CLIP, and Kwon et al.'s algorithms.

    masks = lfpr.released.search(importance, lfpr.released.parameter_cost(encoder), constraint=0.4)
    masks = lfpr.released.load_masks(lfpr.released.outputs(".", "openai/clip-vit-base-patch16", 0.4, 1))
    gradients, step = lfpr.released.load_scores("score")
    tap = lfpr.released.load_tap(folder, config)
    clip = lfpr.released.load_clip("pruned_models/vitB16_pruned_0.4_1.pt")

These behave as the released code does, its quirks included, so that its numbers can be reproduced; for anything else
use what `lfpr` itself has. Reading never runs code from files.
"""

from lfpr.lazy import lazy

_NAMES = {
    "draw": "lfpr.released.clip",
    "fit_plateau": "lfpr.released.searching",
    "latency_cost": "lfpr.released.searching",
    "load_clip": "lfpr.released.clip",
    "load_masks": "lfpr.released.masks",
    "load_scores": "lfpr.released.scoring",
    "load_tap": "lfpr.released.tap",
    "outputs": "lfpr.released.masks",
    "parameter_cost": "lfpr.released.searching",
    "read_cfg": "lfpr.released.tap",
    "rescale": "lfpr.released.rescaling",
    "save_clip": "lfpr.released.clip",
    "save_head_mask": "lfpr.released.masks",
    "save_masks": "lfpr.released.masks",
    "save_scores": "lfpr.released.scoring",
    "save_tap": "lfpr.released.tap",
    "search": "lfpr.released.searching",
}

__all__ = list(_NAMES)
__getattr__, __dir__ = lazy(__name__, names=_NAMES)
