"""What a constraint does to an experiment, at once: the masks of each layer, what they cost, and how the model scores.

`Explorer` has the numbers and the pictures. Importance is loaded or computed once, after which a search takes
milliseconds; scores come from the stages in `runs/` and are computed only when asked for. `lfpr.paper.panel` puts
controls in front of it (`notebooks/00_explore.ipynb`).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from html import escape
from itertools import product
from typing import TypeVar

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from lfpr.cost import LinearCost, ParameterCost
from lfpr.experiments.cell import Cell
from lfpr.experiments.experiment import Experiment
from lfpr.experiments.grid import STAGES
from lfpr.experiments.runs import Stage, Unfinished
from lfpr.masks import Importance, Masks
from lfpr.paper.labels import BLUE, INDIGO, METHODS, WINE, Look, layer_axis, layer_names, method_label, score_label
from lfpr.paper.style import REFERENCE, STYLE, handle, ink, stage_look

T = TypeVar("T")
CONSTRAINTS = tuple(round(0.05 * i, 2) for i in range(2, 20))
KEPT, CUT, PAPER, GRID = BLUE, "#e3e6ea", "#fefefe", "#e6e6e6"
DARK = {CUT: "#3b4148", PAPER: "#111111", GRID: "#3a3a3a", BLUE: "#1f88cc", INDIGO: "#8d80e0", WINE: "#d169a0"}
"""Colours that a dark theme replaces; whatever is black or dark grey takes the colour of its text."""


class Explorer:
    """Masks, cost and scores of one experiment (`lfpr.open_experiment`) by method, constraint and seed."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._importance: dict[tuple, Importance] = {}
        self._masks: dict[Cell, Masks] = {}

    @property
    def methods(self) -> tuple[str, ...]:
        return self.experiment.spec.methods

    @cached_property
    def costs(self) -> dict[str, LinearCost]:
        """By unit: parameters, and what the experiment's own constraint counts."""
        costs = ParameterCost(self.experiment.encoder), self.experiment.cost
        return {cost.unit: cost for cost in costs}

    def ready(self, method: str, constraint: float, seed: int = 0) -> bool:
        """Whether `masks` needs no importance that is not in `runs/`. Raises what it raises."""
        return self._load(lambda: self.masks(method, constraint, seed), compute=False) is not None

    def masks(self, method: str, constraint: float, seed: int = 0) -> Masks:
        """Heads [L, H] and neurons [L, N]: of the retrained or pruned model in `runs/`, else what the search keeps.

        Raises ValueError naming a bad argument, or the smallest constraint that can be met.
        """
        cell = Cell(method, constraint, seed=seed)
        for name in reversed(STAGES):
            stage = self.stage(name, method, constraint, seed)
            if stage:
                return Masks.load(stage.folder / "masks.safetensors")
        if cell not in self._masks:
            if (method, seed) not in self._importance:
                self._importance[method, seed] = self.experiment.importance(cell)
            self._masks[cell] = self.experiment.search(self._importance[method, seed], cell)
        return self._masks[cell]

    def kept(self, masks: Masks) -> dict[str, float]:
        """The share of the encoder that `masks` keep, by unit of cost."""
        return {unit: cost.fraction(masks) for unit, cost in self.costs.items()}

    def stage(self, name: str, method: str, constraint: float, seed: int = 0, compute: bool = False) -> Stage | None:
        """The stage "pruned" or "retrained"; None if it is not in `runs/`, unless it is to be computed."""
        if name == "retrained" and not self.experiment.spec.ways:
            return None
        build = {"pruned": self.experiment.prune, "retrained": self.experiment.retrain}[name]
        return self._load(lambda: build(Cell(method, constraint, seed=seed)), compute)

    def unpruned(self, compute: bool = False) -> Stage | None:
        """The unpruned model's score; None if it is not in `runs/`, unless it is to be computed."""
        return self._load(self.experiment.baseline, compute)

    def _load(self, stage: Callable[[], T], compute: bool) -> T | None:
        if compute:
            return stage()
        try:
            with self.experiment.runs.load_only():
                return stage()
        except Unfinished:
            return None

    def scores(self, method: str, seed: int = 0, constraints: Iterable[float] = CONSTRAINTS) -> pd.DataFrame:
        """Scores in `runs/`, in per cent: a row per constraint, columns pruned and retrained, NaN for none."""
        rows = {}
        for constraint in constraints:
            stages = [self.stage(name, method, constraint, seed) for name in STAGES]
            rows[constraint] = [100 * stage.result["score"] if stage else np.nan for stage in stages]
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=STAGES, dtype=float)
        return frame.rename_axis("constraint")

    def table(self, method: str, constraints: Iterable[float], seed: int = 0) -> pd.DataFrame:
        """A row per constraint: the share kept in per cent by unit, heads and neurons in all, and the known scores."""
        constraints = list(constraints)
        rows = []
        for constraint in constraints:
            masks = self.masks(method, constraint, seed)
            kept = {f"{unit} kept (%)": round(100 * share, 1) for unit, share in self.kept(masks).items()}
            rows.append(kept | {"heads": sum(masks.heads_kept), "neurons": sum(masks.neurons_kept)})
        scores = self.scores(method, seed, constraints).round(1)
        return pd.DataFrame(rows, index=scores.index).join(scores)

    def figure(self, method: str, constraint: float, seed: int = 0, curves: Iterable[str] = ()) -> Figure:
        """Kept heads and neurons of each layer, and the known scores by constraint, of `curves`' methods, too.

        Mask values that rescaling or retraining changed are written on the heads.
        """
        masks = self.masks(method, constraint, seed)
        with matplotlib.rc_context(STYLE):
            figure = Figure((8.6, _height(masks)))
            left, middle, right = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
            height = figure.get_figheight()
            figure.subplots_adjust(0.055, 0.6 / height, 0.98, 1 - 0.25 / height, 0.16)
            _heads(left, masks)
            _neurons(middle, masks)
            self._curves(right, method, constraint, seed, curves)
        return figure

    def pictures(self, method: str, constraint: float, seed: int = 0, curves: Iterable[str] = ()) -> str:
        """What `figure` shows as HTML: three pictures, each with what it says as its label, that stand side by side
        where there is room, and take the colours of JupyterLab's theme (`theme`)."""
        masks = self.masks(method, constraint, seed)
        height = _height(masks)
        heads = f"{_ratio(masks.heads_kept, masks.heads)} heads kept, by layer: {masks.heads_kept}"
        neurons = f"{_ratio(masks.neurons_kept, masks.neurons)} neurons kept, by layer: {masks.neurons_kept}"
        with matplotlib.rc_context(STYLE | {"svg.fonttype": "none", "svg.hashsalt": "lfpr"}):
            drawn = [
                _svg(lambda panel: _heads(panel, masks), height, heads),
                _svg(lambda panel: _neurons(panel, masks), height, neurons),
                _svg(lambda panel: self._curves(panel, method, constraint, seed, curves), height),
            ]
        return f'<div class="lfpr-pictures">{"".join(drawn)}</div>'

    def _curves(self, panel: Axes, method: str, constraint: float, seed: int, others: Iterable[str]) -> str:
        """Known scores by constraint, one colour and name per method; a vertical line and rings show
        where the slider stands. Returns what is drawn, in words."""
        curves, said = [], []
        for name in dict.fromkeys([method, *others]):
            _, color, marker = METHODS.get(name, Look(name, KEPT, "o"))
            scores = self.scores(name, seed, sorted({*CONSTRAINTS, constraint}))
            for stage in STAGES:
                points, looks = scores[stage].dropna(), stage_look(color, stage == "retrained", paper=PAPER)
                if points.empty:
                    continue
                x, chosen = 100 * points.index, points[points.index == constraint]
                panel.plot(x, points, marker=marker, clip_on=False, gid=f"{name}-{stage}", **looks)
                if name == method:
                    ring = {"s": 70, "facecolors": "none", "edgecolors": color, "linewidths": 0.8, "clip_on": False}
                    panel.scatter(100 * chosen.index, chosen, **ring)
                curves.append((method_label(name), color, np.column_stack([x, points])))
                said.append(f"{method_label(name)}, {stage}: {', '.join(_in_words(points))}")
        unpruned = self.unpruned()
        if unpruned:
            panel.axhline(100 * unpruned.result["score"], gid="unpruned", **REFERENCE)
            said.append(f"unpruned: {unpruned.result['score']:.1%}")
        panel.axvline(100 * constraint, color="0.6", linewidth=0.8, zorder=0)
        panel.grid(True, color=GRID)
        label = score_label(self.experiment.name)
        panel.set(xlim=(5, 100), ylim=(0, 100), xlabel="Constraint (%)", title=label)
        handles = [handle(name == "retrained", name.capitalize(), paper=PAPER) for name in STAGES]
        if curves:
            handles.append(Line2D([], [], **REFERENCE, label="Unpruned"))
            height = panel.get_position().height * panel.figure.get_figheight()
            panel.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.38 / height), ncols=3)
            _name(panel, curves)
        else:
            place = {"ha": "center", "va": "center", "transform": panel.transAxes, "color": "0.3"}
            panel.text(0.5, 0.5, "not scored yet", **place)
        return f"{label} by constraint. {'; '.join(said)}" + ("" if curves else "; not scored yet")


