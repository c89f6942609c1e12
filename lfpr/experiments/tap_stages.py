"""The stages of a TAP experiment, from importance to retraining: each loaded from `runs/`, or computed and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from tqdm import tqdm

from lfpr.encoder import prunable
from lfpr.experiments.checks import choose
from lfpr.experiments.runs import Stage, write_json
from lfpr.experiments.schedule import schedule
from lfpr.experiments.staged import Staged
from lfpr.experiments.tap_inputs import TAPInputs
from lfpr.experiments.tap_settings import GRADIENTS, METHODS, UNSCALED
from lfpr.gradients import MaskGradients, collect_gradients
from lfpr.importance import magnitude, random_importance
from lfpr.masks import Importance, Masks
from lfpr.rescale import Rescaled, rescale
from lfpr.save import save_pruned
from lfpr.shrink import verify_equivalent
from lfpr.tap.data import TAPDataset, batches
from lfpr.tap.evaluate import compare, evaluate, first_scores, predict
from lfpr.tap.label_free import PUBLISHED_BATCH, PUBLISHED_DROPOUT, begin, label_free, labelled, peak_step
from lfpr.tap.model import TAP
from lfpr.tap.text import Answer
from lfpr.training.retrain import ReSt, TrainableMasks, retrain


class TAPExperiment(TAPInputs, Staged):
    """Stages of a TAP experiment. `result` of each stage is a dict of numbers, `folder` holds its files."""

    kind, budget, part = "tap", "parameters of the MMT", None
    own: ClassVar[dict] = {"method": "label-free", "rearranged": False, "rescaled": False, "trained": "ReSt"}
    methods, unscaled, with_gradients, ways = METHODS, UNSCALED, GRADIENTS, ("ReSt", "masks")
    _shared = ("model", "embed", "_images")

    def baseline(self) -> Stage:
        """The unpruned model's score."""
        return self._stage("baseline", {}, lambda folder: self.evaluate(self.model))

    def importance(self, method: str = "label-free", seed: int = 0) -> Importance:
        """Scores of all heads and neurons. `seed` chooses the sample (label-free, fisher) or the scores (random)."""
        choose("method", method, METHODS)
        if method in ("magnitude", "l1"):
            return magnitude(self.encoder, norm=2 if method == "magnitude" else 1)
        if method == "random":
            return random_importance(self.encoder, seed)
        return Importance.load(self._scores(method, seed).folder / "importance.safetensors")

    def peak_step(self, seed: int = 0) -> int:
        """The decoding step that the label-free objective looks at."""
        return self._scores("label-free", seed).result["step"]

    def _scores(self, method: str, seed: int) -> Stage:
        def build(folder: Path) -> dict:
            numbers, gradients = self._collect(method, seed)
            how = "absolute" if method == "absolute" else "squared"
            gradients.importance(how).save(folder / "importance.safetensors")
            return numbers

        return self._stage("importance", {"method": method, "seed": seed} | self._sampling, build)

    def gradients(self, method: str = "label-free", seed: int = 0) -> MaskGradients:
        """The mask gradients behind the importance of a gradient method: computed anew and then kept, since few need
        them and those of thousands of questions are large."""
        choose("method", method, self.with_gradients)

        def build(folder: Path) -> dict:
            numbers, gradients = self._collect(method, seed)
            gradients.save(folder / "gradients.safetensors")
            return numbers

        stage = self._stage("gradients", {"method": method, "seed": seed} | self._sampling, build)
        return MaskGradients.load(stage.folder / "gradients.safetensors")

    def _collect(self, method: str, seed: int) -> tuple[dict, MaskGradients]:
        """The gradients of a sample of training questions; with their number, and the label-free method's `step`."""
        chosen, sampling = self.settings, self._sampling
        indices = self.sample("train", chosen.num_samples, seed)
        # read anew in each pass: thousands of full-size questions do not fit in memory
        data = batches(self.data("train", targets=method != "label-free", indices=indices), sampling["batch"])
        step = chosen.step
        if method == "label-free" and step is None:
            step = peak_step(self.model, tqdm(data, desc="peak step"))
        objective = self.objective(method, step)
        gradients = collect_gradients(self.encoder, data, objective, sampling["per_sample"], progress=method)
        return {"step": step, "samples": len(indices)}, gradients

    @property
    def _sampling(self) -> dict:
        """How questions score heads and neurons: part of what names every stage that depends on the scores."""
        chosen = self.settings
        batch, per_sample = chosen.score_batch, chosen.per_sample
        if chosen.published_scoring:
            batch, per_sample = PUBLISHED_BATCH, False
        return {"num_samples": chosen.num_samples, "batch": batch, "per_sample": per_sample, "step": chosen.step,
                "published": chosen.published_scoring}  # fmt: skip

    @property
    def _rescaling(self) -> dict:
        return {"rescale_samples": self.settings.rescale_samples}

    @property
    def _evaluation(self) -> dict:
        return {}  # how questions are scored is among the inputs

    @property
    def scoring_dropout(self) -> float | None:
        """The dropout of published scoring; a baseline trained without any is scored with the published model's."""
        return (self.config.dropout or PUBLISHED_DROPOUT) if self.settings.published_scoring else None

    def objective(self, method: str, step: int | None = None) -> Callable:
        """The function of a batch whose mask gradients `method` scores with; a sum over the batch."""
        if method == "label-free":
            return label_free(self.model, step, self.scoring_dropout)
        return labelled(self.model, reduction="sum" if self._sampling["per_sample"] else "mean")

    def verify(self, masks: Masks, pruned: TAP) -> float:
        """The largest difference between masked and shrunk model in the first scores of some validation questions.

        Raises `NotEquivalent` if it is above 0.001.
        """
        questions = list(batches(self.data("val", indices=self.sample("val", 64, 0)), 32))
        return verify_equivalent(self.model, masks, pruned, questions, first_scores, atol=1e-3)

    def rescale(self, masks: Masks, seed: int = 0, **options) -> Rescaled:
        """`masks` with values fitted on `rescale_samples` unlabelled training questions and their decoded answers'
        first two steps, padding left out (`lfpr.rescale`)."""
        data = self.data("train", indices=self.sample("train", self.settings.rescale_samples, seed))

        def answered():
            for batch in batches(data, self.settings.score_batch):
                first = begin(self.model, batch)
                yield batch | {"previous": torch.cat([first, self.model.generate(batch, 1)[1]], 1)}

        return rescale(self.encoder, masks, answered(), lambda batch: self.model(batch, batch["previous"]), **options)

    def _amounts(self, cell: dict, percent: float | None, last_layers: int | None, trained: str) -> tuple[dict, ReSt]:
        """What ReSt takes: by default X percent of the questions and the last k layers of the published schedule."""
        published = schedule(self.name, cell["constraint"], cell["percentile"])
        percent = published[0] if percent is None else percent
        last_layers = published[1] if last_layers is None else last_layers
        last_layers = last_layers if trained == "ReSt" else 0
        chosen = self.settings
        rest = replace(chosen.rest, last_layers=last_layers, mixed_precision=chosen.mixed_precision)
        return {"percent": percent, "batch": chosen.retrain_batch, "score_every": chosen.score_every}, rest

    def _train(
        self, model: TAP, percent: float, rest: ReSt, trained: str, seed: int, checkpoint: Path
    ) -> tuple[TrainableMasks, list[dict]]:
        """ReSt of a pruned model in place, on the unpruned one's answers; `trained` = "masks": mask values alone."""
        labels, chosen = self.pseudo_labels(), self.settings
        count = max(1, round(labels.result["questions"] * percent / 100))
        indices = self.sample("train", count, seed)
        data = self.data("train", targets=True, indices=indices, labels=labels.folder / "labels.json")
        data = batches(data, chosen.retrain_batch, shuffle_seed=seed)
        heads = [model.classifier, model.ocr_ptr_net] if trained == "ReSt" else []
        options = {"checkpoint": checkpoint, "checkpoint_every": chosen.checkpoint_every}
        if chosen.score_every:
            options |= {"score": lambda: self.evaluate(model)["score"], "score_every": chosen.score_every}
        model.train()
        return retrain(model, prunable(model), heads, data, labelled(model, reduction="parts"), rest, **options)

    def teach(self) -> Stage:
        """What retraining learns from: the pseudo-labels."""
        return self.pseudo_labels()

    def pseudo_labels(self) -> Stage:
        """The unpruned model's own answers to all training questions: index sequences in `labels.json`."""

        def build(folder: Path) -> dict:
            data = self.data("train")
            labels = {}
            for batch in tqdm(batches(data, self.settings.eval_batch), desc="pseudo-labels"):
                predictions = self.model.generate(batch, stop=True)[1].tolist()
                labels |= {data.records[i]["question_id"]: p for i, p in zip(batch["index"], predictions, strict=True)}
            write_json(folder / "labels.json", labels)
            return {"questions": len(labels)}

        return self._stage("pseudo-labels", {"train_images": self.settings.train_images}, build)

    # ---- numbers

    def evaluate(self, model: TAP) -> dict:
        """Validation score of `model`."""
        data = self.data("val", limit=self.settings.num_eval or None)
        return evaluate(model, data, self.settings.eval_batch)

    def measures(self, result: dict) -> dict[str, float]:
        """The scores in a stage's result by the names of their measures, in 0 … 1."""
        if self.spec.dataset == "textvqa":
            return {"TextVQA accuracy": result["score"]}
        return {"ST-VQA accuracy": result["score"], "ANLS": result["anls"]}

    def answers(self, model: TAP, data: TAPDataset) -> list[str]:
        """The model's answers to all questions of `data`."""
        return [answer.text for answer in self.predict(model, data)]

    def predict(self, model: TAP, data: TAPDataset) -> list[Answer]:
        """`answers` with the source of each word: the vocabulary or an OCR token."""
        return predict(model, data, self.settings.eval_batch)

    def compare(self, models: dict[str, TAP]) -> dict[str, dict]:
        """Size and speed of the models side by side, on a batch of validation questions (`lfpr.tap.evaluate`)."""
        return compare(models, next(iter(batches(self.data("val"), min(64, self.settings.eval_batch)))))

    def describe(self, model: TAP) -> dict:
        """Parameters of the MMT's layers and their share of the unpruned ones, heads and neurons per layer."""
        encoder = prunable(model)
        return {
            "parameters": encoder.num_parameters,
            "fraction": encoder.num_parameters / self.encoder.num_parameters,
            "heads": encoder.heads_per_layer,
            "neurons": encoder.neurons_per_layer,
        }

    def _finish(self, model: TAP, folder: Path) -> dict:
        """Save a pruned model; its size and score."""
        save_pruned(model.eval(), folder / "model")
        return self.describe(model) | self.evaluate(model)

    @property
    def pictures(self):
        """The module of functions that draw what the notebooks show of this experiment."""
        from lfpr.paper.pictures import tap as pictures

        return pictures
