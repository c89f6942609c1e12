"""The experiments: which model, data and metric, in which profile, and their stages from importance to retraining.

``open_experiment("tap-textvqa", profile="mini")`` gives an object whose methods are the paper's stages. Each stage is
loaded from ``runs/`` if it was computed with the same parameters on the same inputs, else computed and kept.

* ``mini`` (default): a small trained baseline from ``data/mini`` on rendered scenes, written to disk in TAP's formats.
* ``full``: the user's own data and checkpoint, given by ``data_root`` and ``checkpoint`` (see ``data/README.md``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lfpr.retrain import ReSt
from lfpr.tap.layout import InputSizes
from lfpr.tap.settings import SHIPPED, Settings, TAPSpec, choose
from lfpr.tap.stages import TAPExperiment

__all__ = ["EXPERIMENTS", "PROFILES", "SETTINGS", "SHIPPED", "Settings", "TAPExperiment", "choose", "open_experiment"]

PROFILES = ("mini", "full")

EXPERIMENTS = {
    "tap-textvqa": TAPSpec("textvqa", text_layers=3, mmt_layers=4),
    "tap-stvqa": TAPSpec("stvqa", text_layers=3, mmt_layers=4),
    "tap12-textvqa": TAPSpec("textvqa", text_layers=0, mmt_layers=12),
    "tap12-stvqa": TAPSpec("stvqa", text_layers=0, mmt_layers=12),
}


SETTINGS = {
    "mini": Settings(
        sizes=InputSizes(question_tokens=20, ocr_tokens_text=32, obj_tokens_text=12, num_objects=4, num_ocr=12,
                         feature_size=128),
        num_samples=1000,
        score_batch=50,
        per_sample=True,
        rest=ReSt(lr=1e-3, mask_lr=1e-2, cosine=True),
        retrain_batch=16,
        eval_batch=250,
        word_vectors="hashed",
        train_images=3000,
        val_images=600,
    ),
    "full": Settings(
        sizes=InputSizes(),
        num_samples=3000,
        score_batch=8,
        per_sample=True,
        rest=ReSt(),
        retrain_batch=16,
        eval_batch=32,
        word_vectors="fasttext",
    ),
}  # fmt: skip


def open_experiment(
    experiment: str = "tap-textvqa",
    profile: str = "mini",
    runs: str | Path = "runs",
    data_root: str | Path | None = None,
    checkpoint: str | Path | None = None,
    **settings,
) -> TAPExperiment:
    """The experiment, its inputs checked. ``settings`` override those of the profile (fields of ``Settings``).

    Raises ``ValueError`` naming the parameter for an unknown experiment, profile or setting, and
    ``FileNotFoundError`` or ``CheckpointError`` for missing inputs, before any work.
    """
    choose("experiment", experiment, EXPERIMENTS)
    choose("profile", profile, PROFILES)
    unknown = set(settings) - set(Settings.__dataclass_fields__)
    if unknown:
        raise ValueError(f"unknown setting {sorted(unknown)}; there are {sorted(Settings.__dataclass_fields__)}")
    chosen = replace(SETTINGS[profile], **settings)
    for name in ("num_samples", "score_batch", "retrain_batch", "eval_batch"):
        if getattr(chosen, name) < 1:
            raise ValueError(f"{name} = {getattr(chosen, name)}: must be at least 1")
    choose("word_vectors", chosen.word_vectors, ("fasttext", "hashed"))
    if profile == "full" and not (data_root and checkpoint):
        raise ValueError(
            f"profile = 'full' needs data_root (found {data_root!r}) and checkpoint (found {checkpoint!r}): "
            "folders and files are listed in data/README.md"
        )
    return TAPExperiment(
        experiment, EXPERIMENTS[experiment], profile, Path(runs), data_root or None, checkpoint or None, chosen
    )
