"""Figures and tables from small made-up results: files, labels, numbers, errors, and the same bytes every time."""

import json
import statistics

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from small_tables import NAME, SCORES, add, by_threshold, result, small_tables, texts

from lfpr.paper.figures import (
    accuracy,
    importance_map,
    kept_per_layer,
    mask_values,
    neighbours_kept,
    overview,
    retraining,
    save,
    score_table,
)
from lfpr.paper.labels import METHODS
from lfpr.paper.tables import update_readme, write_table
from lfpr.paper.write import write_all


@pytest.fixture
def tables():
    return small_tables()


@pytest.fixture
def folder(tables, tmp_path):
    for name, table in tables.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


def heights(panel, color):
    """The y values of the panel's lines of this colour."""
    return [list(np.asarray(line.get_ydata())) for line in panel.lines if line.get_color() == color]


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


def test_kept_per_layer_writes_the_counts(tables):
    figure = kept_per_layer(tables["layers"], NAME)
    heads, neurons, _ = figure.axes
    assert [text.get_text() for text in heads.texts] == ["3", "3", "1", "2"]  # constraint 0.8, then 0.4 below it
    assert [text.get_text() for text in neurons.texts] == ["0", "0", "3", "3"]
    assert {"Heads kept (of 4)", "Neurons kept (of 6)", "Layer", "40", "80"} <= set(texts(figure))
    assert np.allclose(heads.collections[0].get_array(), [[75, 75], [25, 50]]) and heads.yaxis_inverted()


def test_kept_per_layer_of_searches_by_threshold(tables):
    rows = tables["layers"].assign(
        heuristic="threshold", percentile=100 * tables["layers"].constraint, constraint=np.nan
    )
    figure = kept_per_layer(rows, NAME, heuristic="threshold")
    assert [text.get_text() for text in figure.axes[0].texts] == ["3", "3", "1", "2"]
    assert {"40", "80", "Percentile\nremoved (%)"} <= set(texts(figure))


def test_importance_map_marks_zeros(tables):
    figure = importance_map(tables["importance"], NAME)
    heads, neurons, _ = figure.axes
    assert [text.get_text() for text in heads.texts] == ["0", "−2.0", "−1.0", "0.0"] * 2
    assert heads.collections[0].get_array().mask[:, 0].all()
    curves = [line.get_ydata() for line in neurons.lines if len(line.get_ydata())]  # others are in the legend
    assert len(curves) == 2 and all(np.allclose(curve, [2, 1, 0, -1, -2]) for curve in curves)
    assert not importance_map(tables["importance"], NAME, annotate=False).axes[0].texts
    zero = tables["importance"].assign(importance=0.0)
    assert "0" in texts(importance_map(zero, NAME))


def test_mask_values_draws_every_value_and_a_line_at_1(tables):
    figure = mask_values(tables["mask_values"], NAME)
    heads, _ = figure.axes
    points = [group.get_offsets()[:, 1] for group in heads.collections if len(group.get_offsets())]
    assert len(points) == 4 and all(np.allclose(values, [0.9, 1.0, 1.25]) for values in points)
    assert all(any(np.allclose(line.get_ydata(), 1) for line in panel.lines) for panel in figure.axes)
    assert {"Mask value of heads", "Mask value of neurons", "40", "80"} <= set(texts(figure))


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


def test_written_tables(tmp_path):
    frame = pd.DataFrame({"a_b & c": ["1 ± 2 %", "x|y"]}, index=pd.Index(["p", "q"], name="Method"))
    csv, tex, markdown = write_table(frame, tmp_path, "t", "50 % of {all}")
    assert pd.read_csv(csv).to_numpy().tolist() == [["p", "1 ± 2 %"], ["q", "x|y"]]
    lines = tex.read_text().splitlines()
    assert (
        r"\caption{50 \% of \{all\}}" in lines and r"Method & a\_b \& c \\" in lines and r"p & 1 $\pm$ 2 \% \\" in lines
    )
    assert lines.index(r"\toprule") < lines.index(r"\midrule") < lines.index(r"\bottomrule")
    rows = [
        "| Method   | a_b & c   |",
        "|----------|-----------|",
        "| p        | 1 ± 2 %   |",
        r"| q        | x\|y      |",
    ]
    assert markdown.read_text().splitlines() == ["50 % of {all}", "", *rows]


def test_wide_tables_in_latex_have_stacked_heads_and_numbers_flush_right(tmp_path):
    columns = {"Peak memory (MB)": ["1,011", "–"], "Heads: top 40 % in common": ["< 0.1", "−2"], "ρ": ["1 ± 2", "a†"]}
    index = pd.Index(["a row with a long name", "b"], name="Row")
    lines = write_table(pd.DataFrame(columns, index=index), tmp_path, "t", "Title")[1].read_text().splitlines()
    assert lines[0] == r"\begin{table*}" and r"\begin{tabular}{lrrl}" in lines
    heads = r"\shortstack[r]{Peak\\memory\\(MB)} & \shortstack[r]{Heads:\\top 40~\%\\in common} & $\rho$ \\"
    assert rf"Row & {heads}" in lines and r"b & -- & $-$2 & a\dag{} \\" in lines


