"""MSCOCO captions in their released layout -> batches of image and caption tensors, decoded when they are needed.

`COCOCaptions` holds ids, file names and captions; JPEGs are decoded batch by batch, in workers if asked, so no split
is ever in memory. `batches` gives image-caption pairs, `images` each image once, `captions` texts alone. A batch
carries the ids of its pairs: with `on_error="skip"` broken images are left out of it and listed.
"""

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lfpr.clip.processor import Processor
from lfpr.files import WHERE, DataError, Located, below, hub, locate

SPLITS = ("train", "val")
ON_ERROR = ("stop", "skip")
FORK = "fisher_pruning/dataset"
FOLDERS = ("", "coco", "dataset", "datasets/mscoco", FORK, f"pruning_mechanism/{FORK}")
"""Folders below the data root that may hold COCO's, in order: it itself, our own layout, places of the CLIP fork."""
ANNOTATIONS = ("annotations", "annotations_trainval2017/annotations", "annotations_trainval2017")
IMAGES = ("{0}2017/{0}2017", "{0}2017")  # a zip unpacked in a folder of its name makes another in it, which comes first
MODELS = ("", "checkpoints", "..", "../checkpoints")
"""Folders that may hold a model's folder."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
USES = {"train": "importance and retraining", "val": "scores"}


class Pair(NamedTuple):
    """A caption of an image: `caption` counts the captions of this image from 0, `caption_id` is COCO's own."""

    image_id: int
    file_name: str
    caption: int
    caption_id: int
    text: str


class COCOCaptions:
    """Image-caption pairs of a `split` ("train", "val") of COCO 2017 under `root`, by ascending image id.

    `captions` is "first", i for the i-th caption of each image from 0 (the layout `image-caption[i]`; an image
    with fewer captions is left out), or "all". `indices` or `limit` select images. `annotations` selects captions
    instead: places in the annotation file's own list, in this order, repeated ones too. `pairs` lists the pairs,
    `image_ids` the images (with `annotations` one for each pair).

    Raises FileNotFoundError for a missing annotation file, DataError (a ValueError) for one that is not a captions
    file, ValueError for bad arguments.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        captions: str | int = "first",
        limit: int | None = None,
        indices: Sequence[int] | None = None,
        annotations: Sequence[int] | None = None,
    ) -> None:
        only = {"first": 0, "all": None}.get(captions, captions) if isinstance(captions, str) else captions
        if isinstance(only, bool) or not (only is None or (isinstance(only, int) and only >= 0)):
            raise ValueError(f"captions = {captions!r}: must be 'first', 'all' or a number from 0")
        if indices is not None and limit is not None:
            raise ValueError("indices and limit: give one of them")
        self.root, self.split = Path(root), split
        names, texts = read_annotations(root, split)
        self.folder = image_folder(root, split)
        if annotations is not None:
            self.pairs = _listed(annotation_file(root, split), names, texts, annotations)
            self.image_ids = [pair.image_id for pair in self.pairs]
            return
        captioned = [i for i in names if len(texts.get(i, ())) > (only or 0)]
        selected = range(len(captioned) if limit is None else limit) if indices is None else indices
        outside = [i for i in selected if not 0 <= i < len(captioned)]
        if outside or not len(selected):
            raise ValueError(
                f"indices or limit: {annotation_file(root, split)} has {len(captioned)} images with captions = "
                f"{captions!r}, asked for {outside[:3] or 'none'}"
            )
        self.image_ids = [captioned[i] for i in selected]
        self.pairs = [
            Pair(image_id, names[image_id], number, *caption)
            for image_id in self.image_ids
            for number, caption in enumerate(texts[image_id])
            if only in (None, number)
        ]

    def __len__(self) -> int:
        return len(self.pairs)

    def file(self, pair: Pair) -> Path:
        """Where the pair's image is to be; nothing is read."""
        return (self.folder.path or self.root / f"{self.split}2017") / pair.file_name

    def image(self, index: int) -> Image.Image:
        """The image of pair `index` in RGB. Raises DataError naming the file and the image id."""
        pair = self.pairs[index]
        return read_image(self.file(pair), pair.image_id)


def locate_captions(root: str | Path, split: str) -> Located:
    """The captions of a split below the data root. Raises ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"split = {split!r}: must be one of {list(SPLITS)}")
    names = [f"{folder}/captions_{split}2017.json" for folder in ANNOTATIONS]
    return locate(f"COCO's {split} captions", below(root, FOLDERS, names), USES[split], optional=split == "val")


def image_folder(root: str | Path, split: str) -> Located:
    """The folder of a split's images below the data root."""
    names = [name.format(split) for name in IMAGES]
    return locate(f"COCO's {split} images", below(root, FOLDERS, names), USES[split], optional=split == "val")


def locate_model(root: str | Path, model: str) -> Located:
    """The folder of a CLIP, by its hub id: below the data root, beside it, or in the local Hugging Face cache."""
    places = below(root, MODELS, [f"{name}/config.json" for name in (model.rpartition("/")[2], model)])
    found = locate("unpruned CLIP", chain(places, _cached(model)), "everything")
    return found._replace(path=found.path and found.path.parent)


