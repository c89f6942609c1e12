"""The dress rehearsal of the profile full: its files are what the loader expects, and stages run on them."""

import json
import pickletools
import shutil
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from rehearsal import rehearse as rehearsal
from rehearsal.tap_files import (
    ANSWERS,
    PIECES,
    PYTHON_2,
    pretraining_heads,
    write_checkpoint,
    write_fasttext,
    write_labels,
    write_tap_files,
)

import lfpr
from lfpr.experiments import Cell
from lfpr.experiments.grid import cells, load_grid
from lfpr.files import CheckpointError, DataError
from lfpr.paper import pictures
from lfpr.released import load_scores
from lfpr.tap.checkpoint import read_checkpoint
from lfpr.tap.data import TAPDataset, batches, check
from lfpr.tap.evaluate import evalai, predict
from lfpr.tap.layout import FASTTEXT, LABELS, LAYOUTS
from lfpr.tap.model import TAP, TAPConfig
from lfpr.tap.vectors import FastText

QUESTIONS = {"train": 6, "val": 4, "test": 3, "score": 6}
EXPERIMENTS = {"textvqa": ("tap12-textvqa", 0, 12), "stvqa": ("tap-stvqa", 3, 4)}
NARROW = {"hidden_size": 24, "intermediate_size": 32, "text_vocab_size": PIECES, "num_answers": ANSWERS}


@pytest.fixture(scope="module", params=["textvqa", "stvqa"])
def files(request, tmp_path_factory):
    """A data set's files, and a checkpoint of real names and real inputs but little width."""
    folder = tmp_path_factory.mktemp(request.param)
    write_tap_files(folder / "data", request.param, QUESTIONS)
    torch.manual_seed(0)
    write_checkpoint(folder / "tap.ckpt", TAP(TAPConfig(*EXPERIMENTS[request.param][1:], **NARROW)))
    return request.param, folder


def test_files_are_as_large_and_as_odd_as_the_real_ones(files):
    dataset, folder = files
    for split, questions in QUESTIONS.items():
        found = check(folder / "data", dataset, split)
        assert (found["questions"], found["bad"], found["first_bad"]) == (questions, 0, None)
        assert (found["feature_size"], found["vocabulary"], found["word_vectors"]) == (2048, (5000, 30522), 300)
        assert found["answered"] == (0 if split == "test" else questions)
        assert found["without_ocr"] == 1 and found["ocr_tokens"][2] == 100  # of 130
    layout = LAYOUTS[dataset, "train"]
    headers = [
        "image_id" not in np.load(folder / "data" / LAYOUTS[dataset, s].imdb, allow_pickle=True)[0] for s in QUESTIONS
    ]
    assert headers == [True, False, True, True]
    old = [path for path in (folder / "data" / layout.ocr).rglob(f"*_{PYTHON_2:04d}_info.npy")]
    for path in old:
        pickled = path.read_bytes().partition(b"\n")[2]
        assert b"numpy.core" in pickled and b"numpy._core" not in pickled
        texts = [text for opcode, text, _ in pickletools.genops(pickled) if opcode.name == "SHORT_BINSTRING"]
        assert {"ocr_tokens", "ocr_boxes"} <= set(texts)
    assert len(old) >= 2


def test_batches_have_the_published_shapes(files):
    dataset, folder = files
    batch = next(iter(batches(TAPDataset(folder / "data", dataset, "score", targets=True), 5)))
    assert {name: list(tensor.shape) for name, tensor in batch.items()} == {
        "text": [5, 170], "obj_features": [5, 100, 2048], "obj_boxes": [5, 100, 4], "num_obj": [5],
        "ocr_features": [5, 100, 2048], "ocr_boxes": [5, 100, 4], "num_ocr": [5], "ocr_fasttext": [5, 100, 300],
        "ocr_phoc": [5, 100, 604], "index": [5], "targets": [5, 12, 5100], "previous": [5, 12], "loss_mask": [5, 12],
    }  # fmt: skip
    assert batch["num_ocr"].tolist() == [20, 100, 0, 7, 55] and batch["num_obj"].tolist() == [100, 100, 100, 100, 36]
    assert batch["obj_boxes"].min() >= 0 and batch["obj_boxes"].max() <= 1
    expected = FastText(folder / "data" / FASTTEXT)(batch.ocr_tokens[0])
    assert np.array_equal(batch["ocr_fasttext"][0, :20].numpy(), expected) and np.abs(expected).min(1).all()


def test_written_fasttext_is_read_back(tmp_path):
    write_fasttext(tmp_path / "x.bin", ["stop", "café"], dim=4, buckets=7)
    embed = FastText(tmp_path / "x.bin")
    assert embed.dim == 4 and not np.array_equal(embed(["stop"]), embed(["café"]))


