"""The ladder from small made-up tables: what is drawn equals the table, what is missing is left out."""

import numpy as np
import pandas as pd
import pytest
from small_tables import CLIP, NAME, add, points, result, small_results, texts

from lfpr.experiments.specs import SPECS
from lfpr.paper.figures import ladder, ladder_table, ladders, ladders_table, seconds
from lfpr.paper.labels import METHODS, WAYS, way_look
from lfpr.paper.registry import items, locate

RECONSTRUCTED = "reconstructed=True"
TEXTS = "minilm-texts"


def made(method, variant, score, retrained=False, constraint=0.4, seed=0, **other):
    return result(method, constraint, seed, retrained, score, variant=variant, **other)


@pytest.fixture
def ways():
    """Pruned, rescaled, K-prune, reconstructed and ReSt; random masks pruned, reconstructed and ReSt."""
    rows = [
        *(made("kprune", "", score, constraint=c, seconds=50 * c) for c, score in ((0.4, 0.6), (0.8, 0.7))),
        *(made("surgeon", RECONSTRUCTED, 0.7 + 0.02 * s, seed=s, seconds=4.0 + 2 * s) for s in range(3)),
        made("surgeon", RECONSTRUCTED, 0.78, constraint=0.8, seconds=5.5),
        made("random", RECONSTRUCTED, 0.55, seconds=8.04),
        made("label-free", "rescaled=True", 0.775, seconds=np.nan),
        made("label-free", "reconstructed=True", 0.1),  # on other masks: no way of the ladder
        made("surgeon", "", 0.2),
    ]
    return add(small_results(), *rows)


def drawn(panel, kind):
    return points(panel, WAYS[kind].color)


def names(results):
    return [name for name, *_ in items({"results": results}) if "ladder" in name or "seconds" in name]


def test_ways_stand_beside_the_same_on_random_masks(ways):
    figure = ladder(ways, NAME)
    masks, random = figure.axes
    pruned, retrained = [(39.9, 77), (79.9, 241 / 3)], [(39.9, 238 / 3), (79.9, 242 / 3)]
    assert np.allclose(drawn(masks, "Pruned"), pruned) and np.allclose(drawn(masks, "Retrained"), retrained)
    assert drawn(masks, "Reconstructed") == [(39.9, 72), (79.9, 78)]
    assert drawn(masks, "K-prune") == [(39.9, 60), (79.9, 70)] and drawn(masks, "Rescaled") == [(39.9, 77.5)]
    assert np.allclose(drawn(random, "Pruned"), [(39.9, 149 / 3), (79.9, 230 / 3)])
    assert drawn(random, "Retrained") == [(39.9, 70), (79.9, 79)] and drawn(random, "Reconstructed") == [(39.9, 55)]
    assert drawn(random, "K-prune") == drawn(random, "Rescaled") == []  # no control, and none that was run
    assert masks.get_ylim() == random.get_ylim() and masks.get_xlim() == random.get_xlim()
    assert [panel.get_title() for panel in figure.axes] == ["Masks by importance", "Random masks"]
    assert all(np.allclose(panel.lines[0].get_ydata(), 81.35) for panel in figure.axes)


def test_the_legend_has_the_ladders_order_and_what_is_retrained_is_solid(ways):
    (legend,) = ladder(ways, NAME).legends
    expected = ["Pruned", "Rescaled", "K-prune", "Reconstructed", "ReSt", "Unpruned (81.3 %)"]
    assert [text.get_text() for text in legend.get_texts()] == expected
    faces = [line.get_markerfacecolor() for line in legend.get_lines()[:5]]
    assert faces == ["white"] * 4 + [WAYS["Retrained"].color]
    panel = ladder(ways, NAME).axes[0]
    of_way = {kind: [line for line in panel.lines if line.get_color() == look.color] for kind, look in WAYS.items()}
    assert of_way["Retrained"][0].get_linestyle() == "-" and of_way["K-prune"][0].get_linestyle() == "-."
    assert of_way["Pruned"][0].get_linestyle() == "--" and of_way["Reconstructed"][0].get_linestyle() == "-."
    assert of_way["Reconstructed"][0].get_markerfacecolor() == "white"


