"""Checkpoints of an interrupted training: one file, written whole or not at all, read without running code from it.

Beside the tensors a checkpoint has the log, the state of all random number generators, and what it must agree in with
the training that continues from it.

Not accelerate's own `save_state` and `load_state` (as of 1.15): they need accelerate, which training on one CPU does
not import; they write a file per part, so that a run killed half-way leaves a mixture; random states that cannot be
read are passed over with a note in the log; and objects registered with them, as masks and log would have to be, are
read by `load_custom_state` with `weights_only=False`, which runs code from the file.
"""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import numpy as np
import torch

from lfpr.files import write_whole

FILE = "training.pt"


def save_checkpoint(folder: str | Path, about: dict, state: dict) -> None:
    """Write `state` and `about`, what `load_checkpoint` checks: tensors, numbers, strings, plain containers. Raises
    `NotSaved`."""
    for left in Path(folder).glob(f".{FILE}.*"):  # by a training that was killed while it wrote
        left.unlink(missing_ok=True)
    write_whole(Path(folder) / FILE, lambda partial: torch.save({"about": about, "state": state}, partial))


def load_checkpoint(folder: str | Path, about: dict) -> dict | None:
    """The state that `save_checkpoint` wrote, on the CPU; None if there is none.

    Raises `ValueError` for a file that is damaged or something else, or of a training that differs in `about`.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    advice = "remove the folder to start anew"
    try:
        with zipfile.ZipFile(path) as parts:
            if damaged := parts.testzip():  # torch itself reads whatever is there
                raise ValueError(f"{damaged} is not what was written: wrong checksum")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        described, state = saved["about"], saved["state"]
    except Exception as error:  # torch raises many kinds for a file that is cut, or that is no checkpoint at all
        raise ValueError(f"checkpoint {path} cannot be read ({error}); {advice}") from error
    for name, wanted in about.items():
        if described.get(name) != wanted:
            text, expected = (str(value)[:200] for value in (described.get(name), wanted))
            raise ValueError(
                f"checkpoint {path} is of another training: its {name} is {text}, not {expected}; {advice}"
            )
    return state


def random_state(device: torch.device) -> dict:
    """The state of Python's, NumPy's and torch's random number generators."""
    name, keys, *rest = np.random.get_state()
    state = {"python": random.getstate(), "numpy": (name, keys.tolist(), *rest), "torch": torch.get_rng_state()}
    return state if device.type == "cpu" else state | {"device": torch.get_device_module(device).get_rng_state(device)}


def restore_random(state: dict, device: torch.device) -> None:
    """Continue from `random_state`; what it has not, as the device's where it was taken on a CPU, goes on as it is."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"], device)
