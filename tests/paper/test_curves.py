"""Curves and tables of scores from small made-up results: what is drawn equals the table, and errors."""

import statistics

import numpy as np
import pandas as pd
import pytest
from small_tables import CLIP, NAME, SCORES, add, by_threshold, heights, points, result, texts

from lfpr.paper.figures import (
    accuracy,
    neighbours_kept,
    overview,
    retraining,
    score_table,
    threshold,
    unsearched,
    unsearched_table,
)
from lfpr.paper.labels import BLUE, METHODS, ORANGE
from lfpr.paper.registry import items


def test_accuracy_shows_means_over_seeds_and_labels(tables):
    figure = accuracy(tables["results"], NAME)
    assert {
        "TextVQA accuracy (%)",
        "MMT parameters kept (%)",
        "Label-free",
        "Random",
        "Pruned",
        "Pruned + ReSt",
    } <= set(texts(figure))
    assert "Unpruned (81.3 %)" in texts(figure) and "Magnitude" not in texts(figure)
    every, retrained = figure.axes
    for (method, after), scores in SCORES.items():
        means = [100 * statistics.mean(seeds) for _, seeds in sorted(scores.items())]
        color = METHODS[method].color
        assert any(np.allclose(means, line) for line in heights(every, color) if len(line) == 2)
        assert any(np.allclose(means, line) for line in heights(retrained, color) if len(line) == 2) == after
    assert np.allclose(heights(every, "0.3"), 81.35)


def test_accuracy_draws_one_search_and_nothing_enlarged_without_retraining(tables):
    plain = tables["results"][~tables["results"].retrained]
    assert len(accuracy(plain, NAME).axes) == 1
    both = add(plain, *(by_threshold("random", percentile, False, 0.1, 0.5) for percentile in (30, 50)))
    assert not any(10.0 in line for line in heights(accuracy(both, NAME).axes[0], "#d55e00"))
    panel = accuracy(both, NAME, heuristic="threshold").axes[0]
    assert [10.0, 10.0] in heights(panel, METHODS["random"].color)


def test_accuracy_of_clip_is_against_macs_and_calls_retraining_distillation(tables):
    results = tables["results"].assign(experiment="clip-mscoco")
    found = texts(accuracy(results, "clip-mscoco"))
    assert {"Vision encoder MACs kept (%)", "MSCOCO Recall@1 (%)", "Pruned + distillation"} <= set(found)
    assert not any("ReSt" in text for text in found)
    assert score_table(results, "clip-mscoco").index.names == ["Method", "Distillation"]


def test_a_single_point_is_drawn_as_a_marker(tables):
    results = tables["results"]
    rows = results[(results.method != "random") | (results.constraint == 0.4)]
    panel = accuracy(rows, NAME).axes[0]
    _, color, marker = METHODS["random"]
    points = [line for line in panel.lines if line.get_color() == color and len(line.get_xdata()) == 1]
    markers = [line for line in points if line.get_marker() == marker]
    assert accuracy(rows[rows.constraint != 0.8], NAME).axes[0].get_xlim() == pytest.approx((29.9, 49.9))
    assert sorted(float(line.get_ydata()[0]) for line in markers) == pytest.approx([100 * 0.49 / 3 + 100 / 3, 70])


def test_variants_and_controls_are_no_part_of_the_curves(tables):
    other = [result("label-free", 0.4, 0, False, 0.1, variant="rescaled=True"), result("uniform", 0.4, 0, False, 0.1)]
    results = add(tables["results"], *other)
    assert score_table(results, NAME).equals(score_table(tables["results"], NAME))
    drawn, expected = (accuracy(rows, NAME) for rows in (results, tables["results"]))
    assert [len(panel.lines) for panel in drawn.axes] == [len(panel.lines) for panel in expected.axes]


def test_overview_has_a_panel_per_experiment_on_one_scale(tables):
    other = tables["results"].assign(experiment="clip-mscoco", score=tables["results"].score / 2)
    figure = overview(pd.concat([tables["results"], other]))
    first, second = figure.axes
    assert [panel.get_title() for panel in figure.axes] == ["TAP, TextVQA", "CLIP, MSCOCO"]
    assert first.get_ylim() == second.get_ylim() == (0, 100)
    color = METHODS["label-free"].color
    assert np.allclose(sorted(map(max, heights(first, color))), 2 * np.array(sorted(map(max, heights(second, color)))))


def test_table_numbers(tables):
    table = score_table(tables["results"], NAME)
    assert list(table.columns) == ["100 %", "80 %", "40 %"]
    assert table.loc[("Unpruned", "no")].tolist() == [f"{81.35:.1f}", "–", "–"]
    for (method, retrained), scores in SCORES.items():
        for constraint, seeds in scores.items():
            expected = f"{100 * statistics.mean(seeds):.1f}"
            if len(seeds) > 1:
                expected += f" ± {100 * statistics.stdev(seeds):.1f}"
            assert (
                table.loc[(METHODS[method].label, "yes" if retrained else "no"), f"{100 * constraint:g} %"] == expected
            )


def test_table_says_where_the_share_kept_is_another(tables):
    results = tables["results"]
    results.loc[(results.method == "random") & results.retrained, "fraction"] = 0.36
    table = score_table(results, NAME)
    assert table.loc[("Random", "yes"), "40 %"] == "70.0 (at 36 %)"
    assert "at" not in table.loc[("Label-free", "yes"), "40 %"]
    results = add(results, by_threshold("random", 30, False, 0.6, 0.71))
    table = score_table(results, NAME, heuristic="threshold")
    assert table.loc[("Random", "no"), "30 % removed"] == "60.0 (at 71 %)"


