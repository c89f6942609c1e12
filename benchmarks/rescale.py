"""Rescaling by products of activations against the two published ways of building its equations; all in one run.

    python benchmarks/rescale.py [--layers 4] [--hidden 192] [--samples 32] [--tokens 64] [--no-design | --memory]

Prints CPU seconds, best of three. All solve the same equations (those of `lfpr.released.rescale` without a teacher), so
their masks agree:
- "design matrix": what the CLIP fork does. One row for each token and feature, six passes of each layer.
- "framework": what the post-training framework does. Neurons by products, heads by a design matrix, six passes.
- "lfpr": this package.
With `--memory`, the peak memory of processes that rescale small and four times larger samples, batches being made when
they are asked for.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import ViTConfig, ViTModel

from lfpr import released
from lfpr.encoder import LayerParts, PrunableEncoder, prunable
from lfpr.masks import Masks
from lfpr.rescale import rescale


def build(args: argparse.Namespace) -> tuple[ViTModel, Masks]:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 16,
        intermediate_size=4 * args.hidden,
        image_size=8 * round(args.tokens**0.5),
        patch_size=8,
    )
    model = ViTModel(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    ones = Masks.ones(prunable(model))
    masks = Masks(
        (torch.rand_like(ones.heads) < args.keep).float(), (torch.rand_like(ones.neurons) < args.keep).float()
    )
    masks.heads[:, 0] = masks.neurons[:, :2] = 1
    return model, masks


def batches(args: argparse.Namespace) -> Iterator[Tensor]:
    side = 8 * round(args.tokens**0.5)
    for i in range(0, args.samples, args.batch):
        yield torch.randn(args.batch, 3, side, side, generator=torch.Generator().manual_seed(i))


def run_layer(part: LayerParts, x: Tensor, heads: Tensor | None, neurons: Tensor | None) -> dict[str, Tensor]:
    """One pass of a layer; the output projections' inputs, the attention's output, the layer's output."""
    seen = {}

    def before(name: str, mask: Tensor | None) -> Callable:
        def hook(_: torch.nn.Module, inputs: tuple) -> tuple | None:
            seen[name] = inputs[0]
            return None if mask is None else (inputs[0] * mask,)

        return hook

    hooks = [
        part.attention_output.register_forward_pre_hook(
            before("context", None if heads is None else heads.repeat_interleave(part.head_dim))
        ),
        part.attention_output.register_forward_hook(lambda _, inputs, out: seen.__setitem__("attended", out)),
        part.ffn_out.register_forward_pre_hook(before("activation", neurons)),
    ]
    seen["output"] = part.module(x)
    for hook in hooks:
        hook.remove()
    return seen


def solve(gram: Tensor, right: Tensor) -> Tensor:
    gram, right = gram.double(), right.double()
    values, vectors = torch.linalg.eigh(gram)
    return 1 + vectors @ (values / (values.square() + 1) * (vectors.T @ (right - gram.sum(1))))


@torch.no_grad()
def published_way(encoder: PrunableEncoder, masks: Masks, first: list[Tensor], design_matrix: bool) -> Masks:
    """Six passes of each layer over cached inputs: both sides advance, both for the heads, both for the neurons."""
    masks = Masks(masks.heads.clone(), masks.neurons.clone())
    teacher, student = list(first), list(first)
    for i, part in enumerate(encoder.parts):
        heads, neurons = masks.heads[i], masks.neurons[i]
        if i:
            last = encoder.parts[i - 1]
            teacher = [run_layer(last, x, None, None)["output"] for x in teacher]
            student = [run_layer(last, x, masks.heads[i - 1], masks.neurons[i - 1])["output"] for x in student]
        kept = heads.nonzero().flatten()
        weight = part.attention_output.weight.T.unflatten(0, (len(heads), -1))[kept]  # [H, dh, d]
        gram, right = torch.zeros(len(kept) + 1, len(kept) + 1), torch.zeros(len(kept) + 1)
        for t, s in zip(teacher, student, strict=True):
            goal = run_layer(part, t, None, None)["attended"] + t - part.attention_output.bias - s
            context = run_layer(part, s, heads, neurons)["context"].flatten(0, 1)
            outputs = context.unflatten(1, (len(heads), -1))[:, kept].transpose(0, 1) @ weight  # [H, T, d]
            columns = torch.cat([outputs.flatten(1), torch.ones(1, outputs[0].numel())]).T
            gram += columns.T @ columns
            right += columns.T @ goal.flatten()
        if i:
            heads[kept] *= solve(gram, right)[:-1].float()
        kept = neurons.nonzero().flatten()
        weight = part.ffn_out.weight.T[kept]  # [n, d]
        gram, right = torch.zeros(len(kept), len(kept)), torch.zeros(len(kept))
        for t, s in zip(teacher, student, strict=True):
            seen = run_layer(part, s, heads, neurons)
            goal = run_layer(part, t, None, None)["output"] - part.ffn_out.bias - seen["attended"] - s
            goal, x = goal.flatten(0, 1), seen["activation"].flatten(0, 1)[:, kept]
            if design_matrix:
                for sample in range(0, len(x), t.shape[1]):  # one sample at a time, to save memory
                    rows = slice(sample, sample + t.shape[1])
                    columns = (x[rows, None] * weight.T).flatten(0, 1)
                    gram += columns.T @ columns
                    right += columns.T @ goal[rows].flatten()
            else:
                gram += (weight @ weight.T) * (x.T @ x)
                right += ((goal @ weight.T) * x).sum(0)
        neurons[kept] *= solve(gram, right).float()
    return masks


def measure_memory(args: argparse.Namespace) -> None:
    for samples in (args.samples, 4 * args.samples):
        command = [sys.executable, __file__, "--peak", f"--samples={samples}", f"--hidden={args.hidden}"]
        command += [
            f"--layers={args.layers}",
            f"--tokens={args.tokens}",
            f"--keep={args.keep}",
            f"--batch={args.batch}",
        ]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        hidden = 2 * 4 * samples * args.tokens * args.hidden / 2**20
        print(f"{samples:6d} samples: peak {peak / 2**10:7.1f} MB (teacher's and student's inputs are {hidden:.1f} MB)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 4), ("hidden", 192), ("samples", 32), ("tokens", 64), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--no-design", action="store_true", help="leave out the slow design matrix")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    model, masks = build(args)
    encoder = prunable(model)
    if args.peak:
        rescale(encoder, masks, batches(args), model)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    if args.memory:
        measure_memory(args)
        return
    sample = list(batches(args))
    with torch.no_grad():
        embedded = [model.embeddings(x) for x in sample]
    ways = {
        "design matrix": lambda: published_way(encoder, masks, embedded, design_matrix=True),
        "framework": lambda: published_way(encoder, masks, embedded, design_matrix=False),
        "lfpr": lambda: released.rescale(encoder, masks, sample, model),
    }
    found, seconds = {}, {}
    for repeat in range(3):
        for name, way in ways.items():
            if name == "design matrix" and (repeat or args.no_design):
                continue  # slow enough to be timed once
            start = time.process_time()
            found[name] = way()
            seconds[name] = min(seconds.get(name, float("inf")), time.process_time() - start)
    print(f"{args.layers} layers, hidden {args.hidden}, {args.samples} samples of {args.tokens} tokens")
    for name, time_ in seconds.items():
        gap = (found[name].neurons - found["lfpr"].neurons).abs().max().item()
        print(f"{name:14} {time_:8.2f} s, {time_ / seconds['lfpr']:6.1f} × lfpr, largest difference of masks {gap:.1e}")


if __name__ == "__main__":
    main()
