"""What a constraint does to an experiment, at once: the masks of each layer, what they cost, and how the model scores.

`Explorer` has the numbers and the figure. Importance is loaded or computed once, after which a search takes
milliseconds; scores come from the stages in `runs/` and are computed only when asked for. `Panel` puts a slider,
menus and two buttons in front of it (`notebooks/00_explore.ipynb`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from html import escape

import ipywidgets as widgets
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from lfpr.cost import LinearCost, ParameterCost
from lfpr.experiments.cell import Cell
from lfpr.experiments.experiment import Experiment
from lfpr.experiments.grid import STAGES
from lfpr.experiments.runs import Stage, Unfinished
from lfpr.masks import Importance, Masks
from lfpr.paper.labels import METHODS, layer_axis, layer_names, method_label, score_label
from lfpr.paper.style import DASHED, STYLE

CONSTRAINTS = tuple(round(0.05 * i, 2) for i in range(2, 20))
KEPT, CUT = "#0173b2", "#e3e6ea"


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

    def _load(self, stage: Callable[[], Stage], compute: bool) -> Stage | None:
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

    def figure(self, method: str, constraint: float, seed: int = 0) -> Figure:
        """Kept heads and neurons of each layer, and the known scores by constraint.

        Mask values that rescaling or retraining changed are written on the heads.
        """
        masks = self.masks(method, constraint, seed)
        with matplotlib.rc_context(STYLE):
            figure = Figure((8.6, 1.5 + 0.24 * max(len(masks.heads), 4)))
            left, middle, right = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
            height = figure.get_figheight()
            figure.subplots_adjust(0.055, 0.42 / height, 0.98, 1 - 0.3 / height, 0.16)
            names = layer_names(len(masks.heads), len(masks.neurons))
            _heads(left, masks, names)
            _neurons(middle, masks, names[: len(masks.neurons)])
            self._curve(right, method, constraint, seed)
        return figure

    def _curve(self, panel, method: str, constraint: float, seed: int) -> None:
        """Known scores by constraint; the vertical line is where the slider stands."""
        _, color, marker = METHODS.get(method, (method, KEPT, "o"))
        scores = self.scores(method, seed, sorted({*CONSTRAINTS, constraint}))
        for name, style in {"pruned": {"mfc": "white", "linestyle": DASHED}, "retrained": {"linestyle": "-"}}.items():
            points = scores[name].dropna()
            if len(points):
                panel.plot(100 * points.index, points, color=color, marker=marker, label=name.capitalize(), **style)
        unpruned = self.unpruned()
        if unpruned:
            panel.axhline(100 * unpruned.result["score"], color="0.3", linestyle=":", linewidth=0.9, label="Unpruned")
        panel.axvline(100 * constraint, color="0.6", linewidth=0.8, zorder=0)
        panel.grid(True)
        panel.set(xlim=(5, 100), ylim=(0, 100), xlabel="Constraint (%)", title=score_label(self.experiment.name))
        if panel.get_legend_handles_labels()[0]:
            panel.legend(loc="lower right")
        else:
            panel.text(0.5, 0.5, "not scored yet", ha="center", va="center", transform=panel.transAxes, color="0.4")


def _heads(panel, masks: Masks, names: list[str]) -> None:
    kept = (masks.heads != 0).numpy()
    panel.pcolormesh(kept, cmap=ListedColormap([CUT, KEPT]), vmin=0, vmax=1, edgecolors="w", linewidth=1.2)
    changed = not masks.equal(masks.binary())
    for (layer, head), value in np.ndenumerate(masks.heads.numpy()) if changed else ():
        if value:
            panel.text(head + 0.5, layer + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=5, color="w")
    panel.set(title=f"{kept.sum()} of {kept.size} heads" + (" and their mask values" if changed else ""))
    panel.set(xlabel="Head", ylabel=layer_axis(names))
    panel.set_xticks(np.arange(kept.shape[1]) + 0.5, np.arange(kept.shape[1]) + 1)
    _layers(panel, names, 0.5)


def _neurons(panel, masks: Masks, names: list[str]) -> None:
    kept, total = masks.neurons_kept, masks.neurons.shape[1]
    layers = range(len(kept))
    panel.barh(layers, [total] * len(kept), color=CUT, height=0.8)
    panel.barh(layers, kept, color=KEPT, height=0.8)
    for layer, count in enumerate(kept):
        inside = count > 0.2 * total
        place = {"ha": "right", "color": "w"} if inside else {"ha": "left", "color": "0.2"}
        panel.text(count + (-0.02 if inside else 0.02) * total, layer, count, va="center", fontsize=6, **place)
    panel.set(title=f"{sum(kept)} of {masks.neurons.numel()} neurons", xlim=(0, total), xlabel="Neuron")
    _layers(panel, names, 0)


def _layers(panel, names: list[str], shift: float) -> None:
    panel.set_yticks(np.arange(len(names)) + shift, names)
    panel.set_ylim(len(names) - 0.5 + shift, -0.5 + shift)  # the first layer on top
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


class Panel(widgets.VBox):
    """Controls in front of an `Explorer` for each experiment, opened when chosen.

    `open_one(name)` opens an experiment, `experiments` are the names to choose from; the other arguments are where
    the controls start.
    """

    def __init__(
        self,
        open_one: Callable,
        experiments: Iterable[str],
        experiment: str,
        method: str = "label-free",
        constraint: float = 0.4,
        seed: int = 0,
    ) -> None:
        self._open_one, self._explorers, self._filling = open_one, {}, False
        self.experiment = widgets.Dropdown(options=list(experiments), value=experiment, description="Experiment")
        self.method = widgets.Dropdown(options=[method], value=method, description="Method")
        ends = {"min": CONSTRAINTS[0], "max": 1, "step": 0.05, "readout_format": ".0%", "layout": {"width": "28em"}}
        self.constraint = widgets.FloatSlider(constraint, description="Constraint", continuous_update=False, **ends)
        self.seed = widgets.BoundedIntText(seed, min=0, max=99, description="Seed", layout={"width": "10em"})
        self.buttons = {
            "pruned": widgets.Button(description="Score", icon="play", tooltip="Shrink the model and score it"),
            "retrained": widgets.Button(
                description="Retrain", icon="refresh", tooltip="Retrain the model and score it"
            ),
        }
        self.summary, self.progress = widgets.HTML(), widgets.Output()
        self.picture = widgets.Image(format="png", layout={"max_width": "1000px", "width": "100%"})
        self.experiment.observe(self._open, "value")
        for control in (self.method, self.constraint, self.seed):
            control.observe(self._show, "value")
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self._compute(name))
        top = widgets.HBox([self.experiment, self.method, self.seed])
        middle = widgets.HBox([self.constraint, *self.buttons.values()])
        super().__init__([top, middle, self.summary, self.picture, self.progress])
        self._open()

    def __repr__(self) -> str:
        return f"Panel of {self.experiment.value}: needs a running notebook"

    @property
    def explorer(self) -> Explorer:
        """Of the chosen experiment."""
        name = self.experiment.value
        if name not in self._explorers:
            self._explorers[name] = Explorer(self._open_one(name))
        return self._explorers[name]

    def _cell(self) -> dict:
        """What the controls say."""
        constraint = round(self.constraint.value, 2)
        return {"method": self.method.value, "constraint": constraint, "seed": self.seed.value}

    def _open(self, _=None) -> None:
        with self._reporting():
            self.summary.value = f"Opening {self.experiment.value} …"
            method, methods = self.method.value, self.explorer.methods
            self._filling = True  # the menu reports changes of its own while it is filled
            self.method.options = [(method_label(name), name) for name in methods]
            self.method.value = method if method in methods else methods[0]
            self._filling = False
            self._draw()

    def _show(self, _=None) -> None:
        if not self._filling:
            with self._reporting():
                self._draw()

    def _compute(self, name: str) -> None:
        with self._reporting():
            self.explorer.unpruned(compute=True)
            self.explorer.stage(name, **self._cell(), compute=True)
            self._draw()

    def _draw(self) -> None:
        cell, explorer = self._cell(), self.explorer
        self.summary.value = _summary(explorer, cell)
        self.picture.value = _png(explorer.figure(**cell))
        for name, button in self.buttons.items():
            trainable = name != "retrained" or explorer.experiment.spec.ways
            button.disabled = not trainable or explorer.stage(name, **cell) is not None

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Progress bars go below the picture, and so does an error; buttons rest meanwhile."""
        for button in self.buttons.values():
            button.disabled = True
        with self.progress:
            try:
                yield
                self.progress.clear_output()
            except (ValueError, OSError) as error:
                self._filling = False
                self.progress.clear_output()
                self.summary.value = f"<b>{escape(str(error))}</b>"


def _summary(explorer: Explorer, cell: dict) -> str:
    """What is kept and how it scores, in a line of HTML."""
    kept = [f"<b>{share:.1%}</b> of {unit}" for unit, share in explorer.kept(explorer.masks(**cell)).items()]
    stages = {"unpruned": explorer.unpruned()} | {name: explorer.stage(name, **cell) for name in STAGES}
    scores = [f"{name} <b>{stage.result['score']:.1%}</b>" for name, stage in stages.items() if stage]
    measure = escape(score_label(explorer.experiment.name).removesuffix(" (%)"))
    return f"Kept: {', '.join(kept)}. {measure}: {', '.join(scores) or 'not computed yet'}."


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(content, format="png", dpi=150, pil_kwargs={"compress_level": 1})  # fast, not small
    return content.getvalue()
