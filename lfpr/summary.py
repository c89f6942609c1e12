"""What a model has in its prunable layers and what it takes, now and unpruned."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lfpr.checks import check_count, check_models
from lfpr.cost import MacCost, ParameterCost
from lfpr.encoder import encoders, prunable
from lfpr.rebuild import SIZES, widths


@dataclass(frozen=True)
class Layers:
    """A list of layers by its path in the model: heads (of self-attention, then of cross-attention where there is
    any) and neurons of each layer, and of an unpruned one."""

    path: str
    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    full_heads: int
    full_neurons: int


@dataclass(frozen=True, repr=False)
class Summary:
    """Numbers of a model, now and unpruned (the layers it has, at full width) where there are two: parameters and
    megabytes (10⁶ bytes) of all its weights, and multiply-accumulates of its prunable layers for one sequence of
    `sequence_length` tokens."""

    model: str
    layers: tuple[Layers, ...]
    sequence_length: int
    parameters: tuple[int, int]
    macs: tuple[int, int]
    megabytes: tuple[float, float]

    def __repr__(self) -> str:
        lines = [self.model]
        for part in self.layers:
            lines += ["", f"{part.path or 'layers'}", f"{'layer':>7} {'heads':>8} {'neurons':>9}"]
            count = len(part.neurons)
            lines += [f"{i:7} {h:8,} {n:9,}" for i, (h, n) in enumerate(zip(part.heads, part.neurons, strict=False))]
            lines += [f"cross {i:1} {heads:8,}" for i, heads in enumerate(part.heads[count:])]
            lines += [f"{'of':>7} {part.full_heads:8,} {part.full_neurons:9,}"]
        lines += ["", f"{'':11} {'now':>17} {'unpruned':>17}"]
        for name, (now, full), form in (
            ("parameters", self.parameters, ",d"),
            ("MACs", self.macs, ",d"),
            ("MB", self.megabytes, ",.1f"),
        ):
            lines.append(f"{name:11} {now:17{form}} {full:17{form}} {now / full:7.1%}")
        return "\n".join([*lines, f"MACs: of these layers, {self.sequence_length} tokens"])


def summary(model: nn.Module, sequence_length: int = 128) -> Summary:
    """What `model`, pruned or not, loaded or on the meta device, has and takes; print it for a table.

    sequence_length: tokens (or patches) of the sequence for which multiply-accumulates are counted. Raises ValueError
    for other arguments, and `UnsupportedArchitecture` if there is nothing that can be pruned.
    """
    check_models(model=model)
    sequence_length = check_count("sequence_length", sequence_length, 1)
    found = encoders(model, declared=False) or [prunable(model)]  # the latter raises, naming what was found
    weights = list(model.parameters())
    parameters, size = sum(value.numel() for value in weights), sum(value.nbytes for value in weights)
    costs = [(encoder, MacCost(encoder, sequence_length)) for encoder in found]
    removed = [
        (ParameterCost(encoder).full - encoder.num_parameters, encoder.parts[0].attention_output.weight.itemsize)
        for encoder in found
    ]
    return Summary(
        type(found[0].module).__name__,
        tuple(
            Layers(path, *(tuple(sizes[name]) for name in SIZES), encoder.num_heads, encoder.num_neurons)
            for encoder in found
            for path, sizes in widths(encoder).items()
        ),
        sequence_length,
        (parameters, parameters + sum(count for count, _ in removed)),
        (
            sum(cost.of(sum(e.heads_per_layer), sum(e.neurons_per_layer)) for e, cost in costs),
            sum(cost.full for _, cost in costs),
        ),
        (size / 1e6, (size + sum(count * width for count, width in removed)) / 1e6),
    )
