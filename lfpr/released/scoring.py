"""Label-free scoring as in LFPR's released code: in training mode, with dropout, the random seed reset at each batch.

`lfpr.tap.label_free` is the same objective without dropout, which needs one pass over the encoder positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from lfpr.tap.model import TAP, Batch
from lfpr.tap.objectives import check_step

DROPOUT, BATCH = 0.1, 8  # what LFPR's code scores with


def label_free(model: TAP, step: int, dropout: float = DROPOUT, seed: int = 0) -> Callable[[Batch], Tensor]:
    """The label-free objective at decoding step `step`, the sum over the batch of the largest logit, with `dropout`.

    Random numbers are from `seed` anew at each call. Step + 1 passes, each with other dropout in TextBERT and MMT,
    decode all positions again; the last one carries the gradient. Afterwards the model and the random numbers are as
    before.

    Raises ValueError for a step that the model does not decode, or a dropout outside [0, 1).
    """
    check_step(model, step)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout = {dropout}: must be in [0, 1)")

    def objective(batch: Batch) -> Tensor:
        with _dropping(model, dropout, seed):
            return _decode_anew(model, batch, step)[:, step].amax(-1).sum()

    return objective


def _decode_anew(model: TAP, batch: Batch, step: int) -> Tensor:
    """Logits [B, step + 1, V + num_ocr] of the last of step + 1 passes over all positions, as LFPR's code runs them:
    dropout of object and OCR inputs is drawn once, TextBERT and MMT run in each pass."""
    text = batch["text"]
    kept = (text != 0).any(0).nonzero()[:, 0]
    encoded = model.encode(batch)
    inputs = encoded.x[:, len(kept) :]
    first = model.begin(len(text))
    previous = torch.cat([first, torch.zeros_like(first).expand(-1, step)], 1)
    with torch.no_grad():
        for _ in range(step):
            decoded = model.decode(encoded, previous).argmax(-1)
            previous = torch.cat([first, decoded[:, :-1]], 1)
            words = model.text_bert(text[:, kept], kept, text[:, kept] != 0)
            encoded = replace(encoded, x=torch.cat([words, inputs], 1))
    return model.decode(encoded, previous)


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
