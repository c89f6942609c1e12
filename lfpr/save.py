"""Saving and loading pruned models, whole or as what differs from the unpruned one.

`save_pruned`: tensors in safetensors, everything else in JSON; loading runs no code from files.

A folder holds `model.safetensors`, `config.json` (the *unpruned* configuration, as the model's own library writes it)
and `pruning.json`: which model to build, how many heads and neurons each layer of which part keeps. Loading builds the
unpruned model from its configuration, gives its layers these sizes and loads the weights; the original weights are not
needed. Only classes in `MODELS` and transformers' own can be built; a module of this package that is named in the file
is imported for its rows in `MODELS`, and nothing else.

`save_delta`: one safetensors file of masks and of the tensors that retraining changed, for those who have the unpruned
model: a small part of the whole (LFPR, Poh et al. 2024, report the sizes of such files).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lfpr.encoder import encoders
from lfpr.files import write_whole
from lfpr.masks import Masks
from lfpr.shrink import resize, shrink

FORMAT = 1


MODELS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {}
"""Class name -> what builds the model from its `config.to_dict()`; add a row to save models of your own."""


def save_pruned(pruned: nn.Module, folder: str | Path) -> None:
    """Write a pruned model so that `load_pruned` restores it without the original weights.

    For transformers' models, and any class with a row in `MODELS` and a `config` that has `to_dict()`. The weights keep
    their dtype. Each file is written whole or not at all, `pruning.json` last. Raises ValueError for other classes.
    """
    name = type(pruned).__name__
    transformers_model = _transformers_class(name) is type(pruned)
    if not transformers_model and name not in MODELS:
        raise ValueError(
            f"cannot save a {name}: expected a model of transformers or one of {sorted(MODELS)} (a row in "
            "lfpr.save.MODELS adds one). Save the whole model that contains a bare encoder"
        )
    config = json.loads(pruned.config.to_json_string(use_diff=False)) if transformers_model else pruned.config.to_dict()
    parts = {
        encoder.path: {"heads": encoder.heads_per_layer, "neurons": encoder.neurons_per_layer}
        for encoder in encoders(pruned, declared=False)
    }
    pruning = {
        "format": FORMAT,
        "library": "transformers" if transformers_model else "lfpr",
        "class": name,
        "module": type(pruned).__module__,
        "parts": parts,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pruning.json").unlink(missing_ok=True)  # a folder without it is incomplete
    write_whole(folder / "model.safetensors", lambda path: save_file(_tensors(pruned), path, metadata={"format": "pt"}))
    write_whole(folder / "config.json", lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))
    write_whole(folder / "pruning.json", lambda path: path.write_text(json.dumps(pruning, indent=2) + "\n"))


def load_pruned(folder: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """The model that `save_pruned` wrote, in evaluation mode, on `device`.

    Raises FileNotFoundError if a file is missing, and ValueError naming the file and what is wrong with it.
    """
    folder = Path(folder)
    pruning, config = _read(folder / "pruning.json"), _read(folder / "config.json")
    if pruning.get("format") != FORMAT:
        raise ValueError(f"{folder / 'pruning.json'}: format {pruning.get('format')!r}, expected {FORMAT}")
    tensors = _read_tensors(folder / "model.safetensors")
    with torch.random.fork_rng(devices=[]):  # building draws initial weights that are overwritten
        model = _build(pruning, config, folder / "pruning.json").eval()
    own = {encoder.path: encoder for encoder in encoders(model, declared=False)}
    if own.keys() != pruning["parts"].keys():
        raise ValueError(f"{folder / 'pruning.json'}: parts {sorted(pruning['parts'])}, the model has {sorted(own)}")
    for path, sizes in pruning["parts"].items():
        resize(own[path], sizes["heads"], sizes["neurons"])
    _load(model, tensors, folder / "model.safetensors")
    return model.to(device)


def save_delta(
    unpruned: nn.Module, masks: Masks, retrained: nn.Module, path: str | Path, part: nn.Module | None = None
) -> None:
    """Write what makes the retrained model of `unpruned`: mask values [L, H] and [L, N], and the tensors in which
    `retrained`, masks folded in, differs from `shrink(unpruned, masks, part)`.

    With the trained values of masks that were binary before, layers that were not trained wholly add nothing. Raises
    ValueError if `retrained` is not of the shape that `masks` leave.
    """
    own, base = _tensors(retrained), _tensors(shrink(unpruned, masks, part))
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in base.items()}:
        raise ValueError("retrained: its tensors are not of the names and shapes that shrink(unpruned, masks) gives")
    changed = {name: value for name, value in own.items() if _digest({name: value}) != _digest({name: base[name]})}
    parts = {"masks.heads": masks.heads.detach().cpu().contiguous()}
    parts |= {"masks.neurons": masks.neurons.detach().cpu().contiguous()}
    metadata = {"kind": "delta", "model": _digest(own)}
    write_whole(path, lambda partial: save_file(parts | changed, partial, metadata=metadata))


def load_delta(unpruned: nn.Module, path: str | Path, part: nn.Module | None = None) -> nn.Module:
    """The retrained model, bit by bit, of which `save_delta` wrote what differs from `unpruned`, which is left as it
    is.

    Raises FileNotFoundError, and ValueError for another file or if `unpruned` is not the model that it was made from.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected one written by save_delta")
    changed = _read_tensors(path)
    with safe_open(path, "pt") as file:
        about = file.metadata() or {}
    if about.get("kind") != "delta" or not {"masks.heads", "masks.neurons"} <= changed.keys():
        raise ValueError(f"{path} is not written by save_delta: it holds {sorted(changed)[:3]}")
    model = shrink(unpruned, Masks(changed.pop("masks.heads"), changed.pop("masks.neurons")), part)
    own = _tensors(model)
    if all(name in own and own[name].shape == value.shape for name, value in changed.items()):
        state = model.state_dict(keep_vars=True)
        with torch.no_grad():
            for name, value in changed.items():
                state[name].data = value.to(state[name].device)
        if _digest(_tensors(model)) == about.get("model"):
            return model
    raise ValueError(f"{path}: unpruned is not the {type(unpruned).__name__} that this delta was made from")


