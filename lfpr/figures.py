"""Every figure and table of the paper, drawn from the tidy tables in ``paper_figures/``.

A figure is a function of a table and an experiment's name and returns a matplotlib ``Figure``; nothing goes through
pyplot, so no state is shared and no display is needed. ``save`` and ``write_table`` write files that are the same
bytes for the same numbers. ``write_all`` draws everything. The tables and their columns are listed in ``TABLES``.
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

from lfpr.tables import (
    HEURISTICS,
    METHODS,
    TABLES,
    accuracy_table,
    caption,
    check_once,
    over_seeds,
    part_label,
    read,
    score_label,
    scores,
    select,
    write_file,
    write_table,
)

DASHED = (0, (3, 1.5))
SINGLE, DOUBLE = 3.5, 7.2  # width in inches of one and of two columns
STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same figure on every machine
    "font.size": 7,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
}


def accuracy_against_parameters(results: pd.DataFrame, experiment: str) -> Figure:
    """Score (%) against parameters kept (%): a line per method, dashed and hollow before ReSt, solid and filled after.

    Lines are means over seeds, bars reach from the lowest to the highest seed; the dotted line is the unpruned model.
    A row of panels per search heuristic; the right panel enlarges the scores after ReSt, which lie close together.
    Raises ``ValueError`` naming the table's missing column, experiment or odd value.
    """
    unpruned, pruned = scores(results, experiment)
    heuristics = [name for name in HEURISTICS if (pruned.heuristic == name).any()]
    enlarge = pruned.retrained.any() and not pruned.retrained.all()
    with matplotlib.rc_context(STYLE):
        figure = Figure((DOUBLE if enlarge else SINGLE, 0.4 + 2.3 * len(heuristics)), layout="constrained")
        panels = figure.subplots(len(heuristics), 1 + enlarge, squeeze=False)
        for row, heuristic in zip(panels, heuristics, strict=True):
            rows = pruned[pruned.heuristic == heuristic]
            _lines(row[0], rows, unpruned)
            row[0].set(title=HEURISTICS[heuristic] if len(heuristics) > 1 else "", ylabel=score_label(experiment))
            if enlarge:
                row[0].set_title(f"{HEURISTICS[heuristic]}: before and after ReSt")
                _lines(row[1], rows[rows.retrained], unpruned)
                row[1].set_title(f"{HEURISTICS[heuristic]}: after ReSt, enlarged")
        for panel in panels[-1]:
            panel.set_xlabel(f"{part_label(experiment)} parameters kept (%)")
        legend = [
            Line2D([], [], color=color, marker=marker, label=label)
            for method, (label, color, marker) in METHODS.items()
            if (pruned.method == method).any()
        ]
        if not pruned.retrained.all():
            legend.append(Line2D([], [], color="0.2", linestyle=DASHED, marker="o", mfc="white", label="Pruned"))
        if pruned.retrained.any():
            legend.append(Line2D([], [], color="0.2", marker="o", label="Pruned + ReSt"))
        legend.append(Line2D([], [], color="0.3", linestyle=":", label=f"Unpruned ({100 * unpruned:.1f} %)"))
        figure.legend(handles=legend, loc="outside upper center", ncols=len(legend) if enlarge else 3)
    return figure


def kept_per_layer(
    layers: pd.DataFrame, experiment: str, method: str = "label-free", seed: int = 0, heuristic: str = "sum"
) -> Figure:
    """Heads and neurons kept in each layer (columns) at each constraint (rows): counts, shaded by the share kept."""
    rows = select(layers, "layers", experiment=experiment, method=method, heuristic=heuristic, seed=seed)
    check_once(rows, "layers", ["constraint", "layer"])
    with matplotlib.rc_context(STYLE):
        figure = Figure((DOUBLE, 0.9 + 0.24 * rows.constraint.nunique()), layout="constrained")
        panels = figure.subplots(1, 2)
        for panel, kind in zip(panels, ("heads", "neurons"), strict=True):
            kept = rows.pivot(index="constraint", columns="layer", values=kind)
            full = rows.pivot(index="constraint", columns="layer", values=f"full_{kind}")
            shares = _heat_map(panel, 100 * kept / full, kept.map("{:.0f}".format), "Blues", (0, 100))
            panel.set_yticks(panel.get_yticks(), [f"{100 * constraint:g}" for constraint in kept.index])
            panel.set(xlabel="Layer", title=f"{kind.capitalize()} kept (of {full.max(axis=None):.0f})")
        panels[0].set_ylabel(f"{part_label(experiment)} parameters\nkept (%)")
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
    """Mask values after ReSt in each layer, coloured by constraint: a point per head, a box per layer's neurons.

    Boxes span the quartiles, whiskers all values; the dotted line is 1, the value before ReSt.
    """
    rows = select(values, "mask_values", experiment=experiment, method=method, seed=seed)
    rows = rows[rows.constraint.notna()]  # searches by threshold have none
    constraints, layers = sorted(rows.constraint.unique()), sorted(rows.layer.unique())
    colors = matplotlib.colormaps["viridis_r"](np.linspace(0.15, 1, len(constraints)))
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
                    _box(panel, x, group, 0.7 * step, colors[place])
            panel.axhline(1, color="0.3", linewidth=0.8, linestyle=":", zorder=0)
            for border in np.arange(len(layers) - 1) + 0.5:
                panel.axvline(border, color="0.9", linewidth=0.5, zorder=0)
            panel.set(ylabel=f"Mask value of {kind}s", xlim=(-0.5, len(layers) - 0.5))
            panel.set_xticks(range(len(layers)), [layer + 1 for layer in layers])
            panel.tick_params(axis="x", length=0)
        panels[1].set_xlabel("Layer")
        names = [Patch(color=color, label=f"{100 * c:g}") for color, c in zip(colors, constraints, strict=True)]
        figure.legend(
            handles=names, loc="outside right center", title=f"{part_label(experiment)}\nparameters\nkept (%)"
        )
    return figure


def retraining(log: pd.DataFrame) -> Figure:
    """Loss and gradient norm of ReSt by iteration (columns ``iteration``, ``loss``, ``grad_norm``), smoothed too."""
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
    """Write ``name.pdf`` and ``name.png`` (200 dpi), each atomically; equal figures give equal bytes."""
    files = []
    for kind, options in (("pdf", {"metadata": {"CreationDate": None}}), ("png", {"dpi": 200})):
        content = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(content, format=kind, **options)
        files.append(write_file(Path(folder) / f"{name}.{kind}", content.getvalue()))
    return files


def write_all(folder: str | Path) -> list[Path]:
    """Draw every figure and table of every experiment in ``folder/results.csv``; returns the files written.

    Mask values are drawn of experiments that were retrained. Raises ``FileNotFoundError`` or ``ValueError`` naming the
    missing table or column.
    """
    folder = Path(folder)
    tables = {name: read(folder, name) for name in TABLES}
    results, files = tables["results"], []
    for experiment in results.experiment.unique():
        rows = results[results.experiment == experiment]
        files += save(accuracy_against_parameters(results, experiment), folder, f"accuracy_{experiment}")
        files += save(kept_per_layer(tables["layers"], experiment), folder, f"kept_{experiment}")
        files += save(importance_map(tables["importance"], experiment), folder, f"importance_{experiment}")
        if rows.retrained.any():
            files += save(mask_values(tables["mask_values"], experiment), folder, f"mask_values_{experiment}")
        for heuristic in HEURISTICS:
            if not (rows.heuristic[rows.method != "unpruned"] == heuristic).any():
                continue
            name = f"table_{experiment}" + ("" if heuristic == "sum" else f"_{heuristic}")
            table = accuracy_table(results, experiment, heuristic)
            files += write_table(table, folder, name, caption(rows, heuristic))
    return files


def _lines(panel, rows: pd.DataFrame, unpruned: float) -> None:
    """A line with bars per method, before and after ReSt, in the panel; methods named first lie on top."""
    panel.axhline(100 * unpruned, color="0.3", linewidth=0.9, linestyle=":")
    for (method, retrained), line in rows.groupby(["method", "retrained"]):
        _, color, marker = METHODS[method]
        points = over_seeds(line).sort_values("fraction")
        mean, low, high = (100 * points[name] for name in ("mean", "min", "max"))
        panel.errorbar(
            *(100 * points.fraction, mean, [mean - low, high - mean]),
            **dict(color=color, marker=marker, mfc=color if retrained else "white", elinewidth=0.8, capsize=1.5),
            linestyle="-" if retrained else DASHED,
            zorder=4 - list(METHODS).index(method) / len(METHODS) - (not retrained),
        )
    panel.grid(True)


def _box(panel, x: float, values: pd.Series, width: float, color) -> None:
    line = {"color": color, "linewidth": 0.7}
    panel.boxplot(
        values,
        **dict(positions=[x], widths=width, whis=(0, 100), showcaps=False, patch_artist=True, manage_ticks=False),
        **dict(boxprops={"facecolor": color, "linewidth": 0}, whiskerprops=line, medianprops={"color": "white"}),
    )


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
