"""From importance to the retrained model: the stages that make a small CLIP."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lfpr import released
from lfpr.clip import coco
from lfpr.clip.distil import TRAINED, distil, loader
from lfpr.clip.objectives import CAPTION, Attached, Batch, contrastive, image_features, label_free, text_features
from lfpr.clip.retrieval import encode_images
from lfpr.experiments.checks import choose
from lfpr.experiments.clip_baseline import CLIPBaseline, load_encoded, save_encoded
from lfpr.experiments.clip_settings import CONTROLS, GRADIENTS, METHODS, UNSCALED
from lfpr.experiments.controls import uniform, with_neurons_by
from lfpr.experiments.runs import Stage
from lfpr.gradients import MaskGradients, collect_gradients
from lfpr.importance import activation_importance, magnitude, random_importance
from lfpr.masks import Importance, Masks
from lfpr.rescale import Rescaled, rescale
from lfpr.save import save_pruned
from lfpr.shrink import verify_equivalent
from lfpr.training.retrain import ReSt, TrainableMasks

if TYPE_CHECKING:
    from transformers import CLIPModel


class CLIPPruning(CLIPBaseline):
    """Scores, masks, the pruned and the retrained model of a method and a budget."""

    kind, budget = "clip", "MACs of the vision tower"
    own: ClassVar[dict] = {"method": "fisher", "rearranged": True, "rescaled": True, "trained": "last"}
    methods, controls, unscaled, with_gradients, ways = METHODS, CONTROLS, UNSCALED, GRADIENTS, TRAINED

    @property
    def part(self) -> nn.Module:
        """What of the model is pruned."""
        return self.model.vision_model

    def importance(self, method: str = "fisher", seed: int = 0) -> Importance:
        """Scores of all heads and neurons. `seed` chooses the sample of images, or the scores (random)."""
        choose("method", method, METHODS + CONTROLS)
        if method == "magnitude":
            return magnitude(self.encoder)
        if method == "random":
            return random_importance(self.encoder, seed)
        if method == "uniform":
            return uniform(self.importance("fisher", seed))
        if method in CONTROLS:
            return with_neurons_by(self.importance("fisher", seed), self.importance(method.split("-")[1], seed))
        return Importance.load(self._scores(method, seed).folder / "importance.safetensors")

    def gradients(self, method: str = "fisher", seed: int = 0) -> MaskGradients:
        """The mask gradients behind the importance of a gradient method."""
        choose("method", method, GRADIENTS)
        return MaskGradients.load(self._scores(method, seed).folder / "gradients.safetensors")

    def _scores(self, method: str, seed: int) -> Stage:
        def build(folder: Path) -> dict:
            batches = self.batches(method, seed)
            if method == "activation":
                importance = activation_importance(self.encoder, batches, self._forward)
            else:
                per_sample = self.settings.per_sample and method == "label-free"
                objective = self.objective(method)
                gradients = collect_gradients(self.encoder, batches, objective, per_sample, progress=method)
                gradients.save(folder / "gradients.safetensors")
                importance = gradients.importance()
            importance.save(folder / "importance.safetensors")
            return {"samples": len(self.sample("train", self.settings.num_samples, seed))}

        return self._stage("importance", {"method": method, "seed": seed} | self._sampling, build)

    def objective(self, method: str) -> Callable[[Batch], Tensor]:
        """The function of a batch whose mask gradients `method` scores with."""
        choose("method", method, GRADIENTS)
        return contrastive(self.model) if method == "fisher" else label_free(self.model)

    def batches(self, method: str, seed: int) -> Iterable[Batch]:
        """The training images that `method` scores with, and the features its objective needs."""
        chosen = self.settings
        indices = self.sample("train", chosen.num_samples, seed)
        if method == "fisher":
            pairs = coco.batches(
                self.data("train", indices=indices), chosen.score_batch, self.processor, **self.reading
            )
            return Attached(pairs, "text_features", lambda batch: text_features(self.model, batch), CAPTION)
        images = self.images("train", chosen.score_batch, indices=indices)
        return Attached(images, "image_features", lambda batch: image_features(self.model, batch))

    def rescale(self, masks: Masks, seed: int = 0, **options) -> Rescaled:
        """Mask values by least squares against the unpruned tower, on training images (see `lfpr.rescale`)."""
        indices = self.sample("train", self.settings.rescale_samples, seed)
        images = self.images("train", self.settings.rescale_batch, indices=indices)
        return rescale(self.encoder, masks, images, self._forward, **{"ridge": self.settings.ridge} | options)

    def rescale_as_released(self, masks: Masks, seed: int = 0) -> Rescaled:
        """As `rescale`, by the released solver (`lfpr.released.rescale`)."""
        images = self.images(
            "train", self.settings.rescale_batch, indices=self.sample("train", self.settings.rescale_samples, seed)
        )
        return released.rescale(self.encoder, masks, images, self._forward)

    def _amounts(self, cell: dict, percent: float | None, last_layers: int | None, trained: str) -> tuple[dict, ReSt]:
        """What the distillation takes: by default all training images, as often as the settings say."""
        chosen = self.settings
        layers = chosen.rest.last_layers if last_layers is None else last_layers
        amounts = {"percent": 100 if percent is None else percent, "batch": chosen.retrain_batch}
        amounts |= {"passes": chosen.retrain_passes, "images": chosen.retrain_images}
        return amounts, replace(chosen.rest, last_layers=layers if trained == "last" else 0)

    def _train(
        self, model: CLIPModel, percent: float, rest: ReSt, trained: str, seed: int, checkpoint: Path
    ) -> tuple[TrainableMasks, list[dict]]:
        """Distillation of a pruned model in place (`lfpr.clip.distil`)."""
        saving = {"checkpoint": checkpoint, "checkpoint_every": self.settings.checkpoint_every}
        return distil(model, self._distillation(percent, seed), rest, trained, **saving)

    def teach(self) -> Stage:
        """What retraining learns from: the unpruned features."""
        return self.targets()

    def targets(self) -> Stage:
        """The unpruned model's features of all training images that distillation may take."""
        count = self.settings.retrain_images

        def build(folder: Path) -> dict:
            images = self.images("train", self.settings.eval_batch, limit=count or None)
            found = encode_images(self.model, images, "targets")
            save_encoded(folder / "features.safetensors", image=found)
            return {"images": len(found.image_id)}

        return self._stage("targets", {"images": count}, build)

    def _distillation(self, percent: float, seed: int) -> DataLoader:
        """Batches of training images and their targets."""
        chosen = self.settings
        (targets,) = load_encoded(self.targets().folder / "features.safetensors", "image")
        data = self.data("train", limit=chosen.retrain_images or None)
        images = coco.images(data, chosen.retrain_batch, self.processor)
        readable = torch.isin(torch.tensor(data.image_ids), targets.image_id)
        features = torch.zeros(len(readable), targets.features.shape[1])
        features[readable] = targets.features
        rows = readable.nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
        rows = rows[: max(1, round(len(rows) * percent / 100))]
        steps = max(1, round(chosen.retrain_passes * len(rows) / chosen.retrain_batch))
        return loader(images.reader, features, rows, chosen.retrain_batch, steps, seed, self.workers)

    # ---- names and parts

    def verify(self, masks: Masks, pruned: CLIPModel) -> float:
        """The largest difference between masked and shrunk model in the features of some validation images.

        Raises `NotEquivalent` if it is above 0.001.
        """
        images = self.images("val", 32, indices=self.sample("val", 64, 0))
        return verify_equivalent(self.model, masks, pruned, images, image_features, atol=1e-3, part=self.part)

    @property
    def pictures(self):
        """The module of functions that draw what the notebooks show of this experiment."""
        from lfpr.paper.pictures import clip as pictures

        return pictures

    def measures(self, result: dict) -> dict[str, float]:
        """The scores in a stage's result by the names of their measures, in 0 … 1."""
        names = {"r1": "Recall@1", "r5": "Recall@5", "r10": "Recall@10", "i2t_r1": "image→text Recall@1"}
        return {label: result[name] for name, label in names.items()}

    @property
    def _sampling(self) -> dict:
        chosen = self.settings
        return {"num_samples": chosen.num_samples, "batch": chosen.score_batch, "per_sample": chosen.per_sample}

    @property
    def _rescaling(self) -> dict:
        return {"rescale_samples": self.settings.rescale_samples, "ridge": self.settings.ridge}

    def _finish(self, model: CLIPModel, folder: Path) -> dict:
        """Save a pruned model and its validation features; its size and recall."""
        images = self.encode(model)
        save_encoded(folder / "features.safetensors", image=images)
        save_pruned(model, folder / "model")
        return self.describe(model) | self.score(images.features)

    def _forward(self, batch: Batch) -> Tensor:
        return self.model.vision_model(pixel_values=batch["pixel_values"]).pooler_output
