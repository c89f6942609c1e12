"""Answers, their score, and what a TAP costs to run."""

from __future__ import annotations

import time

import numpy as np
from torch import Tensor
from tqdm import tqdm

from lfpr.cost import MacCost
from lfpr.encoder import prunable
from lfpr.tap.data import TAPDataset, batches
from lfpr.tap.metrics import vqa_accuracy
from lfpr.tap.model import TAP, Batch
from lfpr.tap.text import decode


def answers(model: TAP, data: TAPDataset, batch_size: int) -> list[str]:
    """The model's answers to all questions of ``data``, by greedy decoding."""
    found = []
    for batch in tqdm(batches(data, batch_size), desc="answer", leave=False):
        predictions = model.generate(batch, stop=True)[1].tolist()
        for i, row in zip(batch["index"].tolist(), predictions, strict=True):
            found.append(decode(row, data.image(data.records[i]).ocr_tokens, data.vocab)[0])
    return found


def evaluate(model: TAP, data: TAPDataset, batch_size: int) -> dict:
    """``score``: TextVQA accuracy of the model's answers, in 0 … 1; ``questions``: how many there were."""
    scores = [
        vqa_accuracy(answer, record["answers"])
        for answer, record in zip(answers(model, data, batch_size), data.records, strict=True)
    ]
    return {"score": float(np.mean(scores)), "questions": len(scores)}


def first_scores(model: TAP, batch: Batch) -> Tensor:
    """Scores [B, 2, V + num_ocr] of the first two decoding steps: what a shrunk model is verified with."""
    return model.generate(batch, 2)[0]


def compare(models: dict[str, TAP], batch: Batch, repeats: int = 7) -> dict[str, dict]:
    """For each model: ``parameters`` and ``macs`` of its MMT, ``megabytes`` of its weights in float32, and
    ``ms_per_question`` of greedy decoding all steps, the median of ``repeats`` runs that alternate between the models.

    MACs are for one question at the batch's mean number of input positions plus all decoding steps.
    """
    questions = len(batch["num_ocr"])
    positions = int(batch["num_obj"].sum() + batch["num_ocr"].sum() + (batch["text"] != 0).sum())
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats + 1):
        for name, model in models.items():
            start = time.perf_counter()
            model.generate(batch)
            seconds[name].append(time.perf_counter() - start)
    table = {}
    for name, model in models.items():
        encoder = prunable(model)
        cost = MacCost(encoder, round(positions / questions) + model.config.decoding_steps)
        table[name] = {
            "parameters": encoder.num_parameters,
            "macs": cost.of(sum(encoder.heads_per_layer), sum(encoder.neurons_per_layer)),
            "megabytes": sum(p.numel() * 4 for p in model.parameters()) / 1e6,
            "ms_per_question": 1000 * float(np.median(seconds[name][1:])) / questions,  # the first run warms up
        }
    return table
