"""Progress bars over batches, as widgets in notebooks and as lines in terminals, or told to whoever listens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T", bound=Iterable)
Listener = Callable[[str, int, int | None], object]
_listeners: list[Listener] = []


def bar(batches: T, title: str | None, **options: Any) -> T:
    """`batches` under a bar that shows what is done and the time left, and goes away in the end; `options` are tqdm's.

    None without a title, or where the environment says TQDM_DISABLE=1, which tqdm's widgets would not obey. Within
    `told` there is no bar either.
    """
    if title is not None and _listeners:
        return _tell(batches, title, **options)
    if title is None or os.environ.get("TQDM_DISABLE", "0") not in ("", "0"):
        return batches
    from tqdm.auto import tqdm  # only those who see it wait for it

    return tqdm(batches, desc=title, leave=False, disable=False, **options)


@contextmanager
def told(listener: Listener) -> Iterator[None]:
    """Within it `listener(title, done, total)` gets what bars would show, before the first batch and after each; total
    is None if it is not known."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.pop()


def _tell(batches: Iterable, title: str, total: int | None = None, initial: int = 0) -> Iterator:
    if total is None and hasattr(batches, "__len__"):
        total = len(batches)
    listener = _listeners[-1]
    listener(title, initial, total)
    for done, batch in enumerate(batches, initial + 1):
        yield batch
        listener(title, done, total)
