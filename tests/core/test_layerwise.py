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


def test_a_spool_keeps_what_fits_on_the_accelerator(monkeypatch):
    from fake_device import fake_device

    from lfpr import layerwise

    with fake_device() as device:
        spool, others = None, 0
        monkeypatch.setattr(layerwise, "free_memory", lambda: 240 - others - (40 * len(spool.kept) if spool else 0))
        spool = layerwise.Spool()  # room for three tensors of 40 bytes
        tensors = [torch.arange(10, device=device) + i for i in range(4)]
        tensors = [x.float() for x in tensors]
        slots = [spool.put(x) for x in tensors]
        empty = spool.put(torch.zeros(0, 3, device=device))
        assert list(spool.kept) == slots[:3]  # the last one is in the file
        assert all(torch.equal(spool.get(slot).cpu(), x.cpu()) for slot, x in zip(slots, tensors, strict=True))
        tensors[0].add_(1)  # what was put does not change with it
        assert spool.get(slots[0]).cpu().tolist() == list(range(10))
        spool.put(tensors[0], slots[0])
        assert spool.get(slots[0]).cpu().tolist() == list(range(1, 11))
        assert spool.get(empty).shape == (0, 3)
        spool.close()
        spool = layerwise.Spool()
        slots = [spool.put(tensors[0])]
        others = 100  # another process takes its share
        slots += [spool.put(x) for x in tensors[1:]]
        assert list(spool.kept) == slots[:1] and spool.get(slots[3]).cpu().tolist() == list(range(3, 13))
        spool.close()


def test_free_memory_counts_what_torch_holds_and_does_not_use(monkeypatch):
    from lfpr.layerwise import free_memory

    assert torch.accelerator.is_available() or free_memory() == 0
    answers = {"is_available": True, "memory_reserved": 30, "memory_allocated": 10, "get_memory_info": (100, 200)}
    for name, value in answers.items():
        monkeypatch.setattr(torch.accelerator, name, lambda value=value: value)
    assert free_memory() == 120
