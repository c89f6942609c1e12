"""What the notebooks show of the CLIP experiment: images and captions, its objective, what its models find.

`lfpr.paper.pictures.tap` has functions of the same names for TAP.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from lfpr.clip.coco import COCOCaptions, read_image
from lfpr.clip.objectives import image_features
from lfpr.experiments.cell import Cell
from lfpr.gradients import collect_gradients
from lfpr.paper.labels import BLUE, ORANGE
from lfpr.paper.style import DOUBLE, SINGLE, STYLE

if TYPE_CHECKING:
    from transformers import CLIPModel

QUERIES, FOUND = 3, 5


def reading(report: Mapping) -> str:
    """What a report of `experiment.check` says about the scores to expect."""
    if not report["images"]:
        return report["first_bad"]
    return f"one of {report['images']:,} images is looked for: by chance, Recall@1 is {1 / report['images']:.2%}"


def examples(experiment) -> Figure:
    """The first eight validation images (or training images, without any) with their first captions."""
    data = experiment.task.data(experiment.task.seen, captions="first")
    with matplotlib.rc_context(STYLE):
        figure = Figure((DOUBLE, 4.2), layout="constrained")
        for panel, index in zip(figure.subplots(2, 4).flat, range(len(data)), strict=False):
            panel.imshow(data.image(index))
            panel.set_title(textwrap.fill(data.pairs[index].text, 30), fontsize=6.5, parse_math=False)
            panel.set_axis_off()
    return figure


def statistics(experiment) -> Figure:
    """How many words the captions of these have."""
    words = [len(pair.text.split()) for pair in experiment.task.data(experiment.task.seen, captions="all").pairs]
    with matplotlib.rc_context(STYLE):
        figure = Figure((SINGLE, 1.9), layout="constrained")
        panel = figure.subplots()
        panel.hist(words, range(min(words), max(words) + 2), color=BLUE, align="left", rwidth=0.8)
        panel.set(xlabel="Words in the caption", ylabel="Captions")
    return figure


def objective(experiment, seed: int = 0) -> Figure:
    """Size of the head mask gradients by layer, of one batch: raw feature · own direction, and the cosine, which has
    none but rounding errors."""
    cell = experiment.cell(Cell("label-free", seed=seed))
    batch = next(iter(experiment.task.batches(cell)))

    def cosine(batch):
        features, own = image_features(experiment.model, batch), batch["image_features"]
        return F.cosine_similarity(features, own).sum()

    objectives = {"raw feature · own direction": experiment.task.objective(cell), "cosine with itself": cosine}
    with matplotlib.rc_context(STYLE):
        figure = Figure((SINGLE, 2.2), layout="constrained")
        panel = figure.subplots()
        for (label, function), color in zip(objectives.items(), (BLUE, ORANGE), strict=True):
            heads = collect_gradients(experiment.encoder, [batch], function).heads[0].abs().mean(1)
            panel.semilogy(range(1, len(heads) + 1), heads, "o-", color=color, label=label)
        panel.set(xlabel="Layer", ylabel="Mean |gradient| of its heads")
        panel.grid(True)
        panel.legend()
    return figure


def compare(experiment, models: Mapping[str, CLIPModel]) -> tuple[Figure, dict[str, float]]:
    """The five best images for three captions by every model, the right one framed; and how much each model's ten best
    images for all captions overlap with those of the first model, on average. Nothing without a validation split."""
    if experiment.task.unscored:
        return Figure((DOUBLE, 0.1)), {}
    texts, pairs = experiment.task.reference.texts.features, experiment.task.reference.pairs
    best = {name: best_images(experiment.task.encode(model).features, texts) for name, model in models.items()}
    first = next(iter(best.values()))
    same = {name: (near[:, :, None] == first[:, None]).any(-1).float().mean().item() for name, near in best.items()}
    data = experiment.task.data(
        "val", captions=experiment.settings.eval_captions, limit=experiment.settings.num_eval or None
    )
    return _found(experiment, data, best, pairs), same


def best_images(images: torch.Tensor, texts: torch.Tensor, count: int = 10) -> torch.Tensor:
    """Rows [T, count] of the images [I, D] that are nearest to each text [T, D] by cosine, the nearest first."""
    similarity = F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T
    return similarity.topk(min(count, len(images)), dim=1).indices


def _found(experiment, data: COCOCaptions, best: Mapping[str, torch.Tensor], pairs: torch.Tensor) -> Figure:
    ids, names = experiment.task.reference.images.image_id.tolist(), {pair.image_id: pair for pair in data.pairs}
    captions = {pair.caption_id: pair.text for pair in data.pairs}
    queries = range(min(QUERIES, len(pairs)))
    with matplotlib.rc_context(STYLE):
        figure = Figure((DOUBLE, 1.3 * len(queries) * len(best)), layout="constrained")
        parts = figure.subfigures(len(queries), squeeze=False).flat  # a long title of a panel would squeeze the others
        for query, part in zip(queries, parts, strict=True):
            text = textwrap.fill(captions[experiment.task.reference.texts.caption_id[query].item()].strip(), 110)
            part.suptitle(text, x=0.01, horizontalalignment="left", fontsize="medium", parse_math=False)
            rows = part.subplots(len(best), FOUND, squeeze=False)
            for panels, (name, near) in zip(rows, best.items(), strict=True):
                panels[0].set_ylabel(name)
                for panel in panels:
                    panel.set(xticks=[], yticks=[])
                    panel.spines[:].set_visible(False)
                for panel, image in zip(panels, near[query].tolist(), strict=False):
                    pair = names[ids[image]]
                    panel.imshow(read_image(data.file(pair), pair.image_id))
                    if image == pairs[query]:
                        panel.spines[:].set(visible=True, color=BLUE, linewidth=2.5)
    return figure
