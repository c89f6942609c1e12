"""Models that people have: what is pruned as any other, and what is refused by name, before any work."""

import copy
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import small_models as small
import torch
import transformers as hf
from fake_device import Elsewhere
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

import lfpr
from lfpr.encoder import encoders, prunable
from lfpr.families import UnsupportedArchitecture
from lfpr.gradients import collect_gradients
from lfpr.masks import Masks
from lfpr.modes import observable
from lfpr.shrink import fold, resize, shrink, verify_equivalent

BATCH = small.batch("bert")


@pytest.fixture
def bert():
    return small.build("bert")


def layer(model, number=1):
    return model.encoder.layer[number]


def gap(model, masks, atol=1e-4):
    return verify_equivalent(model, masks, shrink(model, masks), [BATCH], small.forward, atol)


def gradients(model, forward=None, **options):
    """Of the first token's features, in evaluation mode or not."""

    def objective(batch):
        return (forward or small.forward)(model, batch)[:, 0].square().sum()

    return collect_gradients(prunable(model), [BATCH], objective, **options)


def close(found, expected):
    for part in ("heads", "neurons"):
        torch.testing.assert_close(getattr(found, part), getattr(expected, part), rtol=1e-4, atol=1e-4)


# ---- what hides layers from hooks


@pytest.mark.parametrize("family", ["bert", "vit"])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(family, per_sample, reentrant):
    model, batch = small.build(family), small.batch(family)
    model.train()
    for dropout in (m for m in model.modules() if isinstance(m, nn.Dropout)):
        dropout.p = 0.0

    def scored():
        return collect_gradients(
            prunable(model), [batch], lambda b: small.forward(model, b)[:, 0].square().sum(), per_sample
        )

    expected = scored()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    close(scored(), expected)
    assert layer_flags(model) == {True}  # restored


def layer_flags(model):
    return {m.gradient_checkpointing for m in model.modules() if hasattr(m, "gradient_checkpointing")}


def test_masks_are_trained_in_all_layers_under_reentrant_checkpointing(bert):
    def trained(checkpointing):
        model = shrink(bert, small.random_masks(prunable(bert), 2)).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": True})
        torch.manual_seed(0)

        def loss(batch):
            return model(**batch).last_hidden_state.square().mean()

        return lfpr.retrain(model, prunable(model), [], [BATCH], loss, lfpr.ReSt())[0]

    plain, found = trained(False), trained(True)
    for a, b in zip(plain.parameters(), found.parameters(), strict=True):
        assert torch.equal(a, b) and not (a == 1).any()


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("padded", [False, True])
def test_chunked_feed_forward_layers_change_no_result(family, padded):
    model, whole = small.build(family), small.batch(family)
    batch = {"input_ids": whole["input_ids"][:, :8], "attention_mask": whole["attention_mask"][:, :8]}
    if not padded:
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    encoder, run = prunable(model), lambda b: model(**b)
    masks = small.random_masks(encoder, 1, real=False)

    def results():
        gradient = collect_gradients(encoder, [batch], lambda b: run(b).last_hidden_state[:, 0].square().sum(), True)
        surgeon = lfpr.surgeon_importance(encoder, [batch], lambda b: run(b).last_hidden_state.square().sum())
        small_model = shrink(model, masks)
        report = lfpr.reconstruct(model, small_model, [batch], small.forward)
        fitted = SimpleNamespace(heads=torch.tensor([r.after for r in report]), neurons=torch.zeros(1))
        return [
            lfpr.activation_importance(encoder, [batch], run),
            lfpr.rescale(encoder, masks, [batch], run),
            gradient,
            surgeon,
            fitted,
        ]

    expected = results()
    chunked = [m for m in model.modules() if hasattr(m, "chunk_size_feed_forward")]
    for module in chunked:
        module.chunk_size_feed_forward = 2
    for found, wanted in zip(results(), expected, strict=True):
        for part in ("heads", "neurons"):
            a, b = getattr(found, part), getattr(wanted, part)
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
    assert len(chunked) == 3 and all(module.chunk_size_feed_forward == 2 for module in chunked)


