"""What an experiment is made of: one model, its data, and what it is measured by. `Experiment` does the rest."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lfpr.cost import LinearCost
from lfpr.device import describe, find_device, running
from lfpr.encoder import PrunableEncoder, prunable
from lfpr.experiments.cell import Cell
from lfpr.experiments.runs import Runs, Stage
from lfpr.experiments.specs import ExperimentSpec
from lfpr.files import Located, missing
from lfpr.gradients import MaskGradients
from lfpr.masks import Masks
from lfpr.rescale import STEP_SIZES
from lfpr.save import load_pruned, save_pruned

Batch = Any


class Task(ABC):
    """A model and its data. Subclasses give what is abstract here; cells that they get are resolved.

    settings: amounts and sizes of the profile, a dataclass of `SETTINGS[profile]`; runs: where stages are kept;
    data_root, checkpoint: the user's files, or None for the mini profile's own. device: where the model is, and batches
    go; results do not depend on it but for rounding, so stages' names don't either.
    """

    SETTINGS: ClassVar[Mapping[str, Any]]
    """Profile -> settings."""
    rendered: ClassVar[bool] = False
    """Whether the data of the profile mini are made."""
    shared: ClassVar[tuple[str, ...]] = ()
    """Names of cached attributes that `with_settings` keeps, unless it changes a setting that they are `bound` to."""
    bound: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, spec: ExperimentSpec, profile: str, runs: Path, data_root, checkpoint, settings: Any, device: str = "auto"
    ) -> None:
        self.spec, self.profile, self.settings, self.device = spec, profile, settings, find_device(device)
        for kernels in (torch.backends.cuda.matmul, torch.backends.cudnn):  # float32 is float32: ranks depend on it
            kernels.allow_tf32 = False
        self.runs = Runs(runs, spec.name, profile, self.require_files, describe(self.device))
        self._origin = spec, profile, runs, data_root, checkpoint, device
        if profile == "mini" and data_root and self.rendered:
            raise ValueError(f"data_root = {data_root}: is of the profile 'full'; profile = 'mini' makes its own data")
        if profile == "full" and not Path(data_root).is_dir():
            raise FileNotFoundError(f"data_root = {data_root}: no such folder (see data/README.md)")
        self._set_up(runs, data_root, checkpoint)

    @classmethod
    def default_settings(cls, spec: ExperimentSpec, profile: str) -> Any:
        """The settings of a profile."""
        return cls.SETTINGS[profile]

    def with_settings(self, **settings: Any) -> Self:
        """The same task with other values of these settings; what does not depend on them is shared."""
        *origin, device = self._origin
        other = type(self)(*origin, replace(self.settings, **settings), device)
        shared = () if settings.keys() & set(self.bound) else self.shared
        other.__dict__ |= {name: self.__dict__[name] for name in shared if name in self.__dict__}
        return other

    @abstractmethod
    def _set_up(self, runs: Path, data_root, checkpoint) -> None:
        """Set `data_root` and `checkpoint`, which is found if it is None. Raises CheckpointError for one that is not
        there, naming all missing files if it was to be found; reads nothing."""

    def locate(self) -> list[Located]:
        """Everything that the experiment reads of the user's, and where it is; reads nothing itself."""
        return []

    def require_files(self) -> None:
        """Raises FileNotFoundError naming every required file of the user's that is missing. Comes before any stage
        that is computed with the profile full."""
        if text := self._missing():
            raise FileNotFoundError(f"{self.spec.name}, data_root = {self.data_root}: files are missing{text}")

    def _missing(self) -> str:
        """What is missing of the profile full, a line each; "" if nothing is."""
        lines = missing(self.locate()) if self.profile == "full" else []
        return "".join(f"\n{line}" for line in lines)

    # ---- the model

    @cached_property
    @abstractmethod
    def model(self) -> nn.Module:
        """The unpruned model, in evaluation mode, on the device."""

    @property
    def part(self) -> nn.Module | None:
        """The submodule of `model` that is pruned; None if the model says so itself."""
        return None

    @property
    def encoder(self) -> PrunableEncoder:
        """What of the unpruned model is pruned."""
        return prunable(self.model if self.part is None else self.part)

    @property
    @abstractmethod
    def cost(self) -> LinearCost:
        """What a constraint counts."""

    @abstractmethod
    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Of a pruned model: `parameters` of its layers, `fraction` of the cost kept, `heads` and `neurons` per
        layer."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Outputs that masked and shrunk model must agree in, to 0.001, on `check_batches`."""

    @abstractmethod
    def check_batches(self) -> Iterable[Batch]:
        """Some validation batches for `forward`."""

    # ---- what stages depend on

    @property
    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """What every stage depends on: hashes of files."""

    @abstractmethod
    def sampling(self, cell: Cell) -> dict[str, Any]:
        """What the importance of a cell depends on, beside its method and seed. Raises ValueError for a field that the
        task has no such value of."""

    @property
    def fitting(self) -> dict[str, Any]:
        """What mask values fitted by least squares depend on: how many samples (a setting), and the options."""
        return {"rescale_samples": self.settings.rescale_samples, "step_sizes": STEP_SIZES} | self.fit_options

    @property
    def evaluation(self) -> dict[str, Any]:
        """What scores depend on, if it is not among the inputs."""
        return self.inference

    @property
    def inference(self) -> dict[str, Any]:
        """The precision that models run in where no gradient is taken, unless it is that of their weights."""
        precision = getattr(self.settings, "eval_precision", "no")
        return {} if precision == "no" else {"eval_precision": precision}

    @property
    def loading(self) -> dict[str, Any]:
        """How loaders read: processes that do it, no more than there are cores, and whether into pinned memory."""
        workers = min(getattr(self.settings, "workers", 0), len(os.sched_getaffinity(0)))
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers' threads do not survive the fork
        return {"workers": workers, "pin_memory": self.device.type == "cuda"}

    def running(self) -> AbstractContextManager:
        """Within it models run in the precision of the settings; not for gradients."""
        return running(self.device, getattr(self.settings, "eval_precision", "no"))

    def stage(self, name: str, parameters: dict, build: Callable[[Path], dict]) -> Stage:
        """`Runs.stage` of this task's inputs."""
        return self.runs.stage(name, parameters | {"inputs": self.inputs}, build)

    # ---- importance and fitted masks

    @abstractmethod
    def batches(self, cell: Cell) -> Iterable[Batch]:
        """The training samples that give heads and neurons their importance; can be iterated again."""

    @abstractmethod
    def objective(self, cell: Cell, model: nn.Module | None = None) -> Callable[[Batch], Tensor]:
        """The function of a batch whose mask gradients are the importance by `cell.method`; a sum over the batch.

        Of `model`, a pruned copy, by default the unpruned one.
        """

    @abstractmethod
    def per_sample(self, cell: Cell) -> bool:
        """Whether there is a gradient per sample, or one per batch."""

    def sample_numbers(self, cell: Cell) -> dict[str, Any]:
        """Numbers about the sample, for the stage's result."""
        return {"samples": self.sampling(cell)["num_samples"]}

    def given(self, cell: Cell) -> MaskGradients | None:
        """The mask gradients behind the importance of a cell that the user has already; None: they are collected."""
        return None

    @abstractmethod
    def calibration(self, seed: int) -> Iterable[Batch]:
        """Unlabelled training samples that mask values are fitted on, for `run`."""

    @abstractmethod
    def run(self, batch: Batch, model: nn.Module | None = None) -> Any:
        """Run `model`, by default the unpruned one, on a batch of `calibration`, or of a method that looks at
        activations."""

    def predictions(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [rows, classes] of what a model says to a batch of `predicted`. Raises ValueError if it has no
        such form, as by default."""
        raise ValueError(
            f"{self.spec.name}: its model's predictions have no form that methods of their own answers need"
        )

    def reconstruction(self, seed: int) -> Iterable[Batch]:
        """Unlabelled training samples that output projections are refitted on, for `run`; `calibration` by default."""
        return self.calibration(seed)

    def predicted(self, seed: int) -> Iterable[Batch]:
        """The samples of `reconstruction` with what `predictions` needs."""
        return self.reconstruction(seed)

    @property
    def refitting(self) -> dict[str, Any]:
        """What refitted output projections depend on: how many samples (a setting), by default those of fitting."""
        return {"reconstruct_samples": getattr(self.settings, "reconstruct_samples", self.settings.rescale_samples)}

    @property
    def fit_options(self) -> dict[str, Any]:
        """Options of `lfpr.rescale`."""
        return {}

    def released_teacher(self, cell: Cell) -> Cell | None:
        """The cell whose masks, searched and not rearranged, are the teacher of released rescaling; None is the
        unpruned model. By default as Kwon et al. have it: at the square root of the share that is kept."""
        if cell.percentile is not None:
            kept = math.sqrt(1 - cell.percentile / 100)
            return replace(cell, percentile=100 * (1 - kept))
        return replace(cell, constraint=math.sqrt(cell.constraint))

    def released_calibration(self, cell: Cell) -> Iterable[Batch]:
        """The samples that released rescaling fits mask values on, for `run`."""
        return self.calibration(cell.seed)

    @property
    def released_options(self) -> dict[str, Any]:
        """Options of `lfpr.released.rescale`: its last FFN is not fitted on a first token alone, which classifies."""
        return {"first_token": False}

    # ---- retraining

    @abstractmethod
    def teach(self, cell: Cell) -> Stage:
        """What retraining a cell learns from, made once: by the unpruned model, if nothing else has it."""

    @abstractmethod
    def amounts(self, cell: Cell) -> tuple[dict[str, Any], Any]:
        """How much retraining takes, `percent` and what else names it, and its `ReSt` settings."""

    @abstractmethod
    def training(self, student: nn.Module, cell: Cell) -> dict[str, Any]:
        """Arguments of `lfpr.retrain(student, ...)`: encoder, heads, batches, loss, settings and options."""

    def load(self, stage: Stage) -> nn.Module:
        """The model of a stage "prune" or "retrain", on the device; of "baseline", the unpruned one."""
        if stage.folder.parent.name == "baseline":
            return self.model
        return load_pruned(stage.folder / "model", self.device)

    # ---- scores

    unscored: str | None = None
    """Why nothing can be scored: scores are then NaN. None if all can."""

    @abstractmethod
    def baseline(self) -> Stage:
        """The unpruned model's scores."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Scores of a model on the validation data, in 0 … 1, by the columns of `spec.metrics`; `questions`: of how
        many samples."""

    def measure(self, model: nn.Module, folder: Path) -> dict[str, Any]:
        """`evaluate`, and in `folder`, its stage's, what the scores are of, if the task keeps that; by default not."""
        return self.evaluate(model)

    def save(self, model: nn.Module, folder: Path) -> dict[str, Any]:
        """Save a pruned model in `folder/model`; its size and scores."""
        save_pruned(model.eval(), folder / "model")
        return self.describe(model) | self.measure(model, folder)

    def save_retrained(self, model: nn.Module, masks: Masks, folder: Path) -> dict[str, Any]:
        """Save in `folder` what only a retrained model has, beside `save`; numbers about it. Nothing by default."""
        return {}

    def save_released(self, model: nn.Module, masks: Masks, cell: Cell, folder: Path) -> None:
        """Write what the released code writes for a cell's pruned or retrained model, mask values folded in, below
        `folder`, its stage's. Raises ValueError if there is no such code."""
        raise ValueError(f"released_files = True: there are no files of {self.spec.name} that others would read")

    def save_released_scores(self, gradients: MaskGradients, cell: Cell, folder: Path) -> list[Path]:
        """As `save_released`, the gradients behind an importance, if the released code keeps them: its files."""
        return []

    def submit(self, model: nn.Module, path: str | Path) -> list[Path]:
        """Write a model's answers to the test split into files to upload, `path` first. Raises as `require_test`."""
        self.require_test()
        raise NotImplementedError

    def require_test(self) -> None:
        """Raises ValueError for an experiment without a test split, as by default, and FileNotFoundError for a file of
        it that is missing. Comes before any stage whose model is to answer it."""
        raise ValueError(f"{self.spec.name}: has no test split whose answers could be submitted")

    @abstractmethod
    def compare(self, models: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
        """Size and speed of models side by side: parameters, macs, megabytes, ms_per_… of one validation batch."""
