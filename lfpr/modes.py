"""States that modules are in for a while: evaluating, without trainable parameters, or such that hooks see all."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Modules in evaluation mode for a while, each submodule's own mode restored after it."""
    training = [m for module in modules for m in module.modules() if m.training]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Parameters without `requires_grad` for a while."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    try:
        for p in trainable:
            p.requires_grad_(False)
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)


_LOCK, _STANCE, _USERS = threading.Lock(), ExitStack(), []


@contextmanager
def _eager() -> Iterator[None]:
    """Without compiled code: in the whole process, as torch has it, until the last thread has left."""
    with _LOCK:
        if not _USERS:
            _STANCE.enter_context(torch.compiler.set_stance("force_eager"))
        _USERS.append(None)
    try:
        yield
    finally:
        with _LOCK:
            _USERS.pop()
            if not _USERS:
                _STANCE.close()


@contextmanager
def observable(*modules: nn.Module) -> Iterator[None]:
    """Modules whose layers hooks see once in each pass, and whole, for a while: without gradient checkpointing, which
    runs them again, without feed-forward layers in chunks, and without compiled code, which knows only hooks that were
    there when it was made. The outputs are the same, up to rounding."""
    names = ("gradient_checkpointing", "chunk_size_feed_forward")
    changed = [(vars(m), name) for module in modules for m in module.modules() for name in names if vars(m).get(name)]
    values = [attributes[name] for attributes, name in changed]
    try:
        for attributes, name in changed:
            attributes[name] = type(attributes[name])()  # False or 0
        # what is not imported has compiled nothing, and takes seconds to import
        with _eager() if "torch._dynamo" in sys.modules else nullcontext():
            yield
    finally:
        for (attributes, name), value in zip(changed, values, strict=True):
            attributes[name] = value


@contextmanager
def uncached(module: nn.Module) -> Iterator[None]:
    """A transformer whose configuration keeps no keys and values for later calls, for a while: a call with a cache
    cannot be made again."""
    configs = {
        id(c): c for m in module.modules() if getattr(c := getattr(m, "config", None), "use_cache", False) is True
    }
    try:
        for config in configs.values():
            config.use_cache = False
        yield
    finally:
        for config in configs.values():
            config.use_cache = True