def compiled_layers(model):
    for number, one in enumerate(model.encoder.layer):
        model.encoder.layer[number] = torch.compile(one, backend="eager")
    return model


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


COMPILED = {
    "torch.compile(model)": lambda model: torch.compile(model, backend="eager"),
    "model.compile()": compiled_in_place,
    "compiled layers": compiled_layers,
}


@pytest.mark.parametrize("how", COMPILED)
def test_masks_act_on_a_model_that_was_compiled_and_run(bert, how):
    torch._dynamo.reset()
    masks = small.random_masks(prunable(bert), 1)
    with prunable(bert).masked(masks), torch.no_grad():
        expected = small.forward(bert, BATCH)
    wanted = gradients(bert)
    model = COMPILED[how](bert)
    with torch.no_grad():
        before = small.forward(model, BATCH)
        with prunable(model).masked(masks):
            torch.testing.assert_close(small.forward(model, BATCH), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(small.forward(model, BATCH), before, rtol=1e-4, atol=1e-4)
    close(gradients(model), wanted)
    pruned = shrink(model, masks)
    assert type(pruned) is hf.BertModel
    assert verify_equivalent(model, masks, torch.compile(pruned, backend="eager"), [BATCH], small.forward) < 1e-4


def test_masks_act_where_a_compiled_function_runs_the_model(bert):
    torch._dynamo.reset()
    run, masks = torch.compile(lambda batch: small.forward(bert, batch), backend="eager"), Masks.ones(prunable(bert))
    masks.heads[1] = 0
    with torch.no_grad():
        before = run(BATCH)
        with prunable(bert).masked(masks):
            assert torch.equal(run(BATCH), small.forward(bert, BATCH))
        torch.testing.assert_close(run(BATCH), before)
    assert not torch.equal(before, small.forward(shrink(bert, masks), BATCH))


def test_pruned_models_compile(bert):
    torch._dynamo.reset()
    pruned = shrink(bert, small.random_masks(prunable(bert), 1))
    with torch.no_grad():
        torch.testing.assert_close(
            small.forward(torch.compile(pruned, backend="eager"), BATCH), small.forward(pruned, BATCH)
        )


def test_what_is_switched_off_is_on_again_after_an_error(bert):
    bert.activation_checkpointing_enable()
    layer(bert).chunk_size_feed_forward = 3
    with pytest.raises(RuntimeError, match="on purpose"), observable(bert):
        assert layer(bert).chunk_size_feed_forward == 0 and layer_flags(bert) == {False}
        raise RuntimeError("on purpose")
    assert layer(bert).chunk_size_feed_forward == 3 and layer_flags(bert) == {True}


def test_wrappers_are_unwrapped(bert):
    parallel, masks = nn.DataParallel(bert), small.random_masks(prunable(bert), 1)
    assert prunable(parallel).module is bert and prunable(parallel).path == "encoder.layer"
    pruned = shrink(parallel, masks)
    assert type(pruned) is hf.BertModel
    assert verify_equivalent(parallel, masks, nn.DataParallel(pruned), [BATCH], small.forward) < 1e-4
    tap = small.tap()[0]  # which says where its encoder is
    assert prunable(nn.DataParallel(tap)).path == prunable(tap).path == "mmt.encoder.layer"
    clip = nn.DataParallel(small.reference_clip())
    tower = clip.module.vision_model
    masks = small.random_masks(prunable(tower), 1)
    assert prunable(shrink(clip, masks, tower).vision_model).heads_per_layer == masks.heads_kept
    stepwise = lfpr.prune_in_steps(
        parallel, lfpr.ParameterCost(prunable(bert)), 0.6, 1, lfpr.magnitude, lambda: [BATCH], small.forward
    )
    assert prunable(stepwise.small).heads_per_layer == stepwise.masks.heads_kept


# ---- decoders, attention kernels


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    model = hf.BertLMHeadModel(hf.BertConfig(**small.BERT, is_decoder=True)).eval()
    for p in model.parameters():
        if p.ndim == 2:
            nn.init.normal_(p, std=0.2)
    return model


@pytest.mark.parametrize("empty", [[0], [0, 1], [1], []])
def test_decoders_without_heads_in_some_layers_decode_the_same_with_a_cache(decoder, empty):
    masks = Masks.ones(prunable(decoder))
    masks.heads[empty], masks.heads[2, 1] = 0, 0
    pruned, ids = shrink(decoder, masks), BATCH["input_ids"].clamp(min=3)
    again = copy.deepcopy(decoder)
    resize(prunable(again), masks.heads_kept, masks.neurons_kept)
    again.load_state_dict(pruned.state_dict())
    with torch.no_grad():
        whole = pruned(input_ids=ids, use_cache=False).logits
        for model in (pruned, again):
            first = model(input_ids=ids[:, :-2], use_cache=True)
            rest = model(input_ids=ids[:, -2:], past_key_values=first.past_key_values, use_cache=True)
            torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole, rtol=1e-4, atol=1e-4)
        with prunable(decoder).masked(masks):
            torch.testing.assert_close(decoder(input_ids=ids).logits, whole, rtol=1e-4, atol=1e-4)


