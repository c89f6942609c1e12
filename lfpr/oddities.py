"""Models whose layers are not what their classes say: which cannot be pruned, why, and the way out.

Read when a model is looked at, and by the pruned layers that need a word to run (`admit_headless`).
"""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import FunctionType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lfpr.families import FAMILIES, LAYOUTS, NOT_CARRIED, Family, UnsupportedArchitecture

if TYPE_CHECKING:
    from lfpr.encoder import PrunableEncoder

CONV1D = "transformers.pytorch_utils.Conv1D"  # a Linear whose weight is transposed
LINEARS = {nn.Linear, NonDynamicallyQuantizableLinear}  # classes that compute x Wᵀ + b and nothing else
WEIGHTS = {nn.Parameter}
COUNTS = {"num_heads", "num_attention_heads", "n_heads", "n_head", "num_key_value_heads"}  # names of numbers of heads,
COUNTS |= {"embed_dim", "inner_dim", "hidden_size", "hidden_dim", "all_head_size", "head_size", "d_model", "split_size"}
MASKING = "masking"  # an attribute of hooks that multiply by masks


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, a Linear whose weight is transposed (GPT-2)."""
    return f"{type(module).__module__}.{type(module).__qualname__}" == CONV1D


def check_linear(path: str, linear: nn.Module) -> None:
    """Raises `UnsupportedArchitecture` unless `linear` is a plain `torch.nn.Linear` with weights of its own, or
    transformers' Conv1D."""
    kind = f"{type(linear).__module__}.{type(linear).__qualname__}"
    reparametrised = "parametrizations" in linear._modules
    if type(linear) not in LINEARS and not reparametrised and kind != CONV1D:
        raise UnsupportedArchitecture(
            f"{path} is of class {kind}, and only of a plain torch.nn.Linear can rows and columns be removed. Merge "
            "adapters (peft: model.merge_and_unload()), prune before quantising, and put a torch.nn.Linear in the "
            "place of any other class"
        )
    if reparametrised or linear._parameters.keys() != {"weight", "bias"} or linear._modules:
        others = [name for name, _ in (*linear.named_parameters(), *linear.named_buffers())]
        raise UnsupportedArchitecture(
            f"{path}: its weight is computed from others in each call, it has {others}. Make that permanent first, by "
            "torch.nn.utils.prune.remove, torch.nn.utils.parametrize.remove_parametrizations or "
            "torch.nn.utils.remove_weight_norm"
        )
    if "forward" in vars(linear):
        raise UnsupportedArchitecture(
            f"{path}: its forward was replaced, as by accelerate, which loads offloaded weights from CPU, disk or meta "
            "device for each call. Load the whole model, or accelerate.hooks.remove_hook_from_submodules(model)"
        )
    sizes = (linear.nx, linear.nf) if kind == CONV1D else (linear.out_features, linear.in_features)
    for name, shape in (("weight", sizes), ("bias", sizes[kind == CONV1D :][:1])):
        value = getattr(linear, name)
        if value is None and name == "bias":
            continue
        if type(value) not in WEIGHTS or not value.is_floating_point() or value.shape != shape:
            raise UnsupportedArchitecture(
                f"{path}.{name}: found a {type(value).__name__} {tuple(value.shape)} of {value.dtype}, expected a "
                f"plain parameter {shape} of floating-point numbers: prune before quantising, packing or sharding"
            )


def check_own(encoder: PrunableEncoder) -> None:
    """Raises `UnsupportedArchitecture` if a prunable Linear or its weight is used in more than one place of
    `encoder.module`: the other one would be pruned with it, and both scaled twice."""
    places: defaultdict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
    for path, module in encoder.module.named_modules():
        for name, value in (*module._modules.items(), *module._parameters.items()):
            places[_identity(value)].append((f"{path}.{name}".lstrip("."), module))
    seen: dict[nn.Module, str] = {}
    for part in encoder.parts:
        inside = set(part.module.modules())  # where a layer calls its own Linear may have two names
        for path, linear in part.linears.items():
            others = [name for name, holder in places[id(linear)] if holder not in inside]
            for value in filter(lambda value: value is not None, linear._parameters.values()):
                others += [name for name, holder in places[_identity(value)] if holder is not linear]
            if seen.setdefault(linear, path) != path:
                others.append(seen[linear])
            if others:
                raise UnsupportedArchitecture(
                    f"{path} shares its weights with {others[0]}, which would be pruned with it. Give each weights of "
                    "its own (copy.deepcopy of the module, or a new nn.Parameter with a clone) first"
                )


