"""Scores of answers: parity with M4C's evaluators, laws that hold for any answers, and what people really wrote."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lfpr.tap.metrics import anls, edit_distance, normalise, soft_scores, stvqa_accuracy, vqa_accuracy

HERE = Path(__file__).parents[1]
REFERENCE = json.loads((HERE / "reference/vqa_metrics.json").read_text())
REAL = [
    question
    for split in ("train", "val")
    for question in json.loads((HERE / f"real_samples/TextVQA_0.5.1_{split}_100.json").read_text())["data"]
]
SCORES = {"textvqa_accuracy": vqa_accuracy, "stvqa_accuracy": stvqa_accuracy, "anls": anls}
# a busy machine is no failure
steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
answer = st.text("ab1 ,.'-\n", max_size=8)


@pytest.mark.parametrize("name", SCORES)
def test_parity_with_the_published_evaluators(name):
    for row in REFERENCE:
        assert SCORES[name](row["prediction"], row["answers"]) == pytest.approx(row[name]), row["prediction"]
    mean = sum(row[name] for row in REFERENCE) / len(REFERENCE)
    predictions, answers = [row["prediction"] for row in REFERENCE], [row["answers"] for row in REFERENCE]
    assert SCORES[name](predictions, answers) == pytest.approx(mean)


@pytest.mark.parametrize(
    ("written", "compared"),
    [
        ("The  Stop Sign.", "stop sign"),
        ("two", "2"),
        ("none", "0"),
        ("1,000", "1000"),
        ("$4.50", "$4.50"),
        ("coca-cola", "coca cola"),
        ("- exit", "exit"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("mcdonald's", "mcdonald 's"),
        ("a\tb\nc?", "b c"),
    ],
)
def test_normalise(written, compared):
    assert normalise(written) == compared


def test_soft_scores_leave_one_annotator_out():
    scores = soft_scores(["a"] * 3 + ["b"] * 1 + ["c"] * 6)
    assert scores == pytest.approx({"a": (3 * 2 / 3 + 7) / 10, "b": 9 / 10 / 3, "c": 1.0})


@steady
@given(st.lists(answer, min_size=10, max_size=10), answer)
def test_scores_stay_in_range_and_reward_what_was_said(answers, prediction):
    for score in SCORES.values():
        assert 0 <= score(prediction, answers) <= 1
    assert stvqa_accuracy(answers[0], answers) == 1
    assert anls(answers[0], answers) == 1
    most_given = Counter(map(normalise, answers)).most_common(1)[0][0]
    best = max(vqa_accuracy(a, answers) for a in answers)
    assert soft_scores([normalise(a) for a in answers])[most_given] == pytest.approx(best)


def naive_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(diagonal + (x != y), row[j] + 1, row[j - 1] + 1)
    return row[-1]


@steady
@given(st.text("abc", max_size=12), st.text("abcd", max_size=70))
def test_edit_distance_against_the_textbook_table(a, b):
    assert edit_distance(a, b) == edit_distance(b, a) == naive_distance(a, b)


def test_anls_is_zero_below_one_half():
    assert anls("abcd", ["abcd", "x"]) == 1
    assert anls("abxy", ["abcd"]) == 0.5
    assert anls("axyz", ["abcd"]) == 0
    assert anls("", ["", "a"]) == 1


def test_real_answers():
    """The answer most annotators gave scores high; a wrong one scores nothing; consensus of 4 is worth a full point."""
    consensus = [Counter(map(normalise, q["answers"])).most_common(1)[0] for q in REAL]
    answers = [q["answers"] for q in REAL]
    scores = [vqa_accuracy(words, a) for (words, _), a in zip(consensus, answers, strict=True)]
    assert all(score == 1 for score, (_, given) in zip(scores, consensus, strict=True) if given >= 4)
    assert vqa_accuracy([words for words, _ in consensus], answers) == pytest.approx(sum(scores) / len(scores))
    assert sum(scores) / len(scores) > 0.8
    assert vqa_accuracy(["zzzz qqqq"] * len(REAL), answers) == 0
    assert all(0 <= vqa_accuracy(a, q["answers"]) <= 1 for q in REAL for a in q["answers"])


@pytest.mark.parametrize(
    ("score", "prediction", "answers", "says"),
    [
        (vqa_accuracy, "a", ["a"] * 9, "10 answers per question, got 9"),
        (vqa_accuracy, ["a"], [], "same number"),
        (anls, [], [], "at least 1"),
        (anls, "a", [], "non-empty list"),
        (stvqa_accuracy, ["a"], ["a"], r"answers\[0\]"),
        (anls, [3], [["a"]], r"predictions\[0\]"),
    ],
)
def test_bad_input(score, prediction, answers, says):
    with pytest.raises(ValueError, match=says):
        score(prediction, answers)
