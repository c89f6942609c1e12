"""What the notebooks show of a sentence encoder: texts, their lengths, its objective, and neighbours that are lost."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from lfpr.experiments.cell import Cell
from lfpr.experiments.experiment import Experiment
from lfpr.experiments.sentences import embed, neighbours_kept, read_texts
from lfpr.paper.labels import BLUE
from lfpr.paper.style import SINGLE, STYLE


def reading(report: Mapping) -> str:
    """What a report of `check` says about the scores to expect."""
    texts = report["texts"]
    return f"{texts} texts: the unpruned model keeps all of its neighbours, chance k in {texts - 1}"


def examples(experiment: Experiment) -> pd.DataFrame:
    """The first validation texts, each with its nearest other one by the unpruned model."""
    texts = read_texts(*experiment.task.files("val"))
    vectors = embed(experiment.model, experiment.task.data("val"))
    near = (vectors @ vectors.T).fill_diagonal_(-torch.inf).argmax(1)
    return pd.DataFrame([{"text": texts[i], "nearest": texts[near[i]]} for i in range(8)])


def statistics(experiment: Experiment) -> Figure:
    """How many tokens the validation texts have."""
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in experiment.task.data("val")])
    return _histogram(lengths.tolist(), "Tokens in the text", "Texts")


def objective(experiment: Experiment, seed: int = 0) -> Figure:
    """The label-free objective: the similarity of texts to themselves under the model's own dropout, over passes."""
    cell = experiment.cell(Cell("label-free", seed=seed))
    batch, function = experiment.task.batches(cell)[0], experiment.task.objective(cell)
    with torch.no_grad():
        values = [(function(batch) / len(batch["input_ids"])).item() for _ in range(40)]
    return _histogram(values, "Mean similarity to the intact embedding", "Passes")


def compare(experiment: Experiment, models: Mapping[str, nn.Module]) -> tuple[pd.DataFrame, dict[str, float]]:
    """How much of each text's nearest neighbours every model keeps, for some and on average."""
    batches, k = experiment.task.data("val"), experiment.settings.neighbours
    vectors = {name: embed(model, batches) for name, model in models.items()}
    first = next(iter(vectors.values()))
    texts = read_texts(*experiment.task.files("val"))
    nearest = {name: (matrix @ matrix.T).fill_diagonal_(-torch.inf).topk(k).indices for name, matrix in vectors.items()}
    own = next(iter(nearest.values()))
    kept = {name: (rows[:, :, None] == own[:, None]).any(-1).float().mean(1) for name, rows in nearest.items()}
    table = pd.DataFrame({"text": texts[:8]} | {name: share[:8].tolist() for name, share in kept.items()})
    return table, {name: neighbours_kept(first, matrix, k) for name, matrix in vectors.items()}


def _histogram(values: list[float], label: str, what: str) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = Figure((SINGLE, 1.9), layout="constrained")
        panel = figure.subplots()
        panel.hist(values, 20, color=BLUE, rwidth=0.9)
        panel.set(xlabel=label, ylabel=what)
    return figure
