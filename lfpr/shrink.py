"""Shrinking: masks become physically smaller Linear layers, with the same outputs.

A removed head takes its rows out of query, key and value and its columns out of the output projection; a removed neuron
its row into the FFN and its column out of it. The mask values of what is kept are folded into those columns, so a real-
valued mask costs nothing at inference. A layer that keeps no head (or no neuron) keeps the bias of its output
projection.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lfpr.encoder import LayerParts, PrunableEncoder, encoders, mask_rows, prunable
from lfpr.families import UnsupportedArchitecture
from lfpr.modes import evaluating


class NotEquivalent(ValueError):
    """A shrunk model whose outputs differ from the masked model's; `difference` is the largest absolute one."""

    def __init__(self, message: str, difference: float) -> None:
        super().__init__(message)
        self.difference = difference


def shrink(module: nn.Module, masks: Any, part: nn.Module | None = None) -> nn.Module:
    """A deep copy of `module` without what `masks` set to zero, their other values folded into the weights.

    `module` is or contains the encoder the masks are for; where it contains several that the masks fit, `part` says
    which (a submodule of `module`). `masks` are `Masks`, or tensors per layer as in `PrunableEncoder.masked`, not per
    sample. The copy is of the same class, with the same configuration; raises ValueError if the masks do not fit.
    """
    encoder = _meant(module, masks, part)
    copied = _at(copy.deepcopy(module), encoder)
    for layer, heads, neurons in zip(copied.parts, *_rows(masks, encoder), strict=True):
        _scale(layer, heads, neurons)
        _select(layer, heads != 0, neurons != 0)
    return copied.module


def fold(encoder: PrunableEncoder, masks: Any) -> None:
    """Multiply mask values into the encoder's weights, in place: trained masks of a shrunk model disappear at no cost.

    `masks` as for `shrink`; nothing is removed, a zero leaves zero weights. Raises ValueError if the masks do not fit.
    """
    for layer, heads, neurons in zip(encoder.parts, *_rows(masks, encoder), strict=True):
        _scale(layer, heads, neurons)


def resize(encoder: PrunableEncoder, heads: list[int], neurons: list[int]) -> None:
    """Give an encoder's layers these numbers of heads and neurons in place, keeping the first ones: the shape that the
    weights of a saved pruned model are loaded into. Raises ValueError if a layer has fewer."""
    for name, wanted, found in (
        ("heads", heads, encoder.heads_per_layer),
        ("neurons", neurons, encoder.neurons_per_layer),
    ):
        if len(wanted) != len(found) or not all(0 <= w <= f for w, f in zip(wanted, found, strict=True)):
            raise ValueError(f"{name} per layer {wanted}: the model has {found}")
    for layer, h, n in zip(encoder.parts, heads, neurons, strict=True):
        _select(layer, torch.arange(layer.num_heads) < h, torch.arange(layer.num_neurons) < n)


def verify_equivalent(
    module: nn.Module,
    masks: Any,
    pruned: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Tensor],
    atol: float = 1e-4,
    part: nn.Module | None = None,
) -> float:
    """Compare the masked module with the shrunk one, in evaluation mode; returns the largest absolute difference.

    `forward(model, batch)` runs a model and returns the tensor to compare. Raises `NotEquivalent` if a difference
    exceeds `atol` or is NaN, or if shapes differ, and ValueError if there is nothing to compare.
    """
    encoder = _meant(module, masks, part)
    largest, compared = 0.0, 0
    with evaluating(module, pruned), torch.no_grad():
        for number, batch in enumerate(batches):
            with encoder.masked(masks):
                expected = forward(module, batch)
            found = forward(pruned, batch)
            if expected.shape != found.shape:
                message = f"batch {number}: shapes {tuple(expected.shape)} (masked) and {tuple(found.shape)} (shrunk)"
                raise NotEquivalent(message, float("inf"))
            gap = (expected.double() - found.double()).abs().masked_fill(expected == found, 0)  # equal infinities too
            difference = gap.max().item() if gap.numel() else 0.0
            if not difference <= atol:  # also when it is NaN
                raise NotEquivalent(
                    f"batch {number}: outputs of the shrunk and the masked model differ by {difference:.3g} "
                    f"> atol = {atol:.3g}",
                    difference,
                )
            largest, compared = max(largest, difference), compared + gap.numel()
    if not compared:
        raise ValueError("batches: no output to compare")
    return largest