def _identity(value: Any) -> int:
    """The same number for what is the same module, or the same memory under two parameters."""
    return (value.data_ptr() if type(value) is nn.Parameter else 0) or id(value)


def check_loaded(encoder: PrunableEncoder) -> None:
    """Raises `UnsupportedArchitecture` naming a parameter of a layer that has a shape alone, and ValueError for a
    Linear that was replaced since the encoder was found."""
    for part in encoder.parts:
        for path, linear in part.linears.items():
            if part.module.get_submodule(path.removeprefix(part.path).lstrip(".")) is not linear:
                raise ValueError(f"encoder: {path} was replaced since: call lfpr.prunable(model) again")
        for name, value in part.module.named_parameters():
            if type(value) is nn.Parameter and value.is_meta:
                raise UnsupportedArchitecture(
                    f"{part.path}.{name} has no values, it is on the meta device. Load the weights first, on a device "
                    "of their own and without offloading them"
                )


def check_bare(encoder: PrunableEncoder, heads: Sequence[Tensor], neurons: Sequence[Tensor]) -> None:
    """Raises ValueError for masks that take all heads or neurons of a layer that does not run without, or all heads of
    a decoder, whose cache counts tokens by their keys."""
    for stack in encoder.stacks:
        rows, ffns = encoder.of_stack(stack)
        bare = [encoder.attentions[i].path for i in rows if not heads[i].any()]
        empty = [encoder.ffns[i].path for i in ffns if not neurons[i].any()]
        for name, paths, runs in (("head", bare, stack.family.headless), ("neuron", empty, stack.family.neuronless)):
            if paths and not runs:
                raise ValueError(
                    f"masks.{name}s: {paths[0]} keeps no {name}, and {type(stack.layers[0]).__name__} does not run "
                    f"without: keep at least one in each layer, as by min_{name}s=1 of the search"
                )
        own = [encoder.attentions[i] for i in rows if not encoder.attentions[i].cross]
        config, first = getattr(own[0].module, "config", None), own[0].module
        if not getattr(config, "use_cache", False) or getattr(first, "layer_idx", None) is None:
            continue
        if not (getattr(config, "is_decoder", False) or getattr(first, "is_causal", False)):
            continue
        if not any(heads[i].any() for i in rows if not encoder.attentions[i].cross):
            raise ValueError(
                "masks.heads: no layer keeps a head, and the cache of a decoder takes its length from one that does. "
                "Keep at least one, as by min_heads=1 of the search, or set config.use_cache = False"
            )
        if bare and len(set(getattr(config, "layer_types", None) or [0])) > 1:
            raise ValueError(
                f"masks.heads: {bare[0]} keeps no head, and the cache of {type(config).__name__} has slots of several "
                "kinds, by layer: keep at least one in each layer, as by min_heads=1 of the search, or set "
                "config.use_cache = False"
            )


def check_one_stack(encoder: PrunableEncoder, method: str) -> None:
    """Raises `UnsupportedArchitecture` for an encoder of several stacks of layers, or with cross-attention."""
    if len(encoder.stacks) > 1 or len(encoder.attentions) > encoder.num_layers:
        raise UnsupportedArchitecture(
            f"{method}: takes one stack of layers, each of an attention and an FFN, not {encoder!r}: give it a part, "
            "such as model.encoder"
        )


