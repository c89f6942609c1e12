"""Peers on the real MiniLM: Torch-Pruning (left out where it is not installed), K-prune and Kwon et al.'s framework.

All score on the same 200 texts and keep the same shares of the layers' parameters; measured on 200 other texts by the
share of each one's ten nearest that stays (`lfpr.experiments.sentences.neighbours_kept`).
"""

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache, partial

import torch
from costs import minilm
from registry import Case, row
from torch import Tensor, nn

import lfpr
from lfpr import released
from lfpr.experiments.sentences import SCALE, Batch, embed, embeddings, neighbours_kept, projected
from lfpr.kprune import kprune

CONSTRAINTS = (0.8, 0.6, 0.4)
Models = Mapping[float, nn.Module]


@lru_cache
def texts(small: bool) -> tuple[nn.Module, list[Batch], list[Batch]]:
    """The model, texts that score and texts that measure."""
    model, scoring, testing = minilm()
    return (model, scoring[:1], testing) if small else (model, scoring, testing)


def neighbours(small: bool, models: Models) -> str:
    """Neighbours kept, by constraint."""
    model, _, testing = texts(small)
    before = embed(model, testing)
    return " / ".join(f"{neighbours_kept(before, embed(m, testing)):.3f}"[1:] for m in models.values())


def constraints(small: bool) -> tuple[float, ...]:
    """What is kept."""
    return CONSTRAINTS[-1:] if small else CONSTRAINTS


# ---- ours


def fisher(small: bool, per_sample: bool = True) -> lfpr.MaskGradients:
    """Mask gradients of a random projection of the embeddings: no labels."""
    model, scoring, _ = texts(small)
    return lfpr.collect_gradients(lfpr.prunable(model), scoring, projected(model), per_sample)


def searched(small: bool) -> dict[float, nn.Module]:
    """Scored by squared gradients, searched, shrunk."""
    model, encoder = texts(small)[0], lfpr.prunable(texts(small)[0])
    importance, cost = fisher(small).importance(), lfpr.ParameterCost(encoder)
    return {c: lfpr.shrink(model, lfpr.search(importance, cost, c)) for c in constraints(small)}


def reconstructed(small: bool) -> dict[float, nn.Module]:
    """Scored by optimal brain surgeon, searched, shrunk, reconstructed."""
    model, scoring, _ = texts(small)
    encoder = lfpr.prunable(model)
    importance, cost = lfpr.surgeon_importance(encoder, scoring, projected(model)), lfpr.ParameterCost(encoder)
    found = {c: lfpr.shrink(model, lfpr.search(importance, cost, c)) for c in constraints(small)}
    for less in found.values():
        lfpr.reconstruct(model, less, scoring, embeddings)
    return found


# ---- theirs


