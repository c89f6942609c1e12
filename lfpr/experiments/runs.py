"""Where artifacts live: one folder per stage, named by its parameters, made once, atomically, with its provenance.

`Runs.stage(name, parameters, build)` returns a finished stage, building it if it is not there; `Runs.begin` does so in
a `with`, for notebooks that show how. The folder's name ends with a hash of all parameters (and of the inputs' hashes
that the caller puts among them), so changed parameters never reuse stale files. A build writes into a temporary folder
that is renamed when complete: a run killed half-way leaves finished stages intact and repeats only the one it was in. A
lock lets parallel jobs share a stage. A stage is checked against its manifest whenever it is loaded (`lfpr.manifest`).

`provenance_table` lists who made what, when and how long it took; `minutes_per_stage` adds it up.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from lfpr.files import saving, write_json
from lfpr.manifest import NAME as MANIFEST
from lfpr.manifest import Damaged, seal, verify

if TYPE_CHECKING:
    import pandas as pd

    from lfpr.experiments.cell import Cell

PACKAGES = ("lfpr", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class Stage:
    """A finished stage: its folder and the numbers its build returned."""

    folder: Path
    result: dict
    provenance: dict


class Unfinished(LookupError):
    """A stage that was only to be loaded is not there."""


class Run:
    """A stage under way: files go into `folder`; `checkpoint` is a folder that outlives an interruption; `cell`: whose
    model it makes, if it is one's."""

    cell: Cell | None = None

    def __init__(self, runs: Runs, folder: Path, parameters: dict) -> None:
        self._runs, self._place, self._parameters = runs, folder, parameters
        self.folder = folder.with_name(f"{folder.name}.unfinished")
        self.checkpoint = checkpoint_of(folder)
        self._start = time.perf_counter()
        for old in (self.folder, folder):
            shutil.rmtree(old, ignore_errors=True)
        with saving(self.folder):
            self.folder.mkdir(parents=True)

    @property
    def seconds(self) -> float:
        """How long it has taken so far, without the stages that it needed."""
        return round(time.perf_counter() - self._start - self._runs._inner, 2)

    def finish(self, result: dict) -> None:
        """Keep the stage, with its numbers and provenance; whole or not at all."""
        provenance = {
            "parameters": self._parameters,
            "seconds": self.seconds,
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
            "host": platform.node(),
            "threads": _threads(),
            "device": self._runs.device,
            "commit": commit(),
            "sealed": True,  # earlier versions wrote no manifest
        }
        write_json(self.folder / "result.json", result)
        write_json(self.folder / "provenance.json", provenance)
        with saving(self._place):
            seal(self.folder)
            self.folder.rename(self._place)
        shutil.rmtree(self.checkpoint, ignore_errors=True)


def checkpoint_of(folder: Path) -> Path:
    """Where the checkpoint of a training is whose stage will be in `folder`."""
    return folder.with_name(f"{folder.name}.checkpoint")


class Runs:
    """The artifacts below `root/experiment/profile`. `before()` is called before a stage is built; device: on which,
    for its provenance."""

    def __init__(
        self,
        root: str | Path,
        experiment: str,
        profile: str,
        before: Callable[[], object] = lambda: None,
        device: str = "cpu",
    ) -> None:
        self.folder, self._before, self.device = Path(root) / experiment / profile, before, device
        self._load_only = False
        self._inner = 0.0  # seconds that the stage under way has spent on, or waited for, stages it needs

    @contextmanager
    def load_only(self) -> Iterator[None]:
        """Within it a stage that is not finished raises `Unfinished` instead of being built."""
        before, self._load_only = self._load_only, True
        try:
            yield
        finally:
            self._load_only = before

    def path(self, name: str, parameters: dict) -> Path:
        """The folder of stage `name` with these parameters, existing or not."""
        return self.folder / name / f"{_label(parameters)}{fingerprint(parameters)}"

    def stage(self, name: str, parameters: dict, build: Callable[[Path], dict]) -> Stage:
        """The stage, built unless finished. `build(folder)` writes files into `folder` and returns its numbers."""
        with self.begin(name, parameters) as run:
            if run:
                run.finish(build(run.folder))
        return self.load(name, parameters)

    def load(self, name: str, parameters: dict) -> Stage:
        """The finished stage. Raises `Unfinished` if it is not there, `Damaged` if it is not as it was made."""
        folder = self.path(name, parameters)
        if not (folder / "provenance.json").exists():
            raise Unfinished(f"stage {name} with {parameters} is not finished: no folder {folder}")
        return load_stage(folder)

    @contextmanager
    def begin(self, name: str, parameters: dict) -> Iterator[Run | None]:
        """The stage under way, to be built within the `with`; None if it is finished.

        Jobs that want the same stage wait for each other. What is not `finish`ed leaves no stage behind. Raises
        NotSaved where nothing can be written; an interruption (KeyboardInterrupt) says how to go on.
        """
        folder = self.path(name, parameters)
        if (folder / "provenance.json").exists():
            shutil.rmtree(checkpoint_of(folder), ignore_errors=True)  # of a job that was killed as it finished
            yield None
            return
        if self._load_only:
            raise Unfinished(f"stage {name} with {parameters} is not finished: no folder {folder}")
        self._before()
        start, before, lock = time.perf_counter(), self._inner, FileLock(f"{folder}.lock")
        try:
            with saving(folder):
                folder.parent.mkdir(parents=True, exist_ok=True)
                lock.acquire()
            if (folder / "provenance.json").exists():  # another job has built it meanwhile
                yield None
            else:
                self._inner = 0.0
                yield Run(self, folder, parameters)
        except KeyboardInterrupt as stopped:
            stopped.add_note(f"stage {name} was interrupted: the same again goes on from what {folder.parent} has")
            raise
        finally:
            lock.release()
            self._inner = before + time.perf_counter() - start

    def finished(self, name: str) -> list[Stage]:
        """All finished stages called `name`, in the order of their folder names."""
        return [load_stage(folder) for folder in finished_stages(self.folder, f"{name}/*")]


