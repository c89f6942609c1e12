"""Runs a grid: each cell's notebooks, and those about its experiment, by papermill with one warm kernel.

    python -m lfpr grid --grid workflow/grid.yaml:default --experiment tap-textvqa [--job 0]

runs an experiment's notebooks, all of them or one job's share, into `runs/notebooks/GRID/EXPERIMENT/`. A notebook that
fails keeps its traceback there and stops no other. One that is there, whole, from the same source, parameters and input
files, is not run again.

    python -m lfpr plan --grid workflow/grid.yaml:default

says what would be run, and about how long it takes by what `runs/` knows of earlier runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from statistics import mean
from typing import Any

import psutil

from lfpr.experiments.grid import NOTEBOOKS, STAGES, cells, inputs, load_grid, share, sources
from lfpr.experiments.kinds import check_count, check_range
from lfpr.experiments.parameters import check_parameters, find_notebook, nearest, project, source_hash
from lfpr.experiments.runs import file_hash, fingerprint, finished_stages, read_provenance
from lfpr.files import checkout, existing, saving, write_json

FIRST = "01_data"
STUDYING = "05_evaluate"
"""The notebook that makes the studies of a plan."""
STAGE_OF = {"03_prune": "prune", "04_retrain": "retrain"}
"""Notebook of a cell -> the stage in `runs/` that it makes."""
AT_ONCE = "LFPR_JOBS_AT_ONCE"
"""The environment's variable by which the workflow says that all of a grid is run, and how many jobs at once."""
CLEAR = "\r\x1b[K"
"""To a terminal: the line starts anew."""


@dataclass(frozen=True)
class Step:
    """A notebook of the grid to be run with these parameters into `output`."""

    notebook: Path
    parameters: dict[str, Any]
    output: Path

    @property
    def name(self) -> str:
        return self.output.stem


@dataclass(frozen=True)
class Grid:
    """The plans of grid `name`, and the folders that it reads from and writes to."""

    name: str
    plans: dict[str, dict]
    runs: Path
    notebooks: Path | None = None
    data: str = ""
    device: str = ""

    def steps(self, experiment: str, job: int | None = None) -> list[Step]:
        """What a job of an experiment runs, or all jobs together: the data, prune its cells, retrain them, the rest.

        Job 0 takes its first cell to the end before it prunes the others: what all retraining learns from is then there
        when the other jobs get to it. Raises ValueError for parameters that a notebook does not have.
        """
        plan = self.plans[experiment]
        chosen = cells(plan) if job is None else share(plan, job)
        pairs = [(stage, each.cell) for stage in STAGES for each in chosen if stage in each.stages]
        if not job:
            first = next((cell for stage, cell in pairs if stage == "retrained"), None)
            pairs.sort(key=lambda pair: pair[1] is not first)
        steps = [self._step(experiment, NOTEBOOKS[stage], cell.parameters, cell.name) for stage, cell in pairs]
        if not job:
            steps.insert(0, self._step(experiment, FIRST, {}))
            steps += [self._step(experiment, name, values, label) for name, values, label in others(plan)]
        return steps

    def _step(self, experiment: str, name: str, parameters: dict[str, Any], label: str = "") -> Step:
        plan = self.plans[experiment]
        notebook = find_notebook(name, self.notebooks)
        shared = {"experiment": experiment, "profile": plan["profile"]}
        shared |= {} if self.runs == default_runs() else {"runs": str(self.runs)}
        shared |= {"settings": plan["settings"]} if "settings" in plan else {}
        shared |= {"device": self.device} if self.device else {}
        parameters = shared | inputs(plan, self.data) | parameters
        check_parameters(notebook, parameters)
        folder = self.runs / "notebooks" / self.name / experiment
        label = label.replace(os.sep, "_")  # of a file, such as that of a submission
        return Step(notebook, parameters, folder / f"{name}{'-' if label else ''}{label}.ipynb")

    def every_step(self) -> list[Step]:
        """The steps of all experiments."""
        return [step for experiment in self.plans for step in self.steps(experiment)]

    def asked(self, step: Step) -> str:
        """Identifies source and parameters of a step: of `made_of` what takes no reading of large files."""
        parameters = {name: value for name, value in step.parameters.items() if name != "device"}
        return fingerprint([_source_hash(step.notebook), parameters])

    def made_of(self, step: Step) -> str:
        """Identifies what an executed notebook was made of: source, parameters and input files, wherever it ran."""
        experiment = step.parameters["experiment"]
        files = sources(experiment, self.plans[experiment], self.data)
        parameters = {name: value for name, value in step.parameters.items() if name != "device"}
        return fingerprint([_source_hash(step.notebook), parameters, [_input_hash(file) for file in files]])

    def there(self, step: Step) -> bool:
        """Whether the step was run, to the end and without error, from what is there now."""
        metadata = read_metadata(step.output)
        return is_complete(metadata) and metadata["lfpr"]["made_of"] == self.made_of(step)

    def seems_there(self, step: Step) -> bool:
        """As `there`, but for input files that changed: cheap enough to ask of every step, again and again."""
        metadata = read_metadata(step.output)
        return is_complete(metadata) and metadata["lfpr"].get("asked") in (None, self.asked(step))