def test_a_caching_decoder_without_any_head_is_refused(decoder):
    masks = Masks.ones(prunable(decoder))
    masks.heads[:] = 0
    with pytest.raises(ValueError, match=r"masks\.heads: no layer keeps a head.*min_heads=1.*use_cache = False"):
        shrink(decoder, masks)
    decoder.config.use_cache = False
    assert prunable(shrink(decoder, masks)).heads_per_layer == [0, 0, 0]


def test_flex_attention_runs_without_heads(bert):
    masks = small.random_masks(prunable(bert), 1)
    with torch.no_grad():
        expected = small.forward(shrink(bert, masks), BATCH)
    bert.set_attn_implementation("flex_attention")
    pruned = shrink(bert, masks)
    with warnings.catch_warnings(), torch.no_grad(), torch.compiler.set_stance("force_eager"):  # needs no compiler
        warnings.simplefilter("ignore")
        torch.testing.assert_close(small.forward(pruned, BATCH), expected, rtol=1e-4, atol=1e-4)
    assert bert.config._attn_implementation == pruned.config._attn_implementation == "flex_attention"


def test_a_model_without_some_heads_may_change_its_attention(bert, tmp_path):
    """The implementation is the model's, now: one chosen after pruning, loading or copying counts."""
    pruned = shrink(bert, small.random_masks(prunable(bert), 1))
    with torch.no_grad():
        expected = small.forward(pruned, BATCH)
    lfpr.save_pruned(pruned, tmp_path)
    for model in (pruned, lfpr.load_pruned(tmp_path), copy.deepcopy(pruned)):
        assert 0 in prunable(model).heads_per_layer
        for name in ("flex_attention", "eager", "sdpa", "flex_attention"):
            model.set_attn_implementation(name)
            with warnings.catch_warnings(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
                warnings.simplefilter("ignore")
                torch.testing.assert_close(small.forward(model, BATCH), expected, rtol=1e-4, atol=1e-4)
            assert model.config._attn_implementation == name


# ---- refused by name


class Gain(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class Packed(nn.Linear):
    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        self.weight = nn.Parameter(linear.weight.detach().to(torch.int8).reshape(-1, 1), requires_grad=False)


def as_class(make):
    def change(model):
        layer(model).attention.self.value = make(layer(model).attention.self.value)

    return change


def with_weight(change):
    def changed(model):
        linear = layer(model).attention.self.value
        linear.weight = nn.Parameter(change(linear.weight.detach()), requires_grad=False)

    return changed


def each(change):
    return lambda model: change(layer(model).attention.self.value)


def patched(linear):
    linear.forward = linear.forward


def elsewhere(linear):
    linear.weight = nn.Parameter(Elsewhere(linear.weight.detach()), requires_grad=False)


def lora(linear):
    linear.adapter = nn.Linear(linear.in_features, 2)


def dynamic(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer(model).attention.self.value = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(layer(model).attention.self.value), {nn.Linear}
        )[0]


def pruned_without_graph(linear):
    with torch.no_grad():
        prune.l1_unstructured(linear, "weight", 0.3)


def offloaded(model):
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


PLAIN, PERMANENT = r"Merge adapters.*merge_and_unload.*before quantising", r"prune\.remove.*remove_parametrizations"
VALUE = r"encoder\.layer\.1\.attention\.self\.value"
REFUSED = {
    "a subclass with another forward": (as_class(lambda linear: Gain(48, 48)), VALUE + " is of class .*Gain.*" + PLAIN),
    "a subclass with a packed weight": (as_class(Packed), VALUE + " is of class .*Packed.*" + PLAIN),
    "dynamically quantised": (dynamic, VALUE + r" is of class torch\.ao\.nn\.quantized\.dynamic.*" + PLAIN),
    "no Linear": (as_class(lambda linear: nn.Identity()), VALUE + r" is of class torch.*Identity"),
    "an adapter inside": (each(lora), VALUE + r".*adapter\.weight.*" + PERMANENT),
    "prune": (
        each(lambda linear: prune.l1_unstructured(linear, "weight", 0.3)),
        VALUE + r".*weight_orig.*" + PERMANENT,
    ),
    "prune without a graph": (each(pruned_without_graph), VALUE + r".*weight_mask.*" + PERMANENT),
    "prune of a bias": (
        each(lambda linear: prune.l1_unstructured(linear, "bias", 0.3)),
        VALUE + r".*bias_orig.*" + PERMANENT,
    ),
    "weight_norm": (each(parametrizations.weight_norm), VALUE + r".*original0.*" + PERMANENT),
    "orthogonal": (each(parametrizations.orthogonal), VALUE + ".*" + PERMANENT),
    "spectral_norm": (each(parametrizations.spectral_norm), VALUE + ".*" + PERMANENT),
    "whole numbers": (
        with_weight(lambda w: w.to(torch.int8)),
        VALUE + r"\.weight: found a Parameter .* of torch\.int8",
    ),
    "another shape": (with_weight(lambda w: w.reshape(-1, 2)), VALUE + r"\.weight: found a Parameter \(1152, 2\)"),
    "a tensor of another kind": (each(elsewhere), VALUE + r"\.weight: found a Elsewhere.*quantising"),
    "a patched forward": (each(patched), VALUE + ".*forward was replaced.*remove_hook_from_submodules"),
    "offloaded": (offloaded, r"encoder\.layer\.0\.attention\.self\.query: .*offloaded.*remove_hook_from_submodules"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_are_not_plain_are_refused_by_name(bert, name):
    change, message = REFUSED[name]
    change(bert)
    for look in (prunable, encoders, lambda model: shrink(model, Masks(torch.ones(3, 4), torch.ones(3, 40)))):
        with pytest.raises(UnsupportedArchitecture, match=message):
            look(bert)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_old_weight_norm_is_refused_and_what_is_made_permanent_is_pruned(bert):
    linear = layer(bert).attention.self.value
    weight_norm(linear)
    with pytest.raises(UnsupportedArchitecture, match=VALUE + ".*weight_g.*remove_weight_norm"):
        prunable(bert)
    nn.utils.remove_weight_norm(linear)
    parametrizations.weight_norm(linear)
    parametrize.remove_parametrizations(linear, "weight")
    prune.l1_unstructured(linear, "weight", 0.3)
    prune.remove(linear, "weight")
    layer(bert).output.dense.__class__ = NonDynamicallyQuantizableLinear
    assert gap(bert, small.random_masks(prunable(bert), 1)) < 1e-4


def own(weight):
    return nn.Parameter(weight.detach())


def tie(place, weight):
    def change(model):
        place(model).weight = weight(layer(model, 0).output.dense.weight)

    return change


def repeated(model):
    model.encoder.layer[2] = layer(model, 0)


def one_attention(model):
    layer(model, 2).attention = layer(model, 0).attention


def same_query_and_key(model):
    layer(model).attention.self.key = layer(model).attention.self.query


def used_outside(model):
    model.head = layer(model, 0).output.dense


def tied_outside(model):
    model.head = nn.Linear(40, 48)
    model.head.weight = layer(model, 0).output.dense.weight


SHARED = {
    "a repeated layer": (repeated, "layer.2.attention.self.query shares its weights with encoder.layer.0"),
    "one attention in two layers": (one_attention, "layer.2.attention.self.query shares"),
    "one Linear for query and key": (same_query_and_key, "layer.1.attention.self.key shares"),
    "a tied weight": (tie(lambda m: layer(m, 2).output.dense, lambda w: w), "layer.0.output.dense shares"),
    "the same memory": (tie(lambda m: layer(m, 2).output.dense, own), r"layer\.0\.output\.dense shares.*layer\.2"),
    "a Linear used elsewhere": (used_outside, r"layer\.0\.output\.dense shares its weights with head"),
    "a weight tied elsewhere": (tied_outside, r"layer\.0\.output\.dense shares its weights with head\.weight"),
}


@pytest.mark.parametrize("name", SHARED)
def test_shared_weights_are_refused(bert, name):
    before, masks = prunable(bert), Masks.ones(prunable(bert))
    change, message = SHARED[name]
    change(bert)
    for look in (prunable, lambda model: shrink(model, masks), lambda model: fold(prunable(model), masks)):
        with pytest.raises(UnsupportedArchitecture, match=message):
            look(bert)
    assert before.num_layers == 3


def test_other_names_of_a_layer_and_tied_embeddings_are_no_sharing(bert):
    bert.alias, bert.first = bert.encoder, layer(bert, 0)
    layer(bert).mlp = nn.Sequential(layer(bert).intermediate.dense)
    assert gap(bert, small.random_masks(prunable(bert), 1)) < 1e-4
    tied = hf.BertForMaskedLM(hf.BertConfig(**small.BERT)).eval()
    assert tied.cls.predictions.decoder.weight is tied.bert.embeddings.word_embeddings.weight
    pruned = shrink(tied, small.random_masks(prunable(tied), 1))
    assert pruned.cls.predictions.decoder.weight is pruned.bert.embeddings.word_embeddings.weight


def test_weights_outside_a_part_are_seen_before_the_whole_is_shrunk():
    clip = small.reference_clip()
    masks = small.random_masks(prunable(clip.vision_model), 1)
    clip.head = clip.vision_model.encoder.layers[0].mlp.fc2
    with pytest.raises(UnsupportedArchitecture, match=r"mlp\.fc2 shares its weights with head"):
        shrink(clip, masks, part=clip.vision_model)


def test_another_tower_may_be_odd():
    clip = small.reference_clip()
    patched(clip.text_model.encoder.layers[0].mlp.fc1)
    masks = small.random_masks(prunable(clip.vision_model), 1)
    assert prunable(shrink(clip, masks, part=clip.vision_model).vision_model).heads_per_layer == masks.heads_kept


def test_models_without_weights_have_a_cost_and_nothing_else(bert):
    empty, masks = small.build("bert").to("meta"), Masks.ones(prunable(bert))
    encoder = prunable(empty)
    assert lfpr.ParameterCost(encoder).full == lfpr.ParameterCost(prunable(bert)).full
    for use in (
        lambda: shrink(empty, masks),
        lambda: fold(encoder, masks),
        lambda: encoder.masked(masks).__enter__(),
        lambda: gradients(empty),
        lambda: lfpr.magnitude(encoder),
        lambda: lfpr.activation_importance(encoder, [BATCH], lambda b: empty(**b)),
        lambda: lfpr.surgeon_importance(encoder, [BATCH], lambda b: empty(**b).last_hidden_state.sum()),
        lambda: lfpr.rescale(encoder, masks, [BATCH], lambda b: empty(**b)),
    ):
        with pytest.raises(UnsupportedArchitecture, match=r"encoder\.layer\.0\..* on the meta device.*Load"):
            use()


def test_odd_lists_of_layers(bert):
    class Own(type(layer(bert))):
        pass

    layer(bert).__class__ = Own
    assert prunable(bert).num_layers == 3 and gap(bert, small.random_masks(prunable(bert), 1)) < 1e-4
    bert.encoder.layer[2] = nn.Identity()
    with pytest.raises(UnsupportedArchitecture, match=r"encoder\.layer\.2 is of class Identity, while other layers"):
        prunable(bert)
    bert.encoder.layer[2] = small.build("vit").layers[0]
    with pytest.raises(UnsupportedArchitecture, match=r"encoder\.layer\.2 is of class ViTLayer"):
        prunable(bert)
    bert.prunable_path = "nowhere.layer"
    with pytest.raises(UnsupportedArchitecture, match=r"BertModel\.prunable_path = 'nowhere\.layer'"):
        prunable(bert)


def test_what_cannot_be_copied_is_named(bert):
    masks = small.random_masks(prunable(bert), 1)
    layer(bert).seen = small.forward(bert, BATCH)
    with pytest.raises(ValueError, match=r"BertModel cannot be copied, because of its \['encoder\.layer\.1\.seen'\]"):
        shrink(bert, masks)
    layer(bert).seen = [layer(bert).seen]
    with pytest.raises(ValueError, match=r"\['encoder\.layer\.1\.seen'\]: delete"):
        lfpr.prune_in_steps(bert, lfpr.ParameterCost(prunable(bert)), 0.5, 1, lfpr.magnitude, list, small.forward)
    layer(bert).seen, bert.source = None, (i for i in range(3))
    with pytest.raises(ValueError, match=r"\['source'\]"):
        shrink(bert, masks)
    bert.source = None
    prune.l1_unstructured(bert.pooler.dense, "weight", 0.3)
    with pytest.raises(ValueError, match=r"\['pooler\.dense\.weight'\]"):
        shrink(bert, masks)


# ---- modes, devices, dtypes


def test_inference_mode(bert):
    encoder = prunable(bert)
    masks = small.random_masks(encoder, 1)
    with torch.inference_mode():
        pruned = shrink(bert, masks)
        assert verify_equivalent(bert, masks, pruned, [BATCH], small.forward) < 1e-4
        with pytest.raises(ValueError, match=r"inference_mode have no gradients: use torch\.no_grad"):
            gradients(bert)
        built = small.build("bert")
    small.forward(pruned.train(), BATCH).sum().backward()
    with pytest.raises(ValueError, match="inference_mode"):
        gradients(built)
    assert gap(built, masks) < 1e-4
    fold(prunable(built), masks)
    assert not layer(built, 0).attention.output.dense.weight.any()
    assert not any(p.is_inference() for p in shrink(built, masks).parameters())


def test_another_default_device(bert):
    encoder = prunable(bert)
    masks, other = small.random_masks(encoder, 1), copy.deepcopy(bert)
    expected = gradients(bert, masks=masks, per_sample=True)
    with torch.device("meta"):
        pruned = shrink(bert, masks)
        resize(prunable(other), masks.heads_kept, masks.neurons_kept)
        found = gradients(bert, masks=masks, per_sample=True)
        assert Masks.ones(encoder).heads.device.type == "cpu"
    assert found.equal(expected)
    assert prunable(other).heads_per_layer == prunable(pruned).heads_per_layer == masks.heads_kept
    assert verify_equivalent(bert, masks, pruned, [BATCH], small.forward) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8])
def test_masks_of_whole_numbers_act_as_floats(bert, dtype):
    encoder = prunable(bert)
    masks = small.random_masks(encoder, 1, real=False)
    other = masks.to(dtype)
    with torch.no_grad(), encoder.masked(masks):
        expected = small.forward(bert, BATCH)
    with torch.no_grad(), encoder.masked(other):
        assert torch.equal(small.forward(bert, BATCH), expected)
    assert gap(bert, other) < 1e-4
    for per_sample in (False, True):
        a, b = (gradients(bert, masks=each, per_sample=per_sample) for each in (masks, other))
        assert a.equal(b)
    folded = copy.deepcopy(bert)
    fold(prunable(folded), other)
    torch.testing.assert_close(small.forward(folded, BATCH), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 0.02), (torch.bfloat16, 0.15)])
