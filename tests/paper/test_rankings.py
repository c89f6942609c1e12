"""How alike rankings are, against tables made so that it is known."""

import numpy as np
import pandas as pd
import pytest
from small_tables import NAME, points

from lfpr.paper.figures import agreement, rank_scatter, save, scoring
from lfpr.paper.labels import BLUE, ORANGE


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
    assert points(correlation, BLUE) == [(0.7, -0.15)] and points(correlation, ORANGE) == [(0.5, 0.15)]  # beside it
    assert points(overlap, BLUE) == [(35, -0.15)]
    assert [label.get_text() for label in correlation.get_yticklabels()] == ["TAP, TextVQA: released"]


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
