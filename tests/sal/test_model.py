"""SaL against the published implementation's numbers (tests/reference), its decoding, and its checkpoints."""

import copy

import numpy as np
import pytest
import small_sal as small
import torch
from reference import sal_rules as rules
from safetensors.torch import save_file

from lfpr.files import CheckpointError
from lfpr.sal.config import SaLConfig
from lfpr.sal.model import SaL, circles, read_config, steps_of

VARIANTS = {"off": "plain", "add": "scp", "replace": "scpreplace"}


@pytest.fixture(scope="module")
def models():
    return {scp: small.sal(scp) for scp in VARIANTS}


def previous(published) -> torch.Tensor:
    labels = torch.from_numpy(published["labels"]).long()
    return torch.cat([torch.zeros(4, 1, dtype=torch.long), labels[:, :-1]], 1)


def test_state_dict_is_the_published_one(models):
    assert {name: list(value.shape) for name, value in models["add"].state_dict().items()} == small.SHAPES
    assert set(small.SHAPES) - set(models["off"].state_dict()) == {rules.CIRCLE_TABLE}


def test_sizes_are_the_published_ones():
    with torch.device("meta"):
        counts = {scp: sum(p.numel() for p in SaL(SaLConfig(scp=scp)).parameters()) for scp in ("off", "add")}
    assert counts == {"off": 226_063_872, "add": 226_063_872 + 71 * 12}
    assert SaLConfig().length == 645


def test_embeddings_and_masks_equal_the_published_ones(models, batch, published):
    there = published["attention_mask"] > 0
    with torch.no_grad():
        encoded, inputs = models["off"].encode(batch), models["off"].embed(batch)
    assert (encoded.mask.numpy() == there).all()
    np.testing.assert_allclose(inputs.numpy()[there], published["inputs_embeds"][there], **small.CLOSE)


def test_distances_and_biases_equal_the_published_ones(models, batch, published):
    seen = []
    attention = models["add"].latr.encoder.block[1].layer[0].SelfAttention
    hook = attention.register_forward_pre_hook(lambda m, a, kw: seen.append(kw["position_bias"]), with_kwargs=True)
    with torch.no_grad():
        models["add"].encode(batch)
        attention = models["add"].latr.decoder.block[0].layer[0].SelfAttention
        decoder = attention.compute_bias(26, 26)[0]
    hook.remove()
    distances = circles(batch["ocr_boxes"], 11, 5)
    assert (distances.numpy() == published["ocr_circle_dist"]).all()
    relative = np.repeat(published["relative_bias_encoder"][None], 4, 0)
    relative[:, :, 10:34, 10:34] += published["scp_bias"]
    np.testing.assert_allclose(seen[0].numpy(), relative, **small.CLOSE)  # in layer 1: what layer 0 has handed on
    np.testing.assert_allclose(decoder.detach().numpy(), published["relative_bias_decoder"], **small.CLOSE)


@pytest.mark.parametrize("scp", VARIANTS)
def test_outputs_equal_the_published_ones(scp, models, batch, published):
    there, prefix = published["attention_mask"] > 0, VARIANTS[scp]
    with torch.no_grad():
        encoded, logits = models[scp].encode(batch).x, models[scp](batch, previous(published))
    np.testing.assert_allclose(encoded.numpy()[there], published[f"{prefix}_encoder_output"][there], **small.CLOSE)
    np.testing.assert_allclose(logits.numpy(), published[f"{prefix}_logits"], **small.CLOSE)


@pytest.mark.parametrize("scp", ["off", "add"])
def test_greedy_decoding_equals_the_published_one(scp, models, batch, published):
    prefix = VARIANTS[scp]
    logits, ids = models[scp].generate(batch)
    assert (ids.numpy() == published[f"{prefix}_greedy_ids"]).all()
    np.testing.assert_allclose(
        logits.numpy(), published[f"{prefix}_greedy_logits"][:, : logits.shape[1]], **small.CLOSE
    )
    forced = models[scp](batch, ids[:, :25]).detach().numpy()
    np.testing.assert_allclose(forced, published[f"{prefix}_greedy_logits"], **small.CLOSE)