def cached_model(model: str) -> Located:
    """The folder of a CLIP, by its hub id, in the local Hugging Face cache; from where else it may be downloaded."""
    found = locate(f"unpruned CLIP, {model}, else downloaded", _cached(model), "everything", optional=True)
    return found._replace(path=found.path and found.path.parent)


def _cached(model: str) -> Iterator[Path]:
    """Snapshots in the cache; not those of whom somebody needed the tokenizer alone."""
    for place in hub(model, "config.json"):
        if not place.exists() or any((place.parent / name).exists() for name in WEIGHTS):
            yield place


def annotation_file(root: str | Path, split: str) -> Path:
    """Where the captions of a split are. Raises as `COCOCaptions`."""
    return locate_captions(root, split).found()


def _listed(
    file: Path, names: dict[int, str], texts: dict[int, list[tuple[int, str]]], places: Sequence[int]
) -> list[Pair]:
    """The pairs at these places of the file's list of annotations, which `read_annotations` gave by image."""
    listed = json.loads(file.read_bytes())["annotations"]
    numbers = {(image_id, caption): i for image_id, rows in texts.items() for i, (caption, _) in enumerate(rows)}
    pairs = []
    for place in places:
        if not 0 <= place < len(listed):
            raise ValueError(f"annotations: {file} lists {len(listed)}, asked for number {place}")
        image_id, caption_id, text = (listed[place][key] for key in ("image_id", "id", "caption"))
        if image_id not in names:
            raise DataError(f"{file}: annotation {place} is of image {image_id}, which is not listed; {WHERE}")
        pairs.append(Pair(image_id, names[image_id], numbers[image_id, int(caption_id)], int(caption_id), str(text)))
    return pairs


def count_annotations(root: str | Path, split: str) -> int:
    """How many captions the annotation file of a split lists. Raises as COCOCaptions."""
    return sum(map(len, read_annotations(root, split)[1].values()))


def read_annotations(root: str | Path, split: str) -> tuple[dict[int, str], dict[int, list[tuple[int, str]]]]:
    """File names by image id, in ascending order, and the captions' (id, text) by image id. Raises as COCOCaptions."""
    from pycocotools.coco import COCO

    path = annotation_file(root, split)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            coco = COCO(str(path))
        names = {image_id: str(coco.imgs[image_id]["file_name"]) for image_id in sorted(coco.imgs)}
        texts = {
            key: [(int(a["id"]), str(a["caption"])) for a in annotations] for key, annotations in coco.imgToAnns.items()
        }
    except Exception as error:  # whatever a foreign file makes pycocotools raise
        raise DataError(f"{path} is not a COCO captions file ({type(error).__name__}: {error}); {WHERE}") from error
    if not names:
        raise DataError(f"{path} lists no images; {WHERE}")
    return names, texts


def read_image(path: Path, image_id: int) -> Image.Image:
    """An image file in RGB, decoded. Raises DataError naming the file and the image id."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        problem = "is missing"
    except Exception as error:  # a broken file raises nearly anything
        problem = f"cannot be decoded ({type(error).__name__}: {error})"
    raise DataError(f"image {image_id}: {path} {problem}; {WHERE}")


class _Reader(Dataset):
    """Batches by lists of row numbers, each with the errors of its images: [(image id, file name, message), ...]."""

    def __init__(self, data: COCOCaptions, pairs: list[Pair], processor: Processor, parts: str) -> None:
        self.data, self.pairs, self.processor, self.parts = data, pairs, processor, parts
        if parts != "captions":
            data.folder.found()

    def __getitem__(self, rows: Sequence[int]) -> tuple[dict[str, Tensor] | None, list[tuple[int, str, str]]]:
        pairs, pixels, bad = [self.pairs[row] for row in rows], {}, {}
        if self.parts != "captions":
            for pair in dict.fromkeys(pairs):
                if pair.image_id not in pixels | bad:  # an image that has several captions here is decoded once
                    try:
                        image = read_image(self.data.file(pair), pair.image_id)
                        pixels[pair.image_id] = self.processor.crop(image)
                    except DataError as error:
                        bad[pair.image_id] = pair.image_id, pair.file_name, str(error)
            pairs = [pair for pair in pairs if pair.image_id in pixels]
        if not pairs:
            return None, list(bad.values())
        batch = {"image_id": torch.tensor([pair.image_id for pair in pairs])}
        if self.parts != "captions":
            batch["pixel_values"] = self.processor.normalise(np.stack([pixels[pair.image_id] for pair in pairs]))
        if self.parts != "images":
            batch |= self.processor.tokens([pair.text for pair in pairs])
            batch["caption"] = torch.tensor([pair.caption for pair in pairs])
            batch["caption_id"] = torch.tensor([pair.caption_id for pair in pairs])
        return batch, list(bad.values())


class Batches:
    """Batches of tensors that can be iterated again: in the same order, until `set_epoch` changes a shuffled one.

    `bad` lists the images left out so far with `on_error="skip"`: image id -> (file name, message).
    """

    def __init__(
        self,
        reader: _Reader,
        batch_size: int,
        workers: int = 0,
        shuffle_seed: int | None = None,
        on_error: str = "stop",
        drop_last: bool = False,
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1 or workers < 0:
            raise ValueError(f"batch_size, workers = {batch_size}, {workers}: must be at least 1 and 0")
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error = {on_error!r}: must be one of {list(ON_ERROR)}")
        self.reader, self.batch_size, self.workers, self.pin_memory = reader, batch_size, workers, pin_memory
        self.shuffle_seed, self.on_error, self.drop_last = shuffle_seed, on_error, drop_last
        self.bad: dict[int, tuple[str, str]] = {}
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose another order, if shuffled."""
        self.epoch = epoch

    def __len__(self) -> int:
        pairs = len(self.reader.pairs)
        return pairs // self.batch_size if self.drop_last else -(-pairs // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = np.arange(len(self.reader.pairs))
        if self.shuffle_seed is not None:
            order = np.random.default_rng([self.shuffle_seed, self.epoch]).permutation(order)
        rows = [order[i * self.batch_size : (i + 1) * self.batch_size].tolist() for i in range(len(self))]
        private = torch.Generator()  # otherwise each pass would draw from the global one
        options = {"num_workers": self.workers, "pin_memory": self.pin_memory, "generator": private}
        loader = DataLoader(self.reader, None, sampler=rows, **options)
        for batch, bad in loader:
            for image_id, file_name, message in bad:
                if self.on_error == "stop":
                    raise DataError(f'{message}, or go on without such images: on_error="skip"')
                self.bad[image_id] = file_name, message
            if batch is not None:
                yield batch


