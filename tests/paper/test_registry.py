"""A figure is one registered function: drawn, captioned and on the page."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from small_tables import NAME, add, result, small_results, small_tables

from lfpr.paper import labels, registry
from lfpr.paper.page import write_page
from lfpr.paper.registry import figure, items, locate, table
from lfpr.paper.schema import TABLES, select
from lfpr.paper.write import write_all

PAPER = Path(__file__).parents[2] / "paper_figures"


@pytest.fixture(autouse=True)
def entries(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "ENTRIES", list(registry.ENTRIES))


def test_a_new_figure_is_one_function(folder):
    @figure(
        "heads_{experiment}",
        needs=("layers",),
        heading="Heads at all",
        caption="{about}: {spec.kept} by {method} importance.",
    )
    def heads(layers: pd.DataFrame, experiment: str) -> Figure:
        drawn = Figure((2, 1))
        drawn.subplots().bar([0], select(layers, "layers", experiment=experiment).heads.sum())
        return drawn

    names = {path.name for path in write_all(folder)}
    assert {f"heads_{NAME}.pdf", f"heads_{NAME}.png"} <= names
    caption = json.loads((folder / "captions.json").read_text())[f"heads_{NAME}"]
    about = "TAP, TextVQA (mini profile, 2,400 validation questions, up to 3 seeds)"
    assert caption == f"{about}: MMT parameters kept by label-free importance."
    page = write_page(folder).read_text()
    assert f'<figure id="heads_{NAME}"><h3>Heads at all' in page and f"{caption} <span" in page
    assert page.index("Heads at all") > page.index("Mask values after retraining")  # registered last
    assert heads(small_tables()["layers"], NAME).axes[0].patches[0].get_height() == 9


def test_a_new_table_has_variants_where_it_says_so(folder):
    @table(
        "best_{experiment}",
        needs=("results",),
        heading="Best",
        caption=lambda results, experiment, retrained=False: f"Best, retrained: {retrained}.",
        when=lambda results, experiment: (results.method == "random").any(),
        variants=lambda results, experiment: {"": {}, "after": {"retrained": True}},
    )
    def best(results: pd.DataFrame, experiment: str, retrained: bool = False) -> pd.DataFrame:
        rows = results[(results.experiment == experiment) & (results.retrained == retrained)]
        return pd.DataFrame({"Score": [f"{rows.score.max():g}"]}, index=pd.Index(["best"], name="Row"))

    found = {name: (caption, drawn) for name, caption, drawn in items({"results": small_results()}) if "best" in name}
    assert [caption for caption, _ in found.values()] == ["Best, retrained: False.", "Best, retrained: True."]
    assert found[f"best_{NAME}_after"][1].loc["best", "Score"] == "0.81"
    assert locate(f"best_{NAME}_after")[1:] == (NAME, "Best: after")
    without = small_results().query("method != 'random'")
    assert not [name for name, _, _ in items({"results": without}) if "best" in name]


def test_a_name_is_registered_once_and_headings_are_found():
    with pytest.raises(ValueError, match="name = 'overview': there is such a figure or table already"):
        figure("overview", needs=("results",), heading="Again")
    assert locate("table_clip-mscoco_recall")[1:] == ("clip-mscoco", "Recall in both directions")
    assert locate("table_clip-mscoco_r10")[1:] == ("clip-mscoco", "Scores: r10")
    assert locate("minilm")[1:] == (None, "all-MiniLM-L6-v2")
    assert locate("my_own_tap12-stvqa")[1:] == ("tap12-stvqa", "My own") and locate("my_own")[1:] == (None, "My own")


def test_figures_without_their_tables_are_not_drawn():
    tables = small_tables()
    names = {name for name, _, _ in items({"results": tables["results"]})}
    assert f"accuracy_{NAME}" in names and f"kept_{NAME}" not in names
    other = tables["layers"].assign(experiment="tap-stvqa")
    assert f"kept_{NAME}" not in {name for name, _, _ in items({"results": tables["results"], "layers": other})}


def test_an_unknown_experiment_has_words_that_fit_any():
    results = add(small_results(), result("label-free", 0.4, 0, False, 0.5, variant="rescaled=True"))
    results = results.assign(experiment="mine")
    captions = {name: caption for name, caption, _ in items({"results": results})}
    assert set(captions) == {"accuracy_mine", "table_mine"}
    about = "mine (mini profile, 2,400 validation samples, up to 3 seeds)"
    assert captions["table_mine"].startswith(f"{about}: Score (%) by cost kept")
    assert labels.method_label("own way") == "Own way"


def test_every_file_of_the_paper_is_written_again(tmp_path):
    for name in TABLES:
        shutil.copy(PAPER / f"{name}.csv", tmp_path)
    files = [file for file in write_all(tmp_path) if file.suffix in (".md", ".csv", ".tex", ".json")]
    write_page(tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    by_notebook = {f"minilm.{suffix}" for suffix in ("csv", "md", "pdf", "png", "tex")}  # 07_any_transformer
    assert {path.name for path in PAPER.iterdir()} == written | by_notebook | {"benchmarks.csv"}
    assert len(files) > 60
    for file in files:  # the committed tables are what the committed numbers give
        assert file.read_bytes() == (PAPER / file.name).read_bytes(), file.name
