"""A papermill engine that keeps one kernel warm, so that a grid's notebooks import their modules once.

    with WarmKernel() as kernel:
        kernel.execute(notebook, output, {"constraint": 0.4})

Starting a kernel and importing torch takes many times the seconds of a small notebook. Between notebooks this kernel is
made like new instead: no names, no figures, execution counts from 1. Only modules stay, and what they keep, as
`LFPR_WARM=1` tells them that they may; random numbers without a seed are no more the same than in any new process. A
kernel that died, whose notebook failed, or that holds too much memory is replaced. Code cells tagged `diagnostic` are
left out: they show, and nothing depends on them.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import papermill
import psutil
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_async, run_sync
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat.v4 import new_output
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, NotebookExecutionManager, papermill_engines

logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of parameters whose comment has a "="
WARM = "lfpr-warm"
"""The name of the engine."""
DIAGNOSTIC = "diagnostic"
START_TIMEOUT = RESET_TIMEOUT = 120  # seconds; other jobs may keep the machine busy
LAST_LINES = 60
ARGUMENTS = ["--HistoryManager.hist_file=:memory:"]
QUIET = logging.getLogger("lfpr.kernel")  # what goes wrong is in the notebook
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False
wait = run_sync(ensure_async)


class WarmKernel:
    """A kernel for one notebook after another; starts with the first, and ends with the `with` block.

    max_memory_mb: resident memory that it may keep between notebooks. environment: variables of the kernel, beside
    those of this process. `starts` counts kernels, `client` and `manager` are Jupyter's.
    """

    def __init__(self, max_memory_mb: float = 1500, environment: Mapping[str, str] | None = None) -> None:
        self.max_memory_mb = max_memory_mb
        self.environment = {"LFPR_WARM": "1"} if environment is None else dict(environment)
        self.starts = 0
        self.manager: AsyncKernelManager | None = None
        self.client: Any = None
        self.log: Path | None = None
        self.language: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.stop(now=kind is not None)

    def execute(self, notebook: Path, output: Path, parameters: Mapping[str, Any], **options: Any) -> None:
        """Run a notebook with these parameters by papermill, into the file `output`; `options` are papermill's and
        `WarmEngine`'s. Raises PapermillExecutionError if a cell of it fails, or the kernel dies; `output` says how."""
        output.parent.mkdir(parents=True, exist_ok=True)
        options = {"progress_bar": False, **options}
        papermill.execute_notebook(notebook, output, dict(parameters), engine_name=WARM, kernel=self, **options)

    def ready(self) -> None:
        """Have a kernel like a new one, in the working directory of this process."""
        if self.manager is not None and not self._cleared():
            self.stop()
        if self.manager is None:
            self._start()

    @property
    def memory_mb(self) -> float:
        """Resident memory."""
        return psutil.Process(self.manager.provisioner.pid).memory_info().rss / 2**20

    def exit_status(self) -> str:
        """How a dead kernel ended, in words, and the last lines of its process, if it wrote any."""
        code = wait(self.manager.provisioner.poll())
        how = f"exit status {code}"
        if code is not None and code < 0:
            how = f"ended by {signal.Signals(-code).name}" + (", as when memory runs out" if code == -9 else "")
        last = self.log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
        return "\n".join([how, *last])

    def stop(self, now: bool = False) -> None:
        """End the kernel; asked to, unless `now`."""
        manager, client, self.manager, self.client = self.manager, self.client, None, None
        if manager is None:
            return
        if now:
            wait(_abandon())
        if client is not None:
            client.stop_channels()
        if not now and wait(manager.is_alive()):
            wait(manager.request_shutdown())  # shutdown_kernel would interrupt it first, and kernels complain of that
            wait(manager.finish_shutdown())
        elif manager.has_kernel:
            wait(manager.provisioner.kill())
            wait(manager.provisioner.wait())
        wait(manager.cleanup_resources())
        shutil.rmtree(Path(manager.connection_file).parent, ignore_errors=True)

    def _start(self) -> None:
        # Sockets are files: a port may be taken meanwhile, and kernels warn of ports. A socket's path has 107 bytes.
        temporary = tempfile.gettempdir()
        place = Path(tempfile.mkdtemp(prefix="lfpr-", dir=temporary if len(temporary) < 80 else "/tmp"))
        self.manager = AsyncKernelManager(
            kernel_name="python3", transport="ipc", ip=str(place / "s"), connection_file=str(place / "kernel.json")
        )
        # What its process writes, beside its cells, is of use if it dies; else it is noise, as when sockets close.
        self.log = place / "log"
        # One malloc arena: the thread of backward passes would keep another, a hundred megabytes of freed memory.
        defaults = {"MALLOC_ARENA_MAX": "1", "PYTHONFAULTHANDLER": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        environment = {**defaults, **os.environ, **self.environment}
        self.starts += 1
        try:
            with self.log.open("w") as log:
                output = {"stdout": log, "stderr": log}
                wait(self.manager.start_kernel(extra_arguments=ARGUMENTS, cwd=os.getcwd(), env=environment, **output))
            self.client = self.manager.client()
            self.client.start_channels()
            wait(self.client.wait_for_ready(timeout=START_TIMEOUT))
            reply = wait(self.client.kernel_info(reply=True, timeout=START_TIMEOUT))
        except BaseException:
            self.stop(now=True)
            raise
        self.client.allow_stdin = False
        self.language = reply["content"]["language_info"]

    def _cleared(self) -> bool:
        """Make a used kernel like new; False if it does not get there."""
        if not wait(self.manager.is_alive()):
            return False
        code = f"exec({inspect.getsource(_clear)!r} + {f'_clear({os.getcwd()!r})'!r}, {{}})"
        try:
            reply = wait(self.client.execute(code, silent=True, reply=True, timeout=RESET_TIMEOUT))
        except (TimeoutError, RuntimeError):
            return False
        return reply["content"]["status"] == "ok" and self.memory_mb <= self.max_memory_mb


async def _abandon() -> None:
    """End what a cell was waiting for when it was interrupted, which would complain of a dead kernel."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _clear(folder: str) -> None:
    """What runs in the kernel between notebooks: its source is sent there, and needs nothing of this module."""
    import contextlib
    import ctypes
    import gc
    import os
    import sys

    from IPython import get_ipython

    get_ipython().reset(new_session=True)
    os.chdir(folder)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
        sys.modules["matplotlib"].rc_file_defaults()
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.accelerator.is_available():
        torch.accelerator.empty_cache()  # which other jobs could not use
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps most of what was freed otherwise
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class _Client(PapermillNotebookClient):
    """Runs a notebook's cells in a kernel that is there."""

    def __init__(self, manager: NotebookExecutionManager, kernel: WarmKernel, **options: Any) -> None:
        super().__init__(manager, km=kernel.manager, iopub_timeout=60, **options)
        self.kernel, self.kc = kernel, kernel.client

    def execute(self, **_: Any) -> Any:
        self.reset_execution_trackers()
        self.papermill_execute_cells()
        self.set_widgets_metadata()
        self.nb.metadata["language_info"] = self.kernel.language
        return self.nb

    def execute_cell(self, cell: Any, cell_index: int, **options: Any) -> Any:
        try:
            return super().execute_cell(cell, cell_index, **options)
        except DeadKernelError:
            name, text = DeadKernelError.__name__, f"the kernel died: {self.kernel.exit_status()}"
            cell.outputs.append(new_output("error", ename=name, evalue=text, traceback=[f"{name}: {text}"]))
            raise CellExecutionError(text, name, text) from None


class WarmEngine(Engine):
    """papermill's engine `WARM`. Options: kernel, a `WarmKernel`; skip, a tag of code cells to leave out ("" for none);
    about, metadata to be kept with the notebook, as `lfpr`. There `complete` says that all of it ran: papermill calls a
    notebook complete that was interrupted."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: NotebookExecutionManager,
        kernel_name: str,
        kernel: WarmKernel,
        skip: str = DIAGNOSTIC,
        about: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        skipped = [
            index
            for index, cell in enumerate(nb_man.nb.cells)
            if cell.cell_type == "code" and skip in cell.metadata.get("tags", [])
        ]
        notes = {**(about or {}), "complete": False, "skipped": {"tag": skip, "cells": skipped}}
        nb_man.nb.metadata["lfpr"] = notes
        notes = nb_man.nb.metadata["lfpr"]  # a copy
        kernel.ready()
        try:
            _Client(nb_man, kernel, log=QUIET, kernel_name=kernel_name, skip_cells_with_tag=skip).execute()
        except BaseException:
            kernel.stop(now=True)
            raise
        notes["complete"] = not nb_man.nb.metadata.papermill.get("exception")
        if not notes["complete"]:
            kernel.stop()  # who knows what state it is in


papermill_engines.register(WARM, WarmEngine)
