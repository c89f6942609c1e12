"""What pruning changed: answers from right to wrong and back, images lost and won, neighbours lost."""

import importlib.util
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image

from lfpr.experiments import Cell, open_experiment
from lfpr.experiments.questions import ANSWERS
from lfpr.experiments.sentences import PACKAGE
from lfpr.paper import pictures
from lfpr.paper.pictures.changes import CHANGES, changed, compare_answers, kind_of, show_changes, show_kinds
from lfpr.tap.text import Answer

SMALL = {"train_images": 20, "val_images": 12}


def record(number, answers, kind=None, image=None):
    about = {"question_id": 100 + number, "question": f"what is written on sign {number}?", "kind": kind}
    return about | {"image_id": number if image is None else image, "answers": answers}


class Questions(SimpleNamespace):
    """Stands for a data set of questions."""

    def __len__(self):
        return len(self.records)

    def sample(self, index):
        boxes = {"ocr_tokens": ["stop"], "ocr_boxes": [(0.1, 0.1, 0.5, 0.3)], "image_size": (60, 40), "image": None}
        return self.records[index] | boxes


def said(*texts):
    return [Answer(text, [(word, "ocr") for word in text.split()]) for text in texts]


TEN = [["stop"] * 10, ["go"] * 10, ["bus"] * 10, ["red"] * 8 + ["pink"] * 2, ["7"] * 10, ["go"] * 8 + ["$5"] * 2]
BEFORE = said("stop", "no", "car", "red", "7", "$5")
AFTER = said("halt", "go", "", "pink", "The 7", "x")


@pytest.fixture
def data():
    kinds = ["say", "say", "object", "colour", "number", "say"]
    records = [record(i, answers, kinds[i]) for i, answers in enumerate(TEN)]
    return Questions(records=records, dataset="textvqa")


def test_answers_are_right_wrong_or_the_same(data):
    table = compare_answers(data, BEFORE, AFTER)
    # "the" is no part of an answer; two of ten people give 0.6
    assert table.change.tolist() == [*list(CHANGES), "same", "right → wrong"]
    assert table.score_before.round(3).tolist() == [1, 0, 0, 1, 1, 0.6]
    assert table.score_after.round(3).tolist() == [0, 1, 0, 0.6, 1, 0]
    assert table.question_id.tolist() == list(range(100, 106))
    rows = changed(table)
    assert rows.index.tolist() == [0, 5, 1, 2, 3]  # of the two that are lost the one that lost more
    assert changed(compare_answers(data, AFTER, BEFORE)).index.tolist() == [1, 0, 5, 2, 3]
    assert changed(compare_answers(data, BEFORE, BEFORE)).empty
    with pytest.raises(ValueError, match="after: 2 answers for 6 questions"):
        compare_answers(data, BEFORE, AFTER[:2])


@pytest.mark.parametrize(
    "question, kind",
    [
        ("What brand is this?", "what brand"),
        ("what's the time?", "what is"),
        ("Is this a stop sign?", "yes/no"),
        ("How many are there", "how many"),
        ("who wrote it?", "who"),
        ("what?", "what"),
        ("", "–"),
    ],
)
def test_kinds_are_the_files_or_how_a_question_begins(question, kind):
    assert kind_of({"question": question, "kind": None}) == kind_of({"question": question}) == kind
    assert kind_of({"question": question, "kind": "price"}) == "price"


def test_pictures_of_changes_show_who_said_what(data):
    table = changed(compare_answers(data, BEFORE, AFTER))
    answers = {"unpruned": BEFORE, "pruned": AFTER}
    figure = show_changes(data, table, answers, columns=1, render=lambda sample: Image.new("RGB", (60, 40)))
    figure.canvas.draw()  # dollars are no formulas
    heads = [text.get_text() for text in figure.texts]
    assert heads == ["Right → wrong: 2 questions"] + [f"{name.capitalize()}: 1 question" for name in [*CHANGES][1:]]
    assert [len(panel.images) for panel in figure.axes] == [1] * 4
    lines = [text.get_text() for text in figure.axes[0].texts]
    expected = ["what is written on sign 0?", "unpruned: [stop] ✓", "pruned: [halt] ✗", "accepted: stop\u00a0×\u00a010"]
    assert lines == expected
    assert "pruned: – ✗" in [text.get_text() for text in figure.axes[2].texts]
    shown = show_changes(data, table, answers, columns=3)
    assert len(shown.axes) == 5 and not any(panel.images for panel in shown.axes)  # boxes instead of images
    assert not show_changes(data, table[:0], answers).axes


def test_captions_stay_within_their_room(data):
    data.records[0] |= {
        "question": "what is that " * 40,
        "answers": ["so long an answer that it needs many lines"] * 10,
    }
    answers = {name: said("word " * 30, *["x"] * 5) for name in ("unpruned", "pruned")}
    table = compare_answers(data, *answers.values()).assign(change="wrong → other wrong")
    figure = show_changes(data, table, answers)
    boxes = [text.get_window_extent() for panel in figure.axes for text in panel.texts]
    assert min(box.y0 for box in boxes) > 0 and max(box.x1 for box in boxes) < figure.bbox.width


def test_an_image_is_shown_once(data):
    for each in data.records:
        each["image_id"] = 1
    table = changed(compare_answers(data, BEFORE, AFTER))
    assert len(show_changes(data, table, {"a": BEFORE, "b": AFTER}).axes) == 4


