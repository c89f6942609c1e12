"""A small experiment in processes of their own, to which something happens at a chosen call of a chosen function."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import small_tap
import torch

import lfpr.experiments.tap
import lfpr.mini.datasets
import lfpr.released  # noqa: F401  (what stages import when they need it: once for all processes)
from lfpr.progress import bar

CONTEXT = multiprocessing.get_context("forkserver")  # has loaded the modules, and none of this process's threads
CONTEXT.set_forkserver_preload(["faulty"])
PATIENCE = 120  # seconds


def start(work: Callable, *arguments, threads: int = 1) -> multiprocessing.Process:
    """`work(*arguments)` in a process of its own, under way."""
    process = CONTEXT.Process(target=_alone, args=(threads, work, *arguments))
    with patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(sys.path)}):  # of the first one, which loads modules
        process.start()
    return process


def ended(process: multiprocessing.Process) -> int:
    """Its exit status, once it has ended: -9 if it was killed, 1 after an error."""
    process.join(PATIENCE)
    return process.exitcode


def _alone(threads: int, work: Callable, *arguments) -> None:
    torch.set_num_threads(threads)
    work(*arguments)


def at(place: str, call: int, happens: Callable) -> None:
    """From now on, call number `call` (0: every one) of the function at `place`, such as "lfpr.files:os.replace",
    begins with `happens`, which gets its arguments."""
    module, _, path = place.partition(":")
    *outer, name = path.split(".")
    owner, calls = importlib.import_module(module), []
    for part in outer:
        owner = getattr(owner, part)
    function = getattr(owner, name)

    def counted(*args, **options):
        calls.append(1)
        if call in (0, len(calls)):
            happens(*args, **options)
        return function(*args, **options)

    setattr(owner, name, counted)


def kill(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_half_written(value: object, path: Path) -> None:
    """In place of `torch.save`."""
    path.write_bytes(b"PK half of a file")
    kill()


def kill_at_checkpoint(folder: Path, **_) -> None:
    """As a checkpoint is removed, when the stage that it was for is finished."""
    if folder.suffix == ".checkpoint" and folder.exists():
        kill()


def interrupt(*_, **__) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes from what it runs in the background
    signal.raise_signal(signal.SIGINT)


def fill_disk(*_, **__) -> None:
    """From now on writing fails as on a full disk, in all libraries."""
    _limit_files(10)


@contextmanager
def full_disk(room: int = 10) -> Iterator[None]:
    """Within it no file can have more bytes than there is `room`."""
    before = _limit_files(room)
    try:
        yield
    finally:
        _limit_files(before)


def _limit_files(size: int) -> int:
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    return before


def stage(runs: Path, place: str = "", call: int = 1, happens: Callable = kill) -> None:
    """The stages of `small_tap.stage`; at `place`, if there is one, something happens."""
    if place:
        at(place, call, happens)
    small_tap.stage(runs, checkpoint_every=2)


def wait_inside(runs: Path, inside, waiting, happens: Callable = lambda: None) -> None:
    """The stages, slow: within importance, all locks held, this waits until another process does."""

    def wait(*_, **__) -> None:
        inside.set()
        assert waiting.wait(PATIENCE)
        happens()

    stage(runs, "lfpr.tap.model:TAP.generate", 1, wait)


def join(runs: Path, waiting) -> None:
    """The stages, which another process is making."""
    stage(runs, "filelock:BaseFileLock.acquire", 2, lambda *_, **__: waiting.set())  # after the lock of the data


def count_for(seconds: int) -> None:
    """Take that long, and report progress every tenth of a second."""
    for _ in bar(range(10 * seconds), "count"):
        time.sleep(0.1)
