"""Shrinking: masks become physically smaller Linear layers, with the same outputs.

A removed head takes its rows out of query, key and value and its columns out of the output projection; a removed neuron
its row into the FFN and its column out of it. Where attention needs more than that to run with fewer heads, as with
biases of positions, `lfpr.pruned_attention` gives it. The mask values of what is kept are folded into those columns, so
a real-valued mask costs nothing at inference. A layer that keeps no head (or no neuron) keeps the bias of its output
projection.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lfpr.checks import check_batches, check_callable, check_kind, check_number
from lfpr.encoder import PrunableEncoder, Stack, Transposed, encoders, prunable, unwrapped
from lfpr.families import UnsupportedArchitecture
from lfpr.modes import evaluating, observable


class NotEquivalent(ValueError):
    """A shrunk model whose outputs differ from the masked model's; `difference` is the largest absolute one."""

    def __init__(self, message: str, difference: float) -> None:
        super().__init__(message)
        self.difference = difference

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.difference)


@torch.inference_mode(False)  # inside such a mode, the copy could never be trained
def shrink(module: nn.Module, masks: Any, part: nn.Module | None = None) -> nn.Module:
    """A deep copy of `module` without what `masks` set to zero, their other values folded into the weights.

    `module` is or contains the encoder the masks are for; where it contains several that the masks fit, `part` says
    which (a submodule of `module`). `masks` are `Masks`, or tensors per layer as in `PrunableEncoder.masked`, not per
    sample. The copy is of the same class, with the same configuration; of a wrapper (`torch.compile(model)`,
    `nn.DataParallel`), a copy of the model in it.

    Raises ValueError if the masks do not fit, if they leave no head or neuron where one is needed (`docs/families.md`),
    as in a decoder that caches, or if `module` cannot be copied, and `UnsupportedArchitecture` for what cannot be
    pruned exactly (see `docs/limits.md`).
    """
    from lfpr.oddities import check_bare, copy_of

    encoder = _meant(module, masks, part)
    heads, neurons = _rows(masks, encoder)
    check_bare(encoder, heads, neurons)
    copied = _at(copy_of(encoder.module), encoder)
    _scale(copied, heads, neurons)
    _select(copied, [mask != 0 for mask in heads], [mask != 0 for mask in neurons])
    if hub := sys.modules.get("lfpr.hub"):  # it is there if models of transformers are
        hub.mark(_at(copied.module, encoder))
    return copied.module


def fold(encoder: PrunableEncoder, masks: Any) -> None:
    """Multiply mask values into the encoder's weights, in place: trained masks of a shrunk model disappear at no cost.

    `masks` as for `shrink`; nothing is removed, a zero leaves zero weights. Raises ValueError if the masks do not fit.
    """
    check_kind("encoder", encoder, PrunableEncoder)
    _scale(encoder, *_rows(masks, encoder))


