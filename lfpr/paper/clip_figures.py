"""Figures and tables of CLIP alone: recall both ways, sensitivity pruning, cascades, and scale factors of rescaling.

Functions of the tidy tables results.csv, sensitivity.csv, cascade.csv and scales.csv (columns in `lfpr.paper.tables`).
"""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator

from lfpr.paper.comparisons import BLUE, ORANGE
from lfpr.paper.figures import BOX, DASHED, DOUBLE, SINGLE, STYLE, draw_box, shades
from lfpr.paper.tables import (
    CONTROLS,
    METHODS,
    check_once,
    main_method,
    method_label,
    scores,
    select,
    title,
    variant_text,
)

EXPERIMENT = "clip-mscoco"
DECADES = [sign * 10**power for power in range(6) for sign in (-1, 1)] + [0]
RECALLS = {
    "score": "Text→image R@1",
    "r5": "Text→image R@5",
    "r10": "Text→image R@10",
    "i2t_r1": "Image→text R@1",
    "i2t_r5": "Image→text R@5",
    "i2t_r10": "Image→text R@10",
}
CASCADE = {  # column: label, factor and form of its numbers
    "r1": ("R@1 cascade", 100, ".1f"),
    "r10": ("R@10 cascade", 100, ".1f"),
    "reranked": ("f (%)", 100, ".1f"),
    "break_even": ("Break-even", 100, ".1f"),
    "speedup": ("× at 10 %", 1, ".2f"),
    "speedup_measured": ("× at f", 1, ".2f"),
    "speedup_query": ("× first query", 1, ".2f"),
}


def recall_table(results: pd.DataFrame, experiment: str = EXPERIMENT) -> pd.DataFrame:
    """Recall@1, 5, 10 (%) of text→image and image→text retrieval, means over seeds: a row per share of MACs kept,
    method, and distilled or not."""
    scores(results, experiment)  # checked
    rows = select(results, "results", experiment=experiment, heuristic="sum")
    rows = rows[variant_text(rows) == ""]
    methods = ["unpruned", *METHODS, *CONTROLS]
    order = {method: place for place, method in enumerate(methods)}
    rows = rows.assign(order=rows.method.map(order), retrained=rows.retrained.astype(bool))
    means = (
        rows.groupby(["constraint", "order", "retrained"])[list(RECALLS)]
        .mean()
        .sort_index(ascending=(False, True, True))
    )
    table = {
        (f"{100 * constraint:g} %", method_label(methods[place]), "yes" if retrained else "no"): cells
        for (constraint, place, retrained), cells in means.map(lambda value: f"{100 * value:.1f}").iterrows()
    }
    frame = pd.DataFrame(list(table.values())).rename(columns=RECALLS)
    frame.index = pd.MultiIndex.from_tuples(table, names=["MACs kept", "Method", "Distilled"])
    return frame


