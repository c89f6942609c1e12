"""Label-free scoring as in LFPR's released code: in training mode, with dropout, the random seed reset at each batch.

`lfpr.tap.label_free` is the same objective without dropout, which needs one pass over the encoder positions.

What the scoring leaves in its folder, and LFPR's `pruning.py` reads there, is read and written here, too:
`head_grads.npy` [B, L, H] and `ffn_grads.npy` [B, L, N], a gradient per batch, and `tmax_q2.txt`, the decoding step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lfpr.checks import check_count, check_kind, check_number, check_seed
from lfpr.files import DataError, a_path, write_whole
from lfpr.gradients import MaskGradients
from lfpr.tap.model import TAP, Batch
from lfpr.tap.objectives import check_step
from lfpr.tap.pickles import load_npy

DROPOUT, BATCH = 0.1, 8  # what LFPR's code scores with
FILES = ("head_grads.npy", "ffn_grads.npy", "tmax_q2.txt")  # of a score folder


def label_free(model: TAP, step: int, dropout: float = DROPOUT, seed: int = 0) -> Callable[[Batch], Tensor]:
    """The label-free objective at decoding step `step`, the sum over the batch of the largest logit, with `dropout`.

    Random numbers are from `seed` anew at each call. Step + 1 passes, each with other dropout in TextBERT and MMT,
    decode all positions again; the last one carries the gradient. Afterwards the model and the random numbers are as
    before.

    Raises ValueError for a step that the model does not decode, or a dropout outside [0, 1).
    """
    step, seed = check_step(model, step), check_seed(seed)
    dropout = check_number("dropout", dropout, "in [0, 1)", lambda share: 0 <= share < 1)

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


def save_scores(folder: str | Path, gradients: MaskGradients, step: int) -> None:
    """Write the mask gradients, float32, and the decoding `step` of the label-free objective into `folder` as LFPR's
    scoring does, each file whole or not at all. Rows may be of batches or of samples: LFPR sums their squares.
    Raises ValueError for other gradients, among them none, or another step."""
    a_path(folder, "folder")
    check_kind("gradients", gradients, MaskGradients)
    gradients.check("gradients")
    step = check_count("step", step)
    for name, part in zip(FILES, (gradients.heads, gradients.neurons), strict=False):
        write_whole(Path(folder, name), lambda partial, part=part: _save(partial, part.detach().float().cpu().numpy()))
    write_whole(Path(folder, FILES[2]), lambda partial: partial.write_text(str(step)))


def load_scores(folder: str | Path) -> tuple[MaskGradients, int]:
    """The mask gradients, heads [B, L, H] and neurons [B, L, N], and the decoding step in a score folder of LFPR.

    Reading runs no code. Raises DataError naming the file if it is missing, is no array of finite numbers of this
    shape, or holds no step.
    """
    folder = a_path(folder, "folder")
    heads, neurons = (_load(Path(folder, name)) for name in FILES[:2])
    if heads.shape[:2] != neurons.shape[:2]:
        raise DataError(
            f"{folder}: {FILES[0]} {list(heads.shape)} and {FILES[1]} {list(neurons.shape)} must agree in batches and "
            "layers"
        )
    path = _existing(Path(folder, FILES[2]))
    text = path.read_bytes().strip()
    if not text.isdigit() or len(text) > 9:
        raise DataError(f"{path}: expected the decoding step, a whole number, found {text[:40]!r}")
    return MaskGradients(heads, neurons), int(text)


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # given a name, NumPy would add a suffix
        np.save(file, array)


def _load(path: Path) -> Tensor:
    array = load_npy(_existing(path), "mask gradients", objects=False)
    if array.ndim != 3 or array.dtype.kind != "f" or not array.size:
        found = f"{array.dtype} {list(array.shape)}"
        raise DataError(f"{path}: expected floats [batches, layers, heads or neurons], found {found}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise DataError(f"{path}: NaN or infinite gradients, or too large for float32")
    return torch.from_numpy(array)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"no file {path}: a score folder of LFPR has {', '.join(FILES)}")
    return path
