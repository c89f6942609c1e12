"""What a TAP experiment works on: the model, its configuration, the questions and their word vectors."""

from __future__ import annotations

import json
import warnings
from functools import cached_property
from pathlib import Path

import numpy as np

from lfpr.cost import ParameterCost
from lfpr.encoder import PrunableEncoder, prunable
from lfpr.experiments.runs import Runs, file_hash
from lfpr.experiments.tap_settings import Settings, TAPSpec
from lfpr.files import CheckpointError, shipped
from lfpr.tap.checkpoint import read_checkpoint
from lfpr.tap.data import TAPDataset, check
from lfpr.tap.layout import LAYOUTS
from lfpr.tap.model import TAP, TAPConfig
from lfpr.tap.text import AnswerVocab
from lfpr.tap.vectors import Embedding, HashedNgrams


class TAPInputs:
    """Model and data of an experiment; `checkpoint` is a file, None the shipped baseline."""

    def __init__(
        self, name: str, spec: TAPSpec, profile: str, runs: Path, data_root, checkpoint, settings: Settings
    ) -> None:
        self.name, self.profile, self.settings = name, profile, settings
        self._given = name, spec, profile, runs, data_root, checkpoint
        self.spec = spec
        self.runs = Runs(runs, name, profile)
        self.data_root = Path(data_root) if data_root else runs / "data" / f"{self.spec.dataset}-mini"
        self.checkpoint = Path(checkpoint or shipped(name))
        if not self.checkpoint.is_file():
            raise CheckpointError(f"checkpoint = {self.checkpoint}: no such file (see data/README.md)")
        if profile == "full" and not self.data_root.is_dir():
            raise FileNotFoundError(f"data_root = {self.data_root}: no such folder (see data/README.md)")

    def __repr__(self) -> str:
        return f"{self.name} ({self.profile}): {self.encoder.num_layers} MMT layers, data in {self.data_root}"

    @cached_property
    def model(self) -> TAP:
        """The unpruned model in evaluation mode."""
        return TAP(self.config).load_checkpoint(self.checkpoint).eval()

    @property
    def encoder(self) -> PrunableEncoder:
        return prunable(self.model)

    @property
    def cost(self) -> ParameterCost:
        """What a constraint counts: the parameters of the MMT's layers, exactly."""
        return ParameterCost(self.encoder)

    @cached_property
    def config(self) -> TAPConfig:
        """Of the shipped baseline, or (profile full) read off the checkpoint's shapes and the experiment's depth."""
        description = self.checkpoint.with_suffix(".json")
        if self.profile == "mini":
            return TAPConfig.from_dict(json.loads(description.read_text())["config"])
        sizes, state = self.settings.sizes, read_checkpoint(self.checkpoint)
        shape = {name: tuple(value.shape) for name, value in state.items()}
        vocab = AnswerVocab(self.root / LAYOUTS[self.spec.dataset, "train"].answers)
        try:
            config = TAPConfig(
                text_layers=self.spec.text_layers,
                mmt_layers=self.spec.mmt_layers,
                text_vocab_size=shape["text_bert.embeddings.word_embeddings.weight"][0],
                num_answers=shape["classifier.module.weight"][0],
                hidden_size=shape["classifier.module.weight"][1],
                intermediate_size=shape["mmt.encoder.layer.0.intermediate.dense.weight"][0],
                feature_size=sizes.feature_size,
                num_ocr=sizes.num_ocr,
                bos_index=vocab.bos,
                eos_index=vocab.eos,
            )
        except KeyError as error:
            raise CheckpointError(f"checkpoint {self.checkpoint} lacks the entry {error} of a TAP model") from None
        if config.num_answers != len(vocab):  # words would be taken for others
            where = LAYOUTS[self.spec.dataset, "train"].answers
            raise CheckpointError(
                f"checkpoint {self.checkpoint} scores {config.num_answers} answers, {where} has {len(vocab)}: they "
                f"must be of the same data set ({self.spec.dataset})"
            )
        return config

    @cached_property
    def root(self) -> Path:
        """The data folder; the mini profile's is rendered when first needed."""
        if self.profile == "mini":
            from lfpr.mini.datasets import write_tap

            write_tap(self.data_root, self.spec.dataset, self.settings.train_images, self.settings.val_images)
        return self.data_root

    def data(self, split: str, targets: bool = False, **options) -> TAPDataset:
        """The `train` or `val` questions (see `lfpr.tap.data.TAPDataset`)."""
        options = {"sizes": self.settings.sizes, "embed": self.embed} | options
        if self.profile == "mini":  # small enough to be read once and kept
            options["images"] = self._images.setdefault(split, {})
        return TAPDataset(self.root, self.spec.dataset, split, targets=targets, **options)

    @cached_property
    def _images(self) -> dict[str, dict]:
        return {}

    @cached_property
    def embed(self) -> Embedding | None:
        """Word vectors of OCR tokens; None is FastText's file below `data_root`."""
        if self.settings.word_vectors == "fasttext":
            return None
        if self.profile == "full":
            warnings.warn("word_vectors = 'hashed': a model trained with FastText scores lower with them", stacklevel=2)
        return HashedNgrams(self.settings.sizes.fasttext_size)

    def check(self, split: str, limit: int | None = None) -> dict:
        """What is in a split's files, and the first record that cannot be used (see `lfpr.tap.data.check`)."""
        options = {"sizes": self.settings.sizes, "embed": self.embed}
        return check(self.root, self.spec.dataset, split, limit=limit, **options)

    def sample(self, split: str, count: int, seed: int) -> list[int]:
        """`count` questions of a split, chosen by `seed`, in increasing order; all if there are no more."""
        total = len(self.data(split))
        return sorted(np.random.default_rng(seed).permutation(total)[:count].tolist())

    @cached_property
    def inputs(self) -> dict:
        """What every stage depends on: hashes of files, how words become vectors, which questions score."""
        imdbs = {split: file_hash(self.root / LAYOUTS[self.spec.dataset, split].imdb) for split in ("train", "val")}
        chosen = {"word_vectors": self.settings.word_vectors} if self.profile == "full" else {}
        chosen |= {"num_eval": self.settings.num_eval} if self.settings.num_eval else {}
        return {"checkpoint": file_hash(self.checkpoint)} | imdbs | chosen
