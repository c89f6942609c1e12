"""TAP's published files: small ones in exactly those layouts, and what happens to bad ones."""

import dataclasses
import io
import json
import os
import pickle
import pickletools
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib import format as npy

from lfpr.files import DataError
from lfpr.tap.data import TAPDataset, batches, check
from lfpr.tap.evaluate import evalai
from lfpr.tap.layout import LABELS, LAYOUTS, SCORE_SET, Files, InputSizes, info_path, read_imdb
from lfpr.tap.pickles import load_dict, load_npy
from lfpr.tap.text import Answer, phoc
from lfpr.tap.vectors import HashedNgrams

SIZES = InputSizes(8, 12, 6, num_objects=3, num_ocr=4, feature_size=5, fasttext_size=16, decoding_steps=4)
EMBED = HashedNgrams(16)
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "is", "on", "the", "bus", "?", "stop", "cat", "background"]
ANSWERS = ["<pad>", "<s>", "</s>", "<unk>", "yes", "no", "stop", "bus"]
V = len(ANSWERS)


def save_objects(path, value, shape=(), replace=(b"", b"")):
    """An object-array file whose body is `value` (pickled bytes, or an object to pickle as NumPy 1.x did)."""
    if not isinstance(value, bytes):
        array = np.empty(shape, object)
        array[...] = value
        value = pickle.dumps(array, protocol=2).replace(*replace)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        npy.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": shape})
        file.write(value)


def save_features(folder, name, features, info):
    path = folder / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, features)
    np.save(info_path(path), info)


def rows(dataset):
    """Four questions on three images: an ordinary one, one with much text, one without any."""
    shared = [
        {"image_id": "a", "image_width": 100, "image_height": 50, "feature_path": "sub/a.npy"},
        {"image_id": "b", "image_width": 10, "image_height": 10, "feature_path": "b.npy"},
        {"image_id": "c", "image_width": 20, "image_height": 20},  # its feature path is its id
    ]
    ten = dataset == "textvqa"
    return [
        shared[0] | {"question_id": 7, "question": "What is on the bus?", "answers": ["stop"] * (10 if ten else 1)},
        shared[0] | {"question_id": 8, "question_str": "is the cat?", "answers": ["no"] * (10 if ten else 2)},
        shared[1] | {"question_id": 9, "question": "bus", "valid_answers": ["w0 w3"] * 10, "ocr_tokens": ["unused"]},
        shared[2] | {"question_id": 10, "question": "cat", "answers": ["unheard"] * 10},
    ]


@pytest.fixture(params=["textvqa", "stvqa"])
def dataset(request):
    return request.param


