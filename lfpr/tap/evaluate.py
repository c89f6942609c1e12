"""Answers, their score, files to submit them, and what a TAP costs to run.

Scores and files are of any data set of questions that has `records` with their answers, and `dataset`, its name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from lfpr.checks import check_count, check_entries, check_kind, check_named
from lfpr.device import OnDevice, moved
from lfpr.encoder import prunable
from lfpr.files import a_path, write_json, write_whole
from lfpr.latency.compare import side_by_side
from lfpr.modes import evaluating
from lfpr.progress import bar
from lfpr.tap.data import TAPBatch, TAPDataset, batches, repeated
from lfpr.tap.metrics import anls, stvqa_accuracy, vqa_accuracy
from lfpr.tap.model import TAP, Batch, Encoded, check_logits
from lfpr.tap.text import Answer, AnswerVocab, decode

METRICS = {"textvqa": {"score": vqa_accuracy}, "stvqa": {"score": stvqa_accuracy, "anls": anls}}
"""Data set -> its metrics in 0 … 1: VQA accuracy of TextVQA; accuracy and ANLS of ST-VQA."""


def answers(logits: Tensor, batch: TAPBatch) -> list[Answer]:
    """The answers of greedy decoding with `logits` [B, T, V + num_ocr], and whether each word is copied (`Answer`).

    `batch` is one of `lfpr.tap.batches`: it knows the vocabulary and each question's OCR tokens. Raises ValueError
    for another dict of tensors, and if `logits` are of another shape, NaN or infinite.
    """
    check_kind("logits", logits, Tensor)
    tokens, vocab = getattr(batch, "ocr_tokens", None), getattr(batch, "vocab", None)
    if tokens is None or vocab is None:
        raise ValueError(f"batch: a {type(batch).__name__} without words, expected a TAPBatch as the loader makes it")
    classes = len(vocab) + batch["ocr_boxes"].shape[1]
    if logits.ndim != 3 or (len(logits), logits.shape[2]) != (len(tokens), classes):
        raise ValueError(f"logits: expected shape [{len(tokens)}, T, {classes}], got {list(logits.shape)}")
    check_logits(logits)
    return _read(logits.argmax(-1), tokens, vocab)


def _read(predictions: Tensor, tokens: list[list[str]], vocab: AnswerVocab) -> list[Answer]:
    return [decode(row, words, vocab) for row, words in zip(predictions.tolist(), tokens, strict=True)]


def predict(model: TAP, data: TAPDataset, batch_size: int, **loading: Any) -> list[Answer]:
    """The model's answers to all questions of `data`, by greedy decoding on the model's device, in evaluation mode;
    `loading`: options of `batches`. Raises ValueError for bad arguments, a vocabulary other than the model's, and if
    the model gives NaN."""
    batch_size = _check(model, data, batch_size)
    loader = bar(OnDevice(batches(data, batch_size, **loading), model.device), "answer")
    with evaluating(model):
        return [answer for batch in loader for answer in answers(model.generate(batch, stop=True)[0], batch)]


@torch.no_grad()
def write_inputs(model: TAP, data: TAPDataset, batch_size: int, folder: str | Path, **loading: Any) -> None:
    """Keep what `model` makes of all questions before its MMT (`TAP.encode`), for `predict_inputs`: a file a batch.

    Models that differ in nothing but the MMT and the answer heads, as all pruned and retrained ones do, need not read
    features and run TextBERT again: those of 5,000 questions of TextVQA are 8 GB, this is about 3 GB.
    """
    batch_size = _check(model, data, batch_size)
    tokens, folder = [], Path(folder)
    loader = bar(OnDevice(batches(data, batch_size, **loading), model.device), "encode questions")
    for number, batch in enumerate(loader):
        with evaluating(model):
            encoded = model.encode(batch)
        tensors = {"x": encoded.x, "valid": encoded.valid, "num_ocr": encoded.num_ocr}
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        write_whole(folder / f"{number:05}.safetensors", partial(save_file, tensors))
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
        with evaluating(model):
            predictions += _read(model.generate(encoded, stop=True)[1], words, vocab)
    return predictions


def evaluate(model: TAP, data: TAPDataset, batch_size: int, **loading: Any) -> dict:
    """Accuracy of the model's answers as `score` and, of ST-VQA, `anls`, in 0 … 1; `questions`: how many. `loading`:
    options of `batches`.

    Raises ValueError, before any work, for questions without answers (a test split: see `evalai`), and as `predict`.
    """
    check_kind("data", data, TAPDataset)
    check_answered(data)
    return score(predict(model, data, batch_size, **loading), data)


def _check(model: Any, data: Any, batch_size: Any) -> int:
    check_kind("model", model, TAP)
    check_kind("data", data, TAPDataset)
    batch_size = check_count("batch_size", batch_size, 1)
    check_vocabulary(model, data.vocab)
    return batch_size


def check_vocabulary(model: TAP, vocab: AnswerVocab) -> None:
    """ValueError if the vocabulary has another length, or its first and last signs other places, than the model's."""
    config = getattr(model, "config", None)  # what only answers as a TAP does has none
    found = len(vocab), vocab.bos, vocab.eos
    if config is not None and found != (config.num_answers, config.bos_index, config.eos_index):
        raise ValueError(
            f"vocab: {found[0]} words, <s> and </s> at {found[1]} and {found[2]}; the model's has "
            f"{config.num_answers}, at {config.bos_index} and {config.eos_index}"
        )


