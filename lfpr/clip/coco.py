"""MSCOCO captions in their released layout -> batches of image and caption tensors, decoded when they are needed.

`COCOCaptions` holds ids, file names and captions; JPEGs are decoded batch by batch, in workers if asked, so no split
is ever in memory. `batches` gives image-caption pairs, `images` each image once, `captions` texts alone. A batch
carries the ids of its pairs: with `on_error="skip"` broken images are left out of it and listed.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from warnings import warn

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lfpr import reading
from lfpr.checks import check_choice, check_count, check_flag, check_kind, check_number
from lfpr.clip.processor import Processor
from lfpr.files import WHERE, DataError, Located, a_path, below, existing, hub, locate
from lfpr.reading import check_inside, read_object, select, whole, wholes

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


class Annotations(NamedTuple):
    """A file of captions: file names by image id, in ascending order; the captions' (id, text) by image id; and in the
    order of the file, (image id, place among the captions of this image) of each caption."""

    names: dict[int, str]
    texts: dict[int, list[tuple[int, str]]]
    order: list[tuple[int, int]]


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
        if only is not None or captions is None:
            fits = lambda number: number == int(number) and number >= 0  # noqa: E731
            only = int(check_number("captions", only, "'first', 'all' or a number from 0", fits))
        found, file = read_annotations(root, split), annotation_file(root, split)
        names, texts = found.names, found.texts
        self.root, self.split, self.folder = Path(root), split, image_folder(root, split)
        if annotations is not None:
            if indices is not None or limit is not None:
                raise ValueError("annotations, indices and limit: give one of them")
            self.pairs = _listed(file, found, annotations)
            self.image_ids = [pair.image_id for pair in self.pairs]
            return
        captioned = [i for i in names if len(texts.get(i, ())) > (only or 0)]
        has = f"{file} has {len(captioned)} images with captions = {captions!r}"
        self.image_ids = [captioned[i] for i in select(len(captioned), has, limit, indices)]
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
        pair = self.pairs[whole("index", index)]
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
    a_path(root, "root")
    return locate_captions(root, split).found()


def _listed(file: Path, found: Annotations, places: Sequence[int]) -> list[Pair]:
    """The pairs at these places of the file's own list of annotations."""
    pairs = []
    for place in wholes("annotations", places):
        if not 0 <= place < len(found.order):
            raise ValueError(f"annotations: {file} lists {len(found.order)}, asked for number {place}")
        image_id, number = found.order[place]
        if image_id not in found.names:
            raise DataError(f"{file}: annotation {place} is of image {image_id}, which is not listed; {WHERE}")
        pairs.append(Pair(image_id, found.names[image_id], number, *found.texts[image_id][number]))
    return pairs


def count_annotations(root: str | Path, split: str) -> int:
    """How many captions the annotation file of a split lists. Raises as COCOCaptions."""
    return len(read_annotations(root, split).order)


def read_annotations(root: str | Path, split: str) -> Annotations:
    """The captions of a split. Raises as COCOCaptions. Not to be changed: while the file is the same, so are they."""
    path = annotation_file(root, split)
    stat = existing(path, f"COCO's {split} captions").stat()
    return _read_annotations(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2)  # the splits: of train there are 591,753 captions
def _read_annotations(path: Path, *_version: int) -> Annotations:
    """Only ids, names and captions are kept of what the file says."""
    names: dict[int, str] = {}
    texts: dict[int, list[tuple[int, str]]] = defaultdict(list)
    order: list[tuple[int, int]] = []
    places = dict.fromkeys(("images", "annotations"), 0)
    for section, entry in read_object(path, "COCO's captions", lists=True):
        if section not in places:
            continue
        where = f"{path} ({section}[{places[section]}])"
        places[section] += 1
        if not isinstance(entry, dict):
            raise DataError(f"{where} is a {type(entry).__name__}, expected an object; {WHERE}")
        if section == "images":
            image_id = _id(entry, "id", where)
            if image_id in names:
                raise DataError(f"{where}: image {image_id} is listed twice; {WHERE}")
            names[image_id] = _text(entry, "file_name", where)
            check_inside(names[image_id], where)
        else:
            image_id = _id(entry, "image_id", where)
            order.append((image_id, len(texts[image_id])))
            texts[image_id].append((_id(entry, "id", where), _text(entry, "caption", where)))
    if not names:
        raise DataError(f"{path} lists no images: it is not a COCO captions file; {WHERE}")
    if strays := sum(image_id not in names for image_id, _ in order):
        warn(f"{path}: {strays} captions are of images that are not listed; they are left out", stacklevel=4)
    return Annotations({image_id: names[image_id] for image_id in sorted(names)}, dict(texts), order)


