"""The ladder: ways of winning back what pruning loses (`ExperimentSpec.ladder`), by score, by share kept, by seconds.

Each way is looked for on the experiment's masks, and with the method "random" in its stead as a control: the same ways
on random masks. A method that finds masks and weights together (`ExperimentSpec.whole`) has no such control.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MultipleLocator, NullLocator

from lfpr.paper.labels import (
    REFITTING,
    Look,
    about,
    kept_axis,
    lines_note,
    score_label,
    sentence,
    spec_of,
    title,
    way_look,
)
from lfpr.paper.registry import figure, table
from lfpr.paper.schema import of_way, over_seeds, scores
from lfpr.paper.style import DASHES, DOUBLE, REFERENCE, SINGLE, draw_line, name_points, share_kept, stage_look
from lfpr.paper.tables import mean_cell, text_table

COMPARED = ("Pruned", "K-prune", "Reconstructed", "Retrained", "Reconstructed, retrained")
"""The ways of the figure of all experiments."""


class Step(NamedTuple):
    """A way of the ladder that was run."""

    label: str
    look: Look
    retrained: bool
    refitted: bool
    rows: pd.DataFrame

    @property
    def looks(self) -> dict[str, str]:
        """What matplotlib draws it with."""
        return {"color": self.look.color, "marker": self.look.marker}

    def handle(self, label: str) -> Line2D:
        """What its line stands for."""
        style = stage_look(self.look.color, self.retrained, self.refitted)
        return Line2D([], [], label=label, marker=self.look.marker, **style)


def _steps(results: pd.DataFrame, experiment: str, random: bool = False) -> list[Step]:
    """The ways of the ladder that have rows, in its order, searched by sum of importance; random: on random masks."""
    spec = spec_of(experiment)
    if not spec.ladder:
        return []
    _, rows = scores(results, experiment, variants=True)
    rows = rows[rows.heuristic == "sum"]
    steps = []
    for label, (method, variant, retrained) in spec.ladder.items():
        if random and method in spec.whole:
            continue
        found = of_way(rows, experiment, ("random" if random else method, variant, retrained))
        if len(found):
            refitted = method in REFITTING or "reconstructed=True" in variant
            steps.append(Step(sentence(label), way_look(label, retrained), retrained, refitted, found))
    return steps


def _draw(panel: Axes, steps: list[Step], unpruned: float, **looks) -> None:
    """Score against what is kept (%): a line per way, later ones on top."""
    panel.axhline(100 * unpruned, **REFERENCE)
    for order, step in enumerate(steps):
        rows = step.rows.assign(kept=share_kept(step.rows))
        more = {"refitted": step.refitted, "zorder": 2.6 + order / 10} | step.looks | looks
        draw_line(panel, rows, "kept", filled=step.retrained, **more)
    panel.grid(True)


def _ladders(results: pd.DataFrame) -> dict[str, list[Step]]:
    """By experiment, the steps of `COMPARED`: of experiments that have two of them."""
    every = {experiment: _steps(results, experiment) for experiment in results.experiment.unique()}
    every = {name: [step for step in steps if step.look.label in COMPARED] for name, steps in every.items()}
    return {name: steps for name, steps in every.items() if len(steps) > 1}


def _ladders_caption(results: pd.DataFrame) -> str:
    rows = results[results.experiment.isin(list(_ladders(results)))]
    what = f"What wins back what pruning loses, in {rows.experiment.nunique()} experiments: score against what is kept"
    return f"{what} ({' and '.join(rows.profile.unique())} profile); {lines_note(rows)}"


@figure(
    "ladder",
    needs=("results",),
    heading="What wins back what pruning loses",
    caption=_ladders_caption,
    when=lambda results: len(_ladders(results)) > 1,
)
def ladders(results: pd.DataFrame) -> Figure:
    """The ladders of all experiments in small, from 0 to 100 %: a panel each, of the ways of `COMPARED`."""
    every = _ladders(results)
    height = 1 + (len(every) > 4)
    width = math.ceil(len(every) / height)
    figure = Figure((DOUBLE, 0.45 + 1.9 * height), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False)
    for panel, (experiment, steps) in zip(panels.flat, every.items(), strict=False):
        _draw(panel, steps, scores(results, experiment)[0], clip_on=False)  # so that markers at 0 and 100 are whole
        panel.set(title=title(experiment), xlabel=kept_axis(experiment), ylabel=score_label(experiment))
        panel.set(xlim=(12, 88), xticks=(20, 40, 60, 80), ylim=(0, 100), yticks=range(0, 101, 20))
        panel.tick_params(labelleft=panel in panels[:, 0])
    for panel in panels.flat[len(every) :]:
        panel.remove()
    found = {step.look.label: step for steps in every.values() for step in steps}
    handles = [found[label].handle(label) for label in COMPARED if label in found]
    handles.append(Line2D([], [], **REFERENCE, label="Unpruned"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), handlelength=DASHES)
    return figure


@table(
    "table_ladder",
    needs=("results",),
    heading="What wins back what pruning loses, in numbers",
    caption=lambda results: (
        "Scores (%) of the unpruned model and, with so much kept, of models pruned, refitted without training, "
        f"retrained, and both ({' and '.join(results.profile.unique())} profile). Mean ± standard deviation."
    ),
    when=lambda results: len(_ladders(results)) > 1,
)
def ladders_table(results: pd.DataFrame) -> pd.DataFrame:
    """The scores (%) of `ladders` at each experiment's own constraint: a row an experiment, a column a way.

    Cells are as in `ladder_table`."""
    table = {}
    for experiment, steps in _ladders(results).items():
        unpruned, own = scores(results, experiment)[0], spec_of(experiment).constraint
        cells = table[title(experiment), f"{100 * own:g} %"] = {"Unpruned": f"{100 * unpruned:.1f}"}
        for step in steps:
            at = step.rows[step.rows.constraint == own]
            if len(at):
                cells[step.look.label] = mean_cell(next(over_seeds(at).itertuples()))
    return text_table(table, ["Experiment", "Kept"], ["Unpruned", *COMPARED])


def _ladder_caption(results: pd.DataFrame, experiment: str) -> str:
    steps, controls = _steps(results, experiment), _steps(results, experiment, random=True)
    against = f"{score_label(experiment)} against {spec_of(experiment).kept} (%) by ways to win back what pruning loses"
    right = "; right: the same ways on random masks" if controls else ""
    rows = pd.concat(step.rows for step in (*steps, *controls))
    return f"{about(results, experiment)}: {against}{right}; {lines_note(rows)}"


def _several(results: pd.DataFrame, experiment: str) -> bool:
    return len(_steps(results, experiment)) > 1


@figure(
    "ladder_{experiment}",
    needs=("results",),
    heading="What wins back what pruning loses",
    caption=_ladder_caption,
    when=_several,
)
def ladder(results: pd.DataFrame, experiment: str) -> Figure:
    """Score (%) against what is kept (%): a line per way of the ladder that was run, solid and filled if it retrains,
    and beside it the same ways on random masks, where there are any.

    Lines are means over seeds, bars reach from the lowest to the highest seed; the dotted line is the unpruned model.
    """
    unpruned, _ = scores(results, experiment)
    steps, controls = _steps(results, experiment), _steps(results, experiment, random=True)
    figure = Figure((DOUBLE if controls else SINGLE, 3.0), layout="constrained")
    panels = figure.subplots(1, 1 + bool(controls), sharex=True, sharey=True, squeeze=False)[0]
    for panel, drawn, name in zip(panels, (steps, controls), ("Masks by importance", "Random masks"), strict=False):
        _draw(panel, drawn, unpruned)
        panel.set(xlabel=kept_axis(experiment), title=name if controls else "")
        panel.xaxis.set_major_locator(MultipleLocator(10))
    panels[0].set_ylabel(score_label(experiment))
    shares = 100 * pd.concat(step.rows.fraction for step in (*steps, *controls))
    margin = max(3, (20 - (shares.max() - shares.min())) / 2)  # as in `accuracy`
    panels[0].set_xlim(shares.min() - margin, shares.max() + margin)
    handles = [step.handle(label) for label, step in {step.label: step for step in (*steps, *controls)}.items()]
    handles.append(Line2D([], [], **REFERENCE, label=f"Unpruned ({100 * unpruned:.1f} %)"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4 if controls else 2, handlelength=DASHES)
    return figure


def _timed(results: pd.DataFrame, experiment: str) -> tuple[float, list[Step]]:
    """The constraint at which most ways have seconds, the experiment's own one of several; and the steps that have
    seconds there, with all their rows that do."""
    steps = [step._replace(rows=step.rows.dropna(subset="seconds")) for step in _steps(results, experiment)]
    counts, own = Counter(c for step in steps for c in step.rows.constraint.unique()), spec_of(experiment).constraint
    constraint = max(counts, key=lambda c: (counts[c], c == own, c), default=own)
    return constraint, [step for step in steps if (step.rows.constraint == constraint).any()]


def _seconds_caption(results: pd.DataFrame, experiment: str) -> str:
    constraint, steps = _timed(results, experiment)
    what = f"{score_label(experiment)} against seconds of computing, from importance to the model, without scoring"
    kept = f"with {100 * constraint:g} % of {spec_of(experiment).kept}"
    pale = "; small, pale: other shares" if pd.concat(step.rows for step in steps).constraint.nunique() > 1 else ""
    return f"{about(results, experiment)}: {what}, {kept}; filled: retrained{pale}; dotted: unpruned."


@figure(
    "seconds_{experiment}",
    needs=("results",),
    heading="Score against seconds",
    caption=_seconds_caption,
    when=lambda results, experiment: len(_timed(results, experiment)[1]) > 1,
)
def seconds(results: pd.DataFrame, experiment: str) -> Figure:
    """Score (%) against the seconds that making the model took: a named point per way of the ladder, means over seeds,
    at the constraint at which most ways have seconds; smaller and paler, joined to it, at the others."""
    unpruned, _ = scores(results, experiment)
    constraint, steps = _timed(results, experiment)
    figure, paths, names = Figure((DOUBLE, 2.7), layout="constrained"), [], []
    panel = figure.subplots()
    panel.axhline(100 * unpruned, **REFERENCE)
    for step in steps:
        means = step.rows.groupby("constraint")[["seconds", "score"]].mean()
        means["score"] *= 100
        panel.plot(means.seconds, means.score, alpha=0.35, markersize=2.5, linewidth=0.7, **step.looks)
        here = step.rows[step.rows.constraint == constraint].assign(time=means.seconds[constraint])
        draw_line(panel, here, "time", filled=step.retrained, markersize=5.5, zorder=3, **step.looks)
        paths.append(means.to_numpy())
        names.append((*means.loc[constraint], step.label, step.looks["color"]))
    low, high = pd.concat(step.rows.seconds for step in steps).agg(["min", "max"])
    span = max(high / low, 2)
    panel.set(xscale="log", xlim=(low / span**0.12, high * span**0.2))  # names stand on the right
    subs = (1,) if span > 300 else (1, 2, 5)
    panel.xaxis.set(major_locator=LogLocator(subs=subs), minor_locator=NullLocator(), major_formatter="{x:,g}")
    panel.set(xlabel="Computing (seconds)", ylabel=score_label(experiment), ymargin=0.1)
    panel.set_title(f"{100 * constraint:g} % of {spec_of(experiment).kept}")
    panel.grid(True)
    handles = [Line2D([], [], **REFERENCE, label=f"Unpruned ({100 * unpruned:.1f} %)")]
    if max(map(len, paths)) > 1:
        pale = {"color": "0.2", "alpha": 0.35, "marker": "o", "markersize": 2.5, "linewidth": 0.7}
        handles.append(Line2D([], [], label="Other shares kept", **pale))
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    name_points(panel, names, [*paths, np.array([(x, 100 * unpruned) for x in panel.get_xlim()])])
    return figure


@table(
    "table_ladder_{experiment}",
    needs=("results",),
    heading="What wins back what pruning loses, in numbers",
    caption=lambda results, experiment: (
        f"{about(results, experiment)}: {score_label(experiment)}, ± standard deviation over seeds, by ways to win "
        f"back what pruning loses and {spec_of(experiment).kept}; seconds of computing at "
        f"{100 * spec_of(experiment).constraint:g} %."
    ),
    when=_several,
)
def ladder_table(results: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """The scores (%) of the ways of the ladder that were run, each on random masks below, a column per constraint, and
    the seconds of computing at the experiment's own one.

    Cells are `mean ± standard deviation` over seeds, as in `score_table`.
    """
    controls = {step.label: step for step in _steps(results, experiment, random=True)}
    rows = {}
    for step in _steps(results, experiment):
        rows[step.label] = step.rows
        if step.label in controls:
            rows[f"{step.label} (random masks)"] = controls[step.label].rows
    places = sorted(pd.concat(rows.values()).constraint.unique(), reverse=True)
    columns = {place: f"{100 * place:g} %" for place in places}
    table = {("Unpruned",): {"100 %": f"{100 * scores(results, experiment)[0]:.1f}"}}
    for label, found in rows.items():
        cells = table[(label,)] = {}
        for point in over_seeds(found).itertuples():
            off = f" (at {100 * point.fraction:.0f} %)" if abs(point.fraction - point.constraint) > 0.01 else ""
            cells[columns[point.constraint]] = mean_cell(point) + off
        time = found[found.constraint == spec_of(experiment).constraint].seconds.mean()
        if pd.notna(time):
            cells["Seconds"] = f"{time:,.0f}" if time >= 10 else f"{time:.1f}"
    return text_table(table, ["Way"], ["100 %", *columns.values(), "Seconds"])
