"""The benchmark of devices runs, and says how far they agree."""

import re
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fake_device import fake_device

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import gpu
import hours

SMALL = Namespace(batches=1, small=True, repeats=0, cpu_repeats=0)


@pytest.mark.parametrize("name", ["tap", "vit"])
def test_both_devices_are_timed_and_compared(name, monkeypatch):
    ran = []
    monkeypatch.setattr(gpu, "seconds", lambda stage, repeats: ran.append(stage) or 0.5)
    with fake_device() as device:
        lines = "\n".join(gpu.rows(name, SMALL, device))
        for stage in ran if name == "vit" else ():  # TAP's take a while
            stage()
    table = [line.split("|")[1:-1] for line in lines.splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in table[0]] == ["stage", "CPU", "meta", "ratio", "GB"]
    assert len(table) >= 7 and all(float(ratio) == 1.0 for *_, ratio, _ in table[1:])
    apart = [float(value) for value in re.findall(r"differs by (\S+) \(heads\) and (\S+) ", lines)[0]]
    assert max(apart) < 1e-3 and re.search(r"both keep 9\d|both keep 100", lines)


def test_without_an_accelerator_the_cpu_is_timed_alone():
    lines = "\n".join(gpu.rows("vit", SMALL, torch.device("cpu")))
    assert "| ratio |" not in lines and "Importance differs" not in lines and "| rescaling |" in lines


def test_the_hours_in_the_documents_are_those_of_the_published_grid():
    root = Path(__file__).parents[1]
    lines = "\n".join(hours.table(f"{root / 'workflow/grid.yaml'}:published", 10, 200))
    assert lines in (root / "docs/real_files.md").read_text()
    faster = list(hours.table(f"{root / 'workflow/grid.yaml'}:published", 1000, 1e9))
    assert faster[-1] == "| all | | | | 0 |" and len(faster) == len(lines.splitlines())
