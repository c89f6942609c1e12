"""Looks for what is damaged in `runs/`: `python -m lfpr check [--remove]`.

Every stage, rendered data set and checkpoint is compared with what was written: a file that was cut, changed or deleted
since is named. `--remove` removes the stage, data set or checkpoint that it belongs to, and the grid runs the notebooks
of its experiment again, which make it anew and find all else; `make paper` begins so.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from lfpr.experiments.run_grid import default_runs, is_complete, read_metadata
from lfpr.experiments.runs import finished_stages, load_stage
from lfpr.files import saving, write_json
from lfpr.manifest import NAME, Damaged, verify
from lfpr.training.resume import load_checkpoint


def damaged(runs: Path) -> Iterator[tuple[Path, str]]:
    """The folders below `runs` that are not as they were made, and why: the stages of all experiments, those that are
    gone but for their lock, the data sets, and checkpoints of interrupted trainings."""
    stages = {*finished_stages(runs, "*/*/*/*"), *(file.parent for file in runs.glob(f"*/*/*/*/{NAME}"))}
    stages |= {file.with_suffix("") for file in runs.glob("*/*/*/*.lock")}
    data = {file.parent for file in runs.glob(f"data/*/{NAME}")}
    for folder in sorted(stages | data):
        begun = folder.with_name(f"{folder.name}.unfinished")
        try:
            if folder in data:
                verify(folder)
            elif folder.is_dir():
                load_stage(folder)
            elif folder.suffix != begun.suffix and not begun.exists() and _is_free(folder):
                yield folder, f"{folder} was made, or begun, and is gone"
        except Damaged as error:
            yield folder, str(error)
    for folder in sorted(runs.glob("*/*/*/*.checkpoint")):
        try:
            load_checkpoint(folder, {})
        except ValueError as error:
            yield folder, str(error)


def _is_free(folder: Path) -> bool:
    """Whether no job is about to make a stage."""
    try:
        with FileLock(f"{folder}.lock", timeout=0):
            return True
    except Timeout:
        return False


def remove(folder: Path, runs: Path) -> None:
    """Remove what is damaged, and have the grid run the notebooks of its experiment and profile again."""
    lock = Path(f"{folder}.lock")
    with saving(folder), FileLock(lock):
        if folder.exists():
            shutil.rmtree(folder)
        lock.unlink()
    experiment, profile, *stage = folder.relative_to(runs).parts
    for jobs in runs.glob(f"notebooks/*/{experiment}") if stage else ():
        for path in jobs.glob("*.ipynb"):
            metadata = read_metadata(path)
            if is_complete(metadata) and metadata["papermill"]["parameters"]["profile"] == profile:
                metadata = metadata | {"lfpr": metadata["lfpr"] | {"complete": False}}
                write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"metadata": metadata})
        grid = jobs.parent  # without the last of its files the workflow does not look for the first
        for made in (*jobs.glob("cells-*.json"), *grid.glob("tables.json"), *grid.glob("06_paper.ipynb")):
            made.unlink()


def main() -> int:
    """Print a line for each damaged folder; 1 if one is left."""
    parser = argparse.ArgumentParser(description="Look for what is damaged in runs/.")
    parser.add_argument("--runs", type=Path, help="folder of what is computed; runs/ of the checkout by default")
    parser.add_argument("--remove", action="store_true", help="remove it, to be made anew when it is needed")
    arguments = parser.parse_args()
    runs = arguments.runs.resolve() if arguments.runs else default_runs()
    if arguments.runs and not runs.is_dir():  # the default one is not there before the first run
        raise FileNotFoundError(f"runs = {str(runs)!r}: no such folder")
    found = list(damaged(runs))
    for folder, reason in found:
        if arguments.remove:
            remove(folder, runs)
        print(f"{'damaged, and removed to be made anew' if arguments.remove else 'damaged'}: {reason}", flush=True)
    return 1 if found and not arguments.remove else 0
