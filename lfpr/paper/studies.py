"""Tables beside the scores: speed, minutes, and what is studied with CLIP alone, from stages of opened experiments.

Each function gives rows of one table of `lfpr.paper.schema.TABLES`; stages that are missing are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lfpr.experiments.grid import Cell
from lfpr.experiments.runs import Stage, minutes_per_stage, provenance_table

SHOWN = {"method": "label-free", "heuristic": "sum", "constraint": 0.4, "percentile": 50, "seed": 0}
"""The cell that the notebooks show by default, and that speed is measured of."""
COMPARED = ("label-free", "fisher", "magnitude", "random")  # scores whose rankings are compared


def study(experiment, scoring: bool = False) -> None:
    """Compute the stages that the tables need, but for those of the grid's cells. scoring: also `scoring_rows`."""
    for method in COMPARED:
        experiment.importance(method)
    experiment.speed(**SHOWN)
    if experiment.kind == "clip":
        sensitivity_rows(experiment)
        scale_rows(experiment)
    if scoring:
        scoring_rows(experiment)


def speed_rows(experiment) -> list[dict]:
    """A row per model of the cell `SHOWN`: unpruned, pruned, retrained."""
    measured = experiment.speed(**SHOWN).result
    return [
        {"experiment": experiment.name, "model": model, "constraint": SHOWN["constraint"], "ms": _time(row)} | row
        for model, row in measured.items()
    ]


def _time(row: dict) -> float:
    return next(value for name, value in row.items() if name.startswith("ms_per_"))


def minutes_rows(runs: str | Path) -> list[dict]:
    """Minutes and memory of all finished stages, by experiment, profile and stage."""
    return minutes_per_stage(provenance_table(runs)).reset_index().rename(columns={"stages": "runs"}).to_dict("records")


def sensitivity_rows(experiment) -> list[dict]:
    return experiment.sensitivity().result["steps"]


def cascade_rows(experiment, cell: Cell, stages: dict[str, Stage]) -> list[dict]:
    """A row per stage of a cell (`lfpr.experiments.cells.run`)."""
    return [about | found for about, found in _cascades(experiment, cell, stages)]


def growth_rows(experiment, cell: Cell, stages: dict[str, Stage]) -> list[dict]:
    """A row per stage of a cell and number of queries: the share of images that these brought to the full model so far,
    and how much less time encoding all images has then taken."""
    from lfpr.clip import image_speedup

    rows = []
    for about, found in _cascades(experiment, cell, stages):
        for queries, share in found["growth"]:
            speedup = image_speedup(found["ms_full"], found["ms_pruned"], share)
            rows.append(about | {"m": found["m"], "queries": queries, "reranked": share, "speedup": speedup})
    return rows


def _cascades(experiment, cell: Cell, stages: dict[str, Stage]) -> Iterator[tuple[dict, dict]]:
    """Of each stage of a cell: what names it, and the numbers of its cascade."""
    about = {key: cell.place[key] for key in ("method", "constraint", "seed")}
    for name, stage in stages.items():
        yield about | {"retrained": name == "retrained"}, experiment.cascade(stage).result


def scoring_rows(experiment) -> list[dict]:
    """How alike the label-free ranking of a TAP experiment is to LFPR's code's (`lfpr.paper.agreement`)."""
    from lfpr.paper.agreement import scoring_agreement

    return scoring_agreement(experiment)


def scale_rows(experiment) -> list[dict]:
    from lfpr.paper.released_masks import published_scales

    return published_scales(experiment).to_dict("records")
