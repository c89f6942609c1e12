"""Words in and out of TAP: PHOC of OCR tokens, word pieces, answers as indices and back.

TAP reads a question as BERT word pieces, each OCR token as a spelling vector (PHOC) and a word vector, and writes an
answer word by word, each from a fixed vocabulary or copied from an OCR token: index i < V is vocabulary word i, V + j
is OCR token j (M4C: Hu et al., 2020; TAP: Yang et al., 2021; PHOC: Almazán et al., 2014).
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import BertWordPieceTokenizer

from lfpr.checks import check_kind
from lfpr.files import DataError, a_path
from lfpr.reading import read_text, wholes
from lfpr.tap.metrics import soft_scores, word_tokenize

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
BIGRAMS = (
    "th he in er an re es on st nt en at ed nd to or ea ti ar te ng al it as is ha et se ou of le sa ve ro ra ri hi ne"
    " me de co ta ec si ll so na li la el"
)
PHOC_SIZE = 36 * (2 + 3 + 4 + 5) + 50 * 2


def _in_regions(start: np.ndarray, end: np.ndarray, level: int) -> np.ndarray:
    """[n, level] bool: at least half of the span start..end lies in each of `level` equal parts of the word."""
    edges = np.arange(level + 1, dtype=np.float32) / np.float32(level)
    overlap = np.minimum(end[:, None], edges[1:]) - np.maximum(start[:, None], edges[:-1])
    return overlap / (end - start)[:, None] >= 0.5  # in float32 like the released code: ties decide


def phoc(word: str) -> np.ndarray:
    """Pyramidal histogram of characters (Almazán et al., 2014) of a word: uint8 [604] of 0 and 1 (read-only, cached).

    36 letters and digits in each half, third, quarter and fifth of the word, then 50 frequent bigrams in each half.
    Other characters are dropped first. Raises ValueError for anything but text.
    """
    return _phoc(check_kind("word", word, str))


@lru_cache(maxsize=1 << 16)
def _phoc(word: str) -> np.ndarray:
    word = "".join(letter for letter in word.lower().strip() if letter in LETTERS)
    vector = np.zeros(PHOC_SIZE, np.uint8)
    if word:
        at = np.arange(len(word) + 1, dtype=np.float32) / np.float32(len(word))
        letters, offset = np.array([LETTERS.index(letter) for letter in word]), 0
        for level in (2, 3, 4, 5):
            position, region = _in_regions(at[:-1], at[1:], level).nonzero()
            vector[offset + 36 * region + letters[position]] = 1
            offset += 36 * level
        bigrams = BIGRAMS.split()
        pairs = [(i, bigrams.index(word[i : i + 2])) for i in range(len(word) - 1) if word[i : i + 2] in bigrams]
        if pairs:
            start, bigram = np.array(pairs).T
            position, region = _in_regions(at[start], at[start + 2], 2).nonzero()
            vector[offset + 50 * region + bigram[position]] = 1
    vector.flags.writeable = False
    return vector


def read_words(path: str | Path, what: str) -> list[str]:
    """The stripped lines of a vocabulary file. Raises as `read_text`."""
    # not splitlines(): that also splits at characters inside words
    return [line.strip() for line in read_text(path, what).removesuffix("\n").split("\n")]


def _numbered(words: Sequence[str], special: Sequence[str], name: object, what: str) -> dict[str, int]:
    """The place of each word. DataError unless the first of the `special` words is the first, the others are there,
    and no word is there twice."""
    if other := [word for word in words if not isinstance(word, str)]:
        raise DataError(f"{name}: {what} has words, found {other[0]!r:.80}")
    index = {word: i for i, word in enumerate(words)}
    absent = [word for word in special if word not in index]
    if absent or index[special[0]] != 0:
        raise DataError(f"{name}: {what} has {special[0]} first and {', '.join(special[1:])}; absent: {absent}")
    if len(index) < len(words):
        twice = next(word for i, word in enumerate(words) if index[word] != i)
        raise DataError(f"{name}: {what} has each word once, {twice!r} is there twice")
    return index


class WordPieces:
    """BERT's uncased word pieces from a `vocab.txt` (or the folder that holds it).

    Raises FileNotFoundError, and DataError if the file is no text, [PAD] is not piece 0, [UNK], [CLS] or [SEP] is
    absent, or a piece is there twice.
    """

    def __init__(self, path: str | Path) -> None:
        what = "BERT's word pieces, bert-base-uncased"
        path = a_path(path, what)
        path = path / "vocab.txt" if path.is_dir() else path
        words = read_words(path, what)
        pieces = _numbered(words, ("[PAD]", "[UNK]", "[CLS]", "[SEP]"), path, "a word-piece vocabulary")
        self._tokenizer = BertWordPieceTokenizer(vocab=pieces, lowercase=True)
        self._separator = pieces["[SEP]"]
        self.size = len(pieces)

    def __len__(self) -> int:
        return self.size

    def encode(self, text: str, length: int, first_part: bool = True) -> np.ndarray:
        """int64 [length]: [CLS] pieces [SEP], cut and zero-padded; a later part's [CLS] becomes [SEP]."""
        ids = np.zeros(length, np.int64)
        pieces = self._tokenizer.encode(text).ids[:length]
        ids[: len(pieces)] = pieces
        if not first_part:
            ids[0] = self._separator
        return ids