def write(root, dataset, header=True, answers=True):
    rng = np.random.default_rng(0)
    made = rows(dataset)
    if not answers:
        made = [{k: v for k, v in row.items() if "answers" not in k} for row in made]
    table = [{"version": 1.0, "dataset_name": "m4c"}] * header + made
    for split in ("train", "val"):
        layout = LAYOUTS[dataset, split]
        save_objects(root / layout.imdb, table, (len(table),), (b"numpy._core", b"numpy.core"))
        objects, ocr = root / layout.objects, root / layout.ocr
        boxes = np.array([[0, 0, 50, 25], [10, 5, 20, 10]], np.float64)
        save_features(objects, "sub/a", rng.random((2, 5), np.float32), {"bbox": boxes, "objects": np.array([2, 0])})
        info = {"ocr_tokens": ["STOP,", "Cat's"], "ocr_boxes": boxes, "ocr_conf": [0.9, 0.5]}
        save_features(ocr, "sub/a", rng.random((2, 5)), info)
        many = np.tile([[1, 2, 3, 4]], (5, 1))
        save_features(objects, "b", rng.random((5, 5)), {"bbox": many, "object_tokens": ["cat"] * 5})
        info = {"ocr_tokens": [f"w{i}" for i in range(5)], "ocr_boxes": many}
        save_features(ocr, "b", rng.random((5, 5)), info)
        save_features(objects, "c", rng.random((1, 5)), {"bbox": boxes[:1], "objects": [1], "extra": None})
        save_features(ocr, "c", np.zeros((0,)), {"ocr_tokens": [], "ocr_boxes": np.zeros((0, 4))})
    for path, words in (
        ("bert-base-uncased/vocab.txt", PIECES),
        ("1600-400-20/objects_vocab.txt", ["cat", "bus"]),
        (LAYOUTS[dataset, "train"].answers, ANSWERS),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("\n".join(words) + "\n")
    return root


@pytest.fixture
def root(tmp_path, dataset):
    return write(tmp_path, dataset)


def same(one, two):
    """Whether two batches are equal, words as well as tensors."""
    assert one.keys() == two.keys() and one.vocab.words == two.vocab.words
    return one.ocr_tokens == two.ocr_tokens and all(torch.equal(one[name], two[name]) for name in one)


def load(root, dataset, split="train", **options):
    return TAPDataset(root, dataset, split, **({"sizes": SIZES, "embed": EMBED} | options))


def test_sizes():
    sizes = InputSizes()
    assert (sizes.question_tokens, sizes.ocr_tokens_text, sizes.obj_tokens_text) == (20, 100, 50)  # 170 in all
    assert (sizes.num_ocr, sizes.feature_size) == (100, 2048)
    for bad in ({"num_ocr": 0}, {"question_tokens": 2.5}, {"phoc_size": 603}):
        with pytest.raises(ValueError, match=f"InputSizes.{next(iter(bad))}"):
            InputSizes(**bad)


def test_items_hold_what_the_files_say(root, dataset):
    data = load(root, dataset)
    assert len(data) == 4
    item = data[0]
    layout = LAYOUTS[dataset, "train"]
    features = np.load(root / layout.objects / "sub/a.npy")
    assert torch.equal(item["obj_features"], torch.tensor(np.concatenate([features, np.zeros((1, 5), np.float32)])))
    assert torch.allclose(item["obj_boxes"][:2], torch.tensor([[0, 0, 0.5, 0.5], [0.1, 0.1, 0.2, 0.2]]))
    assert (int(item["num_obj"]), int(item["num_ocr"]), int(item["index"])) == (2, 2, 0)
    question = ["[CLS]", "what", "is", "on", "the", "bus", "?", "[SEP]"]
    ocr = ["[SEP]", "stop", "cat", "[UNK]", "[UNK]", "[SEP]", *["[PAD]"] * 6]  # cat ' s
    objects = ["[SEP]", "bus", "background", "[SEP]", "[PAD]", "[PAD]"]  # class 2 is the second name
    assert item["text"].tolist() == [PIECES.index(piece) for piece in question + ocr + objects]
    assert torch.equal(item["ocr_phoc"][0], torch.tensor(phoc("stop"))) and not item["ocr_phoc"][2:].any()
    assert torch.equal(item["ocr_fasttext"][:2], torch.tensor(EMBED(["stop", "cat 's"])))
    assert not item["ocr_fasttext"][2:].any() and not item["ocr_boxes"][2:].any()
    batch = data[[0]]
    assert batch.ocr_tokens == [["stop", "cat 's"]] and batch.vocab is data.vocab
    assert {name: value.dtype for name, value in item.items() if value.dtype != torch.float32} == {
        name: torch.int64 for name in ("text", "num_obj", "num_ocr", "index")
    } | {"ocr_phoc": torch.uint8}


def test_too_much_and_no_text(root, dataset):
    data = load(root, dataset)
    many, none = data[2], data[3]
    assert (int(many["num_obj"]), int(many["num_ocr"])) == (3, 4)  # cut to the sizes
    assert data.sample(2)["ocr_tokens"] == ["w0", "w1", "w2", "w3"]  # of _info, not of the imdb
    assert torch.allclose(many["ocr_boxes"][3], torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert int(none["num_ocr"]) == 0
    assert not any(none[name].any() for name in ("ocr_features", "ocr_boxes", "ocr_fasttext", "ocr_phoc"))
    assert none["text"][8:12].tolist() == [PIECES.index("[SEP]")] * 2 + [0, 0]


def test_header_is_optional(tmp_path, dataset):
    with_header = read_imdb(write(tmp_path / "x", dataset) / LAYOUTS[dataset, "train"].imdb)
    without = read_imdb(write(tmp_path / "y", dataset, header=False) / LAYOUTS[dataset, "train"].imdb)
    assert with_header == without and len(without) == 4
    assert without[1]["question"] == "is the cat?" and without[2]["answers"] == ["w0 w3"] * 10
    assert without[3]["feature_path"] == "c.npy"


def test_numpy_numbers_become_plain(tmp_path, dataset):
    row = rows(dataset)[0] | {"question_id": np.int64(7), "image_id": np.int32(5), "answers": np.array(["stop"] * 10)}
    save_objects(tmp_path / "imdb.npy", [row], (1,))
    record = read_imdb(tmp_path / "imdb.npy")[0]
    assert json.loads(json.dumps(record)) == record and record["question_id"] == 7
    assert type(record["image_id"]) is int and record["answers"] == ["stop"] * 10


def test_targets(root, dataset):
    data = load(root, dataset, targets=True)
    batch = data[[0, 2, 3]]
    assert batch["targets"].shape == (3, 4, V + 4)
    assert batch["targets"][0, 0].nonzero().flatten().tolist() == [ANSWERS.index("stop"), V]  # vocabulary or copy
    assert batch["previous"][1].tolist() == [1, V, V + 3, 0]
    assert batch["loss_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert batch["targets"][1].nonzero().tolist() == [[0, V], [1, V + 3], [2, 2]]


def test_sampled_spellings_change_with_the_epoch_only(root, dataset):
    data = load(root, dataset, targets=True, seed=3)
    draws = []
    for epoch in range(12):
        data.set_epoch(epoch)
        draws.append(int(data[0]["previous"][1]))
        assert draws[-1] == int(data[[3, 0]]["previous"][1, 1])  # whatever else is in the batch
    assert set(draws) == {ANSWERS.index("stop"), V}


def test_batches_are_the_items_and_repeat(root, dataset):
    data = load(root, dataset, targets=True)
    loader = batches(data, 3)
    assert len(loader) == 2 and len(batches(data, 3, drop_last=True)) == 1
    state = torch.get_rng_state()
    first, second = list(loader), list(loader)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    items = [data[i] for i in range(4)]
    for name in items[0]:
        assert torch.equal(torch.cat([batch[name] for batch in first]), torch.stack([item[name] for item in items]))
    tokens = [["stop", "cat 's"]] * 2 + [["w0", "w1", "w2", "w3"], []]
    assert [words for batch in first for words in batch.ocr_tokens] == tokens
    assert all(torch.equal(data[-1][name], items[3][name]) for name in items[3])


def test_shuffling_depends_on_seed_and_epoch(root, dataset):
    data = load(root, dataset, indices=[0, 1, 2, 3] * 5)

    def order(seed):
        return torch.cat([batch["index"] for batch in batches(data, 6, shuffle_seed=seed)]).tolist()

    first = order(0)
    assert order(0) == first != order(1) and sorted(first) == list(range(20))
    data.set_epoch(1)
    assert order(0) != first


def test_preloaded_and_worker_batches_are_the_same(root, dataset):
    lazy, packed = load(root, dataset, targets=True), load(root, dataset, targets=True).preload()
    for file in (root / LAYOUTS[dataset, "train"].objects).rglob("*.npy"):
        os.replace(file, file.with_suffix(".away"))  # preloaded: not read again
    kept = list(batches(packed, 2))
    for file in (root / LAYOUTS[dataset, "train"].objects).rglob("*.away"):
        os.replace(file, file.with_suffix(".npy"))
    for one, two in zip(kept, batches(lazy, 2, workers=1), strict=True):
        assert same(one, two)


def test_word_tables_are_bounded(root, dataset):
    data = load(root, dataset)
    before = data[[0, 2]]
    data.words.capacity = 1
    after = [data[[0, 2]], data[[0, 2]]]
    assert all(same(before, batch) for batch in after)
    assert len(data.words.rows) == 6


def test_sample_reads_like_the_question(root, dataset):
    (root / "images").mkdir()
    (root / "images/a.jpg").touch()
    (root / "photos/train_images").mkdir(parents=True)
    (root / "photos/train_images/b.jpg").touch()
    shown = load(root, dataset).sample(0)
    assert shown["question"] == "What is on the bus?" and shown["question_id"] == 7
    assert shown["ocr_tokens"] == ["stop", "cat 's"] and shown["object_names"] == ["bus", "background"]
    assert shown["image"] == root / "images/a.jpg" and shown["image_size"] == (100, 50)
    assert load(root, dataset).sample(2)["image"] is None
    elsewhere = load(root, dataset, image_folder=root / "photos")
    assert elsewhere.sample(2)["image"] == root / "photos/train_images/b.jpg" and elsewhere.sample(0)["image"] is None


def test_labels_replace_the_answers(root, dataset, tmp_path):
    labels = {9: [V + 1, ANSWERS.index("bus"), 2, 0], "7": "no stop"}
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(labels))
    for given in (labels, file):
        data = load(root, dataset, targets=True, labels=given)
        assert [record["question_id"] for record in data.records] == [7, 9]
        batch = data[[0, 1]]
        assert batch["previous"][1].tolist() == [1, V + 1, 7, 0]
        assert batch["targets"][1].nonzero().tolist() == [[0, V + 1], [1, 7], [2, 2]]
        assert batch["targets"][0, 0].nonzero().tolist() == [[5]]
        assert data.sample(1)["label"] == labels[9]
    bad = load(root, dataset, targets=True, labels={9: [V + 4]})
    with pytest.raises(ValueError, match="4 OCR tokens"):
        bad[0]
    with pytest.raises(ValueError, match="none of their 1 question ids"):
        load(root, dataset, labels={99: [4]})
    file.write_text("[1, 2]")
    with pytest.raises(DataError, match=r"labels\.json.*found a list"):
        load(root, dataset, labels=file)


def test_released_labels_are_an_imdb(root, dataset):
    path = (root / LAYOUTS[dataset, "train"].imdb).with_name("TAP12_predicted_labels") / "train_pred_60pct.npy"
    assert path.as_posix().endswith(f"m4c_{dataset}/TAP12_predicted_labels/train_pred_60pct.npy")
    predicted = [rows(dataset)[0] | {"answers": ["bus"] * 10}]
    save_objects(path, predicted, (1,))
    data = load(root, dataset, targets=True, labels=path)
    assert len(data) == 1 and data[0]["previous"].tolist() == [1, ANSWERS.index("bus"), 0, 0]
    assert Files(root, dataset, "train").released(LABELS.format("TAP12_predicted_labels", 60)).path == path


def test_released_files_are_found_where_either_document_has_them(tmp_path):
    """LFPR's configurations and its README name different folders for ST-VQA."""
    named, other = (
        tmp_path / folder / SCORE_SET for folder in ("original_dl/ST-VQA/m4c_stvqa", "original_dl/m4c_stvqa")
    )
    nowhere = Files(tmp_path, "stvqa", "train").released(SCORE_SET)
    assert nowhere.path is None and nowhere.places[0] == named == tmp_path / LAYOUTS["stvqa", "score"].imdb
    for path in (other, named):
        path.parent.mkdir(parents=True)
        path.touch()
        assert Files(tmp_path, "stvqa", "train").released(SCORE_SET).path == path
    places = Files(tmp_path, "textvqa", "train").released(SCORE_SET).places
    assert places[0] == tmp_path / LAYOUTS["textvqa", "score"].imdb


def test_an_imdb_from_elsewhere_is_read_in_its_order(root, dataset, tmp_path):
    path = tmp_path / "elsewhere.npy"
    save_objects(path, [rows(dataset)[i] for i in (2, 0)], (2,))
    data = load(root, dataset, split="score", imdb=path, targets=True)
    assert [record["question_id"] for record in data.records] == [9, 7] and data.path == path
    assert data[1]["previous"].tolist() == load(root, dataset, targets=True)[0]["previous"].tolist()


def test_answers_in_words_are_spelled_as_published(root, dataset):
    """LFPR makes targets of a model's answer as of ten people's: each word from the vocabulary and from every equal
    token, the first step by all of them, the rest along one sequence; what was decoded makes one sequence alone."""
    stop, bus, eos = (ANSWERS.index(word) for word in ("stop", "bus", "</s>"))
    words = load(root, dataset, targets=True, labels={7: "stop bus"})[0]
    decoded = load(root, dataset, targets=True, labels={7: [V, bus, eos, 0]})[0]
    assert words["targets"].nonzero().tolist() == [[0, stop], [0, V], [1, bus], [2, eos]]  # the token "STOP," is V
    assert decoded["targets"].nonzero().tolist() == [[0, V], [1, bus], [2, eos]]
    # NumPy's RandomState(0) chooses among the twenty sequences of ten equal answers, two each, the even ones in the
    # vocabulary
    first = (stop, V)[np.random.RandomState(0).choice(20) % 2]
    assert words["previous"].tolist() == [1, first, bus, 0]
    assert words["loss_mask"].tolist() == decoded["loss_mask"].tolist() == [1, 1, 1, 0]
    ten = [rows(dataset)[0] | {"answers": ["Stop, bus"] * 10}]
    save_objects(root / "labels.npy", ten, (1,))
    human = load(root, dataset, targets=True, labels=root / "labels.npy")[0]
    assert all(torch.equal(words[name], human[name]) for name in ("targets", "previous", "loss_mask"))
    nothing = load(root, dataset, targets=True, labels={7: ""})[0]  # an empty answer is no target there, but is here
    assert not nothing["loss_mask"].any() and load(root, dataset, targets=True, labels={7: [eos]})[0]["loss_mask"].any()


def test_selection(root, dataset):
    assert [r["question_id"] for r in load(root, dataset, limit=2).records] == [7, 8]
    assert [r["question_id"] for r in load(root, dataset, indices=[3, 0]).records] == [10, 7]
    assert len(load(root, dataset, limit=5)) == 4  # at most so many
    for options in (
        {"limit": 0},
        {"limit": -1},
        {"indices": []},
        {"indices": [4]},
        {"indices": [-1]},
        {"limit": 1, "indices": [0]},
    ):
        with pytest.raises(ValueError, match="indices"):
            load(root, dataset, **options)
    with pytest.raises(ValueError, match="must be one of textvqa train"):
        load(root, dataset, split="dev")
    with pytest.raises(ValueError, match="fasttext_size"):
        load(root, dataset, embed=HashedNgrams(17))
    with pytest.raises(ValueError, match="batch_size"):
        batches(load(root, dataset), 0)


def test_fasttext_is_the_default(root, dataset):
    data = load(root, dataset, embed=None)
    with pytest.raises(FileNotFoundError, match=r"wiki\.en\.bin is missing.*data/README\.md"):
        data[0]


def test_real_annotations_as_an_imdb(tmp_path):
    """What people really asked and answered (TextVQA 0.5.1), through the file format and into a submission."""
    for split in ("train", "val"):
        samples = Path(__file__).parents[1] / f"real_samples/TextVQA_0.5.1_{split}_100.json"
        made = json.loads(samples.read_text())["data"]
        save_objects(tmp_path / f"{split}.npy", [{"version": 1.0}, *made], (101,))
        records = read_imdb(tmp_path / f"{split}.npy")
        assert len(records) == 100 and all(len(record["answers"]) == 10 for record in records)
        for record, row in zip(records, made, strict=True):
            same = ("question", "question_id", "image_id", "image_width", "image_height", "answers")
            assert {name: record[name] for name in same} == {name: row[name] for name in same}
            assert record["feature_path"] == f"{row['image_id']}.npy"


def test_test_split_has_no_answers(tmp_path, dataset):
    write(tmp_path, dataset, answers=False)
    assert load(tmp_path, dataset).sample(0)["answers"] == []
    with pytest.raises(DataError, match="4 questions have none, first 7"):
        load(tmp_path, dataset, targets=True)


def test_check(root, dataset):
    report = check(root, dataset, "train", sizes=SIZES, embed=EMBED)
    assert report == {
        "questions": 4,
        "answered": 4,
        "checked": 4,
        "images": 3,
        "writable": 3,
        "without_ocr": 1,
        "objects": (1, 2.0, 3),
        "ocr_tokens": (0, 2.0, 4),
        "feature_size": 5,
        "vocabulary": (V, len(PIECES)),
        "word_vectors": 16,
        "bad": 0,
        "first_bad": None,
    }
    without = check(root, dataset, "train", sizes=SIZES)
    assert (without["word_vectors"], without["bad"]) == (None, 1) and "wiki.en.bin is missing" in without["first_bad"]
    layout = LAYOUTS[dataset, "train"]
    np.save(root / layout.ocr / "b.npy", np.zeros((5, 6), np.float32))
    (root / layout.objects / "c.npy").unlink()
    report = check(root, dataset, "train", sizes=SIZES, embed=EMBED)
    assert (report["bad"], report["images"]) == (2, 1)
    assert all(part in report["first_bad"] for part in ("question 9", "b.npy", "[n, 5]", "[5, 6]", "data/README.md"))
    assert check(root, dataset, "train", sizes=SIZES, embed=EMBED, limit=2)["bad"] == 0
    made = [{"version": 1.0}, rows(dataset)[0] | {"answers": ["stop"] * 9}]
    save_objects(root / layout.imdb, made, (2,))
    assert check(root, dataset, "train", sizes=SIZES, embed=EMBED)["bad"] == int(
        dataset == "textvqa"
    )  # its accuracy needs ten
    (root / layout.imdb).unlink()
    assert layout.imdb in check(root, dataset, "train", sizes=SIZES, embed=EMBED)["first_bad"]


BOX = np.zeros((2, 4))


@pytest.mark.parametrize(
    ("kind", "name", "value", "says"),
    [
        ("objects", "", np.zeros((2, 4)), r"expected numbers of shape \[n, 5\], found float64 \[2, 4\]"),
        ("objects", "", np.array([["x"] * 5]), "expected numbers"),
        ("ocr", "", np.full((2, 5), np.nan), "10 numbers are NaN or infinite"),
        ("objects", "_info", {"objects": [1, 2]}, "expected 'bbox' of shape"),
        ("objects", "_info", {"objects": [1, 9], "bbox": BOX}, "object class 9"),
        ("objects", "_info", {"bbox": BOX}, "neither 'object_tokens' nor 'objects'"),
        ("ocr", "_info", {"ocr_boxes": BOX}, "no 'ocr_tokens'"),
        ("ocr", "_info", {"ocr_tokens": ["a", "b"], "ocr_boxes": BOX[:1]}, "expected 'ocr_boxes'"),
        ("ocr", "_info", {"ocr_tokens": ["a"] * 3, "ocr_boxes": BOX}, "2 rows of features for 3 OCR tokens"),
        ("ocr", "_info", [1, 2], "expected one dict"),
        ("ocr", "_info", {"ocr_tokens": None, "ocr_boxes": BOX}, "a_info.npy.*expected a list of words"),
        ("objects", "_info", {"objects": [1, 2], "bbox": [[1, 2, 3, 4], [5]]}, "a_info.npy.*inhomogeneous"),
        ("objects", "_info", {"objects": 3, "bbox": BOX}, "a_info.npy.*not iterable"),
    ],
)
def test_bad_feature_files(tmp_path, kind, name, value, says):
    root = write(tmp_path, "textvqa")
    path = root / getattr(LAYOUTS["textvqa", "train"], kind) / f"sub/a{name}.npy"
    np.save(path, np.array(value, object) if name else value)
    with pytest.raises(DataError, match=says) as error:
        load(root, "textvqa")[0]
    assert str(path.parent) in str(error.value)


@pytest.mark.parametrize("kind", ["objects", "ocr"])
@pytest.mark.parametrize("name", ["", "_info"])
def test_missing_and_truncated_feature_files(tmp_path, kind, name):
    root = write(tmp_path, "textvqa")
    path = root / getattr(LAYOUTS["textvqa", "train"], kind) / f"sub/a{name}.npy"
    whole = path.read_bytes()
    for size in (0, 5, 40, len(whole) - 3):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"not a complete \.npy file") as error:
            load(root, "textvqa")[0]
        assert str(path) in str(error.value) and "data/README.md" in str(error.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"is missing .*data/README\.md"):
        load(root, "textvqa")[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"question_str": None}, "lacks question or question_str"),
        ({"image_width": 0}, "image size 0 x 50"),
        ({"image_width": "100"}, "image size 100 x 50"),
        ({"answers": "stop"}, "answers are a str"),
        ("image_height", r"record 2: lacks \['image_height'\]"),
        ("all", "expected a dict, found int"),
    ],
)
def test_bad_records(tmp_path, change, says):
    root = write(tmp_path, "textvqa")
    made = [{"version": 1}, *rows("textvqa")]
    if change == "all":
        made[2] = 3
    elif isinstance(change, str):
        del made[2][change]
    else:
        made[2] = made[2] | change
    save_objects(root / LAYOUTS["textvqa", "train"].imdb, made, (5,))
    with pytest.raises(DataError, match=says):
        load(root, "textvqa")
    assert "record 2" in check(root, "textvqa", sizes=SIZES)["first_bad"]


