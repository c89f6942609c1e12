"""Rendered scenes: up to four drawn objects in colours, with words on them, made from one integer seed.

Each class is drawn once per size in two layers at four times the resolution: the *body*, which takes the object's
colour, and the *details* over it (wheels, handles, shadows). A scene pastes these sprites and writes words on them,
so that rendering takes about a millisecond and every box is known exactly.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

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

LEXICON = {
    "word": (
        "open stop exit fresh milk sale city best cafe tea park club team free gold star fast road hope love game"
        " west east north music radio world peace happy lucky super magic sweet salt sugar juice bread honey"
        " apple lemon berry cream cocoa ocean river beach stone storm cloud sunny night moon dream power light"
        " smart quick brave crazy royal grand prime urban sport racer pilot hero chef queen king tiger eagle panda"
        " koala shark wolf bear fox owl zoo art jazz rock pop disco piano vote help warm cold dry wet south taxi"
    ).split(),
    "brand": "acme nova zenit orbit lumo kiko vexa tarox boma pixo fendo glint hexo jura mako rivo solis yeti".split(),
    "number": [str(number) for number in range(10, 100)],
    "price": [f"${dollars}{cents}" for dollars in range(1, 10) for cents in ("", ".25", ".50", ".75", ".99")],
}
KIND_WEIGHTS = {"word": 5, "brand": 2, "number": 2, "price": 2}

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Word:
    """A word as drawn, its kind (a key of ``LEXICON``) and its ink's box ``(x1, y1, x2, y2)`` in pixels."""

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
    """What ``make_scene`` drew: the objects in the order of drawing, and an RGB image of ``size`` pixels squared."""

    seed: int
    objects: tuple[Thing, ...]
    image: Image.Image


class _Pen:
    """Draws in unit coordinates on a transparent square, so that a class looks the same at every size."""

    def __init__(self, side: int):
        self.side = side
        self.image = Image.new("RGBA", (side, side))
        self.draw = ImageDraw.Draw(self.image)

    def _scaled(self, *values: float) -> list[float]:
        return [value * (self.side - 1) for value in values]

    def rect(self, *box: float, fill: tuple = (255,) * 4, radius: float = 0.0) -> None:
        self.draw.rounded_rectangle(self._scaled(*box), radius * self.side, fill)

    def oval(self, *box: float, fill: tuple = (255,) * 4) -> None:
        self.draw.ellipse(self._scaled(*box), fill)

    def ring(self, *box: float, width: float, fill: tuple = (255,) * 4) -> None:
        self.draw.ellipse(self._scaled(*box), None, fill, round(width * self.side))

    def frame(self, *box: float, width: float, radius: float, fill: tuple) -> None:
        self.draw.rounded_rectangle(self._scaled(*box), radius * self.side, None, fill, round(width * self.side))

    def poly(self, *points: tuple[float, float], fill: tuple = (255,) * 4) -> None:
        self.draw.polygon([tuple(self._scaled(*point)) for point in points], fill)

    def line(self, *points: tuple[float, float], width: float, fill: tuple) -> None:
        path = [tuple(self._scaled(*point)) for point in points]
        self.draw.line(path, fill, round(width * self.side), joint="curve")


WHITE, GREY, DARK, WOOD, GLASS = (250, 250, 250, 255), (140, 145, 152, 255), (40, 42, 48, 255), (130, 92, 60, 255), (205, 228, 240, 255)  # fmt: skip
SHADE, SHINE = (0, 0, 0, 55), (255, 255, 255, 90)


def _sign(body: _Pen, detail: _Pen) -> None:
    def octagon(inset: float) -> list[tuple[float, float]]:
        x1, x2, y1, y2, cut = inset, 1 - inset, inset, 0.8 - inset, 0.23 - 0.4 * inset
        return [(x1 + cut, y1), (x2 - cut, y1), (x2, y1 + cut), (x2, y2 - cut), (x2 - cut, y2), (x1 + cut, y2), (x1, y2 - cut), (x1, y1 + cut)]  # fmt: skip

    body.poly(*octagon(0.0))
    rim = octagon(0.04)
    detail.line(*rim, rim[0], width=0.025, fill=WHITE)
    detail.rect(0.46, 0.8, 0.54, 1.0, fill=GREY)


