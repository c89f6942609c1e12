"""Small made-up tables, as fixtures."""

import numpy as np
import pandas as pd
import pytest
from small_tables import CLIP, NAME, add, by_threshold, small_results, small_tables, variant

from lfpr.paper.schema import TABLES


@pytest.fixture
def results():
    return add(
        small_results(),
        *(by_threshold("label-free", 30, after, 0.6 + 0.1 * after, 0.7) for after in (False, True)),
        *(variant("rescaled=True", 0.775), variant("trained=masks", 0.78, True)),
        *(variant(f"num_samples={n}", score, num_samples=n) for n, score in ((10, 0.7), (100, 0.75))),
        variant("step=0", 0.71),
    )


@pytest.fixture
def clip_results():
    shares = {"r5": 0.8, "r10": 0.9, "i2t_r1": 0.5, "i2t_r5": 0.7, "i2t_r10": 0.8}
    rows = small_results().assign(experiment=CLIP, method=lambda rows: rows.method.replace("label-free", "fisher"))
    return rows.assign(**shares)


@pytest.fixture
def importance():
    """Fisher ranks heads in reverse and neurons alike; the released way agrees."""
    orders = {"label-free": (1, 1), "fisher": (-1, 1), "label-free (released)": (1, 1)}
    rows = [
        dict(
            experiment=NAME, method=method, kind=kind, layer=layer, index=i, importance=2.0 ** (sign * (10 * layer + i))
        )
        for method, signs in orders.items()
        for kind, sign in zip(("head", "neuron"), signs, strict=True)
        for layer in range(2)
        for i in range(5)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def speeds():
    rows = [(NAME, "unpruned", 0.4, 1e6, 2e6, 4.0, 10.0), (NAME, "pruned", 0.4, 4e5, 9e5, 1.6, 5.0)]
    return pd.DataFrame(rows, columns=TABLES["speed"])


@pytest.fixture
def minutes():
    rows = [
        (NAME, "mini", "retrain", 4, 3.0, 700),
        (NAME, "mini", "baseline", 1, 0.001, 800),
        (CLIP, "mini", "speed", 1, 2.0, 9e3),
    ]
    return pd.DataFrame(rows, columns=TABLES["minutes"])


@pytest.fixture
def sensitivity():
    rows = [
        (CLIP, step, 7 * step, 1 - 0.04 * step, after, 0.6 - 0.1 * step + 0.05 * after, 0.9)
        for step in (1, 2)
        for after in (0, 1)
    ]
    return pd.DataFrame(rows, columns=TABLES["sensitivity"])


@pytest.fixture
def cascade():
    numbers = (50, 0.6, 0.9, 0.95, 0.4, 0.5, 2.0, 1.1, 1.9)
    rows = [(CLIP, "random", 0.8, seed, False, 0.8, *numbers) for seed in range(3)] + [
        (CLIP, "fisher", 0.4, 0, True, 0.4, *numbers)
    ]
    return pd.DataFrame(rows, columns=TABLES["cascade"])


@pytest.fixture
def growth():
    ways = [("fisher", 0.4, False), ("fisher", 0.4, True), ("fisher", 0.25, False), ("random", 0.4, False)]
    rows = [
        (CLIP, method, constraint, 0, retrained, 10, queries, share, 2 - 5 * share)
        for method, constraint, retrained in ways
        for queries, share in ((1, 0.1), (2, 0.15))
    ]
    return pd.DataFrame(rows, columns=TABLES["growth"])


@pytest.fixture
def scales():
    numbers = (-3.0, 0.5, 1.0, 2.0, 40.0)
    rows = [
        (CLIP, "ViT-B/16", "released", 0.4, layer, part, 3, 12, *numbers)
        for layer in range(2)
        for part in ("heads", "neurons")
    ]
    rows += [
        (CLIP, CLIP, "ridge", 0.4, 0, part, kept, 8, *([np.nan] * 5 if not kept else numbers))
        for part, kept in (("heads", 0), ("neurons", 2))
    ]
    return pd.DataFrame(rows, columns=TABLES["scales"])


@pytest.fixture
def scorings():
    rows = [
        (NAME, seed, "released", 0.4, kind, value, value / 2)
        for kind, values in (("head", (0.6, 0.8)), ("neuron", (0.5, 0.5)))
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=TABLES["scoring"])


@pytest.fixture
def tables():
    return small_tables()


@pytest.fixture
def folder(tables, tmp_path):
    for name, table in tables.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path
