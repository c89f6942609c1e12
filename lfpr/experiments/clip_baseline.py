"""The unpruned model's features of the validation split, and how any pruned model is scored against them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lfpr.clip import coco
from lfpr.clip.retrieval import Encoded, compare, encode_images, encode_texts, match, recall
from lfpr.encoder import prunable
from lfpr.experiments.clip_inputs import CLIPInputs
from lfpr.experiments.runs import Stage
from lfpr.experiments.staged import Staged
from lfpr.files import write_whole
from lfpr.masks import Masks

if TYPE_CHECKING:
    from transformers import CLIPModel


class Reference(NamedTuple):
    """The unpruned model's features of the validation split; pairs [T]: the row of each caption's image."""

    images: Encoded
    texts: Encoded
    pairs: Tensor


class CLIPBaseline(CLIPInputs, Staged):
    """Text features and unpruned image features are computed once: pruning leaves the text tower alone."""

    _shared = ("model", "processor")

    def features(self) -> Stage:
        """The unpruned model's features of the validation images and captions, in `features.safetensors`."""
        chosen = self.settings

        def build(folder: Path) -> dict:
            data = self.data("val", captions=chosen.eval_captions, limit=chosen.num_eval or None)
            captions = coco.captions(data, chosen.eval_batch, self.processor, workers=self.workers)
            images, texts = self.encode(self.model), encode_texts(self.model, captions, "captions")
            kept = torch.isin(texts.image_id, images.image_id)  # broken images that are skipped take theirs along
            texts = Encoded(*(column[kept] for column in texts))
            save_encoded(folder / "features.safetensors", image=images, text=texts)
            return {"images": len(images.image_id), "captions": len(texts.image_id)}

        return self._stage("features", self._evaluation, build)

    @cached_property
    def reference(self) -> Reference:
        """What the stage `features` holds."""
        images, texts = load_encoded(self.features().folder / "features.safetensors", "image", "text")
        return Reference(images, texts, match(images, texts))

    def baseline(self) -> Stage:
        """The unpruned model's recall."""
        return self._stage("baseline", self._evaluation, lambda folder: self.score(self.reference.images.features))

    def encode(self, model: CLIPModel) -> Encoded:
        """Features of the validation images by `model`, which may be pruned."""
        images = self.images("val", self.settings.eval_batch, limit=self.settings.num_eval or None)
        return encode_images(model, images, "images")

    def score(self, features: Tensor) -> dict:
        """`score` (text→image Recall@1), `r1` ..., `i2t_r1` ... of features [I, D] of the validation images,
        against the unpruned model's features of their captions; `questions`: how many captions."""
        found = recall(features, self.reference.texts.features, pairs=self.reference.pairs)
        return {"score": found["r1"], "questions": len(self.reference.pairs)} | found

    def evaluate(self, model: CLIPModel) -> dict:
        """Recall of `model`, whose text tower must be the unpruned one's (see `score`)."""
        return self.score(self.encode(model).features)

    def evaluate_masked(self, masks: Masks) -> dict:
        """Recall of the unpruned model under `masks`."""
        with self.encoder.masked(masks):
            return self.evaluate(self.model)

    def compare(self, models: dict[str, CLIPModel]) -> dict[str, dict]:
        """Size and speed of the models side by side, on a batch of validation images (`lfpr.clip.retrieval`)."""
        return compare(models, next(iter(self.images("val", min(64, self.settings.eval_batch)))))

    def describe(self, model: CLIPModel) -> dict:
        """Parameters and MACs of the vision layers, the share of the unpruned MACs, heads and neurons per layer."""
        encoder = prunable(model.vision_model)
        heads, neurons = encoder.heads_per_layer, encoder.neurons_per_layer
        macs = self.cost.of(sum(heads), sum(neurons))
        sizes = {"parameters": encoder.num_parameters, "macs": macs, "fraction": macs / self.cost.full}
        return sizes | {"heads": heads, "neurons": neurons}

    @property
    def _evaluation(self) -> dict:
        return {"num_eval": self.settings.num_eval, "eval_captions": self.settings.eval_captions}


def save_encoded(path: Path, **parts: Encoded) -> None:
    columns = {f"{part}.{name}": value for part, found in parts.items() for name, value in found._asdict().items()}
    tensors = {name: value.contiguous() for name, value in columns.items() if value is not None}
    write_whole(path, lambda partial: save_file(tensors, partial))


def load_encoded(path: Path, *parts: str) -> list[Encoded]:
    tensors = load_file(path)
    return [Encoded(*(tensors.get(f"{part}.{name}") for name in Encoded._fields)) for part in parts]
