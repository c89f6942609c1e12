"""What a CLIP experiment works on: the model, its processor, and COCO's images and captions."""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError

from lfpr.clip import coco
from lfpr.clip.processor import Processor
from lfpr.clip.retrieval import vision_cost
from lfpr.cost import MacCost
from lfpr.encoder import PrunableEncoder, prunable
from lfpr.experiments.clip_settings import CLIPSettings
from lfpr.experiments.runs import Runs, file_hash, fingerprint
from lfpr.files import CheckpointError, shipped
from lfpr.save import without_progress_bar

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel


class CLIPInputs:
    """Model and data of an experiment; `checkpoint` is a Hugging Face folder or hub id."""

    def __init__(self, name: str, profile: str, runs: Path, data_root, checkpoint, settings: CLIPSettings) -> None:
        self.name, self.profile, self.settings = name, profile, settings
        self._given = name, profile, runs, data_root, checkpoint
        self.runs = Runs(runs, name, profile)
        self.data_root = Path(data_root) if data_root else Path(runs) / "data" / "mscoco-mini"
        self.checkpoint = str(checkpoint or shipped(name))
        if not Path(self.checkpoint).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.checkpoint):
            raise CheckpointError(f"checkpoint = {self.checkpoint}: neither a folder nor a hub id (see data/README.md)")
        if profile == "full" and not self.data_root.is_dir():
            raise FileNotFoundError(f"data_root = {self.data_root}: no such folder (see data/README.md)")

    def __repr__(self) -> str:
        return f"{self.name} ({self.profile}): {self.encoder.num_layers} vision layers, data in {self.data_root}"

    @cached_property
    def model(self) -> CLIPModel:
        """The unpruned model in evaluation mode, float32."""
        from transformers import CLIPModel  # seconds, which users of other experiments need not wait

        try:
            with without_progress_bar():
                model, info = CLIPModel.from_pretrained(self.checkpoint, dtype=torch.float32, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"checkpoint {self.checkpoint} cannot be read: {error}") from error
        if info["missing_keys"]:
            raise CheckpointError(
                f"checkpoint {self.checkpoint} lacks {sorted(info['missing_keys'])[:3]} of a CLIP model"
            )
        return model.eval()

    @property
    def encoder(self) -> PrunableEncoder:
        """The vision tower."""
        return prunable(self.model.vision_model)

    @property
    def config(self) -> CLIPConfig:
        """The model's `CLIPConfig`."""
        return self.model.config

    @cached_property
    def processor(self) -> Processor:
        """What turns images and captions into tensors, as the checkpoint says."""
        return Processor(self.checkpoint)

    @property
    def cost(self) -> MacCost:
        """MACs of the vision tower's layers for an image: patches and the class token."""
        return vision_cost(self.model)

    @cached_property
    def root(self) -> Path:
        """The data folder; the mini profile's is rendered when first needed."""
        if self.profile == "mini":
            from lfpr.mini.coco import write_coco

            write_coco(self.data_root, self.settings.train_images, self.settings.val_images)
        return self.data_root

    def data(self, split: str, **options) -> coco.COCOCaptions:
        """Images with captions of `train` or `val` (see `lfpr.clip.coco.COCOCaptions`)."""
        return coco.COCOCaptions(self.root, split, **options)

    def images(self, split: str, batch_size: int, **options) -> coco.Batches:
        """Batches of the images of `data(split, **options)`."""
        return coco.images(self.data(split, **options), batch_size, self.processor, **self.reading)

    @property
    def workers(self) -> int:
        """Processes that decode images: as many as the settings say, but no more than there are cores."""
        return min(self.settings.workers, os.cpu_count() or 1)

    @property
    def reading(self) -> dict:
        """How images are read."""
        return {"workers": self.workers, "on_error": self.settings.on_error}

    def check(self, split: str, limit: int | None = None) -> dict:
        """What is in a split's files, and the images that cannot be used (see `lfpr.clip.coco.check`)."""
        return coco.check(self.root, split, limit, max(1, self.workers))

    def sample(self, split: str, count: int, seed: int) -> list[int]:
        """`count` images of a split, chosen by `seed`, in increasing order; all if there are no more."""
        total = len(self.data(split).image_ids)
        return sorted(np.random.default_rng(seed).permutation(total)[:count].tolist())

    @cached_property
    def inputs(self) -> dict:
        """Hashes of what every stage depends on."""
        folder = Path(self.checkpoint)
        files = {file.name: file_hash(file) for file in sorted(folder.glob("*")) if file.is_file()}
        model = fingerprint(files) if folder.is_dir() else f"{self.checkpoint}@{self.config._commit_hash}"
        annotations = {split: file_hash(coco.annotation_file(self.root, split)) for split in coco.SPLITS}
        return {"checkpoint": model} | annotations
