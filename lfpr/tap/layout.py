"""Where TAP's released files are and what is in them: annotations (imdb), object and OCR features of images.

The layout is that of `microsoft/TAP` (see data/README.md). An imdb lists questions; features of an image are
`PATH.npy` [n, F] with boxes and names in `PATH_info.npy`, once for objects and once for OCR. OCR tokens come from
the latter, not from the imdb.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lfpr.checks import check_count
from lfpr.files import DataError, Located, below, cache_folder, existing, hub, locate
from lfpr.reading import check_inside
from lfpr.tap.metrics import word_tokenize
from lfpr.tap.pickles import load_dict, load_features, load_npy
from lfpr.tap.text import PHOC_SIZE, WordPieces, read_words

TEXT_VOCAB = "bert-base-uncased/vocab.txt"
OBJECT_NAMES = "1600-400-20/objects_vocab.txt"
FASTTEXT = ".vector_cache/wiki.en.bin"


@dataclass(frozen=True)
class InputSizes:
    """Lengths and widths of the model's inputs; the defaults are the released ones.

    `question_tokens`, `ocr_tokens_text` and `obj_tokens_text` count word pieces. Raises ValueError naming a field
    that is not an integer of at least 1, or a `phoc_size` that is not PHOC's.
    """

    question_tokens: int = 20
    ocr_tokens_text: int = 100
    obj_tokens_text: int = 50
    num_objects: int = 100
    num_ocr: int = 100
    feature_size: int = 2048
    fasttext_size: int = 300
    phoc_size: int = PHOC_SIZE
    decoding_steps: int = 12

    def __post_init__(self) -> None:
        for field in fields(self):
            value = check_count(f"InputSizes.{field.name}", getattr(self, field.name), 1)
            object.__setattr__(self, field.name, value)
        if self.phoc_size != PHOC_SIZE:
            raise ValueError(f"InputSizes.phoc_size = {self.phoc_size}: PHOC has {PHOC_SIZE} positions")


class Layout(NamedTuple):
    """Where one split's files are, relative to TAP's `data/`."""

    imdb: str
    objects: str
    ocr: str
    answers: str


def _layouts() -> dict[tuple[str, str], Layout]:
    table = {}
    vocab, imdb = "m4c_vocabs/{0}/fixed_answer_vocab_{0}_5k.txt", "imdb/m4c_textvqa/"
    train = "feat_resx/train", "ocr_feat_resx/textvqa_conf/train_images", vocab.format("textvqa")
    test = "feat_resx/test", "ocr_feat_resx/textvqa_conf/test_images", vocab.format("textvqa")
    table["textvqa", "train"] = Layout(imdb + "imdb_train_ocr_en.npy", *train)
    table["textvqa", "val"] = Layout(imdb + "imdb_val_ocr_en.npy", *train)
    table["textvqa", "test"] = Layout(imdb + "imdb_test_ocr_en.npy", *test)
    table["textvqa", "score"] = Layout(imdb + "calculate_score/imdb_train_3k.npy", *train)
    imdb = "original_dl/ST-VQA/m4c_stvqa/"
    train = "feat_resx/stvqa/train", "ocr_feat_resx/stvqa_conf", vocab.format("stvqa")
    test = "feat_resx/stvqa/test_task3", "ocr_feat_resx/stvqa_conf/test_task3", vocab.format("stvqa")
    table["stvqa", "train"] = Layout(imdb + "imdb_subtrain.npy", *train)
    table["stvqa", "val"] = Layout(imdb + "imdb_subval.npy", *train)
    table["stvqa", "test"] = Layout(imdb + "imdb_test_task3.npy", *test)
    table["stvqa", "score"] = Layout(imdb + "calculate_score/imdb_train_3k.npy", *train)
    return table


LAYOUTS = _layouts()
"""(dataset, split) -> Layout. `score` is the 3,000 training questions that LFPR computes importances from."""
SCORE_SET = "calculate_score/imdb_train_3k.npy"
LABELS = "{}/train_pred_{}pct.npy"
"""LFPR's own files, of `Files.released`: questions behind its importance; in a model's folder, its answers to whole per
cents of the training questions."""


class Image(NamedTuple):
    """One image's objects and OCR tokens, cut to the sizes; text is word pieces, boxes relative x1, y1, x2, y2."""

    obj_features: np.ndarray  # [n, F]
    obj_boxes: np.ndarray  # [n, 4]
    obj_names: list[str]  # all of them
    obj_text: np.ndarray  # [50]
    ocr_features: np.ndarray  # [m, F]
    ocr_boxes: np.ndarray  # [m, 4]
    ocr_tokens: list[str]
    ocr_text: np.ndarray  # [100]