def sensitivity_steps(sensitivity: pd.DataFrame, results: pd.DataFrame | None = None) -> Figure:
    """Recall@1 and @10 (%) after each step of sensitivity pruning, in which one more layer keeps a single head, with
    and without rescaling; numbers: heads removed so far.

    With `results`, the experiment's own way of pruning at equal MACs as grey lines.
    """
    sensitivity = select(sensitivity, "sensitivity")
    check_once(sensitivity, "sensitivity", ["step", "rescaled"])
    measures = {"r10": ("Recall@10", ORANGE, "s"), "score": ("Recall@1", BLUE, "o")}
    with matplotlib.rc_context(STYLE):
        figure = Figure((SINGLE, 2.9), layout="constrained")
        panel = figure.subplots()
        for rescaled, rows in sensitivity.sort_values("step").groupby(sensitivity.rescaled.astype(bool)):
            for column, (_, color, marker) in measures.items():
                looks = dict(color=color, marker=marker, mfc=color if rescaled else "white")
                panel.plot(100 * rows.fraction, 100 * rows[column], linestyle="-" if rescaled else DASHED, **looks)
        steps = sensitivity.drop_duplicates("step")
        for step in steps.itertuples():
            panel.text(100 * step.fraction, -6, f"{step.removed:g}", ha="center", fontsize=5.5, color="0.35")
        handles = [Line2D([], [], color=c, marker=m, label=label) for label, c, m in measures.values()]
        if sensitivity.rescaled.nunique() > 1:
            handles.append(Line2D([], [], color="0.2", linestyle=DASHED, marker="o", mfc="white", label="Not rescaled"))
            handles.append(Line2D([], [], color="0.2", marker="o", label="Rescaled"))
        limits = 100 * steps.fraction.min() - 2, 101
        if results is not None:
            handles.append(_search_line(panel, results, limits[0]))
        panel.set(
            xlabel="Vision encoder MACs kept (%)", ylabel="MSCOCO recall, text→image (%)", xlim=limits, ylim=(-8, 103)
        )
        panel.grid(True)
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def cascade_table(cascade: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Cascades, a row per way to make the model that ranks, means over seeds: Recall@1 and @10 (%) of that model alone
    and of the cascade, f measured and f at which nothing is gained, and the speed-up of image encoding with f = 10 %
    (published), with f measured, and at the first query.

    Results.csv tells the unpruned model's recall and that of each model alone, which must be there.
    """
    cascade = select(cascade, "cascade").astype({"retrained": bool})
    check_once(cascade, "cascade", ["method", "constraint", "seed", "retrained", "m"])
    rows = select(results, "results", experiment=EXPERIMENT, heuristic="sum").astype({"retrained": bool})
    place = ["constraint", "method", "retrained"]
    alone = rows[variant_text(rows) == ""].groupby(place)[["score", "r10"]].mean()
    alone = alone.map(lambda value: f"{100 * value:.1f}").set_axis(["R@1 alone", "R@10 alone"], axis=1)
    table = {("100 %", "Unpruned", "no", "–"): dict(alone.xs("unpruned", level="method").iloc[0])}
    cascade = cascade.sort_values("constraint", ascending=False, kind="stable")
    for (*key, m), means in cascade.groupby([*place, "m"], sort=False)[list(CASCADE)].mean().iterrows():
        if tuple(key) not in alone.index:
            raise ValueError(f"results.csv: no row of {dict(zip(place, key, strict=True))}, which cascade.csv has")
        constraint, method, retrained = key
        table[f"{100 * constraint:g} %", method_label(method), "yes" if retrained else "no", f"{m:g}"] = {
            **alone.loc[tuple(key)],
            **{label: f"{factor * means[name]:{form}}" for name, (label, factor, form) in CASCADE.items()},
        }
    frame = pd.DataFrame.from_dict(table, orient="index").fillna("–")
    frame.index = pd.MultiIndex.from_tuples(table, names=["MACs kept", "Method", "Distilled", "m"])
    return frame


def cascade_growth(growth: pd.DataFrame) -> Figure:
    """Over the first queries of a cascade, each about another image: the share (%) of all images that the full model
    has encoded by then, and how much less time encoding has taken than with the full model alone. A line per share of
    MACs that the model that ranks keeps, pruned by the experiment's own method, not retrained.

    Later queries about images that were brought up before cost nothing: this is the worst case, without popular images.
    """
    growth = select(growth, "growth").astype({"retrained": bool})
    check_once(growth, "growth", ["method", "constraint", "seed", "retrained", "m", "queries"])
    rows = growth[(growth.method == main_method(growth, EXPERIMENT)) & ~growth.retrained]
    rows = rows[rows.seed == rows.seed.min()]
    constraints = sorted(rows.constraint.unique())
    with matplotlib.rc_context(STYLE):
        figure = Figure((DOUBLE, 2.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for constraint, color in zip(constraints, shades(len(constraints)), strict=True):
            line = rows[rows.constraint == constraint].sort_values("queries")
            left.plot(line.queries, 100 * line.reranked, "o-", color=color, label=f"{100 * constraint:g} %")
            right.plot(line.queries, line.speedup, "o-", color=color)
        right.axhline(1, color="0.3", linewidth=0.9, linestyle=":", label="Full model alone")
        left.set(ylabel="Images re-ranked so far, f (%)", ylim=(0, 103))
        right.set(ylabel="Speed-up of image encoding", ylim=(0, None))
        for panel in (left, right):
            panel.set_xscale("log", base=2)
            panel.xaxis.set_major_formatter("{x:,.0f}")
            panel.set_xlabel("Queries so far, each about another image")
            panel.grid(True)
        figure.legend(
            loc="outside upper center",
            ncols=len(constraints) + 1,
            title=f"Vision encoder MACs kept (m = {rows.m.iloc[0]:g})",
        )
    return figure


def scale_factors(scales: pd.DataFrame) -> Figure:
    """Scale factors of the kept heads and neurons in each layer (boxes: quartiles, whiskers: all; symmetric logarithmic
    scale) beside the share of each that was kept: a row of panels per model, constraint and solver.

    The table is that of `lfpr.clip.published_scales`.
    """
    scales = select(scales, "scales")
    check_once(scales, "scales", ["model", "constraint", "solver", "layer", "part"])
    sources = list(scales.groupby(["model", "constraint", "solver"], sort=False))
    colors = {"heads": BLUE, "neurons": ORANGE}
    with matplotlib.rc_context(STYLE):
        figure = Figure((DOUBLE, 0.5 + 1.15 * len(sources)), layout="constrained")
        grid = figure.subplots(len(sources), 3, squeeze=False, sharey="col", width_ratios=(1, 1, 0.9))
        for panels, ((model, constraint, solver), rows) in zip(grid, sources, strict=True):
            panels[0].set_ylabel(f"{title(model)}\n{solver}, {100 * constraint:g} %")
            for panel, (part, color) in zip(panels, colors.items(), strict=False):
                _scales(panel, panels[2], select(rows, "scales", part=part), color)
            for panel in panels:
                layers = rows.layer.max() + 1
                panel.set(xlim=(0.4, layers + 0.6), xticks=range(1, layers + 1, 1 if layers < 9 else 2))
                panel.grid(True, axis="y")
        for panel, name in zip(grid[0], ("Scales of heads", "Scales of neurons", "Kept (%)"), strict=True):
            panel.set_title(name)
        for panel in grid[-1]:
            panel.set_xlabel("Layer")
        grid[0][2].set_ylim(-4, 104)
        handles = [Patch(color=color, label=part.capitalize()) for part, color in colors.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def _scales(panel, kept, rows: pd.DataFrame, color: str) -> None:
    """A box per layer in `panel`, and the share of the layer that is kept as a line in the panel `kept`."""
    for row in rows[rows.kept > 0].itertuples():
        draw_box(panel, row.layer + 1, {name: getattr(row, name) for name in BOX}, 0.7, color)
    panel.axhline(1, color="0.3", linewidth=0.8, linestyle=":", zorder=0)
    panel.set_yscale("symlog", linthresh=1)
    panel.yaxis.set(major_locator=FixedLocator(DECADES), minor_locator=NullLocator())
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace("-", "−"))
    kept.plot(rows.layer + 1, 100 * rows.kept / rows.total, color=color, marker="o", markersize=3)


def _search_line(panel, results: pd.DataFrame, start: float) -> Line2D:
    """The own way's recall from `start` (% of MACs) on, in grey, pruned and not retrained."""
    _, rows = scores(results, EXPERIMENT)
    own = rows[(rows.method == main_method(rows, EXPERIMENT)) & (rows.heuristic == "sum") & ~rows.retrained]
    whole = select(results, "results", experiment=EXPERIMENT, method="unpruned")
    means = pd.concat([own, whole]).groupby("fraction")[["score", "r10"]].mean()
    for column in means:
        panel.plot(100 * means.index, 100 * means[column], color="0.6", marker=".", zorder=1)
    return Line2D([], [], color="0.6", marker=".", label="Search, equal MACs")
