"""What heads and FFN neurons cost: parameters, or multiply-accumulates (MACs) per sequence.

Both are linear: `fixed + heads · head + neurons · neuron`, whole numbers, so that the largest affordable number of
neurons beside a number of heads is one division, and a constraint can be kept exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from lfpr.encoder import PrunableEncoder
from lfpr.masks import Masks


@dataclass(frozen=True)
class LinearCost:
    """Cost of an encoder by its total numbers of heads and neurons, in `unit`.

    `full` is the unpruned cost that a constraint is a fraction of.
    """

    unit: str
    full: int
    fixed: int
    head: int
    neuron: int

    def of(self, heads: int, neurons: int) -> int:
        """Cost, in `unit`, of `heads` heads and `neurons` neurons in the whole encoder."""
        return self.fixed + self.head * heads + self.neuron * neurons

    def kept(self, masks: Masks) -> int:
        """Cost, in `unit`, of what `masks` keep (their non-zero entries)."""
        return self.of(_count(masks.heads), _count(masks.neurons))

    def fraction(self, masks: Masks) -> float:
        """`kept` divided by `full`."""
        return self.kept(masks) / self.full


class ParameterCost(LinearCost):
    """Parameters of the encoder's layers, as the sum of `numel` over the layers of the shrunk module.

    A head costs its rows of query, key and value with their biases and its columns of the output projection; a neuron
    its rows and bias into the FFN and its column out of it. Output biases, normalisation and whatever else a layer
    holds stay when all of its heads or neurons go, and are charged in `fixed`.
    """

    def __init__(self, encoder: PrunableEncoder) -> None:
        layer = encoder.parts[0]
        inputs = (layer.query, layer.key, layer.value)
        head = encoder.head_dim * (sum(map(_per_output, inputs)) + encoder.hidden_size)
        neuron = sum(map(_per_output, layer.ffn_in)) + encoder.hidden_size
        total_heads, total_neurons = sum(encoder.heads_per_layer), sum(encoder.neurons_per_layer)
        fixed = encoder.num_parameters - total_heads * head - total_neurons * neuron
        full = fixed + encoder.num_layers * (encoder.num_heads * head + encoder.num_neurons * neuron)
        super().__init__("parameters", full, fixed, head, neuron)


class MacCost(LinearCost):
    """Multiply-accumulates of the encoder's layers for one sequence of `sequence_length` tokens.

    A head costs 4·S·d·dh for its projections and 2·S²·dh for the attention products, a neuron 2·S·d (more for gated
    FFNs), S being the length, d the hidden size and dh that of a head. Half of what torch's FLOP counter gives; Kwon et
    al. (NeurIPS 2022) count the same. Raises ValueError unless the length is a whole number of at least 1.
    """

    def __init__(self, encoder: PrunableEncoder, sequence_length: int) -> None:
        if sequence_length < 1 or sequence_length != int(sequence_length):
            raise ValueError(f"sequence_length = {sequence_length}: must be a whole number of at least 1")
        layer, tokens = encoder.parts[0], int(sequence_length)
        projections = sum(linear.in_features for linear in (layer.query, layer.key, layer.value)) + encoder.hidden_size
        head = encoder.head_dim * (tokens * projections + 2 * tokens**2)
        neuron = tokens * (sum(linear.in_features for linear in layer.ffn_in) + encoder.hidden_size)
        full = encoder.num_layers * (encoder.num_heads * head + encoder.num_neurons * neuron)
        super().__init__("MACs", full, 0, head, neuron)


def _per_output(linear: nn.Linear) -> int:
    return linear.in_features + (linear.bias is not None)


def _count(mask: Tensor) -> int:
    return int(mask.count_nonzero())