def by_kprune(small: bool) -> dict[float, nn.Module]:
    """K-prune with its published settings; predictions are cosines with the texts of the batch."""
    model, scoring, _ = texts(small)
    cost = lfpr.ParameterCost(lfpr.prunable(model))

    def predictions(student: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            fixed = embeddings(model, batch)
        return SCALE * embeddings(student, batch) @ fixed.T

    return {c: kprune(model, scoring, predictions, cost, c)[0] for c in constraints(small)}


def by_kwon(small: bool) -> dict[float, nn.Module]:
    """Kwon et al.: Fisher information, search, rearrangement, rescaling as released."""
    model, scoring, _ = texts(small)
    encoder, gradients = lfpr.prunable(model), fisher(small)
    found = {}
    for c in constraints(small):
        searched = released.search(gradients.importance(), lfpr.ParameterCost(encoder), c)
        masks = lfpr.rearrange(searched, gradients)
        masks = released.rescale(encoder, masks, scoring, partial(embeddings, model), searched, first_token=False)
        found[c] = lfpr.shrink(model, masks)
    return found


def weight_gradients(small: bool, score: object | None = None) -> nn.Module:
    """A copy of the model with gradients in its weights: of all texts, or given one by one to `score`, an importance of
    Torch-Pruning's that accumulates them."""
    model, scoring, _ = texts(small)
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for batch in scoring:
        values = embeddings(model, batch)
        values = (torch.randn(values.shape, generator=generator) * values).sum(1)
        if score is None:
            values.sum().backward()
            continue
        for number, value in enumerate(values):
            model.zero_grad()
            value.backward(retain_graph=number + 1 < len(values))
            score.accumulate_grad(model)
    return model


def cut(model: nn.Module, importance: object, constraint: float, inputs: Batch) -> nn.Module:
    """`model` pruned in place by Torch-Pruning, in one step, to a share of its layers' parameters: heads and neurons in
    the same proportion, ranked over all layers, which is the budget that it can be given."""
    import torch_pruning as tp

    layers = model.encoder.layer
    roots = {linear for layer in layers for linear in (*_projections(layer), layer.intermediate.dense)}
    heads = {linear: model.config.num_attention_heads for layer in layers for linear in _projections(layer)}
    encoder = lfpr.prunable(model)
    cost = lfpr.ParameterCost(encoder)
    gone = 1 - (constraint * cost.full - cost.fixed) / (cost.full - cost.fixed)
    pruner = tp.pruner.BasePruner(
        model,
        {name: value[:1] for name, value in inputs.items() if name != "index"},
        importance,
        global_pruning=True,
        pruning_ratio=gone,
        head_pruning_ratio=gone,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        ignored_layers=[
            m for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding | nn.LayerNorm) and m not in roots
        ],
        output_transform=lambda output: output.last_hidden_state,
    )
    pruner.step()
    for layer in layers:  # which it leaves to the user
        attention = layer.attention.self
        attention.num_attention_heads = pruner.num_heads[attention.query]
        attention.all_head_size = attention.query.out_features
    return model.zero_grad() or model


def _projections(layer: nn.Module) -> tuple[nn.Linear, ...]:
    return layer.attention.self.query, layer.attention.self.key, layer.attention.self.value


def by_torch_pruning(small: bool, importance: Callable[[], object]) -> dict[float, nn.Module]:
    """Scored and pruned by Torch-Pruning; an importance that accumulates gets a gradient per text."""
    score, (_, scoring, _) = importance(), texts(small)
    scored = weight_gradients(small, score if hasattr(score, "accumulate_grad") else None)
    found = {}
    for c in constraints(small):
        model = copy.deepcopy(scored)
        for own, other in zip(model.parameters(), scored.parameters(), strict=True):
            own.grad = None if other.grad is None else other.grad.clone()
            if hasattr(score, "_accu_grad") and other in score._accu_grad:
                score._accu_grad[own], score._counter[own] = score._accu_grad[other], score._counter[other]
        found[c] = cut(model, score, c, scoring[0])
    return found


def importances() -> tuple[Callable[[], object], Callable[[], object], Callable[[], object]]:
    """Torch-Pruning's Taylor and Hessian importance as shipped, and Hessian importance that adds the squares of all
    gradients, as its documentation says, where the shipped one keeps those of the last."""
    from torch_pruning.pruner.importance import GroupHessianImportance, GroupTaylorImportance

    class Accumulating(GroupHessianImportance):
        def accumulate_grad(self, model: nn.Module) -> None:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    square = parameter.grad.square()
                    self._accu_grad[parameter] = self._accu_grad.get(parameter, 0) + square
                    self._counter[parameter] = self._counter.get(parameter, 0) + 1

    return GroupTaylorImportance, GroupHessianImportance, Accumulating


# ---- rows

SIZE = "MiniLM, 200 texts"
KEPT = f"{SIZE}; neighbours at {' / '.join(f'{c:.0%}' for c in CONSTRAINTS)} kept"


@row(
    "tp-scoring",
    "Scoring, a gradient per batch",
    ("Torch-Pruning, Taylor", "lfpr"),
    "faster",
    needs="torch_pruning",
    why="Gradients of masks need no gradients of weights, a third of a pass.",
)
def tp_scoring(small: bool) -> Case:
    ours = lambda: fisher(small, per_sample=False).importance()  # noqa: E731
    return Case({"other": partial(weight_gradients, small), "ours": ours}, SIZE)


