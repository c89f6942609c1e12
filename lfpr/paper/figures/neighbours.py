"""What pruned sentence encoders keep of their embeddings' neighbours, which only a notebook draws."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lfpr.paper.labels import METHODS
from lfpr.paper.registry import figure
from lfpr.paper.style import REFERENCE, SINGLE, draw_line, method_handles


@figure("minilm", heading="all-MiniLM-L6-v2")
def neighbours_kept(table: pd.DataFrame) -> Figure:
    """Nearest neighbours that a pruned sentence encoder keeps (%) against the share of the layers' parameters kept (%),
    a line per method. `table`: that of `lfpr.experiments.sentences.study`."""
    figure = Figure((SINGLE, 2.6), layout="constrained")
    panel = figure.subplots()
    panel.axhline(100, **REFERENCE)
    pruned = table[table.method.isin(METHODS)]
    pruned = pruned.assign(kept=100 * pruned.groupby(["method", "constraint"]).layers.transform("mean"))
    for method, rows in pruned.groupby("method"):
        draw_line(panel, rows, "kept", "neighbours", color=METHODS[method].color, marker=METHODS[method].marker)
    panel.grid(True)
    panel.set(xlabel="Parameters of the layers kept (%)", ylabel="Nearest neighbours kept (%)", ylim=(None, 102))
    handles = [Line2D([], [], **REFERENCE, label="Unpruned"), *method_handles(pruned)]
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure


def neighbours_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `lfpr.experiments.sentences.study` for reading: means over seeds (time ratio: median, ms: least),
    neighbours with range."""
    rows = []
    for (method, constraint), group in table.groupby(["method", "constraint"], sort=False):
        low, high = group.neighbours.min(), group.neighbours.max()
        rows.append(
            {
                "Method": method,
                "Constraint": f"{constraint:g}",
                "Parameters (M)": f"{group.parameters.mean() / 1e6:.1f}",
                "File (MB)": f"{group.megabytes.mean():.1f}",
                "ms per batch": f"{group.milliseconds.min():.0f}",
                "Time ratio": f"{group.time.median():.2f}",
                "Neighbours kept": f"{group.neighbours.mean():.3f}"
                + (f" ({low:.3f} to {high:.3f})" if len(group) > 1 else ""),
                "Largest difference": f"{group.difference.max():.0e}" if method != "unpruned" else "",
            }
        )
    return pd.DataFrame(rows).set_index("Method")
