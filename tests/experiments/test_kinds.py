"""Every field of a cell and every setting, given every kind of wrong value: refused by name."""

import math
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch

from lfpr.experiments import EXPERIMENTS, PROFILES, SPECS, settings_of
from lfpr.experiments.cell import CELL_FIELDS, Cell

FLAGS, COUNTS, NUMBERS, TEXTS = "flags", "counts", "numbers", "texts"
MORE = 1.5  # than a share can be
JUNK = ["0.4", "3", "false", "True", "none", "", b"x", True, MORE, -1, 10**400, math.nan, math.inf, 1j, [], {}]
JUNK += [object(), torch.ones(2), np.ones(2)]
ALLOWED = {FLAGS: [True], COUNTS: [], NUMBERS: [MORE], TEXTS: []}
KIND = {
    **dict.fromkeys(("constraint", "percentile", "percent"), NUMBERS),
    **dict.fromkeys(("seed", "steps", "num_samples", "step", "last_layers", "heads_removed"), COUNTS),
    **dict.fromkeys(("rearranged", "rescaled", "reconstructed"), FLAGS),
    **dict.fromkeys(("method", "scoring", "trained", "masks"), TEXTS),
}
PATHS = {"scores", "first_level", "method", "masks", "trained"}  # any text will do, until it is looked for


def refused(name, value, call):
    """Whether it is refused; only by a ValueError that names it and says what is allowed."""
    try:
        call()
    except ValueError as error:
        text = str(error)
        assert f"{name} = " in text and "must be" in text, (name, value, text)
        return True
    return False


def expected(name, kind, value):
    """Whether a value of JUNK is to be refused."""
    if isinstance(value, str) and name in PATHS:
        return value == "" and name != "trained"
    return not any(value is one for one in ALLOWED[kind])


@pytest.mark.parametrize("name", CELL_FIELDS)
def test_a_cell_takes_no_value_for_what_it_is_not(name):
    kind = KIND[name]
    for value in JUNK:
        allowed = name == "constraint" and value is MORE  # of the kind, not in the range
        found = refused(name, value, lambda value=value: Cell(**{name: value}))
        assert found == (expected(name, kind, value) or allowed), (name, value)
    assert refused("seed", None, lambda: Cell(seed=None)) and Cell(**{name: getattr(Cell(), name)}) == Cell()


def settings_kinds(settings):
    """Name -> kind of each setting, and of those in settings that are dataclasses."""
    kinds = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            kinds |= {name: kind for name, kind in settings_kinds(value).items() if name not in CELL_FIELDS}
    for field in fields(settings):
        value = getattr(settings, field.name)
        kind = {bool: FLAGS, int: COUNTS, float: NUMBERS, str: TEXTS, tuple: "shortlists"}.get(type(value))
        kinds[field.name] = kind or {"step": COUNTS, "scores": TEXTS, "first_level": TEXTS}.get(field.name, "dataclass")
    return kinds


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_setting_takes_no_value_for_what_it_is_not(name, profile):
    own = settings_of(name, profile, {})
    kinds = settings_kinds(own)
    assert len(kinds) > 10
    for setting, kind in kinds.items():
        for value in JUNK:
            call = lambda: settings_of(name, profile, {setting: value})  # noqa: B023, E731
            above = setting == "reranked" and value is MORE
            refusing = expected(setting, kind, value) if kind in ALLOWED else True
            assert refused(setting, value, call) == (refusing or above), (setting, value)
        assert settings_of(name, profile, {setting: None}) == own
    with pytest.raises(ValueError, match="unknown setting 'lrr' of"):
        settings_of(name, profile, {"lrr": None})


def test_numbers_of_numpy_and_torch_become_plain():
    cell = Cell(constraint=np.float64(0.5), seed=np.int32(3), steps=torch.tensor(1), rescaled=np.bool_(False))
    assert cell == Cell(constraint=0.5, seed=3, steps=1, rescaled=False)
    assert [type(value) for value in (cell.constraint, cell.seed, cell.steps, cell.rescaled)] == [float, int, int, bool]
    found = settings_of("clip-mscoco", "mini", {"lr": np.float64(2e-5), "eval_batch": np.array(7), "ridge": 1})
    assert (found.rest.lr, found.eval_batch, found.ridge) == (2e-5, 7, 1) and type(found.eval_batch) is int
    found = settings_of("clip-mscoco", "mini", {"shortlists": [np.int64(8), 4.0], "released_files": np.bool_(True)})
    assert found.shortlists == (8, 4) and found.released_files is True
    assert all(type(count) is int for count in found.shortlists)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"shortlists": [4, 8]}, r"shortlists = \(4, 8\): must be two whole numbers, the first at least the second"),
        ({"shortlists": [8]}, r"shortlists = \[8\]: must be a list of 2"),
        ({"shortlists": [8, "4"]}, "shortlists = '4': must be a whole number"),
        ({"rest": {"lr": 1e-5}}, "rest = .*: must be a ReSt"),
        ({"rest": 3, "lr": 1e-5}, "rest = 3: must be a ReSt"),
        ({"on_error": "Skip"}, "on_error = 'Skip': must be one of"),
        ({"LR": 1e-5}, "unknown setting 'LR' of clip-mscoco: did you mean lr?"),
        ({"lr": "1e-5"}, "lr = '1e-5': must be a finite number; YAML reads 1e-5 as text, and 1.0e-5 as a number"),
        ({"released_files": "false"}, "must be True or False; papermill's -p reads True and False, but true, false"),
        ({"num_eval": "10"}, "num_eval = '10': must be a whole number; .*all of papermill's -r is text"),
        ({"first_level": 2024}, "first_level = 2024: must be text or None; papermill's -p reads numbers, -r text"),
        (
            {"eval_captions": False},
            "eval_captions = False: must be text; YAML reads yes and no as True and False: quote",
        ),
    ],
)
def test_what_is_wrong_with_a_setting_is_said(values, message):
    with pytest.raises(ValueError, match=message):
        settings_of("clip-mscoco", "mini", values)


def test_all_fields_and_experiments_are_here():
    assert set(KIND) == set(CELL_FIELDS) and set(SPECS) == set(EXPERIMENTS)
