"""How alike methods rank heads and neurons: label-free against the others, and computed in other ways."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import spearmanr

from lfpr.paper.labels import BLUE, ORANGE, method_label, title
from lfpr.paper.registry import figure, table
from lfpr.paper.schema import check_once, select
from lfpr.paper.style import DOUBLE, RANGE, REFERENCE, SINGLE
from lfpr.paper.tables import number, text_table

KINDS = {"head": "Heads", "neuron": "Neurons"}


@figure(
    "ranks_{experiment}",
    needs=("importance",),
    heading="Label-free against labelled ranks",
    caption=("{spec.title}: ranks of heads and neurons by label-free and other importance; ρ: Spearman's correlation."),
    when=lambda importance, experiment: (
        {"label-free", "fisher"} <= set(importance.method[importance.experiment == experiment])
    ),
)
def rank_scatter(importance: pd.DataFrame, experiment: str, method: str = "label-free") -> Figure:
    """Ranks of heads and neurons (1: most important) by `method` against those by Fisher and by the released way of
    scoring without labels, where there; Spearman's correlation above."""
    rows = select(importance, "importance", experiment=experiment)
    others = ("fisher", "label-free (released)", "label-free")
    others = [name for name in others if name != method and (rows.method == name).any()]
    if not others:
        raise ValueError(f"importance.csv: {experiment} has no method to compare {method!r} with: expected 'fisher'")
    figure = Figure((SINGLE, 1.65) if len(others) == 1 else (DOUBLE, 1.8), layout="constrained")
    panels = iter(figure.subplots(1, 2 * len(others), squeeze=False)[0])
    for other in others:
        for kind, name in KINDS.items():
            panel = next(panels)
            pair = side_by_side(importance, experiment, (method, other), kind).rank(ascending=False)
            many = len(pair) > 500
            points = {"color": BLUE, "ms": 1.5 if many else 4, "mew": 0, "alpha": 0.5, "rasterized": many}
            panel.plot(pair[method], pair[other], ".", **points)
            panel.plot([1, len(pair)], [1, len(pair)], **REFERENCE)
            panel.set(title=f"{name}: ρ = {number(spearman(pair), '.2f')}", aspect="equal")
            panel.set(xlabel=f"{method_label(method)} rank")
            panel.set(ylabel=f"{method_label(other)} rank".replace(" (", "\n("))
            ticks = [1, len(pair) // 2, len(pair)]
            panel.set(xticks=ticks, yticks=ticks)
    return figure


@figure(
    "scoring",
    needs=("scoring",),
    heading="Label-free importance, computed in other ways",
    caption=(
        "The default label-free ranking (evaluation mode, a gradient per question) against others: as released "
        "(dropout, a gradient per batch of 8), in batches of 8 without dropout, and of another sample."
    ),
)
def scoring(rows: pd.DataFrame) -> Figure:
    """The default label-free ranking against other ways to compute it, a row per experiment and way: Spearman's
    correlation, and of the heads and neurons that either search keeps the share (%) that both do.

    The table is that of `lfpr.paper.agreement.scoring_agreement`; points are means over seeds, bars reach from the
    lowest to the highest.
    """
    rows = select(rows, "scoring")
    check_once(rows, "scoring", ["experiment", "seed", "with", "constraint", "kind"])
    rows["way"] = rows.experiment.map(title) + ": " + rows["with"]
    rows["percent"] = 100 * rows.overlap
    kept = " and ".join(f"{100 * constraint:g} %" for constraint in sorted(rows.constraint.unique()))
    colors, markers = dict(zip(KINDS, (BLUE, ORANGE), strict=True)), ["o", "s"]
    looks = {"y": "way", "hue": "kind", "hue_order": list(KINDS), "palette": colors, "markers": markers}
    looks |= {"linestyles": "none", "errorbar": RANGE, "legend": False, "markersize": 4, "markeredgewidth": 1}
    looks |= {"dodge": 0.3, "clip_on": False}  # so that each marker is seen, and whole
    figure = Figure((DOUBLE, 0.85 + 0.19 * rows.way.nunique()), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, column in zip(panels, ("spearman", "percent"), strict=True):
        sns.pointplot(rows, x=column, err_kws={"linewidth": 0.8}, ax=panel, **looks)
        panel.set(ylabel="")
        panel.grid(True, axis="both")
        low, high = rows[column].min(), rows[column].max()
        panel.margins(x=0.1 if high - low > 0.02 * high else 0.5)
    panels[0].set(xlabel="Spearman's rank correlation")
    panels[1].set(xlabel=f"Kept by both, of those kept by either (%), at {kept}")
    handles = [
        Line2D([], [], color=colors[kind], marker=marker, linestyle="", label=KINDS[kind])
        for kind, marker in zip(KINDS, markers, strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


@table(
    "table_agreement",
    needs=("importance",),
    heading="Agreement of label-free and labelled importance",
    caption=(
        "How alike the methods rank heads and neurons: Spearman's correlation with label-free importance, and how many "
        "of the top 40 % they have in common (by chance 40 %)."
    ),
    when=lambda importance: (importance.groupby("experiment").method.nunique() > 1).any(),
)
def agreement(importance: pd.DataFrame, method: str = "label-free", share: float = 0.4) -> pd.DataFrame:
    """How alike the methods rank: Spearman's correlation with `method`, and how much of the top `share` they share.

    A row per experiment and other method, columns for heads and for neurons of all layers. By chance, two rankings
    correlate by 0 and have `share` of their tops in common.
    """
    table = {}
    for experiment in importance.experiment.unique():
        rows = select(importance, "importance", experiment=experiment)
        for other in (name for name in rows.method.unique() if name != method):
            pairs = {name: side_by_side(importance, experiment, (method, other), kind) for kind, name in KINDS.items()}
            table[title(experiment), method_label(other)] = {
                f"{name}: Spearman": number(spearman(pair), ".2f") for name, pair in pairs.items()
            } | {
                f"{name}: top {100 * share:g} % in common": f"{100 * in_common(pair, share):.0f} %"
                for name, pair in pairs.items()
            }
    if not table:
        raise ValueError(f"importance.csv: no method beside {method!r} in any experiment")
    return text_table(table, ["Experiment", f"{method_label(method)} against"])


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
    return float(spearmanr(pair).statistic)


def in_common(pair: pd.DataFrame, share: float) -> float:
    """The part of one column's largest values that are among the other's; of equal ones, the first rank first."""
    count = max(1, round(share * len(pair)))
    first, second = (set(pair[name].rank(ascending=False, method="first").nsmallest(count).index) for name in pair)
    return len(first & second) / count
