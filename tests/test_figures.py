"""Figures and tables from small made-up results: files, labels, numbers, errors, and the same bytes every time."""

import statistics

import numpy as np
import pandas as pd
import pytest

from lfpr.figures import (
    accuracy_against_parameters,
    importance_map,
    kept_per_layer,
    mask_values,
    retraining,
    save,
    write_all,
)
from lfpr.tables import METHODS, TABLES, accuracy_table, update_readme, write_table

NAME = "tap-textvqa"
SCORES = {  # method, retrained: constraint: a score per seed
    ("label-free", False): {0.4: (0.77, 0.76, 0.78), 0.8: (0.80, 0.80, 0.81)},
    ("label-free", True): {0.4: (0.79, 0.80, 0.79), 0.8: (0.81, 0.80, 0.81)},
    ("random", False): {0.4: (0.49, 0.45, 0.55), 0.8: (0.78, 0.77, 0.75)},
    ("random", True): {0.4: (0.70,), 0.8: (0.79,)},
}


def result(method, constraint, seed, retrained, score, **other):
    row = dict(experiment=NAME, profile="mini", method=method, heuristic="sum", constraint=constraint, seed=seed)
    row |= dict(percentile=np.nan, retrained=retrained, score=score, fraction=constraint - 0.001, parameters=1000)
    return row | dict(questions=2400, percent=73, last_layers=2, iterations=300, minutes=0.6) | other


@pytest.fixture
def tables():
    results = [result("unpruned", 1.0, 0, False, 0.8135, fraction=1.0)]
    for (method, retrained), scores in SCORES.items():
        for constraint, seeds in scores.items():
            results += [result(method, constraint, seed, retrained, score) for seed, score in enumerate(seeds)]
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
    rows = dict(results=results, layers=layers, importance=importance, mask_values=values)
    return {name: pd.DataFrame(rows[name])[list(columns)] for name, columns in TABLES.items()}


@pytest.fixture
def folder(tables, tmp_path):
    for name, table in tables.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


def words(figure):
    """Every text in the figure."""
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def heights(panel, color):
    """The y values of the panel's lines of this colour."""
    return [list(np.asarray(line.get_ydata())) for line in panel.lines if line.get_color() == color]


def test_accuracy_shows_means_over_seeds_and_labels(tables):
    figure = accuracy_against_parameters(tables["results"], NAME)
    assert {
        "TextVQA accuracy (%)",
        "MMT parameters kept (%)",
        "Label-free",
        "Random",
        "Pruned",
        "Pruned + ReSt",
    } <= set(words(figure))
    assert "Unpruned (81.3 %)" in words(figure) and "Magnitude" not in words(figure)
    every, retrained = figure.axes
    for (method, after), scores in SCORES.items():
        means = [100 * statistics.mean(seeds) for _, seeds in sorted(scores.items())]
        color = METHODS[method][1]
        assert any(np.allclose(means, line) for line in heights(every, color) if len(line) == 2)
        assert any(np.allclose(means, line) for line in heights(retrained, color) if len(line) == 2) == after
    assert np.allclose(heights(every, "0.3"), 81.35)


def test_accuracy_has_a_row_of_panels_per_heuristic_and_none_enlarged_without_retraining(tables):
    plain = tables["results"][~tables["results"].retrained]
    assert len(accuracy_against_parameters(plain, NAME).axes) == 1
    threshold = [
        result("random", np.nan, 0, False, 0.6, heuristic="threshold", percentile=p, fraction=0.5) for p in (30, 50)
    ]
    both = accuracy_against_parameters(pd.concat([plain, pd.DataFrame(threshold)]), NAME)
    assert [panel.get_title() for panel in both.axes] == ["Sum of importance", "Threshold"]


def test_kept_per_layer_writes_the_counts(tables):
    figure = kept_per_layer(tables["layers"], NAME)
    heads, neurons, _ = figure.axes
    assert [text.get_text() for text in heads.texts] == ["1", "2", "3", "3"]  # constraint 0.4, then 0.8 above it
    assert [text.get_text() for text in neurons.texts] == ["3", "3", "0", "0"]
    assert {"Heads kept (of 4)", "Neurons kept (of 6)", "Layer", "40", "80"} <= set(words(figure))
    assert np.allclose(heads.collections[0].get_array(), [[25, 50], [75, 75]])


