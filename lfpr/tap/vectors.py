"""Vectors of OCR tokens: FastText's, read from its binary file, and hashed character n-grams that need no file.

FastText's vector of a word is the mean of the input rows of the word itself, if training saw it, and of its character
n-grams, each in one of a fixed number of hashed rows (Bojanowski et al., 2017). `wiki.en.bin` has gigabytes of such
rows: they are mapped into memory rather than read, so that only the pages of words that occur are loaded.
"""

import mmap
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from lfpr.checks import check_count
from lfpr.files import WHERE, DataError, existing

Embedding = Callable[[Sequence[str]], np.ndarray]
"""Vectors of OCR tokens: a list of n words -> float32 [n, dim]; has an attribute `dim`."""


class HashedNgrams:
    """Word vectors without a download: the normalised sum of fixed random vectors of a word's character 1- to 4-grams.

    Similar spellings get similar vectors, as with FastText's subwords, but nothing is learned: it is no stand-in for
    FastText in a model trained with it. Deterministic given `dim` and `seed`. `self(words)` -> float32 [n, dim],
    rows of length 1. Raises ValueError for a `dim` or `buckets` below 1.
    """

    def __init__(self, dim: int = 300, seed: int = 0, buckets: int = 1 << 13) -> None:
        self.dim = dim = check_count("dim", dim, 1)
        seed, buckets = check_count("seed", seed), check_count("buckets", buckets, 1)
        self._table = np.random.default_rng([seed, dim]).standard_normal((buckets, dim), dtype=np.float32)
        self._known: dict[str, np.ndarray] = {}

    def _vector(self, word: str) -> np.ndarray:
        marked = f"<{word}>"  # so that prefixes and suffixes have n-grams of their own
        grams = {marked[i : i + n] for n in (1, 2, 3, 4) for i in range(len(marked) - n + 1)} - {"<", ">"} | {marked}
        vector = self._table[sorted(zlib.crc32(gram.encode()) % len(self._table) for gram in grams)].sum(0)
        return vector / np.linalg.norm(vector)

    def __call__(self, words: Sequence[str]) -> np.ndarray:
        if len(self._known) > 1 << 16:
            self._known.clear()
        for word in words:
            if word not in self._known:
                self._known[word] = self._vector(word)
        return np.stack([self._known[word] for word in words]) if len(words) else np.zeros((0, self.dim), np.float32)


MAGIC, VERSION = 793712314, 12
ARGUMENTS = struct.Struct("<14id")  # magic, version, 12 numbers of the training, the sampling threshold
DIM, BUCKETS, SHORTEST, LONGEST = 2, 10, 11, 12  # indices of what is needed among them
ENTRIES = struct.Struct("<3i2q")  # entries, words, labels, tokens seen, rows kept of a pruned model
INPUTS = struct.Struct("<?2q")  # whether quantised, rows, columns


class FastText:
    """FastText vectors (Bojanowski et al., 2017) from a `.bin` file such as wiki.en.bin: `self(words)` -> float32
    [n, dim].

    A token of several words gets their mean, as in M4C. Takes a few seconds and 0.5 GB for the 2.5 million words of
    wiki.en.bin. Raises FileNotFoundError for a missing file and DataError for one that is truncated, quantised, or
    something else; called, DataError for a word whose vector is NaN or infinite.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = existing(path, "FastText vectors")
        try:
            with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self._read(data)
        except (struct.error, ValueError, OverflowError) as error:
            raise DataError(f"{self.path} is not a complete FastText model (.bin): {error}; {WHERE}") from error

    def _read(self, data: mmap.mmap) -> None:
        arguments = ARGUMENTS.unpack_from(data)
        if arguments[:2] != (MAGIC, VERSION):
            raise ValueError(f"it begins with {arguments[:2]}, expected {(MAGIC, VERSION)}")
        self.dim, self._buckets = arguments[DIM], arguments[BUCKETS]
        self._shortest, self._longest = arguments[SHORTEST], arguments[LONGEST]
        entries, self._words, _, _, pruned = ENTRIES.unpack_from(data, ARGUMENTS.size)
        if self.dim < 1 or self._words < 0 or self._buckets < (self._longest > 0):
            raise ValueError(f"it has {self._words} words, {self._buckets} buckets, {self.dim} numbers a vector")
        self._ids, end = _dictionary(data, ARGUMENTS.size + ENTRIES.size, entries)
        quantised, *shape = INPUTS.unpack_from(data, end)
        if quantised or pruned >= 0:
            raise ValueError("it is quantised; the original .bin is needed")
        if shape != [self._words + self._buckets, self.dim]:
            raise ValueError(f"inputs of {self._words} words, {self._buckets} buckets, {self.dim} numbers are {shape}")
        self._inputs = np.memmap(self.path, "<f4", "r", end + INPUTS.size, tuple(shape))

    def __reduce__(self):
        return FastText, (self.path,)  # another process maps the file itself

    def __call__(self, words: Sequence[str]) -> np.ndarray:
        vectors = [np.mean([self._vector(part) for part in word.split(" ")], axis=0) for word in words]
        vectors = np.asarray(vectors, np.float32).reshape(len(words), self.dim)
        broken = ~np.isfinite(vectors).all(1)
        if broken.any():
            raise DataError(f"{self.path}: the vector of {words[broken.argmax()]!r} is NaN or infinite; {WHERE}")
        return vectors

    def _vector(self, word: str) -> np.ndarray:
        known = self._ids.get(word.encode())
        rows = [] if known is None else [known]
        if word != "</s>":
            rows += [self._words + _hash(gram) % self._buckets for gram in self._ngrams(f"<{word}>")]
        return self._inputs[rows].mean(0) if rows else np.zeros(self.dim, np.float32)

    def _ngrams(self, marked: str) -> Iterator[str]:
        """N-grams of characters, a repeated one as often as it occurs; the marks `<` and `>` alone are none."""
        for start in range(len(marked)):
            for end in range(start + self._shortest, min(start + self._longest, len(marked)) + 1):
                if end - start > 1 or 0 < start < len(marked) - 1:
                    yield marked[start:end]


@lru_cache(maxsize=1)
def fasttext(path: Path) -> FastText:
    """`FastText(path)`, the last one shared: every data set of an experiment needs the same file."""
    return FastText(path)


def _dictionary(data: mmap.mmap, start: int, entries: int) -> tuple[dict[bytes, int], int]:
    """The number of each word (of a supervised model: and label), and where the dictionary ends.

    An entry is the text, a zero, eight bytes of how often it occurred, and one that tells words from labels.
    """
    ids = {}
    for number in range(entries):
        end = data.find(b"\0", start)
        if end < 0:
            raise ValueError(f"it ends after {number} of {entries} words")
        word = data[start:end]
        if not word or word in ids:  # also what a file without content would give for ever
            raise ValueError(f"word {number} of {entries} is {'there twice' if word else 'empty'}")
        ids[word] = number
        start = end + 10
    return ids, start


def _hash(text: str) -> int:
    """FNV-1a with bytes taken as signed numbers, as FastText computes it."""
    value = 2166136261
    for byte in text.encode():
        value = ((value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619) & 0xFFFFFFFF
    return value
