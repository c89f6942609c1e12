"""Building the model that a saved folder describes, from a configuration that may be anyone's.

A configuration is data: it may say which class of transformers, or of `MODELS`, is built, and with what sizes, but not
name code that would be fetched. A model is built twice, once without memory (on the meta device), so that sizes that
are not those of the tensors are refused before anything is allocated.

A model may differ from what its configuration builds: a part is None (`add_pooling_layer=False`), a parameter is there
(`use_mask_token=True`), layers were left out, a Linear has another size, an attribute another value. `differences` says
in which plain values, and the rest of them follows from the tensors; what else differs cannot be built again.
"""

from __future__ import annotations

import copy
import importlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from lfpr.checks import check_count
from lfpr.encoder import PrunableEncoder, encoders
from lfpr.shrink import resize

MODELS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {}
"""Class name -> what builds the model from its `config.to_dict()`; add a row to save models of your own. It is called
where parameters have no memory, so it cannot look at their values."""

ATTENTION = ("eager", "sdpa", "flex_attention")
"""Implementations of attention that come with PyTorch; any other may be code that would be fetched."""

BUFFERS = 2**28  # bytes that those which no file holds may take
ATTN = "attn_implementation"  # in pruning.json, of `attention_of`
MOST = 100_000  # layers and labels, and how much longer than all dimensions of the file's tensors a removed one may be
PLAIN = (bool, int, float, str, tuple, type(None))
PASSING = {"training", "gradient_checkpointing"}  # attributes that say how a model is used
SIZES = ("heads", "neurons")
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
DRAWS = {
    *(nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_, nn.init.kaiming_normal_, nn.init.constant_),
    *(Tensor.uniform_, Tensor.normal_, Tensor.fill_, Tensor.zero_),
}


def transformers_class(name: object) -> type[nn.Module] | None:
    """A model class by the name under which transformers exports it; None if there is none."""
    import transformers

    found = None
    if isinstance(name, str) and name.isidentifier() and not name.startswith("_"):
        with suppress(ImportError, RuntimeError):  # of what is not installed
            found = getattr(transformers, name, None)
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def attention_of(config: Any) -> str | dict[str, Any] | None:
    """The implementations of attention that a configuration of transformers chose, and those in it; None for one that
    not every machine has."""
    own = config._attn_implementation if config._attn_implementation in ATTENTION else None
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    return {"": own} | {name: attention_of(part) for name, part in parts.items() if part is not None} if parts else own


def state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the state dict, each tied one once, under its first name."""
    first = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is no tensor: {type(value).__name__}")
        first.setdefault(id(value), (name, value))
    return dict(first.values())


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that state dicts leave out, which the configuration is to say."""
    kept = model.state_dict(keep_vars=True).keys()
    return {name: value for name, value in model.named_buffers() if name not in kept}


def assemble(
    pruning: dict[str, Any], config: dict[str, Any], tensors: Mapping[str, Tensor], folder: Path, device: str
) -> nn.Module:
    """The model that `pruning` and `config` describe, of `tensors`' names and shapes, its parameters on the meta
    device, its other buffers on `device`.

    Raises ValueError naming the file of `folder` that is wrong.
    """
    model, where = _unpruned(pruning, config, tensors, folder, device), folder / "pruning.json"
    narrow(model, pruning.get("parts"), where)
    put(model, pruning.get("attributes", {}), where)
    _fit(model, tensors, folder / "model.safetensors")
    return model