def test_pictures_of_kinds_count_questions_and_changes(data):
    table = compare_answers(data, BEFORE, AFTER)
    figure = show_kinds({"pruned": table, "retrained": compare_answers(data, BEFORE, BEFORE)})
    figure.canvas.draw()
    accuracy, lost, nothing = figure.axes
    names = [label.get_text() for label in accuracy.get_yticklabels()]
    # from the bottom: what loses least is lowest, all questions on top
    assert names == ["number (1)", "object (1)", "say (3)", "colour (1)", "all (6)"]
    lines = {line.get_label(): line.get_xdata().round(1).tolist() for line in accuracy.lines}
    assert lines["Unpruned"] == lines["Retrained"] == [100, 0, 53.3, 100, 60]
    assert lines["Pruned"] == [100, 0, 33.3, 60, 43.3]
    widths = [[round(bar.get_width(), 1) for bar in bars] for bars in lost.containers]
    assert widths[0] == [0, 0, 66.7, 0, 33.3] and widths[2] == [0, 100, 0, 0, 16.7]
    assert [text.get_text() for text in lost.texts if text.get_text()] == ["2", "2", "1", "1", "1", "1", "1", "1"]
    assert not any(bar.get_width() for bars in nothing.containers for bar in bars)


def test_rare_kinds_are_put_together():
    records = [record(i, ["a"] * 10, kind=f"kind {i // 2}") for i in range(40)]
    data = Questions(records=records, dataset="textvqa")
    panel = show_kinds({"pruned": compare_answers(data, said(*"a" * 40), said(*"b" * 40))}).axes[0]
    names = [label.get_text() for label in panel.get_yticklabels()]
    assert len(names) == 14 and "other (16)" in names and names[-1] == "all (40)"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("name", ["tap-textvqa", "sal-stvqa"])
def test_answers_are_those_that_were_scored(runs, name, tmp_path, monkeypatch):
    exp = open_experiment(name, runs=runs, **SMALL)
    stages = {"unpruned": exp.baseline(), "pruned": exp.prune(Cell("random"))}
    data = exp.task.validation()
    expected = exp.task.predict(exp.load(stages["pruned"]), data)
    bare = replace(stages["pruned"], folder=tmp_path / "prune" / "x")  # as an earlier version left it
    shutil.copytree(stages["pruned"].folder, bare.folder, ignore=shutil.ignore_patterns(ANSWERS))
    assert exp.task.answers(bare, data) == expected != exp.task.answers(stages["unpruned"], data)
    monkeypatch.setattr(exp.task, "predict", None)  # nothing is answered again
    monkeypatch.setattr(exp.task, "answer", None)
    assert exp.task.answers(stages["pruned"], data) == expected
    table, figure = pictures.of(exp).changes(exp, stages)
    everything = compare_answers(data, exp.task.answers(stages["unpruned"], data), expected)
    assert table.equals(changed(everything)) and len(table) > 5
    assert everything.score_after.mean() == pytest.approx(stages["pruned"].result["score"])
    assert all(panel.images for panel in figure.axes)  # those without a file are drawn again
    labels = [label.get_text() for label in pictures.of(exp).kinds(exp, stages).axes[0].get_yticklabels()]
    assert labels[-1] == f"all ({len(data)})" and any(label.startswith("price (") for label in labels)


def test_images_are_lost_and_won(runs):
    exp = open_experiment("clip-mscoco", runs=runs, train_images=20, val_images=60)
    stages = {"unpruned": exp.baseline(), "pruned": exp.prune(Cell("random", 0.3))}
    table, figure = pictures.of(exp).changes(exp, stages)
    counts, questions = table.change.value_counts(), exp.baseline().result["questions"]
    difference = questions * (stages["unpruned"].result["score"] - stages["pruned"].result["score"])
    assert counts["Lost"] - counts.get("Won", 0) == pytest.approx(difference) and difference > 4
    lost = table[table.change == "Lost"]
    assert (lost.unpruned == 1).all() and lost.pruned.is_monotonic_decreasing and lost.pruned.min() > 1
    figure.draw_without_rendering()
    assert [len(panel.images) for panel in figure.axes] == [1] * len(figure.axes)
    assert figure.axes[1].get_xlabel() == f"found by pruned:\nright one at {lost.pruned.iloc[0]}"
    kinds = pictures.of(exp).kinds(exp, stages).axes[0]
    assert sum(int(text.get_text()) for text in kinds.texts) == questions
    back, _ = pictures.of(exp).changes(exp, dict(reversed(stages.items())))
    assert back.change.value_counts()["Won"] == counts["Lost"]


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"the package {PACKAGE} (lfpr[text])")
def test_neighbours_are_lost(runs):
    exp = open_experiment("minilm-texts", runs=runs)
    stages = exp.stages(Cell("random"))
    assert list(stages) == ["unpruned", "pruned"]  # it is not retrained
    table, first = pictures.of(exp).changes(exp, stages)
    k, texts = exp.settings.neighbours, stages["pruned"].result["questions"]
    kept = 1 - (k - table.kept).sum() / (k * texts)
    assert kept == pytest.approx(stages["pruned"].result["score"]) and table.kept.is_monotonic_increasing
    assert first.equals(table.head(8)) and (table.lost != table.won).all()
    bars = pictures.of(exp).kinds(exp, stages).axes[0].patches
    assert sum(bar.get_height() for bar in bars) == texts
