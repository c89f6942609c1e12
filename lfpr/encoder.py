"""The prunable parts of a transformer, described once and found in any supported model.

`prunable(module)` finds the layers that a row of `lfpr.families` describes, and returns a `PrunableEncoder`, the one
view of a model that gradients, costs, search and shrinking work on: its attentions and FFNs (`Part`), in rows. Nothing
here changes the model: masks act through hooks on the *inputs of the output projections*, so no modified model code is
needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lfpr.checks import check_flag, check_kind
from lfpr.families import FAMILIES, Family, UnsupportedArchitecture
from lfpr.modes import observable


class Input(NamedTuple):
    """A Linear that heads or neurons have rows of: `rows` of each, in each of `blocks` equal blocks."""

    linear: nn.Linear
    rows: int = 1
    blocks: int = 1


class Part:
    """The heads of one attention, or the neurons of one FFN: what `inputs` compute and `output` projects back.

    kind: "heads" or "neurons"; path: of the layer; module: the attention, or the layer; size: columns of `output` that
    belong to each head (of a group, where several share a key) or neuron; full: how many there were unpruned.
    """

    def __init__(
        self,
        kind: str,
        path: str,
        module: nn.Module,
        layer: nn.Module,
        inputs: tuple[Input, ...],
        output: nn.Linear,
        size: int,
        full: int,
        cross: bool = False,
    ) -> None:
        self.kind, self.path, self.module, self.layer, self.cross = kind, path, module, layer, cross
        self.inputs, self.output, self.size, self.full = inputs, output, size, full
        self.count = output.in_features // size

    @property
    def shapes(self) -> tuple[int, ...]:
        """What all parts of one encoder must have in common."""
        inputs = (n for i in self.inputs for n in (i.linear.in_features, i.rows, i.blocks, i.linear.bias is None))
        return self.size, self.full, self.output.out_features, *inputs


class Transposed:
    """transformers' Conv1D, whose weight is that of a Linear transposed, as a Linear; what is done in place to its
    weight or bias is done to the layer's own."""

    def __init__(self, conv: nn.Module) -> None:
        self.conv = conv
        self.register_forward_hook, self.register_forward_pre_hook = (
            conv.register_forward_hook,
            conv.register_forward_pre_hook,
        )

    weight = property(lambda self: self.conv.weight.T)
    bias = property(lambda self: self.conv.bias)
    in_features = property(lambda self: self.conv.weight.shape[0])
    out_features = property(lambda self: self.conv.weight.shape[1])

    def __call__(self, x: Tensor) -> Tensor:
        return self.conv(x)


