"""Where models and batches are: the device that a user names, batches on their way to it, and how precisely it works.

Whoever iterates over batches moves them to the model's device (`OnDevice`); nothing else here knows of devices.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

RUNNING = ("no", "bf16")
"""Precisions of what only runs a model, without gradients."""


def find_device(device: str | torch.device = "auto") -> torch.device:
    """The device named "auto" (an accelerator if there is one), "cpu", "cuda", "cuda:1" ..., with its number; of
    processes that were launched together, each gets one of its own where the name says none. It becomes the current
    one, which whatever measures time or memory asks.

    Apple's is not taken: it lacks float64, which sums are in. Raises ValueError for another name, and for a device that
    this machine does not have.
    """
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    here = None if here is None or here.type == "mps" else here
    count = torch.accelerator.device_count() if here else 0
    allowed = ["auto", "cpu", *([here.type, *(f"{here.type}:{i}" for i in range(count))] if here else [])]
    if str(device) not in allowed:
        raise ValueError(f"device = {str(device)!r}: must be one of {allowed} on this machine")
    if str(device) == "cpu" or here is None:
        return torch.device("cpu")
    index = None if str(device) == "auto" else torch.device(device).index
    if index is None:
        rank = os.environ.get("LOCAL_RANK")  # as `accelerate launch` and `torchrun` set it
        index = torch.accelerator.current_device_index() if rank is None else int(rank) % count
    torch.accelerator.set_device_index(index)
    return torch.device(here.type, index)


def describe(device: torch.device) -> str:
    """A device by its name here and, of a GPU, its maker's: "cpu", "cuda:0 (NVIDIA H100)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def moved(batch: Any, device: torch.device) -> Any:
    """`batch` with its tensors on `device`: a tensor, whatever has a method `to`, or mappings, lists and tuples of
    them; anything else stays as it is. Copies from pinned memory do not wait; those to the CPU do, or it would read
    what has not arrived."""
    if hasattr(batch, "to"):
        return batch.to(device, non_blocking=device.type != "cpu")
    if isinstance(batch, Mapping):
        return {name: moved(value, device) for name, value in batch.items()}
    if isinstance(batch, list | tuple):
        parts = [moved(value, device) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


class OnDevice:
    """`batches`, each `moved` to `device` when its turn comes; as long and as often to be iterated as they are."""

    def __init__(self, batches: Iterable[Any], device: torch.device) -> None:
        self.batches, self.device = batches, device

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return (moved(batch, self.device) for batch in self.batches)


def running(device: torch.device, precision: str = "no") -> AbstractContextManager:
    """Within it, models run on `device` in mixed precision "bf16", or, with "no", as their weights say."""
    if precision == "no":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def synchronise(device: torch.device | None = None) -> None:
    """Wait until a device, by default the current accelerator, if there is one, has done all that it was given: before
    the clock is read."""
    if torch.accelerator.is_available() and (device is None or device.type != "cpu"):
        torch.accelerator.synchronize(device)


def memory_mb() -> float:
    """Most memory that tensors have taken of the accelerator since `forget_memory`, in MB (2²⁰ bytes); 0 without
    one."""
    return torch.accelerator.max_memory_allocated() / 2**20 if torch.accelerator.is_available() else 0.0


def forget_memory() -> None:
    """From now on `memory_mb` counts anew."""
    if torch.accelerator.is_available():
        torch.accelerator.reset_peak_memory_stats()
