"""The experiments end to end on a little data, and what they say to bad input."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import lfpr
from lfpr.experiments import EXPERIMENTS, Cell, open_experiment
from lfpr.experiments.runs import Unfinished
from lfpr.files import SHIPPED, CheckpointError, checkout

TAP = [name for name in EXPERIMENTS if name.startswith("tap")]
SMALL = {"train_images": 24, "val_images": 16, "num_samples": 40, "score_batch": 20, "retrain_batch": 16}


@pytest.fixture(scope="module")
def tap(runs):
    return open_experiment("tap-textvqa", runs=runs, **SMALL)


def test_shipped_baselines_are_small_and_say_how_they_were_made():
    for name in TAP:
        about = json.loads((SHIPPED / f"{name}.json").read_text())
        assert {"config", "recipe", "score", "minutes"} <= set(about) and about["score"] >= 0.75
        assert (SHIPPED / f"{name}.safetensors").stat().st_size <= 4e6


def test_baseline_answers_well_on_new_questions(tap):
    baseline = tap.baseline().result
    assert baseline["questions"] == 64 and baseline["score"] > 0.6


def test_pruning_keeps_the_budget_and_the_masked_model(tap):
    stage = tap.prune(Cell("label-free", 0.4))
    assert stage.result["fraction"] <= 0.4 and stage.result["largest_difference"] < 1e-3
    masks, small = lfpr.Masks.load(stage.folder / "masks.safetensors"), lfpr.load_pruned(stage.folder / "model")
    assert masks.heads_kept == stage.result["heads"] == lfpr.prunable(small).heads_per_layer
    assert tap.task.evaluate(small)["score"] == stage.result["score"]


def test_a_finished_stage_is_not_computed_again(tap, monkeypatch):
    first = tap.prune(Cell("label-free", 0.4))
    monkeypatch.setattr("lfpr.experiments.runs.Run", None)  # a build would fail
    assert tap.prune(Cell("label-free", 0.4)) == first
    with pytest.raises(TypeError):
        tap.prune(Cell("label-free", 0.41))


def test_retraining_trains_what_it_should(tap):
    pruned = tap.prune(Cell("label-free", 0.4))
    stage = tap.retrain(Cell("label-free", 0.4, percent=50, last_layers=1))
    assert stage.result["heads"] == pruned.result["heads"] and stage.result["iterations"] == 3
    log = json.loads((stage.folder / "log.json").read_text())
    assert [row["iteration"] for row in log] == [1, 2, 3] and all(row["loss"] > 0 for row in log)
    values = lfpr.Masks.load(stage.folder / "masks.safetensors")
    before = lfpr.Masks.load(pruned.folder / "masks.safetensors")
    assert ((values.heads != 0) == (before.heads != 0)).all() and not torch.equal(values.neurons, before.neurons)
    old, new = (load_file(s.folder / "model" / "model.safetensors") for s in (pruned, stage))
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    last = [name for name in old if name.startswith("mmt.encoder.layer.3.") and name.endswith("weight")]
    assert {"classifier.module.weight", "ocr_ptr_net.key.weight", *last} <= changed
    # of frozen layers, only the output projections change: the mask values are folded into them
    frozen = {name for name in changed if not name.startswith(("classifier", "ocr_ptr_net", "mmt.encoder.layer.3."))}
    assert frozen and all(name.endswith(("attention.output.dense.weight", "output.dense.weight")) for name in frozen)


def test_methods_and_heuristics(tap):
    for method in ("fisher", "absolute", "magnitude", "l1", "random"):
        assert 0.35 < tap.prune(Cell(method, 0.4)).result["fraction"] <= 0.4
    halved = tap.prune(Cell("label-free", percentile=50)).result
    kept = sum(halved["heads"]) + sum(halved["neurons"])
    assert kept == (48 + 4 * 384) / 2


def test_rescaling_as_released_has_a_teacher_at_the_root_of_the_constraint(tap, monkeypatch):
    """Kwon et al.: the search's masks at √C, neither rearranged nor rescaled; the importance's sample."""
    asked = {}

    def rescale(encoder, masks, batches, forward, teacher, **options):
        asked.update(teacher=teacher, batches=list(batches), options=options)
        return lfpr.released.rescale(encoder, masks, asked["batches"], forward, teacher, **options)

    monkeypatch.setattr("lfpr.experiments.experiment.released_rescale", rescale)
    cell = Cell("fisher", 0.49, rearranged=True, rescaled="released")
    stage = tap.prune(cell)
    importance = tap.importance(cell)
    assert asked["teacher"].equal(lfpr.search(importance, tap.cost, 0.7))
    assert sum(len(batch["index"]) for batch in asked["batches"]) == 40 == tap.settings.num_samples
    assert asked["options"]["first_token"] is False  # answers are read at other positions
    masks = lfpr.Masks.load(stage.folder / "masks.safetensors")
    assert masks.binary().equal(tap.searched(replace(cell, rescaled=False))) and not masks.equal(masks.binary())
    assert stage.folder != tap.prune(replace(cell, rescaled=True)).folder
    by_percentile = tap.task.released_teacher(Cell(percentile=51))
    assert by_percentile.percentile == pytest.approx(30) and by_percentile.constraint is None


def test_given_masks_are_retrained_by_the_schedule_of_what_they_keep(tap, tmp_path):
    masks = tap.searched(Cell("label-free", 0.4))
    lfpr.released.save_masks(masks, tmp_path)
    given, own = Cell(masks=str(tmp_path)), Cell("label-free", 0.42)
    stage = tap.prune(given)
    assert stage.result["heads"] == masks.heads_kept and 0.38 < stage.result["fraction"] <= 0.4
    assert stage.result["score"] == tap.prune(Cell("label-free", 0.4)).result["score"]
    assert (
        tap.amounts(given)["last_layers"]
        == tap.amounts(replace(own, constraint=stage.result["fraction"]))["last_layers"]
    )
    assert tap.retrain(replace(given, percent=25)).result["heads"] == masks.heads_kept


def test_pseudo_labels_are_the_unpruned_models_answers(tap):
    labels = json.loads((tap.teach().folder / "labels.json").read_text())
    data = tap.task.data("train", limit=8)
    predictions = tap.model.generate(data[list(range(8))])[1].tolist()
    eos = tap.task.config.eos_index
    for record, row in zip(data.records, predictions, strict=True):
        label = labels[str(record["question_id"])]
        end = row.index(eos)
        assert label[: end + 1] == row[: end + 1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"experiment": "tap-vizwiz"}, r"experiment = 'tap-vizwiz': must be one of \['tap-textvqa'"),
        ({"profile": "tiny"}, r"profile = 'tiny': must be one of \['mini', 'full'\]"),
        ({"profile": "full"}, "profile = 'full' needs data_root .found None."),
        ({"profile": "full", "data_root": 2017}, "data_root = 2017: must be text or a path"),
        ({"checkpoint": ["a"]}, r"checkpoint = \['a'\]: must be text or a path"),
        ({"num_sample": 3}, r"unknown setting 'num_sample' of tap-textvqa: did you mean num_samples"),
        ({"num_samples": 0}, "num_samples = 0: must be at least 1"),
        ({"word_vectors": "glove"}, "word_vectors = 'glove'"),
    ],
)
def test_bad_parameters_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        open_experiment(runs=tmp_path, **arguments)
    assert not list(tmp_path.iterdir())  # before any work


def test_bad_cells_are_named_before_work(tap, tmp_path):
    with pytest.raises(ValueError, match="constraint = 2"):
        open_experiment(runs=tmp_path).retrain(Cell(constraint=2))
    assert not list(tmp_path.iterdir())  # not even the data were rendered
    for constraint in (0, -0.1, 1.2, float("nan")):
        with pytest.raises(ValueError, match="constraint = .*: must be"):
            tap.prune(Cell(constraint=constraint))
    with pytest.raises(ValueError, match="method = 'l2': must be one of"):
        tap.retrain(Cell("l2"))
    with pytest.raises(ValueError, match="percentile = 100"):
        tap.prune(Cell(percentile=100))
    with pytest.raises(ValueError, match="percent = 0"):
        tap.retrain(Cell(constraint=0.5, percent=0))
    with pytest.raises(ValueError, match=r"last_layers = 9: .* 4 layers"):
        tap.retrain(Cell(constraint=0.5, percent=10, last_layers=9))


def test_bad_files_are_named(tmp_path, runs):
    with pytest.raises(FileNotFoundError, match="data_root = .*nowhere"):
        open_experiment(profile="full", data_root=tmp_path / "nowhere", checkpoint=SHIPPED / "tap-textvqa.safetensors")
    with pytest.raises(CheckpointError, match=r"checkpoint = .*none.ckpt: no such file"):
        open_experiment(profile="full", data_root=tmp_path, checkpoint=tmp_path / "none.ckpt")
    cut = tmp_path / "tap-textvqa.safetensors"
    cut.write_bytes((SHIPPED / "tap-textvqa.safetensors").read_bytes()[:1000])
    (tmp_path / "tap-textvqa.json").write_text((SHIPPED / "tap-textvqa.json").read_text())
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_experiment(runs=runs, checkpoint=cut, **SMALL).prune()
    state = load_file(SHIPPED / "tap-textvqa.safetensors")
    save_file(state | {"classifier.module.bias": torch.zeros(3)}, cut)
    with pytest.raises(CheckpointError, match=r"classifier.module.bias has shape \[3\]"):
        open_experiment(runs=runs, checkpoint=cut, **SMALL).prune()
    save_file(state | {"mmt.encoder.layer.1.output.dense.bias": torch.full((96,), torch.nan)}, cut)
    broken = open_experiment(runs=runs, checkpoint=cut, **SMALL)
    finished = broken.runs.finished("prune")
    with pytest.raises(ValueError, match="NaN or infinite"):
        broken.prune()
    assert broken.runs.finished("prune") == finished != []  # what was finished stays, and nothing half-made counts


def test_masks_of_tap_are_rearranged_on_request(tap):
    cell = Cell("fisher", 0.4)
    moved_cell = replace(cell, rearranged=True)
    plain, moved = tap.prune(cell), tap.prune(moved_cell)
    masks = [lfpr.Masks.load(stage.folder / "masks.safetensors") for stage in (plain, moved)]
    gradients = tap.gradients(cell)
    assert gradients.importance().equal(tap.importance(cell))
    assert masks[1].equal(lfpr.rearrange(masks[0], gradients)) and masks[1].heads_kept == masks[0].heads_kept
    retrained = tap.retrain(replace(moved_cell, rescaled=True))
    assert retrained.result["neurons"] == moved.result["neurons"]
    with pytest.raises(ValueError, match="rearranged = True: method 'magnitude' has no gradients"):
        tap.prune(Cell("magnitude", rearranged=True))
    with pytest.raises(ValueError, match="method = 'magnitude': has no gradients"):
        tap.gradients(Cell("magnitude"))


def test_what_is_not_finished_leaves_no_stage_and_no_lock(tap):
    cell = Cell("random", 0.7)
    with pytest.raises(KeyboardInterrupt), tap.stage("prune", cell) as run:
        assert run.folder.is_dir()
        raise KeyboardInterrupt
    with tap.runs.load_only(), pytest.raises(Unfinished):
        tap.prune(cell)
    stage = tap.prune(cell)
    with tap.stage("prune", cell) as run:
        assert run is None
    assert not stage.folder.with_name(f"{stage.folder.name}.unfinished").exists()


def test_nothing_follows_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_experiment().runs.folder == checkout() / "runs" / "tap-textvqa" / "mini"
    assert open_experiment(runs="here").runs.folder == tmp_path / "here" / "tap-textvqa" / "mini"
    monkeypatch.setattr("lfpr.experiments.checkout", lambda: None)
    with pytest.raises(ValueError, match="runs = None: outside a checkout"):
        open_experiment()


def test_opened_experiments_are_shared_in_warm_kernels_only(tmp_path, monkeypatch):
    assert open_experiment(runs=tmp_path).task is not open_experiment(runs=tmp_path).task
    monkeypatch.setenv("LFPR_WARM", "1")
    first = open_experiment(runs=tmp_path)
    assert open_experiment(runs=tmp_path).task is first.task
    assert open_experiment(runs=tmp_path, num_samples=7).task is not first.task


def test_settings_are_overridden_by_name_at_any_depth(tmp_path):
    exp = lfpr.open_experiment("clip-mscoco", runs=tmp_path, lr=2e-5, shortlist=7, rest=lfpr.ReSt(clip=3.0))
    assert (exp.settings.rest.lr, exp.settings.rest.clip, exp.settings.shortlist) == (2e-5, 3.0, 7)
    before = lfpr.open_experiment("clip-mscoco", runs=tmp_path).settings
    assert before.rest.lr != 2e-5 and before.shortlist != 7  # a profile's settings are no one's to change


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": "fast"}, "lr = 'fast': must be a finite number; YAML"),
        ({"lr": -1.0}, "lr = -1.0: must be above 0"),
        ({"cosine": 1}, "cosine = 1: must be True or False"),
        ({"eval_batch": 2.5}, "eval_batch = 2.5: must be a whole number"),
        ({"last_layers": 2}, "unknown setting 'last_layers'"),  # the cell's, or the schedule's
        ({"eval_precision": "fp16"}, r"eval_precision = 'fp16': must be one of \['no', 'bf16'\]"),
    ],
)
def test_bad_settings_are_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        lfpr.open_experiment("tap-textvqa", runs=tmp_path, **settings)


def test_float32_is_not_cut_short_on_a_gpu(tmp_path):
    kernels = torch.backends.cuda.matmul, torch.backends.cudnn
    for each in kernels:
        each.allow_tf32 = True  # as some containers have it
    open_experiment(runs=tmp_path)
    assert not any(each.allow_tf32 for each in kernels)
