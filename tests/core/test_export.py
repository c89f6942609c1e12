"""ONNX files of pruned encoders against the models, in onnxruntime."""

import copy
import shutil
import sys
import warnings

import numpy as np
import onnxruntime
import pytest
import small_models as small
import torch
import transformers as hf

from lfpr.encoder import UnsupportedArchitecture, prunable
from lfpr.export import export_onnx
from lfpr.shrink import NotEquivalent, shrink

INPUTS = small.batch("bert")


@pytest.fixture(scope="module")
def pruned():
    torch.manual_seed(0)
    model = hf.BertModel(hf.BertConfig(**small.BERT | {"num_hidden_layers": 2})).eval()
    masks = small.random_masks(prunable(model), 0)  # no heads in layer 0, no neurons in layer 1
    return shrink(model, masks)


@pytest.fixture(scope="module")
def exported(pruned, tmp_path_factory):
    """A file made with a batch of one."""
    path = tmp_path_factory.mktemp("onnx") / "a" / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert export_onnx(pruned, {name: x[:1] for name, x in INPUTS.items()}, path, atol=1e-5) <= 1e-5
    return path


def test_a_pruned_encoder_runs_in_onnxruntime_with_equal_outputs(pruned, exported):
    assert [p.name for p in exported.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(exported)
    assert {i.name for i in session.get_inputs()} == INPUTS.keys()
    assert [o.name for o in session.get_outputs()] == ["last_hidden_state", "pooler_output"]
    batch = small.batch("bert", samples=7, seed=9)
    found = session.run(["last_hidden_state"], {name: x.numpy() for name, x in batch.items()})[0]
    np.testing.assert_allclose(found, small.forward(pruned, batch).detach().numpy(), atol=1e-5)
    encoder = prunable(pruned)  # as it was: without the head of zeros that the file has
    assert encoder.heads_per_layer[0] == encoder.neurons_per_layer[1] == 0


def test_a_sample_of_padding_alone_is_as_in_torch(pruned, exported):
    batch = {name: x.clone() for name, x in INPUTS.items()}
    batch["attention_mask"][1] = 0
    found = onnxruntime.InferenceSession(exported).run(
        ["last_hidden_state"], {name: x.numpy() for name, x in batch.items()}
    )
    np.testing.assert_allclose(found[0], small.forward(pruned, batch).detach().numpy(), atol=1e-5)


def test_what_the_exporter_refuses_says_what_to_do(pruned, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise torch.onnx.OnnxExporterError("no such operator\nand pages more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    message = r"BertModel cannot be exported with opset 18: OnnxExporterError \(no such operator\).*tion\('sdpa'\)$"
    with pytest.raises(ValueError, match=message):
        export_onnx(pruned, INPUTS, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_differs_is_not_written(pruned, exported, tmp_path, monkeypatch):
    other = copy.deepcopy(pruned)
    other.encoder.layer[1].output.dense.bias.data[3] += 1
    monkeypatch.setattr(torch.onnx, "export", lambda model, args, path, **_: shutil.copy(exported, path))
    with pytest.raises(NotEquivalent, match="last_hidden_state: onnxruntime and torch differ by") as error:
        export_onnx(other, INPUTS, tmp_path / "model.onnx")
    assert error.value.difference > 0.1 and not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused_before_any_work(pruned, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    for inputs, message in (
        ({}, "expected tensors by name"),
        ({"input_ids": 3}, "expected tensors by name"),
        (INPUTS | {"attention_mask": INPUTS["attention_mask"][:2]}, r"batch sizes \[3, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            export_onnx(pruned, inputs, path)
    for name, value, message in (
        ("inputs", [INPUTS["input_ids"]], "inputs: expected Mapping, found list"),
        ("path", None, "path: expected str or Path, found NoneType"),
        ("opset", "18", "opset = '18': must be a whole number of at least"),
        ("opset", 18.5, "opset = 18.5: must be a whole number of at least"),
        ("atol", float("inf"), "atol = inf: must be at least 0"),
        ("atol", "small", "atol = 'small': must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            export_onnx(pruned, **{"inputs": INPUTS, "path": path, name: value})
    with pytest.raises(ValueError, match="bfloat16 weights"):
        export_onnx(small.build("bert").bfloat16(), INPUTS, path)
    with pytest.raises(UnsupportedArchitecture, match="Linear has no prunable encoder"):
        export_onnx(torch.nn.Linear(2, 2), {"input": torch.ones(2, 2)}, path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install lfpr\[onnx\]"):
        export_onnx(pruned, INPUTS, path)
    assert not list(tmp_path.iterdir())
