"""Made-up files in the published layout of SaL at their real sizes, for a rehearsal of the profile `full`.

A handful of questions with random features in LMDB environments, a tokenizer with as many pieces as T5's, and a
checkpoint of random weights with the published names. What is odd in the real files is odd here too: an image with more
pieces of text than are read, one without any, whose boxes are a list of no dimension more, keys that only ST-VQA has,
and an optimiser inside the checkpoint.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import small_sal as small
import torch
from rehearsal.tap_files import FEATURES, FOLDERS, IMAGES
from rehearsal.tap_files import QUESTIONS as ASKED

from lfpr.files import write_whole
from lfpr.sal.config import EOS, SaLConfig
from lfpr.sal.data import FOLDERS as HOMES
from lfpr.sal.data import LAYOUTS, SPLITS, T5
from lfpr.sal.model import SaL

PIECES, SEPARATOR = 32100, 32099  # of T5's tokenizer; its embeddings have 28 rows more
MARKS = {2625: "▁context", 4820: "▁objects", 822: "▁question", 10: ":"}
WIDTH, HEIGHT = 1024, 680


def write_sal_files(root: str | Path, dataset: str, questions: dict[str, int], home: str = HOMES[0]) -> None:
    """Write what `lfpr.sal.data` reads of `dataset`: `questions` (split -> how many), features and a tokenizer; the
    split "test" has no answers. home: SaL's `data/` below `root`."""
    data, places = Path(root, home), LAYOUTS[dataset]
    small.write_tokenizer(Path(root, T5, "tokenizer.json"), size=PIECES, separator=SEPARATOR, marks=MARKS)
    objects, ocr = {}, {}
    for split, count in questions.items():
        rng = np.random.default_rng([*split.encode(), *dataset.encode()])
        images = [_image(dataset, split, number, rng, objects, ocr) for number in range(min(len(IMAGES), count))]
        rows = [_question(images[i % len(images)], split, i) for i in range(count)]
        small.write_imdb(data / places["imdb"][0].format(split), rows)
    for kind, values in (("objects", objects), ("ocr", ocr)):
        small.write_lmdb(data / places[kind][0], values)


def write_checkpoint(path: str | Path, config: SaLConfig) -> None:
    """Write a SaL of random weights as its published training does, with the optimiser's state."""
    torch.manual_seed(0)
    model = SaL(config)
    names = [name for name, _ in model.named_parameters()]
    moments = {i: {"step": 9, "exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)} for i in range(len(names))}
    groups = [{"lr": 2e-4, "params": list(range(len(names)))}]
    whole = {"model": model.state_dict(), "optimizer": {"state": moments, "param_groups": groups}, "best_update": 21000}
    write_whole(path, lambda partial: torch.save(whole, partial))


def _image(dataset: str, split: str, number: int, rng: np.random.Generator, objects: dict, ocr: dict) -> dict:
    """Add the features of an image; returns what its questions have in common."""
    things, words = IMAGES[number % len(IMAGES)]
    name = f"{dataset}_{split}_{number:04d}"
    path = str(Path(FOLDERS[dataset][number % len(FOLDERS[dataset])], f"{name}.npy"))
    key = f"{split}/{name}.npy" if dataset == "textvqa" else f"{SPLITS[split]}/{path}"
    (names, numbers), (text, index) = (_pieces(_spelled(rng, count)) for count in (things, words))
    boxes = _boxes(things, rng)
    about = {"bbox": boxes * np.tile((WIDTH, HEIGHT), 2), "obj_t5_token": names, "obj_token_lengths": numbers}
    objects[key] = about | {"features": rng.random((things, FEATURES), np.float32), "num_boxes": things}
    ocr[key] = {"features": rng.random((words, FEATURES), np.float32), "num_boxes": words}
    return {
        "image_id": name,
        "image_path": f"{split}/{name}.jpg",
        "feature_path": path,
        "image_width": WIDTH,
        "image_height": HEIGHT,
        "ocr_t5_token": text,
        "ocr_tokens_index": index,
        "wordlevel_ocr_normalized_boxes": _boxes(words, rng) if words else np.zeros(0, np.float32),
        "ocr_normalized_boxes": np.zeros((len(text), 4), np.float32),
        "obj_normalized_boxes": boxes,
    }


def _question(image: dict, split: str, number: int) -> dict:
    row = image | {"question_id": number, "question": ASKED[number % len(ASKED)]}
    return row if split == "test" else row | {"answers": [f"w{100 + number % 3}"] * 7 + ["w200 w300"] * 3}


def _spelled(rng: np.random.Generator, count: int) -> Iterator[list[int]]:
    """Words of one to five pieces, none of them special."""
    for length in rng.integers(1, 6, count):
        yield [*rng.integers(5000, SEPARATOR - 100, length).tolist(), EOS]


def _pieces(words: Iterator[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Pieces of words, one after the other, and the number of each one's word."""
    pairs = [(piece, number) for number, word in enumerate(words) for piece in word]
    return [piece for piece, _ in pairs], [number for _, number in pairs]


def _boxes(count: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes x1, y1, x2, y2 [count, 4], relative to the image."""
    return np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)