def test_bars_reach_from_the_lowest_to_the_highest_seed(ways):
    panel = ladder(ways, NAME).axes[0]
    bars = [bar.get_segments() for bar in panel.collections]
    ends = [segment[:, 1].round(6).tolist() for bar in bars for segment in bar if len(segment)]
    assert [70, 74] in ends and [76, 78] in ends


def test_without_random_masks_there_is_one_panel(ways):
    (panel,) = ladder(ways[ways.method != "random"], NAME).axes
    assert panel.get_title() == "" and panel.get_xlabel() == "MMT parameters kept (%)"
    assert panel.get_ylabel() == "TextVQA accuracy (%)"


def test_clip_is_pruned_without_its_own_rescaling(clip_results):
    plain = made("fisher", "rearranged=False, rescaled=False", 0.3, experiment=CLIP)
    masks, random = ladder(add(clip_results, plain), CLIP).axes
    assert drawn(masks, "Pruned") == [(39.9, 30)] and len(drawn(masks, "Rescaled")) == 2
    assert drawn(random, "Pruned") == [] and len(drawn(random, "Rescaled")) == 2
    assert "Distilled" in texts(masks.figure)


def test_nothing_is_drawn_of_fewer_than_two_ways(ways):
    one = ways[~ways.retrained & ways.method.isin(["unpruned", "label-free", "random"])]
    one = one[one.variant.isna()]
    assert names(one) == [] and names(ways) == [f"ladder_{NAME}", f"seconds_{NAME}", f"table_ladder_{NAME}"]
    assert f"seconds_{NAME}" not in names(ways.assign(seconds=np.nan))
    assert f"seconds_{NAME}" not in names(ways.drop(columns="seconds"))
    assert names(ways.assign(experiment="mine", method=ways.method)) == []  # no ladder of its own


def test_seconds_are_means_at_the_constraint_of_most_ways(ways):
    figure = seconds(ways, NAME)
    (panel,) = figure.axes
    large = {line.get_color(): line.get_xydata() for line in panel.lines if line.get_markersize() == 5.5}
    assert set(large) == {WAYS["K-prune"].color, WAYS["Reconstructed"].color}  # the others have no seconds
    assert np.allclose(large[WAYS["K-prune"].color], [(20, 60)])
    assert np.allclose(large[WAYS["Reconstructed"].color], [(6, 72)])
    small = [line.get_xydata() for line in panel.lines if line.get_markersize() == 2.5]
    assert np.allclose(small[0], [(20, 60), (40, 70)]) and np.allclose(small[1], [(6, 72), (5.5, 78)])
    assert panel.get_xscale() == "log" and panel.get_title() == "40 % of MMT parameters kept"
    assert {"K-prune", "Reconstructed", "Unpruned (81.3 %)", "Other shares kept"} <= set(texts(figure))
    timed = ways.assign(seconds=ways.seconds.where(ways.constraint == 0.8))
    assert seconds(timed, NAME).axes[0].get_title() == "80 % of MMT parameters kept"
    assert "Other shares kept" not in texts(seconds(timed, NAME))


def test_names_beside_points_cover_neither_each_other_nor_points(ways):
    near = [made("label-free", "", 0.71 + 0.001 * after, after, 0.6, seconds=6 + after) for after in (False, True)]
    near += [made("surgeon", RECONSTRUCTED, 0.715, constraint=0.6, seconds=6.5)]
    near += [made("kprune", "", 0.712, constraint=0.6, seconds=6.2)]
    figure = seconds(add(ways, *near), NAME)
    (panel,) = figure.axes
    assert panel.get_title().startswith("60 %") and len(panel.texts) == 4
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in panel.texts]
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])
    places = panel.transData.transform([text.xy for text in panel.texts])
    assert not any(box.contains(*place) for box in boxes for place in places)
    assert all(panel.bbox.contains(*corner) for box in boxes for corner in box.corners())


