"""ReSt's schedule against the rows of the published table, and the iterations in LFPR's configurations."""

import math

import pytest

from lfpr.experiments.schedule import X73, X86, own_schedule, questions, schedule

FRACTIONS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PUBLISHED = {  # percent of data, last layers; the papers' table has no entry for ST-VQA at 0.2
    "tap-textvqa": [(100, 3), (X86, 2), (X73, 2), (60, 1), (10, 0), (10, 0), (10, 0), (10, 0)],
    "tap-stvqa": [None, (100, 3), (90, 3), (80, 2), (70, 2), (60, 1), (10, 0), (10, 0)],
    "tap12-textvqa": [(100, 9), (80, 6), (60, 3), (10, 0), (10, 0), (10, 0), (10, 0), (10, 0)],
    "tap12-stvqa": [None, (100, 9), (60, 3), (10, 0), (10, 0), (10, 0), (10, 0), (10, 0)],
}
THRESHOLDS = {
    "tap-textvqa": [(10, 0), (10, 0), (60, 1), (80, 2), (100, 3)],
    "tap-stvqa": [(10, 0), (10, 0), (10, 0), (X73, 2), (100, 3)],
    "tap12-textvqa": [(10, 0), (10, 0), (10, 0), (60, 3), (100, 9)],
    "tap12-stvqa": [(10, 0), (10, 0), (10, 0), (10, 0), (100, 9)],
}


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_schedule_is_the_published_table(experiment):
    for fraction, expected in zip(FRACTIONS, PUBLISHED[experiment], strict=True):
        assert expected is None or schedule(experiment, fraction) == expected
    for percentile, expected in zip((10, 30, 50, 70, 90), THRESHOLDS[experiment], strict=True):
        assert schedule(experiment, percentile=percentile) == expected


def test_schedule_between_entries_retrains_more():
    assert schedule("tap-textvqa", 0.45) == (X73, 2)
    assert schedule("tap-textvqa", 0.05) == (100, 3)
    assert schedule("tap-textvqa", percentile=60) == (80, 2)


ITERATIONS = {  # training questions: per cent in a file's name: `max_iterations` of the configuration, batches of 16
    34602: {10: 217, 60: 1298, 73: 1586, 80: 1730, 86: 1874, 100: 2163},  # TextVQA
    23446: {10: 147, 60: 880, 70: 1026, 73: 1075, 80: 1173, 86: 1270, 90: 1319, 100: 1466},  # ST-VQA, in M4C's split
}


@pytest.mark.parametrize("total", ITERATIONS)
def test_iterations_are_the_published_ones(total):
    for percent, iterations in ITERATIONS[total].items():
        exact = {73: X73, 86: X86}.get(percent, percent)
        assert int(exact) == percent and math.ceil(questions(exact, total) / 16) == iterations


def test_few_questions_are_at_least_one():
    assert [questions(10, total) for total in (1, 6, 14, 16, 30, 12000)] == [1, 1, 1, 2, 3, 1200]
    assert questions(X73, 15) == 11 and questions(100, 16) == 16


def test_schedule_rejects_bad_arguments():
    with pytest.raises(ValueError, match="experiment = 'bert'"):
        schedule("bert", 0.4)
    with pytest.raises(ValueError, match="exactly one"):
        schedule("tap-textvqa")
    for bad in (-5, 0, 7, math.nan, math.inf, "0.4", True, [0.4]):
        with pytest.raises(ValueError, match=r"constraint = .*: must be in \(0, 1\]"):
            schedule("tap-textvqa", bad)
        with pytest.raises(ValueError, match=r"kept = .*: must be in \(0, 1\]"):
            own_schedule(4, bad)
    for bad in (-5, 100, math.nan, "50", True):
        with pytest.raises(ValueError, match=r"percentile = .*: must be in \[0, 100\)"):
            schedule("tap-textvqa", percentile=bad)
    for bad in (-5, 0, 101, math.nan, "50", None):
        with pytest.raises(ValueError, match=r"percent = .*: must be in \(0, 100\]"):
            questions(bad, 16)
    for bad in (-5, 0, 1.5, math.nan, "50", None):
        with pytest.raises(ValueError, match="total = .*: must be a whole number of at least 1"):
            questions(50, bad)
        with pytest.raises(ValueError, match="layers = .*: must be a whole number of at least 1"):
            own_schedule(bad, 0.5)


def test_our_schedule_has_no_dip():
    for layers in (4, 12):
        ways = [own_schedule(layers, kept) for kept in (0.05, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)]
        assert ways == sorted(ways, reverse=True) and {k for _, k in ways} <= set(range(layers + 1))
        assert all(10 <= percent <= 100 for percent, _ in ways)
        assert own_schedule(layers, 0.6) == (72.7, {4: 2, 12: 4}[layers]) and own_schedule(layers, 0.2)[0] == 100