def _shirt(body: _Pen, detail: _Pen) -> None:
    left = [(0.36, 0.02), (0.2, 0.07), (0.0, 0.3), (0.12, 0.46), (0.22, 0.38), (0.22, 0.98)]
    body.poly(*left, *[(1 - x, y) for x, y in reversed(left)])
    detail.draw.pieslice(detail._scaled(0.36, -0.1, 0.64, 0.14), 0, 180, SHADE)
    for side in (0.22, 0.78):
        detail.line((side, 0.26), (side, 0.4), width=0.02, fill=SHADE)
    detail.rect(0.22, 0.95, 0.78, 0.98, fill=SHADE)


def _bottle(body: _Pen, detail: _Pen) -> None:
    body.rect(0.19, 0.36, 0.81, 1.0, radius=0.07)
    body.poly((0.41, 0.1), (0.59, 0.1), (0.6, 0.2), (0.8, 0.42), (0.2, 0.42), (0.4, 0.2))
    detail.rect(0.38, 0.0, 0.62, 0.1, fill=GREY, radius=0.02)
    detail.rect(0.43, 0.13, 0.47, 0.24, fill=SHINE)
    detail.rect(0.19, 0.93, 0.81, 1.0, fill=SHADE, radius=0.07)


def _bus(body: _Pen, detail: _Pen) -> None:
    body.rect(0.0, 0.1, 1.0, 0.84, radius=0.1)
    for left in (0.06, 0.29, 0.52, 0.75):
        detail.rect(left, 0.16, left + 0.19, 0.36, fill=GLASS, radius=0.02)
    detail.rect(0.0, 0.78, 1.0, 0.84, fill=SHADE)
    for middle in (0.22, 0.78):
        detail.oval(middle - 0.12, 0.72, middle + 0.12, 0.96, fill=DARK)
        detail.oval(middle - 0.05, 0.79, middle + 0.05, 0.89, fill=GREY)


def _book(body: _Pen, detail: _Pen) -> None:
    body.rect(0.1, 0.0, 0.9, 1.0, radius=0.03)
    detail.rect(0.1, 0.0, 0.2, 1.0, fill=SHADE, radius=0.03)
    detail.rect(0.15, 0.91, 0.9, 0.97, fill=WHITE)
    detail.line((0.15, 0.94), (0.9, 0.94), width=0.01, fill=GREY)


def _mug(body: _Pen, detail: _Pen) -> None:
    body.ring(0.55, 0.28, 1.0, 0.78, width=0.09)
    body.rect(0.0, 0.12, 0.76, 0.96, radius=0.1)
    body.oval(0.0, 0.04, 0.76, 0.2)
    detail.oval(0.03, 0.06, 0.73, 0.18, fill=(92, 62, 44, 255))


def _bag(body: _Pen, detail: _Pen) -> None:
    body.poly((0.08, 0.28), (0.92, 0.28), (1.0, 1.0), (0.0, 1.0))
    detail.draw.arc(detail._scaled(0.3, 0.0, 0.7, 0.56), 180, 360, WOOD, round(0.045 * detail.side))
    detail.poly((0.08, 0.28), (0.92, 0.28), (0.925, 0.33), (0.075, 0.33), fill=SHADE)


