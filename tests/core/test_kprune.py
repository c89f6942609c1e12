"""K-prune against naive scores, explicit least squares, and the budget."""

import importlib
import itertools
import math

import pytest
import small_models as small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lfpr.checks import BudgetError
from lfpr.cost import MacCost, ParameterCost
from lfpr.encoder import prunable
from lfpr.families import UnsupportedArchitecture
from lfpr.kprune import CANDIDATES, KPrune, divergence, kprune, threshold, tune
from lfpr.layerwise import Spool
from lfpr.shrink import shrink

ROOM = importlib.import_module("lfpr.kprune")


class Vision(nn.Module):
    """A pre-LN encoder of images with five classes."""

    def __init__(self, family):
        super().__init__()
        self.body = small.build(family)
        self.classes = nn.Linear(48, 5)

    def forward(self, pixel_values):
        return self.classes(self.body(pixel_values).last_hidden_state[:, 0])


def setup(name):
    """A model, batches, its forward to logits, and its cost. BERT's batches are padded."""
    if name == "bert":
        model, encoder, batches, _ = small.reference("bert")
        return model, batches, lambda m, b: m(**b).logits, ParameterCost(encoder)
    torch.manual_seed(3)
    model = Vision(name).eval()
    batches = [small.batch(name, 8, seed) for seed in range(4)]
    return model, batches, lambda m, b: m(**b), ParameterCost(prunable(model))


NAMES = ["bert", "vit", "clip_vision"]  # normalisation after the residual sum, and twice before it


def projections(model):
    """The output projection of each sub-layer, in order, and the number of its inputs that a head or neuron has."""
    encoder = prunable(model)
    pairs = ([(part.attention_output, part.head_dim), (part.ffn_out, 1)] for part in encoder.parts)
    return [pair for layer in pairs for pair in layer]


def inputs_and_sums(model, name, batch):
    """Of each sub-layer: what its output projection sees [T, n], and what enters the residual stream [T, d]."""
    seen, sums, hooks = [], [], []
    for part in prunable(model).parts:
        for linear in (part.attention_output, part.ffn_out):
            hooks.append(linear.register_forward_pre_hook(lambda _, args: seen.append(args[0])))
        layer = part.module
        if name == "bert":
            places = (layer.attention.output.LayerNorm, layer.output.LayerNorm)
            hooks += [place.register_forward_pre_hook(lambda _, args: sums.append(args[0])) for place in places]
        else:
            place = layer.layer_norm2 if hasattr(layer, "layer_norm2") else layer.layernorm_after
            hooks.append(place.register_forward_pre_hook(lambda _, args: sums.append(args[0])))
            hooks.append(layer.register_forward_hook(lambda _, args, output: sums.append(output)))
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    valid = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones(seen[0].shape[:2]).bool()
    return [(x[valid].double(), y[valid].double()) for x, y in zip(seen, sums, strict=True)]


