"""CLIP's data: rendered COCO sets, the loader that reads them and the real files, processor, shipped model."""

import json
import re
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lfpr import reading
from lfpr.clip import coco
from lfpr.clip.coco import COCOCaptions, batches, captions, check, images
from lfpr.clip.processor import Processor
from lfpr.clip.retrieval import encode_images, encode_texts, recall
from lfpr.experiments.clip_baselines import Recipe, train_baseline
from lfpr.files import SHIPPED, DataError
from lfpr.mini.coco import CAPTIONS, FIRST_IMAGE, scene, write_coco
from lfpr.mini.coco import captions as describe

FOLDER = SHIPPED / "clip-mscoco"
SAMPLES = Path(__file__).parents[1] / "real_samples"
VAL = FIRST_IMAGE["val"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("coco") / "set"
    write_coco(folder, train_images=4, val_images=100)
    return folder


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(FOLDER)


@pytest.fixture
def broken(root, tmp_path) -> Path:
    """A copy of val's first ten images, of which number 2 is missing, 4 cut short and 7 no image."""
    folder = tmp_path / "broken"
    table = json.loads((root / "annotations/captions_val2017.json").read_text())
    table["images"] = table["images"][:10]
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations/captions_val2017.json").write_text(json.dumps(table))
    (folder / "val2017").mkdir()
    for image in table["images"]:
        shutil.copy(root / "val2017" / image["file_name"], folder / "val2017")
    files = sorted((folder / "val2017").iterdir())
    files[2].unlink()
    files[4].write_bytes(files[4].read_bytes()[:700])
    files[7].write_text("<html>404 Not Found</html>")
    return folder


# ---- the file's own order


def test_annotations_are_taken_in_the_order_of_the_file(root, tmp_path, processor):
    table = json.loads((root / "annotations/captions_val2017.json").read_text())
    rng = np.random.default_rng(0)
    listed = table["annotations"] = [table["annotations"][i] for i in rng.permutation(len(table["annotations"]))]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/captions_val2017.json").write_text(json.dumps(table))
    (tmp_path / "val2017").symlink_to(root / "val2017")
    assert coco.count_annotations(tmp_path, "val") == len(listed) == 500
    places = [7, 3, 499, 7, 0]
    data = COCOCaptions(tmp_path, "val", annotations=places)
    assert [(pair.image_id, pair.caption_id, pair.text) for pair in data.pairs] == [
        tuple(listed[place][key] for key in ("image_id", "id", "caption")) for place in places
    ]
    every = {(pair.image_id, pair.caption_id): pair for pair in COCOCaptions(tmp_path, "val", "all").pairs}
    assert all(every[pair.image_id, pair.caption_id] == pair for pair in data.pairs)  # numbered as elsewhere
    wanted = [listed[place]["image_id"] for place in places]
    for found in (batches(data, 3, processor), images(data, 3, processor)):
        assert torch.cat([batch["image_id"] for batch in found]).tolist() == wanted
    pixels = torch.cat([batch["pixel_values"] for batch in images(data, 3, processor)])
    assert torch.equal(pixels[0], pixels[3]) and not torch.equal(pixels[0], pixels[1])
    with pytest.raises(ValueError, match=r"lists 500, asked for number 500"):
        COCOCaptions(tmp_path, "val", annotations=[1, 500])
    listed[4]["image_id"] = 5
    (tmp_path / "annotations/captions_val2017.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match="annotation 4 is of image 5, which is not listed"):
        COCOCaptions(tmp_path, "val", annotations=[4])


# ---- the rendered set


def test_pycocotools_reads_a_written_set(root, capsys):
    table = COCO(str(root / "annotations/captions_val2017.json"))
    assert len(table.imgs) == 100 and len(table.anns) == 100 * CAPTIONS
    for image_id in list(table.imgs)[:5]:
        about = table.loadImgs(image_id)[0]
        assert about["file_name"] == f"{image_id:012}.jpg"
        with Image.open(root / "val2017" / about["file_name"]) as image:
            assert image.size == (about["width"], about["height"]) == (64, 64) and image.format == "JPEG"
        told = [annotation["caption"] for annotation in table.loadAnns(table.getAnnIds(image_id))]
        assert told == describe(scene(0, "val", image_id - VAL))
    train = COCO(str(root / "annotations/captions_train2017.json"))
    assert not set(train.imgs) & set(table.imgs) and not set(train.anns) & set(table.anns)


SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "over": (1, -1), "below": (1, 1), "under": (1, 1)}


def test_captions_tell_what_is_in_the_scene():
    seen = set()
    for index in range(150):
        drawn = scene(0, "val", index)
        looks = {f"{thing.colour} {thing.name}": np.reshape(thing.box, (2, 2)).mean(0) for thing in drawn.objects}
        for number, text in enumerate(describe(drawn)):
            told = sorted((look for look in looks if look in text.lower()), key=text.lower().index)
            assert told and text.count(" and ") == (len(told) == 3) and text.endswith(".") and text[0].isupper()
            assert len(told) == len(looks) or number > 0  # the first caption names all
            side = re.search("|".join(SIDES), text)
            assert bool(side) == (len(told) > 1)
            if side:
                axis, sign = SIDES[side[0]]
                offset = looks[told[0]] - looks[told[1]]
                assert np.sign(offset[axis]) == sign and abs(offset[axis]) == abs(offset).max()
                seen.add(side[0])
    assert seen == set(SIDES)


def test_a_set_is_written_once_and_small_sets_begin_larger_ones(root, tmp_path):
    before = (root / "dataset.json").stat().st_mtime_ns
    assert write_coco(root, train_images=4, val_images=100)["val_images"] == 100
    assert (root / "dataset.json").stat().st_mtime_ns == before
    write_coco(tmp_path / "small", train_images=1, val_images=2)
    name = f"val2017/{VAL + 1:012}.jpg"
    assert (tmp_path / "small" / name).read_bytes() == (root / name).read_bytes()
    assert not list(tmp_path.glob("*.unfinished"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("keep")
    with pytest.raises(ValueError, match="another origin"):
        write_coco(tmp_path / "mine", 1, 1)
    with pytest.raises(ValueError, match="val_images is 0, must be an integer from 1"):
        write_coco(tmp_path / "none", 1, 0)


# ---- pairs


def test_layouts_of_captions(root):
    first, third, every = (COCOCaptions(root, "val", layout) for layout in ("first", 2, "all"))
    assert len(first) == len(third) == 100 and len(every) == 500
    told = describe(scene(0, "val", 3))
    assert first.pairs[3].text == told[0] and third.pairs[3].text == told[2]
    assert [pair.text for pair in every.pairs[15:20]] == told
    assert [pair.caption for pair in every.pairs[15:20]] == [0, 1, 2, 3, 4] and {p.caption for p in third.pairs} == {2}
    assert [pair.image_id for pair in first.pairs] == first.image_ids == every.image_ids == sorted(first.image_ids)
    assert COCOCaptions(root, "val", limit=7).pairs == first.pairs[:7]
    assert COCOCaptions(root, "val", "all", indices=[9, 2]).image_ids == [first.image_ids[9], first.image_ids[2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": "second"}, "captions = 'second': must be 'first', 'all' or a number from 0"),
        ({"captions": -1}, "captions = -1"),
        ({"captions": True}, "captions = True"),
        ({"captions": 5}, "0 images with captions = 5"),
        ({"split": "test"}, "split = 'test': must be one of"),
        ({"limit": 101}, "has 100 images .* asked for .100."),
        ({"limit": 0}, "asked for none"),
        ({"indices": [3, -1]}, "asked for .-1."),
        ({"indices": [3], "limit": 3}, "give one of them"),
    ],
)
def test_wrong_arguments_are_named(root, options, message):
    with pytest.raises(ValueError, match=message):
        COCOCaptions(root, **({"split": "val"} | options))


def test_missing_and_foreign_annotations_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="captions_train2017.json is missing .*data/README.md"):
        COCOCaptions(tmp_path)
    file = tmp_path / "annotations/captions_train2017.json"
    file.parent.mkdir()
    for content in ("[1, 2]", '{"images": [{"id": 1}], "annotations": []}', '{"images": [', '{"images": []}'):
        file.write_text(content)
        with pytest.raises(DataError, match=r"captions_train2017.json .*data/README.md"):
            COCOCaptions(tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_annotations_are_read(split, tmp_path, capsys):
    """The samples' lists are cut independently: images without captions are left out, those with captions added."""
    table = json.loads((SAMPLES / f"captions_{split}2017_100.json").read_text())
    listed = {image["id"]: image["file_name"] for image in table["images"]}
    added = {annotation["image_id"] for annotation in table["annotations"][:60]} - set(listed)
    table["images"] += [{"id": image_id, "file_name": f"{image_id:012}.jpg"} for image_id in added]
    listed |= {image_id: f"{image_id:012}.jpg" for image_id in added}
    (tmp_path / "annotations").mkdir()
    (tmp_path / f"annotations/captions_{split}2017.json").write_text(json.dumps(table))
    data = COCOCaptions(tmp_path, split, "all")
    known = [annotation for annotation in table["annotations"] if annotation["image_id"] in listed]
    assert {(p.caption_id, p.image_id, p.text) for p in data.pairs} == {
        (annotation["id"], annotation["image_id"], annotation["caption"]) for annotation in known
    }
    assert all(data.file(p) == tmp_path / f"{split}2017" / listed[p.image_id] for p in data.pairs)
    report = check(tmp_path, split, limit=3)
    assert report["images"] == len(listed) and report["captions"] == 100 and report["strays"] == 100 - len(known) > 0
    assert report["checked"] == report["bad"] == 3 and "is missing" in report["first_bad"]
    assert capsys.readouterr().out == ""


# ---- what is no data


def annotated(folder: Path, images: list, annotations: list, **more) -> Path:
    (folder / "annotations").mkdir(exist_ok=True)
    table = {"images": images, "annotations": annotations} | more
    (folder / "annotations/captions_val2017.json").write_text(json.dumps(table))
    return folder


PICTURE, WORDS = {"id": 1, "file_name": "1.jpg"}, {"id": 10, "image_id": 1, "caption": "A mug."}


@pytest.mark.parametrize(
    ("image", "annotation", "says"),
    [
        *(
            ({}, {"caption": value}, r"\(annotations\[1\]\): 'caption' is")
            for value in (None, 5, ["a", "b"], {"a": 1}, True)
        ),
        *(({"id": value}, {}, r"\(images\[1\]\): 'id' is") for value in ("2", "n01_7", None, 1.5, True, 2**63, [1])),
        *(({}, {"id": value}, r"\(annotations\[1\]\): 'id' is") for value in ("2", None, 1.5, -(2**63) - 1)),
        *(({}, {"image_id": value}, r"\(annotations\[1\]\): 'image_id' is") for value in ("1", None, 1.0, {})),
        *(({"file_name": value}, {}, r"\(images\[1\]\): 'file_name' is") for value in (None, 5, ["a.jpg"])),
        *(
            ({"file_name": name}, {}, "no file's name below a folder")
            for name in ("../a.jpg", "/a.jpg", "", "a/../../b")
        ),
        ({"id": 1}, {}, "image 1 is listed twice"),
        (None, {}, r"\(images\[1\]\) is a NoneType, expected an object"),
        ({}, [1], r"\(annotations\[1\]\) is a list, expected an object"),
    ],
)
def test_records_that_make_no_sense_are_refused(tmp_path, image, annotation, says):
    image = {"id": 2, "file_name": "2.jpg"} | image if isinstance(image, dict) else image
    annotation = (
        {"id": 11, "image_id": 1, "caption": "A cup."} | annotation if isinstance(annotation, dict) else annotation
    )
    annotated(tmp_path, [PICTURE, image], [WORDS, annotation])
    with pytest.raises(DataError, match=rf"captions_val2017\.json.*{says}"):
        COCOCaptions(tmp_path, "val")


def test_captions_are_read_as_they_are(tmp_path, processor):
    texts = ["", "a\nred 🟥 方\0块", "ß" * 600, "None"]
    annotations = [{"id": 2**63 - 1 - n, "image_id": -3, "caption": text} for n, text in enumerate(texts)]
    annotated(tmp_path, [{"id": -3, "file_name": "sub/a.jpg"}], annotations, info={"contributor": [[]]}, other=[1, [2]])
    data = COCOCaptions(tmp_path, "val", "all")
    assert [pair.text for pair in data.pairs] == texts and data.file(data.pairs[0]).parts[-2:] == ("sub", "a.jpg")
    (batch,) = captions(data, 9, processor)
    assert batch["caption_id"].tolist() == [pair.caption_id for pair in data.pairs] and set(
        batch["image_id"].tolist()
    ) == {-3}


def test_captions_of_unknown_images_are_told(tmp_path):
    annotated(tmp_path, [PICTURE], [WORDS, WORDS | {"id": 11, "image_id": 7}])
    with pytest.warns(UserWarning, match=r"captions_val2017\.json: 1 captions are of images that are not listed"):
        assert len(COCOCaptions(tmp_path, "val", "all")) == 1


def test_a_file_is_read_once_while_it_is_the_same(tmp_path, monkeypatch):
    annotated(tmp_path, [PICTURE], [WORDS])
    first = coco.read_annotations(tmp_path, "val")
    assert coco.read_annotations(tmp_path, "val") is first
    annotated(tmp_path, [PICTURE], [WORDS, WORDS | {"id": 11}])
    assert len(coco.read_annotations(tmp_path, "val").order) == 2


def test_a_file_in_pieces_is_read_whole(tmp_path, monkeypatch):
    """However the pieces that are read end: in a number, a text, white space."""
    made = [{"id": 123 + n, "image_id": 1, "caption": f'café \\ "{n}" \u2028 {{[,:'} for n in range(20)]
    annotated(tmp_path, [PICTURE], made, year=2017, empty=[], nothing={}, last=12345)
    path = tmp_path / "annotations/captions_val2017.json"
    whole = json.loads(path.read_text())
    for indent, size in ((None, 1), (None, 7), (3, 1), (3, 64)):
        path.write_text(json.dumps(whole, indent=indent, ensure_ascii=size > 1), encoding="utf-8")
        monkeypatch.setattr(reading, "CHUNK", size)
        assert dict(reading.read_object(path, "captions")) == whole
        found = list(reading.read_object(path, "captions", lists=True))
        assert [value for name, value in found if name == "annotations"] == made
        assert {name: value for name, value in found if name in ("year", "last", "nothing")} == {
            "year": 2017, "last": 12345, "nothing": {}
        }  # fmt: skip
        for cut in (1, 30, path.stat().st_size // 2):
            path.write_bytes(path.read_bytes()[:-cut])
            with pytest.raises(DataError, match=r"captions_val2017\.json \(captions\) is no JSON object"):
                list(reading.read_object(path, "captions"))


@pytest.mark.parametrize(
    "options",
    [
        *({"limit": value} for value in (-5, True, 1.5, "2", float("nan"))),
        *({"indices": value} for value in (["0"], [0.5], [True], 3, "012", torch.zeros(2, 2), [None])),
        *({"annotations": value} for value in (["0"], [0.5], 3, [-1], [None], "0")),
        *({"captions": value} for value in (1.5, [1], None, float("nan"), "0")),
        {"root": None},
        {"root": 5},
        {"split": ["val"]},
        {"annotations": [0], "limit": 1},
    ],
)
def test_options_that_make_no_sense_are_named(root, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        COCOCaptions(**({"root": root, "split": "val"} | options))


def test_options_of_batches_that_make_no_sense_are_named(root, processor):
    data = COCOCaptions(root, "val")
    assert (
        COCOCaptions(root, "val", np.int64(1), limit=np.int64(3)).pairs == COCOCaptions(root, "val", 1, limit=3).pairs
    )
    for name, value in {
        "batch_size": "4", "workers": 1.5, "drop_last": "false", "pin_memory": 1, "shuffle_seed": "a", "on_error": None,
        "data": None, "processor": "clip",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=name):
            batches(**({"data": data, "batch_size": 4, "processor": processor} | {name: value}))
    for index in (1.5, None, "0", [0]):
        with pytest.raises(ValueError, match="index"):
            data.image(index)
    for options in ({"limit": -5}, {"limit": True}, {"workers": "2"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            check(root, "val", **options)


def test_images_that_would_fill_the_memory_are_not_decoded(tmp_path, processor):
    annotated(tmp_path, [PICTURE], [WORDS])
    (tmp_path / "val2017").mkdir()
    data = COCOCaptions(tmp_path, "val")
    for size in ((7100, 7100), (1, 101), (2020, 20)):
        Image.new("1", size).save(tmp_path / "val2017/1.jpg", "PNG")
        with pytest.raises(DataError, match=rf"image 1: .*1\.jpg cannot be decoded.*{size[0]} x {size[1]} pixels"):
            data.image(0)
    Image.new("RGB", (20, 2000), (255, 0, 0)).save(tmp_path / "val2017/1.jpg", "PNG")
    assert processor.crop(data.image(0)).shape == (64, 64, 3)
    (tmp_path / "val2017/1.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(DataError, match="cannot be decoded .UnidentifiedImageError"):  # no other program is run
        data.image(0)


# ---- batches


def test_batches_hold_pairs(root, processor):
    data = COCOCaptions(root, "val", "all", limit=7)
    loader = batches(data, 8, processor)
    found = list(loader)
    assert len(found) == len(loader) == 5 and [len(batch["image_id"]) for batch in found] == [8, 8, 8, 8, 3]
    batch = found[1]
    assert batch["pixel_values"].shape == (8, 3, 64, 64) and batch["pixel_values"].dtype == torch.float32
    assert batch["input_ids"].shape == batch["attention_mask"].shape and batch["input_ids"].dtype == torch.int64
    for row, pair in enumerate(data.pairs[8:16]):
        assert batch["image_id"][row] == pair.image_id and batch["caption_id"][row] == pair.caption_id
        assert batch["caption"][row] == pair.caption
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        assert processor.tokenizer.decode(ids, skip_special_tokens=True).replace(" .", ".") == pair.text.lower()
        alone = processor.normalise(processor.crop(data.image(8 + row))[None])[0]
        assert torch.equal(batch["pixel_values"][row], alone)
    assert len(list(batches(data, 8, processor, drop_last=True))) == 4


def test_workers_give_the_same_batches(root, processor):
    data = COCOCaptions(root, "val", limit=10)
    for alone, shared in zip(batches(data, 4, processor), batches(data, 4, processor, workers=2), strict=True):
        assert alone.keys() == shared.keys() and all(torch.equal(alone[name], shared[name]) for name in alone)


def test_order_follows_seed_and_epoch(root, processor):
    data = COCOCaptions(root, "val", limit=40)

    def order(loader):
        return torch.cat([batch["image_id"] for batch in loader]).tolist()

    loader = captions(data, 16, processor, shuffle_seed=3)
    state = torch.get_rng_state()
    first = order(loader)
    assert torch.equal(torch.get_rng_state(), state)  # training that reads data stays reproducible
    assert order(loader) == first == order(captions(data, 16, processor, shuffle_seed=3)) != data.image_ids
    assert order(captions(data, 16, processor, shuffle_seed=4)) != first
    loader.set_epoch(1)
    assert order(loader) != first and sorted(order(loader)) == data.image_ids


def test_images_and_captions_alone(root, processor, monkeypatch):
    data = COCOCaptions(root, "val", "all", limit=6)
    found = list(images(data, 4, processor))
    assert torch.cat([batch["image_id"] for batch in found]).tolist() == data.image_ids
    assert found[0].keys() == {"image_id", "pixel_values"}
    monkeypatch.setattr(coco, "read_image", None)  # calling it would fail
    texts = list(captions(data, 4, processor))
    assert sum(len(batch["input_ids"]) for batch in texts) == 30 and "pixel_values" not in texts[0]


def test_images_are_decoded_when_needed_and_not_kept(root, processor, monkeypatch):
    alive, decoded, crop = weakref.WeakValueDictionary(), [], processor.crop

    def watched(image):
        pixels = crop(image).copy()
        alive[len(decoded)] = pixels
        decoded.append(1)
        return pixels

    monkeypatch.setattr(processor, "crop", watched)
    data = COCOCaptions(root, "val", "all", limit=40)
    for number, _ in enumerate(batches(data, 10, processor), start=1):  # ten captions of two images
        assert len(decoded) == 2 * number and len(alive) <= 2


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_images_stop_the_run_or_are_left_out_and_listed(broken, processor, workers):
    data = COCOCaptions(broken, "val", "all")
    with pytest.raises(DataError, match=rf"image {VAL + 2}: .*{VAL + 2:012}.jpg is missing.*on_error"):
        list(batches(data, 5, processor, workers=workers))
    loader = batches(data, 5, processor, workers=workers, on_error="skip")
    left = torch.cat([batch["image_id"] for batch in loader]).tolist()
    assert left == [VAL + i for i in (0, 1, 3, 5, 6, 8, 9) for _ in range(CAPTIONS)]
    assert list(loader.bad) == [VAL + 2, VAL + 4, VAL + 7] and loader.bad[VAL + 7][0] == f"{VAL + 7:012}.jpg"
    assert "cannot be decoded" in loader.bad[VAL + 4][1]


def test_check_lists_broken_images(broken, root):
    report = check(broken, "val", workers=2)
    assert report["images"] == report["checked"] == 10 and report["bad"] == 3 and report["strays"] == 90 * CAPTIONS
    assert list(report["bad_images"]) == [VAL + 2, VAL + 4, VAL + 7] and str(VAL + 2) in report["first_bad"]
    whole = check(root, "train")
    assert whole["captions_per_image"] == (CAPTIONS, CAPTIONS) and whole["captions"] == 4 * CAPTIONS
    assert whole["bad"] == 0 and whole["first_bad"] is None and not whole["bad_images"]
    with pytest.raises(ValueError, match="limit = 0: must be a whole number of at least 1"):
        check(root, "val", limit=0)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": -1}, {"on_error": "ignore"}])
def test_wrong_options_of_batches_are_named(root, processor, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        batches(COCOCaptions(root, "val"), **({"batch_size": 4, "processor": processor} | options))


# ---- the processor


def folder_with(tmp_path: Path, **settings) -> Path:
    """The shipped folder's processor with other image settings."""
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FOLDER / file, tmp_path)
    CLIPImageProcessorPil(**settings).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (500, 500), (224, 224), (80, 61), (1000, 225)])
def test_pixels_equal_those_of_transformers(size, tmp_path):
    """At the published settings, for photographs lying, standing, small and narrow."""
    folder = folder_with(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(noise)
    mine = Processor(folder)
    wanted = CLIPImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    found = mine.normalise(mine.crop(image)[None])
    assert found.is_contiguous() and found.dtype == wanted.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_images_of_other_modes_become_rgb(mode, tmp_path, processor):
    file = tmp_path / ("image.jpg" if mode in ("L", "CMYK") else "image.png")
    Image.fromarray(np.full((70, 90, 3), 200, np.uint8)).convert(mode).save(file)
    image = coco.read_image(file, 1)
    assert image.mode == "RGB" and processor.crop(image).shape == (64, 64, 3)


def test_settings_that_are_not_clips_are_refused(tmp_path):
    with pytest.raises(ValueError, match="do_center_crop"):
        Processor(folder_with(tmp_path, do_center_crop=False))
    with pytest.raises(ValueError, match="image settings .*expected a shortest edge"):
        Processor(folder_with(tmp_path, size={"height": 64, "width": 64}))
    with pytest.raises(ValueError, match="larger than the size"):
        Processor(folder_with(tmp_path, size={"shortest_edge": 32}))


def test_settings_of_old_folders_are_understood(tmp_path):
    folder = folder_with(tmp_path)
    table = json.loads((folder / "preprocessor_config.json").read_text())
    table |= {"size": 96, "crop_size": 64, "feature_extractor_type": "CLIPFeatureExtractor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(table))
    processor = Processor(folder)
    assert (processor.shortest, processor.height, processor.width) == (96, 64, 64)


def test_captions_are_tokenised_as_the_folder_says(processor, tmp_path):
    texts = ["A purple balloon to the left of an orange sign.", "Zebras, 27 of them: ¡olé!", "red " * 99, ""]
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER)
    found = processor.tokens(texts)
    limit = CLIPModel.config_class.from_pretrained(FOLDER).text_config.max_position_embeddings
    assert found["input_ids"].shape == (4, limit) == found["attention_mask"].shape
    wanted = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    assert torch.equal(found["input_ids"], wanted["input_ids"])
    assert found["attention_mask"].sum(1).tolist() == wanted["attention_mask"].sum(1).tolist()
    assert (found["input_ids"] == tokenizer.eos_token_id).any(1).all()  # where the text transformer pools
    assert len(processor.tokens(texts[:1])["input_ids"][0]) == 11 + 2  # every word and the full stop is one token
    tokenizer.backend_tokenizer.model.save(str(tmp_path))  # vocab.json and merges.txt, as older folders have them
    for file in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        shutil.copy(FOLDER / file, tmp_path)
    assert torch.equal(Processor(tmp_path).tokens(texts)["input_ids"], found["input_ids"])


# ---- the shipped model


def test_the_shipped_model_finds_images_by_their_captions(root, processor):
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 4_000_000
    model = CLIPModel.from_pretrained(FOLDER)
    assert model.dtype == torch.float32 and model.config.text_config.eos_token_id == processor.tokenizer.eos_token_id
    data = COCOCaptions(root, "val", "first")
    found = encode_images(model, images(data, 50, processor)), encode_texts(model, captions(data, 50, processor))
    scores = recall(*(encoded.features for encoded in found))
    assert scores["r1"] >= 0.8 and scores["r10"] >= 0.98 and scores["i2t_r1"] >= 0.8
    shuffled = recall(found[0].features.roll(1, 0), found[1].features)
    assert shuffled["r1"] < 0.1
    recipe = json.loads((FOLDER / "recipe.json").read_text())
    assert recipe["val_images"] == 1000 and recipe["r1"] >= 0.55 and recipe["r10"] >= 0.95


def test_padding_changes_no_text_feature(processor):
    model = CLIPModel.from_pretrained(FOLDER).eval()
    texts = ["A red mug.", "There is a yellow shop to the right of a blue bus and a purple bag."]
    with torch.no_grad():
        both = model.get_text_features(**processor.tokens(texts)).pooler_output
        alone = model.get_text_features(**processor.tokens(texts[:1])).pooler_output
    torch.testing.assert_close(both[:1], alone, rtol=1e-5, atol=1e-5)


def test_training_writes_a_complete_folder(tmp_path):
    recipe = Recipe(steps=3, batch_size=8, train_images=16, val_images=8)
    result = train_baseline(tmp_path, tmp_path, recipe)
    folder = tmp_path / FOLDER.name
    assert {file.name for file in folder.iterdir()} == {file.name for file in FOLDER.iterdir()}
    assert result["val_images"] == 8 and json.loads((folder / "recipe.json").read_text())["recipe"]["steps"] == 3
    words = Processor(folder).tokens(["A red mug."])["input_ids"]
    assert torch.isfinite(CLIPModel.from_pretrained(folder).get_text_features(words).pooler_output).all()
    assert not list(tmp_path.glob("*.unfinished"))
