"""The experiments: which model, data and metric, in which profile, and their stages from importance to retraining.

`open_experiment("tap-textvqa", profile="mini")` gives an object whose methods are the paper's stages. Each stage is
loaded from `runs/` if it was computed with the same parameters on the same inputs, else computed and kept.

* `mini` (default): a small trained baseline from `data/mini` on rendered scenes, written to disk in TAP's formats
  or as MSCOCO captions.
* `full`: the user's own data and checkpoint, given by `data_root` and `checkpoint` (see `data/README.md`).
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfpr.experiments.checks import choose
from lfpr.experiments.tap_settings import Settings, TAPSpec
from lfpr.experiments.tap_stages import TAPExperiment
from lfpr.tap.layout import InputSizes
from lfpr.training.retrain import ReSt

if TYPE_CHECKING:
    from lfpr.experiments.clip_stages import CLIPExperiment

__all__ = ["EXPERIMENTS", "PROFILES", "SETTINGS", "Settings", "TAPExperiment", "open_experiment"]

PROFILES = ("mini", "full")

TAP_EXPERIMENTS = {
    "tap-textvqa": TAPSpec("textvqa", text_layers=3, mmt_layers=4),
    "tap-stvqa": TAPSpec("stvqa", text_layers=3, mmt_layers=4),
    "tap12-textvqa": TAPSpec("textvqa", text_layers=0, mmt_layers=12),
    "tap12-stvqa": TAPSpec("stvqa", text_layers=0, mmt_layers=12),
}
EXPERIMENTS = (*TAP_EXPERIMENTS, "clip-mscoco")


SETTINGS = {
    "mini": Settings(
        sizes=InputSizes(question_tokens=20, ocr_tokens_text=32, obj_tokens_text=12, num_objects=4, num_ocr=12,
                         feature_size=128),
        num_samples=500,
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


DEEP_REST = replace(SETTINGS["mini"].rest, mask_lr=3e-2)  # 12 layers need faster masks in mini's few iterations


def open_experiment(
    experiment: str = "tap-textvqa",
    profile: str = "mini",
    runs: str | Path = "runs",
    data_root: str | Path | None = None,
    checkpoint: str | Path | None = None,
    **settings: Any,
) -> TAPExperiment | CLIPExperiment:
    """One of `EXPERIMENTS`, its inputs checked: model, data and all stages, which are kept below `runs`.

    `data_root` and `checkpoint` are the user's files of profile "full". `settings` override those of the profile
    (fields of `Settings`, for CLIP of `lfpr.experiments.clip_settings.CLIPSettings`); None leaves the profile's value.

    Raises `ValueError` naming the parameter for an unknown experiment, profile or setting, and
    `FileNotFoundError` or `CheckpointError` for missing inputs, before any work.
    """
    choose("experiment", experiment, EXPERIMENTS)
    choose("profile", profile, PROFILES)
    table = SETTINGS
    if experiment not in TAP_EXPERIMENTS:  # transformers' CLIP takes a while to import
        from lfpr.experiments.clip_settings import SETTINGS as table
    settings = {name: value for name, value in settings.items() if value is not None}
    known = [field.name for field in fields(table[profile])]
    unknown = set(settings) - set(known)
    if unknown:
        raise ValueError(f"unknown setting {sorted(unknown)} of {experiment}; there are {sorted(known)}")
    chosen = table[profile]
    if profile == "mini" and experiment.startswith("tap12"):
        chosen = replace(chosen, rest=DEEP_REST)
    chosen = replace(chosen, **settings)
    if profile == "full" and not (data_root and checkpoint):
        raise ValueError(
            f"profile = 'full' needs data_root (found {data_root!r}) and checkpoint (found {checkpoint!r}): "
            "folders and files are listed in data/README.md"
        )
    given = profile, Path(runs), data_root or None, checkpoint or None, chosen
    if experiment in TAP_EXPERIMENTS:
        return TAPExperiment(experiment, TAP_EXPERIMENTS[experiment], *given)
    from lfpr.experiments.clip_stages import CLIPExperiment

    return CLIPExperiment(experiment, *given)