# ---- what is no data


@pytest.mark.parametrize(
    ("kind", "info", "says"),
    [
        ("ocr", {"ocr_tokens": ["a", None]}, r"'ocr_tokens' has None, expected words"),
        ("ocr", {"ocr_tokens": ["a", 5]}, r"'ocr_tokens' has 5, expected words"),
        ("ocr", {"ocr_tokens": [b"a", "b"]}, r"'ocr_tokens' has b'a', expected words"),
        ("ocr", {"ocr_boxes": [[0, 0, 1, 1], [0, 0, np.nan, 1]]}, r"'ocr_boxes' number 1 is \[0.0, 0.0, nan, 0.0"),
        (
            "ocr",
            {"ocr_boxes": [[0, 0, np.inf, 1], [0, 0, 1, 1]]},
            r"'ocr_boxes' number 0 .*expected numbers from -2 to 3",
        ),
        ("ocr", {"ocr_boxes": [[0, 0, 1000, 1], [0, 0, 1, 1]]}, r"'ocr_boxes' number 0 is \[0.0, 0.0, 10.0"),
        ("ocr", {"ocr_boxes": [[0, -200, 1, 1], [0, 0, 1, 1]]}, r"'ocr_boxes' number 0 is \[0.0, -4.0"),
        ("ocr", {"ocr_boxes": [[0, 0, 10**400, 1], [0, 0, 1, 1]]}, r"_info.npy.*too large"),
        ("objects", {"bbox": [[0, 0, np.nan, 1], [0, 0, 1, 1]]}, r"'bbox' number 0"),
        ("objects", {"objects": [0.5, 1]}, "object class 0.5 is not among"),
        ("objects", {"objects": [np.nan, 1]}, "object class nan is not among"),
        ("objects", {"objects": ["cat", "bus"]}, "_info.npy"),
        ("objects", {"object_tokens": ["cat", None]}, "'object_tokens' has None"),
    ],
)
def test_words_and_boxes_that_are_none_are_refused(tmp_path, kind, info, says):
    root = write(tmp_path, "textvqa")
    path = info_path(root / getattr(LAYOUTS["textvqa", "train"], kind) / "sub/a.npy")
    whole = load_dict(path, "whole")
    np.save(path, np.array(whole | info, object))
    with pytest.raises(DataError, match=says):
        load(root, "textvqa")[0]
    assert check(root, "textvqa", sizes=SIZES, embed=EMBED)["bad"] == 2  # the questions on this image