def _id(entry: dict, key: str, where: str) -> int:
    """A number that fits into a tensor."""
    value = entry.get(key)
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise DataError(f"{where}: {key!r} is {value!r:.80}, expected a whole number of at most 64 bits; {WHERE}")
    return value


def _text(entry: dict, key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise DataError(f"{where}: {key!r} is {value!r:.80}, expected text; {WHERE}")
    return value


def read_image(path: Path, image_id: int) -> Image.Image:
    """An image file in RGB, decoded (see `lfpr.reading.read_image`). Raises DataError naming the file and the id."""
    try:
        return reading.read_image(path)
    except (DataError, FileNotFoundError) as error:
        raise DataError(f"image {image_id}: {error}") from error


class _Reader(Dataset):
    """Batches by lists of row numbers, each with the errors of its images: [(image id, file name, message), ...]."""

    def __init__(self, data: COCOCaptions, processor: Processor, parts: str) -> None:
        check_kind("processor", processor, Processor)
        check_kind("data", data, COCOCaptions)
        self.data, self.pairs, self.processor, self.parts = data, data.pairs, processor, parts
        if parts == "images":
            first = {pair.image_id: pair for pair in reversed(data.pairs)}
            self.pairs = [first[image_id] for image_id in data.image_ids]
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
        check_choice("on_error", on_error, ON_ERROR)
        self.batch_size, self.workers = check_count("batch_size", batch_size, 1), check_count("workers", workers)
        self.shuffle_seed = None if shuffle_seed is None else check_count("shuffle_seed", shuffle_seed)
        self.drop_last, self.pin_memory = check_flag("drop_last", drop_last), check_flag("pin_memory", pin_memory)
        self.reader, self.on_error = reader, on_error
        self.bad: dict[int, tuple[str, str]] = {}
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose another order, if shuffled."""
        self.epoch = check_count("epoch", epoch)

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
    return Batches(_Reader(data, processor, "pairs"), batch_size, **options)


def images(data: COCOCaptions, batch_size: int, processor: Processor, **options: Any) -> Batches:
    """Batches of `pixel_values` [B, 3, H, W] and `image_id` [B] of `data.image_ids`; `options` as in `batches`."""
    return Batches(_Reader(data, processor, "images"), batch_size, **options)


def captions(data: COCOCaptions, batch_size: int, processor: Processor, **options: Any) -> Batches:
    """Batches of pairs as in `batches` without their images, which are not read: `input_ids` and `attention_mask`
    [B, T], `image_id`, `caption` and `caption_id` [B]."""
    return Batches(_Reader(data, processor, "captions"), batch_size, **options)


def check(root: str | Path, split: str = "val", limit: int | None = None, workers: int = 1) -> dict:
    """Read a split's annotations and decode its images (the first `limit`), `workers` at a time.

    Returns `images` and `captions` (annotated), `captions_per_image` (fewest, most), `strays` (captions of
    images that are not listed), `checked` (images decoded), `bad` (how many are missing or broken), `first_bad`
    (why, None if there is none) and `bad_images`: image id -> (file name, message). Raises FileNotFoundError and
    DataError for the annotations, as `COCOCaptions`, and ValueError for a `limit` or `workers` below 1.
    """
    workers = check_count("workers", workers, 1)
    limit = None if limit is None else check_count("limit", limit, 1)
    names, texts, order = read_annotations(root, split)
    folder = image_folder(root, split).path or Path(root, f"{split}2017")
    counts = [len(texts.get(image_id, ())) for image_id in names]

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
        "captions": len(order),
        "captions_per_image": (min(counts), max(counts)),
        "strays": sum(image_id not in names for image_id, _ in order),
        "checked": len(checked),
        "bad": len(bad),
        "first_bad": next((message for _, message in bad.values()), None),
        "bad_images": bad,
    }
