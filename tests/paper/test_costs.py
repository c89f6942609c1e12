"""Times, sizes and minutes from small made-up tables."""

import pandas as pd
import pytest
from small_tables import points

from lfpr.paper.figures import minutes_table, speed, speed_table
from lfpr.paper.labels import BLUE


def test_minutes_are_those_of_one_run(minutes):
    table = minutes_table(minutes)
    assert table.columns.tolist() == ["Retraining", "Evaluation", "Speed", "Peak memory (MB)"]
    assert table.loc[("TAP, TextVQA", "mini")].tolist() == ["0.75", "< 0.01", "–", "800"]
    assert table.loc[("CLIP, MSCOCO", "mini")].tolist() == ["–", "–", "2.0", "9,000"]
    assert table.iloc[-1].tolist() == ["3–34", "–", "–", "–"]
    with pytest.raises(ValueError, match=r"minutes\.csv: two rows"):
        minutes_table(pd.concat([minutes, minutes]))


def test_speed_is_relative_to_the_unpruned_model(speeds):
    panel = speed(speeds).axes[0]
    assert points(panel, BLUE) == [(50, 0)] and [bar.get_width() for bar in panel.patches] == [45]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["TAP, TextVQA"]
    table = speed_table(speeds)
    assert [model for _, model, _ in speed_table(speeds[::-1]).index] == ["unpruned", "pruned"]
    assert table.loc[("TAP, TextVQA", "pruned", "40 %")].tolist() == ["0.40", "0.9", "1.6", "5.00", "45", "50"]
    for draw in (speed, speed_table):
        with pytest.raises(ValueError, match=r"speed\.csv: tap-textvqa has no row with model = 'unpruned'"):
            draw(speeds[speeds.model == "pruned"])
