"""Figures of layers, importance and mask values: what is drawn equals the table, and errors."""

import numpy as np
import pandas as pd
import pytest
from small_tables import NAME, texts

from lfpr.paper.figures import accuracy, importance_map, kept_per_layer, mask_values
from lfpr.paper.labels import layer_names


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


def test_encoder_decoders_have_rows_of_three_kinds(tables):
    """Two layers of an encoder, one of a decoder with cross-attention: four attentions, three FFNs."""
    layers, values, importance = (tables[name] for name in ("layers", "mask_values", "importance"))
    assert layer_names(4, 3) == ["E1", "E2", "D1", "C1"] and layer_names(2, 2) == ["1", "2"]
    more = [layers[layers.layer == 1].assign(layer=layer) for layer in (2, 3)]
    more[1][["neurons", "full_neurons"]] = np.nan
    figure = kept_per_layer(pd.concat([layers, *more]), NAME)
    heads, neurons, _ = figure.axes
    assert [tick.get_text() for tick in heads.get_xticklabels()] == ["E1", "E2", "D1", "C1"]
    assert [tick.get_text() for tick in neurons.get_xticklabels()] == ["E1", "E2", "D1"]
    assert [text.get_text() for text in neurons.texts] == ["0", "0", "0", "3", "3", "3"]
    assert "Layer (Encoder, Decoder, Cross-attention)" in texts(figure)

    def longer(rows):
        last = rows[rows.layer == 1]
        return pd.concat([rows, last.assign(layer=2), last[last.kind == "head"].assign(layer=3)])

    figure = importance_map(longer(importance), NAME)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["E1", "E2", "D1", "C1"]
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["E1", "E2", "D1"]
    figure = mask_values(longer(values), NAME)
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["E1", "E2", "D1", "C1"]


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


def test_mask_values_of_one_share_have_a_title_instead_of_a_legend(tables):
    values = tables["mask_values"]
    several, one = mask_values(values, NAME), mask_values(values[values.constraint == 0.4], NAME)
    assert several.legends and not several.axes[0].get_title()
    assert not one.legends and one.axes[0].get_title() == "40 % of MMT parameters kept"
