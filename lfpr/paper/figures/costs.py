"""What models and stages cost: measured time against MACs, sizes, and minutes."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lfpr.paper.labels import EXPERIMENTS, sentence, title
from lfpr.paper.published_numbers import RETRAINING_MINUTES
from lfpr.paper.registry import figure, table
from lfpr.paper.schema import check_once, select
from lfpr.paper.style import REFERENCE, SINGLE, handle, stage_look
from lfpr.paper.tables import text_table

STAGES = {  # of runs: what the paper's reader calls them
    "importance": "Importance",
    "prune": "Search, shrink",
    "pseudo-labels": "Pseudo-labels",
    "targets": "Targets",
    "retrain": "Retraining",
    "baseline": "Evaluation",
    "step": "Sensitivity step",
}
AGAINST = "Measured time against multiply-accumulates of the pruned encoder, as shares of the unpruned model's"


@figure(
    "speed",
    needs=("speed",),
    heading="Measured time against cost",
    caption=f"{AGAINST}: medians of alternating runs. Bars: MACs; markers: time of the "
    "whole model, hollow: pruned, filled: retrained.",
)
def speed(measured: pd.DataFrame) -> Figure:
    """Measured time and multiply-accumulates of pruned models as shares of the unpruned model's (%), a row an
    experiment: a bar for MACs, markers for time, hollow where pruned, filled where retrained.

    Raises `ValueError` for an experiment without its unpruned model.
    """
    ratios = speed_ratios(measured)
    ratios = ratios[ratios.model != "unpruned"]
    names = list(ratios.experiment.unique())
    figure = Figure((SINGLE, 0.9 + 0.25 * len(names)), layout="constrained")
    panel = figure.subplots()
    panel.axvline(100, **REFERENCE)
    for place, experiment in enumerate(names):
        _, color, marker = EXPERIMENTS.get(experiment, ("", "0.3", "P"))
        rows = ratios[ratios.experiment == experiment]
        panel.barh(place, 100 * rows.mac_ratio.mean(), height=0.62, color=color, alpha=0.25)
        for model, group in rows.groupby("model", sort=False):
            looks = stage_look(color, model == "retrained") | {"linestyle": "", "marker": marker}
            panel.plot(100 * group.time_ratio, [place] * len(group), zorder=3, **looks)
    panel.set_yticks(range(len(names)), [title(name) for name in names])
    panel.set(xlabel="Share of the unpruned model's (%)", ylim=(len(names) - 0.5, -0.5), xlim=(0, None))
    panel.tick_params(axis="y", length=0)
    panel.grid(True, axis="x")
    handles = [Patch(color="0.2", alpha=0.25, label="MACs of the encoder")]
    handles += [handle(False, "Time, pruned"), handle(True, "Time, retrained")]
    for each in handles[1:]:
        each.set_linestyle("")
    figure.legend(handles=handles, loc="outside upper center", ncols=3, columnspacing=1, handletextpad=0.4)
    return figure


def speed_ratios(measured: pd.DataFrame) -> pd.DataFrame:
    """speed.csv with `mac_ratio` and `time_ratio` to the experiment's unpruned model."""
    measured = select(measured, "speed")
    check_once(measured, "speed", ["experiment", "model", "constraint"])
    full = measured[measured.model == "unpruned"].set_index("experiment")
    lacking = sorted(set(measured.experiment) - set(full.index))
    if lacking:
        raise ValueError(f"speed.csv: {lacking[0]} has no row with model = 'unpruned'")
    columns = {"mac_ratio": "macs", "time_ratio": "ms"}
    ratios = {name: measured[column] / measured.experiment.map(full[column]) for name, column in columns.items()}
    return measured.assign(**ratios)


@table(
    "table_minutes",
    needs=("minutes",),
    heading="Minutes",
    caption="Minutes of one run of each stage and the process's largest memory; last row: the paper's ReSt.",
)
def minutes_table(minutes: pd.DataFrame) -> pd.DataFrame:
    """Mean minutes of one run of each stage, a row per experiment and profile, and the largest memory of any stage.

    The last row is the paper's minutes of ReSt. Stages that are no step of the paper keep the names they have in runs.
    """
    minutes = select(minutes, "minutes")
    check_once(minutes, "minutes", ["experiment", "profile", "stage"])
    minutes["mean"] = minutes.minutes / minutes.runs
    stages = [stage for stage in STAGES if stage == "retrain" or (minutes.stage == stage).any()]
    stages += sorted(set(minutes.stage) - set(STAGES))
    names = {stage: STAGES.get(stage, sentence(stage)) for stage in stages}
    table = {}
    for (experiment, profile), rows in minutes.groupby(["experiment", "profile"], sort=False):
        means = rows.set_index("stage")["mean"]
        cells = {names[stage]: _minutes(means[stage]) for stage in stages if stage in means}
        table[title(experiment), profile] = cells | {"Peak memory (MB)": f"{rows.peak_memory_mb.max():,.0f}"}
    table["TAP, both data sets", "published, 2 GPUs"] = {names["retrain"]: RETRAINING_MINUTES}
    return text_table(table, ["Experiment", "Profile"], [*names.values(), "Peak memory (MB)"])


@table("table_speed", needs=("speed",), heading="Measured time and size", caption=f"{AGAINST}, with sizes.")
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
    return text_table(table, ["Experiment", "Model", "Kept"])


def _minutes(value: float) -> str:
    return "< 0.01" if value < 0.005 else f"{value:.2f}" if value < 1 else f"{value:.1f}"
