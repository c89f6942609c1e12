"""LFPR's own files in TAP's stages, on a little mini data: what is used is what the stage is named by."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rehearsal.tap_files import write_labels

import lfpr
from lfpr.experiments import Cell, open_experiment
from lfpr.files import DataError
from lfpr.released import load_scores, save_scores
from lfpr.tap.layout import LAYOUTS, SCORE_SET, Files
from lfpr.tap.text import decode

SMALL = {"train_images": 24, "val_images": 16, "num_samples": 40, "score_batch": 20, "retrain_batch": 16}


@pytest.fixture(scope="module")
def tap(tmp_path_factory):
    exp = open_experiment("tap-textvqa", runs=tmp_path_factory.mktemp("runs"), **SMALL)
    assert exp.task.root.is_dir()
    return exp


def ids(data):
    return [record["question_id"] for record in data.records]


def test_questions_behind_the_importance_are_lfprs_at_seed_0(tap):
    cell, ours = tap.cell(Cell()), tap.task.scored(tap.cell(Cell()))
    released = tap.with_settings(sample_set="released").task
    path = Files(tap.task.root, "textvqa", "train").released(SCORE_SET).path
    everything = ids(tap.task.data("score"))
    chosen = released.scored(cell)
    assert chosen.path == path and ours.path == tap.task.root / LAYOUTS["textvqa", "train"].imdb
    assert len(chosen) == 40 and ids(chosen) == [q for q in everything if q in set(ids(chosen))]  # in the file's order
    assert ids(released.scored(tap.cell(Cell(num_samples=10_000)))) == everything
    assert released.scored(tap.cell(Cell("fisher")), targets=True)[0]["loss_mask"].any()
    one = tap.cell(Cell(seed=1))
    assert ids(released.scored(one)) == ids(tap.task.scored(one)) != ids(ours)
    assert released.sampling(cell) != tap.task.sampling(cell) and released.sampling(one) == tap.task.sampling(one)
    manifest = tap.task.root / "manifest.json"  # as a data set of the user's, which has none
    whole, sealed = path.read_bytes(), manifest.read_bytes()
    manifest.unlink()
    try:
        np.save(path, np.load(path, allow_pickle=True)[:-1])
        assert tap.with_settings(sample_set="auto").task.sampling(cell) != released.sampling(cell)  # another file
        path.unlink()
        assert tap.with_settings(sample_set="auto").task.sampling(cell) == tap.task.sampling(cell)
        with pytest.raises(FileNotFoundError, match=r"imdb_train_3k\.npy is missing .*README"):
            tap.with_settings(sample_set="released").importance(cell)
    finally:
        path.write_bytes(whole)
        manifest.write_bytes(sealed)


def test_lengths_of_inputs_are_part_of_every_stage_s_name(tap):
    shorter = open_experiment("tap-textvqa", runs=tap.runs.folder.parents[1], **SMALL | {"question_tokens": 8})
    assert shorter.task.data("val")[0]["text"].shape < tap.task.data("val")[0]["text"].shape
    assert "sizes" not in tap.task.inputs and shorter.task.inputs["sizes"]["question_tokens"] == 8
    assert not shorter.importance().equal(tap.importance())


def test_what_depends_on_a_setting_is_not_shared_by_others(tap):
    assert tap.task.embed is not None and tap.task.data("val").image(tap.task.data("val").records[0])
    assert tap.with_settings(num_samples=10).task.embed is tap.task.embed
    assert tap.with_settings(word_vectors="fasttext").task.embed is None
    fewer = replace(tap.settings.sizes, num_ocr=1)
    assert tap.with_settings(sizes=fewer).task.data("val")[0]["ocr_boxes"].shape == (1, 4)


def test_time_steps_of_different_samples_are_kept_apart(tap, monkeypatch):
    seen = []
    monkeypatch.setattr("lfpr.tap.peak_step", lambda model, batches: seen.append(1) or len(seen))
    cell = tap.cell(Cell())
    released = tap.with_settings(sample_set="released").task
    assert tap.task.step(cell) == tap.task.step(cell) != released.step(cell)
    tap.task._steps.clear()


def test_targets_are_spelled_anew_or_as_decoded(tap):
    cell = tap.cell(Cell(constraint=0.2))
    teacher = tap.teach(cell)
    labels, words = (json.loads((teacher.folder / f"{name}.json").read_text()) for name in ("labels", "answers"))
    data = tap.task.data("train")
    for i, question in enumerate(ids(data)[:20]):
        batch = data[[i]]
        assert words[str(question)] == decode(labels[str(question)], batch.ocr_tokens[0], batch.vocab).text
    spelled = tap.with_settings(targets="spelled")
    assert spelled.teach(cell).folder == teacher.folder and spelled.task.amounts(cell) != tap.task.amounts(cell)
    both = [exp.task._taught(cell, 100) for exp in (tap, spelled)]
    assert ids(both[0]) == ids(both[1]) and len(both[0]) == len(data)
    batches = [taught[list(range(len(taught)))] for taught in both]
    assert (batches[0]["targets"][:, 0].sum(1) == 1).all()  # one decoded word
    first = batches[1]["targets"][:, 0].sum(1)
    assert first.max() > 1  # every equal token, and the vocabulary
    decoded = batches[0]["targets"][:, 0].argmax(1)
    written = batches[1]["loss_mask"].any(1)
    assert (
        written.float().mean() > 0.9 and batches[1]["targets"][written, 0][range(written.sum()), decoded[written]].all()
    )


def test_answers_of_lfpr_are_taken_as_they_are(tap):
    cell = tap.cell(Cell(constraint=0.4))
    released = tap.with_settings(labels="released", num_eval=8)
    path = tap.task.root / "imdb/m4c_textvqa/TAP_predicted_labels/train_pred_73pct.npy"
    with pytest.raises(FileNotFoundError, match=r"TAP_predicted_labels/train_pred_73pct\.npy is missing"):
        released.retrain(cell)
    with pytest.raises(ValueError, match=r"percent = 50: LFPR's answers \(labels = 'released'\) are of 73\.33 % here"):
        released.retrain(Cell(constraint=0.4, percent=50))
    auto = tap.with_settings(labels="auto")
    assert auto.task.amounts(cell) == tap.task.amounts(cell)
    write_labels(tap.task.root, "textvqa", path, 20)
    try:
        keys = [exp.task.amounts(cell)[0] for exp in (auto, released)]
        assert keys[0] == keys[1] != tap.task.amounts(cell)[0]
        stage = released.retrain(cell)
        assert stage.result["iterations"] == 2 and stage.result["percent"] == 73.3  # 20 questions in batches of 16
        assert not (released.teach(cell).folder / "labels.json").exists()
        write_labels(tap.task.root, "textvqa", path, 19)
        assert auto.task.amounts(cell)[0] != keys[0]  # another file
        assert "labels" not in auto.task.amounts(tap.cell(Cell(constraint=0.4, percent=50)))[0]
        assert "labels" in auto.task.amounts(tap.cell(Cell(constraint=0.4, percent=73)))[0]
    finally:
        path.unlink()


def test_names_of_files_are_the_architectures(tmp_path):
    for name, folder, percent in (("tap12-textvqa", "TAP12", 80), ("tap-stvqa", "TAP", 100)):
        task = open_experiment(name, runs=tmp_path, **SMALL, labels="released").task
        with pytest.raises(FileNotFoundError, match=rf"/{folder}_predicted_labels/train_pred_{percent}pct\.npy"):
            task.amounts(open_experiment(name, runs=tmp_path).cell(Cell(constraint=0.3)))


def test_scores_are_read_instead_of_computed(tap, tmp_path):
    cell = tap.cell(Cell())
    own, encoder = tap.importance(cell), tap.encoder
    torch.manual_seed(0)
    sizes = encoder.num_layers, encoder.num_heads
    gradients = lfpr.MaskGradients(torch.randn(3, *sizes), torch.randn(3, encoder.num_layers, encoder.num_neurons))
    save_scores(tmp_path / "score", gradients, 2)
    scored = tap.with_settings(scores=tmp_path / "score", released_files=True)
    assert scored.importance(cell).equal(gradients.importance()) and scored.task.step(cell) == 2
    stage = scored.task.stage("importance", scored.sample_key(cell), None)
    assert stage.result == {"gradients": 3, "step": 2}
    written, step = load_scores(stage.folder / "score")
    assert written.equal(gradients) and step == 2
    assert scored.importance(tap.cell(Cell(seed=3))).equal(gradients.importance())
    assert scored.prune(cell).result["heads"] == scored.search(gradients.importance(), cell).heads_kept
    for other in (Cell("fisher"), Cell(scoring="batched"), Cell(num_samples=7), Cell(step=0)):
        assert scored.task.given(tap.cell(other)) is None  # computed
    assert tap.importance(cell).equal(own)
    save_scores(tmp_path / "score", gradients, 3)
    again = tap.with_settings(scores=tmp_path / "score")
    assert again.sample_key(cell)["scores"] != scored.sample_key(cell)["scores"]
    save_scores(tmp_path / "score", lfpr.MaskGradients(torch.ones(1, 2, 12), torch.ones(1, 2, 3072)), 3)
    with pytest.raises(
        DataError, match=r"of \(2, 12, 3072\) layers, heads and neurons, tap-textvqa has \(4, 12, 384\)"
    ):
        tap.with_settings(scores=tmp_path / "score").prune(cell)
    save_scores(tmp_path / "score", gradients, 99)
    with pytest.raises(DataError, match="at decoding step 99"):
        tap.with_settings(scores=tmp_path / "score").prune(cell)


def test_submitting_is_taps(tap, tmp_path, monkeypatch):
    val = tap.task.data("val", limit=5)
    monkeypatch.setattr(tap.task, "data", lambda split: {"test": val}[split])  # mini has no test split
    assert tap.task.submit(tap.model, tmp_path / "answers.json") == [tmp_path / "answers.json"]
    entries = json.loads((tmp_path / "answers.json").read_text())
    assert [set(entry) for entry in entries] == [{"question_id", "image_id", "answer", "pred_source"}] * 5
    other = open_experiment("clip-mscoco", runs=tmp_path).task
    with pytest.raises(ValueError, match="clip-mscoco: has no test split"):
        other.submit(None, tmp_path / "answers.json")


def test_what_ends_at_its_end_is_checked_before(tap, tmp_path, monkeypatch):
    """By the header of a notebook: hours before 04 retrains or 05 submits."""
    monkeypatch.setattr("lfpr.experiments.runs.Run", None)  # no stage begins
    for fields, message in (
        ({"last_layers": 5}, "last_layers = 5: the encoder has only 4 layers"),
        ({"step": 12}, "step = 12: must be in 0 … 11"),
    ):
        with pytest.raises(ValueError, match=message):
            tap.check(Cell(**fields))
    with pytest.raises(DataError, match="nowhere/head_grads.npy"):
        tap.with_settings(scores=tmp_path / "nowhere").check()
    with pytest.raises(FileNotFoundError, match="TAP_predicted_labels/train_pred_73pct.npy is missing"):
        tap.with_settings(labels="released").check()
    assert tap.check() is None
    with pytest.raises(ValueError, match="the profile 'mini' has no test split"):
        tap.task.require_test()


def test_settings_are_checked(tmp_path):
    for name, value in (("num_eval", -5), ("workers", -1), ("score_every", -1), ("checkpoint_every", 0)):
        with pytest.raises(ValueError, match=rf"{name} = {value}: must be at least [01]"):
            open_experiment("tap-textvqa", **{name: value})
    with pytest.raises(ValueError, match="scores = 5: must be text or a path"):
        open_experiment("tap-textvqa", scores=5)
    for name in ("tap-textvqa", "clip-mscoco"):  # a profile forgotten is no wish for other data
        with pytest.raises(ValueError, match=r"data_root = .*/mine: is of the profile 'full'"):
            open_experiment(name, runs=tmp_path, data_root=tmp_path / "mine")
    assert not list(tmp_path.iterdir())
    for name in ("sample_set", "labels", "targets"):
        with pytest.raises(ValueError, match=rf"{name} = 'mine': must be one of"):
            open_experiment("tap-textvqa", **{name: "mine"})
