"""Saved folders: models whose configuration does not say all, folders that someone made up, and what is in the way."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import hostile_folders as hostile
import pytest
import small_models as small
import torch
import transformers as hf
from kept_models import KEPT, assert_same, bert, classifier, set_to, small_decoder
from torch import nn

import lfpr
from lfpr import save
from lfpr.save import MODELS, load_pruned, save_pruned


@pytest.mark.parametrize("name", KEPT)
def test_what_the_config_does_not_say_comes_back(name, tmp_path):
    model = KEPT[name]().eval()
    masks = small.random_masks(lfpr.prunable(getattr(model, "encoder", model)), 3, real=False)
    part = model.encoder if isinstance(model, hf.VisionEncoderDecoderModel) else None
    pruned = lfpr.shrink(model, masks, part)
    save_pruned(pruned, tmp_path)
    loaded = load_pruned(tmp_path)
    assert_same(loaded, pruned)


def test_models_generate_as_they_did(tmp_path):
    model = small_decoder()
    model.generation_config.num_beams = 3
    pruned = lfpr.shrink(model, small.random_masks(lfpr.prunable(model), 3))
    save_pruned(pruned, tmp_path)
    loaded = load_pruned(tmp_path)
    assert loaded.generation_config.to_dict() == pruned.generation_config.to_dict()
    assert loaded.generation_config.num_beams == 3
    about = json.loads((tmp_path / "pruning.json").read_text())
    for value in (3, ["a"], {"max_new_tokens": "x", "num_beams": -1}):
        (tmp_path / "pruning.json").write_text(json.dumps(about | {"generation": value}))
        with pytest.raises(ValueError, match=r"pruning\.json: generation = "):
            load_pruned(tmp_path)


def tied_by_hand(model):
    model.cls.predictions.decoder.weight = model.bert.embeddings.word_embeddings.weight


def untied_by_hand(model):
    model.cls.predictions.decoder.weight = nn.Parameter(model.cls.predictions.decoder.weight.detach().clone())


def function_for_module(model):
    layer = model.encoder.layer[0].intermediate
    del layer.intermediate_act_fn
    layer.intermediate_act_fn = nn.functional.relu


def one_layer_more(model):
    model.encoder.layer.append(copy.deepcopy(model.encoder.layer[0]))


class Mine(hf.BertModel):
    pass


def empty():
    with torch.device("meta"):
        return hf.BertModel(hf.BertConfig(**small.BERT))


REFUSED = {
    "Sequential head": (
        lambda: classifier(set_to("classifier", nn.Sequential(nn.Linear(48, 9), nn.Linear(9, 2)))),
        r"classifier is torch\.nn\.modules\.container\.Sequential, not torch\.nn\.modules\.linear\.Linear",
    ),
    "activation": (
        lambda: bert(edit=set_to("encoder.layer.0.intermediate.intermediate_act_fn", nn.ReLU())),
        r"layer\.0\.intermediate\.intermediate_act_fn is torch\.nn\.modules\.activation\.ReLU, not transformers",
    ),
    "function": (lambda: bert(edit=function_for_module), r"intermediate_act_fn is torch\.nn\.functional\.relu, not"),
    "identity": (lambda: classifier(set_to("dropout", nn.Identity())), r"dropout is .*Identity, not .*Dropout"),
    "tensor for a number": (
        lambda: bert(edit=set_to("encoder.layer.0.attention.self.scaling", torch.tensor(0.5))),
        r"attention\.self\.scaling is tensor\(0\.5",
    ),
    "one layer more": (lambda: bert(edit=one_layer_more), r"parts\.encoder\.layer\.heads: 4 layers, of 3"),
    "module": (lambda: bert(edit=set_to("extra", nn.Linear(2, 2))), r"extra is .*Linear, not None"),
    "parameter": (lambda: bert(edit=set_to("extra", nn.Parameter(torch.ones(2)))), r"unknown: \['extra'\]"),
    "buffer": (lambda: bert(edit=lambda m: m.register_buffer("extra", torch.ones(2))), r"unknown: \['extra'\]"),
    "unsaved buffer": (
        lambda: bert(edit=lambda m: m.register_buffer("extra", torch.ones(2), persistent=False)),
        r"unknown: \['extra'\]",
    ),
    "untied": (
        lambda: bert(hf.BertForMaskedLM, untied_by_hand),
        r"beside those that they are tied to: \['cls\.predictions\.decoder\.weight'\]",
    ),
    "tied": (
        lambda: bert(hf.BertForMaskedLM, tied_by_hand, tie_word_embeddings=False),
        r"missing: \['cls\.predictions\.decoder\.weight'\]",
    ),
    "weight norm": (
        lambda: bert(edit=lambda m: torch.nn.utils.parametrizations.weight_norm(m.pooler.dense)),
        r"pooler\.dense is torch\.nn\.utils\.parametrize\.ParametrizedLinear",
    ),
    "another config": (lambda: bert(edit=lambda m: setattr(m.config, "hidden_size", 64)), "of another shape"),
    "function in the config": (lambda: bert(edit=lambda m: setattr(m.config, "f", min)), "cannot be written as JSON"),
    "long config": (lambda: bert(edit=lambda m: setattr(m.config, "x", "x" * 2**23)), "its config takes 838"),
    "kernel in the config": (
        lambda: bert(edit=lambda m: setattr(m.config, "x_implementation", "org/kernel")),
        "others may be code that would be fetched",
    ),
    "no values": (empty, r"word_embeddings\.weight has no values, it is on the meta device"),
    "subclass": (lambda: Mine(hf.BertConfig(**small.BERT)), "Mine: expected a model of transformers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_built_again_is_refused_when_saving(name, tmp_path):
    make, said = REFUSED[name]
    model, folder = make(), tmp_path / "new"
    with pytest.raises(ValueError, match=f"cannot save .*{said}"):
        save_pruned(model, folder)
    assert not folder.exists()
    save_pruned(bert(), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="cannot save"):
        save_pruned(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_wrapped_models_are_saved_as_the_models_inside(tmp_path):
    model = bert()
    model.compile()
    for wrapped in (model, torch.compile(model), nn.DataParallel(model), torch.compile(nn.DataParallel(model))):
        save_pruned(wrapped, tmp_path)
        assert_same(load_pruned(tmp_path), model)


class Head(nn.Module):
    """A model of one's own: an encoder, and a head that shares a parameter through no attribute."""

    def __init__(self, size=3):
        super().__init__()
        self.config = type("Config", (), {"to_dict": lambda _: {"size": size}})()
        self.bert = hf.BertModel(hf.BertConfig(**small.BERT), add_pooling_layer=False)
        shared = nn.Parameter(torch.randn(size, 48))
        self.one, self.two = nn.ParameterList([shared]), nn.ParameterList([shared])


