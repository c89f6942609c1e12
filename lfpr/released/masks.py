"""The mask files of the released frameworks: `outputs/MODEL/mscoco/CONSTRAINT/seed_SEED/{head_mask,neuron_mask}.pt`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lfpr.files import write_whole
from lfpr.masks import Masks

FILES = ("head_mask.pt", "neuron_mask.pt")


def load_masks(head_mask_or_folder: str | Path, neuron_mask: str | Path | None = None) -> Masks:
    """Read a `head_mask.pt` [L, H] and a `neuron_mask.pt` [L, N]: two files, or the folder of both.

    Files are read with `weights_only=True`, so they cannot run code. Raises FileNotFoundError, or ValueError if a file
    does not hold one tensor (or one list of equally long rows).
    """
    if neuron_mask is None:
        head_mask_or_folder, neuron_mask = (Path(head_mask_or_folder) / name for name in FILES)
    return Masks(_read(head_mask_or_folder), _read(neuron_mask))


def save_masks(masks: Masks, folder: str | Path) -> None:
    """Write `head_mask.pt` and `neuron_mask.pt` into `folder`, float32, as the released frameworks read them."""
    for name, mask in zip(FILES, (masks.heads, masks.neurons), strict=True):
        value = mask.detach().float().cpu().clone()
        write_whole(Path(folder) / name, lambda partial, value=value: torch.save(value, partial))


def _read(path: str | Path) -> Tensor:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no mask file {path}")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is cut, or that is no checkpoint at all
        raise ValueError(f"{path} is not a readable tensor file: {error}") from error
    if isinstance(value, (list, tuple)) and value and all(isinstance(row, Tensor) for row in value):
        if len({row.shape for row in value}) > 1:
            raise ValueError(f"{path}: rows of different lengths {[tuple(row.shape) for row in value]}")
        value = torch.stack(list(value))
    if not isinstance(value, Tensor):
        raise ValueError(f"{path}: expected a mask tensor, found {type(value).__name__}")
    return value.float()
