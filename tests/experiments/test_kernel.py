"""One kernel runs notebook after notebook as if each had a new one, and is replaced when it cannot."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from papermill.exceptions import PapermillExecutionError
from small_notebooks import write

from lfpr.experiments.kernel import WarmKernel


def execute(path, kernel, **parameters):
    """The executed notebook, and what its code cells printed."""
    out = path.with_suffix(".out.ipynb")
    kernel.execute(path, out, parameters, cwd=path.parent)
    return read(out)


def read(out):
    notebook = nbformat.read(out, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return notebook, ["".join(output.get("text", "") for output in cell.outputs).strip() for cell in code]


def test_notebooks_find_modules_but_nothing_else_of_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "slow.py").write_text("open('imports.txt', 'a').write('imported ')\n")
    first = write(
        tmp_path / "first.ipynb",
        ("parameters", "budget = 1"),
        "%matplotlib inline\nimport os, slow, matplotlib.pyplot as plt",
        "secret = 1\nfigure = plt.figure()\nplt.rcParams['lines.linewidth'] = 9",
        "print(budget, os.environ['LFPR_WARM'], os.environ['OMP_NUM_THREADS'])",
        "os.chdir('/')",
        "5",
    )
    second = write(
        tmp_path / "second.ipynb",
        "import os, slow, matplotlib.pyplot as plt\nprint([name for name in ('secret', 'budget') if name in dir()])",
        "print(plt.get_fignums(), plt.rcParams['lines.linewidth'], len(Out), os.getcwd())",
    )
    with WarmKernel() as kernel:
        notebook, printed = execute(first, kernel, budget=2)
        pid = kernel.manager.provisioner.pid
        again, printed_again = execute(first, kernel, budget=3)
        other, printed_other = execute(second, kernel)
        assert kernel.manager.provisioner.pid == pid and kernel.starts == 1
    assert (tmp_path / "imports.txt").read_text() == "imported "
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4, 5, 6, 7]
    assert [cell.execution_count for cell in again.cells if cell.cell_type == "code"] == [1, 2, 3, 4, 5, 6, 7]
    assert [cell.execution_count for cell in other.cells if cell.cell_type == "code"] == [1, 2]
    assert printed[4].split()[0] == "2" and printed_again[4].split()[0] == "3"
    assert printed[4].split()[1:] == printed_again[4].split()[1:] == ["1", os.environ["OMP_NUM_THREADS"]]
    assert printed_other[0] == "[]"
    assert printed_other[1].split() == ["[]", "1.5", "0", str(tmp_path)]
    assert not psutil.pid_exists(pid) and notebook.metadata.language_info.name == "python"


def test_a_notebook_whose_kernel_dies_says_so_and_the_next_one_gets_another(tmp_path):
    dies = write(tmp_path / "dies.ipynb", "print('before')", "import os; os.kill(os.getpid(), 9)", "print('after')")
    works = write(tmp_path / "works.ipynb", "print('works')")
    with WarmKernel() as kernel:
        with pytest.raises(PapermillExecutionError, match="the kernel died: ended by SIGKILL, as when memory runs out"):
            execute(dies, kernel)
        assert execute(works, kernel)[1] == ["works"] and kernel.starts == 2
        kernel.manager.provisioner.process.kill()  # while it waits for a notebook
        kernel.manager.provisioner.process.wait()
        assert execute(works, kernel)[1] == ["works"] and kernel.starts == 3
    notebook, printed = read(tmp_path / "dies.out.ipynb")
    assert printed == ["before", "", ""] and notebook.metadata.papermill.exception
    errors = [output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert [error.ename for error in errors] == ["DeadKernelError"]


def test_a_notebook_that_fails_keeps_its_traceback_and_no_one_inherits_its_kernel(tmp_path):
    fails = write(tmp_path / "fails.ipynb", "def broken():\n    raise ValueError('constraint = 2')", "broken()", "1")
    works = write(tmp_path / "works.ipynb", "print('works')")
    with WarmKernel() as kernel:
        with pytest.raises(PapermillExecutionError, match="constraint = 2"):
            execute(fails, kernel)
        assert execute(works, kernel)[1] == ["works"] and kernel.starts == 2
    notebook, _ = read(tmp_path / "fails.out.ipynb")
    error = next(output for cell in notebook.cells for output in cell.get("outputs", []))
    assert error.ename == "ValueError" and any("broken()" in line for line in error.traceback)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[2].execution_count is None and notebook.metadata.papermill.exception


def test_a_kernel_that_keeps_too_much_memory_is_replaced(tmp_path):
    (tmp_path / "hoard.py").write_text("kept = []\n")
    hoards = write(
        tmp_path / "hoards.ipynb", "import hoard\nhoard.kept.append(b'x' * (300 << 20)); print(len(hoard.kept))"
    )
    frees = write(tmp_path / "frees.ipynb", "held = b'x' * (300 << 20)")
    with WarmKernel(max_memory_mb=300) as kernel:
        execute(frees, kernel)
        execute(frees, kernel)
        assert kernel.starts == 1  # what a notebook's own names hold is given back
        execute(hoards, kernel)
        assert kernel.memory_mb > 300 and execute(hoards, kernel)[1] == ["1"] and kernel.starts == 2


def test_cells_tagged_diagnostic_are_left_out(tmp_path):
    source = write(
        tmp_path / "shows.ipynb", ("diagnostic", "print('picture')"), "print('stage')", ("diagnostic", "1 / 0")
    )
    with WarmKernel() as kernel:
        notebook, printed = execute(source, kernel)
        assert printed == ["", "stage", ""]
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [(cell.execution_count, len(cell.outputs)) for cell in code] == [(None, 0), (1, 1), (None, 0)]
        assert notebook.metadata.lfpr == {"complete": True, "skipped": {"tag": "diagnostic", "cells": [1, 3]}}
        with pytest.raises(PapermillExecutionError, match="division by zero"):
            kernel.execute(source, tmp_path / "all.ipynb", {}, skip="")


SCRIPT = """
import signal, sys, time
from pathlib import Path
from lfpr.experiments.kernel import WarmKernel

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes from what it runs in the background
with WarmKernel() as kernel:
    for path in map(Path, sys.argv[2:]):
        try:
            kernel.execute(path, path.with_suffix(".out.ipynb"), {})
        except Exception:
            pass
    print(kernel.manager.provisioner.pid if kernel.manager else 0, flush=True)
    time.sleep(float(sys.argv[1]))