def copy_of(module: nn.Module) -> nn.Module:
    """A deep copy, without masks that act meanwhile. Raises ValueError naming what cannot be copied, such as a tensor
    that still has its graph, or a function in the place of a module's forward, which would run the original."""
    for path, child in module.named_modules():
        if isinstance(vars(child).get("forward"), FunctionType) and "_orig_mod" not in child._modules:
            raise ValueError(
                f"{path or type(module).__name__}: its forward was replaced by a function, which a copy would share, "
                "and which would run the original. Restore it (del module.forward), or define a class of its own"
            )
    try:
        copied = copy.deepcopy(module)
    except Exception as error:  # of whatever kind an attribute raises
        held = [f"{path}.{name}".lstrip(".") for path, child in module.named_modules() for name in _stuck(child)]
        if not held:  # for want of memory
            raise
        raise ValueError(
            f"{type(module).__name__} cannot be copied, because of its {held}: delete that, or keep a detached copy "
            f"instead ({error})"
        ) from error
    for child in copied.modules():
        for key, hook in [*child._forward_pre_hooks.items()]:
            if hasattr(hook, MASKING):
                del child._forward_pre_hooks[key]
    return copied


def _stuck(module: nn.Module) -> Iterator[str]:
    """Names of the attributes of one module that cannot be copied."""
    for name, value in {**vars(module), **module._parameters, **module._buffers}.items():
        if name not in ("_modules", "_parameters", "_buffers"):
            try:
                copy.deepcopy(value)
            except Exception:
                yield name


def not_one(module: nn.Module, paths: Sequence[str]) -> UnsupportedArchitecture:
    """The error for a module with prunable encoders at several `paths`, or with none: what there is."""
    name = type(module).__name__
    if paths:
        parts = [path.rpartition(".")[0] or path for path in paths]
        return UnsupportedArchitecture(f"{name} has {len(paths)} prunable encoders: pass one of its parts {parts}")
    lists = {
        path: type(child[0]).__name__
        for path, child in module.named_modules()
        if isinstance(child, nn.ModuleList) and len(child)
    }
    layers = sorted(f"{path}: {kind}" for path, kind in lists.items())
    reasons = "".join(f" {path}: {why}." for path, why in _reasons(module).items())
    return UnsupportedArchitecture(
        f"{name} has no prunable encoder.{reasons} Layers found: {layers or 'none'}; supported: layers like those of "
        f"{', '.join(LAYOUTS)}, and {', '.join(sorted(FAMILIES))}"
    )


def _reasons(module: nn.Module) -> dict[str, str]:
    """By the path of a list of layers that look like a transformer's: why they cannot be pruned."""
    found = {}
    for path, child in module.named_modules():
        if not isinstance(child, nn.ModuleList) or not len(child):
            continue
        layer, kind = child[0], type(child[0]).__name__
        nearest = min((unlike(layer, row) for row in LAYOUTS.values()), key=lambda why: why.startswith("no "))
        names = [name for name, _ in layer.named_parameters()]
        if kind in NOT_CARRIED:
            found[path] = NOT_CARRIED[kind]
        elif not nearest.startswith("no "):
            found[path] = nearest
        elif any(name.endswith("in_proj_weight") for name in names):
            found[path] = "torch.nn.MultiheadAttention holds query, key and value in a parameter, no Linear layers"
        elif any(".experts" in name for name in names):
            found[path] = "its FFN is a mixture of experts"
        elif sum(isinstance(inside, nn.Linear) or is_conv1d(inside) for inside in layer.modules()) >= 4:
            name, row = min(LAYOUTS.items(), key=lambda item: len(_lacking(layer, item[1])))
            found[path] = (
                f"{kind} is of no layout that is known, the nearest is that of {name}, but it has no "
                f"{_lacking(layer, row)[0]}; a row of lfpr.FAMILIES says where heads and neurons are"
            )
    return found