def test_a_row_makes_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "Head", lambda config: Head(**config))
    model = Head().eval()
    pruned = lfpr.shrink(model, small.random_masks(lfpr.prunable(model), 2))
    save_pruned(pruned, tmp_path)
    loaded = load_pruned(tmp_path)
    assert loaded.one[0] is loaded.two[0] and torch.equal(loaded.one[0], model.one[0])
    assert all(torch.equal(value, pruned.state_dict()[name]) for name, value in loaded.state_dict().items())
    for config, said in (({"size": 4}, "of another shape"), ({"x": 1}, "builds no Head: TypeError")):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=said):
            load_pruned(tmp_path)
    monkeypatch.setitem(MODELS, "Head", lambda config: config)
    with pytest.raises(ValueError, match="its row in MODELS gives dict"):
        load_pruned(tmp_path)
    monkeypatch.delattr(model.config.__class__, "to_dict")
    with pytest.raises(ValueError, match="its config cannot be written as JSON: .*to_dict"):
        save_pruned(model, tmp_path)


def test_the_callers_defaults_do_not_matter(tmp_path):
    pruned = lfpr.shrink(bert(hf.BertForMaskedLM), small.random_masks(lfpr.prunable(bert()), 1))
    state = torch.random.get_rng_state()
    with torch.device("meta"):
        save_pruned(pruned, tmp_path)
        assert_same(load_pruned(tmp_path), pruned)
    torch.set_default_dtype(torch.float64)
    try:
        assert_same(load_pruned(tmp_path), pruned)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        loaded = load_pruned(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    loaded(**small.batch("bert")).logits.sum().backward()
    tied = loaded.cls.predictions.decoder.weight
    assert tied is loaded.bert.embeddings.word_embeddings.weight and tied.grad is not None
    assert not hf.BertModel(hf.BertConfig(**small.BERT)).pooler.dense.weight.is_meta  # what others build is real


@pytest.mark.parametrize("call", [save_pruned, lambda model, path: lfpr.save_delta(model, model, model, path)])
@pytest.mark.parametrize("value", [None, 3, "model", {}])
def test_models_are_modules(call, value, tmp_path):
    with pytest.raises(ValueError, match=r"(pruned|unpruned): expected Module, found"):
        call(value, tmp_path / "x")


def test_arguments_are_checked_before_any_work(tmp_path):
    model = bert()
    masks = lfpr.Masks.ones(lfpr.prunable(model))
    save_pruned(model, tmp_path)
    for device in (None, "x", "cuda:99", 1.5, model):
        with pytest.raises(ValueError, match="device"):
            load_pruned(tmp_path, device)
    for path in (None, 3, model):
        for name, call in {
            "folder": lambda path: save_pruned(model, path),
            "folder ": load_pruned,
            "path": lambda path: lfpr.save_delta(model, masks, model, path),
            "path ": lambda path: lfpr.load_delta(model, path),
        }.items():
            with pytest.raises(ValueError, match=rf"{name.strip()}: expected str or PathLike, found"):
                call(path)
    for values in (None, masks.heads, {}):
        with pytest.raises(ValueError, match="masks: expected Masks, found"):
            lfpr.save_delta(model, values, model, tmp_path / "delta")
    with pytest.raises(ValueError, match="retrained: expected Module, found str"):
        lfpr.save_delta(model, masks, "x", tmp_path / "delta")
    with pytest.raises(ValueError, match="part: expected Module, found str"):
        lfpr.save_delta(model, masks, model, tmp_path / "delta", "x")
    with pytest.raises(ValueError, match="part: expected Module, found int"):
        lfpr.load_delta(model, tmp_path / "delta", 3)
    with pytest.raises(ValueError, match=r"weight has no values, it is on the meta device"):
        lfpr.save_delta(model, masks, empty(), tmp_path / "delta")
    assert not (tmp_path / "delta").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "pruning.json"])
