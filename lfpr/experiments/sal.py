"""SaL on TextVQA and ST-VQA: the model, the questions, and settings.

LFPR (Poh et al. 2024) reports SaL‡-Base, half of whose parameters it removes for less than 2.9 points of accuracy, and
publishes neither its code nor its settings. Batch and learning rates of SaL's training are published (Fang et al., ACM
MM 2023); amounts of importance are those of LFPR's TAP; the schedule of retraining and what is trained are ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from lfpr import sal
from lfpr.checks import check_choice
from lfpr.experiments.cell import Cell
from lfpr.experiments.questions import QuestionSettings, QuestionTask
from lfpr.experiments.runs import file_hash
from lfpr.files import Located, below, locate
from lfpr.mini.sal import write_sal
from lfpr.sal.config import SCP, SaLConfig
from lfpr.sal.data import LAYOUTS, SPLITS, SaLDataset, check, locate_file
from lfpr.sal.model import Batch, SaL, read_config
from lfpr.sal.objectives import Answered
from lfpr.tap.text import Answer
from lfpr.training.retrain import ReSt

CHECKPOINTS = ("checkpoints/{0}.ckpt", "{0}.ckpt", "save/{0}/best.ckpt")
"""The unpruned model of an experiment, {0}, in one of `HOMES`: published ones are all called best.ckpt."""
HOMES = ("", "sal", "SaL", "..")


@dataclass(frozen=True, kw_only=True)
class SaLSettings(QuestionSettings):
    """Amounts of a profile: those of `QuestionSettings`, and what the Spatial Circle Position does, `scp`: as in
    `SaLConfig`, or "auto", as the checkpoint says."""

    scp: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("scp", self.scp, ("auto", *SCP))
        _check_scoring(self.scoring)


def _check_scoring(scoring: str) -> None:
    if scoring == "released":
        raise ValueError("scoring = 'released': no code of SaL's importance was released")


class SaLTask(QuestionTask):
    """A SaL on one data set; spec.arguments: `dataset`.

    ReSt is as TAP's: the unpruned model's own answers are the labels, of more of the questions the more is pruned, and
    trained are mask values, the embeddings, which also score answers, and the last layers of encoder and decoder. How
    many questions and layers is our schedule (`lfpr.experiments.schedule.own_schedule`), since none was published.
    """

    SETTINGS: ClassVar[dict[str, SaLSettings]] = {
        "mini": SaLSettings(
            num_samples=500,
            score_batch=50,
            rest=ReSt(lr=1e-3, mask_lr=1e-2, cosine=True),
            retrain_batch=16,
            eval_batch=200,
            train_images=2000,
            val_images=600,
        ),
        "full": SaLSettings(
            num_samples=3000,
            score_batch=8,
            rest=ReSt(),
            retrain_batch=16,
            eval_batch=32,
            workers=4,
        ),
    }
    package = sal
    render = staticmethod(write_sal)
    what = "SaL model"
    bound = ("train_images", "val_images", "scp")

    @property
    def _folder(self) -> str:
        return f"sal-{self.dataset}"

    def _published(self) -> Located:
        names = [name.format(self.spec.name.replace("-", "_")) for name in CHECKPOINTS]
        return locate(f"unpruned {self.what}", below(self.data_root, HOMES, names), "everything")

    def located(self, split: str, kind: str) -> Located:
        """Where a file of SaL's is (`lfpr.sal.data.locate_file`)."""
        return locate_file(self.root, self.dataset, split, kind)

    def locate(self) -> list[Located]:
        """The checkpoint and the files of all splits; those of the mini profile are made first."""
        kinds = [kind for kind in LAYOUTS[self.dataset] if kind != "imdb"]
        rows = [self._unpruned, *(self.located(split, "imdb") for split in SPLITS)]
        return [*rows, *(self.located("train", kind) for kind in (*kinds, "tokenizer"))]  # of all splits

    # ---- the model

    @cached_property
    def model(self) -> SaL:
        """The unpruned model in evaluation mode."""
        return SaL(self.config).load_checkpoint(self.checkpoint).eval().to(self.device)

    @cached_property
    def config(self) -> SaLConfig:
        """Of the shipped baseline, or (profile full) read off the checkpoint's shapes, inputs being as published."""
        scp = self.settings.scp
        if self.profile == "full":
            return read_config(self.checkpoint, scp)
        config = SaLConfig.from_dict(json.loads(self.checkpoint.with_suffix(".json").read_text())["config"])
        return config if scp == "auto" else replace(config, scp=scp)

    # ---- the questions

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Hashes of files, which questions are scored, and what is not the checkpoint's."""
        kinds = ("tokenizer",) if self.profile == "full" else ()  # mini's is made with its questions
        files = {split: file_hash(self._file(split, "imdb")) for split in ("train", "val")}
        files |= {kind: file_hash(self._file("train", kind)) for kind in kinds}
        options = {name: getattr(self.settings, name) for name in ("num_eval", "scp")}
        unset = {"num_eval": 0, "scp": "auto"}
        options = {name: value for name, value in options.items() if value != unset[name]}
        return {"checkpoint": file_hash(self.checkpoint)} | files | options

    def data(self, split: str, targets: bool = False, **options: Any) -> SaLDataset:
        """The questions of a split (see `lfpr.sal.data.SaLDataset`)."""
        if self.profile == "mini":  # small enough to be read once and kept
            options["images"] = self._images.setdefault(split, {})
        return SaLDataset(self.root, self.dataset, split, config=self.config, targets=targets, **options)

    def check(self, split: str, limit: int | None = None) -> dict[str, Any]:
        """What is in a split's files, and the first record that cannot be used (see `lfpr.sal.data.check`)."""
        return check(self.root, self.dataset, split, limit=limit, config=self.config)

    # ---- importance and fitted masks

    @property
    def decoding_steps(self) -> int:
        """How many pieces an answer has at most, its end among them."""
        return self.config.new_tokens

    def sampling(self, cell: Cell) -> dict[str, Any]:
        """Number of questions, batch, scoring and, if it is set, the decoding step. Raises ValueError for a step that
        is not decoded, and for released scoring, which there is none of."""
        self._check_step(cell)
        _check_scoring(cell.scoring)
        batch = self.settings.score_batch
        return {"num_samples": cell.num_samples, "batch": batch, "scoring": cell.scoring, "step": cell.step}

    def _begun(self, data: SaLDataset) -> Iterator[Batch]:
        """With the whole answers, and `loss_mask` [B, T]: which steps are theirs."""
        yield from Answered(self.batched(data, self.settings.score_batch), self.model)

    def run(self, batch: Batch, model: SaL | None = None) -> Tensor:
        """Logits [B, T, V] of every step of the answers in a batch: one call of the encoder and one of the decoder."""
        return (self.model if model is None else model)(batch, batch["previous"], batch["loss_mask"])

    def predictions(self, model: SaL, batch: Batch) -> Tensor:
        """Logits of every step of the answers."""
        return self.run(batch, model)[batch["loss_mask"] > 0]

    # ---- retraining

    def _answers(self, batch: Batch, data: SaLDataset) -> tuple[list[list[int]], list[str]]:
        ids = self.model.generate(batch)[1][:, 1:].tolist()
        return ids, [data.pieces.read(pieces) for pieces in ids]

    def _answering(self, student: SaL) -> list[nn.Module]:
        return [student.embedding]

    # ---- scores

    def predict(self, model: SaL, data: SaLDataset) -> list[Answer]:
        """The model's answers to all questions of `data`, all of its own words."""
        with self.running():
            texts = sal.predict(model, data, self.settings.eval_batch, **self.loading)
        return [Answer(text, [(word, "vocabulary") for word in text.split()]) for text in texts]
