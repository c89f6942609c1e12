"""Retrieval and rescaling: recall both ways, sensitivity pruning, cascades, and scale factors."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator

from lfpr.paper.labels import (
    BLUE,
    CONTROLS,
    METHODS,
    ORANGE,
    dataset,
    kept_axis,
    method_label,
    spec_of,
    title,
)
from lfpr.paper.registry import figure, table
from lfpr.paper.schema import check_once, main_method, plain, scores, select, variant_text
from lfpr.paper.style import DASHED, DOUBLE, REFERENCE, SINGLE, draw_boxes, handle, shades
from lfpr.paper.tables import text_table

DECADES = [sign * 10**power for power in range(6) for sign in (-1, 1)] + [0]
RECALLS = {
    "score": "Text→image R@1",
    "r5": "Text→image R@5",
    "r10": "Text→image R@10",
    "i2t_r1": "Image→text R@1",
    "i2t_r5": "Image→text R@5",
    "i2t_r10": "Image→text R@10",
}
STEPS = {"r10": (ORANGE, "s"), "score": (BLUE, "o")}  # metrics after each step of sensitivity pruning
CASCADE = {  # column: label, factor and form of its numbers
    "r1": ("R@1 cascade", 100, ".1f"),
    "r10": ("R@10 cascade", 100, ".1f"),
    "reranked": ("f (%)", 100, ".1f"),
    "break_even": ("Break-even", 100, ".1f"),
    "speedup": ("× at 10 %", 1, ".2f"),
    "speedup_measured": ("× at f", 1, ".2f"),
    "speedup_query": ("× first query", 1, ".2f"),
}
BOX = ["smallest", "lower", "median", "upper", "largest"]  # what scales.csv has of a layer


@table(
    "table_{experiment}_recall",
    needs=("results",),
    heading="Recall in both directions",
    caption="{about}: recall (%), means over seeds.",
    when=lambda results, experiment: results.i2t_r1[results.experiment == experiment].notna().any(),
)
def recall_table(results: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """Recall@1, 5, 10 (%) of text→image and image→text retrieval, means over seeds: a row per share of the cost kept,
    method, and retrained or not."""
    scores(results, experiment)  # checked
    rows = select(results, "results", experiment=experiment, heuristic="sum")
    rows = rows[variant_text(rows) == ""]
    methods = ["unpruned", *METHODS, *CONTROLS]
    rows = rows.assign(order=rows.method.map(methods.index), retrained=rows.retrained.astype(bool))
    means = rows.groupby(["constraint", "order", "retrained"])[list(RECALLS)].mean()
    means = means.sort_index(ascending=(False, True, True)).rename(columns=RECALLS)
    table = {
        (f"{100 * constraint:g} %", method_label(methods[order]), "yes" if retrained else "no"): dict(cells)
        for (constraint, order, retrained), cells in means.map(_percent).iterrows()
    }
    return text_table(table, ["Kept", "Method", "Retrained"])


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


@figure(
    "sensitivity_{experiment}",
    needs=("sensitivity", "results"),
    heading="Sensitivity, step by step",
    caption="{about}: recall after each step of sensitivity pruning, rescaled or not; below, the heads removed.",
)
def sensitivity_steps(sensitivity: pd.DataFrame, results: pd.DataFrame | None, experiment: str) -> Figure:
    """Recall@1 and @10 (%) after each step of sensitivity pruning, in which one more layer keeps a single head, with
    and without rescaling; numbers: heads removed so far.

    With `results`, the experiment's own way of pruning at equal cost as grey lines.
    """
    sensitivity = select(sensitivity, "sensitivity", experiment=experiment)
    check_once(sensitivity, "sensitivity", ["step", "rescaled"])
    figure = Figure((SINGLE, 2.9), layout="constrained")
    panel = figure.subplots()
    for rescaled, rows in sensitivity.sort_values("step").groupby(sensitivity.rescaled.astype(bool)):
        for column, (color, marker) in STEPS.items():
            looks = {"color": color, "marker": marker, "mfc": color if rescaled else "white"}
            panel.plot(100 * rows.fraction, 100 * rows[column], linestyle="-" if rescaled else DASHED, **looks)
    steps = sensitivity.drop_duplicates("step")
    for step in steps.itertuples():
        panel.text(100 * step.fraction, -6, f"{step.removed:g}", ha="center", fontsize=5.5, color="0.35")
    labels = {column: spec_of(experiment).metrics[column].rsplit(" ", 1)[-1] for column in STEPS}
    handles = [Line2D([], [], color=c, marker=m, label=labels[column]) for column, (c, m) in STEPS.items()]
    if sensitivity.rescaled.nunique() > 1:
        handles += [handle(False, "Not rescaled"), handle(True, "Rescaled")]
    limits = 100 * steps.fraction.min() - 2, 101
    if results is not None:
        handles.append(_search_line(panel, results, experiment))
    panel.set(xlabel=kept_axis(experiment), ylabel=f"{dataset(experiment)} recall, text→image (%)")
    panel.set(xlim=limits, ylim=(-8, 103))
    panel.grid(True)
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def _search_line(panel: Axes, results: pd.DataFrame, experiment: str) -> Line2D:
    """The own way's recall in grey, pruned and not retrained."""
    _, rows = scores(results, experiment)
    own = rows[(rows.method == main_method(rows, experiment)) & (rows.heuristic == "sum") & ~rows.retrained]
    whole = select(results, "results", experiment=experiment, method="unpruned")
    means = pd.concat([own, whole]).groupby("fraction")[list(STEPS)].mean()
    for column in means:
        panel.plot(100 * means.index, 100 * means[column], color="0.6", marker=".", zorder=1)
    return Line2D([], [], color="0.6", marker=".", label="Search, equal MACs")


