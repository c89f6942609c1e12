"""Answers, their score, files to submit them, and what a TAP costs to run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lfpr.device import OnDevice, moved
from lfpr.encoder import prunable
from lfpr.files import write_json
from lfpr.latency.compare import side_by_side
from lfpr.progress import bar
from lfpr.tap.data import TAPBatch, TAPDataset, batches
from lfpr.tap.metrics import anls, stvqa_accuracy, vqa_accuracy
from lfpr.tap.model import TAP, Batch, Encoded
from lfpr.tap.text import Answer, AnswerVocab, decode

METRICS = {"textvqa": {"score": vqa_accuracy}, "stvqa": {"score": stvqa_accuracy, "anls": anls}}
"""Data set -> its metrics in 0 … 1: VQA accuracy of TextVQA; accuracy and ANLS of ST-VQA."""


def answers(logits: Tensor, batch: TAPBatch) -> list[Answer]:
    """The answers of greedy decoding with `logits` [B, T, V + num_ocr], and whether each word is copied (`Answer`).

    `batch` is one of `lfpr.tap.batches`: it knows the vocabulary and each question's OCR tokens. Raises ValueError
    for another dict of tensors, and if `logits` are of another shape.
    """
    tokens, vocab = getattr(batch, "ocr_tokens", None), getattr(batch, "vocab", None)
    if tokens is None or vocab is None:
        raise ValueError(f"batch: a {type(batch).__name__} without words, expected a TAPBatch as the loader makes it")
    classes = len(vocab) + batch["ocr_boxes"].shape[1]
    if logits.ndim != 3 or (len(logits), logits.shape[2]) != (len(tokens), classes):
        raise ValueError(f"logits: expected shape [{len(tokens)}, T, {classes}], got {list(logits.shape)}")
    return _read(logits.argmax(-1), tokens, vocab)


def _read(predictions: Tensor, tokens: list[list[str]], vocab: AnswerVocab) -> list[Answer]:
    return [decode(row, words, vocab) for row, words in zip(predictions.tolist(), tokens, strict=True)]


def predict(model: TAP, data: TAPDataset, batch_size: int, **loading: Any) -> list[Answer]:
    """The model's answers to all questions of `data`, by greedy decoding on the model's device; `loading`: options of
    `batches`."""
    loader = bar(OnDevice(batches(data, batch_size, **loading), model.device), "answer")
    return [answer for batch in loader for answer in answers(model.generate(batch, stop=True)[0], batch)]


@torch.no_grad()
def write_inputs(model: TAP, data: TAPDataset, batch_size: int, folder: str | Path, **loading: Any) -> None:
    """Keep what `model` makes of all questions before its MMT (`TAP.encode`), for `predict_inputs`: a file a batch.

    Models that differ in nothing but the MMT and the answer heads, as all pruned and retrained ones do, need not read
    features and run TextBERT again: those of 5,000 questions of TextVQA are 8 GB, this is about 3 GB.
    """
    tokens, folder = [], Path(folder)
    loader = bar(OnDevice(batches(data, batch_size, **loading), model.device), "encode questions")
    for number, batch in enumerate(loader):
        encoded = model.encode(batch)
        tensors = {"x": encoded.x, "valid": encoded.valid, "num_ocr": encoded.num_ocr}
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / f"{number:05}.safetensors")
        tokens.append(batch.ocr_tokens)
    write_json(folder / "ocr_tokens.json", tokens)


def predict_inputs(model: TAP, folder: str | Path, vocab: AnswerVocab) -> list[Answer]:
    """As `predict`, of what `write_inputs` has kept in `folder`, by any model that encodes as that one did."""
    tokens = json.loads((Path(folder) / "ocr_tokens.json").read_text())
    predictions = []
    for number, words in enumerate(bar(tokens, "answer")):
        kept = moved(load_file(Path(folder) / f"{number:05}.safetensors"), model.device)
        slots = max(1, *map(len, words))
        encoded = Encoded(kept["x"], kept["valid"], kept["num_ocr"], slots)
        predictions += _read(model.generate(encoded, stop=True)[1], words, vocab)
    return predictions


def evaluate(model: TAP, data: TAPDataset, batch_size: int, **loading: Any) -> dict:
    """Accuracy of the model's answers as `score` and, of ST-VQA, `anls`, in 0 … 1; `questions`: how many. `loading`:
    options of `batches`.

    Raises ValueError, before any work, for questions without answers (a test split: see `evalai`).
    """
    check_answered(data)
    return score(predict(model, data, batch_size, **loading), data)


def check_answered(data: TAPDataset) -> None:
    """ValueError unless all questions of `data` have answers to score with."""
    without = sum(not record["answers"] for record in data.records)
    if without:
        raise ValueError(f"{data.path}: {without} of {len(data)} questions have no answers to score with")


def score(predictions: Sequence[Answer], data: TAPDataset) -> dict:
    """What `evaluate` returns, of an answer per question of `data`."""
    texts, expected = [answer.text for answer in predictions], [record["answers"] for record in data.records]
    scores = {name: metric(texts, expected) for name, metric in METRICS[data.dataset].items()}
    return scores | {"questions": len(texts)}


def evalai(answers: Sequence[Answer], data: TAPDataset) -> list[dict]:
    """Entries of a submission to EvalAI, an answer per question of `data`, of either data set as M4C and TAP write it:
    `question_id`, `image_id`, `answer` and `pred_source`, for each word "OCR" or "VOCAB".

    Raises ValueError if there are not as many answers as questions.
    """
    return [
        {
            "question_id": record["question_id"],
            "image_id": str(record["image_id"]),
            "answer": answer.text,
            "pred_source": ["OCR" if source == "ocr" else "VOCAB" for _, source in answer.words],
        }
        for record, answer in _answered(answers, data)
    ]


def write_evalai(path: str | Path, answers: Sequence[Answer], data: TAPDataset) -> None:
    """Write `evalai(answers, data)` as a JSON file to upload."""
    write_json(path, evalai(answers, data))


def write_rrc(path: str | Path, answers: Sequence[Answer], data: TAPDataset) -> None:
    """Write a JSON file to upload for task 3 of the Robust Reading Competition, ST-VQA: `question_id` and `answer`.

    Raises ValueError for questions of TextVQA, or if there are not as many answers as questions.
    """
    if data.dataset != "stvqa":
        raise ValueError(f"data: questions of {data.dataset}, the Robust Reading Competition asks those of stvqa")
    pairs = _answered(answers, data)
    write_json(path, [{"question_id": record["question_id"], "answer": answer.text} for record, answer in pairs])


def _answered(answers: Sequence[Answer], data: TAPDataset) -> list[tuple[dict, Answer]]:
    if len(answers) != len(data):
        raise ValueError(f"answers: got {len(answers)} for the {len(data)} questions of {data.path}")
    return list(zip(data.records, answers, strict=True))


def first_logits(model: TAP, batch: Batch) -> Tensor:
    """Logits [B, 2, V + num_ocr] of the first two decoding steps: what `lfpr.verify_equivalent` compares of TAPs."""
    return model.generate(batch, 2)[0]


def compare(models: dict[str, TAP], batch: Batch, repeats: int = 7) -> dict[str, dict]:
    """For each model: `parameters` and `macs` of its MMT, `megabytes` (10⁶ bytes) of its weights in float32, and
    `ms_per_question` of greedy decoding all steps, the median of `repeats` runs that alternate between the models.

    MACs are for one question at the batch's mean number of input positions plus all decoding steps.
    """
    questions, model = len(batch["num_ocr"]), next(iter(models.values()))
    inputs = int(batch["num_obj"].sum() + batch["num_ocr"].sum() + (batch["text"] != 0).sum())
    length = round(inputs / questions) + model.config.decoding_steps
    return side_by_side(models, lambda tap: tap.generate(batch), prunable, length, questions, "question", repeats)
