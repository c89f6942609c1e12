"""SaL's published files: the reference's samples written as they are published, and read back."""

import os
import pickle
import sys

import lmdb
import numpy as np
import pytest
import small_sal as small
import torch
from reference import sal_rules as rules

from lfpr.files import DataError
from lfpr.sal.data import LAYOUTS, SaLDataset, _verified, batches, check
from lfpr.tap.data import TAPDataset

Q = (22, 1)  # "question:", and the end


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return small.write_files(tmp_path_factory.mktemp("sal"))


def data(root, dataset="textvqa", split="train", **options) -> SaLDataset:
    return SaLDataset(root, dataset, split, **{"config": small.CONFIG} | options)


def test_files_give_the_published_inputs(root):
    batch, published = data(root)[[0, 1, 2, 3]], small.batch()
    for name in set(published) - {"question_ids"}:
        assert torch.equal(batch[name], published[name]), name
    for ids, sample in zip(batch["question_ids"].tolist(), rules.sal_samples(7), strict=True):
        whole = [Q[0], *sample["question"]]
        cut = whole if len(whole) <= 10 else [*whole[:9], Q[1]]  # its end stays
        assert ids == cut + [0] * (10 - len(cut))
    assert batch["index"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("split", ["train", "test"])
def test_stvqa_has_folders_of_its_own(split, tmp_path):
    root = small.write_files(tmp_path, "stvqa", split)
    (root / "data").rename(root / "sal")  # the files are in the folder of data itself, or in one beside it
    assert torch.equal(data(root, "stvqa", split)[[2]]["ocr_features"], small.batch()["ocr_features"][2:3])
    place = root / "sal" / LAYOUTS["stvqa"]["ocr"][0]
    place.parents[3].joinpath("datasets/stvqa/ocr_en").mkdir(parents=True)
    place.parent.rename(root / "sal/datasets/stvqa/ocr_en/features")
    found = data(root / "sal", "stvqa", split, tokenizer=root / "t5-base")
    assert found.image(found.records[0]).ocr_features.shape == (32, 16)


def test_targets_are_of_a_drawn_answer(root):
    questions, answers = data(root, targets=True, seed=3), rules.sal_answers(7)
    drawn = set()
    for epoch in range(12):
        questions.set_epoch(epoch)
        batch = questions[[0, 3]]
        for row, sample in enumerate((0, 3)):
            steps = int(batch["loss_mask"][row].sum())
            pieces = batch["previous"][row, 1:steps].tolist()
            written = [answer[: small.CONFIG.answer_steps] for answer in answers[sample]]
            last = batch["targets"][row, steps - 1].argmax().item()
            end = tuple(pieces) if last == 1 else (*pieces, last)
            assert end in written and (last == 1 or steps == 8)
            if sample == 0:
                drawn.add(end)
    assert len(drawn) > 1
    again = data(root, targets=True, seed=3)
    again.set_epoch(11)
    assert all(torch.equal(value, batch[name]) for name, value in again[[0, 3]].items())


def test_labels_take_the_place_of_answers(root):
    labels = {"101": "W30, w31?", "103": [40, 41, 1, 0, 0]}
    questions = data(root, targets=True, labels=labels)
    batch = questions[[0, 1]]
    assert [record["question_id"] for record in questions.records] == [101, 103]
    assert batch["previous"][:, :3].tolist() == [[0, 30, 31], [0, 40, 41]]
    assert batch["targets"][0].nonzero().tolist() == [[0, 30], [1, 31], [2, 1]]
    assert batch["targets"][1].nonzero().tolist() == [[0, 40], [1, 41], [2, 1]] and batch["targets"].max() == 1
    with pytest.raises(DataError, match=r"question 103: labels: pieces must be in \[0, 120\), got \[120\]"):
        data(root, targets=True, labels={"103": [120]})[0]
    with pytest.raises(ValueError, match="labels: none of their 1 question ids"):
        data(root, labels={"7": "stop"})


def test_batches_are_the_same_however_they_are_read(root):
    questions = data(root, targets=True)
    alone = [questions[[2, 3]], questions[[0, 1]]]
    for workers in (0, 2):
        found = list(batches(data(root, targets=True), 2, workers=workers))
        assert [batch["index"].tolist() for batch in found] == [[0, 1], [2, 3]]
        for batch, own in zip(found, alone[::-1], strict=True):
            assert all(torch.equal(batch[name], value) for name, value in own.items())
    order = [batch["index"].tolist() for batch in batches(questions, 3, shuffle_seed=5)]
    again = [batch["index"].tolist() for batch in batches(data(root), 3, shuffle_seed=5)]
    assert order == again and sorted([*order[0], *order[1]]) == [0, 1, 2, 3]
    assert torch.equal(questions[-1]["ocr_ids"], questions[[3]]["ocr_ids"][0])


def test_images_are_read_once(root):
    kept = {}
    first = data(root, images=kept).preload()
    assert len(kept) == 4 and data(root, images=kept).image(first.records[2]) is first.image(first.records[2])


def test_selections_and_bad_arguments(root, tmp_path):
    assert (
        len(data(root, limit=3)) == 3
        and data(root, indices=[3, 1])[0]["question_ids"][1] == small.batch()["question_ids"][3, 0]
    )
    for options, told in (
        ({"limit": 0}, "indices or limit: "),
        ({"indices": [4]}, r"has 4 questions, asked for \[4\]"),
        ({"config": {}}, "config: expected SaLConfig"),
        ({"seed": -1}, "seed = -1"),
        ({"targets": 1}, "targets = 1"),
        ({"images": []}, "images: expected dict"),
        ({"tokenizer": 3}, "tokenizer: expected a path"),
        ({"config": small.config(separator=118)}, r"<extra_id_0> is piece 119 of 120; .* separator 118"),
        ({"config": small.config(vocab_size=110, separator=109)}, "piece 119 of 120; .* vocab_size of 110"),
        ({"config": small.config(feature_size=15)}, r"object features\): expected numbers of shape \[n, 15\]"),
    ):
        with pytest.raises(ValueError, match=told):
            data(root, **options)[0]
    with pytest.raises(ValueError, match="dataset, split = 'textvqa', 'score': must be one of"):
        data(root, split="score")
    with pytest.raises(FileNotFoundError, match=r"val_amazon_ocr.npy is missing \(val questions\)"):
        data(root, split="val")
    with pytest.raises(FileNotFoundError, match=r"t5-base/tokenizer.json is missing \(T5's tokenizer\)"):
        (tmp_path / "data").symlink_to(root / "data")
        data(tmp_path)
    with pytest.raises(ValueError, match="dataset: expected SaLDataset, found TAPDataset"):
        batches(TAPDataset.__new__(TAPDataset), 2)


def remade(tmp_path, change) -> SaLDataset:
    """The data set of an imdb whose second record `change` was called on."""
    made = small.rows()
    change(made[1])
    small.write_imdb(tmp_path / "data" / LAYOUTS["textvqa"]["imdb"][0].format("train"), made)
    return data(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("ocr_t5_token", None, "'ocr_t5_token' is None, expected whole numbers"),
        ("ocr_t5_token", [[1], [2, 3]], "expected whole numbers"),
        ("ocr_t5_token", [1.5], "expected whole numbers"),
        ("ocr_tokens_index", [-1], "expected whole numbers"),
        ("wordlevel_ocr_normalized_boxes", "none", "expected boxes"),
        ("wordlevel_ocr_normalized_boxes", np.zeros((2, 3)), r"has shape \[2, 3\]"),
        ("wordlevel_ocr_normalized_boxes", np.full((2, 4), np.nan), "expected finite numbers"),
        ("image_width", 0, "image size 0"),
    ],
)
def test_broken_records_are_named(name, value, told, tmp_path):
    with pytest.raises(DataError, match=rf"train_amazon_ocr.npy, record 2: .*{told}"):
        remade(tmp_path, lambda row: row.update({name: value}))


