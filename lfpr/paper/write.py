"""All figures and tables of the paper, with their captions, from the tidy tables in `paper_figures/`.

`write_all(folder)` draws what the tables at hand allow. A figure is written as PDF and PNG, a table as CSV, LaTeX and
Markdown, and `captions.json` says what each shows, with the numbers of seeds and questions behind it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lfpr.paper import comparisons, figures, published_numbers, rankings
from lfpr.paper.tables import (
    ALTERNATIVE_SCORES,
    CONTROLS,
    HEURISTICS,
    OPTIONAL,
    TABLES,
    accuracy_table,
    kept_label,
    main_method,
    read,
    retraining_name,
    score_label,
    scores,
    title,
    write_file,
    write_table,
)

__all__ = ["write_all"]

Item = tuple[str, str, Figure | pd.DataFrame]  # file name without suffix, caption, what is drawn
CLIP = "clip-mscoco"


def write_all(folder: str | Path) -> list[Path]:
    """Draw every figure and table that the tables in `folder` allow; returns the files written.

    Of the tables in `lfpr.paper.tables`, results.csv must be there. Raises `FileNotFoundError` if it is not, and
    `ValueError` naming a table's missing column or odd value.
    """
    folder = Path(folder)
    tables = {"results": read(folder, "results")}
    tables |= {name: read(folder, name) for name in TABLES | OPTIONAL if (folder / f"{name}.csv").is_file()}
    files, captions = [], {}
    for name, caption, drawn in items(tables):
        write = figures.save if isinstance(drawn, Figure) else write_table
        files += write(drawn, folder, name, *([] if isinstance(drawn, Figure) else [caption]))
        captions[name] = caption
    text = json.dumps(captions, indent=1, sort_keys=True, ensure_ascii=False)
    return [*files, write_file(folder / "captions.json", f"{text}\n".encode())]


def items(tables: dict[str, pd.DataFrame]) -> Iterator[Item]:
    """The figures and tables that `tables` (by name, see `lfpr.paper.tables`) allow, in the paper's order."""
    results = tables["results"]
    experiments = list(results.experiment.unique())
    if len(experiments) > 1:
        fewest, most = (f"{count:,.0f}" for count in results.questions.agg(["min", "max"]))
        text = f"Score against what is kept of the {len(experiments)} experiments, search by sum of importance "
        text += f"({' and '.join(results.profile.unique())} profile, {fewest} to {most} questions or captions each)"
        yield "overview", f"{text}; {_lines(results)}", figures.overview(results)
    for experiment in experiments:
        yield from _curves(results, experiment)
        yield from _variants(results, experiment)
        yield from _inside(tables, experiment)
    if "tap-textvqa" in experiments:
        yield from _published(results)
    if CLIP in experiments:
        yield from _clip(tables)
    yield from _of_all(tables)


def about(rows: pd.DataFrame) -> str:
    """Which experiment, and how many questions (CLIP: captions) and seeds: for captions."""
    experiment, questions, seeds = rows.experiment.iloc[0], rows.questions.max(), rows.seed.nunique()
    unit = "captions" if experiment == CLIP else "questions"
    spread = f", up to {seeds} seeds" if seeds > 1 else ", one seed"
    return f"{title(experiment)} ({rows.profile.iloc[0]} profile, {questions:,.0f} validation {unit}{spread})"


def _name(method: str) -> str:
    return method.replace("fisher", "Fisher")


def _lines(rows: pd.DataFrame) -> str:
    """What the lines and bars of a figure of scores mean."""
    bars = "; points are means over seeds, bars reach from the lowest to the highest" if rows.seed.nunique() > 1 else ""
    return f"dashed, hollow: pruned; solid, filled: retrained; dotted: unpruned{bars}."


