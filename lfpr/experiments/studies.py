"""What is studied beside the scores of pruned models: rows of the tidy tables that only some experiments have.

`STUDIES` are of an experiment, `DOWNSTREAM` of each of its pruned and retrained models; a spec names its own. What they
need are stages, computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from lfpr.clip.retrieval import Level, cascade_levels, eccv_metrics, image_speedup, levels_speedup
from lfpr.clip.retrieval import cascade as cascade_of
from lfpr.cost import MacCost
from lfpr.encoder import prunable
from lfpr.experiments.cell import Cell
from lfpr.experiments.clip import load_encoded
from lfpr.experiments.experiment import Experiment, scale_range
from lfpr.experiments.runs import Stage
from lfpr.files import checkout
from lfpr.masks import Masks
from lfpr.released import load_masks
from lfpr.released import rescale as released_rescale

Rows = list[dict[str, Any]]

RELEASED = {  # model, constraint, tokens of an image -> folder below data/published/clip-masks
    ("ViT-B/16", 0.4, 197): "clip-vit-base-patch16_0.4_seed_1",
    ("ViT-B/16", 0.75, 197): "clip-vit-base-patch16_0.75_seed_1",
    ("ViT-B/32", 0.5, 50): "clip-vit-base-patch32_0.5_seed_501",
}
SOLVERS = {"ridge": {}, "released solver": {"solver": released_rescale}}
"""How mask values are fitted -> options of `Experiment.rescale`."""


# ---- TAP


def scoring(experiment: Experiment, seed: int = 0, constraint: float = 0.4) -> Rows:
    """How much the label-free ranking depends on how it is computed: ours, LFPR's code's, and that of another sample.

    Two rows, `kind` head and neuron, for each other scoring that the default one is compared `with`: "released", LFPR's
    code's (dropout, a gradient per batch of 8), on the same questions; "batches of 8", the same without dropout;
    "another sample", the default one on the questions of the next seed, what chance alone changes. `spearman`: rank
    correlation over all heads (neurons) of all layers; `overlap`: kept by both / kept by either, at `constraint`;
    `dropout`: the one scored with.
    """
    plain = experiment.cell(Cell("label-free", constraint, seed=seed, scoring="per-sample"))
    others = {
        "released": replace(plain, scoring="released"),
        "batches of 8": replace(plain, scoring="batched"),
        "another sample": replace(plain, seed=seed + 1),
    }
    ours = experiment.importance(plain)
    kept = experiment.search(ours, plain)
    rows = []
    for name, cell in others.items():
        theirs = experiment.importance(cell)
        masks = experiment.search(theirs, cell)
        about = {"experiment": experiment.name, "profile": experiment.profile, "seed": seed, "with": name}
        about |= {"constraint": constraint, "dropout": experiment.task.dropout(cell) or 0.0}
        for kind in ("heads", "neurons"):
            both = getattr(kept, kind) != 0, getattr(masks, kind) != 0
            overlap = (both[0] & both[1]).sum().item() / (both[0] | both[1]).sum().item()
            correlation = spearmanr(getattr(ours, kind).flatten(), getattr(theirs, kind).flatten()).statistic
            rows.append(about | {"kind": kind[:-1], "spearman": float(correlation), "overlap": overlap})
    return rows


# ---- CLIP


def sensitivity(experiment: Experiment, seed: int | None = None) -> Rows:
    """All-but-one: step by step, one more layer keeps only its most important head (`lfpr.sensitivity`).

    Two rows per step, rescaled and not: heads `removed`, `fraction` of MACs, recall.
    """
    return sensitivity_walk(experiment, seed).result["steps"]


def sensitivity_walk(experiment: Experiment, seed: int | None = None) -> Stage:
    """The stage behind `sensitivity`: what each step of the method's `walk` is worth, a stage each, so that an
    interrupted study goes on. seed: by default `settings.sensitivity_seed`.

    Files: `masks-STEP.safetensors`, without rescaling.
    """
    task, layers = experiment.task, experiment.encoder.num_layers
    seed = experiment.settings.sensitivity_seed if seed is None else seed
    cell = experiment.cell(Cell("sensitivity", seed=seed, step=layers))
    key = {"seed": seed} | task.sampling(cell) | task.fitting | task.evaluation

    def build(folder: Path) -> dict:
        rows = []
        for number in range(1, layers + 1):
            masks = experiment.searched(Cell("sensitivity", seed=seed, step=number))
            masks.save(folder / f"masks-{number}.safetensors")
            rows += task.stage("step", key | {"step": number}, _step(experiment, seed, number, masks)).result["rows"]
        return {"steps": rows}

    return task.stage("sensitivity", key, build)


def _step(experiment: Experiment, seed: int, number: int, masks: Masks) -> Callable[[Path], dict]:
    def build(folder: Path) -> dict:
        task, removed = experiment.task, int((masks.heads == 0).sum())
        about = {"step": number, "removed": removed, "fraction": experiment.cost.fraction(masks)}
        variants = {False: masks, True: experiment.rescale(masks, seed, folder=folder)}
        return {"rows": [about | {"rescaled": key} | task.evaluate_masked(value) for key, value in variants.items()]}

    return build


def solvers(experiment: Experiment, cell: Cell | None = None) -> Stage:
    """The same pruned tower with mask values of one ("none"), with ours (a ridge towards one), and with those of the
    released solver, which has neither ridge nor limit.

    `result[solver]` has the range of the scales and the recall. Files: `SOLVER.safetensors`, the masks.
    """
    cell, task = experiment.cell(cell or Cell("fisher", rescaled=True)), experiment.task
    key = cell.place | {"rearranged": cell.rearranged} | task.sampling(cell) | task.fitting | task.evaluation

    def build(folder: Path) -> dict:
        masks = experiment.searched(cell)
        variants = {"none": masks}
        for name, options in SOLVERS.items():
            variants[name] = experiment.rescale(masks, cell.seed, folder=folder, **options)
        for name, variant in variants.items():
            variant.save(folder / f"{name}.safetensors")
        return {name: scale_range(variant) | task.evaluate_masked(variant) for name, variant in variants.items()}

    return task.stage("rescaling", key, build)


def released_masks() -> dict[tuple[str, float], Masks]:
    """The masks [12, 12] and [12, 3072] that the fork of Kwon et al.'s code for CLIP released, by model and constraint.

    Keys are ("ViT-B/16", 0.4), ("ViT-B/16", 0.75) and ("ViT-B/32", 0.5). Raises FileNotFoundError outside a checkout.
    """
    root = checkout()
    if root is None:
        raise FileNotFoundError("the released masks of CLIP come with a checkout of the project, in data/published")
    folder = root / "data" / "published" / "clip-masks"
    return {(model, constraint): load_masks(folder / name) for (model, constraint, _), name in RELEASED.items()}


def scales(experiment: Experiment | None = None, cell: Cell | None = None) -> Rows:
    """A row per layer and part ("heads", "neurons") of the released masks and, given an experiment, of its own model,
    rescaled by either solver (`solvers`).

    Columns: model, solver ("released", or one of `SOLVERS`), constraint, fraction (of MACs kept, of the whole tower),
    layer, part, kept, total, and of the scales of what is kept the smallest, the quartiles lower, median and upper, and
    the largest. Where a layer keeps nothing these five are NaN.
    """
    rows = []
    for (model, constraint, tokens), masks in zip(RELEASED, released_masks().values(), strict=True):
        fraction = _base(tokens).fraction(masks)
        rows += _scale_rows(masks, model=model, solver="released", constraint=constraint, fraction=fraction)
    if experiment is not None:
        cell = experiment.cell(cell or Cell("fisher", rescaled=True))
        stage = solvers(experiment, cell)
        for solver in ("released solver", "ridge"):
            masks = Masks.load(stage.folder / f"{solver}.safetensors")
            about = {"constraint": cell.constraint, "fraction": experiment.cost.fraction(masks)}
            rows += _scale_rows(masks, model=experiment.name, solver=solver, **about)
    return rows


def _scale_rows(masks: Masks, **about: Any) -> Rows:
    return [
        about
        | {"layer": layer, "part": part, "kept": int((row != 0).sum()), "total": len(row)}
        | _five_numbers(row[row != 0])
        for part, table in (("heads", masks.heads), ("neurons", masks.neurons))
        for layer, row in enumerate(table)
    ]


def _five_numbers(values: Tensor) -> dict[str, float]:
    names = ("smallest", "lower", "median", "upper", "largest")
    if not len(values):
        return dict.fromkeys(names, float("nan"))
    return dict(zip(names, values.quantile(torch.linspace(0, 1, 5)).tolist(), strict=True))


def _base(tokens: int) -> MacCost:
    """MACs of the vision tower of CLIP's "base" models, for an image of `tokens` tokens."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    with torch.device("meta"):  # no weights are needed
        return MacCost(prunable(CLIPVisionModel(CLIPVisionConfig(**sizes))), tokens)


