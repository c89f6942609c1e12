"""An experiment: the stages from importance to the retrained model, the same for every task.

Each stage is loaded from `runs/` if it was computed with the same parameters on the same inputs, else computed and
kept. `result` of a stage is a dict of numbers, `folder` holds its files. The steps themselves are calls of `lfpr`; the
notebooks show them one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lfpr.cost import LinearCost
from lfpr.encoder import PrunableEncoder
from lfpr.experiments.cell import Cell
from lfpr.experiments.methods import METHODS, Method, Pruned, given_file
from lfpr.experiments.runs import Run, Runs, Stage, checkpoint_of, file_hash
from lfpr.experiments.specs import ExperimentSpec
from lfpr.experiments.task import Task
from lfpr.files import write_json
from lfpr.gradients import MaskGradients, collect_gradients
from lfpr.masks import Importance, Masks
from lfpr.rearrange import rearrange
from lfpr.reconstruct import Refit, reconstruct
from lfpr.released import rescale as released_rescale
from lfpr.released.masks import mask_files
from lfpr.rescale import Rescaled, rescale
from lfpr.search import search, search_proportional, search_threshold
from lfpr.shrink import fold, shrink, verify_equivalent
from lfpr.steps import prune_in_steps
from lfpr.training.processes import with_helpers
from lfpr.training.retrain import TrainableMasks, retrain

if TYPE_CHECKING:
    from lfpr.experiments.studies import Rows

ATOL = 1e-3  # how far masked and shrunk model may differ


class Experiment:
    """The stages of a task; everything that differs between experiments is in `spec` and `task`."""

    def __init__(self, spec: ExperimentSpec, task: Task) -> None:
        self.spec, self.task = spec, task

    def __repr__(self) -> str:
        return f"{self.name} ({self.profile}): {self.encoder}"

    name = property(lambda self: self.spec.name)
    profile = property(lambda self: self.task.profile)
    settings = property(lambda self: self.task.settings)
    device = property(lambda self: self.task.device)

    @property
    def runs(self) -> Runs:
        """Where stages are kept."""
        return self.task.runs

    @property
    def model(self) -> nn.Module:
        """The unpruned model."""
        return self.task.model

    @property
    def part(self) -> nn.Module | None:
        """The submodule of `model` that is pruned; None if the model says so itself."""
        return self.task.part

    @property
    def encoder(self) -> PrunableEncoder:
        """What is pruned of the unpruned model."""
        return self.task.encoder

    @property
    def cost(self) -> LinearCost:
        """What a constraint counts."""
        return self.task.cost

    def with_settings(self, **settings: Any) -> Experiment:
        """The same experiment with other values of these settings of its profile."""
        return Experiment(self.spec, self.task.with_settings(**settings))

    # ---- cells

    def cell(self, cell: Cell | None = None) -> Cell:
        """The cell with the experiment's own way, and its profile's, where fields are None.

        Raises ValueError naming a field that this experiment has no such value of.
        """
        with_gradients = tuple(name for name, method in METHODS.items() if method.gradients)
        resolved = (cell or Cell()).resolved(self.spec, with_gradients)
        method = METHODS[resolved.method]
        resolved = method.complete(self, resolved)
        if resolved.steps > 1 and method.anew is None:
            able = [name for name, each in METHODS.items() if each.anew]
            raise ValueError(f"steps = {resolved.steps}: {resolved.method!r} scores nothing anew, as {able} do")
        own = {"num_samples": method.samples, "scoring": "scoring"} | ({} if method.masks else {"step": "step"})
        settings = {
            name: getattr(self.settings, setting, None)
            for name, setting in own.items()
            if getattr(resolved, name) is None
        }
        return replace(resolved, **settings)

    def sample_key(self, cell: Cell) -> dict[str, Any]:
        """What names the importance of a resolved cell by a method that looks at a sample."""
        return {"method": cell.method, "seed": cell.seed} | self.task.sampling(cell)

    @property
    def _writes_released(self) -> bool:
        return getattr(self.settings, "released_files", False)

    def _prune_key(self, cell: Cell) -> dict[str, Any]:
        key = cell.place | {"rearranged": cell.rearranged, "rescaled": cell.rescaled}
        if cell.masks is None:
            key |= self.task.sampling(cell)
        else:
            key |= {"masks": [file_hash(file) for file in mask_files(given_file(cell))]}
        if cell.heads_removed is not None:
            key |= {"heads_removed": cell.heads_removed}
        key |= {"released_files": True} if self._writes_released else {}
        if cell.method == "kprune":
            key |= {"kprune": asdict(self.settings.kprune)}
        if METHODS[cell.method].whole:
            key |= self.task.refitting
        if cell.reconstructed:
            key |= {"reconstructed": True, "steps": cell.steps} | self.task.refitting
        return key | (self.task.fitting if cell.rescaled is True else {}) | self.task.evaluation

    def _retrain_key(self, cell: Cell) -> dict[str, Any]:
        self.encoder.last(cell.last_layers or 0)  # there are as many
        amounts, settings = self.task.amounts(cell)
        profile = self.task.default_settings(self.spec, self.profile)
        own, batch = (getattr(each, "score_batch", None) for each in (profile, self.settings))
        amounts |= {} if batch == own else {"score_batch": batch}  # the key's batch is that of retraining
        return self._prune_key(cell) | amounts | {"trained": cell.trained, "rest": asdict(settings)}

    def check(self, cell: Cell | None = None) -> None:
        """Raises what stages of a cell would raise for its fields, or for settings that name files, before any work."""
        cell = self.cell(cell)
        _ = self._retrain_key(cell) if self.spec.ways else self._prune_key(cell)

    def _key(self, name: str, cell: Cell) -> dict[str, Any]:
        last = self._retrain_key if self.spec.ways else self._prune_key
        keys = {"prune": self._prune_key, "retrain": self._retrain_key, "speed": last}
        return keys[name](cell) | {"inputs": self.task.inputs}

    # ---- importance and masks

    def importance(self, cell: Cell | None = None) -> Importance:
        """Of all heads and neurons, by the cell's method."""
        cell = self.cell(cell)
        return self._searching(cell).importance(self, cell)

    def _searching(self, cell: Cell) -> Method:
        method = METHODS[cell.method]
        if method.masks or method.whole:
            gives = "masks and no importance: call searched(cell)" if method.masks else "a model: call pruned(cell)"
            raise ValueError(f"method = {cell.method!r}: gives {gives}")
        return method

    def collect(self, cell: Cell) -> MaskGradients:
        """The gradients of the method's objective with respect to the masks, over the cell's sample."""
        if (given := self.task.given(cell)) is not None:
            return given
        task, objective = self.task, self.task.objective(cell)
        batches, per_sample = task.batches(cell), task.per_sample(cell)
        return collect_gradients(self.encoder, batches, objective, per_sample, progress=cell.method)

    def gradients(self, cell: Cell | None = None) -> MaskGradients:
        """The mask gradients behind the importance of a method that has any.

        Where the experiment's own way does not need them they are computed anew and then kept: those of thousands of
        samples are large. Raises ValueError for a method without gradients.
        """
        cell = self.cell(cell)
        if not METHODS[cell.method].gradients:
            raise ValueError(f"method = {cell.method!r}: has no gradients to rearrange masks by")
        key, name = self.sample_key(cell), "gradients.safetensors"
        if self.spec.rearranged:
            self.importance(cell)
            stage = self.runs.load("importance", key | {"inputs": self.task.inputs})
        else:

            def build(folder) -> dict:
                self.collect(cell).save(folder / name)
                return self.task.sample_numbers(cell)

            stage = self.task.stage("gradients", key, build)
        return MaskGradients.load(stage.folder / name)

    def search(self, importance: Importance, cell: Cell | None = None) -> Masks:
        """Mask search: `lfpr.search` under the cell's constraint, `search_proportional` if the method's importance of
        heads and of neurons has no common scale, or `search_threshold` at its percentile."""
        cell = self.cell(cell)
        common_scale = self._searching(cell).common_scale
        if cell.percentile is not None:
            return search_threshold(importance, cell.percentile)
        find = search if common_scale else search_proportional
        return find(importance, self.cost, cell.constraint)

    def searched(self, cell: Cell | None = None) -> Masks:
        """The cell's masks after search and, if it says so, rearrangement, or those that its method gives; not
        rescaled."""
        cell = self.cell(cell)
        if give := METHODS[cell.method].masks:
            return give(self, cell)
        masks = self.search(self.importance(cell), cell)
        return rearrange(masks, self.gradients(cell)) if cell.rearranged else masks

    def rescaled(self, masks: Masks, cell: Cell | None = None, folder: Path | None = None) -> Masks:
        """`masks` with the values that the cell asks for: as they are, by least squares (`rescale`), or by the
        released one (`lfpr.released.rescale`), with the task's released teacher, on the importance's sample.

        folder: for intermediate results that do not fit in memory.
        """
        cell = self.cell(cell)
        if cell.rescaled == "released":
            task = self.task
            teacher = None if METHODS[cell.method].masks else task.released_teacher(cell)
            teacher = teacher and self.search(self.importance(cell), teacher)
            batches, options = task.released_calibration(cell), task.released_options
            return released_rescale(self.encoder, masks, batches, task.run, teacher, folder=folder, **options)
        return self.rescale(masks, cell.seed, folder=folder) if cell.rescaled else masks

    def rescale(self, masks: Masks, seed: int = 0, solver: Callable[..., Rescaled] = rescale, **options) -> Rescaled:
        """Mask values by least squares against the unpruned model, on unlabelled training data (`lfpr.rescale`, or
        another solver of the same signature)."""
        own = self.task.fit_options if solver is rescale else {}
        return solver(self.encoder, masks, self.task.calibration(seed), self.task.run, **own | options)

    def reconstruct(self, small: nn.Module, cell: Cell | None = None, **options: Any) -> tuple[Refit, ...]:
        """Refit the output projections of a pruned model, in place, to the unpruned one's (`lfpr.reconstruct`, whose
        `options` these are), on unlabelled training data."""
        batches = self.task.reconstruction(self.cell(cell).seed)
        return reconstruct(self.model, small, batches, self._run, self.part, **options)

    def _run(self, model: nn.Module, batch: Any) -> Any:
        return self.task.run(batch, model)

    def in_steps(self, cell: Cell, folder: Path | None = None) -> Pruned:
        """A cell's model, pruned in steps (`lfpr.prune_in_steps`)."""
        cell, task = self.cell(cell), self.task
        known = iter([self.importance(cell)])  # of the unpruned model

        def score(encoder: PrunableEncoder) -> Importance:
            return next(known, None) or METHODS[cell.method].anew(self, cell, encoder.module, encoder)

        def find(importance: Importance, cost: LinearCost, constraint: float) -> Masks:
            return self.search(importance, replace(cell, constraint=constraint))

        done = prune_in_steps(
            self.model,
            self.cost,
            cell.constraint,
            cell.steps,
            score,
            lambda: task.reconstruction(cell.seed),
            self._run,
            self.part,
            find,
            folder=folder,
        )
        batches = task.check_batches()
        gap = verify_equivalent(done.wide, done.masks, done.small, batches, task.forward, ATOL, done.part)
        return Pruned(done.small, done.masks, gap, tuple(row for report in done.reports for row in report))

    def pruned(self, cell: Cell | None = None, folder: Path | None = None) -> Pruned:
        """A cell's pruned model: search, rearrange, rescale (mask tuning, Kwon et al.), shrink, verify, reconstruct; or
        in steps, or by a method that does it all. What 03_prune shows.

        The small model equals the masked one before it is reconstructed, which is checked.
        """
        cell = self.cell(cell)
        if whole := METHODS[cell.method].whole:
            return whole(self, cell, folder)
        if cell.steps > 1:
            return self.in_steps(cell, folder)
        masks = self.rescaled(self.searched(cell), cell, folder)
        small = shrink(self.model, masks, self.part)
        gap = self.verify(masks, small)
        return Pruned(small, masks, gap, self.reconstruct(small, cell, folder=folder) if cell.reconstructed else ())

    def verify(self, masks: Masks, pruned: nn.Module) -> float:
        """The largest difference between masked and shrunk model on some validation data.

        Raises NotEquivalent if it is above 0.001.
        """
        batches = self.task.check_batches()
        return verify_equivalent(self.model, masks, pruned, batches, self.task.forward, ATOL, self.part)

    # ---- stages

    @contextmanager
    def stage(self, name: str, cell: Cell) -> Iterator[Run | None]:
        """Stage "prune" or "retrain" of a cell under way, ended by `finish`; None if `runs/` has it."""
        cell = self.cell(cell)
        with self.runs.begin(name, self._key(name, cell)) as run:
            if run:
                run.cell = cell
            yield run

    def finish(
        self,
        run: Run,
        model: nn.Module,
        masks: Masks,
        log: list[dict] | None = None,
        report: Sequence[Any] = (),
        **numbers: Any,
    ) -> None:
        """Save a pruned or retrained model with its masks and, of a training, its log; score it; keep the stage.

        Files: `masks.safetensors` (heads [L, H], neurons [L, N], zero where removed), the model in `model/`, `log.json`
        (loss, gradient norm and seconds of each iteration), `report.json` (of what was refitted) and what the task
        adds; with the setting `released_files`, also those that the released code would write for this cell. `seconds`
        of the result are those so far: without scoring.
        """
        numbers |= {"seconds": run.seconds}
        masks.save(run.folder / "masks.safetensors")
        if report:
            write_json(run.folder / "report.json", [asdict(row) for row in report])
        if log is not None:
            write_json(run.folder / "log.json", log)
            numbers |= {"iterations": len(log), "minutes": log[-1]["seconds"] / 60}
            numbers |= self.task.save_retrained(model, masks, run.folder)
        if self._writes_released:
            self.task.save_released(model, masks, run.cell, run.folder)
        run.finish(self.task.save(model, run.folder) | scale_range(masks) | numbers)

    def prune(self, cell: Cell | None = None) -> Stage:
        """`pruned`, saved and scored."""
        cell = self.cell(cell)
        with self.stage("prune", cell) as run:
            if run:
                model, masks, gap, report = self.pruned(cell, run.folder)
                self.finish(run, model, masks, report=report, largest_difference=gap)
        return self.runs.load("prune", self._key("prune", cell))

    def load(self, stage: Stage) -> nn.Module:
        """The model of a stage `prune` or `retrain`, on the device; of `baseline`, the unpruned one."""
        return self.task.load(stage)

    def training(self, student: nn.Module, cell: Cell | None = None) -> dict[str, Any]:
        """Arguments of `lfpr.retrain(student, ...)` for this cell; seeds torch's random numbers by the cell."""
        cell = self.cell(cell)
        torch.manual_seed(cell.seed)
        return self.task.training(student, cell)

    def retrain(self, cell: Cell | None = None) -> Stage:
        """Retrain the pruned model without labels, as 04_retrain shows; goes on after an interruption.

        Processes that were launched together share the batches. Raises ValueError, before any work, for a field out of
        range.
        """
        cell = self.cell(cell)
        key = self._key("retrain", cell)
        checkpoint = checkpoint_of(self.runs.path("retrain", key))

        def train() -> tuple[nn.Module, TrainableMasks, list[dict]]:
            student = self.load(self.prune(cell))
            training = self.training(student, cell)
            values, log = retrain(student, **training, checkpoint=checkpoint, fold=False)
            fold(training["encoder"], values)
            return student, values, log

        def main(call: Callable[[], None]) -> Stage:
            with self.stage("retrain", cell) as run:
                if run:
                    pruned = self.prune(cell)
                    self.task.teach(cell)
                    call()  # the processes that share the batches
                    student, values, log = train()
                    masks = values.spread(Masks.load(pruned.folder / "masks.safetensors"))
                    self.finish(run, student, masks, log, **self.amounts(cell))
            return self.runs.load("retrain", key)

        return with_helpers(main, train)

    def amounts(self, cell: Cell | None = None) -> dict[str, Any]:
        """How much retraining takes: `percent` of the training data, to a tenth, and `last_layers` trained wholly."""
        amounts, settings = self.task.amounts(self.cell(cell))
        return {"percent": round(amounts["percent"], 1), "last_layers": settings.last_layers}

    def baseline(self) -> Stage:
        """The unpruned model's scores."""
        return self.task.baseline()

    def teach(self, cell: Cell | None = None) -> Stage:
        """What retraining a cell learns from, made once: by the unpruned model, if nothing else has it."""
        return self.task.teach(self.cell(cell))

    def seconds(self, cell: Cell | None = None, retrained: bool = False) -> float:
        """Seconds that finished stages took to make a cell's pruned or retrained model: importance, pruning, its share
        of the teacher's work, retraining; scoring left out. NaN for stages of which this is not known."""
        cell = self.cell(cell)
        total = self.prune(cell).result.get("seconds", math.nan)
        if METHODS[cell.method].anew or cell.method == "activation":
            key = self.sample_key(cell) | {"inputs": self.task.inputs}
            total += self.runs.load("importance", key).provenance["seconds"]
        if retrained:
            taught = self.teach(cell).provenance["seconds"] * self.amounts(cell)["percent"] / 100
            total += taught + self.retrain(cell).result.get("seconds", math.nan)
        return total

    def stages(self, cell: Cell | None = None) -> dict[str, Stage]:
        """The stages of a cell's models: "unpruned", "pruned" and, of an experiment that retrains, "retrained"."""
        made = {"unpruned": self.baseline(), "pruned": self.prune(cell)}
        return made | ({"retrained": self.retrain(cell)} if self.spec.ways else {})

    def speed(self, cell: Cell | None = None) -> Stage:
        """Size and time of the models of `stages`, measured side by side here."""
        cell = self.cell(cell)

        def build(folder) -> dict:
            return self.task.compare({name: self.load(stage) for name, stage in self.stages(cell).items()})

        return self.runs.stage("speed", self._key("speed", cell), build)

    def downstream(self, pruned: Stage) -> dict[str, Stage]:
        """What else a pruned or retrained model is used for, measured: stages by name (see `DOWNSTREAM`)."""
        from lfpr.experiments.studies import DOWNSTREAM

        stages = {name: DOWNSTREAM[name](self, pruned) for name in self.spec.downstream}
        return {name: stage for name, stage in stages.items() if stage is not None}

    def study(self, name: str) -> Rows:
        """The rows of a study of this experiment (`spec.studies`; see `lfpr.experiments.studies`)."""
        from lfpr.experiments.studies import STUDIES

        if name not in self.spec.studies:
            raise ValueError(f"study = {name!r}: {self.name} has {list(self.spec.studies)}")
        return STUDIES[name](self)

    def scores(self, result: dict[str, Any]) -> dict[str, float]:
        """The scores in a stage's result by the names of their metrics, in 0 … 1."""
        return {label: result[column] for column, label in self.spec.metrics.items()}


def scale_range(masks: Masks) -> dict[str, float | None]:
    """The smallest and the largest mask value of what is kept; None if that is nothing."""
    kept = torch.cat([part[part != 0] for part in (masks.heads, masks.neurons)])
    return {f"scale_{name}": getattr(kept, name)().item() if len(kept) else None for name in ("min", "max")}
