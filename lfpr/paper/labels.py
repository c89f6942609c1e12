"""What figures and tables call things, and how they look: methods, metrics, experiments (`lfpr.experiments.specs`)."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
import seaborn as sns

from lfpr.experiments.specs import SPECS, ExperimentSpec

BLUE, ORANGE, GREEN, RED, PINK, BROWN, ROSE, GREY, YELLOW, SKY = sns.color_palette("colorblind").as_hex()
INDIGO, WINE = "#332288", "#882255"  # darker than those ten, so that they too can be told apart


class Look(NamedTuple):
    """Of a line."""

    label: str
    color: str
    marker: str


METHODS = {
    "label-free": Look("Label-free", BLUE, "o"),
    "fisher": Look("Fisher (labels)", GREEN, "D"),
    "self-fisher": Look("Self-Fisher (own answers)", BROWN, "h"),
    "true-fisher": Look("Fisher (own answers, sampled)", ROSE, "<"),
    "surgeon": Look("Surgeon (own answers)", INDIGO, ">"),
    "kprune": Look("K-prune", WINE, "d"),
    "kprune-published": Look("K-prune, published settings", WINE, "x"),
    "absolute": Look("Absolute gradient (labels)", PINK, "v"),
    "magnitude": Look("Magnitude", ORANGE, "s"),
    "l1": Look("L1", GREY, "P"),
    "random": Look("Random", RED, "^"),
    "activation": Look("Activation", SKY, "X"),
    "sensitivity": Look("Sensitivity (labels)", BROWN, "p"),
    "given": Look("Given masks", YELLOW, "*"),
}
REFITTING = ("kprune", "kprune-published")
"""Methods that also refit the weights, as reconstruction does."""
CONTROLS = {  # label of methods that only show what a part of another is worth
    "uniform": "Fisher, equal share per layer",
    "split-activation": "Fisher, neurons by activation",
    "split-magnitude": "Fisher, neurons by magnitude",
    "split-random": "Fisher, neurons at random",
}
WAYS = {  # of winning back what pruning loses (`ExperimentSpec.ladder`), whatever the retraining is called
    "Pruned": Look("Pruned", GREY, "o"),
    "Rescaled": Look("Rescaled", SKY, "s"),
    "K-prune": METHODS["kprune"],
    "Reconstructed": Look("Reconstructed", BLUE, "^"),
    "Reconstructed in 3 steps": Look("Reconstructed in 3 steps", INDIGO, "v"),
    "Retrained": Look("Retrained", GREEN, "P"),
    "Reconstructed, retrained": Look("Reconstructed, retrained", RED, "X"),
}
HEURISTICS = {"sum": "Sum of importance", "threshold": "Threshold"}
_COLORS = zip(SPECS, (BLUE, ORANGE, GREEN, RED, BROWN, INDIGO, PINK, SKY), "osD^<>vX", strict=False)
EXPERIMENTS = {name: Look(SPECS[name].title, color, marker) for name, color, marker in _COLORS}


def spec_of(experiment: str) -> ExperimentSpec:
    """The row of `SPECS`; for an experiment that is not there, words that fit any."""
    if experiment in SPECS:
        return SPECS[experiment]
    return ExperimentSpec(
        experiment,
        task="",
        pictures="",
        title=experiment,
        metrics={"score": "Score"},
        samples="samples",
        kept="cost kept",
        method="label-free",
        methods=(),
        ways=(),
        retraining="retraining",
        tolerance=0,
        alternatives={},
    )


def method_label(method: str) -> str:
    """What figures call a method; a name that is not known stays as it is."""
    return METHODS[method].label if method in METHODS else CONTROLS.get(method, sentence(method))


def score_label(experiment: str, metric: str = "score") -> str:
    """What a column of results.csv measures, with its unit."""
    return f"{spec_of(experiment).metrics[metric]} (%)"


def title(experiment: str) -> str:
    """An experiment's model and data set, such as "TAP12, ST-VQA"."""
    return spec_of(experiment).title


def layer_names(heads: int, ffns: int) -> list[str]:
    """What figures call the rows of masks of so many attentions and FFNs (`lfpr.encoder.PrunableEncoder`): layers by
    number. Of an encoder–decoder, which has more attentions, by the side, the cross-attentions of its decoder last."""
    if heads == ffns:
        return [str(layer + 1) for layer in range(ffns)]
    decoder = heads - ffns
    counts = {"E": ffns - decoder, "D": decoder, "C": decoder}
    return [f"{part}{layer + 1}" for part, count in counts.items() for layer in range(count)]


def layer_axis(names: list[str]) -> str:
    """The label of an axis of `layer_names`."""
    return "Layer" if names[0].isdigit() else "Layer (Encoder, Decoder, Cross-attention)"


def way_look(label: str, retrained: bool) -> Look:
    """Of a way of the ladder: "ReSt" and "distilled" look alike, as do all with either after a comma."""
    kind = sentence(", ".join([*label.split(", ")[:-1], "retrained"])) if retrained else label
    return WAYS.get(kind, Look(kind, "0.3", "*"))


def dataset(experiment: str) -> str:
    """An experiment's data set, such as "ST-VQA"."""
    return title(experiment).rsplit(", ", 1)[-1]


def kept_axis(experiment: str) -> str:
    """The label of an axis for what a constraint counts."""
    return f"{sentence(spec_of(experiment).kept)} (%)"


def sentence(text: str) -> str:
    """`text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def in_words(method: str) -> str:
    """A method's name within a sentence."""
    return method.replace("fisher", "Fisher")


def about(results: pd.DataFrame, experiment: str) -> str:
    """Which experiment, and how many samples and seeds: for captions."""
    rows, spec = results[results.experiment == experiment], spec_of(experiment)
    seeds = rows.seed.nunique()
    spread = f", up to {seeds} seeds" if seeds > 1 else ", one seed"
    size = f"{rows.questions.max():,.0f} validation {spec.samples}"
    return f"{spec.title} ({rows.profile.iloc[0]} profile, {size}{spread})"


def lines_note(rows: pd.DataFrame) -> str:
    """What the lines and bars of a figure of scores mean."""
    refits = rows.method.isin(REFITTING) | rows.variant.fillna("").str.contains("reconstructed=True")
    refitted = (
        "dash-dotted, hollow: refitted without training; " if (refits & ~rows.retrained.astype(bool)).any() else ""
    )
    bars = "; points are means over seeds, bars reach from the lowest to the highest" if rows.seed.nunique() > 1 else ""
    return f"dashed, hollow: pruned; {refitted}solid, filled: retrained; dotted: unpruned{bars}."
