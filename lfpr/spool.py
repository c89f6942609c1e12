"""Tensors kept in a temporary file, so that memory does not grow with their number."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """Where a tensor is in a `Spool`."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class Spool:
    """Tensors in an unnamed temporary file in `folder` (by default, the system's place for such files)."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as this object is
        self.end = 0

    def put(self, x: Tensor, slot: Slot | None = None) -> Slot:
        """Write a tensor, in the place of another one of its size if `slot` is given."""
        data = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        if slot is None:
            slot = Slot(self.end, x.shape, x.dtype, x.device)
            self.end += data.nbytes
        elif (slot.shape, slot.dtype) != (x.shape, x.dtype):
            raise ValueError(f"a tensor {tuple(x.shape)} of {x.dtype} in the place of {tuple(slot.shape)}")
        self.file.seek(slot.offset)
        self.file.write(data)
        return slot

    def get(self, slot: Slot) -> Tensor:
        """The tensor written last to `slot`, on the device it came from."""
        count = math.prod(slot.shape)
        if not count:
            return torch.empty(slot.shape, dtype=slot.dtype, device=slot.device)
        data = bytearray(count * slot.dtype.itemsize)
        self.file.seek(slot.offset)
        self.file.readinto(data)
        return torch.frombuffer(data, dtype=slot.dtype).view(slot.shape).to(slot.device)

    def close(self) -> None:
        """Remove the file."""
        self.file.close()
