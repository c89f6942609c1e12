"""What heads and FFN neurons cost: parameters, or multiply-accumulates (MACs) per sequence.

Both are linear: `fixed + heads · head + neurons · neuron`, whole numbers, so that the largest affordable number of
neurons beside a number of heads is one division, and a constraint can be kept exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

from lfpr.checks import check_count, check_encoder, check_kind, settle
from lfpr.encoder import PrunableEncoder
from lfpr.masks import Masks, PerLayer

Shapes = tuple[tuple[int, int], tuple[int, int]]  # of heads [L, H] and of neurons [L, N]


@dataclass(frozen=True)
class LinearCost:
    """Cost of an encoder by its total numbers of heads and neurons, in `unit`.

    `full` is the unpruned cost that a constraint is a fraction of. `shapes` are those of the masks that it
    counts, any if there is none. Raises ValueError for costs that are no whole numbers, negative, or 0 (but `fixed`).
    """

    unit: str
    full: int
    fixed: int
    head: int
    neuron: int
    shapes: tuple[Shapes, ...] = ()

    def __post_init__(self) -> None:
        check_kind("unit", self.unit, str)
        settle(self, check_count, "fixed")
        settle(self, lambda name, value: check_count(name, value, 1), "full", "head", "neuron")

    def of(self, heads: int, neurons: int) -> int:
        """Cost, in `unit`, of `heads` heads and `neurons` neurons in the whole encoder."""
        return self.fixed + self.head * check_count("heads", heads) + self.neuron * check_count("neurons", neurons)

    def kept(self, masks: Masks) -> int:
        """Cost, in `unit`, of what `masks` keep (their non-zero entries). ValueError for masks of another encoder."""
        check_kind("masks", masks, Masks)
        self.check("masks", masks)
        return self.of(sum(masks.heads_kept), sum(masks.neurons_kept))

    def fraction(self, masks: Masks) -> float:
        """`kept` divided by `full`."""
        return self.kept(masks) / self.full

    def check(self, name: str, value: PerLayer) -> None:
        """ValueError unless `value`, masks or importance, has a number for each head and neuron of the encoder."""
        found = tuple(value.heads.shape), tuple(value.neurons.shape)
        if self.shapes and found not in self.shapes:
            expected = " or ".join(f"{heads} and {neurons}" for heads, neurons in self.shapes)
            raise ValueError(f"{name}: heads {found[0]} and neurons {found[1]}, the cost is of {expected}")


class ParameterCost(LinearCost):
    """Parameters of the encoder's layers, as the sum of `numel` over the layers of the shrunk module.

    A head costs its rows of query, key and value with their biases and its columns of the output projection (where
    several share a key and a value: they together); a neuron its rows and bias into the FFN and its column out of it.
    Output biases, normalisation and whatever else a layer holds stay when all of its heads or neurons go, and are
    charged in `fixed`.
    """

    def __init__(self, encoder: PrunableEncoder) -> None:
        check_encoder(encoder)
        head, neuron = (
            sum(i.rows * i.blocks * (i.linear.in_features + (i.linear.bias is not None)) for i in part.inputs)
            + part.size * encoder.hidden_size
            for part in (encoder.attentions[0], encoder.ffns[0])
        )
        total_heads, total_neurons = sum(encoder.heads_per_layer), sum(encoder.neurons_per_layer)
        fixed = encoder.num_parameters - total_heads * head - total_neurons * neuron
        full = fixed + _full(encoder, head, neuron)
        super().__init__("parameters", full, fixed, head, neuron, _shapes(encoder))


class MacCost(LinearCost):
    """Multiply-accumulates of the encoder's layers for one sequence of `sequence_length` tokens.

    A head costs 4·S·d·dh for its projections and 2·S²·dh for the attention products, a neuron 2·S·d (more for gated
    FFNs), S being the length, d the hidden size and dh that of a head; in an encoder–decoder, S is that of both sides.
    Half of what torch's FLOP counter gives; Kwon et al. (NeurIPS 2022) count the same. Raises ValueError unless the
    length is a whole number of at least 1.
    """

    def __init__(self, encoder: PrunableEncoder, sequence_length: int) -> None:
        check_encoder(encoder)
        tokens, passes = check_count("sequence_length", sequence_length, 1), encoder.passes
        head, neuron = (
            passes
            * tokens
            * (sum(i.rows * i.blocks * i.linear.in_features for i in part.inputs) + part.size * encoder.hidden_size)
            for part in (encoder.attentions[0], encoder.ffns[0])
        )
        head += passes * 2 * tokens**2 * encoder.head_dim
        super().__init__("MACs", _full(encoder, head, neuron), 0, head, neuron, _shapes(encoder))


def _full(encoder: PrunableEncoder, head: int, neuron: int) -> int:
    """What all heads and neurons of the unpruned encoder cost."""
    return len(encoder.attentions) * encoder.num_heads * head + len(encoder.ffns) * encoder.num_neurons * neuron


def _shapes(encoder: PrunableEncoder) -> tuple[Shapes, ...]:
    """Of masks that an encoder's cost counts: unpruned, and as it is, unless its layers differ in width."""
    widths = [(encoder.num_heads, encoder.num_neurons)]
    if len(set(encoder.heads_per_layer)) == len(set(encoder.neurons_per_layer)) == 1:
        found = encoder.heads_per_layer[0], encoder.neurons_per_layer[0]
        widths += [found] if found not in widths else []
    attentions, ffns = len(encoder.attentions), len(encoder.ffns)
    return tuple(((attentions, heads), (ffns, neurons)) for heads, neurons in widths)
