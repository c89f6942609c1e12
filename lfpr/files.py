"""Files: where the checkout and the shipped ones are, what is wrong with the user's, writing whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

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
