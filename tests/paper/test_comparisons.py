"""The figures and tables that compare, from small made-up tables: what is drawn equals the table, and errors."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from small_tables import NAME, add, by_threshold, result, small_results, texts

from lfpr.paper.figures import (
    agreement,
    alternatives,
    cascade_growth,
    cascade_table,
    comparison_table,
    controls,
    minutes_table,
    rank_scatter,
    recall_table,
    sampling,
    save,
    scale_factors,
    scoring,
    sensitivity_steps,
    speed,
    speed_table,
    threshold,
)
from lfpr.paper.labels import BLUE, ORANGE
from lfpr.paper.registry import items
from lfpr.paper.schema import TABLES, read_all

CLIP = "clip-mscoco"
MARKERS = ("o", "s", "D", "^", "v", ".")


def variant(name, score, retrained=False, constraint=0.4, **other):
    return result("label-free", constraint, 0, retrained, score, variant=name, **other)


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


def points(panel, color):
    """(x, y) of all markers of this colour, in order."""
    lines = [line for line in panel.lines if to_hex(line.get_color()) == color and line.get_marker() in MARKERS]
    return sorted(tuple(pair) for line in lines for pair in line.get_xydata().round(6).tolist())


def test_threshold_is_drawn_at_the_share_really_kept(results):
    panel = threshold(results, NAME).axes[0]
    assert points(panel, ORANGE) == [(70, 60), (70, 70)]
    assert len(points(panel, BLUE)) == 4
    with pytest.raises(ValueError, match="heuristic = 'threshold'"):
        threshold(results, NAME, method="random")


def test_alternatives_print_every_way_that_was_run(results):
    figure = alternatives(results, NAME)
    (panel,) = figure.axes
    ways = ["Pruned", "Pruned, rescaled", "Masks alone retrained", "ReSt", "Random + ReSt"]
    assert [label.get_text() for label in panel.get_yticklabels()] == ways
    assert [bar.get_width() for bar in panel.patches] == pytest.approx(
        [77, 77.5, 78, 100 * (0.79 + 0.8 + 0.79) / 3, 70]
    )
    assert {"77.0", "77.5", "78.0", "79.3", "70.0", "unpruned 81.3"} <= set(texts(figure))
    more = add(results, variant("rescaled=True", 0.8, constraint=0.8))
    assert [panel.get_title() for panel in alternatives(more, NAME).axes] == [
        f"{c} % of MMT parameters kept" for c in (80, 40)
    ]
    with pytest.raises(ValueError, match="nothing to compare"):
        alternatives(small_results(), NAME)


def test_clip_has_its_own_alternatives_and_controls(clip_results):
    def clip(method, score, **other):
        return result(method, 0.4, 0, False, score, experiment=CLIP, **other)

    rows = add(clip_results, clip("fisher", 0.5, variant="rearranged=True, rescaled=False"), clip("uniform", 0.55))
    labels = [label.get_text() for label in alternatives(rows, CLIP).axes[0].get_yticklabels()]
    assert labels == ["Searched, rearranged", "Pruned, rescaled", "Distilled: last layers", "Random, distilled"]
    panel = controls(rows, CLIP).axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == [
        "Fisher (labels)",
        "Fisher, equal share per layer",
        "Random",
    ]
    assert [bar.get_width() for bar in panel.patches] == pytest.approx([77, 55, 100 * (0.49 + 0.45 + 0.55) / 3])


def test_sampling_puts_the_default_among_the_sample_counts(results):
    samples, steps = sampling(results, NAME).axes
    (line,) = [line for line in samples.lines if line.get_marker() == "o"]
    assert np.allclose(line.get_xydata(), [(10, 70), (100, 75), (1000, 77)]) and samples.get_xscale() == "log"
    assert [line.get_xydata().tolist() for line in steps.lines if line.get_marker() == "o"] == [[[0, 71]]]
    assert any(np.allclose(line.get_ydata(), 77) for line in steps.lines if line.get_linestyle() == ":")
    _, steps = sampling(results, NAME, step=1).axes
    (line,) = [line for line in steps.lines if line.get_marker() == "o"]
    assert np.allclose(line.get_xydata(), [(0, 71), (1, 77)])
    with pytest.raises(ValueError, match="no variant of tap-textvqa such as 'num_samples=100'"):
        sampling(small_results(), NAME)


def test_comparison_has_the_papers_numbers_and_ours(results):
    fisher = result("fisher", 0.4, 0, False, 0.5012, variant="rescaled=True", minutes=np.nan)
    table = comparison_table(add(results, fisher))
    assert len(table) == 13 and table.columns.is_unique
    paper, here = (
        table.filter(like=name).rename(columns=lambda name: name.split(": ")[1]) for name in ("Paper", "Here")
    )
    assert paper.loc[("40 %", "LFPR: label-free + ReSt")].tolist() == ["11.4", "47.57", "2.34", "0.58", "43.9"]
    assert here.loc[("40 %", "LFPR: label-free + ReSt")].tolist() == ["39.9 %", "79.3 ± 0.6", "2.0", "0.60", "1.50"]
    assert here.loc[("40 %", "Fisher, rescaled, not retrained")].tolist() == ["39.9 %", "50.1", "31.2", "–", "1.50"]
    assert paper.loc[("80 %", "LFPR: label-free + ReSt"), "drop"] == "−0.01"
    assert set(paper.loc[("40 %", "Random + ReSt")]) == set(here.loc[("80 %", "OWO")]) == {"–"}
    assert here.loc[("100 %", "Unpruned"), "accuracy"] == "81.3"


def test_minutes_are_those_of_one_run(minutes):
    table = minutes_table(minutes)
    assert table.columns.tolist() == ["Retraining", "Evaluation", "Speed", "Peak memory (MB)"]
    assert table.loc[("TAP, TextVQA", "mini")].tolist() == ["0.75", "< 0.01", "–", "800"]
    assert table.loc[("CLIP, MSCOCO", "mini")].tolist() == ["–", "–", "2.0", "9,000"]
    assert table.iloc[-1].tolist() == ["3–34", "–", "–", "–"]
    with pytest.raises(ValueError, match=r"minutes\.csv: two rows"):
        minutes_table(pd.concat([minutes, minutes]))


def test_agreement_of_rankings(importance):
    table = agreement(importance)
    assert table.loc[("TAP, TextVQA", "Fisher (labels)")].tolist() == ["−1.00", "1.00", "0 %", "100 %"]
    assert table.loc[("TAP, TextVQA", "Label-free (released)")].tolist() == ["1.00", "1.00", "100 %", "100 %"]
    assert agreement(importance, share=0.6).iloc[0, 2] == "33 %"  # of ten heads, ranks 1 … 6 and 5 … 10
    with pytest.raises(ValueError, match="no method beside 'label-free'"):
        agreement(importance[importance.method == "label-free"])
    with pytest.raises(ValueError, match="do not score the same heads"):
        agreement(importance.drop(index=0))


def test_rank_scatter_draws_ranks(importance):
    figure = rank_scatter(importance, NAME)
    titles = ["Heads: ρ = −1.00", *("Neurons: ρ = 1.00", "Heads: ρ = 1.00"), "Neurons: ρ = 1.00"]
    assert [panel.get_title() for panel in figure.axes] == titles
    ranks = list(range(1, 11))
    assert points(figure.axes[0], BLUE) == list(zip(ranks, reversed(ranks), strict=True))
    assert points(figure.axes[1], BLUE) == list(zip(ranks, ranks, strict=True))
    with pytest.raises(ValueError, match="no method to compare 'label-free' with"):
        rank_scatter(importance[importance.method == "label-free"], NAME)


def test_scoring_draws_means_over_seeds(scorings):
    correlation, overlap = scoring(scorings).axes
    assert points(correlation, BLUE) == [(0.7, 0)] and points(correlation, ORANGE) == [(0.5, 0)]
    assert points(overlap, BLUE) == [(35, 0)]
    assert [label.get_text() for label in correlation.get_yticklabels()] == ["TAP, TextVQA: released"]


def test_speed_is_relative_to_the_unpruned_model(speeds):
    panel = speed(speeds).axes[0]
    assert points(panel, BLUE) == [(45, 50)]
    table = speed_table(speeds)
    assert [model for _, model, _ in speed_table(speeds[::-1]).index] == ["unpruned", "pruned"]
    assert table.loc[("TAP, TextVQA", "pruned", "40 %")].tolist() == ["0.40", "0.9", "1.6", "5.00", "45", "50"]
    for draw in (speed, speed_table):
        with pytest.raises(ValueError, match=r"speed\.csv: tap-textvqa has no row with model = 'unpruned'"):
            draw(speeds[speeds.model == "pruned"])


def test_recall_both_ways(clip_results):
    table = recall_table(clip_results, CLIP)
    assert table.loc[("100 %", "Unpruned", "no")].tolist() == ["81.3", "80.0", "90.0", "50.0", "70.0", "80.0"]
    assert table.loc[("40 %", "Random", "no"), "Text→image R@1"] == "49.7"
    assert list(table.index.get_level_values(0).unique()) == ["100 %", "80 %", "40 %"]


def test_sensitivity_steps(sensitivity, clip_results):
    figure = sensitivity_steps(sensitivity, clip_results, CLIP)
    (panel,) = figure.axes
    assert points(panel, BLUE) == [(92, 40), (92, 45), (96, 50), (96, 55)]
    assert {"7", "14", "Not rescaled", "Rescaled", "Search, equal MACs"} <= set(texts(figure))
    (line,) = [line for line in panel.lines if line.get_color() == "0.6" and max(line.get_ydata()) < 85]
    assert np.allclose(line.get_ydata(), [77, 241 / 3, 81.35])
    assert "Search, equal MACs" not in texts(sensitivity_steps(sensitivity, None, CLIP))


def test_cascades_are_averaged_over_seeds(cascade, clip_results):
    table = cascade_table(cascade, clip_results, CLIP)
    expected = ["76.7", "90.0", "60.0", "95.0", "40.0", "50.0", "2.00", "1.10", "1.90"]
    assert len(table) == 3 and table.loc[("80 %", "Random", "no", "50")].tolist() == expected
    assert table.loc[("100 %", "Unpruned", "no", "–")].tolist()[:3] == ["81.3", "90.0", "–"]
    with pytest.raises(ValueError, match="'constraint': 0.4, 'method': 'fisher', 'retrained': True"):
        cascade_table(cascade, clip_results[~((clip_results.method == "fisher") & clip_results.retrained)], CLIP)


def test_cascades_grow_with_their_queries(growth):
    figure = cascade_growth(growth, CLIP)
    share, speedup = figure.axes
    drawn = [[tuple(point) for point in line.get_xydata()] for line in share.lines]
    assert drawn == [[(1, 10), (2, 15)], [(1, 10), (2, 15)]]  # neither the retrained nor the random one
    assert [line.get_ydata().tolist() for line in speedup.lines[:2]] == [[1.5, 1.25], [1.5, 1.25]]
    assert {"25 %", "40 %", "Full model alone"} <= set(texts(figure))
    with pytest.raises(ValueError, match=r"growth\.csv: two rows with .*'queries': 1"):
        cascade_growth(pd.concat([growth, growth[:1]]), CLIP)


def test_scale_factors_are_boxes_beside_what_is_kept(scales):
    figure = scale_factors(scales, CLIP)
    heads, neurons, kept, none, *_ = figure.axes
    assert len(heads.patches) == len(neurons.patches) == 2 and not none.patches
    assert heads.patches[0].get_path().get_extents().get_points()[:, 1].tolist() == [0.5, 2.0]
    assert heads.get_yscale() == "symlog"
    assert points(kept, BLUE) == points(kept, ORANGE) == [(1, 25), (2, 25)]
    assert {"ViT-B/16\nreleased, 40 %", "CLIP, MSCOCO\nridge, 40 %"} <= set(texts(figure))
    with pytest.raises(ValueError, match=r"scales\.csv has no column \['lower'\]"):
        scale_factors(scales.drop(columns="lower"), CLIP)


def test_the_tables_at_hand_say_what_is_drawn(
    tmp_path, results, clip_results, importance, speeds, minutes, sensitivity, cascade, scales, scorings
):
    tables = {"results": pd.concat([results, clip_results]), "importance": importance, "speed": speeds}
    tables |= {
        "minutes": minutes,
        "sensitivity": sensitivity,
        "cascade": cascade,
        "scales": scales,
        "scoring": scorings,
    }
    for name, table in tables.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    found = list(items(read_all(tmp_path)))
    names = [name for name, _, _ in found]
    assert len(names) == len(set(names)) and all(caption.endswith(".") for _, caption, _ in found)
    assert set(names) == {
        *("overview", "speed", "scoring", "table_comparison", "table_agreement", "table_minutes", "table_speed"),
        *(f"{kind}_{NAME}" for kind in ("accuracy", "table", "threshold", "alternatives", "sampling")),
        *(f"{kind}_{NAME}" for kind in ("importance", "ranks")),
        *(f"{kind}_{CLIP}" for kind in ("accuracy", "table", "sensitivity", "scales")),
        *(f"table_{NAME}_threshold", f"table_{CLIP}_r10", f"table_{CLIP}_recall", f"table_{CLIP}_cascade"),
    }


def test_rasterized_points_have_the_same_bytes_each_time(tmp_path):
    rng = np.random.default_rng(0)
    index = np.arange(600)
    rows = [
        pd.DataFrame(dict(experiment=NAME, method=method, kind=kind, layer=0, index=index, importance=rng.random(600)))
        for method in ("label-free", "fisher")
        for kind in ("head", "neuron")
    ]
    first, second = (
        [path.read_bytes() for path in save(rank_scatter(pd.concat(rows), NAME), tmp_path, "ranks")] for _ in range(2)
    )
    assert first == second