def _boat(body: _Pen, detail: _Pen) -> None:
    body.poly((0.0, 0.52), (1.0, 0.52), (0.86, 0.98), (0.14, 0.98))
    detail.rect(0.48, 0.0, 0.52, 0.52, fill=WOOD)
    detail.poly((0.54, 0.03), (0.54, 0.47), (0.92, 0.47), fill=WHITE)
    detail.poly((0.46, 0.1), (0.46, 0.47), (0.12, 0.47), fill=(222, 226, 232, 255))
    detail.poly((0.0, 0.52), (1.0, 0.52), (0.985, 0.57), (0.015, 0.57), fill=SHADE)


def _phone(body: _Pen, detail: _Pen) -> None:
    body.rect(0.17, 0.03, 0.83, 0.97, radius=0.06)
    detail.frame(0.14, 0.0, 0.86, 1.0, width=0.06, radius=0.1, fill=DARK)
    detail.rect(0.18, 0.84, 0.82, 0.97, fill=DARK)
    detail.oval(0.45, 0.86, 0.55, 0.96, fill=GREY)


def _shop(body: _Pen, detail: _Pen) -> None:
    body.rect(0.05, 0.1, 0.95, 1.0)
    for stripe in range(6):
        left, right = stripe / 6, (stripe + 1) / 6
        pen, fill = (detail, WHITE) if stripe % 2 else (body, (255,) * 4)
        pen.poly((0.06 + 0.88 * left, 0.02), (0.06 + 0.88 * right, 0.02), (right, 0.2), (left, 0.2), fill=fill)
        pen.oval(left, 0.14, right, 0.27, fill=fill)
    detail.rect(0.58, 0.7, 0.84, 1.0, fill=WOOD)
    detail.rect(0.14, 0.72, 0.48, 0.92, fill=GLASS)


def _balloon(body: _Pen, detail: _Pen) -> None:
    body.oval(0.05, 0.0, 0.95, 0.82)
    body.poly((0.5, 0.79), (0.43, 0.87), (0.57, 0.87))
    wave = [(0.5 + 0.03 * math.sin(14 * step / 10), 0.87 + 0.013 * step) for step in range(11)]
    detail.line(*wave, width=0.02, fill=GREY)
    detail.oval(0.2, 0.08, 0.4, 0.2, fill=SHINE)


def _flag(body: _Pen, detail: _Pen) -> None:
    steps = [(0.05 + 0.95 * step / 20, 0.04 * math.sin(6.3 * step / 20)) for step in range(21)]
    body.poly(*[(x, 0.08 + wave) for x, wave in steps], *[(x, 0.68 + wave) for x, wave in reversed(steps)])
    detail.rect(0.03, 0.02, 0.08, 1.0, fill=WOOD)
    detail.oval(0.0, 0.0, 0.11, 0.09, fill=GREY)


# class: (draws its body and details, where words fit as a fraction of the square, how many words fit)
_DRAWINGS: dict[str, tuple[Callable[[_Pen, _Pen], None], Box, int]] = {
    "sign": (_sign, (0.09, 0.13, 0.91, 0.68), 3),
    "shirt": (_shirt, (0.23, 0.22, 0.77, 0.94), 3),
    "bottle": (_bottle, (0.2, 0.39, 0.8, 0.93), 3),
    "bus": (_bus, (0.05, 0.38, 0.95, 0.74), 2),
    "book": (_book, (0.21, 0.06, 0.89, 0.88), 3),
    "mug": (_mug, (0.03, 0.24, 0.73, 0.94), 3),
    "bag": (_bag, (0.07, 0.36, 0.93, 0.97), 3),
    "boat": (_boat, (0.12, 0.58, 0.88, 0.96), 2),
    "phone": (_phone, (0.21, 0.08, 0.79, 0.82), 3),
    "shop": (_shop, (0.07, 0.28, 0.93, 0.69), 2),
    "balloon": (_balloon, (0.12, 0.19, 0.88, 0.67), 3),
    "flag": (_flag, (0.11, 0.15, 0.97, 0.63), 3),
}
CLASSES = tuple(_DRAWINGS)


