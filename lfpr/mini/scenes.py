"""Rendered scenes: up to four drawn objects in colours, with words on them, made from one integer seed.

A scene pastes the sprites of `drawings` and writes words on them: it takes about a millisecond, and the boxes of
all objects and words are known exactly. The same seed gives the same scene, whatever else was drawn.
"""

import random
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from lfpr.mini.drawings import DARK, DRAWINGS, WHITE, Box, sprite

CLASSES = tuple(DRAWINGS)

COLOURS = {
    "red": (214, 48, 49),
    "orange": (243, 140, 30),
    "yellow": (246, 211, 45),
    "green": (46, 154, 84),
    "blue": (45, 105, 205),
    "purple": (132, 70, 175),
    "pink": (246, 120, 172),
    "black": (52, 54, 60),
}
WALLS = ((226, 236, 243), (240, 235, 224), (229, 240, 230), (236, 232, 242), (238, 238, 238), (244, 231, 226))
GROUNDS = ((205, 196, 180), (190, 206, 186), (196, 200, 208), (214, 204, 196), (186, 198, 202))

_WORDS = """
open stop exit fresh milk sale city best cafe tea park club team free gold star fast road hope love game west east north
south music radio world peace happy lucky super magic sweet salt sugar juice bread honey apple lemon berry cream cocoa
ocean river beach stone storm cloud sunny night moon dream power light smart quick brave crazy royal grand prime urban
sport racer pilot hero chef queen king tiger eagle panda koala shark wolf bear fox owl zoo art jazz rock pop disco piano
vote help warm cold dry wet taxi
"""
_BRANDS = "acme nova zenit orbit lumo kiko vexa tarox boma pixo fendo glint hexo jura mako rivo solis yeti"
LEXICON = {
    "word": tuple(_WORDS.split()),
    "brand": tuple(_BRANDS.split()),
    "number": tuple(str(number) for number in range(10, 100)),
    "price": tuple(f"${dollars}{cents}" for dollars in range(1, 10) for cents in ("", ".25", ".50", ".75", ".99")),
}
KIND_WEIGHTS = {"word": 5, "brand": 2, "number": 2, "price": 2}


@dataclass(frozen=True)
class Word:
    """A word as drawn, its kind (a key of `LEXICON`) and its ink's box `(x1, y1, x2, y2)` in pixels."""

    text: str
    kind: str
    box: Box


@dataclass(frozen=True)
class Thing:
    """A drawn object: class name, colour name, box in pixels, and its words from top to bottom."""

    name: str
    colour: str
    box: Box
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Scene:
    """What `make_scene` drew: the objects in the order of drawing, and an RGB image of `size` pixels squared."""

    seed: int
    objects: tuple[Thing, ...]
    image: Image.Image


_font = lru_cache(maxsize=64)(ImageFont.load_default)


@lru_cache(maxsize=8192)
def _ink(text: str, size: int) -> Box:
    return _font(size).getbbox(text)


def _write(draw: ImageDraw.ImageDraw, texts: list[str], area: Box, fill: tuple) -> list[Box]:
    """Draw one word per line, centred in `area`, as large as fits; return the ink's boxes."""
    width, height = area[2] - area[0], area[3] - area[1]
    for size in range(max(6, round(height / 2)), 4, -1):
        inks = [_ink(text, size) for text in texts]
        pitch = size * 0.95
        if max(ink[2] - ink[0] for ink in inks) <= width and pitch * len(texts) <= height:
            break
    boxes = []
    for line, (text, ink) in enumerate(zip(texts, inks, strict=True)):
        x = round((area[0] + area[2] - ink[0] - ink[2]) / 2)
        y = round((area[1] + area[3]) / 2 + (line - (len(texts) - 1) / 2) * pitch - (ink[1] + ink[3]) / 2)
        draw.text((x, y), text, fill, _font(size))
        boxes.append((x + ink[0], y + ink[1], x + ink[2], y + ink[3]))
    return [tuple(float(value) for value in box) for box in boxes]


