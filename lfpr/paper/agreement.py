"""How much the label-free ranking depends on how it is computed: ours, LFPR's code's, and that of another sample.

LFPR's code scores with dropout and one gradient per batch of 8; by default, this package scores in evaluation mode with
one gradient per question. Rankings agree if they order heads and neurons alike (Spearman's correlation), and if the
search keeps the same ones.
"""

from __future__ import annotations

import pandas as pd
from torch import Tensor

from lfpr.experiments.tap_stages import TAPExperiment
from lfpr.paper.figures import rankings


def scoring_agreement(experiment: TAPExperiment, seed: int = 0, constraint: float = 0.4) -> list[dict]:
    """Two rows, `kind` head and neuron, for each other scoring that the default one is compared `with`:

    - "published": LFPR's code's (`published_scoring`), on the same questions;
    - "batches of 8": a gradient per batch of 8 as there, without its dropout;
    - "another sample": the default one on the questions of the next seed, what chance alone changes.

    `spearman`: rank correlation over all heads (neurons) of all layers. `overlap`: kept by both / kept by either,
    at `constraint`. `dropout`: the one scored with. Scores are stages of the experiment, computed once.
    """
    plain = experiment.with_settings(published_scoring=False)
    published = experiment.with_settings(published_scoring=True)
    batched = plain.with_settings(score_batch=8, per_sample=False)
    others = {"published": (published, seed), "batches of 8": (batched, seed), "another sample": (plain, seed + 1)}
    ours = plain.importance("label-free", seed)
    kept = plain.masks(ours, "label-free", constraint=constraint)
    rows = []
    for name, (other, its_seed) in others.items():
        theirs = other.importance("label-free", its_seed)
        masks = other.masks(theirs, "label-free", constraint=constraint)
        about = {"experiment": experiment.name, "profile": experiment.profile, "seed": seed, "with": name}
        about |= {"constraint": constraint, "dropout": other.scoring_dropout or 0.0}
        for kind in ("heads", "neurons"):
            both = getattr(kept, kind) != 0, getattr(masks, kind) != 0
            overlap = (both[0] & both[1]).sum().item() / (both[0] | both[1]).sum().item()
            correlation = spearman(getattr(ours, kind), getattr(theirs, kind))
            rows.append(about | {"kind": kind[:-1], "spearman": correlation, "overlap": overlap})
    return rows


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of the entries of two tensors of the same shape."""
    return rankings.spearman(pd.DataFrame({"a": a.flatten().numpy(), "b": b.flatten().numpy()}))
