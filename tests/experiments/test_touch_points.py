"""What it takes to add an importance or an experiment: `docs/extending.md`, done here with made-up ones."""

import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from transformers import BertConfig, BertModel

import lfpr
from lfpr.experiments import Cell, open_experiment
from lfpr.experiments.methods import METHODS, Method
from lfpr.experiments.specs import SPECS
from lfpr.experiments.task import Task
from lfpr.masks import Importance


@dataclass(frozen=True)
class Settings:
    num_samples: int = 8
    scoring: str = "per-sample"


class TinyTask(Task):
    """A random BERT that is to keep its pooled output on random words."""

    SETTINGS: ClassVar = {"mini": Settings(), "full": Settings()}

    def _set_up(self, runs, data_root, checkpoint):
        self.data_root = Path(data_root or runs)

    @cached_property
    def model(self):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
        return BertModel(BertConfig(vocab_size=30, **sizes)).eval()

    @property
    def cost(self):
        return lfpr.ParameterCost(self.encoder)

    def describe(self, model):
        encoder = lfpr.prunable(model)
        share = encoder.num_parameters / self.encoder.num_parameters
        sizes = {"heads": encoder.heads_per_layer, "neurons": encoder.neurons_per_layer}
        return {"parameters": encoder.num_parameters, "fraction": share} | sizes

    def words(self, seed):
        generator = torch.Generator().manual_seed(seed)
        return [{"input_ids": torch.randint(30, (4, 5), generator=generator)} for _ in range(2)]

    def forward(self, model, batch):
        return model(**batch).pooler_output

    def check_batches(self):
        return self.words(1)

    inputs: ClassVar = {"words": 1}

    def sampling(self, cell):
        return {"num_samples": cell.num_samples}

    def batches(self, cell):
        return self.words(cell.seed)

    def objective(self, cell):
        return lambda batch: self.forward(self.model, batch).square().sum()

    def per_sample(self, cell):
        return True

    fitting: ClassVar = {}

    def calibration(self, seed):
        return self.words(seed)

    def run(self, batch):
        return self.forward(self.model, batch)

    def teach(self, cell):
        return self.stage("targets", {}, lambda folder: {"batches": 2})

    def amounts(self, cell):
        return {"percent": cell.percent or 100}, lfpr.ReSt(last_layers=cell.last_layers or 0, lr=1e-2)

    def training(self, student, cell):
        targets = [self.run(batch).detach() for batch in self.words(0)]
        batches = [batch | {"target": target} for batch, target in zip(self.words(0), targets, strict=True)]

        def loss(batch):
            return (student(input_ids=batch["input_ids"]).pooler_output - batch["target"]).square().mean()

        settings = self.amounts(cell)[1]
        return {"encoder": lfpr.prunable(student), "heads": [], "batches": batches, "loss": loss, "settings": settings}

    def baseline(self):
        return self.stage("baseline", {}, lambda folder: self.evaluate(self.model))

    def evaluate(self, model):
        batches = self.words(2)
        pairs = [(self.forward(model, batch), self.run(batch)) for batch in batches]
        cosine = torch.cat([torch.cosine_similarity(a, b) for a, b in pairs]).mean().item()
        return {"score": cosine, "questions": 8}

    def compare(self, models):
        return {name: {"parameters": sum(p.numel() for p in model.parameters())} for name, model in models.items()}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The made-up experiment: one task (this file), one row of SPECS."""
    spec = replace(
        SPECS["minilm-texts"],
        name="tiny",
        task="tiny_experiment:TinyTask",
        ways=("masks",),
        retraining="imitation",
        methods=(*SPECS["minilm-texts"].methods, "even"),
    )
    monkeypatch.setitem(SPECS, "tiny", spec)
    monkeypatch.setattr("lfpr.experiments.EXPERIMENTS", tuple(SPECS))
    monkeypatch.setitem(sys.modules, "tiny_experiment", SimpleNamespace(TinyTask=TinyTask))
    return open_experiment("tiny", runs=tmp_path)


def test_a_new_experiment_is_a_task_and_a_row(tiny):
    pruned, retrained = tiny.prune(Cell(constraint=0.5)), tiny.retrain(Cell(constraint=0.5))
    assert pruned.result["fraction"] <= 0.5 and pruned.result["largest_difference"] < 1e-3
    assert retrained.result["iterations"] == 2 and retrained.result["heads"] == pruned.result["heads"]
    assert tiny.baseline().result["score"] == pytest.approx(1)
    assert tiny.scores(pruned.result) == {"Nearest neighbours kept": pruned.result["score"]}
    assert set(tiny.speed(Cell(constraint=0.5)).result) == {"unpruned", "pruned", "retrained"}
    rescaled = tiny.prune(Cell(constraint=0.5, rescaled=True))
    assert rescaled.result["scale_max"] != 1 and rescaled.folder != pruned.folder


def test_a_new_importance_is_a_row(tiny, monkeypatch):
    def even(experiment, cell):
        encoder = experiment.encoder
        heads, neurons = (torch.arange(encoder.num_layers * n).view(-1, n) % 2 for n in encoder.require_uniform())
        return Importance(heads.double(), neurons.double())

    monkeypatch.setitem(METHODS, "even", Method(even, common_scale=False))
    stage = tiny.prune(Cell("even", percentile=40))
    assert stage.result["heads"] == [2, 2] and stage.result["neurons"] == [12, 12]
    with pytest.raises(ValueError, match="method = 'odd': must be one of"):
        tiny.prune(Cell("odd"))
