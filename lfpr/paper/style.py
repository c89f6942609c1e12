"""How figures look and are saved, and what several of them draw.

Their style is in `lfpr.mplstyle`. A figure is a matplotlib `Figure` of its own; nothing goes through pyplot, so no
state is shared and no display is needed. `save` writes files that are the same bytes for the same numbers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lfpr.paper.labels import METHODS, REFITTING, spec_of
from lfpr.paper.schema import write_file

STYLE = matplotlib.rc_params_from_file(Path(__file__).with_name("lfpr.mplstyle"), use_default_template=False)
DASHED = (0, (3, 1.5))
REFITTED = "-."
DASHES = 2.8  # length of a line in a legend, in which dashes and dots can be told apart
REFERENCE = {"color": "0.3", "linewidth": 0.9, "linestyle": ":"}  # a line to compare with, such as the unpruned model
RANGE = ("pi", 100)  # seaborn's interval from the lowest to the highest value
SINGLE, DOUBLE = 3.5, 7.2  # width in inches of one and of two columns
SIDES = {  # of a point: direction in which a text stands, and how it is aligned
    **{(1, 0): ("left", "center"), (0, 1): ("center", "bottom"), (0, -1): ("center", "top")},
    **{(0.7, 0.7): ("left", "bottom"), (0.7, -0.7): ("left", "top"), (-0.7, 0.7): ("right", "bottom")},
    **{(-0.7, -0.7): ("right", "top"), (-1, 0): ("right", "center")},
}
P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """`draw` in the paper's style."""

    @wraps(draw)
    def wrapper(*args: P.args, **options: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **options)

    return wrapper


