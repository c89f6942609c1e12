"""The released accounting, search and latency search against the masks they made, and where they exceed a budget."""

import numpy as np
import pytest
import small_models as small
import torch
import transformers as hf

from lfpr import released
from lfpr.checks import BudgetError
from lfpr.cost import LinearCost, MacCost, ParameterCost
from lfpr.encoder import prunable
from lfpr.latency.cost import LatencyCost
from lfpr.masks import Importance
from lfpr.search import search, search_threshold
from lfpr.tap.model import TAP, TAPConfig


@pytest.fixture(scope="module")
def mmt():
    with torch.device("meta"):
        return prunable(TAP(TAPConfig(text_layers=0, mmt_layers=2, text_vocab_size=9, num_answers=9)))


def same(masks, heads, neurons):
    return (masks.heads.numpy() == heads).all() and (masks.neurons.numpy() == neurons).all()


@pytest.fixture(scope="module")
def latency():
    arrays, importance = small.reference_importance("bert")
    return arrays, importance, released.latency_cost(arrays["lut_mha"], arrays["lut_ffn"], 4)


def value(importance, masks):
    return ((importance.heads * masks.heads).sum() + (importance.neurons * masks.neurons).sum()).item()


def test_lfpr_masks_equal_the_released_ones(mmt):
    _, importance = small.reference_importance("tap_forward")
    expected, cost = np.load(small.REFERENCE / "tap_masks_seed7.npz"), released.parameter_cost(mmt)
    assert cost.full == expected["full_params"]
    names = [name.removesuffix("_head") for name in expected if name.endswith("_head")]
    assert len(names) == 13
    for name in names:
        kind, value = name.split("_")
        masks = (
            released.search(importance, cost, float(value))
            if kind == "sum"
            else search_threshold(importance, float(value))
        )
        neurons = np.unpackbits(expected[f"{name}_neuron"]).reshape(2, 3072)
        assert same(masks, expected[f"{name}_head"], neurons), name


def test_released_accounting_overshoots_and_the_exact_one_never_does(mmt):
    _, importance = small.reference_importance("tap_forward")
    exact, loose = ParameterCost(mmt), released.parameter_cost(mmt)
    for constraint in (0.2, 0.4, 0.6, 0.8):
        assert exact.fraction(released.search(importance, loose, constraint)) > constraint
        assert constraint - 1e-3 < exact.fraction(search(importance, exact, constraint)) <= constraint


@pytest.mark.parametrize(("name", "tokens"), [("bert", 24), ("clip", 17)])
def test_mac_masks_equal_the_released_ones(name, tokens):
    arrays, importance = small.reference_importance(name)
    model = small.reference_bert() if name == "bert" else small.reference_clip().vision_model
    cost = MacCost(prunable(model), tokens)
    for constraint in (0.3, 0.5, 0.7):
        masks = released.search(importance, cost, constraint)
        assert same(masks, arrays[f"mac_{constraint}_head"], arrays[f"mac_{constraint}_neuron"])
        assert cost.fraction(masks) == pytest.approx(arrays[f"mac_{constraint}_fraction"].item(), rel=1e-6)
        if name == "bert":
            teacher = released.search(importance, cost, constraint**0.5)
            assert same(teacher, arrays[f"teacher_{constraint}_head"], arrays[f"teacher_{constraint}_neuron"])


@pytest.mark.parametrize(
    ("name", "patch"), [("patch16_0.4_seed_1", 16), ("patch16_0.75_seed_1", 16), ("patch32_0.5_seed_501", 32)]
)
def test_macs_of_the_released_clip_masks(name, patch):
    folder = small.RELEASED_MASKS / f"clip-vit-base-{name}"
    with torch.device("meta"):
        tower = hf.CLIPVisionModel(hf.CLIPVisionConfig(patch_size=patch))
    cost = MacCost(prunable(tower), (224 // patch) ** 2 + 1)
    fraction = cost.fraction(released.load_masks(folder / "head_mask.pt", folder / "neuron_mask.pt"))
    assert round(fraction, 4) == float(name.split("_")[1])


def test_the_released_search_exceeds_a_budget_that_ours_keeps():
    importance = Importance(torch.tensor([[9.0, 8.0, 7.0]]), torch.tensor([[1.0, 1.0]]))
    cost = LinearCost("units", 3 * 10 + 2, 0, 10, 1)
    assert cost.fraction(released.search(importance, cost, 0.5)) > 0.5
    assert search(importance, cost, 0.5).heads.tolist() == [[1, 0, 0]]


def test_fits_and_masks_equal_the_released_ones(latency):
    arrays, importance, cost = latency
    assert released.fit_plateau(arrays["lut_mha"]) == pytest.approx(arrays["fit_mha"])
    assert released.fit_plateau(arrays["lut_ffn"]) == pytest.approx(arrays["fit_ffn"])
    for constraint in (0.5, 0.7):
        masks = released.search(importance, cost, constraint)
        np.testing.assert_array_equal(masks.heads, arrays[f"latency_{constraint}_head"])
        np.testing.assert_array_equal(masks.neurons, arrays[f"latency_{constraint}_neuron"])
        assert cost.kept(masks) == pytest.approx(arrays[f"latency_{constraint}"].item())
        assert cost.fraction(masks) > constraint  # the released fit lets it exceed the table
        ours = search(importance, cost, constraint)
        assert cost.fraction(ours) <= constraint
    at_half = (find(importance, cost, 0.5) for find in (released.search, search))
    theirs, ours = (value(importance, masks) for masks in at_half)
    assert ours > theirs  # better, and within the budget
    for constraint in (0.05, 1e-9):
        with pytest.raises(BudgetError):
            released.search(importance, cost, constraint)


def test_plateau_fit_recovers_a_plateau():
    table = [2.0] * 5 + [2 + 0.5 * i for i in range(1, 8)]
    threshold, constant, slope = released.fit_plateau(table)
    assert threshold in (4, 5) and constant == pytest.approx(2) and slope == pytest.approx(0.5)
    assert released.fit_plateau([3.0, 2.0, 1.0])[2] == 0  # never a negative slope


def test_bad_arguments_are_refused(latency):
    _, importance, cost = latency
    with pytest.raises(ValueError, match="rises with the number of neurons"):
        released.search(importance, LatencyCost([0, 1, 1, 1, 1], np.r_[0, np.ones(96)], 4), 0.5)
    for kind in (cost, LinearCost("units", 4, 0, 1, 1)):
        with pytest.raises(ValueError, match="constraint = 0"):
            released.search(importance, kind, 0)
        with pytest.raises(ValueError, match=r"importance\.neurons: 384 values are negative"):
            released.search(Importance(importance.heads, -1 - importance.neurons), kind, 0.5)
    with pytest.raises(TypeError):  # the released search has no widths for hardware
        released.search(importance, cost, 0.5, multiple_of=8)
