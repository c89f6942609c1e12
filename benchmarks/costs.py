"""What loading, importing and opening cost, and what a shrunk model's time is for its arithmetic."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

import models
import torch
from registry import Case, Figure, peak_mb, row, timed
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import dataloader

import lfpr
from lfpr.experiments import EXPERIMENTS, Cell, sentences

TEXTS = Path(__file__).parents[1] / "tests/real_samples"


@lru_cache
def minilm() -> tuple[nn.Module, list[sentences.Batch], list[sentences.Batch]]:
    """all-MiniLM-L6-v2, batches of training texts and of validation texts (100 questions and 100 captions each)."""
    model, tokenizer = sentences.load_encoder()
    texts = (sentences.read_texts(*sorted(TEXTS.glob(f"*{split}*.json"))) for split in ("train", "val"))
    return model, *(sentences.token_batches(tokenizer, part) for part in texts)


# ---- loading


@lru_cache
def loading() -> tuple[Callable[[], nn.Module], Callable[[], nn.Module]]:
    """Transformers' loading of MiniLM and ours, of folders that hold the same tensors."""
    from transformers import AutoModel

    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    minilm()[0].save_pretrained(folder / "theirs")
    lfpr.save_pruned(minilm()[0], folder / "ours")
    theirs = partial(AutoModel.from_pretrained, folder / "theirs", local_files_only=True)
    ways = theirs, partial(lfpr.load_pruned, folder / "ours")
    for way in ways:
        way()  # imports what it needs
    return ways


LOAD = {"ways": ("from_pretrained", "load_pruned"), "sense": "cost", "bar": 1.2}


@row(
    "load",
    "Loading a model",
    **LOAD,
    why="Both build the model without weights and assign the tensors of the file. Ours also compares names, shapes and "
    "widths with what the folder says, and never runs code from it.",
    unmet="Loading: ours builds the model once more, without memory, so that a folder from anyone cannot take memory "
    "that its weights do not say: a third of its time. transformers trusts the configuration.",
)
def load(small: bool) -> Case:
    theirs, ours = loading()
    quiet = sentences.without_progress_bar()(theirs)
    return Case({"other": quiet, "ours": ours}, "MiniLM, 91 MB", counted=False, repeats=25)


@row(
    "load-memory",
    "Loading a model: memory",
    **LOAD,
    unit="MB",
    why="Both map the file, so that a tensor takes memory when it is first used. Measured with all tensors read once, "
    "the pages of the file among them.",
)
def load_memory(small: bool) -> Figure:
    def used(way: Callable[[], nn.Module]) -> float:
        return peak_mb(lambda: sum(tensor.sum().item() for tensor in way().parameters()), mapped=True)

    theirs, ours = map(used, loading())
    return Figure(theirs, ours, "MiniLM, 91 MB")


# ---- importing


@lru_cache
def child_seconds(code: str, repeats: int = 3) -> float:
    """CPU seconds of fresh Python processes that run `code`, the least."""
    found = []
    for _ in range(repeats):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"a process that ran {code!r} failed; its error is above")
        found.append(used.ru_utime + used.ru_stime)
    return min(found)


IMPORTING = """
import time
import torch, numpy, safetensors.torch
before = time.process_time()
import lfpr
print(before, time.process_time())
"""


@row(
    "import",
    "import lfpr",
    ("import torch, numpy, safetensors", "and then lfpr"),
    "cost",
    bar=1.02,
    why="The core alone is loaded, the rest when it is first used; nearly all of it is torch. One after the other in a "
    "process, since processes differ by more than the core takes.",
    unmet="Importing: the core's own files.",
)
def importing(small: bool) -> Figure:
    turns = []
    for _ in range(1 if small else 6):
        run = subprocess.run([sys.executable, "-c", IMPORTING], stdout=subprocess.PIPE, text=True, check=True)
        before, after = map(float, run.stdout.split())
        turns.append((before, after - before))
    others, ours = map(min, zip(*turns, strict=True))
    return Figure(others, others + ours, "a fresh process")


ALIKE = ("tap12", "stvqa")  # those open as TAP on TextVQA
OPENED = [name for name in EXPERIMENTS if not any(part in name for part in ALIKE)]


def opening(small: bool, name: str) -> Figure:
    """What opening an experiment takes beyond torch, in fresh processes."""
    repeats = 1 if small else 2
    torch_alone = child_seconds("import torch", repeats)
    with tempfile.TemporaryDirectory() as runs:
        opened = child_seconds(f"import lfpr; lfpr.open_experiment({name!r}, runs={runs!r})", repeats)
    return Figure(torch_alone, opened - torch_alone, "a fresh process", details={"opened": opened})


for name in OPENED:
    row(
        f"open-{name}",
        f"Opening {name}",
        ("import torch", "beyond that"),
        "value",
        bar=2,
        why="Files are found and checked; models, data and their code are read when they are first asked for.",
    )(partial(opening, name=name))


# ---- time and arithmetic


