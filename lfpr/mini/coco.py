"""Rendered scenes in COCO's released layout: captions JSON and JPEGs, five captions an image.

A caption names the colour and class of some of the scene's objects and where one is with respect to another, the way
people do: five captions of an image differ in what they mention. `write_coco` makes the folder once.
"""

import json
import random
from functools import partial
from pathlib import Path

from tqdm.auto import trange

from lfpr.mini.datasets import image_id, make_once
from lfpr.mini.scenes import Scene, Thing, make_scene, require_integer

FORMAT = 1
"""Part of the data set's parameters: raise it when the same parameters give other data."""

SCENE = {"size": 64, "max_objects": 3, "max_words": 0}
"""What the scenes hold. No words: nothing in a caption would tell of them."""

CAPTIONS = 5
FIRST_IMAGE = {"train": 1, "val": 10_000_001}  # image ids; an image's captions are numbered from CAPTIONS times its id
OPENINGS = ("", "", "a picture of ", "an image of ", "there is ", "we see ")
RELATIONS = {"left": ("to the left of", "left of"), "right": ("to the right of", "right of"),
             "above": ("above", "over"), "below": ("below", "under")}  # fmt: skip


def write_coco(
    root: str | Path, train_images: int = 3000, val_images: int = 1000, seed: int = 0, progress: bool = False
) -> dict:
    """Make a COCO 2017 captions folder of rendered scenes (64 x 64 pixels) at `root`, unless it is there already.

    The images of a small set are the first ones of a larger set with the same seed. The folder is built beside
    `root` and renamed when complete; `root/dataset.json` holds the parameters, and other parameters rebuild it.

    Returns:
        The contents of `dataset.json`.

    Raises:
        ValueError: a parameter is out of range, or `root` holds something that this function did not write.
    """
    parameters = {"train_images": train_images, "val_images": val_images, "seed": seed}
    for name, low in (("train_images", 1), ("val_images", 1), ("seed", 0)):
        require_integer(name, parameters[name], low)
    parameters |= {"dataset": "coco", "format": FORMAT}
    return make_once(Path(root).resolve(), parameters, partial(_build, progress=progress))


def scene(seed: int, split: str, index: int) -> Scene:
    """The scene of image `index` of a split."""
    return make_scene(int(image_id(seed, f"coco-{split}", index), 16), **SCENE)


def captions(scene: Scene) -> list[str]:
    """Five captions: the first names every object, so that it can be found by it; the others mostly fewer."""
    rng = random.Random(f"{scene.seed}/captions")
    whole = _sentence(list(scene.objects), rng)
    return [whole, *(_sentence(_some(scene.objects, rng), rng) for _ in range(CAPTIONS - 1))]


def _some(objects: tuple[Thing, ...], rng: random.Random) -> list[Thing]:
    return rng.sample(objects, rng.choices(range(1, len(objects) + 1), range(1, len(objects) + 1))[0])


def _sentence(objects: list[Thing], rng: random.Random) -> str:
    """The objects in random order, and where the first is with respect to the second."""
    objects = rng.sample(objects, len(objects))
    text = rng.choice(OPENINGS) + _name(objects[0])
    if len(objects) > 1:
        text += f" {_relation(objects[0], objects[1], rng)} {_name(objects[1])}"
    if len(objects) > 2:
        text += f" and {_name(objects[2])}"
    return f"{text[0].upper()}{text[1:]}."


def _name(thing: Thing) -> str:
    return f"{'an' if thing.colour[0] in 'aeiou' else 'a'} {thing.colour} {thing.name}"


def _relation(first: Thing, second: Thing, rng: random.Random) -> str:
    """Where `first` is with respect to `second`: along the axis on which their centres are further apart."""
    x, y = (first.box[i] + first.box[i + 2] - second.box[i] - second.box[i + 2] for i in (0, 1))
    side = ("left" if x < 0 else "right") if abs(x) > abs(y) else ("above" if y < 0 else "below")
    return rng.choice(RELATIONS[side])


def _build(root: Path, parameters: dict, progress: bool) -> None:
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        folder = root / f"{split}2017"
        folder.mkdir()
        images, annotations = [], []
        for index in trange(parameters[f"{split}_images"], desc=f"{split} images", mininterval=2, disable=not progress):
            drawn, number = scene(parameters["seed"], split, index), FIRST_IMAGE[split] + index
            name = f"{number:012}.jpg"
            drawn.image.save(folder / name, quality=90)
            width, height = drawn.image.size
            images.append({"id": number, "file_name": name, "width": width, "height": height, "license": 1})
            annotations += [
                {"id": CAPTIONS * number + i, "image_id": number, "caption": text}
                for i, text in enumerate(captions(drawn))
            ]
        about = {"description": "Rendered scenes in the layout of COCO 2017 captions", "version": str(FORMAT)}
        licences = [{"id": 1, "name": "MIT", "url": "https://opensource.org/license/mit"}]
        table = {"info": about, "licenses": licences, "images": images, "annotations": annotations}
        (root / f"annotations/captions_{split}2017.json").write_text(json.dumps(table))
