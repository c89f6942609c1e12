"""LFPR's released files of pruned models: `pruned_model.ckpt` and `cfg.txt`."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import small_models as small
import torch
from reference import rules
from rehearsal.tap_files import write_checkpoint

from lfpr.encoder import prunable
from lfpr.files import CheckpointError
from lfpr.released import load_tap, save_tap
from lfpr.shrink import fold, shrink
from lfpr.tap.checkpoint import read_checkpoint
from lfpr.tap.model import TAP, TAPConfig

CONFIG = TAPConfig(text_layers=1, mmt_layers=2, text_vocab_size=1000, num_answers=120)
SMALL = TAPConfig(text_layers=1, mmt_layers=2, text_vocab_size=50, num_answers=9, hidden_size=24, num_heads=3)


def names(i):
    layer = f"mmt.encoder.layer.{i}"
    return f"{layer}.attention.self.head_mask.mask", f"{layer}.intermediate.ffn_mask.mask"


@pytest.fixture(scope="module")
def parity():
    """The released pruned TAP's arrays, its weights made by rule, and a batch."""
    arrays, masks = np.load(small.REFERENCE / "tap_pruned_seed7.npz"), np.load(small.REFERENCE / "tap_masks_seed7.npz")
    shapes = json.loads((small.REFERENCE / "tap_state_dict_shapes.json").read_text())
    state = {name: torch.from_numpy(value) for name, value in rules.weights(shapes, 7, 0.05).items()}
    heads = np.repeat(masks["sum_0.4_head"].astype(bool), 64, 1)
    neurons = np.unpackbits(masks["sum_0.4_neuron"]).reshape(2, 3072).astype(bool)
    for i in range(2):  # the released layout, written here without the package's own code
        layer = f"mmt.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            for kind in ("weight", "bias"):
                state[f"{layer}.attention.self.{part}.{kind}"] = state[f"{layer}.attention.self.{part}.{kind}"][
                    heads[i]
                ]
        state[f"{layer}.attention.output.dense.weight"] = state[f"{layer}.attention.output.dense.weight"][:, heads[i]]
        for kind in ("weight", "bias"):
            state[f"{layer}.intermediate.dense.{kind}"] = state[f"{layer}.intermediate.dense.{kind}"][neurons[i]]
        state[f"{layer}.output.dense.weight"] = state[f"{layer}.output.dense.weight"][:, neurons[i]]
    return arrays, state, {name: torch.from_numpy(value) for name, value in rules.tap_inputs(7).items()}


@pytest.mark.parametrize("which", ["unit", "scaled"])
def test_the_released_checkpoint_is_read_and_written_again(parity, which, tmp_path):
    arrays, state, batch = parity
    for i, (h, n) in enumerate(zip(arrays["heads"], arrays["neurons"], strict=True)):
        for name, shape in zip(names(i), ((1, h, 1, 1), (n,)), strict=True):
            value = rules.weight(name, shape, 7, 0.05) if which == "scaled" else np.ones(shape, np.float32)
            state[name] = torch.from_numpy(value)
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "pruned_model.ckpt")
    (tmp_path / "cfg.txt").write_text(f"{arrays['heads'].tolist()}\n{arrays['neurons'].tolist()}\n")
    rng = torch.random.get_rng_state()
    pruned = load_tap(tmp_path, CONFIG)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert prunable(pruned).heads_per_layer == arrays["heads"].tolist()
    scores, _ = pruned.generate(batch)
    np.testing.assert_allclose(scores.numpy(), arrays[f"scores_{which}_masks"], rtol=1e-3, atol=1e-4)
    if which == "unit":
        save_tap(pruned, tmp_path / "again")
        written = torch.load(tmp_path / "again" / "pruned_model.ckpt", weights_only=True)
        assert written.keys() == {"model"} and written["model"].keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in written["model"].items())


@pytest.fixture
def pruned():
    torch.manual_seed(0)
    tap = TAP(SMALL).eval()
    masks = small.random_masks(prunable(tap), 1)  # no heads in layer 0, no neurons in layer 1
    return shrink(tap, masks)


