"""A benchmark is a row: two ways to the same result, timed in turn in one process of one thread.

    @row("decoding", "Greedy decoding", ("recomputed", "cached"), "faster", bar=6, why="…")
    def decoding(small: bool) -> Case: ...

Its function builds what is measured and returns a `Case`, two functions to race, the other way first; or a `Figure`,
two numbers that it measured itself. How they compare is `sense`: "faster", the other way's number over ours; "cost",
ours over the other's; "value", our number alone. A `bar` is the least ratio for "faster", else the most.
"""

import ctypes
import gc
import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

MB, PAGE = 1e6, os.sysconf("SC_PAGE_SIZE")
SHORTEST = 0.02  # seconds that a timing lasts at least, of so many runs as it takes
ATEN = torch.ops.aten
ATTENTION = {  # on the CPU, which torch does not count
    ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(
        g, q, k, v
    ),
}


@dataclass
class Case:
    """Two ways by name, the other one first; `size` says of what. `quality(result)` of either, as text. `divisor`: what
    the ratio is divided by, such as a ratio of MACs; `operations` (float32) where torch cannot count them; `counted`:
    whether ours are set against the machine's rate at all."""

    ways: Mapping[str, Callable[[], Any]]
    size: str
    quality: Callable[[Any], str] | None = None
    divisor: float = 1.0
    operations: float | None = None
    counted: bool = True
    memory: bool = True
    repeats: int = 3
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Figure:
    """Two numbers, of the other way (None for "value") and of ours; MB of each where it was measured."""

    other: float | None
    ours: float
    size: str
    mb: tuple[float, float] | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A benchmark; see the module. `more_mb`: how much more memory ours may take; `why` says who wins and why,
    `unmet` what is in the way of a bar that is not met. `needs`: a package without which it is left out."""

    name: str
    group: str
    title: str
    ways: tuple[str, str]
    sense: str
    why: str
    measure: Callable[[bool], Case | Figure]
    bar: float | None = None
    more_mb: float | None = None
    unit: str = "CPU s"
    unmet: str = ""
    needs: str = ""

    @property
    def bars(self) -> str:
        """The bars as the table shows them."""
        signs = {"faster": "≥", "cost": "≤", "value": "≤"}
        shown = [] if self.bar is None else [f"{signs[self.sense]} {self.bar:g}"]
        return ", ".join(shown + ([] if self.more_mb is None else [f"≤ {self.more_mb:+g} MB"]))

    def met(self, ratio: float, more: float) -> str:
        """Whether the bars are met, "" if there is none; `more`: MB that ours takes more."""
        found = [] if self.bar is None else [ratio >= self.bar if self.sense == "faster" else ratio <= self.bar]
        found += [] if self.more_mb is None else [more <= self.more_mb]
        return ("yes" if all(found) else "no") if found else ""


ROWS: dict[str, Row] = {}


def row(name: str, title: str, ways: tuple[str, str], sense: str, **options: Any) -> Callable:
    """Decorator: the function's row."""

    def add(measure: Callable[[bool], Case | Figure]) -> Callable[[bool], Case | Figure]:
        group = getattr(measure, "func", measure).__module__
        ROWS[name] = Row(name, group, title, ways, sense, measure=measure, **options)
        return measure

    return add


def timed(way: Callable[[], Any], runs: int = 1) -> tuple[float, float, Any]:
    """CPU seconds (user and system: kernels tell the two apart by ticks) and wall seconds of a run, the mean of `runs`,
    and what it gives."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(runs):
        result = way()
    return (time.process_time() - cpu) / runs, (time.perf_counter() - wall) / runs, result


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The power of the size that the seconds grow with, by least squares of logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def rate(size: int = 1024) -> float:
    """GFLOP/s of float32 matrix products [size, size] in one thread, the best of several."""
    a, b = torch.randn(2, size, size, generator=torch.Generator().manual_seed(0))
    return 2 * size**3 / min(timed(lambda: a @ b, 4)[0] for _ in range(4)) / 1e9


def operations(way: Callable[[], Any]) -> float:
    """Floating-point operations of the products that torch runs in a run; factorisations do not count."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        way()
    return float(counter.get_total_flops())