@pytest.mark.parametrize("zipped", [True, False])  # as torch saves since 1.6, and before
def test_checkpoints_with_a_training_configuration_are_read(tmp_path, monkeypatch, zipped):
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda *a: save(*a, _use_new_zipfile_serialization=zipped))
    model = TAP(TAPConfig(text_layers=1, mmt_layers=1, text_vocab_size=9, num_answers=6, hidden_size=12,
                          intermediate_size=8, feature_size=5))  # fmt: skip
    path = tmp_path / "tap.ckpt"
    write_checkpoint(path, model)
    assert "pythia" not in sys.modules
    with pytest.raises(Exception, match=r"pythia\.utils\.configuration\.ConfigNode"):  # the point of reading it our way
        torch.load(path, weights_only=True)
    state = read_checkpoint(path)
    assert state.keys() == model.state_dict().keys() | pretraining_heads(model).keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def open_full(files, tmp_path, **settings):
    dataset, folder = files
    name, runs = EXPERIMENTS[dataset][0], tmp_path / "runs"
    return lfpr.open_experiment(name, "full", runs, folder / "data", folder / "tap.ckpt", **settings)


def test_stages_run_on_the_profile_full(files, tmp_path):
    exp = open_full(files, tmp_path)
    baseline = exp.baseline().result
    assert baseline["questions"] == 4 and ("anls" in baseline) == (files[0] == "stvqa")
    assert exp.importance(Cell("label-free")).heads.shape == (EXPERIMENTS[files[0]][2], 12)
    if files[0] == "textvqa":
        return  # the twelve layers cost the most time and add nothing below
    pruned = exp.prune(Cell("label-free", 0.4)).result
    assert 0.35 < pruned["fraction"] <= 0.4
    retrained = exp.retrain(Cell("label-free", 0.4))
    assert retrained.result["iterations"] == 1 and retrained.result["questions"] == 4
    stages, shown = exp.stages(Cell("label-free", 0.4)), pictures.of(exp)
    table, figure = shown.changes(exp, stages)
    figure.canvas.draw()
    kinds = shown.kinds(exp, stages)
    kinds.canvas.draw()
    assert len(figure.axes) <= len(table) <= 4
    assert kinds.axes[0].get_yticklabels()[-1].get_text() == "all (4)"
    model, test = lfpr.load_pruned(retrained.folder / "model"), exp.task.data("test")
    answers = predict(model, test, 2)  # the last batch is one question about an image without OCR tokens
    assert [entry["question_id"] for entry in evalai(answers, test)] == [0, 1, 2]
    assert exp.task.predict(model, test) == answers
    assert exp.task.require_test() is None
    rrc, to_evalai = exp.task.submit(model, tmp_path / "test.json")
    assert to_evalai.name == "test_evalai.json" and json.loads(to_evalai.read_text()) == evalai(answers, test)
    assert [set(entry) for entry in json.loads(rrc.read_text())] == [{"question_id", "answer"}] * 3


def test_the_profile_full_is_lfpr_as_published(files, tmp_path, monkeypatch):
    """Its questions and its answers where its files are there, in the folder of either of its documents; its files."""
    if files[0] == "textvqa":
        pytest.skip("as for ST-VQA, at three times the layers")
    dataset, root = files[0], tmp_path / "data"
    shutil.copytree(files[1] / "data", root)
    (root / "original_dl/m4c_stvqa").mkdir()
    score = root / LAYOUTS[dataset, "score"].imdb
    score.parent.rename(root / "original_dl/m4c_stvqa/calculate_score")
    options = {"runs": tmp_path / "runs", "data_root": root, "checkpoint": files[1] / "tap.ckpt"}
    exp = lfpr.open_experiment("tap-stvqa", "full", released_files=True, **options)
    settings, task = exp.settings, exp.task
    assert (settings.scoring, settings.sample_set, settings.labels, settings.targets) == (
        *("released", "auto", "auto", "spelled"),
    )
    cell = exp.cell(Cell(constraint=0.4))
    assert task.scored(cell).path == root / "original_dl/m4c_stvqa/calculate_score" / score.name
    own = exp.amounts(cell), task.amounts(cell)[0]
    assert own[1]["targets"] == "spelled" and "labels" not in own[1] and own[0] == {"percent": 90, "last_layers": 3}

    labels = root / "original_dl/m4c_stvqa" / LABELS.format("TAP_predicted_labels", 90)
    write_labels(root, dataset, labels, 4, task.data("train").vocab.words[10])
    assert task.amounts(cell)[0]["labels"] and task.amounts(cell)[0] != own[1]
    assert "labels" not in task.amounts(exp.cell(Cell(constraint=0.4, percent=50)))[0]
    monkeypatch.setattr(TAP, "generate", None)  # no question is answered anew
    teacher = exp.teach(cell)
    assert teacher.result == {"questions": 4, "file": "TAP_predicted_labels/train_pred_90pct.npy"}
    data = next(iter(task.training(task.model, cell)["batches"]))
    assert sorted(data["index"].tolist()) == [0, 1, 2, 3]  # whole, though it is 90 % of the questions already
    assert (data["previous"][:, 1] != 0).all() and (data["loss_mask"].sum(1) == 2).all()
    monkeypatch.undo()
    task.model.eval()

    stage = exp.retrain(cell)
    assert stage.result["questions"] == 4 and stage.result["iterations"] == 1 and stage.result["percent"] == 90
    made = task.stage("importance", exp.sample_key(cell), None)
    gradients, step = load_scores(made.folder / "score")
    assert len(gradients.heads) == 1 and step == made.result["step"] and made.result["samples"] == 6
    state = read_checkpoint(files[1] / "tap.ckpt")
    for folder in (exp.prune(cell).folder, stage.folder):
        pruned = read_checkpoint(folder / "pruned_model.ckpt")
        masks = {name for name in pruned if name.endswith(("head_mask.mask", "ffn_mask.mask"))}
        assert pruned.keys() == state.keys() | masks and len(masks) == 8  # what LFPR's trainers load strictly
        assert all((pruned[name] == 1).all() for name in masks)
        small = lfpr.released.load_tap(folder, task.config)
        assert small.state_dict().keys() == lfpr.load_pruned(folder / "model").state_dict().keys()
    delta = stage.folder / "delta.safetensors"
    assert stage.result["delta_megabytes"] == delta.stat().st_size / 1e6 < stage.result["parameters"]
    made, kept = lfpr.load_delta(task.model, delta), lfpr.load_pruned(stage.folder / "model").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in made.state_dict().items())

    scored = exp.with_settings(scores=exp.runs.folder.parent / "nowhere")
    with pytest.raises(DataError, match="head_grads.npy: a score folder of LFPR has"):
        scored.importance(cell)


