"""Reading checkpoints of tensors: released `.ckpt`/`.pth` files and `.safetensors`; pickled code never runs."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from lfpr.files import CheckpointError, a_path
from lfpr.tap.archives import load_torch


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict in `path` (itself, or under "model"), data-parallel prefixes removed, floats as float32.

    Raises `CheckpointError` if the file is missing, unreadable or holds something else.
    """
    path = a_path(path, "checkpoint")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist (data/README.md says where to get the released ones)")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else load_torch(path)
    except Exception as error:  # every reader fails in its own way; all mean the same to the user
        told = str(error).rpartition("WeightsUnpickler error: ")[2]  # before it, torch recommends to do without care
        told = told.partition("\n")[0]
        raise CheckpointError(
            f"checkpoint {path} cannot be read as tensors, truncated or of another kind ({type(error).__name__}: "
            f"{told:.200})"
        ) from error
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise CheckpointError(f'checkpoint {path}: expected a dict of tensors, or one under "model"')
    return {
        name.removeprefix("module."): value.float() if value.is_floating_point() else value
        for name, value in state.items()
    }


def check_fits(path: str | Path, state: dict[str, Tensor], own: dict[str, Tensor], config: str) -> None:
    """CheckpointError unless `state`, of the file `path`, has for each tensor in `own` one of its shape and kind of
    numbers (quantised weights are no weights), without NaN and infinity; `config` is the class that says the sizes."""
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {list(state[name].shape)}, this {config} needs {list(tensor.shape)}"
            )
        if state[name].is_floating_point() != tensor.is_floating_point():
            raise CheckpointError(f"{path}: {name} is of {state[name].dtype}, expected numbers like {tensor.dtype}")
        if not state[name].isfinite().all():
            raise CheckpointError(f"{path}: {name} has NaN or infinite values")
