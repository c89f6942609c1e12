"""Scores of scene-text VQA answers: TextVQA accuracy, ST-VQA accuracy and ANLS.

TextVQA: an answer given by k of the 10 annotators scores the mean, over leaving each annotator out, of min(1, k' / 3),
where k' counts the others who gave it; both sides are first normalised as the EvalAI server does (Singh et al., 2019;
the M4C evaluators). ST-VQA: accuracy is 1 when any normalised answer matches; ANLS is 1 - edit distance / longer
length, 0 below 0.5, the best over the answers, on lower-cased stripped strings (Biten et al., 2019).

Each score takes one prediction with its answers, or a list of predictions with a list of answers each (then the mean).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import starmap

NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# EvalAI restores apostrophes in these words, known with any one apostrophe left out ("couldn'tve", "couldnt've").
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
RESTORED = {w[:i] + w[i + 1 :]: w for w in CONTRACTIONS.split() for i, letter in enumerate(w) if letter == "'"}
RESTORED["somebody'd"] = "somebodyd"  # EvalAI's one rule in the other direction


def word_tokenize(word: str) -> str:
    """Lower case, without commas and question marks, `'s` split off: how OCR tokens and answers are written."""
    return word.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()


@lru_cache(maxsize=1 << 16)
def normalise(answer: str) -> str:
    """An answer as the EvalAI server compares it: punctuation, articles, number words and contractions made uniform."""
    answer = word_tokenize(answer).replace("\n", " ").replace("\t", " ").strip()
    text, digits = answer, re.search(r"\d,+\d", answer) is not None
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if beside_space or digits else " ")
    text = re.sub(r"\.(?!\d)", "", text, count=32)  # the server passes a flag where re.sub takes its count
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(RESTORED.get(word, word) for word in words if word not in ARTICLES)


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """Leave-one-out score in [0, 1] of each distinct answer among n annotators' answers (compared as they stand)."""
    n = len(answers)
    return {
        answer: (k * min(1.0, (k - 1) / 3) + (n - k) * min(1.0, k / 3)) / n
        for answer, k in sorted(Counter(answers).items())
    }


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance by Myers' bit vectors (1999): one big-integer step per character of `b`."""
    if not a:
        return len(b)
    match: dict[str, int] = {}
    for i, letter in enumerate(a):
        match[letter] = match.get(letter, 0) | 1 << i
    full, last = (1 << len(a)) - 1, 1 << len(a) - 1
    up, down, distance = full, 0, len(a)  # bits: where the column's vertical difference is +1, -1
    for letter in b:
        equal = match.get(letter, 0)
        diagonal = (((equal & up) + up) ^ up) | equal
        plus, minus = down | (~(diagonal | up) & full), up & diagonal
        distance += bool(plus & last) - bool(minus & last)
        plus, minus, equal = plus << 1 | 1, minus << 1, equal | down
        up, down = (minus | ~(equal | plus)) & full, plus & equal & full
    return distance


def _vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    if len(answers) != 10:
        raise ValueError(f"answers: TextVQA accuracy needs 10 answers per question, got {len(answers)}")
    return soft_scores([normalise(answer) for answer in answers]).get(normalise(prediction), 0.0)


def _stvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    return float(normalise(prediction) in {normalise(answer) for answer in answers})


def _anls(prediction: str, answers: Sequence[str]) -> float:
    prediction = prediction.lower().strip()
    best = 0.0
    for answer in {answer.lower().strip() for answer in answers}:
        longer = max(len(prediction), len(answer))
        similarity = 1 - edit_distance(prediction, answer) / longer if longer else 1.0
        best = max(best, similarity if similarity >= 0.5 else 0.0)
    return best


def _listed(value: object) -> bool:
    return isinstance(value, Iterable) and hasattr(value, "__len__") and not isinstance(value, Mapping | str | bytes)


def _score(metric, predictions, answers) -> float:
    single = isinstance(predictions, str)
    for name, value in (("predictions", predictions), ("answers", answers)):
        if not _listed(value) and not (single and value is predictions):
            raise ValueError(f"{name}: expected a list, found {type(value).__name__}")
    pairs = [(predictions, answers)] if single else list(zip(predictions, answers, strict=False))
    if not single and (len(predictions) != len(answers) or not pairs):
        raise ValueError(
            f"predictions and answers: need the same number, at least 1; got {len(predictions)} and {len(answers)}"
        )
    for i, (prediction, references) in enumerate(pairs):
        if not isinstance(prediction, str):
            raise ValueError(f"predictions[{i}]: expected a string, got {prediction!r}")
        if not _listed(references) or not len(references) or not all(isinstance(one, str) for one in references):
            raise ValueError(f"answers[{i}]: expected a non-empty list of strings, got {references!r}")
    return sum(starmap(metric, pairs)) / len(pairs)


def vqa_accuracy(predictions: str | Sequence[str], answers: Sequence) -> float:
    """TextVQA accuracy in [0, 1] of one prediction against its 10 answers, or the mean over lists of both (Singh et
    al., CVPR 2019; normalised as by the EvalAI server).

    Raises ValueError if a question does not have 10 answers, or if there are not as many predictions as questions.
    """
    return _score(_vqa_accuracy, predictions, answers)


def stvqa_accuracy(predictions: str | Sequence[str], answers: Sequence) -> float:
    """ST-VQA accuracy in [0, 1] (any answer matches after normalisation) of one prediction, or the mean over lists.

    Raises ValueError for a question without answers, or if there are not as many predictions as questions.
    """
    return _score(_stvqa_accuracy, predictions, answers)


def anls(predictions: str | Sequence[str], answers: Sequence) -> float:
    """Average normalised Levenshtein similarity in [0, 1] of one prediction, or the mean over lists of predictions
    (Biten et al., ICCV 2019: below 0.5 counts as 0). Raises as `stvqa_accuracy`."""
    return _score(_anls, predictions, answers)