def finished_stages(runs: Path, pattern: str) -> list[Path]:
    """The folders of finished stages below `runs` that match the pattern, in order. Other jobs may rename and remove
    theirs meanwhile, which pathlib's own glob does not survive."""
    files = (Path(runs, name) for name in glob.glob(f"{pattern}/provenance.json", root_dir=runs))
    return sorted(file.parent for file in files if file.parent.suffix != ".unfinished")


def load_stage(folder: Path) -> Stage:
    """The finished stage in `folder`. Raises `Damaged` for one that lacks a file, or has one that was changed since."""
    verify(folder)
    return Stage(folder, _read(folder, "result.json"), _provenance(folder))


def read_provenance(folder: Path) -> dict:
    """Who made a finished stage, when, and how. Raises `Damaged` if a file of the stage is missing or of another size,
    or the provenance itself was changed."""
    verify(folder, hashed=["provenance.json"])
    return _provenance(folder)


def _provenance(folder: Path) -> dict:
    provenance = _read(folder, "provenance.json")
    if not isinstance(provenance, dict):
        raise Damaged(folder, "provenance.json", "cannot be read")
    if provenance.get("sealed") and not (folder / MANIFEST).is_file():
        raise Damaged(folder, MANIFEST, "is missing")
    return provenance


def _read(folder: Path, name: str) -> dict:
    try:
        return json.loads((folder / name).read_bytes())
    except FileNotFoundError:
        raise Damaged(folder, name, "is missing") from None
    except (ValueError, RecursionError):
        raise Damaged(folder, name, "cannot be read") from None


@cache
def commit() -> str | None:
    """The git commit of this package's source, with `+` if its files differ from it; None outside a checkout."""
    source = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", source.name)  # installed inside another project's checkout: not its commit
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def provenance_table(runs: str | Path) -> pd.DataFrame:
    """A row per finished stage below the folder `runs`, oldest first.

    Columns: experiment, profile, stage, label (the folder's name), seconds (without those of stages it needed),
    peak_memory_mb (of the process), threads, commit, host, finished (UTC). What an older stage lacks is None.
    """
    import pandas as pd  # only readers of tables pay for it

    recorded = ("seconds", "peak_memory_mb", "threads", "commit", "host", "finished")
    rows = []
    for folder in finished_stages(runs, "*/*/*/*"):
        experiment, profile, stage, label = folder.relative_to(runs).parts
        found = read_provenance(folder)
        about = {"experiment": experiment, "profile": profile, "stage": stage, "label": label}
        rows.append(about | {name: found.get(name) for name in recorded})
    columns = ["experiment", "profile", "stage", "label", *recorded]
    return pd.DataFrame(rows, columns=columns).sort_values(["finished", "label"], ignore_index=True)


def minutes_per_stage(provenance: pd.DataFrame) -> pd.DataFrame:
    """Of `provenance_table`'s rows, by experiment, profile and stage: how many, minutes in all, largest memory."""
    groups = provenance.groupby(["experiment", "profile", "stage"])
    return groups.agg(
        stages=("label", "count"),
        minutes=("seconds", lambda seconds: round(seconds.sum() / 60, 1)),
        peak_memory_mb=("peak_memory_mb", "max"),
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


def _threads() -> int:
    import torch  # whatever builds a stage has loaded it

    return torch.get_num_threads()


def _label(parameters: dict) -> str:
    """The parameters a person looks for, at the front of the folder's name."""
    shown = ("method", "heuristic", "constraint", "percentile", "seed")
    return "".join(f"{parameters[name]}-" for name in shown if parameters.get(name) is not None)
