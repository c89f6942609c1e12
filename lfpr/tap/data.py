"""TAP's released files -> batches of tensors for the model.

Files are read when needed and a few images are kept; `preload` keeps everything in memory, compactly, for data sets
that fit. A batch is gathered at once rather than collated from samples: padding and word vectors are most of it.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from lfpr.checks import check_count, check_flag, check_kind, plain
from lfpr.files import DataError, a_path
from lfpr.reading import read_object, select, stays_inside, whole, wholes
from lfpr.tap import text
from lfpr.tap.layout import FASTTEXT, LAYOUTS, Files, Image, ImageReader, InputSizes, read_imdb
from lfpr.tap.vectors import Embedding, fasttext
from lfpr.tap.words import WordTables


class TAPBatch(dict):
    """Tensors of B questions by name; beside them, what turns indices into words (`lfpr.tap.answers`).

    `ocr_tokens`: the words that can be copied, a list per question; `vocab`: the answers' vocabulary.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor] = (),
        ocr_tokens: list[list[str]] | None = None,
        vocab: text.AnswerVocab | None = None,
    ) -> None:
        super().__init__(tensors)
        self.ocr_tokens, self.vocab = ocr_tokens, vocab

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "TAPBatch":
        """The batch with its tensors on `device`; the words are the same."""
        tensors = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.items()}
        return TAPBatch(tensors, self.ocr_tokens, self.vocab)


class Questions(Dataset, ABC):
    """Questions of a file, gathered into batches at once, and the last images that were read for them.

    A data set has `records`, and `_images`, of which it keeps `_capacity`.
    """

    records: list[dict]
    _images: dict[tuple, Any]
    _capacity: float

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int | Sequence[int]) -> dict[str, Tensor]:
        if isinstance(plain(index), int):
            return {name: value[0] for name, value in self[[whole("index", index)]].items()}
        return self._batch([i + len(self) if i < 0 else i for i in wholes("index", index)])

    def image(self, record: Mapping[str, Any]) -> Any:
        """What a record's image shows (cached). Raises FileNotFoundError and DataError."""
        key = self._key(record)
        if key not in self._images:
            if len(self._images) >= self._capacity:
                self._images.pop(next(iter(self._images)))
            self._images[key] = self._read(record, key)
        return self._images[key]

    @abstractmethod
    def _batch(self, indices: list[int]) -> dict[str, Tensor]:
        """Of the questions with these indices, from 0 on."""

    @abstractmethod
    def _key(self, record: Mapping[str, Any]) -> tuple:
        """By what a record's image is known."""

    @abstractmethod
    def _read(self, record: Mapping[str, Any], key: tuple) -> Any:
        """A record's image."""


