"""Rescaling against the published masks, explicit least squares, and what the models compute with the new masks."""

import itertools
from collections import namedtuple
from functools import partial

import numpy as np
import pytest
import small_models as small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BatchEncoding

import lfpr
from lfpr.encoder import prunable
from lfpr.families import UnsupportedArchitecture
from lfpr.layerwise import Spool, attention_weights
from lfpr.masks import Masks
from lfpr.rescale import STEP_SIZES, rescale
from lfpr.shrink import shrink, verify_equivalent


@pytest.fixture(scope="module")
def bert():
    return small.reference("bert")


def sums(model, family, layer, masks, inputs):
    """What enters the residual stream after attention and after the FFN, seen from the model's own modules."""
    seen = {}
    encoder = prunable(model)
    part = encoder.parts[layer].module
    if family in ("bert", "roberta", "electra"):
        places = {"heads": part.attention.output.LayerNorm, "neurons": part.output.LayerNorm}
    elif family == "distilbert":
        places = {"heads": part.sa_layer_norm, "neurons": part.output_layer_norm}
    else:
        places = {"heads": part.layer_norm2 if hasattr(part, "layer_norm2") else part.layernorm_after}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
        for name, module in places.items()
    ]
    if "neurons" not in places:
        hooks.append(part.register_forward_hook(lambda _, args, out: seen.__setitem__("neurons", out)))
    with encoder.masked(masks), torch.no_grad():
        small.forward(model, inputs)
    for hook in hooks:
        hook.remove()
    valid = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones(len(seen["heads"]), 1).bool()
    return {name: x[valid.expand(x.shape[:2])].double() for name, x in seen.items()}


@pytest.mark.parametrize("family", small.FAMILIES)
def test_errors_are_those_of_the_model_and_never_grow(family):
    model, inputs = small.build(family), [small.batch(family, seed=seed) for seed in (1, 2, 3)]
    encoder = prunable(model)
    masks, teacher = small.random_masks(encoder, 3, real=False), small.random_masks(encoder, 5, keep=0.9)
    found = rescale(encoder, masks, inputs, lambda b: small.forward(model, b), teacher=teacher, step_sizes=[1])
    assert len(found.report) == 2 * encoder.num_layers
    walked = Masks(masks.heads.clone(), masks.neurons.clone())  # layer by layer, as rescaling goes
    for fit in found.report:
        targets = torch.cat([sums(model, family, fit.layer, teacher, batch)[fit.part] for batch in inputs])
        before = torch.cat([sums(model, family, fit.layer, walked, batch)[fit.part] for batch in inputs])
        getattr(walked, fit.part)[fit.layer] = getattr(found, fit.part)[fit.layer]
        after = torch.cat([sums(model, family, fit.layer, walked, batch)[fit.part] for batch in inputs])
        if not len(fit.scales):
            assert "are kept" in fit.declined and np.isnan(fit.before)
            continue
        scale = targets.square().sum().item()
        assert fit.before == pytest.approx((before - targets).square().sum().item() / scale, rel=1e-3)
        assert fit.after == pytest.approx((after - targets).square().sum().item() / scale, rel=1e-3, abs=1e-6)
        assert fit.declined is None and fit.after < fit.before and fit.condition >= 1
    assert torch.equal(found.heads != 0, masks.heads != 0) and torch.equal(found.neurons != 0, masks.neurons != 0)
    assert torch.equal(masks.heads, masks.heads.round())  # the given masks are not changed
    verify_equivalent(model, found, shrink(model, found), inputs, small.forward)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1e-6, 0.1, 10.0]), st.sampled_from([1.5, 10.0, None]))
def test_scales_stay_within_the_limit_and_never_lose(seed, ridge, limit):
    model = small.build("vit")
    encoder = prunable(model)
    masks = small.random_masks(encoder, seed, keep=0.5)
    found = rescale(
        encoder, masks, [small.batch("vit", 2)], lambda b: small.forward(model, b), ridge=ridge, limit=limit
    )
    for fit in found.report:
        if len(fit.scales):
            assert fit.after <= fit.before
            assert limit is None or fit.scales.abs().max() <= limit
            assert fit.declined or fit.ridge >= ridge


