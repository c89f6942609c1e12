"""How far rankings of heads and neurons agree."""

import pytest
import torch
from lfpr.paper.agreement import scoring_agreement, spearman
from scipy.stats import spearmanr

from lfpr.experiments import open_experiment


def test_spearman_is_scipys():
    a, b = torch.rand(4, 12, generator=torch.Generator().manual_seed(0)), torch.rand(4, 12)
    a[0] = a[1]  # equal entries share their rank
    assert spearman(a, b) == pytest.approx(spearmanr(a.flatten(), b.flatten()).statistic)
    assert spearman(a, 3 * a - 1) == pytest.approx(1)


def test_rankings_are_compared_through_the_experiment(tmp_path):
    tap = open_experiment(runs=tmp_path, train_images=24, val_images=16, num_samples=40, score_batch=20)
    rows = scoring_agreement(tap)
    assert [(row["with"], row["kind"], row["dropout"]) for row in rows] == [
        (name, kind, dropout)
        for name, dropout in (("published", 0.1), ("batches of 8", 0.0), ("another sample", 0.0))
        for kind in ("head", "neuron")
    ]
    assert all(0.5 < row["spearman"] < 1 and 0.2 < row["overlap"] <= 1 for row in rows)
    stages = [stage.provenance["parameters"] for stage in tap.runs.finished("importance")]
    scored = {(s["published"], s["batch"], s["per_sample"], s["seed"]) for s in stages}
    assert scored == {(False, 20, True, 0), (False, 20, True, 1), (False, 8, False, 0), (True, 8, False, 0)}
