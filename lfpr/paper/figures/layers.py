"""What happens within a model: heads and neurons kept, their importance, and mask values, layer by layer."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lfpr.paper.labels import kept_axis, layer_axis, layer_names, spec_of
from lfpr.paper.registry import figure
from lfpr.paper.schema import check_once, main_method, select
from lfpr.paper.style import DOUBLE, REFERENCE, draw_boxes, heat_map, shades


def _main(rows: pd.DataFrame, experiment: str) -> str:
    return main_method(rows[rows.experiment == experiment], experiment)


@figure(
    "kept_{experiment}",
    needs=("layers",),
    heading="Heads and neurons kept in each layer",
    caption="{spec.title}: heads and neurons kept in each layer by {method} importance, seed 0.",
)
def kept_per_layer(
    layers: pd.DataFrame, experiment: str, method: str | None = None, seed: int = 0, heuristic: str = "sum"
) -> Figure:
    """Heads and neurons kept in each layer (columns) at each constraint, or percentile of searches by threshold (rows):
    counts, shaded by the share kept. method: None for the main one."""
    method = method or _main(layers, experiment)
    rows = select(layers, "layers", experiment=experiment, method=method, heuristic=heuristic, seed=seed)
    by = "constraint" if heuristic == "sum" else "percentile"
    check_once(rows, "layers", [by, "layer"])
    figure = Figure((DOUBLE, 0.9 + 0.24 * rows[by].nunique()), layout="constrained")
    panels = figure.subplots(1, 2)
    names = layer_names(rows.layer.nunique(), rows.layer[rows.neurons.notna()].nunique())
    for panel, kind in zip(panels, ("heads", "neurons"), strict=True):
        there = rows[rows[kind].notna()]  # no FFN is beside a cross-attention
        kept, full = (there.pivot(index=by, columns="layer", values=name)[::-1] for name in (kind, f"full_{kind}"))
        shares = heat_map(panel, 100 * kept / full, kept.map("{:.0f}".format), "Blues", (0, 100))
        panel.set_yticks(panel.get_yticks(), [f"{key if by == 'percentile' else 100 * key:g}" for key in kept.index])
        panel.set_xticks(panel.get_xticks(), names[: kept.shape[1]])
        panel.set(xlabel=layer_axis(names), ylabel="", title=f"{kind.capitalize()} kept (of {full.max(axis=None):.0f})")
    *first, last, unit = kept_axis(experiment).split(" ")
    panels[0].set_ylabel(f"{' '.join(first)}\n{last} {unit}" if by == "constraint" else "Percentile\nremoved (%)")
    figure.colorbar(shares, ax=panels, label="Share kept (%)", pad=0.01, aspect=12)
    return figure


@figure(
    "importance_{experiment}",
    needs=("importance",),
    heading="Importance of heads and neurons",
    caption="{spec.title}: {method} importance of heads (left) and, sorted in each layer, of neurons (right).",
)
def importance_map(
    importance: pd.DataFrame, experiment: str, method: str | None = None, annotate: bool = True
) -> Figure:
    """log10 of the importance: of every head [A, H] as a heat map, of the neurons sorted within each layer as curves.

    A head of importance 0 is a grey cell marked 0; a curve ends where the rest of its layer has importance 0.
    """
    method = method or _main(importance, experiment)
    rows = select(importance, "importance", experiment=experiment, method=method)
    check_once(rows, "importance", ["kind", "layer", "index"])
    if not (rows.importance >= 0).all():
        odd = rows.importance[~(rows.importance >= 0)].iloc[0]
        raise ValueError(f"importance.csv: importance = {odd} ({experiment}, {method}): must be a number of at least 0")
    rows["log"] = np.log10(rows.importance.where(rows.importance > 0))  # NaN where there is no logarithm
    heads = select(rows, "importance", kind="head").pivot(index="layer", columns="index", values="log")
    neurons = select(rows, "importance", kind="neuron")
    rank = neurons.groupby("layer").log.rank(ascending=False, method="first")
    names = layer_names(len(heads), neurons.layer.nunique())
    neurons = neurons.assign(rank=rank, layer=neurons.layer.map(dict(enumerate(names)))).dropna(subset="log")
    text = heads.map(lambda value: "0" if np.isnan(value) else f"{value:z.1f}".replace("-", "−"))
    figure = Figure((DOUBLE, max(2.3, 0.7 + 0.2 * len(heads))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    cells = heat_map(left, heads, text if annotate else None, "viridis")
    left.set_yticks(left.get_yticks(), names, rotation=0)
    left.set(xlabel="Head", ylabel=layer_axis(names), title="Heads")
    figure.colorbar(cells, ax=left, label="log$_{10}$ importance", pad=0.01)
    ffns = names[: rows.layer[rows.kind == "neuron"].nunique()]
    palette = dict(zip(ffns, matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(ffns))), strict=True))
    if len(neurons):
        lines = {"hue": "layer", "hue_order": ffns, "palette": palette, "legend": "full", "errorbar": None}
        sns.lineplot(neurons, x="rank", y="log", ax=right, **lines)
        sns.move_legend(right, "center left", bbox_to_anchor=(1, 0.5), title="Layer")
    right.grid(True)
    right.set(xlabel="Rank of the neuron in its layer", ylabel="log$_{10}$ importance", title="Neurons")
    return figure


@figure(
    "mask_values_{experiment}",
    needs=("mask_values",),
    heading="Mask values after retraining",
    caption="{spec.title}: mask values after {spec.retraining}, {method} importance, seed 0.",
)
def mask_values(values: pd.DataFrame, experiment: str, method: str | None = None, seed: int = 0) -> Figure:
    """Mask values after retraining in each layer, coloured by constraint: a point per head, a box per layer's neurons.

    Boxes span the quartiles, whiskers all values; the dotted line is 1, the value before retraining.
    """
    method = method or _main(values, experiment)
    rows = select(values, "mask_values", experiment=experiment, method=method, seed=seed)
    rows = rows[rows.constraint.notna()]  # searches by threshold have none
    constraints, layers = sorted(rows.constraint.unique()), sorted(rows.layer.unique())
    names = layer_names(len(layers), rows.layer[rows.kind == "neuron"].nunique())
    groups = {"x": "layer", "y": "value", "hue": "constraint", "hue_order": constraints, "order": layers}
    groups |= {"palette": shades(len(constraints)), "dodge": True}
    figure = Figure((DOUBLE, 3.4), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for panel, kind in zip(panels, ("head", "neuron"), strict=True):
        of_kind = select(rows, "mask_values", kind=kind)
        if kind == "head":
            sns.stripplot(of_kind, jitter=False, size=2.6, alpha=0.8, legend=False, ax=panel, **groups)
        else:
            draw_boxes(panel, of_kind, width=0.84, gap=0.3, linecolor="0.25", **groups)
        panel.axhline(1, **REFERENCE, zorder=0)
        for border in np.arange(len(layers) - 1) + 0.5:
            panel.axvline(border, color="0.9", linewidth=0.5, zorder=0)
        panel.set(xlabel="", ylabel=f"Mask value of {kind}s", xlim=(-0.5, len(layers) - 0.5))
        panel.set_xticks(range(len(layers)), names)
        panel.tick_params(axis="x", length=0)
    panels[1].set_xlabel(layer_axis(names))
    if len(constraints) == 1:
        panels[0].set_title(f"{100 * constraints[0]:g} % of {spec_of(experiment).kept}")
        return figure
    handles = [Patch(color=c, label=f"{100 * n:g}") for c, n in zip(groups["palette"], constraints, strict=True)]
    label = "\n".join(kept_axis(experiment).rsplit(" ", 1)[0].split(" "))
    figure.legend(handles=handles, loc="outside right center", title=f"{label} (%)")
    return figure