def test_scales_solve_the_explicit_least_squares(bert):
    model, encoder, batches, masks = bert
    teacher, pruned, ridge = masks("teacher", 0.5), masks("rearranged", 0.5), 0.01
    pruned.neurons[0] *= 0.7  # real-valued masks are a start as good as any
    found = rescale(encoder, pruned, batches[:2], lambda b: model(**b), teacher, ridge, limit=None, step_sizes=[1])
    part = encoder.parts[0]
    seen = []
    hook = part.ffn_out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    start = Masks(found.heads.clone(), pruned.neurons.clone())
    rows, goals = [], []
    for batch in batches[:2]:
        valid = batch["attention_mask"].bool()
        goals.append(_ffn_sum(model, encoder, teacher, batch)[valid] - _ffn_sum(model, encoder, start, batch)[valid])
        rows.append((seen[-1])[valid])
    hook.remove()
    kept = pruned.neurons[0].nonzero().flatten()
    x = 0.7 * torch.cat(rows).double()[:, kept]  # the hook above sees activations before masks
    columns = torch.einsum("tn,dn->tdn", x, part.ffn_out.weight.double()[:, kept]).flatten(0, 1)
    root = (ridge * columns.square().sum(0).mean()).sqrt()
    padded = torch.cat([columns, root * torch.eye(len(kept), dtype=torch.float64)])
    goal = torch.cat([torch.cat(goals).double().flatten(), torch.zeros(len(kept), dtype=torch.float64)])
    expected = 1 + torch.linalg.lstsq(padded, goal).solution
    torch.testing.assert_close(found.report[1].scales, expected.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.neurons[0, kept].double(), expected.detach() * 0.7, rtol=1e-3, atol=1e-4)
    assert found.report[1].condition == pytest.approx(torch.linalg.cond(columns.T @ columns).item(), rel=1e-2)


def _ffn_sum(model, encoder, masks, batch):
    """Input of the first layer's last LayerNorm."""
    seen = []
    hook = encoder.layers[0].output.LayerNorm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with encoder.masked(masks), torch.no_grad():
        model(**batch)
    hook.remove()
    return seen[0]


def test_padding_does_not_count(bert):
    model, encoder, batches, masks = bert
    pruned, forward = masks("rearranged", 0.5), lambda b: model(**b)
    rescale = partial(lfpr.rescale, step_sizes=[1])
    found = rescale(encoder, pruned, batches[:1], forward)
    single = [
        {"input_ids": ids[None, :length], "attention_mask": mask[None, :length]}
        for ids, mask in zip(batches[0]["input_ids"], batches[0]["attention_mask"], strict=True)
        for length in (int(mask.sum()),)
    ]
    trimmed = rescale(encoder, pruned, iter(single), forward)
    torch.testing.assert_close(found.neurons, trimmed.neurons, rtol=1e-3, atol=1e-3)
    told = rescale(encoder, pruned, batches[:1], forward, tokens=lambda b: b["attention_mask"])
    torch.testing.assert_close(found.neurons, told.neurons)
    everything = rescale(encoder, pruned, batches[:1], forward, tokens=lambda b: torch.ones(b["input_ids"].shape))
    assert (everything.neurons - found.neurons).abs().max() > 0.01
    doubled = rescale(encoder, pruned, batches[:1], forward, tokens=lambda b: 2.0 * b["attention_mask"])
    torch.testing.assert_close(doubled.neurons, found.neurons, rtol=1e-4, atol=1e-4)
    first = rescale(encoder, pruned, batches[:1], forward, first_token=True)
    assert torch.equal(first.neurons[:3], found.neurons[:3]) and not torch.equal(first.neurons[3], found.neurons[3])


