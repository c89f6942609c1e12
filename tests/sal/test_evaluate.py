"""Predictions, scores, and the logits that pruned SaLs are compared by."""

import numpy as np
import pytest
import small_sal as small
import torch

from lfpr.files import DataError
from lfpr.sal.data import SaLDataset
from lfpr.sal.evaluate import evaluate, first_logits, predict
from lfpr.tap.metrics import anls, stvqa_accuracy, vqa_accuracy


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sal")
    for dataset in ("textvqa", "stvqa"):
        small.write_files(folder, dataset)
    return folder


def test_scores_are_those_of_what_the_model_says(root):
    model = small.sal().train()
    questions = SaLDataset(root, "textvqa", config=small.CONFIG)
    ids = small.sal().generate(questions[[0, 1, 2, 3]])[1]
    texts = [questions.pieces.read(row) for row in ids.tolist()]
    assert predict(model, questions, 3) == texts and model.training
    answers = [record["answers"] for record in questions.records]
    assert evaluate(model, questions, 4) == {"score": vqa_accuracy(texts, answers), "questions": 4}
    said = [[text] * 10 for text in texts]
    for record, own in zip(questions.records, said, strict=True):
        questions.records[questions.records.index(record)] = record | {"answers": own}
    assert evaluate(model, questions, 2)["score"] == 1
    questions = SaLDataset(root, "stvqa", config=small.CONFIG)
    own = {"score": stvqa_accuracy(texts, answers), "anls": anls(texts, answers), "questions": 4}
    assert evaluate(model, questions, 4) == own


def test_first_logits_are_of_two_steps():
    model, batch = small.sal(), small.batch()
    published = np.load(small.REFERENCE / "sal_seed7.npz")["scp_greedy_logits"]
    np.testing.assert_allclose(first_logits(model, batch).numpy(), published[:, :2], rtol=1e-3, atol=1e-4)


def test_what_is_refused(root):
    model, questions = small.sal(), SaLDataset(root, config=small.CONFIG)
    for call, told in (
        (lambda: predict(model, questions, 0), "batch_size = 0"),
        (lambda: predict(model.latr, questions, 1), "model: expected SaL"),
        (lambda: predict(model, [], 1), "data: expected SaLDataset"),
        (lambda: evaluate(model, None, 1), "data: expected SaLDataset"),
        (lambda: first_logits(model.latr, small.batch()), "model: expected SaL"),
        (lambda: predict(model, SaLDataset(root, config=small.config(ocr_length=20)), 1), "for ocr_length = 20"),
    ):
        with pytest.raises(ValueError, match=told):
            call()
    imdb = root / "unanswered.npy"
    small.write_imdb(imdb, [row | {"answers": []} for row in small.rows()])
    questions = SaLDataset(root, imdb=imdb, config=small.CONFIG)
    with pytest.raises(ValueError, match="unanswered.npy: 4 of 4 questions have no answers"):
        evaluate(model, questions, 1)
    with pytest.raises(DataError, match="targets need answers, 4 questions have none, first 100"):
        SaLDataset(root, imdb=imdb, config=small.CONFIG, targets=True)
    with torch.no_grad():
        model.type_embed.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="logits: NaN"):
        predict(model, SaLDataset(root, config=small.CONFIG), 4)
