"""The paper's published numbers, and ours beside them, as tables.

Source: Poh, Chan, Lim. *Efficient label-free pruning and retraining for Text-VQA Transformers*, Pattern Recognition
Letters 183, 2024: the table of TAP on TextVQA on the project's page (`soonchangAI/LFPR`).
"""

from __future__ import annotations

import pandas as pd

from lfpr.paper.comparisons import speed_ratios
from lfpr.paper.tables import check_once, mean_cell, over_seeds, scores, select, sentence, title

PUBLISHED_UNPRUNED = 28.4, 49.91  # parameters of the MMT (M), TextVQA validation accuracy (%) of TAP
PUBLISHED = {  # method, share kept: parameters of the MMT (M), accuracy (%), GPU hours, file (MB)
    ("l1", 0.8): (21.3, 48.23, 33.8, 343),
    ("absolute", 0.8): (22.6, 47.53, 1.76, 348),
    ("owo", 0.8): (22.7, 49.79, 0.71, 355.7),
    ("fisher", 0.8): (22.4, 48.89, 0.16, 347.1),
    ("label-free", 0.8): (22.7, 49.92, 0.30, 20.1),
    ("l1", 0.4): (11.8, 47.73, 33.9, 305),
    ("absolute", 0.4): (11.0, 44.99, 1.58, 301.5),
    ("owo", 0.4): (13.4, 47.56, 0.91, 310.9),
    ("fisher", 0.4): (10.6, 25.29, 0.14, 299.8),
    ("label-free", 0.4): (11.4, 47.57, 0.58, 43.9),
}
PUBLISHED_MINUTES = "3–34"  # of ReSt, on two GPUs, over all constraints and both data sets
COMPARED = {  # method: label, and of ours: variant, retrained
    "l1": ("L1 + retraining", "", True),
    "absolute": ("Absolute loss gradient + retraining", "", True),
    "owo": ("OWO", "", True),
    "fisher": ("Fisher, rescaled, not retrained", "rescaled=True", False),
    "label-free": ("LFPR: label-free + ReSt", "", True),
    "random": ("Random + ReSt", "", True),
}
STAGES = {  # of runs: what the paper's reader calls them
    "importance": "Scores",
    "prune": "Search, shrink",
    "pseudo-labels": "Pseudo-labels",
    "targets": "Targets",
    "retrain": "Retraining",
    "baseline": "Evaluation",
    "step": "Sensitivity step",
}
NONE = "–"


def comparison_table(results: pd.DataFrame, experiment: str = "tap-textvqa") -> pd.DataFrame:
    """The paper's table of methods at 80 % and 40 % kept (`PUBLISHED`) and this project's numbers beside it.

    Drops are points below the unpruned model. The paper's time is GPU hours of pruning and retraining, ours minutes of
    retraining. "–": not published, or not run.
    """
    unpruned, rows = scores(results, experiment, variants=True)
    whole = select(results, "results", experiment=experiment, method="unpruned")
    parameters, accuracy = PUBLISHED_UNPRUNED
    table = {("100 %", "Unpruned"): _published(parameters, accuracy, None, None) | _ours(whole, unpruned)}
    for constraint in (0.8, 0.4):
        for method, (label, variant, retrained) in COMPARED.items():
            here = (rows.method == method) & (rows.variant == variant) & (rows.retrained == retrained)
            here &= (rows.heuristic == "sum") & (rows.constraint == constraint)
            numbers = PUBLISHED.get((method, constraint), (None,) * 4)
            table[f"{100 * constraint:g} %", label] = _published(*numbers) | _ours(rows[here], unpruned)
    frame = pd.DataFrame.from_dict(table, orient="index").fillna(NONE)
    frame.index = pd.MultiIndex.from_tuples(table, names=["Kept", "Method"])
    return frame


