"""What defines a TAP experiment and its two profiles, and the words its parameters may take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lfpr.retrain import ReSt
from lfpr.tap.layout import InputSizes

SHIPPED = Path(__file__).parents[2] / "data" / "mini"  # baselines of the mini profile
METHODS = ("label-free", "fisher", "magnitude", "random")
UNSCALED = ("magnitude", "random")  # heads and neurons have no common scale: both are kept in the same proportion
HEURISTICS = ("sum", "threshold")


@dataclass(frozen=True)
class TAPSpec:
    """A TAP experiment: its data set and the depth of TextBERT and of the MMT."""

    dataset: str
    text_layers: int
    mmt_layers: int


@dataclass(frozen=True)
class Settings:
    """Sizes and amounts of a profile.

    num_samples: training questions that score heads and neurons, in batches of ``score_batch``; per_sample: a gradient
    per question instead of one per batch. rest: ReSt's learning rates; retrain_batch: its batch size. word_vectors: of
    OCR tokens, "fasttext" or "hashed". train_images,
    val_images: of the mini data. num_eval: validation questions, all if 0.
    """

    sizes: InputSizes
    num_samples: int
    score_batch: int
    per_sample: bool
    rest: ReSt
    retrain_batch: int
    eval_batch: int
    word_vectors: str
    num_eval: int = 0
    train_images: int = 0
    val_images: int = 0


def choose(name: str, value: object, allowed) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: must be one of {list(allowed)}")
