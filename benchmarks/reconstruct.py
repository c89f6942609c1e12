"""What reconstruction takes and what bounds it.

    python benchmarks/reconstruct.py seconds [--samples 64 256]     # ViT-B/16, TAP's MMT: real sizes, random weights
    python benchmarks/reconstruct.py samples --experiment tap-textvqa   # how few samples suffice
    python benchmarks/reconstruct.py ridge --experiment tap-textvqa     # what the ridge does
    python benchmarks/reconstruct.py data --experiment tap-stvqa --other tap-textvqa   # other data than its own
    python benchmarks/reconstruct.py answers --experiment tap-textvqa   # labels, own answers best or drawn

Prints Markdown tables. Seconds are CPU seconds of one thread unless --threads says otherwise; memory is the largest of
a process that does nothing else. Scores are per cent, of shrunk models that were not retrained, mean over `--seeds`.
"""

import argparse
import itertools
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

import lfpr
from lfpr.encoder import prunable
from lfpr.experiments.cell import Cell
from lfpr.fisher import gaussian_projection

SIZES = {"ViT-B/16, 197 tokens": ("vit", 16), "TAP's MMT, 4 layers of 768, 182 tokens": ("mmt", 16)}


def real(name: str) -> nn.Module:
    """A model of real size with random weights."""
    torch.manual_seed(0)
    if name == "vit":
        return ViTModel(ViTConfig(), add_pooling_layer=False).eval()
    config = BertConfig(num_hidden_layers=4, vocab_size=100, attn_implementation="sdpa")
    return BertModel(config, add_pooling_layer=False).eval()


def batches(name: str, samples: int, batch: int) -> Iterator[Tensor]:
    """Random images, or embeddings of TAP's 182 positions: made when they are asked for."""
    for i in range(0, samples, batch):
        generator = torch.Generator().manual_seed(i)
        shape = (batch, 3, 224, 224) if name == "vit" else (batch, 182, 768)
        yield torch.randn(shape, generator=generator)


def forward(model: nn.Module, x: Tensor) -> Tensor:
    named = {"pixel_values": x} if x.ndim == 4 else {"inputs_embeds": x}
    return model(**named).last_hidden_state


def one(name: str, samples: int, batch: int, constraint: float) -> str:
    """A row: seconds of each stage on `samples`, and the memory of the process."""
    model, clock = real(name), time.process_time
    encoder = prunable(model)
    cost, generator, marks = lfpr.ParameterCost(encoder), torch.Generator().manual_seed(0), [clock()]
    project = lambda x: gaussian_projection(forward(model, x).mean(1), generator)  # noqa: E731
    importance = lfpr.surgeon_importance(encoder, batches(name, samples, batch), project)
    marks.append(clock())
    small = lfpr.shrink(model, lfpr.search(importance, cost, constraint))
    marks.append(clock())
    report = lfpr.reconstruct(model, small, batches(name, samples, batch), forward)
    marks.append(clock())
    fell = 1 - statistics.mean(fit.held_after / fit.held_before for fit in report)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    spent = " | ".join(f"{b - a:.0f}" for a, b in itertools.pairwise(marks))
    return f"{samples} | {spent} | {peak:.1f} | {fell:.0%}"


def seconds(args: argparse.Namespace) -> None:
    print("| model | samples | surgeon, s | search and shrink, s | reconstruct, s | GB | held-back error fell by |")
    print("|---|---|---|---|---|---|---|")
    for title, (name, batch) in SIZES.items():
        for samples in args.samples:
            command = [sys.executable, __file__, "one", "--name", name, "--samples", str(samples)]
            command += ["--batch", str(batch), "--threads", str(args.threads)]
            row = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            print(f"| {title} | {row} |", flush=True)


def score(experiment, cells: list[Cell], seeds: int, options: dict, **settings) -> str:
    """Mean scores of the reconstructed cells, in per cent; options: of `lfpr.reconstruct`."""
    own = experiment.with_settings(**settings) if settings else experiment
    values = []
    for cell in cells:
        scores = []
        for seed in range(seeds):
            each = Cell(**cell.parameters | {"seed": seed})
            small = lfpr.shrink(own.model, own.searched(each), own.part)
            own.reconstruct(small, each, **options)
            scores.append(100 * own.task.evaluate(small)["score"])
        values.append(f"{statistics.mean(scores):.1f}")
    return " | ".join(values)


def limits(args: argparse.Namespace) -> None:
    experiment = lfpr.open_experiment(args.experiment, runs=args.runs)
    surgeon = [Cell("surgeon", c, reconstructed=True) for c in args.constraints]
    columns = " | ".join(f"{c:.0%} kept" for c in args.constraints)
    print(f"| {args.what} | {columns} |\n|---{'|---' * len(args.constraints)}|")
    if args.what == "samples":
        for count in args.samples:
            settings = {"num_samples": count, "reconstruct_samples": count}
            print(f"| {count} | {score(experiment, surgeon, args.seeds, {}, **settings)} |", flush=True)
    elif args.what == "ridge":
        fixed = {f"{ridge:g}": {"ridges": [ridge]} for ridge in (1e-6, 1e-4, 1e-2, 1.0, 100.0)}
        for title, options in (fixed | {"chosen on held-back samples": {}}).items():
            print(f"| {title} | {score(experiment, surgeon, args.seeds, options)} |", flush=True)
    elif args.what == "answers":
        for method in ("label-free", "fisher", "self-fisher", "true-fisher", "surgeon"):
            cells = [Cell(method, c, rearranged=False, reconstructed=True) for c in args.constraints]
            print(f"| {method} | {score(experiment, cells, args.seeds, {})} |", flush=True)
    else:
        other = lfpr.open_experiment(args.other, runs=args.runs)
        for title, source in (("its own data", experiment), (f"data of {args.other}", other)):
            values = []
            for c in args.constraints:
                cell = Cell("surgeon", c, reconstructed=True)
                small = lfpr.shrink(experiment.model, experiment.searched(cell), experiment.part)
                asked = begun(experiment, source)
                run = lambda model, batch: experiment.task.run(batch, model)  # noqa: E731
                lfpr.reconstruct(experiment.model, small, asked, run, experiment.part)
                values.append(f"{100 * experiment.task.evaluate(small)['score']:.1f}")
            print(f"| {title} | {' | '.join(values)} |", flush=True)


def begun(experiment, source) -> Iterator[dict[str, Tensor]]:
    """Questions of another experiment, answered by this one's model."""
    task = source.task
    data = task.data("train", indices=task.sample("train", task.settings.reconstruct_samples, 0))
    return experiment.task._begun(data)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("what", choices=("seconds", "samples", "ridge", "data", "answers", "one"))
    options.add_argument("--experiment", default="tap-textvqa")
    options.add_argument("--other", default="tap-textvqa")
    options.add_argument("--samples", type=int, nargs="+", default=[16, 64, 256, 1024])
    options.add_argument("--constraints", type=float, nargs="+", default=[0.6, 0.4, 0.3, 0.2])
    options.add_argument("--constraint", type=float, default=0.4)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--runs")
    options.add_argument("--name")
    options.add_argument("--batch", type=int)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    if args.what == "one":
        print(one(args.name, args.samples[0], args.batch, args.constraint))
    elif args.what == "seconds":
        seconds(args)
    else:
        limits(args)


if __name__ == "__main__":
    main()
