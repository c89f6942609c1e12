"""Figures that compare: search heuristics, alternatives to retraining, sample sizes, and time against MACs.

Each is a function of one tidy table (columns in `lfpr.paper.tables`), as in `lfpr.paper.figures`. What differs from the
experiment's own way is in the column `variant` of results.csv, such as "rescaled=True" or "num_samples=100".
"""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from lfpr.paper.figures import DOUBLE, SINGLE, STYLE, before_and_after, draw_points, shades
from lfpr.paper.tables import (
    CONTROLS,
    HEURISTICS,
    SCORES,
    check_once,
    kept_label,
    main_method,
    method_label,
    over_seeds,
    score_label,
    scores,
    select,
    sentence,
    title,
)

BLUE, ORANGE, GREEN, RED, PINK = "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc"  # seaborn's "colorblind"
EXPERIMENTS = dict(zip(SCORES, zip((BLUE, ORANGE, GREEN, RED, PINK), "osD^v", strict=True), strict=True))
WAYS = {  # label: method (None: the experiment's own), variant, retrained
    "tap": {
        "Pruned": (None, "", False),
        "Pruned, rescaled": (None, "rescaled=True", False),
        "Pruned, published scoring": (None, "published_scoring=True", False),
        "Masks alone retrained": (None, "trained=masks", True),
        "ReSt": (None, "", True),
        "Random + ReSt": ("random", "", True),
    },
    "clip": {
        "Searched": (None, "rearranged=False, rescaled=False", False),
        "Searched, rearranged": (None, "rearranged=True, rescaled=False", False),
        "Pruned, rescaled": (None, "", False),
        "Distilled: masks, norms": (None, "trained=masks", True),
        "Distilled: last layers": (None, "", True),
        "Distilled: all layers": (None, "trained=all", True),
        "Random, distilled": ("random", "", True),
    },
}


def threshold_against_sum(results: pd.DataFrame, experiment: str, method: str = "label-free") -> Figure:
    """Score (%) against the share really kept (%), searched by sum of importance and by threshold: means over seeds."""
    unpruned, pruned = scores(results, experiment)
    rows = select(pruned, "results", method=method)
    with matplotlib.rc_context(STYLE):
        figure = Figure((SINGLE, 2.7), layout="constrained")
        panel = figure.subplots()
        panel.axhline(100 * unpruned, color="0.3", linewidth=0.9, linestyle=":")
        handles = []
        for (heuristic, label), color, marker in zip(HEURISTICS.items(), (BLUE, ORANGE), "os", strict=True):
            for retrained, line in select(rows, "results", heuristic=heuristic).groupby("retrained"):
                draw_points(panel, line, color, marker, retrained)
            handles.append(Line2D([], [], color=color, marker=marker, label=label))
        handles += before_and_after(rows, experiment)
        handles.append(Line2D([], [], color="0.3", linestyle=":", label=f"Unpruned ({100 * unpruned:.1f} %)"))
        panel.set(xlabel=f"{sentence(kept_label(experiment))} (%)", ylabel=score_label(experiment))
        panel.grid(True)
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def alternatives(results: pd.DataFrame, experiment: str) -> Figure:
    """Score (%) of each way to get from the same search to a model, at each constraint where a variant was run.

    Bars are means over seeds, lines reach from the lowest to the highest seed; the dotted line is the unpruned model.
    Hollow bars are not retrained. Raises `ValueError` if there is no variant.
    """
    return _bars(results, experiment, ways_of(experiment))


def ways_of(experiment: str) -> dict[str, tuple[str | None, str, bool]]:
    """The row of `WAYS` for this experiment."""
    return WAYS["clip" if experiment.startswith("clip") else "tap"]


def controls(results: pd.DataFrame, experiment: str) -> Figure:
    """As `alternatives`: pruned models of methods that lack a part of Fisher's scores, beside Fisher and chance."""
    ways = {method_label(method): (method, "", False) for method in ("fisher", *CONTROLS, "random")}
    return _bars(results, experiment, ways)


