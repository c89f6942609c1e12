"""CLIP on MSCOCO: all stages of pruning and retraining, and what is studied with them.

Each stage is loaded from `runs/`, or computed and kept. Only the vision tower is pruned, and all constraints count
its multiply-accumulates (MACs). Images are decoded batch by batch; what stays in memory are features and mask
gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from lfpr.clip.objectives import Batch, contrastive
from lfpr.clip.retrieval import cascade, eccv_metrics, image_speedup
from lfpr.experiments.clip_baseline import load_encoded
from lfpr.experiments.clip_pruning import CLIPPruning
from lfpr.experiments.runs import Stage
from lfpr.experiments.staged import scale_range
from lfpr.masks import Masks
from lfpr.save import load_pruned
from lfpr.sensitivity import all_but_one


class CLIPExperiment(CLIPPruning):
    """Stages of CLIP on MSCOCO. `result` of each stage is a dict of numbers, `folder` holds its files."""

    def sensitivity(self, seed: int = 0) -> Stage:
        """All-but-one: step by step, one more layer keeps only its most important head (`lfpr.sensitivity`).

        `result["steps"]` has two rows per step, rescaled and not: heads `removed`, `fraction` of MACs, recall.
        Each step is a stage, so that an interrupted walk goes on. Files: `masks-STEP.safetensors`, without rescaling.
        """
        parameters = {"seed": seed} | self._sampling | self._rescaling | self._evaluation

        def build(folder: Path) -> dict:
            batches, masks, rows = self.batches("fisher", seed), None, []
            for number in range(1, self.encoder.num_layers + 1):
                step = self._stage("step", parameters | {"step": number}, self._step(number, batches, masks, seed))
                masks = Masks.load(step.folder / "masks.safetensors")
                masks.save(folder / f"masks-{number}.safetensors")
                rows += step.result["rows"]
            return {"steps": rows}

        return self._stage("sensitivity", parameters, build)

    def _step(self, number: int, batches: Iterable[Batch], before: Masks | None, seed: int) -> Callable[[Path], dict]:
        def build(folder: Path) -> dict:
            _, masks = next(all_but_one(self.encoder, batches, contrastive(self.model), before, progress="sensitivity"))
            masks.save(folder / "masks.safetensors")
            removed = self.encoder.num_layers * self.encoder.num_heads - sum(masks.heads_kept)
            about = {"step": number, "removed": removed, "fraction": self.cost.fraction(masks)}
            chosen = {False: masks, True: self.rescale(masks, seed, folder=folder)}
            return {"rows": [about | {"rescaled": key} | self.evaluate_masked(value) for key, value in chosen.items()]}

        return build

    def rescaling(self, method: str = "fisher", constraint: float = 0.4, seed: int = 0) -> Stage:
        """The same pruned tower with mask values of one, with ours (a ridge towards one), and with those of the
        published solver, which has neither ridge nor limit.

        `result[solver]`, solver "none", "ridge" or "published", has the range of the scales and the recall. Files:
        `SOLVER.safetensors`, the masks.
        """
        parameters = self.cell(method, "sum", constraint, seed=seed)

        def build(folder: Path) -> dict:
            masks = self.found(parameters)
            variants = {"none": masks, "ridge": self.rescale(masks, seed)}
            variants["published"] = self.rescale_as_released(masks, seed)
            for name, variant in variants.items():
                variant.save(folder / f"{name}.safetensors")
            return {name: scale_range(variant) | self.evaluate_masked(variant) for name, variant in variants.items()}

        return self._stage("rescaling", parameters, build)

    def cascade(self, pruned: Stage, m: int | None = None) -> Stage:
        """The model of a `prune` or `retrain` stage ranks all images, the unpruned one re-ranks its top `m`:
        by default `settings.shortlist`, or all images if there are fewer.

        Recall (`score`, `r5`, `r10`), `reranked` and `growth` (see `lfpr.clip.retrieval.cascade`), measured
        milliseconds, and the `speedup` of image encoding if the share of images ever re-ranked is the published
        10 %, as measured over all captions of this split (`speedup_measured`), or m of I, as for the first query over
        new images (`speedup_query`). Beyond the share `break_even` the cascade costs more than the full model.
        """
        m = min(self.settings.shortlist, len(self.reference.images.image_id)) if m is None else m
        about = {"of": pruned.folder.parent.name, "m": m, "assumed": self.settings.reranked}

        def build(folder: Path) -> dict:
            images, texts, pairs = self.reference
            (ranked,) = load_encoded(pruned.folder / "features.safetensors", "image")
            found = cascade(ranked.features, images.features, texts.features, m, pairs=pairs)
            times = self.compare({"full": self.model, "pruned": load_pruned(pruned.folder / "model")})
            full, small = (times[name]["ms_per_image"] for name in ("full", "pruned"))
            shares = {"": self.settings.reranked, "_measured": found["reranked"], "_query": m / len(images.features)}
            speed = {f"speedup{name}": image_speedup(full, small, share) for name, share in shares.items()}
            speed |= {"ms_full": full, "ms_pruned": small, "break_even": max(0.0, 1 - small / full)}
            return {"score": found["r1"], "fraction": pruned.result["fraction"]} | found | speed

        return self._stage("cascade", pruned.provenance["parameters"] | about, build)

    def eccv(self, pruned: Stage | None = None) -> dict[str, float]:
        """ECCV-Caption metrics (`lfpr.clip.retrieval.eccv_metrics`) of the unpruned model, or that of a `prune` or
        `retrain` stage. The val split of `data_root` must be the Karpathy test split, eval_captions "all"."""
        images, texts, _ = self.reference
        if pruned is not None:
            (images,) = load_encoded(pruned.folder / "features.safetensors", "image")
        return eccv_metrics(images.features, texts.features, images.image_id, texts.caption_id)