LONGEST_SIDE = 10**6  # of an image, in pixels
BEYOND = 2
"""By how many sizes of its image a box may reach beyond it: readers of turned text overshoot, and boxes of a photograph
whose sides were swapped are up to three times too long; what is farther out is of another image or in another unit."""
HOMES = ("", "tap", "TAP", "..", "../..")
DATA = ("", "data", "data/data", "tap", "tap/data", "TAP/data", "TAP/data/data")
"""Folders below the data root that may be TAP's `data/`, in order: it is the root itself; or in it, where AzCopy may
make a folder `data` in the one it is given; or in our own layout; or in a checkout."""
VECTORS = (*DATA, "pythia", "TAP/pythia", "..", "../pythia", "../TAP/pythia", "../../pythia")
"""Folders that may hold FastText's `.vector_cache/`: TAP's code keeps it in its `pythia/`."""
CHECKPOINTS = ("save/finetuned/{0}", "save/save/finetuned/{0}", "checkpoints/{1}", "checkpoints/{0}")
"""Published checkpoints, {0}, in one of `HOMES`: beside `data/`; in our own layout, {1}, beside `tap/`."""
USES = {
    "train": "importance and retraining",
    "val": "scores",
    "test": "answers to submit",
    "score": "importance as LFPR computes it",
}
"""Split -> what it is for."""
OPTIONAL = ("test", "score")


def _pieces() -> Iterator[Path]:
    """BERT's vocabulary in the caches of transformers and of its early version, pytorch_transformers, that TAP's code
    holds: a file HASH there has its address in HASH.json."""
    for model in ("bert-base-uncased", "google-bert/bert-base-uncased"):
        yield from hub(model, "vocab.txt")
    torch_home = os.environ.get("TORCH_HOME") or cache_folder("torch")
    folder = Path(os.environ.get("PYTORCH_TRANSFORMERS_CACHE") or Path(torch_home, "pytorch_transformers")).expanduser()
    name = "bert-base-uncased-vocab.txt"
    for note in sorted(folder.glob("*.json")):
        try:
            if str(json.loads(note.read_text())["url"]).endswith(name):
                yield note.with_suffix("")
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # another program's file
            continue
    yield folder / name


class Kind(NamedTuple):
    """What a file is and is needed for, and where: `file`, by default that of `Layout`, in `folders` relative to the
    data root, or `elsewhere`."""

    what: str
    needed_for: str = ""
    file: str = ""
    folders: tuple[str, ...] = DATA
    elsewhere: Callable[[], Iterable[Path]] = tuple


KINDS = {
    "imdb": Kind("{} questions"),
    "answers": Kind("answer vocabulary", "answers"),
    "objects": Kind("object features", "every question"),
    "ocr": Kind("OCR features", "every question"),
    "names": Kind("names of object classes", "every question", OBJECT_NAMES),
    "pieces": Kind("BERT's word pieces", "every question", TEXT_VOCAB, (*DATA, ".."), _pieces),
    "vectors": Kind("FastText's word vectors", "OCR tokens", FASTTEXT, VECTORS),
}
"""What a split is read from."""


class Files:
    """Where the files of a split are, below the data root or around it: `files[kind]` is a path, looked for once.

    Raises FileNotFoundError, when asked for one that is missing, naming all places.
    """

    def __init__(self, root: str | Path, dataset: str, split: str) -> None:
        self.root, self.dataset, self.split = root, dataset, split
        self._found: dict[str, Path] = {}

    def __getitem__(self, kind: str) -> Path:
        if kind not in self._found:
            self._found[kind] = self.locate(kind).found()
        return self._found[kind]

    def locate(self, kind: str) -> Located:
        """Where a file of `KINDS` is, or where it was looked for."""
        about = KINDS[kind]
        places = self._places(about.file or getattr(LAYOUTS[self.dataset, self.split], kind), about.folders)
        optional = self.split in OPTIONAL
        needed_for = USES[self.split] if optional else about.needed_for or USES[self.split]
        return locate(about.what.format(self.split), chain(places, about.elsewhere()), needed_for, optional)

    def released(self, name: str) -> Located:
        """LFPR's own file or folder `name` for this data set, which belongs beside the questions."""
        folder = Path(LAYOUTS[self.dataset, "train"].imdb).parent
        return locate(f"LFPR's {name}", self._places(f"{folder}/{name}", DATA), "retraining as LFPR does it", True)

    def _places(self, file: str, folders: Iterable[str]) -> Iterator[Path]:
        """LFPR's README leaves a folder out that its configurations have."""
        return below(self.root, folders, dict.fromkeys((file, file.replace("original_dl/ST-VQA/", "original_dl/"))))

    def image_folders(self) -> list[Path]:
        """Where images may be, to look at."""
        return [place for place in below(self.root, DATA, ("images", "")) if place.is_dir()]


def locate_checkpoint(root: str | Path, published: str, own: str) -> Located:
    """The unpruned model, by its published name or our own, below the data root or beside it."""
    names = [name.format(published, own) for name in CHECKPOINTS]
    return locate("unpruned TAP model", below(root, HOMES, names), "everything")


class ImageReader:
    """Reads the objects and OCR tokens of images of one split (`files`, see `Files`), cut to `sizes`, their names as
    word pieces.

    `self(record)` -> Image; raises FileNotFoundError and DataError naming the file, what was expected and what was
    found.
    """

    def __init__(self, files: Files, sizes: InputSizes, pieces: WordPieces) -> None:
        self.files, self.sizes, self.pieces = files, sizes, pieces
        self._names: list[str] | None = None

    def __call__(self, record: dict) -> Image:
        scale = np.tile([1 / record["image_width"], 1 / record["image_height"]], 2)
        objects, ocr = (self.files[kind] / record["feature_path"] for kind in ("objects", "ocr"))
        try:
            return Image(*self._objects(objects, scale), *self._ocr(ocr, scale))
        except DataError:
            raise
        except (TypeError, ValueError, OverflowError) as error:  # a field of another type than TAP's
            raise DataError(f"{info_path(objects)} or {info_path(ocr)}: {error}") from error

    def _objects(self, path: Path, scale: np.ndarray) -> tuple:
        features, info = _features_and_info(path, "object features", self.sizes.feature_size)
        names = _words(path, info, "object_tokens") if "object_tokens" in info else self._class_names(path, info)
        n = min(len(features), self.sizes.num_objects)
        pieces = self.pieces.encode(" ".join(names), self.sizes.obj_tokens_text, first_part=False)
        return features[:n], _boxes(path, info, "bbox", n, scale), names, pieces

    def _ocr(self, path: Path, scale: np.ndarray) -> tuple:
        features, info = _features_and_info(path, "OCR features", self.sizes.feature_size)
        if "ocr_tokens" not in info:
            raise DataError(f"{info_path(path)}: no 'ocr_tokens' among {list(info)}")
        tokens = [word_tokenize(token) for token in _words(path, info, "ocr_tokens")[: self.sizes.num_ocr]]
        n = len(tokens)
        if len(features) < n:
            raise DataError(f"{path}: {len(features)} rows of features for {n} OCR tokens in {info_path(path).name}")
        pieces = self.pieces.encode(" ".join(tokens), self.sizes.ocr_tokens_text, first_part=False)
        return features[:n], _boxes(path, info, "ocr_boxes", n, scale), tokens, pieces

    def _class_names(self, path: Path, info: dict) -> list[str]:
        if "objects" not in info:
            raise DataError(f"{info_path(path)}: neither 'object_tokens' nor 'objects' among {list(info)}")
        if self._names is None:  # class 0 is the background, the file begins with class 1
            self._names = ["background", *read_words(self.files["names"], "names of object classes")]
        outside = [k for k in info["objects"] if not (0 <= k < len(self._names) and k == int(k))]
        if outside:
            raise DataError(
                f"{info_path(path)}: object class {outside[0]} is not among {len(self._names)} in {OBJECT_NAMES}"
            )
        return [self._names[int(k)] for k in info["objects"]]


def info_path(path: Path) -> Path:
    """`PATH_info.npy` beside `PATH.npy`."""
    return path.with_name(path.name.removesuffix(".npy") + "_info.npy")


def _features_and_info(path: Path, what: str, width: int) -> tuple[np.ndarray, dict]:
    return load_features(path, what, width), load_dict(info_path(path), f"boxes and names of {what}")


