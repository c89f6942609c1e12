"""Dress rehearsal of the profile `full`: made-up files at the real sizes, and every notebook run on them.

    python tests/rehearsal/rehearse.py --out FOLDER [--experiments NAME ...] [--notebooks 01_data ...] [--published]

Nothing may need the real data to be found broken: file formats, memory, stages that only work on small models. The
files are of TAP's and SaL's data and checkpoints, of COCO, and of CLIP ViT-B/16, with --published where the published
checkouts have them, so that checkpoints are to be found; scores mean nothing here. Prints seconds and peak memory of
each notebook and of each stage, and writes them to `FOLDER/rehearsal.json`. Exits with 1 if a notebook failed; its log
is named. What is finished is not run again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import yaml
from papermill import inspect_notebook

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script's path begins with its own folder
from rehearsal import coco_files, sal_files, tap_files
from rehearsal.coco_files import write_clip, write_coco_files
from rehearsal.sal_files import write_sal_files
from rehearsal.tap_files import ANSWERS, PIECES, write_checkpoint, write_tap_files

from lfpr.clip.coco import COCOCaptions, locate_captions
from lfpr.experiments.runs import provenance_table
from lfpr.experiments.specs import SPECS
from lfpr.files import write_json
from lfpr.sal.config import SaLConfig
from lfpr.sal.data import LAYOUTS
from lfpr.tap.model import TAP, TAPConfig

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
STAGES = ("01_data", "02_importance", "03_prune", "04_retrain", "05_evaluate")  # of one experiment
PAPER = "06_paper"  # of all
QUESTIONS = {"train": 16, "val": 6, "test": 3, "score": 16}
IMAGES = {"train": 36, "val": 12}  # more than a batch that scores, fewer than one that retrains
SHARED = [{"method": ["label-free", "random"], "constraint": 0.4}]
TAP_CELLS = [
    *SHARED,
    {"method": "label-free", "percentile": 50},
    {"method": "label-free", "constraint": 0.4, "stages": "pruned", "scoring": "per-sample"},
    {"method": "fisher", "constraint": 0.8, "stages": "pruned", "rearranged": True, "rescaled": "released"},
]
SAL_CELLS = [
    {"method": ["label-free", "random"], "constraint": 0.5},
    {"method": "label-free", "percentile": 50},
    {"method": "fisher", "constraint": 0.5, "stages": "pruned"},
    {"method": "surgeon", "constraint": 0.5, "stages": "pruned", "reconstructed": True},
]
CLIP_CELLS = [
    *SHARED,
    {"method": "fisher", "constraint": 0.6, "seed": 1, "stages": "pruned", "rescaled": "released"},
    {"method": "sensitivity", "heads_removed": 22, "seed": 8, "stages": "pruned"},
    {"method": "given", "masks": "data/published/clip-masks/clip-vit-base-patch16_0.4_seed_1", "stages": "pruned"},
]
"""Kinds of cells of the grid `published`, for the grid that 06 draws."""
RELEASED = {"released_files": True}
PLANS = {
    **{name: {"cells": TAP_CELLS, "settings": RELEASED} for name in SPECS if name.startswith("tap")},
    **{name: {"cells": SAL_CELLS} for name in SPECS if name.startswith("sal")},
    "clip-mscoco": {
        "cells": CLIP_CELLS,
        "settings": RELEASED | {"num_samples": 32, "sensitivity_samples": 2, "rescale_samples": 8, "eval_batch": 2},
    },
}
"""Experiment -> its plan, beside where its files are; CLIP has fewer samples than the fork draws, and times fewer
images at once."""


def prepare_tap(name: str, folder: Path, published: bool = False) -> dict[str, str]:
    """Write the files of a TAP experiment below `folder`; returns where its data is, and its checkpoint unless that is
    in its published place."""
    dataset, *layers = (SPECS[name].arguments[key] for key in ("dataset", "text_layers", "mmt_layers"))
    places = tap_files.KEPT["LFPR" if published else "one folder"]
    found = f"{dataset}/{places.checkpoints}/{SPECS[name].arguments['checkpoint']}"
    inputs = {"data_root": dataset} | ({} if published else {"checkpoint": f"{name}.ckpt"})
    checkpoint = folder / inputs.get("checkpoint", found)
    if not (folder / dataset / places.data / "m4c_vocabs").exists():
        write_tap_files(folder / dataset, dataset, QUESTIONS, places)
    if not checkpoint.exists():
        torch.manual_seed(0)
        config = TAPConfig(*layers, text_vocab_size=PIECES, num_answers=ANSWERS)
        write_checkpoint(checkpoint, TAP(config))
    return inputs


def prepare_sal(name: str, folder: Path, published: bool = False) -> dict[str, str]:
    """Write the files of a SaL experiment below `folder`; returns where its data is. Its T5 is as wide as the published
    one, with two layers on each side: twelve take hours of one core."""
    dataset, root = SPECS[name].arguments["dataset"], folder / name
    home = "SaL/data" if published else "data"
    if not (root / home / LAYOUTS[dataset]["ocr"][0]).exists():  # the last file that is written
        write_sal_files(root, dataset, {split: QUESTIONS[split] for split in ("train", "val", "test")}, home)
    own = name.replace("-", "_")
    checkpoint = root / (f"SaL/save/{own}/best.ckpt" if published else f"checkpoints/{own}.ckpt")
    if not checkpoint.exists():
        sal_files.write_checkpoint(checkpoint, SaLConfig(num_layers=2, num_decoder_layers=2))
    return {"data_root": name}


def prepare_clip(folder: Path, published: bool = False) -> dict[str, str]:
    """Write the files of CLIP on MSCOCO below `folder`; returns where its data is, and its model folder unless that is
    where it is found."""
    places = coco_files.KEPT["fork, pruning" if published else "one folder"]
    inputs = {"data_root": "coco"} | ({} if published else {"checkpoint": "clip-vit-base-patch16"})
    root, model = folder / inputs["data_root"], folder / "clip-vit-base-patch16"
    if locate_captions(root, "val").path is None:  # the last file that is written
        write_coco_files(root, IMAGES, places)
    if not (model / "model.safetensors").exists():  # here, too
        torch.manual_seed(0)
        write_clip(model, [pair.text for split in IMAGES for pair in COCOCaptions(root, split, "all").pairs])
    return inputs


PREPARE: dict[str, Callable[[Path, bool], dict[str, str]]] = {
    **{name: partial(prepare_tap, name) for name in SPECS if name.startswith("tap")},
    **{name: partial(prepare_sal, name) for name in SPECS if name.startswith("sal")},
    "clip-mscoco": prepare_clip,
}
"""Experiment -> what writes its files."""


def rehearse(
    out: Path, experiments: Sequence[str], notebooks: Sequence[str], published: bool = False
) -> dict[str, list[dict]]:
    """Run `notebooks` of each experiment, then a small grid of them all, and 06 on its tables; returns the rows of
    `rehearsal.json`: `notebooks` (name, seconds, peak_memory_mb, failed) and `stages` (`provenance_table`)."""
    rows, grid = [], {}
    for name in experiments:
        inputs = PREPARE[name](out / "files", published)
        grid[name] = {"profile": "full", "notebooks": ["02_importance", "05_evaluate"]} | PLANS[name] | inputs
        parameters = {key: str(out / "files" / value) for key, value in inputs.items()}
        parameters |= {"experiment": name, "profile": "full", "runs": str(out / "runs")}
        rows += [run_notebook(notebook, out / name, parameters) for notebook in notebooks if notebook != PAPER]
    if PAPER in notebooks:
        (out / "grid.yaml").write_text(yaml.safe_dump({"rehearsal": grid}))
        folders = {"grid": f"{out / 'grid.yaml'}:rehearsal", "data": out / "files", "runs": out / "runs"}
        options = [word for option, folder in folders.items() for word in (f"--{option}", str(folder))]
        lfpr = [sys.executable, "-m", "lfpr"]
        rows += [run([*lfpr, "grid", *options, "--experiment", name], out / name / "grid") for name in experiments]
        rows.append(run([*lfpr, "collect", *options, "--out", str(out / "paper")], out / "tables"))
        rows.append(run_notebook(PAPER, out, {"folder": str(out / "paper"), "runs": str(out / "runs")}))
    report = {"notebooks": rows, "stages": provenance_table(out / "runs").to_dict("records")}
    write_json(out / "rehearsal.json", report)
    return report


def run_notebook(notebook: str, folder: Path, parameters: dict[str, str]) -> dict:
    """Execute a notebook with those of `parameters` that it declares; what it becomes is in `folder`."""
    source = NOTEBOOKS / f"{notebook}.ipynb"
    declared = inspect_notebook(str(source))
    passed = [word for name, value in parameters.items() if name in declared for word in ("-r", name, value)]
    command = [sys.executable, "-m", "papermill", "--kernel", "python3", "--no-progress-bar", "--cwd", str(NOTEBOOKS)]
    return run([*command, str(source), str(folder / f"{notebook}.ipynb"), *passed], folder / notebook)


MEASURE = """
import resource, subprocess, sys
with open(sys.argv[1], "w") as log:
    code = subprocess.run(sys.argv[2:], stdout=log, stderr=subprocess.STDOUT).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