@lru_cache(maxsize=1024)
def _sprite(name: str, side: int) -> tuple[Image.Image, Image.Image, Box]:
    """Body mask ("L"), details (RGBA) and the box of both, for a square of ``side`` pixels."""
    body, detail = _Pen(4 * side), _Pen(4 * side)
    _DRAWINGS[name][0](body, detail)
    mask, details = body.image.getchannel("A").reduce(4), detail.image.reduce(4)
    both = mask.copy()
    both.paste(255, mask=details.getchannel("A"))
    return mask, details, both.getbbox()


_font = lru_cache(maxsize=64)(ImageFont.load_default)


@lru_cache(maxsize=8192)
def _ink(text: str, size: int) -> Box:
    return _font(size).getbbox(text)


def _write(draw: ImageDraw.ImageDraw, texts: list[str], area: Box, fill: tuple) -> list[Box]:
    """Draw one word per line, centred in ``area``, as large as fits; return the ink's boxes."""
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
    """``count`` words not yet ``used`` in this scene as (text as drawn, kind); at most one brand, number and price."""
    style = rng.choice((str.upper, str.capitalize, str.capitalize, str.lower))
    chosen: list[tuple[str, str]] = []
    while len(chosen) < count:
        kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
        word = rng.choice(LEXICON[kind])
        if word not in used and (kind == "word" or kind not in [other for _, other in chosen]):
            used.add(word)
            chosen.append((style(word), kind))
    return chosen


def _choose_looks(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Class and colour of each object: no two alike in both, and mostly no two alike in either."""
    while True:
        names = rng.sample(CLASSES, count) if rng.random() < 0.75 else rng.choices(CLASSES, k=count)
        colours = rng.sample(list(COLOURS), count) if rng.random() < 0.75 else rng.choices(list(COLOURS), k=count)
        looks = list(zip(names, colours, strict=True))
        if len(set(looks)) == count:
            return looks


def make_scene(seed: int, size: int = 128, max_objects: int = 4, max_words: int = 3) -> Scene:
    """Draw the scene of ``seed``, the same one every time.

    Args:
        seed: any integer from 0.
        size: width and height of the image in pixels, at least 48.
        max_objects: 1 to 4; with 4 a scene holds 3.1 objects on average, and they never overlap.
        max_words: most words on an object, 0 to 3; if not 0 some object carries a word. No word appears twice.

    Raises:
        ValueError: a parameter is out of range.
    """
    for name, value, low, high in (
        ("seed", seed, 0, None),
        ("size", size, 48, None),
        ("max_objects", max_objects, 1, 4),
        ("max_words", max_words, 0, 3),
    ):
        if not isinstance(value, int) or value < low or (high is not None and value > high):
            allowed = f"an integer from {low}" + (f" to {high}" if high is not None else "")
            raise ValueError(f"{name} is {value!r}, must be {allowed}")
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
        mask, details, extent = _sprite(name, side)
        rgb = tuple(min(255, max(0, channel + rng.randint(-10, 10))) for channel in COLOURS[colour])
        image.paste(rgb, (left, top), mask)
        image.paste(details, (left, top), details)

        number_of_words = min(max_words, _DRAWINGS[name][2], rng.choices((0, 1, 2, 3), (10, 35, 35, 20))[0])
        if not used and len(objects) == count - 1:
            number_of_words = max(number_of_words, min(1, max_words))
        words = _choose_words(rng, number_of_words, used)
        if words:
            area = tuple(start + side * part for start, part in zip((left, top) * 2, _DRAWINGS[name][1], strict=True))
            bright = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2] > 140
            boxes = _write(draw, [text for text, _ in words], area, DARK[:3] if bright else WHITE[:3])
            words = [Word(text, kind, box) for (text, kind), box in zip(words, boxes, strict=True)]
        box = tuple(float(start + value) for start, value in zip((left, top) * 2, extent, strict=True))
        objects.append(Thing(name, colour, box, tuple(words)))
    return Scene(seed, tuple(objects), image)