def _meant(module: nn.Module, masks: Any, part: nn.Module | None) -> PrunableEncoder:
    """The encoder in `module` that `masks` are for, seen from `module`."""
    if part is not None:
        first = prunable(part).layers[0]
        candidates = [encoder for encoder in _all(module) if encoder.layers[0] is first]
        if not candidates:
            raise ValueError(f"part: {type(part).__name__} is not a part of {type(module).__name__}")
        return candidates[0]
    candidates = encoders(module)
    if len(candidates) > 1:
        fitting = [encoder for encoder in candidates if _fits(masks, encoder)]
        if len(fitting) != 1:
            paths = [encoder.path for encoder in candidates]
            raise UnsupportedArchitecture(
                f"{type(module).__name__} has the prunable encoders {paths}, "
                f"and the masks fit {len(fitting)} of them: say which with part="
            )
        return fitting[0]
    encoder = candidates[0] if candidates else prunable(module)  # raises, naming what is there
    _rows(masks, encoder)
    return encoder


def _all(module: nn.Module) -> list[PrunableEncoder]:
    """All encoders, whatever the module declares as the one to prune."""
    return encoders(module, declared=False)


def _at(module: nn.Module, encoder: PrunableEncoder) -> PrunableEncoder:
    """The same encoder in a copy of the module."""
    return next(found for found in _all(module) if found.path == encoder.path)


def _rows(masks: Any, encoder: PrunableEncoder) -> tuple[list[Tensor], list[Tensor]]:
    heads = mask_rows("heads", masks.heads, encoder.heads_per_layer)
    neurons = mask_rows("neurons", masks.neurons, encoder.neurons_per_layer)
    if any(row.ndim != 1 for row in heads + neurons):
        raise ValueError("masks: per-sample masks cannot become weights")
    for name, rows in (("heads", heads), ("neurons", neurons)):
        bad = [i for i, row in enumerate(rows) if not row.isfinite().all()]
        if bad:
            raise ValueError(f"masks.{name}: NaN or infinite values in layers {bad}")
    return heads, neurons


def _fits(masks: Any, encoder: PrunableEncoder) -> bool:
    try:
        _rows(masks, encoder)
    except ValueError:
        return False
    return True


@torch.no_grad()
def _scale(layer: LayerParts, heads: Tensor, neurons: Tensor) -> None:
    """Multiply the columns of the two output projections, in at least float32."""
    for linear, mask in ((layer.attention_output, heads.repeat_interleave(layer.head_dim)), (layer.ffn_out, neurons)):
        weight = linear.weight
        weight.copy_(weight * mask.detach().to(weight.device, torch.promote_types(weight.dtype, torch.float32)))


def _select(layer: LayerParts, heads: Tensor, neurons: Tensor) -> None:
    """Keep the heads and neurons where the two boolean masks are true."""
    context = heads.repeat_interleave(layer.head_dim)
    for linear in (layer.query, layer.key, layer.value):
        _keep(linear, rows=context)
    _keep(layer.attention_output, columns=context)
    for linear in layer.ffn_in:
        _keep(linear, rows=neurons)
    _keep(layer.ffn_out, columns=neurons)
    kept = int(heads.sum())
    for name in layer.family.head_count:
        setattr(layer.attention, name, kept)
    for name in layer.family.head_width:
        setattr(layer.attention, name, kept * layer.head_dim)


def _keep(linear: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    def subset(parameter: nn.Parameter, index: Tensor, dim: int) -> nn.Parameter:
        index = index.nonzero().flatten().to(parameter.device)
        return nn.Parameter(parameter.detach().index_select(dim, index), requires_grad=parameter.requires_grad)

    if rows is not None:
        linear.weight = subset(linear.weight, rows, 0)
        if linear.bias is not None:
            linear.bias = subset(linear.bias, rows, 0)
        linear.out_features = len(linear.weight)
    if columns is not None:
        linear.weight = subset(linear.weight, columns, 1)
        linear.in_features = linear.weight.shape[1]
