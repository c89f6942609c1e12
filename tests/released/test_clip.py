"""Pruned CLIP models saved whole: read without running them."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import small_models as small
import torch
import transformers as hf
from torch import nn

from lfpr import released
from lfpr.encoder import prunable
from lfpr.files import CheckpointError
from lfpr.released.clip import SENSITIVITY_FIRST
from lfpr.shrink import shrink


def outputs(model):
    generator = torch.Generator().manual_seed(0)
    size = model.config.vision_config.image_size
    pixels = torch.randn(2, 3, size, size, generator=generator)
    ids = torch.tensor([[97, 5, 6, 98, 1], [97, 7, 98, 1, 1]])
    with torch.no_grad():
        return model(pixel_values=pixels, input_ids=ids).logits_per_image


@pytest.fixture
def pruned():
    clip = small.reference_clip()
    pruned = shrink(clip, small.random_masks(prunable(clip.vision_model), 1))
    return shrink(pruned, small.random_masks(prunable(pruned.text_model), 2), part=pruned.text_model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saved_models_come_back(pruned, dtype, tmp_path):
    pruned = pruned.to(dtype)
    released.save_clip(pruned, tmp_path / "a" / "vitB16_pruned_0.4_1.pt")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["vitB16_pruned_0.4_1.pt"]
    state = torch.random.get_rng_state()
    loaded = released.load_clip(tmp_path / "a" / "vitB16_pruned_0.4_1.pt", pruned.config)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert type(loaded) is hf.CLIPModel and not loaded.training
    for tower in ("vision_model", "text_model"):
        found, wanted = (prunable(getattr(model, tower)) for model in (loaded, pruned))
        assert found.heads_per_layer == wanted.heads_per_layer and 0 in found.heads_per_layer
        assert found.neurons_per_layer == wanted.neurons_per_layer
    assert loaded.state_dict().keys() == pruned.state_dict().keys()
    for name, value in loaded.state_dict().items():
        assert value.dtype == pruned.state_dict()[name].dtype and torch.equal(value, pruned.state_dict()[name])
    if dtype == torch.float32:
        assert torch.equal(outputs(loaded), outputs(pruned))


def test_sizes_of_the_unpruned_model_follow_from_the_shapes(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512, "num_hidden_layers": 2}
    vision = sizes | {"image_size": 48, "patch_size": 16, "projection_dim": 24}
    text = sizes | {"vocab_size": 99, "max_position_embeddings": 12, "projection_dim": 24, "eos_token_id": 98}
    clip = hf.CLIPModel(hf.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)).eval()
    pruned = shrink(clip, small.random_masks(prunable(clip.vision_model), 1), part=clip.vision_model)
    wrapper = nn.Module()
    wrapper.add_module("module", pruned)  # as data-parallel training wraps it
    torch.save(wrapper, tmp_path / "clip.pt")
    loaded = released.load_clip(tmp_path / "clip.pt")
    assert prunable(loaded.vision_model).heads_per_layer == prunable(pruned.vision_model).heads_per_layer
    assert prunable(loaded.vision_model).num_heads == 2 and prunable(loaded.text_model).num_neurons == 512
    loaded.text_model.eos_token_id = pruned.text_model.eos_token_id  # no tensor tells
    assert torch.equal(outputs(loaded), outputs(pruned))


def test_models_of_from_pretrained_are_read(tmp_path):
    """Its parameters have attributes of their own."""
    small.reference_clip().save_pretrained(tmp_path / "folder")
    clip = hf.CLIPModel.from_pretrained(tmp_path / "folder").eval()
    assert any(vars(p) for p in clip.parameters())
    released.save_clip(clip, tmp_path / "clip.pt")
    assert torch.equal(outputs(released.load_clip(tmp_path / "clip.pt", clip.config)), outputs(clip))


def test_modules_of_older_libraries_are_read(pruned, tmp_path):
    """What the fork's transformers put into a module, and what its pruning makes of numbers."""
    for tower in (pruned.text_model, pruned.vision_model):
        del tower.embeddings.position_ids
        count = tower.embeddings.position_embedding.num_embeddings
        tower.embeddings.register_buffer("position_ids", torch.arange(count).expand((1, -1)))
    for layer in pruned.vision_model.encoder.layers:
        layer.self_attn.num_heads = torch.tensor(len(layer.self_attn.q_proj.weight) // 8)
        layer.self_attn.out_proj.weight.data = layer.self_attn.out_proj.weight.data.t().contiguous().t()
        del layer.mlp.activation_fn
        layer.mlp.activation_fn = nn.functional.gelu  # a function, not a module
    released.save_clip(pruned, tmp_path / "clip.pt")
    loaded = released.load_clip(tmp_path / "clip.pt", pruned.config)
    weights = {name: value for name, value in pruned.state_dict().items() if not name.endswith("position_ids")}
    found = loaded.state_dict()
    assert found.keys() == weights.keys() and all(torch.equal(found[name], value) for name, value in weights.items())


def test_samples_are_drawn_as_the_fork_draws_them():
    for total, count, seed, first in ((600_000, 8192, 1, 8192), (600_000, 100, 1, 128), (90, 64, 0, 90)):
        np.random.seed(seed)  # as transformers.set_seed does
        assert released.draw(total, count, seed) == np.random.choice(first, count).tolist()
    np.random.seed(8)
    assert released.draw(600_000, 128, 8, SENSITIVITY_FIRST) == np.random.choice(2048, 128).tolist()
    few = released.draw(20, 8192, 1)
    assert len(few) == 20 and max(few) < 20  # no more samples than annotations


class Attack:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


class Stranger(nn.Linear):
    """A class of another project."""


def test_code_in_a_file_never_runs(pruned, tmp_path):
    pruned.hook = Attack(tmp_path / "attacked")
    pruned.helper = Stranger
    released.save_clip(pruned, tmp_path / "clip.pt")
    loaded = released.load_clip(tmp_path / "clip.pt", pruned.config)
    assert not (tmp_path / "attacked").exists()
    assert all(torch.equal(value, pruned.state_dict()[name]) for name, value in loaded.state_dict().items())
    torch.load(tmp_path / "clip.pt", weights_only=False)
    assert (tmp_path / "attacked").exists()  # the attack works on those who run the file


def test_broken_weights_are_refused(pruned, tmp_path):
    with torch.no_grad():
        pruned.logit_scale.fill_(torch.nan)
    released.save_clip(pruned, tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match=r"clip\.pt does not hold .*logit_scale has NaN or infinite values"):
        released.load_clip(tmp_path / "clip.pt", pruned.config)


def test_a_model_takes_no_more_memory_than_its_file_says(pruned, tmp_path, monkeypatch):
    """Widths of a layer may be of the unpruned model, which is never there: its weights have no memory."""
    released.save_clip(pruned, tmp_path / "clip.pt")
    devices = []
    monkeypatch.setattr(
        hf.CLIPModel, "eval", lambda model: devices.extend(p.device.type for p in model.parameters()) or model
    )
    loaded = released.load_clip(tmp_path / "clip.pt", pruned.config)
    assert set(devices) == {"meta"} and {p.device.type for p in (*loaded.parameters(), *loaded.buffers())} == {"cpu"}


def test_other_files_are_refused(pruned, tmp_path):
    path = tmp_path / "clip.pt"
    with pytest.raises(CheckpointError, match=r"no file .*clip\.pt"):
        released.load_clip(path)
    for content in (b"", b"PK", pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"clip\.pt is not a complete module"):
            released.load_clip(path)
    released.save_clip(pruned, path)
    with pytest.raises(CheckpointError, match="does not hold a pruned CLIP model of these sizes"):
        released.load_clip(path)  # narrower than a head of 64, so a config is needed
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="is not a complete module"):
        released.load_clip(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("clip/data.pkl", pickle.dumps([1, 2]))
    with pytest.raises(CheckpointError, match="is not a complete module"):
        released.load_clip(path)
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match=r"holds no CLIP model: its tensors are \['bias', 'weight'\]"):
        released.load_clip(path)
    pruned.register_buffer("mask", torch.ones(2))  # it might scale something
    released.save_clip(pruned, path)
    with pytest.raises(CheckpointError, match='Unexpected key.*"mask"'):
        released.load_clip(path, pruned.config)
    del pruned.mask, pruned.visual_projection
    released.save_clip(pruned, path)
    with pytest.raises(CheckpointError, match="does not hold a pruned CLIP model of these sizes"):
        released.load_clip(path, pruned.config)
    with pytest.raises(CheckpointError, match="does not hold a pruned CLIP model of these sizes"):
        released.load_clip(path)
