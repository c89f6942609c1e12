"""TAP on TextVQA and ST-VQA: the model, the questions, and the published settings (LFPR, Poh et al. 2024)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lfpr.budget import check_choice
from lfpr.cost import ParameterCost
from lfpr.encoder import prunable
from lfpr.experiments.cell import SCORINGS, Cell
from lfpr.experiments.methods import given_file
from lfpr.experiments.runs import Stage, file_hash
from lfpr.experiments.schedule import schedule
from lfpr.experiments.specs import ExperimentSpec
from lfpr.experiments.task import Task
from lfpr.files import CheckpointError, shipped, write_json
from lfpr.mini.datasets import write_tap
from lfpr.progress import bar
from lfpr.released import load_masks, scoring
from lfpr.tap.checkpoint import read_checkpoint
from lfpr.tap.data import TAPBatch, TAPDataset, batches, check
from lfpr.tap.evaluate import compare, evaluate, first_logits, predict
from lfpr.tap.layout import LAYOUTS, InputSizes
from lfpr.tap.model import TAP, TAPConfig
from lfpr.tap.objectives import label_free, labelled, peak_step
from lfpr.tap.text import Answer, AnswerVocab
from lfpr.tap.vectors import Embedding, HashedNgrams
from lfpr.training.processes import PRECISIONS
from lfpr.training.retrain import ReSt


@dataclass(frozen=True)
class TAPSettings:
    """Sizes and amounts of a profile.

    num_samples: training questions behind the importance, in batches of `score_batch`; scoring: how, as in `Cell`;
    step: decoding step of the label-free objective, by default the median of t* (LFPR). rescale_samples: training
    questions that mask values are fitted on. rest: ReSt's learning rates; retrain_batch: its batch size, of all
    processes together; mixed_precision: "no", "bf16" or "fp16"; checkpoint_every, score_every: iterations between two
    checkpoints, and between two scores in its log (none if 0). word_vectors: of OCR tokens, "fasttext" or "hashed".
    num_eval: validation questions, all if 0. train_images, val_images: of the mini data.
    """

    sizes: InputSizes
    num_samples: int
    score_batch: int
    rest: ReSt
    retrain_batch: int
    eval_batch: int
    word_vectors: str
    scoring: str = "per-sample"
    step: int | None = None
    rescale_samples: int = 512
    mixed_precision: str = "no"
    checkpoint_every: int = 100
    score_every: int = 0
    num_eval: int = 0
    train_images: int = 0
    val_images: int = 0

    def __post_init__(self) -> None:
        check_choice("word_vectors", self.word_vectors, ("fasttext", "hashed"))
        check_choice("scoring", self.scoring, SCORINGS)
        check_choice("mixed_precision", self.mixed_precision, PRECISIONS)
        sizes = ("score_batch", "retrain_batch", "eval_batch", "num_samples", "rescale_samples", "checkpoint_every")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")


MINI_SIZES = InputSizes(
    question_tokens=20, ocr_tokens_text=32, obj_tokens_text=12, num_objects=4, num_ocr=12, feature_size=128
)


class TAPTask(Task):
    """A TAP model on one data set; spec.arguments: `dataset`, `text_layers` `mmt_layers`. The checkpoint is a file."""

    SETTINGS: ClassVar[dict[str, TAPSettings]] = {
        "mini": TAPSettings(
            sizes=MINI_SIZES,
            num_samples=500,
            score_batch=50,
            rest=ReSt(lr=1e-3, mask_lr=1e-2, cosine=True),
            retrain_batch=16,
            eval_batch=250,
            word_vectors="hashed",
            train_images=3000,
            val_images=600,
        ),
        "full": TAPSettings(
            sizes=InputSizes(),
            num_samples=3000,
            score_batch=scoring.BATCH,
            rest=ReSt(),
            retrain_batch=16,
            eval_batch=32,
            word_vectors="fasttext",
        ),
    }
    shared = ("model", "embed", "_images", "_steps")

    @classmethod
    def default_settings(cls, spec: ExperimentSpec, profile: str) -> TAPSettings:
        """Those of the profile; 12 layers need faster masks in mini's few iterations."""
        settings = super().default_settings(spec, profile)
        if profile == "mini" and spec.arguments["mmt_layers"] > 4:
            return replace(settings, rest=replace(settings.rest, mask_lr=3e-2))
        return settings

    def _set_up(self, runs: Path, data_root, checkpoint) -> None:
        self.dataset = self.spec.arguments["dataset"]
        self.data_root = Path(data_root) if data_root else runs / "data" / f"{self.dataset}-mini"
        self.checkpoint = Path(checkpoint or shipped(self.spec.name))
        if not self.checkpoint.is_file():
            raise CheckpointError(f"checkpoint = {self.checkpoint}: no such file (see data/README.md)")

    # ---- the model

    @cached_property
    def model(self) -> TAP:
        """The unpruned model in evaluation mode."""
        return TAP(self.config).load_checkpoint(self.checkpoint).eval()

    @property
    def cost(self) -> ParameterCost:
        """The parameters of the MMT's layers, exactly."""
        return ParameterCost(self.encoder)

    def describe(self, model: TAP) -> dict[str, Any]:
        """Parameters of the MMT's layers and their share of the unpruned ones, heads and neurons per layer."""
        encoder = prunable(model)
        return {
            "parameters": encoder.num_parameters,
            "fraction": encoder.num_parameters / self.encoder.num_parameters,
            "heads": encoder.heads_per_layer,
            "neurons": encoder.neurons_per_layer,
        }

    def forward(self, model: TAP, batch: TAPBatch) -> Tensor:
        """Logits of the first two decoding steps."""
        return first_logits(model, batch)

    def check_batches(self) -> DataLoader:
        """64 validation questions."""
        return batches(self.data("val", indices=self.sample("val", 64, 0)), 32)

    @cached_property
    def config(self) -> TAPConfig:
        """Of the shipped baseline, or (profile full) read off the checkpoint's shapes and the experiment's depth."""
        if self.profile == "mini":
            description = self.checkpoint.with_suffix(".json")
            return TAPConfig.from_dict(json.loads(description.read_text())["config"])
        sizes, state = self.settings.sizes, read_checkpoint(self.checkpoint)
        shape = {name: tuple(value.shape) for name, value in state.items()}
        vocab = AnswerVocab(self.root / LAYOUTS[self.dataset, "train"].answers)
        try:
            config = TAPConfig(
                text_layers=self.spec.arguments["text_layers"],
                mmt_layers=self.spec.arguments["mmt_layers"],
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
            where = LAYOUTS[self.dataset, "train"].answers
            raise CheckpointError(
                f"checkpoint {self.checkpoint} has {config.num_answers} answers, {where} has {len(vocab)}: they must "
                f"be of the same data set ({self.dataset})"
            )
        return config

    # ---- the questions

    @cached_property
    def root(self) -> Path:
        """The data folder; the mini profile's is rendered when first needed."""
        if self.profile == "mini":
            write_tap(self.data_root, self.dataset, self.settings.train_images, self.settings.val_images)
        return self.data_root

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Hashes of files, how words become vectors, which questions are scored."""
        imdbs = {split: file_hash(self.root / LAYOUTS[self.dataset, split].imdb) for split in ("train", "val")}
        options = {"word_vectors": self.settings.word_vectors} if self.profile == "full" else {}
        options |= {"num_eval": self.settings.num_eval} if self.settings.num_eval else {}
        return {"checkpoint": file_hash(self.checkpoint)} | imdbs | options

    def data(self, split: str, targets: bool = False, **options: Any) -> TAPDataset:
        """The `train` or `val` questions (see `lfpr.tap.data.TAPDataset`)."""
        options = {"sizes": self.settings.sizes, "embed": self.embed} | options
        if self.profile == "mini":  # small enough to be read once and kept
            options["images"] = self._images.setdefault(split, {})
        return TAPDataset(self.root, self.dataset, split, targets=targets, **options)

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

    def check(self, split: str, limit: int | None = None) -> dict[str, Any]:
        """What is in a split's files, and the first record that cannot be used (see `lfpr.tap.data.check`)."""
        return check(self.root, self.dataset, split, limit=limit, sizes=self.settings.sizes, embed=self.embed)

    def sample(self, split: str, count: int, seed: int) -> list[int]:
        """`count` questions of a split, drawn by `seed`, in increasing order; all if there are no more."""
        total = len(self.data(split))
        return sorted(np.random.default_rng(seed).permutation(total)[:count].tolist())

    # ---- importance and fitted masks

    def sampling(self, cell: Cell) -> dict[str, Any]:
        """Number of questions, batch, scoring and, if it is set, the decoding step."""
        batch = self.settings.score_batch if cell.scoring == "per-sample" else scoring.BATCH
        return {"num_samples": cell.num_samples, "batch": batch, "scoring": cell.scoring, "step": cell.step}

    def batches(self, cell: Cell) -> DataLoader:
        """A sample of training questions, with answers unless the method is label-free.

        Read anew in each pass: thousands of full-size questions do not fit in memory.
        """
        indices = self.sample("train", cell.num_samples, cell.seed)
        data = self.data("train", targets=cell.method != "label-free", indices=indices)
        return batches(data, self.sampling(cell)["batch"])

    def step(self, cell: Cell) -> int:
        """The decoding step that the label-free objective looks at: the cell's, or int(median t*) over its sample."""
        key = cell.num_samples, cell.seed, cell.scoring
        if cell.step is None and key not in self._steps:
            sample = self.batches(replace(cell, method="label-free"))
            self._steps[key] = peak_step(self.model, bar(sample, "peak step"))
        return self._steps[key] if cell.step is None else cell.step

    @cached_property
    def _steps(self) -> dict[tuple, int]:
        return {}

    def objective(self, cell: Cell) -> Callable[[TAPBatch], Tensor]:
        """LFPR's label-free objective, or the labelled loss."""
        if cell.method == "label-free":
            dropout = self.dropout(cell)
            if dropout is not None:
                return scoring.label_free(self.model, self.step(cell), dropout)
            return label_free(self.model, self.step(cell))
        return labelled(self.model, reduction="sum" if self.per_sample(cell) else "mean")

    def per_sample(self, cell: Cell) -> bool:
        """As the cell says."""
        return cell.scoring == "per-sample"

    def dropout(self, cell: Cell) -> float | None:
        """The dropout of released scoring; a baseline trained without any is scored with the released model's."""
        return (self.config.dropout or scoring.DROPOUT) if cell.scoring == "released" else None

    def sample_numbers(self, cell: Cell) -> dict[str, Any]:
        """How many questions, and the decoding step of the label-free objective."""
        samples = min(cell.num_samples, len(self.data("train")))
        return {"samples": samples, "step": self.step(cell) if cell.method == "label-free" else cell.step}

    def calibration(self, seed: int) -> Iterator[dict[str, Tensor]]:
        """Unlabelled training questions and the first two steps of their decoded answers."""
        yield from self._begun(self.sample("train", self.settings.rescale_samples, seed))

    def released_calibration(self, cell: Cell) -> Iterator[dict[str, Tensor]]:
        """The questions behind the importance, as in `calibration`."""
        yield from self._begun(self.sample("train", cell.num_samples, cell.seed))

    def _begun(self, indices: list[int]) -> Iterator[dict[str, Tensor]]:
        for batch in batches(self.data("train", indices=indices), self.settings.score_batch):
            first = self.model.begin(len(batch["num_ocr"]))
            yield batch | {"previous": torch.cat([first, self.model.generate(batch, 1)[1]], 1)}

    def run(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits after the answer so far."""
        return self.model(batch, batch["previous"])

    # ---- retraining

    def teach(self) -> Stage:
        """The unpruned model's own answers to all training questions, the pseudo-labels: index sequences in
        `labels.json`."""

        def build(folder: Path) -> dict:
            data = self.data("train")
            labels = {}
            for batch in bar(batches(data, self.settings.eval_batch), "pseudo-labels"):
                predictions = self.model.generate(batch, stop=True)[1].tolist()
                labels |= {data.records[i]["question_id"]: p for i, p in zip(batch["index"], predictions, strict=True)}
            write_json(folder / "labels.json", labels)
            return {"questions": len(labels)}

        return self.stage("pseudo-labels", {"train_images": self.settings.train_images}, build)

    def amounts(self, cell: Cell) -> tuple[dict[str, Any], ReSt]:
        """By default X percent of the questions and the last k layers of the published schedule, by what given masks
        keep if there is no constraint."""
        constraint = cell.constraint
        if cell.masks is not None:
            constraint = self.cost.fraction(load_masks(given_file(cell), encoder=self.encoder))
        percent, layers = schedule(self.spec.name, constraint, cell.percentile)
        percent = percent if cell.percent is None else cell.percent
        layers = layers if cell.last_layers is None else cell.last_layers
        rest = replace(
            self.settings.rest,
            last_layers=layers if cell.trained == "ReSt" else 0,
            mixed_precision=self.settings.mixed_precision,
        )
        amounts = {"batch": self.settings.retrain_batch, "score_every": self.settings.score_every}
        return {"percent": percent} | amounts, rest

    def training(self, student: TAP, cell: Cell) -> dict[str, Any]:
        """ReSt on the unpruned model's answers; `trained` = "masks": mask values alone."""
        labels, settings, (amounts, rest) = self.teach(), self.settings, self.amounts(cell)
        count = max(1, round(labels.result["questions"] * amounts["percent"] / 100))
        indices = self.sample("train", count, cell.seed)
        data = self.data("train", targets=True, indices=indices, labels=labels.folder / "labels.json")
        student.train()
        training = {
            "encoder": prunable(student),
            "heads": [student.classifier, student.ocr_ptr_net] if cell.trained == "ReSt" else [],
            "batches": batches(data, settings.retrain_batch, shuffle_seed=cell.seed),
            "loss": labelled(student, reduction="parts"),
            "settings": rest,
            "checkpoint_every": settings.checkpoint_every,
        }
        if settings.score_every:
            training |= {"score": lambda: self.evaluate(student)["score"], "score_every": settings.score_every}
        return training

    # ---- scores

    def baseline(self) -> Stage:
        """The unpruned model's scores."""
        return self.stage("baseline", {}, lambda folder: self.evaluate(self.model))

    def evaluate(self, model: TAP) -> dict[str, Any]:
        """Accuracy of greedy answers to the validation questions."""
        return evaluate(model, self.data("val", limit=self.settings.num_eval or None), self.settings.eval_batch)

    def predict(self, model: TAP, data: TAPDataset) -> list[Answer]:
        """The model's answers to all questions of `data`, with the source of each word."""
        return predict(model, data, self.settings.eval_batch)

    def compare(self, models: Mapping[str, TAP]) -> dict[str, dict[str, float]]:
        """Size and speed side by side, on a batch of validation questions (`lfpr.tap.evaluate`)."""
        return compare(models, next(iter(batches(self.data("val"), min(64, self.settings.eval_batch)))))
