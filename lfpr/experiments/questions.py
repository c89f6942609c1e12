"""Questions about text in images: what the experiments of TAP and of SaL have in common.

Both models answer step by step, are scored without labels at the step where they are surest, and are retrained on
their own answers (LFPR, Poh et al. 2024). Their packages have functions of the same names.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset

from lfpr.checks import check_choice, check_count, check_least
from lfpr.cost import ParameterCost
from lfpr.device import RUNNING, OnDevice
from lfpr.encoder import prunable
from lfpr.experiments.cell import SCORINGS, Cell
from lfpr.experiments.kinds import check_fields
from lfpr.experiments.methods import given_file
from lfpr.experiments.runs import Stage
from lfpr.experiments.schedule import own_schedule, questions
from lfpr.experiments.specs import PROJECTED, UNLABELLED
from lfpr.experiments.task import Task
from lfpr.files import CheckpointError, Located, locate, shipped, write_json
from lfpr.masks import Masks
from lfpr.progress import bar
from lfpr.released import load_masks
from lfpr.save import save_delta
from lfpr.tap.evaluate import check_answered, score, write_evalai, write_rrc
from lfpr.tap.text import Answer
from lfpr.training.processes import PRECISIONS
from lfpr.training.retrain import ReSt

Batch = dict[str, Tensor]
ANSWERS = "validation_answers.json"


@dataclass(frozen=True, kw_only=True)
class QuestionSettings:
    """Amounts of a profile.

    num_samples: training questions behind the importance, in batches of `score_batch`; scoring: how, as in `Cell`;
    step: decoding step of the label-free objective, by default the median of t* (LFPR). rescale_samples,
    reconstruct_samples: training questions that mask values, or output projections, are fitted on. rest: ReSt's
    learning rates; retrain_batch: its batch size, of all processes together; mixed_precision: "no", "bf16" or "fp16";
    checkpoint_every, score_every: iterations between two checkpoints, and between two scores in its log (none if 0).
    num_eval: validation questions, all if 0. train_images, val_images: of the mini data. workers: at most how many
    processes read questions; eval_precision: "bf16" lets a GPU answer in mixed precision, which changes some answers.
    """

    num_samples: int
    score_batch: int
    rest: ReSt
    retrain_batch: int
    eval_batch: int
    scoring: str = "per-sample"
    step: int | None = None
    rescale_samples: int = 512
    reconstruct_samples: int = 512
    mixed_precision: str = "no"
    checkpoint_every: int = 100
    score_every: int = 0
    num_eval: int = 0
    train_images: int = 0
    val_images: int = 0
    workers: int = 0
    eval_precision: str = "no"

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("eval_precision", self.eval_precision, RUNNING)
        check_choice("scoring", self.scoring, SCORINGS)
        check_choice("mixed_precision", self.mixed_precision, PRECISIONS)
        sizes = (
            "score_batch",
            "retrain_batch",
            "eval_batch",
            "num_samples",
            "rescale_samples",
            "checkpoint_every",
            "reconstruct_samples",
        )
        check_least(self, 1, *sizes)
        check_least(self, 0, "num_eval", "score_every", "train_images", "val_images", "workers")
        check_count("step", self.step or 0)


class QuestionTask(Task):
    """A model that answers questions about text in images, on one data set; spec.arguments: `dataset`."""

    rendered = True
    shared = ("model", "_images", "_steps")
    package: ClassVar[ModuleType]
    """The model's own: its data set's `batches`, `compare`, `first_logits`, objectives in `objectives`."""
    render: ClassVar[Callable[..., dict]]
    """Writes the data of the profile mini."""
    what: ClassVar[str]
    """What the model is called."""

    def _set_up(self, runs: Path, data_root, checkpoint) -> None:
        self.dataset = self.spec.arguments["dataset"]
        self.data_root = Path(data_root) if data_root else runs / "data" / f"{self._folder}-mini"
        if self.profile == "full" and not checkpoint:
            self._unpruned = self._published()
        else:
            places = [Path(checkpoint or shipped(self.spec.name))]
            self._unpruned = locate(f"unpruned {self.what}", places, "everything")
        self.checkpoint = self._unpruned.path
        if self.checkpoint is None or not self.checkpoint.is_file():
            raise CheckpointError(f"checkpoint = {checkpoint}: no such file (see data/README.md){self._missing()}")

    @property
    def _folder(self) -> str:
        """What the mini data are called."""
        return self.dataset

    @abstractmethod
    def _published(self) -> Located:
        """The published checkpoint, below `data_root` or beside it."""

    @abstractmethod
    def located(self, split: str, kind: str) -> Located:
        """Where a file of a split is, below `data_root`."""

    def _file(self, split: str, kind: str) -> Path:
        """Where a file is. Raises FileNotFoundError for it and all others that are missing."""
        row = self.located(split, kind)
        if row.path is None:
            self.require_files()
        return row.found()

    # ---- the model

    @property
    def cost(self) -> ParameterCost:
        """The parameters of the prunable layers, exactly."""
        return ParameterCost(self.encoder)

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Parameters of the prunable layers and their share of the unpruned ones; heads of each attention and neurons
        of each FFN."""
        encoder = prunable(model)
        return {
            "parameters": encoder.num_parameters,
            "fraction": encoder.num_parameters / self.encoder.num_parameters,
            "heads": encoder.heads_per_layer,
            "neurons": encoder.neurons_per_layer,
        }

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits of the first two decoding steps."""
        return self.package.first_logits(model, batch)

    def check_batches(self) -> OnDevice:
        """64 validation questions."""
        return self.batched(self.data("val", indices=self.sample("val", 64, 0)), 32)

    # ---- the questions

    @cached_property
    def root(self) -> Path:
        """The data folder; the mini profile's is rendered when first needed."""
        if self.profile == "mini":
            self.render(self.data_root, self.dataset, self.settings.train_images, self.settings.val_images)
        return self.data_root

    @abstractmethod
    def data(self, split: str, targets: bool = False, **options: Any) -> Dataset:
        """The questions of a split; `options` of the package's data set."""

    @cached_property
    def _images(self) -> dict[str, dict]:
        return {}

    def batched(self, data: Dataset, batch_size: int) -> OnDevice:
        """Batches of all questions of `data`, in order, on the device."""
        return OnDevice(self.package.batches(data, batch_size, **self.loading), self.device)

    def sample(self, split: str, count: int, seed: int, **options: Any) -> list[int]:
        """`count` questions of `data(split, **options)`, drawn by `seed`, in increasing order; all if there are no
        more."""
        total = len(self.data(split, **options))
        return sorted(np.random.default_rng(seed).permutation(total)[:count].tolist())

    # ---- importance and fitted masks

    @property
    @abstractmethod
    def decoding_steps(self) -> int:
        """How many steps the model decodes at most."""

    def _check_step(self, cell: Cell) -> None:
        if cell.step is not None and cell.step >= self.decoding_steps:
            raise ValueError(f"step = {cell.step}: must be in 0 … {self.decoding_steps - 1}")

    def scored(self, cell: Cell, targets: bool = False) -> Dataset:
        """The training questions behind the importance of a cell, in the order of their file."""
        return self.data("train", targets=targets, indices=self.sample("train", cell.num_samples, cell.seed))

    def batches(self, cell: Cell) -> Iterable[Batch]:
        """A sample of training questions, with answers if the method needs them: the data set's, or the unpruned
        model's own.

        Read anew in each pass: thousands of full-size questions do not fit in memory.
        """
        labels = cell.method not in ("label-free", *UNLABELLED)
        found = self.batched(self.scored(cell, labels), self.sampling(cell)["batch"])
        return self.package.objectives.Answered(found, self.model) if cell.method in UNLABELLED else found

    def step(self, cell: Cell) -> int:
        """The decoding step that the label-free objective looks at: the cell's, or int(median t*) over its sample."""
        key = cell.num_samples, cell.seed, cell.scoring, self.sampling(cell).get("sample_set")
        if cell.step is None and key not in self._steps:
            sample = self.batches(replace(cell, method="label-free"))
            self._steps[key] = self.package.peak_step(self.model, bar(sample, "peak step"))
        return self._steps[key] if cell.step is None else cell.step

    @cached_property
    def _steps(self) -> dict[tuple, int]:
        return {}

    def objective(self, cell: Cell, model: nn.Module | None = None) -> Callable[[Batch], Tensor]:
        """LFPR's label-free objective, or the loss: of the labels, of the model's own answers, or a random projection
        of what it says (`lfpr.fisher`)."""
        model, own = self.model if model is None else model, self.package.objectives
        if cell.method == "label-free":
            return own.label_free(model, self.step(cell))
        if cell.method in PROJECTED:
            return own.projected(model, cell.seed)
        return own.labelled(model, reduction="sum" if self.per_sample(cell) else "mean")

    def per_sample(self, cell: Cell) -> bool:
        """As the cell says."""
        return cell.scoring == "per-sample"

    def sample_numbers(self, cell: Cell) -> dict[str, Any]:
        """How many questions, and the decoding step of the label-free objective."""
        step = self.step(cell) if cell.method == "label-free" else cell.step
        return {"samples": len(self.scored(cell)), "step": step}

    def calibration(self, seed: int) -> Iterator[Batch]:
        """Unlabelled training questions with the answers that were decoded."""
        return self._calibrating(self.settings.rescale_samples, seed)

    def _calibrating(self, count: int, seed: int) -> Iterator[Batch]:
        yield from self._begun(self.data("train", indices=self.sample("train", count, seed)))

    def released_calibration(self, cell: Cell) -> Iterator[Batch]:
        """The questions behind the importance, as in `calibration`."""
        yield from self._begun(self.scored(cell))

    @abstractmethod
    def _begun(self, data: Dataset) -> Iterator[Batch]:
        """Batches with the unpruned model's answers so far, `previous` [B, T]."""

    def reconstruction(self, seed: int) -> Iterator[Batch]:
        """As `calibration`, as many as the settings say."""
        return self._calibrating(self.settings.reconstruct_samples, seed)

    # ---- retraining

    def teach(self, cell: Cell) -> Stage:
        """The pseudo-labels: the unpruned model's own answers to all training questions, index sequences in
        `labels.json` and words in `answers.json`."""

        def build(folder: Path) -> dict:
            data = self.data("train")
            labels, answers = {}, {}
            for batch in bar(self.batched(data, self.settings.eval_batch), "pseudo-labels"):
                with self.running():
                    given = self._answers(batch, data)
                for i, predicted, text in zip(batch["index"].tolist(), *given, strict=True):
                    question = data.records[i]["question_id"]
                    labels[question], answers[question] = predicted, text
            write_json(folder / "labels.json", labels)
            write_json(folder / "answers.json", answers)
            return {"questions": len(labels)}

        key = {"train_images": self.settings.train_images, "files": ["labels", "answers"]} | self.inference
        return self.stage("pseudo-labels", key, build)

    @abstractmethod
    def _answers(self, batch: Batch, data: Dataset) -> tuple[list[list[int]], list[str]]:
        """The unpruned model's answers to a batch of `data`, as indices and as text."""

    def _schedule(self, cell: Cell) -> tuple[float, int]:
        """Percent of the questions and number of last layers, by what is kept."""
        kept = self._kept(cell)
        return own_schedule(self.encoder.depth, 1 - cell.percentile / 100 if kept is None else kept)

    def _kept(self, cell: Cell) -> float | None:
        """The share of the cost that a cell keeps, as planned; None of a percentile."""
        if cell.masks is not None:
            return self.cost.fraction(load_masks(given_file(cell), encoder=self.encoder))
        return cell.constraint

    def amounts(self, cell: Cell) -> tuple[dict[str, Any], ReSt]:
        """By default X percent of the questions and the last k layers of the schedule, by what given masks keep if
        there is no constraint; and what else is learned from."""
        percent, layers = self._schedule(cell)
        percent = percent if cell.percent is None else cell.percent
        layers = layers if cell.last_layers is None else cell.last_layers
        rest = replace(
            self.settings.rest,
            last_layers=layers if cell.trained == "ReSt" else 0,
            mixed_precision=self.settings.mixed_precision,
        )
        amounts = {"batch": self.settings.retrain_batch, "score_every": self.settings.score_every}
        return {"percent": percent} | amounts | self._learned(cell), rest

    def _learned(self, cell: Cell) -> dict[str, Any]:
        """What else of the answers to learn a retrained model depends on."""
        return {}

    def training(self, student: nn.Module, cell: Cell) -> dict[str, Any]:
        """ReSt on the unpruned model's answers; `trained` = "masks": mask values alone."""
        settings, (amounts, rest) = self.settings, self.amounts(cell)
        data = self._taught(cell, amounts["percent"])
        student.train()
        training = {
            "encoder": prunable(student),
            "heads": self._answering(student) if cell.trained == "ReSt" else [],
            "batches": self.package.batches(data, settings.retrain_batch, shuffle_seed=cell.seed, **self.loading),
            "loss": self.package.labelled(student, reduction="parts"),
            "settings": rest,
            "checkpoint_every": settings.checkpoint_every,
        }
        if settings.score_every:
            training |= {"score": lambda: self.evaluate(student)["score"], "score_every": settings.score_every}
        return training

    @abstractmethod
    def _answering(self, student: nn.Module) -> list[nn.Module]:
        """The modules that score answers, which ReSt trains wholly."""

    def _taught(self, cell: Cell, percent: float, file: str = "labels.json") -> Dataset:
        """The questions that a cell is retrained on, a share of all, with the model's own answers."""
        labels = self.teach(cell)
        indices = self.sample("train", questions(percent, labels.result["questions"]), cell.seed)
        return self.data("train", targets=True, indices=indices, labels=labels.folder / file)

    # ---- files

    def save_retrained(self, model: nn.Module, masks: Masks, folder: Path) -> dict[str, Any]:
        """`delta.safetensors`, what retraining changed of the pruned model: the size that LFPR's paper reports."""
        path = folder / "delta.safetensors"
        save_delta(self.model, masks, model, path)
        return {"delta_megabytes": path.stat().st_size / 1e6}

    def submit(self, model: nn.Module, path: str | Path) -> list[Path]:
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
            self.located("test", kind).found()

    # ---- scores

    def baseline(self) -> Stage:
        """The unpruned model's scores."""
        return self.stage("baseline", self.evaluation, lambda folder: self.measure(self.model, folder))

    def validation(self) -> Dataset:
        """The questions that scores count. Raises ValueError if one has no answer to score with."""
        data = self.data("val", limit=self.settings.num_eval or None)
        check_answered(data)
        return data

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Accuracy of greedy answers to the validation questions."""
        data = self.validation()
        return score(self.answer(model, data), data)

    def measure(self, model: nn.Module, folder: Path) -> dict[str, Any]:
        """`evaluate`, and in `validation_answers.json` the answers: a list of text, words and their sources."""
        data = self.validation()
        answers = self.answer(model, data)
        write_json(folder / ANSWERS, answers)
        return score(answers, data)

    def answers(self, stage: Stage, data: Dataset) -> list[Answer]:
        """Answers to `data`, the validation questions, by the model of a stage "baseline", "prune" or "retrain": as it
        was scored with, or given again, where an earlier version kept none."""
        if (file := stage.folder / ANSWERS).is_file():
            return [Answer(text, list(map(tuple, words))) for text, words in json.loads(file.read_bytes())]
        return self.answer(self.load(stage), data)

    def answer(self, model: nn.Module, data: Dataset) -> list[Answer]:
        """`predict`, of the validation questions."""
        return self.predict(model, data)

    @abstractmethod
    def predict(self, model: nn.Module, data: Dataset) -> list[Answer]:
        """The model's answers to all questions of `data`, with the source of each word."""

    def compare(self, models: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
        """Size and speed side by side, on a batch of validation questions (`compare` of the package)."""
        batch = next(iter(self.batched(self.data("val"), min(64, self.settings.eval_batch))))
        return self.package.compare(models, batch)
