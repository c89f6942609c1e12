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
    rescaled=st.sampled_from([None, True, False]),
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
        *[("rescaled", value) for value in ("false", 0, "")],
        *[("seed", value) for value in (-1, 0.5, "0", None)],
        *[("num_samples", value) for value in (0, 1.5, "10")],
        *[("scoring", value) for value in ("published", True, 1)],
        *[("step", -1), ("last_layers", -1), ("percent", 0), ("percent", 101), ("method", 3), ("trained", 1)],
    ],
)
def test_a_value_out_of_range_or_of_another_kind_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field} = .*: must be"):
        Cell(**{field: value})


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
