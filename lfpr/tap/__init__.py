"""TAP: the model, its data and checkpoint formats, its metrics, and LFPR's label-free objective."""

from lfpr.files import CheckpointError
from lfpr.tap.checkpoint import read_checkpoint
from lfpr.tap.data import TAPDataset, batches, check
from lfpr.tap.evaluate import answers, compare, evaluate, first_logits, write_evalai, write_rrc
from lfpr.tap.layout import InputSizes
from lfpr.tap.metrics import anls, stvqa_accuracy, vqa_accuracy
from lfpr.tap.model import TAP, TAPConfig
from lfpr.tap.objectives import decoding_loss, label_free, labelled, peak_step, peak_steps
from lfpr.tap.text import AnswerVocab, WordPieces, decode, phoc
from lfpr.tap.vectors import FastText, HashedNgrams

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
    "first_logits",
    "label_free",
    "labelled",
    "peak_step",
    "peak_steps",
    "phoc",
    "read_checkpoint",
    "stvqa_accuracy",
    "vqa_accuracy",
    "write_evalai",
    "write_rrc",
]