def test_attention_masks_of_all_kinds_say_what_is_padding():
    x = torch.zeros(2, 3, 8)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    causal = torch.ones(3, 3).tril().bool() & valid[:, None, None]
    additive = torch.zeros(causal.shape).masked_fill(~causal, torch.finfo(torch.float32).min)
    masks = (
        valid,
        valid.long(),
        valid[:, None, None],
        causal,
        additive,
        causal.expand(2, 4, 3, 3),
        torch.where(causal, 0.0, -1e4),
        torch.where(causal, 0.0, -1e9),
    )
    for mask in (*masks, torch.cat([torch.ones(2, 1, 1, 5).bool(), valid[:, None, None]], -1)):
        assert torch.equal(attention_weights(mask, x, ""), valid)
    assert torch.equal(attention_weights(valid[:1, None, None], x, ""), valid[:1].expand(2, 3))
    assert attention_weights(None, x, "") is None
    for mask in (torch.ones(2, 2), torch.ones(2, 3, 3), "causal"):
        with pytest.raises(ValueError, match=r"batch 3: cannot tell padding .* give `tokens`"):
            attention_weights(mask, x, "batch 3")


def test_the_step_is_the_one_whose_outputs_are_nearest_on_what_was_held_back():
    model = small.build("clip_vision")
    encoder = prunable(model)
    masks, batches = small.random_masks(encoder, 3, real=False), [small.batch("clip_vision", 4, i) for i in range(7)]

    def run(batch):
        return {"ids": torch.arange(4), "pooled": [small.forward(model, batch)]}

    def error(trial, batch):
        with torch.no_grad(), encoder.masked(trial):
            found = small.forward(model, batch)
        return (found - goals[id(batch)]).double().square().sum().item()

    with torch.no_grad():
        goals = {id(batch): small.forward(model, batch) for batch in batches}
    whole = rescale(encoder, masks, [batches[i] for i in (0, 2, 3, 4, 5)], run, step_sizes=[1])
    found = rescale(encoder, masks, batches, run)
    trials = {
        size: Masks(torch.lerp(masks.heads, whole.heads, size), torch.lerp(masks.neurons, whole.neurons, size))
        for size in STEP_SIZES
    }
    errors = {size: error(trial, batches[1]) + error(trial, batches[6]) for size, trial in trials.items()}
    assert found.step_size == min(errors, key=errors.__getitem__)
    torch.testing.assert_close(found.neurons, trials[found.step_size].neurons)
    torch.testing.assert_close(found.heads, trials[found.step_size].heads)
    expected = [errors[size] / errors[0.0] for size in STEP_SIZES]
    assert [*found.errors.values()] == pytest.approx(expected, rel=1e-3) and found.errors[found.step_size] <= 1
    assert found.to(torch.float64).step_size == found.step_size and not whole.errors and whole.step_size == 1


def test_a_change_that_takes_the_outputs_away_is_not_made():
    model = small.build("vit")
    encoder = prunable(model)
    masks, batches = small.random_masks(encoder, 3, real=False), [small.batch("vit", 4, i) for i in range(6)]
    seen, last = {}, encoder.parts[0].ffn_out
    last.register_forward_pre_hook(lambda _, args: seen.update(bare=args[0]))
    last.register_forward_hook(lambda _, args, out: seen.update(masked=args[0]))

    def binary(batch):  # how far mask values are from 0 and 1: not at all, those of the teacher and those given
        small.forward(model, batch)
        values = seen["masked"] / seen["bare"]
        return (values - values.round()).abs().max()

    found = rescale(encoder, masks, batches, binary)
    assert found.step_size == 0 and found.equal(masks) and any(fit.after < fit.before for fit in found.report)
    for forward in (lambda b: (small.forward(model, b), None)[1], lambda b: small.forward(model, b).argmax(-1)):
        with pytest.raises(ValueError, match=r"forward: expected to return .* step_sizes=\[1\] needs none"):
            rescale(encoder, masks, batches, forward)
    with pytest.raises(ValueError, match="forward: NaN or infinite outputs"):
        rescale(encoder, masks, batches, lambda b: small.forward(model, b).log())