def test_half_precision(bert, dtype, atol):
    masks = small.random_masks(prunable(bert), 1)
    expected = gradients(bert)
    assert gap(bert.to(dtype), masks, atol) <= atol
    found = gradients(bert, lambda model, batch: small.forward(model, batch).float(), per_sample=True)
    assert found.heads.dtype == torch.float32
    assert nn.functional.cosine_similarity(found.neurons.sum(0).flatten(), expected.neurons.flatten(), 0) > 0.98


def test_layers_of_different_precision(bert):
    def to_half(module, args, kwargs):
        return (args[0].bfloat16(), *args[1:]), kwargs

    layer(bert).bfloat16().register_forward_pre_hook(to_half, with_kwargs=True)
    layer(bert).register_forward_hook(lambda module, args, output: output.float())
    masks = small.random_masks(prunable(bert), 1)
    assert gap(bert, masks, atol=0.1) <= 0.1
    assert gradients(bert, masks=masks).heads.isfinite().all()


# ---- what callers pass


def bad(name, value, allowed):
    return pytest.param(name, value, allowed, id=f"{name}={type(value).__name__}")


@pytest.mark.parametrize("value", [None, 3, "bert", {"model": 1}, nn.Linear, [nn.Linear(2, 2)]])
def test_what_is_no_module_is_refused(bert, value):
    masks = Masks.ones(prunable(bert))
    for call in (
        lambda: prunable(value),
        lambda: encoders(value),
        lambda: shrink(value, masks),
        lambda: verify_equivalent(value, masks, bert, [BATCH], small.forward),
        lambda: lfpr.export_onnx(value, BATCH, "x.onnx"),
    ):
        with pytest.raises(ValueError, match=r"(module|pruned): expected Module, found"):
            call()
    for part in (value, bert.config):
        if part is not None:
            with pytest.raises(ValueError, match="part: expected Module, found"):
                shrink(bert, masks, part=part)
    with pytest.raises(ValueError, match="pruned: expected Module, found"):
        verify_equivalent(bert, masks, value, [BATCH], small.forward)
    for call in (lambda: fold(value, masks), lambda: collect_gradients(value, [BATCH], small.forward)):
        with pytest.raises(ValueError, match="encoder: expected PrunableEncoder, found"):
            call()
    with pytest.raises(ValueError, match=r"declared = .*: must be True or False"):
        encoders(bert, value)