def test_trained_masks_are_written_and_folded_on_reading(pruned, tmp_path):
    encoder = prunable(pruned)
    scales = SimpleNamespace(
        heads=[0.5 + torch.rand(n) for n in encoder.heads_per_layer],
        neurons=[0.5 + torch.rand(n) for n in encoder.neurons_per_layer],
    )
    save_tap(pruned, tmp_path / "a", scales)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["cfg.txt", "pruned_model.ckpt"]
    h, n = encoder.heads_per_layer, encoder.neurons_per_layer
    assert h[0] == n[1] == 0
    assert (tmp_path / "a" / "cfg.txt").read_text() == f"[{h[0]},{h[1]}]\n[{n[0]},{n[1]}]\n"
    state = torch.load(tmp_path / "a" / "pruned_model.ckpt", weights_only=True)["model"]
    assert [state[name].shape for i in range(2) for name in names(i)] == [
        (1, h[0], 1, 1),
        (n[0],),
        (1, h[1], 1, 1),
        (n[1],),
    ]
    assert state.keys() - pruned.state_dict().keys() == {name for i in range(2) for name in names(i)}
    loaded = load_tap(tmp_path / "a", SMALL)
    assert not loaded.training and loaded.config == SMALL
    fold(encoder, scales)
    assert loaded.state_dict().keys() == pruned.state_dict().keys()
    assert all(torch.equal(value, pruned.state_dict()[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(ValueError, match=r"masks\.heads: shapes"):
        save_tap(pruned, tmp_path / "b", SimpleNamespace(heads=scales.neurons, neurons=scales.heads))
    assert not (tmp_path / "b").exists()


def test_a_strict_reader_finds_all_that_the_unpruned_checkpoint_has(pruned, tmp_path):
    torch.manual_seed(0)
    write_checkpoint(tmp_path / "tap.ckpt", TAP(SMALL))
    whole = read_checkpoint(tmp_path / "tap.ckpt")
    others = whole.keys() - pruned.state_dict().keys()
    assert {name.split(".")[0] for name in others} == {"cls", "pollute_cls", "overlap_cls"}
    save_tap(pruned, tmp_path, unpruned=tmp_path / "tap.ckpt")
    written = torch.load(tmp_path / "pruned_model.ckpt", weights_only=True)["model"]
    assert written.keys() == whole.keys() | {name for i in range(2) for name in names(i)}
    assert all(torch.equal(written[name], whole[name]) for name in others)
    assert all(torch.equal(written[name], value) for name, value in pruned.state_dict().items())
    loaded = load_tap(tmp_path, SMALL)
    assert loaded.state_dict().keys() == pruned.state_dict().keys()
    with pytest.raises(CheckpointError, match=r"none\.ckpt does not exist"):
        save_tap(pruned, tmp_path / "b", unpruned=tmp_path / "none.ckpt")
    assert not (tmp_path / "b").exists()


def test_a_retrained_checkpoint_may_have_another_name(pruned, tmp_path):
    save_tap(pruned, tmp_path)
    (tmp_path / "retrain").mkdir()
    (tmp_path / "pruned_model.ckpt").rename(tmp_path / "retrain" / "best.ckpt")
    loaded = load_tap(tmp_path, SMALL, checkpoint="retrain/best.ckpt")
    assert prunable(loaded).heads_per_layer == prunable(pruned).heads_per_layer
    with pytest.raises(CheckpointError, match=r"pruned_model\.ckpt does not exist"):
        load_tap(tmp_path, SMALL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1,2]\n", "1 lines, expected two"),
        ("[1,2]\n[3,4]\n[5]\n", "3 lines, expected two"),
        ("[1]\n[3,4]\n", r"heads kept per layer are '\[1\]', expected a list of 2 whole numbers from 0 to 3"),
        ("[1,4]\n[3,4]\n", "heads .* from 0 to 3"),
        ("[1,-1]\n[3,4]\n", "heads"),
        ("[1,True]\n[3,4]\n", "heads"),
        ("[1,2]\n[3,4.0]\n", "neurons .* from 0 to 3072"),
        ("[1,2]\n(3,4)\n", "neurons"),
        ("[1,2]\n[3,\n", "neurons"),
        ("[1,2]\n__import__('os').system('false')\n", "neurons"),
        ("[1,2]\n" + "[" * 5000 + "\n", "neurons"),
    ],
)
def test_a_wrong_cfg_is_refused_and_never_run(text, message, tmp_path):
    (tmp_path / "cfg.txt").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_tap(tmp_path, SMALL)


def test_files_that_disagree_are_refused(pruned, tmp_path):
    with pytest.raises(CheckpointError, match=r"no file .*cfg\.txt"):
        load_tap(tmp_path, SMALL)
    save_tap(pruned, tmp_path)
    text = (tmp_path / "cfg.txt").read_text()
    (tmp_path / "cfg.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="not a text file"):
        load_tap(tmp_path, SMALL)
    (tmp_path / "cfg.txt").write_text("[3,3]\n[5,5]\n")
    with pytest.raises(CheckpointError, match=r"mmt\.encoder\.layer\.0\.attention\.self\.query\.weight has shape"):
        load_tap(tmp_path, SMALL)
    (tmp_path / "cfg.txt").write_text(text)
    state = torch.load(tmp_path / "pruned_model.ckpt", weights_only=True)["model"]
    head, neuron = names(0)[0], names(0)[1]
    for name, value, message in (
        (head, None, "head_mask.mask is missing"),
        (neuron, torch.ones(1), r"ffn_mask.mask is \(1,\), expected"),
        (neuron, state[neuron] / 0, "ffn_mask.mask is not finite"),
    ):
        wrong = {k: v for k, v in state.items() if k != name} | ({} if value is None else {name: value})
        torch.save({"model": wrong}, tmp_path / "pruned_model.ckpt")
        with pytest.raises(CheckpointError, match=message):
            load_tap(tmp_path, SMALL)
