"""The mask files of the released frameworks: `outputs/MODEL/mscoco/CONSTRAINT/seed_SEED/{head_mask,neuron_mask}.pt`,
and of sensitivity pruning, `head_mask_I.pt`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lfpr.checks import check_constraint, check_count, check_encoder, check_kind
from lfpr.files import a_path, write_whole
from lfpr.masks import Masks
from lfpr.tap.archives import load_torch

if TYPE_CHECKING:
    from lfpr.encoder import PrunableEncoder

FILES = ("head_mask.pt", "neuron_mask.pt")


def outputs(root: str | Path, model: str, constraint: float, seed: int) -> Path:
    """`root/outputs/MODEL/mscoco/CONSTRAINT/seed_SEED`: where the fork for CLIP keeps the masks of a model.

    model: such as "openai/clip-vit-base-patch16". If that folder is not there, but the one of the name's last part, or
    with "openai/" before it, is, then that one. Raises ValueError for anything else than such arguments.
    """
    a_path(root, "root")
    check_kind("model", model, str)
    constraint, seed = check_constraint(constraint), check_count("seed", seed)
    names = dict.fromkeys((model, Path(model).name, f"openai/{Path(model).name}"))
    folders = [Path(root, "outputs", name, "mscoco", str(float(constraint)), f"seed_{seed}") for name in names]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def load_masks(
    path: str | Path, neuron_mask: str | Path | None = None, encoder: PrunableEncoder | None = None
) -> Masks:
    """Read a `head_mask.pt` [L, H] and a `neuron_mask.pt` [L, N]: two files, or the folder of both; or, of sensitivity
    pruning, a `head_mask_I.pt` alone, all neurons kept, which needs the `encoder`.

    Given an encoder, the masks must fit it. Files are read with `weights_only=True`, so they cannot run code. Raises
    FileNotFoundError, or ValueError if a file does not hold one tensor (or one list of equally long rows), all of it
    finite, if masks do not fit the encoder, or if there is none for a head mask alone.
    """
    if encoder is not None:
        check_encoder(encoder)
    files = mask_files(path) if neuron_mask is None else [a_path(path, "path"), a_path(neuron_mask, "neuron_mask")]
    if len(files) == 1 and encoder is None:
        raise ValueError(f"{path} is a head mask alone: give the neuron mask, or the encoder, whose neurons all stay")
    heads, *neurons = map(_read, files)
    masks = Masks(heads, *(neurons or [torch.ones(encoder.num_layers, encoder.require_uniform()[1])]))
    if encoder is not None:
        found = tuple(masks.heads.shape), tuple(masks.neurons.shape)
        expected = tuple((encoder.num_layers, width) for width in encoder.require_uniform())
        if found != expected:
            raise ValueError(f"{path}: masks of heads {found[0]} and neurons {found[1]}, the model has {expected}")
    return masks


def mask_files(path: str | Path) -> list[Path]:
    """The files that `load_masks(path)` reads. Raises FileNotFoundError if one is not there."""
    path = a_path(path, "masks")
    path = path.parent if path.name == FILES[0] else path
    files = [path] if path.is_file() else [path / name for name in FILES]
    for file in files:
        if not file.is_file():
            alone = "; a head_mask_I.pt is to be named itself" if [*path.glob("head_mask_*.pt")] else ""
            raise FileNotFoundError(f"no mask file {file}: a folder has {' and '.join(FILES)}{alone}")
    return files


def save_masks(masks: Masks, folder: str | Path) -> None:
    """Write `head_mask.pt` and `neuron_mask.pt` into `folder`, float32, as the released frameworks read them. Raises
    ValueError for anything but `Masks`."""
    check_kind("masks", masks, Masks)
    a_path(folder, "folder")
    for name, mask in zip(FILES, (masks.heads, masks.neurons), strict=True):
        _write(mask, Path(folder) / name)


def save_head_mask(masks: Masks, step: int, folder: str | Path) -> None:
    """Write `head_mask_I.pt`, I = step − 1, as the fork's sensitivity pruning does after step 1, 2, ... Raises
    ValueError for anything but `Masks`, or another step."""
    check_kind("masks", masks, Masks)
    a_path(folder, "folder")
    step = check_count("step", step, 1)
    _write(masks.heads, Path(folder) / f"head_mask_{step - 1}.pt")


def _write(mask: Tensor, path: Path) -> None:
    value = mask.detach().float().cpu().clone()
    write_whole(path, lambda partial: torch.save(value, partial))


def _read(path: str | Path) -> Tensor:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no mask file {path}")
    try:
        value = load_torch(path)
    except Exception as error:  # torch raises many kinds for a file that is cut, or that is no checkpoint at all
        raise ValueError(f"{path} is not a readable tensor file: {error}") from error
    if isinstance(value, (list, tuple)) and value and all(isinstance(row, Tensor) for row in value):
        if len({(row.shape, row.dtype) for row in value}) > 1:
            raise ValueError(f"{path}: rows of different lengths {[tuple(row.shape) for row in value]}, or kinds")
        value = torch.stack(list(value))
    if not isinstance(value, Tensor):
        raise ValueError(f"{path}: expected a mask tensor, found {type(value).__name__}")
    if value.is_complex() or value.ndim != 2:
        kind = f"{value.dtype} {list(value.shape)}"
        raise ValueError(f"{path}: expected numbers [layers, heads or neurons], found {kind}")
    if not value.isfinite().all():
        raise ValueError(f"{path}: NaN or infinite mask values")
    return value.float()