def check_size(pruning: dict[str, Any], config: dict[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Raises ValueError naming the file of `folder` that is wrong if its model is unlike what `tensors` allow: without
    taking memory, and before `assemble` takes that of the buffers."""
    _check_buffers(unsaved_buffers(_unpruned(pruning, config, tensors, folder, "meta")), folder / "model.safetensors")


def _unpruned(
    pruning: dict[str, Any], config: dict[str, Any], tensors: Mapping[str, Tensor], folder: Path, device: str
) -> nn.Module:
    """`build`, with no more and no larger parameters than may have been pruned to `tensors`."""
    widest = max((size for value in tensors.values() for size in value.shape), default=0)
    return build(pruning, config, folder, device, 100 * len(tensors) + 1000, widest)


def _check_buffers(buffers: Mapping[str, Tensor], path: Path) -> None:
    if sum(value.nbytes for value in buffers.values()) > BUFFERS:
        few = [*buffers][:3]
        raise ValueError(f"{path} does not fit the model: {len(buffers)} tensors too large in all: {few}")


def build(
    pruning: dict[str, Any],
    config: dict[str, Any],
    folder: Path,
    device: str = "cpu",
    most: int = MOST,
    widest: int = MOST,
) -> nn.Module:
    """The unpruned model, its parameters on the meta device: at most `most`, none much larger than `widest` allows.

    Raises ValueError naming `folder`'s file for a class that is not known, a configuration that does not build it, or
    that names code.
    """
    library, name = pruning.get("library"), pruning.get("class")
    check_harmless(config, folder / "config.json")
    check_harmless({ATTN: pruning.get(ATTN)}, folder / "pruning.json")
    make = _maker(library, name, pruning)
    if make is None:
        raise ValueError(
            f"{folder / 'pruning.json'}: cannot build the class {name!r:.80} of library {library!r:.80}; this package "
            f"has {sorted(MODELS)}"
        )
    try:
        with _weightless(device, most, MOST * max(widest, 1)):
            model = make(copy.deepcopy(config))
            if not isinstance(model, nn.Module):
                raise TypeError(f"its row in MODELS gives {type(model).__name__}")
    except Exception as error:  # whatever a constructor makes of numbers and words that it does not expect
        raise ValueError(f"{folder / 'config.json'}: builds no {name}: {type(error).__name__}: {error}") from error
    return model


def differences(saved: nn.Module, built: nn.Module) -> dict[str, Any]:
    """Values of attributes of modules, by their paths, that `saved` has and `built` has not; None for parts without.

    Raises ValueError naming modules of other classes, those that `built` does not have, and what else is not plain.
    """
    own, others = (dict(model.named_modules(remove_duplicate=False)) for model in (saved, built))
    found, wrong, inside = {}, [], set()  # `inside`: modules that are wrong, and those in them
    for path, module in own.items():
        if path and path.rpartition(".")[0] in inside:
            inside.add(path)
        elif _kind(others.get(path)) != _kind(module):
            inside.add(path)
            wrong.append(f"{path or 'the model'} is {_name(module)}, not {_name(others.get(path))}")
    for path, module in others.items():
        if path not in own or path in inside:
            continue
        parts = module._modules | module._parameters | module._buffers
        for name, value in (vars(module) | parts).items():
            here, full, part = getattr(own[path], name, None), f"{path}.{name}".lstrip("."), name in parts
            if name[0] == "_" or name in PASSING or not (part or isinstance(value, (*PLAIN, FunctionType))):
                continue
            if isinstance(here, nn.Module | Tensor) and (part or value is None):
                continue  # compared as a module above, or with the tensors
            if isinstance(here, PLAIN) and (not part or (here is None and not isinstance(module, CONTAINERS))):
                if here != value:
                    found[full] = here
            elif (value is not None or callable(here)) and _name(here) != _name(value):
                wrong.append(f"{full} is {_name(here)}, not {_name(value)}")
    if wrong:
        raise ValueError(f"its configuration builds something else: {'; '.join(wrong[:5])}")
    return found


def _kind(module: nn.Module | None) -> Any:
    """The class of a module; of one with parametrisations, for which torch makes a class of its own, those below it."""
    return type(module).__bases__ if "parametrizations" in getattr(module, "_modules", ()) else type(module)


def put(model: nn.Module, attributes: Any, where: Path) -> None:
    """Give modules the values that `differences` found. Raises ValueError naming `where` for any other value."""
    if not isinstance(attributes, dict):
        raise ValueError(f"{where}: attributes = {attributes!r:.60}: must be values by their paths")
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, value in attributes.items():
        owner, _, name = path.rpartition(".")
        module, value = modules.get(owner), tuple(value) if isinstance(value, list) else value
        now = getattr(module, name, modules)
        if isinstance(now, nn.Module | Tensor):
            fits = value is None and not isinstance(module, CONTAINERS)
        else:
            known = module is not None and name in vars(module) and name[0] != "_" and isinstance(now, PLAIN)
            numbers = {type(now), type(value)} <= {int, float}
            fits = known and (now is None or value is None or type(now) is type(value) or numbers)
        if not fits or not isinstance(value, PLAIN):
            raise ValueError(f"{where}: attributes: {path:.200} = {value!r:.60}: a {_name(model)} cannot have that")
        setattr(module, name, value)


def widths(encoder: PrunableEncoder) -> dict[str, dict[str, list[int]]]:
    """The heads and neurons that the layers keep, by the path of their list: what `narrow` takes as `parts`."""
    counts = encoder.heads_per_layer, encoder.neurons_per_layer
    return {
        stack.path: {
            name: [found[row] for row in rows]
            for name, found, rows in zip(SIZES, counts, encoder.of_stack(stack), strict=True)
        }
        for stack in encoder.stacks
    }


def narrow(model: nn.Module, parts: Any, where: Path) -> None:
    """Give the encoders by their paths the layers, heads and neurons that `parts` says, keeping the first ones. Raises
    ValueError naming `where` if it says another kind of thing, or more."""
    given = parts if isinstance(parts, dict) and all(isinstance(sizes, dict) for sizes in parts.values()) else {"": {}}
    if not all(isinstance(sizes.get(name), list) for sizes in given.values() for name in SIZES):
        raise ValueError(f"{where}: parts = {parts!r:.60}: must be lists of heads and neurons by the paths of encoders")
    modules = dict(model.named_modules())
    for path, sizes in parts.items():
        if isinstance(modules.get(path), nn.ModuleList):
            del modules[path][len(sizes["neurons"]) :]
    try:
        own = {stack.path: encoder for encoder in encoders(model, declared=False) for stack in encoder.stacks}
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if parts.keys() - own.keys():
        raise ValueError(f"{where}: parts {sorted(parts)!r:.200}, the model has {sorted(own)}")
    for encoder in dict.fromkeys(own.values()):
        wanted = [[*encoder.heads_per_layer], [*encoder.neurons_per_layer]]
        for stack in encoder.stacks:
            for name, rows, found in zip(SIZES, encoder.of_stack(stack), wanted, strict=True):
                sizes = parts.get(stack.path, {}).get(name, [found[row] for row in rows])
                if len(sizes) != len(rows):
                    raise ValueError(f"{where}: parts.{stack.path}.{name}: {len(sizes)} layers, of {len(rows)}")
                for i, (row, count) in enumerate(zip(rows, sizes, strict=True)):
                    found[row] = check_count(f"{where}: parts.{stack.path}.{name}[{i}]", count, 0, found[row])
        with torch.device("cpu"):
            resize(encoder, *wanted)


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put `tensors` in the places of the model's own, which were compared by `assemble`; what is tied stays so."""
    own = model.state_dict(keep_vars=True) | unsaved_buffers(model)
    for name, value in tensors.items():
        before = own[name]
        after = nn.Parameter(value, before.requires_grad) if isinstance(before, nn.Parameter) else value
        torch.utils.swap_tensors(before, after)


def _fit(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Names, shapes and kinds of numbers; parameters that the configuration leaves None are made where there are
    tensors for them. Raises ValueError naming `path`."""
    modules = dict(model.named_modules())
    for name, value in tensors.items():
        owner, _, leaf = name.rpartition(".")
        module = modules.get(owner)
        if getattr(module, leaf, modules) is None:
            blank = torch.empty_like(value, device="meta")
            setattr(module, leaf, blank if leaf in module._buffers else nn.Parameter(blank, value.is_floating_point()))
    needed, buffers, names = state(model), unsaved_buffers(model), model.state_dict(keep_vars=True).keys()
    _check_buffers(buffers, path)
    own = needed | buffers
    common = [name for name in own if name in tensors]
    wanted = {name: _shape(modules[name.rpartition(".")[0]], name.rpartition(".")[2], own[name]) for name in common}
    problems = {
        "missing": sorted(needed.keys() - tensors.keys()),
        "unknown": sorted(tensors.keys() - own.keys() - names),
        "beside those that they are tied to": sorted(tensors.keys() & names - own.keys()),
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)}, expected {wanted[name]}"
            for name in common
            if tuple(tensors[name].shape) != wanted[name]
        ],
        "of another kind": [
            f"{name} {tensors[name].dtype}, expected {own[name].dtype}"
            for name in common
            if tensors[name].dtype != own[name].dtype
            and not (tensors[name].is_floating_point() and own[name].is_floating_point())
        ],
    }
    text = "; ".join(f"{len(names)} tensors {what}: {names[:3]}" for what, names in problems.items() if names)
    if text:
        raise ValueError(f"{path} does not fit the model: {text}")


def _shape(module: nn.Module, name: str, value: Tensor) -> tuple[int, ...]:
    """The shape that a tensor of a module is to have: that the sizes of a Linear or Embedding say, else its own."""
    sizes = ()
    if name in ("weight", "bias") and type(module) is nn.Linear:
        sizes = module.out_features, module.in_features
    elif name == "weight" and type(module) is nn.Embedding:
        sizes = module.num_embeddings, module.embedding_dim
    return sizes[: value.ndim] or tuple(value.shape)


def _maker(library: object, name: object, pruning: dict[str, Any]) -> Callable[[dict[str, Any]], Any] | None:
    """What builds a model of its configuration, if the class is one that may be built."""
    if library == "lfpr" and isinstance(name, str):
        module = pruning.get("module")
        if name not in MODELS and isinstance(module, str) and re.fullmatch(r"lfpr(\.[a-z][a-z_]*)+", module):
            with suppress(ModuleNotFoundError):
                importlib.import_module(module)  # which adds its row to MODELS
        return MODELS.get(name)
    model_class = transformers_class(name) if library == "transformers" else None
    if model_class is None:
        return None

    def make(values: dict[str, Any]) -> nn.Module:
        config = model_class.config_class.from_dict(values)
        if attention := pruning.get(ATTN):
            config._attn_implementation = attention
        return model_class(config)

    return make


class _Undrawn(TorchFunctionMode):
    """Drawing values for what has no memory is over at once; torch would go through its decompositions for it."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in DRAWS:
            drawn = args[0] if args else kwargs["tensor"]
            if drawn.is_meta:
                return drawn
        return func(*args, **kwargs)


@contextmanager
def _weightless(device: str, most: int, largest: int) -> Iterator[None]:
    """Models built within, in this thread, have parameters on the meta device, which take no memory and no time, and
    buffers on `device`, whatever the caller's defaults are; random numbers go on as if nothing was drawn."""
    thread, seen, dtype = threading.get_ident(), [0], torch.get_default_dtype()
    moved = WeakIdKeyDictionary()  # a parameter that is used twice stays one

    def move(module: nn.Module, name: str, value: nn.Parameter | None) -> nn.Parameter | None:
        if value is None or threading.get_ident() != thread:
            return None
        seen[0] += 1
        if seen[0] > most or value.numel() > largest:
            raise ValueError(f"more than the tensors say: parameter {seen[0]} is {name} {tuple(value.shape)}")
        if not value.is_meta and value not in moved:
            moved[value] = nn.Parameter(value.to("meta"), value.requires_grad)
            moved[value]._is_hf_initialized = True  # which spares drawing values for it; `fill` takes the mark away
        return moved.get(value)

    hook = register_module_parameter_registration_hook(move)
    torch.set_default_dtype(torch.float32)
    there = nullcontext() if torch.get_default_device() == torch.device(device) else torch.device(device)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), there, _Undrawn():
            yield
    finally:
        torch.set_default_dtype(dtype)
        hook.remove()


def check_harmless(values: dict[str, Any], path: Path) -> None:
    """ValueError for what names code to fetch or no type of numbers, or counts without end."""
    waiting = [*values.items()]  # deep nesting is no recursion
    while waiting:
        key, value = waiting.pop()
        implementation, wrong = "_implementation" in key, None
        if isinstance(value, dict):
            waiting += [(key if implementation else name, part) for name, part in value.items()]
        elif isinstance(value, list):
            waiting += [(key, part) for part in value]
        elif implementation and value not in (None, *ATTENTION):
            wrong = f"must be one of {list(ATTENTION)}; others may be code that would be fetched"
        elif key == "model_type" and str(value).startswith("timm"):
            wrong = "names code outside transformers, which is not loaded"
        elif key in ("dtype", "torch_dtype") and isinstance(value, str):
            wrong = None if isinstance(getattr(torch, value, None), torch.dtype) else "must be a dtype of PyTorch"
        elif ("layers" in key or "labels" in key) and isinstance(value, int) and value > MOST:
            wrong = f"must be at most {MOST}"
        if key == "auto_map" and value is not None:
            wrong = "names code outside transformers, which is not loaded"
        if wrong:
            raise ValueError(f"{path}: {key} = {value!r:.80}: {wrong}")


def _name(value: object) -> str:
    """A function's or a module's class by its full name; anything else as it is written."""
    named = value if isinstance(value, FunctionType) else type(value)
    return (
        f"{named.__module__}.{named.__qualname__}" if isinstance(value, nn.Module | FunctionType) else f"{value!r:.60}"
    )
