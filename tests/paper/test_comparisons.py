"""The figures that compare, from small made-up tables: what is drawn equals the table, and errors."""

import numpy as np
import pytest
from small_tables import CLIP, NAME, add, result, small_results, texts, variant

from lfpr.paper.figures import alternatives, comparison_table, controls, sal_table, sampling
from lfpr.paper.labels import spec_of
from lfpr.paper.published_numbers import DOLLARS_PER_HOUR, PUBLISHED
from lfpr.paper.registry import items


def test_alternatives_print_every_way_that_was_run(results):
    figure = alternatives(results, NAME)
    (panel,) = figure.axes
    ways = ["Pruned", "Pruned, rescaled", "Masks alone retrained", "ReSt", "Random + ReSt"]
    assert [label.get_text() for label in panel.get_yticklabels()] == ways
    assert [bar.get_width() for bar in panel.patches] == pytest.approx(
        [77, 77.5, 78, 100 * (0.79 + 0.8 + 0.79) / 3, 70]
    )
    assert {"77.0", "77.5", "78.0", "79.3", "70.0", "unpruned 81.3"} <= set(texts(figure))
    more = add(results, variant("rescaled=True", 0.8, constraint=0.8))
    assert [panel.get_title() for panel in alternatives(more, NAME).axes] == [
        f"{c} % of MMT parameters kept" for c in (80, 40)
    ]
    with pytest.raises(ValueError, match="nothing to compare"):
        alternatives(small_results(), NAME)


def test_clip_has_its_own_alternatives_and_controls(clip_results):
    def clip(method, score, **other):
        return result(method, 0.4, 0, False, score, experiment=CLIP, **other)

    rows = add(clip_results, clip("fisher", 0.5, variant="rearranged=True, rescaled=False"), clip("uniform", 0.55))
    labels = [label.get_text() for label in alternatives(rows, CLIP).axes[0].get_yticklabels()]
    assert labels == ["Searched, rearranged", "Pruned, rescaled", "Distilled: last layers", "Random, distilled"]
    panel = controls(rows, CLIP).axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == [
        "Fisher (labels)",
        "Fisher, equal share per layer",
        "Random",
    ]
    assert [bar.get_width() for bar in panel.patches] == pytest.approx([77, 55, 100 * (0.49 + 0.45 + 0.55) / 3])


def test_sampling_puts_the_default_among_the_sample_counts(results):
    samples, steps = sampling(results, NAME).axes
    (line,) = [line for line in samples.lines if line.get_marker() == "o"]
    assert np.allclose(line.get_xydata(), [(10, 70), (100, 75), (1000, 77)]) and samples.get_xscale() == "log"
    assert [line.get_xydata().tolist() for line in steps.lines if line.get_marker() == "o"] == [[[0, 71]]]
    assert any(np.allclose(line.get_ydata(), 77) for line in steps.lines if line.get_linestyle() == ":")
    _, steps = sampling(results, NAME, step=1).axes
    (line,) = [line for line in steps.lines if line.get_marker() == "o"]
    assert np.allclose(line.get_xydata(), [(0, 71), (1, 77)])
    with pytest.raises(ValueError, match="no variant of tap-textvqa such as 'num_samples=100'"):
        sampling(small_results(), NAME)


def test_alternatives_without_rows_are_left_out(results):
    ways = alternatives(results, NAME).axes[0].get_yticklabels()
    assert "Pruned, scored per sample" in spec_of(NAME).alternatives
    assert "Pruned, scored per sample" not in [label.get_text() for label in ways]
    there = add(results, variant("scoring=per-sample", 0.76))
    ways = alternatives(there, NAME).axes[0].get_yticklabels()
    assert [label.get_text() for label in ways][2] == "Pruned, scored per sample"


RELEASED, RESCALED = "rearranged=True, rescaled=released", "rescaled=True"


def test_comparison_has_the_papers_numbers_and_ours(results):
    def fisher(name, score):
        return result("fisher", 0.4, 0, False, score, variant=name, minutes=np.nan)

    lfpr = (results.method == "label-free") & results.retrained & (results.constraint == 0.4)
    results.loc[lfpr & results.variant.isna(), "delta_megabytes"] = 0.4321
    table = comparison_table(add(results, fisher(RESCALED, 0.5012)))
    assert len(table) == 13 and table.columns.is_unique
    paper, here = (
        table.filter(like=name).rename(columns=lambda name: name.split(": ")[1]) for name in ("Paper", "Here")
    )
    ours = "40 %", "LFPR: label-free + ReSt"
    assert paper.loc[ours].tolist() == ["11.4", "47.57", "2.34", "0.58", "0.116", "43.9"]
    assert here.loc[ours].tolist() == ["39.9 %", "79.3 ± 0.6", "2.0", "0.60", "0.002", "1.50", "0.43"]
    rescaled = ["39.9 %", "50.1", "31.2", "–", "–", "1.50", "–"]
    assert here.loc[("40 %", "Fisher: rescaled, not retrained")].tolist() == rescaled
    assert paper.loc[("80 %", "LFPR: label-free + ReSt"), "drop"] == "−0.01"
    assert paper.loc[("80 %", "Magnitude (L1) + ReSt"), "dollars"] == "206.9"
    assert set(paper.loc[("40 %", "Random + ReSt")]) == set(here.loc[("80 %", "OWO")]) == {"–"}
    assert here.loc[("100 %", "Unpruned"), "accuracy"] == "81.3"
    whole = comparison_table(add(results, fisher(RESCALED, 0.5012), fisher(RELEASED, 0.25)))  # the framework's own way
    row = "40 %", "Fisher: rearranged, rescaled (Kwon et al.), not retrained"
    assert whole.loc[row, "Here: accuracy"] == "25.0" and whole.loc[row, "Paper: accuracy"] == "25.29"


def test_what_was_published_of_sal_stands_beside_ours(results):
    def rows(name, retrained, *scores, constraint=0.5):
        about = {"experiment": name, "minutes": 0.5 if retrained else np.nan}
        return [result("label-free", constraint, seed, retrained, score, **about) for seed, score in enumerate(scores)]

    names = "sal-textvqa", "sal-stvqa"
    whole = [result("unpruned", 1.0, 0, False, 0.95, experiment=name, fraction=1.0) for name in names]
    pruned = [
        *rows(names[0], False, 0.85, 0.83),
        *rows(names[1], False, 0.9),
        *rows(names[0], False, 0.6, constraint=0.3),
    ]
    retrained = rows(names[0], True, 0.94, 0.92)
    table = sal_table(add(results, *whole, *pruned, *retrained))
    assert table.index.tolist() == [("50 %",)]  # nothing was retrained at 30 %
    assert table.iloc[0].to_dict() == {
        "Paper: drop": "< 2.9",
        "Paper: GPU hours": "1.19",
        "TextVQA: pruned": "11.0 ± 1.4",
        "TextVQA: ReSt": "2.0 ± 1.4",
        "TextVQA: minutes": "0.50",
        "ST-VQA: pruned": "–",
        "ST-VQA: ReSt": "–",
        "ST-VQA: minutes": "–",
    }
    entries = {name: caption for name, caption, _ in items({"results": add(results, *whole, *pruned)})}
    assert (
        "SaL, TextVQA (mini profile" in entries["table_comparison_sal"]
        and "1.19 GPU hours" in entries["table_comparison_sal"]
    )


def test_the_papers_dollars_are_its_hours():
    for (method, _), (_, _, hours, dollars, _) in PUBLISHED.items():
        rate = 6.12 if method == "l1" else DOLLARS_PER_HOUR
        assert dollars == pytest.approx(rate * hours, rel=2e-3)
