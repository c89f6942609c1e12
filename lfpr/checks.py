"""What callers may pass: numbers, counts, choices and kinds of objects, checked once and before any work.

Each check raises ValueError naming the parameter, the value and what is allowed. Those of numbers return the value as a
plain Python one: it may come as numpy's or as a tensor of no dimensions.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # they use this module
    from lfpr.encoder import PrunableEncoder
    from lfpr.masks import Importance, Masks

HOW = {  # class -> what gives an object of it
    "Importance": "gradients.importance()",
    "LinearCost": "lfpr.ParameterCost(encoder)",
    "MaskGradients": "lfpr.collect_gradients(encoder, batches, objective)",
    "Masks": "lfpr.search(importance, cost, constraint)",
    "PrunableEncoder": "lfpr.prunable(model)",
}
SEEDS = -(2**63), 2**64 - 1  # what torch takes


class BudgetError(ValueError):
    """A constraint that no mask can meet; `smallest` is the smallest reachable fraction."""

    def __init__(self, constraint: float, smallest: float, unit: str) -> None:
        super().__init__(
            f"constraint = {constraint}: cannot be reached, {smallest:.6f} of the {unit} remain "
            "when all heads and neurons that may go are removed"
        )
        self.constraint, self.smallest, self.unit = constraint, smallest, unit

    def __reduce__(self) -> tuple:
        return type(self), (self.constraint, self.smallest, self.unit)


def plain(value: Any) -> Any:
    """A number of numpy, or a tensor or array of no dimensions, as Python's own; anything else as it is. In half or
    single precision, 0.4 is not 0.4, but it is what was written: the shortest number that rounds to it is meant."""
    if not isinstance(value, np.generic | np.ndarray | Tensor) or value.ndim or is_hollow(value):
        return value
    found = value.item()
    narrow = isinstance(found, float) and value.itemsize < 8
    return float(str(np.float32(found))) if narrow else found


def is_hollow(value: Any) -> bool:
    """Whether it is a tensor without values, on the meta device."""
    return type(value) in (Tensor, nn.Parameter) and value.is_meta  # other classes may keep theirs elsewhere


def check_number(
    name: str, value: Any, allowed: str = "a number", fits: Callable[[float], bool] | None = None, finite: bool = True
) -> Any:
    """A number, an int or a float, for which `fits` holds, `finite` or not; `allowed` says in words what that is."""
    found = plain(value)
    known = isinstance(found, int | float) and not isinstance(found, bool)
    known = known and (abs(found) <= sys.float_info.max or (not finite and abs(found) == math.inf))
    if not known or (fits is not None and not fits(found)):
        raise ValueError(f"{name} = {found!r:.80}: must be {allowed}")
    return found


def check_above(name: str, value: Any, least: float = 0, finite: bool = True) -> Any:
    """A number above `least`."""
    return check_number(name, value, f"above {least}{' and finite' * finite}", lambda found: found > least, finite)


def check_at_least(name: str, value: Any, least: float = 0) -> Any:
    """A number of at least `least`."""
    return check_number(name, value, f"at least {least} and finite", lambda found: found >= least)


def check_list(
    name: str, values: Any, check: Callable[[str, Any], Any], least: int = 1, what: str = "numbers"
) -> tuple:
    """At least `least` values, each what `check(name, value)` returns for it: of a list, or what else gives them."""
    values = plain(values)
    listed = isinstance(values, Iterable) and not isinstance(values, Mapping | str | bytes)
    found = tuple(check(f"{name}[{i}]", value) for i, value in enumerate(values)) if listed else None
    if found is None or len(found) < least:
        raise ValueError(f"{name} = {values!r:.80}: must be a list of at least {least} {what}")
    return found


def check_count(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """A whole number from `least` to `most`."""
    allowed = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
    return int(check_number(name, value, allowed, lambda n: n == int(n) and n >= least and (most is None or n <= most)))


def check_seed(seed: Any) -> int:
    """A seed of torch's random numbers."""
    return check_count("seed", seed, *SEEDS)


