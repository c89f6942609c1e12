"""TAP on TextVQA and ST-VQA: the model, the questions, and the published settings (LFPR, Poh et al. 2024)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lfpr.budget import check_choice, check_least
from lfpr.cost import ParameterCost
from lfpr.device import RUNNING, OnDevice
from lfpr.encoder import prunable
from lfpr.experiments.cell import SCORINGS, Cell
from lfpr.experiments.methods import given_file
from lfpr.experiments.runs import Stage, file_hash, fingerprint
from lfpr.experiments.schedule import questions, schedule
from lfpr.experiments.specs import ExperimentSpec
from lfpr.experiments.task import Task
from lfpr.files import CheckpointError, DataError, Located, locate, shipped, write_json
from lfpr.gradients import MaskGradients
from lfpr.masks import Masks
from lfpr.mini.datasets import write_tap
from lfpr.modes import evaluating
from lfpr.progress import bar
from lfpr.released import load_masks, scoring
from lfpr.released.tap import save_tap
from lfpr.save import save_delta
from lfpr.tap.checkpoint import read_checkpoint
from lfpr.tap.data import TAPBatch, TAPDataset, batches, check
from lfpr.tap.evaluate import (
    check_answered,
    compare,
    first_logits,
    predict,
    predict_inputs,
    score,
    write_evalai,
    write_inputs,
    write_rrc,
)
from lfpr.tap.layout import LABELS, LAYOUTS, SCORE_SET, Files, InputSizes, locate_checkpoint
from lfpr.tap.model import TAP, TAPConfig
from lfpr.tap.objectives import label_free, labelled, peak_step
from lfpr.tap.text import Answer, AnswerVocab, decode
from lfpr.tap.vectors import Embedding, HashedNgrams
from lfpr.training.processes import PRECISIONS
from lfpr.training.retrain import ReSt

WHOSE = ("auto", "released", "own")


@dataclass(frozen=True)
class TAPSettings:
    """Sizes and amounts of a profile.

    num_samples: training questions behind the importance, in batches of `score_batch`; scoring: how, as in `Cell`;
    step: decoding step of the label-free objective, by default the median of t* (LFPR). sample_set: at seed 0 they are
    LFPR's own set ("released"), or drawn as at other seeds ("own"). labels: answers that retraining learns from, where
    it takes the published share of the questions: those in LFPR's files ("released"), or the unpruned model's anew
    ("own"). Of both, "auto" is "released" where the file is there. targets: the model's own answers are learned as
    "spelled" by every equal word, as LFPR does with answers in words, or as the words that were "decoded". scores: a
    folder that LFPR's scoring wrote, whose gradients are the label-free importance in the ways of these settings.
    released_files: whether stages also write what LFPR's code reads. rescale_samples: training questions that mask
    values are fitted on. rest: ReSt's learning rates; retrain_batch: its batch size, of all
    processes together; mixed_precision: "no", "bf16" or "fp16"; checkpoint_every, score_every: iterations between two
    checkpoints, and between two scores in its log (none if 0). word_vectors: of OCR tokens, "fasttext" or "hashed".
    num_eval: validation questions, all if 0. train_images, val_images: of the mini data. workers: at most how many
    processes read questions; eval_precision: "bf16" lets a GPU answer in mixed precision, which changes some answers.
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
    sample_set: str = "own"
    labels: str = "own"
    targets: str = "decoded"
    scores: str | Path | None = None
    released_files: bool = False
    rescale_samples: int = 512
    mixed_precision: str = "no"
    checkpoint_every: int = 100
    score_every: int = 0
    num_eval: int = 0
    train_images: int = 0
    val_images: int = 0
    workers: int = 0
    eval_precision: str = "no"

    def __post_init__(self) -> None:
        check_choice("word_vectors", self.word_vectors, ("fasttext", "hashed"))
        check_choice("eval_precision", self.eval_precision, RUNNING)
        check_choice("scoring", self.scoring, SCORINGS)
        check_choice("sample_set", self.sample_set, WHOSE)
        check_choice("labels", self.labels, WHOSE)
        check_choice("targets", self.targets, ("spelled", "decoded"))
        check_choice("mixed_precision", self.mixed_precision, PRECISIONS)
        if not isinstance(self.scores, str | Path | None):
            raise ValueError(f"scores = {self.scores!r}: must be a folder")
        sizes = ("score_batch", "retrain_batch", "eval_batch", "num_samples", "rescale_samples", "checkpoint_every")
        check_least(self, 1, *sizes)
        check_least(self, 0, "num_eval", "score_every", "train_images", "val_images", "workers")


