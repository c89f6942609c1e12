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
