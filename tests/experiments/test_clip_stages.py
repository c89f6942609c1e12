"""The CLIP experiment end to end on a tiny random model: stages, resumption, budgets, and what it says to bad input."""

import json
import os
import re
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

import lfpr
from lfpr.clip import coco
from lfpr.experiments import Cell, studies
from lfpr.experiments import clip as clip_module
from lfpr.experiments.clip import CLIPTask
from lfpr.experiments.clip_baselines import write_processor
from lfpr.experiments.grid import Planned
from lfpr.experiments.specs import SPECS
from lfpr.files import CheckpointError
from lfpr.mini.coco import captions, scene, write_coco
from lfpr.paper import collect
from lfpr.paper.figures import cascade_table
from lfpr.rescale import STEP_SIZES

SPEC = SPECS["clip-mscoco"]
SMALL = {
    "train_images": 36, "val_images": 20, "num_samples": 24, "sensitivity_samples": 24, "score_batch": 8,
    "rescale_samples": 8, "rescale_batch": 4,
    "retrain_batch": 8, "retrain_passes": 1.1, "checkpoint_every": 2, "eval_batch": 8, "shortlist": 4,
    "rest": lfpr.ReSt(last_layers=1, lr=1e-3, mask_lr=1e-2, clip=1.0),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random CLIP of two layers as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("clip") / "model"
    write_processor(folder, [text for i in range(30) for text in captions(scene(0, "train", i))])
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = sizes | special | {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "projection_dim": 16}
    vision = sizes | {"image_size": 64, "patch_size": 32, "projection_dim": 16}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(runs, folder):
    return lfpr.open_experiment("clip-mscoco", runs=runs, checkpoint=folder, **SMALL)


def test_baseline_and_check(clip):
    assert clip.task.check("val")["images"] == 20 and clip.task.check("train", limit=3)["checked"] == 3
    baseline = clip.baseline().result
    assert baseline["questions"] == 20 and {"score", "r5", "r10", "i2t_r1"} <= set(baseline)
    assert clip.task.evaluate(clip.model) == baseline
    every = clip.with_settings(eval_captions="all")
    assert every.model is clip.model and every.baseline().result["questions"] == 100
    part = clip.with_settings(num_eval=5)
    assert part.baseline().result["questions"] == 5
    # only five images: every right one is among the first five
    assert part.baseline().result["r5"] == 1 and clip.baseline().result == baseline


def test_pruning_keeps_the_budget_and_the_masked_model(clip):
    stage = clip.prune(Cell(constraint=0.5))
    assert 0.48 < stage.result["fraction"] <= 0.5 and stage.result["largest_difference"] < 1e-3
    masks, small = lfpr.Masks.load(stage.folder / "masks.safetensors"), lfpr.load_pruned(stage.folder / "model")
    tower = lfpr.prunable(small.vision_model)
    assert masks.heads_kept == stage.result["heads"] == tower.heads_per_layer
    assert clip.task.describe(small)["macs"] == clip.cost.kept(masks) == stage.result["macs"]
    assert clip.task.evaluate(small)["score"] == clip.task.evaluate_masked(masks)["score"] == stage.result["score"]
    assert lfpr.prunable(clip.model.vision_model).heads_per_layer == [4, 4]  # the unpruned model stays
    table = clip.task.compare({"full": clip.model, "small": small})
    assert table["small"]["macs"] == stage.result["macs"] < table["full"]["macs"] == clip.cost.full
    assert table["full"]["megabytes"] == sum(p.numel() for p in clip.model.parameters()) * 4 / 1e6
    assert all(row["ms_per_image"] > 0 for row in table.values())


def test_each_step_of_pruning_can_be_left_out(clip):
    names = [(True, True), (True, False), (False, True), (False, False)]
    stages = {name: clip.prune(Cell(constraint=0.5, rearranged=name[0], rescaled=name[1])) for name in names}
    assert len({stage.folder for stage in stages.values()}) == 4
    masks = {name: lfpr.Masks.load(stage.folder / "masks.safetensors") for name, stage in stages.items()}
    cell = Cell("fisher", 0.5)
    found = clip.search(clip.importance(cell), cell)
    assert masks[False, False].equal(found)
    assert masks[True, False].equal(lfpr.rearrange(found, clip.gradients(cell)))
    assert masks[False, True].binary().equal(found) and not masks[False, True].equal(found)
    assert stages[False, False].result["scale_min"] == stages[False, False].result["scale_max"] == 1


def test_a_finished_stage_is_not_computed_again(clip, folder, runs, monkeypatch):
    first = clip.prune(Cell(constraint=0.5))
    again = lfpr.open_experiment("clip-mscoco", runs=runs, checkpoint=folder, **SMALL)
    monkeypatch.setattr("lfpr.experiments.runs.Run", None)  # a build would fail
    assert again.prune(Cell(constraint=0.5)) == first
    with pytest.raises(TypeError):
        again.prune(Cell(constraint=0.45))
    with pytest.raises(TypeError):
        again.prune(Cell(constraint=0.5, rescaled=False, seed=1))


def test_all_methods_keep_the_budget_and_controls_the_split(clip):
    found = {
        name: clip.prune(Cell(name, constraint=0.5, rearranged=False)).result
        for name in (*SPEC.methods, *SPEC.controls)
    }
    assert all(0.44 < result["fraction"] <= 0.5 for result in found.values())
    fisher = found["fisher"]["heads"], found["fisher"]["neurons"]
    assert all(
        (found[name]["heads"], found[name]["neurons"]) == fisher for name in SPEC.controls if name.startswith("split")
    )
    assert found["uniform"]["heads"] == [2, 2] and found["uniform"]["neurons"] == [24, 24]
    masks = {
        name: lfpr.Masks.load(
            clip.prune(Cell(name, constraint=0.5, rearranged=False)).folder / "masks.safetensors"
        ).binary()
        for name in ("fisher", "split-random", "split-magnitude")
    }
    assert torch.equal(masks["fisher"].heads, masks["split-random"].heads)
    assert not torch.equal(masks["fisher"].neurons, masks["split-random"].neurons)
    halved = clip.prune(Cell(percentile=50, rearranged=False)).result
    assert sum(halved["heads"]) + sum(halved["neurons"]) == (2 * 4 + 2 * 48) / 2


def test_label_free_scores_read_no_caption(clip, monkeypatch):
    monkeypatch.setattr(coco, "batches", None)
    monkeypatch.setattr(clip_module, "text_features", None)
    fresh = clip.with_settings(num_samples=16)
    scores = fresh.importance(Cell("label-free"))
    assert (scores.heads > 0).all() and (scores.neurons > 0).all()


def test_distillation_goes_on_after_an_interruption(clip, monkeypatch):
    stage = clip.retrain(Cell(constraint=0.5, seed=3))
    log = json.loads((stage.folder / "log.json").read_text())
    assert stage.result["iterations"] == 5 and [row["iteration"] for row in log] == [1, 2, 3, 4, 5]
    whole = load_file(stage.folder / "model/model.safetensors")
    (stage.folder / "provenance.json").unlink()  # as if the stage had never been finished
    wanted, calls = clip_module.distillation_loss, []

    def counted(model, stop=None):
        real = wanted(model)

        def loss(batch):
            calls.append(len(calls))
            if len(calls) == stop:
                raise KeyboardInterrupt
            return real(batch)

        return loss

    monkeypatch.setattr(clip_module, "distillation_loss", lambda model: counted(model, stop=4))
    with pytest.raises(KeyboardInterrupt):
        clip.retrain(Cell(constraint=0.5, seed=3))
    (checkpoint,) = stage.folder.parent.glob("*.checkpoint")
    calls.clear()
    monkeypatch.setattr(clip_module, "distillation_loss", counted)
    again = clip.retrain(Cell(constraint=0.5, seed=3))
    assert len(calls) == 3  # the checkpoint is of two iterations
    assert not checkpoint.exists()  # removed when the result is kept
    times = {"minutes": 0, "seconds": 0}
    assert again.result | times == stage.result | times
    resumed = load_file(again.folder / "model/model.safetensors")
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    values = lfpr.Masks.load(again.folder / "masks.safetensors")
    before = lfpr.Masks.load(clip.prune(Cell(constraint=0.5, seed=3)).folder / "masks.safetensors")
    assert ((values.neurons != 0) == (before.neurons != 0)).all() and ((values.heads != 0) == (before.heads != 0)).all()


def test_what_distillation_trains_names_its_stage(clip):
    stages = [clip.retrain(Cell(constraint=0.5, trained=trained)) for trained in ("masks", "last", "all")]
    assert len({stage.folder for stage in stages}) == 3
    assert [stage.result["last_layers"] for stage in stages] == [0, 1, 0]
    half = clip.retrain(Cell(constraint=0.5, percent=50, last_layers=2))
    assert half.result["percent"] == 50 and half.result["last_layers"] == 2 and half.folder != stages[1].folder
    assert [stage.result["iterations"] for stage in (stages[1], half)] == [5, 2]  # 1.1 passes in batches of 8
    less = clip.with_settings(retrain_passes=0.05).retrain(Cell(constraint=0.5))
    assert less.result["iterations"] == 1 and less.folder != stages[1].folder
    old = load_file(clip.prune(Cell(constraint=0.5)).folder / "model/model.safetensors")
    new = load_file(stages[0].folder / "model/model.safetensors")
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    allowed = re.compile(r"vision_model\.(.*norm\d?\.(weight|bias)|.*(out_proj|fc2)\.weight)")
    assert changed and all(allowed.fullmatch(name) for name in changed)


def test_sensitivity_walks_layer_by_layer_and_goes_on(clip):
    stage = studies.sensitivity_walk(clip)
    rows = stage.result["steps"]
    assert [(row["step"], row["rescaled"]) for row in rows] == [(1, False), (1, True), (2, False), (2, True)]
    assert [row["removed"] for row in rows[::2]] == [3, 6]
    head = clip.cost.head / clip.cost.full
    assert [row["fraction"] for row in rows[::2]] == pytest.approx([1 - 3 * head, 1 - 6 * head])
    masks = lfpr.Masks.load(stage.folder / "masks-2.safetensors")
    assert masks.heads_kept == [1, 1] and masks.neurons_kept == [48, 48]
    assert rows[2]["score"] == clip.task.evaluate_masked(masks)["score"]
    steps = clip.runs.finished("step")
    assert len(steps) == 2
    (stage.folder / "provenance.json").unlink()  # interrupted at the end: no step is computed again
    times = [step.provenance["finished"] for step in steps]
    assert studies.sensitivity_walk(clip).result == stage.result
    assert [step.provenance["finished"] for step in clip.runs.finished("step")] == times


def test_released_scoring_is_that_of_the_fork_s_samples(clip):
    """Annotation by annotation, drawn with replacement, a gradient of the model's own loss for each 32."""
    released = clip.with_settings(scoring="released", num_samples=70)
    table = json.loads(coco.annotation_file(clip.task.root, "train").read_text())
    drawn = np.random.RandomState(1).choice(128, 70)
    pairs = [table["annotations"][i] for i in drawn]
    assert len({(row["image_id"], row["caption"]) for row in pairs}) < 70  # some twice
    heads, encoder = [], clip.encoder
    for start in range(0, 70, 32):
        rows = pairs[start : start + 32]
        images = [
            coco.read_image((coco.image_folder(clip.task.root, "train").found() / f"{r['image_id']:012}.jpg"), 0)
            for r in rows
        ]
        pixels = clip.task.processor.normalise(np.stack([clip.task.processor.crop(image) for image in images]))
        batch = clip.task.processor.tokens([row["caption"] for row in rows]) | {"pixel_values": pixels}
        loss = lambda batch: clip.model(**batch, return_loss=True).loss  # noqa: E731
        heads.append(lfpr.collect_gradients(encoder, [batch], loss).heads)
    importance = lfpr.MaskGradients(torch.cat(heads), torch.zeros(3, 2, 48)).importance().heads
    found = released.importance(Cell("fisher", seed=1))
    torch.testing.assert_close(found.heads, importance, rtol=1e-4, atol=0)
    assert not torch.allclose(clip.importance(Cell("fisher", seed=1, num_samples=70)).heads, importance, rtol=0.01)
    cell = released.cell(Cell("label-free", seed=1))
    seen = torch.cat([batch["image_id"] for batch in released.task.batches(cell)])
    assert seen.tolist() == [row["image_id"] for row in pairs] and not released.task.per_sample(cell)
    fitted = torch.cat([batch["image_id"] for batch in released.task.released_calibration(cell)])
    assert torch.equal(fitted, seen)
    assert released.sample_key(cell)["batch"] == 32 and released.task.sample_numbers(cell) == {"samples": 70}


def test_rescaling_as_released_fits_all_samples_to_the_unpruned_model(clip):
    own, plain, ours = (Cell(constraint=0.5, rescaled=value) for value in ("released", False, True))
    stage, masks = clip.prune(own), clip.searched(plain)
    batches = clip.task.images("train", 32, indices=clip.task.sample("train", 24, 0))
    expected = lfpr.released.rescale(clip.encoder, masks, batches, clip.task.run)
    assert lfpr.Masks.load(stage.folder / "masks.safetensors").equal(expected)
    assert clip.rescaled(masks, plain) is masks and not clip.rescaled(masks, ours).equal(expected)
    assert len({clip.prune(cell).folder for cell in (own, plain, ours)}) == 3


def test_keys_of_stages_stay_what_they_were(clip):
    for rescaled, fitting in ((True, {"rescale_samples": 8, "step_sizes": STEP_SIZES, "ridge": 0.1}), (False, {})):
        place = {"method": "fisher", "heuristic": "sum", "constraint": 0.5, "percentile": None, "seed": 0}
        sampling = {"num_samples": 24, "batch": 8, "scoring": "per-sample", "num_eval": 0, "eval_captions": "first"}
        expected = place | {"rearranged": True, "rescaled": rescaled, "inputs": clip.task.inputs} | sampling | fitting
        assert clip._key("prune", clip.cell(Cell(constraint=0.5, rescaled=rescaled))) == expected


def test_another_batch_behind_the_importance_is_another_retrained_model(runs, folder):
    """Both it and the batch of retraining are a batch."""
    exp = lfpr.open_experiment("clip-mscoco", runs=runs, checkpoint=folder, **SMALL | {"score_batch": 4})
    own = lfpr.open_experiment("clip-mscoco", runs=runs, checkpoint=folder, **SMALL)
    cell = own.cell(Cell(constraint=0.5))
    for name in ("prune", "retrain"):
        assert exp._key(name, cell) != own._key(name, cell)


def test_sensitivity_pruning_is_a_method(clip, monkeypatch):
    stage = clip.prune(Cell("sensitivity", heads_removed=3, seed=8))
    assert stage.result["heads"] in ([1, 4], [4, 1]) and stage.result["neurons"] == [48, 48]
    assert stage.folder.name.startswith("sensitivity-none-8-")
    head = clip.cost.head / clip.cost.full
    assert stage.result["fraction"] == pytest.approx(1 - 3 * head) and stage.result["scale_max"] == 1
    assert clip.prune(Cell("sensitivity", step=1, seed=8)).folder == stage.folder  # the same model
    (walk,) = [walk for walk in clip.runs.finished("walk") if walk.provenance["parameters"]["seed"] == 8]
    assert sorted(path.name for path in walk.folder.glob("*.pt")) == ["head_mask_0.pt", "head_mask_1.pt"]
    assert walk.result == {"removed": [3, 6], "samples": 24}
    for file in walk.folder.glob("*_1.pt"):
        given = clip.prune(Cell(masks=str(file)))
        assert given.result["heads"] == [1, 1] == clip.prune(Cell(heads_removed=6, seed=8)).result["heads"]
    monkeypatch.setattr("lfpr.experiments.methods.all_but_one", None)  # the whole walk is there
    fitted = clip.prune(Cell(heads_removed=6, seed=8, rescaled=True))
    assert fitted.result["scale_max"] != 1 and fitted.result["heads"] == [1, 1]
    retrained = clip.retrain(Cell(heads_removed=3, seed=8))
    assert retrained.result["heads"] == stage.result["heads"] and retrained.result["iterations"] == 5


def test_masks_without_a_search_are_collected(clip, smaller):
    collector, cells = collect.Collector(), (Cell(heads_removed=3), Cell(heads_removed=6), Cell("fisher", 0.5))
    exp = clip.with_settings(first_level=str(smaller), shortlists=(8, 3))
    for cell in cells:
        exp.downstream(exp.prune(cell))
        with exp.runs.load_only():
            collect._cell(collector, exp, Planned(cell, ("pruned",)))
    collector.rows["results"].append(collect.unpruned_row(exp))
    assert not collector.missing
    tables = collector.tables()
    results, cascades = tables["results"], tables["cascade"]
    assert results.variant.tolist() == ["heads_removed=3", "heads_removed=6", "", ""]
    assert results.heuristic.tolist() == ["none", "none", "sum", "sum"] and results.constraint.isna().sum() == 2
    assert cascades.m.tolist() == [4, "8, 3"] * 3 and cascades.fraction.nunique() == 3
    assert set(tables["growth"].constraint) == {0.5} == set(tables["layers"].constraint)
    assert len(cascade_table(cascades, results, exp.name)) == 1 + 6


def test_sensitivity_pruning_draws_as_the_fork_does(clip, monkeypatch):
    asked = []
    monkeypatch.setattr(clip_module, "draw", lambda *arguments: asked.append(arguments) or [0, 1, 2])
    released = clip.with_settings(scoring="released", sensitivity_samples=128)
    cell = released.cell(Cell(heads_removed=3, seed=8))
    assert cell.num_samples == 128 and len(list(released.task.batches(cell))) == 1
    list(released.task.batches(released.cell(Cell("fisher", seed=1))))
    assert asked == [(180, 128, 8, 2048), (180, 24, 1, None)]


def test_a_walk_goes_on_after_an_interruption(clip, monkeypatch):
    real, done = lfpr.all_but_one, []

    def once(*arguments, **options):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr("lfpr.experiments.methods.all_but_one", once)
    with pytest.raises(KeyboardInterrupt):
        clip.prune(Cell(heads_removed=6, seed=5))
    done.clear()
    monkeypatch.setattr("lfpr.experiments.methods.all_but_one", once)
    assert clip.prune(Cell(heads_removed=6, seed=5)).result["heads"] == [1, 1]  # the second step alone


def test_given_masks_are_taken_as_they_are(clip, tmp_path):
    masks = lfpr.Masks(torch.tensor([[0, 2.5, 1, 0], [1, 1, 0, -0.5]]), torch.linspace(-1, 3, 96).view(2, 48))
    masks.neurons[1, ::2] = 0
    lfpr.released.save_masks(masks, tmp_path)
    stage = clip.prune(Cell(masks=str(tmp_path)))
    assert lfpr.Masks.load(stage.folder / "masks.safetensors").equal(masks)
    assert stage.result["score"] == clip.task.evaluate_masked(masks)["score"]
    assert stage.result["fraction"] == pytest.approx(clip.cost.fraction(masks)) and stage.result["scale_max"] == 3
    assert clip.prune(Cell(masks=str(tmp_path / "head_mask.pt"))).folder == stage.folder
    masks.heads[0, 0] = 1
    lfpr.released.save_masks(masks, tmp_path)
    assert clip.prune(Cell(masks=str(tmp_path))).folder != stage.folder  # other files
    assert clip.retrain(Cell(masks=str(tmp_path))).result["heads"] == [3, 3]
    with pytest.raises(FileNotFoundError, match="masks = .*nowhere.*: no mask file .*nowhere"):
        clip.prune(Cell(masks=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=r"masks of heads \(12, 12\) and neurons \(12, 3072\), the model has"):
        clip.prune(Cell(masks="data/published/clip-masks/clip-vit-base-patch16_0.4_seed_1"))  # of the checkout


def test_models_are_kept_as_the_fork_s_files_too(clip, tmp_path):
    exp = clip.with_settings(released_files=True)
    cells = Cell(constraint=0.5, seed=1), Cell(heads_removed=3, seed=8)
    fisher, walked = (exp.prune(cell) for cell in cells)
    plain, same = clip.prune(cells[0]), {"seconds": 0}
    assert fisher.folder != plain.folder and fisher.result | same == plain.result | same
    theirs = lfpr.released.outputs(fisher.folder, f"openai/{clip.task.checkpoint.split('/')[-1]}", 0.5, 1)
    masks = lfpr.Masks.load(fisher.folder / "masks.safetensors")
    assert lfpr.released.load_masks(theirs).equal(masks)
    model = lfpr.released.load_clip(fisher.folder / "pruned_models/vitB32_pruned_0.5_1.pt", clip.task.config)
    assert exp.task.evaluate(model)["score"] == fisher.result["score"]  # the user's own file, scored
    (step,) = walked.folder.glob("outputs/*")
    masks = lfpr.Masks.load(walked.folder / "masks.safetensors")
    assert step.name == "head_mask_0.pt" and lfpr.released.load_masks(step, encoder=clip.encoder).equal(masks)
    assert [path.name for path in walked.folder.glob("pruned_models/*")] == ["vitB32_pruned_sensitivity_3.pt"]


@pytest.fixture(scope="module")
def smaller(folder, tmp_path_factory):
    """Another CLIP, of other sizes: images of 32 pixels, features of 8."""
    other = tmp_path_factory.mktemp("clip") / "smaller"
    other.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (other / file.name).write_bytes(file.read_bytes())
    settings = json.loads((other / "preprocessor_config.json").read_text())
    settings |= {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    (other / "preprocessor_config.json").write_text(json.dumps(settings))
    config = CLIPConfig.from_pretrained(folder)
    config.vision_config.image_size, config.projection_dim = 32, 8
    config.vision_config.projection_dim = config.text_config.projection_dim = 8
    torch.manual_seed(1)
    model = CLIPModel(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(other)
    return other


def test_another_model_ranks_first_by_its_own_towers(clip, smaller, runs):
    pruned = clip.prune(Cell(constraint=0.5))
    assert set(clip.downstream(pruned)) == {"cascade"}
    exp = clip.with_settings(first_level=str(smaller), shortlists=(8, 3))
    alone = lfpr.open_experiment("clip-mscoco", runs=runs, checkpoint=smaller, **SMALL)
    first, second = alone.task.reference, clip.task.reference
    assert exp.task.first.reference.images.features.equal(first.images.features)
    assert first.images.features.shape == (20, 8) and second.images.features.shape == (20, 16)
    found = exp.downstream(pruned)["levels"].result
    ranked = load_file(pruned.folder / "features.safetensors")["image.features"]
    levels = [(first.images.features, first.texts.features), (ranked, second.texts.features), second[:2]]
    levels[2] = second.images.features, second.texts.features
    expected = lfpr.clip.cascade_levels([lfpr.clip.Level(*level) for level in levels], [8, 3], pairs=second.pairs)
    assert [found[f"r{k}"] for k in (1, 5, 10)] == [expected[f"r{k}"] for k in (1, 5, 10)] and found["m"] == [8, 3]
    assert [found["reranked_pruned"], found["reranked"]] == expected["reranked"]
    times = [found[f"ms_{name}"] for name in ("first", "pruned", "full")]
    assert found["speedup"] == pytest.approx(times[2] / (times[0] + 0.1 * times[1] + 0.1 * times[2]))
    assert found["speedup_query"] == pytest.approx(times[2] / (times[0] + 8 / 20 * times[1] + 3 / 20 * times[2]))
    assert exp.prune(Cell(constraint=0.5)).folder == pruned.folder  # which does not depend on it
    for settings, message in (
        ({"first_level": "no such folder at all"}, "first_level = .*: neither a folder nor a hub id"),
        ({"shortlists": (3, 8)}, r"shortlists = \(3, 8\): must be two whole numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            clip.with_settings(**settings)


@pytest.mark.parametrize("absent", ["annotations", "images"])
def test_the_validation_split_is_not_needed_to_prune(folder, tmp_path, absent):
    root = tmp_path / "coco"
    write_coco(root, 36, 20)
    path = {"annotations": root / "annotations/captions_val2017.json", "images": root / "val2017"}[absent]
    path.rename(tmp_path / "later")
    given = {"profile": "full", "data_root": root, "checkpoint": folder, "runs": tmp_path / "runs", "workers": 0}
    exp = lfpr.open_experiment("clip-mscoco", **given, **SMALL)
    assert str(path) in exp.task.unscored and exp.task.check("val")["first_bad"] == exp.task.unscored
    stages = [exp.baseline(), exp.prune(Cell(constraint=0.5)), exp.retrain(Cell(constraint=0.5))]
    for stage in stages:
        assert np.isnan(stage.result["score"]) and stage.result["unscored"] == exp.task.unscored
        assert stage.result["questions"] == 0 and np.isnan(list(exp.scores(stage.result).values())).all()
    assert stages[1].result["largest_difference"] < 1e-3 and lfpr.load_pruned(stages[1].folder / "model")
    assert exp.downstream(stages[1]) == {} and exp.speed(Cell(constraint=0.5)).result["pruned"]["ms_per_image"] > 0
    with pytest.raises(ValueError, match="nothing is scored"):
        exp.task.features()
    (tmp_path / "later").rename(path)
    again = lfpr.open_experiment("clip-mscoco", **given, **SMALL)
    scored = again.prune(Cell(constraint=0.5))
    assert scored.folder != stages[1].folder and scored.result["questions"] == 20 and scored.result["score"] >= 0
    assert again.task.unscored is None and "unscored" not in scored.result


def test_cascades_of_pruned_and_of_retrained_models(clip):
    pruned = clip.prune(Cell(constraint=0.5))
    found = studies.cascade(clip, pruned).result
    assert found["m"] == 4 and 4 / 20 <= found["reranked"] <= 1 and found["fraction"] == pruned.result["fraction"]
    share = found["ms_pruned"] / found["ms_full"]
    assert found["speedup"] == pytest.approx(1 / (share + 0.1))
    assert found["speedup_query"] == pytest.approx(1 / (share + 4 / 20))
    assert found["speedup_measured"] == pytest.approx(1 / (share + found["reranked"]))
    assert found["break_even"] == max(0, 1 - share)
    whole = studies.cascade(clip, pruned, m=20).result
    assert [whole[name] for name in ("score", "r5", "r10")] == [
        clip.baseline().result[n] for n in ("score", "r5", "r10")
    ]
    assert studies.cascade(clip, clip.retrain(Cell(constraint=0.5))).folder != studies.cascade(clip, pruned).folder
    with pytest.raises(ValueError, match="m = 21: must be from 1 to the 20 images"):
        studies.cascade(clip, pruned, m=21)


def test_eccv_metrics_get_all_captions_with_cocos_ids(clip, monkeypatch):
    every, asked = clip.with_settings(eval_captions="all"), []

    class Metrics:
        coco_ids = every.task.reference.texts.caption_id.numpy()

        def compute_all_metrics(self, i2t, t2i, **options):
            asked.append((i2t, t2i))
            return {"eccv_r1": {"t2i": 0.5}}

    monkeypatch.setitem(sys.modules, "eccv_caption", SimpleNamespace(Metrics=Metrics))
    stages = None, every.prune(Cell(constraint=0.5))
    assert [studies.eccv(every, stage) for stage in stages] == [{"eccv_r1_t2i": 0.5}] * 2
    for i2t, t2i in asked:
        assert set(i2t) == set(every.task.data("val").image_ids) and len(t2i) == 100
        assert all(len(best) == 50 for best in i2t.values()) and set(t2i) == {p.caption_id for p in pairs(every)}
    assert asked[0] != asked[1]
    with pytest.raises(ValueError, match="lacks 80 captions of the Karpathy test split"):
        studies.eccv(clip)


def pairs(experiment):
    return experiment.task.data("val", captions="all").pairs


def test_scales_with_and_without_a_ridge(clip):
    stage = studies.solvers(clip, Cell(constraint=0.5))
    masks = {
        name: lfpr.Masks.load(stage.folder / f"{name}.safetensors") for name in ("none", "ridge", "released solver")
    }
    assert all(masks["none"].equal(found.binary()) for found in masks.values())
    assert masks["ridge"].equal(lfpr.Masks.load(clip.prune(Cell(constraint=0.5)).folder / "masks.safetensors"))
    assert stage.result["none"]["scale_max"] == 1 and {"score", "r10"} <= set(stage.result["released solver"])
    ridge = stage.result["ridge"]
    assert -10 <= ridge["scale_min"] < ridge["scale_max"] <= 10
    table = pd.DataFrame(studies.scales(clip, Cell(constraint=0.5)))
    assert table.solver.value_counts().to_dict() == {"released": 72, "released solver": 4, "ridge": 4}
    own = table[table.solver == "ridge"]
    assert own.largest.max() == pytest.approx(ridge["scale_max"]) and set(own.fraction) == {own.fraction.iloc[0]}


def test_broken_images_stop_the_run_or_are_left_out(folder, tmp_path):
    root = tmp_path / "coco"
    write_coco(root, 36, 20)
    images = sorted((root / "val2017").iterdir())
    images[3].write_bytes(b"no image")
    given = {"profile": "full", "data_root": root, "checkpoint": folder, "runs": tmp_path / "runs", "workers": 0}
    stopped = lfpr.open_experiment("clip-mscoco", **given, **SMALL)
    assert stopped.task.check("val")["bad"] == 1
    with pytest.raises(ValueError, match=f"image {int(images[3].stem)}: .* cannot be decoded"):
        stopped.baseline()
    assert not stopped.runs.finished("features")
    skipped = lfpr.open_experiment("clip-mscoco", **given, **SMALL, on_error="skip", eval_captions="all")
    assert skipped.baseline().result["questions"] == 95
    train = sorted((root / "train2017").iterdir())
    train[0].unlink()
    assert skipped.retrain(Cell(constraint=0.5)).result["iterations"] == 5
    assert skipped.teach().result["images"] == 35
    assert skipped.prune(Cell(constraint=0.5)).result["questions"] == 95


@pytest.mark.parametrize("call, message", [
    (lambda e: e.prune(Cell(constraint=0)), r"constraint = 0: must be in \(0, 1\]"),
    (lambda e: e.prune(Cell(constraint=1.2)), "constraint = 1.2"),
    (lambda e: e.prune(Cell("l1")), "method = 'l1': must be one of"),
    (lambda e: e.prune(Cell(percentile=100)), "percentile = 100"),
    (lambda e: e.retrain(Cell(percent=0)), "percent = 0"),
    (lambda e: e.retrain(Cell(trained="head")), "trained = 'head': must be one of"),
    (lambda e: e.retrain(Cell(last_layers=9)), "last_layers = 9: the encoder has only 2 layers"),
    (lambda e: e.gradients(Cell("random")), "method = 'random': has no gradients"),
    (lambda e: e.prune(Cell(heads_removed=4)), r"heads_removed = 4: must be one of \[3, 6\]"),
    (lambda e: e.prune(Cell("sensitivity", step=3)), r"step = 3: sensitivity pruning of 2 layers has steps 1 … 2"),
    (lambda e: e.importance(Cell(heads_removed=3)), r"gives masks and no importance: call searched\(cell\)"),
    (lambda e: e.prune(Cell(step=2)), "step = 2: clip-mscoco decodes no steps"),
])  # fmt: skip
def test_bad_cells_are_named(clip, call, message):
    with pytest.raises(ValueError, match=message):
        call(clip)


@pytest.mark.parametrize("settings, message", [
    ({"num_samples": 0}, "num_samples = 0: must be at least 1"),
    ({"eval_captions": "third"}, "eval_captions = 'third': must be one of"),
    ({"on_error": "ignore"}, "on_error = 'ignore': must be one of"),
    ({"retrain_passes": 0}, "retrain_passes = 0: must be above 0"),
    ({"reranked": 2}, r"reranked = 2: must be in \[0, 1\]"),
    ({"word_vectors": "hashed"}, r"unknown setting 'word_vectors'"),
])  # fmt: skip
def test_bad_settings_are_named_before_work(tmp_path, folder, settings, message):
    with pytest.raises(ValueError, match=message):
        lfpr.open_experiment("clip-mscoco", runs=tmp_path, checkpoint=folder, **settings)
    assert not list(tmp_path.iterdir())


def test_there_are_no_more_workers_than_cores(clip, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert [clip.with_settings(workers=wanted).task.reading["workers"] for wanted in (0, 1, 4)] == [0, 1, 2]


def test_bad_checkpoints_and_folders_are_named(tmp_path, folder):
    with pytest.raises(CheckpointError, match="neither a folder nor a hub id"):
        lfpr.open_experiment("clip-mscoco", runs=tmp_path, checkpoint=tmp_path / "none" / "at all")
    with pytest.raises(FileNotFoundError, match="data_root = .*nowhere"):
        lfpr.open_experiment("clip-mscoco", "full", tmp_path, tmp_path / "nowhere", folder)
    cut = tmp_path / "cut"
    cut.mkdir()
    for file in folder.iterdir():
        (cut / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    with pytest.raises(CheckpointError, match="cannot be read"):
        lfpr.open_experiment("clip-mscoco", runs=tmp_path, checkpoint=cut).prune()


def test_profiles_differ_in_amounts_only():
    assert np.all([settings.score_batch == 32 for settings in CLIPTask.SETTINGS.values()])  # as published
    assert CLIPTask.SETTINGS["full"].num_samples == 8192 and CLIPTask.SETTINGS["full"].shortlist == 50