@torch.inference_mode(False)
def resize(encoder: PrunableEncoder, heads: list[int], neurons: list[int]) -> None:
    """Give an encoder's attentions these numbers of heads, and its FFNs of neurons, in place, keeping the first ones:
    the shape that the weights of a saved pruned model are loaded into. Raises ValueError if one has fewer."""
    from lfpr.oddities import check_bare

    for name, wanted, found in (
        ("heads", heads, encoder.heads_per_layer),
        ("neurons", neurons, encoder.neurons_per_layer),
    ):
        check_kind(name, wanted, list)
        if len(wanted) != len(found) or not all(w in range(f + 1) for w, f in zip(wanted, found, strict=True)):
            raise ValueError(f"{name} per layer {wanted}: the model has {found}")
    kept = [
        [torch.arange(full, device="cpu") < k for full, k in zip(found, wanted, strict=True)]
        for found, wanted in ((encoder.heads_per_layer, heads), (encoder.neurons_per_layer, neurons))
    ]
    check_bare(encoder, *kept)
    _select(encoder, *kept)


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

    `forward(model, batch)` runs the model it is given and returns the tensor to compare. Gradient checkpointing,
    chunked FFNs and compiled code are off meanwhile. Raises `NotEquivalent` if a difference exceeds `atol`, finite and
    at least 0, or is NaN, or if shapes differ, and ValueError if there is nothing to compare, if `forward` gives no
    tensor, or if it does not run the model that it is given.
    """
    check_kind("pruned", pruned, nn.Module)
    check_batches("batches", batches)
    check_callable("forward", forward)
    atol = check_number("atol", atol, "at least 0", lambda value: value >= 0)
    encoder = _meant(module, masks, part)
    largest, compared, failure, run = 0.0, 0, None, set()
    with evaluating(module, pruned), observable(module, pruned), torch.no_grad(), ExitStack() as hooks:
        for side, watched in (("masked", [encoder.parts[0].attention_output]), ("shrunk", pruned.modules())):
            for one in watched:
                hooks.callback(one.register_forward_hook(partial(lambda side, *_: run.add(side), side)).remove)
        for number, batch in enumerate(batches):
            with encoder.masked(masks):
                expected = _output(forward, module, batch).clone()  # whose memory forward may use again
            found = _output(forward, pruned, batch)
            if expected.shape != found.shape:
                message = f"batch {number}: shapes {tuple(expected.shape)} (masked) and {tuple(found.shape)} (shrunk)"
                failure = NotEquivalent(message, float("inf"))
                break
            gap = (expected.double() - found.double()).abs().masked_fill(expected == found, 0)  # equal infinities too
            difference = gap.max().item() if gap.numel() else 0.0
            if not difference <= atol:  # also when it is NaN
                message = f"outputs of the shrunk and the masked model differ by {difference:.3g} > atol = {atol:.3g}"
                failure = NotEquivalent(f"batch {number}: {message}", difference)
                break
            largest, compared = max(largest, difference), compared + gap.numel()
    if not compared and failure is None:
        raise ValueError("batches: no output to compare")
    if len(run) < 2:
        ignored = {"masked", "shrunk"} - run
        raise ValueError(f"forward: it did not run the {' and the '.join(sorted(ignored))} model that it was given")
    if failure is not None:
        raise failure
    return largest


def _output(forward: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: Any) -> Tensor:
    found = forward(model, batch)
    if not isinstance(found, Tensor):
        raise ValueError(
            f"forward: expected a tensor to compare, found {type(found).__name__}: return one of its tensors, such as "
            "last_hidden_state or logits"
        )
    return found


def counterparts(
    module: nn.Module, pruned: nn.Module, part: nn.Module | None = None
) -> tuple[PrunableEncoder, PrunableEncoder]:
    """The encoder of `module` that is pruned, in `part` of it if there are several, and the one at its place in
    `pruned`. Raises ValueError if that has none there, or another number of layers, hidden size or head size."""
    encoder = prunable(module) if part is None else _of(module, part)
    found = _at(pruned, encoder)
    for name in ("num_layers", "hidden_size", "head_dim"):
        if getattr(found, name) != getattr(encoder, name):
            raise ValueError(f"{found!r} is not pruned from {encoder!r}: another {name}")
    return encoder, found


def _of(module: nn.Module, part: nn.Module) -> PrunableEncoder:
    """The encoder of a part, seen from the module."""
    inner, module = prunable(part), unwrapped(module)
    paths = {child: path for path, child in module.named_modules()}
    stacks = [(stack, paths.get(inner.module.get_submodule(stack.path))) for stack in inner.stacks]
    if any(path is None for _, path in stacks):
        raise ValueError(f"part: {type(part).__name__} is not a part of {type(module).__name__}")
    return PrunableEncoder(module, [stack._replace(path=path) for stack, path in stacks])


def _meant(module: nn.Module, masks: Any, part: nn.Module | None) -> PrunableEncoder:
    """The encoder in `module` that `masks` are for, seen from `module`."""
    if part is not None:
        check_kind("part", part, nn.Module)
        return _of(module, part)
    candidates = encoders(module)
    if len(candidates) > 1:
        reasons = [_misfit(masks, encoder) for encoder in candidates]
        fitting = [encoder for encoder, reason in zip(candidates, reasons, strict=True) if not reason]
        if len(fitting) != 1:
            paths = [encoder.path for encoder in candidates]
            raise UnsupportedArchitecture(
                f"{type(module).__name__} has the prunable encoders {paths}, "
                f"and the masks fit {len(fitting)} of them: say which with part= ({'; '.join(filter(None, reasons))})"
            )
        return fitting[0]
    encoder = candidates[0] if candidates else prunable(module)  # raises, naming what is there
    _rows(masks, encoder)
    return encoder


def _at(module: nn.Module, encoder: PrunableEncoder) -> PrunableEncoder:
    """The encoder at the same place in a copy of the module, pruned or not. Raises ValueError if it has none there."""
    module, stacks = unwrapped(module), []
    modules = dict(module.named_modules())
    for stack in encoder.stacks:
        found = modules.get(stack.path)
        if not isinstance(found, nn.ModuleList) or not len(found):
            raise ValueError(f"{type(module).__name__} has no prunable encoder {stack.path!r}, as {encoder!r}")
        stacks.append(Stack(stack.path, tuple(unwrapped(layer) for layer in found), stack.family))
    return PrunableEncoder(module, stacks)


def _rows(masks: Any, encoder: PrunableEncoder) -> tuple[list[Tensor], list[Tensor]]:
    encoder.require_weights()
    heads, neurons = encoder.rows(masks)
    if any(row.ndim != 1 for row in heads + neurons):
        raise ValueError("masks: per-sample masks cannot become weights")
    return heads, neurons


def _misfit(masks: Any, encoder: PrunableEncoder) -> str:
    """Why the masks cannot be this encoder's; empty if they can."""
    try:
        _rows(masks, encoder)
    except ValueError as error:
        return str(error)
    return ""


