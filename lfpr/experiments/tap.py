"""TAP on TextVQA and ST-VQA: the model, the questions, and the published settings (LFPR, Poh et al. 2024)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lfpr import tap
from lfpr.checks import check_choice
from lfpr.experiments.cell import Cell
from lfpr.experiments.questions import QuestionSettings, QuestionTask
from lfpr.experiments.runs import Stage, file_hash, fingerprint
from lfpr.experiments.schedule import schedule
from lfpr.experiments.specs import ExperimentSpec
from lfpr.files import CheckpointError, DataError, Located
from lfpr.gradients import MaskGradients
from lfpr.kprune import KPrune
from lfpr.masks import Masks
from lfpr.mini.datasets import write_tap
from lfpr.modes import evaluating
from lfpr.released import scoring
from lfpr.released.tap import save_tap
from lfpr.tap.checkpoint import read_checkpoint
from lfpr.tap.data import TAPBatch, TAPDataset, check
from lfpr.tap.evaluate import predict, predict_inputs, write_inputs
from lfpr.tap.layout import LABELS, LAYOUTS, SCORE_SET, Files, InputSizes, locate_checkpoint
from lfpr.tap.model import TAP, TAPConfig
from lfpr.tap.text import Answer, AnswerVocab, decode
from lfpr.tap.vectors import Embedding, HashedNgrams
from lfpr.training.retrain import ReSt

WHOSE = ("auto", "released", "own")


@dataclass(frozen=True, kw_only=True)
class TAPSettings(QuestionSettings):
    """Sizes and amounts of a profile: those of `QuestionSettings`, and TAP's own.

    sample_set: the questions behind the importance at seed 0 are LFPR's own set ("released"), or drawn as at other
    seeds ("own"). labels: answers that retraining learns from, where it takes the published share of the questions:
    those in LFPR's files ("released"), or the unpruned model's anew ("own"). Of both, "auto" is "released" where the
    file is there. targets: the model's own answers are learned as "spelled" by every equal word, as LFPR does with
    answers in words, or as the words that were "decoded". scores: a folder that LFPR's scoring wrote, whose gradients
    are the label-free importance in the ways of these settings. released_files: whether stages also write what LFPR's
    code reads. schedule: of ReSt's data and layers, "published" or "own" (`lfpr.experiments.schedule`). word_vectors:
    of OCR tokens, "fasttext" or "hashed". kprune: K-prune's settings, tuned (`lfpr.kprune.tune`).
    """

    sizes: InputSizes
    word_vectors: str
    sample_set: str = "own"
    labels: str = "own"
    targets: str = "decoded"
    scores: str | Path | None = None
    released_files: bool = False
    schedule: str = "published"
    kprune: KPrune = field(default_factory=KPrune)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("schedule", self.schedule, ("published", "own"))
        check_choice("word_vectors", self.word_vectors, ("fasttext", "hashed"))
        check_choice("sample_set", self.sample_set, WHOSE)
        check_choice("labels", self.labels, WHOSE)
        check_choice("targets", self.targets, ("spelled", "decoded"))


MINI_SIZES = InputSizes(
    question_tokens=20, ocr_tokens_text=32, obj_tokens_text=12, num_objects=4, num_ocr=12, feature_size=128
)


class TAPTask(QuestionTask):
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
            kprune=KPrune(heads=16.0),
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
    package = tap
    render = staticmethod(write_tap)
    what = "TAP model"
    shared = (*QuestionTask.shared, "embed")
    bound = ("sizes", "word_vectors", "train_images", "val_images")

    @classmethod
    def default_settings(cls, spec: ExperimentSpec, profile: str) -> TAPSettings:
        """Those of the profile; 12 layers need faster masks in mini's few iterations, and are tuned by themselves."""
        settings = super().default_settings(spec, profile)
        if profile == "mini" and spec.arguments["mmt_layers"] > 4:
            kprune = KPrune(heads=16.0, representational=2.5e-5)
            return replace(settings, rest=replace(settings.rest, mask_lr=3e-2), kprune=kprune)
        return settings

    def _published(self) -> Located:
        own = f"{self.spec.name.replace('-', '_')}.ckpt"
        return locate_checkpoint(self.data_root, self.spec.arguments["checkpoint"], own)

    def located(self, split: str, kind: str) -> Located:
        """Where a file of TAP's is (`lfpr.tap.layout.Files`)."""
        return Files(self.root, self.dataset, split).locate(kind)

    def locate(self) -> list[Located]:
        """The checkpoint and the files of all splits; those of the mini profile are made first."""
        files = {split: Files(self.root, self.dataset, split) for dataset, split in LAYOUTS if dataset == self.dataset}
        rows = [self._unpruned, *(each.locate("imdb") for each in files.values())]
        rows += [files["train"].locate(kind) for kind in ("answers", "pieces", "names")]
        rows += [files["train"].locate("vectors")] if self.settings.word_vectors == "fasttext" else []
        rows += [files[split].locate(kind) for split in ("train", "val", "test") for kind in ("objects", "ocr")]
        return [*dict.fromkeys(rows), files["train"].released(self.spec.arguments["labels"])]

    # ---- the model

    @cached_property
    def model(self) -> TAP:
        """The unpruned model in evaluation mode."""
        return TAP(self.config).load_checkpoint(self.checkpoint).eval().to(self.device)

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

    # ---- importance and fitted masks

    @property
    def decoding_steps(self) -> int:
        """How many words an answer has at most."""
        return self.settings.sizes.decoding_steps

    def sampling(self, cell: Cell) -> dict[str, Any]:
        """Number of questions, batch, scoring and, if it is set, the decoding step; hashes of released files that are
        used. Raises ValueError for a step that is not decoded, DataError for `settings.scores` that do not fit."""
        self._check_step(cell)
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

    def step(self, cell: Cell) -> int:
        """The decoding step that the label-free objective looks at: the cell's, that of `settings.scores`, or
        int(median t*) over its sample."""
        return self._scores[1] if self._scored(cell) else super().step(cell)

    def objective(self, cell: Cell, model: TAP | None = None) -> Callable[[TAPBatch], Tensor]:
        """As for any questions, or LFPR's label-free objective with the dropout of its code."""
        dropout = self.dropout(cell)
        if cell.method != "label-free" or dropout is None:
            return super().objective(cell, model)
        return scoring.label_free(self.model if model is None else model, self.step(cell), dropout)

    def dropout(self, cell: Cell) -> float | None:
        """The dropout of released scoring; a baseline trained without any is scored with the released model's."""
        return (self.config.dropout or scoring.DROPOUT) if cell.scoring == "released" else None

    def sample_numbers(self, cell: Cell) -> dict[str, Any]:
        """How many questions, and the decoding step of the label-free objective."""
        if (given := self.given(cell)) is not None:
            return {"gradients": len(given.heads), "step": self.step(cell)}
        return super().sample_numbers(cell)

    def _begun(self, data: TAPDataset) -> Iterator[dict[str, Tensor]]:
        """With the first two steps of the answers."""
        for batch in self.batched(data, self.settings.score_batch):
            first = self.model.begin(len(batch["num_ocr"]))
            yield batch | {"previous": torch.cat([first, self.model.generate(batch, 1)[1]], 1)}

    def run(self, batch: dict[str, Tensor], model: TAP | None = None) -> Tensor:
        """Logits after the answer so far."""
        return (self.model if model is None else model)(batch, batch["previous"])

    def predictions(self, model: TAP, batch: dict[str, Tensor]) -> Tensor:
        """Logits of every decoding step, over words and copies."""
        return self.run(batch, model).flatten(0, 1)

    # ---- retraining

    def teach(self, cell: Cell) -> Stage:
        """As for any questions; nothing is computed where LFPR's file of answers is used."""
        if released := self._labels(cell):
            path, digest = released
            about = {"file": f"{path.parent.name}/{path.name}"}
            count = lambda folder: {"questions": len(self.data("train", labels=path))} | about  # noqa: E731
            return self.stage("pseudo-labels", about | {"labels": digest}, count)
        return super().teach(cell)

    def _answers(self, batch: TAPBatch, data: TAPDataset) -> tuple[list[list[int]], list[str]]:
        predictions = self.model.generate(batch, stop=True)[1].tolist()
        pairs = zip(predictions, batch.ocr_tokens, strict=True)
        return predictions, [decode(predicted, tokens, batch.vocab).text for predicted, tokens in pairs]

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
        if self.settings.schedule == "own":
            return super()._schedule(cell)
        return schedule(self.spec.name, self._kept(cell), cell.percentile)

    def _learned(self, cell: Cell) -> dict[str, Any]:
        """Whose answers, and how these are spelled."""
        released = self._labels(cell)
        return {"labels": released[1]} if released else {"targets": self.settings.targets}

    def _answering(self, student: TAP) -> list[nn.Module]:
        return [student.classifier, student.ocr_ptr_net]

    def _taught(self, cell: Cell, percent: float) -> TAPDataset:
        """As for any questions, or LFPR's file as it is."""
        if released := self._labels(cell):
            return self.data("train", targets=True, labels=released[0])
        file = {"spelled": "answers.json", "decoded": "labels.json"}[self.settings.targets]
        return super()._taught(cell, percent, file)

    # ---- files

    def save_released(self, model: TAP, masks: Masks, cell: Cell, folder: Path) -> None:
        """`pruned_model.ckpt` and `cfg.txt`, masks of ones, with all that the unpruned checkpoint has beside."""
        save_tap(model, folder, unpruned=self.checkpoint)

    def save_released_scores(self, gradients: MaskGradients, cell: Cell, folder: Path) -> list[Path]:
        """`score/`, of the label-free importance: rows are of batches, or of samples if they are scored one by one."""
        if cell.method != "label-free":
            return []
        scoring.save_scores(folder / "score", gradients, self.step(cell))
        return [folder / "score"]

    # ---- scores

    def encoded(self) -> Stage:
        """What the unpruned model makes of the validation questions before its MMT: the same for all pruned models."""
        settings = self.settings

        def build(folder: Path) -> dict:
            data = self.data("val", limit=settings.num_eval or None)
            with self.running():
                write_inputs(self.model, data, settings.eval_batch, folder, **self.loading)
            return {"questions": len(data)}

        return self.stage("encoded", {"batch": settings.eval_batch} | self.evaluation, build)

    def answer(self, model: TAP, data: TAPDataset) -> list[Answer]:
        """`predict`, of the validation questions, encoded once for all models that encode them alike."""
        if not model.encodes_as(self.model):
            return super().answer(model, data)
        folder = self.encoded().folder
        with self.running(), evaluating(model):
            return predict_inputs(model, folder, data.vocab)

    def predict(self, model: TAP, data: TAPDataset) -> list[Answer]:
        """The model's answers to all questions of `data`, with the source of each word."""
        with self.running():
            return predict(model, data, self.settings.eval_batch, **self.loading)
