"""The prunable parts of a transformer, described once and found in any supported model.

`prunable(module)` finds the layers that a row of `lfpr.families.FAMILIES` describes, and returns a `PrunableEncoder`,
the one view of a model that gradients, costs, search and shrinking work on. Nothing here changes the model: masks act
through hooks on the *inputs of the two output projections*, so no modified model code is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lfpr.families import FAMILIES, NOT_CARRIED, Family, UnsupportedArchitecture


class LayerParts:
    """One transformer layer through its family's row: `query`, `key`, `value`, `attention_output`, `ffn_out` (Linear),
    `ffn_in` (tuple of Linear) and `attention`."""

    def __init__(self, module: nn.Module, family: Family, path: str) -> None:
        self.module, self.family, self.path = module, family, path
        self.attention = self._find(family.attention)
        self.query, self.key, self.value, self.attention_output, self.ffn_out = (
            self._find(name, nn.Linear)
            for name in (family.query, family.key, family.value, family.attention_output, family.ffn_out)
        )
        self.ffn_in = tuple(self._find(name, nn.Linear) for name in family.ffn_in)
        self.head_dim: int = self._attribute(self.attention, family.head_dim)
        self.full_heads: int = self._attribute(self._attribute(self.attention, "config"), family.full_heads)
        self.full_neurons: int = self._attribute(self.attention.config, family.full_neurons)
        context = self.attention_output.in_features
        if any(linear.out_features != context for linear in (self.query, self.key, self.value)) or (
            context % self.head_dim
        ):
            raise UnsupportedArchitecture(
                f"{path}: query, key and value must give heads · {self.head_dim} = {context} features, they give "
                f"{[linear.out_features for linear in (self.query, self.key, self.value)]} "
                "(grouped key/value heads are not supported)"
            )
        self.num_heads = context // self.head_dim
        self.num_neurons = self.ffn_out.in_features
        if any(linear.out_features != self.num_neurons for linear in self.ffn_in):
            raise UnsupportedArchitecture(f"{path}: FFN layers of different widths")

    def _find(self, name: str, kind: type[nn.Module] = nn.Module) -> Any:
        here = self.module
        for part in name.split("."):
            children = dict(here.named_children())
            if part not in children:
                raise UnsupportedArchitecture(
                    f"{self.path} ({type(self.module).__name__}) has no {name!r}: {type(here).__name__} has "
                    f"the children {sorted(children)}"
                )
            here = children[part]
        if not isinstance(here, kind):
            raise UnsupportedArchitecture(f"{self.path}.{name}: expected {kind.__name__}, found {type(here).__name__}")
        return here

    def _attribute(self, owner: Any, name: str) -> Any:
        if not hasattr(owner, name):
            raise UnsupportedArchitecture(f"{self.path}: {type(owner).__name__} has no attribute {name!r}")
        return getattr(owner, name)


class PrunableEncoder:
    """The layers of a transformer whose heads and FFN neurons can be masked, scored and removed.

    `num_heads` and `num_neurons` are the unpruned sizes of a layer, from the model's configuration; what a possibly
    already shrunk layer still has is in `heads_per_layer` and `neurons_per_layer`. `layers` are the model's own
    modules, `parts` the same ones through their family's row. Raises `UnsupportedArchitecture` naming the first layer
    that is not as the row says.
    """

    def __init__(self, module: nn.Module, path: str, layers: Sequence[nn.Module], family: Family) -> None:
        self.module = module
        self.path = path  # of the list of layers, inside `module`
        self.layers = list(layers)
        self.parts = [LayerParts(layer, family, f"{path}.{i}".lstrip(".")) for i, layer in enumerate(layers)]
        first = self.parts[0]
        self.num_layers = len(self.layers)
        self.num_heads, self.num_neurons, self.head_dim = first.full_heads, first.full_neurons, first.head_dim
        self.hidden_size = first.attention_output.out_features
        self.heads_per_layer = [layer.num_heads for layer in self.parts]
        self.neurons_per_layer = [layer.num_neurons for layer in self.parts]
        for layer in self.parts:
            if (layer.head_dim, layer.full_heads, layer.full_neurons) != (
                self.head_dim,
                self.num_heads,
                self.num_neurons,
            ):
                raise UnsupportedArchitecture(f"{layer.path} has another head size or width than {first.path}")

    def __repr__(self) -> str:
        return (
            f"PrunableEncoder({self.path or 'layers'} of {type(self.module).__name__}: {self.num_layers} layers, "
            f"{self.num_heads} heads of {self.head_dim}, {self.num_neurons} neurons, hidden size {self.hidden_size})"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights of the first layer are."""
        return self.parts[0].attention_output.weight.device

    @property
    def num_parameters(self) -> int:
        """Parameters of all layers as they are now, biases and normalisation included."""
        return sum(p.numel() for layer in self.layers for p in layer.parameters())

    def require_uniform(self) -> tuple[int, int]:
        """Heads and neurons of every layer; ValueError if the layers differ, that is, were already shrunk."""
        if len(set(self.heads_per_layer)) > 1 or len(set(self.neurons_per_layer)) > 1:
            raise ValueError(
                f"{self!r} is already shrunk: heads per layer {self.heads_per_layer}, neurons per layer "
                f"{self.neurons_per_layer}. Give masks of these lengths as lists, or prune the unpruned model"
            )
        return self.heads_per_layer[0], self.neurons_per_layer[0]

    @contextmanager
    def masked(self, masks: Any) -> Iterator[None]:
        """While active, every forward pass is multiplied by `masks`; the hooks are removed on exit, also on error.

        `masks.heads[l]` [H_l] scales the context of each head of layer l, `masks.neurons[l]` [N_l] the activation of
        each FFN neuron: `Masks`, or anything with two tensors [L, H] and [L, N], lists of tensors (widths may differ
        between layers), or per-sample tensors [B, L, H] (lists of [B, H]), B being the batch of the masked calls.
        Gradients flow to the masks. Raises ValueError if the shapes are not this encoder's.
        """
        heads, neurons = (
            [row if row.requires_grad else row.to(self.device) for row in rows]  # once, not in each call
            for rows in (
                mask_rows("heads", masks.heads, self.heads_per_layer),
                mask_rows("neurons", masks.neurons, self.neurons_per_layer),
            )
        )
        with self.hooked(lambda layer, x: heads[layer], lambda layer, x: neurons[layer]):
            yield

    @contextmanager
    def hooked(
        self, heads: Callable[[int, Tensor], Tensor], neurons: Callable[[int, Tensor], Tensor]
    ) -> Iterator[None]:
        """As `masked`, with masks that are made at each call: `heads(layer, x)` and `neurons(layer, x)` get the input x
        [B, S, ...] of the layer's output projection, and give [width] or [B, width]."""
        handles = []
        try:
            for index, layer in enumerate(self.parts):
                for linear, mask, size in (
                    (layer.attention_output, heads, self.head_dim),
                    (layer.ffn_out, neurons, 1),
                ):
                    handles.append(linear.register_forward_pre_hook(_scaling(index, mask, size)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def prunable(module: nn.Module) -> PrunableEncoder:
    """The prunable encoder that `module` is or contains.

    A module with a `prunable_path` attribute says itself where its encoder is. Raises `UnsupportedArchitecture` naming
    what was found if there is no supported encoder, or more than one (then pass the part that is meant).
    """
    candidates = encoders(module)
    if len(candidates) == 1:
        return candidates[0]
    name = type(module).__name__
    if candidates:
        paths = [encoder.path.rpartition(".")[0] or encoder.path for encoder in candidates]
        raise UnsupportedArchitecture(f"{name} has {len(candidates)} prunable encoders: pass one of its parts {paths}")
    lists = {
        path: type(child[0]).__name__
        for path, child in module.named_modules()
        if isinstance(child, nn.ModuleList) and len(child)
    }
    layers = sorted(f"{path}: {kind}" for path, kind in lists.items())
    reasons = "".join(
        f" {kind} cannot be pruned: {why}." for kind, why in NOT_CARRIED.items() if kind in lists.values()
    )
    raise UnsupportedArchitecture(
        f"{name} has no prunable encoder.{reasons} Layers found: {layers or 'none'}; supported: {sorted(FAMILIES)}"
    )


def encoders(module: nn.Module, declared: bool = True) -> list[PrunableEncoder]:
    """All prunable encoders in `module`; if `declared` and it has a `prunable_path`, the one there alone.

    Empty if there is none. Raises `UnsupportedArchitecture` naming a layer that is not as its family's row says.
    """
    prefix = getattr(module, "prunable_path", "") if declared else ""
    root = module.get_submodule(prefix) if prefix else module
    result = []
    for path, child in root.named_modules():
        if isinstance(child, nn.ModuleList) and len(child) and (family := _family(child)):
            result.append(PrunableEncoder(module, ".".join(filter(None, (prefix, path))), child, family))
    return result


def _family(layers: nn.ModuleList) -> Family | None:
    kinds = {type(layer) for layer in layers}
    if len(kinds) > 1:
        return None
    return next((FAMILIES[c.__name__] for c in kinds.pop().__mro__ if c.__name__ in FAMILIES), None)


def mask_rows(name: str, masks: Any, widths: list[int]) -> list[Tensor]:
    """The masks of each layer, [width] or [B, width]; checked against the layers' widths."""
    rows = list(masks.unbind(-2)) if isinstance(masks, Tensor) and masks.ndim in (2, 3) else list(masks)
    if [row.shape[-1] if row.ndim in (1, 2) else -1 for row in rows] != widths:
        raise ValueError(f"masks.{name}: shapes {[tuple(row.shape) for row in rows]}, expected lengths {widths}")
    return rows


def _scaling(layer: int, mask: Callable[[int, Tensor], Tensor], size: int) -> Callable:
    """A forward pre-hook that multiplies its Linear's input, `size` features per mask entry."""

    def scale(linear: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]  # (B, S, entries·size)
        m = mask(layer, x).to(x.device, x.dtype)
        if m.ndim == 2:
            if len(m) != len(x):
                raise ValueError(f"per-sample masks for {len(m)} samples, but the model was called with {len(x)}")
            m = m.view(len(m), *[1] * (x.ndim - 2), m.shape[-1])
        return (x * (m.repeat_interleave(size, -1) if size > 1 else m), *args[1:])

    return scale
