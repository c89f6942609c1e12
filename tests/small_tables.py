"""Small made-up tables in the form of `paper_figures/*.csv`."""

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from lfpr.paper.schema import TABLES

NAME, CLIP = "tap-textvqa", "clip-mscoco"
MARKERS = ("o", "s", "D", "^", "v", ".", "p", "*", "d", "P", "X")
SCORES = {  # method, retrained: constraint: a score per seed
    ("label-free", False): {0.4: (0.77, 0.76, 0.78), 0.8: (0.80, 0.80, 0.81)},
    ("label-free", True): {0.4: (0.79, 0.80, 0.79), 0.8: (0.81, 0.80, 0.81)},
    ("random", False): {0.4: (0.49, 0.45, 0.55), 0.8: (0.78, 0.77, 0.75)},
    ("random", True): {0.4: (0.70,), 0.8: (0.79,)},
}


def result(method, constraint, seed, retrained, score, **other):
    """A row of results.csv."""
    row = dict(experiment=NAME, profile="mini", method=method, heuristic="sum", constraint=constraint, seed=seed)
    row |= dict(percentile=np.nan, retrained=retrained, score=score, fraction=constraint - 0.001, parameters=1000)
    row |= dict(questions=2400, num_samples=1000, percent=73, last_layers=2, iterations=300, minutes=0.6, megabytes=1.5)
    return row | other


def by_threshold(method, percentile, retrained, score, fraction):
    return result(method, np.nan, 0, retrained, score, heuristic="threshold", percentile=percentile, fraction=fraction)


def variant(name, score, retrained=False, constraint=0.4, **other):
    """A row of a model made in another way than the experiment's own."""
    return result("label-free", constraint, 0, retrained, score, variant=name, **other)


def add(results, *rows):
    """`results` with these rows of `result` below."""
    return pd.DataFrame([*results.to_dict("records"), *rows]).reindex(columns=TABLES["results"])


def small_results():
    rows = [result("unpruned", 1.0, 0, False, 0.8135, fraction=1.0)]
    for (method, retrained), scores in SCORES.items():
        for constraint, seeds in scores.items():
            rows += [result(method, constraint, seed, retrained, score) for seed, score in enumerate(seeds)]
    return pd.DataFrame(rows).reindex(columns=TABLES["results"])


def small_tables():
    """results (see `SCORES`), layers, importance and mask values of two layers of 4 heads and 6 neurons."""
    layers, values, importance = [], [], []
    common = dict(experiment=NAME, method="label-free")
    for layer in range(2):
        for constraint, heads, neurons in ((0.4, 1 + layer, 3), (0.8, 3, 0)):
            kept = dict(heads=heads, neurons=neurons, full_heads=4, full_neurons=6)
            layers.append(common | dict(heuristic="sum", constraint=constraint, seed=0, layer=layer) | kept)
            for kind in ("head", "neuron"):
                row = common | dict(constraint=constraint, seed=0, kind=kind, layer=layer)
                values += [row | dict(value=value) for value in (0.9, 1.0, 1.25)]
        for kind, count in (("head", 4), ("neuron", 6)):
            row = common | dict(kind=kind, layer=layer)
            importance += [row | dict(index=i, importance=10.0 ** (i - 3) * (i > 0)) for i in range(count)]
    rows = dict(layers=layers, importance=importance, mask_values=values)
    tables = {name: pd.DataFrame(rows[name]).reindex(columns=TABLES[name]) for name in rows}
    return {"results": small_results()} | tables


def texts(figure):
    """Every text in the figure."""
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def points(panel, color):
    """(x, y) of all markers of this colour, in order."""
    lines = [line for line in panel.lines if to_hex(line.get_color()) == color and line.get_marker() in MARKERS]
    return sorted(tuple(pair) for line in lines for pair in line.get_xydata().round(6).tolist())


def heights(panel, color):
    """The y values of the panel's lines of this colour."""
    return [list(np.asarray(line.get_ydata())) for line in panel.lines if line.get_color() == color]
