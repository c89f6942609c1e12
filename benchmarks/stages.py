"""Our stages against the published ways to the same numbers."""

from collections.abc import Callable

import models
import torch
from registry import Case, row
from torch import Tensor

import lfpr
from lfpr.gradients import MaskGradients
from lfpr.masks import Masks
from lfpr.tap.model import TAP, Batch
from lfpr.tap.objectives import label_free

STEP = 1  # at which TAP is scored


def recompute(model: TAP, batch: Batch, steps: int) -> Tensor:
    """Logits [B, steps, V + 100] as published: each step runs TextBERT and the MMT over all positions."""
    encoded = model.encode(batch)
    kept = torch.arange(batch["text"].shape[1])
    inputs = encoded.x[:, len(kept) :]
    previous = torch.zeros(len(batch["text"]), model.config.decoding_steps, dtype=torch.long)
    previous[:, 0] = model.config.bos_index
    for step in range(steps):
        if step:
            words = model.text_bert(batch["text"], kept, batch["text"] != 0)
            encoded.x = torch.cat([words, inputs], 1)
        logits = model.decode(encoded, previous)
        previous = torch.cat([previous[:, :1], logits.argmax(-1)[:, :-1]], 1)
    return logits[:, :steps]


@row(
    "decoding",
    "Greedy decoding",
    ("all positions anew at each step", "cached keys and values"),
    "faster",
    bar=6,
    why="The encoder positions run once and not twelve times, and a step looks at one position; what is left is the "
    "first pass and the scores of 5,000 answers.",
)
def decoding(small: bool) -> Case:
    model = models.tap(small)
    batch = models.questions(model.config, 2)
    ways = {
        "other": torch.no_grad()(lambda: recompute(model, batch, model.config.decoding_steps)),
        "ours": torch.no_grad()(lambda: model.generate(batch)[0]),
    }
    words = lambda logits: f"{len(logits.argmax(-1).unique())} different answer words"  # noqa: E731
    return Case(ways, "TAP, 4 layers of 768, 12 steps, 2 questions", words, repeats=2)


@row(
    "scoring",
    "Label-free scoring",
    ("gradients through all passes", "gradients through one"),
    "faster",
    bar=2.5,
    why="Decoded words carry no gradient, so the passes before the scored step need none; with keys and values kept, "
    "the encoder positions run forward and backward once.",
)
def scoring(small: bool) -> Case:
    model = models.tap(small)
    batch, encoder = models.questions(model.config, 2), lfpr.prunable(model)

    def gradients(objective: Callable[[Batch], Tensor]) -> MaskGradients:
        return lfpr.collect_gradients(encoder, [batch], objective)

    ways = {
        "other": lambda: gradients(lambda batch: recompute(model, batch, STEP + 1)[:, STEP].amax(-1).sum()),
        "ours": lambda: gradients(label_free(model, STEP)),
    }
    norm = lambda found: f"norm of gradients {found.neurons.norm():.4g}"  # noqa: E731
    return Case(ways, f"TAP, 4 layers of 768, step {STEP}, 2 questions", norm)


def swapped_anew(mask: Tensor, gradients: Tensor) -> Tensor:
    """Rearranged mask [N] from gradients [B, N], the sum over set and batches taken anew in each step, as published."""
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


def correlated(neurons: int, batches: int) -> tuple[Masks, MaskGradients]:
    """A layer whose half is pruned: gradients of neurons of different importance that share a part."""
    g = torch.Generator().manual_seed(0)
    spread, shared = torch.rand(neurons, generator=g), torch.randn(batches, 1, 1, generator=g)
    slopes = (torch.randn(batches, 1, neurons, generator=g) + 0.3 * shared) * spread
    gradients = MaskGradients(torch.ones(batches, 1, 1), slopes)
    mask = torch.ones(1, neurons)
    mask[0, gradients.importance().neurons[0].argsort()[: neurons // 2]] = 0
    return Masks(torch.ones(1, 1), mask), gradients


@row(
    "rearrangement",
    "Rearrangement",
    ("sums anew in each step", "products kept"),
    "faster",
    bar=12,
    most_mb=20,
    why="A step looks at running products of each member with the sum, instead of adding all members over all batches "
    "again. NumPy in float64, where the published code has float32: an eighth of a step's arithmetic, twice its bytes.",
)
def rearrangement(small: bool) -> Case:
    neurons, batches = (256, 16) if small else (3072, 256)
    masks, gradients = correlated(neurons, batches)
    ways = {
        "other": lambda: swapped_anew(masks.neurons[0], gradients.neurons[:, 0]),
        "ours": lambda: lfpr.rearrange(masks, gradients).neurons[0],
    }
    kept = lambda mask: f"{int((mask != masks.neurons[0]).sum()) // 2} swapped"  # noqa: E731
    pairs = (neurons // 2) ** 2 / 2 + (neurons // 2) * neurons  # among members, and of these with newcomers
    size = f"{neurons} neurons, {batches} gradients, half kept"
    return Case(ways, size, kept, operations=2 * batches * pairs)
