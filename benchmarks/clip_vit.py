"""Pruning a vision tower of ViT-B/16 size end to end, and the speed of the small tower for its MACs; random weights.

    OMP_NUM_THREADS=2 python benchmarks/clip_vit.py [--images 256] [--constraint 0.4] [--multiple-of 64] [--layers 12]

The published code for CLIP logs 1.2 to 4.4 hours on a GPU for ViT-B/16, most of them in rescaling (with 8,192 images).
Prints minutes and the process's peak memory after each step. The unpruned and the small tower are then timed in turns:
the ratio of their times should be at most 1.1 times that of their MACs.
"""

import argparse
import resource
import time
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from lfpr.clip.objectives import contrastive_loss
from lfpr.cost import MacCost
from lfpr.encoder import prunable
from lfpr.gradients import collect_gradients
from lfpr.latency.cost import take_turns
from lfpr.rearrange import rearrange
from lfpr.rescale import rescale
from lfpr.search import search
from lfpr.shrink import shrink, verify_equivalent

SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "image_size": 224}
BATCH, SCALE = 32, torch.tensor(100.0).log()


def batches(count: int, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
    """Random images and text features, the same for the same count."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(0, count, size):
        yield torch.randn(size, 3, 224, 224, generator=generator), torch.randn(size, 512, generator=generator)


def encode(model: CLIPVisionModelWithProjection, batch: tuple[Tensor, Tensor]) -> Tensor:
    return model(pixel_values=batch[0]).image_embeds


class Steps:
    """Prints how long each step took."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()

    def done(self, name: str) -> None:
        now, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name:12} {(now - self.last) / 60:6.2f} min, peak memory so far {peak:5.2f} GB", flush=True)
        self.last = now


@torch.no_grad()
def seconds(models: dict[str, torch.nn.Module], batch: tuple[Tensor, Tensor], repeats: int) -> dict[str, float]:
    """The fastest forward pass of each model; they take turns."""
    turns = take_turns({name: partial(encode, model, batch) for name, model in models.items()}, repeats)
    return {name: min(times) for name, times in turns.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("images", 256), ("layers", 12), ("multiple-of", 64), ("repeats", 7), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--constraint", type=float, default=0.4)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = CLIPVisionModelWithProjection(
        CLIPVisionConfig(num_hidden_layers=args.layers, patch_size=16, **SIZES)
    ).eval()
    encoder, steps = prunable(model), Steps()
    cost = MacCost(encoder, 197)

    def objective(batch: tuple[Tensor, Tensor]) -> Tensor:
        return contrastive_loss(encode(model, batch), batch[1], SCALE)

    gradients = collect_gradients(encoder, batches(args.images), objective)
    steps.done("gradients")
    masks = search(gradients.importance(), cost, args.constraint, multiple_of=args.multiple_of)
    steps.done("search")
    masks = rearrange(masks, gradients)
    steps.done("rearrange")
    masks = rescale(encoder, masks, batches(args.images), lambda batch: encode(model, batch))
    steps.done("rescale")
    small = shrink(model, masks)
    steps.done("shrink")
    largest = verify_equivalent(model, masks, small, batches(BATCH), encode, atol=1e-3)
    steps.done("verify")
    print(f"{'all':12} {(time.perf_counter() - steps.start) / 60:6.2f} min for {args.images} images, "
          f"{torch.get_num_threads()} threads; masked and small tower differ by {largest:.1e}")  # fmt: skip
    tower = prunable(small)
    print(f"heads {tower.heads_per_layer}, neurons {tower.neurons_per_layer}")
    for size in (1, 8, 32):
        best = seconds({"full": model, "small": small}, next(batches(size, size)), args.repeats)
        ratio = best["small"] / best["full"]
        print(f"batch {size:2}: {1000 * best['full'] / size:6.1f} -> {1000 * best['small'] / size:6.1f} ms an image, "
              f"time ratio {ratio:.3f}, MAC ratio {cost.fraction(masks):.3f}, "
              f"{ratio / cost.fraction(masks):.2f} x")  # fmt: skip


if __name__ == "__main__":
    main()
