"""The benchmarks run, small; table and page are what the rows say; the one of devices says how far they agree."""

import json
import re
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from fake_device import fake_device

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import bench
import gpu
import hours
from page import COLUMNS, render, table
from registry import ROWS, Case, Figure, Row, measure, peak_mb

ROOT = Path(__file__).parents[1]
SMALL = Namespace(batches=1, small=True, repeats=0, cpu_repeats=0)
QUICK = ["rearrangement", "rearrangement-exponent", "search-tap", "one-vit", "width-scoring"]


def made(sense: str, measured, **options) -> dict:
    """The line of a made-up row."""
    return measure(Row("mine", "stages", "Mine", ("theirs", "ours"), sense, "", lambda small: measured, **options))


def spin(count: int) -> int:
    return sum(range(count))


def test_small_rows_run_and_are_written(tmp_path):
    for names in (QUICK[1:], QUICK[:1]):  # in two runs: what the first has measured stays
        bench.main(["--small", "--write", str(tmp_path), "--only", *names])
    frame = bench.read(tmp_path)
    assert list(frame) == COLUMNS and set(frame.row) == set(QUICK)
    assert list(frame.row) == [name for name in ROWS if name in QUICK]
    for line in frame.itertuples():
        row, known = ROWS[line.row], json.loads(line.details)
        found = {"faster": line.other_value, "cost": line.our_value, "value": line.our_value}[row.sense]
        found /= {"faster": line.our_value, "cost": line.other_value, "value": 1}[row.sense]
        assert line.ratio == pytest.approx(found / known.get("share", 1), rel=2e-3)
        assert line.rate > 0 and (line.other, line.ours) == row.ways
    swaps, one, width = (frame[frame.row == name].iloc[0] for name in ("rearrangement", "one-vit", "width-scoring"))
    assert swaps.share == pytest.approx(swaps.gflop / swaps.our_value / swaps.rate, rel=2e-3)
    assert swaps.other_quality == swaps.our_quality == "26 swapped" and min(one.other_mb, one.our_mb) > 0
    assert set(json.loads(one.details)["our"]) == {"products", "attention", "other operations", "outside of torch"}
    assert json.loads(width.details)["further exponent"] == pytest.approx(width.our_value, rel=2e-3)
    page = (tmp_path / bench.PAGE).read_text()
    assert page == render(frame) and "What bounds a batch of one" in page and "ViT-L, 257 tokens" in page
    assert all(ROWS[name].title in page for name in QUICK)


@pytest.mark.parametrize(
    ("sense", "bar", "ratio", "met"),
    [
        ("faster", 4, 4.0, "yes"),
        ("faster", 4.1, 4.0, "no"),
        ("cost", 0.25, 0.25, "yes"),
        ("cost", 0.2, 0.25, "no"),
        ("value", 3, 2.0, "yes"),
        ("value", 1, 2.0, "no"),
        ("faster", None, 4.0, ""),
    ],
)
def test_a_bar_is_judged_by_the_ratio(sense, bar, ratio, met):
    line = made(sense, Figure(8.0, 2.0, "two", details={"a": 1}), bar=bar)
    assert (line["ratio"], line["met"], json.loads(line["details"])) == (ratio, met, {"a": 1})
    assert line["bar"] == ("" if bar is None else f"{'≥' if sense == 'faster' else '≤'} {bar:g}")


def test_memory_has_a_bar_of_its_own():
    assert made("value", Figure(8.0, 2.0, "two", mb=(10.0, 30.0)), more_mb=20)["met"] == "yes"
    line = made("value", Figure(8.0, 2.0, "two", mb=(10.0, 31.0)), bar=3, more_mb=20)
    assert (line["met"], line["bar"]) == ("no", "≤ 3, ≤ +20 MB")


def test_two_ways_are_raced_and_results_shown():
    ways = {"other": lambda: spin(1_000_000), "ours": lambda: spin(10)}
    line = made("faster", Case(ways, "sums", quality=str, operations=3e9))
    assert line["ratio"] > 100 and line["other_value"] > line["our_value"] > 0
    assert (line["other_quality"], line["our_quality"]) == (str(spin(1_000_000)), "45")
    assert line["gflop"] == 3 and line["share"] == pytest.approx(3 / line["our_value"] / line["rate"])
    halved = made("cost", Case(ways, "sums", divisor=0.5, counted=False))
    assert halved["ratio"] == pytest.approx(2 * halved["our_value"] / halved["other_value"])


def test_memory_is_that_of_a_process_of_its_own(capfd):
    assert 60 < peak_mb(lambda: torch.ones(16 * 2**20)) < 80  # of float32: 67 MB
    assert peak_mb(lambda: None) < 5
    with pytest.raises(RuntimeError, match="its error is above"):
        peak_mb(lambda: [][0])
    assert "IndexError" in capfd.readouterr().err


def test_the_committed_page_is_of_the_committed_numbers():
    frame = bench.read(ROOT)
    assert render(frame) == (ROOT / bench.PAGE).read_text()
    assert list(frame.row) == [name for name in ROWS if name in set(frame.row)] and len(frame) > 20
    for line in frame.itertuples():
        assert (line.what, line.other, line.ours) == (ROWS[line.row].title, *ROWS[line.row].ways)
        assert ("" if pd.isna(line.bar) else line.bar) == ROWS[line.row].bars


def test_no_column_is_shown_that_nothing_fills():
    line = made("faster", Figure(8.0, 2.0, "two"))
    shown = table(pd.DataFrame([line], columns=COLUMNS))
    assert shown.splitlines()[0] == "| what | size | other way | our way | other | ours | ratio |"
    assert shown.splitlines()[2] == "| Mine | two | theirs | ours | 8 s | 2 s | 4 |"


def test_a_row_whose_package_is_missing_is_left_out_with_a_word(monkeypatch, capsys):
    monkeypatch.setitem(ROWS, "tp-prune", replace(ROWS["tp-prune"], needs="no_such_package"))
    bench.main(["--only", "tp-prune", "--small"])
    assert "tp-prune: left out, no_such_package is not installed" in capsys.readouterr().err


def test_a_row_that_is_not_there_is_named(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--only", "nothing"])
    assert "invalid choice: 'nothing'" in capsys.readouterr().err


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
