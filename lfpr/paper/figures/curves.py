"""Score against what is kept: curves and tables of one experiment, and of all side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from lfpr.paper.labels import (
    BLUE,
    HEURISTICS,
    METHODS,
    ORANGE,
    about,
    in_words,
    kept_axis,
    lines_note,
    method_label,
    score_label,
    sentence,
    spec_of,
    title,
)
from lfpr.paper.registry import figure, table
from lfpr.paper.schema import main_method, over_seeds, plain, scores, select
from lfpr.paper.style import (
    DASHES,
    DOUBLE,
    REFERENCE,
    SINGLE,
    draw_curves,
    draw_line,
    handle,
    method_handles,
    share_kept,
    stage_handles,
    styled,
)
from lfpr.paper.tables import mean_cell, text_table


def _curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without the lone points among them: of methods, retrained or not, that were run at one constraint."""
    shares = rows.groupby(["method", "retrained"]).constraint.transform("nunique")
    return rows[shares > 1] if (shares > 1).any() else rows


def _overview_caption(results: pd.DataFrame) -> str:
    experiments, profiles = results.experiment.unique(), " and ".join(results.profile.unique())
    fewest, most = (f"{count:,.0f}" for count in results.questions.agg(["min", "max"]))
    samples = " or ".join(dict.fromkeys(spec_of(experiment).samples for experiment in experiments))
    text = f"Score against what is kept of the {len(experiments)} experiments, search by sum of importance"
    left_out = "Methods that were run at one share alone are in the figures by experiment."
    dip = (
        "From some share on the published schedule retrains on a tenth of the data and no whole layer: curves may dip."
    )
    return f"{text} ({profiles} profile, {fewest} to {most} {samples} each); {lines_note(results)} {left_out} {dip}"


@figure(
    "overview",
    needs=("results",),
    heading="Scores of all experiments",
    caption=_overview_caption,
    when=lambda results: results.experiment.nunique() > 1,
)
def overview(results: pd.DataFrame) -> Figure:
    """The curves of all experiments side by side, searched by sum of importance: `accuracy` in small, on one scale.
    Left out is what was run at one share alone, where others were run at more."""
    curves = {experiment: scores(results, experiment) for experiment in results.experiment.unique()}
    curves = {name: (score, _curves(rows[rows.heuristic == "sum"])) for name, (score, rows) in curves.items()}
    height = 1 + (len(curves) > 5)
    figure = Figure((DOUBLE, 0.6 + 1.8 * height), layout="constrained")
    panels = figure.subplots(height, math.ceil(len(curves) / height), sharey=True, squeeze=False)
    for panel in panels.flat[len(curves) :]:
        panel.remove()
    for panel, (experiment, (unpruned, rows)) in zip(panels.flat, curves.items(), strict=False):
        draw_curves(panel, rows, unpruned, markersize=3)
        panel.set(title=title(experiment), xlim=(10, 95), xticks=(20, 40, 60, 80), ylim=(0, 100))
        what, *unit = kept_axis(experiment).rsplit(" ", 3)
        panel.set_xlabel(f"{what}\n{' '.join(unit)}")
    metrics = dict.fromkeys(spec_of(experiment).score.rsplit(" ", 1)[-1] for experiment in curves)
    for panel in panels[:, 0]:
        panel.set_ylabel(sentence(f"{' or '.join(metrics)} (%)"))
    handles = method_handles(pd.concat([rows for _, rows in curves.values()]))
    handles += [handle(False, "Pruned"), handle(False, "Refitted", True), handle(True, "Retrained")]
    handles.append(Line2D([], [], **REFERENCE, label="Unpruned"))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 5), handlelength=DASHES)
    return figure


def _accuracy_caption(results: pd.DataFrame, experiment: str, **options) -> str:
    _, pruned = scores(results, experiment)
    against = f"{score_label(experiment)} against {spec_of(experiment).kept} (%), search by sum of importance"
    return f"{about(results, experiment)}: {against}; {lines_note(pruned[pruned.heuristic == 'sum'])}"


@figure(
    "accuracy_{experiment}",
    needs=("results",),
    heading="Score against the constraint",
    caption=_accuracy_caption,
    when=lambda results, experiment: (scores(results, experiment)[1].heuristic == "sum").any(),
)
def accuracy(results: pd.DataFrame, experiment: str, heuristic: str = "sum") -> Figure:
    """Score (%) against what is kept (%): a line per method, dashed and hollow before retraining, solid and filled
    after.

    Lines are means over seeds, bars reach from the lowest to the highest seed; the dotted line is the unpruned model.
    The right panel enlarges the scores after retraining, which lie close together. Raises `ValueError` naming the
    table's missing column, experiment or odd value.
    """
    unpruned, pruned = scores(results, experiment)
    pruned = select(pruned, "results", heuristic=heuristic)
    enlarge = pruned.retrained.any() and not pruned.retrained.all()
    figure = Figure((DOUBLE if enlarge else SINGLE, 2.7), layout="constrained")
    panels = figure.subplots(1, 1 + enlarge, squeeze=False)[0]
    draw_curves(panels[0], pruned, unpruned)
    panels[0].set_ylabel(score_label(experiment))
    if enlarge:
        name = spec_of(experiment).retraining
        panels[0].set_title(f"Before and after {name}")
        draw_curves(panels[1], pruned[pruned.retrained], unpruned)
        panels[1].set_title(f"After {name}, enlarged")
    low, high = 100 * pruned.fraction.min(), 100 * pruned.fraction.max()
    margin = max(3, (20 - (high - low)) / 2)  # so that a single constraint is not blown up
    for panel in panels:
        panel.set(xlabel=kept_axis(experiment), xlim=(low - margin, high + margin))
        panel.xaxis.set_major_locator(MultipleLocator(10))
    handles = [*method_handles(pruned), *stage_handles(pruned, experiment, unpruned)]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=min(len(handles), 5 if enlarge else 3), handlelength=DASHES
    )
    return figure


