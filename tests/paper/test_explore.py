"""Masks, cost and scores as the constraint moves, and the controls in front of them."""

import io

import pandas as pd
import pytest
from PIL import Image

import lfpr
from lfpr.experiments import open_experiment
from lfpr.paper.explore import CONSTRAINTS, Explorer, Panel

SMALL = {"train_images": 24, "val_images": 16, "num_samples": 40, "score_batch": 20, "retrain_batch": 16}


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    return Explorer(open_experiment("tap-textvqa", runs=tmp_path_factory.mktemp("runs"), **SMALL))


@pytest.fixture(scope="module")
def scored(explorer):
    """The explorer once one model was scored and retrained."""
    explorer.unpruned(compute=True)
    explorer.stage("retrained", "magnitude", 0.6, compute=True)
    return explorer


def test_masks_keep_the_budget_and_are_searched_once(explorer, monkeypatch):
    masks = explorer.masks("label-free", 0.35)
    kept = explorer.kept(masks)
    assert set(kept) == {"parameters"} and 0.34 < kept["parameters"] <= 0.35
    assert not list(explorer.experiment.runs.finished("prune"))  # a search alone: no model was made
    monkeypatch.setattr(explorer.experiment, "search", None)
    assert explorer.masks("label-free", 0.35) is masks
    monkeypatch.undo()
    monkeypatch.setattr(explorer.experiment, "importance", None)  # not computed again for another constraint
    assert explorer.kept(explorer.masks("label-free", 0.7))["parameters"] > 0.69


def test_macs_are_shown_where_they_are_the_budget(explorer, monkeypatch):
    cost = lfpr.MacCost(explorer.experiment.encoder, 40)
    monkeypatch.setattr(type(explorer.experiment), "cost", cost)
    other = Explorer(explorer.experiment)
    masks = other.masks("magnitude", 0.3)
    assert other.kept(masks) == {"parameters": explorer.kept(masks)["parameters"], "MACs": cost.fraction(masks)}


def test_only_what_is_asked_for_is_computed(explorer):
    assert explorer.stage("retrained", "magnitude", 0.5) is None and explorer.stage("pruned", "magnitude", 0.5) is None
    stage = explorer.stage("pruned", "magnitude", 0.5, compute=True)
    assert explorer.stage("pruned", "magnitude", 0.5) == stage and stage.result["fraction"] <= 0.5
    scores = explorer.scores("magnitude", constraints=[0.5, 0.55])
    assert scores.loc[0.5, "pruned"] == 100 * stage.result["score"]
    assert scores.notna().sum().tolist() == [1, 0] and scores.index.tolist() == [0.5, 0.55]


def test_retrained_masks_are_shown_with_their_values(scored):
    stage = scored.stage("retrained", "magnitude", 0.6)
    masks = scored.masks("magnitude", 0.6)
    assert masks.heads_kept == stage.result["heads"] and not masks.equal(masks.binary())
    heads, neurons, curve = scored.figure("magnitude", 0.6).axes
    assert heads.get_title() == f"{sum(masks.heads_kept)} of 48 heads and their mask values"
    assert len(heads.texts) == sum(masks.heads_kept)
    assert [int(text.get_text()) for text in neurons.texts] == masks.neurons_kept
    bars = [bar.get_width() for bar in neurons.patches]
    assert bars == [384] * 4 + masks.neurons_kept
    lines = {line.get_label(): line for line in curve.lines}
    assert lines["Retrained"].get_ydata().tolist() == [100 * stage.result["score"]]
    assert lines["Unpruned"].get_ydata()[0] == 100 * scored.unpruned().result["score"]


def test_a_figure_without_scores_says_so(explorer, monkeypatch):
    monkeypatch.setattr(explorer, "unpruned", lambda: None)
    heads, _, curve = explorer.figure("random", 0.3, seed=5).axes
    assert heads.get_title().endswith("of 48 heads") and not heads.texts
    assert [text.get_text() for text in curve.texts] == ["not scored yet"] and curve.get_legend() is None


def test_the_table_has_a_row_per_constraint(scored):
    table = scored.table("magnitude", [0.8, 0.6])
    assert table.index.tolist() == [0.8, 0.6] and (table["parameters kept (%)"] <= [80, 60]).all()
    assert (table[["heads", "neurons"]].iloc[0] > table[["heads", "neurons"]].iloc[1]).all()
    assert pd.isna(table.loc[0.8, "retrained"]) and table.loc[0.6, "retrained"] > 0


def test_bad_arguments_are_named(explorer):
    with pytest.raises(ValueError, match="method = 'l3'"):
        explorer.masks("l3", 0.4)
    with pytest.raises(ValueError, match="constraint = 1.5"):
        explorer.masks("magnitude", 1.5)


@pytest.fixture
def panel(scored):
    return Panel(lambda name: scored.experiment, ["tap-textvqa", "other"], "tap-textvqa", "magnitude", 0.6)


def test_the_panel_follows_its_controls(panel, scored):
    size = Image.open(io.BytesIO(panel.picture.value)).size
    assert size[0] > 1000 and "retrained <b>" in panel.summary.value
    assert [value for _, value in panel.method.options] == list(scored.methods)
    assert all(button.disabled for button in panel.buttons.values())  # both scores are there
    before = panel.picture.value
    panel.constraint.value = 0.65
    assert panel.picture.value != before and "retrained <b>" not in panel.summary.value
    assert f"{scored.kept(scored.masks('magnitude', 0.65))['parameters']:.1%}" in panel.summary.value
    assert not any(button.disabled for button in panel.buttons.values())
    panel.method.value, panel.seed.value = "random", 3
    assert f"{scored.kept(scored.masks('random', 0.65, 3))['parameters']:.1%}" in panel.summary.value
    panel.experiment.value = "other"
    assert panel.method.value == "random" and len(panel._explorers) == 2


def test_the_button_scores_the_model(panel, scored):
    panel.constraint.value = 0.7
    assert scored.stage("pruned", "magnitude", 0.7) is None
    panel.buttons["pruned"].click()
    score = scored.stage("pruned", "magnitude", 0.7).result["score"]
    assert f"pruned <b>{score:.1%}" in panel.summary.value
    assert panel.buttons["pruned"].disabled and not panel.buttons["retrained"].disabled


def test_the_panel_shows_what_is_wrong(panel):
    panel.constraint.min = 0.001
    panel.constraint.value = 0.001
    assert panel.summary.value == "<b>constraint = 0.0: must be in (0, 1]</b>"
    panel.constraint.value = 0.3
    assert "Kept: <b>" in panel.summary.value


def test_the_sliders_steps_are_the_curves():
    assert CONSTRAINTS[0] == 0.1 and CONSTRAINTS[-1] == 0.95 and len(CONSTRAINTS) == 18
