"""Objectives whose mask gradients score TAP's heads and neurons: LFPR's label-free one, and the labelled loss.

LFPR (Poh et al. 2024): pick the decoding step t at which the model is surest, then score by the gradient of the largest
score of that step. No answer is needed. The framework of Kwon et al. uses the training loss instead (Fisher).

LFPR's code scores with dropout, the random seed reset at each batch: `label_free(..., dropout=PUBLISHED_DROPOUT)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfpr.tap.model import TAP, Batch

PUBLISHED_DROPOUT, PUBLISHED_BATCH = 0.1, 8  # LFPR's, for scoring


def peak_steps(model: TAP, batch: Batch) -> Tensor:
    """t* [B], int64: the decoding step at which each sample's highest score over all steps and classes is first reached
    (LFPR, Poh et al. 2024, time step selection)."""
    return model.generate(batch)[0].amax(-1).argmax(-1)


def peak_step(model: TAP, batches: Iterable[Batch]) -> int:
    """The time step of the label-free objective: int(median of t*) over all samples (LFPR, Poh et al. 2024, time step
    selection). Raises ValueError if there are no batches."""
    steps = [peak_steps(model, batch) for batch in batches]
    if not steps:
        raise ValueError("peak_step: batches is empty; at least one sample is needed")
    return int(torch.cat(steps).double().quantile(0.5))


def label_free(model: TAP, step: int, dropout: float | None = None, seed: int = 0) -> Callable[[Batch], Tensor]:
    """The label-free objective at decoding step `step`: the sum over the batch of the largest score (LFPR, Poh et al.
    2024). For `lfpr.collect_gradients(..., per_sample=True)`.

    Decoded indices carry no gradient, so a single teacher-forced pass with gradient gives the published value. The
    encoder positions run only once: the steps before `step` are decoded from their keys and values, without gradient,
    and then the answer so far, with gradient.

    With `dropout`, as in LFPR's code: the model in training mode with this dropout, random numbers from `seed`
    anew at each call. Step + 1 passes, each with other dropout in TextBERT and MMT, decode all positions again; the
    last one carries the gradient. Afterwards the model and the random numbers are as before.

    Raises ValueError for a step that the model does not decode, or a dropout outside [0, 1).
    """
    if not 0 <= step < model.config.decoding_steps:
        raise ValueError(f"step = {step}: must be in 0 … {model.config.decoding_steps - 1}")
    if dropout is not None and not 0 <= dropout < 1:
        raise ValueError(f"dropout = {dropout}: must be in [0, 1)")

    def objective(batch: Batch) -> Tensor:
        if dropout is None:
            return _decode(model, batch, step)[:, step].amax(-1).sum()
        with _dropping(model, dropout, seed):
            return _decode_anew(model, batch, step)[:, step].amax(-1).sum()

    return objective


class _Cache:
    """Keys and values of all positions so far, per layer. Gradients flow through it, unlike `KeyValueCache`."""

    def __init__(self, layers: dict[int, tuple[Tensor, Tensor]] | None = None) -> None:
        self.layers = dict(layers or {})

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if layer in self.layers:
            keys, values = self.layers[layer]
            key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        self.layers[layer] = key, value
        return key, value


def begin(model: TAP, batch: Batch) -> Tensor:
    """The answer so far before the first step: `<s>` for each sample [B, 1]."""
    return torch.full_like(batch["num_ocr"], model.config.bos_index)[:, None]


def _decode(model: TAP, batch: Batch, step: int) -> Tensor:
    """Scores [B, step + 1, V + num_ocr] after the model's own answer so far."""
    encoded, cache = model.encode(batch), _Cache()
    positions = encoded.valid.shape[1]
    y = model.mmt.encoder(encoded.x, encoded.valid[:, None, None], cache)
    keys = model.ocr_ptr_net.key(y[:, positions - encoded.slots :])

    def scores(previous: Tensor, start: int, cache: _Cache) -> Tensor:
        steps = previous.shape[1]
        x = model.mmt.prev_pred_embeddings(model.classifier["module"].weight, encoded.ocr, previous, start)
        before = encoded.valid.new_ones(steps, start + steps).tril(start).expand(len(x), -1, -1)
        mask = torch.cat([encoded.valid[:, None].expand(-1, steps, -1), before], 2)[:, None]
        return model._scores(model.mmt.encoder(x, mask, cache), keys, encoded)

    previous, ahead = begin(model, batch), _Cache(cache.layers)
    with torch.no_grad():
        for t in range(step):
            previous = torch.cat([previous, scores(previous[:, t:], t, ahead).argmax(-1)], 1)
    return scores(previous, 0, cache)


