"""How alike rankings of heads and neurons are: label-free against the other scores, and against the published way.

Functions of the tidy tables importance.csv and scoring.csv (columns in `lfpr.paper.tables`).
"""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lfpr.paper.comparisons import BLUE, ORANGE
from lfpr.paper.figures import DOUBLE, SINGLE, STYLE
from lfpr.paper.tables import check_once, method_label, select, title


def agreement(importance: pd.DataFrame, method: str = "label-free", share: float = 0.4) -> pd.DataFrame:
    """How alike the methods rank: Spearman's correlation with `method`, and how much of the top `share` they share.

    A row per experiment and other method, columns for heads and for neurons of all layers. By chance, two rankings
    correlate by 0 and have `share` of their tops in common.
    """
    table = {}
    for experiment in importance.experiment.unique():
        rows = select(importance, "importance", experiment=experiment)
        for other in (name for name in rows.method.unique() if name != method):
            both = {kind: side_by_side(importance, experiment, (method, other), kind) for kind in ("head", "neuron")}
            alike = {f"{kind.capitalize()}s: Spearman": f"{spearman(pair):.2f}" for kind, pair in both.items()}
            top = f"top {100 * share:g} % in common"
            alike |= {f"{k.capitalize()}s: {top}": f"{100 * in_common(pair, share):.0f} %" for k, pair in both.items()}
            table[title(experiment), method_label(other)] = alike
    if not table:
        raise ValueError(f"importance.csv: no method beside {method!r} in any experiment")
    frame = pd.DataFrame.from_dict(table, orient="index")
    frame.index = pd.MultiIndex.from_tuples(table, names=["Experiment", f"{method_label(method)} against"])
    return frame.replace("-0.00", "0.00").replace("^-", "−", regex=True)


def rank_scatter(importance: pd.DataFrame, experiment: str, method: str = "label-free") -> Figure:
    """Ranks of heads and neurons (1: most important) by `method` against those by Fisher and by the published way of
    scoring without labels, where there; Spearman's correlation above."""
    rows = select(importance, "importance", experiment=experiment)
    others = [name for name in ("fisher", "label-free (published)", "label-free") if (rows.method == name).any()]
    others = [name for name in others if name != method]
    if not others:
        raise ValueError(f"importance.csv: {experiment} has no method to compare {method!r} with: expected 'fisher'")
    with matplotlib.rc_context(STYLE):
        figure = Figure((SINGLE, 1.65) if len(others) == 1 else (DOUBLE, 1.8), layout="constrained")
        panels = iter(figure.subplots(1, 2 * len(others), squeeze=False)[0])
        for other in others:
            for kind in ("head", "neuron"):
                panel = next(panels)
                pair = side_by_side(importance, experiment, (method, other), kind).rank(ascending=False)
                small = len(pair) > 500
                panel.plot(pair[method], pair[other], ".", color=BLUE, ms=1.5 if small else 4, mew=0, alpha=0.5,
                           rasterized=small)  # fmt: skip
                panel.plot([1, len(pair)], [1, len(pair)], color="0.3", linewidth=0.8, linestyle=":")
                panel.set(title=f"{kind.capitalize()}s: ρ = {spearman(pair):.2f}".replace("-", "−"), aspect="equal")
                panel.set(xlabel=f"{method_label(method)} rank")
                panel.set(ylabel=f"{method_label(other)} rank".replace(" (", "\n("))
                ticks = [1, len(pair) // 2, len(pair)]
                panel.set(xticks=ticks, yticks=ticks)
    return figure


def scoring(rows: pd.DataFrame) -> Figure:
    """The default label-free ranking against other ways to compute it, a row per experiment and way: Spearman's
    correlation, and of the heads and neurons that either search keeps the share (%) that both do.

    The table is that of `lfpr.paper.agreement.scoring_agreement`; several seeds are averaged.
    """
    rows = select(rows, "scoring")
    check_once(rows, "scoring", ["experiment", "seed", "with", "constraint", "kind"])
    places = list(dict.fromkeys(zip(rows.experiment, rows["with"], strict=True)))
    means = rows.groupby(["experiment", "with", "kind"])[["spearman", "overlap"]].mean()
    kinds = {"head": ("Heads", BLUE, "o"), "neuron": ("Neurons", ORANGE, "s")}
    kept = " and ".join(f"{100 * constraint:g} %" for constraint in sorted(rows.constraint.unique()))
    with matplotlib.rc_context(STYLE):
        figure = Figure((DOUBLE, 0.85 + 0.19 * len(places)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for kind, (_, color, marker) in kinds.items():
            found = means.xs(kind, level="kind").reindex(places)
            panels[0].plot(found.spearman, range(len(places)), marker, color=color)
            panels[1].plot(100 * found.overlap, range(len(places)), marker, color=color)
        panels[0].set(xlabel="Spearman's rank correlation", xlim=(min(0, means.spearman.min()), 1.03))
        panels[1].set(xlabel=f"Kept by both, of those kept by either (%), at {kept}", xlim=(0, 103))
        panels[0].set_yticks(range(len(places)), [f"{title(experiment)}: {way}" for experiment, way in places])
        panels[0].invert_yaxis()
        for panel in panels:
            panel.grid(True)
        handles = [Line2D([], [], color=color, marker=m, linestyle="", label=name) for name, color, m in kinds.values()]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def side_by_side(importance: pd.DataFrame, experiment: str, methods: tuple[str, str], kind: str) -> pd.DataFrame:
    """Importance of all heads or neurons, a row each, a column per method. Raises `ValueError` unless they match."""
    columns = {}
    for method in methods:
        rows = select(importance, "importance", experiment=experiment, method=method, kind=kind)
        check_once(rows, "importance", ["layer", "index"])
        columns[method] = rows.set_index(["layer", "index"]).importance
    pair = pd.DataFrame(columns)
    if pair.isna().any(axis=None):
        raise ValueError(f"importance.csv: {experiment}: {methods[0]} and {methods[1]} do not score the same {kind}s")
    return pair


def spearman(pair: pd.DataFrame) -> float:
    """The rank correlation of two columns; equal values share their mean rank."""
    return float(pair.rank().corr().iloc[0, 1])


def in_common(pair: pd.DataFrame, share: float) -> float:
    """The part of one column's largest values that are among the other's; of equal ones, the first rank first."""
    count = max(1, round(share * len(pair)))
    first, second = (set(pair[name].rank(ascending=False, method="first").nsmallest(count).index) for name in pair)
    return len(first & second) / count
