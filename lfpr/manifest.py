"""What a finished folder holds: a list of its files, written last, by which one that was cut, changed or deleted since
is noticed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from functools import cache
from pathlib import Path

from lfpr.files import write_json

NAME = "manifest.json"
LARGE = 1 << 20  # bytes of files that are read once in a process


class Damaged(ValueError):
    """A file of a finished folder is not what was written there; the message names it and the way out."""

    def __init__(self, folder: Path, name: str, what: str) -> None:
        super().__init__(
            f"{folder / name} {what}; remove the folder {folder}, and what needs it makes it anew "
            "(python -m lfpr check lists all that is damaged)"
        )
        self.folder = folder


def seal(folder: Path) -> None:
    """Write `manifest.json`: size and SHA-256 of each file below `folder`, by its name there."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    write_json(folder / NAME, {name: [path.stat().st_size, _sha256(path)] for name, path in files.items()})


def verify(folder: Path, hashed: Collection[str] | None = None) -> None:
    """Raises `Damaged` unless all files are there as they were sealed; of files not in `hashed`, if that is given, only
    the sizes are compared.

    A large file is read once in a process, and again if it has changed. A folder without a manifest, as made by earlier
    versions, passes; files that it does not name do not matter.
    """
    try:
        sealed = json.loads((folder / NAME).read_bytes())
        wanted = [(name, size, digest) for name, (size, digest) in sealed.items()]
        if not wanted:
            raise ValueError("a folder that is sealed holds something")
    except (FileNotFoundError, NotADirectoryError):
        return
    except (ValueError, TypeError, AttributeError, RecursionError, OSError):
        raise Damaged(folder, NAME, "cannot be read") from None
    for name, size, digest in wanted:
        path = f"{folder}/{name}"
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            raise Damaged(folder, name, "is missing") from None
        if found.st_size != size:
            raise Damaged(folder, name, f"is damaged: it has {found.st_size} bytes, not {size}")
        if hashed is not None and name not in hashed:
            continue
        if digest != (_known_sha256(path, size, found.st_mtime_ns) if size > LARGE else _sha256(path)):
            raise Damaged(folder, name, "is damaged: its SHA-256 is not the one in its manifest")


def _sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _known_sha256(path: str, size: int, changed: int) -> str:
    return _sha256(path)