def test_boxes_may_reach_beyond_the_image(tmp_path):
    root = write(tmp_path, "textvqa")
    path = info_path(root / LAYOUTS["textvqa", "train"].ocr / "sub/a.npy")
    np.save(path, load_dict(path, "whole") | {"ocr_boxes": [[-3, -2, 104, 52], [0, 0, 250, 150]]})
    assert load(root, "textvqa")[0]["ocr_boxes"][:2].max() == 3


@pytest.mark.parametrize(
    "change",
    [
        {"image_width": np.inf},
        {"image_width": np.nan},
        {"image_width": -5},
        {"image_height": True},
        {"image_height": 10**400},
        {"question": 5},
        {"question": None, "question_str": ["a"]},
        {"question_id": [1]},
        {"question_id": 1.5},
        {"question_id": True},
        {"image_id": {"a": 1}},
        {"answers": [None] * 10},
        {"answers": [["a"]] * 10},
        {"answers": [b"a"] * 10},
        {"answers": [float("nan")] * 10},
        {"answers": {"a": 1}},
        {"answers": np.array(5)},
        {"feature_path": 5},
        {"feature_path": np.array(["a", "b"])},
    ],
)
def test_records_that_make_no_sense_are_refused(tmp_path, change):
    path = tmp_path / "imdb.npy"
    save_objects(path, [{"version": 1}, rows("textvqa")[0], rows("textvqa")[1] | change], (3,))
    with pytest.raises(DataError, match=r"imdb\.npy, record 2: "):
        read_imdb(path)