class TAPDataset(Questions):
    """Questions of a `dataset` ("textvqa", "stvqa") and `split` ("train", "val", "test", "score") under `root`.

    `dataset[i]` is a dict of tensors, `dataset[[i, j, ...]]` a `TAPBatch` of several: `text` [170]
    int64, `obj_features` [100, F], `obj_boxes` [100, 4] relative to the image, `num_obj`, `ocr_fasttext` [100,
    300], `ocr_phoc` [100, 604] uint8, `ocr_features` [100, F], `ocr_boxes` [100, 4], `num_ocr`, and `index`,
    the i asked for; with `targets=True` also `targets` [T, V + 100], `previous` [T], `loss_mask` [T]. Lengths
    follow `sizes`.

    `labels` replaces the human answers and keeps only the questions it has: a dict (or a JSON file) from question id
    to a predicted index sequence or an answer string, or a released `train_pred_XXpct.npy`, itself an imdb. An answer
    string is spelled by every equal word, as a human answer is. `imdb` is another file of questions than the split's.
    `indices` select questions of the imdb, `limit` at most so many, the first ones. `embed` gives the OCR word
    vectors; by default FastText's file under `root`. `text_vocab`, `answer_vocab` and `image_folder` are files
    other than those under `root`. `seed` samples each question's spelling anew for each `set_epoch`; None makes
    LFPR's fixed choice. `images` is a dict that keeps all images read, to be shared by data sets of one split and the
    same sizes; by default 32 are kept.

    Raises FileNotFoundError naming a missing file and where to get it, DataError (a ValueError) for files that do not
    hold what they should, ValueError for bad arguments.
    """

    def __init__(
        self,
        root: str | Path,
        dataset: str = "textvqa",
        split: str = "train",
        *,
        sizes: InputSizes | None = None,
        targets: bool = False,
        labels: str | Path | Mapping | None = None,
        imdb: str | Path | None = None,
        limit: int | None = None,
        indices: Sequence[int] | None = None,
        embed: Embedding | None = None,
        text_vocab: str | Path | None = None,
        answer_vocab: str | Path | None = None,
        image_folder: str | Path | None = None,
        seed: int | None = None,
        images: dict | None = None,
    ) -> None:
        others = {"imdb": imdb, "text_vocab": text_vocab, "answer_vocab": answer_vocab, "image_folder": image_folder}
        for name, path in ({"root": root} | {name: path for name, path in others.items() if path is not None}).items():
            a_path(path, name)
        if (dataset, split) not in list(LAYOUTS):  # a list: what has no hash is not among them either
            allowed = ", ".join(f"{d} {s}" for d, s in LAYOUTS)
            raise ValueError(f"dataset, split = {dataset!r}, {split!r}: must be one of {allowed}")
        sizes = InputSizes() if sizes is None else sizes
        check_kind("sizes", sizes, InputSizes)
        check_kind("images", {} if images is None else images, dict)
        self.with_targets = check_flag("targets", targets)
        self.root, self.dataset, self.split = Path(root), dataset, split
        self.files, self.sizes, self.image_folder = Files(root, dataset, split), sizes, image_folder
        self.seed = None if seed is None else check_count("seed", seed)
        self._embed, self._words = embed, None
        if embed is not None and (not callable(embed) or getattr(embed, "dim", None) != sizes.fasttext_size):
            dim = getattr(embed, "dim", "missing")
            raise ValueError(f"embed.dim = {dim}: sizes.fasttext_size is {sizes.fasttext_size}")
        labels_are_imdb = isinstance(labels, str | Path) and Path(labels).suffix == ".npy"
        self.path = Path(labels if labels_are_imdb else imdb or self.files["imdb"])
        self.labels = None if labels_are_imdb or labels is None else read_labels(labels)
        self.records = choose(self.path, read_imdb(self.path), limit, indices, self.labels, self.with_targets)
        self.pieces = text.WordPieces(text_vocab or self.files["pieces"])
        self.vocab = text.AnswerVocab(answer_vocab or self.files["answers"])
        self._read_image = ImageReader(self.files, self.sizes, self.pieces)
        self._images: dict[tuple, Image] = {} if images is None else images
        self._questions: dict[int, tuple] = {}
        self._capacity = 32 if images is None else math.inf  # successive questions often share an image
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose another sampled spelling per question (with a `seed`) and another order of shuffled `batches`."""
        self.epoch = check_count("epoch", epoch)
        self._draws = None if self.seed is None else draws(self.seed, epoch, len(self))

    def preload(self) -> "TAPDataset":
        """Read all images and questions into memory now; returns self."""
        self._capacity = len(self)
        for i in range(len(self)):
            self._question(i)
        for start in range(0, len(self), 256):  # the words' tables
            self.words([self.image(r).ocr_tokens for r in self.records[start : start + 256]], self.sizes.num_ocr)
        return self

    @property
    def words(self) -> WordTables:
        """Word vectors and PHOC of OCR tokens. Raises as `FastText`, and ValueError for vectors of another length."""
        if self._words is None:
            embed = self._embed or fasttext(self.files["vectors"])
            if embed.dim != self.sizes.fasttext_size:
                raise ValueError(
                    f"{FASTTEXT} has dimension {embed.dim}, sizes.fasttext_size {self.sizes.fasttext_size}"
                )
            self._words = WordTables(embed)
        return self._words

    def sample(self, index: int) -> dict[str, Any]:
        """A question as people read it: ids, question, answers, image file and size in pixels, OCR tokens and objects
        with their boxes [n, 4] relative to the image, and its label if `labels` were given."""
        record = self.records[whole("index", index)]
        image = self.image(record)
        shown = described(record, [Path(self.image_folder)] if self.image_folder else self.files.image_folders())
        shown |= {"ocr_tokens": image.ocr_tokens, "ocr_boxes": image.ocr_boxes}
        shown |= {"object_names": image.obj_names[: len(image.obj_boxes)], "obj_boxes": image.obj_boxes}
        return shown | ({} if self.labels is None else {"label": self.labels[str(record["question_id"])]})

    def _key(self, record: Mapping[str, Any]) -> tuple:
        return record["feature_path"], record["image_width"], record["image_height"]

    def _read(self, record: Mapping[str, Any], key: tuple) -> Image:
        return self._read_image(record)

    def _question(self, index: int) -> tuple[np.ndarray, text.Spellings | None]:
        if index not in self._questions:
            record, spelled = self.records[index], None
            if self.with_targets:
                label = record["answers"] if self.labels is None else self.labels[str(record["question_id"])]
                tokens = self.image(record).ocr_tokens
                if self.labels is None or isinstance(label, str):
                    spelled = text.spellings([label] if isinstance(label, str) else label, tokens, self.vocab)
                else:
                    spelled = text.label_spellings(label, self.vocab, tokens)
            pieces = self.pieces.encode(record["question"], self.sizes.question_tokens).astype(np.int32)
            self._questions[index] = pieces, spelled
        return self._questions[index]

    def _batch(self, indices: list[int]) -> TAPBatch:
        s = self.sizes
        images = [self.image(self.records[i]) for i in indices]
        questions = [self._question(i) for i in indices]
        parts = [q for q, _ in questions], [image.ocr_text for image in images], [image.obj_text for image in images]
        batch = {
            "text": np.concatenate([np.stack(part, dtype=np.int64) for part in parts], axis=1),
            "obj_features": _pad([image.obj_features for image in images], s.num_objects),
            "obj_boxes": _pad([image.obj_boxes for image in images], s.num_objects),
            "num_obj": np.array([len(image.obj_boxes) for image in images]),
            "ocr_features": _pad([image.ocr_features for image in images], s.num_ocr),
            "ocr_boxes": _pad([image.ocr_boxes for image in images], s.num_ocr),
            "num_ocr": np.array([len(image.ocr_tokens) for image in images]),
            "index": np.array(indices),
        }
        tokens = [image.ocr_tokens for image in images]
        batch["ocr_fasttext"], batch["ocr_phoc"] = self.words(tokens, s.num_ocr)
        if self.with_targets:
            steps = len(indices), s.decoding_steps
            targets = np.zeros((*steps, len(self.vocab) + s.num_ocr), np.float32)
            previous, mask = np.zeros(steps, np.int64), np.zeros(steps, np.float32)
            draws = [None] * len(indices) if self._draws is None else self._draws[indices].tolist()
            for (_, spelled), draw, *rows in zip(questions, draws, targets, previous, mask, strict=True):
                text.write_targets(spelled, self.vocab.bos, self.vocab.eos, *rows, draw)
            batch |= {"targets": targets, "previous": previous, "loss_mask": mask}
        return TAPBatch({name: torch.from_numpy(array) for name, array in batch.items()}, tokens, self.vocab)


def _pad(arrays: list[np.ndarray], length: int) -> np.ndarray:
    padded = np.zeros((len(arrays), length, arrays[0].shape[1]), np.float32)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded


def described(record: dict, folders: Iterable[Path]) -> dict[str, Any]:
    """A question as people read it: ids, question, answers, size of the image in pixels, and its file in `folders`: by
    its path or its id, itself or in those into which TextVQA's archives are unpacked."""
    name = record["image_path"] or record["image_id"]
    stems = [str(name), *(f"{folder}{record['image_id']}" for folder in ("", "train_images/", "test_images/"))]
    files = (
        folder / f"{stem}{suffix}"
        for folder in folders
        for stem in filter(stays_inside, stems)
        for suffix in ("", ".jpg", ".png")
    )
    shown = {key: record[key] for key in ("question_id", "question", "image_id", "answers")}
    shown["image_size"] = record["image_width"], record["image_height"]
    return shown | {"image": next((file for file in files if file.is_file()), None)}


