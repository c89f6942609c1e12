"""The fork for CLIP of Kwon et al.'s framework: the samples that it draws, and the pruned models that it writes.

A model is `vitB16_pruned_CONSTRAINT_SEED.pt`, a whole module as one pickle. A pickle is a program, so only the tensors
in it are read: its Python objects become stand-ins that keep their state and do nothing, whatever classes and functions
the file names. The model is then built here, from the tensors' shapes.
"""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lfpr.checks import check_count, check_kind
from lfpr.encoder import prunable
from lfpr.files import CheckpointError, a_path, write_whole
from lfpr.shrink import resize
from lfpr.tap.archives import DTYPES, ObjectUnpickler, StandIn, object_folder, open_archive

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel

HEAD_SIZE = 64  # in all towers of CLIP
BATCH = 32  # image-caption pairs that the loss compares
SENSITIVITY_FIRST = 2048  # annotations that sensitivity pruning draws from


def draw(total: int, count: int, seed: int, first: int | None = None) -> list[int]:
    """Places in COCO's list of `total` annotations: `count` samples as the fork draws them, in its order, with
    replacement from the `first` annotations (by default as many as samples, at least 128) by NumPy's legacy generator.

    Where there are fewer annotations than samples, as in a small set of one's own, as many samples as annotations.
    Raises ValueError for no annotations, negative numbers, or a seed that NumPy does not take.
    """
    total, count, seed = (
        check_count("total", total, 1),
        check_count("count", count),
        check_count("seed", seed, 0, 2**32 - 1),
    )
    first = None if first is None else check_count("first", first, 1)
    count = min(count, total)
    return np.random.RandomState(seed).choice(min(max(count, 128) if first is None else first, total), count).tolist()


def save_clip(model: CLIPModel, path: str | Path) -> None:
    """Write a pruned model as the fork does, whole or not at all: `torch.save` of the module, on the CPU, so that any
    machine can read it.

    The pickle names the classes of the installed transformers, which is newer than the fork's. Raises ValueError for
    anything but a CLIPModel.
    """
    from transformers import CLIPModel

    check_kind("model", model, CLIPModel)
    a_path(path, "path")
    model = model if model.device.type == "cpu" else copy.deepcopy(model).cpu()
    write_whole(path, lambda partial: torch.save(model, partial))


def load_clip(path: str | Path, config: CLIPConfig | None = None) -> CLIPModel:
    """The pruned model in a file of the fork or of `save_clip`, in evaluation mode, on the CPU; no code of it is run.

    config: sizes of the *unpruned* model; by default they follow from the tensors' shapes, with heads of 64 and FFNs of
    four times the hidden size, as all released CLIP models have. The kept heads and neurons of each layer follow from
    the shapes too. Raises `CheckpointError` naming the file if it is missing, cut, of another kind, or does not fit.
    """
    from transformers import CLIPConfig, CLIPModel

    a_path(path, "path")
    check_kind("config", config, CLIPConfig, None)
    state = read_module(path)
    try:
        config = config or _config(state)
        with torch.device("meta"):  # no memory for weights that are not in the file, whatever its shapes say
            model = CLIPModel(config).eval()
        for tower in ("text_model", "vision_model"):
            encoder = prunable(getattr(model, tower))
            layers = [f"{tower}.encoder.layers.{i}" for i in range(encoder.num_layers)]
            heads = [len(state[f"{layer}.self_attn.q_proj.weight"]) // encoder.head_dim for layer in layers]
            resize(encoder, heads, [len(state[f"{layer}.mlp.fc1.weight"]) for layer in layers])
        weights = {name: value for name, value in state.items() if not name.endswith("position_ids")}
        model.load_state_dict(weights, assign=True)
        for embeddings in (model.text_model.embeddings, model.vision_model.embeddings):
            embeddings.position_ids = torch.arange(embeddings.position_embedding.num_embeddings)[None]
        broken = [name for name, value in weights.items() if not value.isfinite().all()]
        if broken:
            raise ValueError(f"{broken[0]} has NaN or infinite values")
    except (LookupError, ValueError, RuntimeError, ZeroDivisionError) as error:  # the last of a width below a head's
        raise CheckpointError(f"{path} does not hold a pruned CLIP model of these sizes: {error}") from error
    return model.to(state["visual_projection.weight"].dtype)


def read_module(path: str | Path) -> dict[str, Tensor]:
    """Parameters and buffers of a module saved whole, by name, prefixes of wrappers left out. See `load_clip`."""
    path = a_path(path, "pruned CLIP")
    if not path.is_file():
        raise CheckpointError(f"no file {path}: expected a CLIP model saved whole")
    try:
        size = path.stat().st_size
        with path.open("rb") as file, open_archive(file, size) as archive:
            module = _Module(archive, size).load()
        state = dict(_tensors(module))
    except Exception as error:  # a broken pickle raises nearly anything
        raise CheckpointError(f"{path} is not a complete module saved by torch: {error}") from error
    end = "vision_model.embeddings.class_embedding"
    prefix = next((name.removesuffix(end) for name in state if name.endswith(end)), None)
    if prefix is None:
        raise CheckpointError(f"{path} holds no CLIP model: its tensors are {sorted(state)[:5]}")
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


class _Module(ObjectUnpickler):
    """Reads tensors and plain containers of one of torch's archives, and nothing else."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self.archive, self.folder = archive, object_folder(archive)
        super().__init__(archive.open(f"{self.folder}data.pkl"), size)

    def persistent_load(self, key: tuple) -> Tensor:
        _, kind, name, *_ = key
        data = bytearray(self.archive.read(f"{self.folder}data/{name}"))
        dtype = DTYPES[kind.__name__]
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)

    def extent(self, storage: Tensor) -> tuple[int, int]:
        return len(storage), storage.itemsize

    def tensor(self, storage: Tensor, offset: int, size: tuple, stride: tuple) -> Tensor:
        return storage.as_strided(size, stride, offset).clone()


def _tensors(module: StandIn, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for kind in ("_parameters", "_buffers"):
        for name, value in module.state[kind].items():
            if isinstance(value, Tensor):
                yield prefix + name, value
    for name, child in module.state["_modules"].items():
        if isinstance(child, StandIn):
            yield from _tensors(child, f"{prefix}{name}.")


def _config(state: dict[str, Tensor]) -> CLIPConfig:
    """Sizes of the unpruned model."""
    from transformers import CLIPConfig

    def tower(name: str) -> dict[str, int]:
        layers = {key.split(".")[3] for key in state if key.startswith(f"{name}.encoder.layers.")}
        hidden = state[f"{name}.embeddings.position_embedding.weight"].shape[1]
        sizes = {"hidden_size": hidden, "num_attention_heads": hidden // HEAD_SIZE, "intermediate_size": 4 * hidden}
        return sizes | {"num_hidden_layers": len(layers), "projection_dim": len(state["visual_projection.weight"])}

    patch = state["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    patches = len(state["vision_model.embeddings.position_embedding.weight"]) - 1
    words, positions = (len(state[f"text_model.embeddings.{kind}_embedding.weight"]) for kind in ("token", "position"))
    return CLIPConfig(
        vision_config=tower("vision_model") | {"patch_size": patch, "image_size": patch * round(patches**0.5)},
        text_config=tower("text_model") | {"vocab_size": words, "max_position_embeddings": positions},
        projection_dim=len(state["visual_projection.weight"]),
    )