@row(
    "tp-per-sample",
    "Scoring, a gradient per text",
    ("Torch-Pruning, Hessian", "lfpr"),
    "faster",
    needs="torch_pruning",
    why="Each text has masks of its own, so one backward pass gives a gradient for each; weights have none of "
    "their own, so theirs takes a backward pass for each text, and adds squares of all weights.",
)
def tp_per_sample(small: bool) -> Case:
    theirs = lambda: weight_gradients(True, importances()[2]())  # noqa: E731
    ours = lambda: fisher(True).importance()  # noqa: E731
    return Case({"other": theirs, "ours": ours}, "MiniLM, the 32 shortest texts", repeats=2)


@row(
    "tp-prune",
    "Search and shrink to 40 %",
    ("Torch-Pruning", "lfpr"),
    "faster",
    needs="torch_pruning",
    why="Ours knows from the family which rows and columns belong to a head or neuron; theirs traces the model's "
    "graph for it, which works for other architectures, too, and cuts group by group.",
)
def tp_prune(small: bool) -> Case:
    model, scoring, _ = texts(small)
    encoder, scored = lfpr.prunable(model), weight_gradients(small)
    importance, taylor = fisher(small).importance(), importances()[0]

    def theirs() -> nn.Module:
        less = copy.deepcopy(scored)
        for own, other in zip(less.parameters(), scored.parameters(), strict=True):
            own.grad = other.grad
        return cut(less, taylor(), 0.4, scoring[0])

    def ours() -> nn.Module:
        return lfpr.shrink(model, lfpr.search(importance, lfpr.ParameterCost(encoder), 0.4))

    def kept(less: nn.Module) -> str:
        share = sum(p.numel() for p in less.encoder.parameters()) / encoder.num_parameters
        return f"{share:.1%} kept"

    return Case({"other": theirs, "ours": ours}, SIZE, kept, counted=False)


def whole(small: bool, theirs: Callable[[bool], Models], ours: Callable[[bool], Models]) -> Case:
    """All that two ways do, from the model to what is left of it by constraint, once; scored by neighbours."""
    ways = {"other": partial(theirs, small), "ours": partial(ours, small)}
    return Case(ways, KEPT, partial(neighbours, small), counted=False, memory=False, repeats=1)


TORCH_PRUNING = ("Taylor, as shipped", "Hessian, as shipped", "Hessian, as meant")
REASONS = (
    "Absolute products of weights and gradients, summed over a head's or neuron's weights.",
    "It keeps the last text's gradient alone, each one taking the place of the one before.",
    "With all gradients added up, as its documentation describes.",
)
for number, (title, reason) in enumerate(zip(TORCH_PRUNING, REASONS, strict=True)):

    @row(
        f"tp-{('taylor', 'shipped', 'meant')[number]}",
        f"Pruned: Torch-Pruning, {title}",
        ("Torch-Pruning", "lfpr: Fisher information, search"),
        "faster",
        needs="torch_pruning",
        why=f"{reason} Heads and neurons go in the same proportion, since the two have no common scale there; with "
        "gradients of masks they have, and the search spends the budget where it matters.",
    )
    def tp_whole(small: bool, number: int = number) -> Case:
        return whole(small, lambda small: by_torch_pruning(small, importances()[number]), searched)


@row(
    "kprune",
    "Pruned and refitted: K-prune",
    ("K-prune", "lfpr: surgeon, reconstruction"),
    "faster",
    why="Both refit output projections by least squares. K-prune scores the whole model anew in each of 2 L rounds and "
    "has no ridge; ours scores once, counting on the refit, and chooses a ridge on samples held back.",
)
def against_kprune(small: bool) -> Case:
    return whole(small, by_kprune, reconstructed)


@row(
    "kwon",
    "Pruned and refitted: Kwon et al.",
    ("search, rearrangement, rescaling", "lfpr: surgeon, reconstruction"),
    "faster",
    why="Scales of heads and neurons are few and quickly found; reconstruction moves all weights of the output "
    "projections, for more arithmetic and a better model.",
)
def against_kwon(small: bool) -> Case:
    return whole(small, by_kwon, reconstructed)