def draws(seed: int, epoch: int, count: int) -> np.ndarray:
    """What chooses among a question's answers in one pass: [count] in [0, 1)."""
    return np.random.default_rng([seed, epoch]).random(count)


def choose(
    path: Path,
    records: Sequence[dict],
    limit: int | None,
    indices: Sequence[int] | None,
    labels: Mapping[str, Any] | None,
    answered: bool,
) -> list[dict]:
    """The records of the file `path` that a data set has: its first `limit`, or `indices`, or all, and of them those
    that `labels` are of. Raises ValueError for others than there are, and DataError for a question id that is there
    twice, where labels are by id, and if they are to be `answered` and are not."""
    has = f"{path} has {len(records)} questions"
    chosen = [records[i] for i in select(len(records), has, limit, indices, at_most=True)]
    if labels is not None:
        if twice := repeated(records):
            raise DataError(f"{path}: question id {twice[0]} is there twice, labels are by id")
        chosen = [record for record in chosen if str(record["question_id"]) in labels]
        if not chosen:
            raise ValueError(f"labels: none of their {len(labels)} question ids is in {path}")
    without = [record["question_id"] for record in chosen if not record["answers"]]
    if answered and labels is None and without:
        raise DataError(f"{path}: targets need answers, {len(without)} questions have none, first {without[0]}")
    return chosen


