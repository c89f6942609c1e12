"""Optimal brain surgeon against its definition, one removal after the other, and what its importance is good for."""

import copy

import pytest
import small_models as small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfpr import fisher
from lfpr.cost import ParameterCost
from lfpr.encoder import prunable
from lfpr.importance import magnitude
from lfpr.masks import Masks
from lfpr.reconstruct import reconstruct
from lfpr.search import search, search_proportional
from lfpr.shrink import fold, shrink
from lfpr.surgeon import removal_costs, surgeon_importance


def naive(gram, weight, curvature, size, damping):
    """Costs by refitting, for every candidate, all rows that would be left."""
    n = len(gram)
    gram = gram + damping * gram.diagonal().mean() * torch.eye(n, dtype=gram.dtype)
    left, costs, dearest = list(range(n // size)), torch.zeros(n // size, dtype=gram.dtype), 0.0

    def loss(groups):
        """The least that the outputs of these groups alone can differ from all."""
        rows = torch.tensor([g * size + i for g in groups for i in range(size)], dtype=torch.long)
        cross = gram[rows] @ weight
        best = torch.linalg.solve(gram[rows][:, rows], cross) if len(rows) else cross
        change = -weight.clone()
        change[rows] += best
        return torch.einsum("ij,jk,kl,il->", change.T @ gram, change, curvature, torch.eye(len(curvature)).double())

    while left:
        now = loss(left)
        prices = [(loss([g for g in left if g != gone]) - now).item() for gone in left]
        gone = left.pop(prices.index(min(prices)))
        dearest = max(dearest, min(prices))
        costs[gone] = dearest
    return costs


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(12, 1), (12, 3), (8, 4), (5, 5)]), st.integers(1, 9))
def test_removals_cost_what_refitting_the_rest_leaves(seed, shape, block):
    n, size = shape
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *sizes: torch.randn(*sizes, generator=generator, dtype=torch.float64)  # noqa: E731
    x, weight, g = draw(40, n) @ draw(n, n), draw(n, 6), draw(50, 6) @ draw(6, 6)
    gram, curvature = x.T @ x / 40, g.T @ g / 50
    found = removal_costs(gram, weight @ curvature @ weight.T, size, 0.01, block)
    torch.testing.assert_close(found, naive(gram, weight, curvature, size, 0.01), rtol=1e-6, atol=1e-9)


def test_twins_are_cheap_while_the_other_is_there():
    x = torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, x[:, :1]], 1)  # the last input is the first again
    weight = torch.tensor([[1.0], [0.3], [0.5], [1.0]], dtype=torch.float64)
    costs = removal_costs(x.T @ x / 500, weight @ weight.T, damping=1e-6)
    assert costs.argsort().tolist()[0] in (0, 3) and costs.argsort().tolist()[-1] in (0, 3)
    assert costs.min() < 1e-4 and costs.max() > 3  # together they weigh 2, squared