def test_an_older_model_stays_where_a_new_one_cannot_be_written(file, tmp_path, monkeypatch):
    save_pruned(bert(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(write):
        def fail(path, *args, **kwargs):
            if file in str(path):
                Path(path).open("wb").close()
                raise OSError(28, "No space left on device")
            return write(path, *args, **kwargs)

        return fail

    weights = full(lambda path, tensors, **kwargs: write_tensors(tensors, path, **kwargs))
    write_tensors = save.save_file
    monkeypatch.setattr(save, "save_file", lambda tensors, path, **kwargs: weights(path, tensors, **kwargs))
    monkeypatch.setattr(Path, "write_text", full(Path.write_text))
    with pytest.raises(OSError, match="No space left"):
        save_pruned(bert(num_hidden_layers=2), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "x").write_text("kept")
    for folder in (tmp_path / "x", tmp_path / "x" / "y"):
        with pytest.raises(OSError, match=str(tmp_path / "x")):
            save_pruned(bert(), folder)
    assert (tmp_path / "x").read_text() == "kept"


def test_values_that_became_zero_are_part_of_a_delta(tmp_path):
    model = bert()
    binary = small.random_masks(lfpr.prunable(model), 1, real=False)
    pruned = lfpr.shrink(model, binary)
    values = lfpr.Masks(binary.heads * 0.9, binary.neurons * 1.1)
    values.heads[1, binary.heads[1].nonzero()[0]] = 0
    values.neurons[0, binary.neurons[0].nonzero()[:3]] = 0
    kept = [
        [row[mask != 0] for row, mask in zip(*pair, strict=True)]
        for pair in ((values.heads, binary.heads), (values.neurons, binary.neurons))
    ]
    lfpr.fold(lfpr.prunable(pruned), type("Kept", (), {"heads": kept[0], "neurons": kept[1]}))
    lfpr.save_delta(model, values, pruned, tmp_path / "delta.safetensors")
    loaded = lfpr.load_delta(model, tmp_path / "delta.safetensors")
    assert all(torch.equal(value, pruned.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert lfpr.prunable(loaded).heads_per_layer == lfpr.prunable(pruned).heads_per_layer
    with pytest.raises(ValueError, match="retrained: its tensors are not of the names and shapes"):
        lfpr.save_delta(model, values, lfpr.shrink(model, lfpr.Masks(values.heads * 0, values.neurons)), tmp_path / "x")


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What loading each hostile file raised, in a process that may take little memory."""
    root = tmp_path_factory.mktemp("hostile")
    tests = Path(hostile.__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}", "PYTHONWARNINGS": "ignore"}
    environment |= {"HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}  # nothing is fetched all the same
    command = [sys.executable, hostile.__file__, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return root, json.loads(done.stdout.splitlines()[-1])


def test_hostile_folders_are_refused_by_name(said):
    root, report = said
    wrong = {}
    for name, _, _, text in hostile.cases():
        kind, message, _ = report["found"][name]
        text = text.replace("{folder}", str(root / "x"))
        if kind not in ("ValueError", "FileNotFoundError") or text not in message or str(root / "x") not in message:
            wrong[name] = kind, message[:300]
    assert wrong == {} and len(report["found"]) > 300


def test_hostile_masks_and_deltas_are_refused_by_name(said):
    _, report = said
    wrong = {}
    for name, _, text in hostile.single_files():
        for kind in ("masks", "delta"):
            error, message, _ = report["found"][f"{kind}: {name}"]
            if (
                error not in ("ValueError", "FileNotFoundError")
                or text not in message
                or "x.safetensors" not in message
            ):
                wrong[f"{kind}: {name}"] = error, message[:300]
    assert wrong == {}


def test_nothing_hostile_is_run_or_takes_much(said):
    _, report = said
    assert report["used"] == [] and report["megabytes"] < hostile.MEGABYTES
    # of the processor, which may be shared; what must not pass takes hours
    assert {name: seconds for name, (*_, seconds) in report["found"].items() if seconds > 60} == {}