def test_decoding_stops_and_counts(models, batch):
    _, ids = models["add"].generate(batch)
    counts = steps_of(ids)
    assert counts.tolist() == [(row.tolist().index(1) if 1 in row else 25) for row in ids]
    logits, alone = models["add"].generate({name: value[1:3] for name, value in batch.items()})
    assert logits.shape[1] == counts[1:3].max() < 25 and torch.equal(alone, ids[1:3])
    logits, first = models["add"].generate(batch, 2)
    assert logits.shape[1] == 2 and torch.equal(first, ids[:, :3])
    assert steps_of(torch.tensor([[0, 5, 1, 0], [0, 5, 5, 5], [0, 1, 1, 0]])).tolist() == [2, 3, 1]


@pytest.mark.parametrize("kind", [*rules.sal_masks(7), "all"])
@pytest.mark.parametrize("scp", ["off", "add"])
def test_masked_logits_equal_the_published_ones(scp, kind, models, batch, published):
    masks = {name: torch.from_numpy(mask) for name, mask in rules.sal_masks(7).items() if kind in (name, "all")}
    hooks = small.masked(models[scp], masks)
    with torch.no_grad():
        logits = models[scp](batch, previous(published))
    for hook in hooks:
        hook.remove()
    np.testing.assert_allclose(logits.numpy(), published[f"{VARIANTS[scp]}_logits_masked_{kind}"], **small.CLOSE)


def keep_heads(attention: torch.nn.Module, kept: torch.Tensor) -> None:
    """Leave an attention its `kept` heads; of the bias of all heads, which goes on to later layers, it takes theirs."""
    rows = torch.arange(48).view(4, 12)[kept].flatten()
    for name in ("q", "k", "v"):
        getattr(attention, name).weight = torch.nn.Parameter(getattr(attention, name).weight[rows])
    attention.o.weight = torch.nn.Parameter(attention.o.weight[:, rows])
    whole = []

    def before(module, args, kwargs):
        whole[:] = [kwargs["position_bias"]]
        return args, kwargs | {"position_bias": whole[0][:, kept]}

    attention.register_forward_pre_hook(before, with_kwargs=True)
    attention.register_forward_hook(lambda module, args, output: (output[0], whole[0], *output[2:]))


@pytest.mark.parametrize("scp", ["add", "replace"])
def test_circles_reach_layers_with_other_heads(scp, models, batch):
    masks = {"encoder_heads": torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])}
    hooks, pruned = small.masked(models[scp], masks), small.sal(scp)
    with torch.no_grad():
        wanted = models[scp].encode(batch).x
        for block, mask in zip(pruned.latr.encoder.block, masks["encoder_heads"], strict=True):
            keep_heads(block.layer[0].SelfAttention, mask.nonzero()[:, 0])
        torch.testing.assert_close(pruned.encode(batch).x, wanted, rtol=1e-4, atol=1e-4)
    for hook in hooks:
        hook.remove()


def test_copies_have_circles_of_their_own(models, batch):
    copied = copy.deepcopy(models["add"])
    with torch.no_grad():
        copied.latr.encoder.block[0].layer[0].SelfAttention.spatial_circle_bias.weight.zero_()
        plain, zeroed, own = (model.encode(batch).x for model in (models["off"], copied, models["add"]))
    torch.testing.assert_close(plain, zeroed)
    assert not torch.allclose(zeroed, own, atol=1e-2)


def test_cells_are_clamped():
    boxes = torch.tensor([[[-1.0, -1.0, -1.0, -1.0], [3.0, 3.0, 3.0, 3.0], [0.0, 0.99, 0.0, 0.99]]])
    assert circles(boxes, 11, 5).tolist() == [[[0, 70, 50], [70, 0, 50], [50, 50, 0]]]


