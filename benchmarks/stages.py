"""Our stages against the published ways to the same numbers."""

from functools import partial

import models
import published
import torch
from registry import Case, Figure, exponent, row, timed
from torch import Tensor

import lfpr
from lfpr import released
from lfpr.encoder import PrunableEncoder
from lfpr.gradients import MaskGradients
from lfpr.masks import Masks
from lfpr.tap.objectives import label_free, peak_step

STEP = 1  # at which TAP is scored


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
        "other": torch.no_grad()(lambda: published.decode(model, batch, model.config.decoding_steps)),
        "ours": torch.no_grad()(lambda: model.generate(batch)[0]),
    }
    highest = lambda logits: f"highest logit {logits.max():.4f}"  # noqa: E731
    return Case(ways, "TAP, 4 layers of 768, 12 steps, 2 questions", highest, repeats=2)


@row(
    "scoring",
    "Label-free scoring: surest step, gradients",
    ("all positions anew at each step", "cached keys and values"),
    "faster",
    bar=2.5,
    why="Choosing the step decodes the sample, see above. The gradients come from one pass forward and backward; the "
    "published way runs one pass more forward for each step before the scored one.",
)
def scoring(small: bool) -> Case:
    return label_free_scoring(small, choose=True)


@row(
    "scoring-gradients",
    "Label-free scoring: gradients alone",
    ("all positions anew at each step", "cached keys and values"),
    "faster",
    why="The published way runs one pass more for each step before the scored one, with a graph that nothing goes "
    "back through: what was decoded is an index.",
)
def scoring_gradients(small: bool) -> Case:
    return label_free_scoring(small, choose=False)