def others(plan: dict) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The notebooks beside those of cells that a plan lists: name, parameters, and what tells its output from others.

    An entry of `notebooks` is a name, or maps one to parameters; `studies` are those of `STUDYING`.
    """
    for entry in plan.get("notebooks", []):
        for name, values in entry.items() if isinstance(entry, dict) else [(entry, {})]:
            studies = {"studies": plan["studies"]} if name == STUDYING and "studies" in plan else {}
            yield name, studies | values, "-".join(f"{key}={value}" for key, value in values.items())


_source_hash = cache(source_hash)


@cache
def _input_hash(file: str) -> str:
    return file_hash(existing(file, "an input of the experiment"))


def read_metadata(notebook: Path) -> dict[str, Any]:
    """The metadata of an executed notebook; empty if there is none, or it was being written when its job ended."""
    try:
        status = notebook.stat()
        return _read_metadata(notebook, status.st_mtime_ns, status.st_size)
    except (FileNotFoundError, ValueError):
        return {}


@lru_cache(4096)
def _read_metadata(notebook: Path, *version: int) -> dict[str, Any]:
    return json.loads(notebook.read_text(encoding="utf-8"))["metadata"]


def is_complete(metadata: dict[str, Any]) -> bool:
    """Whether a notebook with this metadata ran to its end, in a grid."""
    return metadata.get("lfpr", {}).get("complete", False) and "made_of" in metadata["lfpr"]


@dataclass
class Outcome:
    """What became of the steps of a job: names that `ran` or were `there`, and outputs that `failed` with their
    errors' last lines."""

    ran: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


def run(grid: Grid, steps: Sequence[Step], title: str, max_memory_mb: float = 1500, jobs_at_once: int = 0) -> Outcome:
    """Run the steps that are not there yet, one after the other in one kernel, and show how far they are; with
    `jobs_at_once`, how far all of the grid is, of which other processes run the rest."""
    from lfpr.experiments.kernel import WarmKernel  # brings in papermill, which a plan does without

    tally = Tally(grid, grid.every_step() if jobs_at_once else steps, max(jobs_at_once, 1))
    outcome, bar = Outcome(), _Progress(title, tally)
    with WarmKernel(max_memory_mb) as kernel, bar:
        for step in steps:
            if grid.there(step):
                outcome.there.append(step.name)
                continue
            bar.start(step.name)
            started, error = time.perf_counter(), ""
            try:
                about = {"made_of": grid.made_of(step), "asked": grid.asked(step)}
                with saving(step.output):
                    kernel.execute(step.notebook, step.output, step.parameters, cwd=step.notebook.parent, about=about)
                outcome.ran.append(step.name)
            except Exception as caught:  # of the notebook, or of its kernel: the others are run all the same
                error = outcome.failed[step.output] = last_line(caught)
            bar.done(f"{step.name} {time.perf_counter() - started:.1f} s" + (f" FAILED: {error}" if error else ""))
    return outcome


def last_line(error: Exception) -> str:
    """The last line of an error, in a notebook or not: its class and what it says."""
    name = getattr(error, "ename", type(error).__name__)
    lines = str(getattr(error, "evalue", error)).strip().splitlines()
    return f"{name}: {lines[-1]}" if lines else name


class Tally:
    """How far these steps are, whoever runs them: "118/300, about 12 minutes left", by the notebooks that are there.

    The time is what `Durations` expects of the others, shared by so many jobs at once; steps of which nothing is known
    count as the mean of those that are.
    """

    def __init__(self, grid: Grid, steps: Sequence[Step], jobs_at_once: int = 1) -> None:
        durations = Durations(grid.runs)
        expected = [durations.expected(step) for step in steps]
        usual = [seconds for seconds in expected if seconds is not None]
        self.grid, self.jobs_at_once = grid, jobs_at_once
        self.steps = [
            (step, mean(usual) if usual and s is None else s) for step, s in zip(steps, expected, strict=True)
        ]

    def __str__(self) -> str:
        left = [seconds for step, seconds in self.steps if not self.grid.seems_there(step)]
        text = f"{len(self.steps) - len(left)}/{len(self.steps)}"
        if left and None not in left:
            minutes = math.ceil(sum(left) / 60 / self.jobs_at_once)
            text += f", about {minutes} minute{'s' * (minutes > 1)} left"
        return text


