"""The rendered scenes in SaL's layout, and the tokenizer that goes with them."""

import json
import pickle
import random
import sys

import lmdb
import numpy as np
import pytest
from transformers import AutoTokenizer, T5Tokenizer

from lfpr.files import SHIPPED
from lfpr.mini.datasets import FORMS, write_tap
from lfpr.mini.features import FEATURE_SIZE
from lfpr.mini.questions import human_answers, misread
from lfpr.mini.sal import pieces_of, tokenizer, write_sal
from lfpr.mini.scenes import CLASSES, COLOURS, LEXICON
from lfpr.sal import SaL, SaLConfig, SaLDataset, batches, evaluate
from lfpr.sal.data import LAYOUTS, T5
from lfpr.tap.layout import LAYOUTS as TAP_LAYOUTS
from lfpr.tap.pickles import load_npy

SMALL = {"train_images": 8, "val_images": 3, "images": 2}
PAD, EOS, UNKNOWN = 0, 1, 2


@pytest.fixture(scope="module", params=list(FORMS))
def made(request, tmp_path_factory):
    """A small data set's name and folder."""
    root = tmp_path_factory.mktemp("sal") / request.param
    write_sal(root, request.param, **SMALL)
    return request.param, root


@pytest.fixture(scope="module")
def tokens():
    return tokenizer()