def check_flag(name: str, value: Any) -> bool:
    """True or False, and not what merely counts as either, such as the text "false"."""
    if not isinstance(plain(value), bool):
        raise ValueError(f"{name} = {value!r:.80}: must be True or False")
    return plain(value)


def check_choice(name: str, value: Any, allowed: Collection) -> Any:
    """One of `allowed`, and of its type."""
    found = plain(value)
    if not any(type(found) is type(one) and found == one for one in allowed):
        raise ValueError(f"{name} = {found!r:.80}: must be one of {list(allowed)}")
    return found


def check_kind(name: str, value: Any, *kinds: type | None) -> Any:
    """An object of one of these classes, or None where that is among them."""
    if not isinstance(value, tuple(type(None) if kind is None else kind for kind in kinds)):
        names = ["None" if kind is None else kind.__name__ for kind in kinds]
        hint = "".join(f"; {HOW[kind]} gives it" for kind in names if kind in HOW)
        raise ValueError(f"{name}: expected {' or '.join(names)}, found {type(value).__name__}{hint}")
    return value


def check_callable(name: str, value: Any, optional: bool = False) -> None:
    """A function, or what can be called as one; `optional`: or None."""
    if not callable(value) and not (optional and value is None):
        raise ValueError(f"{name}: expected a function{' or None' * optional}, found {type(value).__name__}")


def check_batches(name: str, value: Any, often: bool = False) -> None:
    """What gives batches when it is iterated over: not one batch, whose parts would be taken for batches, and no
    model. `often`: more than once, as no iterator does."""
    listed = isinstance(value, Iterable) or hasattr(type(value), "__getitem__")  # what `for` takes
    if not listed or isinstance(value, Mapping | str | bytes | Tensor | np.ndarray | nn.Module):
        raise ValueError(f"{name}: expected a list of batches, or what else gives them, found {type(value).__name__}")
    if often and isinstance(value, Iterator):
        raise ValueError(f"{name}: read several times, an iterator can be read once: give a list or a loader")


def check_entries(name: str, batch: Any, *entries: str) -> None:
    """A mapping that has tensors under these names."""
    check_kind(name, batch, Mapping)
    missing = [entry for entry in entries if not isinstance(batch.get(entry), Tensor)]
    if missing:
        raise ValueError(f"{name}: has no tensor {missing}, but {[*map(str, batch)]}")


def check_folder(name: str, value: Any, made: bool = False) -> None:
    """None or a folder that is there; `made`: or that can be made."""
    check_kind(name, value, str, os.PathLike, None)
    if value is not None and not Path(value).is_dir() and (os.path.exists(value) or not made):
        raise ValueError(f"{name} = {str(value)!r}: is no folder")


def check_tensor(name: str, value: Any, ndim: int, rows: int | None = None) -> None:
    """A tensor of so many dimensions, of floats; with `rows`, as long as that."""
    if not isinstance(value, Tensor) or value.ndim != ndim or not value.is_floating_point():
        found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: expected a tensor of floats of {ndim} dimensions, found {found}")
    if rows is not None and len(value) != rows:
        raise ValueError(f"{name}: shape {tuple(value.shape)}, expected {rows} rows")


def check_finite(name: str, values: Tensor) -> None:
    """A tensor without NaN and infinity."""
    bad = values.numel() - int(values.isfinite().sum())
    if bad:
        raise ValueError(f"{name}: {bad} values are NaN or infinite")


def check_least(owner: object, least: float, *names: str) -> None:
    """An object's attributes `names`: numbers of at least `least`."""
    for name in names:
        check_at_least(name, getattr(owner, name), least)


def settle(owner: object, check: Callable[[str, Any], Any], *names: str) -> None:
    """Put in place of an object's attributes `names`, frozen ones too, what `check(name, value)` returns."""
    for name in names:
        object.__setattr__(owner, name, check(name, getattr(owner, name)))