def shrunk(model: nn.Module, tokens: int) -> tuple[nn.Module, float]:
    """The model with 40 % of its MACs, widths a multiple of 64 neurons, and the exact share."""
    encoder = lfpr.prunable(model)
    cost = lfpr.MacCost(encoder, tokens)
    wide = 64 if encoder.num_neurons % 64 == 0 else 1
    masks = lfpr.search(lfpr.random_importance(encoder, 0), cost, 0.4, multiple_of=wide)
    return lfpr.shrink(model, masks), cost.fraction(masks)


def shares(run: Callable[[], object], runs: int = 5) -> dict[str, float]:
    """Milliseconds of the fastest run: in matrix products, attention, torch's other operations, and outside of them."""
    run()
    found = []
    for _ in range(runs):
        with profile(activities=[ProfilerActivity.CPU]) as seen, record_function("outside of torch"):
            run()
        found.append({"products": 0.0, "attention": 0.0, "other operations": 0.0, "outside of torch": 0.0})
        for event in seen.key_averages():
            kind = event.key if event.key in found[-1] else "other operations"
            kind = "products" if event.key.endswith(("mm", "_convolution")) else kind
            found[-1]["attention" if "attention" in event.key else kind] += event.self_cpu_time_total / 1000
    return min(found, key=lambda spent: sum(spent.values()))


def speed(small: bool, name: str, batch: int) -> Case:
    """A forward pass of the unpruned and of the shrunk model; of a batch of one, what it is spent on."""
    if name == "MiniLM":
        model, texts, _ = minilm()
        inputs = texts[len(texts) // 2]
        inputs = {key: value[:batch] for key, value in inputs.items()}
        tokens, run = inputs["input_ids"].shape[1], sentences.embeddings
    else:
        model = models.vit(small)
        inputs = next(models.inputs(model, batch, batch))
        tokens, run = 197, models.forward
    less, share = shrunk(model, tokens)
    ways = {key: torch.inference_mode()(partial(run, m, inputs)) for key, m in (("other", model), ("our", less))}
    found = {"share": share} | ({key: shares(way) for key, way in ways.items()} if batch == 1 else {})
    size = f"{name}, {batch} × {tokens} tokens, {share:.0%} of the MACs"
    return Case(ways, size, divisor=share, repeats=2 if name != "MiniLM" and batch > 1 else 7, details=found)


SPEED = {"ways": ("unpruned", "shrunk"), "sense": "cost"}
for name in ("ViT-B/16", "MiniLM"):
    row(
        f"speed-{name[:3].lower()}",
        f"A shrunk {name}'s time by its MACs",
        **SPEED,
        bar=1.1,
        why="Smaller matrices, no masks and no indices. What pruning leaves as it is weighs more in a smaller model: "
        "normalisation, residual sums, embeddings.",
        unmet="A shrunk model's time: layers are so narrow that normalisation, residual sums and calls from Python "
        "show, see below for a batch of one.",
    )(partial(speed, name=name, batch=32 if name == "MiniLM" else 8))
    row(f"one-{name[:3].lower()}", f"{name}, a batch of one", **SPEED, why="")(partial(speed, name=name, batch=1))


# ---- reading data


@contextmanager
def reading() -> Iterator[list[float]]:
    """CPU seconds that torch's loaders take to give batches, added up in a list of one number."""
    spent, kind = [0.0], dataloader._BaseDataLoaderIter
    original = kind.__next__

    def watched(self):
        start = time.process_time()
        try:
            return original(self)
        finally:
            spent[0] += time.process_time() - start

    kind.__next__ = watched
    try:
        yield spent
    finally:
        kind.__next__ = original


def reading_share(small: bool, name: str) -> Figure:
    """The largest share that reading data has in importance, evaluation and retraining of the profile mini."""
    images = {"train_images": 40, "val_images": 20} if small else {"train_images": 300, "val_images": 150}
    samples = 32 if small else 128
    found = {}
    with tempfile.TemporaryDirectory() as runs:
        experiment = lfpr.open_experiment(name, runs=runs, num_samples=samples, **images)
        task, cell = experiment.task, experiment.cell(Cell(constraint=0.4))
        small_model = lfpr.shrink(
            experiment.model, experiment.search(experiment.importance(cell), cell), experiment.part
        )
        task.teach(cell)
        training = experiment.training(small_model, cell)
        stages = {
            "importance": lambda: experiment.collect(cell),
            "evaluation": lambda: task.evaluate(experiment.model),
            "retraining": lambda: lfpr.retrain(small_model, **training, progress=False),
        }
        for stage, run in stages.items():
            with reading() as spent:
                whole, _, _ = timed(run)
            found[stage] = 100 * spent[0] / whole
    size = ", ".join(f"{stage} {share:.1f} %" for stage, share in found.items())
    return Figure(None, max(found.values()), size, details=found)


for name in ("tap-textvqa", "clip-mscoco"):
    row(
        f"reading-{name}",
        f"Reading data, {name} (mini)",
        ("–", "share of the stage, at most"),
        "value",
        bar=10,
        unit="%",
        why="Time that loaders take in a stage's own process, of CPU seconds.",
        unmet="Reading: the models of the profile mini are small, so that a batch takes little longer to answer than "
        "to read. At the real sizes it was not measured.",
    )(partial(reading_share, name=name))