def test_checkpoint_round_trip(models, tmp_path):
    state = small.state()
    torch.save({"model": state, "optimizer": {"lr": 1.0}}, tmp_path / "best.ckpt")
    loaded = SaL(small.CONFIG).load_checkpoint(tmp_path / "best.ckpt").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in models["add"].state_dict().items())
    one = {name: value for name, value in state.items() if name not in rules.TIED}
    save_file(one, tmp_path / "one.safetensors")
    loaded = SaL(small.CONFIG).load_checkpoint(tmp_path / "one.safetensors").state_dict()
    assert torch.equal(loaded["latr.lm_head.weight"], state["latr.shared.weight"])
    larger = torch.cat([state.pop(rules.CIRCLE_TABLE), torch.ones(5, 4)])
    torch.save({"model": state | {"latr.encoder.scp.weight": larger}}, tmp_path / "other.ckpt")
    loaded = SaL(small.CONFIG).load_checkpoint(tmp_path / "other.ckpt").state_dict()
    assert torch.equal(loaded[rules.CIRCLE_TABLE], larger[:71])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("type_embed.weight"), "lacks 1 of the .* first type_embed.weight"),
        (lambda s: s.pop("latr.shared.weight"), "lacks 1 .* latr.shared.weight"),
        (lambda s: s.update(more=torch.zeros(2)), r"has 1 entries .*scp = 'add' has not \(more \[2\]\)"),
        (lambda s: s.update({rules.CIRCLE_TABLE: torch.zeros(70, 4)}), r"\[70, 4\], expected .*\[71 or more, 4\]"),
        (lambda s: s.update({rules.CIRCLE_TABLE: torch.zeros(71, 1)}), r"\[71, 1\], expected .*\[71 or more, 4\]"),
        (lambda s: s.update({"embedding.weight": torch.zeros(120, 48)}), "embedding.weight is not latr.shared.weight"),
        (lambda s: s.update({"obj_bbox.bias": torch.zeros(47)}), r"obj_bbox.bias has shape \[47\].*\[48\]"),
        (lambda s: s.update({"obj_bbox.bias": torch.full([48], torch.nan)}), "obj_bbox.bias has NaN"),
        (lambda s: s.update({"obj_bbox.bias": torch.zeros(48, dtype=torch.int8)}), "obj_bbox.bias is of torch.int8"),
        (lambda s: s.update({"obj_bbox.bias": torch.zeros(48) * 1j}), "obj_bbox.bias is of torch.complex64"),
    ],
)
def test_other_checkpoints_are_refused(change, message, tmp_path):
    state = small.state()
    change(state)
    torch.save({"model": state}, tmp_path / "best.ckpt")
    with pytest.raises(CheckpointError, match=f"best.ckpt: .*{message}"):
        SaL(small.CONFIG).load_checkpoint(tmp_path / "best.ckpt")


def test_sizes_are_those_of_matrices(tmp_path):
    query = "latr.encoder.block.0.layer.0.SelfAttention.q.weight"
    torch.save(small.state() | {query: torch.tensor(1.0)}, tmp_path / "best.ckpt")
    with pytest.raises(CheckpointError, match="best.ckpt has other shapes than a SaL model"):
        read_config(tmp_path / "best.ckpt")


def test_circles_are_neither_dropped_nor_made_up(tmp_path):
    torch.save({"model": small.state()}, tmp_path / "best.ckpt")
    with pytest.raises(CheckpointError, match=r"has 1 entries .*'off' has not.*spatial_circle_bias.weight \[71, 4\]"):
        SaL(small.config(scp="off")).load_checkpoint(tmp_path / "best.ckpt")
    torch.save({"model": small.state("off")}, tmp_path / "plain.ckpt")
    with pytest.raises(CheckpointError, match=r"lacks 1 .*spatial_circle_bias.weight$"):
        SaL(small.CONFIG).load_checkpoint(tmp_path / "plain.ckpt")


def test_broken_weights_give_no_answer(batch):
    model = small.sal()
    with torch.no_grad():
        model.type_embed.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="logits: NaN"):
        model.generate(batch)
    with pytest.raises(ValueError, match="batch: it has no samples"):
        model.generate({name: value[:0] for name, value in batch.items()})


def test_config_rejects_what_cannot_be_built():
    wrong = {"num_heads": 0, "dropout": 2, "scp": "half", "separator": 32128, "ocr_prefix": (5,), "obj_prefix": [5, 1]}
    wrong |= {"ocr_length": 2, "max_distance": 16, "d_model": "48", "circle_grid": 0.5, "vocab_size": 2}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=rf"SaLConfig\.{name}(\[1\])? = "):
            SaLConfig(**{name: value})
    with pytest.raises(ValueError, match="SaLConfig has no field .*'layers'"):
        SaLConfig.from_dict({"layers": 3})
    assert SaLConfig.from_dict(SaLConfig(ocr_prefix=[2, 3]).to_dict()) == SaLConfig(ocr_prefix=(2, 3))
