"""Reconstruction against explicit least squares, and what the refitted models then compute."""

import copy
import math

import pytest
import small_models as small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lfpr
from lfpr.cost import ParameterCost
from lfpr.encoder import prunable
from lfpr.gallery import GALLERY
from lfpr.importance import magnitude
from lfpr.layerwise import Spool
from lfpr.reconstruct import HELD_BACK, reconstruct
from lfpr.search import search_proportional
from lfpr.shrink import fold, shrink
from lfpr.steps import prune_in_steps


def inputs(family, count=3, samples=6):
    return [small.batch(family, samples, seed=seed) for seed in range(count)]


def observed(teacher, student, batches, layer, kind):
    """Seen from the model's own modules, tokens that count: inputs of the student's projection, and how much more the
    teacher gives where the sub-layer joins the residual stream. BERT."""

    def one(model, batch):
        part, seen = prunable(model).parts[layer], {}
        joined = part.module.attention.output.LayerNorm if kind == "heads" else part.module.output.LayerNorm
        linear = part.attention_output if kind == "heads" else part.ffn_out
        hooks = [
            linear.register_forward_pre_hook(lambda _, args: seen.__setitem__("x", args[0])),
            joined.register_forward_pre_hook(lambda _, args: seen.__setitem__("sum", args[0])),
        ]
        with torch.no_grad():
            small.forward(model, batch)
        for hook in hooks:
            hook.remove()
        return seen["x"].double(), seen["sum"].double()

    rows, errors, sample, number = [], [], [], 0
    for batch in batches:
        (x, own), (_, goal) = one(student, batch), one(teacher, batch)
        valid = batch["attention_mask"].bool()
        rows.append(x[valid])
        errors.append((goal - own)[valid])
        sample.append((number + torch.arange(len(x)))[:, None].expand(valid.shape)[valid])
        number += len(x)
    return torch.cat(rows), torch.cat(errors), torch.cat(sample)


@pytest.mark.parametrize("ridge", [1e-4, 0.1])
def test_every_projection_solves_the_explicit_least_squares(ridge):
    model, batches = small.build("bert"), inputs("bert")
    masks = small.random_masks(prunable(model), 3)
    student = shrink(model, masks)
    before = copy.deepcopy(student)
    report = reconstruct(model, student, batches, small.forward, ridges=[ridge])
    assert [(fit.layer, fit.part) for fit in report] == [(i, p) for i in range(3) for p in ("heads", "neurons")]
    for fit in report:
        parts, old = prunable(student).parts[fit.layer], prunable(before).parts[fit.layer]
        name = "attention_output" if fit.part == "heads" else "ffn_out"
        walked = getattr(old, name)  # all before this one are refitted in `before`
        x, error, sample = observed(model, before, batches, fit.layer, fit.part)
        x = torch.cat([x, torch.ones(len(x), 1)], 1)
        n = x.shape[1] - 1

        def solve(x, error, n=n):
            unit = x[:, :n].square().sum(0).mean() if n else torch.tensor(0.0)
            shift = (ridge * unit).sqrt() * torch.eye(n + 1, dtype=torch.float64)[:n]
            return torch.linalg.lstsq(torch.cat([x, shift]), torch.cat([error, error.new_zeros(n, 48)])).solution

        held = sample % HELD_BACK == 1
        step, trial = solve(x, error), solve(x[~held], error[~held])
        assert fit.declined is None and fit.ridge == ridge and fit.kept == n // (12 if fit.part == "heads" else 1)
        fitted = getattr(parts, name)
        torch.testing.assert_close(fitted.weight.double(), walked.weight.double() + step[:n].T, rtol=1e-3, atol=5e-4)
        torch.testing.assert_close(fitted.bias.double(), walked.bias.double() + step[n], rtol=1e-3, atol=5e-4)
        left = (error - x @ step).square().sum() / error.square().sum()
        assert fit.after / fit.before == pytest.approx(left.item(), rel=1e-3)
        left = (error[held] - x[held] @ trial).square().sum() / error[held].square().sum()
        assert fit.held_after / fit.held_before == pytest.approx(left.item(), rel=1e-3)
        shift = torch.zeros(n + 1, dtype=torch.float64)
        shift[:n] = ridge * x[:, :n].square().sum(0).mean()
        gram = x.T @ x + shift.diag()
        assert 1 <= fit.condition <= 1.001 * torch.linalg.cond(gram).item()
        with torch.no_grad():
            walked.weight.copy_(fitted.weight)
            walked.bias.copy_(fitted.bias)


