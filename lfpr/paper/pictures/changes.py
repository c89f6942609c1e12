"""What pruning changed in answers to questions: which ones, from right to wrong or back, and of which kind."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.data import Dataset

from lfpr.paper.labels import BLUE, ORANGE, RED, SKY, WAYS, Look, sentence
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
KINDS, ALL = 12, "all"  # kinds that are shown by themselves, others as one; and what stands for all questions


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
    data: Dataset,
    table: pd.DataFrame,
    answers: Mapping[str, Sequence[Answer]],
    columns: int = 4,
    render: Callable[[dict], Image.Image | None] = lambda sample: None,
) -> Figure:
    """The first rows of `changed` by what changed, each of another image: image, question, what the models say, and
    what people accept, with how many did.

    answers: model -> an answer per question of `data`, words from the image in [brackets]. render: a sample's image
    (`data.sample`) where there is no file of it; without any its OCR boxes are shown.
    """
    kinds = [kind for kind in CHANGES if (table.change == kind).any()]
    images = pd.Series({i: data.records[i]["image_id"] for i in table.index}, dtype=object)
    side, gap, head, foot = 1.95, 0.25, 0.3, 0.95  # inches: of an image, beside it, above it, and the text below it
    width, height = columns * (side + gap), max(1, len(kinds)) * (head + side + foot)
    with matplotlib.rc_context(STYLE):
        figure = Figure((width, height))
        for number, kind in enumerate(kinds):
            rows = table[table.change == kind]
            top = height - number * (head + side + foot)
            title = f"{sentence(kind)}: {len(rows):,} question{'s' * (len(rows) != 1)}"
            looks = {"weight": "bold", "color": CHANGES[kind], "fontsize": 9, "va": "top"}
            figure.text(gap / 2 / width, (top - 0.08) / height, title, **looks)
            shown = rows[~images[rows.index].duplicated()].head(columns)
            for column, row in enumerate(shown.itertuples()):
                left, bottom = gap / 2 + column * (side + gap), top - head - side
                panel = figure.add_axes((left / width, bottom / height, side / width, side / height), anchor="SW")
                panel.set_axis_off()
                sample = data.sample(row.Index)
                draw_question(panel, sample | {"image": sample["image"] or render(sample)})
                said = {name: own[row.Index] for name, own in answers.items()}
                _caption(panel, sample, said, (row.score_before, row.score_after))
    return figure


def _caption(panel: Axes, sample: dict, said: Mapping[str, Answer], scores: Sequence[float], width: int = 37) -> None:
    """Question, what models say, marked as right or wrong, and what people accept, below a panel; no more lines than
    there is room for."""
    accepted = ", ".join(f"{text}\u00a0×\u00a0{count}" for text, count in Counter(sample["answers"]).most_common(3))
    lines = [(line, "0.1") for line in textwrap.wrap(sample["question"], width, max_lines=2)]
    for (name, answer), score in zip(said.items(), scores, strict=True):
        text = textwrap.shorten(f"{name}: {marked(answer) or '–'}", width - 2, placeholder=" …")
        lines.append((f"{text} {'✓' if score >= RIGHT else '✗'}", LOOKS[score >= RIGHT]))
    lines += [(line, "0.4") for line in textwrap.wrap(f"accepted: {accepted}", width, max_lines=2)]
    for number, (text, color) in enumerate(lines):
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "xytext": (0, -4 - 9.5 * number)}
        panel.annotate(text, (0, 0), va="top", fontsize=7, color=color, parse_math=False, **place)


def show_kinds(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracy by kind of question, of the unpruned and of other models, and what became of the answers.

    tables: name of a model -> `compare_answers` of the unpruned model and that one. Kinds are ordered by what the first
    of these loses; those that few questions are of are put together.
    """
    first = next(iter(tables.values()))
    many = first.kind.value_counts().index[:KINDS]
    kinds = pd.concat([first.kind.where(first.kind.isin(many), "other"), first.kind.map(lambda _: ALL)])
    counts = kinds.value_counts()

    def by_kind(scores: pd.Series) -> pd.Series:
        return 100 * pd.concat([scores, scores]).groupby(kinds.to_numpy()).mean()

    lost = by_kind(first.score_before - first.score_after).drop(ALL)
    order = [*lost.sort_values(kind="stable").index, ALL]
    means = {"unpruned": first.score_before} | {name: table.score_after for name, table in tables.items()}
    means = pd.DataFrame({name: by_kind(scores)[order] for name, scores in means.items()})
    with matplotlib.rc_context(STYLE):
        figure = Figure((DOUBLE, 0.9 + 0.2 * len(order)), layout="constrained")
        panel, *others = figure.subplots(1, 1 + len(tables), sharey=True, width_ratios=[1.3, *[1] * len(tables)])
        _draw_scores(panel, means)
        panel.set_yticks(range(len(order)), [f"{kind} ({counts[kind]:,})" for kind in order])
        for other, (name, table) in zip(others, tables.items(), strict=True):
            changes = pd.concat([table.change, table.change]).to_numpy()
            found = pd.crosstab(kinds.to_numpy(), changes).reindex(order, columns=list(CHANGES), fill_value=0)
            _draw_changes(other, found, counts[order])
            other.set_title(f"Unpruned → {name}")
        top = max(5, *(other.get_xlim()[1] for other in others))
        for each in (panel, *others):
            each.set_xlim(0, 100 if each is panel else top)
            each.grid(True, axis="x")
            each.tick_params(axis="y", length=0)
        figure.legend(*panel.get_legend_handles_labels(), loc="outside lower left", ncols=len(means.columns))
        figure.legend(*others[0].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure


def _draw_scores(panel: Axes, means: pd.DataFrame) -> None:
    """A row of points per kind, one for every model (columns of `means`, in per cent), and a line that joins them."""
    places = range(len(means))
    panel.hlines(places, means.min(axis=1), means.max(axis=1), color="0.85", lw=2)
    for name, scores in means.items():
        look = WAYS.get(sentence(name), Look(name, "0.1", "D"))
        panel.plot(scores, places, look.marker, color=look.color, label=sentence(name), clip_on=False, zorder=3)
    panel.set(xlabel="Accuracy (%)", ylim=(-0.6, len(means) - 0.4))


def _draw_changes(panel: Axes, found: pd.DataFrame, counts: pd.Series) -> None:
    """A bar per kind of the shares of its questions that changed, how many written where there is room."""
    shares = 100 * found.div(counts, axis=0)
    before = shares.cumsum(axis=1) - shares
    for change, color in CHANGES.items():
        looks = {"left": before[change], "color": color, "height": 0.8, "label": sentence(change)}
        bars = panel.barh(range(len(found)), shares[change], **looks)
        numbers = [f"{n:,}" if share >= 6 else "" for n, share in zip(found[change], shares[change], strict=True)]
        panel.bar_label(bars, numbers, label_type="center", fontsize=5.5, color="white")
    panel.set_xlabel("Answers that changed (%)")