HEADS, NEURONS = torch.ones(3, 4), torch.ones(3, 40)
BAD_MASKS = {
    "none": (None, "masks: expected Masks.*found NoneType"),
    "a dict": ({"heads": HEADS, "neurons": NEURONS}, "masks: expected Masks.*found dict"),
    "a tensor": (HEADS, "masks: expected Masks.*found Tensor"),
    "a number": (SimpleNamespace(heads=1, neurons=NEURONS), r"masks\.heads: expected a tensor.*found int"),
    "lists": (SimpleNamespace(heads=HEADS.tolist(), neurons=NEURONS), r"masks\.heads: expected a tensor.*found list"),
    "numpy": (SimpleNamespace(heads=HEADS.numpy(), neurons=NEURONS), r"masks\.heads: expected a tensor.*ndarray"),
    "another model's": (Masks(torch.ones(2, 4), torch.ones(2, 40)), r"masks\.heads: shapes .*\[4, 4, 4\]"),
    "other neurons": (Masks(HEADS, torch.ones(3, 9)), r"masks\.neurons: shapes .*\[40, 40, 40\]"),
    "one row": (SimpleNamespace(heads=torch.ones(4), neurons=NEURONS), r"masks\.heads: shapes"),
    "NaN": (
        SimpleNamespace(heads=HEADS, neurons=NEURONS * float("nan")),
        r"masks\.neurons: NaN or infinite values in layers \[0, 1, 2\]",
    ),
    "infinite": (SimpleNamespace(heads=HEADS * float("inf"), neurons=NEURONS), r"masks\.heads: NaN or infinite"),
    "complex": (SimpleNamespace(heads=HEADS.to(torch.complex64), neurons=NEURONS), r"masks\.heads: "),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_bad_masks_are_refused(bert, name):
    masks, message = BAD_MASKS[name]
    encoder = prunable(bert)
    for call in (
        lambda: encoder.masked(masks).__enter__(),
        lambda: shrink(bert, masks),
        lambda: shrink(bert, masks, part=bert.encoder),
        lambda: fold(encoder, masks),
        lambda: verify_equivalent(bert, masks, bert, [BATCH], small.forward),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    if masks is not None:
        with pytest.raises(ValueError, match="masks"):
            gradients(bert, masks=masks)
    assert not any(module._forward_pre_hooks for module in bert.modules())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        bad("per_sample", "yes", "per_sample = 'yes': must be True or False"),
        bad("per_sample", None, "per_sample = None"),
        bad("batches", BATCH, "batches: expected a list"),
        bad("batches", None, "batches: expected a list"),
        bad("batches", "text", "batches: expected a list"),
        bad("batches", torch.ones(3, 4), "batches: expected a list"),
        bad("objective", None, "objective: expected a function"),
        bad("objective", 3.0, "objective: expected a function"),
        bad("progress", 3, "progress: expected str or None, found int"),
    ],
)
def test_bad_arguments_of_collect_gradients(bert, name, value, message):
    options = {"batches": [BATCH], "objective": lambda b: bert(**b).last_hidden_state.sum()} | {name: value}
    with pytest.raises(ValueError, match=message):
        collect_gradients(prunable(bert), **options)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *(
            bad("atol", value, "atol = .*: must be at least 0")
            for value in (float("inf"), float("nan"), -1e-4, "1e-4", None, True)
        ),
        bad("batches", BATCH, "batches: expected a list"),
        bad("batches", None, "batches: expected a list"),
        bad("forward", "forward", "forward: expected a function"),
        bad(
            "forward", lambda model, batch: model(**batch), "forward: expected a tensor to compare, found BaseModelOut"
        ),
        bad("forward", lambda model, batch: model(**batch, return_dict=False), "forward: expected a tensor.*tuple"),
        bad("forward", lambda model, batch: None, "forward: expected a tensor to compare, found NoneType"),
        bad("forward", lambda model, batch: torch.ones(3), "forward: it did not run the masked and the shrunk model"),
    ],
)
def test_bad_arguments_of_verify_equivalent(bert, name, value, message):
    masks = small.random_masks(prunable(bert), 1)
    options = {"batches": [BATCH], "forward": small.forward, "atol": 1e-4} | {name: value}
    with pytest.raises(ValueError, match=message):
        verify_equivalent(bert, masks, shrink(bert, masks), **options)