MINI_SIZES = InputSizes(
    question_tokens=20, ocr_tokens_text=32, obj_tokens_text=12, num_objects=4, num_ocr=12, feature_size=128
)


class TAPTask(Task):
    """A TAP model on one data set; spec.arguments: `dataset`, `text_layers`, `mmt_layers`, and the published names of
    the `checkpoint`, a file, and of the folder of LFPR's pseudo-`labels`."""

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
            workers=4,
            scoring="released",
            sample_set="auto",
            labels="auto",
            targets="spelled",
        ),
    }
    rendered = True
    shared = ("model", "embed", "_images", "_steps")
    bound = ("sizes", "word_vectors", "train_images", "val_images")

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
        self._unpruned = self._locate_checkpoint(checkpoint)
        self.checkpoint = self._unpruned.path
        if self.checkpoint is None or not self.checkpoint.is_file():
            raise CheckpointError(f"checkpoint = {checkpoint}: no such file (see data/README.md){self._missing()}")

    def _locate_checkpoint(self, checkpoint) -> Located:
        if self.profile == "full" and not checkpoint:
            own = f"{self.spec.name.replace('-', '_')}.ckpt"
            return locate_checkpoint(self.data_root, self.spec.arguments["checkpoint"], own)
        return locate("unpruned TAP model", [Path(checkpoint or shipped(self.spec.name))], "everything")

    def locate(self) -> list[Located]:
        """The checkpoint and the files of all splits; those of the mini profile are made first."""
        files = {split: Files(self.root, self.dataset, split) for dataset, split in LAYOUTS if dataset == self.dataset}
        rows = [self._unpruned, *(each.locate("imdb") for each in files.values())]
        rows += [files["train"].locate(kind) for kind in ("answers", "pieces", "names")]
        rows += [files["train"].locate("vectors")] if self.settings.word_vectors == "fasttext" else []
        rows += [files[split].locate(kind) for split in ("train", "val", "test") for kind in ("objects", "ocr")]
        return [*dict.fromkeys(rows), files["train"].released(self.spec.arguments["labels"])]

    def _file(self, split: str, kind: str) -> Path:
        """Where a file is. Raises FileNotFoundError for it and all others that are missing."""
        row = Files(self.root, self.dataset, split).locate(kind)
        if row.path is None:
            self.require_files()
        return row.found()

    # ---- the model

    @cached_property
    def model(self) -> TAP:
        """The unpruned model in evaluation mode."""
        return TAP(self.config).load_checkpoint(self.checkpoint).eval().to(self.device)

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

    def check_batches(self) -> OnDevice:
        """64 validation questions."""
        return self.batched(self.data("val", indices=self.sample("val", 64, 0)), 32)

    @cached_property
    def config(self) -> TAPConfig:
        """Of the shipped baseline, or (profile full) read off the checkpoint's shapes and the experiment's depth."""
        if self.profile == "mini":
            description = self.checkpoint.with_suffix(".json")
            return TAPConfig.from_dict(json.loads(description.read_text())["config"])
        sizes, state = self.settings.sizes, read_checkpoint(self.checkpoint)
        shape = {name: tuple(value.shape) for name, value in state.items()}
        vocab = AnswerVocab(self._file("train", "answers"))
        try:
            config = TAPConfig(
                text_layers=self.spec.arguments["text_layers"],
                mmt_layers=self.spec.arguments["mmt_layers"],
                text_vocab_size=shape["text_bert.embeddings.word_embeddings.weight"][0],
                num_answers=shape["classifier.module.weight"][0],
                question_tokens=sizes.question_tokens,
                hidden_size=shape["classifier.module.weight"][1],
                intermediate_size=shape["mmt.encoder.layer.0.intermediate.dense.weight"][0],
                feature_size=sizes.feature_size,
                num_ocr=sizes.num_ocr,
                fasttext_size=sizes.fasttext_size,
                decoding_steps=sizes.decoding_steps,
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
        """Hashes of files, how words become numbers, which questions are scored, lengths that are not the profile's."""
        sizes, own = self.settings.sizes, self.default_settings(self.spec, self.profile).sizes
        imdbs = {split: file_hash(self._file(split, "imdb")) for split in ("train", "val")}
        options = {}
        if self.profile == "full":  # mini's are made with its questions
            vectors = self.settings.word_vectors
            kinds = ["answers", "pieces", "names", *(["vectors"] if vectors == "fasttext" else [])]
            words = fingerprint([file_hash(self._file("train", kind)) for kind in kinds])
            options = {"word_vectors": vectors, "words": words}
        options |= {"num_eval": self.settings.num_eval} if self.settings.num_eval else {}
        options |= {} if sizes == own else {"sizes": asdict(sizes)}
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

    def batched(self, data: TAPDataset, batch_size: int) -> OnDevice:
        """Batches of all questions of `data`, in order, on the device."""
        return OnDevice(batches(data, batch_size, **self.loading), self.device)

    def sample(self, split: str, count: int, seed: int, **options: Any) -> list[int]:
        """`count` questions of `data(split, **options)`, drawn by `seed`, in increasing order; all if there are no
        more."""
        total = len(self.data(split, **options))
        return sorted(np.random.default_rng(seed).permutation(total)[:count].tolist())

    # ---- importance and fitted masks

    def sampling(self, cell: Cell) -> dict[str, Any]:
        """Number of questions, batch, scoring and, if it is set, the decoding step; hashes of released files that are
        used. Raises ValueError for a step that is not decoded, DataError for `settings.scores` that do not fit."""
        steps = self.settings.sizes.decoding_steps
        if cell.step is not None and cell.step >= steps:
            raise ValueError(f"step = {cell.step}: must be in 0 … {steps - 1}")
        batch = self.settings.score_batch if cell.scoring == "per-sample" else scoring.BATCH
        found = {"num_samples": cell.num_samples, "batch": batch, "scoring": cell.scoring, "step": cell.step}
        if self._scored(cell):
            found["scores"] = self._scores[2]
        elif cell.seed == 0 and self._score_set:
            found["sample_set"] = self._score_set[1]
        if cell.method == "label-free" and self.settings.released_files:
            found["released_files"] = True
        return found

    @cached_property
    def _score_set(self) -> tuple[Path, str] | None:
        """LFPR's own questions behind the importance, if they are to be used: their imdb and its hash."""
        return self._released(self.settings.sample_set, SCORE_SET)

    def _released(self, whose: str, name: str) -> tuple[Path, str] | None:
        """LFPR's own file and its hash, if a setting asks for it."""
        row = None if whose == "own" else Files(self.root, self.dataset, "train").released(name)
        if row is None or (whose == "auto" and row.path is None):
            return None
        return row.found(), file_hash(row.path)

    def _scored(self, cell: Cell) -> bool:
        """Whether the importance of a cell is that in `settings.scores`."""
        own = all(getattr(cell, name) == getattr(self.settings, name) for name in ("num_samples", "scoring", "step"))
        return self.settings.scores is not None and cell.method == "label-free" and own

    @cached_property
    def _scores(self) -> tuple[MaskGradients, int, str]:
        """What is in `settings.scores`: gradients, decoding step, hash."""
        folder, encoder = Path(self.settings.scores), self.encoder
        gradients, step = scoring.load_scores(folder)
        sizes = encoder.num_layers, encoder.num_heads, encoder.num_neurons
        found = (*gradients.heads.shape[1:], gradients.neurons.shape[2])
        if found != sizes:
            raise DataError(f"scores = {folder}: of {found} layers, heads and neurons, {self.spec.name} has {sizes}")
        if self.settings.step not in (None, step) or step >= self.config.decoding_steps:
            raise DataError(f"scores = {folder}: at decoding step {step}, step is {self.settings.step}")
        return gradients, step, fingerprint([file_hash(folder / name) for name in scoring.FILES])

    def given(self, cell: Cell) -> MaskGradients | None:
        """Those in `settings.scores`, of the label-free importance in the settings' own way, at any seed."""
        return self._scores[0] if self._scored(cell) else None

    def scored(self, cell: Cell, targets: bool = False) -> TAPDataset:
        """The training questions behind the importance of a cell, in the order of their file: LFPR's own set at seed 0
        (`settings.sample_set`), or drawn from all."""
        split, options = "train", {}
        if cell.seed == 0 and self._score_set:
            split, options = "score", {"imdb": self._score_set[0]}
        indices = self.sample(split, cell.num_samples, cell.seed, **options)
        return self.data(split, targets=targets, indices=indices, **options)

    def batches(self, cell: Cell) -> OnDevice:
        """A sample of training questions, with answers unless the method is label-free.

        Read anew in each pass: thousands of full-size questions do not fit in memory.
        """
        return self.batched(self.scored(cell, cell.method != "label-free"), self.sampling(cell)["batch"])

    def step(self, cell: Cell) -> int:
        """The decoding step that the label-free objective looks at: the cell's, that of `settings.scores`, or
        int(median t*) over its sample."""
        if self._scored(cell):
            return self._scores[1]
        key = cell.num_samples, cell.seed, cell.scoring, self.sampling(cell).get("sample_set")
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
        step = self.step(cell) if cell.method == "label-free" else cell.step
        if (given := self.given(cell)) is not None:
            return {"gradients": len(given.heads), "step": step}
        return {"samples": len(self.scored(cell)), "step": step}

    def calibration(self, seed: int) -> Iterator[dict[str, Tensor]]:
        """Unlabelled training questions and the first two steps of their decoded answers."""
        yield from self._begun(self.data("train", indices=self.sample("train", self.settings.rescale_samples, seed)))

    def released_calibration(self, cell: Cell) -> Iterator[dict[str, Tensor]]:
        """The questions behind the importance, as in `calibration`."""
        yield from self._begun(self.scored(cell))

    def _begun(self, data: TAPDataset) -> Iterator[dict[str, Tensor]]:
        for batch in self.batched(data, self.settings.score_batch):
            first = self.model.begin(len(batch["num_ocr"]))
            yield batch | {"previous": torch.cat([first, self.model.generate(batch, 1)[1]], 1)}

    def run(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits after the answer so far."""
        return self.model(batch, batch["previous"])

    # ---- retraining

    def teach(self, cell: Cell) -> Stage:
        """The pseudo-labels: the unpruned model's own answers to all training questions, index sequences in
        `labels.json` and words in `answers.json`; nothing is computed where LFPR's file of answers is used."""

        def build(folder: Path) -> dict:
            data = self.data("train")
            labels, answers = {}, {}
            for batch in bar(self.batched(data, self.settings.eval_batch), "pseudo-labels"):
                with self.running():
                    predictions = self.model.generate(batch, stop=True)[1].tolist()
                for i, predicted, tokens in zip(batch["index"].tolist(), predictions, batch.ocr_tokens, strict=True):
                    question = data.records[i]["question_id"]
                    labels[question], answers[question] = predicted, decode(predicted, tokens, batch.vocab).text
            write_json(folder / "labels.json", labels)
            write_json(folder / "answers.json", answers)
            return {"questions": len(labels)}

        if released := self._labels(cell):
            path, digest = released
            about = {"file": f"{path.parent.name}/{path.name}"}
            count = lambda folder: {"questions": len(self.data("train", labels=path))} | about  # noqa: E731
            return self.stage("pseudo-labels", about | {"labels": digest}, count)
        key = {"train_images": self.settings.train_images, "files": ["labels", "answers"]} | self.inference
        return self.stage("pseudo-labels", key, build)

    def _labels(self, cell: Cell) -> tuple[Path, str] | None:
        """LFPR's file of answers that a cell learns from, and its hash; None for the model's own answers.

        Raises ValueError for a share of the questions of which LFPR's files are to be used and are not.
        """
        whose, percent = self.settings.labels, self._schedule(cell)[0]
        if cell.percent not in (None, percent, int(percent)):
            if whose == "released":
                raise ValueError(
                    f"percent = {cell.percent}: LFPR's answers (labels = 'released') are of {percent:.4g} % here"
                )
            return None
        return self._released(whose, LABELS.format(self.spec.arguments["labels"], int(percent)))

    def _schedule(self, cell: Cell) -> tuple[float, int]:
        constraint = cell.constraint
        if cell.masks is not None:
            constraint = self.cost.fraction(load_masks(given_file(cell), encoder=self.encoder))
        return schedule(self.spec.name, constraint, cell.percentile)

    def amounts(self, cell: Cell) -> tuple[dict[str, Any], ReSt]:
        """By default X percent of the questions and the last k layers of the published schedule, by what given masks
        keep if there is no constraint; whose answers are learned, and how."""
        percent, layers = self._schedule(cell)
        percent = percent if cell.percent is None else cell.percent
        layers = layers if cell.last_layers is None else cell.last_layers
        rest = replace(
            self.settings.rest,
            last_layers=layers if cell.trained == "ReSt" else 0,
            mixed_precision=self.settings.mixed_precision,
        )
        amounts = {"batch": self.settings.retrain_batch, "score_every": self.settings.score_every}
        released = self._labels(cell)
        amounts |= {"labels": released[1]} if released else {"targets": self.settings.targets}
        return {"percent": percent} | amounts, rest

    def training(self, student: TAP, cell: Cell) -> dict[str, Any]:
        """ReSt on the unpruned model's answers; `trained` = "masks": mask values alone."""
        settings, (amounts, rest) = self.settings, self.amounts(cell)
        data = self._taught(cell, amounts["percent"])
        student.train()
        training = {
            "encoder": prunable(student),
            "heads": [student.classifier, student.ocr_ptr_net] if cell.trained == "ReSt" else [],
            "batches": batches(data, settings.retrain_batch, shuffle_seed=cell.seed, **self.loading),
            "loss": labelled(student, reduction="parts"),
            "settings": rest,
            "checkpoint_every": settings.checkpoint_every,
        }
        if settings.score_every:
            training |= {"score": lambda: self.evaluate(student)["score"], "score_every": settings.score_every}
        return training

    def _taught(self, cell: Cell, percent: float) -> TAPDataset:
        """The questions that a cell is retrained on, with what is to be answered: LFPR's file as it is, or a share of
        all with the model's own answers."""
        if released := self._labels(cell):
            return self.data("train", targets=True, labels=released[0])
        labels = self.teach(cell)
        indices = self.sample("train", questions(percent, labels.result["questions"]), cell.seed)
        file = {"spelled": "answers.json", "decoded": "labels.json"}[self.settings.targets]
        return self.data("train", targets=True, indices=indices, labels=labels.folder / file)

    # ---- files

    def save_retrained(self, model: TAP, masks: Masks, folder: Path) -> dict[str, Any]:
        """`delta.safetensors`, what retraining changed of the pruned model: the size that LFPR's paper reports."""
        path = folder / "delta.safetensors"
        save_delta(self.model, masks, model, path)
        return {"delta_megabytes": path.stat().st_size / 1e6}

    def save_released(self, model: TAP, masks: Masks, cell: Cell, folder: Path) -> None:
        """`pruned_model.ckpt` and `cfg.txt`, masks of ones, with all that the unpruned checkpoint has beside."""
        save_tap(model, folder, unpruned=self.checkpoint)

    def save_released_scores(self, gradients: MaskGradients, cell: Cell, folder: Path) -> list[Path]:
        """`score/`, of the label-free importance: rows are of batches, or of samples if they are scored one by one."""
        if cell.method != "label-free":
            return []
        scoring.save_scores(folder / "score", gradients, self.step(cell))
        return [folder / "score"]

    def submit(self, model: TAP, path: str | Path) -> list[Path]:
        """Write a model's answers to the test questions: TextVQA's for EvalAI; ST-VQA's for task 3 of the Robust
        Reading Competition, and beside them `…_evalai.json`. Returns the files' paths."""
        path, test = Path(path), self.data("test")
        answers = self.predict(model, test)
        if self.dataset == "textvqa":
            write_evalai(path, answers, test)
            return [path]
        beside = path.with_name(f"{path.stem}_evalai.json")
        write_rrc(path, answers, test)
        write_evalai(beside, answers, test)
        return [path, beside]

    def require_test(self) -> None:
        """Raises FileNotFoundError naming a file of the test questions that is missing; mini has none."""
        if self.profile == "mini":
            raise ValueError(f"{self.spec.name}: the profile 'mini' has no test split whose answers could be submitted")
        for kind in ("imdb", "objects", "ocr"):
            Files(self.root, self.dataset, "test").locate(kind).found()

    # ---- scores

    def baseline(self) -> Stage:
        """The unpruned model's scores."""
        return self.stage("baseline", self.evaluation, lambda folder: self.evaluate(self.model))

    def encoded(self) -> Stage:
        """What the unpruned model makes of the validation questions before its MMT: the same for all pruned models."""
        settings = self.settings

        def build(folder: Path) -> dict:
            data = self.data("val", limit=settings.num_eval or None)
            with self.running():
                write_inputs(self.model, data, settings.eval_batch, folder, **self.loading)
            return {"questions": len(data)}

        return self.stage("encoded", {"batch": settings.eval_batch} | self.evaluation, build)

    def evaluate(self, model: TAP) -> dict[str, Any]:
        """Accuracy of greedy answers to the validation questions."""
        data = self.data("val", limit=self.settings.num_eval or None)
        check_answered(data)
        with evaluating(model):
            if not model.encodes_as(self.model):
                return score(self.predict(model, data), data)
            folder = self.encoded().folder
            with self.running():
                return score(predict_inputs(model, folder, data.vocab), data)

    def predict(self, model: TAP, data: TAPDataset) -> list[Answer]:
        """The model's answers to all questions of `data`, with the source of each word."""
        with self.running():
            return predict(model, data, self.settings.eval_batch, **self.loading)

    def compare(self, models: Mapping[str, TAP]) -> dict[str, dict[str, float]]:
        """Size and speed side by side, on a batch of validation questions (`lfpr.tap.evaluate`)."""
        return compare(models, next(iter(self.batched(self.data("val"), min(64, self.settings.eval_batch)))))
