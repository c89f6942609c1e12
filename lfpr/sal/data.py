"""SaL's published files -> batches of tensors for the model.

An imdb (`.npy`) lists questions, with the OCR words of each as T5's pieces and their boxes; appearances of OCR words,
and of objects with their boxes and names, are pickled dicts in LMDB environments, by the name of an image. Pickles are
read by `lfpr.tap.pickles`, and an environment's pages are verified before LMDB, which trusts them, opens it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lfpr.checks import check_count, check_flag, check_kind
from lfpr.files import WHERE, DataError, Located, a_path, below, hub, locate
from lfpr.reading import whole
from lfpr.sal.config import EOS, PAD, SaLConfig
from lfpr.sal.layout import lay_out
from lfpr.sal.text import TOKENIZER, Pieces, label_spellings, spellings
from lfpr.sal.text import plain as plain_answer
from lfpr.tap.data import Questions, choose, described, draws, load, read_labels, report
from lfpr.tap.layout import OPTIONAL, USES, read_imdb
from lfpr.tap.pickles import as_features, load_pickle
from lfpr.tap.text import Spellings, write_targets

LAYOUTS = {
    "textvqa": {
        "imdb": ("textvqa/defaults/annotations/{}_amazon_ocr.npy",),
        "objects": ("textvqa/new_label_textvqa_obj_round.lmdb",),
        "ocr": ("textvqa/ocr_en/features/amazon_frcnn_latr1110.lmdb",),
    },
    "stvqa": {
        "imdb": ("stvqa/defaults/annotations/{}_amazon_ocr.npy",),
        "objects": ("stvqa/defaults/features/label_detectron.lmdb",),
        "ocr": tuple(
            f"{folder}stvqa/ocr_en/features/amazon_frcnn_latr_stvqa_high.lmdb" for folder in ("", "datasets/")
        ),
    },
}
"""Data set -> what a split is read from, below SaL's `data/`."""
SPLITS = {"train": "train", "val": "train", "test": "test_task3"}
"""Split -> ST-VQA's folder of its images."""
WHAT = {"imdb": "{} questions", "objects": "object features", "ocr": "OCR features", "tokenizer": "T5's tokenizer"}
FOLDERS = ("data", "", "sal/data", "sal", "SaL/data", "SaL")
"""Folders below the data root that may be SaL's `data/`, in order, or hold it or T5."""
T5 = "t5-base"
LONGEST_KEY = 511  # of LMDB
FIELDS = ("question_length", "ocr_length", "obj_length", "ocr_prefix", "obj_prefix", "separator", "feature_size")
FIELDS += ("max_features", "vocab_size", "answer_steps")
"""What of a config the layout depends on."""


def locate_file(root: str | Path, dataset: str, split: str, kind: str) -> Located:
    """Where a file of `WHAT` is: below the data root or, of T5, in the local Hugging Face cache too."""
    elsewhere: Iterator[Path] = iter(())
    if kind == "tokenizer":
        names = [f"{T5}/{TOKENIZER}", TOKENIZER]
        elsewhere = chain(below(root, ("..",), names[:1]), hub(T5, TOKENIZER), hub(f"google-t5/{T5}", TOKENIZER))
    else:
        names = [name.format(split) for name in LAYOUTS[dataset][kind]]
    optional = split in OPTIONAL
    needed_for = USES[split] if optional or kind == "imdb" else "every question"
    return locate(WHAT[kind].format(split), chain(below(root, FOLDERS, names), elsewhere), needed_for, optional)


class Image(NamedTuple):
    """What `lay_out` needs to know of an image beside its question's record."""

    obj_t5_token: np.ndarray  # [pieces]
    obj_token_lengths: np.ndarray  # [pieces]: the object of each
    obj_boxes: np.ndarray  # [objects, 4] in pixels
    obj_features: np.ndarray  # [objects, F]
    ocr_features: np.ndarray  # [words, F]