def _curves(results: pd.DataFrame, experiment: str) -> Iterator[Item]:
    """Score against what is kept: curves and tables, by either search."""
    rows = results[results.experiment == experiment]
    _, pruned = scores(results, experiment)
    kept, score = kept_label(experiment), score_label(experiment)
    text = f"{about(rows)}: {score} against {kept} (%)"
    for heuristic, label in HEURISTICS.items():
        if not (pruned.heuristic == heuristic).any():
            continue
        suffix = "" if heuristic == "sum" else f"_{heuristic}"
        found = pruned[pruned.heuristic == heuristic]
        by = kept if heuristic == "sum" else f"percentile of importance removed, and the share of {kept} in brackets"
        spread = " Mean ± standard deviation over seeds." if found.seed.nunique() > 1 else ""
        for measure in ("score", *(name for name in ALTERNATIVE_SCORES if found[name].notna().any())):
            name = f"table_{experiment}{suffix}" + (f"_{measure}" if measure != "score" else "")
            heading = f"{about(rows)}: {score_label(experiment, measure)} by {by}, search by {label.lower()}.{spread}"
            yield name, heading, accuracy_table(results, experiment, heuristic, measure)
        if heuristic == "sum":
            curves = figures.accuracy_against_parameters(results, experiment)
            yield f"accuracy_{experiment}", f"{text}, search by {label.lower()}; {_lines(found)}", curves
    methods = {name: set(group.heuristic) for name, group in pruned.groupby("method")}
    both = [name for name in methods if methods[name] == set(HEURISTICS)]
    if both:
        method = main_method(pruned[pruned.method.isin(both)], experiment)
        drawn = comparisons.threshold_against_sum(results, experiment, method)
        heading = f"{text} by {_name(method)} scores, searched by sum of importance and by threshold"
        yield f"threshold_{experiment}", f"{heading}; {_lines(pruned[pruned.method == method])}", drawn


def _variants(results: pd.DataFrame, experiment: str) -> Iterator[Item]:
    """What was run in other ways than the experiment's own."""
    rows = results[results.experiment == experiment]
    _, every = scores(results, experiment, variants=True)
    summed = every[every.heuristic == "sum"]
    bars = f"{score_label(experiment)}; hollow: not retrained"
    ways = {variant for _, variant, _ in comparisons.ways_of(experiment).values()} - {""}
    if summed.variant.isin(ways).any():
        method = _name(main_method(summed, experiment))
        heading = f"{about(rows)}: alternatives to {method} pruning with {retraining_name(experiment)}: {bars}."
        yield f"alternatives_{experiment}", heading, comparisons.alternatives(results, experiment)
    if summed.method.isin(CONTROLS).any():
        heading = f"{about(rows)}: what the parts of Fisher's scores are worth: {bars}."
        yield f"controls_{experiment}", heading, comparisons.controls(results, experiment)
    if summed.variant.str.fullmatch(r"(num_samples|step)=\d+").any():
        heading = f"{about(rows)}: {score_label(experiment)} of the pruned model, not retrained, by how it is scored."
        samples = _samples(experiment, rows.profile.iloc[0])
        yield f"sampling_{experiment}", heading, comparisons.sampling(results, experiment, samples)


def _samples(experiment: str, profile: str) -> int:
    """How many samples the experiment's own way scores with."""
    if experiment == CLIP:
        from lfpr.experiments.clip_settings import SETTINGS
    else:
        from lfpr.experiments import SETTINGS
    return SETTINGS[profile].num_samples


def _inside(tables: dict[str, pd.DataFrame], experiment: str) -> Iterator[Item]:
    """Layers, importance, rankings and mask values."""
    label, found = title(experiment), {}
    for name in ("layers", "importance", "mask_values"):
        rows = tables[name][tables[name].experiment == experiment] if name in tables else ()
        if len(rows):
            found[name] = rows, main_method(rows, experiment)
    if "layers" in found:
        rows, method = found["layers"]
        text = f"{label}: heads and neurons kept in each layer by {_name(method)} scores, seed 0."
        yield f"kept_{experiment}", text, figures.kept_per_layer(rows, experiment, method)
    if "importance" in found:
        rows, method = found["importance"]
        text = f"{label}: {_name(method)} importance of heads (left) and, sorted in each layer, of neurons (right)."
        yield f"importance_{experiment}", text, figures.importance_map(rows, experiment, method)
        if {"label-free", "fisher"} <= set(rows.method):
            text = f"{label}: ranks of heads and neurons by label-free and other scores; ρ: Spearman's correlation."
            yield f"ranks_{experiment}", text, rankings.rank_scatter(rows, experiment)
    if "mask_values" in found:
        rows, method = found["mask_values"]
        text = f"{label}: mask values after {retraining_name(experiment)}, {_name(method)} scores, seed 0."
        yield f"mask_values_{experiment}", text, figures.mask_values(rows, experiment, method)


