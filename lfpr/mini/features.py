"""Appearance features computed from the pixels of boxes: what a detector's fc6 is to TAP, without learned weights.

A box is resampled to 24 x 24 pixels and described by a colour thumbnail, a histogram of edge orientations in nine
cells, its typical colour and its size. A word is described by the object that carries it: the feature of the patch of
the word's paper colour around it, so that it tells the carrier's class and colour as a box of a real detector would.
"""

import numpy as np
from PIL import Image

FEATURE_SIZE = 128
_CROP, _ORIENTATIONS = 24, 8
_POOL = np.kron(np.eye(4, dtype=np.float32), np.full(6, 1 / 6, np.float32))  # [4, 24]: means of six


def box_features(image: Image.Image, boxes: np.ndarray) -> np.ndarray:
    """Features `[n, 128]` float32 of the pixels in `boxes` `[n, 4]` (x1, y1, x2, y2 in pixels) of an RGB image.

    Columns: 48 colour thumbnail, 72 edge orientations, 3 median colour, 3 box size, 2 brightness, mostly in [-1, 2].
    """
    n = len(boxes)
    if n == 0:
        return np.zeros((0, FEATURE_SIZE), np.float32)
    boxes = np.asarray(boxes, np.float64)
    crops = [image.resize((_CROP, _CROP), Image.Resampling.BILINEAR, box=tuple(box)) for box in boxes]
    pixels = (
        np.stack([np.asarray(crop) for crop in crops]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    )  # [n, 3, 24, 24]
    thumbnail = (_POOL @ pixels @ _POOL.T).reshape(n, 48)
    median = np.median(pixels[:, :, ::2, ::2].reshape(n, 3, -1), axis=2)

    grey = pixels.sum(1) / 3
    dy, dx = np.gradient(grey, axis=(1, 2))
    strength = np.hypot(dx, dy)
    orientation = np.floor(np.arctan2(dy, dx) % np.pi / np.pi * _ORIENTATIONS).astype(int) % _ORIENTATIONS
    cell_row, cell_column = np.meshgrid(np.arange(_CROP) // 8, np.arange(_CROP) // 8, indexing="ij")
    bins = (np.arange(n)[:, None, None] * 9 + cell_row * 3 + cell_column) * _ORIENTATIONS + orientation
    edges = np.bincount(bins.ravel(), strength.ravel(), n * 72).reshape(n, 72)
    edges = np.sqrt(edges / (edges.sum(1, keepdims=True) + 1e-3))

    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    size = np.stack([2 * width / image.width, 2 * height / image.height, np.log2(width / height)], 1)
    light = np.stack([grey.mean((1, 2)), grey.std((1, 2))], 1)
    parts = (2 * thumbnail - 1, 5 * edges - 0.5, 4 * median - 2, size, light)
    return np.concatenate(parts, 1).astype(np.float32)


def carrier_boxes(image: Image.Image, boxes: np.ndarray) -> np.ndarray:
    """The patch that carries each word: boxes `[n, 4]` grown over the colour found around the word.

    From the word outwards, columns and then rows are added while they hold the paper's colour, at most 0.4 of the
    image's size away. Returns boxes `[n, 4]` float32, each of which holds the word's own box.
    """
    pixels = np.ascontiguousarray(np.asarray(image, np.int16).transpose(2, 0, 1))  # [3, H, W]
    reach = round(0.4 * max(image.size))
    grown = []
    for box in boxes:
        x1, y1, x2, y2 = np.floor(box[0]), np.floor(box[1]), np.ceil(box[2]), np.ceil(box[3])
        x1, y1 = max(0, int(x1) - 1), max(0, int(y1) - 1)
        x2, y2 = min(image.width, int(x2) + 1), min(image.height, int(y2) + 1)
        ring = (pixels[:, y1, x1:x2], pixels[:, y2 - 1, x1:x2], pixels[:, y1:y2, x1], pixels[:, y1:y2, x2 - 1])
        paper = np.median(np.concatenate(ring, axis=1), axis=1).astype(np.int16)
        left, top = max(0, x1 - reach), max(0, y1 - reach)
        window = pixels[:, top : y2 + reach, left : x2 + reach]
        same = (np.abs(window - paper[:, None, None]) < 30).all(0)
        a, b = _run(same[y1 - top : y2 - top].any(0), x1 - left, x2 - left)
        c, d = _run(same[:, a:b].any(1), y1 - top, y2 - top)
        a, b = _run(same[c:d].any(0), x1 - left, x2 - left)
        grown.append((left + a, top + c, left + b, top + d))
    return np.array(grown, np.float32).reshape(-1, 4)


def _run(present: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """Grow `start:stop` both ways while `present` is true."""
    before = np.flatnonzero(~present[:start])
    after = np.flatnonzero(~present[stop:])
    return int(before[-1]) + 1 if len(before) else 0, stop + int(after[0]) if len(after) else len(present)
