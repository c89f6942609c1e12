"""Deltas: what makes a retrained model of the unpruned one, bit by bit, and how small it is."""

import pytest
import small_models
import small_tap
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lfpr
from lfpr.masks import Masks
from lfpr.tap.model import TAP, TAPConfig


@pytest.fixture(scope="module")
def made():
    """A TAP, the trained values of its masks, and the model that ReSt made of it."""
    unpruned = small_tap.tap()
    binary = small_models.random_masks(lfpr.prunable(unpruned), 1).binary()
    student, values, _ = small_tap.retrain(lfpr.shrink(unpruned, binary), settings=lfpr.ReSt(mask_lr=1e-2), fold=False)
    lfpr.fold(lfpr.prunable(student), values)
    return unpruned, values.spread(binary), student


def same(one, two):
    state = two.state_dict()
    return one.state_dict().keys() == state.keys() and all(
        torch.equal(value, state[name]) for name, value in one.state_dict().items()
    )


def test_masks_fold_to_the_same_bits_before_and_after_shrinking(made):
    unpruned, masks, _ = made
    after = lfpr.shrink(unpruned, masks.binary())
    kept = [[row[row != 0] for row in part] for part in (masks.heads, masks.neurons)]
    lfpr.fold(lfpr.prunable(after), type("Kept", (), {"heads": kept[0], "neurons": kept[1]}))
    assert same(after, lfpr.shrink(unpruned, masks))


def test_a_delta_is_what_rest_changed_and_gives_the_model_back(made, tmp_path):
    unpruned, masks, student = made
    before = {name: value.clone() for name, value in unpruned.state_dict().items()}
    lfpr.save_delta(unpruned, masks, student, tmp_path / "delta.safetensors")
    tensors = load_file(tmp_path / "delta.safetensors")
    names = {name for name in tensors if not name.startswith("masks.")}
    assert {name.split(".")[0] for name in names} == {"classifier", "ocr_ptr_net"}  # last_layers = 0
    loaded = lfpr.load_delta(unpruned, tmp_path / "delta.safetensors")
    assert same(loaded, student) and not same(loaded, lfpr.shrink(unpruned, masks))
    assert lfpr.prunable(loaded).heads_per_layer == lfpr.prunable(student).heads_per_layer
    assert all(torch.equal(value, before[name]) for name, value in unpruned.state_dict().items())


def test_layers_that_were_trained_wholly_are_in_it(made, tmp_path):
    unpruned, masks, _ = made
    changed = lfpr.shrink(unpruned, masks)
    with torch.no_grad():
        changed.mmt.encoder.layer[1].output.dense.bias += 1
        changed.classifier["module"].bias.mul_(-0.0)  # other bits, equal numbers where they were zero
    lfpr.save_delta(unpruned, masks, changed, tmp_path / "delta.safetensors")
    names = {name for name in load_file(tmp_path / "delta.safetensors") if not name.startswith("masks.")}
    assert "mmt.encoder.layer.1.output.dense.bias" in names and len(names) == 2
    assert same(lfpr.load_delta(unpruned, tmp_path / "delta.safetensors"), changed)


def test_a_tower_of_several_is_named_by_its_part(tmp_path):
    clip = small_models.reference_clip()
    part = clip.vision_model
    masks = small_models.random_masks(lfpr.prunable(part), 1)
    small = lfpr.shrink(clip, masks, part)
    lfpr.save_delta(clip, masks, small, tmp_path / "delta.safetensors", part)
    assert load_file(tmp_path / "delta.safetensors").keys() == {"masks.heads", "masks.neurons"}
    assert same(lfpr.load_delta(clip, tmp_path / "delta.safetensors", part), small)


def test_what_does_not_fit_is_refused(made, tmp_path):
    unpruned, masks, student = made
    path = tmp_path / "delta.safetensors"
    with pytest.raises(ValueError, match="retrained: its tensors are not of the names and shapes"):
        lfpr.save_delta(unpruned, Masks.ones(lfpr.prunable(unpruned)), student, path)
    assert not path.exists()
    with pytest.raises(FileNotFoundError, match=r"delta\.safetensors: expected one written by save_delta"):
        lfpr.load_delta(unpruned, path)
    lfpr.save_delta(unpruned, masks, student, path)
    other = small_tap.tap()
    with torch.no_grad():
        other.mmt.encoder.layer[0].output.dense.bias += 1e-3
    with pytest.raises(ValueError, match="unpruned is not the TAP that this delta was made from"):
        lfpr.load_delta(other, path)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"delta\.safetensors is not written by save_delta: it holds \['x'\]"):
        lfpr.load_delta(unpruned, path)
    path.write_bytes(b"half")
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        lfpr.load_delta(unpruned, path)


def megabytes(*modules: nn.Module) -> float:
    return sum(4 * p.numel() for module in modules for p in module.parameters()) / 1e6


def test_the_papers_file_sizes_are_those_of_deltas():
    """At TAP's sizes: 20.1 MB at 80 %, where ReSt trains classifier and pointer network beside the masks, and 43.9 at
    40 %, where it trains the last two of four layers, too."""
    with torch.device("meta"):
        tap = TAP(TAPConfig())
    encoder = lfpr.prunable(tap)
    heads = megabytes(tap.classifier, tap.ocr_ptr_net)
    assert heads == 5_026_184 * 4 / 1e6 and round(heads, 1) == 20.1
    masks = 4 * encoder.num_layers * (encoder.num_heads + encoder.num_neurons) / 1e6
    assert masks < 0.05  # what our file adds
    last_two = megabytes(*encoder.layers[2:]) * 11.4 / 28.4  # the paper's parameters, spread evenly
    assert heads + last_two == pytest.approx(43.9, rel=0.03)
