"""Questions encoded once serve all models that differ in the MMT and the answer heads alone."""

import pytest
import torch

import lfpr
from lfpr.experiments import Cell
from lfpr.tap.evaluate import predict, predict_inputs, write_inputs

SIZES = {"train_images": 12, "val_images": 6, "num_samples": 8, "eval_batch": 7}


@pytest.fixture(scope="module")
def exp(tmp_path_factory):
    return lfpr.open_experiment("tap-textvqa", runs=tmp_path_factory.mktemp("runs"), **SIZES)


def test_answers_from_encoded_questions_are_those_from_files(exp, tmp_path):
    data = exp.task.data("val")
    write_inputs(exp.model, data, 7, tmp_path)
    found = predict_inputs(exp.model, tmp_path, data.vocab)
    assert found == predict(exp.model, data, 7) and len(found) == len(data) > 7
    with pytest.raises(FileNotFoundError):
        predict_inputs(exp.model, tmp_path / "nowhere", data.vocab)


def test_pruned_and_retrained_models_read_no_features(exp, monkeypatch):
    exp.baseline()
    stages = [exp.prune(Cell(constraint=0.6)), exp.retrain(Cell(constraint=0.6))]
    monkeypatch.setattr("lfpr.tap.data.TAPDataset.__getitem__", lambda *_: pytest.fail("features are read"))
    for stage in stages:
        small = exp.load(stage)
        assert small.encodes_as(exp.model)
        assert exp.task.evaluate(small)["score"] == stage.result["score"]
    assert len(exp.runs.finished("encoded")) == 1


def test_a_model_that_encodes_otherwise_is_scored_on_its_own(exp):
    other = exp.load(exp.prune(Cell(constraint=0.6)))
    with torch.no_grad():
        other.linear_ocr_feat_to_mmt_in.weight.zero_()
        other.linear_obj_feat_to_mmt_in.weight.zero_()
    assert not other.encodes_as(exp.model)
    data = exp.task.data("val")
    own = [answer.text for answer in predict(other, data, 7)]
    kept = [answer.text for answer in predict_inputs(other, exp.task.encoded().folder, data.vocab)]
    assert own != kept
    expected = lfpr.tap.evaluate(other, data, 7)
    assert exp.task.evaluate(other) == expected


def test_a_model_may_be_on_another_device_than_the_experiment_s(exp):
    from fake_device import fake_device

    other = exp.load(exp.prune(Cell(constraint=0.6)))
    expected = exp.task.evaluate(other)
    with fake_device() as device:
        other.to(device)
        assert other.encodes_as(exp.model) and exp.model.encodes_as(other)
        assert exp.task.evaluate(other) == expected


def test_precision_is_another_stage_and_close(exp):
    mixed = exp.with_settings(eval_precision="bf16")
    assert mixed.task.evaluation == {"eval_precision": "bf16"} and exp.task.evaluation == {}
    assert abs(mixed.baseline().result["score"] - exp.baseline().result["score"]) < 0.1
    assert len(exp.runs.finished("encoded")) == 2 and mixed.importance().equal(exp.importance())


def test_workers_read_the_same_batches(exp):
    data = exp.task.data("val", images={})
    reader = lfpr.tap.batches(data, 7, workers=1)
    assert data._words is not None  # word vectors take seconds to open: once, not in each worker and pass
    one, two = (list(batches) for batches in (lfpr.tap.batches(data, 7), reader))
    for a, b in zip(one, two, strict=True):
        assert a.ocr_tokens == b.ocr_tokens and a.vocab.words == b.vocab.words
        assert all(torch.equal(a[name], b[name]) for name in a)
    moved = one[0].to("cpu")
    assert type(moved) is type(one[0]) and moved.ocr_tokens is one[0].ocr_tokens