def test_importance_map_marks_zeros(tables):
    figure = importance_map(tables["importance"], NAME)
    heads, neurons, _ = figure.axes
    assert [text.get_text() for text in heads.texts] == ["0", "−2.0", "−1.0", "0.0"] * 2
    assert heads.collections[0].get_array().mask[:, 0].all()
    assert all(np.allclose(line.get_ydata(), [2, 1, 0, -1, -2]) for line in neurons.lines)
    assert not importance_map(tables["importance"], NAME, annotate=False).axes[0].texts
    zero = tables["importance"].assign(importance=0.0)
    assert "0" in words(importance_map(zero, NAME))


def test_mask_values_draws_every_value_and_a_line_at_1(tables):
    figure = mask_values(tables["mask_values"], NAME)
    heads, _ = figure.axes
    points = [line for line in heads.lines if line.get_marker() == "."]
    assert len(points) == 4 and all(np.allclose(line.get_ydata(), [0.9, 1.0, 1.25]) for line in points)
    assert all(any(np.allclose(line.get_ydata(), 1) for line in panel.lines) for panel in figure.axes)
    assert {"Mask value of heads", "Mask value of neurons", "40", "80"} <= set(words(figure))


def test_table_numbers(tables):
    table = accuracy_table(tables["results"], NAME)
    assert list(table.columns) == ["100 %", "80 %", "40 %"]
    assert table.loc[("Unpruned", "no")].tolist() == [f"{81.35:.1f}", "–", "–"]
    for (method, retrained), scores in SCORES.items():
        for constraint, seeds in scores.items():
            expected = f"{100 * statistics.mean(seeds):.1f}"
            if len(seeds) > 1:
                expected += f" ± {100 * statistics.stdev(seeds):.1f}"
            assert table.loc[(METHODS[method][0], "yes" if retrained else "no"), f"{100 * constraint:g} %"] == expected


def test_table_says_where_the_share_kept_is_another(tables):
    results = tables["results"]
    results.loc[(results.method == "random") & results.retrained, "fraction"] = 0.36
    table = accuracy_table(results, NAME)
    assert table.loc[("Random", "yes"), "40 %"] == "70.0 (at 36 %)"
    assert "at" not in table.loc[("Label-free", "yes"), "40 %"]
    row = result("random", np.nan, 0, False, 0.6, heuristic="threshold", percentile=30, fraction=0.71)
    table = accuracy_table(pd.concat([results, pd.DataFrame([row])]), NAME, heuristic="threshold")
    assert table.loc[("Random", "no"), "30 % removed"] == "60.0 (at 71 %)"


def test_written_tables(tmp_path):
    frame = pd.DataFrame({"a_b & c": ["1 ± 2 %", "x|y"]}, index=pd.Index(["p", "q"], name="Method"))
    csv, tex, markdown = write_table(frame, tmp_path, "t", "50 % of {all}")
    assert pd.read_csv(csv).to_numpy().tolist() == [["p", "1 ± 2 %"], ["q", "x|y"]]
    lines = tex.read_text().splitlines()
    assert (
        r"\caption{50 \% of \{all\}}" in lines and r"Method & a\_b \& c \\" in lines and r"p & 1 $\pm$ 2 \% \\" in lines
    )
    assert lines.index(r"\toprule") < lines.index(r"\midrule") < lines.index(r"\bottomrule")
    rows = ["50 % of {all}", "", "| Method | a_b & c |", "| --- | --- |", "| p | 1 ± 2 % |", r"| q | x\|y |"]
    assert markdown.read_text().splitlines() == rows


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
    expected = {f"{stem}_{NAME}.{kind}" for stem in stems for kind in ("pdf", "png")}
    assert {file.name for file in files} == expected | {f"table_{NAME}.{kind}" for kind in ("csv", "tex", "md")}
    first = [file.read_bytes() for file in files]
    assert all(first) and [file.read_bytes() for file in write_all(folder)] == first
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert "mean ± standard deviation over up to 3 seeds" in (folder / f"table_{NAME}.md").read_text()


def test_no_mask_values_without_retraining(tables, folder):
    tables["results"][~tables["results"].retrained].to_csv(folder / "results.csv", index=False)
    assert not [file for file in write_all(folder) if "mask_values" in file.name]


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
    (folder / "layers.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"layers\.csv"):
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
    for draw in (accuracy_against_parameters, accuracy_table):
        with pytest.raises(ValueError, match=message):
            draw(change(tables["results"]), NAME)


def test_what_is_not_there_is_named(tables):
    for draw, name in (
        (accuracy_against_parameters, "results"),
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