def _bars(results: pd.DataFrame, experiment: str, ways: dict[str, tuple[str | None, str, bool]]) -> Figure:
    unpruned, rows = scores(results, experiment, variants=True)
    rows = rows[rows.heuristic == "sum"]
    chosen, constraints = {}, set()
    for label, (method, variant, retrained) in ways.items():
        wanted = (rows.method == (method or main_method(rows, experiment))) & (rows.variant == variant)
        found = rows[wanted & (rows.retrained == retrained)]
        if len(found):
            chosen[label] = over_seeds(found).set_index("constraint")
        if variant or method in CONTROLS:
            constraints |= set(found.constraint)
    if not constraints:
        raise ValueError(f"results.csv: {experiment} has nothing to compare at a constraint: expected some of {ways}")
    with matplotlib.rc_context(STYLE):
        size = (SINGLE if len(constraints) == 1 else DOUBLE, 0.85 + 0.24 * len(chosen))
        figure = Figure(size, layout="constrained")
        panels = figure.subplots(1, len(constraints), sharey=True, squeeze=False)[0]
        for panel, constraint in zip(panels, sorted(constraints, reverse=True), strict=True):
            panel.axvline(100 * unpruned, color="0.3", linewidth=0.9, linestyle=":")
            above = panel.get_xaxis_transform()  # x in data, y in parts of the panel
            panel.text(100 * unpruned, 1.02, f"unpruned {100 * unpruned:.1f}", transform=above, ha="center", fontsize=6)
            for place, (label, points) in enumerate(chosen.items()):
                if constraint in points.index:
                    _bar(panel, place, points.loc[constraint], RED if "Random" in label else BLUE, ways[label][2])
            panel.set(xlabel=score_label(experiment), xlim=(0, 112 * max(unpruned, 0.01)))
            panel.set_title(f"{100 * constraint:g} % of {kept_label(experiment)}", pad=12)
        panels[0].set_yticks(range(len(chosen)), list(chosen))
        panels[0].invert_yaxis()
    return figure


def sampling(results: pd.DataFrame, experiment: str, num_samples: int, step: int | None = None) -> Figure:
    """Score (%) of the pruned model against the number of samples that score it, and against the decoding step t.

    `num_samples` is what the experiment's own way takes, and `step` the step it chooses, if known; otherwise its
    score is a dotted line. Only what was run gets a panel. Raises `ValueError` if neither was.
    """
    _, rows = scores(results, experiment, variants=True)
    rows = select(rows, "results", method=main_method(rows, experiment), heuristic="sum", retrained=False)
    settings = {"num_samples": ("Samples that score", num_samples), "step": ("Decoding step t", step)}
    numbers = {name: pd.to_numeric(rows.variant.str.extract(rf"^{name}=(\d+)$")[0]) for name in settings}
    numbers = {name: values for name, values in numbers.items() if values.notna().any()}
    if not numbers:
        raise ValueError(f"results.csv: no variant of {experiment} such as 'num_samples=100' or 'step=1'")
    constraints = sorted(rows.constraint[pd.DataFrame(numbers).notna().any(axis=1)].unique())
    colors = dict(zip(constraints, shades(len(constraints)), strict=True))
    with matplotlib.rc_context(STYLE):
        figure = Figure((SINGLE if len(numbers) == 1 else DOUBLE, 2.4), layout="constrained")
        panels = figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
        for panel, (name, values) in zip(panels, numbers.items(), strict=True):
            label, default = settings[name]
            own = rows.variant == ""
            for constraint, group in rows.assign(x=values.where(~own, default)).groupby("constraint"):
                if values[group.index].notna().any():
                    _against(panel, group.dropna(subset="x"), colors[constraint], "-" if default else "")
                    if default is None:
                        panel.axhline(
                            100 * group.score[group.variant == ""].mean(), color=colors[constraint], linestyle=":"
                        )
            if name == "num_samples":
                panel.set_xscale("log")
            ticks = sorted({*values.dropna(), *([] if default is None else [default])})
            panel.xaxis.set(major_locator=FixedLocator(ticks), minor_locator=NullLocator())
            panel.xaxis.set_major_formatter("{x:,.0f}")
            panel.set(xlabel=label, ylabel=score_label(experiment) if panel is panels[0] else "")
            panel.grid(True)
        labels = {constraint: f"{100 * constraint:g} % of {kept_label(experiment)}" for constraint in constraints}
        handles = [Line2D([], [], color=color, marker="o", label=labels[c]) for c, color in colors.items()]
        if "step" in numbers and step is None:
            handles.append(Line2D([], [], color="0.3", linestyle=":", label="Default: median of t*"))
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def speed(measured: pd.DataFrame) -> Figure:
    """Measured time of pruned models against multiply-accumulates, each as a share of the unpruned model's (%).

    Retrained models are filled. On the dotted diagonal time falls as MACs do. Raises `ValueError` for an experiment
    without its unpruned model.
    """
    ratios = speed_ratios(measured)
    with matplotlib.rc_context(STYLE):
        figure = Figure((SINGLE, 3.2), layout="constrained")
        panel = figure.subplots()
        panel.plot([0, 100], [0, 100], color="0.3", linewidth=0.9, linestyle=":", label="Time falls as MACs do")
        for experiment, rows in ratios[ratios.model != "unpruned"].groupby("experiment", sort=False):
            color, marker = EXPERIMENTS.get(experiment, ("0.3", "P"))
            looks = dict(color=color, marker=marker, linestyle="")
            for row in rows.itertuples():
                face = color if row.model == "retrained" else "white"
                panel.plot(100 * row.mac_ratio, 100 * row.time_ratio, mfc=face, **looks)
            panel.plot([], [], label=title(experiment), **looks)
        panel.set(xlabel="MACs of the pruned encoder (% of unpruned)", ylabel="Time, whole model (% of unpruned)")
        shares = 100 * ratios.loc[ratios.model != "unpruned", ["mac_ratio", "time_ratio"]]
        limits = shares.min(axis=None) - 5, shares.max(axis=None) + 5
        panel.set(xlim=limits, ylim=limits, aspect="equal")
        panel.grid(True)
        for name, face in (("Pruned", "white"), ("Retrained", "0.2")):
            panel.plot([], [], "o", color="0.2", mfc=face, label=name)
        figure.legend(loc="outside upper center", ncols=2)
    return figure


