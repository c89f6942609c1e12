"""SaL's view of the rendered data sets: the same scenes and questions as `write_tap` writes, in SaL's layout.

Features lie in LMDB environments, words are in the imdb and in the features as pieces of a tokenizer, which is a
folder beside them: a small T5 tokenizer, one for both data sets.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import trange

from lfpr.mini.datasets import FORMS, Picture, checked, make_once, picture, save_imdb
from lfpr.mini.scenes import CLASSES, COLOURS, LEXICON
from lfpr.sal.data import FOLDERS, LAYOUTS, T5, lmdb_package
from lfpr.sal.text import SEPARATOR

if TYPE_CHECKING:  # it takes seconds to load
    from transformers import T5Tokenizer

ROOM = 1 << 34  # bytes that an LMDB environment may grow to


def write_sal(
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
    """Make a `dataset` ("textvqa", "stvqa") folder in SaL's layout at `root`, with its tokenizer in `root/t5-base`,
    unless it is there already. Everything else is as in `lfpr.mini.datasets.write_tap`, what it raises too: with the
    same arguments both write the same scenes, questions, answers and misread words. ImportError without `lmdb`."""
    lmdb_package()
    parameters = checked(dataset, train_images, val_images, questions_per_image, images, ocr_error, seed)
    return make_once(Path(root).resolve(), parameters | {"layout": "SaL"}, partial(_build, progress=progress))


def tokenizer() -> T5Tokenizer:
    """T5's tokenizer with a small vocabulary: pad 0, `</s>` 1 and unknown 2 as T5 has them, single characters, then
    words whole, `<extra_id_0>` last. Texts are cut into the fewest pieces."""
    from transformers import T5Tokenizer

    characters = "".join(map(chr, range(ord("!"), ord("~") + 1)))
    special = ["<pad>", "</s>", "<unk>", "▁"]
    pieces = [*special, *characters, *(f"▁{word}" for word in vocabulary()), SEPARATOR]
    # a score is a log probability: the fewer pieces, the larger their sum
    return T5Tokenizer([(piece, 0.0 if piece in special[:3] else -1.0) for piece in pieces], extra_ids=1)


def vocabulary() -> list[str]:
    """The whole words of both data sets' questions and of what answers them: scenes say no other ones."""
    texts = [text for form in FORMS.values() for ways in form.templates.values() for text in ways]
    texts = ["question context objects yes no", *(re.sub("{.*?}", "", text) for text in texts), *COLOURS, *CLASSES]
    words = {word for text in texts for word in re.findall("[a-z]+", text)}
    return sorted(words.union(*LEXICON.values()))


def pieces_of(words: Iterable[str], tokens: T5Tokenizer) -> tuple[list[int], list[int]]:
    """Pieces of words, in lower case, each word tokenised alone and so ended by `</s>`; and the number of each one's
    word."""
    pairs = [(piece, number) for number, word in enumerate(words) for piece in tokens(word.lower())["input_ids"]]
    return [piece for piece, _ in pairs], [number for _, number in pairs]


def _build(root: Path, parameters: dict, progress: bool) -> None:
    dataset, tokens = parameters["dataset"], tokenizer()
    (root / "images/train").mkdir(parents=True)
    imdb, *places = (root / FOLDERS[0] / files[0] for files in LAYOUTS[dataset].values())
    features: tuple[dict, dict] = {}, {}
    for split in ("train", "val"):
        rows = []
        for index in trange(parameters[f"{split}_images"], desc=f"{split} images", mininterval=2, disable=not progress):
            made = picture(index, split, parameters, root)
            key = f"train/{made.rows[0]['feature_path']}"
            about, *found = _described(made, tokens)
            for known, values in zip(features, found, strict=True):
                known[key] = values
            rows += [row | about for row in made.rows]
        save_imdb(Path(str(imdb).format(split)), split, rows, dataset)
    for place, values in zip(places, features, strict=True):
        _save_lmdb(place, values)
    tokens.save_pretrained(root / T5)


def _described(made: Picture, tokens: T5Tokenizer) -> tuple[dict, dict, dict]:
    """What SaL's imdb says more of an image than TAP's, and its features of objects and of OCR words."""
    pieces, index = pieces_of([thing.name for thing in made.scene.objects], tokens)
    objects = {"features": made.object_features, "bbox": made.objects, "obj_t5_token": pieces}
    objects |= {"obj_token_lengths": index, "num_boxes": len(made.objects)} | made.shape
    pieces, index = pieces_of(made.tokens, tokens)
    about = {"ocr_t5_token": pieces, "ocr_tokens_index": index}
    about["wordlevel_ocr_normalized_boxes"] = made.rows[0]["ocr_normalized_boxes"]
    about["obj_normalized_boxes"] = made.objects / np.array(made.scene.image.size * 2, np.float32)
    return about, objects, {"features": made.features, "num_boxes": len(made.boxes)} | made.shape


def _save_lmdb(folder: Path, values: dict[str, dict]) -> None:
    """An LMDB environment of pickled values, with the list of their keys."""
    folder.mkdir(parents=True)
    lmdb, _ = lmdb_package()
    with lmdb.open(str(folder), ROOM, lock=False) as environment, environment.begin(write=True) as transaction:
        for key, value in ({"keys": [key.encode() for key in values]} | values).items():
            transaction.put(key.encode(), pickle.dumps(value, 4))
