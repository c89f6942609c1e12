"""Rendered data sets in the released layouts: the small profile goes through the same loaders as the real data.

`write_tap` makes a TextVQA or ST-VQA data folder as `microsoft/TAP` distributes it: annotations (imdb), object and
OCR features with their boxes, vocabularies, and some images to look at. An image's id is its scene's seed in
hexadecimal digits. The two sets share no image, no question and few ways to ask.
"""

import hashlib
import io
import json
import random
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from PIL.Image import Image
from tqdm.auto import trange

from lfpr.files import NotSaved, saving, write_json
from lfpr.manifest import seal, verify
from lfpr.mini.features import box_features, carrier_boxes
from lfpr.mini.questions import (
    MAX_QUESTIONS,
    STVQA_TEMPLATES,
    TEMPLATES,
    Question,
    human_answers,
    make_questions,
    misread,
)
from lfpr.mini.scenes import CLASSES, COLOURS, LEXICON, Scene, make_scene, require_integer
from lfpr.tap.layout import LAYOUTS, OBJECT_NAMES, TEXT_VOCAB

FORMAT, STAMP = 2, "dataset.json"
"""Part of every data set's parameters: raise it when the same parameters give other data."""

SCENE = {"max_objects": 3, "max_words": 2}
"""What the scenes hold: more objects or words make a small model need hours of training."""

FIRST_QUESTION = {"train": 0, "val": 10_000_000}
SCORE_QUESTIONS = 3000  # LFPR's sample for importance scores


@dataclass(frozen=True)
class Form:
    """What sets one data set apart: how it asks, how many people answer, how often OCR errs, where images come from."""

    templates: dict[str, tuple[str, str]]
    answers: tuple[int, int]  # fewest and most answers to a question
    ocr_error: float
    sources: tuple[str, ...]  # folders of the images' features


FORMS = {
    "textvqa": Form(TEMPLATES, (10, 10), 0.05, ("",)),
    "stvqa": Form(STVQA_TEMPLATES, (1, 3), 0.08, ("coco-text", "icdar", "vizwiz")),
}


def image_id(seed: int, split: str, index: int) -> str:
    """Sixteen hexadecimal digits; `draw(image_id)` is the image."""
    return hashlib.sha256(f"{seed}/{split}/{index}".encode()).hexdigest()[:16]


def draw(image_id: str) -> Image:
    """The RGB image of 128 x 128 pixels that has this id, whether or not there is a file of it."""
    return make_scene(int(image_id, 16), **SCENE).image


