"""Every family of the gallery through the same questions: found, masked as shrunk, differentiated, saved, exported,
generating; and the refused ones, with their reasons."""

import copy
import inspect
import logging
import re
from dataclasses import replace

import pytest
import torch

import lfpr
from lfpr.gallery import GALLERY, REFUSED, alike

NAMES = list(GALLERY)
SINGLE = {"ModernBERT", "T5", "mT5", "Flan-T5", "UMT5", "Llama", "Qwen3"}  # norms or rotations in float32,
SINGLE |= {"GLM", "Phi", "GPT-J"}  # whatever weights are
DEPTHS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"}
CAUSAL = [name for name, example in GALLERY.items() if example.takes == "causal"]  # their cache needs a head
GENERATING = [name for name, example in GALLERY.items() if example.generates]


@pytest.fixture(scope="module")
def loaded():
    """Name -> example, model, encoder, inputs; each model is built once, and never changed."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    found = {}

    def get(name):
        if name not in found:
            example = GALLERY[name]
            model = example.model()
            found[name] = example, model, lfpr.prunable(example.prunable(model)), example.inputs()
        return found[name]

    return get


def drawn(encoder, seed=0, bare=False, real=True):
    """Random masks, with a row of heads and one of neurons that are empty if `bare`; else each row keeps one."""
    generator = torch.Generator().manual_seed(seed)

    def draw(rows, width):
        kept = (torch.rand(rows, width, generator=generator) < 0.6).float()
        kept[torch.arange(rows), torch.randint(width, (rows,), generator=generator)] = 1.0
        return kept * (0.5 + torch.rand(kept.shape, generator=generator)) if real else kept

    masks = lfpr.Masks(draw(len(encoder.attentions), encoder.num_heads), draw(len(encoder.ffns), encoder.num_neurons))
    if bare:
        masks.heads[0] = masks.neurons[-1] = 0
        if len(encoder.stacks) > 1:  # the first of each kind, of which the decoder's makes the positions of all
            masks.heads[len(encoder.stacks[0].layers)] = masks.heads[-1] = 0
    return masks


def runs_bare(encoder):
    return all(stack.family.headless and stack.family.neuronless for stack in encoder.stacks)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bare", [False, True], ids=["", "bare layers"])
def test_the_shrunk_model_is_the_masked_one_and_costs_what_the_cost_says(loaded, name, bare):
    example, model, encoder, inputs = loaded(name)
    masks = drawn(encoder, bare=bare)
    if bare and encoder.num_layers == 1:
        masks.heads[0, 0] = 1.0  # ALBERT's only row of heads
    if bare and not runs_bare(encoder):
        with pytest.raises(
            ValueError, match=r"keeps no (head|neuron), and \w+ does not run without: keep at least one"
        ):
            lfpr.shrink(model, masks, example.prunable(model))
        return
    small = lfpr.shrink(model, masks, example.prunable(model))
    gap = lfpr.verify_equivalent(model, masks, small, [inputs], example.run, part=example.prunable(model))
    shrunk = lfpr.prunable(example.prunable(small))
    assert gap <= 2e-5
    assert shrunk.heads_per_layer == masks.heads_kept and shrunk.neurons_per_layer == masks.neurons_kept
    cost = lfpr.ParameterCost(encoder)
    assert (
        shrunk.num_parameters
        == cost.kept(masks)
        == lfpr.ParameterCost(shrunk).of(sum(masks.heads_kept), sum(masks.neurons_kept))
    )
    removed = encoder.num_parameters - shrunk.num_parameters
    count = [sum(p.numel() for p in each.parameters()) for each in (model, small)]
    assert removed > 0 and count[0] - count[1] == removed


@pytest.mark.parametrize("name", NAMES)
def test_pruning_twice_is_pruning_once(loaded, name):
    example, model, encoder, inputs = loaded(name)
    first, second = drawn(encoder, 1, real=False), drawn(encoder, 2, real=False)
    both = lfpr.Masks(first.heads * second.heads, first.neurons * second.neurons)
    for part in (both.heads, both.neurons):
        part[part.sum(1) == 0, 0] = 1
    first = lfpr.Masks(torch.maximum(first.heads, both.heads), torch.maximum(first.neurons, both.neurons))
    half = lfpr.shrink(model, first, example.prunable(model))
    rest = [
        [row[kept != 0] for row, kept in zip(*pair, strict=True)]
        for pair in ((both.heads, first.heads), (both.neurons, first.neurons))
    ]
    twice = lfpr.shrink(half, Rows(*rest), example.prunable(half))
    once = lfpr.shrink(model, both, example.prunable(model))
    with torch.no_grad():
        torch.testing.assert_close(example.run(twice, inputs), example.run(once, inputs), rtol=1e-4, atol=1e-5)


class Rows:
    def __init__(self, heads, neurons):
        self.heads, self.neurons = heads, neurons


@pytest.mark.parametrize("name", NAMES)
def test_gradients_agree_with_finite_differences(loaded, name):
    example, model, _, inputs = loaded(name)
    model = copy.deepcopy(model).double()
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    encoder = lfpr.prunable(example.prunable(model))

    def objective(batch):
        return example.run(model, batch).square().mean()

    found = lfpr.collect_gradients(encoder, [inputs], objective)
    generator = torch.Generator().manual_seed(0)
    step, tolerance = (2e-3, 2e-2) if name in SINGLE else (1e-5, 1e-4)
    for kind in ("heads", "neurons"):
        slopes = getattr(found, kind)[0]
        assert slopes.abs().sum() > 0
        for flat in torch.randperm(slopes.numel(), generator=generator)[:4]:
            place = divmod(int(flat), slopes.shape[1])
            values = []
            for sign in (1, -1):
                masks = lfpr.Masks.ones(encoder).to(torch.float64)
                getattr(masks, kind)[place] += sign * step
                with torch.no_grad(), encoder.masked(masks):
                    values.append(objective(inputs).item())
            slope = (values[0] - values[1]) / (2 * step)
            assert slopes[place].item() == pytest.approx(slope, rel=tolerance, abs=1e-3 * tolerance), (kind, place)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_comes_back(loaded, name, tmp_path):
    example, model, encoder, inputs = loaded(name)
    small = lfpr.shrink(model, drawn(encoder, 3, bare=runs_bare(encoder)), example.prunable(model))
    lfpr.save_pruned(small, tmp_path)
    again = lfpr.load_pruned(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(example.run(again, inputs), example.run(small, inputs), rtol=0, atol=0)


@pytest.mark.parametrize("name", GENERATING)
@pytest.mark.parametrize("bare", [False, True], ids=["", "bare layers"])
def test_it_generates_with_a_cache_what_it_does_without(loaded, name, bare):
    example, model, encoder, inputs = loaded(name)
    small = lfpr.shrink(model, drawn(encoder, 4, bare=bare and runs_bare(encoder)), example.prunable(model))
    given = {key: value for key, value in inputs.items() if key != "decoder_input_ids"}
    if "attention_mask" in given and "decoder_input_ids" not in inputs:  # padding stands left of what goes on
        given["attention_mask"] = given["attention_mask"].flip(1)
        given["input_ids"] = given["input_ids"].flip(1)
    options = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        cached, plain = (small.generate(**given, **options, use_cache=cache) for cache in (True, False))
        unpruned = model.generate(**given, **options)
    assert torch.equal(cached, plain) and cached.shape == unpruned.shape
    assert not torch.equal(cached, unpruned)
    with torch.no_grad():
        still = small.generate(**given, **options, cache_implementation="static", disable_compile=True)
    assert torch.equal(still, cached)


@pytest.mark.parametrize("sizes", [{"decoder_attention_heads": 2}, {"decoder_ffn_dim": 32}])
def test_an_encoder_has_sizes_of_its_own_beside_a_decoder_of_others(sizes):
    example = replace(GALLERY["BART"], sizes=GALLERY["BART"].sizes | sizes)
    model, inputs = example.model(), example.inputs()
    with pytest.raises(lfpr.UnsupportedArchitecture, match="has 2 prunable encoders: pass one of its parts"):
        lfpr.prunable(model)
    for side, heads, neurons in (
        ("encoder", 4, 40),
        ("decoder", sizes.get("decoder_attention_heads", 4), sizes.get("decoder_ffn_dim", 40)),
    ):
        part = model.get_submodule(f"model.{side}")
        encoder = lfpr.prunable(part)
        assert (encoder.num_heads, encoder.num_neurons) == (heads, neurons)
        assert lfpr.ParameterCost(encoder).full == encoder.num_parameters
        masks = drawn(encoder)
        small = lfpr.shrink(model, masks, part)
        assert lfpr.verify_equivalent(model, masks, small, [inputs], example.run, part=part) <= 2e-5
        model = small


@pytest.mark.parametrize("name", ["Dinov2Model", "Dinov2WithRegistersModel"])
def test_gated_ffns_of_the_large_dinov2_are_pruned(name, tmp_path):
    example = replace(GALLERY["DINOv2"], name=name, sizes=GALLERY["DINOv2"].sizes | {"use_swiglu_ffn": True})
    model, inputs = example.model(), example.inputs()
    encoder = lfpr.prunable(model)
    masks = drawn(encoder)
    small = lfpr.shrink(model, masks)
    assert lfpr.verify_equivalent(model, masks, small, [inputs], example.run) <= 2e-5
    lfpr.save_pruned(small, tmp_path)
    again = lfpr.prunable(lfpr.load_pruned(tmp_path))
    assert again.num_neurons == 64 and again.neurons_per_layer == masks.neurons_kept


@pytest.mark.parametrize("name", [name for name in NAMES if not GALLERY[name].like])
def test_it_is_exported_or_the_exporter_fails_as_the_table_says(name, tmp_path):
    pytest.importorskip("onnxruntime")
    example = replace(GALLERY[name], sizes=GALLERY[name].sizes | dict.fromkeys(DEPTHS & {*GALLERY[name].sizes}, 1))
    model, inputs = example.model(), example.inputs()
    encoder = lfpr.prunable(example.prunable(model))
    masks = drawn(encoder, 5)
    if runs_bare(encoder) and not (encoder.passes > 1 or name in CAUSAL):  # what is exported then has a head of zeros
        masks.heads[0] = 0
    small = example.prunable(lfpr.shrink(model, masks, example.prunable(model)))
    inputs = {key: value for key, value in inputs.items() if key in inspect.signature(small.forward).parameters}
    if example.onnx:
        with pytest.raises(
            ValueError, match="cannot be exported with opset 18: TorchExportError|onnxruntime and torch"
        ):
            lfpr.export_onnx(small, inputs, tmp_path / "small.onnx")
    else:
        assert lfpr.export_onnx(small, inputs, tmp_path / "small.onnx") <= 1e-4


@pytest.mark.parametrize("name", [name for name in NAMES if GALLERY[name].like])
def test_layers_that_are_exported_as_another_familys_run_the_same_code(loaded, name):
    def code(name):
        _, _, encoder, _ = loaded(name)
        return [[type(module).forward.__code__.co_code for module in layer.modules()] for layer in encoder.layers]

    assert code(name) == code(GALLERY[name].like) != code("DistilBERT")


def test_models_that_are_alike_are_found_and_exact():
    found = alike()
    assert len(found) > 60
    for name, example in found.items():
        model, inputs = example.model(), example.inputs()
        encoder = lfpr.prunable(model)
        masks = drawn(encoder)
        small = lfpr.shrink(model, masks)
        assert min(masks.heads_kept) < encoder.num_heads, name
        assert lfpr.verify_equivalent(model, masks, small, [inputs], example.run) <= 2e-5, name


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_pruned_is_refused_with_the_reason(name):
    with pytest.raises(lfpr.UnsupportedArchitecture, match=r"has no prunable encoder\. [\w.]+: \w+"):
        lfpr.prunable(REFUSED[name].model())


def altered(name, change):
    """A model of the gallery whose layers are changed."""
    model = GALLERY[name].model()
    for layer in lfpr.prunable(model).layers:
        change(layer)
    return model


class CountsHeads:
    def forward(self, *args, **kwargs):
        assert self.num_attention_heads
        return super().forward(*args, **kwargs)


def count_heads(attention):
    attention.__class__ = type("Counting", (CountsHeads, type(attention)), {})
    attention.num_attention_heads = 4


ODD = {  # what makes layers unlike known ones, though all paths are there: a change, and what is said of it
    "sinks of heads": (
        lambda layer: setattr(layer.self_attn, "sinks", torch.nn.Parameter(torch.zeros(12))),
        "self_attn has sinks, whose part in heads is not known",
    ),
    "a norm of all heads": (
        lambda layer: setattr(layer.self_attn, "norm", torch.nn.LayerNorm(48)),
        "self_attn has norm.weight, whose part in heads is not known",
    ),
    "a norm of neurons": (
        lambda layer: setattr(layer.mlp, "norm", torch.nn.LayerNorm(40)),
        "mlp has norm.weight, whose part in neurons is not known",
    ),
    "a count of heads": (
        lambda layer: count_heads(layer.self_attn),
        "the code of self_attn counts all heads, by its num_attention_heads",
    ),
    "another path": (
        lambda layer: setattr(layer.mlp, "down_proj", torch.nn.Identity()),
        "mlp.down_proj is Identity, no plain Linear",
    ),
    "no path": (
        lambda layer: delattr(layer.mlp, "down_proj"),
        "LlamaDecoderLayer is of no layout that is known, the nearest is that of Llama, but it has no mlp.down_proj",
    ),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_only_looks_like_a_known_layer_is_refused_with_the_reason(odd):
    change, reason = ODD[odd]
    with pytest.raises(lfpr.UnsupportedArchitecture, match=f"layers: {re.escape(reason)}"):
        lfpr.prunable(altered("Llama", change))


def test_a_layer_that_counts_its_heads_is_found_but_must_keep_one():
    model = altered("DINOv2", lambda layer: count_heads(layer.attention))
    encoder, inputs = lfpr.prunable(model), GALLERY["DINOv2"].inputs()
    masks = drawn(encoder)
    lfpr.verify_equivalent(model, masks, lfpr.shrink(model, masks), [inputs], GALLERY["DINOv2"].run)
    with pytest.raises(ValueError, match="keeps no head, and Dinov2Layer does not run without"):
        lfpr.shrink(model, drawn(encoder, bare=True))
