"""What defines the CLIP experiment's two profiles, and the words its parameters may take."""

from __future__ import annotations

from dataclasses import dataclass

from lfpr.clip.coco import ON_ERROR
from lfpr.experiments.checks import choose
from lfpr.training.retrain import ReSt

METHODS = ("fisher", "label-free", "activation", "magnitude", "random")
CONTROLS = (  # Fisher's scores in part, to see what is worth what
    "uniform",  # each layer keeps the same share of its heads and of its neurons, those of largest Fisher score
    "split-activation",  # Fisher's heads and its number of neurons in each layer, but neurons chosen by activation,
    "split-magnitude",  # by magnitude,
    "split-random",  # or at random
)
GRADIENTS = ("fisher", "label-free")  # methods whose choice can be rearranged by their gradients
UNSCALED = ("magnitude", "random", "uniform")  # heads and neurons without a common scale are kept in proportion


@dataclass(frozen=True)
class CLIPSettings:
    """Sizes and amounts of a profile.

    num_samples: training images, with their first captions, that score heads and neurons, in batches of
    `score_batch` (the contrastive loss compares within a batch); per_sample: label-free gradients per image instead
    of per batch, better scores that take 4 bytes for each image and mask. rescale_samples, rescale_batch, ridge: of
    the least-squares mask tuning (`lfpr.rescale`). rest: learning rates of the distillation, which makes
    `retrain_passes` passes, whole or in part, over `retrain_images` training images (0: all) or a share of them, in
    batches of `retrain_batch`, at least one, with a checkpoint after every `checkpoint_every`. eval_batch: images
    or captions encoded at a time; num_eval: validation images, all if 0; eval_captions: their "first" captions, as
    published, or "all". shortlist: m, images that the full model re-ranks; reranked: f, the published share of images
    that it is assumed ever to encode. workers: at most how many processes decode images; on_error: "stop" at a broken
    image or "skip" it. train_images, val_images: of the mini data.
    """

    num_samples: int
    score_batch: int
    per_sample: bool
    rescale_samples: int
    rescale_batch: int
    rest: ReSt
    retrain_batch: int
    retrain_passes: float
    eval_batch: int
    retrain_images: int = 0
    checkpoint_every: int = 100
    ridge: float = 0.1
    num_eval: int = 0
    eval_captions: str = "first"
    shortlist: int = 50
    reranked: float = 0.1
    workers: int = 0
    on_error: str = "stop"
    train_images: int = 0
    val_images: int = 0

    def __post_init__(self) -> None:
        choose("eval_captions", self.eval_captions, ("first", "all"))
        choose("on_error", self.on_error, ON_ERROR)
        for name in ("num_samples", "score_batch", "rescale_samples", "rescale_batch", "retrain_batch",
                     "eval_batch", "shortlist"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if not self.retrain_passes > 0:
            raise ValueError(f"retrain_passes = {self.retrain_passes}: must be above 0")
        if not 0 <= self.reranked <= 1:
            raise ValueError(f"reranked = {self.reranked}: must be in [0, 1]")


SETTINGS = {
    "mini": CLIPSettings(
        num_samples=1024,
        score_batch=32,
        per_sample=True,
        rescale_samples=256,
        rescale_batch=64,
        rest=ReSt(last_layers=2, lr=1e-3, mask_lr=1e-2, clip=1.0, cosine=True),
        retrain_batch=64,
        retrain_passes=2.5,
        eval_batch=250,
        shortlist=10,  # of 1,000 images: the share that 50 are of COCO's 5,000
        train_images=3000,
        val_images=1000,
    ),
    "full": CLIPSettings(
        num_samples=8192,
        score_batch=32,
        per_sample=False,
        rescale_samples=1024,
        rescale_batch=32,
        rest=ReSt(last_layers=2, lr=1e-5, mask_lr=1e-3, clip=1.0, cosine=True),
        retrain_batch=64,
        retrain_passes=0.65,
        eval_batch=64,
        workers=4,
    ),
}
