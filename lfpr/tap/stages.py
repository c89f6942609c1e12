"""The stages of a TAP experiment, from importance to retraining: each loaded from ``runs/``, or computed and kept."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lfpr.cost import ParameterCost
from lfpr.encoder import PrunableEncoder, prunable
from lfpr.gradients import collect_gradients
from lfpr.importance import magnitude, random_importance
from lfpr.masks import Importance, Masks
from lfpr.retrain import retrain
from lfpr.runs import Runs, Stage, file_hash, write_json
from lfpr.saving import load_pruned, save_pruned
from lfpr.search import search, search_proportional, search_threshold
from lfpr.shrink import shrink, verify_equivalent
from lfpr.tap.checkpoint import CheckpointError, read_checkpoint
from lfpr.tap.data import TAPDataset, batches, check
from lfpr.tap.evaluate import answers, compare, evaluate, first_scores
from lfpr.tap.label_free import label_free, labelled, peak_step
from lfpr.tap.layout import LAYOUTS
from lfpr.tap.model import TAP, TAPConfig
from lfpr.tap.schedule import schedule
from lfpr.tap.settings import HEURISTICS, METHODS, SHIPPED, UNSCALED, Settings, TAPSpec, choose
from lfpr.tap.text import Embedding, HashedNgrams


class TAPExperiment:
    """Stages of a TAP experiment. ``result`` of each stage is a dict of numbers, ``folder`` holds its files."""

    def __init__(
        self, name: str, spec: TAPSpec, profile: str, runs: Path, data_root, checkpoint, settings: Settings
    ) -> None:
        self.name, self.profile, self.settings = name, profile, settings
        self.spec = spec
        self.runs = Runs(runs, name, profile)
        self.data_root = Path(data_root) if data_root else runs / "data" / f"{self.spec.dataset}-mini"
        self.checkpoint = Path(checkpoint) if checkpoint else SHIPPED / f"{name}.safetensors"
        if not self.checkpoint.is_file():
            raise CheckpointError(f"checkpoint = {self.checkpoint}: no such file (see data/README.md)")
        if profile == "full" and not self.data_root.is_dir():
            raise FileNotFoundError(f"data_root = {self.data_root}: no such folder (see data/README.md)")

    def __repr__(self) -> str:
        return f"{self.name} ({self.profile}): {self.encoder.num_layers} MMT layers, data in {self.data_root}"

    # ---- model and data

    @cached_property
    def model(self) -> TAP:
        """The unpruned model in evaluation mode."""
        return TAP(self.config).load_checkpoint(self.checkpoint).eval()

    @property
    def encoder(self) -> PrunableEncoder:
        return prunable(self.model)

    @cached_property
    def config(self) -> TAPConfig:
        """Of the shipped baseline, or (profile full) read off the checkpoint's shapes and the experiment's depth."""
        description = self.checkpoint.with_suffix(".json")
        if self.profile == "mini":
            return TAPConfig.from_dict(json.loads(description.read_text())["config"])
        sizes, state = self.settings.sizes, read_checkpoint(self.checkpoint)
        shape = {name: tuple(value.shape) for name, value in state.items()}
        try:
            return TAPConfig(
                text_layers=self.spec.text_layers,
                mmt_layers=self.spec.mmt_layers,
                text_vocab_size=shape["text_bert.embeddings.word_embeddings.weight"][0],
                num_answers=shape["classifier.module.weight"][0],
                hidden_size=shape["classifier.module.weight"][1],
                intermediate_size=shape["mmt.encoder.layer.0.intermediate.dense.weight"][0],
                feature_size=sizes.feature_size,
                num_ocr=sizes.num_ocr,
            )
        except KeyError as error:
            raise CheckpointError(f"checkpoint {self.checkpoint} lacks the entry {error} of a TAP model") from None

    @cached_property
    def root(self) -> Path:
        """The data folder; the mini profile's is rendered when first needed."""
        if self.profile == "mini":
            from lfpr.mini.datasets import write_tap

            write_tap(self.data_root, self.spec.dataset, self.settings.train_images, self.settings.val_images)
        return self.data_root

    def data(self, split: str, targets: bool = False, **options) -> TAPDataset:
        """The ``train`` or ``val`` questions (see ``lfpr.tap.data.TAPDataset``)."""
        options = {"sizes": self.settings.sizes, "embed": self.embed} | options
        return TAPDataset(self.root, self.spec.dataset, split, targets=targets, **options)

    @cached_property
    def embed(self) -> Embedding | None:
        """Word vectors of OCR tokens; None is FastText's file below ``data_root``."""
        if self.settings.word_vectors == "fasttext":
            return None
        if self.profile == "full":
            warnings.warn("word_vectors = 'hashed': a model trained with FastText scores lower with them", stacklevel=2)
        return HashedNgrams(self.settings.sizes.fasttext_size)

    def check(self, split: str, limit: int | None = None) -> dict:
        """What is in a split's files, and the first record that cannot be used (see ``lfpr.tap.data.check``)."""
        options = {"sizes": self.settings.sizes, "embed": self.embed}
        return check(self.root, self.spec.dataset, split, limit=limit, **options)

    def sample(self, split: str, count: int, seed: int) -> list[int]:
        """``count`` questions of a split, chosen by ``seed``, in increasing order; all if there are no more."""
        total = len(self.data(split))
        return sorted(np.random.default_rng(seed).permutation(total)[:count].tolist())

    @cached_property
    def inputs(self) -> dict:
        """Hashes of what every stage depends on."""
        imdbs = {split: file_hash(self.root / LAYOUTS[self.spec.dataset, split].imdb) for split in ("train", "val")}
        return {"checkpoint": file_hash(self.checkpoint)} | imdbs

    # ---- stages

    def baseline(self) -> Stage:
        """The unpruned model's score."""
        return self._stage("baseline", {}, lambda folder: self.evaluate(self.model))

    def importance(self, method: str = "label-free", seed: int = 0) -> Importance:
        """Scores of all heads and neurons. ``seed`` chooses the sample (label-free, fisher) or the scores (random)."""
        choose("method", method, METHODS)
        if method == "magnitude":
            return magnitude(self.encoder)
        if method == "random":
            return random_importance(self.encoder, seed)
        return Importance.load(self._scores(method, seed).folder / "importance.safetensors")

    def peak_step(self, seed: int = 0) -> int:
        """The decoding step that the label-free objective looks at."""
        return self._scores("label-free", seed).result["step"]

    def _scores(self, method: str, seed: int) -> Stage:
        chosen = self.settings
        parameters = {"method": method, "seed": seed} | self._sampling

        def build(folder: Path) -> dict:
            indices = self.sample("train", chosen.num_samples, seed)
            # read anew in each pass: thousands of full-size questions do not fit in memory
            data = batches(self.data("train", targets=method == "fisher", indices=indices), chosen.score_batch)
            step = peak_step(self.model, tqdm(data, desc="peak step")) if method == "label-free" else None
            objective = self.objective(method, step)
            gradients = collect_gradients(self.encoder, data, objective, chosen.per_sample, progress=method)
            gradients.importance().save(folder / "importance.safetensors")
            return {"step": step, "samples": len(indices)}

        return self._stage("importance", parameters, build)

    @property
    def _sampling(self) -> dict:
        """How questions score heads and neurons: part of what names every stage that depends on the scores."""
        chosen = self.settings
        return {"num_samples": chosen.num_samples, "batch": chosen.score_batch, "per_sample": chosen.per_sample}

    def objective(self, method: str, step: int | None = None) -> Callable:
        """The function of a batch whose mask gradients ``method`` scores with; a sum over the batch."""
        if method == "label-free":
            return label_free(self.model, step)
        return labelled(self.model, reduction="sum" if self.settings.per_sample else "mean")

    def masks(
        self,
        importance: Importance,
        method: str,
        heuristic: str = "sum",
        constraint: float = 0.4,
        percentile: float = 50,
    ) -> Masks:
        """Mask search: ``sum`` under the parameter ``constraint``, or ``threshold`` at ``percentile``."""
        choose("heuristic", heuristic, HEURISTICS)
        if heuristic == "threshold":
            return search_threshold(importance, percentile)
        find = search_proportional if method in UNSCALED else search
        return find(importance, ParameterCost(self.encoder), constraint)

    def prune(
        self,
        method: str = "label-free",
        heuristic: str = "sum",
        constraint: float = 0.4,
        percentile: float = 50,
        seed: int = 0,
    ) -> Stage:
        """Search, shrink, verify, save, score. Files: ``masks.safetensors`` and the pruned model in ``model/``."""
        parameters = self.cell(method, heuristic, constraint, percentile, seed)

        def build(folder: Path) -> dict:
            importance = self.importance(method, seed)
            masks = self.masks(importance, method, heuristic, constraint, percentile)
            pruned = shrink(self.model, masks)
            check = list(batches(self.data("val", limit=64), 32))
            largest = verify_equivalent(self.model, masks, pruned, check, first_scores, atol=1e-3)
            masks.save(folder / "masks.safetensors")
            save_pruned(pruned, folder / "model")
            return self.describe(pruned) | self.evaluate(pruned) | {"largest_difference": largest}

        return self._stage("prune", parameters, build)

    def retrain(
        self,
        method: str = "label-free",
        heuristic: str = "sum",
        constraint: float = 0.4,
        percentile: float = 50,
        seed: int = 0,
        percent: float | None = None,
        last_layers: int | None = None,
    ) -> Stage:
        """ReSt on the pruned model; ``percent`` of data and ``last_layers`` default to the published schedule.

        Files: ``masks.safetensors`` (heads [L, H] and neurons [L, N], zero where removed), ``log.json`` and ``model/``.
        """
        parameters = self.cell(method, heuristic, constraint, percentile, seed)
        published = schedule(self.name, parameters["constraint"], parameters["percentile"])
        percent = published[0] if percent is None else percent
        last_layers = published[1] if last_layers is None else last_layers
        if not 0 < percent <= 100:
            raise ValueError(f"percent = {percent}: must be in (0, 100]")
        settings = replace(self.settings.rest, last_layers=last_layers)
        parameters |= {"percent": percent, "batch": self.settings.retrain_batch, "rest": asdict(settings)}

        def build(folder: Path) -> dict:
            pruned = self.prune(method, heuristic, constraint, percentile, seed)
            model = load_pruned(pruned.folder / "model").train()
            labels = self.pseudo_labels()
            count = max(1, round(labels.result["questions"] * percent / 100))
            data = self.data(
                "train", targets=True, indices=self.sample("train", count, seed), labels=labels.folder / "labels.json"
            )
            data = batches(data, self.settings.retrain_batch, shuffle_seed=seed)
            torch.manual_seed(seed)
            heads = [model.classifier, model.ocr_ptr_net]
            values, log = retrain(model, prunable(model), heads, data, labelled(model), settings)
            _spread(Masks.load(pruned.folder / "masks.safetensors"), values).save(folder / "masks.safetensors")
            write_json(folder / "log.json", log)
            save_pruned(model.eval(), folder / "model")
            numbers = {"percent": percent, "last_layers": last_layers, "iterations": len(log)}
            return self.describe(model) | self.evaluate(model) | numbers | {"minutes": log[-1]["seconds"] / 60}

        return self._stage("retrain", parameters, build)

    def pseudo_labels(self) -> Stage:
        """The unpruned model's own answers to all training questions: index sequences in ``labels.json``."""

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
        """Validation score of ``model``."""
        data = self.data("val", limit=self.settings.num_eval or None)
        return evaluate(model, data, self.settings.eval_batch)

    def answers(self, model: TAP, data: TAPDataset) -> list[str]:
        """The model's answers to all questions of ``data``."""
        return answers(model, data, self.settings.eval_batch)

    def compare(self, models: dict[str, TAP]) -> dict[str, dict]:
        """Size and speed of the models side by side, on a batch of validation questions (``lfpr.tap.evaluate``)."""
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

    def cell(self, method: str, heuristic: str, constraint: float, percentile: float, seed: int) -> dict:
        """The parameters that name a pruned model, checked."""
        choose("method", method, METHODS)
        choose("heuristic", heuristic, HEURISTICS)
        if heuristic == "sum" and not 0 < constraint <= 1:
            raise ValueError(f"constraint = {constraint}: must be in (0, 1]")
        if heuristic == "threshold" and not 0 <= percentile < 100:
            raise ValueError(f"percentile = {percentile}: must be in [0, 100)")
        cell = {"method": method, "heuristic": heuristic, "seed": seed} | self._sampling
        wanted = {"constraint": constraint, "percentile": percentile}
        return cell | {k: v if (k == "constraint") == (heuristic == "sum") else None for k, v in wanted.items()}

    def _stage(self, name: str, parameters: dict, build: Callable[[Path], dict]) -> Stage:
        return self.runs.stage(name, parameters | {"inputs": self.inputs}, build)


def _spread(masks: Masks, values) -> Masks:
    """The values of the kept heads and neurons at their places in [L, H] and [L, N], zeros elsewhere."""
    heads, neurons = masks.heads.clone(), masks.neurons.clone()
    for whole, parts in ((heads, values.heads), (neurons, values.neurons)):
        for row, part in zip(whole, parts, strict=True):
            row[row != 0] = part.detach()
    return Masks(heads, neurons)
