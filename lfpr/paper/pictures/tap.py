"""What the notebooks show of a TAP or SaL experiment: questions, lengths of answers, decoding steps, answers of models.

`lfpr.paper.pictures.clip` has functions of the same names for CLIP.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import Dataset

from lfpr.experiments.runs import Stage
from lfpr.mini.datasets import draw
from lfpr.paper.labels import BLUE
from lfpr.paper.pictures.changes import changed, compare_answers, show_changes, show_kinds
from lfpr.paper.pictures.questions import show_questions
from lfpr.paper.style import SINGLE, STYLE
from lfpr.tap.text import Answer

SHOWN = tuple(range(0, 40, 5))  # four questions share an image: each picture shows another image


def reading(report: Mapping) -> str:
    """What a report of `experiment.check` says about the scores to expect."""
    share = report["writable"] / report["checked"]
    return f"{share:.0%} of the checked questions have an answer that can be written: no such model scores higher"


def examples(experiment) -> Figure:
    """Eight validation questions with their OCR boxes and the unpruned model's answers."""
    data = _first(experiment, max(SHOWN) + 1)
    return _questions(data, {"model": experiment.task.predict(experiment.model, data)})


def statistics(experiment, questions: int = 400) -> Figure:
    """How many words the annotators' most common answers have, and how many OCR tokens the images of `questions`."""
    data = _first(experiment, questions)
    samples = [data.sample(i) for i in range(len(data))]
    answers = [max(s["answers"], key=s["answers"].count) for s in samples if s["answers"]]
    return _counts({"Words in the answer": [len(answer.split()) for answer in answers],
                    "OCR tokens in the image": [len(s["ocr_tokens"]) for s in samples]})  # fmt: skip


def objective(experiment, seed: int = 0, questions: int = 200) -> Figure:
    """The label-free objective looks at one decoding step: the median of t*, each question's step of highest score."""
    indices = experiment.task.sample("train", questions, seed)
    data = experiment.task.batched(experiment.task.data("train", indices=indices), experiment.settings.score_batch)
    peak_steps = experiment.task.package.peak_steps
    peaks = torch.cat([peak_steps(experiment.model, batch) for batch in data]).tolist()
    return _counts({f"t*, of 0 … {experiment.task.decoding_steps - 1}": peaks})


def compare(experiment, models: Mapping[str, nn.Module], questions: int = 400) -> tuple[Figure, dict[str, float]]:
    """Eight questions with every model's answers, and how often each answers as the first of them does, over many."""
    data = _first(experiment, questions)
    answers = {name: experiment.task.predict(model, data) for name, model in models.items()}
    table = pd.DataFrame({name: [answer.text for answer in given] for name, given in answers.items()})
    same = table.eq(table.iloc[:, 0], axis=0).mean()
    return _questions(data, answers), same.to_dict()


def changes(experiment, stages: Mapping[str, Stage]) -> tuple[pd.DataFrame, Figure]:
    """The validation questions that the second of the stages' models answers otherwise than the first, sorted by what
    changed (`lfpr.paper.pictures.changes`), and a picture of the first ones."""
    data = experiment.task.validation()
    answers = {name: experiment.task.answers(stage, data) for name, stage in list(stages.items())[:2]}
    table = changed(compare_answers(data, *answers.values()))
    render = (lambda sample: draw(sample["image_id"])) if experiment.profile == "mini" else (lambda sample: None)
    return table, show_changes(data, table, answers, render=render)


def kinds(experiment, stages: Mapping[str, Stage]) -> Figure:
    """Accuracy by kind of question of all stages' models, and how the answers of the others than the first changed."""
    data = experiment.task.validation()
    first, *others = (experiment.task.answers(stage, data) for stage in stages.values())
    return show_kinds(
        {name: compare_answers(data, first, own) for name, own in zip([*stages][1:], others, strict=True)}
    )


def _first(experiment, questions: int) -> Dataset:
    """The first validation questions."""
    return experiment.task.data("val", limit=min(questions, len(experiment.task.data("val"))))


def _questions(data: Dataset, answers: Mapping[str, list[Answer]]) -> Figure:
    shown = [i for i in SHOWN if i < len(data)]
    return show_questions(data, shown, {name: [given[i] for i in shown] for name, given in answers.items()})


def _counts(values: Mapping[str, list[int]]) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = Figure((SINGLE * max(1, len(values) * 0.8), 1.9), layout="constrained")
        for panel, (label, numbers) in zip(
            figure.subplots(1, len(values), squeeze=False)[0], values.items(), strict=True
        ):
            counts = pd.Series(numbers).value_counts().sort_index()
            panel.bar(counts.index, counts.to_numpy(), color=BLUE)
            panel.set(xlabel=label, ylabel="Questions")
    return figure
