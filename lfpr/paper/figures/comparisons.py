"""What compares: ways from a search to a model, parts of a method, numbers of samples, and the published numbers.

What differs from the experiment's own way is in the column `variant` of results.csv, such as "rescaled=True" or
"num_samples=100".
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from lfpr.experiments.specs import Way
from lfpr.paper.labels import BLUE, CONTROLS, RED, about, dataset, method_label, score_label, spec_of
from lfpr.paper.published_numbers import (
    COMPARED,
    CONSTRAINTS,
    DOLLARS_PER_HOUR,
    EXPERIMENT,
    PUBLISHED,
    SAL_EXPERIMENTS,
    SAL_HALVED,
    UNPRUNED,
)
from lfpr.paper.registry import figure, table
from lfpr.paper.schema import main_method, of_way, over_seeds, scores, select
from lfpr.paper.style import DOUBLE, RANGE, REFERENCE, SINGLE, draw_line, shades
from lfpr.paper.tables import mean_cell, number, text_table

VARIED = {"num_samples": "Samples behind the importance", "step": "Decoding step t"}


def _every(results: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """All pruned models searched by sum of importance, variants and controls too."""
    _, rows = scores(results, experiment, variants=True)
    return rows[rows.heuristic == "sum"]


@figure(
    "sampling_{experiment}",
    needs=("results",),
    heading="Samples and decoding steps behind the importance",
    caption="{about}: {spec.score} (%) of the pruned model, not retrained, by how its importance is computed.",
    when=lambda results, experiment: (
        _every(results, experiment).variant.str.fullmatch(rf"({'|'.join(VARIED)})=\d+").any()
    ),
)
def sampling(results: pd.DataFrame, experiment: str, step: int | None = None) -> Figure:
    """Score (%) of the pruned model against the number of samples behind the importance, and the decoding step t.

    The experiment's own way stands at its `num_samples`, and at `step`, the step it chooses, if known; otherwise its
    score is a dotted line. Only what was run gets a panel. Raises `ValueError` if neither was.
    """
    rows = _every(results, experiment)
    rows = select(rows, "results", method=main_method(rows, experiment), retrained=False)
    own = rows.variant == ""
    numbers = {name: pd.to_numeric(rows.variant.str.extract(rf"^{name}=(\d+)$")[0]) for name in VARIED}
    numbers = {name: values for name, values in numbers.items() if values.notna().any()}
    if not numbers:
        raise ValueError(f"results.csv: no variant of {experiment} such as 'num_samples=100' or 'step=1'")
    defaults = {"num_samples": rows.num_samples[own].max(), "step": step}
    constraints = sorted(rows.constraint[pd.DataFrame(numbers).notna().any(axis=1)].unique())
    colors = dict(zip(constraints, shades(len(constraints)), strict=True))
    figure = Figure((SINGLE if len(numbers) == 1 else DOUBLE, 2.4), layout="constrained")
    panels = figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
    for panel, (name, values) in zip(panels, numbers.items(), strict=True):
        default = defaults[name] if pd.notna(defaults[name]) else None
        for constraint, group in rows.assign(x=values.where(~own, default)).groupby("constraint"):
            if values[group.index].notna().any():
                looks = {"color": colors[constraint], "marker": "o", "linestyle": "-" if default else ""}
                draw_line(panel, group.dropna(subset="x"), "x", **looks)
                if default is None:
                    panel.axhline(100 * group.score[group.variant == ""].mean(), color=colors[constraint], ls=":")
        if name == "num_samples":
            panel.set_xscale("log")
        ticks = sorted({*values.dropna(), *([] if default is None else [default])})
        panel.xaxis.set(major_locator=FixedLocator(ticks), minor_locator=NullLocator())
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.set(xlabel=VARIED[name], ylabel=score_label(experiment) if panel is panels[0] else "")
        panel.grid(True)
    labels = {constraint: f"{100 * constraint:g} % of {spec_of(experiment).kept}" for constraint in constraints}
    handles = [Line2D([], [], color=color, marker="o", label=labels[c]) for c, color in colors.items()]
    if "step" in numbers and step is None:
        handles.append(Line2D([], [], color="0.3", linestyle=":", label="Default: median of t*"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


@figure(
    "alternatives_{experiment}",
    needs=("results",),
    heading="Ways to retrain",
    caption=(
        "{about}: alternatives to {method} pruning with {spec.retraining}: {spec.score} (%); hollow: not retrained."
    ),
    when=lambda results, experiment: (
        _every(results, experiment)
        .variant.isin({variant for _, variant, _ in spec_of(experiment).alternatives.values()} - {""})
        .any()
    ),
)
def alternatives(results: pd.DataFrame, experiment: str) -> Figure:
    """Score (%) of each way to get from the same search to a model, at each constraint where a variant was run.

    Bars are means over seeds, lines reach from the lowest to the highest seed; the dotted line is the unpruned model.
    Hollow bars are not retrained. Raises `ValueError` if there is no variant.
    """
    return _bars(results, experiment, spec_of(experiment).alternatives)


@figure(
    "controls_{experiment}",
    needs=("results",),
    heading="What each part of the method is worth",
    caption="{about}: what the parts of Fisher importance are worth: {spec.score} (%); hollow: not retrained.",
    when=lambda results, experiment: _every(results, experiment).method.isin(CONTROLS).any(),
)
def controls(results: pd.DataFrame, experiment: str) -> Figure:
    """As `alternatives`: pruned models of methods that lack a part of Fisher importance, beside Fisher and chance."""
    ways = {method_label(method): (method, "", False) for method in ("fisher", *CONTROLS, "random")}
    return _bars(results, experiment, ways)


def _bars(results: pd.DataFrame, experiment: str, ways: Mapping[str, Way]) -> Figure:
    unpruned, _ = scores(results, experiment)
    rows = _every(results, experiment)
    selected, constraints = {}, set()
    for label, (method, variant, retrained) in ways.items():
        present = of_way(rows, experiment, (method, variant, retrained))
        if len(present):
            selected[label] = present.assign(label=label)
        if variant or method in CONTROLS:
            constraints |= set(present.constraint)
    if not constraints:
        raise ValueError(f"results.csv: {experiment} has nothing to compare at a constraint: expected some of {ways}")
    colors = {label: RED if ways[label][0] == "random" else BLUE for label in selected}
    every = pd.concat(selected.values())
    size = (SINGLE if len(constraints) == 1 else DOUBLE, 0.85 + 0.24 * len(selected))
    figure = Figure(size, layout="constrained")
    panels = figure.subplots(1, len(constraints), sharey=True, squeeze=False)[0]
    for panel, constraint in zip(panels, sorted(constraints, reverse=True), strict=True):
        panel.axvline(100 * unpruned, **REFERENCE)
        above = panel.get_xaxis_transform()  # x in data, y in parts of the panel
        panel.text(100 * unpruned, 1.02, f"unpruned {100 * unpruned:.1f}", transform=above, ha="center", fontsize=6)
        _draw_bars(panel, every[every.constraint == constraint], colors)
        panel.set(xlabel=score_label(experiment), ylabel="", xlim=(0, 112 * max(unpruned, 0.01)))
        panel.set_title(f"{100 * constraint:g} % of {spec_of(experiment).kept}", pad=12)
    return figure


def _draw_bars(panel: Axes, rows: pd.DataFrame, colors: Mapping[str, str]) -> None:
    """A bar per label with its mean (%), hollow where not retrained, and a line from the lowest to the highest seed."""
    labels = list(colors)
    rows = rows.assign(percent=100 * rows.score)
    looks = {"hue": "label", "palette": colors, "order": labels, "hue_order": labels, "dodge": False, "legend": False}
    looks |= {"width": 0.62, "saturation": 1, "linewidth": 1, "errorbar": RANGE}
    for retrained, group in rows.groupby("retrained"):
        lines = {"color": "0.2", "linewidth": 0.9}
        sns.barplot(group, x="percent", y="label", fill=bool(retrained), err_kws=lines, ax=panel, **looks)
    for label, group in rows.groupby("label"):
        mean, low, high = (group.percent.agg(name) for name in ("mean", "min", "max"))
        inside = dict(x=min(low, mean) - 1, ha="right", color="white" if group.retrained.all() else "0.1")
        outside = dict(x=high + 1, ha="left", color="0.1")
        place = inside if mean > 25 else outside
        panel.text(y=labels.index(label), s=f"{mean:.1f}", va="center", fontsize=6.5, **place)


@table(
    "table_comparison",
    needs=("results",),
    heading="Against the published numbers",
    caption=lambda results: (
        "Published results of TAP on TextVQA (Poh, Chan, Lim, Pattern Recognition Letters 183, 2024; GPU hours on two "
        f"V100 or Titan Xp) beside those here: {about(results, EXPERIMENT)}, minutes of retraining. Drop: points below "
        "unpruned. The paper's L1 prunes during training, another method than magnitude with ReSt. Dollars here: the "
        f"minutes at the paper's {DOLLARS_PER_HOUR:.2f} an hour of two Titan Xp. MB: the file of the whole model; "
        "delta: of mask values and of what retraining changed, as the paper's 20.1 and 43.9 MB of LFPR are."
    ),
    when=lambda results: (results.experiment == EXPERIMENT).any(),
)
def comparison_table(results: pd.DataFrame, experiment: str = EXPERIMENT) -> pd.DataFrame:
    """The paper's table of methods at 80 % and 40 % kept (`PUBLISHED`) and this project's numbers beside it.

    Drops are points below the unpruned model. The paper's time is GPU hours of pruning and retraining, ours minutes of
    retraining, its cost dollars of cloud computing, ours those of the minutes at its rate. Of several variants that a
    row may show, the first one that was run is taken. "–": not published, or not run.
    """
    unpruned, rows = scores(results, experiment, variants=True)
    whole = select(results, "results", experiment=experiment, method="unpruned")
    table = {("100 %", "Unpruned"): _published(*UNPRUNED, None, None, None) | _ours(whole, unpruned)}
    for constraint in CONSTRAINTS:
        for method, (labels, retrained) in COMPARED.items():
            here = (rows.method == method) & (rows.retrained == retrained)
            here &= (rows.heuristic == "sum") & (rows.constraint == constraint)
            variant = next((name for name in labels if (rows.variant[here] == name).any()), next(iter(labels)))
            numbers = PUBLISHED.get((method, constraint), (None,) * 5)
            ours = _ours(rows[here & (rows.variant == variant)], unpruned)
            table[f"{100 * constraint:g} %", labels[variant]] = _published(*numbers) | ours
    return text_table(table, ["Kept", "Method"])


def _sal_caption(results: pd.DataFrame) -> str:
    share, points, hours = SAL_HALVED
    ours = "; ".join(about(results, name) for name in SAL_EXPERIMENTS if (results.experiment == name).any())
    return (
        "What was published of SaL (Poh, Chan, Lim, Pattern Recognition Letters 183, 2024, abstract): SaL‡-Base loses "
        f"less than {points} points with {100 * share:g} % of its parameters, after {hours} GPU hours of ReSt; it does "
        f"not say on which data set, and which parameters. Beside it, label-free and ReSt by our schedule: {ours}. "
        "Points below unpruned, pruned and after ReSt, and minutes of it."
    )


@table(
    "table_comparison_sal",
    needs=("results",),
    heading="Against what was published of SaL",
    caption=_sal_caption,
    when=lambda results: results.experiment.isin(SAL_EXPERIMENTS).any(),
)
def sal_table(results: pd.DataFrame) -> pd.DataFrame:
    """The abstract's numbers of SaL, and this project's drops beside them, pruned and retrained: a row per share kept
    at which a model was retrained."""
    share, points, hours = SAL_HALVED
    columns = ["Paper: drop", "Paper: GPU hours"]
    table: dict[float, dict[str, str]] = {share: dict(zip(columns, (f"< {points}", f"{hours}"), strict=True))}
    for experiment in SAL_EXPERIMENTS:
        if not (results.experiment == experiment).any():
            continue
        unpruned, rows = scores(results, experiment)
        rows = rows[(rows.method == main_method(rows, experiment)) & (rows.heuristic == "sum")]
        names = {key: f"{dataset(experiment)}: {what}" for key, what in ((False, "pruned"), (True, "ReSt"))}
        names["minutes"] = f"{dataset(experiment)}: minutes"
        columns += names.values()
        for constraint, group in rows.groupby("constraint"):
            cells = table.setdefault(constraint, {}) if group.retrained.any() else {}
            for retrained, some in group.groupby("retrained"):
                point = next(over_seeds(some).itertuples())
                spread = f" ± {100 * point.std:.1f}" if point.count > 1 else ""
                cells[names[retrained]] = number(100 * (unpruned - point.mean), ".1f") + spread
            cells[names["minutes"]] = number(group.minutes[group.retrained].mean(), ".2f")
    rows = {(f"{100 * kept:g} %",): table[kept] for kept in sorted(table, reverse=True)}
    return text_table(rows, ["Kept"], columns)


def _published(
    parameters: float | None,
    accuracy: float | None,
    hours: float | None,
    dollars: float | None,
    megabytes: float | None,
) -> dict[str, str]:
    drop = None if accuracy is None else UNPRUNED[1] - accuracy
    return {
        "Paper: params (M)": number(parameters, ".1f"),
        "Paper: accuracy": number(accuracy, ".2f"),
        "Paper: drop": number(drop, ".2f"),
        "Paper: GPU hours": number(hours, ".2f"),
        "Paper: dollars": number(dollars, ".4g"),
        "Paper: MB": number(megabytes, "g"),
    }


def _ours(rows: pd.DataFrame, unpruned: float) -> dict[str, str]:
    """Means over seeds; nothing for a method that was not run."""
    if not len(rows):
        return {}
    point = next(over_seeds(rows).itertuples())
    return {
        "Here: params": f"{100 * point.fraction:.1f} %",
        "Here: accuracy": mean_cell(point),
        "Here: drop": number(100 * (unpruned - point.mean), ".1f"),
        "Here: minutes": number(rows.minutes.mean(), ".2f"),
        "Here: dollars": number(rows.minutes.mean() / 60 * DOLLARS_PER_HOUR, ".2g"),
        "Here: MB": number(rows.megabytes.mean(), ".2f"),
        "Here: delta MB": number(rows.delta_megabytes.mean(), ".2f"),
    }
