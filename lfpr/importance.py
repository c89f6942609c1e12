"""Importance that needs no gradients: the size of the weights, and chance."""

from __future__ import annotations

import torch

from .encoder import PrunableEncoder
from .masks import Importance


def magnitude(encoder: PrunableEncoder) -> Importance:
    """Squared L2 norm of the weights that go with a head (its rows of query, key, value, its columns of the output
    projection) or with a neuron (its rows into the FFN, its column out of it). Float64."""
    num_heads, num_neurons = encoder.require_uniform()
    heads = torch.zeros(encoder.num_layers, num_heads, dtype=torch.float64)
    neurons = torch.zeros(encoder.num_layers, num_neurons, dtype=torch.float64)
    for i, layer in enumerate(encoder.parts):
        rows = [linear.weight for linear in (layer.query, layer.key, layer.value)] + [layer.attention_output.weight.T]
        for weight in rows:
            squares = weight.detach().double().square().sum(1).cpu()
            heads[i] += squares.view(num_heads, encoder.head_dim).sum(1)
        for weight in [linear.weight for linear in layer.ffn_in] + [layer.ffn_out.weight.T]:
            neurons[i] += weight.detach().double().square().sum(1).cpu()
    return Importance(heads, neurons)


def random_importance(encoder: PrunableEncoder, seed: int) -> Importance:
    """Uniform scores in [0, 1), the same for the same seed and sizes. Float64."""
    num_heads, num_neurons = encoder.require_uniform()
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> torch.Tensor:
        return torch.rand(encoder.num_layers, width, generator=generator, dtype=torch.float64)

    return Importance(draw(num_heads), draw(num_neurons))