def check_answered(data: Dataset) -> None:
    """ValueError unless all questions of `data` have answers to score with."""
    without = sum(not record["answers"] for record in data.records)
    if without:
        raise ValueError(f"{data.path}: {without} of {len(data)} questions have no answers to score with")


def score(predictions: Sequence[Answer], data: Dataset) -> dict:
    """What `evaluate` returns, of an answer per question of `data`."""
    return score_texts([answer.text for answer in predictions], data)


def score_texts(texts: Sequence[str], data: Dataset) -> dict:
    """`score` of answers as text."""
    expected = [record["answers"] for record in data.records]
    scores = {name: metric(texts, expected) for name, metric in METRICS[data.dataset].items()}
    return scores | {"questions": len(texts)}


def evalai(answers: Sequence[Answer], data: Dataset) -> list[dict]:
    """Entries of a submission to EvalAI, an answer per question of `data`, of either data set as M4C and TAP write it:
    `question_id`, `image_id`, `answer` and `pred_source`, for each word "OCR" or "VOCAB".

    Raises ValueError if there are not as many answers as questions, or a question id is there twice.
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


def write_evalai(path: str | Path, answers: Sequence[Answer], data: Dataset) -> None:
    """Write `evalai(answers, data)` as a JSON file to upload. Raises as that."""
    a_path(path, "path")
    write_json(path, evalai(answers, data))


def write_rrc(path: str | Path, answers: Sequence[Answer], data: Dataset) -> None:
    """Write a JSON file to upload for task 3 of the Robust Reading Competition, ST-VQA: `question_id` and `answer`.

    Raises ValueError for questions of TextVQA, and as `evalai`.
    """
    a_path(path, "path")
    check_kind("data", data, Dataset)
    if data.dataset != "stvqa":
        raise ValueError(f"data: questions of {data.dataset}, the Robust Reading Competition asks those of stvqa")
    pairs = _answered(answers, data)
    write_json(path, [{"question_id": record["question_id"], "answer": answer.text} for record, answer in pairs])


def _answered(answers: Sequence[Answer], data: Dataset) -> list[tuple[dict, Answer]]:
    check_kind("answers", answers, list, tuple)
    check_kind("data", data, Dataset)
    for number, answer in enumerate(answers):
        check_kind(f"answers[{number}]", answer, Answer)
    if len(answers) != len(data):
        raise ValueError(f"answers: got {len(answers)} for the {len(data)} questions of {data.path}")
    if twice := repeated(data.records):
        raise ValueError(f"{data.path}: question id {twice[0]} is there twice, a submission has each once")
    return list(zip(data.records, answers, strict=True))


def first_logits(model: TAP, batch: Batch) -> Tensor:
    """Logits [B, 2, V + num_ocr] of the first two decoding steps: what `lfpr.verify_equivalent` compares of TAPs.

    Raises ValueError for anything but a TAP and a batch.
    """
    check_kind("model", model, TAP)
    return model.generate(batch, 2)[0]


def compare(models: dict[str, TAP], batch: Batch, repeats: int = 7) -> dict[str, dict]:
    """For each model: `parameters` and `macs` of its MMT, `megabytes` (10⁶ bytes) of its weights in float32, and
    `ms_per_question` of greedy decoding all steps, the median of `repeats` runs that alternate between the models.

    MACs are for one question at the batch's mean number of input positions plus all decoding steps. Raises ValueError
    for bad arguments.
    """
    check_named("models", models)
    check_entries("batch", batch, "text", "num_obj", "num_ocr")
    for name, tap in models.items():
        check_kind(f"models[{name!r}]", tap, TAP)
    questions, model = len(batch["num_ocr"]), next(iter(models.values()))
    inputs = int(batch["num_obj"].sum() + batch["num_ocr"].sum() + (batch["text"] != 0).sum())
    length = round(inputs / questions) + model.config.decoding_steps
    return side_by_side(models, lambda tap: tap.generate(batch), prunable, length, questions, "question", repeats)