def _score_tables(results: pd.DataFrame, experiment: str) -> Mapping[str, dict]:
    """By either search, where there; the one by sum for every metric that the experiment wants tabulated."""
    _, pruned = scores(results, experiment)
    by_sum = results[(results.experiment == experiment) & (results.heuristic == "sum")]
    metrics = [name for name in spec_of(experiment).tabulated if by_sum[name].notna().any()]
    options = {"" if name == "score" else name: {"metric": name} for name in metrics}
    return {
        suffix: {"heuristic": heuristic} | extra
        for heuristic in HEURISTICS
        if (pruned.heuristic == heuristic).any()
        for suffix, extra in (options if heuristic == "sum" else {heuristic: {}}).items()
    }


def _score_caption(results: pd.DataFrame, experiment: str, heuristic: str, metric: str = "score") -> str:
    _, pruned = scores(results, experiment)
    kept = by = spec_of(experiment).kept
    if heuristic != "sum":
        by = f"percentile of importance removed, and the share of {kept} in brackets"
    several = pruned[pruned.heuristic == heuristic].seed.nunique() > 1
    spread = " Mean ± standard deviation over seeds." if several else ""
    search = f"search by {HEURISTICS[heuristic].lower()}.{spread}"
    return f"{about(results, experiment)}: {score_label(experiment, metric)} by {by}, {search}"


@table("table_{experiment}", needs=("results",), heading="Scores", caption=_score_caption, variants=_score_tables)
def score_table(results: pd.DataFrame, experiment: str, heuristic: str = "sum", metric: str = "score") -> pd.DataFrame:
    """The scores in per cent: a row per method, pruned and retrained, a column per constraint (or percentile removed).

    Cells are `mean ± standard deviation` over seeds (n − 1 in the denominator), the mean alone for one seed. Where
    the share kept is more than a point off the column's, it follows: `79.1 (at 63 %)`. `metric` is a column of
    results.csv.
    """
    unpruned, pruned = scores(results, experiment, metric)
    pruned = select(pruned, "results", heuristic=heuristic)
    by_sum = heuristic == "sum"
    places = sorted(pruned["constraint" if by_sum else "percentile"].unique(), reverse=by_sum)
    columns = {place: f"{100 * place:g} %" if by_sum else f"{place:g} % removed" for place in places}
    table = {("Unpruned", "no"): {"100 %": f"{100 * unpruned:.1f}"}}
    for method in (name for name in METHODS if (pruned.method == name).any()):
        for retrained, rows in pruned[pruned.method == method].groupby("retrained"):
            cells = table[METHODS[method].label, "yes" if retrained else "no"] = {}
            for point in over_seeds(rows, metric).itertuples():
                off = not by_sum or abs(point.fraction - point.constraint) > 0.01
                place = columns[point.constraint if by_sum else point.percentile]
                cells[place] = mean_cell(point) + (f" (at {100 * point.fraction:.0f} %)" if off else "")
    names = ["Method", sentence(spec_of(experiment).retraining)]
    return text_table(table, names, ["100 %", *columns.values()])