def read_labels(labels: str | Path | Mapping) -> dict[str, Any]:
    """Question id -> an answer, or the indices of its words: of a mapping, or a JSON file of one. Raises DataError
    naming one that is neither, and as `read_object`."""
    if isinstance(labels, Mapping):
        return {str(key): _label(f"labels[{key!r}]", value) for key, value in labels.items()}
    found = read_object(labels, "labels: an .npy imdb or a JSON object question id -> answer")
    return {key: _label(f"{labels}: the answer to {key}", value) for key, value in found}


def _label(name: str, label: Any) -> str | list[int]:
    """An answer, or the indices of its words. Raises DataError naming it."""
    if isinstance(label, str):
        return label
    label = label.tolist() if isinstance(label, Tensor | np.ndarray) else label
    if not isinstance(label, list | tuple):
        raise DataError(f"{name} is {label!r:.80}, expected an answer or a list of indices of words")
    try:
        return [check_count("index", index) for index in label]
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error


def repeated(records: Sequence[Mapping]) -> list:
    """Question ids that more than one of the records have."""
    counts = Counter(str(record["question_id"]) for record in records)
    return [question for question, count in counts.items() if count > 1]


class _Order(Sampler[int]):
    """0 ... n - 1, or a permutation that depends on the seed and the data set's epoch alone."""

    def __init__(self, dataset: Dataset, seed: int | None) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        if self.seed is None:
            return iter(range(len(self)))
        return iter(np.random.default_rng([self.seed, self.dataset.epoch]).permutation(len(self)).tolist())