def test_other_word_vectors_are_other_runs(files, tmp_path):
    hashed = open_full(files, tmp_path, word_vectors="hashed")
    with pytest.warns(UserWarning, match="word_vectors = 'hashed': a model trained with FastText scores lower"):
        hashed.task.data("val")
    assert hashed.task.inputs != open_full(files, tmp_path).task.inputs
    own = open_full(files, tmp_path).task.inputs
    for setting in ({"num_eval": 2}, {"num_ocr": 50}, {"question_tokens": 10}, {"decoding_steps": 6}):
        other = open_full(files, tmp_path, **setting).task
        assert other.inputs != own, setting
        assert all(getattr(other.config, name, value) == value for name, value in setting.items())


def test_a_checkpoint_of_another_vocabulary_is_refused(files, tmp_path):
    exp = open_full(files, tmp_path)
    answers = files[1] / "data" / LAYOUTS[files[0], "train"].answers
    whole = answers.read_bytes()
    answers.write_bytes(whole + b"more\n")
    try:
        with pytest.raises(CheckpointError, match=r"has 5000 answers, .*_5k\.txt has 5001: .*same data set"):
            exp.baseline()
    finally:
        answers.write_bytes(whole)


def test_a_run_is_timed_and_its_memory_measured(tmp_path):
    row = rehearsal.run([sys.executable, "-c", "x = b'x' * (150 << 20); print('done')"], tmp_path / "logs/large")
    assert row["name"] == "logs/large" and row["seconds"] > 0 and row["failed"] is None
    assert 150 <= row["peak_memory_mb"] < 400 and (tmp_path / "logs/large.log").read_text() == "done\n"
    row = rehearsal.run([sys.executable, "-c", "raise ValueError('no')"], tmp_path / "small")
    assert row["peak_memory_mb"] < 100 and "ValueError: no" in Path(row["failed"]).read_text()


def test_a_notebook_gets_the_parameters_it_declares(tmp_path, monkeypatch):
    parameters = nbformat.v4.new_code_cell(
        'experiment = ""  # name\nruns = 1  # folder', metadata={"tags": ["parameters"]}
    )
    work = nbformat.v4.new_code_cell("open(f'{runs}/made', 'w').write(experiment)\nassert experiment != 'bad'")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[parameters, work], metadata=kernel), tmp_path / "01_data.ipynb")
    monkeypatch.setattr(rehearsal, "NOTEBOOKS", tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setitem(rehearsal.PREPARE, "tap-textvqa", lambda folder, published: {"data_root": "x"})
    found = rehearsal.rehearse(tmp_path, ["tap-textvqa"], ["01_data"])
    assert found["notebooks"][0]["name"] == "tap-textvqa/01_data" and found["notebooks"][0]["failed"] is None
    assert json.loads((tmp_path / "rehearsal.json").read_text()) == found
    assert (tmp_path / "runs/made").read_text() == "tap-textvqa"


def test_the_rehearsed_cells_are_kinds_of_the_published_grid():
    published = load_grid(f"{Path(__file__).parents[2] / 'workflow/grid.yaml'}:published")
    for name, plan in rehearsal.PLANS.items():
        rehearsed = {_kind(each.cell) for each in cells(plan)}
        kinds = {_kind(each.cell) for each in cells(published[name])}
        assert {("label-free", "sum"), ("random", "sum"), ("fisher", "sum")} <= {kind[:2] for kind in rehearsed}
        assert {kind for kind in rehearsed if kind[0] != "given"} <= kinds, name
    assert {kind[0] for kind in map(_kind, (each.cell for each in cells(rehearsal.PLANS["clip-mscoco"])))} > {
        "sensitivity",
        "given",
    }


def _kind(cell):
    return cell.method, cell.heuristic, cell.rescaled, cell.rearranged, cell.scoring
