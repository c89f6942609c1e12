"""Saving and loading pruned models, whole or as what differs from the unpruned one.

`save_pruned`: tensors in safetensors, everything else in JSON; loading runs no code from files.

A folder holds `model.safetensors`, `config.json` (the *unpruned* configuration, as the model's own library writes it)
and `pruning.json`: which model to build, how many heads and neurons each layer of which part keeps, and in what else it
differs from what its configuration builds. Loading builds the unpruned model from its configuration (`lfpr.rebuild`),
gives its layers these sizes and takes the weights; the original weights are not needed. Only classes in `MODELS` and
transformers' own can be built; a module of this package that is named in the file is imported for its rows in `MODELS`,
and nothing else. For transformers' own loading, its `config.json` says the same in an entry (`lfpr.hub`), and a model
that generates has a `generation_config.json`; `load_pruned` reads neither.

`save_delta`: one safetensors file of masks and of the tensors that retraining changed, for those who have the unpruned
model: a small part of the whole (LFPR, Poh et al. 2024, report the sizes of such files).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lfpr.checks import check_device, check_kind, is_hollow
from lfpr.encoder import PrunableEncoder, encoders, unwrapped
from lfpr.files import read_tensors, write_whole
from lfpr.masks import Masks
from lfpr.pruned_attention import check_kept
from lfpr.rebuild import (
    ATTN,
    MODELS,
    assemble,
    attention_of,
    build,
    check_size,
    differences,
    fill,
    narrow,
    state,
    transformers_class,
    unsaved_buffers,
    widths,
)
from lfpr.shrink import shrink

FORMAT = 1
GENERATION = "generation_config.json"  # for transformers
ENTRY = "quantization_config"  # of config.json, see `lfpr.hub`
LARGEST = 2**23  # bytes of a JSON file, which may take fifty times that in memory


def save_pruned(pruned: nn.Module, folder: str | Path) -> None:
    """Write a pruned model so that `load_pruned` restores it without the original weights, and so do transformers'
    `from_pretrained` and `pipeline` once lfpr is imported.

    For transformers' models, and any class with a row in `MODELS` and a `config` that has `to_dict()`. The weights keep
    their dtype. What the configuration does not say is kept if it is plain: parts that are None, left out layers, sizes
    of Linear layers, values of attributes, and which of PyTorch's implementations attention has. Not kept: hooks,
    functions put in the place of a module's own, compilation, gradient checkpointing.

    All is checked before anything is written, and an older model in the folder stays until the new one is whole. As by
    `save_pretrained`, the configuration of `pruned` itself gets `architectures` and `dtype`, and what `lfpr.hub` reads.
    `save_pretrained` of a model that `shrink` or a loader gave writes a folder for `from_pretrained` alone, which has
    the widths of the layers, but not what else of the model was changed since.

    Raises ValueError for other classes, for weights that are not there (on the meta device), and naming what of the
    model could not be built again; OSError if the folder cannot be written.
    """
    check_kind("pruned", pruned, nn.Module)
    check_kind("folder", folder, str, os.PathLike)
    pruned = unwrapped(pruned)
    name = type(pruned).__name__
    from_transformers = transformers_class(name) is type(pruned)
    if not from_transformers and name not in MODELS:
        raise ValueError(
            f"cannot save a {name}: expected a model of transformers or one of {sorted(MODELS)} (a row in "
            "lfpr.save.MODELS adds one). Save the whole model that contains a bare encoder"
        )
    _check_values(pruned)
    try:
        pruning, config, tensors = _described(pruned, from_transformers)
    except ValueError as error:
        raise ValueError(
            f"cannot save this {name} so that it can be loaded: {error}. Make its configuration say it, or give the "
            "model a class of its own with a row in lfpr.save.MODELS, or keep what differs by save_delta"
        ) from error
    folder, texts = Path(folder), {"pruning.json": pruning, "config.json": config}
    if "generation" in pruning:
        texts[GENERATION] = pruning["generation"]

    def write(partial: Path) -> None:
        """Each file is renamed when those after it are."""
        if not texts:
            save_file(tensors, partial, metadata={"format": "pt"})
            for name in ("pruning.json", GENERATION):  # a folder without the first is incomplete
                (folder / name).unlink(missing_ok=True)
            return
        partial.write_text(json.dumps(texts.pop(next(iter(texts))), indent=2) + "\n")
        write_whole(folder / next(iter(texts), "model.safetensors"), write)

    write_whole(folder / "pruning.json", write)


def load_pruned(folder: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """The model that `save_pruned` wrote, in evaluation mode, on `device`, whatever the default device and dtype are.

    Raises FileNotFoundError if a file is missing, and ValueError for a device that is not there, and naming the file
    and what is wrong with it: of whatever it holds, nothing is run, and no memory is taken that the weights do not say.
    """
    check_kind("folder", folder, str, os.PathLike)
    device, folder = check_device("device", device), Path(folder)
    pruning, config = _read(folder / "pruning.json"), _read(folder / "config.json")
    if type(pruning.get("format")) is not int or pruning["format"] != FORMAT:
        raise ValueError(f"{folder / 'pruning.json'}: format {pruning.get('format')!r:.60}, expected {FORMAT}")
    with torch.inference_mode(False):  # or the weights could not be trained
        config.pop(ENTRY, None)  # which says the same
        tensors, _ = read_tensors(folder / "model.safetensors", "a folder written by save_pruned")
        check_size(pruning, config, tensors, folder)
        model = assemble(pruning, config, tensors, folder, "cpu")
        fill(model, tensors)
        check_kept(model, folder / "model.safetensors")
        if "generation" in pruning:
            model.generation_config = _generation(pruning["generation"], folder)
        if pruning["library"] == "transformers":
            from lfpr.hub import entry

            model.config.quantization_config = entry(pruning)
        return model.eval().to(device)


def save_delta(
    unpruned: nn.Module, masks: Masks, retrained: nn.Module, path: str | Path, part: nn.Module | None = None
) -> None:
    """Write what makes the retrained model of `unpruned`: mask values [L, H] and [L, N], and the tensors in which
    `retrained`, masks folded in, differs from `shrink(unpruned, masks, part)`.

    With the trained values of masks that were binary before, layers that were not trained wholly add nothing. Where a
    value has become exactly 0 of what `retrained` keeps, its layer is written whole. Raises ValueError if `retrained`
    is not of the shape that `masks` leave, or if its weights are not there.
    """
    _check_delta(unpruned, path, part)
    check_kind("masks", masks, Masks)
    check_kind("retrained", retrained, nn.Module)
    retrained = unwrapped(retrained)
    own, shapes = _tensors(retrained), {name: value.shape for name, value in state(retrained).items()}
    for values in (masks, *(_keeping(masks, encoder) for encoder in encoders(retrained, declared=False))):
        base = _tensors(shrink(unpruned, values, part))
        if {name: value.shape for name, value in base.items()} == shapes:
            break
    else:
        raise ValueError("retrained: its tensors are not of the names and shapes that shrink(unpruned, masks) gives")
    changed = {name: value for name, value in own.items() if _digest({name: value}) != _digest({name: base[name]})}
    parts = _here({"masks.heads": values.heads, "masks.neurons": values.neurons})
    metadata = {"kind": "delta", "model": _digest(own)}
    write_whole(path, lambda partial: save_file(parts | changed, partial, metadata=metadata))


def load_delta(unpruned: nn.Module, path: str | Path, part: nn.Module | None = None) -> nn.Module:
    """The retrained model, bit by bit, of which `save_delta` wrote what differs from `unpruned`, which is left as it
    is.

    Raises FileNotFoundError, and ValueError for another file or if `unpruned` is not the model that it was made from.
    """
    _check_delta(unpruned, path, part)
    changed, about = read_tensors(path, "one written by save_delta")
    if about.get("kind") != "delta" or not {"masks.heads", "masks.neurons"} <= changed.keys():
        raise ValueError(f"{path} is not written by save_delta: it holds {sorted(changed)[:3]}")
    try:
        model = shrink(unpruned, Masks(changed.pop("masks.heads"), changed.pop("masks.neurons")), part)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    own = state(model)
    if all(
        name in own and own[name].shape == value.shape and own[name].is_floating_point() == value.is_floating_point()
        for name, value in changed.items()
    ):
        with torch.no_grad():
            for name, value in changed.items():
                own[name].data = value.to(own[name].device)
        if _digest(_tensors(model)) == about.get("model"):
            return model
    raise ValueError(f"{path}: unpruned is not the {type(unpruned).__name__} that this delta was made from")


def _described(pruned: nn.Module, from_transformers: bool) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """The contents of `pruning.json` and `config.json`, as they will be read, and the tensors of a model, which was
    assembled from them as loading does. Raises ValueError saying what of it they do not describe."""
    here, found = Path(), encoders(pruned, declared=False)
    if from_transformers:
        from lfpr.hub import entry, mark

        pruned.config.architectures, pruned.config.dtype = [type(pruned).__name__], pruned.dtype  # as save_pretrained
        for encoder in found:
            mark(encoder)
    try:
        values = pruned.config.to_json_string(use_diff=False) if from_transformers else pruned.config.to_dict()
        config = json.loads(values if from_transformers else json.dumps(values), object_hook=_without_code)
        config.pop(ENTRY, None)
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"its config cannot be written as JSON: {error}") from error
    pruning = {
        "format": FORMAT,
        "library": "transformers" if from_transformers else "lfpr",
        "class": type(pruned).__name__,
        "module": type(pruned).__module__,
        "parts": {path: sizes for encoder in found for path, sizes in widths(encoder).items()},
    }
    if from_transformers:
        pruning[ATTN] = attention_of(pruned.config)
        if (generation := getattr(pruned, "generation_config", None)) is not None:
            pruning["generation"] = json.loads(generation.to_json_string(use_diff=False))
    built = build(pruning, config, here)
    narrow(built, pruning["parts"], Path("pruning.json"))
    pruning["attributes"] = differences(pruned, built)
    try:
        pruning = json.loads(json.dumps(pruning, allow_nan=False))
        length = len(json.dumps(config, allow_nan=False, indent=2))
    except (TypeError, ValueError) as error:
        raise ValueError(f"values that JSON cannot hold: {error}") from error
    if length > LARGEST:
        raise ValueError(f"its config takes {length} bytes, more than the {LARGEST} that are read")
    usual, own = unsaved_buffers(built), unsaved_buffers(pruned)
    tensors = _here(state(pruned) | {name: own[name] for name in own if not _same(own[name], usual.get(name))})
    usual_shapes = {name: value.shape for name, value in built.state_dict().items()}
    pruning["tensors"] = {n: [*value.shape] for n, value in tensors.items() if value.shape != usual_shapes.get(n)}
    assemble(pruning, config, tensors, here, "meta")
    if from_transformers:
        config[ENTRY] = pruned.config.quantization_config = entry(pruning)
    return pruning, config, tensors


def _generation(values: Any, folder: Path) -> Any:
    """How a model generates, as transformers keeps it. Raises ValueError naming the file."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_dict(dict(values))
    except Exception as error:  # of whatever kind its values raise
        raise ValueError(f"{folder / 'pruning.json'}: generation = {values!r:.80}: {error}") from error