def _scale(encoder: PrunableEncoder, heads: list[Tensor], neurons: list[Tensor]) -> None:
    """Multiply the columns of the output projections, in at least float32."""
    for part, mask in zip([*encoder.attentions, *encoder.ffns], [*heads, *neurons], strict=True):
        weight = part.output.weight
        mask = mask.repeat_interleave(part.size).detach()
        with torch.inference_mode(weight.is_inference()), torch.no_grad():  # where alone such a weight may change
            weight.copy_(weight * mask.to(weight.device, torch.promote_types(weight.dtype, torch.float32)))


def _select(encoder: PrunableEncoder, heads: list[Tensor], neurons: list[Tensor]) -> None:
    """Keep the heads and neurons where the boolean masks are true."""
    for part, kept in zip([*encoder.attentions, *encoder.ffns], [*heads, *neurons], strict=True):
        setattr(part.module, f"full_{part.kind}", part.full)  # which not every model has a configuration to say
        if kept.all():
            continue
        for linear, rows, blocks in part.inputs:
            _keep(linear, rows=kept.repeat_interleave(rows).repeat(blocks))
        _keep(part.output, columns=kept.repeat_interleave(part.size))
    from lfpr.pruned_attention import adapt, admit_headless  # with what it says, read when a model is pruned

    for stack in encoder.stacks:
        for row in encoder.of_stack(stack)[0]:
            adapt(encoder.attentions[row], stack.family, heads[row])
        admit_headless([layer for layer in PrunableEncoder(encoder.module, [stack]).parts])


def _keep(linear: nn.Linear | Transposed, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    layer, flip = (linear.conv, 1) if isinstance(linear, Transposed) else (linear, 0)

    def subset(parameter: nn.Parameter, index: Tensor, dim: int) -> nn.Parameter:
        index = index.nonzero().flatten().to(parameter.device)
        return nn.Parameter(parameter.detach().index_select(dim, index), requires_grad=parameter.requires_grad)

    if rows is not None:
        layer.weight = subset(layer.weight, rows, flip)
        if layer.bias is not None:
            layer.bias = subset(layer.bias, rows, 0)
    if columns is not None:
        layer.weight = subset(layer.weight, columns, 1 - flip)
    if flip:
        layer.nx, layer.nf = layer.weight.shape
    else:
        layer.out_features, layer.in_features = layer.weight.shape
