"""States that modules are in for a while: evaluating, or without trainable parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
