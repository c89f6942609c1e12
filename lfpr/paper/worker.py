"""A process beside the notebook that computes what takes long, so that the notebook's kernel answers meanwhile.

It is started for the first task and kept, since its imports take seconds. What it computes are stages in `runs/`, which
the notebook then loads; only progress, and what went wrong, comes back through a pipe.
"""

from __future__ import annotations

import asyncio
import atexit
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from lfpr.experiments.experiment import Experiment
from lfpr.experiments.runs import Runs
from lfpr.paper.explore import Explorer
from lfpr.progress import Listener, told

PATIENCE = 15  # seconds that a task may take to end once it is stopped
PAUSE = 0.1  # seconds between two looks at the pipe, and between two reports of progress


class Stopped(Exception):
    """The task was stopped, and has left nothing half-written."""


class Failed(Exception):
    """The task raised an error, whose words these are."""


class Task(NamedTuple):
    """To compute stage "pruned" or "retrained" of a choice, or what its "masks" need."""

    stage: str
    experiment: str
    method: str
    constraint: float
    seed: int


class Worker:
    """Does one `Task` at a time; `open_one(name)` opens an experiment, and is pickled."""

    def __init__(self, open_one: Callable[[str], Experiment]) -> None:
        self._open_one, self._process, self._pipe = open_one, None, None
        self._begun, self._stopping = False, None

    async def do(self, task: Task, listener: Listener) -> None:
        """Return when it is done; `listener` gets its progress (`lfpr.progress.told`). Raises Stopped, or Failed."""
        if self._process is None or not self._process.is_alive():
            self.close()
            self._start()
        self._begun, self._stopping = False, None
        self._pipe.send(task)
        while True:
            try:
                kind, content = self._pipe.recv() if self._pipe.poll() else ("nothing", None)
            except (EOFError, OSError):
                kind, content = ("stopped" if self._stopping else "failed"), "its process ended"
                self.close()
            if kind == "begun":
                self._begun = True
            elif kind == "progress":
                listener(*content)
            elif kind == "nothing":
                if self._stopping and time.monotonic() > self._stopping + PATIENCE:
                    self._process.kill()
                await asyncio.sleep(PAUSE)
            elif kind == "done":
                return
            else:
                raise Stopped if kind == "stopped" else Failed(content)

    def stop(self) -> None:
        """End the task under way."""
        if self._process is not None and not self._stopping:
            self._stopping = time.monotonic()
            with suppress(OSError):  # it ended meanwhile
                self._pipe.send(None)  # should the interruption be lost, as in a destructor
            os.kill(self._process.pid, signal.SIGINT if self._begun else signal.SIGKILL)

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            atexit.unregister(self.close)
            self._pipe.close()
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit the kernel's threads and sockets
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(self._open_one, other), name="lfpr")
        self._process.start()
        other.close()
        atexit.register(self.close)  # a process with processes of its own (for batches) cannot be a daemon


def serve(open_one: Callable[[str], Experiment], pipe: Connection) -> None:
    """Do the tasks that come through the pipe, until it is closed. An interruption ends a task, not the process."""
    with open(os.devnull, "w") as nowhere:  # a kernel shows what its processes print under some cell
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # an idle kernel ignores it, and so do its processes
    last = 0.0

    def report(title: str, done: int, total: int | None) -> None:
        nonlocal last
        if pipe.poll():  # nothing but a stop comes during a task
            raise KeyboardInterrupt
        if time.monotonic() > last + PAUSE or not done or done == total:
            last = time.monotonic()
            pipe.send(("progress", (title, done, total)))

    while True:
        try:
            task = pipe.recv()
        except KeyboardInterrupt:  # it came when the task had just been done
            continue
        except (EOFError, OSError):
            return
        if task is None:  # a stop that has been obeyed
            continue
        explorer = None
        try:
            pipe.send(("begun", None))
            with told(report):
                explorer = Explorer(open_one(task.experiment))
                compute(explorer, task)
            answer = "done", None
        except KeyboardInterrupt:
            if explorer:
                discard(explorer.experiment.runs)
            answer = "stopped", None
        except (ValueError, OSError) as error:
            answer = "failed", str(error)
        except Exception as error:
            answer = "failed", f"{type(error).__name__}: {error}"
        pipe.send(answer)


def compute(explorer: Explorer, task: Task) -> None:
    """Have in `runs/` what a task asks for, and the unpruned model's score with any other."""
    choice = task.method, task.constraint, task.seed
    if task.stage == "masks":
        explorer.masks(*choice)
    else:
        explorer.unpruned(compute=True)
        explorer.stage(task.stage, *choice, compute=True)


def discard(runs: Runs) -> None:
    """Remove what stages left that were interrupted; checkpoints, from which retraining goes on, stay."""
    for folder in runs.folder.glob("*/*.unfinished"):
        lock = Path(f"{folder.with_suffix('')}.lock")
        with suppress(Timeout, OSError), FileLock(lock, timeout=0):  # else another job is at it
            shutil.rmtree(folder)
            lock.unlink()