def peak_mb(way: Callable[[], Any], mapped: bool = False) -> float:
    """MB of anonymous memory that a run takes at most, in a process of its own, beyond what was there before. Pages of
    files, such as libraries, do not count, unless they are `mapped` tensors that are to."""
    return alone(way, mapped)[0]


def alone(way: Callable[[], Any], mapped: bool = False) -> tuple[float, Any]:
    """`peak_mb`, and the number that a run gives: in a forked process."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed would be used again unseen
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            before, peak, done = _memory(mapped), [0], threading.Event()

            def watch() -> None:
                while not done.wait(0.002):
                    peak[0] = max(peak[0], _memory(mapped))

            watcher = threading.Thread(target=watch)
            watcher.start()
            given = way()
            peak[0] = max(peak[0], _memory(mapped))
            done.set()
            watcher.join()
            found = (peak[0] - before) / MB, given if isinstance(given, float) else None
            os.write(writer, json.dumps(found).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        found = pipe.read()
    os.waitpid(child, 0)
    if not found:
        raise RuntimeError("the process whose memory was measured failed; its error is above")
    return tuple(json.loads(found))


def _memory(mapped: bool) -> int:
    with open("/proc/self/statm") as file:
        _, resident, shared, *_ = map(int, file.read().split())
    return (resident - (0 if mapped else shared)) * PAGE


def measure(row: Row, small: bool = False) -> dict[str, Any]:
    """A line of the table: see `COLUMNS`."""
    found, speed = row.measure(small), rate()
    line = {"row": row.name, "what": row.title, "size": found.size, "unit": row.unit}
    line |= {"other": row.ways[0], "ours": row.ways[1], "bar": row.bars, "rate": speed}
    if isinstance(found, Figure):
        line |= {"other_value": found.other, "our_value": found.ours}
        line |= dict(zip(("other_mb", "our_mb"), found.mb or (), strict=False))
    else:
        line |= race(found)
        if line.get("gflop"):
            line["share"] = line["gflop"] / line["our_value"] / speed
    other, ours = line["other_value"], line["our_value"]
    ratio = {"faster": lambda: other / ours, "cost": lambda: ours / other, "value": lambda: ours}[row.sense]()
    line["ratio"] = ratio / getattr(found, "divisor", 1)
    line |= {
        "met": row.met(line["ratio"], line.get("our_mb", 0) - line.get("other_mb", 0)),
        "details": json.dumps(found.details),
    }
    return line


def race(case: Case) -> dict[str, Any]:
    """Both ways in turn: memory in processes of their own, where our operations are counted, too; then the least CPU
    seconds of the repeats."""
    ways, line, results, runs = dict(zip(("other", "our"), case.ways.values(), strict=True)), {}, {}, {}
    count, counted = case.counted and case.operations is None, case.operations or 0
    if case.memory:
        line["other_mb"], _ = alone(ways["other"])
        line["our_mb"], given = alone(partial(operations, ways["our"]) if count else ways["our"])
        counted = given if count else counted
    line["gflop"] = counted / 1e9
    for _ in range(case.repeats):
        for name, way in ways.items():
            cpu, wall, results[name] = timed(way, runs.get(name, 1))
            if name not in runs:  # the first run also says how many make a timing
                runs[name] = max(1, round(SHORTEST / max(cpu, 1e-6)))
                if runs[name] > 1:
                    cpu, wall, _ = timed(way, runs[name])
            for key, seconds in ((f"{name}_value", cpu), (f"{name}_wall", wall)):
                line[key] = min(line.get(key, seconds), seconds)
    return line | {f"{name}_quality": case.quality(results[name]) for name in ways if case.quality}