class _Progress:
    """One line in a terminal, which several jobs may write over; in a log, a line for each notebook that was run."""

    def __init__(self, title: str, tally: Tally) -> None:
        self.title, self.tally, self.terminal = title, tally, sys.stdout.isatty()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self.terminal:
            print(CLEAR, end="", flush=True)

    def start(self, name: str) -> None:
        if self.terminal:
            line = f"{self.tally}: {self.title} {name} …"
            print(CLEAR + line[: shutil.get_terminal_size().columns - 1], end="", flush=True)

    def done(self, line: str) -> None:
        if not self.terminal:
            print(f"{self.tally}: {self.title} {line}", flush=True)
        elif "FAILED" in line:
            print(f"{CLEAR}{self.title} {line}", flush=True)


def failures(folder: Path) -> Iterator[tuple[Path, str]]:
    """The executed notebooks below `folder` that failed, each with its error's last line."""
    for path in sorted(folder.rglob("*.ipynb")):
        if read_metadata(path).get("papermill", {}).get("exception"):
            outputs = [o for cell in json.loads(path.read_text())["cells"] for o in cell.get("outputs", [])]
            errors = [
                f"{output['ename']}: {output['evalue']}" for output in outputs if output["output_type"] == "error"
            ]
            yield path, errors[-1].strip().splitlines()[-1] if errors else "stopped"


# ---- what is known of earlier runs


class Durations:
    """Seconds that notebooks took, from those below `runs` that were run to the end, and from the stages there.

    A notebook that found its stage is quicker than one that made it, so the longer of both counts. Where `runs` knows
    nothing of the like, the committed minutes of stages do.
    """

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.notebooks: dict[tuple[str, str, str], list[tuple[str, float]]] = {}
        for path in sorted(runs.glob("notebooks/*/*/*.ipynb")):
            metadata = read_metadata(path)
            if is_complete(metadata):
                papermill = metadata["papermill"]
                key = (path.parent.name, papermill["parameters"]["profile"], path.stem.split("-")[0])
                self.notebooks.setdefault(key, []).append((path.stem, papermill["duration"]))

    def expected(self, step: Step) -> float | None:
        """The seconds of a step: as it took before, else the mean of its like; None if nothing is known of them."""
        place = step.parameters["experiment"], step.parameters["profile"]
        known = self.notebooks.get((*place, step.notebook.stem), [])
        same = [seconds for name, seconds in known if name == step.name]
        stage = STAGE_OF.get(step.notebook.stem, "")
        stages = self._stage_seconds(*place, stage)
        means = [max(same) if same else mean(s for _, s in known)] if known else []
        return max(means + ([mean(stages)] if stages else []), default=committed_seconds().get((*place, stage)))

    @cache  # noqa: B019 - one object a process
    def _stage_seconds(self, experiment: str, profile: str, stage: str) -> list[float]:
        folders = finished_stages(self.runs, f"{experiment}/{profile}/{stage}/*") if stage else ()
        return [read_provenance(folder)["seconds"] for folder in folders]


@cache
def committed_seconds() -> dict[tuple[str, str, str], float]:
    """Seconds of a stage by experiment, profile and stage, from the checkout's `paper_figures/minutes.csv`, if any."""
    table = (checkout() or Path()) / "paper_figures" / "minutes.csv"
    if not table.is_file():
        return {}
    with table.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {
        (row["experiment"], row["profile"], row["stage"]): 60 * float(row["minutes"]) / float(row["runs"])
        for row in rows
    }


