"""What pruning changed in answers to questions: which ones, from right to wrong or back, and of which kind."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch.utils.data import Dataset

from lfpr.paper.labels import BLUE, ORANGE, RED, SKY, WAYS, sentence
from lfpr.paper.pictures.questions import draw_question, marked
from lfpr.paper.style import DOUBLE, STYLE
from lfpr.tap.evaluate import METRICS
from lfpr.tap.metrics import normalise
from lfpr.tap.text import Answer

RIGHT = 0.5  # the score from which on an answer counts as right: of TextVQA's, two of ten people give it 0.6
CHANGES = {"right → wrong": RED, "wrong → right": BLUE, "wrong → other wrong": ORANGE, "right → other right": SKY}
"""What can become of an answer that another model gives otherwise, and its colour."""
LOOKS = {True: BLUE, False: RED}  # of answers: right, wrong
SAME = "same"
CLOSED = ("is", "are", "was", "were", "do", "does", "did", "can", "could", "has", "have", "will", "would", "should")
OPEN = ("what", "which", "how")  # which ask for something that their next word says
KINDS = 12  # shown by themselves; all others are one


def kind_of(record: Mapping) -> str:
    """The kind of a question: what its file says, or else how it begins: "yes/no" for those that begin with a verb, two
    words of those that ask what, which or how, one word of all others."""
    if isinstance(record.get("kind"), str):
        return record["kind"]
    words = record["question"].lower().replace("'s", " is").rstrip("?. ").split() or ["–"]
    return "yes/no" if words[0] in CLOSED else " ".join(words[: 2 if words[0] in OPEN else 1])


def compare_answers(data: Dataset, before: Sequence[Answer], after: Sequence[Answer]) -> pd.DataFrame:
    """A row per question of `data`, in its order, of two models' answers to each.

    Columns: `question_id`, `kind`, `before` and `after` (the answers), `score_before` and `score_after` (by the data
    set's accuracy, in 0 … 1), `change`: of `CHANGES`, or "same" for answers that are scored as the same text. Raises
    ValueError for another number of answers than of questions.
    """
    for name, answers in {"before": before, "after": after}.items():
        if len(answers) != len(data):
            raise ValueError(f"{name}: {len(answers)} answers for {len(data)} questions")
    metric = METRICS[data.dataset]["score"]
    rows = []
    for record, *texts in zip(data.records, *([a.text for a in answers] for answers in (before, after)), strict=True):
        scores = [metric(text, record["answers"]) for text in texts]
        was, now = ("right" if score >= RIGHT else "wrong" for score in scores)
        same = normalise(texts[0]) == normalise(texts[1])
        change = SAME if same else f"{was} → {'other ' if was == now else ''}{now}"
        rows.append((record["question_id"], kind_of(record), *texts, *scores, change))
    names = ["question_id", "kind", "before", "after", "score_before", "score_after", "change"]
    return pd.DataFrame(rows, columns=names)


def changed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `compare_answers` whose answers differ, in the order of `CHANGES`, the largest differences of the
    score first; the index is still that of the questions."""
    rows = table[table.change != SAME]
    order = rows.change.map(list(CHANGES).index), -(rows.score_after - rows.score_before).abs()
    return rows.iloc[np.lexsort(order[::-1])]


def show_changes(
    data: Dataset, table: pd.DataFrame, answers: Mapping[str, Sequence[Answer]], columns: int = 4
) -> Figure:
    """The first rows of `changed` by what changed, each of another image: image, question, what the models say, and
    what people accept, with how many did. answers: model -> an answer per question of `data`, words from the image in
    [brackets], coloured if right or wrong."""
    kinds = [kind for kind in CHANGES if (table.change == kind).any()]
    images = pd.Series({i: data.records[i]["image_id"] for i in table.index}, dtype=object)
    with matplotlib.rc_context(STYLE):
        figure = Figure((DOUBLE * 1.25, 0.2 + 3.1 * len(kinds)), layout="constrained")
        parts = figure.subfigures(max(1, len(kinds)), squeeze=False).flat
        for part, kind in zip(parts, kinds, strict=False):
            rows = table[table.change == kind]
            part.suptitle(f"{sentence(kind)}: {len(rows):,}", x=0.01, ha="left", weight="bold", color=CHANGES[kind])
            panels = part.subplots(1, columns)
            for panel in panels:
                panel.set_axis_off()
            shown = rows[~images[rows.index].duplicated()]
            for panel, row in zip(panels, shown.itertuples(), strict=False):
                sample = data.sample(row.Index)
                draw_question(panel, sample)
                accepted = ", ".join(f"{text} × {n}" for text, n in Counter(sample["answers"]).most_common(3))
                said = zip(answers.items(), (row.score_before, row.score_after), strict=True)
                lines = [(sample["question"], "0.1")]
                for (who, own), score in said:
                    lines.append(
                        (f"{who}: {marked(own[row.Index])} {'✓' if score >= RIGHT else '✗'}", LOOKS[score >= RIGHT])
                    )
                _write(panel, [*lines, (f"accepted: {accepted}", "0.4")])
    return figure


def _write(panel, lines: Sequence[tuple[str, str]], width: int = 36) -> None:
    """Lines of text and their colours below a panel."""
    wrapped = [(part, color) for text, color in lines for part in textwrap.wrap(text, width, max_lines=3)]
    for number, (text, color) in enumerate(wrapped):
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "xytext": (0, -4 - 8.5 * number)}
        panel.annotate(text, (0, 0), va="top", fontsize=7, color=color, parse_math=False, **place)