@styled
def save(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write `name.pdf` and `name.png` (200 dpi, 256 colours: a third of the bytes, and what it shows as text under
    "Description"), each atomically; equal figures give equal bytes."""
    vector, pixels, small = io.BytesIO(), io.BytesIO(), io.BytesIO()
    figure.savefig(vector, format="pdf", metadata={"CreationDate": None})
    figure.savefig(pixels, format="png", dpi=200)
    picture = Image.open(pixels).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    about = PngInfo()
    about.add_itxt("Description", describe(figure))
    picture.save(small, "png", optimize=True, dpi=(200, 200), pnginfo=about)
    contents = {"pdf": vector.getvalue(), "png": small.getvalue()}
    return [write_file(Path(folder) / f"{name}.{kind}", content) for kind, content in contents.items()]


def describe(figure: Figure) -> str:
    """What a drawn figure shows, for who does not see it: of each panel its axes and how far values go, and the names
    of lines and markers."""
    panels = [panel for panel in figure.axes if panel.has_data() and not hasattr(panel, "_colorbar")]
    labels, found = {}, []  # a panel without a label has that of the panel before
    for panel in panels:
        words, map_of = [], any(isinstance(drawn, QuadMesh) for drawn in panel.collections)
        for axis, reach in ((panel.yaxis, panel.dataLim.intervaly), (panel.xaxis, panel.dataLim.intervalx)):
            label = labels[axis.axis_name] = axis.get_label_text() or labels.get(axis.axis_name, "")
            ticks = [text for tick in axis.get_ticklabels() if (text := tick.get_text())]
            if map_of or any(character.isalpha() for tick in ticks for character in tick):
                words.append(f"{label}: {', '.join(ticks)}".removeprefix(": "))
            elif label and np.isfinite(reach).all():
                words.append(f"{label} from {_number(min(reach))} to {_number(max(reach))}")
        found.append(f"{panel.get_title()}: {' against '.join(words)}".removeprefix(": "))
    legends = [*figure.legends, *(legend for panel in panels if (legend := panel.get_legend()))]
    names = [text for legend in legends for text in legend.get_texts()]
    names += [text for panel in panels for text in panel.texts if isinstance(text, Annotation)]
    counted = [f"{len(found)} panels"] if len(found) > 1 else []
    named = [f"Shown: {', '.join(dict.fromkeys(text.get_text() for text in names))}"] if names else []
    return re.sub(r"[$_{}]", "", " ".join(". ".join([*counted, *found, *named]).split())) + "."


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def stage_look(color: str, retrained: bool, refitted: bool = False, paper: str = "white") -> dict:
    """How a line and its markers say what was done, the same in every figure: dashed and hollow for pruned, dash-dotted
    and hollow for refitted without training, solid and filled for retrained. paper: the colour of what is hollow."""
    style = "-" if retrained else REFITTED if refitted else DASHED
    return {"color": color, "linestyle": style, "mfc": color if retrained else paper, "mec": color}


def draw_line(
    panel: Axes, rows: pd.DataFrame, x: str, y: str = "score", filled: bool = True, refitted: bool = False, **looks
) -> None:
    """Means of column `y`, in per cent, against column `x`, with bars from the lowest to the highest value.

    filled, refitted: as `stage_look`. `looks`: color, marker and what else seaborn's `lineplot` takes.
    """
    words = panel.get_xlabel(), panel.get_ylabel()
    bars = {"elinewidth": 0.8, "capsize": 1.5, "zorder": looks.get("zorder", 2) - 0.01}
    looks = stage_look(looks["color"], filled, refitted) | {"mew": 1} | looks
    looks = {"errorbar": RANGE, "err_style": "bars", "err_kws": bars} | looks
    sns.lineplot(rows.assign(percent=100 * rows[y]), x=x, y="percent", ax=panel, **looks)
    panel.set(xlabel=words[0], ylabel=words[1])  # seaborn writes the columns' names


def draw_curves(panel: Axes, rows: pd.DataFrame, unpruned: float, **looks) -> None:
    """Score against what is kept (%): a line per method, pruned and retrained; methods named first lie on top."""
    panel.axhline(100 * unpruned, **REFERENCE)
    rows = rows.assign(kept=share_kept(rows))
    for (method, retrained), line in rows.groupby(["method", "retrained"]):
        _, color, marker = METHODS[method]
        order = 4 - list(METHODS).index(method) / len(METHODS) - (not retrained)
        more = {"refitted": method in REFITTING, "zorder": order} | looks
        draw_line(panel, line, "kept", filled=retrained, color=color, marker=marker, **more)
    panel.grid(True)


def share_kept(rows: pd.DataFrame) -> pd.Series:
    """What each row's constraint or percentile keeps on average, by method, in per cent; two that keep the same differ
    by a trifle, so that they stay two points."""
    groups = rows.groupby(["method", "retrained", "heuristic", "constraint", "percentile"], dropna=False)
    return 100 * groups.fraction.transform("mean") + 1e-9 * groups.ngroup()


def draw_boxes(panel: Axes, rows: pd.DataFrame, **options) -> None:
    """Seaborn's `boxplot`: boxes from quartile to quartile, the median as a line, whiskers to the extremes."""
    lines = {"linewidth": 0.7, "showcaps": False, "showfliers": False, "medianprops": {"linewidth": 1.2}}
    faces = {"boxprops": {"alpha": 0.5, "linewidth": 0}, "saturation": 1, "legend": False}
    sns.boxplot(rows, whis=(0, 100), ax=panel, **lines, **faces, **options)
    panel.set(xlabel="", ylabel="")


def name_points(panel: Axes, names: Sequence[tuple[float, float, str, str]], paths: Iterable[np.ndarray]) -> None:
    """Write texts beside their points (x, y, text, colour): each near by, inside the panel, where it covers no such
    point and no other text, nor, if it can, one of the `paths` (arrays of x, y). The panel's limits have to be final.
    """
    panel.figure.draw_without_rendering()  # so that places are known
    taken = squares(panel.transData.transform([name[:2] for name in names]), 5)
    lines = [box for places in map(panel.transData.transform, paths) for box in ink(places, 20)]
    for x, y, name, color in names:
        text = panel.annotate(
            name, (x, y), color=color, fontsize=6.5, in_layout=False, xytext=(0, 0), textcoords="offset points"
        )
        text.set_path_effects([withStroke(linewidth=1.5, foreground="white")])

        def place(distance: float, side: tuple[float, float], text=text) -> Bbox:
            text.set(position=distance * np.array(side), ha=SIDES[side][0], va=SIDES[side][1])
            return text.get_window_extent()

        def cost(where: tuple, place=place) -> float:
            box = place(*where)
            outside = not all(panel.bbox.contains(*corner) for corner in box.corners())
            return where[0] + 8 * (box.count_overlaps(lines) > 0) + 100 * (outside + box.count_overlaps(taken))

        taken.append(place(*min(((distance, side) for distance in (5, 9, 14, 20, 26) for side in SIDES), key=cost)))


def squares(places: np.ndarray, half: float) -> list[Bbox]:
    """Boxes around places [P, 2] in pixels, each `half` to either side."""
    return [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in places]


def ink(places: np.ndarray, steps: int) -> list[Bbox]:
    """What a line through places [P, 2] in pixels covers, as `steps` boxes for each of them."""
    along = np.linspace(0, len(places) - 1, steps * len(places))
    return squares(np.transpose([np.interp(along, range(len(places)), column) for column in places.T]), 2)


def heat_map(panel: Axes, values: pd.DataFrame, text: pd.DataFrame | None, colormap: str, limits=(None, None)):
    """Seaborn's `heatmap` of a table, its columns counted from 1, with text; NaN is grey. Returns what a colour bar
    needs."""
    panel.set_facecolor("0.85")
    if values.isna().all(axis=None):
        limits = 0, 1  # seaborn finds none
    options = {"vmin": limits[0], "vmax": limits[1], "linewidths": 0.4, "linecolor": "white", "cbar": False}
    sns.heatmap(values, cmap=colormap, ax=panel, xticklabels=False, yticklabels=False, **options)
    mesh = panel.collections[0]
    colors = mesh.to_rgba(np.ma.masked_invalid(values))
    for (row, column), value in np.ndenumerate(values.to_numpy()) if text is not None else ():
        dark = np.isfinite(value) and colors[row, column, :3] @ (0.299, 0.587, 0.114) < 0.5  # luma
        place = {"ha": "center", "va": "center", "fontsize": 5.5, "color": "white" if dark else "0.1"}
        panel.text(column + 0.5, row + 0.5, text.iloc[row, column], **place)  # seaborn's own leaves out NaN
    panel.set_xticks(np.arange(values.shape[1]) + 0.5, [column + 1 for column in values.columns])
    panel.set_yticks(np.arange(values.shape[0]) + 0.5)
    panel.tick_params(length=0)
    return mesh


def shades(count: int) -> list[str]:
    """Colours from light to dark, one per constraint."""
    colors = matplotlib.colormaps["viridis_r"](np.linspace(1, 0.15, count)[::-1])
    return [matplotlib.colors.to_hex(color) for color in colors]


def method_handles(rows: pd.DataFrame) -> list[Line2D]:
    """What the colours stand for."""
    return [
        Line2D([], [], color=color, marker=marker, label=label)
        for method, (label, color, marker) in METHODS.items()
        if (rows.method == method).any()
    ]


def handle(retrained: bool, label: str, refitted: bool = False, paper: str = "white") -> Line2D:
    """What `stage_look` stands for."""
    return Line2D([], [], marker="o", label=label, **stage_look("0.2", retrained, refitted, paper))


def stage_handles(rows: pd.DataFrame, experiment: str, unpruned: float) -> list[Line2D]:
    """Handles of pruned and retrained models, where `rows` have them, and of the unpruned one's line."""
    refitted = rows.method.isin(REFITTING) & ~rows.retrained
    found = [handle(False, "Pruned")] if (~rows.retrained & ~refitted).any() else []
    found += [handle(False, "Refitted", True)] if refitted.any() else []
    found += [handle(True, f"Pruned + {spec_of(experiment).retraining}")] if rows.retrained.any() else []
    return [*found, Line2D([], [], **REFERENCE, label=f"Unpruned ({100 * unpruned:.1f} %)")]