def _same(one: Tensor, two: Tensor | None) -> bool:
    return two is not None and one.dtype == two.dtype and torch.equal(one.cpu(), two)


def _keeping(masks: Masks, encoder: PrunableEncoder) -> Masks:
    """`masks` with values next to 0 in place of zeros, as many as it takes to keep what `encoder` has."""

    def more(rows: Tensor, widths: list[int]) -> Tensor:
        rows = rows.detach().clone()
        for row, width in zip(rows, widths, strict=False):
            zeros = (row == 0).nonzero().flatten()
            row[zeros[: max(0, width - len(row) + len(zeros))]] = (
                torch.finfo(row.dtype).tiny ** 0.5 if row.is_floating_point() else 1
            )
        return rows

    return Masks(more(masks.heads, encoder.heads_per_layer), more(masks.neurons, encoder.neurons_per_layer))


def _check_delta(unpruned: nn.Module, path: str | Path, part: nn.Module | None) -> None:
    check_kind("unpruned", unpruned, nn.Module)
    check_kind("path", path, str, os.PathLike)
    if part is not None:
        check_kind("part", part, nn.Module)


def _without_code(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the names of code on the hub, where the model came from: transformers' own builds it."""
    return {name: value for name, value in values.items() if name != "auto_map"}


def _digest(tensors: dict[str, Tensor]) -> str:
    """Identifies a model by the bits of its tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU, each tied tensor once, under its first name. ValueError if values are missing."""
    _check_values(model)
    return _here(state(model))


def _check_values(model: nn.Module) -> None:
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if is_hollow(value):
            raise ValueError(
                f"cannot save or compare this {type(model).__name__}: {name} has no values, it is on the meta device. "
                "Load all weights first, and do not offload them"
            )


def _here(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, none in the memory of another, as files want them."""
    found, places = {}, set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if value.numel() and place in places else value
        places.add(place)
    return found


def _read(path: Path) -> dict[str, Any]:
    """A JSON object whose names are all different and whose numbers are finite."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path}: expected a folder written by save_pruned (from_pretrained loads those of save_pretrained)"
        )
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is not written by save_pruned: it has more than {LARGEST} bytes")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError(f"one of the names {sorted(values)[:5]} is there twice")
        return values

    def finite(text: str) -> float:
        raise ValueError(f"{text} is no number")

    try:
        found = json.loads(path.read_bytes().decode(), object_pairs_hook=once, parse_constant=finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not written by save_pruned: expected names and values, found {found!r:.60}")
    return found


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