def watched(monkeypatch, *args, **kwargs):
    """What K-prune finds; of each round the scores, and the weights of the model they were taken on."""
    states, scores = [], []
    features, limit = ROOM._features, ROOM.threshold

    def copied(encoder, first):
        states.append({name: value.clone() for name, value in encoder.module.state_dict().items()})
        return features(encoder, first)

    def kept(found, *rest):
        scores.append(found)
        return limit(found, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(ROOM, "_features", copied)
        patch.setattr(ROOM, "threshold", kept)
        found = kprune(*args, **kwargs)
    return found, scores, states


def naive(model, teacher, batches, forward, cost, chosen):
    """The scores of all heads [H] and neurons [N], sub-layer by sub-layer, term by term."""
    places = projections(model)
    knows = [torch.zeros(linear.in_features, dtype=torch.float64) for linear, _ in places]
    tells = [torch.zeros(linear.in_features, dtype=torch.float64) for linear, _ in places]
    tokens = rows = 0
    for batch in batches:
        masks = [torch.ones(linear.in_features, requires_grad=True) for linear, _ in places]
        seen, hooks = [None] * len(places), []
        for i, (linear, _) in enumerate(places):

            def hook(_, args, i=i, masks=masks, seen=seen):
                seen[i] = args[0].detach()
                return (args[0] * masks[i],)

            hooks.append(linear.register_forward_pre_hook(hook))
        logits = forward(model, batch)
        for hook in hooks:
            hook.remove()
        wanted = (forward(teacher, batch).detach() / chosen.temperature).softmax(1)
        given = (logits / chosen.temperature).log_softmax(1)
        loss = nn.functional.kl_div(given, wanted, reduction="batchmean") * chosen.temperature**2
        for i, slope in enumerate(torch.autograd.grad(loss, masks)):
            tells[i] += slope.double() ** 2 / 2
        valid = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones(seen[0].shape[:2]).bool()
        for i, x in enumerate(seen):
            knows[i] += x[valid].double().square().sum(0)
        tokens, rows = tokens + int(valid.sum()), rows + len(logits)
    scores = []
    for i, (linear, size) in enumerate(places):
        weight = linear.weight.detach().double().square().mean(0)
        score = chosen.representational * knows[i] * weight / tokens + chosen.predictive * tells[i] / rows
        score = score.view(-1, size).mean(1) / (cost.neuron if i % 2 else cost.head)
        scores.append(score if i % 2 else score * chosen.heads)
    return scores


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_a_naive_computation(name, monkeypatch):
    model, batches, forward, cost = setup(name)
    chosen = KPrune(temperature=3.0, predictive=0.7, representational=2e-3, heads=5.0)
    batches = batches[:3]
    _, scores, states = watched(monkeypatch, model, batches, forward, cost, 0.5, chosen)
    teacher, _, _, _ = setup(name)
    assert len(scores) == len(states) == len(projections(model))
    for number, (found, state) in enumerate(zip(scores, states, strict=True)):
        model.load_state_dict(state)
        expected = naive(model, teacher, batches, forward, cost, chosen)[number:]
        found = [list(part) for part in found]
        order = [found[(number + i) % 2].pop(0) for i in range(len(expected))]
        assert not found[0] and not found[1]
        for a, b in zip(order, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * b.max().item())


def test_the_first_round_knows_only_representations(monkeypatch):
    model, batches, forward, cost = setup("bert")
    both, one = (
        watched(monkeypatch, model, batches[:3], forward, cost, 0.5, KPrune(predictive=weight))[1]
        for weight in (1e6, 0.0)
    )
    assert all(torch.equal(a, b) for a, b in zip(both[0], one[0], strict=True))
    assert all((a > b).all() for a, b in zip(both[1], one[1], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_the_least_squares_solution_over_all_tokens(name):
    model, batches, forward, cost = setup(name)
    small_model, masks, rounds = kprune(model, batches, forward, cost, 0.6, KPrune(heads=2.0))
    found = [inputs_and_sums(small_model, name, batch) for batch in batches]
    wanted = [inputs_and_sums(model, name, batch) for batch in batches]
    for number, ((linear, _), step) in enumerate(zip(projections(small_model), rounds, strict=True)):
        x, given = (torch.cat(parts) for parts in zip(*(batch[number] for batch in found), strict=True))
        target = torch.cat([batch[number][1] for batch in wanted])
        assert step.after == pytest.approx(((given - target).square().sum() / target.square().sum()).item(), rel=1e-3)
        if not step.kept:
            assert step.declined.startswith("no ") and step.after == step.before
            continue
        assert step.declined is None and (step.after < step.before or step.before == 0)
        weight = linear.weight.detach().double().T
        residual = given - x @ weight  # without the projection, its bias among it
        exact = torch.linalg.lstsq(x, target - residual).solution
        torch.testing.assert_close(x @ weight, x @ exact, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(weight, exact, rtol=1e-2, atol=1e-2)
    kept = [step.kept for step in rounds]
    assert [step.part for step in rounds] == ["heads", "neurons"] * (len(rounds) // 2)
    assert kept[::2] == masks.heads_kept == prunable(small_model).heads_per_layer
    assert kept[1::2] == masks.neurons_kept == prunable(small_model).neurons_per_layer


@pytest.mark.parametrize("constraint", [0.15, 0.4, 0.77])
@pytest.mark.parametrize("name", NAMES[:2])
def test_the_budget_is_spent_and_never_exceeded(name, constraint):
    model, batches, forward, cost = setup(name)
    for kind, heads in itertools.product((cost, MacCost(prunable(model), 9)), (1.0, 64.0)):
        small_model, masks, _ = kprune(model, batches[:2], forward, kind, constraint, KPrune(heads=heads))
        spent = kind.fraction(masks)
        assert spent <= constraint and (spent + kind.neuron / kind.full > constraint or masks.neurons[-1].all())
        assert set(masks.heads.unique().tolist()) | set(masks.neurons.unique().tolist()) <= {0.0, 1.0}
        if kind is cost:
            assert prunable(small_model).num_parameters == kind.kept(masks)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=5),
    st.lists(st.integers(0, 6), min_size=1, max_size=9),
    st.integers(0, 20),
    st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]),
)
def test_the_threshold_is_the_smallest_that_fits(heads, neurons, spent, constraint):
    scores, full = [torch.tensor(part, dtype=torch.float64) for part in (heads, neurons)], 100
    spent = min(spent, int(constraint * full))

    def fits(bound):
        kept = sum(7 * (score > bound) for score in heads) + sum(3 * (score > bound) for score in neurons)
        return (spent + kept) / full <= constraint

    expected = next(bound for bound in sorted({-math.inf, *heads, *neurons}) if fits(bound))
    assert threshold(scores, [7, 3], spent, full, constraint) == expected


@pytest.mark.parametrize("name", NAMES)
def test_nothing_goes_if_all_fits(name):
    model, batches, forward, cost = setup(name)
    same, masks, rounds = kprune(model, batches[:1], forward, cost, 1.0)
    assert masks.heads.all() and masks.neurons.all() and all(step.threshold == -math.inf for step in rounds)
    assert all(step.before == step.after == 0 for step in rounds)
    with torch.no_grad():
        assert all(torch.equal(forward(same, batch), forward(model, batch)) for batch in batches)


def test_it_predicts_more_like_the_teacher_than_without_new_weights():
    model, batches, forward, cost = setup("bert")
    fitted, masks, _ = kprune(model, batches, forward, cost, 0.5)
    again, same, _ = kprune(model, batches, forward, cost, 0.5)
    bare = shrink(model, masks)
    with torch.no_grad():
        values = [
            torch.cat([divergence(forward(model, batch), forward(other, batch)) for batch in batches]).mean()
            for other in (fitted, bare)
        ]
        assert torch.equal(forward(fitted, batches[0]), forward(again, batches[0])) and same.equal(masks)
    assert values[0] < values[1] / 4


def test_padding_does_not_count():
    model, batches, forward, cost = setup("bert")
    longer = [
        {
            "input_ids": nn.functional.pad(batch["input_ids"], (0, 7), value=11 + i),
            "attention_mask": nn.functional.pad(batch["attention_mask"], (0, 7)),
        }
        for i, batch in enumerate(batches)
    ]
    a, masks, rounds = kprune(model, batches, forward, cost, 0.5)
    b, others, steps = kprune(model, longer, forward, cost, 0.5)
    assert others.equal(masks)
    for one, other in zip(rounds, steps, strict=True):
        assert (one.after, one.threshold) == pytest.approx((other.after, other.threshold), rel=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(forward(a, batches[0]), forward(b, batches[0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [-1e4, -math.inf])
def test_classes_that_cannot_be_predicted_do_not_count(value):
    model, batches, forward, cost = setup("bert")

    def padded(m, batch):
        logits = forward(m, batch)
        return torch.cat([logits.new_full((len(logits), 2), value), logits], 1)

    _, masks, rounds = kprune(model, batches[:3], forward, cost, 0.5)
    _, others, steps = kprune(model, batches[:3], padded, cost, 0.5)
    assert others.equal(masks) and [a.after for a in rounds] == pytest.approx([b.after for b in steps], rel=1e-4)


def test_divergence():
    teacher, student = torch.randn(4, 6), torch.randn(4, 6)
    expected = nn.functional.kl_div((student / 3).log_softmax(1), (teacher / 3).softmax(1), reduction="none").sum(1) * 9
    torch.testing.assert_close(divergence(teacher, student, 3.0), expected)
    assert (divergence(teacher, teacher) == 0).all()
    teacher[:, 0] = -math.inf
    assert divergence(teacher, student).isfinite().all() and divergence(student, teacher).isinf().all()
    student.requires_grad_()
    masked = student + torch.tensor([-math.inf, 0, 0, 0, 0, 0])
    assert torch.autograd.grad(divergence(teacher, masked).sum(), student)[0].isfinite().all()


def test_the_model_is_left_as_it_was():
    model, batches, forward, cost = setup("bert")
    model.train()
    model.classifier.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found, _, _ = kprune(model, batches[:2], forward, cost, 0.5)
    again, _, _ = kprune(model.eval(), batches[:2], forward, cost, 0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found.training and not again.training and type(found) is type(model)
    for one in (model, found):
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in one.modules())
        assert [name for name, p in one.named_parameters() if not p.requires_grad] == ["classifier.bias"]
    for a, b in zip(found.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)  # no dropout, although the model was in training mode


def test_weights_stay_where_they_are_not_determined():
    model, batches, forward, cost = setup("bert")
    one = [{key: value[:1] for key, value in batches[0].items()}]  # fewer tokens than features
    found, masks, rounds = kprune(model, one, forward, cost, 0.8)
    assert {step.declined for step in rounds} == {"the normal equations are singular"}
    assert all(step.after == step.before for step in rounds)
    with torch.no_grad():
        assert torch.equal(forward(found, batches[0]), forward(shrink(model, masks), batches[0]))


def test_memory_does_not_grow_with_the_sample(monkeypatch):
    model, _, forward, cost = setup("vit")
    read, get, calls = [], Spool.get, itertools.count()

    def watched(self, slot):
        if next(calls) % 7 == 0:
            read.append(small.live_numbers())
        return get(self, slot)

    monkeypatch.setattr(Spool, "get", watched)

    def largest(count):
        read.clear()
        kprune(model, [small.batch("vit", 8)] * count, forward, cost, 0.5)
        return max(read)

    assert largest(6) <= largest(2) + 4 * 3 * (48 + 40) + 1000  # masks have a gradient a batch


def test_one_of_several_encoders():
    model = small.reference_clip()
    generator = torch.Generator().manual_seed(0)
    text = {"input_ids": torch.randint(3, 97, (5, 8), generator=generator)}
    batches = [{"pixel_values": torch.randn(6, 3, 32, 32, generator=generator)} for _ in range(4)]

    def forward(m, batch):
        return m(**text, **batch).logits_per_image

    encoder = prunable(model.vision_model)
    found, masks, _ = kprune(model, batches, forward, ParameterCost(encoder), 0.5, part=model.vision_model)
    assert prunable(found.vision_model).neurons_per_layer == masks.neurons_kept
    assert prunable(found.text_model).num_parameters == prunable(model.text_model).num_parameters
    with pytest.raises(UnsupportedArchitecture, match="2 prunable encoders: pass one of its parts"):
        kprune(model, batches, forward, ParameterCost(encoder), 0.5)
    with pytest.raises(ValueError, match="part: CLIPVision.* is not a part of CLIPModel"):
        kprune(model, batches, forward, ParameterCost(encoder), 0.5, part=small.reference_clip().vision_model)


def test_decoding_steps_are_rows():
    model, batch, previous = small.tap(std=0.2)

    def forward(m, inputs):
        return m(inputs, previous).flatten(0, 1)  # classes that are padding have -1e4

    cost = ParameterCost(prunable(model))
    found, masks, rounds = kprune(model, [batch], forward, cost, 0.5, KPrune(heads=1.0))
    assert cost.fraction(masks) <= 0.5 and all(step.after < step.before for step in rounds if step.kept)
    bare = shrink(model, masks)
    with torch.no_grad():
        values = [divergence(forward(model, batch), forward(other, batch)).mean() for other in (found, bare)]
    assert values[0] < values[1]


def test_on_an_accelerator():
    from fake_device import fake_device

    model, batches, forward, cost = setup("bert")
    _, masks, rounds = kprune(model, batches[:3], forward, cost, 0.5)
    with fake_device() as device:
        moved = [{key: value.to(device) for key, value in batch.items()} for batch in batches[:3]]
        _, others, steps = kprune(model.to(device), moved, forward, cost, 0.5)
        assert others.heads.device == others.neurons.device == device
        assert (others.heads_kept, others.neurons_kept) == (masks.heads_kept, masks.neurons_kept)
    assert [a.after for a in rounds] == pytest.approx([b.after for b in steps], rel=1e-3)


def test_settings_are_tuned_on_what_pruning_has_not_seen(monkeypatch):
    model, batches, forward, cost = setup("bert")
    candidates = [KPrune(heads=mu) for mu in (0.01, 8.0, 1e4)]
    best, table = tune(model, batches, forward, cost, 0.5, candidates, held_back=0.3)
    assert [chosen for chosen, _ in table] == candidates and best == min(table, key=lambda row: row[1])[0]
    for chosen, value in table:
        found, _, _ = kprune(model, batches[:5], forward, cost, 0.5, chosen)  # of 8
        with torch.no_grad():
            values = torch.cat([divergence(forward(model, batch), forward(found, batch)) for batch in batches[5:]])
        assert value == pytest.approx(values.mean().item(), rel=1e-4)
    assert len({(chosen.heads, chosen.representational) for chosen in CANDIDATES}) == len(CANDIDATES) == 9
    given = {"model": model, "batches": batches, "forward": forward, "cost": cost, "constraint": 0.5}
    for arguments, message in (
        ({"held_back": 0.0}, r"held_back = 0\.0: must be in \(0, 1\) and leave some of the 8 batches"),
        ({"held_back": 1.0}, r"held_back = 1\.0"),
        ({"candidates": []}, r"candidates = \[\]: must be a list of at least 1 settings"),
        ({"candidates": [KPrune(), None]}, r"candidates\[1\]: expected KPrune, found NoneType"),
        ({"batches": batches[:1]}, "leave some of the 1 batches"),
    ):
        with pytest.raises(ValueError, match=message):
            tune(**given | arguments)
    monkeypatch.setattr(ROOM, "divergence", lambda teacher, *rest: (teacher * math.nan).sum(1))
    with pytest.raises(ValueError, match="candidates: none of 1 has a finite divergence"):
        tune(model, batches[:2], forward, cost, 0.5, [KPrune(predictive=0.0)], held_back=0.5)


@pytest.mark.parametrize("name", ["temperature", "predictive", "representational", "heads"])
def test_settings_that_make_no_sense_are_refused(name):
    for value in (-1.0, math.nan, math.inf, 0.0):
        if (name, value) == ("predictive", 0.0):
            continue
        with pytest.raises(ValueError, match=f"{name} = {value}: must be "):
            KPrune(**{name: value})


def test_bad_arguments_are_refused_before_any_work():
    model, batches, forward, cost = setup("bert")
    called = []

    def run(batches=batches[:2], forward=forward, cost=cost, constraint=0.5, **more):
        def watched(m, batch):
            called.append(batch)
            return forward(m, batch)

        return kprune(model, batches, watched, cost, constraint, **more)

    for arguments, message in (
        ({"constraint": 0.0}, r"constraint = 0\.0: must be in \(0, 1\]"),
        ({"constraint": 1.5}, r"constraint = 1\.5"),
        ({"cost": None}, "cost: expected LinearCost, found NoneType"),
        ({"settings": {"heads": 1}}, "settings: expected KPrune, found dict"),
        ({"batches": iter(batches)}, "batches: read several times, an iterator can be read once"),
        ({"part": small.build("vit")}, "part: ViTModel is not a part of BertForSequenceClassification"),
        ({"batches": []}, "batches: there is none"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**arguments)
    with pytest.raises(BudgetError) as error:
        run(constraint=0.001)
    assert error.value.smallest == cost.fixed / cost.full and not called
    halved = kprune(model, batches[:1], forward, cost, 0.5)[0]
    with pytest.raises(ValueError, match="already shrunk"):
        kprune(halved, batches[:1], forward, cost, 0.5)
    for arguments, message in (
        ({"forward": lambda m, b: m(**b)}, r"forward: expected logits \[rows, classes\].*SequenceClassifierOutput"),
        ({"forward": lambda m, b: m(**b).logits[0]}, r"forward: expected logits .* found \(3,\)"),
        ({"forward": lambda m, b: m(**b).logits if m is model else m(**b).logits[1:]}, r"found \(7, 3\)"),
        ({"forward": lambda m, b: m(**b).logits * math.nan}, "the objective is nan"),
        ({"forward": lambda m, b: [m(**b), torch.ones(2, 3)][1]}, "the objective does not depend on the encoder"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**arguments)
    with torch.no_grad():
        prunable(model).parts[1].ffn_in[0].bias[0] = math.nan
    with pytest.raises(ValueError, match="layer 1: NaN or infinite activations"):
        run()
