"""SaL ("Separate and Locate", Fang et al., ACM MM 2023): the model on transformers' T5, its data and checkpoints, its
answers, and LFPR's label-free objective for it."""

from lfpr.sal.config import SaLConfig
from lfpr.sal.data import SaLDataset, batches, check
from lfpr.sal.evaluate import compare, evaluate, first_logits, predict
from lfpr.sal.model import SaL, read_config
from lfpr.sal.objectives import label_free, labelled, peak_step, peak_steps
from lfpr.sal.text import Pieces

__all__ = [
    "Pieces",
    "SaL",
    "SaLConfig",
    "SaLDataset",
    "batches",
    "check",
    "compare",
    "evaluate",
    "first_logits",
    "label_free",
    "labelled",
    "peak_step",
    "peak_steps",
    "predict",
    "read_config",
]
