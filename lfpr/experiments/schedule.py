"""ReSt's schedules: how much pseudo-labelled data, and how many last layers, by what is kept.

The published one, from the released configurations of LFPR (Poh et al. 2024): X percent of the training questions get
pseudo-labels, and the last k MMT layers are trained wholly beside masks, classifier and OCR pointer network. One pass
over the data. The 86 and 73 per cent of the paper and of file names are thirteen and eleven fifteenths.
"""

from __future__ import annotations

import math

from lfpr.checks import check_choice, check_constraint, check_count, check_number, check_percentile

X86, X73 = 260 / 3, 220 / 3

# kept fraction of parameters (`sum`) -> (X, k); a fraction between two entries takes the lower one
SUM = {
    "tap-textvqa": {0.2: (100, 3), 0.3: (X86, 2), 0.4: (X73, 2), 0.5: (60, 1), 0.6: (10, 0)},
    "tap-stvqa": {0.3: (100, 3), 0.4: (90, 3), 0.5: (80, 2), 0.6: (70, 2), 0.7: (60, 1), 0.8: (10, 0)},
    "tap12-textvqa": {0.2: (100, 9), 0.3: (80, 6), 0.4: (60, 3), 0.5: (10, 0)},
    "tap12-stvqa": {0.3: (100, 9), 0.4: (60, 3), 0.5: (10, 0)},
}
# percentile removed (`threshold`) -> (X, k); a percentile between two entries takes the higher one
THRESHOLD = {
    "tap-textvqa": {10: (10, 0), 30: (10, 0), 50: (60, 1), 70: (80, 2), 90: (100, 3)},
    "tap-stvqa": {50: (10, 0), 70: (X73, 2), 90: (100, 3)},
    "tap12-textvqa": {50: (10, 0), 70: (60, 3), 90: (100, 9)},
    "tap12-stvqa": {70: (10, 0), 90: (100, 9)},
}


def schedule(experiment: str, constraint: float | None = None, percentile: float | None = None) -> tuple[float, int]:
    """(X, k) as published (LFPR, Poh et al. 2024): percent of the training questions with pseudo-labels, and the number
    of last layers trained wholly.

    Give the kept fraction `constraint` in (0, 1] or the `percentile` in [0, 100) removed. Raises `ValueError` for an
    experiment without a published schedule, for others, or if not exactly one of the two is given.
    """
    check_choice("experiment", experiment, sorted(SUM))
    if (constraint is None) == (percentile is None):
        raise ValueError(f"constraint = {constraint}, percentile = {percentile}: give exactly one")
    if constraint is not None:
        constraint = check_constraint(constraint)
        table = SUM[experiment]
        return table[max((c for c in table if c <= constraint + 1e-9), default=min(table))]
    percentile, table = check_percentile(percentile), THRESHOLD[experiment]
    return table[min((p for p in table if p >= percentile - 1e-9), default=max(table))]


def own_schedule(layers: int, kept: float) -> tuple[float, int]:
    """(X, k) of ours, for an MMT of `layers` of which `kept`, a fraction in (0, 1], stays: both fall smoothly as more
    is kept, where the published ones fall to a tenth of the data and no whole layer at 60 %, and the score with them.

    X = 115 √(1 - kept) percent, at least 10 and at most 100, and k three quarters of the share that is gone, of all
    layers, rounded up. Raises ValueError for other numbers.
    """
    layers, kept = (
        check_count("layers", layers, 1),
        check_number("kept", kept, "in (0, 1]", lambda share: 0 < share <= 1),
    )
    gone = 1 - kept
    return min(100.0, max(10.0, round(115 * math.sqrt(gone), 1))), min(layers, math.ceil(0.75 * layers * gone - 1e-9))


def questions(percent: float, total: int) -> int:
    """How many of `total` training questions `percent` are, at least one: as published, parts of whole fifteenths,
    which in batches of 16 gives LFPR's numbers of iterations. Raises ValueError for a percentage outside (0, 100], or
    without questions."""
    percent = check_number("percent", percent, "in (0, 100]", lambda share: 0 < share <= 100)
    total = check_count("total", total, 1)
    if percent == 100:
        return total
    return max(1, round(percent / 100 * (total - total % 15 or total)))