def plan_lines(grid: Grid, cores: int) -> Iterator[str]:
    """What the grid would run, as the lines of a table, and about how long that takes on `cores` cores."""
    durations = Durations(grid.runs)
    yield f"{'experiment':14} {'notebook':14} {'to run':>7} {'there':>6} {'minutes':>8}"
    total, unknown, todo = 0.0, [], 0
    for experiment in grid.plans:
        by_notebook: dict[str, list[Step]] = {}
        for step in sorted(grid.steps(experiment), key=lambda step: step.notebook.stem):
            by_notebook.setdefault(step.notebook.stem, []).append(step)
        for name, steps in by_notebook.items():
            missing = [step for step in steps if not grid.there(step)]
            seconds = [durations.expected(step) for step in missing]
            known = None not in seconds
            minutes = f"{sum(seconds) / 60:.1f}" if known else "unknown"
            yield f"{experiment:14} {name:14} {len(missing):7} {len(steps) - len(missing):6} {minutes:>8}"
            total += sum(second or 0 for second in seconds) / 60
            todo += len(missing)
            unknown += [] if known else [f"{experiment} {name}"]
    yield f"{todo} notebooks to run, about {total / cores:.0f} minutes on {cores} cores" + (
        f", and those that were not run before: unknown ({len(unknown)} kinds)" if unknown else ""
    )


# ---- command lines


def default_runs() -> Path:
    """Where everything that is computed goes, unless said otherwise."""
    return project() / "runs"


def options(description: str) -> argparse.ArgumentParser:
    """The options that commands about a grid share."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--grid", default="default", help="FILE.yaml:NAME, or NAME of workflow/grid.yaml")
    parser.add_argument("--runs", type=Path, help="folder of what is computed; runs/ of the checkout by default")
    parser.add_argument("--notebooks", type=Path, help="folder of the notebooks; notebooks/ of the checkout by default")
    parser.add_argument("--data", default="", help="folder of the user's own files, for the profile full")
    parser.add_argument("--device", default="", help="auto, cpu, cuda, cuda:1; by default a GPU if there is one")
    return parser


def open_grid(arguments: argparse.Namespace) -> Grid:
    """The grid of these `options`; relative paths are the shell's."""
    source = arguments.grid if ":" in arguments.grid else f"{project() / 'workflow' / 'grid.yaml'}:{arguments.grid}"
    return Grid(
        source.rpartition(":")[2],
        load_grid(source),
        arguments.runs.resolve() if arguments.runs else default_runs(),
        arguments.notebooks.resolve() if arguments.notebooks else None,
        str(Path(arguments.data).absolute()) if arguments.data else "",
        arguments.device,
    )


def main() -> int:
    """`python -m lfpr grid`: 0 if all notebooks are there in the end, 1 if some failed. Raises ValueError or
    FileNotFoundError, before any runs, for options, a plan or files that are not as they should be."""
    parser = options("Run an experiment's share of a grid, each cell as notebooks.")
    parser.add_argument("--experiment", required=True, help="one of the grid's experiments")
    parser.add_argument("--job", type=int, help="which share of the cells; all by default")
    parser.add_argument("--stamp", type=Path, help="file to write at the end, if nothing failed")
    keep = max(1500, psutil.virtual_memory().total / 2**24)  # a sixteenth: models of real files, a GPU's own libraries
    parser.add_argument("--max-memory-mb", type=float, default=keep, help="what a kernel may keep between notebooks")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the kernel is ended
    experiment, job = arguments.experiment, arguments.job
    check_range("max_memory_mb", arguments.max_memory_mb, "above 0", lambda size: size > 0)
    grid = open_grid(arguments)
    if experiment not in grid.plans:
        raise ValueError(
            f"experiment = {experiment!r}: {nearest(experiment, grid.plans)}the grid has {list(grid.plans)}"
        )
    steps = grid.steps(experiment, job)
    if grid.device:
        from lfpr.device import find_device  # brings in torch

        find_device(grid.device)
    sources(experiment, grid.plans[experiment], grid.data)  # says at once which of the user's files are missing
    title = experiment if job is None else f"{experiment} (job {job})"
    outcome = run(grid, steps, title, arguments.max_memory_mb, int(os.environ.get(AT_ONCE, 0)))
    counts = f"{len(outcome.ran)} notebooks ran, {len(outcome.there)} were there, {len(outcome.failed)} failed"
    print(f"{title}: {counts}; {sum(os.times()[:4]):.0f} CPU-seconds", flush=True)
    for path, error in outcome.failed.items():
        print(f"failed: {path}: {error}", flush=True)
    if arguments.stamp and not outcome.failed:
        write_json(arguments.stamp, {"notebooks": sorted(outcome.ran + outcome.there)})
    return 1 if outcome.failed else 0


def plan_main() -> int:
    """`python -m lfpr plan`. Raises ValueError or FileNotFoundError for options that are not as they should be."""
    parser = options("Say what a grid would run, and about how long that takes.")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="how many jobs run at once")
    arguments = parser.parse_args()
    check_count("cores", arguments.cores, 1)
    print("\n".join(plan_lines(open_grid(arguments), arguments.cores)))
    return 0
