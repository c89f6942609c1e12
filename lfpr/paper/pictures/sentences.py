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
from lfpr.experiments.runs import Stage
from lfpr.experiments.sentences import embed, neighbours_kept, read_texts
from lfpr.paper.labels import BLUE, ORANGE
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
    nearest = {name: _nearest(matrix, k) for name, matrix in vectors.items()}
    own = next(iter(nearest.values()))
    kept = {name: (rows[:, :, None] == own[:, None]).any(-1).float().mean(1) for name, rows in nearest.items()}
    table = pd.DataFrame({"text": texts[:8]} | {name: share[:8].tolist() for name, share in kept.items()})
    return table, {name: neighbours_kept(first, matrix, k) for name, matrix in vectors.items()}


def changes(experiment: Experiment, stages: Mapping[str, Stage]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The validation texts by how many of the first stage's model's nearest neighbours the second one's loses, most
    first; and the first rows of them.

    Columns: `change`, `text`, how many of k neighbours are `kept`, and of the lost ones the nearest (`lost`), and what
    is nearest instead (`won`); texts that lose none are left out.
    """
    texts = read_texts(*experiment.task.files("val"))
    before, after = (near.tolist() for near in list(_neighbours(experiment, stages).values())[:2])
    rows = []
    for text, old, new in zip(texts, before, after, strict=True):
        lost, won = ([i for i in own if i not in other] for own, other in ((old, new), (new, old)))
        if lost:
            rows.append((f"{len(lost)} lost", text, len(old) - len(lost), texts[lost[0]], texts[won[0]]))
    table = pd.DataFrame(rows, columns=["change", "text", "kept", "lost", "won"])
    table = table.sort_values("kept", kind="stable", ignore_index=True)
    return table, table.head(8)


def kinds(experiment: Experiment, stages: Mapping[str, Stage]) -> Figure:
    """How many texts keep how many of the first stage's model's nearest neighbours, by the others."""
    first, *others = _neighbours(experiment, stages).items()
    k = experiment.settings.neighbours
    with matplotlib.rc_context(STYLE):
        figure = Figure((SINGLE, 1.9), layout="constrained")
        panel = figure.subplots()
        for number, (name, near) in enumerate(others):
            kept = (near[:, :, None] == first[1][:, None]).any(-1).sum(1).bincount(minlength=k + 1)
            width = 0.8 / len(others)
            shift = width * (number - (len(others) - 1) / 2)
            panel.bar(
                [place + shift for place in range(k + 1)],
                kept.tolist(),
                width,
                color=(BLUE, ORANGE)[number],
                label=name,
            )
        panel.set(xlabel=f"Of the {k} nearest neighbours, kept", ylabel="Texts", xticks=range(k + 1))
        panel.legend()
    return figure


def _neighbours(experiment: Experiment, stages: Mapping[str, Stage]) -> dict[str, torch.Tensor]:
    """Rows [T, k] of the texts nearest to each validation text, the nearest first, by every stage's model."""
    batches, k = experiment.task.data("val"), experiment.settings.neighbours
    return {name: _nearest(embed(experiment.load(stage), batches), k) for name, stage in stages.items()}


def _nearest(vectors: torch.Tensor, k: int) -> torch.Tensor:
    return (vectors @ vectors.T).fill_diagonal_(-torch.inf).topk(k).indices


def _histogram(values: list[float], label: str, what: str) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = Figure((SINGLE, 1.9), layout="constrained")
        panel = figure.subplots()
        panel.hist(values, 20, color=BLUE, rwidth=0.9)
        panel.set(xlabel=label, ylabel=what)
    return figure