def test_readme_is_updated_between_its_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table -->\nold\n<!-- /table -->\nafter\n")
    for _ in range(2):
        update_readme(readme, "table", "| new |\n")
        assert readme.read_text() == "before\n<!-- table -->\n| new |\n<!-- /table -->\nafter\n"
    with pytest.raises(ValueError, match="<!-- figure -->"):
        update_readme(readme, "figure", "x")
    assert "new" in readme.read_text()


def test_write_all_twice_gives_the_same_bytes(folder, tmp_path):
    files = write_all(folder)
    stems = ("accuracy", "kept", "importance", "mask_values")
    expected = {f"{stem}_{NAME}.{kind}" for stem in stems for kind in ("pdf", "png")} | {"captions.json"}
    expected |= {f"{stem}.{kind}" for stem in (f"table_{NAME}", "table_comparison") for kind in ("csv", "tex", "md")}
    assert {file.name for file in files} == expected
    first = [file.read_bytes() for file in files]
    assert all(first) and [file.read_bytes() for file in write_all(folder)] == first
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_captions_say_what_is_shown_and_of_how_much(folder):
    write_all(folder)
    captions = json.loads((folder / "captions.json").read_text())
    assert set(captions) == {path.stem for path in folder.glob("*") if path.suffix in (".png", ".md")}
    assert captions[f"accuracy_{NAME}"].startswith(
        "TAP, TextVQA (mini profile, 2,400 validation questions, up to 3 seeds): TextVQA accuracy (%) against MMT "
        "parameters kept (%), search by sum of importance; dashed"
    )
    assert (folder / f"table_{NAME}.md").read_text().splitlines()[0] == captions[f"table_{NAME}"]


def test_only_results_are_needed(folder):
    for name in ("layers", "importance", "mask_values"):
        (folder / f"{name}.csv").unlink()
    stems = {file.stem for file in write_all(folder)}
    assert stems == {f"accuracy_{NAME}", f"table_{NAME}", "table_comparison", "captions"}


def test_a_failed_save_keeps_the_old_file(tables, tmp_path):
    figure = kept_per_layer(tables["layers"], NAME)
    pdf, _ = save(figure, tmp_path, "kept")
    old = pdf.read_bytes()
    figure.text(0, 0, "$\\nonsense$")
    with pytest.raises(ValueError, match="nonsense"):
        save(figure, tmp_path, "kept")
    assert pdf.read_bytes() == old and {path.name for path in tmp_path.iterdir()} == {"kept.pdf", "kept.png"}


def test_missing_table_or_column_is_named(folder, tables):
    tables["layers"].drop(columns="full_heads").to_csv(folder / "layers.csv", index=False)
    with pytest.raises(ValueError, match=r"layers\.csv has no column \['full_heads'\]"):
        write_all(folder)
    (folder / "layers.csv").write_text("")
    with pytest.raises(ValueError, match=r"layers\.csv is empty"):
        write_all(folder)
    (folder / "results.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"results\.csv"):
        write_all(folder)


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


def test_what_is_not_there_is_named(tables):
    for draw, name in (
        (accuracy, "results"),
        (mask_values, "mask_values"),
        (kept_per_layer, "layers"),
    ):
        with pytest.raises(ValueError, match=rf"{name}\.csv: no row with experiment = 'other'"):
            draw(tables[name], "other")
    with pytest.raises(ValueError, match="method = 'fisher'"):
        importance_map(tables["importance"], NAME, method="fisher")
    with pytest.raises(ValueError, match="seed = 7"):
        kept_per_layer(tables["layers"], NAME, seed=7)
    with pytest.raises(ValueError, match=r"importance = -1\.0"):
        importance_map(tables["importance"].assign(importance=-1.0), NAME)


def test_retraining_shows_the_log():
    log = pd.DataFrame({"iteration": range(1, 41), "loss": np.linspace(4, 2, 40), "grad_norm": np.linspace(1, 0.5, 40)})
    figure = retraining(log)
    assert [panel.get_ylabel() for panel in figure.axes] == ["Loss", "Gradient norm"]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), log.loss)


def test_neighbours_kept_are_means_over_seeds():
    rows = [("unpruned", 1.0, 1.0, 1.0), ("label-free", 0.4, 0.39, 0.7), ("label-free", 0.4, 0.41, 0.6)]
    panel = neighbours_kept(pd.DataFrame(rows, columns=["method", "constraint", "layers", "neighbours"])).axes[0]
    (line,) = [line for line in panel.lines if line.get_marker() == METHODS["label-free"].marker]
    np.testing.assert_allclose(line.get_xydata(), [(40, 65)])


def test_no_figure_is_left_open(folder):
    write_all(folder)
    assert not plt.get_fignums()
