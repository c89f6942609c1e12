"""ReSt's schedule against the rows of the published table."""

import pytest

from lfpr.experiments.schedule import schedule

FRACTIONS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PUBLISHED = {  # percent of data, last layers; the papers' table has no entry for ST-VQA at 0.2
    "tap-textvqa": [(100, 3), (86, 2), (73, 2), (60, 1), (10, 0), (10, 0), (10, 0), (10, 0)],
    "tap-stvqa": [None, (100, 3), (90, 3), (80, 2), (70, 2), (60, 1), (10, 0), (10, 0)],
    "tap12-textvqa": [(100, 9), (80, 6), (60, 3), (10, 0), (10, 0), (10, 0), (10, 0), (10, 0)],
    "tap12-stvqa": [None, (100, 9), (60, 3), (10, 0), (10, 0), (10, 0), (10, 0), (10, 0)],
}
THRESHOLDS = {
    "tap-textvqa": [(10, 0), (10, 0), (60, 1), (80, 2), (100, 3)],
    "tap-stvqa": [(10, 0), (10, 0), (10, 0), (73, 2), (100, 3)],
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
    assert schedule("tap-textvqa", 0.45) == (73, 2)
    assert schedule("tap-textvqa", 0.05) == (100, 3)
    assert schedule("tap-textvqa", percentile=60) == (80, 2)


def test_schedule_rejects_bad_arguments():
    with pytest.raises(ValueError, match="experiment = 'bert'"):
        schedule("bert", 0.4)
    with pytest.raises(ValueError, match="exactly one"):
        schedule("tap-textvqa")