@pytest.mark.parametrize(
    "change",
    [
        {"ocr_t5_token": [5, 1], "ocr_tokens_index": [0]},  # a piece without a word
        {"ocr_t5_token": [5, 1], "ocr_tokens_index": [1, 1]},  # a word without a box
        {"ocr_t5_token": [120, 1], "ocr_tokens_index": [0, 0]},  # a piece that there is not
    ],
)
def test_words_that_do_not_fit_are_named(change, root, tmp_path):
    (tmp_path / "t5-base").symlink_to(root / "t5-base")
    (tmp_path / "data/textvqa").mkdir(parents=True)
    for kind in ("objects", "ocr"):
        place = tmp_path / "data" / LAYOUTS["textvqa"][kind][0]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(root / "data" / LAYOUTS["textvqa"][kind][0])
    with pytest.raises(DataError, match="train_amazon_ocr.npy, question 101: ocr: 2 pieces up to"):
        remade(tmp_path, lambda row: row.update(change))[1]


class Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (Runs(), "is refused: its pickle contains the name .*mkdir"),
        (b"\x80", "is not a complete pickle"),
        ([1], r"expected a dict with 'features', found \[1\]"),
        ({"features": np.zeros((2, 15))}, r"expected numbers of shape \[n, 16\], found float64 \[2, 15\]"),
        ({"features": np.full((2, 16), np.inf)}, "32 numbers are NaN or infinite"),
        ({"features": np.zeros((2, 16))}, "'obj_t5_token' is None"),
        ({"features": np.zeros((0,)), "obj_t5_token": [], "obj_token_lengths": []}, "'bbox' is None"),
    ],
)
def test_broken_features_are_named(value, told, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    questions = data(root)
    place = tmp_path / "objects.lmdb"
    small.write_lmdb(place, {"train/image0": value})
    monkeypatch.setattr(questions, "_locate", lambda kind: place)
    with pytest.raises(DataError, match=f"objects.lmdb, train/image0.npy.*{told}"):
        questions[0]
    with pytest.raises(DataError, match=r"has none of train/image1.npy, train/image1; see"):
        questions[1]
    assert not (tmp_path / "ran").exists()


def test_an_image_is_found_by_its_number(root, tmp_path, monkeypatch):
    questions = data(root)
    record = questions.records[0] | {"image_path": "train2014/COCO_train2014_000000000009.jpg"}
    record["feature_path"] = "COCO_train2014_000000000009.npy"
    assert questions._key(record) == ("COCO_train2014_000000000009.npy", "COCO_train2014_000000000009", "9")


def test_workers_need_not_verify_environments_again(root, monkeypatch):
    _verified.cache_clear()
    questions = data(root)
    loader = batches(questions, 2, workers=1)
    assert _verified.cache_info().misses == 2 and not questions._images
    monkeypatch.setattr("lmdb.verify.verify", lambda path: ["it was verified again"])
    assert sum(len(batch["index"]) for batch in loader) == 4


def test_a_split_is_checked_before_it_is_used(root, tmp_path):
    found = check(root, "textvqa", "train", config=small.CONFIG)
    assert (found["questions"], found["answered"], found["checked"], found["bad"]) == (4, 4, 4, 0)
    assert (found["images"], found["without_ocr"], found["vocabulary"]) == (4, 1, rules.VOCABULARY)
    assert found["first_bad"] is None and 0 < found["writable"] <= 4
    few = check(root, "textvqa", "train", config=small.config(feature_size=9))
    assert few["bad"] == 4 and "question 100" in few["first_bad"]
    assert check(tmp_path, "textvqa", "val")["bad"] == 1
    with pytest.raises(ValueError, match="limit = 0"):
        check(root, limit=0)


def test_samples_are_words_again(root):
    questions = data(root)
    for i, sample in enumerate(rules.sal_samples(7)):
        shown, size = questions.sample(i), [sample["image_width"], sample["image_height"]] * 2
        objects = sample["obj_boxes"] / np.array(size)
        assert len(shown["ocr_tokens"]) == len(shown["ocr_boxes"]) == len(set(sample["ocr_tokens_index"]))
        assert np.allclose(shown["obj_boxes"], objects[sorted(set(sample["obj_token_lengths"]))])
        assert all(token.replace(" ", "").startswith("w") for token in shown["ocr_tokens"] if token)
        assert shown["image"] is None and len(shown["answers"]) == 10


def test_damaged_environments_are_refused_before_they_are_opened(root, tmp_path, monkeypatch):
    pages = (root / "data" / LAYOUTS["textvqa"]["objects"][0] / "data.mdb").read_bytes()
    for number, (content, told) in enumerate(
        (
            (pages[:8192], "is no whole LMDB file"),
            (b"no pages", "is no whole LMDB file"),
            (pages[:8192] + b"\xff" * (len(pages) - 8192), "is no whole LMDB file"),
            (None, "is no LMDB environment: there is no data.mdb"),
        )
    ):
        place = tmp_path / f"{number}.lmdb"
        place.mkdir()
        if content is not None:
            (place / "data.mdb").write_bytes(content)
        questions = data(root)
        monkeypatch.setattr(questions, "_locate", lambda kind, place=place: place)
        with pytest.raises(DataError, match=f"{number}.lmdb.*{told}"):
            questions[0]


def test_one_file_is_an_environment_too(root, tmp_path, monkeypatch):
    path = tmp_path / "ocr.mdb"
    with lmdb.open(str(path), 1 << 20, subdir=False, lock=False) as environment, environment.begin(write=True) as put:
        about = {"obj_t5_token": [], "obj_token_lengths": [], "bbox": np.zeros(0), "features": []}
        put.put(b"train/image1", pickle.dumps(about, 2))
    questions = data(root)
    monkeypatch.setattr(questions, "_locate", lambda kind: path)
    assert questions[1]["obj_ids"].tolist() == [21, 10, 119, *[0] * 9]


def test_without_its_package_features_say_what_to_install(root, tmp_path, monkeypatch):
    small.write_lmdb(tmp_path / "other.lmdb", {})
    questions = data(root)
    monkeypatch.setattr(questions, "_locate", lambda kind: tmp_path / "other.lmdb")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ImportError, match=r"pip install 'lfpr\[sal\]'"):
        questions[0]
