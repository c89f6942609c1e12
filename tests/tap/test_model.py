"""TAP against the published implementation's numbers (tests/reference), and its checkpoints."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import rules

import lfpr
from lfpr.files import CheckpointError
from lfpr.tap.model import TAP, TAPConfig
from lfpr.tap.objectives import label_free, peak_step, peak_steps

REFERENCE = Path(__file__).parents[1] / "reference"
CONFIG = TAPConfig(text_layers=1, mmt_layers=2, text_vocab_size=1000, num_answers=120)


@pytest.fixture(scope="module")
def tap():
    shapes = json.loads((REFERENCE / "tap_state_dict_shapes.json").read_text())
    model = TAP(CONFIG).eval()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in rules.weights(shapes, 7, 0.05).items()})
    return model


@pytest.fixture(scope="module")
def batch():
    return {name: torch.from_numpy(value) for name, value in rules.tap_inputs(7).items()}


@pytest.fixture(scope="module")
def published():
    return np.load(REFERENCE / "tap_forward_seed7.npz")


def test_state_dict_is_the_published_one(tap):
    shapes = json.loads((REFERENCE / "tap_state_dict_shapes.json").read_text())
    assert {name: list(value.shape) for name, value in tap.state_dict().items()} == shapes


def test_greedy_decoding_equals_the_published_model(tap, batch, published):
    logits, predictions = tap.generate(batch)
    assert (predictions.numpy() == published["predictions"]).all()
    np.testing.assert_allclose(logits.numpy(), published["scores"], rtol=1e-3, atol=1e-4)
    assert (peak_steps(tap, batch).numpy() == published["t_star"]).all()


def test_cached_decoding_equals_teacher_forcing(tap, batch):
    logits, predictions = tap.generate(batch)
    previous = torch.cat([torch.full((4, 1), CONFIG.bos_index), predictions[:, :-1]], 1)
    torch.testing.assert_close(tap(batch, previous), logits, rtol=1e-4, atol=1e-4)


def test_batch_composition_does_not_matter(tap, batch):
    alone = torch.cat([tap.generate({k: v[i : i + 1] for k, v in batch.items()})[0] for i in range(4)])
    torch.testing.assert_close(alone, tap.generate(batch)[0], rtol=1e-4, atol=1e-4)


def test_stopping_early_changes_nothing_before_the_end(tap, batch):
    _, predictions = tap.generate(batch)
    ended = TAP(TAPConfig(**{**CONFIG.to_dict(), "eos_index": int(predictions[0, 2])})).eval()
    ended.load_state_dict(tap.state_dict())
    one = {k: v[:1] for k, v in batch.items()}
    stopped = ended.generate(one, stop=True)[1]
    assert stopped.shape[1] == 1 + predictions[0].tolist().index(int(predictions[0, 2]))
    assert (stopped == predictions[:1, : stopped.shape[1]]).all()


def test_peak_step_is_the_median(tap, batch, published):
    halves = [{k: v[i : i + 2] for k, v in batch.items()} for i in (0, 2)]
    assert peak_step(tap, halves) == int(np.median(published["t_star"]))


def test_label_free_objective_is_the_largest_logit(tap, batch, published):
    value = label_free(tap, 2)(batch)
    np.testing.assert_allclose(value.item(), published["scores"][:, 2].max(-1).sum(), rtol=1e-4)
    with pytest.raises(ValueError, match="step = 12"):
        label_free(tap, 12)


def test_mask_gradients_equal_the_published_ones(tap, batch, published):
    halves = [{name: value[i : i + 2] for name, value in batch.items()} for i in (0, 2)]
    objective = label_free(tap, int(published["t_selected"]))
    gradients = lfpr.collect_gradients(lfpr.prunable(tap), halves, objective)
    np.testing.assert_allclose(gradients.heads.numpy(), published["head_grads"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(gradients.neurons.numpy(), published["neuron_grads"], rtol=1e-3, atol=1e-4)
    per_sample = lfpr.collect_gradients(lfpr.prunable(tap), halves, objective, per_sample=True)
    np.testing.assert_allclose(per_sample.heads.view(2, 2, 2, 12).sum(1), gradients.heads, rtol=1e-3, atol=1e-4)


def test_checkpoint_round_trip_and_errors(tap, tmp_path):
    state = {f"module.{k}": v for k, v in tap.state_dict().items()} | {"module.cls.decoder.weight": torch.ones(3)}
    torch.save({"model": state}, tmp_path / "best.ckpt")
    loaded = TAP(CONFIG).load_checkpoint(tmp_path / "best.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), tap.state_dict().values(), strict=True))
    with pytest.raises(CheckpointError, match=r"classifier.module.weight has shape \[120, 768\].*\[121, 768\]"):
        TAP(TAPConfig(**{**CONFIG.to_dict(), "num_answers": 121})).load_checkpoint(tmp_path / "best.ckpt")
    with pytest.raises(CheckpointError, match="lacks .* mmt.encoder.layer.2.*; 2 layers in mmt, this TAPConfig has 3"):
        TAP(TAPConfig(**{**CONFIG.to_dict(), "mmt_layers": 3})).load_checkpoint(tmp_path / "best.ckpt")
    with pytest.raises(CheckpointError, match="best.ckpt: 2 layers in mmt, this TAPConfig has 1"):
        TAP(TAPConfig(**{**CONFIG.to_dict(), "mmt_layers": 1})).load_checkpoint(tmp_path / "best.ckpt")
    schedule = {"milestones": Counter({7: 1})}  # as torch's MultiStepLR keeps them
    torch.save({"model": state, "lr_scheduler": schedule}, tmp_path / "scheduled.ckpt")
    assert TAP(CONFIG).load_checkpoint(tmp_path / "scheduled.ckpt")
    torch.save({"model": state | {3: torch.zeros(1)}}, tmp_path / "keys.ckpt")
    with pytest.raises(CheckpointError, match="keys.ckpt: expected a dict of tensors"):
        TAP(CONFIG).load_checkpoint(tmp_path / "keys.ckpt")
    torch.save({"model": state}, tmp_path / "protocol.ckpt", pickle_protocol=5)
    with pytest.raises(CheckpointError) as refused:
        TAP(CONFIG).load_checkpoint(tmp_path / "protocol.ckpt")
    assert "weights_only" not in str(refused.value) or "False" not in str(refused.value)
    state["module.classifier.module.bias"] = state["module.classifier.module.bias"] * torch.nan
    torch.save({"model": state}, tmp_path / "nan.ckpt")
    with pytest.raises(CheckpointError, match="nan.ckpt: classifier.module.bias has NaN or infinite values"):
        TAP(CONFIG).load_checkpoint(tmp_path / "nan.ckpt")
    with pytest.raises(CheckpointError, match="does not exist"):
        TAP(CONFIG).load_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "best.ckpt").read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        TAP(CONFIG).load_checkpoint(tmp_path / "cut.ckpt")


def test_config_rejects_what_cannot_be_built():
    with pytest.raises(ValueError, match="multiple of num_heads"):
        TAPConfig(hidden_size=100)
    with pytest.raises(ValueError, match=r"mmt_layers = 0"):
        TAPConfig(mmt_layers=0)
    with pytest.raises(ValueError, match="no field .*'layers'"):
        TAPConfig.from_dict({"layers": 3})
    for name in ("mmt_layers", "num_answers", "dropout"):
        for value in (None, "3", 1.5, True, -1, float("nan")):
            with pytest.raises(ValueError, match=f"TAPConfig.{name} = "):
                TAPConfig(**{name: value})
    assert TAPConfig(mmt_layers=np.int64(2), dropout=0) == TAPConfig(mmt_layers=2, dropout=0)
