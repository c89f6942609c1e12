"""Importance that needs no gradients: the size of the weights, what parts contribute to the output, and chance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from lfpr.checks import check_choice, check_encoder, check_run, check_seed, no_empty_batches
from lfpr.encoder import Part, PrunableEncoder
from lfpr.layerwise import attended_rows
from lfpr.masks import Importance
from lfpr.modes import evaluating, observable


def magnitude(encoder: PrunableEncoder, norm: int = 2) -> Importance:
    """Sum of the squared (`norm` 2) or absolute (`norm` 1) weights that go with a head (its rows of query, key,
    value, its columns of the output projection) or with a neuron (its rows into the FFN, its column out of it).

    [L, H] and [L, N], float64. Raises ValueError for another norm, or if the layers differ in width.
    """
    check_encoder(encoder)
    norm = check_choice("norm", norm, (1, 2))
    encoder.require_uniform()
    encoder.require_weights()
    found = {"heads": [], "neurons": []}
    for part in [*encoder.attentions, *encoder.ffns]:
        sizes = [
            (linear.weight.unflatten(0, (blocks, -1, rows)), (0, 2, 3)) for linear, rows, blocks in part.inputs
        ] + [(part.output.weight.unflatten(1, (-1, part.size)), (0, 2))]
        weights = (value.detach().double().abs().pow(norm).sum(dims).cpu() for value, dims in sizes)
        found[part.kind].append(sum(weights))
    return Importance(torch.stack(found["heads"]), torch.stack(found["neurons"]))


@torch.no_grad()
def activation_importance(
    encoder: PrunableEncoder, batches: Iterable[Any], forward: Callable[[Any], Any]
) -> Importance:
    """Mean squared norm, over the tokens of `batches`, of what a head or a neuron adds to the residual stream: its
    activations through its columns of the output projection. Needs no labels and no gradients. [L, H] and [L, N],
    float64.

    `forward(batch)` runs the module, in evaluation mode. Tokens that no token attends to, by the attention mask that
    the layers get, are padding and do not count. Both scores are in the same unit, so `search` may compare them. Raises
    ValueError if there are no batches or samples, if the layers differ in width, or naming the layer if activations are
    NaN or infinite.
    """
    check_run(encoder, batches, forward=forward)
    encoder.require_uniform()
    with evaluating(encoder.module), observable(encoder.module), no_empty_batches(encoder), watched(encoder) as seen:
        for batch in batches:
            forward(batch)
    return seen()


@contextmanager
def watched(encoder: PrunableEncoder) -> Iterator[Callable[[], Importance]]:
    """Within it what the encoder's layers compute is added up; what it gives returns `activation_importance` of that.
    Raises as that does."""
    sums = {"heads": [*map(_Contributions, encoder.attentions)], "neurons": [*map(_Contributions, encoder.ffns)]}
    hooks = [hook for rows in sums.values() for contributions in rows for hook in contributions.hooks()]

    def importance() -> Importance:
        in_order = [(i, each) for i, pair in enumerate(zip_longest(*sums.values())) for each in pair if each]
        for number, contributions in in_order:
            if not contributions.tokens:
                raise ValueError("batches: there is none with a token that counts, or forward does not run the encoder")
            if not contributions.total.isfinite().all():
                raise ValueError(f"layer {number}: NaN or infinite activations")
        return Importance(*(torch.stack([each.total / each.tokens for each in rows]).cpu() for rows in sums.values()))

    try:
        yield importance
    finally:
        for hook in hooks:
            hook.remove()


class _Contributions:
    """Sums over tokens of |x_h W_h|² for the heads of an attention, or of (x_n |w_n|)² for the neurons of an FFN."""

    def __init__(self, part: Part) -> None:
        self.part, self.rows, self.tokens = part, slice(None), 0
        weight = part.output.weight.float()
        self.total = torch.zeros(part.count, dtype=torch.float64, device=weight.device)
        by_part = weight.T.unflatten(0, (part.count, part.size))
        self.products = by_part @ by_part.mT if part.size > 1 else weight.square().sum(0)  # [H, dh, dh], or [N]

    def hooks(self) -> list[Any]:
        return [
            self.part.layer.register_forward_pre_hook(self.enter, with_kwargs=True),
            self.part.output.register_forward_pre_hook(self.add),
        ]

    def enter(self, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        self.rows = attended_rows(layer, args, kwargs, self.part.path)

    def add(self, linear: nn.Module, args: tuple) -> None:
        x = args[0].detach().flatten(0, -2)[self.rows].float()
        self.tokens += len(x)
        if self.part.size == 1:
            self.total += (x.square() * self.products).double().sum(0)
            return
        x = x.unflatten(1, (self.part.count, self.part.size)).transpose(0, 1)  # [H, T, dh]
        self.total += (x.mT @ x * self.products).double().sum((1, 2))


def random_importance(encoder: PrunableEncoder, seed: int) -> Importance:
    """Uniform scores in [0, 1), [L, H] and [L, N], the same for the same seed and sizes. Float64.

    Raises ValueError if the layers differ in width, or for a seed that torch does not take.
    """
    check_encoder(encoder)
    seed = check_seed(seed)
    num_heads, num_neurons = encoder.require_uniform()
    generator = torch.Generator("cpu").manual_seed(seed)

    def draw(rows: int, width: int) -> torch.Tensor:
        return torch.rand(rows, width, generator=generator, dtype=torch.float64, device="cpu")

    return Importance(draw(len(encoder.attentions), num_heads), draw(len(encoder.ffns), num_neurons))
