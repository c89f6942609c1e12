"""ReSt's published schedule: how much pseudo-labelled data, and how many last layers, by experiment and kept fraction.

From the released configurations of LFPR (Poh et al. 2024): X percent of the training questions get pseudo-labels, and
the last k MMT layers are trained wholly beside masks, classifier and OCR pointer network. One pass over the data.
The 86 and 73 per cent of the paper and of file names are thirteen and eleven fifteenths.
"""

from __future__ import annotations

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

    Give the kept fraction `constraint` or the `percentile` removed. Raises `ValueError` for an experiment without
    a published schedule, or if not exactly one of the two is given.
    """
    if experiment not in SUM:
        raise ValueError(f"experiment = {experiment!r}: published schedules exist for {sorted(SUM)}")
    if (constraint is None) == (percentile is None):
        raise ValueError(f"constraint = {constraint}, percentile = {percentile}: give exactly one")
    if constraint is not None:
        table = SUM[experiment]
        return table[max((c for c in table if c <= constraint + 1e-9), default=min(table))]
    table = THRESHOLD[experiment]
    return table[min((p for p in table if p >= percentile - 1e-9), default=max(table))]


def questions(percent: float, total: int) -> int:
    """How many of `total` training questions `percent` are, at least one: as published, parts of whole fifteenths,
    which in batches of 16 gives LFPR's numbers of iterations."""
    if percent == 100:
        return total
    return max(1, round(percent / 100 * (total - total % 15 or total)))
