"""Progress bars over batches, as widgets in notebooks and as lines in terminals."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T", bound=Iterable)


def bar(batches: T, title: str | None, **options: Any) -> T:
    """`batches` under a bar that shows what is done and the time left, and goes away in the end; `options` are tqdm's.

    None without a title, or where the environment says TQDM_DISABLE=1, which tqdm's widgets would not obey.
    """
    if title is None or os.environ.get("TQDM_DISABLE", "0") not in ("", "0"):
        return batches
    from tqdm.auto import tqdm  # only those who see it wait for it

    return tqdm(batches, desc=title, leave=False, disable=False, **options)