def cascade(experiment: Experiment, pruned: Stage, m: int | None = None) -> Stage | None:
    """The model of a `prune` or `retrain` stage ranks all images, the unpruned one re-ranks its top `m`: by default
    `settings.shortlist`, or all images if there are fewer.

    Recall (`score`, `r5`, `r10`), `reranked` and `growth` (see `lfpr.clip.retrieval.cascade`), measured milliseconds,
    and the `speedup` of image encoding if the share of images ever re-ranked is the published 10 %, as measured over
    all captions of this split (`speedup_measured`), or m of I, as for the first query over new images
    (`speedup_query`). Beyond the share `break_even` the cascade costs more than the full model. None where nothing can
    be scored.
    """
    task, settings = experiment.task, experiment.settings
    if task.unscored:
        return None
    m = min(settings.shortlist, len(task.reference.images.image_id)) if m is None else m
    key = pruned.provenance["parameters"] | {"of": pruned.folder.parent.name, "m": m, "assumed": settings.reranked}

    def build(folder: Path) -> dict:
        images, texts, pairs = task.reference
        (ranked,) = load_encoded(pruned.folder / "features.safetensors", "image")
        result = cascade_of(ranked.features, images.features, texts.features, m, pairs=pairs)
        times = task.compare({"full": experiment.model, "pruned": experiment.load(pruned)})
        full, small = (times[name]["ms_per_image"] for name in ("full", "pruned"))
        shares = {"": settings.reranked, "_measured": result["reranked"], "_query": m / len(images.features)}
        speed = {f"speedup{name}": image_speedup(full, small, share) for name, share in shares.items()}
        speed |= {"ms_full": full, "ms_pruned": small, "break_even": max(0.0, 1 - small / full)}
        return {"score": result["r1"], "fraction": pruned.result["fraction"]} | result | speed

    return task.stage("cascade", key, build)


