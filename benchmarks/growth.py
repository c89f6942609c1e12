"""How memory and time grow: with the number of samples, and with the width of layers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import models
import torch
from hours import hours
from registry import Figure, exponent, peak_mb, row, timed
from stages import random_masks
from torch import nn

import lfpr
from lfpr.experiments.grid import NOTEBOOKS, cells, load_grid, share
from lfpr.experiments.run_grid import STAGE_OF, committed_seconds
from lfpr.fisher import gaussian_projection

GRIDS = Path(__file__).parents[1] / "workflow" / "grid.yaml"
AT_ONCE = 50  # jobs of the Slurm profile
STAGES = ("scoring", "surgeon", "rescaling", "reconstruction")
TOKENS = 64


def stage(name: str, model: nn.Module, samples: int, batch: int = 8) -> Callable[[], object]:
    """One run of a stage on random samples, which are made batch by batch."""
    encoder, masks = lfpr.prunable(model), random_masks(lfpr.prunable(model))
    generator = torch.Generator().manual_seed(0)

    def project(x: torch.Tensor) -> torch.Tensor:
        return gaussian_projection(models.forward(model, x).mean(1), generator)

    def run() -> object:
        batches = models.inputs(model, samples, batch, TOKENS)
        if name == "scoring":
            return lfpr.collect_gradients(encoder, batches, project, per_sample=True).importance()
        if name == "surgeon":
            return lfpr.surgeon_importance(encoder, batches, project)
        if name == "rescaling":
            return lfpr.rescale(encoder, masks, batches, partial(models.forward, model))
        return lfpr.reconstruct(model, lfpr.shrink(model, masks), batches, models.forward)

    return run


def memory(small: bool, name: str) -> Figure:
    """Peak memory of a stage at three numbers of samples."""
    model, counts = models.bert(2, small=small), [8, 16, 32] if small else [32, 64, 128]
    found = [peak_mb(stage(name, model, count)) for count in counts]
    size = f"2 layers of 768, {counts[0]}, {counts[1]}, {counts[2]} samples of {TOKENS} tokens: "
    size += ", ".join(f"{mb:.0f}" for mb in found) + " MB"
    return Figure(found[0], max(found), size, details={"samples": counts, "MB": found})


def width(small: bool, name: str) -> Figure:
    """Seconds of a layer at three widths: what a stage takes once, and what each further sample adds."""
    widths, few, many = ([64, 128, 192], 2, 10) if small else ([192, 384, 768], 8, 24)
    fixed, further = [], []
    for hidden in widths:
        model = models.bert(1, hidden)
        less, more = (timed(stage(name, model, count))[0] for count in (few, many))
        further.append(max((more - less) / (many - few), 1e-6))
        fixed.append(max(less - few * further[-1], 1e-4))
    found = {"widths": widths, "fixed": fixed, "further": further, "tokens": TOKENS}
    found |= {"fixed exponent": exponent(widths, fixed), "further exponent": exponent(widths, further)}
    return Figure(None, found["further exponent"], f"a layer of {widths[0]} to {widths[-1]}", details=found)


for name in STAGES:
    if name != "surgeon":
        row(
            f"memory-{name}",
            f"Memory of {name} by samples",
            ("fewest samples", "most samples"),
            "cost",
            bar=1.05,
            unit="MB",
            unmet="Memory of scoring: it gives a gradient per sample, which rearrangement takes (25 kB each here), and "
            "has them twice while they are joined.",
            why="Batches stream through: what is kept are sums over tokens"
            + (", and a gradient per sample." if name == "scoring" else ", and layers' inputs in a file."),
        )(partial(memory, name=name))
for name in STAGES:
    row(
        f"width-{name}",
        f"Exponent of {name} in width",
        ("–", "of a further sample"),
        "value",
        unit="",
        why="",
    )(partial(width, name=name))


# ---- a grid of a thousand models


@row(
    "cluster",
    "Grid `full` on a cluster",
    ("one core", f"{AT_ONCE} cores"),
    "value",
    unit="h",
    why="Minutes are those of `paper_figures/minutes.csv`. Jobs of an experiment share its cells and nothing else, but "
    "for what the first cell makes for all; the longest job says how long it takes.",
)
def cluster(small: bool) -> Figure:
    plans, seconds = load_grid(f"{GRIDS}:full"), committed_seconds()
    jobs, models_made = {}, 0
    for name, plan in plans.items():
        for job in range(plan["jobs"]):
            own = [STAGE_OF[NOTEBOOKS[stage]] for each in share(plan, job) for stage in each.stages]
            jobs[f"{name} {job}"] = sum(seconds[name, plan["profile"], stage] for stage in own) / 3600
            models_made += len(own)
    longest = max(jobs, key=jobs.__getitem__)
    together = max(jobs[longest], sum(jobs.values()) / AT_ONCE)
    size = f"{models_made:,} pruned and retrained models of the profile mini in {len(jobs)} jobs"
    return Figure(sum(jobs.values()), together, size, details={"longest job": longest})


@row(
    "cluster-published",
    "A thousand models of grid `published` on a cluster",
    ("one GPU", f"{AT_ONCE} GPUs"),
    "value",
    unit="h",
    why="Not measured: operations at 10 TFLOP/s in float32, 200 questions or images read a second "
    "(`benchmarks/hours.py`), as many of each experiment as in the grid, which has jobs for "
    "them in proportion.",
)
def cluster_published(small: bool) -> Figure:
    plans = load_grid(f"{GRIDS}:published")
    made = sum(len(each.stages) for plan in plans.values() for each in cells(plan))
    took = {name: hours(name, plan)[1] for name, plan in plans.items()}
    times = 1000 / made
    longest = max(took, key=lambda name: took[name] / plans[name]["jobs"])
    together = max(times * took[longest] / plans[longest]["jobs"], times * sum(took.values()) / AT_ONCE)
    size = f"1,000 pruned and retrained models of the real sizes; the grid has {made}"
    return Figure(times * sum(took.values()), together, size, details={"longest experiment": longest})