def by_structure(layer: nn.Module) -> Family | None:
    """The first of `LAYOUTS` that a layer is of, unless its class is one of those that only look like it. Attention
    whose code reads how many heads it has is taken not to run without any, since none leave a view ambiguous."""
    if any(kind.__name__ in NOT_CARRIED for kind in type(layer).__mro__):
        return None
    row = next((row for row in LAYOUTS.values() if not unlike(layer, row)), None)
    reads = row and not row.shared_bias and counts(_at(layer, row.attention)) & {*row.head_count}
    return replace(row, headless=False) if reads else row


def unlike(layer: nn.Module, family: Family) -> str:
    """Why a layer is not of a family, by its structure; empty if it is: it has the paths and attributes of the row, no
    other parameter that could belong to neurons or heads, but one for the features of a head (a norm), and its
    attention reads no other attribute that counts heads."""
    if missing := _lacking(layer, family):
        return f"no {missing[0]}"
    modules, attention = {name: _at(layer, name) for name in _paths(family)}, _at(layer, family.attention)
    if odd := [name for name, found in modules.items() if not (isinstance(found, nn.Linear) or is_conv1d(found))]:
        return f"{odd[0]} is {type(modules[odd[0]]).__name__}, no plain Linear"
    if missing := [
        name for name in (family.head_dim, *family.head_count, *family.head_width) if not hasattr(attention, name)
    ]:
        return f"{family.attention} has no attribute {missing[0]}"
    own = {id(p) for found in modules.values() for p in found.parameters()}
    more = [
        name
        for name, p in attention.named_parameters()
        if id(p) not in own
        and not ("." in name and p.shape == (getattr(attention, family.head_dim),))
        and not (name.endswith("_bias.weight") and family.shared_bias)  # tables for all heads
        and not (family.norm and name.startswith(f"{family.norm}."))
    ]
    if more:
        return f"{family.attention} has {more[0]}, whose part in heads is not known"
    within = family.ffn_out.rpartition(".")[0]
    ffn = _at(layer, within) if within and family.ffn_in[0].startswith(f"{within}.") else nn.Module()
    if more := [name for name, p in ffn.named_parameters() if id(p) not in own and p.numel() > 1]:
        return f"{within} has {more[0]}, whose part in neurons is not known"
    read = counts(attention) - {*family.head_count, *family.head_width}
    if read and not family.shared_bias:  # where all heads are meant
        return f"the code of {family.attention} counts all heads, by its {min(read)}"
    return ""


def counts(attention: nn.Module) -> set[str]:
    """Attributes that the forward of an attention reads, of names that count heads or the features of all of them."""
    kind, read, methods = type(attention), set(), ["forward"]
    for name in methods:  # forward, and what it calls
        code = getattr(inspect.unwrap(getattr(kind, name)), "__code__", None)
        found = {*code.co_names} - read if code else set()
        read |= found
        methods += [name for name in found if isinstance(getattr(kind, name, None), FunctionType)]
    return read & COUNTS & {*vars(attention)}


def _paths(family: Family) -> list[str]:
    return [family.query, family.key, family.value, family.attention_output, *family.ffn_in, family.ffn_out]


def _lacking(layer: nn.Module, family: Family) -> list[str]:
    """The paths of a family that a layer does not have."""
    return [name for name in (*_paths(family), family.attention, *family.needs) if _at(layer, name) is None]


def _at(layer: nn.Module, name: str) -> nn.Module | None:
    """A submodule by its path, of which "-1" is the last of a list; None if there is none."""
    here: nn.Module | None = layer
    for part in name.split("."):
        here = here and here._modules.get([*here._modules][-1] if part == "-1" and here._modules else part)
    return here


def odd_one(path: str, layers: Sequence[nn.Module], alike: Sequence[bool]) -> UnsupportedArchitecture:
    """The error for a list of layers that are not all alike."""
    number = list(alike).index(False)
    return UnsupportedArchitecture(
        f"{path}.{number}".lstrip(".") + f" is of class {type(layers[number]).__name__}, while other layers beside it "
        "can be pruned: put a layer of their kind in its place, or take it out of the list"
    )
