"""Scores beside Fisher information: activations and absolute gradients, and that all of them are deterministic."""

import pytest
import small_models as small
import torch

from lfpr.cost import ParameterCost
from lfpr.encoder import prunable
from lfpr.gradients import MaskGradients
from lfpr.importance import activation_importance, magnitude, random_importance
from lfpr.search import search, search_proportional


@pytest.mark.parametrize("family", small.FAMILIES)
def test_activation_is_what_a_part_adds_to_the_output_projection(family):
    model, inputs = small.build(family), small.batch(family)
    encoder = prunable(model)
    scores = activation_importance(encoder, [inputs, small.batch(family, seed=2)], lambda b: small.forward(model, b))
    assert scores.heads.shape == (encoder.num_layers, encoder.num_heads) and scores.heads.dtype == torch.float64
    part, seen = encoder.parts[1], []
    hooks = [
        linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for linear in (part.attention_output, part.ffn_out)
    ]
    heads = neurons = tokens = 0
    for batch in (inputs, small.batch(family, seed=2)):
        seen.clear()
        with torch.no_grad():
            small.forward(model, batch)
        valid = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones(seen[0].shape[:2]).bool()
        context, activation = (x[valid].double() for x in seen)
        tokens += len(context)
        size = encoder.head_dim
        heads += (context[:, size : 2 * size] @ part.attention_output.weight.double().T[size : 2 * size]).square().sum()
        neurons += (activation[:, 7:8] * part.ffn_out.weight.double()[:, 7]).square().sum()
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(scores.heads[1, 1], (heads / tokens).detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(scores.neurons[1, 7], (neurons / tokens).detach(), rtol=1e-5, atol=0)


def test_activation_leaves_no_hooks_and_names_what_is_wrong():
    model = small.build("bert")
    encoder = prunable(model)
    model.train()
    with pytest.raises(ValueError, match="batches: there is none"):
        activation_importance(encoder, [], lambda b: small.forward(model, b))
    assert model.training
    a, b = (activation_importance(encoder, [small.batch("bert")], lambda b: small.forward(model, b)) for _ in range(2))
    assert a.equal(b)  # no dropout, although the model is in training mode
    with torch.no_grad():
        model.encoder.layer[2].intermediate.dense.bias[0] = float("nan")
    with pytest.raises(ValueError, match="layer 2: NaN"):
        activation_importance(encoder, [small.batch("bert")], lambda b: small.forward(model, b))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_absolute_gradients():
    gradients = MaskGradients(torch.tensor([[[1.0, -2.0]], [[-3.0, 0.0]]]), -torch.ones(2, 1, 3))
    absolute = gradients.importance("absolute")
    assert absolute.heads.tolist() == [[4.0, 2.0]] and absolute.neurons.tolist() == [[2.0, 2.0, 2.0]]
    assert gradients.importance("squared").equal(gradients.importance())
    with pytest.raises(ValueError, match=r"kind = 'fisher': must be one of \['squared', 'absolute'\]"):
        gradients.importance("fisher")


def test_every_score_serves_both_searches_with_the_same_result_each_time():
    model = small.build("vit")
    encoder, cost = prunable(model), ParameterCost(prunable(model))
    for score in (
        lambda: magnitude(encoder),
        lambda: random_importance(encoder, 3),
        lambda: activation_importance(encoder, [small.batch("vit")], lambda b: small.forward(model, b)),
    ):
        for find in (search, search_proportional):
            first, second = (find(score(), cost, 0.5) for _ in range(2))
            assert first.equal(second) and cost.fraction(first) <= 0.5