def batches(data: COCOCaptions, batch_size: int, processor: Processor, **options: Any) -> Batches:
    """Batches of pairs: `pixel_values` [B, 3, H, W], `input_ids` and `attention_mask` [B, T], `image_id`,
    `caption` and `caption_id` [B].

    T is the longest caption's length in the batch. `options`: `workers` (processes that decode), `pin_memory`
    (from which batches move to a GPU without waiting), `shuffle_seed`, `drop_last` (an incomplete batch), and
    `on_error`: "stop" raises DataError at the first image that is missing or broken, "skip" goes on, leaves its pairs
    out and lists it in `.bad`. Raises ValueError for other options, and FileNotFoundError if there is no
    folder of images at all.
    """
    return Batches(_Reader(data, data.pairs, processor, "pairs"), batch_size, **options)


def images(data: COCOCaptions, batch_size: int, processor: Processor, **options: Any) -> Batches:
    """Batches of `pixel_values` [B, 3, H, W] and `image_id` [B] of `data.image_ids`; `options` as in `batches`."""
    first = {pair.image_id: pair for pair in reversed(data.pairs)}
    pairs = [first[image_id] for image_id in data.image_ids]
    return Batches(_Reader(data, pairs, processor, "images"), batch_size, **options)


def captions(data: COCOCaptions, batch_size: int, processor: Processor, **options: Any) -> Batches:
    """Batches of pairs as in `batches` without their images, which are not read: `input_ids` and `attention_mask`
    [B, T], `image_id`, `caption` and `caption_id` [B]."""
    return Batches(_Reader(data, data.pairs, processor, "captions"), batch_size, **options)


def check(root: str | Path, split: str = "val", limit: int | None = None, workers: int = 1) -> dict:
    """Read a split's annotations and decode its images (the first `limit`), `workers` at a time.

    Returns `images` and `captions` (annotated), `captions_per_image` (fewest, most), `strays` (captions of
    images that are not listed), `checked` (images decoded), `bad` (how many are missing or broken), `first_bad`
    (why, None if there is none) and `bad_images`: image id -> (file name, message). Raises FileNotFoundError and
    DataError for the annotations, as `COCOCaptions`, and ValueError for a `limit` or `workers` below 1.
    """
    names, texts = read_annotations(root, split)
    folder = image_folder(root, split).path or Path(root, f"{split}2017")
    counts = [len(texts.get(image_id, ())) for image_id in names]
    if workers < 1 or (limit is not None and limit < 1):
        raise ValueError(f"workers, limit = {workers}, {limit}: must be at least 1")

    def problem(image_id: int) -> str | None:
        try:
            read_image(folder / names[image_id], image_id)
        except DataError as error:
            return str(error)
        return None

    checked = list(names)[:limit]
    with ThreadPoolExecutor(workers) as pool:
        problems = zip(checked, pool.map(problem, checked), strict=True)
        bad = {image_id: (names[image_id], message) for image_id, message in problems if message}
    return {
        "images": len(names),
        "captions": sum(len(captions) for captions in texts.values()),
        "captions_per_image": (min(counts), max(counts)),
        "strays": sum(len(captions) for image_id, captions in texts.items() if image_id not in names),
        "checked": len(checked),
        "bad": len(bad),
        "first_bad": next((message for _, message in bad.values()), None),
        "bad_images": bad,
    }
