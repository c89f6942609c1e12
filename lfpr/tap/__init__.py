"""TAP: the model, its data and checkpoint formats, its metrics, and LFPR's label-free objective."""

from lfpr.experiments.schedule import schedule
from lfpr.files import CheckpointError
from lfpr.tap.checkpoint import read_checkpoint
from lfpr.tap.data import TAPDataset, batches, check
from lfpr.tap.evaluate import answers, compare, evaluate, first_scores
from lfpr.tap.label_free import decoding_loss, label_free, labelled, peak_step, peak_steps
from lfpr.tap.layout import InputSizes
from lfpr.tap.metrics import anls, stvqa_accuracy, vqa_accuracy
from lfpr.tap.model import TAP, TAPConfig
from lfpr.tap.text import AnswerVocab, FastText, HashedNgrams, WordPieces, decode, phoc

__all__ = [
    "TAP",
    "AnswerVocab",
    "CheckpointError",
    "FastText",
    "HashedNgrams",
    "InputSizes",
    "TAPConfig",
    "TAPDataset",
    "WordPieces",
    "anls",
    "answers",
    "batches",
    "check",
    "compare",
    "decode",
    "decoding_loss",
    "evaluate",
    "first_scores",
    "label_free",
    "labelled",
    "peak_step",
    "peak_steps",
    "phoc",
    "read_checkpoint",
    "schedule",
    "stvqa_accuracy",
    "vqa_accuracy",
]
