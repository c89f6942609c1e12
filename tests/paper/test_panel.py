"""The explorer's controls, and the process that computes beside them."""

import asyncio
import json
import re
import signal
import time
from functools import partial

import pytest
from faulty import count_for

from lfpr.experiments import open_experiment
from lfpr.experiments.check_runs import damaged
from lfpr.paper import worker as workers
from lfpr.paper.explore import Explorer
from lfpr.paper.panel import Panel
from lfpr.paper.worker import Failed, Stopped, Task, Worker

SMALL = {"train_images": 24, "val_images": 16, "num_samples": 40, "score_batch": 20, "retrain_batch": 16}
NAMES = ["tap-textvqa", "tap-stvqa"]


class Here:
    """A worker in this process; `gate` is waited for, and `stop` opens it."""

    def __init__(self, open_one):
        self.open_one, self.gate, self.stopped, self.tasks = open_one, None, False, []

    async def do(self, task, listener):
        self.tasks.append(task)
        self.stopped = False
        listener("step", 1, 4)
        if self.gate:
            await self.gate.wait()
        if self.stopped:
            raise Stopped
        try:
            workers.compute(Explorer(self.open_one(task.experiment)), task)
        except ValueError as error:
            raise Failed(str(error)) from None

    def stop(self):
        self.stopped = True
        self.gate.set()


@pytest.fixture(scope="module")
def open_one(tmp_path_factory):
    return partial(open_experiment, runs=tmp_path_factory.mktemp("runs"), **SMALL)


@pytest.fixture(scope="module")
def explorer(open_one):
    explorer = Explorer(open_one("tap-textvqa"))
    explorer.unpruned(compute=True)
    explorer.stage("retrained", "magnitude", 0.6, compute=True)
    return explorer


@pytest.fixture
def panel(explorer, open_one, tmp_path, monkeypatch):
    monkeypatch.setattr("lfpr.paper.panel.Worker", Here)
    return Panel(explorer, open_one, NAMES, "magnitude", 0.6, memory=tmp_path / "memory.json")


def is_old(panel):
    return "lfpr-old" in panel.picture._dom_classes


def test_the_panel_follows_its_controls(panel, explorer):
    assert "retrained <b>" in panel.summary.value and "Magnitude, retrained" in panel.picture.value
    assert [value for _, value in panel.method.options] == list(explorer.methods)
    assert all(button.disabled for button in panel.buttons.values())  # both scores are there
    before = panel.picture.value
    panel.constraint.value = 0.65
    assert panel.picture.value != before and "retrained <b>" not in panel.summary.value
    assert f"{explorer.kept(explorer.masks('magnitude', 0.65))['parameters']:.1%}" in panel.summary.value
    assert not any(button.disabled for button in panel.buttons.values())
    panel.method.value, panel.seed.value = "random", 3
    assert f"{explorer.kept(explorer.masks('random', 0.65, 3))['parameters']:.1%}" in panel.summary.value
    assert not panel._worker.tasks and not is_old(panel)  # all of it at once
    panel.experiment.value = "tap-stvqa"
    assert [task.stage for task in panel._worker.tasks] == ["masks"]  # which makes the data
    assert panel.method.value == "random" and panel.explorer.experiment.name == "tap-stvqa"
    assert "ST-VQA" in panel.summary.value and not is_old(panel)


def test_the_button_scores_the_model(panel, explorer):
    panel.constraint.value = 0.7
    assert explorer.stage("pruned", "magnitude", 0.7) is None
    panel.buttons["pruned"].click()
    score = explorer.stage("pruned", "magnitude", 0.7).result["score"]
    assert f"pruned <b>{score:.1%}" in panel.summary.value and f"{100 * score:.1f} % at 70%" in panel.picture.value
    assert panel.buttons["pruned"].disabled and not panel.buttons["retrained"].disabled
    assert panel.job.layout.display == "none"


def test_ticked_methods_are_drawn_too(panel):
    boxes = {box.description: box for box in panel.curves.children[1:]}
    assert boxes["Magnitude"].disabled and not boxes["Random"].disabled  # the chosen one is drawn anyway
    panel.method.value = "random"
    assert "Magnitude, retrained" not in panel.picture.value
    boxes["Magnitude"].value = True
    assert "Magnitude, retrained" in panel.picture.value