def write_tap(
    root: str | Path,
    dataset: str = "textvqa",
    train_images: int = 3000,
    val_images: int = 600,
    questions_per_image: int = 4,
    images: int = 32,
    ocr_error: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict:
    """Make a `dataset` ("textvqa", "stvqa") folder in TAP's layout at `root`, unless it is there already.

    The train images of a small set are the first ones of a larger set with the same seed. The folder is built beside
    `root` and renamed when complete; `root/dataset.json` holds the parameters, and other parameters rebuild it.

    Args:
        train_images, val_images: scenes per split; each has `questions_per_image` (1 to 5) questions, in ST-VQA fewer
            where a scene has little to ask about. TextVQA has 10 answers to each, ST-VQA 1 to 3.
        images: how many images of each split are also written as JPEG, to look at.
        ocr_error: probability that an OCR token has one wrong character; by default 0.05, in ST-VQA 0.08.
        progress: show a bar (15,000 images take about a minute).

    Returns:
        The contents of `dataset.json`.

    Raises:
        ValueError: a parameter is out of range, or `root` holds something that this function did not write.
    """
    parameters = checked(dataset, train_images, val_images, questions_per_image, images, ocr_error, seed)
    return make_once(Path(root).resolve(), parameters, partial(_build_tap, progress=progress))


def checked(
    dataset: str,
    train_images: int,
    val_images: int,
    questions_per_image: int,
    images: int,
    ocr_error: float | None,
    seed: int,
) -> dict:
    """The parameters of a data set, as its `dataset.json` holds them. Raises as `write_tap`."""
    if dataset not in FORMS:
        raise ValueError(f"dataset is {dataset!r}, must be one of {list(FORMS)}")
    parameters = {
        "train_images": train_images,
        "val_images": val_images,
        "questions_per_image": questions_per_image,
        "images": images,
        "ocr_error": FORMS[dataset].ocr_error if ocr_error is None else ocr_error,
        "seed": seed,
    }
    for name, low in (("train_images", 1), ("val_images", 1), ("images", 0), ("seed", 0)):
        require_integer(name, parameters[name], low)
    require_integer("questions_per_image", questions_per_image, 1, MAX_QUESTIONS)
    if not 0 <= parameters["ocr_error"] <= 1:
        raise ValueError(f"ocr_error is {ocr_error!r}, must be from 0 to 1")
    return parameters | {"dataset": dataset, "format": FORMAT}


def make_once(root: Path, parameters: dict, build: Callable[[Path, dict], None]) -> dict:
    """Fill `root` with `build(folder, parameters)` unless its `dataset.json` has these parameters.

    Raises ValueError for a folder of another origin, Damaged for one that lacks files or has cut ones, NotSaved where
    nothing can be written.
    """
    lock = FileLock(root.with_name(f"{root.name}.lock"))
    try:
        with saving(root):
            root.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
    except NotSaved:
        if _made(root) == parameters:  # in a folder that can only be read
            return parameters
        raise
    try:
        made = _made(root)
        if made == parameters:
            return parameters
        if root.exists() and "format" not in made and not (root.is_dir() and not any(root.iterdir())):
            raise ValueError(f"root {root} holds files of another origin: choose an empty or new folder")
        unfinished = root.with_name(f"{root.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        with saving(root):
            unfinished.mkdir()
            build(unfinished, parameters)
            write_json(unfinished / STAMP, parameters)
            seal(unfinished)
            shutil.rmtree(root, ignore_errors=True)
            unfinished.rename(root)
    finally:
        lock.release()
    return parameters


def _made(root: Path) -> dict:
    """The parameters of the data set in `root`; empty if there is none."""
    verify(root, hashed=[STAMP])  # all 14,000 files take a second to read
    return json.loads((root / STAMP).read_text()) if (root / STAMP).exists() else {}


def _build_tap(root: Path, parameters: dict, progress: bool) -> None:
    dataset = parameters["dataset"]
    (root / "images/train").mkdir(parents=True)
    for split in ("train", "val"):
        layout, rows = LAYOUTS[dataset, split], []
        for folder, source in product((layout.objects, layout.ocr), FORMS[dataset].sources):
            (root / folder / source).mkdir(parents=True, exist_ok=True)
        for index in trange(parameters[f"{split}_images"], desc=f"{split} images", mininterval=2, disable=not progress):
            rows += _write_image(index, root, split, parameters)
        save_imdb(root / layout.imdb, split, rows, dataset)
        if split == "train":
            sample = random.Random(parameters["seed"]).sample(rows, min(SCORE_QUESTIONS, len(rows)))
            save_imdb(root / LAYOUTS[dataset, "score"].imdb, split, sample, dataset)
    _write_words(root / TEXT_VOCAB, word_pieces(dataset))
    _write_words(root / layout.answers, answer_words(dataset))
    _write_words(root / OBJECT_NAMES, CLASSES)


class Picture(NamedTuple):
    """A rendered image, its boxes in pixels with their features, and its rows of the imdb."""

    scene: Scene
    objects: np.ndarray  # [n, 4]
    object_features: np.ndarray  # [n, F]
    tokens: list[str]  # as text recognition reads them, from top to bottom
    confidence: list[float]
    boxes: np.ndarray  # [m, 4] of the tokens
    features: np.ndarray  # [m, F]
    rows: list[dict]

    @property
    def shape(self) -> dict:
        """The image's size, by the names that files have for it."""
        width, height = self.scene.image.size
        return {"image_width": width, "image_height": height}


def picture(index: int, split: str, parameters: dict, root: Path) -> Picture:
    """Image `index` of a split and what is asked about it; the first ones are written below `root`, to look at."""
    dataset = parameters["dataset"]
    name = image_id(parameters["seed"], split if dataset == "textvqa" else f"{dataset}-{split}", index)
    source = FORMS[dataset].sources[index % len(FORMS[dataset].sources)]
    scene = make_scene(int(name, 16), **SCENE)
    rng = random.Random(f"{name}/text")
    width, height = scene.image.size
    objects = np.array([thing.box for thing in scene.objects], np.float32)
    words = sorted(
        (word for thing in scene.objects for word in thing.words), key=lambda word: (word.box[1], word.box[0])
    )
    boxes = np.array([word.box for word in words], np.float32).reshape(-1, 4)
    tokens, confidence = zip(*(misread(word.text, rng, parameters["ocr_error"]) for word in words), strict=True)
    features = box_features(scene.image, np.concatenate([objects, carrier_boxes(scene.image, boxes)]))
    if index < parameters["images"]:
        scene.image.save(root / f"images/train/{name}.jpg", quality=95, subsampling=0)
    shared = {
        "image_id": name,
        "image_name": name,
        "image_path": f"train/{name}.jpg",
        "feature_path": f"{Path(source, name)}.npy",
        "image_width": width,
        "image_height": height,
        "image_classes": [thing.name for thing in scene.objects],
        "set_name": split,
        "ocr_tokens": list(tokens),
        "ocr_normalized_boxes": boxes / np.array([width, height, width, height], np.float32),
    }
    first = FIRST_QUESTION[split] + index * parameters["questions_per_image"]
    rows = [
        shared
        | {
            "question": question.text,
            "question_tokens": question.text.rstrip("?").split(),
            "question_id": first + number,
            "question_kind": question.kind,
            "answers": _answers(question.answer, dataset, rng),
        }
        for number, question in enumerate(_questions(scene, parameters, rng))
    ]
    own, others = np.split(features, [len(objects)])
    return Picture(scene, objects, own, list(tokens), list(confidence), boxes, others, rows)


def _write_image(index: int, root: Path, split: str, parameters: dict) -> list[dict]:
    """Write one image's features; return its rows of the imdb."""
    layout, made = LAYOUTS[parameters["dataset"], split], picture(index, split, parameters, root)
    file = made.rows[0]["feature_path"].removesuffix(".npy")
    classes = np.array([1 + CLASSES.index(thing.name) for thing in made.scene.objects])  # 0 is the background
    about = {"bbox": made.objects, "objects": classes, "num_boxes": len(made.objects)}
    _save_features(root / layout.objects / file, made.object_features, about | made.shape)
    about = {"ocr_tokens": made.tokens, "ocr_boxes": made.boxes, "ocr_conf": made.confidence}
    _save_features(root / layout.ocr / file, made.features, about | made.shape)
    return made.rows


def _questions(scene: Scene, parameters: dict, rng: random.Random) -> list[Question]:
    return make_questions(scene, parameters["questions_per_image"], rng, FORMS[parameters["dataset"]].templates)


def _answers(answer: str, dataset: str, rng: random.Random) -> list[str]:
    """What people answered; where few do, as in ST-VQA, the first of them is right."""
    fewest, most = FORMS[dataset].answers
    if fewest == most:
        return human_answers(answer, rng, most)
    return [answer, *human_answers(answer, rng, rng.randint(fewest, most) - 1)]


def word_pieces(dataset: str = "textvqa") -> list[str]:
    """A word-piece vocabulary at BERT's special ids: whole words of the questions and signs, then single characters."""
    templates = FORMS[dataset].templates
    special = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    texts = [text for ways in templates.values() for text in ways] + [*COLOURS, *CLASSES]
    texts += [word for words in LEXICON.values() for word in words] + [str(number) for number in range(100)]
    words = {word for text in texts for word in re.findall("[a-z]+|[0-9]+", re.sub("{.*?}", "", text))}
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    marks = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
    whole = sorted(words - set(characters))
    return [*special, *marks, *characters, *(f"##{character}" for character in characters), *whole]


def answer_words(dataset: str = "textvqa") -> list[str]:
    """The fixed answer vocabulary: what is not written in the image (TextVQA: yes, no, colours, classes) and brands."""
    unwritten = ["yes", "no", *COLOURS, *CLASSES] if dataset == "textvqa" else []
    return ["<pad>", "<s>", "</s>", "<unk>", *unwritten, *LEXICON["brand"]]


def _save_features(path: Path, features: np.ndarray, about: dict) -> None:
    _save(path.with_name(f"{path.name}.npy"), features)
    _save(path.with_name(f"{path.name}_info.npy"), about)


def save_imdb(path: Path, split: str, rows: list[dict], dataset: str) -> None:
    """Write rows of questions and a header before them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"version": 1.0, "dataset_name": f"mini_{dataset}", "dataset_type": split, "has_answer": True}
    table = np.empty(len(rows) + 1, object)
    table[:] = [header, *rows]
    _save(path, table)


def _save(path: Path, array: np.ndarray | dict) -> None:
    content = io.BytesIO()  # NumPy itself does not notice that the last bytes of a file found no room
    np.save(content, array)
    path.write_bytes(content.getvalue())


def _write_words(path: Path, words: Iterable[str]) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
