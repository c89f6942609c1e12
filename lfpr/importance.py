"""Importance that needs no gradients: the size of the weights, what parts contribute to the output, and chance."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from lfpr.encoder import LayerParts, PrunableEncoder
from lfpr.layerwise import attention_weights
from lfpr.masks import Importance
from lfpr.modes import evaluating


def magnitude(encoder: PrunableEncoder, norm: int = 2) -> Importance:
    """Sum of the squared (`norm` 2) or absolute (`norm` 1) weights that go with a head (its rows of query, key,
    value, its columns of the output projection) or with a neuron (its rows into the FFN, its column out of it).

    [L, H] and [L, N], float64. Raises ValueError for another norm, or if the layers differ in width.
    """
    if norm not in (1, 2):
        raise ValueError(f"norm = {norm}: must be 1 or 2")
    num_heads, num_neurons = encoder.require_uniform()
    heads = torch.zeros(encoder.num_layers, num_heads, dtype=torch.float64)
    neurons = torch.zeros(encoder.num_layers, num_neurons, dtype=torch.float64)
    for i, layer in enumerate(encoder.parts):
        rows = [linear.weight for linear in (layer.query, layer.key, layer.value)] + [layer.attention_output.weight.T]
        for weight in rows:
            sizes = weight.detach().double().abs().pow(norm).sum(1).cpu()
            heads[i] += sizes.view(num_heads, encoder.head_dim).sum(1)
        for weight in [linear.weight for linear in layer.ffn_in] + [layer.ffn_out.weight.T]:
            neurons[i] += weight.detach().double().abs().pow(norm).sum(1).cpu()
    return Importance(heads, neurons)


@torch.no_grad()
def activation_importance(
    encoder: PrunableEncoder, batches: Iterable[Any], forward: Callable[[Any], Any]
) -> Importance:
    """Mean squared norm, over the tokens of `batches`, of what a head or a neuron adds to the residual stream: its
    activations through its columns of the output projection. Needs no labels and no gradients. [L, H] and [L, N],
    float64.

    `forward(batch)` runs the module, in evaluation mode. Tokens that no token attends to, by the attention mask that
    the layers get, are padding and do not count. Both scores are in the same unit, so `search` may compare them. Raises
    ValueError if there are no batches, if the layers differ in width, or naming the layer if activations are NaN or
    infinite.
    """
    heads, neurons = encoder.require_uniform()
    sums = [_Contributions(part, heads, neurons) for part in encoder.parts]
    hooks = [hook for contributions in sums for hook in contributions.hooks()]
    try:
        with evaluating(encoder.module):
            for batch in batches:
                forward(batch)
    finally:
        for hook in hooks:
            hook.remove()
    for number, layer in enumerate(sums):
        if not layer.tokens:
            raise ValueError("batches: there is none, or forward does not run the encoder")
        if not (layer.heads.isfinite().all() and layer.neurons.isfinite().all()):
            raise ValueError(f"layer {number}: NaN or infinite activations")
    return Importance(
        torch.stack([layer.heads / layer.tokens for layer in sums]).cpu(),
        torch.stack([layer.neurons / layer.tokens for layer in sums]).cpu(),
    )


class _Contributions:
    """Sums over tokens of |x_h W_h|² for the heads of a layer and of (x_n |w_n|)² for its neurons."""

    def __init__(self, part: LayerParts, heads: int, neurons: int) -> None:
        self.part, self.rows, self.tokens = part, slice(None), 0
        self.heads, self.neurons = (
            torch.zeros(width, dtype=torch.float64, device=part.ffn_out.weight.device) for width in (heads, neurons)
        )
        by_head = part.attention_output.weight.float().T.unflatten(0, (heads, part.head_dim))
        self.products = by_head @ by_head.mT  # [H, dh, dh]
        self.squares = part.ffn_out.weight.float().square().sum(0)  # [N]

    def hooks(self) -> list[Any]:
        return [
            self.part.module.register_forward_pre_hook(self.enter, with_kwargs=True),
            self.part.attention_output.register_forward_pre_hook(self.attend),
            self.part.ffn_out.register_forward_pre_hook(self.feed),
        ]

    def enter(self, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        bound = inspect.signature(layer.forward).bind(*args, **kwargs).arguments
        x = next(iter(bound.values()))
        weights = attention_weights(bound.get("attention_mask"), x, self.part.path)
        self.rows = slice(None) if weights is None else weights.flatten().nonzero().flatten()

    def attend(self, linear: nn.Module, args: tuple) -> None:
        x = args[0].flatten(0, 1)[self.rows].float()
        self.tokens += len(x)
        x = x.unflatten(1, (len(self.heads), self.part.head_dim)).transpose(0, 1)  # [H, T, dh]
        self.heads += (x.mT @ x * self.products).double().sum((1, 2))

    def feed(self, linear: nn.Module, args: tuple) -> None:
        self.neurons += (args[0].flatten(0, 1)[self.rows].float().square() * self.squares).double().sum(0)


def random_importance(encoder: PrunableEncoder, seed: int) -> Importance:
    """Uniform scores in [0, 1), [L, H] and [L, N], the same for the same seed and sizes. Float64.

    Raises ValueError if the layers differ in width.
    """
    num_heads, num_neurons = encoder.require_uniform()
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> torch.Tensor:
        return torch.rand(encoder.num_layers, width, generator=generator, dtype=torch.float64)

    return Importance(draw(num_heads), draw(num_neurons))
