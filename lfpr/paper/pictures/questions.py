"""Pictures of questions: the image, its OCR boxes, the question and the answers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch.utils.data import Dataset

from lfpr.reading import read_image
from lfpr.tap.text import Answer, join

OCR_COLOUR = "#0173b2"


def show_questions(
    data: Dataset, indices: Sequence[int], answers: Mapping[str, Sequence] | None = None, columns: int = 4
) -> Figure:
    """The questions `indices` of `data` with the annotators' most common answer and OCR boxes in blue.

    `answers`: who answers -> an answer per index, shown below: a string, or an `Answer`, whose words copied from
    the image are put in [brackets]. Where the image is not on disk, the boxes are shown with their tokens.
    """
    for who, given in (answers or {}).items():
        if len(given) != len(indices):
            raise ValueError(f"answers[{who!r}]: {len(given)} answers for {len(indices)} indices")
    rows = -(-len(indices) // columns)
    lines = 3 + len(answers or {})
    figure = Figure(figsize=(2.6 * columns, (2.4 + 0.19 * lines) * rows), layout="tight")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (axis, index) in enumerate(zip(axes.flat, indices, strict=False)):
        sample = data.sample(index)
        draw_question(axis, sample)
        people = max(sample["answers"], key=sample["answers"].count) if sample["answers"] else "–"
        said = {"people": people} | {who: marked(given[number]) for who, given in (answers or {}).items()}
        text = textwrap.fill(sample["question"], 34) + "".join(f"\n{who}: {answer}" for who, answer in said.items())
        # prices in a line are no formula
        axis.set_title(text, fontsize=8, loc="left", y=-0.04, va="top", parse_math=False)
    figure.get_layout_engine().set(h_pad=lines * 0.9)
    return figure


def marked(answer: str | Answer) -> str:
    """An answer's text, the words that were copied from OCR tokens in brackets."""
    if isinstance(answer, str):
        return answer
    return join(f"[{word}]" if source == "ocr" else word for word, source in answer.words)


def draw_question(axis: Axes, sample: dict) -> None:
    """A question (`data.sample`): its "image", a file or what was read of one, with OCR boxes; without any the boxes
    and their tokens."""
    width, height = sample["image_size"]
    if sample["image"]:
        image = read_image(sample["image"]) if isinstance(sample["image"], Path) else sample["image"]
        axis.imshow(image, extent=(0, width, height, 0))
    else:
        axis.add_patch(Rectangle((0, 0), width, height, color="0.95"))
    axis.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    for token, (x1, y1, x2, y2) in zip(sample["ocr_tokens"], sample["ocr_boxes"], strict=True):
        corner, size = (x1 * width, y1 * height), ((x2 - x1) * width, (y2 - y1) * height)
        axis.add_patch(Rectangle(corner, *size, fill=False, color=OCR_COLOUR, linewidth=1))
        if not sample["image"]:
            axis.text(*corner, token, fontsize=5, color=OCR_COLOUR, va="top", clip_on=True, parse_math=False)