"""


def test_it_is_quiet(tmp_path):
    works = write(tmp_path / "works.ipynb", "print('works')", "import sys; print('warns', file=sys.stderr)")
    fails = write(tmp_path / "fails.ipynb", "1 / 0")
    dies = write(tmp_path / "dies.ipynb", "import os; os.kill(os.getpid(), 9)")
    command = [sys.executable, "-c", SCRIPT, "0", works, fails, works, dies, works]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, "") and int(run.stdout)
    assert not psutil.pid_exists(int(run.stdout))


def test_what_its_process_writes_is_heard_only_if_it_dies(tmp_path, capfd):
    ends = "import atexit, os\natexit.register(os.write, 2, b'sockets are closed')"
    crashes = "import ctypes\nctypes.string_at(0)"
    ends, crashes = write(tmp_path / "ends.ipynb", ends), write(tmp_path / "crashes.ipynb", crashes)
    with WarmKernel() as kernel:
        execute(ends, kernel)
    with WarmKernel() as kernel, pytest.raises(PapermillExecutionError, match=r"(?s)ended by SIGSEGV.*ctypes"):
        execute(crashes, kernel)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_kernel_outlives_its_job(tmp_path, how):
    works = write(tmp_path / "works.ipynb", "print('works')")
    job = subprocess.Popen([sys.executable, "-c", SCRIPT, "100", works], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    pid = int(job.stdout.readline())
    assert psutil.pid_exists(pid)
    job.send_signal(how)
    job.communicate(timeout=30)
    for _ in range(300):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the kernel is still there")


def test_a_notebook_costs_little_above_its_work(tmp_path):
    source = write(tmp_path / "ten.ipynb", *(f"x{number} = {number}\nprint(x{number})" for number in range(10)))
    with WarmKernel() as kernel:
        execute(source, kernel)
        process = psutil.Process(kernel.manager.provisioner.pid)

        def spent():
            return time.process_time() + sum(process.cpu_times()[:2])

        before = spent()
        for _ in range(3):
            execute(source, kernel)
        assert (spent() - before) / 3 < 1  # CPU-seconds of both processes
    assert json.loads(Path(tmp_path / "ten.out.ipynb").read_text())["metadata"]["papermill"]["exception"] is None
