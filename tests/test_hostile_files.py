"""Files that want to run code, hang, or fill the memory are refused by name: no code runs, little time is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_files import CASES, MEGABYTES

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits of memory need Linux")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Case -> kind of error, its text, and the peak of memory so far in MB; and the folder in which code would run."""
    folder = tmp_path_factory.mktemp("hostile")
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    script = Path(__file__).with_name("hostile_files.py")
    ran = subprocess.run(
        [sys.executable, script, folder], capture_output=True, text=True, env=os.environ | quiet, timeout=300
    )
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    return {name: about for name, *about in lines}, folder, ran


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_is_refused_by_name(outcomes, name):
    found, _, ran = outcomes
    assert name in found, f"the run ended before it, or with it: {ran.returncode}, {ran.stderr[-500:]}"
    error, told, megabytes = found[name]
    assert error == "clear", f"{error}: {told}"
    assert megabytes < MEGABYTES


def test_no_code_ran(outcomes):
    found, folder, _ = outcomes
    assert len(found) == len(CASES) > 300 and not list(folder.rglob("ran"))