def from_fields(kind: type, values: Any) -> Any:
    """A dataclass `kind` of a dict of its fields. Raises ValueError naming unknown ones, and as `kind`."""
    check_kind("values", values, dict)
    known = [field.name for field in fields(kind)]
    if unknown := set(values) - {*known}:
        raise ValueError(f"{kind.__name__} has no field {sorted(map(str, unknown))}; it has {known}")
    return kind(**values)


def check_run(encoder: Any, batches: Any, often: bool = False, **functions: Any) -> None:
    """What runs an encoder: itself, its weights loaded, batches (see `check_batches`), and functions by the names of
    their parameters."""
    check_encoder(encoder)
    check_batches("batches", batches, often)
    for name, function in functions.items():
        check_callable(name, function)
    encoder.require_weights()


def check_models(**models: Any) -> None:
    """Models by the names of their parameters; `part` may be None."""
    for name, model in models.items():
        check_kind(name, model, nn.Module, *([None] if name == "part" else []))


def check_named(name: str, models: Any) -> None:
    """A mapping from names to models, at least one."""
    check_kind(name, models, Mapping)
    if not models:
        raise ValueError(f"{name}: there is none")
    check_models(**{f"{name}[{key!r}]": model for key, model in models.items()})


def check_encoder(encoder: Any) -> None:
    """What `lfpr.prunable(model)` gives."""
    from lfpr.encoder import PrunableEncoder

    check_kind("encoder", encoder, PrunableEncoder)


def check_masks(name: str, masks: Masks, encoder: PrunableEncoder) -> None:
    """Finite masks with a number for each head and neuron that the encoder has."""
    from lfpr.masks import Masks

    check_kind(name, masks, Masks)
    for part, widths in (("heads", encoder.heads_per_layer), ("neurons", encoder.neurons_per_layer)):
        values = getattr(masks, part)
        if [values.shape[1]] * len(values) != widths:
            expected = (len(widths), widths[0]) if len({*widths}) == 1 else f"{widths} in its layers"
            raise ValueError(f"{name}.{part}: shape {tuple(values.shape)}, but {encoder!r} has {expected}")
        check_finite(f"{name}.{part}", values)


@contextmanager
def no_empty_batches(encoder: PrunableEncoder) -> Iterator[None]:
    """While active, a call of the encoder with no samples or no tokens raises ValueError."""

    def look(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        x = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        if x is not None and not x.numel():
            raise ValueError("batches: one of them has no samples or no tokens")

    hook = encoder.layers[0].register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def check_constraint(constraint: Any) -> float:
    """A fraction of the full cost, in (0, 1]."""
    return check_number("constraint", constraint, "in (0, 1]", lambda value: 0 < value <= 1)


def check_percentile(percentile: Any) -> float:
    """A percentage to remove, in [0, 100)."""
    return check_number("percentile", percentile, "in [0, 100)", lambda value: 0 <= value < 100)


def check_widths(importance: Importance, multiple_of: Any, min_heads: Any, min_neurons: Any) -> tuple[int, int, int]:
    """Widths that the layers of `importance` [L, H] and [L, N] can have."""
    num_heads, num_neurons = importance.heads.shape[1], importance.neurons.shape[1]
    multiple_of = check_count("multiple_of", multiple_of, 1)
    if num_neurons % multiple_of:
        raise ValueError(f"multiple_of = {multiple_of}: must divide the {num_neurons} neurons of a layer")
    min_heads = check_count("min_heads", min_heads, 0, num_heads)
    return multiple_of, min_heads, check_count("min_neurons", min_neurons, 0, num_neurons)


def check_device(name: str, value: Any) -> torch.device:
    """A device that this machine has, by its name or as torch's own."""
    check_kind(name, value, str, int, torch.device)
    try:
        return torch.empty(0, device=value).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # of unknown names, of builds without it
        raise ValueError(f"{name} = {value!r}: must be a device of this machine, such as 'cpu' or 'cuda'") from error