@pytest.mark.parametrize("family", small.FAMILIES)
def test_outputs_come_nearer_in_every_family(family):
    model, batches = small.build(family), inputs(family, 8)
    encoder = prunable(model)
    masks = search_proportional(magnitude(encoder), ParameterCost(encoder), 0.5)
    student = shrink(model, masks)

    def gap():
        with torch.no_grad():
            pairs = [(small.forward(model, b), small.forward(student, b)) for b in batches]
        masks = [
            b.get("attention_mask", torch.ones(a.shape[:2])).bool() for b, (a, _) in zip(batches, pairs, strict=True)
        ]
        return sum((a - b)[m].square().sum().item() for (a, b), m in zip(pairs, masks, strict=True))

    shapes = {name: value.shape for name, value in student.state_dict().items()}
    before = gap()
    report = reconstruct(model, student, batches, small.forward)
    assert gap() < 0.8 * before
    assert {name: value.shape for name, value in student.state_dict().items()} == shapes
    for fit in report:
        assert fit.after <= fit.before and (fit.declined or fit.held_after < fit.held_before)


def test_columns_of_zeros_stay_and_give_what_shrinking_gives():
    model, batches = small.build("vit"), inputs("vit")
    masks = small.random_masks(prunable(model), 1, real=False)
    wide, narrow = copy.deepcopy(model), shrink(model, masks)
    fold(prunable(wide), masks)
    a, b = (reconstruct(model, student, batches, small.forward, ridges=[0.01]) for student in (wide, narrow))
    assert [fit.kept for fit in a] == [fit.kept for fit in b]
    for one, other in zip(shrink(wide, masks).parameters(), narrow.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=5e-4)
    for part, heads, neurons in zip(prunable(wide).parts, masks.heads, masks.neurons, strict=True):
        assert not part.attention_output.weight[:, heads.repeat_interleave(part.head_dim) == 0].any()
        assert not part.ffn_out.weight[:, neurons == 0].any()


def test_the_model_itself_is_left_alone_as_it_has_nothing_to_gain():
    model, batches = small.build("bert"), inputs("bert")
    same = copy.deepcopy(model)
    report = reconstruct(model, same, batches, small.forward)
    assert all(fit.declined == "no gain on the samples held back" for fit in report)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7))
def test_held_back_error_never_grows(seed, samples):
    """Two samples of 17 tokens for 36 columns and more: what overfits is declined."""
    model = small.build("vit")
    student = shrink(model, small.random_masks(prunable(model), seed, keep=0.8))
    before = copy.deepcopy(student)
    report = reconstruct(model, student, [small.batch("vit", samples, seed)], small.forward)
    for fit in report:
        assert fit.held_after <= fit.held_before and fit.after <= fit.before
    if all(fit.declined for fit in report):
        assert all(torch.equal(a, b) for a, b in zip(student.parameters(), before.parameters(), strict=True))


def test_padding_and_weights_of_zero_do_not_count():
    model, batch = small.build("bert"), small.batch("bert", 8)
    masks = small.random_masks(prunable(model), 3)
    students = [shrink(model, masks) for _ in range(3)]
    other = batch | {"input_ids": torch.where(batch["attention_mask"].bool(), batch["input_ids"], 7)}
    tokens = lambda b: b["attention_mask"]  # noqa: E731
    reports = [
        reconstruct(model, student, [each], small.forward, tokens=told)
        for student, each, told in zip(students, (batch, other, batch), (None, None, tokens), strict=True)
    ]
    for student in students[1:]:
        for one, two in zip(students[0].parameters(), student.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert reports[0][0].before == pytest.approx(reports[1][0].before, rel=1e-5)


def test_memory_does_not_grow_with_the_sample(monkeypatch):
    model = small.build("vit")
    masks = small.random_masks(prunable(model), 0)
    read, get = [], Spool.get

    def watched(spool, slot):
        read.append(math.prod(slot.shape))
        return get(spool, slot)

    monkeypatch.setattr(Spool, "get", watched)

    def largest(count):
        read.clear()
        batches = (small.batch("vit", 8, i) for i in range(count))
        reconstruct(model, shrink(model, masks), batches, small.forward)
        return max(read)

    assert largest(12) <= largest(3) + 1000


def test_low_precision_modes_and_hooks_are_kept():
    model, batches = small.build("bert").bfloat16().train(), inputs("bert")
    student = shrink(model, small.random_masks(prunable(model), 3)).train()
    report = reconstruct(model, student, batches, small.forward)
    assert model.training and student.training and student.dtype == torch.bfloat16
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in (*model.modules(), *student.modules()))
    assert sum(fit.declined is None for fit in report) >= 4


