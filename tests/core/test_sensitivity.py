"""All-but-one pruning against the published masks, resumed, and its errors."""

import numpy as np
import pytest
import small_models as small
import torch
from reference import rules
from torch.nn import functional as F

from lfpr.cost import MacCost
from lfpr.encoder import prunable
from lfpr.masks import Masks
from lfpr.sensitivity import all_but_one
from lfpr.shrink import shrink


@pytest.fixture(scope="module")
def clip():
    model = small.reference_clip()
    inputs = {name: torch.from_numpy(value) for name, value in rules.clip_inputs(7).items()}

    def objective(i):
        images = model.visual_projection(model.vision_model(inputs["pixel_values"][i : i + 8]).pooler_output)
        logits = F.normalize(images) @ F.normalize(inputs["text_features"][i : i + 8]).T * model.logit_scale.exp()
        return (F.cross_entropy(logits, torch.arange(8)) + F.cross_entropy(logits.T, torch.arange(8))) / 2

    return prunable(model.vision_model), objective


def test_steps_equal_the_published_ones_and_resume(clip):
    encoder, objective = clip
    expected = np.load(small.REFERENCE / "clip_seed7.npz")["sensitivity_heads"]
    cost = MacCost(encoder, 17)
    steps = list(all_but_one(encoder, range(0, 64, 8), objective, cost=cost))
    assert [step for step, _, _ in steps] == [1, 2, 3, 4]
    for (step, masks, macs), heads in zip(steps, expected, strict=True):
        np.testing.assert_array_equal(masks.heads.numpy(), heads)
        assert sum(masks.heads_kept) == 16 - 3 * step and masks.neurons_kept == [96] * 4
        assert macs == cost.kept(masks) == cost.full - 3 * step * cost.head
    resumed = list(all_but_one(encoder, range(0, 64, 8), objective, masks=steps[1][1]))
    assert [step for step, _ in resumed] == [3, 4]
    assert all(a.equal(b) for (_, a), (_, b, _) in zip(resumed, steps[2:], strict=True))
    assert not list(all_but_one(encoder, range(0, 64, 8), objective, masks=steps[-1][1]))
    assert prunable(shrink(encoder.module, steps[-1][1])).heads_per_layer == [1, 1, 1, 1]


def test_removed_heads_stay_removed(clip):
    encoder, objective = clip
    start = Masks.ones(encoder)
    start.heads[0] = 0  # a layer without heads has no more to lose
    start.heads[1, :2] = 0
    before = start.heads.clone()
    steps = list(all_but_one(encoder, [0], objective, masks=start))
    assert [step for step, _ in steps] == [2, 3, 4]
    assert steps[-1][1].heads_kept == [0, 1, 1, 1]
    assert all((masks.heads <= before).all() for _, masks in steps) and torch.equal(start.heads, before)


def test_batches_that_end_and_foreign_masks_are_refused_at_once(clip):
    encoder, objective = clip
    with pytest.raises(ValueError, match="batches: read several times, an iterator can be read once"):
        all_but_one(encoder, iter([0]), objective)
    with pytest.raises(ValueError, match=r"masks\.heads: shape \(4, 5\)"):
        all_but_one(encoder, [0], objective, masks=Masks(torch.ones(4, 5), torch.ones(4, 96)))