class SaLDataset(Questions):
    """Questions of a `dataset` ("textvqa", "stvqa") and `split` ("train", "val", "test") under `root`, laid out for a
    model of `config`.

    `dataset[i]` is a dict of tensors, `dataset[[i, j, ...]]` one of several: what `SaL.embed` lists, and `index`, the i
    asked for; with `targets=True` also `targets` [T, V], `previous` [T] and `loss_mask` [T], of one of the ten answers,
    drawn by `seed` anew for each `set_epoch`.

    `labels` replaces the human answers and keeps only the questions it has: a dict (or a JSON file) from question id to
    an answer, or to a model's own answer as pieces. `imdb` is another file of questions than the split's, `tokenizer`
    another `tokenizer.json` than the one under `root`. `indices` select questions of the imdb, `limit` at most so many,
    the first ones. `images` is a dict that keeps all images read, to be shared by data sets of one split; by default 32
    are kept.

    Raises FileNotFoundError naming a missing file and where to get it, DataError (a ValueError) for files that do not
    hold what they should or not for this config, ValueError for bad arguments, ImportError without LMDB's package.
    """

    def __init__(
        self,
        root: str | Path,
        dataset: str = "textvqa",
        split: str = "train",
        *,
        config: SaLConfig | None = None,
        targets: bool = False,
        labels: str | Path | Mapping | None = None,
        imdb: str | Path | None = None,
        limit: int | None = None,
        indices: Sequence[int] | None = None,
        tokenizer: str | Path | None = None,
        seed: int = 0,
        images: dict | None = None,
    ) -> None:
        others = {"imdb": imdb, "tokenizer": tokenizer}
        for name, path in ({"root": root} | {name: path for name, path in others.items() if path is not None}).items():
            a_path(path, name)
        if (dataset, split) not in [(known, part) for known in LAYOUTS for part in SPLITS]:
            raise ValueError(
                f"dataset, split = {dataset!r}, {split!r}: must be one of {list(LAYOUTS)} and one of {list(SPLITS)}"
            )
        self.config = SaLConfig() if config is None else check_kind("config", config, SaLConfig)
        check_kind("images", {} if images is None else images, dict)
        self.with_targets = check_flag("targets", targets)
        self.root, self.dataset, self.split, self.seed = Path(root), dataset, split, check_count("seed", seed)
        self.path = Path(imdb or self._locate("imdb"))
        self.labels = None if labels is None else read_labels(labels)
        records = read_imdb(self.path, _words)
        self.records = choose(self.path, records, limit, indices, self.labels, self.with_targets)
        path = tokenizer or self._locate("tokenizer")
        self.pieces = Pieces(path)
        found, needed = (self.pieces.separator, len(self.pieces)), (self.config.separator, self.config.vocab_size)
        if found[0] != needed[0] or found[1] > needed[1]:
            raise DataError(
                f"{path}: <extra_id_0> is piece {found[0]} of {found[1]}; the config has separator {needed[0]} and a "
                f"vocab_size of {needed[1]}"
            )
        self._images: dict[tuple[str, ...], Image] = {} if images is None else images
        self._capacity = 32 if images is None else len(records)  # successive questions often share an image
        self._features: dict[str, Features] = {}
        self._spelled: dict[int, Spellings] = {}
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw other answers, and another order of shuffled `batches`."""
        self.epoch = check_count("epoch", epoch)
        self._draws = draws(self.seed, epoch, len(self))

    def preload(self) -> SaLDataset:
        """Read all images into memory now; returns self."""
        self._capacity = len(self)
        for record in self.records:
            self.image(record)
        return self

    def check_config(self, config: SaLConfig) -> None:
        """ValueError naming a size that a model of `config` has and this data set was not laid out for."""
        for field in FIELDS:
            own, other = getattr(self.config, field), getattr(config, field)
            if own != other:
                raise ValueError(f"data: laid out for {field} = {own}, the model's is {other}")

    def sample(self, index: int) -> dict[str, Any]:
        """A question as people read it: ids, question, answers, image file and size in pixels, OCR words and objects
        with their boxes [n, 4] relative to the image, and its label if `labels` were given."""
        record = self.records[whole("index", index)]
        image = self.image(record)
        shown = described(record, filter(Path.is_dir, below(self.root, FOLDERS, ("images", ""))))
        size = np.tile(np.array(shown["image_size"], np.float32), 2)
        words = self._read_words(record["ocr_t5_token"], record["ocr_tokens_index"], record["ocr_boxes"])
        shown["ocr_tokens"], shown["ocr_boxes"] = words
        words = self._read_words(image.obj_t5_token, image.obj_token_lengths, image.obj_boxes / size)
        shown["object_names"], shown["obj_boxes"] = words
        return shown | ({} if self.labels is None else {"label": self.labels[str(record["question_id"])]})

    def _read_words(self, pieces: np.ndarray, numbers: np.ndarray, boxes: np.ndarray) -> tuple[list[str], np.ndarray]:
        """The words that pieces, each with its word's number, write, and their boxes."""
        there = [number for number in dict.fromkeys(numbers.tolist()) if number < len(boxes)]
        return [self.pieces.read(pieces[numbers == number].tolist()) for number in there], boxes[there]

    def _locate(self, kind: str) -> Path:
        return locate_file(self.root, self.dataset, self.split, kind).found()

    def _key(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """By what an image's features may be found: its path, as published, with and without its ending, and the number
        at the path's end."""
        path = record["feature_path"]
        if self.dataset == "stvqa":
            folder = SPLITS[self.split]
            path = path if path.startswith(folder) else f"{folder}/{path}"
        elif "COCO" not in path and record["image_path"]:
            path = str(record["image_path"]).replace(".jpg", ".npy")
        stem = path.removesuffix(".npy")
        number = stem.rpartition("_")[2]
        return (path, stem, *([str(int(number))] if number.isdecimal() else []))

    def features(self, kind: str) -> Features:
        """Where the appearances of "objects" or "ocr" are."""
        if kind not in self._features:
            self._features[kind] = Features(self._locate(kind), WHAT[kind], self.config)
        return self._features[kind]

    def _read(self, record: Mapping[str, Any], key: tuple[str, ...]) -> Image:
        (where, objects, look), (_, _, ocr) = (self.features(kind)(key) for kind in ("objects", "ocr"))
        numbers = (_numbers(objects, name, where) for name in ("obj_t5_token", "obj_token_lengths"))
        return Image(*numbers, _boxes(objects, "bbox", where), look, ocr)

    def _batch(self, indices: list[int]) -> dict[str, Tensor]:
        rows = [self._row(self.records[i]) for i in indices]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}
        batch["index"] = np.array(indices, np.int64)
        if self.with_targets:
            steps = len(indices), self.config.answer_steps
            targets = np.zeros((*steps, self.config.vocab_size), np.float32)
            previous, mask = np.zeros(steps, np.int64), np.zeros(steps, np.float32)
            for i, *arrays in zip(indices, targets, previous, mask, strict=True):
                write_targets(self._spellings(i), PAD, EOS, *arrays, float(self._draws[i]))
            batch |= {"targets": targets, "previous": previous, "loss_mask": mask}
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _row(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
        question = self.pieces.encode(f"question: {record['question'].lower()}")
        try:
            return lay_out(record | self.image(record)._asdict() | {"question": question}, self.config)
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{self.path}, question {record['question_id']}: {error}") from error

    def _spellings(self, index: int) -> Spellings:
        if index not in self._spelled:
            record = self.records[index]
            label = record["answers"] if self.labels is None else self.labels[str(record["question_id"])]
            try:
                if self.labels is None or isinstance(label, str):
                    answers = [label] * 10 if isinstance(label, str) else label
                    made = spellings([plain_answer(answer) for answer in answers], self.pieces.encode)
                else:
                    made = label_spellings(label, self.config.vocab_size)
            except ValueError as error:
                raise DataError(f"{self.path}, question {record['question_id']}: {error}") from error
            self._spelled[index] = made
        return self._spelled[index]


def batches(dataset: SaLDataset, batch_size: int, **loading: Any) -> DataLoader:
    """A loader of dicts of tensors of `batch_size` questions (the last one may have fewer); `loading` and what it
    raises as of `lfpr.tap.batches`."""
    check_kind("dataset", dataset, SaLDataset)
    loader = load(dataset, batch_size, **loading)
    for kind in ("objects", "ocr") if loader.num_workers else ():
        dataset.features(kind).verify()  # once for all of them and for every pass
    return loader


def check(
    root: str | Path, dataset: str = "textvqa", split: str = "train", *, limit: int | None = None, **options: Any
) -> dict:
    """Read a split's files and report counts, sizes and what is wrong, instead of failing deep inside a run: as
    `lfpr.tap.check`, with the `vocabulary` of pieces. `writable`: an answer is made of known pieces, no more than are
    decoded.

    Raises ValueError for a bad `limit` or bad `options`.
    """
    limit = None if limit is None else check_count("limit", limit, 1)
    try:
        data = SaLDataset(root, dataset, split, **options)
    except (DataError, FileNotFoundError) as error:
        return {"questions": 0, "bad": 1, "first_bad": str(error)}

    def writable(answer: str) -> bool:
        pieces = data.pieces.encode(answer)
        return len(pieces) <= data.config.new_tokens and data.pieces.read(pieces) == answer

    def look(record: dict) -> tuple[int, int, bool]:
        data._row(record)
        written = any(writable(plain_answer(answer)) for answer in record["answers"])
        return len(data.image(record).obj_boxes), len(set(record["ocr_tokens_index"].tolist())), written

    sizes = {"feature_size": data.config.feature_size, "vocabulary": len(data.pieces)}
    return report(data, limit, look, **sizes)


class Features:
    """An LMDB environment of appearances: `self(names)` is where the image is that has one of these names, all that is
    there about it, and its `features` [n, F], at most the config's `max_features`. Raises DataError."""

    def __init__(self, path: Path, what: str, config: SaLConfig) -> None:
        self.path, self.what, self.config = path, what, config

    def verify(self) -> None:
        """Look through the file, which this process, and those that it forks, then need not do again."""
        _open(self.path).close()

    def __call__(self, names: Sequence[str]) -> tuple[str, dict, np.ndarray]:
        keys = [key for name in names if len(key := name.encode()) <= LONGEST_KEY]
        with _open(self.path) as environment, environment.begin() as transaction:
            value = next((value for key in keys if (value := transaction.get(key)) is not None), None)
        where = f"{self.path}, {names[0]}"
        if value is None:
            raise DataError(f"{self.path} ({self.what}): has none of {', '.join(names)}; {WHERE}")
        found = load_pickle(value, where, self.what)
        if not isinstance(found, dict) or "features" not in found:
            raise DataError(f"{where} ({self.what}): expected a dict with 'features', found {found!r:.80}")
        features = as_features(found["features"], where, self.what, self.config.feature_size)
        return where, found, features[: self.config.max_features]


def _open(path: Path) -> Any:
    """The environment, to be closed after each use: a process may not open one twice, nor use another one's."""
    file = path / "data.mdb" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{path} is no LMDB environment: there is no {file.name}; {WHERE}")
    about = file.stat()
    return _verified(path, file, about.st_size, about.st_mtime_ns)()


@lru_cache(maxsize=16)
def _verified(path: Path, file: Path, size: int, changed: int) -> Callable[[], Any]:
    """Opens the environment: once nothing wrong was found in its file, as LMDB goes wherever pages point, and dies of
    those that are not there."""
    lmdb, verify = lmdb_package()
    opener = partial(lmdb.open, str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False)
    try:
        problems = verify.verify(str(file))
        if not problems:
            with opener() as environment:
                pages = environment.info()["last_pgno"] + 1
                problems = [f"{pages} pages in {size} bytes"] * (pages * environment.stat()["psize"] > size)
    except (verify.VerifyError, lmdb.Error, OSError) as error:
        problems = [str(error)]
    if problems:
        raise DataError(f"{file} is no whole LMDB file: {problems[0]}; copy it again, {WHERE}")
    return opener


def lmdb_package() -> tuple[ModuleType, ModuleType]:
    """The optional package `lmdb`, and its `verify`. Raises ImportError saying what to install."""
    try:
        import lmdb
        from lmdb import verify
    except ImportError as error:
        raise ImportError("SaL's features are in LMDB files: pip install 'lfpr[sal]' (lmdb, 3 or later)") from error
    return lmdb, verify


def _words(row: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
    """What SaL's imdb has of the OCR words, beside what TAP's has."""
    numbers = {name: _numbers(row, name, where) for name in ("ocr_t5_token", "ocr_tokens_index")}
    return numbers | {"ocr_boxes": _boxes(row, "wordlevel_ocr_normalized_boxes", where)}


def _numbers(row: Mapping[str, Any], name: str, where: str) -> np.ndarray:
    """[n] int64, from 0 on."""
    values = row.get(name)
    try:
        array = np.asarray([] if values is None else values)
    except ValueError:  # lists of several lengths
        array = np.zeros((1, 1))
    if values is None or array.ndim != 1 or (array.size and (array.dtype.kind not in "iu" or array.min() < 0)):
        raise DataError(f"{where}: '{name}' is {values!r:.80}, expected whole numbers from 0 on; {WHERE}")
    return array.astype(np.int64)


def _boxes(row: Mapping[str, Any], name: str, where: str) -> np.ndarray:
    """[n, 4] float32; where there are none, files have a list of no dimension more, read as one that is zero."""
    try:
        array = np.asarray(row[name], np.float32)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: '{name}' is {row.get(name)!r:.80}, expected boxes; {WHERE}") from error
    if array.ndim == 1:
        return np.zeros((1, 4), np.float32)
    if array.ndim != 2 or array.shape[1] < 4 or not np.isfinite(array[:, :4]).all():
        raise DataError(f"{where}: '{name}' has shape {list(array.shape)}, expected finite numbers [n, 4 or more]")
    return array[:, :4]