def test_padding_does_not_choose_the_step_and_batches_come_anew():
    model = small.build("bert")
    encoder = prunable(model)
    masks = small.random_masks(encoder, 8, keep=0.25, real=False)
    batches = [small.batch("bert", 3, i) for i in range(6)]
    longer = [{name: torch.nn.functional.pad(value, (0, 25)) for name, value in batch.items()} for batch in batches]

    def forward(batch):
        return model(**{name: value.to(torch.long) for name, value in batch.items()}).last_hidden_state

    found, padded = rescale(encoder, masks, batches, forward), rescale(encoder, masks, longer, forward)
    assert found.step_size == padded.step_size
    assert [*padded.errors.values()] == pytest.approx([*found.errors.values()], rel=1e-3)
    Named = namedtuple("Named", "ids mask")
    ways = [
        (
            [Named(*batch.values()) for batch in batches],
            lambda b: forward({"input_ids": b.ids, "attention_mask": b.mask}),
        ),
        ([batch | {"labels": 1} for batch in batches], lambda b: (b.pop("labels"), forward(b))[1]),
        ([BatchEncoding(batch) for batch in batches], lambda b: forward({**b})),
    ]
    for others, run in ways:
        assert rescale(encoder, masks, others, run).equal(found)
    reused = {name: value.clone() for name, value in batches[0].items()}

    def refilled():
        for batch in batches:
            for name, value in batch.items():
                reused[name].copy_(value)
            yield BatchEncoding(reused)

    assert rescale(encoder, masks, refilled(), lambda b: forward({**b})).errors == found.errors


def test_hooks_of_the_user_count_once():
    model, shift = small.build("vit"), torch.randn(48, generator=torch.Generator().manual_seed(0))
    encoder = prunable(model)
    masks, batches = small.random_masks(encoder, 3, real=False), [small.batch("vit", 3, i) for i in range(4)]
    found = []
    for place, hook in (
        (model.embeddings.register_forward_hook, lambda _, args, out: out + shift),
        (encoder.layers[0].register_forward_pre_hook, lambda _, args: (args[0] + shift, *args[1:])),
    ):
        handle = place(hook)
        found.append(rescale(encoder, masks, batches, lambda b: small.forward(model, b)))
        handle.remove()
    torch.testing.assert_close(found[0].neurons, found[1].neurons)


def test_a_student_that_equals_its_teacher_keeps_its_masks():
    model = small.build("clip_text")
    encoder = prunable(model)
    masks = small.random_masks(encoder, 2, real=False)
    found = rescale(encoder, masks, [small.batch("clip_text")], lambda b: small.forward(model, b), teacher=masks)
    assert found.equal(masks) and all(fit.after == fit.before == 0 for fit in found.report if len(fit.scales))


def test_parts_that_contribute_nothing_are_declined():
    model = small.build("bert")
    encoder = prunable(model)
    with torch.no_grad():
        encoder.parts[1].ffn_out.weight.zero_()
        encoder.parts[2].attention_output.weight[:, :12] = 0  # the first of four heads
    masks = Masks.ones(encoder)
    masks.heads[0, 0] = 0
    for ridge in (0.1, 0.0):
        found = rescale(encoder, masks, [small.batch("bert")], lambda b: small.forward(model, b), ridge=ridge)
        assert found.report[3].declined == "the kept neurons contribute nothing"
        assert torch.equal(found.neurons[1], masks.neurons[1])
        assert found.report[4].condition > 1e12 and found.heads[2, 0] == pytest.approx(1)
        assert found.heads.isfinite().all() and found.neurons.isfinite().all()


def test_tap_and_repeated_calls():
    model, batch, previous = small.tap()
    encoder = prunable(model)
    masks = small.random_masks(encoder, 1, real=False)
    once = rescale(encoder, masks, [batch], lambda b: model(b, previous))
    assert all(fit.after <= fit.before for fit in once.report if len(fit.scales)) and not once.equal(masks)
    twice = rescale(encoder, masks, [batch, batch], lambda b: [model(b, previous) for _ in range(2)])
    torch.testing.assert_close(twice.neurons, once.neurons, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"batch 0: a layer was called with a KeyValueCache.*run the model without"):
        rescale(encoder, masks, [batch], model.generate)


def test_memory_does_not_grow_with_the_sample(monkeypatch):
    model = small.build("vit")
    encoder = prunable(model)
    masks = small.random_masks(encoder, 0)
    read, get, calls = [], Spool.get, itertools.count()

    def watched(self, slot):
        if next(calls) % 13 == 0:
            read.append(small.live_numbers())
        return get(self, slot)

    monkeypatch.setattr(Spool, "get", watched)

    def largest(count):
        read.clear()
        rescale(encoder, masks, (small.batch("vit", 8, i) for i in range(count)), lambda b: small.forward(model, b))
        return max(read)

    assert largest(22) <= largest(12) + 1000  # a batch of hidden states is 8 · 17 · 48 numbers


