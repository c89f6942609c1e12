"""LFPR's released files of a pruned TAP: `pruned_model.ckpt` with trainable masks, and `cfg.txt` beside it.

The checkpoint is `{"model": state_dict}` with the kept rows and columns, and the masks by which the published model
multiplies also at inference: `mmt.encoder.layer.I.attention.self.head_mask.mask` [1, heads, 1, 1] and
`mmt.encoder.layer.I.intermediate.ffn_mask.mask` [neurons]. LFPR's trainers load strictly: beside these they need the
entries of the unpruned checkpoint that are none of TAP's, the heads of its pre-training. `cfg.txt` has two lines, the
number of heads and of neurons that each MMT layer keeps, as Python lists without spaces (scripts pass them on as single
words). The released code has heads of 64; files of other sizes are read and written alike here, but not there.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lfpr.checks import check_kind
from lfpr.encoder import PrunableEncoder, mask_rows, prunable
from lfpr.files import CheckpointError, DataError, a_path, write_whole
from lfpr.reading import read_text
from lfpr.shrink import fold, resize
from lfpr.tap.checkpoint import read_checkpoint
from lfpr.tap.model import TAP, TAPConfig


def save_tap(pruned: TAP, folder: str | Path, masks: Any = None, unpruned: str | Path | None = None) -> None:
    """Write `pruned_model.ckpt` and `cfg.txt` into `folder`, each whole or not at all.

    masks: values [h] and [n] of the kept heads and neurons per layer (lists of tensors as in `TrainableMasks`) that are
    *not* yet folded into `pruned`; ones by default. unpruned: the checkpoint that was pruned, whose entries that are
    none of TAP's are carried over, as LFPR's trainers need them. Raises ValueError if masks do not fit, or are per
    sample, and `CheckpointError` if `unpruned` cannot be read.
    """
    check_kind("pruned", pruned, TAP)
    a_path(folder, "folder")
    if unpruned is not None:
        a_path(unpruned, "unpruned")
    encoder = prunable(pruned)
    heads, neurons = encoder.heads_per_layer, encoder.neurons_per_layer
    if masks is None:
        masks = SimpleNamespace(heads=[torch.ones(n) for n in heads], neurons=[torch.ones(n) for n in neurons])
    if not hasattr(masks, "heads") or not hasattr(masks, "neurons"):
        raise ValueError(f"masks: expected heads and neurons, found {type(masks).__name__}")
    rows = zip(mask_rows("heads", masks.heads, heads), mask_rows("neurons", masks.neurons, neurons), strict=True)
    state = {name: value.detach().cpu() for name, value in pruned.state_dict().items()}
    if unpruned is not None:
        state = {name: value for name, value in read_checkpoint(unpruned).items() if name not in state} | state
    for (head_name, neuron_name), (head, neuron) in zip(_names(encoder), rows, strict=True):
        if head.ndim != 1 or neuron.ndim != 1:
            raise ValueError("masks: per-sample masks are not part of a checkpoint")
        state[head_name] = head.detach().cpu().clone().view(1, -1, 1, 1)
        state[neuron_name] = neuron.detach().cpu().clone()
    lines = "".join(f"[{','.join(map(str, kept))}]\n" for kept in (heads, neurons))
    write_whole(Path(folder) / "pruned_model.ckpt", lambda partial: torch.save({"model": state}, partial))
    write_whole(Path(folder) / "cfg.txt", lambda partial: partial.write_text(lines))


def load_tap(folder: str | Path, config: TAPConfig, checkpoint: str = "pruned_model.ckpt") -> TAP:
    """The pruned TAP in `folder`, its trained masks folded into the weights, in evaluation mode, on the CPU.

    config: sizes of the *unpruned* model. checkpoint: its name in `folder`, for a retrained one. Raises
    `CheckpointError` if a file is missing or unreadable, or if `cfg.txt`, the checkpoint and `config` disagree.
    """
    folder = a_path(folder, "folder")
    a_path(checkpoint, "checkpoint")
    heads, neurons = read_cfg(folder / "cfg.txt", config)
    with torch.random.fork_rng(devices=[]):  # building draws initial weights that are overwritten
        tap = TAP(config).eval()
    resize(prunable(tap), heads, neurons)
    tap.load_checkpoint(folder / checkpoint)
    encoder, state = prunable(tap), read_checkpoint(folder / checkpoint)
    values: dict[str, list[Tensor]] = {"heads": [], "neurons": []}
    for names, h, n in zip(_names(encoder), heads, neurons, strict=True):
        for part, name, shape in zip(values, names, ((1, h, 1, 1), (n,)), strict=True):
            found = tuple(state[name].shape) if name in state else "missing"
            if found != shape or not state[name].isfinite().all():
                what = "not finite" if found == shape else found
                raise CheckpointError(f"{folder / checkpoint}: {name} is {what}, expected finite values {shape}")
            values[part].append(state[name].flatten())
    fold(encoder, SimpleNamespace(**values))
    return tap


def read_cfg(path: str | Path, config: TAPConfig) -> tuple[list[int], list[int]]:
    """The heads and neurons that each MMT layer keeps, of a `cfg.txt` that is only parsed, never run.

    Raises `CheckpointError` if the file is missing or has anything but two lists of whole numbers that `config` allows.
    """
    path = a_path(path, "path")
    check_kind("config", config, TAPConfig)
    if not path.is_file():
        raise CheckpointError(f"no file {path}: expected the heads and neurons kept per layer, in two lines")
    try:
        lines = read_text(path, "kept heads and neurons").splitlines()
    except DataError as error:
        raise CheckpointError(f"{path} is not a text file: {error}") from error
    if len(lines) != 2:
        raise CheckpointError(f"{path}: {len(lines)} lines, expected two (heads and neurons kept per layer)")
    return (
        _counts(path, "heads", lines[0], config.mmt_layers, config.num_heads),
        _counts(path, "neurons", lines[1], config.mmt_layers, config.intermediate_size),
    )


def _counts(path: Path, what: str, line: str, layers: int, most: int) -> list[int]:
    try:
        values = json.loads(line)  # as Python writes a list of numbers
    except (ValueError, RecursionError):
        values = None
    if not (
        isinstance(values, list) and len(values) == layers and all(type(v) is int and 0 <= v <= most for v in values)
    ):
        raise CheckpointError(
            f"{path}: {what} kept per layer are {line[:80]!r}, expected a list of {layers} whole numbers "
            f"from 0 to {most}"
        )
    return values


def _names(encoder: PrunableEncoder) -> list[tuple[str, str]]:
    """The released names of each layer's head and neuron mask."""
    return [
        (f"{part.path}.attention.self.head_mask.mask", f"{part.path}.intermediate.ffn_mask.mask")
        for part in encoder.parts
    ]
