"""A cell of the grid: everything that names one pruned model of an experiment, as one object.

A cell as a user writes it leaves most fields None, "the experiment's own"; `resolved` fills them in from the
experiment's spec. It is passed, hashed and printed as a whole.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from lfpr.experiments.specs import ExperimentSpec

PLACE = ("method", "heuristic", "constraint", "percentile", "seed")
"""What places a cell on a curve; whatever else differs from the experiment's own way makes it a variant."""
SCORINGS = ("per-sample", "batched", "released")


@dataclass(frozen=True)
class Cell:
    """One pruned model. Fields that are None are the experiment's own.

    method: how heads and neurons get their importance. constraint: share of the cost that is kept, in (0, 1], searched
    by the sum of importance; or percentile: percentage of heads and neurons removed, in [0, 100), the `threshold`
    search. seed: of the sample, of random scores, and of the order of retraining.

    rearranged, rescaled: Kwon et al.'s mask rearrangement and tuning; rescaled="released" is their own solver with the
    task's released teacher and samples, True is `lfpr.rescale`. num_samples: samples behind the importance; scoring: a
    gradient "per-sample", one per batch ("batched"), or as the task's released code has it ("released": TAP batches of
    8 with dropout, CLIP batches of 32 of its draw). percent: of the training data that retraining takes; last_layers:
    trained wholly; trained: which parts are.

    Some methods give masks, without a search: "sensitivity" by heads_removed, or by step, 1 … layers (for other
    methods, step is TAP's decoding step of the label-free objective); "given" reads `masks`, files as the released code
    writes them, and is the method if there are any. They have no constraint.

    Raises ValueError naming the field, its value and what is allowed.
    """

    method: str | None = None
    constraint: float | None = None
    percentile: float | None = None
    seed: int = 0
    rearranged: bool | None = None
    rescaled: bool | str | None = None
    num_samples: int | None = None
    scoring: str | None = None
    step: int | None = None
    percent: float | None = None
    last_layers: int | None = None
    trained: str | None = None
    heads_removed: int | None = None
    masks: str | None = None

    def __post_init__(self) -> None:
        for name, method in (("heads_removed", "sensitivity"), ("masks", "given")):
            if (value := getattr(self, name)) is not None and self.method not in (None, method):
                raise ValueError(f"{name} = {value!r}: is of method {method!r}, found method = {self.method!r}")
            if value is not None:
                object.__setattr__(self, "method", method)
        if self.constraint is not None and self.percentile is not None:
            raise ValueError(f"constraint = {self.constraint}, percentile = {self.percentile}: give one of them")
        self._number("constraint", "in (0, 1]", lambda value: 0 < value <= 1)
        self._number("percentile", "in [0, 100)", lambda value: 0 <= value < 100)
        self._number("percent", "in (0, 100]", lambda value: 0 < value <= 100)
        least_of = {"seed": 0, "num_samples": 1, "step": 0, "last_layers": 0, "heads_removed": 1}
        for name, least in least_of.items():
            self._number(name, f"a whole number of at least {least}", lambda v, n=least: v >= n and v == int(v))
            if getattr(self, name) is not None:
                object.__setattr__(self, name, int(getattr(self, name)))  # 22.0 is another cell than 22, and no index
        if not isinstance(self.rearranged, bool | None):
            raise ValueError(f"rearranged = {self.rearranged!r}: must be True, False or None")
        if not isinstance(self.rescaled, bool | None) and self.rescaled != "released":
            raise ValueError(f"rescaled = {self.rescaled!r}: must be True, False, 'released' or None")
        for name, kind in (("method", "a name"), ("trained", "a name"), ("masks", "a path")):
            if not isinstance(getattr(self, name), str | None):
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be {kind}")
        if self.scoring not in (None, *SCORINGS):
            raise ValueError(f"scoring = {self.scoring!r}: must be one of {list(SCORINGS)}")

    def _number(self, name: str, allowed: str, fits) -> None:
        value = getattr(self, name)
        if value is None and name != "seed":
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not fits(value):
            raise ValueError(f"{name} = {value!r}: must be {allowed}")

    @property
    def heuristic(self) -> str:
        """The search: "threshold" by a percentile, "none" where masks are not searched, otherwise "sum"."""
        if self.heads_removed is not None or self.masks is not None:
            return "none"
        return "sum" if self.percentile is None else "threshold"

    @property
    def place(self) -> dict[str, Any]:
        """The values of `PLACE`, columns of the tidy tables."""
        return {name: getattr(self, name) for name in PLACE}

    @property
    def options(self) -> dict[str, Any]:
        """What is not the experiment's own, beside `place`."""
        return {name: value for name, value in asdict(self).items() if name not in PLACE and value is not None}

    @property
    def variant(self) -> str:
        """ "" for the experiment's own way, else what differs, such as "num_samples=100"."""
        return ", ".join(f"{name}={value}" for name, value in sorted(self.options.items()))

    @property
    def name(self) -> str:
        """For file names: such as "label-free-0.4-seed0" or "fisher-0.8-seed0-rescaled=True"."""
        budget = f"p{self.percentile:g}" if self.constraint is None and self.percentile is not None else self.constraint
        options = self.options
        if self.masks is not None:
            options |= {"masks": "_".join(Path(self.masks.strip("/")).parts[-4:])}
        parts = [self.method or "own", *([budget] if self.heuristic != "none" else []), f"seed{self.seed}"]
        return "-".join(map(str, parts + [f"{name}={value}" for name, value in sorted(options.items())]))

    @property
    def parameters(self) -> dict[str, Any]:
        """What was set, by field: the parameters of the notebook that runs this cell."""
        unset = Cell()
        return {name: value for name, value in asdict(self).items() if value != getattr(unset, name)}

    def resolved(self, spec: ExperimentSpec, with_gradients: tuple[str, ...]) -> Self:
        """The cell with the experiment's own way where fields are None (but for settings of its profile).

        `with_gradients`: methods whose masks can be rearranged. Raises ValueError for a method or a way of retraining
        that the experiment does not have, if masks are to be rearranged by a method without gradients, or if what a
        method that gives masks (`spec.direct`) needs is missing, or more is asked of it.
        """
        method = spec.method if self.method is None else self.method
        trained = spec.trained if self.trained is None else self.trained
        for name, value, allowed in (
            ("method", method, spec.methods + spec.controls + spec.direct),
            ("trained", trained, spec.ways or ("",)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} = {value!r}: must be one of {list(allowed)}")
        if self.rearranged and method not in with_gradients:
            raise ValueError(f"rearranged = True: method {method!r} has no gradients, as {with_gradients} have")
        direct = method in spec.direct
        if direct:
            self._check_direct(method)
        rearranged = self.rearranged
        if rearranged is None:
            rearranged = spec.rearranged and method in with_gradients
        constraint = self.constraint
        if constraint is None and self.percentile is None and not direct:
            constraint = spec.constraint
        rescaled = self.rescaled
        if rescaled is None:
            rescaled = spec.rescaled and not direct
        return replace(
            self, method=method, constraint=constraint, trained=trained, rearranged=rearranged, rescaled=rescaled
        )

    def _check_direct(self, method: str) -> None:
        for name in ("constraint", "percentile"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} = {getattr(self, name)}: method {method!r} gives masks, there is no search")
        if method == "given" and self.masks is None:
            raise ValueError("masks = None: method 'given' needs a folder or file of masks")
        if method == "given" and self.rescaled:
            raise ValueError(f"rescaled = {self.rescaled!r}: method 'given' takes masks as they are")
        if method == "sensitivity" and (self.heads_removed is None) == (self.step is None):
            raise ValueError(
                f"heads_removed = {self.heads_removed}, step = {self.step}: method 'sensitivity' needs one of them"
            )


CELL_FIELDS = tuple(field.name for field in fields(Cell))
