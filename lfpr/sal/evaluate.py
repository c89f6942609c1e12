"""SaL's answers, and their score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lfpr.checks import check_count, check_entries, check_kind, check_named
from lfpr.device import OnDevice
from lfpr.encoder import prunable
from lfpr.latency.compare import side_by_side
from lfpr.modes import evaluating
from lfpr.progress import bar
from lfpr.sal.config import PAD
from lfpr.sal.data import SaLDataset, batches
from lfpr.sal.model import INPUTS, Batch, SaL
from lfpr.tap.evaluate import check_answered, score_texts


def predict(model: SaL, data: SaLDataset, batch_size: int, **loading: Any) -> list[str]:
    """The model's answers to all questions of `data`, by greedy decoding on the model's device, in evaluation mode;
    `loading`: options of `batches`. Raises ValueError for bad arguments, data laid out for another config, and if the
    model gives NaN."""
    check_kind("model", model, SaL)
    check_kind("data", data, SaLDataset)
    batch_size = check_count("batch_size", batch_size, 1)
    data.check_config(model.config)
    loader = bar(OnDevice(batches(data, batch_size, **loading), model.device), "answer")
    with evaluating(model):
        return [data.pieces.read(ids) for batch in loader for ids in model.generate(batch)[1].tolist()]


def evaluate(model: SaL, data: SaLDataset, batch_size: int, **loading: Any) -> dict:
    """Accuracy of the model's answers as `score` and, of ST-VQA, `anls`, in 0 … 1; `questions`: how many. `loading`:
    options of `batches`.

    Raises ValueError, before any work, for questions without answers (a test split), and as `predict`.
    """
    check_kind("data", data, SaLDataset)
    check_answered(data)
    return score_texts(predict(model, data, batch_size, **loading), data)


def compare(models: dict[str, SaL], batch: Batch, repeats: int = 7) -> dict[str, dict]:
    """For each model: `parameters` and `macs` of its T5's layers, `megabytes` (10⁶ bytes) of its weights in float32,
    and `ms_per_question` of greedy decoding, the median of `repeats` runs that alternate between the models.

    MACs are for one question at the batch's mean number of input positions, on both sides of the model, though answers
    are shorter. Raises ValueError for bad arguments.
    """
    check_named("models", models)
    check_entries("batch", batch, *INPUTS)
    for name, sal in models.items():
        check_kind(f"models[{name!r}]", sal, SaL)
    questions = len(batch["question_ids"])
    pieces = sum(int((batch[f"{part}_ids"] != PAD).sum()) for part in ("question", "ocr", "obj"))
    length = round(pieces / questions)
    return side_by_side(models, lambda sal: sal.generate(batch), prunable, length, questions, "question", repeats)


def first_logits(model: SaL, batch: Batch) -> Tensor:
    """Logits [B, 2, V] of the first two decoding steps: what `lfpr.verify_equivalent` compares of SaLs. Raises
    ValueError for anything but a SaL and a batch."""
    check_kind("model", model, SaL)
    with torch.no_grad():
        encoded = model.encode(batch)
        return model.decode(encoded, model.greedy(encoded, 1)[1])
