"""Finding the prunable parts of a model, masking them through hooks, and mask files."""

import copy
from types import SimpleNamespace

import pytest
import small_models as small
import torch
import transformers as hf
from torch import nn

from lfpr.encoder import encoders, prunable
from lfpr.families import FAMILIES, Family, UnsupportedArchitecture
from lfpr.gradients import MaskGradients
from lfpr.masks import Importance, Masks
from lfpr.tap.model import TAP, TAPConfig


@pytest.fixture(params=small.FAMILIES)
def family(request):
    return request.param


def hooks(module):
    return sum(len(m._forward_pre_hooks) for m in module.modules())


def test_sizes_of_every_family(family):
    encoder = prunable(small.build(family))
    expected = (2, 2, 16, 64, 32) if family == "clip_text" else (3, 4, 12, 40, 48)
    found = (encoder.num_layers, encoder.num_heads, encoder.head_dim, encoder.num_neurons, encoder.hidden_size)
    assert found == expected
    assert encoder.heads_per_layer == [encoder.num_heads] * encoder.num_layers
    assert encoder.neurons_per_layer == [encoder.num_neurons] * encoder.num_layers


def test_masks_of_ones_change_nothing_and_hooks_go(family):
    model, inputs = small.build(family), small.batch(family)
    encoder, before = prunable(model), small.forward(model, inputs)
    with encoder.masked(Masks.ones(encoder)):
        assert hooks(model) == 2 * encoder.num_layers
        torch.testing.assert_close(small.forward(model, inputs), before, rtol=0, atol=0)
    assert hooks(model) == 0


def test_hooks_go_after_an_error():
    model = small.build("bert")
    encoder = prunable(model)
    with pytest.raises(RuntimeError, match="on purpose"), encoder.masked(Masks.ones(encoder)):
        raise RuntimeError("on purpose")
    assert hooks(model) == 0


def test_a_head_mask_acts_as_zeroed_output_columns_and_a_neuron_mask_too():
    model, inputs = small.build("bert"), small.batch("bert")
    encoder = prunable(model)
    masks = Masks.ones(encoder)
    masks.heads[1, 2], masks.neurons[0, 7] = 0, 3
    with encoder.masked(masks):
        masked = small.forward(model, inputs)
    with torch.no_grad():
        model.encoder.layer[1].attention.output.dense.weight[:, 24:36] = 0
        model.encoder.layer[0].output.dense.weight[:, 7] *= 3
    torch.testing.assert_close(small.forward(model, inputs), masked, rtol=1e-5, atol=1e-5)


def test_per_sample_masks_act_on_their_sample(family):
    model, inputs = small.build(family), small.batch(family)
    encoder = prunable(model)
    several = [small.random_masks(encoder, seed) for seed in range(3)]
    stacked = SimpleNamespace(
        heads=torch.stack([m.heads for m in several]), neurons=torch.stack([m.neurons for m in several])
    )
    with encoder.masked(stacked):
        together = small.forward(model, inputs)
    for i, masks in enumerate(several):
        with encoder.masked(masks):
            torch.testing.assert_close(together[i], small.forward(model, inputs)[i], rtol=1e-5, atol=1e-5)


def test_masks_that_do_not_fit_are_refused():
    model = small.build("bert")
    encoder, ones = prunable(model), Masks.ones(prunable(model))
    with pytest.raises(ValueError, match=r"masks\.heads.*\[4, 4, 4\]"), encoder.masked(Masks(ones.neurons, ones.heads)):
        pass
    lists = SimpleNamespace(heads=list(ones.heads)[:2], neurons=list(ones.neurons))
    with pytest.raises(ValueError, match=r"masks\.heads"), encoder.masked(lists):
        pass
    two = SimpleNamespace(heads=torch.ones(2, 3, 4), neurons=torch.ones(2, 3, 40))
    with pytest.raises(ValueError, match="2 samples.* with 3"), encoder.masked(two):
        small.forward(model, small.batch("bert"))
    assert hooks(model) == 0


def test_bfloat16_models_take_float32_masks():
    model = small.build("bert").bfloat16()
    encoder = prunable(model)
    with encoder.masked(Masks.ones(encoder)):
        assert small.forward(model, small.batch("bert")).dtype == torch.bfloat16


def test_tap_says_that_its_mmt_is_meant():
    tap = TAP(TAPConfig(text_layers=1, mmt_layers=2, text_vocab_size=50, num_answers=9, hidden_size=24, num_heads=3))
    assert prunable(tap).path == "mmt.encoder.layer"
    assert [e.path for e in encoders(tap, declared=False)] == ["text_bert.encoder.layer", "mmt.encoder.layer"]


def test_several_encoders_are_listed():
    clip = small.reference_clip()
    with pytest.raises(UnsupportedArchitecture, match="text_model.*vision_model"):
        prunable(clip)
    assert prunable(clip.vision_model).num_layers == 4


def test_unsupported_models_say_what_was_found():
    neox = hf.GPTNeoXModel(hf.GPTNeoXConfig(**small.SIZES, vocab_size=9))
    with pytest.raises(
        UnsupportedArchitecture, match="layers: query, key and value of each head.*GPTNeoXLayer.*BertLayer"
    ):
        prunable(neox)
    with pytest.raises(UnsupportedArchitecture, match="none"):
        prunable(nn.Linear(2, 2))


def test_a_layer_unlike_its_family_names_the_path_and_what_is_there():
    model = small.build("bert")
    del model.encoder.layer[1].intermediate.dense
    message = r"encoder\.layer\.1 .*'intermediate\.dense': BertIntermediate has.*intermediate_act_fn"
    with pytest.raises(UnsupportedArchitecture, match=message):
        prunable(model)


class ToyLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.mix = nn.Module()
        self.mix.config, self.mix.size, self.mix.count = config, 4, config.heads
        for name in "qkvo":
            setattr(self.mix, name, nn.Linear(8, 8, bias=name == "o"))
        self.up, self.gate, self.down = nn.Linear(8, 10), nn.Linear(8, 10), nn.Linear(10, 8)

    def forward(self, x):
        q, k, v = (getattr(self.mix, n)(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for n in "qkv")
        context = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.mix.o(context)
        return x + self.down(self.gate(x).sigmoid() * self.up(x))


@pytest.fixture
def toy(monkeypatch):
    row = Family(
        attention="mix",
        query="mix.q",
        key="mix.k",
        value="mix.v",
        attention_output="mix.o",
        ffn_in=("up", "gate"),
        ffn_out="down",
        head_dim="size",
        head_count=("count",),
        full_heads="heads",
        full_neurons="width",
    )
    monkeypatch.setitem(FAMILIES, "ToyLayer", row)
    torch.manual_seed(0)
    model = nn.Module()
    model.blocks = nn.ModuleList(ToyLayer(SimpleNamespace(heads=2, width=10)) for _ in range(2))
    return model


def test_a_new_family_is_one_row(toy):
    from lfpr.cost import ParameterCost
    from lfpr.shrink import shrink

    encoder = prunable(toy)
    masks = small.random_masks(encoder, 0)
    pruned, x = shrink(toy, masks), torch.randn(2, 5, 8)
    small_x, masked_x = x, x
    with encoder.masked(masks):
        for layer in toy.blocks:
            masked_x = layer(masked_x)
    for layer in pruned.blocks:
        small_x = layer(small_x)
    torch.testing.assert_close(small_x, masked_x)
    assert [layer.mix.count for layer in pruned.blocks] == masks.heads_kept
    assert prunable(pruned).num_parameters == ParameterCost(encoder).kept(masks)


def test_what_no_configuration_says_of_full_widths_is_noted_when_layers_are_pruned(toy):
    from lfpr.cost import ParameterCost
    from lfpr.shrink import shrink

    for layer in toy.blocks:
        del layer.mix.config
    encoder = prunable(toy)
    masks = small.random_masks(encoder, 0)
    masks.heads[0, 0], masks.neurons[:, :3] = 0, 0  # of different widths,
    masks.neurons[1, :5] = 0
    half = prunable(copy.deepcopy(shrink(toy, masks)))
    assert half.heads_per_layer == masks.heads_kept != [2, 2] and half.neurons_per_layer == masks.neurons_kept
    rest = SimpleNamespace(
        heads=[torch.ones(n) for n in half.heads_per_layer],
        neurons=[torch.arange(n) > 1 for n in half.neurons_per_layer],
    )
    for shrunk in (half, prunable(shrink(half.module, rest))):  # and once more
        assert (shrunk.num_heads, shrunk.num_neurons) == (2, 10)
        assert ParameterCost(shrunk).full == encoder.num_parameters == ParameterCost(encoder).full


def test_a_new_family_goes_through_the_whole_pipeline(toy):
    from lfpr.cost import MacCost
    from lfpr.gradients import collect_gradients
    from lfpr.search import search
    from lfpr.shrink import shrink, verify_equivalent

    def forward(model, x):
        for layer in model.blocks:
            x = layer(x)
        return x

    encoder, batches = prunable(toy), [torch.randn(4, 5, 8) for _ in range(3)]
    gradients = collect_gradients(encoder, batches, lambda x: forward(toy, x).square().mean(), per_sample=True)
    assert gradients.heads.shape == (12, 2, 2) and gradients.neurons.shape == (12, 2, 10)
    cost = MacCost(encoder, sequence_length=5)
    masks = search(gradients.importance(), cost, 0.6)
    assert 0.5 < cost.fraction(masks) <= 0.6
    assert verify_equivalent(toy, masks, shrink(toy, masks), batches, forward, atol=1e-5) <= 1e-5


def test_mask_files_round_trip_and_bad_ones_are_refused(tmp_path):
    masks = small.random_masks(prunable(small.build("bert")), 3)
    masks.save(tmp_path / "a" / "masks.safetensors")
    assert Masks.load(tmp_path / "a" / "masks.safetensors").equal(masks)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["masks.safetensors"]
    with pytest.raises(ValueError, match="holds Masks, expected Importance"):
        Importance.load(tmp_path / "a" / "masks.safetensors")
    with pytest.raises(FileNotFoundError, match="nothing"):
        Masks.load(tmp_path / "nothing")
    cut = tmp_path / "cut"
    cut.write_bytes((tmp_path / "a" / "masks.safetensors").read_bytes()[:-9])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        Masks.load(cut)


def test_masks_of_wrong_rank_are_refused():
    with pytest.raises(ValueError, match=r"Masks\.heads: expected a tensor of 2 dimensions, found \(3,\)"):
        Masks(torch.ones(3), torch.ones(3, 4))
    for heads, neurons in ((2, 3), (5, 2)):  # a layer has at least one attention, and at most two
        with pytest.raises(ValueError, match="must agree"):
            Masks(torch.ones(heads, 2), torch.ones(neurons, 4))
    with pytest.raises(ValueError, match="must agree"):
        MaskGradients(torch.ones(1, 2, 2), torch.ones(2, 2, 4))