@pytest.mark.parametrize(
    "options",
    [
        {"limit": -5},
        {"limit": True},
        {"limit": 1.5},
        {"limit": "2"},
        {"limit": float("nan")},
        {"indices": ["0"]},
        {"indices": [0.5]},
        {"indices": [True]},
        {"indices": [None]},
        {"indices": 3},
        {"indices": "012"},
        {"indices": {0: 1}},
        {"indices": torch.zeros(2, 2)},
        {"targets": "false"},
        {"targets": 1},
        {"seed": "1"},
        {"seed": -1},
        {"sizes": {"num_ocr": 3}},
        {"embed": "fasttext"},
        {"images": []},
        {"imdb": 5},
        {"labels": 5},
        {"labels": [1]},
        {"text_vocab": [1]},
        {"answer_vocab": 5},
        {"image_folder": 5},
        {"root": None},
        {"dataset": ["textvqa"]},
        {"split": None},
    ],
)
def test_bad_options_are_named(tmp_path, options):
    root = write(tmp_path, "textvqa")
    with pytest.raises(ValueError, match=next(iter(options))):
        TAPDataset(**({"root": root, "dataset": "textvqa", "sizes": SIZES, "embed": EMBED} | options))


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path):
    root = write(tmp_path, "textvqa")
    assert len(load(root, "textvqa", limit=np.int64(2))) == len(load(root, "textvqa", limit=torch.tensor(2))) == 2
    for indices in (np.array([2, 0]), torch.tensor([2, 0]), (2.0, 0)):
        assert [r["question_id"] for r in load(root, "textvqa", indices=indices).records] == [9, 7]
    data = load(root, "textvqa")
    assert same(data[[0, 2]], data[torch.tensor([0, 2])])
    for index in (1.5, None, "0", [0.5], ["0"]):
        with pytest.raises(ValueError, match="index"):
            data[index]
    for options in (
        {"batch_size": "2"},
        {"batch_size": 2.5},
        {"workers": -1},
        {"drop_last": "no"},
        {"shuffle_seed": "a"},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            batches(**({"dataset": data, "batch_size": 2} | options))
    with pytest.raises(ValueError, match="limit = -5"):
        check(root, "textvqa", limit=-5, sizes=SIZES, embed=EMBED)


@pytest.mark.parametrize("label", [None, 5, 1.5, {"a": 1}, [0.5], [True], [-1], ["yes"], [None], [[1]], [float("nan")]])
def test_labels_that_are_no_indices_are_refused(tmp_path, label):
    root = write(tmp_path, "textvqa")
    with pytest.raises(DataError, match=r"labels\[7\]"):
        load(root, "textvqa", targets=True, labels={7: label})
    (tmp_path / "labels.json").write_text(json.dumps({"7": label}))
    with pytest.raises(DataError, match=r"labels\.json: the answer to 7"):
        load(root, "textvqa", targets=True, labels=tmp_path / "labels.json")


def test_a_label_is_there_once(root, dataset, tmp_path):
    (tmp_path / "labels.json").write_text('{"7": "stop", "7": "bus"}')
    with pytest.raises(DataError, match=r"labels\.json .*'7' is there twice"):
        load(root, dataset, labels=tmp_path / "labels.json")
    arrays = load(root, dataset, targets=True, labels={7: torch.tensor([V, 2]), 9: np.array([V + 1])})
    assert arrays[[0, 1]]["previous"].tolist() == [[1, V, 0, 0], [1, V + 1, 0, 0]]


def test_a_question_id_is_there_once(root, dataset):
    """A submission and labels go by it; scores do not."""
    made = rows(dataset)
    made[1]["question_id"] = 7
    save_objects(root / LAYOUTS[dataset, "train"].imdb, made, (4,))
    report = check(root, dataset, sizes=SIZES, embed=EMBED)
    assert report["bad"] == 1 and "question id 7 is there twice" in report["first_bad"]
    with pytest.raises(DataError, match="question id 7 is there twice, labels are by id"):
        load(root, dataset, labels={7: "stop"})
    data = load(root, dataset)
    with pytest.raises(ValueError, match="question id 7 is there twice, a submission has each once"):
        evalai([Answer("stop", [])] * 4, data)


def test_more_words_than_features_are_refused(root, dataset):
    boxes = np.tile([[1, 2, 3, 4]], (55, 1))
    info = {"ocr_tokens": [f"w{i}" for i in range(55)], "ocr_boxes": boxes}
    save_features(root / LAYOUTS[dataset, "train"].ocr, "b", np.ones((33, 5)), info)
    sizes = dataclasses.replace(SIZES, num_ocr=50)
    with pytest.raises(DataError, match="33 rows of features for 50 OCR tokens"):
        load(root, dataset, sizes=sizes)[2]


def test_keys_and_sizes_of_sound_pickles_are_read(tmp_path):
    """What the careful unpickler looks at, as NumPy writes it."""
    values = {
        "keys": {"a": 1, 2: 2, -3: 3, 1.5: 4, None: 5, b"b": 6, np.int64(7): 7, np.float32(0.5): 8, 2**59: 9},
        "arrays": [np.arange(3, dtype=kind) for kind in ("<i4", ">i4", "f2", "u1", "c16")],
        "text": [np.array(["a", "béc"]), np.array([b"a", b"bc"]), np.array([[True], [False]])],
        "scalars": [np.int8(1), np.float64(2.5), np.bool_(True), np.str_("é"), np.complex64(1j)],
        "order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "bytes": [b"", b"a\xff", bytearray(b"xy"), bytearray()],
        "sets": [set(), {1, "a"}, frozenset({2, None})],
    }
    for protocol in range(6):
        array = np.empty((), object)
        array[...] = values
        save_objects(tmp_path / "x.npy", pickle.dumps(array, protocol=protocol))
        read = load_dict(tmp_path / "x.npy", "values")
        for name, value in values.items():
            if name in ("arrays", "text", "order"):
                for one, other in zip(read[name], value, strict=True):
                    native = other.dtype.newbyteorder("=")  # what NumPy itself makes of most protocols
                    assert one.dtype in (other.dtype, native) and np.array_equal(one, other)
            else:
                assert read[name] == value


# --- pickles -------------------------------------------------------------------------------------------------------


def py2_str(value):
    return b"U" + bytes([len(value)]) + value  # SHORT_BINSTRING, what Python 2 writes for str


def py2_dtype(kind, order=b"<", flags=0):
    state = b"(K\x03" + py2_str(order) + b"NNN" + 2 * (b"J" + struct.pack("<i", -1)) + b"K" + bytes([flags]) + b"tb"
    return b"cnumpy\ndtype\n(" + py2_str(kind) + b"K\x00K\x01tR" + state


def py2_array(shape, dtype, body):
    size = b"(" + b"".join(b"K" + bytes([n]) for n in shape) + b"t"
    new = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + py2_str(b"b") + b"tR"
    return new + b"(K\x01" + size + dtype + b"I00\n" + body + b"tb"


def test_python_2_info_files(tmp_path):
    """Byte for byte what Python 2 and NumPy 1 write: names in numpy.core, raw data and text in 8-bit strings."""
    boxes = np.array([[1.0, 2, 3, 4]])
    conf = b"cnumpy.core.multiarray\nscalar\n(" + py2_dtype(b"f8") + py2_str(struct.pack("<d", 0.25)) + b"tR"
    info = b"}(" + py2_str(b"ocr_boxes") + py2_array((1, 4), py2_dtype(b"f8"), py2_str(boxes.tobytes()))
    info += py2_str(b"ocr_tokens") + b"](" + py2_str(b"caf\xe9") + b"e" + py2_str(b"ocr_conf") + conf + b"u"
    pickled = b"\x80\x02" + py2_array((), py2_dtype(b"O8", b"|", 63), b"](" + info + b"e") + b"."
    assert not any("UNICODE" in opcode.name for opcode, _, _ in pickletools.genops(pickled))
    save_objects(tmp_path / "x_info.npy", pickled)
    read = load_dict(tmp_path / "x_info.npy", "OCR")
    assert read["ocr_tokens"] == ["café"] and read["ocr_conf"] == 0.25
    assert read["ocr_boxes"].dtype == np.float64 and np.array_equal(read["ocr_boxes"], boxes)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("names", [b"numpy._core", b"numpy.core"])
def test_admitted_values_survive(tmp_path, protocol, names):
    values = {
        "array": np.arange(6, dtype=np.float32).reshape(2, 3),
        "strings": np.array(["a", "bc"]),
        "objects": np.array([{"x": [1, None]}, "y"], object),
        "scalar": np.float32(1.5),
        "plain": [1, 2.5, True, None, "é", b"\xff\x00", (1,), {2}, frozenset([3]), 1 + 2j, 10**30],
    }
    array = np.empty((), object)
    array[...] = values
    pickled = pickle.dumps(array, protocol=protocol)
    if names == b"numpy.core" and protocol < 4:  # names of length-prefixed protocols cannot be replaced like this
        assert names not in pickled
        pickled = pickled.replace(b"numpy._core", names)
    save_objects(tmp_path / "x.npy", pickled)
    read = load_dict(tmp_path / "x.npy", "values")
    assert read["plain"] == values["plain"] and read["scalar"] == 1.5 and isinstance(read["scalar"], np.float32)
    for name in ("array", "strings", "objects"):
        assert read[name].dtype == values[name].dtype and np.array_equal(read[name], values[name])
    read["array"][0, 0] = 9  # its own memory


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "value",
    [
        Attack(os.system, "touch PWNED"),
        Attack(eval, "open('PWNED', 'w')"),
        Attack(getattr, (1).real, "real"),
        Attack(np.load, "PWNED", None, True),
        Attack(np.fromfile, "PWNED"),
        Attack(__import__, "os"),
        Attack(io.FileIO, "PWNED", "w"),
        np.random.default_rng(0),
        torch.nn.Linear(1, 1),
    ],
)
def test_everything_else_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    for protocol in (2, 4):
        array = np.empty(2, object)
        array[:] = [{"question": value}, value]
        save_objects(tmp_path / "imdb.npy", pickle.dumps(array, protocol=protocol), (2,))
        with pytest.raises(DataError, match=r"imdb\.npy.*refused: its pickle contains the name") as error:
            load_npy("imdb.npy", "annotations")
        assert "plain containers" in str(error.value)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    "body",
    [
        b"\x80\x02cnumpy\nndarray\n(K\x01U\x01Otq\x00R.",  # the class itself cannot be called
        b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.",
        b"\x80\x02Pidentity\n.",  # persistent id
        pickle.dumps([1, 2]),  # not an array
        pickle.dumps(np.empty(3, object)),  # another shape than the header's
        b"",
    ],
)
def test_crafted_bodies_are_errors(tmp_path, body):
    save_objects(tmp_path / "x.npy", body)
    with pytest.raises(DataError, match=r"x\.npy"):
        load_npy(tmp_path / "x.npy", "crafted")


def test_plain_arrays_need_no_pickle(tmp_path):
    for array in (np.arange(6.0).reshape(2, 3), np.array(["a"]), np.asfortranarray(np.ones((2, 3), np.float16))):
        np.save(tmp_path / "x.npy", array)
        read = load_npy(tmp_path / "x.npy", "array")
        assert read.dtype == array.dtype and np.array_equal(read, array)