def _with_both(results: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """The rows of the main of those methods that were searched by sum and by threshold; none if there is none."""
    _, rows = scores(results, experiment)
    both = rows[rows.groupby("method").heuristic.transform("nunique") == len(HEURISTICS)]
    return both[both.method == main_method(both, experiment)]


def _threshold_caption(results: pd.DataFrame, experiment: str) -> str:
    rows = _with_both(results, experiment)
    against = f"{score_label(experiment)} against {spec_of(experiment).kept} (%) by {in_words(rows.method.iloc[0])}"
    searched = "importance, searched by sum of importance and by threshold"
    return f"{about(results, experiment)}: {against} {searched}; {lines_note(rows)}"


@figure(
    "threshold_{experiment}",
    needs=("results",),
    heading="Search by threshold",
    caption=_threshold_caption,
    when=lambda results, experiment: len(_with_both(results, experiment)) > 0,
)
def threshold(results: pd.DataFrame, experiment: str, method: str | None = None) -> Figure:
    """Score (%) against the share really kept (%), searched by sum of importance and by threshold: means over seeds.

    method: by default the main one of those that were searched both ways.
    """
    unpruned, pruned = scores(results, experiment)
    rows = select(pruned, "results", method=method) if method else _with_both(results, experiment)
    rows = rows.assign(kept=share_kept(rows))
    figure = Figure((SINGLE, 2.7), layout="constrained")
    panel = figure.subplots()
    panel.axhline(100 * unpruned, **REFERENCE)
    handles = []
    for (heuristic, label), color, marker in zip(HEURISTICS.items(), (BLUE, ORANGE), "os", strict=True):
        for retrained, line in select(rows, "results", heuristic=heuristic).groupby("retrained"):
            draw_line(panel, line, "kept", filled=retrained, color=color, marker=marker)
        handles.append(Line2D([], [], color=color, marker=marker, label=label))
    handles += stage_handles(rows, experiment, unpruned)
    panel.set(xlabel=kept_axis(experiment), ylabel=score_label(experiment))
    panel.grid(True)
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def _unsearched(results: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """The rows of methods that give masks without a search, as these are."""
    _, rows = scores(results, experiment, variants=True)
    return rows[(rows.heuristic == "none") & plain(rows)]


def _unsearched_caption(results: pd.DataFrame, experiment: str) -> str:
    rows = _unsearched(results, experiment)
    methods = " and ".join(dict.fromkeys(in_words(method_label(method)).lower() for method in rows.method))
    against = f"{score_label(experiment)} against {spec_of(experiment).kept} (%) by {methods}, without a search"
    return f"{about(results, experiment)}: {against}, beside the experiment's own way; {lines_note(rows)}"


@figure(
    "unsearched_{experiment}",
    needs=("results",),
    heading="Masks without a search",
    caption=_unsearched_caption,
    when=lambda results, experiment: len(_unsearched(results, experiment)) > 0,
)
def unsearched(results: pd.DataFrame, experiment: str) -> Figure:
    """Score (%) against what is kept (%) by methods that give masks, such as sensitivity pruning, beside the
    experiment's own method searched by sum of importance: means over seeds."""
    unpruned, pruned = scores(results, experiment)
    own = pruned[(pruned.heuristic == "sum") & (pruned.method == main_method(pruned, experiment))]
    rows = _unsearched(results, experiment)
    figure = Figure((SINGLE, 2.7), layout="constrained")
    panel = figure.subplots()
    panel.axhline(100 * unpruned, **REFERENCE)
    every = pd.concat([own.assign(kept=share_kept(own)), rows.assign(kept=100 * rows.fraction)])
    for (method, retrained), line in every.groupby(["method", "retrained"]):
        _, color, marker = METHODS[method]
        joined = {"linestyle": ""} if method == "given" else {}
        draw_line(panel, line, "kept", filled=retrained, color=color, marker=marker, **joined)
    panel.set(xlabel=kept_axis(experiment), ylabel=score_label(experiment))
    panel.grid(True)
    handles = [*method_handles(every), *stage_handles(every, experiment, unpruned)]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


@table(
    "table_{experiment}_unsearched",
    needs=("results",),
    heading="Masks without a search",
    caption="{about}: scores (%) of masks without a search, such as sensitivity pruning by heads removed.",
    when=lambda results, experiment: len(_unsearched(results, experiment)) > 0,
)
def unsearched_table(results: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """The scores (%) of methods that give masks, means over seeds: a row per share kept, method, masks, and retrained
    or not."""
    rows, metrics = _unsearched(results, experiment), spec_of(experiment).metrics
    metrics = {column: label for column, label in metrics.items() if rows[column].notna().any()}
    table = {}
    order = rows.sort_values("fraction", ascending=False, kind="stable")
    for (method, variant, retrained), group in order.groupby(["method", "variant", "retrained"], sort=False):
        what = variant.replace("heads_removed=", "heads removed: ").removeprefix("masks=")
        place = f"{100 * group.fraction.mean():.1f} %", method_label(method), what, "yes" if retrained else "no"
        table[place] = {label: f"{100 * group[column].mean():.1f}" for column, label in metrics.items()}
    return text_table(table, ["Kept", "Method", "Masks", "Retrained"])


@styled
def retraining(log: pd.DataFrame) -> Figure:
    """Loss and gradient norm by iteration (columns `iteration`, `loss`, `grad_norm`), smoothed too."""
    figure = Figure(figsize=(DOUBLE, 2.0), layout="constrained")
    panels = figure.subplots(1, 2)
    width = max(1, len(log) // 20)
    for panel, column, label in zip(panels, ("loss", "grad_norm"), ("Loss", "Gradient norm"), strict=True):
        panel.plot(log.iteration, log[column], color="0.75", linewidth=0.7)
        smooth = log[column].rolling(width, center=True, min_periods=1).mean()
        panel.plot(log.iteration, smooth, color=BLUE)
        panel.set(xlabel="Iteration", ylabel=label, ylim=(0, None))
        panel.grid(True)
    return figure