def test_table_has_random_masks_below_each_way(ways):
    table = ladder_table(ways, NAME)
    assert table.columns.tolist() == ["100 %", "80 %", "40 %", "Seconds"]
    assert table.index.get_level_values("Way").tolist() == [
        *("Unpruned", "Pruned", "Pruned (random masks)", "Rescaled", "K-prune"),
        *("Reconstructed", "Reconstructed (random masks)", "ReSt", "ReSt (random masks)"),
    ]
    cells = {label: row.tolist() for (label,), row in zip(table.index, table.to_numpy(), strict=True)}
    assert cells["Unpruned"] == ["81.3", "–", "–", "–"]
    assert cells["Reconstructed"] == ["–", "78.0", "72.0 ± 2.0", "6.0"]
    assert cells["Reconstructed (random masks)"] == ["–", "–", "55.0", "8.0"]
    assert cells["K-prune"] == ["–", "70.0", "60.0", "20"] and cells["Rescaled"] == ["–", "–", "77.5", "–"]
    ways.loc[ways.method == "kprune", "fraction"] = 0.3
    table = ladder_table(ways, NAME).reset_index().set_index("Way")
    assert table.loc["K-prune", "40 %"] == "60.0 (at 30 %)"


def test_all_ladders_side_by_side(ways):
    clip = ways.assign(experiment=CLIP, method=ways.method.replace("label-free", "fisher"), score=ways.score / 2)
    lone = add(ways[ways.method == "unpruned"], made("label-free", "", 0.5)).assign(experiment=TEXTS)  # one way
    every = pd.concat([ways, clip, lone])
    figure = ladders(every)
    first, second = figure.axes
    assert [panel.get_title() for panel in figure.axes] == ["TAP, TextVQA", "CLIP, MSCOCO"]
    assert first.get_ylim() == second.get_ylim() == (0, 100)
    assert [panel.get_ylabel() for panel in figure.axes] == ["TextVQA accuracy (%)", "MSCOCO Recall@1 (%)"]
    assert second.get_xlabel() == "Vision encoder MACs kept (%)"
    assert drawn(first, "Reconstructed") == [(39.9, 72), (79.9, 78)] and drawn(first, "Rescaled") == []
    assert drawn(second, "Reconstructed") == [(39.9, 36), (79.9, 39)]
    assert len(drawn(first, "Retrained")) == len(drawn(second, "Retrained")) == 2  # ReSt and distilled look alike
    expected = ["Pruned", "K-prune", "Reconstructed", "Retrained", "Unpruned"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == expected
    assert names(every)[0] == "ladder" and "ladder" not in names(ways)
    table = ladders_table(every)
    assert table.columns.tolist() == ["Unpruned", *expected[:4], "Reconstructed, retrained"]
    assert table.loc[("TAP, TextVQA", "40 %")].tolist() == [
        "81.3",
        "77.0 ± 1.0",
        "60.0",
        "72.0 ± 2.0",
        "79.3 ± 0.6",
        "–",
    ]


def test_many_ladders_stand_in_two_rows(ways):
    every = [ways.assign(experiment=f"tap{size}-{data}") for size in ("", "12") for data in ("textvqa", "stvqa")]
    assert len(ladders(pd.concat(every)).axes) == 4
    clip = ways.assign(experiment=CLIP, method=ways.method.replace("label-free", "fisher"))
    figure = ladders(pd.concat([*every, clip]))
    rows = [panel.get_subplotspec().rowspan.start for panel in figure.axes]
    assert rows == [0, 0, 0, 1, 1]


def test_captions_say_what_was_run(ways):
    captions = {name: caption for name, caption, _ in items({"results": ways})}
    assert "right: the same ways on random masks; dashed, hollow: pruned" in captions[f"ladder_{NAME}"]
    assert "with 40 % of MMT parameters kept; filled: retrained; small, pale" in captions[f"seconds_{NAME}"]
    assert captions[f"table_ladder_{NAME}"].endswith("seconds of computing at 40 %.")
    without = {name: caption for name, caption, _ in items({"results": ways[ways.method != "random"]})}
    assert "random masks" not in without[f"ladder_{NAME}"]
    assert locate(f"table_ladder_{NAME}")[1:] == (NAME, "What wins back what pruning loses, in numbers")
    assert locate("ladder")[1] is None and locate("overview") < locate("ladder") < locate("table_agreement")


def test_every_way_of_every_experiment_has_a_look_of_its_own():
    for spec in SPECS.values():
        looks = [way_look(label, retrained) for label, (_, _, retrained) in spec.ladder.items()]
        assert set(looks) <= set(WAYS.values()) and len(set(looks)) == len(looks)
    for looks in (METHODS, WAYS):
        assert len({(look.color, look.marker) for look in looks.values()}) == len(looks)
    assert way_look("Folded", False).label == "Folded"