def minutes_table(minutes: pd.DataFrame) -> pd.DataFrame:
    """Mean minutes of one run of each stage, a row per experiment and profile, and the largest memory of any stage.

    The last row is the paper's minutes of ReSt. Stages that are no step of the paper keep the names they have in runs.
    """
    minutes = select(minutes, "minutes")
    check_once(minutes, "minutes", ["experiment", "profile", "stage"])
    minutes["mean"] = minutes.minutes / minutes.runs
    columns = [*STAGES, *sorted(set(minutes.stage) - set(STAGES))]
    table = {}
    for (experiment, profile), rows in minutes.groupby(["experiment", "profile"], sort=False):
        means = rows.set_index("stage")["mean"]
        cells = {STAGES.get(stage, sentence(stage)): _minutes(means[stage]) for stage in columns if stage in means}
        table[title(experiment), profile] = cells | {"Peak memory (MB)": f"{rows.peak_memory_mb.max():,.0f}"}
    table["TAP, both data sets", "published, 2 GPUs"] = {STAGES["retrain"]: PUBLISHED_MINUTES}
    names = [
        STAGES.get(stage, sentence(stage)) for stage in columns if (minutes.stage == stage).any() or stage == "retrain"
    ]
    frame = pd.DataFrame.from_dict(table, orient="index").reindex(columns=[*names, "Peak memory (MB)"]).fillna(NONE)
    frame.index = pd.MultiIndex.from_tuples(table, names=["Experiment", "Profile"])
    return frame


def speed_table(measured: pd.DataFrame) -> pd.DataFrame:
    """Size and measured time of every model: parameters and MACs of the encoder, file, milliseconds per question or
    image, and the last two as shares of the unpruned model's."""
    table, order = {}, {name: place for place, name in enumerate(measured.experiment.unique())}
    ratios = speed_ratios(measured).sort_values("macs", ascending=False, kind="stable")
    for row in ratios.sort_values("experiment", key=lambda names: names.map(order), kind="stable").itertuples():
        kept = "100 %" if row.model == "unpruned" else f"{100 * row.constraint:g} %"
        table[title(row.experiment), row.model, kept] = {
            "Parameters (M)": f"{row.parameters / 1e6:.2f}",
            "MACs (M)": f"{row.macs / 1e6:,.1f}",
            "File (MB)": f"{row.megabytes:.1f}",
            "Time (ms)": f"{row.ms:.2f}",
            "MACs (%)": f"{100 * row.mac_ratio:.0f}",
            "Time (%)": f"{100 * row.time_ratio:.0f}",
        }
    frame = pd.DataFrame.from_dict(table, orient="index")
    frame.index = pd.MultiIndex.from_tuples(table, names=["Experiment", "Model", "Kept"])
    return frame


def _published(
    parameters: float | None, accuracy: float | None, hours: float | None, megabytes: float | None
) -> dict[str, str]:
    drop = None if accuracy is None else PUBLISHED_UNPRUNED[1] - accuracy
    return {
        "Paper: params (M)": _number(parameters, ".1f"),
        "Paper: accuracy": _number(accuracy, ".2f"),
        "Paper: drop": _number(drop, ".2f"),
        "Paper: GPU hours": _number(hours, ".2f"),
        "Paper: MB": _number(megabytes, "g"),
    }


def _ours(rows: pd.DataFrame, unpruned: float) -> dict[str, str]:
    """Means over seeds; nothing for a method that was not run."""
    if not len(rows):
        return {}
    point = next(over_seeds(rows).itertuples())
    return {
        "Here: params": f"{100 * point.fraction:.1f} %",
        "Here: accuracy": mean_cell(point),
        "Here: drop": _number(100 * (unpruned - point.mean), ".1f"),
        "Here: minutes": _number(rows.minutes.mean(), ".2f"),
        "Here: MB": _number(rows.megabytes.mean(), ".2f"),
    }


def _number(value: float | None, spec: str) -> str:
    """The number with a real minus sign, none for −0, "–" for a missing one."""
    return NONE if value is None or pd.isna(value) else f"{value:z{spec}}".replace("-", "−")


def _minutes(value: float) -> str:
    return "< 0.01" if value < 0.005 else f"{value:.2f}" if value < 1 else f"{value:.1f}"
