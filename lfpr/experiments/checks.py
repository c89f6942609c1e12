"""The words that parameters may take."""

HEURISTICS = ("sum", "threshold")


def choose(name: str, value: object, allowed) -> None:
    """Raise `ValueError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: must be one of {list(allowed)}")