def levels(experiment: Experiment, pruned: Stage) -> Stage | None:
    """A cascade of three levels: the model `settings.first_level` ranks all images by its own towers, that of a `prune`
    or `retrain` stage re-ranks its best, and the unpruned one the best of these (`settings.shortlists`, or all images
    if there are fewer). None without that setting, or where nothing can be scored.

    As `cascade`; `reranked`, `growth` are of the unpruned model, `reranked_pruned` of the pruned one. The time of all
    levels counts in the speed-up, the published 10 % for both later ones. `ms_first` is measured apart from the others.
    """
    task, settings = experiment.task, experiment.settings
    if settings.first_level is None or task.unscored:
        return None
    count = len(task.reference.images.image_id)
    m = [min(number, count) for number in settings.shortlists]
    key = pruned.provenance["parameters"] | {"of": pruned.folder.parent.name, "m": m, "assumed": settings.reranked}

    def build(folder: Path) -> dict:
        first, (images, texts, pairs) = task.first.reference, task.reference
        if not (first.images.image_id.equal(images.image_id) and first.texts.caption_id.equal(texts.caption_id)):
            raise ValueError(
                f"first_level = {settings.first_level}: other images could be read than by the pruned model"
            )
        (ranked,) = load_encoded(pruned.folder / "features.safetensors", "image")
        towers = [first.images.features, ranked.features, images.features]
        described = [first.texts.features, texts.features, texts.features]
        result = cascade_levels(list(map(Level, towers, described)), m, pairs=pairs)
        table = task.compare({"full": experiment.model, "pruned": experiment.load(pruned)})
        table |= task.first.compare({"first": task.first.model})
        times = [table[name]["ms_per_image"] for name in ("first", "pruned", "full")]
        assumed = {"": [settings.reranked] * 2, "_measured": result["reranked"], "_query": [n / count for n in m]}
        speed = {f"speedup{name}": levels_speedup(times, shares) for name, shares in assumed.items()}
        speed |= {"break_even": max(0.0, (times[2] - times[0]) / (times[1] + times[2]))}
        speed |= {f"ms_{name}": time for name, time in zip(("first", "pruned", "full"), times, strict=True)}
        shares = {"reranked_pruned": result["reranked"][0], "reranked": result["reranked"][1]}
        growth = [[queries, share] for queries, _, share in result["growth"]]
        about = {"score": result["r1"], "fraction": pruned.result["fraction"]}
        return about | result | shares | {"growth": growth} | speed

    return task.stage("levels", key | {"first_level": task.first.inputs["checkpoint"]}, build)


def eccv(experiment: Experiment, pruned: Stage | None = None) -> dict[str, float]:
    """ECCV-Caption metrics (`lfpr.clip.retrieval.eccv_metrics`) of the unpruned model, or that of a `prune` or
    `retrain` stage. The val split of `data_root` must be the Karpathy test split, eval_captions "all"."""
    images, texts, _ = experiment.task.reference
    if pruned is not None:
        (images,) = load_encoded(pruned.folder / "features.safetensors", "image")
    return eccv_metrics(images.features, texts.features, images.image_id, texts.caption_id)


STUDIES: dict[str, Callable[[Experiment], Rows]] = {
    "scoring": scoring,
    "sensitivity": sensitivity,
    "scales": scales,
}
DOWNSTREAM: dict[str, Callable[[Experiment, Stage], Stage | None]] = {"cascade": cascade, "levels": levels}