def _choose_words(rng: random.Random, count: int, used: set[str]) -> list[tuple[str, str]]:
    """`count` words not yet `used` in this scene as (text as drawn, kind); at most one brand, number and price."""
    style = rng.choice((str.upper, str.capitalize, str.capitalize, str.lower))
    words: list[tuple[str, str]] = []
    while len(words) < count:
        kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
        word = rng.choice(LEXICON[kind])
        if word not in used and (kind == "word" or kind not in [other for _, other in words]):
            used.add(word)
            words.append((style(word), kind))
    return words


def _choose_looks(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Class and colour of each object: no two alike in both, and mostly no two alike in either."""
    while True:
        names = rng.sample(CLASSES, count) if rng.random() < 0.75 else rng.choices(CLASSES, k=count)
        colours = rng.sample(list(COLOURS), count) if rng.random() < 0.75 else rng.choices(list(COLOURS), k=count)
        looks = list(zip(names, colours, strict=True))
        if len(set(looks)) == count:
            return looks


def require_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    """ValueError naming the parameter unless its value is an integer from `low` to `high`."""
    if not isinstance(value, int) or value < low or (high is not None and value > high):
        upper = "" if high is None else f" to {high}"
        raise ValueError(f"{name} is {value!r}, must be an integer from {low}{upper}")


def make_scene(seed: int, size: int = 128, max_objects: int = 4, max_words: int = 3) -> Scene:
    """Draw the scene of `seed`, the same one every time.

    Args:
        seed: any integer from 0.
        size: width and height of the image in pixels, at least 48.
        max_objects: 1 to 4; with 4 a scene holds 3.1 objects on average, and they never overlap.
        max_words: most words on an object, 0 to 3; if not 0 some object carries a word. No word appears twice.

    Raises:
        ValueError: a parameter is out of range.
    """
    require_integer("seed", seed, 0)
    require_integer("size", size, 48)
    require_integer("max_objects", max_objects, 1, 4)
    require_integer("max_words", max_words, 0, 3)
    rng = random.Random(seed)
    count = min(max_objects, rng.choices((1, 2, 3, 4), (5, 20, 35, 40))[0])
    image = Image.new("RGB", (size, size), rng.choice(WALLS))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, size * rng.uniform(0.35, 0.8), size, size), rng.choice(GROUNDS))

    cells = rng.sample(((0, 0), (1, 0), (0, 1), (1, 1)), count)
    used: set[str] = set()
    objects = []
    for (column, row), (name, colour) in zip(cells, _choose_looks(rng, count), strict=True):
        side = round(size * rng.uniform(0.4, 0.48))
        room = size // 2 - side
        left, top = (round(cell * size / 2 + rng.uniform(0, room)) for cell in (column, row))
        mask, details, extent = sprite(name, side)
        rgb = tuple(min(255, max(0, channel + rng.randint(-10, 10))) for channel in COLOURS[colour])
        image.paste(rgb, (left, top), mask)
        image.paste(details, (left, top), details)

        number_of_words = min(max_words, DRAWINGS[name].max_words, rng.choices((0, 1, 2, 3), (10, 35, 35, 20))[0])
        if not used and len(objects) == count - 1:
            number_of_words = max(number_of_words, min(1, max_words))
        words = _choose_words(rng, number_of_words, used)
        if words:
            area = tuple(
                start + side * part for start, part in zip((left, top) * 2, DRAWINGS[name].text_area, strict=True)
            )
            bright = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2] > 140
            boxes = _write(draw, [text for text, _ in words], area, DARK[:3] if bright else WHITE[:3])
            words = [Word(text, kind, box) for (text, kind), box in zip(words, boxes, strict=True)]
        box = tuple(float(start + value) for start, value in zip((left, top) * 2, extent, strict=True))
        objects.append(Thing(name, colour, box, tuple(words)))
    return Scene(seed, tuple(objects), image)
