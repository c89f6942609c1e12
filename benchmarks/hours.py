"""How long a grid takes on one GPU, estimated from what its stages compute.

    python benchmarks/hours.py [--grid published] [--tflops 10] [--rate 200]

Counts the floating-point operations of every stage of the plan at the real sizes (TAP: 170 text, 100 object and 100 OCR
positions, SaL: 645, upper bounds, and answers of 5 pieces; ViT-B/16: 197 tokens) and divides them by --tflops, what a
GPU sustains in float32, and adds the reading of questions and images at --rate a second. Not a measurement: `gpu.py`
measures the stages on your machine, and `python -m lfpr plan` knows what notebooks took once some have run. Prints a
Markdown table.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from lfpr.experiments.cell import Cell
from lfpr.experiments.grid import cells, load_grid
from lfpr.experiments.methods import METHODS
from lfpr.experiments.schedule import own_schedule, schedule
from lfpr.experiments.specs import SPECS

QUESTIONS = {"textvqa": (34_602, 5_000), "stvqa": (23_446, 2_628)}  # training and validation questions
IMAGES = 118_287, 5_000
LAYER = 4 * 768**2 + 2 * 768 * 3072  # multiply-accumulates of a token
PASSES = {"released": 5, "batched": 4, "per-sample": 4}
"""Forward passes that an importance is worth: the time step's, those up to it, and a backward pass as two."""


def tap(name: str, plan: dict) -> tuple[float, float]:
    """Floating-point operations, and questions read."""
    text, layers = (SPECS[name].arguments[key] for key in ("text_layers", "mmt_layers"))
    before = 2 * (170 * text * LAYER + 200 * (2048**2 + 768 * 2500))
    mmt = 2 * layers * 382 * (LAYER + 382 * 768 * 2)
    percent = lambda cell, kept: schedule(name, cell.constraint, cell.percentile)[0]  # noqa: E731
    return questions(name, plan, before, mmt, "released", percent)


def sal(name: str, plan: dict) -> tuple[float, float]:
    """As `tap`: a T5 of 12 and 12 layers, whose decoder also keeps keys and values of the encoder's outputs."""
    before = 2 * 600 * 2048 * 768
    encoder = 12 * 645 * (LAYER + 645 * 768 * 2 + 2 * 768**2)
    decoder = 5 * (12 * (LAYER + 2 * 768**2 + 645 * 768 * 2) + 768 * 32128)
    percent = lambda cell, kept: own_schedule(12, kept)[0]  # noqa: E731
    return questions(name, plan, before, 2 * (encoder + decoder), "per-sample", percent)


def questions(
    name: str, plan: dict, before: float, mmt: float, scoring: str, percent: Callable[[Cell, float], float]
) -> tuple[float, float]:
    """`tap` of a model with so many operations `before` what is pruned, and in it, of a question; its own way of
    scoring; and the per cent of questions that a cell, of which so much is kept, is retrained on."""
    train, val = QUESTIONS[SPECS[name].arguments["dataset"]]
    work, read, sampled = (before + mmt) * train + before * val, train + val, set()
    for planned in cells(plan):
        cell = planned.cell
        kept = cell.constraint or 1 - (cell.percentile or 0) / 100
        sample = cell.method, cell.seed, cell.scoring, cell.num_samples
        if METHODS[cell.method].anew and sample not in sampled:
            sampled.add(sample)
            count = cell.num_samples or 3000
            work, read = work + PASSES[cell.scoring or scoring] * count * (before + mmt), read + 2 * count
        work += (len(planned.stages) + ("pruned" not in planned.stages)) * val * mmt * kept
        if cell.rescaled or cell.reconstructed:
            work, read = work + 4 * 512 * (before + mmt), read + 512
        if "retrained" in planned.stages:
            count = train * percent(cell, kept) / 100
            work, read = work + 3 * count * (before + mmt * kept), read + count
    return work, read


def clip(name: str, plan: dict) -> tuple[float, float]:
    """Floating-point operations, and images read."""
    image, train, val = 2 * 12 * 197 * (LAYER + 197 * 768 * 2), *IMAGES
    work, read, sampled = image * (train + val), train + val, set()
    for planned in cells(plan):
        cell = planned.cell
        kept, count = cell.constraint or 0.9, cell.num_samples or 8192
        sample = cell.method, cell.seed
        if cell.method == "sensitivity":
            count = 128
        if sample not in sampled and METHODS[cell.method].sampled:
            sampled.add(sample)
            passes = 3 * 12 if cell.method == "sensitivity" else 4
            work, read = work + passes * count * image, read + count * passes / 3
        fitted = {"released": 8192, False: 0}.get(cell.rescaled, 0 if cell.method == "sensitivity" else 1024)
        work += fitted * (4 * image + 12 * 197 * 2 * (3072 * kept) ** 2)
        work, read = work + val * image * kept * len(planned.stages), read + fitted + val * len(planned.stages)
        if "retrained" in planned.stages:
            work, read = work + 3 * 0.65 * train * image * kept, read + 0.65 * train
    return work, read


KINDS = {"tap": tap, "tap12": tap, "sal": sal, "clip": clip}
"""First word of an experiment's name -> what counts its stages."""


def hours(name: str, plan: dict, tflops: float = 10, rate: float = 200) -> tuple[float, float]:
    """Floating-point operations of an experiment's plan, and the hours they and reading take."""
    work, read = KINDS[name.split("-")[0]](name, plan)
    return work, (work / (tflops * 1e12) + read / rate) / 3600


def table(source: str, tflops: float, rate: float) -> Iterator[str]:
    """The lines of the table, of grid FILE.yaml:NAME."""
    yield "| experiment | pruned models | retrained | 10¹⁵ operations | hours, estimated |"
    yield "|---|---|---|---|---|"
    total = 0.0
    for name, plan in load_grid(source).items():
        work, took = hours(name, plan, tflops, rate)
        total += took
        planned = cells(plan)
        counts = len({each.cell for each in planned}), sum("retrained" in each.stages for each in planned)
        yield f"| {SPECS[name].title} | {counts[0]} | {counts[1]} | {work / 1e15:.1f} | {took:.1f} |"
    yield f"| all | | | | {total:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grid", default="published", help="of workflow/grid.yaml")
    parser.add_argument("--tflops", type=float, default=10, help="10¹² float32 operations a second")
    parser.add_argument("--rate", type=float, default=200, help="questions or images read a second")
    arguments = parser.parse_args()
    source = f"{Path(__file__).parents[1] / 'workflow' / 'grid.yaml'}:{arguments.grid}"
    print("\n".join(table(source, arguments.tflops, arguments.rate)))


if __name__ == "__main__":
    main()
