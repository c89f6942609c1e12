"""Objectives whose mask gradients are the importance of heads and neurons of CLIP's vision tower, and their features.

*Fisher*: CLIP's own contrastive loss between the images and their captions, as the released fork of Kwon et al.'s
framework uses it. *Label-free*: images alone; how far an image's raw feature reaches in the direction that the unpruned
model gives it. (The cosine of a feature with itself is 1 whatever the masks do to its length, and stationary where they
are all one: its gradient is zero, and so would be any importance.)

Neither text features nor unpruned image features depend on the masks: they are computed once, without gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfpr.checks import (
    check_batches,
    check_callable,
    check_entries,
    check_kind,
    check_number,
    check_seed,
    check_tensor,
)
from lfpr.fisher import gaussian_projection

Batch = dict[str, Tensor]
IMAGE, CAPTION = ("image_id",), ("image_id", "caption")  # what a row of features belongs to


def check_clip(clip: nn.Module, tower: str = "vision_model") -> None:
    """ValueError unless it is a model with this tower of CLIP's."""
    check_kind("clip", clip, nn.Module)
    if not hasattr(clip, tower):
        raise ValueError(f"clip: expected a CLIPModel, found {type(clip).__name__} without {tower}")


def image_features(clip: nn.Module, batch: Batch) -> Tensor:
    """Raw image features [B, D] of `pixel_values` [B, 3, H, W] by a CLIPModel: projected, not normalised. Raises
    ValueError, as all here, for another model or a batch without these."""
    check_clip(clip)
    check_entries("batch", batch, "pixel_values")
    return clip.visual_projection(clip.vision_model(pixel_values=batch["pixel_values"]).pooler_output)


def text_features(clip: nn.Module, batch: Batch) -> Tensor:
    """Raw text features [B, D] of `input_ids` and `attention_mask` [B, T] by a CLIPModel: projected, not
    normalised."""
    check_clip(clip, "text_model")
    check_entries("batch", batch, "input_ids", "attention_mask")
    text = clip.text_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return clip.text_projection(text.pooler_output)


class Attached:
    """`batches` with `batch[name]` [B, D] added: a row per sample, computed when the sample is first met, and kept.

    encode(batch): the rows of a batch, called without gradient, at most once a sample; the mode of its model is its own
    matter. key: the entries of a batch that identify a sample. rows: those already known, by tuples of key values. Only
    features are kept. Iterate it outside `encoder.masked` if `encode` runs that encoder.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        name: str,
        encode: Callable[[Batch], Tensor],
        key: tuple[str, ...] = IMAGE,
        rows: dict[tuple[int, ...], Tensor] | None = None,
    ) -> None:
        check_batches("batches", batches)
        check_kind("name", name, str)
        check_callable("encode", encode)
        check_kind("key", key, tuple)
        check_kind("rows", rows, dict, None)
        self.batches, self.name, self.encode, self.key = batches, name, encode, key
        self.rows = {} if rows is None else rows

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            check_entries("batch", batch, *self.key)
            samples = list(zip(*(batch[part].tolist() for part in self.key), strict=True))
            if not all(sample in self.rows for sample in samples):
                with torch.no_grad():
                    self.rows |= zip(samples, self.encode(batch), strict=True)
            yield batch | {self.name: torch.stack([self.rows[sample] for sample in samples])}


def contrastive_loss(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's loss (Radford et al., ICML 2021) of image and text features [B, D], row i of both belonging together.

    The mean of the cross-entropies image→text and text→image; `logit_scale` is the model's, a logarithm. Raises
    ValueError for other shapes.
    """
    check_tensor("images", images, 2)
    check_tensor("texts", texts, 2, len(images))
    if images.shape != texts.shape or not len(images):
        raise ValueError(f"images, texts: shapes {tuple(images.shape)} and {tuple(texts.shape)}, expected [B, D] twice")
    if not isinstance(logit_scale, Tensor) or logit_scale.numel() != 1:
        logit_scale = torch.tensor(check_number("logit_scale", logit_scale), device=images.device)
    logits = F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T * logit_scale.exp()
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def contrastive(clip: nn.Module) -> Callable[[Batch], Tensor]:
    """The Fisher objective: `contrastive_loss` of batches that carry `text_features` [B, D] (see `Attached`).

    It compares the images of a batch with each other, so it has no gradient per sample.
    """
    check_clip(clip)

    def objective(batch: Batch) -> Tensor:
        check_entries("batch", batch, "text_features")
        return contrastive_loss(image_features(clip, batch), batch["text_features"], clip.logit_scale.detach())

    return objective


def similarities(clip: nn.Module, batch: Batch) -> Tensor:
    """Logits [B, B] of which of a batch's images each of them is: the cosines of the image features and the unpruned
    model's, `image_features` [B, D] (see `Attached`), in units of CLIP's temperature."""
    check_entries("batch", batch, "image_features")
    own = F.normalize(batch["image_features"], dim=-1)
    return F.normalize(image_features(clip, batch), dim=-1) @ own.T * clip.logit_scale.detach().exp()


def projected(clip: nn.Module, seed: int = 0) -> Callable[[Batch], Tensor]:
    """A random projection of unit image features, another at each call (`lfpr.fisher.gaussian_projection`)."""
    check_clip(clip)
    generator = torch.Generator().manual_seed(check_seed(seed))
    return lambda batch: gaussian_projection(F.normalize(image_features(clip, batch), dim=-1), generator)


def label_free(clip: nn.Module) -> Callable[[Batch], Tensor]:
    """The label-free objective: the sum over images of raw feature · unit vector of its unpruned feature.

    Batches carry the unpruned `image_features` [B, D] (see `Attached`).
    """
    check_clip(clip)

    def objective(batch: Batch) -> Tensor:
        check_entries("batch", batch, "image_features")
        return (image_features(clip, batch) * F.normalize(batch["image_features"], dim=-1)).sum()

    return objective