def show_kinds(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracy by kind of question, of the unpruned and of other models, and what became of the answers.

    tables: name of a model -> `compare_answers` of the unpruned model and that one. Kinds are ordered by what the first
    of these loses; those that few questions are of are put together.
    """
    first = next(iter(tables.values()))
    many = first.kind.value_counts().index[:KINDS]
    kinds = first.kind.where(first.kind.isin(many), "other")
    counts = kinds.value_counts()
    lost = (first.score_before - first.score_after).groupby(kinds).mean()
    order = lost.sort_values(kind="stable").index
    with matplotlib.rc_context(STYLE):
        figure = Figure((DOUBLE, 0.9 + 0.2 * len(order)), layout="constrained")
        panel, *others = figure.subplots(1, 1 + len(tables), sharey=True, width_ratios=[1.3, *[1] * len(tables)])
        places = range(len(order))
        means = {"unpruned": first.score_before} | {name: table.score_after for name, table in tables.items()}
        means = {name: 100 * scores.groupby(kinds).mean()[order] for name, scores in means.items()}
        panel.hlines(places, pd.DataFrame(means).min(axis=1), pd.DataFrame(means).max(axis=1), color="0.85", lw=2)
        for name, scores in means.items():
            look = WAYS.get(sentence(name))
            color, marker = ("0.1", "D") if look is None else look[1:]
            panel.plot(scores, places, marker, color=color, label=sentence(name), clip_on=False, zorder=3)
        panel.set(xlabel="Accuracy (%)", xlim=(0, 100), ylim=(-0.6, len(order) - 0.4))
        panel.set_yticks(places, [f"{kind} ({counts[kind]:,})" for kind in order])
        panel.grid(True, axis="x")
        for other, (name, table) in zip(others, tables.items(), strict=True):
            shares = 100 * pd.crosstab(kinds, table.change, normalize="index").reindex(order, columns=list(CHANGES))
            shares = shares.fillna(0)
            left = pd.Series(0.0, order)
            for change, color in CHANGES.items():
                other.barh(places, shares[change], left=left, color=color, height=0.75, label=sentence(change))
                left += shares[change]
            other.set(xlabel="Answers that changed (%)", title=f"Unpruned → {name}")
            other.grid(True, axis="x")
        top = max(other.get_xlim()[1] for other in others)
        for other in others:
            other.set_xlim(0, top)
        figure.legend(*panel.get_legend_handles_labels(), loc="outside lower left", ncols=len(means))
        figure.legend(*others[0].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure
