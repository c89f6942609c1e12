"""Made-up files in the published layouts of TAP at their real sizes, for a rehearsal of the profile `full`.

A handful of questions with random features, vocabularies as long as the real ones, word vectors in FastText's binary
format, and a checkpoint of random weights with the published names. What is odd in the real files is odd here too: an
image with more than 100 OCR tokens and one with none, a file written by Python 2, header rows, `valid_answers`, and a
training configuration inside the checkpoint.
"""

import pickle
import pickletools
import sys
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from numpy.lib import format as npy
from torch import nn

from lfpr.files import write_whole
from lfpr.mini.datasets import answer_words, word_pieces
from lfpr.tap.layout import FASTTEXT, LAYOUTS, OBJECT_NAMES, TEXT_VOCAB, info_path
from lfpr.tap.model import TAP
from lfpr.tap.vectors import ARGUMENTS, ENTRIES, INPUTS, MAGIC, VERSION

PIECES, ANSWERS, CLASSES, FEATURES = 30522, 5000, 1600, 2048
WORDS = ("Coca-Cola,", "STOP", "$5.99", "mcdonald's", "café", "12th", "Street", "OPEN", "24", "hours", "7up", "№",
         "東京")  # fmt: skip
QUESTIONS = (
    "what is the brand of this camera?",
    "What does the sign say?",
    "what number is on the bus?",
    "who wrote the book on the left",
)
IMAGES = ((100, 20), (100, 130), (100, 0), (120, 7), (36, 55))
"""Objects and OCR tokens of the images in turn; the model reads up to 100 of each."""
PYTHON_2 = 3  # the image whose OCR tokens Python 2 wrote
FOLDERS = {"textvqa": ("",), "stvqa": ("coco-text", "vizwiz")}  # of the images' features


class Places(NamedTuple):
    """Where files are below the data root: TAP's `data/`, the word vectors and pieces, and the folder of checkpoints;
    `sets`: what ST-VQA's folder is called in LFPR's own sets."""

    data: str = ""
    vectors: str = FASTTEXT
    pieces: str = TEXT_VOCAB
    checkpoints: str = ".."
    sets: str = "original_dl/ST-VQA/"


KEPT = {
    "one folder": Places(),
    "own": Places("tap", f"tap/{FASTTEXT}", f"tap/{TEXT_VOCAB}", "checkpoints"),
    "AzCopy": Places("data", f"data/{FASTTEXT}", TEXT_VOCAB, "save/finetuned"),
    "AzCopy into folders": Places("data/data", FASTTEXT, f"data/{TEXT_VOCAB}", "save/save/finetuned"),
    "TAP": Places("data", f"pythia/{FASTTEXT}", TEXT_VOCAB, "save/finetuned"),
    "LFPR": Places("TAP/data", f"TAP/pythia/{FASTTEXT}", TEXT_VOCAB, "TAP/save/finetuned", "original_dl/"),
    "data beside": Places("", f"../pythia/{FASTTEXT}", f"../{TEXT_VOCAB}", "../save/finetuned", "original_dl/"),
}
"""Ways to keep what was downloaded, by what the folder is."""


def write_tap_files(root: str | Path, dataset: str, questions: dict[str, int], places: Places = KEPT["one folder"]):
    """Write what `lfpr.tap.data` reads of `dataset`: `questions` (split -> how many), vocabularies, word vectors.

    The split "test" has no answers; "score" repeats questions of "train".
    """
    _write_words(Path(root, places.pieces), word_pieces(dataset), PIECES)
    write_fasttext(Path(root, places.vectors), [word.lower() for word in WORDS])
    root = Path(root, places.data)
    _write_words(root / LAYOUTS[dataset, "train"].answers, answer_words(dataset), ANSWERS)
    _write_words(root / OBJECT_NAMES, ["sign", "bus", "bottle of water"], CLASSES)
    for split, count in questions.items():
        origin = "train" if split == "score" else split
        rng = np.random.default_rng([*origin.encode(), *dataset.encode()])
        images = [_write_image(root, dataset, origin, number, rng) for number in range(min(len(IMAGES), count))]
        rows = [_question(images[i % len(images)], dataset, origin, i, rng) for i in range(count)]
        header = [] if split == "val" else [{"version": 1.0, "dataset_name": f"m4c_{dataset}", "dataset_type": split}]
        imdb = LAYOUTS[dataset, split].imdb
        imdb = imdb.replace("original_dl/ST-VQA/", places.sets) if split == "score" else imdb
        _save(root / imdb, _objects(header + rows))


def write_labels(root: str | Path, dataset: str, path: str | Path, count: int, answer: str = "stop") -> None:
    """Write the first `count` training questions as LFPR writes a model's answers: an imdb, each answer ten times."""
    rows = np.load(Path(root) / LAYOUTS[dataset, "train"].imdb, allow_pickle=True)
    rows = [row for row in rows if "image_id" in row][:count]
    _save(Path(path), _objects([{"version": 1.0}, *(row | {"answers": [answer] * 10} for row in rows)]))


def _write_image(root: Path, dataset: str, split: str, number: int, rng: np.random.Generator) -> dict:
    """Write the features of an image; returns what its questions have in common."""
    layout, folders = LAYOUTS[dataset, split], FOLDERS[dataset]
    objects, tokens = IMAGES[number % len(IMAGES)]
    width, height = 1024, 680
    name = f"{dataset}_{split}_{number:04d}"
    path = Path(folders[number % len(folders)], f"{name}.npy")
    words = [str(word) for word in rng.choice(WORDS, tokens)]
    about = {"bbox": _boxes(objects, width, height, rng), "num_boxes": objects, "conf": rng.random(objects)}
    about |= {"objects": rng.integers(0, CLASSES + 1, objects), "image_width": width, "image_height": height}
    _save(root / layout.objects / path, rng.random((objects, FEATURES), np.float32))
    _save(info_path(root / layout.objects / path), _objects(about))
    about = {"ocr_tokens": words, "ocr_boxes": _boxes(tokens, width, height, rng), "ocr_conf": rng.random(tokens)}
    _save(root / layout.ocr / path, rng.random((tokens, FEATURES), np.float32))
    write = _save_python_2 if number == PYTHON_2 else _save
    write(info_path(root / layout.ocr / path), _objects(about))
    return {
        "image_id": name,
        "image_path": f"{split}/{name}.jpg",
        "feature_path": str(path),
        "image_width": width,
        "image_height": height,
        "ocr_tokens": words,
    }


def _question(image: dict, dataset: str, split: str, number: int, rng: np.random.Generator) -> dict:
    """A row of the imdb; every third has its answers under another name."""
    row = image | {"question_id": number, "question": QUESTIONS[number % len(QUESTIONS)]}
    if split == "test":
        return row
    count = 10 if dataset == "textvqa" else int(rng.integers(1, 4))
    words = image["ocr_tokens"][:3] or ["yes", "no"]
    return row | {"answers" if number % 3 else "valid_answers": [str(word) for word in rng.choice(words, count)]}


def _boxes(count: int, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes x1, y1, x2, y2 in pixels [count, 4]."""
    corners = np.sort(rng.random((count, 2, 2)), axis=1) * (width, height)
    return corners.reshape(count, 4).astype(np.float32)


def _objects(value: object) -> np.ndarray:
    """An object array of a list's entries, or of one dict."""
    array = np.empty(len(value) if isinstance(value, list) else (), object)
    array[...] = value
    return array


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def _save_python_2(path: Path, array: np.ndarray) -> None:
    """As Python 2 and NumPy 1 save an object array: plain text in 8-bit strings, names in numpy.core."""
    whole = pickle.dumps(array, protocol=2).replace(b"numpy._core", b"numpy.core")
    steps = list(pickletools.genops(whole))
    ends = [*(start for _, _, start in steps[1:]), len(whole)]
    with path.open("wb") as file:
        npy.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": array.shape})
        for (opcode, text, start), end in zip(steps, ends, strict=True):
            short = opcode.name == "BINUNICODE" and text.isascii() and len(text) < 256
            file.write(b"U" + bytes([len(text)]) + text.encode() if short else whole[start:end])


def _write_words(path: Path, words: Sequence[str], length: int) -> None:
    """A vocabulary of `length` words, made-up ones after `words`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [*words, *(f"word{i}" for i in range(length - len(words)))]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_fasttext(path: str | Path, words: Iterable[str], dim: int = 300, buckets: int = 2000) -> None:
    """Random vectors of `words` and of hashed n-grams of 3 to 6 characters in FastText's binary format."""
    words = list(dict.fromkeys(["</s>", *words]))
    training = (5, 5, 1, 5, 1, 2, 2)  # window, epochs, ... : not read
    parts = [ARGUMENTS.pack(MAGIC, VERSION, dim, *training, buckets, 3, 6, 100, 1e-4)]
    parts.append(ENTRIES.pack(len(words), len(words), 0, len(words), -1))
    parts += [word.encode() + bytes(1) + (1).to_bytes(8, "little") + bytes(1) for word in words]
    rows = len(words) + buckets
    parts.append(INPUTS.pack(False, rows, dim))
    parts.append(np.random.default_rng(0).standard_normal((rows, dim), np.float32).tobytes())
    write_whole(path, lambda partial: partial.write_bytes(b"".join(parts)))


def pretraining_heads(model: TAP, inner: int = 512) -> dict[str, torch.Tensor]:
    """Weights of the heads that TAP is pre-trained with: words masked (its matrix is that of the embeddings), text that
    does not belong to the image, regions that overlap."""
    words, width = model.text_bert.embeddings.word_embeddings.weight.detach(), model.config.hidden_size
    layers = {"cls.transform": (width, width), "pollute_cls": (width, inner), "overlap_cls": (2 * width, inner)}
    state = {"cls.bias": torch.zeros(len(words)), "cls.decoder.weight": words}
    for name, (fan_in, fan_out) in layers.items():
        state |= {f"{name}.dense.{key}": value for key, value in nn.Linear(fan_in, fan_out).state_dict().items()}
        state |= {f"{name}.LayerNorm.{key}": value for key, value in nn.LayerNorm(fan_out).state_dict().items()}
        if name != "cls.transform":
            state |= {f"{name}.decoder.{key}": value for key, value in nn.Linear(fan_out, 1).state_dict().items()}
    return state


class ConfigNode(OrderedDict):
    """Stands for the class of the training configuration in published checkpoints, which has this name and module."""


ConfigNode.__module__ = "pythia.utils.configuration"


def write_checkpoint(path: str | Path, model: TAP) -> None:
    """Write `model` as its published training does: weights, those of its pre-training's heads, the optimiser's state,
    and the configuration."""
    state = model.state_dict() | pretraining_heads(model)
    names = [name for name, _ in model.named_parameters()]
    moments = {i: {"step": 9, "exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)} for i in range(len(names))}
    config = ConfigNode(model="m4c_split", training_parameters=ConfigNode(batch_size=128, lr_steps=[14000, 19000]))
    whole = {
        "model": state,
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(range(len(names)))}]},
        "best_iteration": 21000,
        "best_metric_value": 0.4991,
        "config": config,
    }
    modules = {name: ModuleType(name) for name in ("pythia", "pythia.utils", "pythia.utils.configuration")}
    modules["pythia.utils.configuration"].ConfigNode = ConfigNode
    with patch.dict(sys.modules, modules):  # pickle looks the class up where it says it is
        write_whole(path, lambda partial: torch.save(whole, partial))