def label_free_scoring(small: bool, choose: bool) -> Case:
    """Mask gradients of the largest logit at `STEP`, after a look for the surest step if they are to `choose` it."""
    model = models.tap(small)
    batch, encoder = models.questions(model.config, 2), lfpr.prunable(model)
    surest = lambda batch: published.decode(model, batch, STEP + 1)[:, STEP].amax(-1).sum()  # noqa: E731

    def theirs() -> MaskGradients:
        if choose:
            with torch.no_grad():
                published.decode(model, batch, model.config.decoding_steps).amax(-1).argmax(-1)
        return lfpr.collect_gradients(encoder, [batch], surest)

    def ours() -> MaskGradients:
        if choose:
            peak_step(model, [batch])
        return lfpr.collect_gradients(encoder, [batch], label_free(model, STEP))

    norm = lambda found: f"norm of gradients {found.neurons.norm():.4g}"  # noqa: E731
    return Case({"other": theirs, "ours": ours}, f"TAP, 4 layers of 768, step {STEP}, 2 questions", norm, repeats=2)


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
    more_mb=20,
    why="A step looks at running products of each member with the sum, instead of adding all members over all "
    "gradients again. It takes a few MB more, for the products of each pair of members, in float64.",
)
def rearrangement(small: bool) -> Case:
    neurons, batches = (256, 16) if small else (3072, 256)
    masks, gradients = correlated(neurons, batches)
    ways = {
        "other": lambda: published.rearrange(masks.neurons[0], gradients.neurons[:, 0]),
        "ours": lambda: lfpr.rearrange(masks, gradients).neurons[0],
    }
    swaps = lambda mask: f"{int((mask != masks.neurons[0]).sum()) // 2} swapped"  # noqa: E731
    pairs = (neurons // 2) ** 2 / 2 + (neurons // 2) * neurons / 2  # among members, and of these with newcomers
    size = f"{neurons} neurons, {batches} gradients, half kept"
    return Case(ways, size, swaps, operations=2 * batches * pairs)


@row(
    "rearrangement-exponent",
    "Rearrangement: exponent in neurons",
    ("–", "fitted to four widths"),
    "value",
    bar=2,
    unit="",
    why="A look at the set for each newcomer, and a product for each pair.",
)
def rearrangement_exponent(small: bool) -> Figure:
    widths = [64, 128, 256] if small else [768, 1536, 3072, 6144]
    seconds = []
    for width in widths:
        masks, gradients = correlated(width, 16 if small else 256)
        seconds.append(min(timed(lambda: lfpr.rearrange(masks, gradients), 3)[0] for _ in range(3)))  # noqa: B023
    size = f"{widths[0]} to {widths[-1]} neurons, {len(gradients.neurons)} gradients"
    return Figure(None, exponent(widths, seconds), size, details={"widths": widths, "seconds": seconds})


def random_masks(encoder: PrunableEncoder, keep: float = 0.5) -> Masks:
    """0/1 masks that keep the same share of heads and neurons in every layer."""
    g = torch.Generator().manual_seed(0)
    widths = (encoder.num_layers, encoder.num_heads), (encoder.num_layers, encoder.num_neurons)
    ranks = (torch.rand(shape, generator=g).argsort(1).argsort(1) for shape in widths)
    return Masks(*((rank < keep * rank.shape[1]).float() for rank in ranks))


def rescaling_ways(small: bool, images: int, layers: int, keep: float, design_matrix: bool) -> tuple[dict, str]:
    """The published and our way to rescale layers of ViT-B/16, by the same equations."""
    model = models.vit(small, layers)
    encoder = lfpr.prunable(model)
    masks, batches = random_masks(encoder, keep), list(models.inputs(model, images, 8))
    with torch.no_grad():
        first = [model.embeddings(x) for x in batches]
    ways = {
        "other": lambda: published.rescale(encoder, masks, first, design_matrix),
        "ours": lambda: released.rescale(encoder, masks, batches, partial(models.forward, model)),
    }
    return ways, f"{layers} layers of ViT-B/16, {keep:.0%} kept, {images} images"


@row(
    "rescaling",
    "Rescaling by the published equations",
    ("products, six passes of a layer", "products, three passes"),
    "faster",
    bar=2,
    why="Three and a third passes of a layer instead of six, and heads by products, too, not by a row for each token "
    "and feature. Products of activations and the eigenvalue problem at the end are the same.",
    unmet="Rescaling: 58 % of the time are passes, 18 % eigenvalues and 11 % products, these the same for both. A "
    "student narrowed to what is kept, outputs updated by what a fit changed and a solver without eigenvalues would "
    "come to about 1.8 by arithmetic; they were not built.",
)
def rescaling(small: bool) -> Case:
    ways, size = rescaling_ways(small, 8 if small else 20, 2, 0.5, False)
    return Case(ways, size, lambda masks: f"mean scale {masks.neurons[masks.neurons != 0].mean():.3f}", repeats=2)


@row(
    "rescaling-design",
    "Rescaling, a further image",
    ("a row for each token and feature", "products"),
    "faster",
    bar=200,
    why="For a layer's neurons the design matrix has a row for each token and feature, and its products cost as many "
    "times more as there are features; sums over tokens give the same equations.",
    unmet="A further image: both ways also run it through the layer, which the design matrix does not slow down.",
)
def rescaling_design(small: bool) -> Figure:
    def seconds(images: int, way: str) -> float:
        ways, _ = rescaling_ways(small, images, 1, 0.5, True)
        return min(timed(ways[way])[0] for _ in range(1 if way == "other" else 3))

    few, many = 4, 20
    theirs = seconds(2, "other") - seconds(1, "other")
    ours = (seconds(many, "ours") - seconds(few, "ours")) / (many - few)
    return Figure(theirs, ours, "a layer of ViT-B/16, half kept")


@row(
    "reconstruction",
    "Reconstruction",
    ("rescaling", "reconstruction"),
    "cost",
    bar=1.5,
    why="The same walk through the layers; the equations are those of all weights and not of their scales, in float64.",
)
def reconstruction(small: bool) -> Case:
    layers, samples, tokens = (2, 10, 16) if small else (2, 32, 128)
    model = models.bert(layers, small=small)
    encoder = lfpr.prunable(model)
    masks, batches = random_masks(encoder), list(models.inputs(model, samples, 4, tokens))

    def reconstruct() -> float:
        report = lfpr.reconstruct(model, lfpr.shrink(model, masks), batches, models.forward)
        return 1 - sum(fit.held_after for fit in report) / sum(fit.held_before for fit in report)

    def rescale() -> float:
        report = lfpr.rescale(encoder, masks, batches, partial(models.forward, model)).report
        return 1 - sum(fit.after for fit in report) / sum(fit.before for fit in report)

    size = f"{layers} layers of BERT-base, half kept, {samples} samples of {tokens} tokens"
    return Case({"other": rescale, "ours": reconstruct}, size, lambda fell: f"error fell by {fell:.0%}", repeats=2)


def searching(small: bool, layers: int, batches: int) -> Case:
    """Masks from gradients of encoders of 12 heads and 3072 neurons a layer."""
    heads, neurons = (4, 96) if small else (12, 3072)
    g = torch.Generator().manual_seed(0)
    gradients = MaskGradients(*(torch.randn(batches, layers, width, generator=g) for width in (heads, neurons)))
    cost = lfpr.MacCost(lfpr.prunable(models.bert(layers, small=small)), 128)
    layers = len(gradients.heads[0]) if not small else 2
    gradients = MaskGradients(gradients.heads[:, :layers], gradients.neurons[:, :layers])

    def theirs() -> tuple[Tensor, Tensor]:
        return published.search(gradients.heads, gradients.neurons, cost.head, cost.neuron, 0.4 * cost.full)

    def ours() -> tuple[Tensor, Tensor]:
        masks = lfpr.search(gradients.importance(), cost, 0.4)
        return masks.heads, masks.neurons

    kept = lambda masks: f"{int(masks[0].sum())} heads, {int(masks[1].sum())} neurons"  # noqa: E731
    size = f"{layers} × ({heads} heads, {neurons} neurons), {batches} gradients"
    return Case({"other": theirs, "ours": ours}, size, kept, counted=False, repeats=9)


SEARCH = {
    "ways": ("a sum for each number of heads", "cumulative sums"),
    "sense": "faster",
    "bar": 1,
    "why": "Sums for all numbers of heads at once, from one sort. Squares are added in float64, block by block: the "
    "published code makes a square of all gradients, in float32.",
    "unmet": "Search: the sums of squares are in float64, and take half of the time.",
}
row("search-tap", "Search: TAP", **SEARCH)(partial(searching, layers=4, batches=128))
row("search-base", "Search: TAP12, BERT-base, ViT-B/16", **SEARCH)(partial(searching, layers=12, batches=64))
