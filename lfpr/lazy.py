"""Attributes of a package that are imported when they are first used (PEP 562), so that importing it stays cheap, and
what is to be done once another package is imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def lazy(
    package: str, modules: Collection[str] = (), names: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of `package`: its submodules `modules`, and `names` from the modules they map to. A
    name that is its module's too stays what it is when that is imported, whatever Python binds to it then."""
    names = names or {}

    class Package(ModuleType):
        def __setattr__(self, name: str, value: Any) -> None:
            if isinstance(value, ModuleType) and value.__name__ == names.get(name) == f"{package}.{name}":
                value = getattr(value, name)
            super().__setattr__(name, value)

    sys.modules[package].__class__ = Package

    def get(name: str) -> Any:
        if name in names:
            value = getattr(importlib.import_module(names[name]), name)
        elif name in modules:
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *modules, *names})


def when_imported(module: str, do: Callable[[], object]) -> None:
    """Call `do` as soon as `module`, of whatever package, is imported: now if it is, or else by a finder that Python
    asks first."""
    if module in sys.modules:
        do()
        return

    class Finder:
        @staticmethod
        def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
            spec = PathFinder.find_spec(name, path) if name == module else None
            if spec is not None and spec.loader is not None:
                run = spec.loader.exec_module

                def run_and_do(loaded: ModuleType) -> None:
                    run(loaded)
                    do()

                spec.loader.exec_module = run_and_do
            return spec

    sys.meta_path.insert(0, Finder)