def files_of(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def questions(dataset, root, split):
    return load_npy(root / "data" / LAYOUTS[dataset]["imdb"][0].format(split), "imdb")[1:]


def test_images_and_questions_are_those_of_tap(made, tmp_path):
    dataset, root = made
    write_tap(tmp_path / "tap", dataset, **SMALL)
    for split in ("train", "val"):
        rows = load_npy(tmp_path / "tap" / TAP_LAYOUTS[dataset, split].imdb, "imdb")[1:]
        own = questions(dataset, root, split)
        assert len(own) == len(rows) > 8
        for row, known in zip(own, rows, strict=True):
            assert set(known) < set(row)
            for key in ("question", "question_id", "answers", "ocr_tokens", "feature_path"):
                assert row[key] == known[key]
    pictures = {path.name for path in (root / "images/train").iterdir()}
    assert pictures == {path.name for path in (tmp_path / "tap/images/train").iterdir()} and len(pictures) == 4


def test_features_are_found_by_their_keys(made):
    dataset, root = made
    objects, ocr = (root / "data" / LAYOUTS[dataset][kind][0] for kind in ("objects", "ocr"))
    rows = [*questions(dataset, root, "train"), *questions(dataset, root, "val")]
    keys = list(dict.fromkeys(f"train/{row['feature_path']}".encode() for row in rows))
    for place, names in ((objects, True), (ocr, False)):
        with lmdb.open(str(place), readonly=True, lock=False) as environment, environment.begin() as transaction:
            assert pickle.loads(transaction.get(b"keys")) == keys
            found = {key: pickle.loads(transaction.get(key)) for key in keys}
        for row in rows:
            about = found[f"train/{row['feature_path']}".encode()]
            words = row["image_classes"] if names else row["ocr_tokens"]
            assert about["features"].shape == (len(words), FEATURE_SIZE) and about["features"].dtype == np.float32
            if names:
                assert about["bbox"].shape == (len(words), 4) and about["bbox"].max() <= row["image_width"]


def test_words_are_in_pieces_that_end_and_know_their_word(made, tokens):
    dataset, root = made
    for row in questions(dataset, root, "val"):
        pieces, index = row["ocr_t5_token"], row["ocr_tokens_index"]
        assert len(pieces) == len(index) and pieces.count(EOS) == len(row["ocr_tokens"]) == index[-1] + 1
        for number, word in enumerate(row["ocr_tokens"]):
            own = [piece for piece, i in zip(pieces, index, strict=True) if i == number]
            assert own[-1] == EOS and tokens.decode(own, skip_special_tokens=True) == word.lower()
        boxes = row["wordlevel_ocr_normalized_boxes"]
        assert boxes.shape == (len(row["ocr_tokens"]), 4) and 0 <= boxes.min() < boxes.max() <= 1


def test_sal_s_reader_lays_out_what_was_written(made, tokens):
    dataset, root = made
    config = shipped(dataset).config
    data = SaLDataset(root, dataset, "train", config=config, targets=True)
    (batch,) = batches(data, batch_size=len(data))
    rows = questions(dataset, root, "train")
    assert len(data) == len(rows) and batch["ocr_features"].shape[2] == FEATURE_SIZE
    for part, words in (("ocr", "ocr_tokens"), ("obj", "image_classes")):
        for ids, row in zip(batch[f"{part}_ids"], rows, strict=True):
            text = tokens.decode(ids[ids > 0]).split("<extra_id_0>")
            assert [word.strip() for word in text] == [
                {"ocr": "context:", "obj": "objects:"}[part],
                *map(str.lower, row[words]),
                "",
            ]
    assert (batch["loss_mask"].sum(1) >= 2).all()  # a piece and the end
    for ids, row in zip(batch["previous"], rows, strict=True):
        text = tokens.decode(ids, skip_special_tokens=True)
        assert text and any(answer.startswith(text) for answer in row["answers"])  # long ones are cut


def shipped(dataset):
    """The shipped model of a data set."""
    about = json.loads((SHIPPED / f"sal-{dataset}.json").read_text())
    return SaL(SaLConfig.from_dict(about["config"])).load_checkpoint(SHIPPED / f"sal-{dataset}.safetensors")


@pytest.mark.parametrize("dataset", FORMS)
def test_shipped_models_are_small_and_score_what_they_say(dataset, tmp_path):
    about = json.loads((SHIPPED / f"sal-{dataset}.json").read_text())
    assert {"config", "recipe", "minutes", "questions"} <= set(about) and about["score"] >= 0.8
    assert (SHIPPED / f"sal-{dataset}.safetensors").stat().st_size <= 4e6
    write_sal(tmp_path / dataset, dataset, train_images=1, val_images=60, images=0)
    model = shipped(dataset)
    found = evaluate(model, SaLDataset(tmp_path / dataset, dataset, "val", config=model.config), 60)
    assert found["questions"] > 200 and abs(found["score"] - about["score"]) < 0.06


def test_the_tokenizer_has_t5_s_special_pieces_and_is_read_from_its_folder(made, tokens):
    assert [tokens.convert_tokens_to_ids(name) for name in ("<pad>", "</s>", "<unk>")] == [PAD, EOS, UNKNOWN]
    assert tokens.convert_tokens_to_ids("<extra_id_0>") == len(tokens) - 1 < 1000
    for kind in (T5Tokenizer, AutoTokenizer):
        read = kind.from_pretrained(made[1] / T5, local_files_only=True)
        assert read.get_vocab() == tokens.get_vocab()
        for text in ("question: what does the red shirt say?", "fresg $3.2x"):
            assert read(text)["input_ids"] == tokens(text)["input_ids"]


def test_whatever_is_written_can_be_read_from_its_pieces(tokens):
    rng = random.Random(0)
    lexicon = [word for words in LEXICON.values() for word in words]
    for word in (*lexicon, *COLOURS, *CLASSES, "yes", "no"):
        (piece, end), index = pieces_of([word.upper()], tokens)
        assert end == EOS != piece and index == [0, 0]
        wrong = misread(word, rng, 1.0)[0]
        for text in (word, wrong, *human_answers(word, rng), *human_answers(f"{word} {wrong}", rng)):
            pieces = tokens(text)["input_ids"]
            assert UNKNOWN not in pieces and tokens.decode(pieces, skip_special_tokens=True) == text
    for form in FORMS.values():
        for text in (text for ways in form.templates.values() for text in ways):
            text = text.format(ref="red shirt", word="milk", colour="red")
            pieces = tokens(f"question: {text}")["input_ids"]
            assert UNKNOWN not in pieces and len(pieces) == len(text.split()) + 4  # question, two marks, the end


def test_the_same_parameters_give_the_same_bytes(made, tmp_path):
    dataset, root = made
    write_sal(tmp_path / "again", dataset, **SMALL)
    assert files_of(tmp_path / "again") == files_of(root)


def test_a_folder_of_tap_s_is_made_anew_in_sal_s_layout(tmp_path):
    tiny = {"train_images": 1, "val_images": 1, "images": 0}
    stamp = write_tap(tmp_path / "data", **tiny)
    assert write_sal(tmp_path / "data", **tiny) == stamp | {"layout": "SaL"}
    assert not (tmp_path / "data/imdb").exists() and (tmp_path / "data" / T5).is_dir()


@pytest.mark.parametrize(
    "name, value",
    [
        ("dataset", "vqa"),
        ("train_images", 0),
        ("val_images", 1.0),
        ("images", -1),
        ("questions_per_image", 6),
        ("ocr_error", 1.5),
        ("seed", -1),
    ],
)
def test_bad_parameters_are_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        write_sal(tmp_path / "data", **{name: value})
    assert not (tmp_path / "data").exists()


def test_without_its_package_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ImportError, match=r"pip install 'lfpr\[sal\]'"):
        write_sal(tmp_path / "data")
    assert not any(tmp_path.iterdir())
