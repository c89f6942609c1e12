"""Retraining a pruned CLIP without labels: its image features learn to point where the unpruned model's do.

Text features stay as they are, so an image feature in the same direction as before answers every query as before. The
targets are computed once; training then runs through `lfpr.retrain` (mask values, Adam, folding, checkpoints) with
the loss 1 - cos(pruned feature, unpruned feature).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lfpr.checks import check_choice, check_count, check_entries, check_flag, check_kind, check_list
from lfpr.clip.objectives import Batch, check_clip, image_features
from lfpr.encoder import prunable
from lfpr.files import DataError
from lfpr.training.retrain import ReSt, TrainableMasks, retrain

TRAINED = ("masks", "last", "all")


def distil(
    clip: nn.Module, batches: DataLoader, settings: ReSt, trained: str = "last", **options: Any
) -> tuple[TrainableMasks, list[dict]]:
    """Retrain the vision tower of a shrunk CLIP in place by one pass over `batches` (see `loader`).

    trained: "masks", the values of kept heads and neurons and all LayerNorms of the tower; "last", also the last
    `settings.last_layers` layers; "all", the whole tower. options: `checkpoint`, `checkpoint_every` (to go on
    after an interruption), `score`, `score_every`, `progress` as in `lfpr.retrain`, whose result is returned
    and whose errors are raised; ValueError for another `trained`.
    """
    check_clip(clip)
    check_kind("settings", settings, ReSt)
    check_choice("trained", trained, TRAINED)
    tower = clip.vision_model
    settings = replace(settings, last_layers=settings.last_layers if trained == "last" else 0)
    return retrain(
        clip,
        prunable(tower),
        [],
        batches,
        distillation_loss(clip),
        settings,
        parameters=extra(tower, trained),
        **options,
    )


def extra(tower: nn.Module, trained: str) -> list[nn.Parameter]:
    """Parameters trained beside masks and last layers. Raises ValueError unless `trained` is one of `TRAINED`."""
    check_kind("tower", tower, nn.Module)
    check_choice("trained", trained, TRAINED)
    modules = [tower] if trained == "all" else [m for m in tower.modules() if isinstance(m, nn.LayerNorm)]
    return [parameter for module in modules for parameter in module.parameters()]


def distillation_loss(clip: nn.Module) -> Callable[[Batch], tuple[Tensor, Tensor]]:
    """The loss of batches with `pixel_values` [B, 3, H, W] and the unpruned `image_features` [B, D]: the sum of 1 -
    cos over the images, and their number, as `lfpr.retrain` takes them. Raises ValueError for another model, or a batch
    without these."""
    check_clip(clip)

    def loss(batch: Batch) -> tuple[Tensor, Tensor]:
        check_entries("batch", batch, "image_features")
        cosines = F.cosine_similarity(image_features(clip, batch), batch["image_features"], dim=-1)
        return (1 - cosines).sum(), torch.tensor(len(cosines), device=cosines.device)

    return loss


class WithTargets(Dataset):
    """Images by lists of rows, with the features [n, D] to be learned as `image_features` [B, D]."""

    def __init__(self, reader: Dataset, features: Tensor) -> None:
        self.reader, self.features = reader, features

    def __getitem__(self, rows: Sequence[int]) -> Batch:
        batch, bad = self.reader[rows]
        if bad:  # it could be read when its target was computed
            raise DataError(bad[0][2])
        return batch | {"image_features": self.features[rows]}


def loader(
    reader: Dataset,
    features: Tensor,
    rows: Sequence[int],
    batch_size: int,
    steps: int,
    seed: int,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """`steps` batches of images and targets: pass after pass over `rows`, each in a new order.

    reader: `lfpr.clip.images(...).reader`; features [n, D]: of all its rows, though only those of `rows` count. The
    last batch of a pass is filled from the next pass, and one larger than a pass from several. The order follows from
    `seed` alone. Reading raises DataError for an image that cannot be read any more; bad arguments raise ValueError.
    """
    check_kind("features", features, Tensor)
    rows = check_list("rows", rows, partial(check_count, most=len(features) - 1))
    batch_size, steps = check_count("batch_size", batch_size, 1), check_count("steps", steps, 1)
    seed, workers, pin_memory = (
        check_count("seed", seed),
        check_count("workers", workers),
        check_flag("pin_memory", pin_memory),
    )
    rng, images = np.random.default_rng(seed), batch_size * steps
    passes = [rng.permutation(rows) for _ in range(-(-images // len(rows)))]
    order = np.concatenate(passes)[:images].reshape(steps, batch_size).tolist()
    private = torch.Generator()  # otherwise reading would draw from the global one
    options = {"num_workers": workers, "pin_memory": pin_memory, "generator": private}
    return DataLoader(WithTargets(reader, features), None, sampler=order, **options)
