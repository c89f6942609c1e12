"""Where artifacts live: one folder per stage, named by its parameters, made once, atomically, with its provenance.

``Runs.stage(name, parameters, build)`` returns the folder of a finished stage, building it if it is not there. The
folder's name ends with a hash of all parameters (and of the inputs' hashes that the caller puts among them), so changed
parameters never reuse stale files. A build writes into a temporary folder that is renamed when complete: a run killed
half-way leaves finished stages intact and repeats only the one it was in. A lock lets parallel jobs share a stage.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from lfpr.files import write_whole

PACKAGES = ("lfpr", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class Stage:
    """A finished stage: its folder and the numbers its build returned."""

    folder: Path
    result: dict
    provenance: dict


class Runs:
    """The artifacts below ``root/experiment/profile``."""

    def __init__(self, root: str | Path, experiment: str, profile: str) -> None:
        self.folder = Path(root) / experiment / profile

    def path(self, name: str, parameters: dict) -> Path:
        """The folder of stage ``name`` with these parameters, existing or not."""
        return self.folder / name / f"{_label(parameters)}{fingerprint(parameters)}"

    def stage(self, name: str, parameters: dict, build: Callable[[Path], dict]) -> Stage:
        """The stage, built unless finished. ``build(folder)`` writes files into ``folder`` and returns its numbers."""
        folder = self.path(name, parameters)
        if not (folder / "provenance.json").exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not (folder / "provenance.json").exists():  # another job may have built it meanwhile
                    self._build(folder, parameters, build)
        return load_stage(folder)

    def _build(self, folder: Path, parameters: dict, build: Callable[[Path], dict]) -> None:
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.mkdir(parents=True)
        start = time.perf_counter()
        result = build(unfinished)
        provenance = {
            "parameters": parameters,
            "seconds": round(time.perf_counter() - start, 2),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        }
        write_json(unfinished / "result.json", result)
        write_json(unfinished / "provenance.json", provenance)
        unfinished.rename(folder)

    def finished(self, name: str) -> list[Stage]:
        """All finished stages called ``name``, in the order of their folder names."""
        return [load_stage(file.parent) for file in sorted((self.folder / name).glob("*/provenance.json"))]


def load_stage(folder: Path) -> Stage:
    """The finished stage in ``folder``. Raises ``FileNotFoundError`` if it is not finished."""
    return Stage(
        folder,
        json.loads((folder / "result.json").read_text()),
        json.loads((folder / "provenance.json").read_text()),
    )


def fingerprint(value: object) -> str:
    """Ten hex digits that identify a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def file_hash(path: str | Path) -> str:
    """Ten hex digits that identify a file's contents; of files above 64 MB, its size and both ends."""
    path = Path(path)
    size, part = path.stat().st_size, 32 << 20
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(part))
        if size > part:
            file.seek(max(part, size - part))
            digest.update(file.read(part))
    return digest.hexdigest()[:10]


def write_json(path: str | Path, value: object) -> None:
    """Write ``value`` as JSON, atomically."""
    text = json.dumps(value, indent=1, sort_keys=True)
    write_whole(path, lambda partial: partial.write_text(text))


def _label(parameters: dict) -> str:
    """The parameters a person looks for, at the front of the folder's name."""
    shown = ("method", "heuristic", "constraint", "percentile", "seed")
    return "".join(f"{parameters[name]}-" for name in shown if parameters.get(name) is not None)
