"""Reading checkpoints of tensors: released `.ckpt`/`.pth` files and `.safetensors`; pickled code never runs."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from lfpr.files import CheckpointError

PLAIN = [(OrderedDict, "pythia.utils.configuration.ConfigNode")]
"""Published checkpoints hold, beside the weights, the training's configuration: a dict of a class of its own."""


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict in `path` (itself, or under "model"), data-parallel prefixes removed, floats as float32.

    Raises `CheckpointError` if the file is missing, unreadable or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist (data/README.md says where to get the released ones)")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with torch.serialization.safe_globals(PLAIN):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every reader fails in its own way; all mean the same to the user
        raise CheckpointError(f"checkpoint {path} cannot be read as tensors (truncated?): {error}") from error
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f'checkpoint {path}: expected a dict of tensors, or one under "model"')
    return {
        name.removeprefix("module."): value.float() if value.is_floating_point() else value
        for name, value in state.items()
    }