class AnswerVocab:
    """The fixed answer vocabulary, a word a line: `words`, `index`, and indices `pad`, `bos`, `eos`, `unk`.

    `source` is a file or the words themselves. Raises FileNotFoundError, and DataError if `<pad>` is not word 0, `<s>`,
    `</s>` or `<unk>` is absent, or a word is there twice.
    """

    def __init__(self, source: str | Path | Sequence[str]) -> None:
        is_file = not isinstance(source, list | tuple)
        self.words = read_words(source, "answer vocabulary") if is_file else list(source)
        special = ("<pad>", "<s>", "</s>", "<unk>")
        self.index = _numbered(self.words, special, source if is_file else "words", "an answer vocabulary")
        self.pad, self.bos, self.eos, self.unk = (self.index[word] for word in special)

    def __len__(self) -> int:
        return len(self.words)

    def spell(self, answer: str, ocr_tokens: Sequence[str], limit: int = 20) -> list[tuple[int, ...]]:
        """Index sequences that write `answer`: each word from the vocabulary or from any equal OCR token.

        At most `limit` of them, as released; none if a word is neither in the vocabulary nor among the tokens.
        """
        sequences: list[tuple[int, ...]] = [()] if answer.split() else []
        for word in answer.split():
            choices = [self.index[word]] if word in self.index else []
            choices += [len(self.words) + j for j, token in enumerate(ocr_tokens) if token == word]
            sequences = [(*sequence, choice) for sequence in sequences for choice in choices][:limit]
        return sequences


class Spellings(NamedTuple):
    """What an answerer may write: soft scores of the first index, and whole index sequences to sample one from."""

    first: dict[int, float]
    sequences: list[tuple[int, ...]]


def spellings(answers: Sequence[str], ocr_tokens: Sequence[str], vocab: AnswerVocab) -> Spellings:
    """Spellings of the human answers of a question; fewer than 10 answers are repeated in turn to 10.

    An index scores as the best answer that begins with it; the sequences hold an answer's as often as it was given.
    Raises ValueError for no answers, more than 10, or other than text.
    """
    if not isinstance(answers, list | tuple) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"answers: expected a list of text, found {answers!r:.80}")
    if not 1 <= len(answers) <= 10:
        raise ValueError(f"answers: need 1 to 10 per question, got {len(answers)}")
    answers = [word_tokenize(answer) for answer in islice(cycle(answers), 10)]
    scores = soft_scores(answers)
    written = {answer: vocab.spell(answer, ocr_tokens) for answer in scores}
    first: dict[int, float] = {}
    for answer, sequences in written.items():
        for sequence in sequences:
            first[sequence[0]] = max(first.get(sequence[0], 0.0), scores[answer])
    return Spellings(first, [sequence for answer in answers for sequence in written[answer]])


def label_spellings(sequence: Sequence[int], vocab: AnswerVocab, ocr_tokens: Sequence[str]) -> Spellings:
    """A model's prediction as the only spelling: indices up to the first `</s>`. ValueError for a wrong one."""
    sequence = wholes("labels", sequence)
    sequence = sequence[: sequence.index(vocab.eos)] if vocab.eos in sequence else sequence
    if any(not 0 <= i < len(vocab) + len(ocr_tokens) for i in sequence):
        raise ValueError(
            f"labels: indices must be in [0, {len(vocab)} words + {len(ocr_tokens)} OCR tokens), got {sequence}"
        )
    return Spellings({sequence[0] if sequence else vocab.eos: 1.0}, [tuple(sequence)])


@lru_cache
def _lfpr_choice(n: int) -> int:
    return int(np.random.RandomState(0).choice(n))  # LFPR reseeds NumPy before each question


def write_targets(
    spelled: Spellings, bos: int, eos: int, targets: np.ndarray, previous: np.ndarray, loss_mask: np.ndarray,
    draw: float | None,
) -> None:  # fmt: skip
    """Fill zeroed rows `targets` [T, classes], `previous` [T], `loss_mask` [T] of one question in place; an answer
    begins with `bos` and ends with `eos`.

    `draw` in [0, 1) chooses the sequence; None makes LFPR's choice.
    """
    previous[0] = bos
    for index, score in spelled.first.items():
        targets[0, index] = score
    if not spelled.sequences:
        return  # cannot be written: no loss
    n = len(spelled.sequences)
    sequence = spelled.sequences[_lfpr_choice(n) if draw is None else int(draw * n)]
    steps = min(len(sequence) + 1, len(previous))
    loss_mask[:steps] = 1
    previous[1:steps] = sequence[: steps - 1]
    for t, index in enumerate((*sequence, eos)[1:steps], start=1):
        targets[t, index] = 1


class Answer(NamedTuple):
    """A model's answer: its `text`, and each word with its source, "vocabulary" or "ocr" (copied from a token)."""

    text: str
    words: list[tuple[str, str]]

    def __str__(self) -> str:
        return self.text


def decode(predictions: Sequence[int], ocr_tokens: Sequence[str], vocab: AnswerVocab) -> Answer:
    """The answer that indices [T] write up to the first `</s>`: its `text`, and `words` with their sources.

    Index i < V is word i of `vocab`, V + j a copy of OCR token j; of a padded OCR position it reads `<pad>`, as
    released. Raises ValueError for an index that is negative or no whole number.
    """
    check_kind("vocab", vocab, AnswerVocab)
    check_kind("ocr_tokens", ocr_tokens, list, tuple)
    words = []
    for index in wholes("predictions", predictions):
        if index == vocab.eos:
            break
        if index < 0:
            raise ValueError(f"predictions: {index} is no index of a word")
        copied = index - len(vocab)
        if copied < 0:
            words.append((vocab.words[index], "vocabulary"))
        else:
            token = word_tokenize(ocr_tokens[copied]) if copied < len(ocr_tokens) else vocab.words[vocab.pad]
            words.append((token, "ocr"))
    return Answer(join(word for word, _ in words), words)


def join(words: Iterable[str]) -> str:
    """Words of an answer in a line, a possessive 's at its word."""
    return " ".join(words).replace(" 's", "'s")
