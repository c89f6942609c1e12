"""What defines a TAP experiment and its two profiles, and the words its parameters may take."""

from __future__ import annotations

from dataclasses import dataclass

from lfpr.experiments.checks import choose
from lfpr.tap.layout import InputSizes
from lfpr.training.processes import PRECISIONS
from lfpr.training.retrain import ReSt

METHODS = ("label-free", "fisher", "absolute", "magnitude", "l1", "random")
GRADIENTS = ("label-free", "fisher")  # methods whose choice can be rearranged by their gradients
UNSCALED = ("magnitude", "l1", "random")  # heads and neurons have no common scale: both are kept in the same proportion


@dataclass(frozen=True)
class TAPSpec:
    """A TAP experiment: its data set and the depth of TextBERT and of the MMT."""

    dataset: str
    text_layers: int
    mmt_layers: int


@dataclass(frozen=True)
class Settings:
    """Sizes and amounts of a profile.

    num_samples: training questions that score heads and neurons, in batches of `score_batch`; per_sample: a gradient
    per question instead of one per batch; published_scoring: both as in LFPR's code instead, a gradient per batch of 8,
    with dropout. rest: ReSt's learning rates; retrain_batch: its batch size, of all processes together;
    mixed_precision: "no", "bf16" or "fp16"; checkpoint_every, score_every: iterations between two checkpoints, and
    between two scores in its log (none if 0). word_vectors: of OCR tokens, "fasttext" or "hashed". train_images,
    val_images: of the mini data. num_eval: validation questions, all if 0. step: decoding step of the label-free
    objective, by default the median of t* (LFPR). rescale_samples: training questions that mask values are fitted on.
    """

    sizes: InputSizes
    num_samples: int
    score_batch: int
    per_sample: bool
    rest: ReSt
    retrain_batch: int
    eval_batch: int
    word_vectors: str
    published_scoring: bool = False
    mixed_precision: str = "no"
    checkpoint_every: int = 100
    score_every: int = 0
    num_eval: int = 0
    step: int | None = None
    rescale_samples: int = 512
    train_images: int = 0
    val_images: int = 0

    def __post_init__(self) -> None:
        choose("word_vectors", self.word_vectors, ("fasttext", "hashed"))
        batches = ("score_batch", "retrain_batch", "eval_batch")
        for name in (*batches, "num_samples", "rescale_samples", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        choose("mixed_precision", self.mixed_precision, PRECISIONS)