def _published(results: pd.DataFrame) -> Iterator[Item]:
    rows = results[results.experiment == "tap-textvqa"]
    text = (
        "Published results of TAP on TextVQA (Poh, Chan, Lim, Pattern Recognition Letters 183, 2024; GPU hours on two "
        f"V100 or Titan Xp) beside those here: {about(rows)}, minutes of retraining. Drop: points below unpruned."
    )
    yield "table_comparison", text, published_numbers.comparison_table(results)


def _clip(tables: dict[str, pd.DataFrame]) -> Iterator[Item]:
    from lfpr.paper import clip_figures as clip

    results = tables["results"]
    label = about(results[results.experiment == CLIP])
    yield f"table_{CLIP}_recall", f"{label}: recall (%), means over seeds.", clip.recall_table(results)
    if "sensitivity" in tables:
        text = "recall after each step of sensitivity pruning, rescaled or not; below, the heads removed."
        yield f"sensitivity_{CLIP}", f"{label}: {text}", clip.sensitivity_steps(tables["sensitivity"], results)
    if "cascade" in tables:
        text = (
            "recall (%) of cascades: the pruned model ranks all images, the unpruned one re-ranks the top m. f: share "
            "of images that are ever re-ranked; break-even: the f (%) that gains nothing; ×: how much faster all "
            "images are encoded if f is 10 % as published, as measured, or what the first query needs."
        )
        yield f"table_{CLIP}_cascade", f"{label}: {text}", clip.cascade_table(tables["cascade"], results)
    if "growth" in tables:
        text = (
            "what a cascade costs as queries come in, by Fisher pruning without distillation: the share of images that "
            "the unpruned model has encoded for re-ranking, and the speed-up of image encoding from measured times."
        )
        yield f"cascade_{CLIP}", f"{label}: {text}", clip.cascade_growth(tables["growth"])
    if "scales" in tables:
        text = (
            "Scale factors of rescaling: in the released masks of CLIP, and as found here by the published solver and "
            "by ours (ridge). Boxes: quartiles; whiskers: smallest and largest; right: heads and neurons kept."
        )
        yield f"scales_{CLIP}", text, clip.scale_factors(tables["scales"])


def _of_all(tables: dict[str, pd.DataFrame]) -> Iterator[Item]:
    """Tables and figures of all experiments together."""
    if "importance" in tables and (tables["importance"].groupby("experiment").method.nunique() > 1).any():
        text = (
            "How alike the scores rank heads and neurons: Spearman's correlation with the label-free ones, and how "
            "many of the top 40 % they have in common (by chance 40 %)."
        )
        yield "table_agreement", text, rankings.agreement(tables["importance"])
    if "scoring" in tables:
        text = (
            "The default label-free ranking (evaluation mode, a gradient per question) against others: as published "
            "(dropout, a gradient per batch of 8), in batches of 8 without dropout, and of another sample."
        )
        yield "scoring", text, rankings.scoring(tables["scoring"])
    if "minutes" in tables:
        text = "Minutes of one run of each stage and the process's largest memory; last row: the paper's ReSt."
        yield "table_minutes", text, published_numbers.minutes_table(tables["minutes"])
    if "speed" in tables:
        text = "Measured time against multiply-accumulates of the pruned encoder, as shares of the unpruned model's"
        yield "speed", f"{text}: medians of alternating runs.", comparisons.speed(tables["speed"])
        yield "table_speed", f"{text}, with sizes.", published_numbers.speed_table(tables["speed"])
