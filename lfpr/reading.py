"""Reading what came from elsewhere: text and JSON of any size, names of files in files, choices of records.

Whatever a file holds, reading it ends in a value or in an error that names the file, and takes memory in proportion to
what is kept of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from lfpr.files import WHERE, DataError, existing

CHUNK = 1 << 18  # characters of JSON that are read at once
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Of images: none whose reading runs another program, as that of EPS does."""
MOST_PIXELS, NARROWEST = 50_000_000, 100
"""Of an image: decoded and converted they take 400 MB, however few bytes the file has."""
LONGEST = 1 << 20  # characters of one item of JSON: COCO's captions have some hundred


def read_text(path: str | Path, what: str) -> str:
    """The text of a file in UTF-8, without a byte order mark; `what` says what the file is, for messages.

    Raises FileNotFoundError for a missing file, and DataError for a folder, a device, or what is no such text.
    """
    path = existing(path, what)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} ({what}) is no text in UTF-8: {error}; {WHERE}") from error


def read_object(path: str | Path, what: str, lists: bool = False) -> Iterator[tuple[str, Any]]:
    """The names and values of a JSON object in a file, one by one; with `lists`, of values that are lists each item.

    No more than one of them is in memory, so that whatever is not kept costs nothing. Raises as `read_text`, and
    DataError for what is no JSON object, has a name twice, or a value (an item) of more than `LONGEST` characters.
    """
    path = existing(path, what)
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _Json(file).members(lists)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} ({what}) is no JSON object: {error}; {WHERE}") from error


class _Json:
    """The text of a file from `at` on; what is before it is forgotten."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.text, self.at = file, "", 0

    def members(self, lists: bool) -> Iterator[tuple[str, Any]]:
        names: set[str] = set()
        if self._next() == "[":
            raise ValueError("found a list")
        self._take("{")
        while self._take('"' if names else '"}') == '"':
            self.at -= 1
            name = self._value()
            if name in names:
                raise ValueError(f"{name!r:.80} is there twice")
            names.add(name)
            self._take(":")
            values = self._items() if lists and self._next() == "[" else iter((self._value(),))
            yield from ((name, value) for value in values)
            if self._take(",}") == "}":
                break
        if self._next():
            raise ValueError("there is more after its end")

    def _items(self) -> Iterator[Any]:
        self._take("[")
        if self._next() == "]":
            self.at += 1
            return
        yield self._value()
        while self._take(",]") == ",":
            yield self._value()

    def _more(self) -> bool:
        """Read on; whether there was anything."""
        chunk = self.file.read(max(CHUNK, len(self.text) - self.at))  # twice what is there: few trials of a long value
        if chunk:
            self.text, self.at = self.text[self.at :] + chunk, 0
        return bool(chunk)

    def _next(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def _take(self, allowed: str) -> str:
        found = self._next()
        if not found or found not in allowed:
            raise ValueError(f"expected {' or '.join(allowed)}, found {self.text[self.at : self.at + 20] or 'its end'}")
        self.at += 1
        return found

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:  # or the rest of it is still to be read
                if len(self.text) - self.at > LONGEST:
                    raise ValueError(f"a value of more than {LONGEST} characters, or {error.msg}") from error
                if not self._more():
                    raise
            else:
                if end < len(self.text) or not self._more():  # a number at the end may go on
                    self.at = end
                    return value


_SPACE, _DECODER = re.compile(r"[ \t\n\r]*"), json.JSONDecoder()


def read_image(path: str | Path) -> Image.Image:
    """An image file in RGB, decoded.

    Raises FileNotFoundError, and DataError naming the file if it is broken, in none of `FORMATS`, or has more than
    `MOST_PIXELS` or a shape that resizing its shorter side would make as large.
    """
    path = existing(path, "image")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS or max(image.size) > NARROWEST * min(image.size):
                raise ValueError(
                    f"{image.width} x {image.height} pixels, expected at most {MOST_PIXELS:,} and a side at most "
                    f"{NARROWEST} times the other"
                )
            return image.convert("RGB")
    except Exception as error:  # a broken file raises nearly anything
        raise DataError(f"{path} cannot be decoded ({type(error).__name__}: {error}); {WHERE}") from error


def stays_inside(name: Any) -> bool:
    """Whether a file's name, put behind a folder, is a file below it."""
    if not isinstance(name, str) or "\0" in name or Path(name).is_absolute():
        return False
    return bool(parts := Path(name).parts) and ".." not in parts


def check_inside(name: Any, where: str) -> None:
    """DataError if `name` is no name of a file below a folder that `where`, a file from outside, knows nothing of."""
    if not stays_inside(name):
        raise DataError(f"{where}: {name!r:.200} is no file's name below a folder; {WHERE}")


def whole(name: str, value: Any) -> int:
    """A whole number, negative ones too. Raises ValueError naming it."""
    from lfpr.checks import check_number  # brings in torch, which a grid's plan is read without

    return int(check_number(name, value, "a whole number", lambda number: number == int(number)))


def wholes(name: str, values: Any) -> list[int]:
    """A list, or what else can be iterated over, of whole numbers. Raises ValueError naming it or one of them."""
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping):
        raise ValueError(f"{name}: expected a list of whole numbers, found {type(values).__name__}")
    return [whole(f"{name}[{place}]", value) for place, value in enumerate(values)]


def select(
    total: int, has: str, limit: int | None, indices: Sequence[int] | None, at_most: bool = False
) -> Sequence[int]:
    """Which of `total` records: the first `limit` (`at_most`: or all, if there are fewer), `indices`, or all.

    Raises ValueError for both, for other than whole numbers, for none, and for more than there are, saying what the
    file `has`.
    """
    if indices is not None and limit is not None:
        raise ValueError("indices and limit: give one of them")
    if indices is None:
        limit = total if limit is None else whole("limit", limit)
        chosen: Sequence[int] = range(min(limit, total if at_most else total + 1))
    else:
        chosen = wholes("indices", indices)
    outside = [index for index in chosen if not 0 <= index < total]
    if outside or not chosen:
        raise ValueError(f"indices or limit: {has}, asked for {outside[:3] or limit or 'none'}")
    return chosen