def test_controls_work_while_a_score_is_computed(panel, explorer):
    async def use():
        panel._worker.gate = asyncio.Event()
        panel.constraint.value = 0.8
        panel.buttons["pruned"].click()
        await asyncio.sleep(0)
        assert panel.job.layout.display == "flex" and (panel.bar.value, panel.bar.max) == (1, 4)
        assert panel.doing.value.startswith("Score of Magnitude at 80%, seed 0 (tap-textvqa): step 1 of 4")
        assert all(button.disabled for button in panel.buttons.values())  # one task at a time
        panel.constraint.value = 0.75
        kept = explorer.kept(explorer.masks("magnitude", 0.75))["parameters"]
        assert f"{kept:.1%}" in panel.summary.value and not is_old(panel)
        panel._worker.gate.set()
        await panel._work

    asyncio.run(use())
    assert explorer.stage("pruned", "magnitude", 0.8) and "at 80%" in panel.picture.value
    assert panel.choice["constraint"] == 0.75 and panel.job.layout.display == "none"
    assert not any(button.disabled for button in panel.buttons.values())


def test_a_picture_of_an_older_choice_is_dimmed_and_says_so(panel):
    async def use():
        panel._worker.gate = asyncio.Event()
        before = panel.picture.value
        panel.method.value = "fisher"  # whose importance is not there
        await asyncio.sleep(0)
        assert is_old(panel) and panel.picture.value == before
        assert panel.note.value == "The picture is still that of Magnitude at 60%, seed 0 (tap-textvqa)."
        panel._worker.gate.set()
        await panel._work
        assert not is_old(panel) and panel.picture.value != before and not panel.note.value

    asyncio.run(use())


def test_stop_returns_to_what_is_shown(panel):
    async def use():
        panel._worker.gate = asyncio.Event()
        panel.method.value = "absolute"
        await asyncio.sleep(0)
        panel.stop.click()
        await panel._work

    asyncio.run(use())
    assert panel.method.value == "magnitude" and not is_old(panel)
    assert panel.note.value.startswith("<b>Importance of Absolute gradient") and "stopped" in panel.note.value


def test_importance_that_nobody_waits_for_is_stopped(panel):
    async def use():
        panel._worker.gate = asyncio.Event()
        panel.method.value = "absolute"
        await asyncio.sleep(0)
        panel.method.value = "random"
        assert not is_old(panel)
        await panel._work

    asyncio.run(use())
    assert panel.method.value == "random" and not panel.note.value and len(panel._worker.tasks) == 1


def test_the_panel_shows_what_is_wrong(panel):
    panel.constraint.min = 0.001
    panel.constraint.value = 0.001
    assert panel.summary.value == "<b>constraint = 0.0: must be in (0, 1]</b>" and is_old(panel)
    panel.constraint.value = 0.3
    assert "Kept: <b>" in panel.summary.value and not is_old(panel)


def test_the_panel_comes_back_as_it_was_left(panel, explorer, open_one):
    again = partial(Panel, explorer, open_one, NAMES, memory=panel._memory)
    assert not panel._memory.exists()  # a panel that was only drawn remembers nothing
    panel.constraint.value, panel.seed.value = 0.35, 2
    panel.curves.children[2].value = True
    left = again("magnitude", 0.6)
    assert left.choice == panel.choice and left._ticked == panel._ticked == ["fisher"]
    assert left.picture.value != "" and "35" in left.summary.value
    assert again("magnitude", 0.5).choice["constraint"] == 0.5  # the notebook's parameters were changed


@pytest.mark.parametrize("text", ["", "[]", "{", '{"left": 3}', '{"start": null, "left": {}}'])
def test_a_memory_that_cannot_be_read_is_none(panel, explorer, open_one, text):
    panel._memory.write_text(text)
    assert Panel(explorer, open_one, NAMES, "magnitude", 0.6, memory=panel._memory).choice["constraint"] == 0.6


def test_the_memory_is_in_runs(explorer, open_one):
    panel = Panel(explorer, open_one, NAMES, "magnitude", 0.6)
    assert panel._memory == explorer.experiment.runs.folder.parents[1] / "explore-mini.json"
    panel.constraint.value = 0.65
    memory = json.loads(panel._memory.read_text())
    panel._memory.unlink()
    assert memory["left"] == panel.choice | {"curves": []} and memory["start"]["constraint"] == 0.6


