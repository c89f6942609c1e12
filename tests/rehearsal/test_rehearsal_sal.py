"""The dress rehearsal of SaL: its files are laid out and as large as the real ones, and stages run on them."""

import json
from dataclasses import replace

import pytest
import torch
from rehearsal.sal_files import PIECES, write_checkpoint, write_sal_files

import lfpr
from lfpr.experiments import SPECS, Cell
from lfpr.files import CheckpointError
from lfpr.sal import SaLConfig, check, read_config
from lfpr.sal.data import FOLDERS, LAYOUTS

QUESTIONS = {"train": 6, "val": 5, "test": 3}
NARROW = SaLConfig(d_model=24, d_kv=6, d_ff=2048, num_layers=1, num_decoder_layers=2, num_heads=4, dropout=0.0)
SETTINGS = {"eval_batch": 3, "score_batch": 3, "reconstruct_samples": 4, "workers": 0}
DATASETS = ("textvqa", "stvqa")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of this machine's user."""
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of both data sets in one folder, and checkpoints of real names and real inputs but little width."""
    root = tmp_path_factory.mktemp("sal")
    for dataset in DATASETS:
        write_sal_files(root, dataset, QUESTIONS)
        write_checkpoint(root / f"checkpoints/sal_{dataset}.ckpt", NARROW)
    return root


def open_full(files, tmp_path, dataset="textvqa", **options):
    return lfpr.open_experiment(f"sal-{dataset}", "full", tmp_path / "runs", files, **SETTINGS | options)


@pytest.mark.parametrize("dataset", DATASETS)
def test_files_are_as_large_and_as_odd_as_the_real_ones(files, dataset):
    for split, questions in QUESTIONS.items():
        found = check(files, dataset, split)
        assert (found["questions"], found["checked"], found["bad"], found["first_bad"]) == (*[questions] * 2, 0, None)
        assert (found["feature_size"], found["vocabulary"]) == (2048, PIECES)
        assert found["answered"] == found["writable"] == (0 if split == "test" else questions)
        assert found["without_ocr"] == 1 and found["ocr_tokens"][2] == 130


def test_batches_have_the_published_shapes(files, tmp_path):
    task = open_full(files, tmp_path).task
    batch = next(iter(task.batched(task.data("train", targets=True), 5)))
    assert {name: list(tensor.shape) for name, tensor in batch.items()} == {
        "question_ids": [5, 45], "ocr_ids": [5, 350], "ocr_boxes": [5, 350, 4], "ocr_features": [5, 350, 2048],
        "obj_ids": [5, 250], "obj_boxes": [5, 250, 4], "obj_features": [5, 250, 2048], "index": [5],
        "targets": [5, 24, 32128], "previous": [5, 24], "loss_mask": [5, 24],
    }  # fmt: skip
    assert (batch["ocr_ids"] != 0).sum(1).min() == 3 and (batch["ocr_ids"] != 0).sum(1).max() == 350
    assert batch["question_ids"][0, :2].tolist() == [822, 10] and batch["ocr_ids"][0, :3].tolist() == [2625, 10, 32099]


@pytest.mark.parametrize("home", FOLDERS)
def test_files_are_found_in_every_layout(tmp_path, home):
    root = tmp_path / "root"
    write_sal_files(root, "stvqa", {"train": 1, "val": 1}, home)
    checkpoint = root / "save/sal_stvqa/best.ckpt"
    write_checkpoint(checkpoint, NARROW)
    task = open_full(root, tmp_path, "stvqa").task
    task.require_files()
    assert task.checkpoint == checkpoint and len(task.data("val")) == 1
    assert [row.what for row in task.locate() if row.path is None] == ["test questions"]
    with pytest.raises(FileNotFoundError, match="test_amazon_ocr.npy is missing"):
        task.require_test()


def test_all_that_is_missing_is_named_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError) as raised:
        open_full(tmp_path / "empty", tmp_path)
    found = str(raised.value)
    places = [names[0].format("train") for names in LAYOUTS["textvqa"].values()]
    for name in ("checkpoints/sal_textvqa.ckpt", *places, "val_amazon_ocr.npy", "t5-base/tokenizer.json"):
        assert name in found, name
    assert "missing files or folders: 6" in found and not (tmp_path / "runs").exists()


def test_stages_run_on_them(files, tmp_path):
    exp = open_full(files, tmp_path, "stvqa")
    cell = exp.cell(Cell())
    assert (cell.method, cell.constraint, cell.num_samples, cell.scoring) == ("label-free", 0.5, 3000, "per-sample")
    stage = exp.retrain(cell)
    assert stage.result["fraction"] <= 0.5 and stage.result["questions"] == 5
    assert (stage.result["percent"], stage.result["last_layers"], stage.result["iterations"]) == (81.3, 1, 1)
    assert len(stage.result["heads"]) == 1 + 2 + 2 and len(stage.result["neurons"]) == 3
    delta = stage.folder / "delta.safetensors"
    made, kept = lfpr.load_delta(exp.model, delta), lfpr.load_pruned(stage.folder / "model").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in made.state_dict().items())
    assert exp.prune(Cell("fisher", reconstructed=True)).result["fraction"] <= 0.5
    written = exp.task.submit(exp.model, tmp_path / "answers.json")
    entries = [json.loads(path.read_text()) for path in written]
    assert [len(rows) for rows in entries] == [3, 3]  # of the Robust Reading Competition, of EvalAI
    assert set(entries[1][0]) == {"question_id", "image_id", "answer", "pred_source"}


def test_the_spatial_circle_position_is_as_the_checkpoint_says(files, tmp_path):
    own, plain = files / "checkpoints/sal_textvqa.ckpt", tmp_path / "plain.ckpt"
    write_checkpoint(plain, replace(NARROW, scp="off"))
    sizes = replace(NARROW, dropout=0.1)
    assert read_config(own) == sizes and read_config(plain) == replace(sizes, scp="off")
    assert open_full(files, tmp_path, scp="replace").task.config.scp == "replace"
    inputs = [open_full(files, tmp_path, **way).task.inputs for way in ({}, {"scp": "replace"}, {"num_eval": 2})]
    assert inputs[0] != inputs[1] != inputs[2] != inputs[0]
    off = open_full(files, tmp_path, scp="off")
    with pytest.raises(CheckpointError, match="1 entries that SaL with scp = 'off' has not"):
        off.baseline()
    with pytest.raises(CheckpointError, match="lacks 1 of the"):
        open_full(files, tmp_path, checkpoint=plain, scp="add").baseline()


def test_other_checkpoints_are_refused(files, tmp_path):
    state = torch.load(files / "checkpoints/sal_textvqa.ckpt", weights_only=True)["model"]
    path = tmp_path / "other.ckpt"
    torch.save({name: value for name, value in state.items() if "q.weight" not in name}, path)
    with pytest.raises(CheckpointError, match=r"other\.ckpt lacks the entry '.*SelfAttention\.q\.weight' of a SaL"):
        read_config(path)
    torch.save(state | {"latr.shared.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"other\.ckpt has other shapes than a SaL model"):
        read_config(path)
    with pytest.raises(ValueError, match="scp = 'all': must be one of"):
        read_config(path, "all")


def test_the_experiments_are_rehearsed():
    from rehearsal.rehearse import PLANS, PREPARE

    assert {*PLANS} == {*PREPARE} == {name for name in SPECS if name != "minilm-texts"}
