"""The walk through a student and its teacher, one sub-layer at a time."""

import pytest
import small_models as small
import torch

from lfpr.encoder import prunable
from lfpr.layerwise import Replay, Side, Walk
from lfpr.shrink import shrink


@pytest.mark.parametrize("family", small.FAMILIES)
def test_a_shrunk_student_walks_as_the_masked_one(family):
    """Two encoders beside each other, as one encoder under masks beside itself."""
    model, batches = small.build(family), [small.batch(family, seed=seed) for seed in (1, 2)]
    encoder = prunable(model)
    masks = small.random_masks(encoder, 3, real=False)
    students = (Side(encoder, masks), Side(prunable(shrink(model, masks))))
    walked = []
    for student in students:
        with torch.no_grad(), Replay(encoder, batches, lambda batch: small.forward(model, batch)) as replay:
            walk, seen = Walk(replay, student, Side(encoder)), []
            for layer, part in walk.sub_layers():
                mask, size = (masks.heads, encoder.head_dim) if part == "heads" else (masks.neurons, 1)
                kept = mask[layer].repeat_interleave(size).bool()

                def add(x, given, target, weights, kept=kept, student=student, seen=seen):
                    seen.append((x if student.masks is None else x[..., kept], given, target, weights))

                walk.visit(layer, part, add)
        walked.append(seen)
    assert len(walked[0]) == len(walked[1]) == 2 * encoder.num_layers * len(batches)
    for masked, shrunk in zip(*walked, strict=True):
        for a, b in zip(masked, shrunk, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
