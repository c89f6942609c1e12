"""Recall, sensitivity steps, cascades and scale factors from small made-up tables."""

import numpy as np
import pandas as pd
import pytest
from small_tables import CLIP, add, points, result, texts

from lfpr.paper.figures import cascade_growth, cascade_table, recall_table, scale_factors, sensitivity_steps
from lfpr.paper.labels import BLUE, ORANGE


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


def test_cascades_of_masks_without_a_search_and_of_three_levels(cascade, clip_results):
    walked = result("sensitivity", np.nan, 8, False, 0.42, experiment=CLIP, heuristic="none", variant="heads_removed=7")
    rows = add(clip_results, *(walked | {"fraction": share, "r10": 0.5} for share in (0.954, 0.83)))
    rows.loc[rows.fraction == 0.83, "variant"] = "heads_removed=21"
    steps = [cascade.iloc[0].to_dict() | {"method": "sensitivity", "constraint": np.nan} for _ in range(2)]
    for step, share in zip(steps, (0.954, 0.83), strict=True):
        step["fraction"] = share
    levels = cascade.iloc[3].to_dict() | {"m": "50, 25", "r1": 0.7}
    table = cascade_table(pd.DataFrame([*cascade.to_dict("records"), *steps, levels]), rows, CLIP)
    label = "Sensitivity (labels)"
    assert (
        table.loc[("95.4 %", label, "no", "50"), "R@1 alone"] == "42.0" and ("83 %", label, "no", "50") in table.index
    )
    assert table.loc[("40 %", "Fisher (labels)", "yes", "50, 25"), "R@1 cascade"] == "70.0"
    assert table.loc[("40 %", "Fisher (labels)", "yes", "50"), "R@1 cascade"] == "60.0"


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