class LayerParts:
    """One transformer layer through its family's row: the parts `heads` (of self-attention), `cross` (of
    cross-attention, None without) and `neurons`, and all their Linear layers by path in `linears`."""

    def __init__(self, module: nn.Module, family: Family, path: str, config: Any = None) -> None:
        self.module, self.family, self.path, self.config = module, family, path, config
        self.linears: dict[str, nn.Module] = {}
        self.heads = self._heads("")
        here, there = family.cross
        cross = here and module._modules.get(there.split(".")[0]) is not None
        if cross and "." in there:  # in a list of sub-layers, of which the last one is the FFN
            cross = len(module._modules[there.split(".")[0]]) > 2
        self.cross = self._heads(there) if cross else None
        if self.cross and self.cross.shapes != self.heads.shapes:  # such as keys of another model's width
            self.cross = None
        inputs, output = self._inputs(family.ffn_in), self._linear(family.ffn_out)
        full = self._number(self.attention, family.full_neurons, getattr(module, "full_neurons", output.in_features))
        self.neurons = Part("neurons", path, module, module, inputs, output, 1, full)
        if any(i.linear.out_features != i.rows * i.blocks * output.in_features for i in inputs):
            raise UnsupportedArchitecture(f"{path}: FFN layers of different widths")
        self.query, self.key, self.value = (self._linear(name) for name in (family.query, family.key, family.value))
        self.attention_output, self.ffn_out, self.ffn_in = self.heads.output, output, tuple(i.linear for i in inputs)
        self.head_dim, self.num_heads, self.num_neurons = self.heads.size, self.heads.count, self.neurons.count

    @property
    def attention(self) -> nn.Module:
        """The module of self-attention."""
        return self.heads.module

    def projection(self, part: str) -> tuple[nn.Linear, int]:
        """The output projection of "heads" or "neurons", and how many of its columns belong to each."""
        part = self.heads if part == "heads" else self.neurons
        return part.output, part.size

    def _heads(self, cross: str) -> Part:
        family, path = self.family, self.path

        def at(name: str) -> str:
            return cross + name.removeprefix(family.cross[0]) if cross else name

        attention, _ = self._find(at(family.attention))
        dim: int = self._attribute(attention, family.head_dim)
        group = getattr(attention, "num_key_value_groups", 1)  # heads that share a key and a value are one part
        names = [at(name) for name in (family.query, family.key, family.value)]
        inputs, output = list(self._inputs(tuple(names), dim)), self._linear(at(family.attention_output))
        if len(inputs) == 3:
            inputs[0] = inputs[0]._replace(rows=dim * group)
        else:
            group = 1
        for name in family.positions:
            if attention._modules.get(name) is not None:
                inputs.append(Input(self._linear(f"{at(family.attention)}.{name}"), dim))
        context = output.in_features
        if context % (dim * group) or any(
            i.linear.out_features != context // (dim * group) * i.rows * i.blocks for i in inputs
        ):
            raise UnsupportedArchitecture(
                f"{path}: query, key and value must give heads · {dim} = {context} features, they give "
                f"{[i.linear.out_features for i in inputs]}"
            )
        full = getattr(attention, "full_heads", context // (dim * group))
        full = self._number(attention, family.full_heads, full)
        return Part("heads", path, attention, self.module, tuple(inputs), output, dim * group, full, bool(cross))

    def _number(self, attention: nn.Module, names: str | tuple[str, ...], found: int) -> int:
        """A size by the first of these names that the configuration has a number for; else as `found`, or was noted
        when the layer was pruned."""
        config = getattr(attention, "config", self.config)
        for name in (names,) if isinstance(names, str) else names:
            factor, _, name = name.rpartition(" * ")
            value = getattr(config, name, None)
            if name == "mlp_ratio" and value is not None:
                value = int(config.hidden_size * value)
            if isinstance(value, int):
                return value * int(factor or 1)
        return found

    def _inputs(self, names: tuple[str, ...], rows: int = 1) -> tuple[Input, ...]:
        return tuple(Input(self._linear(name), rows, names.count(name)) for name in dict.fromkeys(names))

    def _linear(self, name: str) -> nn.Linear:
        from lfpr.oddities import check_linear, is_conv1d  # with what they say, read when a model is looked at

        found, name = self._find(name)
        path = f"{self.path}.{name}".lstrip(".")
        check_linear(path, found)
        self.linears[path] = found
        return Transposed(found) if is_conv1d(found) else found

    def _find(self, name: str) -> tuple[Any, str]:
        here, path = self.module, []
        for part in name.split("."):
            children = here._modules
            part = [*children][-1] if part == "-1" and children else part
            if children.get(part) is None:
                raise UnsupportedArchitecture(
                    f"{self.path} ({type(self.module).__name__}) has no {name!r}: {type(here).__name__} has "
                    f"the children {sorted(children)}"
                )
            here = children[part]
            path.append(part)
        return here, ".".join(path)

    def _attribute(self, owner: Any, name: str) -> Any:
        if not hasattr(owner, name):
            raise UnsupportedArchitecture(f"{self.path}: {type(owner).__name__} has no attribute {name!r}")
        return getattr(owner, name)


class Stack(NamedTuple):
    """A list of layers at a path of a module, and the family that they are of."""

    path: str
    layers: tuple[nn.Module, ...]
    family: Family


class PrunableEncoder:
    """The layers of a transformer whose heads and FFN neurons can be masked, scored and removed.

    They are in one or more `stacks`: an encoder and its decoder are one `PrunableEncoder`. Masks have a row for each of
    `attentions`, A in all (self-attention of every layer, then cross-attention of those that have it), and for each of
    `ffns`, F in all; L of each, where there is no cross-attention. `num_heads` and `num_neurons` are the unpruned sizes
    of a row, from the model's configuration; what a possibly already shrunk one still has is in `heads_per_layer` [A]
    and `neurons_per_layer` [F]. `layers` are the model's own modules, `parts` the same ones through their family's row;
    `layer_rows` says of each which rows its self-attention, its cross-attention (or None) and its FFN are.
    Raises `UnsupportedArchitecture` naming the first layer that is not as the row says, or that shares prunable weights
    with another module.
    """

    def __init__(self, module: nn.Module, stacks: Sequence[Stack]) -> None:
        from lfpr.oddities import check_own

        self.module, self.stacks = module, tuple(stacks)
        self.layers = [layer for stack in stacks for layer in stack.layers]
        self.parts = [
            LayerParts(layer, stack.family, f"{stack.path}.{i}".lstrip("."), _config(module, stack.path))
            for stack in stacks
            for i, layer in enumerate(stack.layers)
        ]
        self.num_layers = len(self.layers)
        self.attentions = [layer.heads for layer in self.parts] + [layer.cross for layer in self.parts if layer.cross]
        self.ffns = [layer.neurons for layer in self.parts]
        crossed = count(self.num_layers)
        self.layer_rows = [(i, next(crossed) if layer.cross else None, i) for i, layer in enumerate(self.parts)]
        first = self.parts[0]
        self.num_heads, self.num_neurons, self.head_dim = first.heads.full, first.neurons.full, first.heads.size
        self.hidden_size = first.heads.output.out_features
        self.heads_per_layer = [part.count for part in self.attentions]
        self.neurons_per_layer = [part.count for part in self.ffns]
        for rows in (self.attentions, self.ffns):
            for part in rows:
                if part.shapes != rows[0].shapes:
                    raise UnsupportedArchitecture(f"{part.path} has another head size or width than {rows[0].path}")
        check_own(self)

    def __repr__(self) -> str:
        layers = f"{self.num_layers} layers"
        if len(self.attentions) > self.num_layers:
            layers += f", {len(self.attentions)} attentions"
        return (
            f"PrunableEncoder({self.path or 'layers'} of {type(self.module).__name__}: {layers}, "
            f"{self.num_heads} heads of {self.head_dim}, {self.num_neurons} neurons, hidden size {self.hidden_size})"
        )

    @property
    def path(self) -> str:
        """Of the list of layers, inside `module`; of several, joined by commas."""
        return ", ".join(stack.path for stack in self.stacks)

    @property
    def passes(self) -> int:
        """How often each layer runs in one pass of the model: 1, but where layers are shared (ALBERT)."""
        first = self.parts[0]
        config = getattr(first.attention, "config", first.config)
        times = getattr(config, first.family.passes, 1) if first.family.passes else 1
        return max(1, times // len(self.stacks))

    @property
    def part(self) -> nn.Module:
        """The smallest submodule of `module` that holds all layers."""
        paths = [stack.path.split(".") for stack in self.stacks]
        common = next((i for i, names in enumerate(zip(*paths, strict=False)) if len(set(names)) > 1), len(paths[0]))
        return self.module.get_submodule(".".join(paths[0][:common]))

    @property
    def depth(self) -> int:
        """Layers of the longest stack."""
        return max(len(stack.layers) for stack in self.stacks)

    def last(self, count: int) -> list[nn.Module]:
        """The last `count` layers of each stack: of an encoder–decoder, of both sides. Raises ValueError naming
        `last_layers` for more than there are."""
        if count > self.depth:
            raise ValueError(f"last_layers = {count}: the encoder has only {self.depth} layers")
        return [layer for stack in self.stacks for layer in stack.layers[max(0, len(stack.layers) - count) :]]

    def of_stack(self, stack: Stack) -> tuple[list[int], list[int]]:
        """The rows of a stack's attentions, and of its FFNs."""
        inside = {*stack.layers}
        return tuple(
            [i for i, part in enumerate(rows) if part.layer in inside] for rows in (self.attentions, self.ffns)
        )

    @property
    def device(self) -> torch.device:
        """Where the weights of the first layer are."""
        return self.parts[0].attention_output.weight.device

    @property
    def num_parameters(self) -> int:
        """Parameters of all layers as they are now, biases and normalisation included."""
        return sum(p.numel() for layer in self.layers for p in layer.parameters())

    def require_weights(self) -> None:
        """`UnsupportedArchitecture` if weights of the layers are on the meta device: such a model has but sizes."""
        from lfpr.oddities import check_loaded

        check_loaded(self)

    def require_uniform(self) -> tuple[int, int]:
        """Heads and neurons of every layer; ValueError if the layers differ, that is, were already shrunk."""
        if len(set(self.heads_per_layer)) > 1 or len(set(self.neurons_per_layer)) > 1:
            raise ValueError(
                f"{self!r} is already shrunk: heads per layer {self.heads_per_layer}, neurons per layer "
                f"{self.neurons_per_layer}. Give masks of these lengths as lists, or prune the unpruned model"
            )
        return self.heads_per_layer[0], self.neurons_per_layer[0]

    def rows(self, masks: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of heads and of neurons for each layer, checked; see `masked`."""
        parts = {"heads": self.heads_per_layer, "neurons": self.neurons_per_layer}
        if not all(hasattr(masks, name) for name in parts):
            raise ValueError(f"masks: expected Masks, or heads and neurons per layer, found {type(masks).__name__}")
        found = {name: mask_rows(name, getattr(masks, name), widths) for name, widths in parts.items()}
        for name, rows in found.items():
            bad = [i for i, row in enumerate(rows) if not row.isfinite().all()]
            if bad:
                raise ValueError(f"masks.{name}: NaN or infinite values in layers {bad}")
        return found["heads"], found["neurons"]

    @contextmanager
    def masked(self, masks: Any) -> Iterator[None]:
        """While active, every forward pass is multiplied by `masks`; the hooks are removed on exit, also on error.

        `masks.heads[a]` [H_a] scales the context of each head of attention a, `masks.neurons[f]` [N_f] the activation
        of each neuron of FFN f: `Masks`, or anything with two tensors [A, H] and [F, N], lists of tensors (widths may
        differ), or per-sample tensors [B, A, H] (lists of [B, H]), B being the batch of the masked calls.
        Gradients flow to the masks. Gradient checkpointing, chunked FFNs and compiled code are off meanwhile. Raises
        ValueError if masks are not of this encoder's shapes or not finite.
        """
        heads, neurons = (
            [row if row.requires_grad else row.to(self.device) for row in rows]  # once, not in each call
            for rows in self.rows(masks)
        )
        with self.hooked(lambda layer, x: heads[layer], lambda layer, x: neurons[layer]):
            yield

    @contextmanager
    def hooked(
        self, heads: Callable[[int, Tensor], Tensor], neurons: Callable[[int, Tensor], Tensor]
    ) -> Iterator[None]:
        """As `masked`, with masks that are made at each call: `heads(layer, x)` and `neurons(layer, x)` get the input x
        [B, S, ...] of the layer's output projection, and give [width] or [B, width]. Raises `UnsupportedArchitecture`
        if the weights are not loaded."""
        self.require_weights()
        with observable(self.module), ExitStack() as hooks:
            for rows, mask in ((self.attentions, heads), (self.ffns, neurons)):
                for index, part in enumerate(rows):
                    hooks.callback(part.output.register_forward_pre_hook(_scaling(index, mask, part.size)).remove)
            yield


def prunable(module: nn.Module) -> PrunableEncoder:
    """The prunable encoder that `module` is or contains.

    A module with a `prunable_path` attribute says itself where its encoder is. Raises `UnsupportedArchitecture` naming
    what was found if there is no supported encoder, or more than one (then pass the part that is meant), and for layers
    that cannot be pruned exactly: `docs/limits.md` lists them. ValueError if `module` is none.
    """
    candidates = encoders(module)
    if len(candidates) != 1:
        from lfpr.oddities import not_one

        raise not_one(unwrapped(module), [encoder.path for encoder in candidates])
    return candidates[0]


def encoders(module: nn.Module, declared: bool = True) -> list[PrunableEncoder]:
    """All prunable encoders in `module`; if `declared` and it has a `prunable_path`, the one there alone. They are
    encoders of the model inside, if `module` is a wrapper (see `unwrapped`).

    Empty if there is none. Raises `UnsupportedArchitecture` naming a layer that is not as its family's row says, and
    ValueError if `module` is none.
    """
    module = unwrapped(module)
    prefix = getattr(module, "prunable_path", "") if check_flag("declared", declared) else ""
    try:
        root = module.get_submodule(prefix)
    except AttributeError as error:
        raise UnsupportedArchitecture(f"{type(module).__name__}.prunable_path = {prefix!r}: no such part") from error
    stacks = []
    for path, child in root.named_modules():
        path = ".".join(filter(None, (prefix, path)))
        if isinstance(child, nn.ModuleList):
            layers = tuple(unwrapped(layer) for layer in child)
            if family := _family(path, layers):
                stacks.append(Stack(path, layers, family))
    return [PrunableEncoder(module, group) for group in _together(module, stacks)]


def _together(module: nn.Module, stacks: list[Stack]) -> list[list[Stack]]:
    """Stacks in groups that are pruned as one: those of an encoder–decoder, and of one list of groups (ALBERT)."""
    groups: dict[Any, list[Stack]] = {}
    for stack in stacks:
        names = stack.path.split(".")
        above = (".".join(names[:i]) for i in range(len(names)))
        whole = next((p for p in above if _is_encoder_decoder(module.get_submodule(p))), None)
        groups.setdefault(re.sub(r"\d+", "*", stack.path) if whole is None else (whole,), []).append(stack)
    found = []
    for group in groups.values():
        try:
            shapes = [
                (part.heads.shapes, part.neurons.shapes)
                for stack in group
                for part in (LayerParts(stack.layers[0], stack.family, stack.path + ".0"),)
            ]
        except UnsupportedArchitecture:  # which its own encoder will say
            shapes = [*range(len(group))]
        found += [group] if len(set(shapes)) == 1 else [[stack] for stack in group]
    return found


def _is_encoder_decoder(module: nn.Module) -> bool:
    return bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))


def unwrapped(module: nn.Module) -> nn.Module:
    """The model inside `nn.DataParallel`, `DistributedDataParallel` and what `torch.compile(model)` gives; any other
    as it is. ValueError for what is no module."""
    check_kind("module", module, nn.Module)
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif "_orig_mod" in module._modules:
            module = module._orig_mod
        else:
            return module


def _family(path: str, layers: Sequence[nn.Module]) -> Family | None:
    """That of all layers; None if there is none that has one."""
    families = [family_of(layer) for layer in layers]
    known = next(filter(None, families), None)
    if known and families.count(known) < len(layers):
        from lfpr.oddities import odd_one

        raise odd_one(path, layers, [family == known for family in families])
    return known


def family_of(layer: nn.Module) -> Family | None:
    """The row for a layer's class or one that it is derived from, or else for a layer of its structure."""
    from lfpr.oddities import by_structure

    named = (FAMILIES[c.__name__] for c in type(layer).__mro__ if c.__name__ in FAMILIES)
    return next(named, None) or by_structure(layer)


def _config(module: nn.Module, path: str) -> Any:
    """The configuration of the innermost module above a path that has one."""
    names = path.split(".")
    above = (module.get_submodule(".".join(names[:i])) for i in range(len(names) - 1, -1, -1))
    return next((m.config for m in above if hasattr(m, "config")), None)


def mask_rows(name: str, masks: Any, widths: list[int]) -> list[Tensor]:
    """The masks of each layer, [width] or [B, width]; checked against the layers' widths. Whole numbers and booleans
    become float32. Raises ValueError for other shapes and kinds."""
    rows = masks.unbind(-2) if isinstance(masks, Tensor) and masks.ndim in (2, 3) else masks
    rows = list(rows) if isinstance(rows, Iterable) else [None]
    if not all(isinstance(row, Tensor) and not row.is_complex() for row in rows):
        raise ValueError(f"masks.{name}: expected a tensor, or a list of one per layer, found {type(masks).__name__}")
    if [row.shape[-1] if row.ndim in (1, 2) else -1 for row in rows] != widths:
        raise ValueError(f"masks.{name}: shapes {[tuple(row.shape) for row in rows]}, expected lengths {widths}")
    return [row if row.is_floating_point() else row.float() for row in rows]


def _scaling(layer: int, mask: Callable[[int, Tensor], Tensor], size: int) -> Callable:
    """A forward pre-hook that multiplies its Linear's input, `size` features per mask entry."""

    def scale(linear: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]  # (B, S, entries·size)
        m = mask(layer, x).to(x.device, x.dtype)
        if m.ndim == x.ndim == 2 and len(m) and not len(x) % len(m):  # an FFN of all tokens in one row (OPT)
            m = m.repeat_interleave(len(x) // len(m), 0)
        if m.ndim == 2:
            if len(m) != len(x):
                raise ValueError(f"per-sample masks for {len(m)} samples, but the model was called with {len(x)}")
            m = m.view(len(m), *[1] * (x.ndim - 2), m.shape[-1])
        return (x * (m.repeat_interleave(size, -1) if size > 1 else m), *args[1:])

    scale.masking = True  # no copy of a model takes it along (`oddities.copy_of`)
    return scale