def _name(panel: Axes, curves: list[tuple[str, str, np.ndarray]]) -> None:
    """Write the names of curves (name, colour, points [P, 2]) once each, where they cover least: beside a point."""
    panel.figure.draw_without_rendering()  # so that places are known
    drawn = (line.get_transform().transform(line.get_xydata()) for line in panel.lines)
    lines, taken = [box for places in drawn for box in ink(places, 40)], []
    for name, color in dict.fromkeys((name, color) for name, color, _ in curves):
        text = panel.text(0, 0, name, color=color, fontsize=6.5, ha="center", va="center")
        size = text.get_window_extent().size
        own = np.concatenate([points for other, _, points in curves if other == name])
        best = (np.inf, None)
        for place, side in product(panel.transData.transform(own), product((-1, 0, 1), repeat=2)):
            center = place + (size / 2 + 5) * side
            box = Bbox([center - size / 2, center + size / 2])
            outside = not (panel.bbox.contains(*box.min) and panel.bbox.contains(*box.max))
            cost = box.count_overlaps(lines) + 1000 * (outside + box.count_overlaps(taken))
            best = min(best, (cost, tuple(center)))
        text.set_position(panel.transData.inverted().transform(best[1]))
        taken.append(text.get_window_extent())


def theme(scope: str) -> str:
    """The style sheet of pictures within elements that CSS's selector `scope` names."""

    def variables(colors: dict[str, str]) -> str:
        return "".join(f"{_variable(light)}:{shown};" for light, shown in colors.items())

    return f"""
{scope} {{ {variables({color: color for color in DARK})} }}
body[data-jp-theme-light="false"] {scope} {{ {variables(DARK)} }}
{scope} .lfpr-pictures {{ display: grid; gap: 8px 12px; max-width: 1320px; }}
{scope} .lfpr-pictures {{ grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); }}
{scope} .lfpr-pictures svg {{ width: 100%; height: auto; }}
{scope} .lfpr-pictures svg {{ color: var(--jp-ui-font-color1, #000); fill: currentColor; }}
"""