def test_a_dead_panel_says_so(panel):
    style = panel.children[0].value
    assert re.search(r"\.lfpr-dead { display: none; }", style) and "run all cells" in style
    assert ".lfpr-panel.jupyter-widgets-disconnected .lfpr-dead { display: block" in style


# ---- the process beside it


@pytest.fixture(scope="module")
def worker(open_one):
    worker = Worker(open_one)
    yield worker
    worker.close()


def do(worker, *task):
    """Do a task; returns what it reported."""
    reports = []
    asyncio.run(worker.do(Task(*task), lambda *report: reports.append(report)))
    return reports


def test_the_worker_leaves_stages_and_reports_progress(worker, explorer):
    reports = do(worker, "pruned", "tap-textvqa", "l1", 0.5, 0)
    assert explorer.stage("pruned", "l1", 0.5).result["fraction"] <= 0.5
    _, done, total = next(report for report in reversed(reports) if report[0] == "answer")
    assert done == total > 0


def test_a_stopped_task_leaves_nothing_half_written(worker, explorer):
    def stop(title, done, total):
        if title == "retrain" and done:
            worker.stop()

    with pytest.raises(Stopped):
        asyncio.run(worker.do(Task("retrained", "tap-textvqa", "random", 0.5, 0), stop))
    runs = explorer.experiment.runs.folder.parents[1]
    assert explorer.stage("retrained", "random", 0.5) is None and explorer.stage("pruned", "random", 0.5)
    assert not list(runs.rglob("*.unfinished")) and not list(damaged(runs))
    process = worker._process
    do(worker, "retrained", "tap-textvqa", "random", 0.5, 0)
    assert explorer.stage("retrained", "random", 0.5) and worker._process is process  # it takes another task


def test_a_task_that_has_not_begun_can_be_stopped(worker):
    async def use():
        worker.close()
        work = asyncio.create_task(worker.do(Task("masks", "tap-textvqa", "magnitude", 0.5, 0), print))
        await asyncio.sleep(0)
        worker.stop()  # while the process still imports
        await work

    with pytest.raises(Stopped):
        asyncio.run(use())


def stop_once_begun(worker, task):
    """Do a task whose work has begun when it is stopped."""

    async def use():
        work = asyncio.create_task(worker.do(task, print))
        while not worker._begun:
            await asyncio.sleep(workers.PAUSE)
        worker.stop()
        await work

    asyncio.run(use())


def test_a_process_of_one_that_ignores_interruptions_does_not():
    worker = Worker(time.sleep)  # opens an "experiment" for as long as it is named
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as an idle kernel does
    try:
        with pytest.raises(Stopped):
            stop_once_begun(worker, Task("pruned", 600, "random", 0.3, 0))
        assert worker._process.is_alive()  # it was not killed
    finally:
        signal.signal(signal.SIGINT, before)
        worker.close()


def test_an_interruption_that_is_lost_is_noticed_at_the_next_report(monkeypatch):
    """Python drops an interruption that comes in a destructor."""
    monkeypatch.setattr(workers.os, "kill", lambda *call: None)
    worker = Worker(count_for)
    try:
        with pytest.raises(Stopped):
            stop_once_begun(worker, Task("pruned", 600, "random", 0.3, 0))
        assert worker._process.is_alive()
        with pytest.raises(Failed, match="has no attribute"):  # and it takes another task
            do(worker, "pruned", 0, "random", 0.3, 0)
    finally:
        worker.close()


def test_what_fails_is_said(worker):
    with pytest.raises(Failed, match="constraint = 1.5: must be"):
        do(worker, "masks", "tap-textvqa", "magnitude", 1.5, 0)


def test_a_process_that_ends_is_replaced(worker):
    do(worker, "masks", "tap-textvqa", "magnitude", 0.5, 0)
    worker._process.kill()
    with pytest.raises(Failed, match="process ended"):
        do(worker, "masks", "tap-textvqa", "magnitude", 0.5, 0)
    do(worker, "masks", "tap-textvqa", "magnitude", 0.5, 0)
