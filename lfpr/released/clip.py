"""The fork for CLIP of Kwon et al.'s framework: the samples that it draws, and the pruned models that it writes.

A model is `vitB16_pruned_CONSTRAINT_SEED.pt`, a whole module as one pickle. A pickle is a program, so only the tensors
in it are read: its Python objects become stand-ins that keep their state and do nothing, whatever classes and functions
the file names. The model is then built here, from the tensors' shapes.
"""

from __future__ import annotations

import copy
import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lfpr.encoder import prunable
from lfpr.files import CheckpointError, write_whole
from lfpr.shrink import resize

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel

HEAD_SIZE = 64  # in all towers of CLIP
BATCH = 32  # image-caption pairs that the loss compares
SENSITIVITY_FIRST = 2048  # annotations that sensitivity pruning draws from
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
}


def draw(total: int, count: int, seed: int, first: int | None = None) -> list[int]:
    """Places in COCO's list of `total` annotations: `count` samples as the fork draws them, in its order, with
    replacement from the `first` annotations (by default as many as samples, at least 128) by NumPy's legacy generator.

    Where there are fewer annotations than samples, as in a small set of one's own, as many samples as annotations.
    """
    count = min(count, total)
    return np.random.RandomState(seed).choice(min(max(count, 128) if first is None else first, total), count).tolist()


def save_clip(model: CLIPModel, path: str | Path) -> None:
    """Write a pruned model as the fork does, whole or not at all: `torch.save` of the module, on the CPU, so that any
    machine can read it.

    The pickle names the classes of the installed transformers, which is newer than the fork's.
    """
    model = model if model.device.type == "cpu" else copy.deepcopy(model).cpu()
    write_whole(path, lambda partial: torch.save(model, partial))


def load_clip(path: str | Path, config: CLIPConfig | None = None) -> CLIPModel:
    """The pruned model in a file of the fork or of `save_clip`, in evaluation mode, on the CPU; no code of it is run.

    config: sizes of the *unpruned* model; by default they follow from the tensors' shapes, with heads of 64 and FFNs of
    four times the hidden size, as all released CLIP models have. The kept heads and neurons of each layer follow from
    the shapes too. Raises `CheckpointError` naming the file if it is missing, cut, of another kind, or does not fit.
    """
    from transformers import CLIPModel

    state = read_module(path)
    try:
        config = config or _config(state)
        with torch.random.fork_rng(devices=[]):  # building draws initial weights that are overwritten
            model = CLIPModel(config).eval()
        for tower in ("text_model", "vision_model"):
            encoder = prunable(getattr(model, tower))
            layers = [f"{tower}.encoder.layers.{i}" for i in range(encoder.num_layers)]
            heads = [len(state[f"{layer}.self_attn.q_proj.weight"]) // encoder.head_dim for layer in layers]
            resize(encoder, heads, [len(state[f"{layer}.mlp.fc1.weight"]) for layer in layers])
        model.load_state_dict({name: value for name, value in state.items() if not name.endswith("position_ids")})
    except (KeyError, ValueError, RuntimeError, ZeroDivisionError) as error:  # the last of a width below a head's
        raise CheckpointError(f"{path} does not hold a pruned CLIP model of these sizes: {error}") from error
    return model.to(state["visual_projection.weight"].dtype)


def read_module(path: str | Path) -> dict[str, Tensor]:
    """Parameters and buffers of a module saved whole, by name, prefixes of wrappers left out. See `load_clip`."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no file {path}: expected a CLIP model saved whole")
    try:
        with zipfile.ZipFile(path) as archive:
            (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            module = _Unpickler(archive, pickled.removesuffix("data.pkl")).load()
        state = dict(_tensors(module))
    except Exception as error:  # a broken pickle raises nearly anything
        raise CheckpointError(f"{path} is not a complete module saved by torch: {error}") from error
    end = "vision_model.embeddings.class_embedding"
    prefix = next((name.removesuffix(end) for name in state if name.endswith(end)), None)
    if prefix is None:
        raise CheckpointError(f"{path} holds no CLIP model: its tensors are {sorted(state)[:5]}")
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


class _StandIn:
    """Any object of a pickle that is not a tensor: it keeps its state and does nothing."""

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    extend = add = append


class _Unpickler(pickle.Unpickler):
    """Reads tensors and plain containers of one of torch's archives, and nothing else."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")))
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return lambda storage, offset, size, stride, *_: storage.as_strided(size, stride, offset).clone()
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda tensor, *_: tensor
        return type(name, (_StandIn,), {})

    def persistent_load(self, key: tuple) -> Tensor:
        _, kind, name, *_ = key
        data = bytearray(self.archive.read(f"{self.folder}data/{name}"))
        dtype = _DTYPES[kind.__name__]
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _tensors(module: _StandIn, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for kind in ("_parameters", "_buffers"):
        for name, value in module.state[kind].items():
            if isinstance(value, Tensor):
                yield prefix + name, value
    for name, child in module.state["_modules"].items():
        if isinstance(child, _StandIn):
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
