"""A cell of the grid: everything that names one pruned model of an experiment, as one object.

A cell as a user writes it leaves most fields None, "the experiment's own"; `resolved` fills them in from the
experiment's spec. It is passed, hashed and printed as a whole.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from lfpr.experiments.kinds import check_count, check_fields, check_range
from lfpr.experiments.specs import ExperimentSpec

PLACE = ("method", "heuristic", "constraint", "percentile", "seed")
"""What places a cell on a curve; whatever else differs from the experiment's own way makes it a variant."""
SCORINGS = ("per-sample", "batched", "released")
RANGES = {
    "constraint": ("in (0, 1]", lambda share: 0 < share <= 1),
    "percentile": ("in [0, 100)", lambda percent: 0 <= percent < 100),
    "percent": ("in (0, 100]", lambda percent: 0 < percent <= 100),
    "scoring": (f"one of {list(SCORINGS)}", SCORINGS.__contains__),
}
"""Field -> what its value must be, and whether it is."""
COUNTS = {
    "seed": (0, 2**32 - 1),  # as NumPy's generators take them
    "num_samples": (1,),
    "step": (0,),
    "steps": (1,),
    "last_layers": (0,),
    "heads_removed": (1,),
}
"""Field -> its smallest value, and its largest."""


@dataclass(frozen=True)
class Cell:
    """One pruned model. Fields that are None are the experiment's own.

    method: how heads and neurons get their importance. constraint: share of the cost that is kept, in (0, 1], searched
    by the sum of importance; or percentile: percentage of heads and neurons removed, in [0, 100), the `threshold`
    search. seed: of the sample, of random scores, and of the order of retraining.

    rearranged, rescaled: Kwon et al.'s mask rearrangement and tuning; rescaled="released" is their own solver with the
    task's released teacher and samples, True is `lfpr.rescale`. reconstructed: instead of mask values, the output
    projections are refitted (`lfpr.reconstruct`); steps: in how many the budget is reached, each reconstructed and
    scored anew (`lfpr.prune_in_steps`). num_samples: samples behind the importance; scoring: a
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
    rescaled: bool | Literal["released"] | None = None
    reconstructed: bool | None = None
    steps: int | None = None
    num_samples: int | None = None
    scoring: str | None = None
    step: int | None = None
    percent: float | None = None
    last_layers: int | None = None
    trained: str | Literal[""] | None = None  # "": where nothing can be retrained
    heads_removed: int | None = None
    masks: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name, method in (("heads_removed", "sensitivity"), ("masks", "given")):
            if (value := getattr(self, name)) is not None and self.method not in (None, method):
                raise ValueError(f"{name} = {value!r}: is of method {method!r}, found method = {self.method!r}")
            if value is not None:
                object.__setattr__(self, "method", method)
        if self.constraint is not None and self.percentile is not None:
            raise ValueError(f"constraint = {self.constraint}, percentile = {self.percentile}: give one of them")
        for name, value in vars(self).items():
            if value is not None and name in RANGES:
                check_range(name, value, *RANGES[name])
            elif value is not None and name in COUNTS:
                check_count(name, value, *COUNTS[name])
        if self.reconstructed and self.rescaled:
            raise ValueError(f"rescaled = {self.rescaled!r}, reconstructed = True: give one of them")
        if (self.steps or 1) > 1 and (not self.reconstructed or self.rearranged or self.percentile is not None):
            raise ValueError(f"steps = {self.steps}: needs reconstructed = True, a constraint, and no rearranging")

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
            ("method", method, spec.methods + spec.controls + spec.direct + spec.whole),
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
            rearranged = spec.rearranged and method in with_gradients and (self.steps or 1) == 1
        constraint = self.constraint
        if constraint is None and self.percentile is None and not direct:
            constraint = spec.constraint
        rescaled = self.rescaled
        if rescaled is None:
            rescaled = spec.rescaled and not direct and not self.reconstructed and method not in spec.whole
        if method in spec.whole:
            self._check_whole(method)
        return replace(
            self,
            method=method,
            constraint=constraint,
            trained=trained,
            rearranged=rearranged,
            rescaled=rescaled,
            reconstructed=bool(self.reconstructed),
            steps=self.steps or 1,
        )

    def _check_whole(self, method: str) -> None:
        if self.percentile is not None:
            raise ValueError(f"percentile = {self.percentile}: method {method!r} prunes under a constraint")
        for name in ("rescaled", "reconstructed"):
            if getattr(self, name):
                raise ValueError(f"{name} = {getattr(self, name)!r}: method {method!r} refits its weights itself")

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
