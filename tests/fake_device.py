"""An accelerator that is none: tensors that say they are elsewhere, an error where one that stayed behind meets them.

`Elsewhere` tensors report the device "meta" and hold their values on the CPU. Within `fake_device()` whatever is made
on, or moved to, that device becomes one; an operation that mixes them with tensors of the CPU raises `LeftBehind`, as a
GPU's would, and what is read back (`cpu()`, `item()`, `tolist()`) is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from lfpr import oddities
from lfpr.experiments import task as tasks

DEVICE = torch.device("meta")
CPU = torch.device("cpu")


class LeftBehind(RuntimeError):
    """A tensor on the CPU met one on the device."""


class Elsewhere(Tensor):
    """A tensor on the fake device."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
            requires_grad=False,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"Elsewhere({self.inner!r})"

    def tolist(self):
        return self.cpu().tolist()

    def __deepcopy__(self, memo):
        copied = Elsewhere(self.inner.clone())
        return torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


MOVES = ("aten::_to_copy", "aten::copy_")
reads: Counter = Counter()


def run(func, args, kwargs):
    name = func._schema.name
    tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    away = [x for x in tensors if isinstance(x, Elsewhere)]
    here = [x for x in tensors if not isinstance(x, Elsewhere) and x.ndim]  # a number may come from the CPU
    indexing = name.startswith("aten::index") and all(x.dtype in (torch.int64, torch.bool) for x in here)
    if away and here and name not in MOVES and not indexing:
        raise LeftBehind(f"{name}: {[tuple(x.shape) for x in here]} stayed on the CPU")
    target = kwargs.get("device")
    elsewhere = bool(away)
    if target is not None:
        elsewhere = torch.device(target).type == DEVICE.type
        kwargs = {**kwargs, "device": CPU}
    if name == "aten::_local_scalar_dense" or (away and not elsewhere):
        reads[name] += 1
    inner_args, inner_kwargs = tree_map_only(Elsewhere, lambda x: x.inner, (args, kwargs))
    result = func(*inner_args, **inner_kwargs)
    if name.endswith("_") and away and args and isinstance(args[0], Tensor):  # in place: the same tensor
        return args[0]
    return tree_map_only(Tensor, Elsewhere, result) if elsewhere else result


class _Factories(TorchDispatchMode):
    """Tensors that are made on the device from nothing, or moved to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        target = kwargs.get("device")
        if target is not None and torch.device(target).type == DEVICE.type:
            return run(func, args, kwargs)
        return func(*args, **kwargs)


class _Literals(TorchFunctionMode):
    """`torch.tensor([...], device=...)`, which does not pass through the dispatcher."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        target = kwargs.get("device")
        if func is torch.tensor and target is not None and torch.device(target).type == DEVICE.type:
            return func(*args, **{**kwargs, "device": CPU}).to(DEVICE)
        return func(*args, **kwargs)


class _RandomNumbers:
    """The device's random numbers are the CPU's. It is no accelerator that torch was built for."""

    @staticmethod
    def is_available():
        return False

    @staticmethod
    def get_rng_state(device):
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state, device):
        torch.set_rng_state(state)


@contextmanager
def fake_device() -> Iterator[torch.device]:
    """The device; experiments opened within it are on it, whatever they are told."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    reads.clear()
    try:
        with (
            patch.object(tasks, "find_device", lambda device: DEVICE),
            patch.object(oddities, "WEIGHTS", {torch.nn.Parameter, Elsewhere}),
            patch.object(torch, "get_device_module", lambda device: _RandomNumbers),
            patch.object(torch, "autocast", lambda device, dtype: nullcontext()),
            _Factories(),
            _Literals(),
        ):
            yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