def speed_ratios(measured: pd.DataFrame) -> pd.DataFrame:
    """speed.csv with `mac_ratio` and `time_ratio` to the experiment's unpruned model."""
    measured = select(measured, "speed")
    check_once(measured, "speed", ["experiment", "model", "constraint"])
    full = measured[measured.model == "unpruned"].set_index("experiment")
    lacking = sorted(set(measured.experiment) - set(full.index))
    if lacking:
        raise ValueError(f"speed.csv: {lacking[0]} has no row with model = 'unpruned'")
    ratios = {f"{name}_ratio": measured[column] / measured.experiment.map(full[column])
              for name, column in (("mac", "macs"), ("time", "ms"))}  # fmt: skip
    return measured.assign(**ratios)


def _bar(panel, place: int, point: pd.Series, color: str, retrained: bool) -> None:
    """A bar with its value, and a line from the lowest to the highest seed."""
    mean, low, high = (100 * point[name] for name in ("mean", "min", "max"))
    panel.barh(place, mean, 0.62, facecolor=color if retrained else "white", edgecolor=color, linewidth=1)
    if point["count"] > 1:
        panel.plot([low, high], [place, place], color="0.2", linewidth=0.9)
    inside = dict(x=min(low, mean) - 1, ha="right", color="white" if retrained else "0.1")
    outside = dict(x=high + 1, ha="left", color="0.1")
    panel.text(y=place, s=f"{mean:.1f}", va="center", fontsize=6.5, **(inside if mean > 25 else outside))


def _against(panel, rows: pd.DataFrame, color, linestyle: str) -> None:
    """Means over seeds against the column `x`, with bars from the lowest to the highest seed."""
    points = 100 * rows.groupby("x").score.agg(["mean", "min", "max"])
    spread = [points["mean"] - points["min"], points["max"] - points["mean"]]
    looks = dict(color=color, marker="o", linestyle=linestyle, elinewidth=0.8, capsize=1.5)
    panel.errorbar(points.index, points["mean"], spread, **looks)
