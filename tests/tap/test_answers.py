"""Answers in words, their scores, the files to submit them, and the pictures that show them."""

import json

import pytest
import torch
from PIL import Image
from tap.test_data import ANSWERS, PIECES, SIZES, V, load, write

from lfpr.paper.pictures.questions import marked, show_questions
from lfpr.tap.evaluate import answers, evalai, evaluate, predict, write_evalai, write_rrc
from lfpr.tap.model import TAP, TAPConfig
from lfpr.tap.text import Answer, AnswerVocab

STOP, BUS, EOS = ANSWERS.index("stop"), ANSWERS.index("bus"), ANSWERS.index("</s>")
SAID = [[V, BUS, EOS, V + 1], [STOP, EOS, 0, 0], [V + 3, V, EOS, 0], [V + 1, EOS, 0, 0]]  # the last has no OCR token
WORDS = [
    [("stop", "ocr"), ("bus", "vocabulary")],
    [("stop", "vocabulary")],
    [("w3", "ocr"), ("w0", "ocr")],
    [("<pad>", "ocr")],
]


@pytest.fixture(params=["textvqa", "stvqa"])
def data(request, tmp_path):
    return load(write(tmp_path, request.param), request.param)


class Says(TAP):
    """Stands for a model whose answer to question i is `SAID[i]`."""

    device = torch.device("cpu")

    def __init__(self):
        torch.nn.Module.__init__(self)

    def generate(self, batch, stop=False):
        said = torch.tensor([SAID[i] for i in batch["index"].tolist()])
        logits = torch.nn.functional.one_hot(said, V + SIZES.num_ocr).float()
        return logits, said


def test_answers_are_words_and_where_they_are_from(data):
    batch = data[[0, 1, 2, 3]]
    found = answers(Says().generate(batch)[0], batch)
    assert found == [
        Answer(text, words) for text, words in zip(["stop bus", "stop", "w3 w0", "<pad>"], WORDS, strict=True)
    ]
    assert [str(answer) for answer in found] == ["stop bus", "stop", "w3 w0", "<pad>"]


def test_answers_refuse_what_is_not_of_one_batch(data):
    batch, other = data[[0, 1]], data[[0, 1, 2]]
    logits = Says().generate(batch)[0]
    for wrong in (logits[0], logits[..., :-1], Says().generate(other)[0]):
        with pytest.raises(ValueError, match=rf"logits: expected shape \[2, T, {V + 4}\], got"):
            answers(wrong, batch)
    with pytest.raises(ValueError, match="batch: a dict without words"):
        answers(logits, dict(batch))


@pytest.mark.parametrize("size", [1, 3, 4])
def test_predict_answers_all_questions_in_order(data, size):
    assert [answer.words for answer in predict(Says(), data, size)] == WORDS


def test_a_real_models_answers_are_its_predictions(data):
    config = TAPConfig(
        text_layers=1, mmt_layers=1, text_vocab_size=len(PIECES), num_answers=V, hidden_size=24, num_heads=2,
        intermediate_size=32, question_tokens=SIZES.question_tokens, num_ocr=SIZES.num_ocr, feature_size=5,
        fasttext_size=16, decoding_steps=4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = TAP(config).eval()
    batch = data[[0, 1, 2, 3]]
    logits, predictions = model.generate(batch)
    for answer, row, tokens in zip(answers(logits, batch), predictions.tolist(), batch.ocr_tokens, strict=True):
        row = row[: row.index(EOS)] if EOS in row else row
        words = [ANSWERS[i] if i < V else tokens[i - V] for i in row]
        assert [word for word, _ in answer.words] == words and answer.text == " ".join(words)
    assert predict(model, data, 2) == answers(logits, batch)
    for other in (["<pad>", "</s>", "<s>", *ANSWERS[3:]], [*ANSWERS, "more"]):  # indices mean other words there
        data.vocab = AnswerVocab(other)
        with pytest.raises(
            ValueError, match=rf"vocab: {len(other)} words, <s> and </s> at .*the model's has {V}, at 1 and 2"
        ):
            predict(model, data, 2)


def test_scores_are_the_data_sets_own(data):
    def scored(indices):
        return evaluate(Says(), load(data.root, data.dataset, indices=indices), 2)

    with_anls = {"anls": 0.5} if data.dataset == "stvqa" else {}
    # people: "no", "stop"; said: "stop bus", "stop"
    assert scored([1, 0]) == {"score": 0.5, "questions": 2} | with_anls
    # people: "stop"; said: "stop bus", whose four of eight letters are right
    assert scored([0]) == {"score": 0, "questions": 1} | with_anls


def test_questions_without_answers_are_not_scored_but_submitted(tmp_path, data):
    test = load(write(tmp_path / "test", data.dataset, answers=False), data.dataset)
    with pytest.raises(ValueError, match="4 of 4 questions have no answers"):
        evaluate(None, test, 2)  # before any work
    given = predict(Says(), test, 2)
    entries = evalai(given, test)
    assert [entry["question_id"] for entry in entries] == [7, 8, 9, 10]
    assert entries[0] == {"question_id": 7, "image_id": "a", "answer": "stop bus", "pred_source": ["OCR", "VOCAB"]}
    write_evalai(tmp_path / "made/answers.json", given, test)
    assert json.loads((tmp_path / "made/answers.json").read_text()) == entries
    with pytest.raises(ValueError, match="got 3 for the 4 questions"):
        evalai(given[:3], test)
    if data.dataset == "textvqa":
        with pytest.raises(
            ValueError, match="questions of textvqa, the Robust Reading Competition asks those of stvqa"
        ):
            write_rrc(tmp_path / "rrc.json", given, test)
        return
    write_rrc(tmp_path / "rrc.json", given, test)
    wanted = [(7, "stop bus"), (8, "stop"), (9, "w3 w0"), (10, "<pad>")]
    expected = [{"question_id": question, "answer": answer} for question, answer in wanted]
    assert json.loads((tmp_path / "rrc.json").read_text()) == expected
    with pytest.raises(ValueError, match="got 3 for the 4 questions"):
        write_rrc(tmp_path / "rrc.json", given[:3], test)


def test_copied_words_are_marked():
    assert marked(Answer("the stop", [("the", "vocabulary"), ("stop", "ocr")])) == "the [stop]"
    assert marked(Answer("mcdonald's", [("mcdonald", "ocr"), ("'s", "vocabulary")])) == "[mcdonald]'s"
    assert marked(Answer("", [])) == "" and marked("plain") == "plain"


def test_pictures_show_answers_with_and_without_images(data):
    (data.root / "images").mkdir()
    Image.new("L", (100, 50)).save(data.root / "images/a.jpg")
    given = {"unpruned": predict(Says(), data, 4), "pruned": ["$5", "$5 or $6", "_x^2$", "no"]}
    figure = show_questions(data, [0, 1, 2, 3], given, columns=2)
    figure.canvas.draw()  # dollars are no formulas
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles[0] == "What is on the bus?\npeople: stop\nunpruned: [stop] bus\npruned: $5"
    assert "people: w0 w3\nunpruned: [w3] [w0]\npruned: _x^2$" in titles[2]
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 0, 0]
    assert [len(axis.patches) for axis in figure.axes] == [2, 2, 5, 1]  # OCR boxes, and the canvas of a missing image
    assert [text.get_text() for text in figure.axes[2].texts] == ["w0", "w1", "w2", "w3"]  # tokens instead of pixels
    with pytest.raises(ValueError, match=r"answers\['pruned'\]: 4 answers for 1 indices"):
        show_questions(data, [0], {"pruned": given["pruned"]})
