"""What callers may ask for: constraints, percentiles, widths and other choices, checked before any work."""

from __future__ import annotations

from collections.abc import Collection

from lfpr.masks import Importance


class BudgetError(ValueError):
    """A constraint that no mask can meet; `smallest` is the smallest reachable fraction."""

    def __init__(self, constraint: float, smallest: float, unit: str) -> None:
        super().__init__(
            f"constraint = {constraint}: cannot be reached, {smallest:.6f} of the {unit} remain "
            "when all heads and neurons that may go are removed"
        )
        self.constraint, self.smallest = constraint, smallest


def check_choice(name: str, value: object, allowed: Collection) -> None:
    """Raise `ValueError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: must be one of {list(allowed)}")


def check_least(owner: object, least: float, *names: str) -> None:
    """Raise `ValueError` for the first of an object's attributes `names` that is not at least `least`."""
    for name in names:
        if not getattr(owner, name) >= least:
            raise ValueError(f"{name} = {getattr(owner, name)}: must be at least {least}")


def check_constraint(constraint: float) -> None:
    """Raise `ValueError` unless the constraint, a fraction of the full cost, is in (0, 1]."""
    if not 0 < constraint <= 1:
        raise ValueError(f"constraint = {constraint}: must be in (0, 1]")


def check_percentile(percentile: float) -> None:
    """Raise `ValueError` unless the percentage to remove is in [0, 100)."""
    if not 0 <= percentile < 100:
        raise ValueError(f"percentile = {percentile}: must be in [0, 100)")


def check_widths(importance: Importance, multiple_of: int, min_heads: int, min_neurons: int) -> None:
    """Raise `ValueError` for widths that the layers of `importance` [L, H] and [L, N] cannot have."""
    num_heads, num_neurons = importance.heads.shape[1], importance.neurons.shape[1]
    if multiple_of < 1 or num_neurons % multiple_of:
        raise ValueError(f"multiple_of = {multiple_of}: must divide the {num_neurons} neurons of a layer")
    for name, value, most in (("min_heads", min_heads, num_heads), ("min_neurons", min_neurons, num_neurons)):
        if not 0 <= value <= most:
            raise ValueError(f"{name} = {value}: must be from 0 to {most}")
