"""SaL's stages on a little mini data: what is pruned, scored, retrained and refitted, and by what."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import lfpr
from lfpr.experiments import Cell, open_experiment
from lfpr.experiments.schedule import own_schedule
from lfpr.paper.pictures import tap as pictures
from lfpr.sal import evaluate
from lfpr.sal.objectives import Answered

SMALL = {"train_images": 20, "val_images": 12, "num_samples": 24, "score_batch": 12, "retrain_batch": 16,
         "reconstruct_samples": 48, "rescale_samples": 24}  # fmt: skip
KINDS = {"encoder heads": 4, "decoder heads": 4, "cross heads": 4}


@pytest.fixture(scope="module")
def sal(runs):
    return open_experiment("sal-textvqa", runs=runs, **SMALL)


@pytest.fixture(scope="module")
def batch(sal):
    """Training questions with the model's own answers, of different lengths."""
    return next(iter(sal.task.reconstruction(0)))


def test_five_kinds_of_parts_are_pruned_under_one_budget(sal):
    encoder = sal.encoder
    assert len(encoder.attentions) == sum(KINDS.values()) and len(encoder.ffns) == encoder.num_layers == 8
    assert sal.cost.full == encoder.num_parameters == sum(p.numel() for x in encoder.layers for p in x.parameters())
    for method in ("label-free", "fisher", "random"):
        stage = sal.prune(Cell(method))
        assert len(stage.result["heads"]) == 12 and len(stage.result["neurons"]) == 8
        assert 0.49 < stage.result["fraction"] <= 0.5 and stage.result["largest_difference"] < 1e-3
        small = sal.load(stage)
        assert lfpr.prunable(small).num_parameters == stage.result["parameters"]
        assert sal.task.evaluate(small)["score"] == stage.result["score"]
    assert sal.prune(Cell(percentile=50)).result["fraction"] < 1


def test_scores_are_the_packages(sal):
    found = sal.baseline().result
    assert found == evaluate(sal.model, sal.task.data("val"), 20) and found["score"] > 0.5


def test_the_objective_looks_at_the_median_of_t(sal):
    cell = sal.cell(Cell())
    step = sal.task.step(cell)
    assert sal.importance(cell) is not None and 0 <= step < sal.task.decoding_steps
    assert sal.runs.load("importance", sal.sample_key(cell) | {"inputs": sal.task.inputs}).result == {
        "samples": 24,
        "step": step,
    }
    assert sal.task.step(sal.cell(Cell(step=2))) == 2
    for fields, message in (
        ({"step": 13}, "step = 13: must be in 0 … 12"),
        ({"scoring": "released"}, "no code of SaL's importance was released"),
        ({"last_layers": 5}, "last_layers = 5: the encoder has only 4 layers"),
    ):
        with pytest.raises(ValueError, match=message):
            sal.check(Cell(**fields))
    batched = sal.importance(Cell(scoring="batched"))
    assert not batched.equal(sal.importance(cell))


def test_labels_are_the_models_own_answers(sal):
    teacher = sal.teach()
    labels, answers = (json.loads((teacher.folder / f"{name}.json").read_text()) for name in ("labels", "answers"))
    data = sal.task.data("train", limit=8)
    said = sal.task.predict(sal.model, data)
    for record, answer in zip(data.records, said, strict=True):
        question = str(record["question_id"])
        assert answers[question] == answer.text == data.pieces.read(labels[question])
    taught = sal.task._taught(sal.cell(), 100)
    rows = taught[list(range(8))]
    own = next(iter(Answered([rows], sal.model)))
    steps = own["loss_mask"].shape[1]
    assert rows["previous"][:, :steps].equal(own["previous"]) and rows["loss_mask"][:, :steps].equal(own["loss_mask"])
    counted = own["loss_mask"] > 0
    assert rows["targets"][:, :steps][counted].equal(own["targets"][counted])


