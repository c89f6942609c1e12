"""Word vectors and spellings of the OCR tokens seen so far: computing them is most of the work of making a batch."""

from collections.abc import Sequence

import numpy as np

from lfpr.tap.text import PHOC_SIZE, phoc
from lfpr.tap.vectors import Embedding


class WordTables:
    """Word vectors and PHOC of up to `capacity` words, as tables that a batch gathers rows from; row 0 is padding."""

    def __init__(self, embed: Embedding, capacity: int = 1 << 16):
        self.embed, self.capacity = embed, capacity
        self._clear()

    def _clear(self) -> None:
        self.rows: dict[str, int] = {}
        self.vectors = np.zeros((1, self.embed.dim), np.float32)
        self.phocs = np.zeros((1, PHOC_SIZE), np.uint8)

    def __call__(self, lists: Sequence[Sequence[str]], width: int) -> tuple[np.ndarray, np.ndarray]:
        """[B, width, dim] float32 and [B, width, 604] uint8 of B lists of words."""
        if len(self.rows) > self.capacity:
            self._clear()
        new = list(dict.fromkeys(word for words in lists for word in words if word not in self.rows))
        if new:
            self.rows.update((word, len(self.vectors) + i) for i, word in enumerate(new))
            self.vectors = np.concatenate([self.vectors, self.embed(new)])
            self.phocs = np.concatenate([self.phocs, np.stack([phoc(word) for word in new])])
        rows = np.zeros((len(lists), width), np.int64)
        for row, words in zip(rows, lists, strict=True):
            row[: len(words)] = [self.rows[word] for word in words]
        return self.vectors[rows], self.phocs[rows]
