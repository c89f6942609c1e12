"""Masks, cost and scores as the constraint moves, and the controls in front of them."""

import re

import pandas as pd
import pytest

import lfpr
from lfpr.experiments import open_experiment
from lfpr.paper.explore import CONSTRAINTS, DARK, Explorer, theme
from lfpr.paper.labels import METHODS

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
    lines = {line.get_gid(): line for line in curve.lines}
    assert lines["magnitude-retrained"].get_ydata().tolist() == [100 * stage.result["score"]]
    assert lines["unpruned"].get_ydata()[0] == 100 * scored.unpruned().result["score"]


def test_a_figure_without_scores_says_so(explorer, monkeypatch):
    monkeypatch.setattr(explorer, "unpruned", lambda: None)
    heads, _, curve = explorer.figure("random", 0.3, seed=5).axes
    assert heads.get_title().endswith("of 48 heads") and not heads.texts
    assert [text.get_text() for text in curve.texts] == ["not scored yet"] and curve.get_legend() is None


@pytest.mark.parametrize("method", ["random", "label-free", "l1"])
def test_the_point_just_scored_is_drawn_and_ringed(explorer, method):
    explorer.unpruned(compute=True)
    score = 100 * explorer.stage("pruned", method, 0.95, compute=True).result["score"]
    *_, curve = explorer.figure(method, 0.95).axes
    line = next(line for line in curve.lines if line.get_gid() == f"{method}-pruned")
    assert (95, score) in zip(*line.get_data(), strict=True) and line.get_marker() == METHODS[method].marker
    assert [95, score] in curve.collections[0].get_offsets().tolist()
    assert f"{method.capitalize()}, pruned: " in (said := explorer.pictures(method, 0.95))
    assert f"{score:.1f} % at 95%" in said


def test_curves_of_several_methods_lie_on_another(scored):
    scored.stage("pruned", "random", 0.5, compute=True)
    *_, curve = scored.figure("label-free", 0.5, curves=["magnitude", "random"]).axes
    names = {text.get_text(): text.get_color() for text in curve.texts}
    assert names["Magnitude"] == METHODS["magnitude"].color and names["Random"] == METHODS["random"].color
    colors = {line.get_gid(): line.get_color() for line in curve.lines}
    assert colors["random-pruned"] == METHODS["random"].color and "magnitude-retrained" in colors
    *_, alone = scored.figure("label-free", 0.5).axes
    assert not any(str(line.get_gid()).startswith("random") for line in alone.lines)


def test_the_pictures_take_the_colours_of_a_theme(scored):
    pictures = scored.pictures("magnitude", 0.6, curves=["random"])
    assert pictures == scored.pictures("magnitude", 0.6, curves=["random"])  # no date, no random names
    assert pictures.count('<svg role="img" aria-label="') == 3
    masks = scored.masks("magnitude", 0.6)
    assert f'aria-label="{sum(masks.heads_kept)} of 48 heads kept, by layer: {masks.heads_kept}"' in pictures
    colors = set(re.findall(r"#[0-9a-f]{6}\b", pictures))
    assert not colors & {*DARK, "#000000", "#333333", "#4c4c4c"} and METHODS["magnitude"].color in colors
    used, style = set(re.findall(r"var\((--lfpr-\w+)\)", pictures)), theme(".panel")
    assert used and all(style.count(f"{name}:") == 2 for name in used)  # for light and for dark
    assert re.findall(r"<text[^>]*>Magnitude</text>", pictures)  # text, which can be read and found


def test_masks_are_ready_once_importance_is_there(explorer):
    assert not explorer.ready("absolute", 0.4) and explorer.ready("magnitude", 0.4)
    explorer.masks("absolute", 0.3)
    assert explorer.ready("absolute", 0.4)
    with pytest.raises(ValueError, match="constraint = 1.5"):
        explorer.ready("magnitude", 1.5)


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


def test_the_sliders_steps_are_the_curves():
    assert CONSTRAINTS[0] == 0.1 and CONSTRAINTS[-1] == 0.95 and len(CONSTRAINTS) == 18
