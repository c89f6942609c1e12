"""The paper's published numbers.

Source: Poh, Chan, Lim. *Efficient label-free pruning and retraining for Text-VQA Transformers*, Pattern Recognition
Letters 183, 2024: the table of TAP on TextVQA on the project's page (`soonchangAI/LFPR`).
"""

from __future__ import annotations

EXPERIMENT = "tap-textvqa"  # what they are of
UNPRUNED = 28.4, 49.91  # parameters of the MMT (M), TextVQA validation accuracy (%) of TAP
CONSTRAINTS = 0.8, 0.4
PUBLISHED = {  # method, share kept: parameters of the MMT (M), accuracy (%), GPU hours, cloud computing ($), file (MB)
    ("l1", 0.8): (21.3, 48.23, 33.8, 206.9, 343),
    ("absolute", 0.8): (22.6, 47.53, 1.76, 0.352, 348),
    ("owo", 0.8): (22.7, 49.79, 0.71, 0.142, 355.7),
    ("fisher", 0.8): (22.4, 48.89, 0.16, 0.032, 347.1),
    ("label-free", 0.8): (22.7, 49.92, 0.30, 0.06, 20.1),
    ("l1", 0.4): (11.8, 47.73, 33.9, 207.5, 305),
    ("absolute", 0.4): (11.0, 44.99, 1.58, 0.316, 301.5),
    ("owo", 0.4): (13.4, 47.56, 0.91, 0.182, 310.9),
    ("fisher", 0.4): (10.6, 25.29, 0.14, 0.028, 299.8),
    ("label-free", 0.4): (11.4, 47.57, 0.58, 0.116, 43.9),
}
DOLLARS_PER_HOUR = 0.20  # its costs by its hours, on two Titan Xp: all rows but L1's, which is 6.12 on two V100
COMPARED = {  # method: of ours variant -> label, the first that was run being shown, and whether retrained
    "l1": ({"": "Magnitude (L1) + ReSt"}, True),
    "absolute": ({"": "Absolute loss gradient + retraining"}, True),
    "owo": ({"": "OWO"}, True),
    "fisher": (
        {
            "rearranged=True, rescaled=released": "Fisher: rearranged, rescaled (Kwon et al.), not retrained",
            "rescaled=True": "Fisher: rescaled, not retrained",
        },
        False,
    ),
    "label-free": ({"": "LFPR: label-free + ReSt"}, True),
    "random": ({"": "Random + ReSt"}, True),
}
RETRAINING_MINUTES = "3–34"  # of ReSt, on two GPUs, over all constraints and both data sets
SAL_EXPERIMENTS = "sal-textvqa", "sal-stvqa"  # beside whose scores this stands, from the paper's abstract alone, which
SAL_HALVED = 0.5, 2.9, 1.19  # says: share of SaL‡-Base's parameters kept, points lost (less than), GPU hours of ReSt
