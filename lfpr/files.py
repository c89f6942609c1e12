"""Files: where the checkout, the shipped ones and the user's are, and writing whole or not at all.

A file of the user's is looked for in its places in order, and the first one that exists is it (`locate`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

SHIPPED = Path(__file__).parents[1] / "data" / "mini"  # baselines of the mini profile
WHERE = "see data/README.md for what to download"


class DataError(ValueError):
    """A data file does not hold what it should; the message names the file, what was expected and what was found."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, truncated, or not of the model's names and shapes."""


def checkout() -> Path | None:
    """The root of the source checkout that this package runs from; None where it is installed elsewhere."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "notebooks").is_dir() else None


def shipped(experiment: str) -> Path:
    """The baseline of an experiment that ships with the project: a file of weights (TAP), or a model folder (CLIP)."""
    folder = SHIPPED / experiment
    return folder if folder.is_dir() else folder.with_suffix(".safetensors")


def existing(path: str | Path, what: str) -> Path:
    """The path if a file is there; FileNotFoundError that says what it should hold and where to get it otherwise."""
    path = Path(path)
    if not path.is_file():
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
        yield snapshots / main.read_text().strip() / name
    yield from sorted(snapshots.glob(f"*/{name}"))
    yield snapshots / "*" / name


def cache_folder(name: str) -> Path:
    """The folder that a program of this name keeps downloads in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", name).expanduser()


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write(partial)` on a temporary name beside `path` and rename it when complete; missing folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as JSON, whole or not at all."""
    text = json.dumps(value, indent=1, sort_keys=True)
    write_whole(path, lambda partial: partial.write_text(text))