@table(
    "table_{experiment}_cascade",
    needs=("cascade", "results"),
    heading="Cascades",
    caption=(
        "{about}: recall (%) of cascades: the pruned model ranks all images, the unpruned one "
        "re-ranks the top m; with two m another model ranks before it. f: share of images that are ever re-ranked; "
        "break-even: the f (%) that gains nothing; ×: how much faster all images are encoded if f is 10 % as "
        "published, as measured, or what the first query needs."
    ),
)
def cascade_table(cascade: pd.DataFrame, results: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """Cascades, a row per way to make the model that ranks, means over seeds: Recall@1 and @10 (%) of that model alone
    and of the cascade, f measured and f at which nothing is gained, and the speed-up of image encoding with f = 10 %
    (published), with f measured, and at the first query.

    Results.csv tells the unpruned model's recall and that of each model alone, which must be there. Masks without a
    search stand by the share that they keep.
    """
    cascade = select(cascade, "cascade", experiment=experiment).astype({"retrained": bool})
    cascade = cascade.assign(kept=cascade.constraint.fillna(cascade.fraction))
    check_once(cascade, "cascade", ["method", "kept", "seed", "retrained", "m"])
    rows = select(results, "results", experiment=experiment).astype({"retrained": bool})
    rows = rows[rows.heuristic.isin(["sum", "none"]) & plain(rows)]
    rows = rows.assign(kept=rows.constraint.where(rows.heuristic == "sum", rows.fraction))
    place = ["kept", "method", "retrained"]
    alone = rows.groupby(place)[["score", "r10"]].mean().map(_percent)
    alone.columns = ["R@1 alone", "R@10 alone"]
    table = {("100 %", "Unpruned", "no", "–"): dict(alone.xs("unpruned", level="method").iloc[0])}
    cascade = cascade.sort_values("kept", ascending=False, kind="stable")
    for (*key, m), means in cascade.groupby([*place, "m"], sort=False)[list(CASCADE)].mean().iterrows():
        if tuple(key) not in alone.index:
            about = dict(zip(("constraint", "method", "retrained"), key, strict=True))
            raise ValueError(f"results.csv: no row of {about}, which cascade.csv has")
        kept, method, retrained = key
        m = m if isinstance(m, str) else f"{m:g}"
        table[f"{100 * kept:.3g} %", method_label(method), "yes" if retrained else "no", m] = {
            **alone.loc[tuple(key)],
            **{label: f"{factor * means[name]:{form}}" for name, (label, factor, form) in CASCADE.items()},
        }
    return text_table(table, ["Kept", "Method", "Retrained", "m"])


@figure(
    "cascade_{experiment}",
    needs=("growth",),
    heading="What a cascade costs, query by query",
    caption=(
        "{about}: what a cascade costs as queries come in, by {method} pruning without {spec.retraining}: the share of "
        "images that the unpruned model has encoded for re-ranking, and the speed-up of image encoding from measured "
        "times."
    ),
)
def cascade_growth(growth: pd.DataFrame, experiment: str) -> Figure:
    """Over the first queries of a cascade, each about another image: the share (%) of all images that the full model
    has encoded by then, and how much less time encoding has taken than with the full model alone. A line per share of
    the cost that the model that ranks keeps, pruned by the experiment's own method, not retrained.

    Later queries about images that were brought up before cost nothing: this is the worst case, without popular images.
    """
    growth = select(growth, "growth", experiment=experiment).astype({"retrained": bool})
    check_once(growth, "growth", ["method", "constraint", "seed", "retrained", "m", "queries"])
    rows = growth[(growth.method == main_method(growth, experiment)) & ~growth.retrained]
    rows = rows[rows.seed == rows.seed.min()]
    constraints = sorted(rows.constraint.unique())
    figure = Figure((DOUBLE, 2.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for constraint, color in zip(constraints, shades(len(constraints)), strict=True):
        line = rows[rows.constraint == constraint].sort_values("queries")
        left.plot(line.queries, 100 * line.reranked, "o-", color=color, label=f"{100 * constraint:g} %")
        right.plot(line.queries, line.speedup, "o-", color=color)
    right.axhline(1, **REFERENCE, label="Full model alone")
    left.set(ylabel="Images re-ranked so far, f (%)", ylim=(0, 103))
    right.set(ylabel="Speed-up of encoding (×)", ylim=(0, None))
    for panel in (left, right):
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.set_xlabel("Queries so far, each about another image")
        panel.grid(True)
    kept = kept_axis(experiment).removesuffix(" (%)")
    heading = f"{kept} (m = {rows.m.iloc[0]:g})"
    figure.legend(loc="outside upper center", ncols=len(constraints) + 1, title=heading)
    return figure


@figure(
    "scales_{experiment}",
    needs=("scales",),
    heading="Scale factors of the rescaling",
    caption=(
        "Scale factors of rescaling: in the released masks, and as found here by the released solver and by ours "
        "(ridge). Boxes: quartiles; whiskers: smallest and largest; right: heads and neurons kept."
    ),
)
def scale_factors(scales: pd.DataFrame, experiment: str) -> Figure:
    """Scale factors of the kept heads and neurons in each layer (boxes: quartiles, whiskers: all; symmetric logarithmic
    scale) beside the share of each that was kept: a row of panels per model, constraint and solver."""
    scales = select(scales, "scales", experiment=experiment)
    check_once(scales, "scales", ["model", "constraint", "solver", "layer", "part"])
    sources = list(scales.groupby(["model", "constraint", "solver"], sort=False))
    colors = {"heads": BLUE, "neurons": ORANGE}
    figure = Figure((DOUBLE, 0.5 + 1.15 * len(sources)), layout="constrained")
    grid = figure.subplots(len(sources), 3, squeeze=False, sharey="col", width_ratios=(1, 1, 0.9))
    for panels, ((model, constraint, solver), rows) in zip(grid, sources, strict=True):
        for panel, (part, color) in zip(panels, colors.items(), strict=False):
            _draw_scales(panel, panels[2], select(rows, "scales", part=part), color)
        panels[0].set_ylabel(f"{title(model)}\n{solver}, {100 * constraint:g} %")
        for panel in panels:
            layers = rows.layer.max() + 1
            panel.set(xlim=(0.4, layers + 0.6), xticks=range(1, layers + 1, 1 if layers < 9 else 2))
            panel.grid(True, axis="y")
    for panel in grid[:, :2].flat:  # once all boxes are there
        panel.set_yscale("symlog", linthresh=1)
        panel.yaxis.set(major_locator=FixedLocator(DECADES), minor_locator=NullLocator())
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace("-", "−"))
    for panel, name in zip(grid[0], ("Scales of heads", "Scales of neurons", "Kept (%)"), strict=True):
        panel.set_title(name)
    for panel in grid[-1]:
        panel.set_xlabel("Layer")
    grid[0][2].set_ylim(-4, 104)
    handles = [Patch(color=color, label=part.capitalize()) for part, color in colors.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def _draw_scales(panel: Axes, kept: Axes, rows: pd.DataFrame, color: str) -> None:
    """A box per layer in `panel`, and the share of the layer that is kept as a line in the panel `kept`."""
    rows = rows.assign(layer=rows.layer + 1)
    numbers = rows[rows.kept > 0].melt("layer", BOX)  # the quartiles of these five are the three in their middle
    if len(numbers):
        looks = {"x": "layer", "y": "value", "color": color, "linecolor": color, "width": 0.7}
        draw_boxes(panel, numbers, native_scale=True, **looks)
    panel.axhline(1, **REFERENCE, zorder=0)
    kept.plot(rows.layer, 100 * rows.kept / rows.total, color=color, marker="o", markersize=3)