def ignoring(run, model, batch):
    return run(batch)


def test_a_forward_that_ignores_its_model_is_noticed(bert):
    masks = small.random_masks(prunable(bert), 1)
    pruned = shrink(bert, masks)
    for run, which in ((partial(small.forward, bert), "shrunk"), (partial(small.forward, pruned), "masked")):
        for given in (masks, Masks.ones(prunable(bert))):  # the outputs differ or not
            with pytest.raises(ValueError, match=f"forward: it did not run the {which} model that it was given"):
                verify_equivalent(bert, given, pruned, [BATCH], partial(ignoring, run))
    inside = nn.Sequential(pruned)  # may be in a model of another kind
    assert verify_equivalent(bert, masks, inside, [BATCH], lambda m, b: small.forward(getattr(m, "0", m), b)) < 1e-4
    assert verify_equivalent(bert, masks, pruned, [BATCH], small.forward, atol=torch.tensor(1e-4)) < 1e-4


@pytest.mark.parametrize("heads", [None, 3, "1", [1, 2], [1, 2, 41], [1, 2, -1], [1, 2, 1.5], [1, 2, "3"]])
def test_bad_sizes_are_refused_before_any_layer_is_resized(bert, heads):
    with pytest.raises(ValueError, match="heads"):
        resize(prunable(bert), heads, [1, 2, 3])
    with pytest.raises(ValueError, match="neurons"):
        resize(prunable(bert), [1, 2, 3], heads)
    assert prunable(bert).heads_per_layer == [4, 4, 4]
