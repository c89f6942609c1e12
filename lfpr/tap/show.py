"""Pictures of questions: the image, its OCR boxes, the question and the answers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from lfpr.tap.data import TAPDataset

OCR_COLOUR = "#0173b2"


def show_questions(
    data: TAPDataset, indices: Sequence[int], answers: Mapping[str, Sequence[str]] | None = None, columns: int = 4
) -> Figure:
    """The questions ``indices`` of ``data`` with the annotators' most common answer and OCR boxes in blue.

    ``answers``: who answers -> an answer per index, shown below. An image that is not on disk is left blank.
    """
    rows = -(-len(indices) // columns)
    lines = 3 + len(answers or {})
    figure = Figure(figsize=(2.6 * columns, (2.4 + 0.19 * lines) * rows), layout="tight")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (axis, index) in enumerate(zip(axes.flat, indices, strict=False)):
        sample = data.sample(index)
        width, height = sample["image_size"]
        if sample["image"]:
            axis.imshow(Image.open(sample["image"]), extent=(0, width, height, 0))
        axis.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        for x1, y1, x2, y2 in sample["ocr_boxes"]:
            corner, size = (x1 * width, y1 * height), ((x2 - x1) * width, (y2 - y1) * height)
            axis.add_patch(Rectangle(corner, *size, fill=False, color=OCR_COLOUR, linewidth=1))
        people = max(sample["answers"], key=sample["answers"].count) if sample["answers"] else "–"
        said = {"people": people} | {who: given[number] for who, given in (answers or {}).items()}
        text = textwrap.fill(sample["question"], 34) + "".join(f"\n{who}: {answer}" for who, answer in said.items())
        axis.set_title(text, fontsize=8, loc="left", y=-0.04, va="top")
    figure.get_layout_engine().set(h_pad=lines * 0.9)
    return figure
