"""Twelve classes of objects, drawn in two layers at four times the resolution.

The *body* takes the object's colour, the *details* go over it (wheels, handles, shadows). Each class is drawn in the
unit square and says where words fit on it; sprites are kept, so that a scene costs a few pastes.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from PIL import Image, ImageDraw

Box = tuple[float, float, float, float]


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


WHITE, GREY, DARK = (250, 250, 250, 255), (140, 145, 152, 255), (40, 42, 48, 255)
WOOD, GLASS = (130, 92, 60, 255), (205, 228, 240, 255)
SHADE, SHINE = (0, 0, 0, 55), (255, 255, 255, 90)


def _sign(body: _Pen, detail: _Pen) -> None:
    def octagon(inset: float) -> list[tuple[float, float]]:
        low, high, bottom, cut = inset, 1 - inset, 0.8 - inset, 0.23 + 0.6 * inset
        top = [(low, cut), (cut, low), (1 - cut, low), (high, cut)]
        return [*top, *[(x, low + bottom - y) for x, y in reversed(top)]]

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


class Drawing(NamedTuple):
    """How a class is painted, where words fit on it as a fraction of its square, and how many of them."""

    paint: Callable[[_Pen, _Pen], None]
    text_area: Box
    max_words: int


DRAWINGS = {
    "sign": Drawing(_sign, (0.09, 0.13, 0.91, 0.68), 3),
    "shirt": Drawing(_shirt, (0.23, 0.22, 0.77, 0.94), 3),
    "bottle": Drawing(_bottle, (0.2, 0.39, 0.8, 0.93), 3),
    "bus": Drawing(_bus, (0.05, 0.38, 0.95, 0.74), 2),
    "book": Drawing(_book, (0.21, 0.06, 0.89, 0.88), 3),
    "mug": Drawing(_mug, (0.03, 0.24, 0.73, 0.94), 3),
    "bag": Drawing(_bag, (0.07, 0.36, 0.93, 0.97), 3),
    "boat": Drawing(_boat, (0.12, 0.58, 0.88, 0.96), 2),
    "phone": Drawing(_phone, (0.21, 0.08, 0.79, 0.82), 3),
    "shop": Drawing(_shop, (0.07, 0.28, 0.93, 0.69), 2),
    "balloon": Drawing(_balloon, (0.12, 0.19, 0.88, 0.67), 3),
    "flag": Drawing(_flag, (0.11, 0.15, 0.97, 0.63), 3),
}


@lru_cache(maxsize=1024)
def sprite(name: str, side: int) -> tuple[Image.Image, Image.Image, Box]:
    """Body mask ("L"), details (RGBA) and the box of both, for a square of `side` pixels."""
    body, detail = _Pen(4 * side), _Pen(4 * side)
    DRAWINGS[name].paint(body, detail)
    mask, details = body.image.getchannel("A").reduce(4), detail.image.reduce(4)
    both = mask.copy()
    both.paste(255, mask=details.getchannel("A"))
    return mask, details, both.getbbox()
