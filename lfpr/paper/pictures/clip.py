"""What the notebooks show of the CLIP experiment: images and captions, its objective, what its models find.

`lfpr.paper.pictures.tap` has functions of the same names for TAP.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from lfpr.clip.coco import COCOCaptions, read_image
from lfpr.clip.objectives import image_features
from lfpr.clip.retrieval import ranks
from lfpr.experiments.cell import Cell
from lfpr.experiments.runs import Stage
from lfpr.gradients import collect_gradients
from lfpr.paper.labels import BLUE, ORANGE, RED
from lfpr.paper.style import DOUBLE, SINGLE, STYLE, heat_map

if TYPE_CHECKING:
    from transformers import CLIPModel

QUERIES, FOUND = 3, 5
LOST, WON = "Lost", "Won"
CHANGES = {LOST: RED, WON: BLUE}
"""What can become of an image that is found first by one of two models alone, and its colour."""
SHOWN = 4  # of each
PLACES, BOUNDS = ("1", "2–5", "6–10", "> 10"), (0, 1, 5, 10, math.inf)  # of an image, for a caption


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
    return _found(experiment, _validation(experiment), best, pairs), same


def changes(experiment, stages: Mapping[str, Stage]) -> tuple[pd.DataFrame, Figure]:
    """The validation captions whose image the second of the stages' models finds first and the first does not (won), or
    the other way round (lost), those whose image moved furthest first; and a picture of the first ones.

    Columns: `change`, `caption`, and the image's place by each model. Nothing without a validation split.
    """
    names, task = list(stages)[:2], experiment.task
    if task.unscored:
        return pd.DataFrame(columns=["change", "caption", *names]), Figure((DOUBLE, 0.1))
    features = {name: task.encoded(stages[name]).features for name in names}
    table = pd.DataFrame({name: _places(experiment, found) for name, found in features.items()})
    before, after = (table[name] for name in names)
    table.insert(0, "change", np.select([(before == 1) & (after > 1), (before > 1) & (after == 1)], list(CHANGES), ""))
    table = table[table.change != ""].assign(far=-(before - after).abs()).sort_values(["change", "far"], kind="stable")
    data = _validation(experiment)
    captions = {pair.caption_id: pair.text.strip() for pair in data.pairs}
    ids = task.reference.texts.caption_id[table.index.tolist()].tolist()
    table.insert(1, "caption", [captions[caption] for caption in ids])
    table = table.drop(columns="far")
    return table, _moved(experiment, data, table, features)


def kinds(experiment, stages: Mapping[str, Stage]) -> Figure:
    """At which place each caption's image is found by the first of the stages' models and by each other one: how many
    captions, coloured by the share of the row. Nothing without a validation split."""
    if experiment.task.unscored:
        return Figure((DOUBLE, 0.1))
    places = {name: _places(experiment, experiment.task.encoded(stage).features) for name, stage in stages.items()}
    groups = pd.DataFrame({name: pd.cut(own, BOUNDS, labels=PLACES) for name, own in places.items()})
    first, *others = groups
    with matplotlib.rc_context(STYLE):
        figure = Figure((DOUBLE, 2.5), layout="constrained")
        panels = figure.subplots(1, len(others), squeeze=False, sharey=True)[0]
        for panel, name in zip(panels, others, strict=True):
            counts = pd.crosstab(groups[first], groups[name]).reindex(PLACES, columns=PLACES, fill_value=0)
            shares = counts.div(counts.sum(axis=1), axis=0).mul(100).set_axis(range(len(PLACES)), axis=1)
            mesh = heat_map(panel, shares, counts.map("{:,}".format), "Blues", (0, 100))
            panel.set_xticks(panel.get_xticks(), PLACES)
            panel.set(xlabel=f"Place of the image: {name}", ylabel="", aspect="equal")
        totals = counts.sum(axis=1)
        panels[0].set_yticks(panels[0].get_yticks(), [f"{place} ({totals[place]:,})" for place in PLACES])
        panels[0].set_ylabel(f"Place of the image: {first}")
        figure.colorbar(mesh, ax=panels, label="Share of the row (%)", shrink=0.8)
    return figure


def _places(experiment, images: torch.Tensor) -> list[int]:
    """Of every validation caption the place of its image, from 1, by features [I, D] of the images."""
    reference = experiment.task.reference
    return (1 + ranks(images, reference.texts.features, reference.pairs)).tolist()


def _validation(experiment) -> COCOCaptions:
    settings = experiment.settings
    return experiment.task.data("val", captions=settings.eval_captions, limit=settings.num_eval or None)


def _moved(experiment, data: COCOCaptions, table: pd.DataFrame, features: Mapping[str, torch.Tensor]) -> Figure:
    """Of the first rows of a table of `changes`, by what changed, the image that a model finds rightly, framed, and
    beside it the one that the other model finds instead."""
    reference = experiment.task.reference
    ids, pairs = reference.images.image_id.tolist(), {pair.image_id: pair for pair in data.pairs}
    names, told = list(features), [change for change in CHANGES if (table.change == change).any()]
    with matplotlib.rc_context(STYLE):
        figure = Figure((DOUBLE * 1.25, 0.1 + 2 * len(told)), layout="constrained")
        for part, change in zip(figure.subfigures(max(1, len(told)), squeeze=False).flat, told, strict=False):
            rows = table[table.change == change]
            part.suptitle(f"{change}: {len(rows):,}", x=0.01, ha="left", weight="bold", color=CHANGES[change])
            right, wrong = names if change == LOST else names[::-1]
            for query, row in zip(part.subfigures(1, SHOWN, squeeze=False).flat, rows.itertuples(), strict=False):
                text = textwrap.shorten(row.caption, 110, placeholder=" …")
                query.suptitle(textwrap.fill(text, 36), fontsize=7, x=0.03, ha="left", parse_math=False)
                own = reference.pairs[row.Index].item()
                texts = reference.texts.features[row.Index, None]
                found = best_images(features[wrong], texts, 2)[0].tolist()
                other = next(image for image in found if image != own)  # where both score alike, too
                place = table.loc[row.Index, wrong]
                labels = {own: f"looked for,\nfound by {right}", other: f"found by {wrong}:\nright one at {place:,}"}
                for panel, (image, label) in zip(query.subplots(1, 2), labels.items(), strict=True):
                    pair = pairs[ids[image]]
                    panel.imshow(read_image(data.file(pair), pair.image_id))
                    panel.set(xticks=[], yticks=[])
                    panel.set_xlabel(label, fontsize=6.5, color=BLUE if image == own else RED)
                    panel.spines[:].set(visible=True, color=BLUE if image == own else RED, linewidth=2 - (image != own))
    return figure


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
