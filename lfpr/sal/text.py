"""Words in and out of SaL: T5's pieces, answers to learn, answers as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from itertools import cycle, islice
from pathlib import Path

from tokenizers import Tokenizer

from lfpr.files import WHERE, DataError, a_path, existing
from lfpr.reading import wholes
from lfpr.sal.config import EOS, PAD
from lfpr.tap.metrics import soft_scores
from lfpr.tap.text import Spellings

TOKENIZER = "tokenizer.json"
SEPARATOR = "<extra_id_0>"
ANSWERS = 10  # of a question


class Pieces:
    """T5's pieces of text, from its `tokenizer.json` (or the folder that holds it), which is a file of data alone.

    `len` counts ids, `separator` is that of `<extra_id_0>`. Raises FileNotFoundError, and DataError for another kind of
    file, or where text does not end with `</s>`, number 1, and what is padded is not 0.
    """

    def __init__(self, path: str | Path) -> None:
        path = a_path(path, "T5's tokenizer")
        path = existing(path / TOKENIZER if path.is_dir() else path, "T5's tokenizer")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library has no class of its own
            raise DataError(f"{path} (T5's tokenizer) cannot be read: {error!s:.200}; {WHERE}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        ids = {word: self._tokenizer.token_to_id(word) for word in ("<pad>", "</s>", SEPARATOR)}
        self.separator = ids.pop(SEPARATOR)
        if list(ids.values()) != [PAD, EOS] or self.separator is None or self.encode("a")[-1:] != [EOS]:
            raise DataError(
                f"{path}: T5's tokenizer has <pad> {PAD}, </s> {EOS} at the end of each text, and {SEPARATOR}; found "
                f"{ids}, {SEPARATOR} {self.separator}, and {self.encode('a')} of 'a'"
            )

    def __len__(self) -> int:
        return 1 + max(self._tokenizer.get_vocab().values())

    def encode(self, text: str) -> list[int]:
        """The pieces of a text, ended by 1."""
        return self._tokenizer.encode(text).ids

    def read(self, ids: Sequence[int]) -> str:
        """The answer that pieces write, in the form that `plain` gives: without special ones, and without the spaces
        before punctuation that transformers' `batch_decode` takes away."""
        text = self._tokenizer.decode(ids, skip_special_tokens=True).replace(" ' ", "'")
        return plain(re.sub(r" ([.?!,]|n't|'(?:m|s|ve|re))", r"\1", text))


def plain(answer: str) -> str:
    """An answer as SaL compares and learns it: lower case, without commas and question marks, 's at its word."""
    return answer.lower().replace(",", "").replace("?", "").replace(" 's", "'s").strip()


def spellings(answers: Sequence[Hashable], encode: Callable[[Hashable], Sequence[int]]) -> Spellings:
    """What a question's answerers may write, each `encode(answer)` ended by 1: soft scores of the first pieces, and the
    pieces of all ten, without the 1; fewer than ten answers are repeated in turn. Raises ValueError for no answers and
    for more than ten."""
    if not 1 <= len(answers) <= ANSWERS:
        raise ValueError(f"answers: need 1 to {ANSWERS} per question, got {len(answers)}")
    answers = list(islice(cycle(answers), ANSWERS))
    written = {answer: tuple(encode(answer)) for answer in answers}
    first: dict[int, float] = {}
    for answer, score in soft_scores(answers).items():
        piece = written[answer][0]
        first[piece] = max(first.get(piece, 0.0), score)
    return Spellings(first, [written[answer][:-1] for answer in answers])


def label_spellings(pieces: Sequence[int], size: int) -> Spellings:
    """A model's own answer as the only one: pieces up to the first 1, of a vocabulary of `size`. ValueError for others
    than that has."""
    pieces = wholes("labels", pieces)
    pieces = pieces[: pieces.index(EOS)] if EOS in pieces else pieces
    if any(not 0 <= piece < size for piece in pieces):
        raise ValueError(f"labels: pieces must be in [0, {size}), got {pieces}")
    return Spellings({pieces[0] if pieces else EOS: 1.0}, [tuple(pieces)])
