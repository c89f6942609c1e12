"""The mini profile's scenes, questions, features and the TextVQA folder written from them."""

import random
import re
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from lfpr.mini import datasets
from lfpr.mini.datasets import SCENE, answer_words, image_id, word_pieces, write_tap
from lfpr.mini.features import FEATURE_SIZE, box_features, carrier_boxes
from lfpr.mini.questions import MAX_QUESTIONS, TEMPLATES, human_answers, make_questions, misread
from lfpr.mini.scenes import CLASSES, COLOURS, LEXICON, make_scene
from lfpr.tap.data import InputSizes, TAPDataset, batches, read_imdb
from lfpr.tap.metrics import vqa_accuracy
from lfpr.tap.pickles import load_dict, load_npy
from lfpr.tap.text import WordPieces
from lfpr.tap.vectors import HashedNgrams

SMALL = {"train_images": 8, "val_images": 3, "images": 2}


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(seed) for seed in range(250)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("mini") / "textvqa"
    write_tap(root, **SMALL)
    return root


def files_of(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_scene_is_determined_by_its_seed(scenes):
    again = make_scene(3)
    assert again.objects == scenes[3].objects
    assert again.image.tobytes() == scenes[3].image.tobytes()
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


def test_scene_boxes_and_words(scenes):
    for scene in scenes:
        words = [word.text.lower() for thing in scene.objects for word in thing.words]
        assert 1 <= len(scene.objects) <= 4
        assert words and len(set(words)) == len(words)
        assert len({(thing.name, thing.colour) for thing in scene.objects}) == len(scene.objects)
        for thing in scene.objects:
            x1, y1, x2, y2 = thing.box
            assert 0 <= x1 < x2 <= 128 and 0 <= y1 < y2 <= 128
            for word in thing.words:
                assert word.text.lower() in LEXICON[word.kind]
                assert x1 <= word.box[0] < word.box[2] <= x2 and y1 <= word.box[1] < word.box[3] <= y2
            for other in scene.objects:
                a, b = thing.box, other.box
                apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
                assert other is thing or apart


def test_boxes_hold_what_was_drawn(scenes):
    """An object's pixels have its colour, a word's box has ink on paper, and nothing but background is outside."""
    for scene in scenes[:60]:
        pixels = np.asarray(scene.image, np.int16)
        outside = np.ones(pixels.shape[:2], bool)
        for thing in scene.objects:
            x1, y1, x2, y2 = map(int, thing.box)
            outside[y1:y2, x1:x2] = False
            near = np.abs(pixels[y1:y2, x1:x2] - COLOURS[thing.colour]).max(-1) <= 10
            assert near.mean() > 0.2
            for word in thing.words:
                a, b, c, d = map(int, word.box)
                grey = pixels[b:d, a:c].mean(-1)
                assert grey.max() - grey.min() > 60
        assert len(np.unique(pixels[outside], axis=0)) == 2  # wall and ground


def test_scene_without_words_and_of_other_size():
    scene = make_scene(5, size=64, max_objects=2, max_words=0)
    assert scene.image.size == (64, 64)
    assert len(scene.objects) <= 2 and not any(thing.words for thing in scene.objects)
    with pytest.raises(ValueError, match="no words"):
        make_questions(scene, 1, random.Random(0))


@pytest.mark.parametrize(
    "name, value", [("seed", -1), ("seed", 1.5), ("size", 20), ("max_objects", 5), ("max_objects", 0), ("max_words", 4)]
)
def test_scene_refuses_bad_parameters(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        make_scene(**{"seed": 0, name: value})


def solve(scene, question):
    """Answer a question from the scene by reading its text, independently of how it was made."""
    kind = question.kind
    patterns = [re.escape(way).replace(r"\{ref\}", "(?P<ref>.+)") for way in TEMPLATES[kind]]
    patterns = [pattern.replace(r"\{word\}", "(?P<word>.+)") for pattern in patterns]
    (found,) = filter(None, (re.fullmatch(pattern, question.text) for pattern in patterns))
    names = found.groupdict()
    things = list(scene.objects)
    if "ref" in names:
        *colour, name = names["ref"].split()
        things = [thing for thing in things if thing.name == name and (not colour or thing.colour == colour[0])]
    elif kind == "leftmost":
        things = [min(things, key=lambda thing: thing.box[0])]
    else:
        things = [thing for thing in things if names["word"] in [word.text.lower() for word in thing.words]]
    (thing,) = things
    texts = [word.text.lower() for word in sorted(thing.words, key=lambda word: word.box[1])]
    if kind in ("number", "price", "brand"):
        (answer,) = (text for text in texts if text in LEXICON[kind])
        return answer
    if kind == "yes/no":
        return "yes" if names["word"] in texts else "no"
    if kind in ("first", "second"):
        assert len(texts) > 1
        return texts[kind == "second"]
    return {"colour": thing.colour, "object": thing.name}.get(kind, " ".join(texts))


def test_questions_have_the_scene_s_answer(scenes):
    kinds = Counter()
    for scene in scenes:
        questions = make_questions(scene, MAX_QUESTIONS, random.Random(scene.seed))
        assert len({question.text for question in questions}) == MAX_QUESTIONS
        for question in questions:
            assert solve(scene, question) == question.answer
            kinds[question.kind, question.answer if question.kind == "yes/no" else ""] += 1
    assert {kind for kind, _ in kinds} == set(TEMPLATES)
    assert min(kinds.values()) > 0.03 * sum(kinds.values())  # also of "yes" and of "no"


@pytest.mark.parametrize("count", [0, MAX_QUESTIONS + 1])
def test_questions_refuse_bad_counts(scenes, count):
    with pytest.raises(ValueError, match=f"count is {count}"):
        make_questions(scenes[0], count, random.Random(0))


@pytest.mark.parametrize("answer", ["fresh milk", "yes", "red", "shirt", "7"])
def test_most_people_give_the_true_answer(answer):
    rng = random.Random(0)
    answers = [human_answers(answer, rng) for _ in range(300)]
    assert all(len(given) == 10 and all(given) for given in answers)
    share = np.mean([given.count(answer) / 10 for given in answers])
    assert 0.85 < share < 0.97
    assert vqa_accuracy([answer] * 300, answers) > 0.97


def test_misreading_changes_one_character():
    rng = random.Random(0)
    assert [misread("Milk", rng, 0.0)[0] for _ in range(20)] == ["Milk"] * 20
    for word in ("Milk", "$3.50", "42"):
        for _ in range(50):
            read, confidence = misread(word, rng, 1.0)
            assert len(read) == len(word) and sum(a != b for a, b in zip(read, word, strict=True)) == 1
            assert 0 < confidence <= 1
    wrong = np.mean([misread("river", rng, 0.05)[0] != "river" for _ in range(4000)])
    assert 0.035 < wrong < 0.065


def test_features_have_shape_and_no_boxes_give_none(scenes):
    scene = scenes[0]
    boxes = np.array([thing.box for thing in scene.objects])
    features = box_features(scene.image, boxes)
    assert features.shape == (len(boxes), FEATURE_SIZE) and features.dtype == np.float32
    np.testing.assert_array_equal(box_features(scene.image, boxes[1:]), features[1:])
    empty = np.zeros((0, 4))
    assert box_features(scene.image, empty).shape == (0, FEATURE_SIZE)
    assert carrier_boxes(scene.image, empty).shape == (0, 4)


def test_a_word_s_carrier_is_found_from_pixels(scenes):
    inside, cover = [], []
    for scene in scenes:
        pairs = [(thing, word) for thing in scene.objects for word in thing.words]
        words, things = (np.array([pair[i].box for pair in pairs]) for i in (1, 0))
        carriers = carrier_boxes(scene.image, words)
        assert (carriers[:, :2] <= words[:, :2]).all() and (carriers[:, 2:] >= words[:, 2:]).all()
        sides = np.minimum(carriers, things)[:, 2:] - np.maximum(carriers, things)[:, :2]
        inside.extend(sides.prod(1) / (carriers[:, 2:] - carriers[:, :2]).prod(1))
        cover.extend(sides.prod(1) / (things[:, 2:] - things[:, :2]).prod(1))
    assert np.mean(np.array(inside) > 0.95) > 0.97
    assert np.mean(np.array(cover) > 0.3) > 0.97  # a boat's hull, a flag without its pole


def test_class_and_colour_are_linear_in_the_features(scenes):
    """Logistic regression on 200 scenes reads class and colour of objects, and of words' carriers, in 50 others."""
    rows = {"object": [], "word": []}
    for scene in scenes:
        look = {thing: (CLASSES.index(thing.name), list(COLOURS).index(thing.colour)) for thing in scene.objects}
        features = box_features(scene.image, np.array([thing.box for thing in scene.objects]))
        rows["object"] += [(scene.seed, x, look[thing]) for thing, x in zip(scene.objects, features, strict=True)]
        words = [(thing, word.box) for thing in scene.objects for word in thing.words]
        features = box_features(scene.image, carrier_boxes(scene.image, np.array([box for _, box in words])))
        rows["word"] += [(scene.seed, x, look[thing]) for (thing, _), x in zip(words, features, strict=True)]
    for what, least in (("object", 0.97), ("word", 0.93)):
        seeds, x, looks = (torch.tensor(np.array(column)) for column in zip(*rows[what], strict=True))
        train, heads = seeds < 200, (slice(0, len(CLASSES)), slice(len(CLASSES), None))
        weight = torch.zeros(FEATURE_SIZE, len(CLASSES) + len(COLOURS), requires_grad=True)
        optimiser = torch.optim.Adam([weight], lr=0.05)
        for _ in range(150):
            scores = x[train] @ weight
            loss = sum(cross_entropy(scores[:, head], looks[train, i]) for i, head in enumerate(heads))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        scores = x[~train] @ weight
        for i, head in enumerate(heads):
            assert (scores[:, head].argmax(1) == looks[~train, i]).float().mean() >= least, (what, i)


def test_textvqa_files_have_tap_s_layout(root):
    table = load_npy(root / "imdb/m4c_textvqa/imdb_train_ocr_en.npy", "imdb")
    assert "image_id" not in table[0] and len(table) == 1 + 8 * 4
    for row in table[1:]:
        assert len(row["answers"]) == 10 and all(isinstance(answer, str) for answer in row["answers"])
        assert row["feature_path"] == f"{row['image_id']}.npy" and row["set_name"] == "train"
        objects = root / "feat_resx/train" / row["feature_path"]
        info = load_dict(objects.with_name(f"{row['image_id']}_info.npy"), "objects")
        assert load_npy(objects, "features").shape == (info["num_boxes"], FEATURE_SIZE)
        assert info["bbox"].shape == (info["num_boxes"], 4)
        assert [CLASSES[number - 1] for number in info["objects"]] == row["image_classes"]
        ocr = root / "ocr_feat_resx/textvqa_conf/train_images" / row["feature_path"]
        info = load_dict(ocr.with_name(f"{row['image_id']}_info.npy"), "OCR")
        features = load_npy(ocr, "features")
        assert features.shape == (len(info["ocr_tokens"]), FEATURE_SIZE) and features.dtype == np.float32
        assert info["ocr_tokens"] == row["ocr_tokens"] and len(info["ocr_conf"]) == len(row["ocr_tokens"])
        np.testing.assert_allclose(info["ocr_boxes"] / 128, row["ocr_normalized_boxes"])
        assert row["ocr_normalized_boxes"].min() >= 0 and row["ocr_normalized_boxes"].max() <= 1
    ids = [row["question_id"] for split in ("train", "val") for row in read_imdb(_imdb(root, split))]
    assert len(set(ids)) == len(ids) == 11 * 4
    sample = read_imdb(root / "imdb/m4c_textvqa/calculate_score/imdb_train_3k.npy")
    assert {row["question_id"] for row in sample} <= set(ids)
    assert len(list((root / "images/train").glob("*.jpg"))) == 2 + 2


def _imdb(root, split):
    return root / f"imdb/m4c_textvqa/imdb_{split}_ocr_en.npy"


def test_textvqa_describes_the_scene_of_its_id(root):
    for row in load_npy(_imdb(root, "val"), "imdb")[1:]:
        scene = make_scene(int(row["image_id"], 16), **SCENE)
        assert row["image_classes"] == [thing.name for thing in scene.objects]
        words = {word.box: word.text for thing in scene.objects for word in thing.words}
        boxes = [tuple(box) for box in (row["ocr_normalized_boxes"] * 128).tolist()]
        assert set(boxes) == set(words)
        wrong = [
            a != b
            for box, token in zip(boxes, row["ocr_tokens"], strict=True)
            for a, b in zip(token, words[box], strict=True)
        ]
        assert sum(wrong) <= len(boxes)


def test_textvqa_goes_through_tap_s_loader(root):
    sizes = InputSizes(feature_size=FEATURE_SIZE, fasttext_size=16, num_objects=4, num_ocr=12)
    for split, number in (("train", 32), ("val", 12), ("score", 32)):
        data = TAPDataset(root, "textvqa", split, sizes=sizes, targets=True, embed=HashedNgrams(16))
        (batch,) = batches(data, batch_size=number)
        assert batch["obj_features"].shape == (number, 4, FEATURE_SIZE)
        assert batch["targets"].shape == (number, 12, len(answer_words()) + 12)
        assert batch["num_obj"].min() >= 1 and batch["num_ocr"].min() >= 1
        assert (batch["targets"][:, 0].amax(1) > 0).float().mean() > 0.9  # answers can be spelled
        first = data.sample(0)
    assert first["object_names"] and set(first["object_names"]) <= set(CLASSES)


def test_everything_tokenises(root):
    pieces = WordPieces(root / "bert-base-uncased/vocab.txt")
    names = word_pieces()
    assert [names.index(name) for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 100, 101, 102, 103]
    assert len(set(names)) == len(names)
    rng = random.Random(0)
    texts = [word for words in LEXICON.values() for word in words] + [
        way for ways in TEMPLATES.values() for way in ways
    ]
    for text in texts:
        assert 100 not in pieces.encode(text, 40)
        assert 100 not in pieces.encode(misread(text, rng, 1.0)[0], 100)
    for word in (*LEXICON["word"], *LEXICON["brand"], *LEXICON["number"], *COLOURS, *CLASSES):
        assert (pieces.encode(word, 10) != 0).sum() == 3  # [CLS] word [SEP]


def test_textvqa_is_the_same_every_time(root, tmp_path):
    write_tap(tmp_path / "again", **SMALL)
    assert files_of(tmp_path / "again") == files_of(root)


def test_a_small_set_is_the_beginning_of_a_large_one(root, tmp_path):
    write_tap(tmp_path / "large", train_images=10, val_images=4, images=2)
    small, large = files_of(root), files_of(tmp_path / "large")
    for name in small:
        if "feat_resx" in name or name.endswith((".jpg", "vocab.txt")):
            assert small[name] == large[name]
    for split in ("train", "val"):
        few, many = read_imdb(_imdb(root, split)), read_imdb(_imdb(tmp_path / "large", split))
        assert many[: len(few)] == few and len(many) > len(few)


def test_textvqa_is_made_once_and_again_for_other_parameters(tmp_path, monkeypatch):
    root, tiny = tmp_path / "textvqa", {"train_images": 2, "val_images": 1, "images": 0}
    stamp = write_tap(root, **tiny)
    before = files_of(root)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "_build_tap", interrupted)
        assert write_tap(root, **tiny) == stamp  # nothing to build
        with pytest.raises(KeyboardInterrupt):
            write_tap(root, **tiny, seed=1)
    assert files_of(root) == before
    assert write_tap(root, **tiny, seed=1) == stamp | {"seed": 1}
    names = {path.name for path in (root / "feat_resx/train").iterdir()}
    assert names == {
        image_id(1, split, i) + end
        for split, i in (("train", 0), ("train", 1), ("val", 0))
        for end in (".npy", "_info.npy")
    }
    assert {path.name for path in tmp_path.iterdir()} == {"textvqa", "textvqa.lock"}


@pytest.mark.parametrize("name", ["precious.txt", "dataset.json"])
def test_textvqa_leaves_foreign_folders_alone(tmp_path, name):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_text('{"made": "by hand"}')
    with pytest.raises(ValueError, match="another origin"):
        write_tap(tmp_path / "data", train_images=1, val_images=1)
    assert files_of(tmp_path / "data") == {name: b'{"made": "by hand"}'}


@pytest.mark.parametrize(
    "name, value",
    [
        ("train_images", 0),
        ("val_images", 1.0),
        ("images", -1),
        ("questions_per_image", 6),
        ("ocr_error", 1.5),
    ],
)
def test_textvqa_refuses_bad_parameters(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        write_tap(tmp_path / "data", **{name: value})
    assert not (tmp_path / "data").exists()
