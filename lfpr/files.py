"""Files: where the checkout, the shipped ones and the user's are, and writing whole or not at all.

A file of the user's is looked for in its places in order, and the first one that exists is it (`locate`).
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:  # a grid's plan is read without torch
    from torch import Tensor

HEADER = 2**22  # bytes that the names and shapes of a safetensors file may take
WHERE = "see data/README.md for what to download"


class DataError(ValueError):
    """A data file does not hold what it should; the message names the file, what was expected and what was found."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, truncated, or not of the model's names and shapes."""


def checkout() -> Path | None:
    """The root of the source checkout that this package runs from; None where it is installed elsewhere."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "notebooks").is_dir() else None


SHIPPED = checkout() / "data" / "mini" if checkout() else Path(__file__).with_name("shipped")
"""Baselines of the mini profile; in a wheel they are in the package, by the link that is there."""


def shipped(experiment: str) -> Path:
    """The baseline of an experiment that ships with the project: a file of weights (TAP), or a model folder (CLIP)."""
    folder = SHIPPED / experiment
    return folder if folder.is_dir() else folder.with_suffix(".safetensors")


def a_path(path: str | Path, what: str) -> Path:
    """The path. Raises ValueError if it is neither text nor a path, naming what it should lead to."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"{what}: expected a path, found {type(path).__name__}")
    return Path(path)


def existing(path: str | Path, what: str) -> Path:
    """The path if a file is there. Raises FileNotFoundError that says what it should hold and where to get it,
    DataError for a folder, and for a pipe or a device, which need not end, and ValueError for what is no path."""
    path = a_path(path, what)
    try:
        there = path.is_file()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero
        raise FileNotFoundError(f"{str(path)!r:.300} is no file's name ({what}): {error}; {WHERE}") from error
    if not there:
        if os.path.exists(path):
            raise DataError(f"{path} ({what}) is {'a folder' if path.is_dir() else 'a pipe or a device'}, no file")
        raise FileNotFoundError(f"{path} is missing ({what}); {WHERE}")
    return path


class Located(NamedTuple):
    """A file or folder of the user's: `what` it is, what it is needed for, its `path` (None: it is in none of the
    `places` looked at), and whether it is `optional`."""

    what: str
    needed_for: str
    path: Path | None
    optional: bool
    places: tuple[Path, ...]

    def found(self) -> Path:
        """The path. Raises FileNotFoundError naming what is missing, and all places, if there is none."""
        if self.path is None:
            first, *others = map(str, self.places)
            also = f", and so are {', '.join(others)}" if others else ""
            raise FileNotFoundError(f"{first} is missing ({self.what}){also}; {WHERE}")
        return self.path


def locate(what: str, places: Iterable[Path], needed_for: str = "", optional: bool = False) -> Located:
    """Where something is: at the first of its places that exists. The others after it are not looked at."""
    looked = []
    for place in places:
        looked.append(place)
        if os.path.exists(place):  # Path.exists raises where a folder may not be entered
            return Located(what, needed_for, place, optional, tuple(looked))
    return Located(what, needed_for, None, optional, tuple(looked))


def missing(rows: Iterable[Located]) -> list[str]:
    """A line for each row that is required and not there, and how many they are; [] if nothing is missing."""
    lines = [
        f"- {row.what}, needed for {row.needed_for}: looked for {', '.join(map(str, row.places))}"
        for row in rows
        if row.path is None and not row.optional
    ]
    return [*lines, f"missing files or folders: {len(lines)}; {WHERE}"] if lines else []


def below(root: str | Path, folders: Iterable[str], names: Iterable[str]) -> Iterator[Path]:
    """Places: each name in each of the folders relative to `root`; ".." is the one `root` itself is in, by its name."""
    root = Path(root).absolute()
    return (Path(os.path.normpath(root / folder / name)) for name in names for folder in folders)


def hub(model: str, name: str) -> Iterator[Path]:
    """Places of file `name` of a model in the local Hugging Face cache: its main snapshot, then any other."""
    home = os.environ.get("HF_HOME") or cache_folder("huggingface")
    folder = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub"), f"models--{model.replace('/', '--')}")
    folder = folder.expanduser()
    main, snapshots = folder / "refs" / "main", folder / "snapshots"
    if os.path.isfile(main):
        yield snapshots / main.read_text(errors="replace").strip() / name
    yield from sorted(snapshots.glob(f"*/{name}"))
    yield snapshots / "*" / name


def cache_folder(name: str) -> Path:
    """The folder that a program of this name keeps downloads in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", name).expanduser()


class NotSaved(OSError):
    """What could not be written: the message names the path, why, and what to do."""


@contextmanager
def saving(path: str | Path) -> Iterator[None]:
    """Within it, what fails for want of room or permission to write `path` raises `NotSaved`."""
    try:
        yield
    except Exception as error:
        text = getattr(error, "strerror", None) or str(error)
        told = re.search(r"os error (\d+)|inline_container|iostream", text)  # by safetensors or torch, as other errors
        if isinstance(error, NotSaved) or not (isinstance(error, OSError) or told):
            raise
        code = getattr(error, "errno", None) or int((told and told[1]) or errno.ENOSPC)
        advice = "make room, or name a folder that may be written to, and do the same again: what is finished stays"
        raise NotSaved(code, f"{path} cannot be written ({text}); {advice}") from error


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write(partial)` on a temporary name beside `path` and rename it when complete; missing folders are made.
    What was there stays if that fails. Raises NotSaved."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with saving(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(partial)
            with partial.open("ab") as file:  # torch and NumPy do not notice if their last bytes found no room: try one
                size = file.tell()
                file.write(b" ")
                file.truncate(size)
            os.replace(partial, path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as JSON, whole or not at all."""
    text = json.dumps(value, indent=1, sort_keys=True)
    write_whole(path, lambda partial: partial.write_text(text))


def read_tensors(path: str | Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata. Raises FileNotFoundError that says `what` is
    expected, and ValueError for any other kind of file."""
    if not os.path.isfile(path):  # a pipe, which would be waited for, is none
        raise FileNotFoundError(f"no file {path}: expected {what}")
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    try:
        if HEADER < size <= os.path.getsize(path):
            raise SafetensorError(f"its header has {size} bytes")
        with safe_open(path, "pt") as file:
            return file.get_tensors(), file.metadata() or {}
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:  # the last three: numbers torch has not
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
