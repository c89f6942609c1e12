"""The shrunk model against the masked one, on every family; saving and loading pruned models."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_models as small
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import rules

import lfpr
from lfpr.encoder import prunable
from lfpr.families import UnsupportedArchitecture
from lfpr.masks import Masks
from lfpr.save import MODELS, load_pruned, save_pruned
from lfpr.shrink import NotEquivalent, fold, shrink, verify_equivalent
from lfpr.tap.model import TAP, TAPConfig


@pytest.mark.parametrize("family", small.FAMILIES)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), keep=st.floats(0, 1), real=st.booleans())
def test_shrunk_equals_masked(family, seed, keep, real):
    model, inputs = small.build(family), [small.batch(family)]
    masks = small.random_masks(prunable(model), seed, keep, real)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = shrink(model, masks)
    assert verify_equivalent(model, masks, pruned, inputs, small.forward, atol=1e-4) <= 1e-4
    small_encoder = prunable(pruned)
    assert small_encoder.heads_per_layer == masks.heads_kept and small_encoder.heads_per_layer[0] == 0
    assert small_encoder.neurons_per_layer == masks.neurons_kept and small_encoder.neurons_per_layer[-1] == 0
    full = prunable(model)
    assert (small_encoder.num_heads, small_encoder.num_neurons) == (full.num_heads, full.num_neurons)
    for part in small_encoder.parts:
        assert all(getattr(part.attention, name) == part.num_heads for name in part.family.head_count)
        assert part.query.out_features == part.query.weight.shape[0] == part.num_heads * part.head_dim
        assert part.ffn_out.in_features == part.ffn_out.weight.shape[1] == part.num_neurons
    for name, value in model.state_dict().items():  # the original is untouched
        assert torch.equal(value, before[name])


def test_eager_attention_and_training_work_without_heads():
    model = small.build("bert")
    model.set_attn_implementation("eager")
    masks = small.random_masks(prunable(model), 0)
    pruned = shrink(model, masks)
    verify_equivalent(model, masks, pruned, [small.batch("bert")], small.forward)
    small.forward(pruned.train(), small.batch("bert")).sum().backward()
    assert pruned.encoder.layer[0].attention.output.dense.weight.grad.shape == (48, 0)


def test_published_pruned_tap_and_folding_its_trained_masks():
    published = np.load(small.REFERENCE / "tap_pruned_seed7.npz")
    masks_file = np.load(small.REFERENCE / "tap_masks_seed7.npz")
    shapes = json.loads((small.REFERENCE / "tap_state_dict_shapes.json").read_text())
    tap = TAP(TAPConfig(text_layers=1, mmt_layers=2, text_vocab_size=1000, num_answers=120)).eval()
    tap.load_state_dict({name: torch.from_numpy(value) for name, value in rules.weights(shapes, 7, 0.05).items()})
    neurons = np.unpackbits(masks_file["sum_0.4_neuron"]).reshape(2, 3072)
    masks = Masks(torch.from_numpy(masks_file["sum_0.4_head"]).float(), torch.from_numpy(neurons).float())
    batch = {name: torch.from_numpy(value) for name, value in rules.tap_inputs(7).items()}

    pruned = shrink(tap, masks)
    encoder = prunable(pruned)
    assert encoder.heads_per_layer == published["heads"].tolist()
    assert encoder.neurons_per_layer == published["neurons"].tolist()
    assert prunable(tap).heads_per_layer == [12, 12]
    scores, _ = pruned.generate(batch)
    np.testing.assert_allclose(scores.numpy(), published["scores_unit_masks"], rtol=1e-3, atol=1e-4)

    def trained(i, part, shape):
        return torch.from_numpy(rules.weight(f"mmt.encoder.layer.{i}.{part}.mask", shape, 7, 0.05)).flatten()

    scales = SimpleNamespace(
        heads=[trained(i, "attention.self.head_mask", (1, n, 1, 1)) for i, n in enumerate(published["heads"])],
        neurons=[trained(i, "intermediate.ffn_mask", (n,)) for i, n in enumerate(published["neurons"])],
    )
    with encoder.masked(scales):
        scores, _ = pruned.generate(batch)
    np.testing.assert_allclose(scores.numpy(), published["scores_scaled_masks"], rtol=1e-3, atol=1e-4)
    fold(encoder, scales)
    scores, _ = pruned.generate(batch)
    np.testing.assert_allclose(scores.numpy(), published["scores_scaled_masks"], rtol=1e-3, atol=1e-4)


def test_one_tower_of_clip_is_shrunk_inside_the_whole_model():
    clip = small.reference_clip()
    masks = small.random_masks(prunable(clip.vision_model), 1)
    pruned = shrink(clip, masks)  # these masks fit one tower only
    assert prunable(pruned.vision_model).heads_per_layer == masks.heads_kept
    assert prunable(pruned.text_model).heads_per_layer == [2]
    assert prunable(shrink(clip, masks, part=clip.vision_model).vision_model).heads_per_layer == masks.heads_kept
    with pytest.raises(UnsupportedArchitecture, match=r"fit 0 of them: say which with part="):
        shrink(clip, Masks(torch.ones(9, 9), torch.ones(9, 9)))
    with pytest.raises(ValueError, match="is not a part of"):
        shrink(clip, masks, part=small.build("clip_vision"))


def test_masks_that_cannot_become_weights_are_refused():
    model = small.build("bert")
    masks = Masks.ones(prunable(model))
    with pytest.raises(ValueError, match=r"masks\.heads"):
        shrink(model, Masks(masks.heads[:2], masks.neurons[:2]))
    with pytest.raises(ValueError, match="per-sample"):
        shrink(model, SimpleNamespace(heads=torch.ones(5, 3, 4), neurons=torch.ones(5, 3, 40)))
    masks.neurons[1, 3] = float("nan")
    with pytest.raises(ValueError, match=r"masks\.neurons: NaN or infinite values in layers \[1\]"):
        shrink(model, masks)


def test_the_check_can_fail():
    model, inputs = small.build("bert"), [small.batch("bert", seed=i) for i in range(2)]
    masks = small.random_masks(prunable(model), 2)
    pruned = shrink(model, masks)
    with pytest.raises(NotEquivalent, match="batch 0: .*differ by") as error:
        verify_equivalent(model, masks, model, inputs, small.forward)
    assert error.value.difference > 1e-2
    with torch.no_grad():
        pruned.encoder.layer[1].intermediate.dense.bias[0] = float("nan")
    with pytest.raises(NotEquivalent, match="nan"):
        verify_equivalent(model, masks, pruned, inputs, small.forward)
    with pytest.raises(NotEquivalent, match="shapes"):
        verify_equivalent(model, masks, pruned, inputs, lambda m, b: small.forward(m, b)[: 1 + (m is model)])
    with pytest.raises(ValueError, match="no output to compare"):
        verify_equivalent(model, masks, pruned, [], small.forward)


def test_the_check_leaves_training_modes_alone():
    model = small.build("bert").train()
    model.pooler.eval()
    masks = small.random_masks(prunable(model), 2)
    pruned = shrink(model, masks).eval()
    verify_equivalent(model, masks, pruned, [small.batch("bert")], small.forward)  # dropout would make them differ
    assert model.training and model.encoder.training and not model.pooler.training and not pruned.training


@pytest.mark.parametrize("family", small.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_models_come_back(family, dtype, tmp_path):
    model = small.build(family).to(dtype)
    pruned = shrink(model, small.random_masks(prunable(model), 5))
    save_pruned(pruned, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors", "pruning.json"]
    state = torch.random.get_rng_state()
    loaded = load_pruned(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert type(loaded) is type(pruned) and not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    inputs = small.batch(family)
    with torch.no_grad():
        assert torch.equal(small.forward(loaded, inputs), small.forward(pruned, inputs))


def test_both_towers_heads_and_tied_weights_come_back(tmp_path):
    clip = small.reference_clip()
    pruned = shrink(clip, small.random_masks(prunable(clip.vision_model), 1))
    pruned = shrink(pruned, small.random_masks(prunable(pruned.text_model), 2), part=pruned.text_model)
    save_pruned(pruned, tmp_path / "clip")
    loaded = load_pruned(tmp_path / "clip")
    assert loaded.state_dict().keys() == pruned.state_dict().keys()
    assert all(torch.equal(value, pruned.state_dict()[name]) for name, value in loaded.state_dict().items())

    torch.manual_seed(0)
    tied = hf.BertForMaskedLM(hf.BertConfig(**small.BERT)).eval()
    save_pruned(shrink(tied, small.random_masks(prunable(tied), 0)), tmp_path / "tied")
    loaded = load_pruned(tmp_path / "tied")
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight
    assert torch.equal(loaded.bert.embeddings.word_embeddings.weight, tied.bert.embeddings.word_embeddings.weight)


def test_tap_comes_back(tmp_path):
    config = TAPConfig(text_layers=1, mmt_layers=2, text_vocab_size=50, num_answers=9, hidden_size=24, num_heads=3)
    torch.manual_seed(0)
    tap = TAP(config).eval()
    pruned = shrink(tap, small.random_masks(prunable(tap), 0))
    save_pruned(pruned, tmp_path)
    loaded = load_pruned(tmp_path)
    assert loaded.config == config and prunable(loaded).heads_per_layer == prunable(pruned).heads_per_layer
    assert all(torch.equal(value, pruned.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_tap_comes_back_where_nothing_else_imported_it(tmp_path):
    config = TAPConfig(text_layers=1, mmt_layers=1, text_vocab_size=50, num_answers=9, hidden_size=24, num_heads=3)
    save_pruned(TAP(config), tmp_path)
    code = f"import lfpr, sys; assert 'lfpr.tap' not in sys.modules; print(type(lfpr.load_pruned({str(tmp_path)!r})))"
    environment = os.environ | {"PYTHONPATH": str(Path(lfpr.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.strip() == "<class 'lfpr.tap.model.TAP'>", done.stderr[-2000:]
    text = (tmp_path / "pruning.json").read_text()
    for module in ("os", "lfpr", "lfpr.none", "lfpr.tap; import os", "tests.small_tap"):
        (tmp_path / "pruning.json").write_text(text.replace("lfpr.tap.model", module).replace('"TAP"', '"Unknown"'))
        with pytest.raises(ValueError, match="cannot build the class 'Unknown'"):
            load_pruned(tmp_path)


def test_only_known_classes_are_built(tmp_path, monkeypatch):
    model = small.build("bert")
    with pytest.raises(ValueError, match="cannot save a BertEncoder"):
        save_pruned(model.encoder, tmp_path)
    save_pruned(model, tmp_path)
    text = (tmp_path / "pruning.json").read_text()
    for wrong in ("os.system", "AutoTokenizer", "__class__", "Trainer"):
        (tmp_path / "pruning.json").write_text(text.replace("BertModel", wrong))
        with pytest.raises(ValueError, match="cannot build the class"):
            load_pruned(tmp_path)
    monkeypatch.setitem(MODELS, "Bert", lambda config: hf.BertModel(hf.BertConfig(**config)))
    (tmp_path / "pruning.json").write_text(text.replace("BertModel", "Bert").replace("transformers", "lfpr"))
    assert type(load_pruned(tmp_path)) is hf.BertModel


def test_damaged_folders_are_refused(tmp_path):
    model = small.build("bert")
    pruned = shrink(model, small.random_masks(prunable(model), 5))

    def damaged(name, edit):
        save_pruned(pruned, tmp_path)
        path = tmp_path / name
        path.write_bytes(edit(path.read_bytes()))
        return tmp_path

    with pytest.raises(ValueError, match=r"model\.safetensors is not a complete"):
        load_pruned(damaged("model.safetensors", lambda b: b[: len(b) // 2]))
    with pytest.raises(ValueError, match=r"pruning\.json is not valid JSON"):
        load_pruned(damaged("pruning.json", lambda b: b[:-9]))
    with pytest.raises(ValueError, match=r"format 7, expected 1"):
        load_pruned(damaged("pruning.json", lambda b: b.replace(b'"format": 1', b'"format": 7')))
    other = load_pruned(damaged("pruning.json", lambda b: b))
    save_pruned(shrink(model, small.random_masks(prunable(model), 6)), tmp_path / "other")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"does not fit the model: \d+ tensors of another shape: .*expected"):
        load_pruned(tmp_path)
    assert type(other) is hf.BertModel
    (tmp_path / "pruning.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"pruning\.json"):
        load_pruned(tmp_path)


def test_nothing_warns_about_empty_layers(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = small.build("bert")
        pruned = shrink(model, small.random_masks(prunable(model), 5, keep=0))
        save_pruned(pruned, tmp_path)
        small.forward(load_pruned(tmp_path), small.batch("bert"))