def test_table_of_another_metric(tables):
    results = tables["results"].assign(anls=lambda rows: rows.score / 2)
    table = score_table(results, NAME, metric="anls")
    assert table.loc[("Random", "yes"), "40 %"] == "35.0" and table.loc[("Unpruned", "no"), "100 %"] == "40.7"
    with pytest.raises(ValueError, match="anls = nan"):
        score_table(tables["results"], NAME, metric="anls")


def test_threshold_is_drawn_at_the_share_really_kept(results):
    panel = threshold(results, NAME).axes[0]
    assert points(panel, ORANGE) == [(70, 60), (70, 70)]
    assert len(points(panel, BLUE)) == 4
    with pytest.raises(ValueError, match="heuristic = 'threshold'"):
        threshold(results, NAME, method="random")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.assign(score=rows.score * 100), r"score = 81.35 .*fraction in \[0, 1\]"),
        (lambda rows: rows.assign(score=np.nan), "score = nan"),
        (lambda rows: pd.concat([rows, rows.tail(1)]), "two rows with"),
        (lambda rows: rows[rows.method != "unpruned"], "0 rows of method 'unpruned'"),
        (lambda rows: rows[rows.method == "unpruned"], "no pruned model"),
        (lambda rows: rows.replace({"method": {"random": "magic"}}), "method = 'magic'"),
        (lambda rows: rows.assign(profile=["full"] + ["mini"] * (len(rows) - 1)), "profiles"),
        (lambda rows: rows.drop(columns=["seed"]), r"no column \['seed'\]"),
    ],
)
def test_odd_results_are_refused(tables, change, message):
    for draw in (accuracy, score_table):
        with pytest.raises(ValueError, match=message):
            draw(change(tables["results"]), NAME)


def test_neighbours_kept_are_means_over_seeds():
    rows = [("unpruned", 1.0, 1.0, 1.0), ("label-free", 0.4, 0.39, 0.7), ("label-free", 0.4, 0.41, 0.6)]
    panel = neighbours_kept(pd.DataFrame(rows, columns=["method", "constraint", "layers", "neighbours"])).axes[0]
    (line,) = [line for line in panel.lines if line.get_marker() == METHODS["label-free"].marker]
    np.testing.assert_allclose(line.get_xydata(), [(40, 65)])


def test_retraining_shows_the_log():
    log = pd.DataFrame({"iteration": range(1, 41), "loss": np.linspace(4, 2, 40), "grad_norm": np.linspace(1, 0.5, 40)})
    figure = retraining(log)
    assert [panel.get_ylabel() for panel in figure.axes] == ["Loss", "Gradient norm"]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), log.loss)


def direct(removed, score, retrained=False, method="sensitivity", variant="heads_removed={}", **other):
    row = result(method, np.nan, 8, retrained, score, experiment=CLIP, heuristic="none", **other)
    return row | {"variant": variant.format(removed), "fraction": 1 - 0.04 * removed / 7, "r10": 0.9}


def test_masks_without_a_search_stand_by_what_they_keep(clip_results):
    steps = [
        direct(7, 0.7),
        direct(21, 0.5),
        direct(21, 0.6, True),
        direct(7, 0.1, variant="heads_removed={}, rescaled=True"),
    ]
    rows = add(clip_results, *steps, direct(35, 0.2, method="given", variant="masks=a/b"))
    panel = unsearched(rows, CLIP).axes[0]
    assert points(panel, METHODS["sensitivity"].color) == [(88, 50), (88, 60), (96, 70)]  # not the rescaled one
    assert points(panel, METHODS["given"].color) == [(80, 20)]
    assert len(points(panel, METHODS["fisher"].color)) == 4
    table = unsearched_table(rows, CLIP)
    assert table.index.tolist() == [
        ("96.0 %", "Sensitivity (labels)", "heads removed: 7", "no"),
        ("88.0 %", "Sensitivity (labels)", "heads removed: 21", "no"),
        ("88.0 %", "Sensitivity (labels)", "heads removed: 21", "yes"),
        ("80.0 %", "Given masks", "a/b", "no"),
    ]
    assert table["MSCOCO Recall@1"].tolist() == ["70.0", "50.0", "60.0", "20.0"]
    assert accuracy(rows, CLIP).axes and score_table(rows, CLIP).equals(score_table(clip_results, CLIP))
    names = [name for name, *_ in items({"results": rows})]
    assert {f"unsearched_{CLIP}", f"table_{CLIP}_unsearched"} <= set(names)
    assert not [name for name, *_ in items({"results": clip_results}) if "unsearched" in name]


def test_what_was_run_at_one_share_alone_is_left_out_of_the_overview(tables):
    results = tables["results"]
    lone = results[(results.method == "random") & (results.constraint == 0.4)].assign(method="fisher")
    every = pd.concat([results, lone])
    every = pd.concat([every, every.assign(experiment="clip-mscoco")])
    assert heights(accuracy(every, NAME).axes[0], METHODS["fisher"].color)
    assert not heights(overview(every).axes[0], METHODS["fisher"].color)
    one = every[(every.constraint == 0.4) | (every.method == "unpruned")]
    assert heights(overview(one).axes[0], METHODS["fisher"].color)  # all were


def test_what_refits_is_dash_dotted(tables):
    results = tables["results"]
    refitted = results[(results.method == "random") & ~results.retrained].assign(method="kprune")
    figure = accuracy(pd.concat([results, refitted]), NAME)
    line, *_ = [line for line in figure.axes[0].lines if line.get_color() == METHODS["kprune"].color]
    assert line.get_linestyle() == "-." and line.get_markerfacecolor() == "white"
    assert "Refitted" in texts(figure) and "Refitted" not in texts(accuracy(results, NAME))