def _digest(tensors: dict[str, Tensor]) -> str:
    """Identifies a model by the bits of its tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _transformers_class(name: str) -> type[nn.Module] | None:
    """A model class by the name under which transformers exports it; None if there is none."""
    import transformers

    found = getattr(transformers, name, None) if name.isidentifier() and not name.startswith("_") else None
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def _build(pruning: dict[str, Any], config: dict[str, Any], path: Path) -> nn.Module:
    library, name = pruning.get("library"), pruning.get("class", "")
    if library == "lfpr":
        if name not in MODELS and re.fullmatch(r"lfpr(\.[a-z_]+)+", module := pruning.get("module", "")):
            with suppress(ModuleNotFoundError):
                importlib.import_module(module)  # which adds its row to MODELS
        if name in MODELS:
            return MODELS[name](config)
    if library == "transformers" and (model_class := _transformers_class(name)):
        return model_class(model_class.config_class.from_dict(config))
    raise ValueError(
        f"{path}: cannot build the class {name!r} of library {library!r}; this package has {sorted(MODELS)}"
    )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with each tied tensor once, under its first name."""
    kept, seen = {}, set()
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            kept[name] = value.detach().cpu().contiguous()
    return kept


def _load(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    own = model.state_dict(keep_vars=True)
    saved = _tensors(model).keys()  # names of a model of this kind
    wrong = [name for name in saved & tensors.keys() if own[name].shape != tensors[name].shape]
    problems = {
        "missing": sorted(saved - tensors.keys()),
        "unknown": sorted(tensors.keys() - saved),
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}" for name in sorted(wrong)
        ],
    }
    text = "; ".join(f"{len(names)} tensors {what}: {names[:3]}" for what, names in problems.items() if names)
    if text:
        raise ValueError(f"{path} does not fit the model: {text}")
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].data = value


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected a folder written by save_pruned")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected a folder written by save_pruned")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Loading weights without transformers' bar, whose setting is restored."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
