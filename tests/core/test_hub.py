"""Pruned models through transformers' own loading, training and pipelines."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_models as small
import torch
import transformers as hf
from kept_models import KEPT, assert_same, classifier, set_to, small_decoder
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

import lfpr
from lfpr.gallery import GALLERY
from lfpr.lazy import when_imported


def shrunk(model, seed=3, part=None):
    encoder = lfpr.prunable(model if part is None else part)
    return lfpr.shrink(model, small.random_masks(encoder, seed), part)


def classifying():
    torch.manual_seed(0)
    return shrunk(hf.BertForSequenceClassification(hf.BertConfig(**small.BERT, num_labels=3)).eval())


def nameless(model):
    """The model without the name that a loaded one has of its folder, and the precision that it gives its parts."""
    for module in model.modules():
        if isinstance(module, hf.PreTrainedModel):
            module.name_or_path = module.config.name_or_path = ""
            module.config.dtype = torch.float32
    return model


def said(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize("family", small.FAMILIES)
@pytest.mark.parametrize("save", [lfpr.save_pruned, hf.PreTrainedModel.save_pretrained])
def test_auto_model_loads_what_either_way_saved(family, save, tmp_path):
    pruned, inputs = shrunk(small.build(family)), small.batch(family)
    save(pruned, tmp_path)
    loaded, about = hf.AutoModel.from_pretrained(tmp_path, output_loading_info=True, trust_remote_code=False)
    assert type(loaded) is type(pruned) and not any(about.values())
    assert lfpr.prunable(loaded).heads_per_layer == lfpr.prunable(pruned).heads_per_layer
    with torch.no_grad():
        assert torch.equal(small.forward(loaded, inputs), small.forward(pruned, inputs))


@pytest.mark.parametrize("name", GALLERY)
def test_every_family_is_loaded_and_generates(name, tmp_path):
    example = GALLERY[name]
    model, inputs = example.model(), example.inputs()
    encoder = lfpr.prunable(example.prunable(model))
    masks = lfpr.Masks.ones(encoder)
    masks.heads[:, 1] = masks.neurons[:, 3:9] = 0
    pruned = lfpr.shrink(model, masks, example.prunable(model) if example.part else None)
    lfpr.save_pruned(pruned, tmp_path / "one")
    loaded, about = type(pruned).from_pretrained(tmp_path / "one", output_loading_info=True)
    loaded.save_pretrained(tmp_path / "two")
    again = type(pruned).from_pretrained(tmp_path / "two")
    assert not any(about.values())
    with torch.no_grad():
        expected = example.run(pruned, inputs)
        assert torch.equal(example.run(loaded, inputs), expected) and torch.equal(example.run(again, inputs), expected)
    if example.generates:
        inputs.pop("decoder_input_ids", None)
        ways = {"max_new_tokens": 4, "do_sample": False}
        assert torch.equal(loaded.generate(**inputs, **ways), pruned.generate(**inputs, **ways))
    assert lfpr.summary(loaded).parameters[1] == sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize("name", [name for name in KEPT if name != "two precisions"])
def test_from_pretrained_restores_what_load_pruned_does(name, tmp_path):
    model = KEPT[name]().eval()
    pruned = shrunk(model, part=model.encoder if isinstance(model, hf.VisionEncoderDecoderModel) else None)
    lfpr.save_pruned(pruned, tmp_path / "one")
    loaded = type(pruned).from_pretrained(tmp_path / "one")
    loaded.save_pretrained(tmp_path / "two")
    again, about = type(pruned).from_pretrained(tmp_path / "two", output_loading_info=True)
    assert not any(about.values())
    for model in (loaded, again):
        assert_same(nameless(model), nameless(pruned))


def test_a_loaded_model_is_a_plain_one(tmp_path):
    lfpr.save_pruned(classifying(), tmp_path)
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert not getattr(model, "is_quantized", False) and not hasattr(model, "hf_quantizer")
    assert not hasattr(model, "quantization_method") and not hasattr(model.config, "_is_quantized")
    assert model.half().dtype == torch.float16 and model.float().dtype == torch.float32
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("saved", "into", "missing"),
    [
        (hf.BertForSequenceClassification, hf.AutoModel, 0),
        (hf.BertForSequenceClassification, hf.AutoModelForTokenClassification, 0),
        (hf.BertModel, hf.AutoModelForSequenceClassification, 2),
        (hf.BertForMaskedLM, hf.BertForMaskedLM, 0),
    ],
)
def test_heads_are_taken_off_and_put_on(saved, into, missing, tmp_path):
    torch.manual_seed(0)
    model = saved(hf.BertConfig(**small.BERT)).eval()
    model.base_model.embeddings.LayerNorm.eps = 1e-3
    pruned, inputs = shrunk(model), small.batch("bert")
    lfpr.save_pruned(pruned, tmp_path / "one")
    loaded, about = into.from_pretrained(tmp_path / "one", output_loading_info=True)
    loaded.save_pretrained(tmp_path / "two")
    again = into.from_pretrained(tmp_path / "two")
    assert len(about["missing_keys"]) == missing
    with torch.no_grad():
        expected = small.forward(pruned.base_model, inputs)
        assert torch.equal(small.forward(loaded.base_model, inputs), expected)
        assert torch.equal(small.forward(again.base_model, inputs), expected)
    assert all(path in dict(loaded.named_modules()) for path in said(tmp_path / "two")["parts"])


def test_what_only_the_head_had_does_not_hinder_the_base(tmp_path):
    pruned = shrunk(classifier(set_to("classifier", nn.Linear(48, 7))))
    lfpr.save_pruned(pruned, tmp_path)
    assert said(tmp_path)["tensors"] == {"classifier.weight": [7, 48], "classifier.bias": [7]}
    assert hf.BertForSequenceClassification.from_pretrained(tmp_path).classifier.out_features == 7
    loaded = hf.AutoModel.from_pretrained(tmp_path)
    assert loaded.config.quantization_config["tensors"] == {}


@pytest.mark.parametrize("save", [lfpr.save_pruned, hf.PreTrainedModel.save_pretrained])
def test_both_towers_come_back_and_each_alone(save, tmp_path):
    clip = small.reference_clip()
    pruned = shrunk(clip, 1, clip.vision_model)
    pruned = shrunk(pruned, 2, pruned.text_model)
    save(pruned, tmp_path / "clip")
    for kind in (hf.AutoModel, hf.CLIPVisionModel, hf.CLIPTextModel):
        loaded = kind.from_pretrained(tmp_path / "clip")
        towers = [name for name in ("vision_model", "text_model") if hasattr(loaded, name)]
        own = {f"{name}.": getattr(loaded, name) for name in towers} or {
            "vision_model." if kind is hf.CLIPVisionModel else "text_model.": loaded
        }
        for prefix, tower in own.items():
            expected = pruned.get_submodule(prefix.rstrip(".")).state_dict()
            assert all(torch.equal(value, expected[name]) for name, value in tower.state_dict().items())
    pruned.vision_model.save_pretrained(tmp_path / "tower")
    tower = hf.AutoModel.from_pretrained(tmp_path / "tower")
    assert lfpr.prunable(tower).neurons_per_layer == lfpr.prunable(pruned.vision_model).neurons_per_layer


def test_how_it_generates_comes_back(tmp_path):
    model = small_decoder()
    model.generation_config.num_beams = 3
    pruned = shrunk(model)
    lfpr.save_pruned(pruned, tmp_path)
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    assert loaded.generation_config.num_beams == 3
    assert torch.equal(loaded.generate(ids, max_new_tokens=4), pruned.generate(ids, max_new_tokens=4))
    lfpr.save_pruned(shrunk(small.build("bert")), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "pruning.json"]


def test_shrinking_further_says_the_new_widths(tmp_path):
    lfpr.save_pruned(shrunk(KEPT["pooler None"]()), tmp_path / "one")
    first = hf.AutoModel.from_pretrained(tmp_path / "one")
    encoder = lfpr.prunable(first)
    half = [
        [torch.arange(n) < n / 2 for n in widths] for widths in (encoder.heads_per_layer, encoder.neurons_per_layer)
    ]
    second = lfpr.shrink(first, type("Half", (), {"heads": half[0], "neurons": half[1]}))
    assert first.config.quantization_config["parts"]["encoder.layer"]["heads"] == encoder.heads_per_layer
    second.save_pretrained(tmp_path / "two")
    loaded = hf.AutoModel.from_pretrained(tmp_path / "two")
    assert lfpr.prunable(loaded).neurons_per_layer == [int(row.sum()) for row in half[1]] and loaded.pooler is None


@pytest.mark.parametrize("arguments", [{"device_map": "cpu"}, {"device_map": "auto"}, {"device_map": {"": "disk"}}])
def test_device_maps(arguments, tmp_path):
    pruned, inputs = shrunk(small.build("bert")), small.batch("bert")
    lfpr.save_pruned(pruned, tmp_path / "model")
    loaded = hf.AutoModel.from_pretrained(tmp_path / "model", offload_folder=str(tmp_path / "disk"), **arguments)
    with torch.no_grad():
        assert torch.equal(small.forward(loaded, inputs), small.forward(pruned, inputs))


def test_precision_and_attention_are_the_callers_if_asked_for(tmp_path):
    model = small.build("bert")
    model.set_attn_implementation("eager")
    lfpr.save_pruned(shrunk(model), tmp_path)
    asked = hf.AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="sdpa")
    assert asked.dtype == torch.bfloat16 and asked.config._attn_implementation == "sdpa"
    assert hf.AutoModel.from_pretrained(tmp_path).config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="quantized with PrunedConfig but you are passing a BitsAndBytesConfig"):
        hf.AutoModel.from_pretrained(tmp_path, quantization_config=hf.BitsAndBytesConfig(load_in_8bit=True))


def test_trainer_trains_saves_and_resumes(tmp_path):
    lfpr.save_pruned(classifying(), tmp_path / "pruned")
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "pruned")
    rows = [{"input_ids": torch.arange(3, 9) + i, "labels": i % 3} for i in range(8)]

    def trainer(steps):
        settings = {"max_steps": steps, "save_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 4}
        settings |= {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_strategy": "no"}
        return hf.Trainer(model, hf.TrainingArguments(str(tmp_path / "runs"), **settings), train_dataset=rows)

    before = model.classifier.weight.detach().clone()
    trainer(2).train()
    trainer(3).train(resume_from_checkpoint=True)
    assert not torch.equal(model.classifier.weight, before)
    trainer(3).save_model(str(tmp_path / "trained"))
    for folder in ("trained", "runs/checkpoint-3"):
        loaded = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / folder)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("feature-extraction", hf.BertModel),
        ("fill-mask", hf.BertForMaskedLM),
        ("text-classification", hf.BertForSequenceClassification),
    ],
)
def test_pipelines(task, kind, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(94))]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    tokens = hf.PreTrainedTokenizerFast(tokenizer_object=plain, **{f"{n}_token": t for n, t in names.items()})
    torch.manual_seed(0)
    pruned = shrunk(kind(hf.BertConfig(**small.BERT)).eval())
    for folder in ("pruned", "pretrained"):
        tokens.save_pretrained(tmp_path / folder)
    lfpr.save_pruned(pruned, tmp_path / "pruned")
    pruned.save_pretrained(tmp_path / "pretrained")
    text = "w1 w2 [MASK] w3"
    expected = hf.pipeline(task, model=pruned, tokenizer=tokens)(text)
    for folder in ("pruned", "pretrained"):
        assert hf.pipeline(task, model=str(tmp_path / folder), trust_remote_code=False)(text) == expected


def test_what_is_pushed_is_the_usual(tmp_path, monkeypatch):
    api, card = SimpleNamespace(create_repo=lambda name, **_: SimpleNamespace(repo_id=name)), SimpleNamespace(save=str)
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: api)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: card)
    monkeypatch.setattr(
        hf.PreTrainedModel,
        "_upload_modified_files",
        lambda _, *args, **__: shutil.copytree(args[0], tmp_path / "pushed"),
    )
    pruned = classifying()
    pruned.push_to_hub("someone/pruned")
    assert sorted(path.name for path in (tmp_path / "pushed").iterdir()) == ["config.json", "model.safetensors"]
    loaded = hf.AutoModel.from_pretrained(tmp_path / "pushed")
    assert lfpr.prunable(loaded).heads_per_layer == lfpr.prunable(pruned).heads_per_layer


WRONG = {
    "parts": ([], "parts"),
    "layers": ({"x.layer": {"heads": [1], "neurons": [1]}}, r"parts \['x\.layer'\], the model has"),
    "widths": ({"encoder.layer": {"heads": [9, 1, 1], "neurons": [1, 1, 1]}}, r"heads\[0\] = 9"),
    "kinds": ({"encoder.layer": {"heads": "abc", "neurons": 3}}, "must be lists of heads and neurons"),
    "attributes": ({"encoder.forward": 3}, r"attributes: encoder\.forward = 3"),
    "attributes ": ("x", "attributes: expected dict, found str"),
    "tensors": ({"pooler.x": [2]}, r"tensors: a BertModel has no place for pooler\.x"),
    "tensors ": ({"pooler.dense.weight": [-1]}, r"tensors\.pooler\.dense\.weight\[0\] = -1"),
    "attn_implementation": ("org/kernel", "others may be code that would be fetched"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_entry_is_refused_by_the_name_of_its_file(name, tmp_path):
    lfpr.save_pruned(shrunk(small.build("bert")), tmp_path)
    value, message = WRONG[name]
    config = json.loads((tmp_path / "config.json").read_text())
    key = {"layers": "parts", "widths": "parts", "kinds": "parts"}.get(name, name.strip())
    config["quantization_config"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as error:
        hf.AutoModel.from_pretrained(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)
    assert lfpr.load_pruned(tmp_path)  # which reads its own file


@pytest.mark.parametrize("kept", [[0, 1, 4], [-1, 0, 1]])
def test_heads_that_there_never_were_are_refused(kept, tmp_path):
    example = GALLERY["MPNet"]
    model = example.model()
    masks = lfpr.Masks.ones(lfpr.prunable(model))
    masks.heads[1, 2] = 0
    lfpr.save_pruned(lfpr.shrink(model, masks), tmp_path)
    file, name = tmp_path / "model.safetensors", "encoder.layer.1.attention.attn.kept_heads"
    save_file(load_file(file) | {name: torch.tensor(kept)}, file, metadata={"format": "pt"})
    for load in (lfpr.load_pruned, hf.AutoModel.from_pretrained):
        with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))}.*: {name} = .*from 0 to 3"):
            load(tmp_path)


def test_the_entry_of_a_quantised_model_is_left_alone():
    model = small.build("bert")
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert shrunk(model).config.quantization_config == {"quant_method": "gptq", "bits": 4}


def test_a_model_of_ones_own_has_its_parts_marked():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small.build("bert")

    model = Own()
    pruned = shrunk(model)
    widths = {"heads": lfpr.prunable(pruned).heads_per_layer, "neurons": lfpr.prunable(pruned).neurons_per_layer}
    assert pruned.inner.config.quantization_config == {"quant_method": "lfpr", "parts": {"encoder.layer": widths}}
    assert not hasattr(model.inner.config, "quantization_config")


def test_save_pretrained_says_the_widths_and_reports_what_else_is_missing_as_ever(tmp_path):
    shrunk(KEPT["pooler None"]()).save_pretrained(tmp_path)
    _, about = hf.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert about["missing_keys"] == {"pooler.dense.weight", "pooler.dense.bias"}


def test_without_lfpr_loading_fails_and_says_of_what_type_it_is(tmp_path):
    lfpr.save_pruned(shrunk(small.build("bert")), tmp_path)
    code = (
        "from transformers import AutoModel\n"
        f"try: AutoModel.from_pretrained({str(tmp_path)!r})\n"
        "except RuntimeError: import lfpr\n"
        f"print(lfpr.prunable(AutoModel.from_pretrained({str(tmp_path)!r})))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(lfpr.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert "Unknown quantization type, got lfpr" in done.stderr and "MISMATCH" in done.stderr
    assert done.stdout.startswith("PrunableEncoder(encoder.layer of BertModel"), done.stderr[-2000:]


def test_something_is_done_once_a_module_is_imported(tmp_path, monkeypatch):
    (tmp_path / "made_up_module.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    done = []
    when_imported("made_up_module", lambda: done.append(sys.modules["made_up_module"].value))
    assert done == []
    __import__("made_up_module")
    assert done == [3]
    when_imported("made_up_module", lambda: done.append(4))
    assert done == [3, 4]
    monkeypatch.delitem(sys.modules, "made_up_module")


@pytest.mark.parametrize("family", small.FAMILIES)
def test_summaries_count_what_is_there(family):
    model = small.build(family)
    pruned = shrunk(model)
    full, now = (sum(p.numel() for p in m.parameters()) for m in (model, pruned))
    whole, found = lfpr.summary(model), lfpr.summary(pruned.half(), sequence_length=9)
    encoder = lfpr.prunable(pruned)
    assert whole.parameters == (full, full) and found.parameters == (now, full)
    assert found.megabytes == (2e-6 * now, 2e-6 * full) and whole.megabytes == (4e-6 * full, 4e-6 * full)
    assert (
        found.layers[0].heads == tuple(encoder.heads_per_layer) and found.layers[0].full_neurons == encoder.num_neurons
    )
    ones = lfpr.Masks.ones(lfpr.prunable(model))
    assert found.macs[1] == lfpr.MacCost(lfpr.prunable(model), 9).kept(ones) > found.macs[0] > 0
    assert found.model == type(model).__name__ and f"{now:,}" in str(found) and f"{full:,}" in repr(found)


def test_summaries_need_prunable_layers():
    with pytest.raises(lfpr.UnsupportedArchitecture, match="Linear has no prunable encoder"):
        lfpr.summary(nn.Linear(2, 2))