def test_retraining_trains_the_last_layers_of_both_sides(sal):
    cell = Cell(percent=100, last_layers=1)
    stage, pruned = sal.retrain(cell), sal.prune(cell)
    assert (stage.result["last_layers"], stage.result["iterations"]) == (1, -(-len(sal.task.data("train")) // 16))
    assert stage.result["heads"] == pruned.result["heads"]
    made = lfpr.load_delta(sal.model, stage.folder / "delta.safetensors").state_dict()
    kept = sal.load(stage).state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in made.items())
    before, after = sal.load(pruned).state_dict(), sal.load(stage).state_dict()
    changed = {name for name, value in before.items() if not value.equal(after[name])}
    assert "latr.shared.weight" in changed and "ocr_vit_fc7.weight" not in changed
    wholly = {name.split(".layer")[0] for name in changed if name.endswith((".q.weight", ".wi.weight"))}
    assert wholly == {"latr.encoder.block.3", "latr.decoder.block.3"}
    masks = lfpr.Masks.load(stage.folder / "masks.safetensors")
    assert masks.heads_kept == pruned.result["heads"] and not masks.equal(masks.binary())
    alone = sal.retrain(Cell(percent=20, trained="masks"))
    assert not set(load_file(alone.folder / "delta.safetensors")) & {"latr.shared.weight"}


def test_the_schedule_is_ours(sal):
    for kept in (0.3, 0.5, 0.8):
        amounts = sal.amounts(Cell(constraint=kept))
        assert (amounts["percent"], amounts["last_layers"]) == own_schedule(4, kept)
    assert sal.amounts(Cell(percentile=50)) == sal.amounts(Cell(constraint=0.5))


def test_what_fills_up_answers_does_not_count(sal, batch):
    logits = sal.task.run(batch)
    steps = batch["loss_mask"].sum(1).int().tolist()
    assert len(set(steps)) > 1 and logits.shape[:2] == batch["previous"].shape
    for i, length in enumerate(steps[:6]):
        alone = {name: value[i : i + 1] for name, value in batch.items()}
        alone |= {name: alone[name][:, :length] for name in ("previous", "loss_mask")}
        assert torch.allclose(sal.task.run(alone)[0], logits[i, :length], atol=1e-4)
    rows = sal.task.predictions(sal.model, batch)
    assert rows.shape == (sum(steps), sal.task.config.vocab_size)
    assert rows.argmax(-1).equal(batch["targets"][batch["loss_mask"] > 0].argmax(-1))  # its own answers


def test_reconstruction_brings_logits_nearer(sal, batch):
    gaps = {}
    for reconstructed in (False, True):
        stage = sal.prune(Cell("surgeon", reconstructed=reconstructed))
        gaps[reconstructed] = (
            sal.task.predictions(sal.load(stage), batch) - sal.task.predictions(sal.model, batch)
        ).norm()
    assert gaps[True] < 0.8 * gaps[False]


def test_models_are_compared_side_by_side(sal):
    table = sal.task.compare({"unpruned": sal.model, "pruned": sal.load(sal.prune(Cell("random")))})
    assert table["pruned"]["macs"] < table["unpruned"]["macs"] and table["unpruned"]["ms_per_question"] > 0
    assert table["unpruned"]["parameters"] == sal.cost.full


def test_notebooks_are_shown_what_tap_s_are(sal):
    report = sal.task.check("val", 10)
    assert (report["bad"], report["checked"], report["writable"]) == (0, 10, 10) and report["ocr_tokens"][2] > 0
    assert "100% of the checked questions" in pictures.reading(report)
    titles = [axis.get_title(loc="left") for axis in pictures.examples(sal).axes]
    assert any("\nmodel: " in title for title in titles)
    assert pictures.statistics(sal).axes and pictures.objective(sal).axes[0].get_xlabel() == "t*, of 0 … 12"
    _, same = pictures.compare(sal, {"unpruned": sal.model, "same": sal.model})
    assert same == {"unpruned": 1, "same": 1}


def test_questions_are_those_of_tap(sal, runs):
    tap = open_experiment("tap-textvqa", runs=runs, train_images=20, val_images=12)
    for split in ("train", "val"):
        ours, theirs = sal.task.data(split), tap.task.data(split)
        assert [record["question"] for record in ours.records] == [record["question"] for record in theirs.records]
        mine, other = ours.sample(3), theirs.sample(3)
        assert mine["ocr_tokens"] == [token.lower() for token in other["ocr_tokens"]]
        assert np.allclose(mine["ocr_boxes"], other["ocr_boxes"]) and mine["object_names"] == other["object_names"]
        assert np.allclose(mine["obj_boxes"], other["obj_boxes"], atol=1e-6)
        assert mine["image"].name == other["image"].name


def test_settings_are_checked(runs):
    for name, value in (("scp", "on"), ("scoring", "released"), ("num_eval", -1)):
        with pytest.raises(ValueError, match=f"{name} = '?{value}'?: "):
            open_experiment("sal-stvqa", runs=runs, **{name: value})
    with pytest.raises(ValueError, match="unknown setting 'targets' of sal-textvqa"):
        open_experiment("sal-textvqa", runs=runs, targets="spelled")