def objective(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda batch: fisher.gaussian_projection(small.forward(model, batch)[:, 0], generator)


@pytest.mark.parametrize("family", ["bert", "distilbert", "vit", "clip_vision"])
def test_factors_are_those_of_inputs_and_gradients(family):
    model, batches = small.build(family), [small.batch(family, seed=seed) for seed in (1, 2)]
    encoder = prunable(model)
    found = surgeon_importance(encoder, batches, objective(model), damping=0.05)
    for layer, part in enumerate(encoder.parts):
        for kind, linear, size in (("heads", part.attention_output, part.head_dim), ("neurons", part.ffn_out, 1)):
            rows, slopes, run = [], [], objective(model)
            for batch in batches:
                seen = {}

                def watch(_, args, out, seen=seen):
                    seen["x"], seen["y"] = args[0], out

                hook = linear.register_forward_hook(watch)
                (gradient,) = torch.autograd.grad(run(batch), seen["y"])
                hook.remove()
                valid = batch.get("attention_mask", torch.ones(gradient.shape[:2])).bool()
                rows.append(seen["x"][valid].detach().double())
                slopes.append(gradient[valid].double())
            x, g, weight = torch.cat(rows), torch.cat(slopes), linear.weight.detach().double().T
            kernel = weight @ (g.T @ g / 6) @ weight.T
            expected = removal_costs(x.T @ x / len(x), kernel, size, 0.05)
            torch.testing.assert_close(getattr(found, kind)[layer], expected, rtol=1e-3, atol=1e-9)


def test_what_is_removed_already_costs_nothing_and_the_model_stays():
    model, batches = small.build("bert"), [small.batch("bert", 6)]
    wide = copy.deepcopy(model)
    masks = small.random_masks(prunable(model), 0)
    fold(prunable(wide), masks)
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    wide.train()
    found = surgeon_importance(prunable(wide), batches, objective(wide))
    assert (found.heads[masks.heads == 0] == 0).all() and (found.neurons[masks.neurons == 0] == 0).all()
    assert (found.neurons[0][masks.neurons[0] != 0] > 0).all()
    assert all(torch.equal(value, before[name]) for name, value in wide.state_dict().items()) and wide.training
    assert all(p.requires_grad and p.grad is None for p in wide.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in wide.modules())


def test_refitted_models_are_nearer_than_by_magnitude():
    model, batches = small.build("bert"), [small.batch("bert", 16, seed) for seed in range(6)]
    encoder = prunable(model)
    cost = ParameterCost(encoder)
    chosen = {
        "surgeon": search(surgeon_importance(encoder, batches, objective(model)), cost, 0.5),
        "magnitude": search_proportional(magnitude(encoder), cost, 0.5),
    }
    left = {}
    for name, masks in chosen.items():
        student = shrink(model, masks)
        reconstruct(model, student, batches, small.forward)
        with torch.no_grad():
            gaps = [(small.forward(model, b) - small.forward(student, b))[:, 0] for b in batches]
        left[name] = sum(gap.square().sum().item() for gap in gaps)
    assert left["surgeon"] < 0.8 * left["magnitude"], left


def test_bad_arguments_are_refused():
    model, batches = small.build("bert"), [small.batch("bert")]
    encoder = prunable(model)
    run = objective(model)
    for arguments, message in (
        ({"damping": 0.0}, "damping = 0"),
        ({"damping": float("nan")}, "damping = nan"),
        ({"batches": []}, "batches: there is none"),
        ({"objective": lambda b: small.forward(model, b)}, r"batch 0: .*finite scalar tensor, found a tensor"),
        ({"objective": lambda b: run(b) * float("nan")}, "batch 0: .*finite scalar tensor"),
        ({"objective": lambda b: torch.tensor(1.0)}, "batch 0: the objective does not depend on the encoder"),
        ({"encoder": prunable(shrink(model, small.random_masks(encoder, 0)))}, "already shrunk"),
    ):
        with pytest.raises(ValueError, match=message):
            surgeon_importance(**{"encoder": encoder, "batches": batches, "objective": run} | arguments)
    assert Masks.ones(encoder).heads.sum() == 12


def test_projections_have_the_covariance_of_drawn_answers():
    logits = torch.tensor([[2.0, -1.0, 0.3]], requires_grad=True)
    generator = torch.Generator().manual_seed(0)

    def second_moment(function, count=4000):
        draws = [torch.autograd.grad(function(), logits)[0][0].double() for _ in range(count)]
        draws = torch.stack(draws)
        return draws.T @ draws / count

    p = logits.detach().sigmoid()[0].double()
    found = second_moment(lambda: fisher.independent_projection(logits, torch.ones(1), generator))
    torch.testing.assert_close(found, (p * (1 - p)).diag(), rtol=0, atol=0.02)
    found = second_moment(lambda: fisher.gaussian_projection(logits, generator))
    torch.testing.assert_close(found, torch.eye(3).double(), rtol=0, atol=0.1)
    (slope,) = torch.autograd.grad(fisher.best(logits), logits)
    torch.testing.assert_close(slope, logits.softmax(-1) - torch.tensor([[1.0, 0, 0]]))
