"""Studies: how far rankings of heads and neurons agree, and which experiment has which study."""

import pandas as pd
import pytest
import torch

from lfpr.experiments import SPECS, Cell, open_experiment
from lfpr.experiments.studies import DOWNSTREAM, STUDIES, released_masks, scales, scoring


@pytest.fixture
def tap(tmp_path):
    return open_experiment(runs=tmp_path, train_images=24, val_images=16, num_samples=40, score_batch=20)


def test_rankings_are_compared_through_the_experiment(tap):
    rows = tap.study("scoring")
    assert [(row["with"], row["kind"], row["dropout"]) for row in rows] == [
        (name, kind, dropout)
        for name, dropout in (("released", 0.1), ("batches of 8", 0.0), ("another sample", 0.0))
        for kind in ("head", "neuron")
    ]
    assert all(0.5 < row["spearman"] < 1 and 0.2 < row["overlap"] <= 1 for row in rows)
    stages = [stage.provenance["parameters"] for stage in tap.runs.finished("importance")]
    assert {(stage["scoring"], stage["batch"], stage["seed"]) for stage in stages} == {
        ("per-sample", 20, 0),
        ("per-sample", 20, 1),
        ("batched", 8, 0),
        ("released", 8, 0),
    }
    with tap.runs.load_only():
        assert scoring(tap) == rows  # everything that it needs is a stage


def test_how_it_is_scored_names_the_cell_and_its_masks(tap):
    masks = {name: tap.searched(Cell(scoring=name)) for name in ("per-sample", "batched", "released")}
    assert tap.searched().equal(masks["per-sample"])
    assert not torch.equal(masks["per-sample"].neurons, masks["released"].neurons)


def test_specs_name_studies_that_are_there(tap):
    for spec in SPECS.values():
        assert set(spec.studies) <= set(STUDIES) and set(spec.downstream) <= set(DOWNSTREAM)
    with pytest.raises(ValueError, match="study = 'sensitivity': tap-textvqa has \\['scoring'\\]"):
        tap.study("sensitivity")


def test_the_released_scales_are_what_was_released():
    masks, table = released_masks(), pd.DataFrame(scales())
    assert len(table) == 3 * 12 * 2
    for (model, constraint), released in masks.items():
        part = table[(table.model == model) & (table.constraint == constraint)]
        assert part.fraction.iloc[0] == pytest.approx(constraint, abs=5e-5)  # their logs: "Pruned Model MAC: 40.00 %"
        assert part[part.part == "heads"].kept.tolist() == released.heads_kept
        assert part.smallest.min() == min(released.heads.min(), released.neurons.min())
        assert part.largest.max() > 10 and part.smallest.min() < -10  # what no ridge and no limit lead to
        assert (part.total == part.part.map({"heads": 12, "neurons": 3072})).all()