def run(command: list[str], log: Path) -> dict:
    """Run a command, its output in `log`.log; returns its name, seconds, peak memory and whether it failed.

    The memory is that of its largest process, so of a notebook's kernel. A process between, small itself, measures it:
    a started program inherits the peak memory of what started it.
    """
    log = log.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    name = f"{log.parent.name}/{log.stem}"
    print(f"{name} ...", flush=True)
    start = time.perf_counter()
    measured = subprocess.run([sys.executable, "-c", MEASURE, str(log), *command], stdout=subprocess.PIPE, check=True)
    code, memory = map(int, measured.stdout.split())
    seconds = round(time.perf_counter() - start, 1)
    return {"name": name, "seconds": seconds, "peak_memory_mb": memory, "failed": str(log) if code else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the files, runs, notebooks and tables")
    parser.add_argument("--experiments", nargs="+", default=list(PREPARE), choices=PREPARE, metavar="NAME")
    parser.add_argument("--notebooks", nargs="+", default=[*STAGES, PAPER], choices=[*STAGES, PAPER], metavar="NAME")
    parser.add_argument("--published", action="store_true", help="lay the files out as the published projects do")
    arguments = parser.parse_args()
    report = rehearse(arguments.out.absolute(), arguments.experiments, arguments.notebooks, arguments.published)
    columns = ["experiment", "stage", "label", "seconds", "peak_memory_mb"]
    print(pd.DataFrame(report["stages"], columns=columns).to_string(index=False))
    print(pd.DataFrame(report["notebooks"]).to_string(index=False))
    failed = [row["failed"] for row in report["notebooks"] if row["failed"]]
    for log in failed:
        print(f"\n{log}:\n{Path(log).read_text()[-2000:]}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
