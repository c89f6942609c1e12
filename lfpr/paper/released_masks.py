"""Published results revisited: the masks that the fork for CLIP released, and what rescaling made of their values.

The fork fits mask values by least squares without a ridge and without a limit. The table here puts the scales it
released beside those that the same solver, and ours with a ridge towards one, find on the small CLIP.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from lfpr.cost import MacCost
from lfpr.encoder import prunable
from lfpr.experiments.clip_stages import CLIPExperiment
from lfpr.masks import Masks
from lfpr.released.masks import load_masks

FOLDER = Path(__file__).parents[2] / "data" / "published" / "clip-masks"
RELEASED = {  # model, constraint, tokens of an image -> folder
    ("ViT-B/16", 0.4, 197): "clip-vit-base-patch16_0.4_seed_1",
    ("ViT-B/16", 0.75, 197): "clip-vit-base-patch16_0.75_seed_1",
    ("ViT-B/32", 0.5, 50): "clip-vit-base-patch32_0.5_seed_501",
}


def published_masks() -> dict[tuple[str, float], Masks]:
    """The masks [12, 12] and [12, 3072] that the fork of Kwon et al.'s code for CLIP released, by model and constraint.

    Keys are ("ViT-B/16", 0.4), ("ViT-B/16", 0.75) and ("ViT-B/32", 0.5). Raises FileNotFoundError outside a checkout.
    """
    return {(model, constraint): load_masks(FOLDER / name) for (model, constraint, _), name in RELEASED.items()}


def published_scales(experiment: CLIPExperiment | None = None, constraint: float = 0.4, seed: int = 0) -> pd.DataFrame:
    """A row per layer and part ("heads", "neurons") of the released masks and, given an experiment, of its own model
    pruned by Fisher scores to `constraint` and rescaled by either solver (stage `rescaling`).

    Columns: model, solver ("released", "published", "ridge"), constraint, fraction (of MACs kept, of the whole tower),
    layer, part, kept, total, and of the scales of what is kept the smallest, the quartiles lower, median and upper, and
    the largest. Where a layer keeps nothing these five are NaN.
    """
    rows = []
    for (model, asked, tokens), (_, masks) in zip(RELEASED, published_masks().items(), strict=True):
        rows += _rows(masks, model=model, solver="released", constraint=asked, fraction=_base(tokens).fraction(masks))
    if experiment is not None:
        stage = experiment.rescaling("fisher", constraint, seed)
        for solver in ("published", "ridge"):
            masks = Masks.load(stage.folder / f"{solver}.safetensors")
            about = {"constraint": constraint, "fraction": experiment.cost.fraction(masks)}
            rows += _rows(masks, model=experiment.name, solver=solver, **about)
    return pd.DataFrame(rows)


def _rows(masks: Masks, **about) -> list[dict]:
    return [
        about
        | {"layer": layer, "part": part, "kept": int((row != 0).sum()), "total": len(row)}
        | _summary(row[row != 0])
        for part, table in (("heads", masks.heads), ("neurons", masks.neurons))
        for layer, row in enumerate(table)
    ]


def _summary(scales: Tensor) -> dict:
    names = ("smallest", "lower", "median", "upper", "largest")
    if not len(scales):
        return dict.fromkeys(names, float("nan"))
    return dict(zip(names, scales.quantile(torch.linspace(0, 1, 5)).tolist(), strict=True))


def _base(tokens: int) -> MacCost:
    """MACs of the vision tower of CLIP's "base" models, for an image of `tokens` tokens."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    with torch.device("meta"):  # no weights are needed
        return MacCost(prunable(CLIPVisionModel(CLIPVisionConfig(**sizes))), tokens)
