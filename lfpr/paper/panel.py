"""Controls in front of an `lfpr.paper.explore.Explorer`, for JupyterLab (`notebooks/00_explore.ipynb`).

What takes long (another experiment's data, importance, scores) is computed in a process beside the kernel
(`lfpr.paper.worker`), one task at a time; meanwhile the controls work, and a picture of an older choice is dimmed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from lfpr.experiments.experiment import Experiment
from lfpr.experiments.grid import STAGES
from lfpr.files import write_json
from lfpr.paper.explore import CONSTRAINTS, Explorer, theme
from lfpr.paper.labels import method_label, score_label, spec_of
from lfpr.paper.worker import Failed, Stopped, Task, Worker

STYLE = f"""<style>{theme(".lfpr-panel")}
.lfpr-panel, .lfpr-panel .widget-box {{ overflow: visible; max-width: 100%; }}
.lfpr-panel .widget-inline-hbox, .lfpr-panel .widget-button {{ margin-right: 12px; }}
.lfpr-panel .widget-html-content {{ line-height: 1.5; white-space: normal; }}
.lfpr-panel .lfpr-old {{ opacity: 0.3; }}
.lfpr-panel .lfpr-dead {{ display: none; }}
.lfpr-panel.jupyter-widgets-disconnected .lfpr-dead {{ display: block; font-weight: bold; }}
.lfpr-panel.jupyter-widgets-disconnected::before, .lfpr-panel .jupyter-widgets-disconnected::before {{ content: none; }}
</style><div class="lfpr-dead">No kernel answers these controls: run all cells (Run → Run All Cells), and the panel
comes back as it was left.</div>"""
DOING = {"masks": "Importance", "pruned": "Score", "retrained": "Retraining"}
WRAP = {"flex_flow": "row wrap", "align_items": "center"}


class Panel(widgets.VBox):
    """Controls in front of an `Explorer` of each experiment.

    explorer: of the experiment that is shown first; `open_one(name)`, which can be pickled, opens another one of
    `experiments`. method, constraint, seed: where the controls start, unless the panel was left elsewhere when it last
    started there: `memory`, a JSON file, holds what was chosen; by default it is in `runs/`.

    Without a running event loop, in a script, what a control starts is done when it returns.
    """

    def __init__(
        self,
        explorer: Explorer,
        open_one: Callable[[str], Experiment],
        experiments: Iterable[str],
        method: str = "label-free",
        constraint: float = 0.4,
        seed: int = 0,
        memory: str | Path | None = None,
    ) -> None:
        experiment = explorer.experiment
        self._open_one, self._explorers = open_one, {experiment.name: explorer}
        self._worker, self._task, self._filling = Worker(open_one), None, False
        self._memory = Path(memory or experiment.runs.folder.parents[1] / f"explore-{experiment.profile}.json")
        self._start = {"experiment": experiment.name, "method": method, "constraint": constraint, "seed": seed}
        self._shown = self._start

        short, wide = {"style": {"description_width": "initial"}}, {"layout": {"width": "17em", "max_width": "100%"}}
        self.experiment = widgets.Dropdown(options=list(experiments), description="Experiment", **wide, **short)
        self.method = widgets.Dropdown(description="Method", **wide, **short)
        self.seed = widgets.BoundedIntText(0, min=0, max=99, description="Seed", layout={"width": "7em"}, **short)
        ends = {"min": CONSTRAINTS[0], "max": 1, "step": 0.05, "readout_format": ".0%", "continuous_update": False}
        layout = {"width": "26em", "max_width": "100%"}
        self.constraint = widgets.FloatSlider(0.4, description="Constraint", layout=layout, **ends, **short)
        self.buttons = {
            "pruned": widgets.Button(description="Score", icon="play", tooltip="Shrink the model and score it"),
            "retrained": widgets.Button(description="Retrain", icon="refresh", tooltip="Retrain and score it"),
        }
        self.curves = widgets.HBox(layout=WRAP)
        self.bar, self.doing = widgets.IntProgress(layout={"width": "12em"}), widgets.HTML()
        self.stop = widgets.Button(description="Stop", icon="stop")
        for button in (*self.buttons.values(), self.stop):
            button.layout.width = "8em"
        self.job = widgets.HBox([self.bar, self.stop, self.doing], layout=WRAP | {"display": "none"})
        self.summary, self.note, self.picture = widgets.HTML(), widgets.HTML(), widgets.HTML()

        self._fill(self._remembered())
        for control in (self.experiment, self.method, self.constraint, self.seed):
            control.observe(self._changed, "value")
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self._compute(name))
        self.stop.on_click(lambda _: self._worker.stop())
        rows = [self.experiment, self.method, self.seed], [self.constraint, *self.buttons.values()]
        boxes = [widgets.HBox(row, layout=WRAP) for row in rows]
        super().__init__([widgets.HTML(STYLE), *boxes, self.curves, self.job, self.summary, self.note, self.picture])
        self.add_class("lfpr-panel")
        with self._saying():
            self._draw()

    def __repr__(self) -> str:
        return f"Panel of {self.experiment.value}: needs a running notebook"

    # ---- what is chosen

    @property
    def explorer(self) -> Explorer:
        """Of the chosen experiment."""
        name = self.experiment.value
        if name not in self._explorers:
            self._explorers[name] = Explorer(self._open_one(name))
        return self._explorers[name]

    @property
    def choice(self) -> dict[str, Any]:
        """What the controls say: experiment, method, constraint, seed."""
        return {"experiment": self.experiment.value} | self._cell

    @property
    def _cell(self) -> dict[str, Any]:
        constraint = round(self.constraint.value, 2)
        return {"method": self.method.value, "constraint": constraint, "seed": self.seed.value}

    @property
    def _ticked(self) -> list[str]:
        """The methods whose curves are drawn, beside the chosen one's."""
        names = (name for _, name in self.method.options)
        return [name for name, box in zip(names, self.curves.children[1:], strict=False) if box.value]

    def _fill(self, choice: Mapping[str, Any]) -> None:
        """Set the controls; nothing is computed for it."""
        ticked, self._filling = choice.get("curves", self._ticked), True
        self.experiment.value = choice["experiment"]
        methods = self._methods()
        self.method.options = [(method_label(name), name) for name in methods]
        self.method.value = choice["method"] if choice["method"] in methods else methods[0]
        self.constraint.value, self.seed.value = choice["constraint"], choice["seed"]
        looks = {"indent": False, "layout": {"width": "auto", "margin": "0 1em 0 4px"}}
        boxes = [widgets.Checkbox(name in ticked, description=method_label(name), **looks) for name in methods]
        for box in boxes:
            box.observe(self._changed, "value")
        self.curves.children = [widgets.Label("Compare with", layout={"margin": "0 1em 0 2px"}), *boxes]
        self._filling = False

    def _methods(self) -> tuple[str, ...]:
        """Of the chosen experiment, which need not be open."""
        known = self._explorers.get(self.experiment.value)
        return known.methods if known else spec_of(self.experiment.value).methods

    def _remembered(self) -> dict[str, Any]:
        """Where the panel was left; where it is to start, if nothing says so, or the notebook says otherwise now."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            memory = json.loads(self._memory.read_text())
            left = {name: type(value)(memory["left"][name]) for name, value in self._start.items()}
            if memory["start"] == self._start and left["experiment"] in self.experiment.options:
                return left | {"curves": list(memory["left"]["curves"])}
        return self._start

    def _remember(self) -> None:
        with suppress(OSError):  # where nothing can be written, nothing is remembered
            write_json(self._memory, {"start": self._start, "left": self.choice | {"curves": self._ticked}})

    # ---- what happens

    def _changed(self, change: Mapping[str, Any]) -> None:
        """A control has another value."""
        if self._filling:
            return
        if change["owner"] is self.experiment:
            self._fill(self.choice)
        if self._task and self._task.stage == "masks" and not self._serves(self._task):
            self._worker.stop()  # nobody waits for that importance any more
        self._show()

    def _show(self) -> None:
        """The choice; if its masks are yet to be computed, what is shown grows old meanwhile."""
        with self._saying():
            self._age()
            if self.experiment.value in self._explorers and self.explorer.ready(**self._cell):
                self._draw()
                self._remember()
            elif self._task is None:
                self._compute("masks")

    def _compute(self, stage: str) -> None:
        """Start a task for the choice, beside all else where there is an event loop, as in a notebook."""
        self._task = Task(stage, **self.choice)
        self._enable()
        work = self._await(self._task)
        try:
            self._work = asyncio.get_running_loop().create_task(work)  # kept, since a loop does not
        except RuntimeError:
            asyncio.run(work)

    async def _await(self, task: Task) -> None:
        """Have the worker do a task, under a bar; then show the choice, whatever it is by then."""
        title = f"{DOING[task.stage]} of {escape(_in_words(task))}"
        self.bar.value, self.doing.value, self.job.layout.display = 0, f"{title} …", "flex"
        said, back = "", False
        try:
            await self._worker.do(task, _reporter(title, self.bar, self.doing))
        except (Stopped, Failed) as ended:
            said, back = f"{title}: {escape(str(ended)) or 'stopped'}.", task.stage == "masks" and self._serves(task)
        finally:
            self._task, self.job.layout.display = None, "none"
        if back:
            self._fill(self._shown)
        elif not said and task.experiment == self.experiment.value:
            _ = self.explorer  # can be opened at once now
        self._show()
        if said and (back or task.stage != "masks"):
            self.note.value = f"<b>{said}</b>"

    def _serves(self, task: Task) -> bool:
        """Whether the importance that a task computes is the choice's."""
        return self.choice | {"constraint": task.constraint} == {
            name: value for name, value in task._asdict().items() if name != "stage"
        }

    # ---- what is seen

    def _draw(self) -> None:
        self.summary.value = _summary(self.explorer, self._cell)
        self.picture.value = self.explorer.pictures(**self._cell, curves=self._ticked)
        self.note.value, self._shown = "", self.choice
        for part in (self.summary, self.picture):
            part.remove_class("lfpr-old")
        self._enable()

    def _age(self) -> None:
        if self._shown != self.choice:
            for part in (self.summary, self.picture):
                part.add_class("lfpr-old")
            self.note.value = f"The picture is still that of {escape(_in_words(Task('', **self._shown)))}."
        self._enable()

    def _enable(self) -> None:
        """The buttons of what can be computed now."""
        ready = self._task is None and self._shown == self.choice
        for name, button in self.buttons.items():
            possible = ready and (name != "retrained" or self.explorer.experiment.spec.ways)
            button.disabled = not possible or self.explorer.stage(name, **self._cell) is not None
        for (_, name), box in zip(self.method.options, self.curves.children[1:], strict=True):
            box.disabled = name == self.method.value  # is drawn anyway

    @contextmanager
    def _saying(self) -> Iterator[None]:
        """What is wrong goes where the numbers are."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.summary.value = f"<b>{escape(str(error))}</b>"
            self.summary.remove_class("lfpr-old")


def _in_words(task: Task) -> str:
    return f"{method_label(task.method)} at {task.constraint:.0%}, seed {task.seed} ({task.experiment})"


def _reporter(title: str, bar: widgets.IntProgress, text: widgets.HTML) -> Callable[[str, int, int | None], None]:
    """Shows what a step of a task has done, and how long it will take at this pace."""
    step, since, first = "", 0.0, 0

    def report(name: str, done: int, total: int | None) -> None:
        nonlocal step, since, first
        if name != step or done <= first:
            step, since, first = name, time.monotonic(), done
        pace = (time.monotonic() - since) / max(done - first, 1)
        bar.max, bar.value = total or 1, done if total else 0
        left = f", {pace * (total - done):.0f} s left" if total and done > first else ""
        text.value = f"{title}: {escape(name)} {done} of {total or 'unknown'}{left}"

    return report


def _summary(explorer: Explorer, cell: Mapping[str, Any]) -> str:
    """What is kept and how it scores, in a line of HTML."""
    kept = [f"<b>{share:.1%}</b> of {unit}" for unit, share in explorer.kept(explorer.masks(**cell)).items()]
    stages = {"unpruned": explorer.unpruned()} | {name: explorer.stage(name, **cell) for name in STAGES}
    scores = [f"{name} <b>{stage.result['score']:.1%}</b>" for name, stage in stages.items() if stage]
    measure = escape(score_label(explorer.experiment.name).removesuffix(" (%)"))
    return f"Kept: {', '.join(kept)}. {measure}: {', '.join(scores) or 'not computed yet'}."