def test_a_part_of_a_model_with_two_towers():
    model = small.reference_clip()
    batch = {"input_ids": torch.randint(3, 90, (6, 8)), "pixel_values": torch.randn(6, 3, 32, 32)}
    masks = small.random_masks(prunable(model.vision_model), 0)
    student = shrink(model, masks, model.vision_model)
    forward = lambda model, b: model(**b)  # noqa: E731
    report = reconstruct(model, student, [batch], forward, model.vision_model)
    assert any(fit.declined is None for fit in report)
    for one, two in zip(model.text_model.parameters(), student.text_model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_bad_arguments_are_refused():
    model, batches = small.build("bert"), inputs("bert", 1)
    student = shrink(model, small.random_masks(prunable(model), 0))
    one = [{name: value[:1] for name, value in batches[0].items()}]
    other = small.build("vit")
    for arguments, message in (
        ({"ridges": []}, "ridges = "),
        ({"ridges": [0.1, 0.0]}, r"ridges\[1\] = 0\.0: must be above 0"),
        ({"ridges": [float("inf")]}, r"ridges\[0\] = inf"),
        ({"batches": []}, "batches: there is none"),
        ({"batches": one}, "batches: 1 sample in all, expected at least 2"),
        ({"small": other}, "has no prunable encoder"),
        ({"part": other}, "part: ViTModel is not a part of BertModel"),
    ):
        given_ = {"model": model, "small": student, "batches": batches, "forward": small.forward} | arguments
        with pytest.raises(ValueError, match=message):
            reconstruct(**given_)
    with torch.no_grad():
        prunable(student).parts[1].ffn_in[0].bias[0] = float("nan")
    with pytest.raises(ValueError, match="layer 1: NaN or infinite activations at its neurons"):
        reconstruct(model, student, batches, small.forward)


def test_steps_end_within_the_budget_and_score_what_is_left():
    model, batches = small.build("bert"), inputs("bert")
    cost = ParameterCost(prunable(model))
    seen = []

    def score(encoder):
        seen.append(encoder.parts[0].ffn_out.weight.any(0).sum().item())
        return magnitude(encoder)

    done = prune_in_steps(model, cost, 0.4, 3, score, lambda: batches, small.forward, find=search_proportional)
    assert len(seen) == len(done.reports) == 3 and seen[0] == 40 > seen[1] > seen[2]
    assert cost.fraction(done.masks) <= 0.4 and prunable(done.small).num_parameters == cost.kept(done.masks)
    with torch.no_grad():
        a, b = (small.forward(m, batches[0]) for m in (done.wide, done.small))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    once = prune_in_steps(model, cost, 0.4, 1, magnitude, lambda: batches, small.forward, find=search_proportional)
    masks = search_proportional(magnitude(prunable(model)), cost, 0.4)
    student = shrink(model, masks)
    reconstruct(model, student, batches, small.forward)
    assert once.masks.equal(masks)
    for one, two in zip(once.small.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=5e-4)
    for steps in (0, 1.5, True):
        with pytest.raises(ValueError, match="steps = "):
            prune_in_steps(model, cost, 0.4, steps, magnitude, lambda: batches, small.forward)
    with pytest.raises(ValueError, match="constraint = 2"):
        prune_in_steps(model, cost, 2, 2, magnitude, lambda: batches, small.forward)


@pytest.mark.parametrize("name", ["T5", "BART", "Whisper", "GPT-2", "OPT", "Llama", "MPNet"])
def test_decoders_and_encoder_decoders_come_nearer_to_the_unpruned_model(name):
    example = GALLERY[name]
    model = example.model()
    encoder, test = lfpr.prunable(model), example.inputs(16, seed=99)
    batches = [example.inputs(16, seed=seed) for seed in range(8)]
    masks = lfpr.search_proportional(lfpr.random_importance(encoder, 0), lfpr.ParameterCost(encoder), 0.75)
    for rows in (masks.heads, masks.neurons):
        rows[rows.sum(1) == 0, 0] = 1

    def error(pruned):
        with torch.no_grad():
            return (example.run(pruned, test) - example.run(model, test)).square().mean().item()

    small = lfpr.shrink(model, masks)
    before = error(small)
    fitted = lfpr.rescale(encoder, masks, batches, lambda batch: example.run(model, batch))
    assert len(fitted.report) == len(encoder.attentions) + len(encoder.ffns)
    assert error(lfpr.shrink(model, fitted)) < 0.99 * before
    report = lfpr.reconstruct(model, small, batches, example.run)
    assert [(refit.part, refit.layer) for refit in report] == [(fit.part, fit.layer) for fit in fitted.report]
    assert error(small) < 0.9 * before