def _variable(color: str) -> str:
    return f"--lfpr-{color[1:]}"


def _svg(draw: Callable[[Axes], str | None], height: float, label: str = "") -> str:
    """What `draw` draws on a panel as SVG, labelled by what it says or by `label`."""
    figure = Figure((2.8, height))
    figure.subplots_adjust(0.12, 0.6 / height, 0.97, 1 - 0.25 / height)
    label = draw(figure.subplots()) or label
    content = io.StringIO()
    figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    colors = {color: f"var({_variable(color)})" for color in DARK}
    colors |= dict.fromkeys(("#000000", "#333333", "#4c4c4c"), "currentColor")
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: colors.get(found[0], found[0]), svg)


def _height(masks: Masks) -> float:
    """In inches, of pictures with a row per layer."""
    return 1.4 + 0.24 * max(len(masks.heads), 5)


def _ratio(kept: list[int], parts) -> str:
    return f"{sum(kept)} of {parts.numel()}"


def _in_words(points: pd.Series) -> list[str]:
    return [f"{score:.1f} % at {constraint:.0%}" for constraint, score in points.items()]


def _heads(panel: Axes, masks: Masks) -> None:
    names, kept = layer_names(len(masks.heads), len(masks.neurons)), (masks.heads != 0).numpy()
    panel.pcolormesh(kept, cmap=ListedColormap([CUT, KEPT]), vmin=0, vmax=1, edgecolors=PAPER, linewidth=1.2)
    changed = not masks.equal(masks.binary())
    for (layer, head), value in np.ndenumerate(masks.heads.numpy()) if changed else ():
        if value:
            panel.text(head + 0.5, layer + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=5, color="w")
    panel.set(title=f"{_ratio(masks.heads_kept, masks.heads)} heads" + (" and their mask values" if changed else ""))
    panel.set(xlabel="Head", ylabel=layer_axis(names))
    panel.set_xticks(np.arange(kept.shape[1]) + 0.5, np.arange(kept.shape[1]) + 1)
    _layers(panel, names, 0.5)


def _neurons(panel: Axes, masks: Masks) -> None:
    names = layer_names(len(masks.heads), len(masks.neurons))[: len(masks.neurons)]
    kept, total = masks.neurons_kept, masks.neurons.shape[1]
    layers = range(len(kept))
    panel.barh(layers, [total] * len(kept), color=CUT, height=0.8)
    panel.barh(layers, kept, color=KEPT, height=0.8)
    for layer, count in enumerate(kept):
        inside = count > 0.2 * total
        place = {"ha": "right", "color": "w"} if inside else {"ha": "left", "color": "0.2"}
        panel.text(count + (-0.02 if inside else 0.02) * total, layer, count, va="center", fontsize=6, **place)
    panel.set(title=f"{_ratio(kept, masks.neurons)} neurons", xlim=(0, total), xlabel="Neuron")
    _layers(panel, names, 0)


def _layers(panel: Axes, names: list[str], shift: float) -> None:
    panel.set_yticks(np.arange(len(names)) + shift, names)
    panel.set_ylim(len(names) - 0.5 + shift, -0.5 + shift)  # the first layer on top
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