def _decode_anew(model: TAP, batch: Batch, step: int) -> Tensor:
    """Scores [B, step + 1, V + num_ocr] of the last of step + 1 passes over all positions, as LFPR's code runs them:
    dropout of object and OCR inputs is drawn once, TextBERT and MMT run in each pass."""
    first = begin(model, batch)
    text = batch["text"]
    kept = (text != 0).any(0).nonzero()[:, 0]
    encoded = model.encode(batch)
    inputs = encoded.x[:, len(kept) :]
    previous = torch.cat([first, torch.zeros_like(first).expand(-1, step)], 1)
    with torch.no_grad():
        for _ in range(step):
            decoded = model.score(encoded, previous).argmax(-1)
            previous = torch.cat([first, decoded[:, :-1]], 1)
            words = model.text_bert(text[:, kept], kept, text[:, kept] != 0)
            encoded = replace(encoded, x=torch.cat([words, inputs], 1))
    return model.score(encoded, previous)


@contextmanager
def _dropping(model: TAP, dropout: float, seed: int) -> Iterator[None]:
    """Training mode with this dropout and this seed for a while."""
    layers = [(m, m.p) for m in model.modules() if isinstance(m, nn.Dropout)]
    modes = [(m, m.training) for m in model.modules()]
    device = model.device
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(seed)
        try:
            model.train()
            for layer, _ in layers:
                layer.p = dropout
            yield
        finally:
            for layer, p in layers:
                layer.p = p
            for module, mode in modes:
                module.training = mode


def decoding_loss(
    scores: Tensor, targets: Tensor, mask: Tensor, reduction: str = "mean"
) -> Tensor | tuple[Tensor, Tensor]:
    """M4C's loss (Hu et al., CVPR 2020): binary cross-entropy of scores and targets [B, T, C], summed over classes,
    averaged over the steps where `mask` [B, T] is 1.

    `reduction="sum"` sums over the valid steps instead; `"parts"` gives this sum and the number of steps, to be
    divided when those of several processes are added. Raises ValueError for another reduction.
    """
    if reduction not in ("mean", "sum", "parts"):
        raise ValueError(f"reduction = {reduction!r}: must be 'mean', 'sum' or 'parts'")
    total = (F.binary_cross_entropy_with_logits(scores, targets, reduction="none").sum(-1) * mask).sum()
    if reduction == "mean":
        return total / mask.sum().clamp(min=1)
    return total if reduction == "sum" else (total, mask.sum())


def labelled(model: TAP, reduction: str = "mean") -> Callable[[Batch], Tensor | tuple[Tensor, Tensor]]:
    """The labelled loss of batches with `previous` [B, T], `targets` [B, T, V + num_ocr] and `loss_mask` [B, T]
    (`TAPDataset(..., targets=True)`): for Fisher scores (Kwon et al., NeurIPS 2022), and to train.

    Steps beyond the longest answer of a batch add nothing and are not computed. `reduction` as in `decoding_loss`.
    """

    def objective(batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        steps = max(1, int(batch["loss_mask"].sum(1).max()))
        previous, targets, mask = (batch[name][:, :steps] for name in ("previous", "targets", "loss_mask"))
        return decoding_loss(model(batch, previous), targets, mask, reduction)

    return objective
