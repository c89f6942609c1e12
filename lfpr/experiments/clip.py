"""CLIP on MSCOCO: only the vision tower is pruned, and constraints count its multiply-accumulates (MACs).

Images are decoded batch by batch; what stays in memory are features and mask gradients. Text features and unpruned
image features are computed once: pruning leaves the text tower alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lfpr.checks import check_choice, check_least, check_number
from lfpr.clip import coco
from lfpr.clip.distil import distillation_loss, extra, loader
from lfpr.clip.objectives import (
    CAPTION,
    Attached,
    Batch,
    contrastive,
    image_features,
    label_free,
    projected,
    similarities,
    text_features,
)
from lfpr.clip.processor import Processor
from lfpr.clip.retrieval import Encoded, compare, encode_images, encode_texts, match, recall, vision_cost
from lfpr.cost import MacCost
from lfpr.device import RUNNING, OnDevice, moved
from lfpr.encoder import prunable
from lfpr.experiments.cell import SCORINGS, Cell
from lfpr.experiments.kinds import check_fields
from lfpr.experiments.runs import Stage, file_hash, fingerprint
from lfpr.experiments.specs import PROJECTED
from lfpr.experiments.task import Task
from lfpr.files import CheckpointError, DataError, Located, locate, shipped, write_whole
from lfpr.fisher import best
from lfpr.kprune import KPrune
from lfpr.masks import Masks
from lfpr.mini.coco import write_coco
from lfpr.released.clip import BATCH, SENSITIVITY_FIRST, draw, save_clip
from lfpr.released.masks import outputs, save_head_mask, save_masks
from lfpr.save import without_progress_bar
from lfpr.training.retrain import ReSt

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel


CONTRASTIVE = ("fisher", "sensitivity")
"""Methods by gradients of the contrastive loss, which reads captions."""


@dataclass(frozen=True)
class CLIPSettings:
    """Sizes and amounts of a profile.

    num_samples: training images, with their first captions, behind the importance, in batches of `score_batch` (the
    contrastive loss compares within a batch); scoring: "per-sample" label-free gradients per image, which give a
    better importance and take 4 bytes for each image and mask, "batched", or "released": one per batch of 32, the
    samples those that the fork for CLIP draws (`lfpr.released.draw`). sensitivity_samples: as num_samples, of
    sensitivity pruning; sensitivity_seed: of its study. rescale_samples, rescale_batch, ridge: of the least-squares
    mask tuning (`lfpr.rescale`); reconstruct_samples: images that output projections are refitted on
    (`lfpr.reconstruct`); kprune: K-prune's settings, tuned (`lfpr.kprune.tune`). rest: learning rates of the
    distillation, which makes `retrain_passes` passes, whole or in part, over `retrain_images` training images (0:
    all) or a share of them, in batches of `retrain_batch`, at least one, with a checkpoint after every
    `checkpoint_every`. eval_batch: images or captions encoded at a time; num_eval: validation images, all if 0;
    eval_captions: their "first" captions, as published, or "all". shortlist: m, images that the full model re-ranks;
    reranked: f, the published share of images that it is assumed ever to encode. first_level: another CLIP, a folder
    or hub id, whose ranking comes before the pruned model's in one more cascade, of three levels; shortlists: how
    many images each of the later two re-ranks. released_files: keep each model as the fork's files, too. workers: at
    most how many processes decode images; on_error: "stop" at a broken image or "skip" it. eval_precision: "bf16"
    lets a GPU encode in mixed precision where no gradient is taken, which changes features in the third digit.
    train_images, val_images: of the mini data.
    """

    num_samples: int
    score_batch: int
    scoring: str
    sensitivity_samples: int
    rescale_samples: int
    rescale_batch: int
    reconstruct_samples: int
    rest: ReSt
    retrain_batch: int
    retrain_passes: float
    eval_batch: int
    retrain_images: int = 0
    checkpoint_every: int = 100
    ridge: float = 0.1
    kprune: KPrune = field(default_factory=KPrune)
    num_eval: int = 0
    eval_captions: str = "first"
    shortlist: int = 50
    reranked: float = 0.1
    first_level: str | None = None
    shortlists: tuple[int, int] = (50, 25)
    released_files: bool = False
    sensitivity_seed: int = 0
    workers: int = 0
    on_error: str = "stop"
    eval_precision: str = "no"
    train_images: int = 0
    val_images: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("scoring", self.scoring, SCORINGS)
        check_choice("eval_captions", self.eval_captions, ("first", "all"))
        check_choice("on_error", self.on_error, coco.ON_ERROR)
        check_choice("eval_precision", self.eval_precision, RUNNING)
        sizes = ("num_samples", "score_batch", "rescale_samples", "rescale_batch", "retrain_batch", "eval_batch")
        check_least(self, 1, *sizes, "shortlist", "sensitivity_samples", "checkpoint_every", "reconstruct_samples")
        counts = ("num_eval", "retrain_images", "sensitivity_seed", "train_images", "val_images", "workers")
        check_least(self, 0, *counts, "ridge")
        check_number("retrain_passes", self.retrain_passes, "above 0", lambda passes: passes > 0)
        check_number("reranked", self.reranked, "in [0, 1]", lambda share: 0 <= share <= 1)
        if not self.shortlists[0] >= self.shortlists[1] >= 1:
            raise ValueError(
                f"shortlists = {self.shortlists}: must be two whole numbers, the first at least the second, from 1"
            )


class Reference(NamedTuple):
    """The unpruned model's features of the validation split; pairs [T]: the row of each caption's image."""

    images: Encoded
    texts: Encoded
    pairs: Tensor


class CLIPTask(Task):
    """A CLIP's vision tower on COCO's images and captions. The checkpoint is a Hugging Face folder or hub id;
    spec.arguments: `model`, the hub id of the one that is looked for."""

    SETTINGS: ClassVar[dict[str, CLIPSettings]] = {
        "mini": CLIPSettings(
            num_samples=1024,
            score_batch=32,
            scoring="per-sample",
            sensitivity_samples=1024,
            rescale_samples=256,
            rescale_batch=64,
            reconstruct_samples=1024,
            rest=ReSt(last_layers=2, lr=1e-3, mask_lr=1e-2, clip=1.0, cosine=True),
            retrain_batch=64,
            retrain_passes=2.5,
            eval_batch=250,
            shortlist=10,  # of 1,000 images: the share that 50 are of COCO's 5,000
            shortlists=(10, 5),
            train_images=3000,
            val_images=1000,
        ),
        "full": CLIPSettings(
            num_samples=8192,
            score_batch=32,
            scoring="released",
            sensitivity_samples=128,
            sensitivity_seed=8,
            rescale_samples=1024,
            rescale_batch=32,
            reconstruct_samples=2048,
            rest=ReSt(last_layers=2, lr=1e-5, mask_lr=1e-3, clip=1.0, cosine=True),
            retrain_batch=64,
            retrain_passes=0.65,
            eval_batch=64,
            workers=4,
        ),
    }
    rendered = True
    shared = ("model", "processor")

    def _set_up(self, runs: Path, data_root, checkpoint) -> None:
        self.data_root = Path(data_root) if data_root else runs / "data" / "mscoco-mini"
        self._unpruned = self._locate_checkpoint(checkpoint)
        self.checkpoint = str(self._unpruned.path or checkpoint)
        for name, model in (("checkpoint", self.checkpoint), ("first_level", self.settings.first_level)):
            if model and not Path(model).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
                missing = self._missing() if name == "checkpoint" else ""
                raise CheckpointError(f"{name} = {model}: neither a folder nor a hub id (see data/README.md){missing}")

    def _locate_checkpoint(self, checkpoint) -> Located:
        if self.profile == "full" and not checkpoint:
            return coco.locate_model(self.data_root, self.spec.arguments["model"])
        given = locate("unpruned CLIP", [Path(checkpoint or shipped(self.spec.name))], "everything")
        return given if given.path else coco.cached_model(str(checkpoint))

    def locate(self) -> list[Located]:
        """The model, captions and images; those of the mini profile are made first."""
        return [
            self._unpruned,
            *(coco.locate_captions(self.root, split) for split in coco.SPLITS),
            *(coco.image_folder(self.root, split) for split in coco.SPLITS),
        ]

    # ---- the model

    @cached_property
    def model(self) -> CLIPModel:
        """The unpruned model in evaluation mode, float32."""
        from transformers import CLIPModel  # seconds, which those who only look at finished stages need not wait

        try:
            with without_progress_bar():
                model, info = CLIPModel.from_pretrained(self.checkpoint, dtype=torch.float32, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"checkpoint {self.checkpoint} cannot be read: {error}") from error
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])[:3]
            raise CheckpointError(f"checkpoint {self.checkpoint} lacks {missing} of a CLIP model")
        return model.eval().to(self.device)

    @property
    def part(self) -> nn.Module:
        """The vision tower."""
        return self.model.vision_model

    @property
    def config(self) -> CLIPConfig:
        """The model's `CLIPConfig`."""
        return self.model.config

    @property
    def cost(self) -> MacCost:
        """MACs of the vision tower's layers for an image: patches and the class token."""
        return vision_cost(self.model)

    def describe(self, model: CLIPModel) -> dict[str, Any]:
        """Parameters and MACs of the vision layers, the share of the unpruned MACs, heads and neurons per layer."""
        encoder = prunable(model.vision_model)
        heads, neurons = encoder.heads_per_layer, encoder.neurons_per_layer
        macs = self.cost.of(sum(heads), sum(neurons))
        sizes = {"parameters": encoder.num_parameters, "macs": macs, "fraction": macs / self.cost.full}
        return sizes | {"heads": heads, "neurons": neurons}

    def forward(self, model: CLIPModel, batch: Batch) -> Tensor:
        """Raw image features."""
        return image_features(model, batch)

    def check_batches(self) -> OnDevice:
        """64 validation images, or training images without any."""
        return OnDevice(self.images(self.seen, 32, indices=self.sample(self.seen, 64, 0)), self.device)

    # ---- images and captions

    @cached_property
    def processor(self) -> Processor:
        """What turns images and captions into tensors, as the checkpoint says."""
        return Processor(self.checkpoint)

    @cached_property
    def root(self) -> Path:
        """The data folder; the mini profile's is rendered when first needed."""
        if self.profile == "mini":
            write_coco(self.data_root, self.settings.train_images, self.settings.val_images)
        return self.data_root

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Hashes of the model's files and the annotations."""
        folder = Path(self.checkpoint)
        files = {file.name: file_hash(file) for file in sorted(folder.glob("*")) if file.is_file()}
        model = fingerprint(files) if folder.is_dir() else f"{self.checkpoint}@{self.config._commit_hash}"
        splits = coco.SPLITS if self.unscored is None else ("train",)
        captions = {split: coco.locate_captions(self.root, split) for split in splits}
        if any(row.path is None for row in captions.values()):
            self.require_files()
        annotations = {split: file_hash(row.found()) for split, row in captions.items()}
        return {"checkpoint": model} | annotations

    @cached_property
    def unscored(self) -> str | None:
        """Which file of the validation split is not there, without which the rest works; None if nothing lacks."""
        for row in (coco.locate_captions(self.root, "val"), coco.image_folder(self.root, "val")):
            if row.path is None or (row.path.is_dir() and not any(row.path.iterdir())):
                return f"nothing is scored: there are no {row.what} ({', '.join(map(str, row.places[:1]))} ...)"
        return None

    @property
    def seen(self) -> str:
        """The split that models are verified and timed on."""
        return "val" if self.unscored is None else "train"

    @property
    def evaluation(self) -> dict[str, Any]:
        """Which images and captions."""
        return {"num_eval": self.settings.num_eval, "eval_captions": self.settings.eval_captions} | self.inference

    def data(self, split: str, **options: Any) -> coco.COCOCaptions:
        """Images with captions of `train` or `val` (see `lfpr.clip.coco.COCOCaptions`)."""
        return coco.COCOCaptions(self.root, split, **options)

    def images(self, split: str, batch_size: int, **options: Any) -> coco.Batches:
        """Batches of the images of `data(split, **options)`."""
        return coco.images(self.data(split, **options), batch_size, self.processor, **self.reading)

    @property
    def reading(self) -> dict[str, Any]:
        """How images are read."""
        return self.loading | {"on_error": self.settings.on_error}

    def check(self, split: str, limit: int | None = None) -> dict[str, Any]:
        """What is in a split's files, and the images that cannot be used (see `lfpr.clip.coco.check`). Without a
        validation split, `first_bad` says so."""
        if split == "val" and self.unscored:
            nothing = dict.fromkeys(("images", "captions", "strays", "checked", "bad"), 0)
            return nothing | {"captions_per_image": (0, 0), "first_bad": self.unscored, "bad_images": {}}
        return coco.check(self.root, split, limit, max(1, self.loading["workers"]))

    def sample(self, split: str, count: int, seed: int) -> list[int]:
        """`count` images of a split, drawn by `seed`, in increasing order; all if there are no more."""
        total = len(self.data(split).image_ids)
        return sorted(np.random.default_rng(seed).permutation(total)[:count].tolist())

    # ---- importance and fitted masks

    def sampling(self, cell: Cell) -> dict[str, Any]:
        """Number of images, batch and scoring. Raises ValueError for a scoring or step that CLIP does not have."""
        if cell.step is not None:
            raise ValueError(f"step = {cell.step}: {self.spec.name} decodes no steps")
        batch = BATCH if cell.scoring == "released" else self.settings.score_batch
        return {"num_samples": cell.num_samples, "batch": batch, "scoring": cell.scoring}

    def drawn(self, cell: Cell) -> dict[str, list[int]]:
        """Which training images, or captions of them, are behind the importance: options of `data`."""
        if cell.scoring != "released":
            return {"indices": self.sample("train", cell.num_samples, cell.seed)}
        first = SENSITIVITY_FIRST if cell.method == "sensitivity" else None
        total = coco.count_annotations(self.root, "train")
        return {"annotations": draw(total, cell.num_samples, cell.seed, first)}

    def batches(self, cell: Cell) -> Iterable[Batch]:
        """Training images, and the features that the method's objective needs."""
        drawn, size = self.drawn(cell), self.sampling(cell)["batch"]
        if cell.method in CONTRASTIVE:
            data = self.data("train", **drawn)
            pairs = OnDevice(coco.batches(data, size, self.processor, **self.reading), self.device)
            return Attached(pairs, "text_features", lambda batch: text_features(self.model, batch), CAPTION)
        images = OnDevice(self.images("train", size, **drawn), self.device)
        return self._attached(images)

    def objective(self, cell: Cell, model: CLIPModel | None = None) -> Callable[[Batch], Tensor]:
        """CLIP's contrastive loss (fisher, sensitivity), the label-free objective, or one of the model's own answers
        (`lfpr.fisher`): which image of the batch each is, or a random projection of its unit feature."""
        model = self.model if model is None else model
        if cell.method == "self-fisher":
            return lambda batch: best(self.predictions(model, batch))
        if cell.method in PROJECTED:
            return projected(model, cell.seed)
        return contrastive(model) if cell.method in CONTRASTIVE else label_free(model)

    def predictions(self, model: CLIPModel, batch: Batch) -> Tensor:
        """Similarities [B, B], in units of CLIP's temperature, of a model's image features to the unpruned one's."""
        return similarities(model, batch)

    def per_sample(self, cell: Cell) -> bool:
        """As the cell says; the contrastive loss compares the images of a batch and has no gradient per sample."""
        return cell.scoring == "per-sample" and cell.method not in CONTRASTIVE

    def sample_numbers(self, cell: Cell) -> dict[str, Any]:
        """How many images."""
        (drawn,) = self.drawn(cell).values()
        return {"samples": len(drawn)}

    @property
    def fit_options(self) -> dict[str, Any]:
        """The ridge."""
        return {"ridge": self.settings.ridge}

    def calibration(self, seed: int) -> OnDevice:
        """Training images."""
        return self._calibrating(self.settings.rescale_samples, seed)

    def _calibrating(self, count: int, seed: int) -> OnDevice:
        indices = self.sample("train", count, seed)
        return OnDevice(self.images("train", self.settings.rescale_batch, indices=indices), self.device)

    def released_teacher(self, cell: Cell) -> None:
        """The unpruned model."""
        return None

    def released_calibration(self, cell: Cell) -> OnDevice:
        """All images behind the importance."""
        return OnDevice(self.images("train", BATCH, **self.drawn(cell)), self.device)

    def reconstruction(self, seed: int) -> OnDevice:
        """As `calibration`, as many as the settings say."""
        return self._calibrating(self.settings.reconstruct_samples, seed)

    def predicted(self, seed: int) -> Attached:
        """The same with the unpruned model's features."""
        return self._attached(self.reconstruction(seed))

    def _attached(self, images: Iterable[Batch]) -> Attached:
        return Attached(images, "image_features", lambda batch: image_features(self.model, batch))

    def run(self, batch: Batch, model: CLIPModel | None = None) -> Tensor:
        """The tower's pooled output."""
        model = self.model if model is None else model
        return model.vision_model(pixel_values=batch["pixel_values"]).pooler_output

    # ---- retraining

    def teach(self, cell: Cell | None = None) -> Stage:
        """The unpruned model's features of all training images that distillation may take."""
        count = self.settings.retrain_images

        def build(folder: Path) -> dict:
            images = self.images("train", self.settings.eval_batch, limit=count or None)
            with self.running():
                targets = encode_images(self.model, images, "targets")
            save_encoded(folder / "features.safetensors", image=targets)
            return {"images": len(targets.image_id)}

        return self.stage("targets", {"images": count} | self.inference, build)

    def amounts(self, cell: Cell) -> tuple[dict[str, Any], ReSt]:
        """By default all training images, as often as the settings say."""
        settings = self.settings
        layers = settings.rest.last_layers if cell.last_layers is None else cell.last_layers
        amounts = {"percent": 100 if cell.percent is None else cell.percent, "batch": settings.retrain_batch}
        amounts |= {"passes": settings.retrain_passes, "images": settings.retrain_images}
        return amounts, replace(settings.rest, last_layers=layers if cell.trained == "last" else 0)

    def training(self, student: CLIPModel, cell: Cell) -> dict[str, Any]:
        """Distillation (`lfpr.clip.distil`) on the unpruned model's image features."""
        settings, (amounts, rest) = self.settings, self.amounts(cell)
        (targets,) = load_encoded(self.teach().folder / "features.safetensors", "image")
        data = self.data("train", limit=settings.retrain_images or None)
        images = coco.images(data, settings.retrain_batch, self.processor)
        readable = torch.isin(torch.tensor(data.image_ids), targets.image_id)
        features = torch.zeros(len(readable), targets.features.shape[1])
        features[readable] = targets.features
        rows = readable.nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(cell.seed))]
        rows = rows[: max(1, round(len(rows) * amounts["percent"] / 100))]
        steps = max(1, round(settings.retrain_passes * len(rows) / settings.retrain_batch))
        return {
            "encoder": prunable(student.vision_model),
            "heads": [],
            "batches": loader(images.reader, features, rows, settings.retrain_batch, steps, cell.seed, **self.loading),
            "loss": distillation_loss(student),
            "settings": rest,
            "parameters": extra(student.vision_model, cell.trained),
            "checkpoint_every": settings.checkpoint_every,
        }

    # ---- scores

    def features(self) -> Stage:
        """The unpruned model's features of the validation images and captions, in `features.safetensors`. Raises
        DataError without a validation split."""
        settings = self.settings
        if self.unscored:
            raise DataError(self.unscored)

        def build(folder: Path) -> dict:
            data = self.data("val", captions=settings.eval_captions, limit=settings.num_eval or None)
            captions = coco.captions(data, settings.eval_batch, self.processor, **self.loading)
            with self.running():
                images, texts = self.encode(self.model), encode_texts(self.model, captions, "captions")
            kept = torch.isin(texts.image_id, images.image_id)  # broken images that are skipped take theirs along
            texts = Encoded(*(column[kept] for column in texts))
            save_encoded(folder / "features.safetensors", image=images, text=texts)
            return {"images": len(images.image_id), "captions": len(texts.image_id)}

        return self.stage("features", self.evaluation, build)

    @cached_property
    def reference(self) -> Reference:
        """What the stage `features` holds."""
        images, texts = load_encoded(self.features().folder / "features.safetensors", "image", "text")
        return Reference(images, texts, match(images, texts))

    def encode(self, model: CLIPModel) -> Encoded:
        """Features of the validation images by `model`, which may be pruned."""
        images = self.images("val", self.settings.eval_batch, limit=self.settings.num_eval or None)
        with self.running():
            return encode_images(model, images, "images")

    def score(self, features: Tensor) -> dict[str, Any]:
        """`score` (text→image Recall@1), `r1` ..., `i2t_r1` ... of features [I, D] of the validation images, against
        the unpruned model's features of their captions; `questions`: how many captions."""
        recalls = recall(features, self.reference.texts.features, pairs=self.reference.pairs)
        return {"score": recalls["r1"], "questions": len(self.reference.pairs)} | recalls

    @property
    def _no_scores(self) -> dict[str, Any]:
        """Instead of `score`, without a validation split: NaN, and `unscored`, why."""
        recalls = {f"{way}r{k}": math.nan for way in ("", "i2t_") for k in (1, 5, 10)}
        return {"score": math.nan, "questions": 0, "unscored": self.unscored} | recalls

    def baseline(self) -> Stage:
        """The unpruned model's recall."""

        def build(folder: Path) -> dict:
            return self._no_scores if self.unscored else self.score(self.reference.images.features)

        return self.stage("baseline", self.evaluation, build)

    def evaluate(self, model: CLIPModel) -> dict[str, Any]:
        """Recall of `model`, whose text tower must be the unpruned one's (see `score`); NaN without a validation
        split."""
        return self._no_scores if self.unscored else self.score(self.encode(model).features)

    def evaluate_masked(self, masks: Masks) -> dict[str, Any]:
        """Recall of the unpruned model under `masks`."""
        with self.encoder.masked(masks):
            return self.evaluate(self.model)

    def measure(self, model: CLIPModel, folder: Path) -> dict[str, Any]:
        """`evaluate`, and in `features.safetensors` the model's features of the validation images."""
        if self.unscored:
            return self._no_scores
        images = self.encode(model)
        save_encoded(folder / "features.safetensors", image=images)
        return self.score(images.features)

    def encoded(self, stage: Stage) -> Encoded:
        """Features of the validation images by the model of a stage "baseline", "prune" or "retrain", as it was scored
        with."""
        file = stage.folder / "features.safetensors"
        return load_encoded(file, "image")[0] if file.is_file() else self.reference.images

    def save_released(self, model: CLIPModel, masks: Masks, cell: Cell, folder: Path) -> None:
        """As the fork for CLIP: `outputs/openai/MODEL/mscoco/C/seed_S/{head_mask,neuron_mask}.pt`, or after a step of
        sensitivity pruning `outputs/head_mask_I.pt`, and `pruned_models/vitB16_pruned_C_S.pt`, or `…_sensitivity_R.pt`
        with R heads removed. C is the constraint, or the share kept."""
        if cell.heads_removed is None:
            share = round(self.cost.fraction(masks), 2) if cell.constraint is None else cell.constraint
            save_masks(masks, outputs(folder, f"openai/{Path(self.checkpoint).name}", share, cell.seed))
            name = f"{float(share)}_{cell.seed}"
        else:
            save_head_mask(masks, cell.heads_removed // (self.encoder.num_heads - 1), folder / "outputs")
            if not torch.equal(masks.neurons, torch.ones_like(masks.neurons)):
                save_masks(masks, folder / "outputs")
            name = f"sensitivity_{cell.heads_removed}"
        vision = self.config.vision_config
        size = "B" if vision.hidden_size <= 768 else "L"
        save_clip(model, folder / "pruned_models" / f"vit{size}{vision.patch_size}_pruned_{name}.pt")

    def compare(self, models: Mapping[str, CLIPModel]) -> dict[str, dict[str, float]]:
        """Size and speed side by side, on a batch of validation images (`lfpr.clip.retrieval`)."""
        images = self.images(self.seen, min(64, self.settings.eval_batch))
        return compare(models, moved(next(iter(images)), self.device))

    # ---- cascades

    @cached_property
    def first(self) -> Self:
        """The task of the model `settings.first_level`, with its own towers and processor, on the same data."""
        other = self.with_settings(first_level=None)
        for name in self.shared:
            other.__dict__.pop(name, None)
        other.checkpoint = str(self.settings.first_level)
        return other


def save_encoded(path: Path, **parts: Encoded) -> None:
    """Write features with their ids as `PART.COLUMN`, whole or not at all."""
    columns = {f"{part}.{name}": value for part, rows in parts.items() for name, value in rows._asdict().items()}
    tensors = {name: value.contiguous() for name, value in columns.items() if value is not None}
    write_whole(path, lambda partial: save_file(tensors, partial))


def load_encoded(path: Path, *parts: str) -> list[Encoded]:
    """What `save_encoded` wrote of these parts."""
    tensors = load_file(path)
    return [Encoded(*(tensors.get(f"{part}.{name}") for name in Encoded._fields)) for part in parts]
