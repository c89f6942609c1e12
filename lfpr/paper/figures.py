"""The main figures of the paper, drawn from the tidy tables in `paper_figures/`.

A figure is a function of a table and an experiment's name and returns a matplotlib `Figure`; nothing goes through
pyplot, so no state is shared and no display is needed. `save` writes files that are the same bytes for the same
numbers. Their style is in `lfpr.mplstyle`; the tables and their columns are listed in `lfpr.paper.tables`. More figures
are in `lfpr.paper.comparisons` and `lfpr.paper.clip_figures`; `lfpr.paper.write` draws everything.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MultipleLocator
from PIL import Image

from lfpr.paper.tables import (
    METHODS,
    check_once,
    kept_label,
    over_seeds,
    retraining_name,
    score_label,
    scores,
    select,
    sentence,
    title,
    write_file,
)

__all__ = [
    "accuracy_against_parameters",
    "importance_map",
    "kept_per_layer",
    "mask_values",
    "overview",
    "retraining",
    "save",
]

STYLE = matplotlib.rc_params_from_file(Path(__file__).with_name("lfpr.mplstyle"), use_default_template=False)
DASHED = (0, (3, 1.5))
SINGLE, DOUBLE = 3.5, 7.2  # width in inches of one and of two columns
BOX = ("smallest", "lower", "median", "upper", "largest")  # what a box shows


def accuracy_against_parameters(results: pd.DataFrame, experiment: str, heuristic: str = "sum") -> Figure:
    """Score (%) against parameters (CLIP: MACs) kept (%): a line per method, dashed and hollow before retraining, solid
    and filled after.

    Lines are means over seeds, bars reach from the lowest to the highest seed; the dotted line is the unpruned model.
    The right panel enlarges the scores after retraining, which lie close together. Raises `ValueError` naming the
    table's missing column, experiment or odd value.
    """
    unpruned, pruned = scores(results, experiment)
    pruned = select(pruned, "results", heuristic=heuristic)
    enlarge = pruned.retrained.any() and not pruned.retrained.all()
    with matplotlib.rc_context(STYLE):
        figure = Figure((DOUBLE if enlarge else SINGLE, 2.7), layout="constrained")
        panels = figure.subplots(1, 1 + enlarge, squeeze=False)[0]
        _lines(panels[0], pruned, unpruned)
        panels[0].set_ylabel(score_label(experiment))
        if enlarge:
            name = retraining_name(experiment)
            panels[0].set_title(f"Before and after {name}")
            _lines(panels[1], pruned[pruned.retrained], unpruned)
            panels[1].set_title(f"After {name}, enlarged")
        low, high = 100 * pruned.fraction.min(), 100 * pruned.fraction.max()
        margin = max(3, (20 - (high - low)) / 2)  # so that a single constraint is not blown up
        for panel in panels:
            panel.set(xlabel=f"{sentence(kept_label(experiment))} (%)", xlim=(low - margin, high + margin))
            panel.xaxis.set_major_locator(MultipleLocator(10))
        handles = [*_methods(pruned), *before_and_after(pruned, experiment)]
        handles.append(Line2D([], [], color="0.3", linestyle=":", label=f"Unpruned ({100 * unpruned:.1f} %)"))
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 6 if enlarge else 3))
    return figure


def overview(results: pd.DataFrame) -> Figure:
    """The curves of all experiments side by side, searched by sum of importance: `accuracy_against_parameters` in
    small, with one scale."""
    found = {experiment: scores(results, experiment) for experiment in results.experiment.unique()}
    found = {experiment: (score, rows[rows.heuristic == "sum"]) for experiment, (score, rows) in found.items()}
    with matplotlib.rc_context(STYLE):
        figure = Figure((DOUBLE, 2.4), layout="constrained")
        panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
        for panel, (experiment, (unpruned, rows)) in zip(panels, found.items(), strict=True):
            _lines(panel, rows, unpruned, markersize=3)
            panel.set(title=title(experiment), xlim=(10, 95), xticks=(20, 40, 60, 80), ylim=(0, 100))
            what, *unit = sentence(f"{kept_label(experiment)} (%)").rsplit(" ", 3)
            panel.set_xlabel(f"{what}\n{' '.join(unit)}")
        panels[0].set_ylabel("Accuracy or Recall@1 (%)")
        every = pd.concat([rows for _, rows in found.values()])
        handles = _methods(every)
        handles += [_handle(False, "Pruned"), _handle(True, "Retrained")]
        handles.append(Line2D([], [], color="0.3", linestyle=":", label="Unpruned"))
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 6))
    return figure


def kept_per_layer(
    layers: pd.DataFrame, experiment: str, method: str = "label-free", seed: int = 0, heuristic: str = "sum"
) -> Figure:
    """Heads and neurons kept in each layer (columns) at each constraint, or percentile of searches by threshold (rows):
    counts, shaded by the share kept."""
    rows = select(layers, "layers", experiment=experiment, method=method, heuristic=heuristic, seed=seed)
    by = "constraint" if heuristic == "sum" else "percentile"
    check_once(rows, "layers", [by, "layer"])
    with matplotlib.rc_context(STYLE):
        figure = Figure((DOUBLE, 0.9 + 0.24 * rows[by].nunique()), layout="constrained")
        panels = figure.subplots(1, 2)
        for panel, kind in zip(panels, ("heads", "neurons"), strict=True):
            kept = rows.pivot(index=by, columns="layer", values=kind)
            full = rows.pivot(index=by, columns="layer", values=f"full_{kind}")
            shares = _heat_map(panel, 100 * kept / full, kept.map("{:.0f}".format), "Blues", (0, 100))
            panel.set_yticks(
                panel.get_yticks(), [f"{key if by == 'percentile' else 100 * key:g}" for key in kept.index]
            )
            panel.set(xlabel="Layer", title=f"{kind.capitalize()} kept (of {full.max(axis=None):.0f})")
        first, last = sentence(kept_label(experiment)).rsplit(" ", 1)
        panels[0].set_ylabel(f"{first}\n{last} (%)" if by == "constraint" else "Percentile\nremoved (%)")
        figure.colorbar(shares, ax=panels, label="Share kept (%)", pad=0.01, aspect=12)
    return figure


def importance_map(
    importance: pd.DataFrame, experiment: str, method: str = "label-free", annotate: bool = True
) -> Figure:
    """log10 of the importance: of every head [L, H] as a heat map, of the neurons sorted within each layer as curves.

    A head of importance 0 is a grey cell marked 0; a curve ends where the rest of its layer has importance 0.
    """
    rows = select(importance, "importance", experiment=experiment, method=method)
    check_once(rows, "importance", ["kind", "layer", "index"])
    if not (rows.importance >= 0).all():
        odd = rows.importance[~(rows.importance >= 0)].iloc[0]
        raise ValueError(f"importance.csv: importance = {odd} ({experiment}, {method}): must be a number of at least 0")
    rows["log"] = np.log10(rows.importance.where(rows.importance > 0))  # NaN where there is no logarithm
    heads = select(rows, "importance", kind="head").pivot(index="layer", columns="index", values="log")
    neurons = select(rows, "importance", kind="neuron").groupby("layer").log
    text = heads.map(lambda value: "0" if np.isnan(value) else f"{value:z.1f}".replace("-", "−"))
    with matplotlib.rc_context(STYLE):
        figure = Figure((DOUBLE, max(2.3, 0.7 + 0.2 * len(heads))), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
        cells = _heat_map(left, heads, text if annotate else None, "viridis")
        left.set_yticks(left.get_yticks(), [layer + 1 for layer in heads.index])
        left.set(xlabel="Head", ylabel="Layer", title="Heads")
        left.invert_yaxis()
        figure.colorbar(cells, ax=left, label="log$_{10}$ importance", pad=0.01)
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(neurons)))
        for shade, (layer, values) in zip(shades, neurons, strict=True):
            curve = values.dropna().sort_values(ascending=False).to_numpy()
            right.plot(np.arange(1, len(curve) + 1), curve, color=shade, label=layer + 1)
        right.grid(True)
        right.set(xlabel="Rank of the neuron in its layer", ylabel="log$_{10}$ importance", title="Neurons")
        right.legend(title="Layer", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def mask_values(values: pd.DataFrame, experiment: str, method: str = "label-free", seed: int = 0) -> Figure:
    """Mask values after retraining in each layer, coloured by constraint: a point per head, a box per layer's neurons.

    Boxes span the quartiles, whiskers all values; the dotted line is 1, the value before retraining.
    """
    rows = select(values, "mask_values", experiment=experiment, method=method, seed=seed)
    rows = rows[rows.constraint.notna()]  # searches by threshold have none
    constraints, layers = sorted(rows.constraint.unique()), sorted(rows.layer.unique())
    colors = shades(len(constraints))
    step = 0.84 / len(constraints)
    with matplotlib.rc_context(STYLE):
        figure = Figure((DOUBLE, 3.4), layout="constrained")
        panels = figure.subplots(2, 1, sharex=True)
        for panel, kind in zip(panels, ("head", "neuron"), strict=True):
            groups = select(rows, "mask_values", kind=kind).groupby(["constraint", "layer"]).value
            for (constraint, layer), group in groups:
                place = constraints.index(constraint)
                x = layers.index(layer) - 0.42 + step * (place + 0.5)
                if kind == "head":
                    panel.plot(np.full(len(group), x), group, ".", color=colors[place], markersize=5, alpha=0.8, mew=0)
                else:
                    draw_box(panel, x, five_numbers(group), 0.7 * step, colors[place])
            panel.axhline(1, color="0.3", linewidth=0.8, linestyle=":", zorder=0)
            for border in np.arange(len(layers) - 1) + 0.5:
                panel.axvline(border, color="0.9", linewidth=0.5, zorder=0)
            panel.set(ylabel=f"Mask value of {kind}s", xlim=(-0.5, len(layers) - 0.5))
            panel.set_xticks(range(len(layers)), [layer + 1 for layer in layers])
            panel.tick_params(axis="x", length=0)
        panels[1].set_xlabel("Layer")
        names = [Patch(color=color, label=f"{100 * c:g}") for color, c in zip(colors, constraints, strict=True)]
        label = sentence(kept_label(experiment)).replace(" ", "\n")
        figure.legend(handles=names, loc="outside right center", title=f"{label} (%)")
    return figure


def retraining(log: pd.DataFrame) -> Figure:
    """Loss and gradient norm by iteration (columns `iteration`, `loss`, `grad_norm`), smoothed too."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(DOUBLE, 2.0), layout="constrained")
        panels = figure.subplots(1, 2)
        width = max(1, len(log) // 20)
        for panel, column, label in zip(panels, ("loss", "grad_norm"), ("Loss", "Gradient norm"), strict=True):
            panel.plot(log.iteration, log[column], color="0.75", linewidth=0.7)
            smooth = log[column].rolling(width, center=True, min_periods=1).mean()
            panel.plot(log.iteration, smooth, color=METHODS["label-free"][1])
            panel.set(xlabel="Iteration", ylabel=label, ylim=(0, None))
            panel.grid(True)
    return figure


def save(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write `name.pdf` and `name.png` (200 dpi, 256 colours: a third of the bytes), each atomically; equal figures
    give equal bytes."""
    vector, pixels, small = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(vector, format="pdf", metadata={"CreationDate": None})
        figure.savefig(pixels, format="png", dpi=200)
    picture = Image.open(pixels).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(small, "png", optimize=True, dpi=(200, 200))
    contents = {"pdf": vector.getvalue(), "png": small.getvalue()}
    return [write_file(Path(folder) / f"{name}.{kind}", content) for kind, content in contents.items()]


def draw_points(panel, rows: pd.DataFrame, color: str, marker: str, retrained: bool, **style) -> None:
    """Means over seeds against the mean share kept, in per cent, with bars from the lowest to the highest seed."""
    points = over_seeds(rows).sort_values("fraction")
    mean, low, high = (100 * points[name] for name in ("mean", "min", "max"))
    panel.errorbar(
        *(100 * points.fraction, mean, [mean - low, high - mean]),
        **dict(color=color, marker=marker, mfc=color if retrained else "white", elinewidth=0.8, capsize=1.5),
        **dict(linestyle="-" if retrained else DASHED) | style,
    )


def before_and_after(rows: pd.DataFrame, experiment: str) -> list[Line2D]:
    """What dashed and solid lines stand for, where `rows` have them."""
    labels = {False: "Pruned", True: f"Pruned + {retraining_name(experiment)}"}
    return [_handle(retrained, label) for retrained, label in labels.items() if (rows.retrained == retrained).any()]


def shades(count: int) -> np.ndarray:
    """Colours from light to dark, one per constraint."""
    return matplotlib.colormaps["viridis_r"](np.linspace(1, 0.15, count)[::-1])


def five_numbers(values: pd.Series | np.ndarray) -> dict[str, float]:
    """The numbers of a box: smallest, quartiles and median, largest."""
    return dict(zip(BOX, np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist(), strict=True))


def draw_box(panel, x: float, numbers: dict[str, float], width: float, color) -> None:
    """A box from quartile to quartile, whiskers to the extremes, the median darker."""
    smallest, lower, median, upper, largest = (numbers[name] for name in BOX)
    panel.bxp(
        [{"whislo": smallest, "q1": lower, "med": median, "q3": upper, "whishi": largest}],
        **dict(positions=[x], widths=width, showcaps=False, showfliers=False, patch_artist=True, manage_ticks=False),
        **dict(boxprops={"facecolor": color, "alpha": 0.5, "linewidth": 0}, medianprops={"color": color}),
        whiskerprops={"color": color, "linewidth": 0.7},
    )


def _lines(panel, rows: pd.DataFrame, unpruned: float, **style) -> None:
    """A line with bars per method, before and after retraining, in the panel; methods named first lie on top."""
    panel.axhline(100 * unpruned, color="0.3", linewidth=0.9, linestyle=":")
    for (method, retrained), line in rows.groupby(["method", "retrained"]):
        _, color, marker = METHODS[method]
        order = 4 - list(METHODS).index(method) / len(METHODS) - (not retrained)
        draw_points(panel, line, color, marker, retrained, zorder=order, **style)
    panel.grid(True)


def _methods(rows: pd.DataFrame) -> list[Line2D]:
    return [
        Line2D([], [], color=color, marker=marker, label=label)
        for method, (label, color, marker) in METHODS.items()
        if (rows.method == method).any()
    ]


def _handle(retrained: bool, label: str) -> Line2D:
    return Line2D([], [], color="0.2", marker="o", linestyle="-" if retrained else DASHED,
                  mfc="0.2" if retrained else "white", label=label)  # fmt: skip


def _heat_map(panel, values: pd.DataFrame, text: pd.DataFrame | None, colormap: str, limits=(None, None)):
    """Cells from a table's rows (bottom up) and columns (counted from 1), with text; NaN is grey. Returns the mesh."""
    panel.set_facecolor("0.85")
    mesh = panel.pcolormesh(
        np.ma.masked_invalid(values), cmap=colormap, vmin=limits[0], vmax=limits[1], edgecolors="white", linewidth=0.4
    )
    colors = mesh.to_rgba(np.ma.masked_invalid(values))
    for (row, column), value in np.ndenumerate(values.to_numpy()) if text is not None else ():
        dark = np.isfinite(value) and colors[row, column, :3] @ (0.299, 0.587, 0.114) < 0.5  # luma
        panel.text(
            *(column + 0.5, row + 0.5, text.iloc[row, column]),
            **dict(ha="center", va="center", fontsize=5.5, color="white" if dark else "0.1"),
        )
    panel.set_xticks(np.arange(values.shape[1]) + 0.5, [column + 1 for column in values.columns])
    panel.set_yticks(np.arange(values.shape[0]) + 0.5)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    return mesh
