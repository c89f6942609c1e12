"""What a field of a cell or of settings, a parameter of a notebook, or an entry of a grid may be, by its annotation.

Values are taken as what they are, never as what they merely count as. Ranges of numbers that every caller may pass are
checked in `lfpr.checks`; here nothing needs torch, and a plan of a grid is looked through without it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

WORDS = {
    bool: "True or False", int: "a whole number", float: "a finite number", str: "text", dict: "a mapping",
    Path: "a path", NoneType: "None",
}  # fmt: skip
HINTS = {
    (str, bool): "; papermill's -p reads True and False, but true, false and all of -r are text",
    (str, float): "; YAML reads 1e-5 as text, and 1.0e-5 as a number; all of papermill's -r is text",
    (bool, str): "; YAML reads yes and no as True and False: quote them",
    (float, str): "; papermill's -p reads numbers, -r text",
}
"""What was given, and what is wanted -> what may have gone wrong on the way from the shell."""


def check_type(name: str, value: Any, annotation: Any) -> Any:
    """The value, as a plain one, if it is what an annotation says, such as `float | None`, `bool | Literal["own"]`,
    `tuple[int, int]` (which may come as a list) or a class. Text is never taken for a number, or for True or False, and
    empty text for nothing but `Literal[""]`. Raises ValueError naming the value and what is allowed."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    found = value
    if hasattr(value, "item"):  # a number of NumPy's or torch's, which are there then
        from lfpr.checks import plain

        found = plain(value)
    for kind in kinds:
        parts = get_args(kind)
        if kind in (int, float):
            if _is_number(found) and (kind is float or found == int(found)):
                return found if kind is float else int(found)
        elif get_origin(kind) is tuple:
            if isinstance(found, list | tuple) and len(found) == len(parts):
                return tuple(check_type(name, *pair) for pair in zip(found, parts, strict=True))
        elif (isinstance(found, str) and found in parts) if parts else isinstance(found, kind) and found != "":
            return found
    given, *wanted = (float if kind is int else kind for kind in (type(found), *kinds))
    hint = next((text for (one, other), text in HINTS.items() if one is given and other in wanted), "")
    raise ValueError(f"{name} = {value!r}: must be {' or '.join(map(_named, kinds))}{hint}")


def _named(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"a list of {len(get_args(kind))}"
    return WORDS.get(kind) or " or ".join(map(repr, get_args(kind))) or f"a {kind.__name__}"


def check_fields(owner: object) -> None:
    """The fields of a dataclass by their annotations (`check_type`); a frozen one's, too, become plain values."""
    kinds = get_type_hints(type(owner))
    for field in fields(owner):
        object.__setattr__(owner, field.name, check_type(field.name, getattr(owner, field.name), kinds[field.name]))


def check_range(name: str, value: Any, allowed: str, fits: Callable[[Any], bool]) -> None:
    """Raise ValueError naming a value that does not fit, and in words what does."""
    if not fits(value):
        raise ValueError(f"{name} = {value!r}: must be {allowed}")


def check_count(name: str, value: Any, least: int = 0, most: float = math.inf) -> None:
    """Raise ValueError for what is no whole number from `least` to `most`."""
    allowed = f"a whole number of at least {least}" if most == math.inf else f"a whole number from {least} to {most}"
    check_range(name, check_type(name, value, int), allowed, lambda count: least <= count <= most)


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold, not a flag."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