def batches(
    dataset: TAPDataset,
    batch_size: int,
    shuffle_seed: int | None = None,
    drop_last: bool = False,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """A loader of `TAPBatch`es of `batch_size` questions (the last one may have fewer), read in `workers` processes,
    and in memory from which they move to a GPU without waiting, if `pin_memory`.

    Shuffled if there is a `shuffle_seed`; iterated again in the same order until `dataset.set_epoch` changes it.
    Raises ValueError for a batch size below 1 or a negative number of workers; with workers also as `dataset.words`.
    """
    check_kind("dataset", dataset, TAPDataset)
    loader = load(dataset, batch_size, shuffle_seed, drop_last, workers, pin_memory)
    if loader.num_workers:
        _ = dataset.words  # FastText's dictionary, read once for all of them and for every pass
    return loader


def load(
    dataset: Dataset,
    batch_size: int,
    shuffle_seed: int | None = None,
    drop_last: bool = False,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """`batches` of any data set that has an `epoch` and gives a batch for a list of indices. Raises as that."""
    batch_size, workers = check_count("batch_size", batch_size, 1), check_count("workers", workers)
    shuffle_seed = None if shuffle_seed is None else check_count("shuffle_seed", shuffle_seed)
    drop_last, pin_memory = check_flag("drop_last", drop_last), check_flag("pin_memory", pin_memory)
    sampler = BatchSampler(_Order(dataset, shuffle_seed), batch_size, drop_last)
    private = torch.Generator()  # otherwise each pass would draw from the global one
    options = {"num_workers": workers, "pin_memory": pin_memory, "generator": private}
    return DataLoader(dataset, batch_size=None, sampler=sampler, **options)


def check(
    root: str | Path, dataset: str = "textvqa", split: str = "train", *, limit: int | None = None, **options: Any
) -> dict:
    """Read a split's files and report counts, shapes and what is wrong, instead of failing deep inside a run.

    `limit` bounds the questions whose features are read; `options` are TAPDataset's. Returns

    - `questions`, `answered` (have answers), `checked` (their features were read), `images` (read without
      error), `writable` (checked questions with an answer that vocabulary and OCR tokens can write), `without_ocr`
      (images);
    - `objects`, `ocr_tokens`: (min, mean, max) per image; `feature_size`; `vocabulary`: (answers, word pieces);
    - `word_vectors`: their length, None without a usable file; `bad`: how many records cannot be used, question ids
      are there twice, and the vectors' file; `first_bad`: why (None if all can).

    Raises ValueError for a bad `limit` or bad `options`.
    """
    limit = None if limit is None else check_count("limit", limit, 1)
    try:
        data = TAPDataset(root, dataset, split, **options)
    except (DataError, FileNotFoundError) as error:
        return {"questions": 0, "bad": 1, "first_bad": str(error)}
    bad, vectors = [], None
    try:
        vectors = data.words.embed.dim
    except (ValueError, OSError) as error:
        bad.append(str(error))

    def look(record: dict) -> tuple[int, int, bool]:
        image, answers = data.image(record), record["answers"]
        writable = bool(answers and text.spellings(answers, image.ocr_tokens, data.vocab).sequences)
        return len(image.obj_boxes), len(image.ocr_tokens), writable

    sizes = {"feature_size": data.sizes.feature_size, "vocabulary": (len(data.vocab), len(data.pieces))}
    return report(data, limit, look, bad, **sizes, word_vectors=vectors)


def report(
    data: Dataset, limit: int | None, look: Callable[[dict], tuple[int, int, bool]], bad: Sequence[str] = (), **about
) -> dict:
    """What `check` says of any data set of questions: `look(record)` gives how many objects and OCR tokens its image
    has, and whether an answer can be written; `bad` is already known to be wrong, and `about` is said, too."""
    counts: dict[str, tuple[int, int]] = {}
    bad, writable = [f"{data.path}: question id {i} is there twice" for i in repeated(data.records)] + [*bad], 0
    for record in data.records[:limit]:
        try:
            objects, tokens, written = look(record)
            counts[record["feature_path"]] = objects, tokens
            if data.dataset == "textvqa" and len(record["answers"]) not in (0, 10):
                raise DataError(f"it has {len(record['answers'])} answers; TextVQA accuracy needs 10")
            writable += written
        except (ValueError, OSError) as error:
            bad.append(f"question {record['question_id']}: {error}")
    objects, tokens = ([numbers[i] for numbers in counts.values()] for i in (0, 1))
    return {
        "questions": len(data),
        "answered": sum(bool(record["answers"]) for record in data.records),
        "checked": len(data.records[:limit]),
        "images": len(counts),
        "writable": writable,
        "without_ocr": tokens.count(0),
        "objects": _spread(objects),
        "ocr_tokens": _spread(tokens),
        **about,
        "bad": len(bad),
        "first_bad": bad[0] if bad else None,
    }


def _spread(counts: list[int]) -> tuple[int, float, int] | None:
    return (min(counts), sum(counts) / len(counts), max(counts)) if counts else None