def test_the_model_is_left_as_it_was_and_precision_may_be_low():
    model, inputs = small.build("bert").bfloat16().train(), small.batch("bert")
    encoder = prunable(model)
    masks = small.random_masks(encoder, 0, real=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    a, b = (rescale(encoder, masks, [inputs], lambda x: small.forward(model, x)) for _ in range(2))
    assert a.equal(b)  # no dropout, although the model is in training mode
    assert model.training and all(m.training for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    exact = rescale(prunable(model.float()), masks, [inputs], lambda x: small.forward(model, x))
    assert torch.nn.functional.cosine_similarity(a.neurons.flatten(), exact.neurons.flatten(), 0) > 0.99


def test_rescaled_masks_save_as_masks_and_keep_their_report(tmp_path):
    model = small.build("bert")
    masks = Masks.ones(prunable(model))
    masks.heads[0, 0] = 0
    found = rescale(prunable(model), masks, [small.batch("bert")], lambda b: small.forward(model, b))
    found.save(tmp_path / "masks")
    assert Masks.load(tmp_path / "masks").equal(found)
    assert found.to(torch.float64).report is found.report and found.to(torch.float64).heads.dtype == torch.float64


def test_bad_arguments_are_refused():
    model = small.build("bert")
    encoder, masks, inputs = prunable(model), Masks.ones(prunable(model)), [small.batch("bert")]

    endless = Masks.ones(encoder)
    endless.neurons[0, 0] = float("inf")

    def run(masks=masks, batches=inputs, forward=lambda b: small.forward(model, b), **more):
        return rescale(encoder, masks, batches, forward, **more)

    for arguments, message in (
        ({"masks": None}, "masks: expected Masks, found NoneType"),
        ({"masks": Masks(torch.ones(3, 5), torch.ones(3, 40))}, r"masks\.heads: shape \(3, 5\), but .* has \(3, 4\)"),
        ({"teacher": endless}, r"teacher\.neurons: 1 values are NaN or infinite"),
        ({"ridge": -1}, "ridge = -1"),
        ({"limit": 1}, "limit = 1: must be above 1"),
        ({"batches": []}, "batches: there is none"),
        ({"step_sizes": []}, "step_sizes = ..: must be a list of at least 1 numbers"),
        ({"step_sizes": [0, 1.5]}, r"step_sizes\[1\] = 1.5: must be from 0 to 1"),
        ({"forward": lambda b: b["input_ids"].float()}, r"batch 0: forward called the layers \[0, 0, 0\] times"),
        ({"tokens": lambda b: torch.ones(3, 4)}, r"batch 0: tokens: expected weights \(3, 9\)"),
        ({"tokens": lambda b: -torch.ones(3, 9)}, "batch 0: tokens: weights must be finite and not negative"),
        ({"tokens": lambda b: None}, "batch 0: tokens: expected weights"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**arguments)
    with torch.no_grad():
        encoder.parts[1].ffn_in[0].bias[0] = float("nan")
    with pytest.raises(ValueError, match="layer 1: NaN or infinite activations at its neurons"):
        run()


def test_layers_that_do_not_feed_the_next_or_scale_their_outputs_are_refused():
    model, inputs = small.build("vit"), small.batch("vit")
    encoder, masks = prunable(model), Masks.ones(prunable(model))

    def between_layers(batch):  # something that is no part of either
        hook = encoder.layers[1].register_forward_pre_hook(lambda _, args: (args[0] + 1, *args[1:]), prepend=True)
        try:
            return small.forward(model, batch)
        finally:
            hook.remove()

    with pytest.raises(UnsupportedArchitecture, match=r"layers?\.1: its input is not the output of the layer before"):
        rescale(encoder, masks, [inputs], between_layers)
    hook = encoder.layers[0].mlp.register_forward_hook(lambda _, args, out: 0.5 * out)
    with pytest.raises(UnsupportedArchitecture, match="its output is not the residual stream plus the FFN's output"):
        rescale(encoder, masks, [inputs], lambda b: small.forward(model, b))
    hook.remove()