def _words(path: Path, info: dict, key: str) -> list[str]:
    if not isinstance(info[key], list | tuple | np.ndarray) or np.ndim(info[key]) == 0:
        raise DataError(f"{info_path(path)}: '{key}' is {info[key]!r:.80}, expected a list of words")
    words = list(info[key])
    if other := [word for word in words if not isinstance(word, str)]:
        raise DataError(f"{info_path(path)}: '{key}' has {other[0]!r:.80}, expected words")
    return words


def _boxes(path: Path, info: dict, key: str, n: int, scale: np.ndarray) -> np.ndarray:
    boxes = np.asarray(info.get(key, ()), np.float32)
    if n and (boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) < n):
        raise DataError(f"{info_path(path)}: expected '{key}' of shape [at least {n}, 4], found {list(boxes.shape)}")
    if not n:
        return np.zeros((0, 4), np.float32)
    boxes = (boxes[:n] * scale).astype(np.float32)
    outside = ~((boxes >= -BEYOND) & (boxes <= 1 + BEYOND)).all(1)
    if outside.any():
        first = int(outside.argmax())
        raise DataError(
            f"{info_path(path)}: '{key}' number {first} is {boxes[first].tolist()} in sizes of the image, expected "
            f"numbers from {-BEYOND} to {1 + BEYOND}"
        )
    return boxes


def read_imdb(path: str | Path, more: Callable[[dict, str], dict] | None = None) -> list[dict[str, Any]]:
    """Records of an imdb, without its header row and reduced to the fields used here.

    Each has `question`, `question_id`, `image_id`, `image_width`, `image_height`, `feature_path`,
    `image_path` and `kind` of question (or None), `answers` (empty if the split has none), and what `more(row, where)`
    finds in the file's row. Raises DataError naming the first record that lacks one of them. Not to be changed: while
    the file is the same, so is the list.
    """
    stat = existing(path, "annotations (imdb)").stat()
    return _read_imdb(path, more, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)  # the splits of an experiment: TextVQA's 34,602 training questions take seconds to read
def _read_imdb(path: str | Path, more: Callable[[dict, str], dict] | None, *_version: int) -> list[dict[str, Any]]:
    rows = load_npy(path, "annotations (imdb)")
    if rows.dtype != object or rows.ndim != 1:
        raise DataError(f"{path}: an imdb is a list of dicts, found an array of {rows.dtype} of shape {rows.shape}")
    start = int(len(rows) > 0 and isinstance(rows[0], dict) and "image_id" not in rows[0])
    named = [(row, f"{path}, record {i}") for i, row in enumerate(rows[start:], start)]
    return [_record(row, where) | ({} if more is None else more(row, where)) for row, where in named]


def _record(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a dict, found {type(row).__name__}")
    record = {key: _plain(row.get(key)) for key in ("question_id", "image_id", "image_width", "image_height")}
    absent = [key for key, value in record.items() if value is None]
    question = row.get("question", row.get("question_str"))
    if absent or not isinstance(question, str):
        raise DataError(f"{where}: lacks {absent or 'question or question_str'}; it has {list(row)}")
    if any(
        isinstance(record[key], bool) or not isinstance(record[key], int | str) for key in ("question_id", "image_id")
    ):
        raise DataError(f"{where}: question_id, image_id are {record['question_id']!r:.80}, {record['image_id']!r:.80}")
    size = record["image_width"], record["image_height"]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and 0 < n <= LONGEST_SIDE for n in size):
        raise DataError(f"{where}: image size {size[0]} x {size[1]}")
    answers = next((row[key] for key in ("answers", "valid_answers", "all_answers") if key in row), ())
    if not isinstance(answers, list | tuple | np.ndarray) or getattr(answers, "ndim", 1) != 1:
        raise DataError(f"{where}: answers are a {type(answers).__name__}, expected a list of strings")
    if other := [answer for answer in answers if isinstance(answer, bool) or not isinstance(answer, str | int)]:
        raise DataError(f"{where}: an answer is {other[0]!r:.80}, expected text")
    path = row.get("feature_path")
    if path is None or (isinstance(path, str) and not path):
        path = f"{record['image_id']}.npy"
    check_inside(path, where)
    return record | {
        "question": question,
        "answers": [str(answer) for answer in answers if answer != "<copy>"],  # a marker in older files
        "feature_path": path,
        "image_path": row.get("image_path"),
        "kind": row.get("question_kind"),
    }


def _plain(value: Any) -> Any:
    """A NumPy number as Python's, which JSON knows."""
    return value.item() if isinstance(value, np.generic) else value
