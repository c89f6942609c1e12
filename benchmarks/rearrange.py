"""Rearrangement by products of gradients against recomputing sums in each step, as published; both in one run.

    python benchmarks/rearrange.py [--neurons 3072] [--batches 256] [--keep 0.5] [--repeats 3]

Prints the CPU seconds of each (best of the repeats, which alternate), their ratio, and whether the masks are the same.
"""

import argparse
import time

import torch

from lfpr.gradients import MaskGradients
from lfpr.masks import Masks
from lfpr.rearrange import rearrange


def recompute(mask: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """The greedy rule with the sum over the set and all batches in each step; float32, as published."""
    vectors = gradients.T.contiguous()
    order = vectors.square().sum(1).argsort().tolist()
    pruned = order[: int((mask == 0).sum())]
    for index in order[len(pruned) :]:
        pruned.append(index)
        members = vectors[pruned]
        rests = (members.sum(0) - members).square().sum(1)
        del pruned[int(rests.argmin())]
    result = torch.ones_like(mask)
    result[pruned] = 0
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--neurons", type=int, default=3072)
    parser.add_argument("--batches", type=int, default=256)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(args.neurons, generator=generator)  # neurons of different importance
    shared = torch.randn(args.batches, 1, 1, generator=generator)  # and correlated ones
    neurons = (torch.randn(args.batches, 1, args.neurons, generator=generator) + 0.3 * shared) * spread
    gradients = MaskGradients(torch.ones(args.batches, 1, 1), neurons)
    mask = torch.ones(args.neurons)
    mask[gradients.importance().neurons[0].argsort()[: round((1 - args.keep) * args.neurons)]] = 0
    masks = Masks(torch.ones(1, 1), mask[None])
    seconds = {"recomputed sums": [], "products": []}
    for _ in range(args.repeats):
        start = time.process_time()
        theirs = recompute(mask, neurons[:, 0])
        middle = time.process_time()
        ours = rearrange(masks, gradients).neurons[0]
        seconds["recomputed sums"].append(middle - start)
        seconds["products"].append(time.process_time() - middle)
    slow, fast = (min(times) for times in seconds.values())
    changed = int((ours != mask).sum()) // 2
    print(f"one layer, {args.neurons} neurons, {args.batches} batches, {args.keep:.0%} kept, {changed} swapped")
    print(f"recomputed sums {slow:8.3f} s\nproducts        {fast:8.3f} s\nratio           {slow / fast:8.1f}")
    print("same masks" if torch.equal(ours, theirs) else f"MASKS DIFFER in {int((ours != theirs).sum())} neurons")


if __name__ == "__main__":
    main()
