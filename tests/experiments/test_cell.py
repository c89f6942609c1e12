"""Cells: checked once, named by what differs from the experiment's own way, resolved by its spec."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfpr.experiments.cell import CELL_FIELDS, PLACE, Cell
from lfpr.experiments.specs import SPECS

CELLS = st.builds(
    Cell,
    method=st.sampled_from([None, "label-free", "fisher", "random"]),
    constraint=st.none() | st.floats(0.01, 1),
    seed=st.integers(0, 9),
    rearranged=st.sampled_from([None, False]),
    rescaled=st.sampled_from([None, True, False, "released"]),
    num_samples=st.none() | st.integers(1, 99),
    scoring=st.sampled_from([None, "batched", "released"]),
    percent=st.none() | st.integers(1, 100),
)


@pytest.mark.parametrize(
    "field, value",
    [
        *[("constraint", value) for value in (0, -0.1, 1.01, float("nan"), float("inf"), "0.4", "sixty", True)],
        *[("percentile", value) for value in (-1, 100, "50", False)],
        *[("rearranged", value) for value in ("false", "True", 1, 0.0)],
        *[("rescaled", value) for value in ("false", 0, "", "Released")],
        *[("heads_removed", value) for value in (0, 1.5, "22")],
        *[("seed", value) for value in (-1, 0.5, "0", None)],
        *[("num_samples", value) for value in (0, 1.5, "10")],
        *[("scoring", value) for value in ("published", True, 1)],
        *[
            ("step", -1),
            ("last_layers", -1),
            ("percent", 0),
            ("percent", 101),
            ("method", 3),
            ("trained", 1),
            ("masks", 3),
        ],
    ],
)
def test_a_value_out_of_range_or_of_another_kind_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field} = .*: must be"):
        Cell(**{field: value})


def test_whole_numbers_are_whole():
    """As cells of a grid and names of files have them; YAML and papermill may give 22.0."""
    cell = Cell(heads_removed=22.0, seed=8.0)
    assert cell.name == Cell(heads_removed=22, seed=8).name == "sensitivity-seed8-heads_removed=22"
    assert isinstance(Cell(num_samples=3000.0).num_samples, int)


def test_a_constraint_or_a_percentile():
    with pytest.raises(ValueError, match="constraint = 0.4, percentile = 50: give one of them"):
        Cell(constraint=0.4, percentile=50)
    assert Cell(percentile=50).heuristic == "threshold" and Cell(constraint=0.4).heuristic == Cell().heuristic == "sum"


def test_what_differs_from_the_own_way_names_the_variant():
    cell = Cell("fisher", 0.4, seed=2, rescaled=True, num_samples=100)
    assert cell.variant == "num_samples=100, rescaled=True" and Cell("fisher", 0.4).variant == ""
    assert cell.name == "fisher-0.4-seed2-num_samples=100-rescaled=True"
    assert Cell("label-free", percentile=30).name == "label-free-p30-seed0"
    assert tuple(cell.place) == PLACE
    assert cell.parameters == {
        "method": "fisher",
        "constraint": 0.4,
        "seed": 2,
        "num_samples": 100,
        "rescaled": True,
    }


@given(CELLS)
def test_cells_are_values(cell):
    assert Cell(**cell.parameters) == cell and hash(Cell(**cell.parameters)) == hash(cell)
    assert set(cell.parameters) <= set(CELL_FIELDS) and (cell.variant == "") == (not cell.options)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cell.seed = 1


@given(CELLS, st.sampled_from(list(SPECS)))
def test_resolving_fills_in_what_is_not_set_and_nothing_else(cell, name):
    spec = SPECS[name]
    if cell.method not in (None, *spec.methods):
        with pytest.raises(ValueError, match="method = .*: must be one of"):
            cell.resolved(spec, ())
        return
    resolved = cell.resolved(spec, ("label-free", "fisher"))
    own = {"method": spec.method, "constraint": spec.constraint, "rescaled": spec.rescaled, "trained": spec.trained}
    for field in CELL_FIELDS:
        value = getattr(cell, field)
        if value is not None:
            assert getattr(resolved, field) == value
        elif field in own:
            assert getattr(resolved, field) == own[field]
    assert resolved.rearranged == (
        spec.rearranged and resolved.method in ("label-free", "fisher") if cell.rearranged is None else False
    )
    assert resolved.resolved(spec, ("label-free", "fisher")) == resolved


def test_a_percentile_leaves_no_constraint():
    resolved = Cell(percentile=50).resolved(SPECS["tap-textvqa"], ())
    assert resolved.constraint is None and resolved.percentile == 50


def test_only_gradients_can_rearrange():
    with pytest.raises(ValueError, match="rearranged = True: method 'random' has no gradients"):
        Cell("random", rearranged=True).resolved(SPECS["tap-textvqa"], ("fisher",))


CLIP = SPECS["clip-mscoco"]


def test_masks_need_no_search():
    given = Cell(masks="outputs/openai/clip-vit-base-patch16/mscoco/0.75/seed_1")
    assert given.method == "given" and given.heuristic == "none"
    assert given.name == "given-seed0-masks=clip-vit-base-patch16_mscoco_0.75_seed_1"
    assert Cell(masks="/my/masks/").name == "given-seed0-masks=my_masks"  # of a file, not of a folder
    resolved = given.resolved(CLIP, ("fisher",))
    assert (resolved.constraint, resolved.rearranged, resolved.rescaled) == (None, False, False)
    assert given.resolved(SPECS["tap-textvqa"], ()).masks == given.masks
    walked = Cell(heads_removed=22, seed=8)
    assert walked.name == "sensitivity-seed8-heads_removed=22" and walked.variant == "heads_removed=22"
    resolved = walked.resolved(CLIP, ("fisher",))
    assert (resolved.method, resolved.constraint, resolved.rescaled) == ("sensitivity", None, False)
    assert Cell(heads_removed=22, rescaled=True).resolved(CLIP, ()).rescaled is True
    assert walked.resolved(CLIP, ()).resolved(CLIP, ()) == walked.resolved(CLIP, ())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"method": "fisher", "heads_removed": 22}, "heads_removed = 22: is of method 'sensitivity', found .*'fisher'"),
        ({"method": "fisher", "masks": "here"}, "masks = 'here': is of method 'given'"),
        ({"method": "given"}, "masks = None: method 'given' needs a folder"),
        ({"method": "sensitivity"}, "heads_removed = None, step = None: .* needs one of them"),
        ({"heads_removed": 22, "step": 2}, "heads_removed = 22, step = 2"),
        ({"heads_removed": 22, "constraint": 0.4}, "constraint = 0.4: method 'sensitivity' gives masks"),
        ({"masks": "here", "percentile": 40}, "percentile = 40: method 'given' gives masks"),
        ({"masks": "here", "rescaled": "released"}, "rescaled = 'released': method 'given' takes masks as they are"),
        ({"heads_removed": 22, "rearranged": True}, "rearranged = True: method 'sensitivity' has no gradients"),
    ],
)
def test_what_masks_without_a_search_cannot_have_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Cell(**fields).resolved(CLIP, ("fisher",))


def test_other_experiments_have_no_sensitivity():
    with pytest.raises(ValueError, match="method = 'sensitivity': must be one of"):
        Cell(heads_removed=22).resolved(SPECS["tap-textvqa"], ())
