"""The walk through a student and its teacher, one sub-layer at a time."""

import pytest
import small_models as small
import torch

from lfpr.encoder import prunable
from lfpr.families import UnsupportedArchitecture
from lfpr.gallery import GALLERY
from lfpr.layerwise import Replay, Side, Walk
from lfpr.masks import Masks
from lfpr.rescale import masked
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
    for pair in zip(*walked, strict=True):
        for a, b in zip(*pair, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


STACKED = ["T5", "Flan-T5", "BART", "Whisper", "GPT-2", "OPT", "Llama", "ModernBERT", "MPNet"]


@pytest.mark.parametrize("name", STACKED)
def test_a_walk_sees_what_the_whole_models_compute(name):
    """Inputs of all output projections, and where the residual stream is at hand, of the masked model and the whole
    one, each run from beginning to end: a student's decoder is called with what its own encoder gives."""
    example = GALLERY[name]
    model, batches = example.model(), [example.inputs(2, seed=seed) for seed in (1, 2)]
    encoder = prunable(model)
    masks = Masks(
        *(
            torch.rand(len(r), n)
            for r, n in ((encoder.attentions, encoder.num_heads), (encoder.ffns, encoder.num_neurons))
        )
    )

    def whole(given):
        seen = {}
        hooks = [
            part.output.register_forward_pre_hook(lambda _, args, key=(part.kind, row): seen.update({key: args[0]}))
            for rows in (encoder.attentions, encoder.ffns)
            for row, part in enumerate(rows)
        ]
        with encoder.masked(given):
            example.run(model, batches[-1])
        for hook in hooks:
            hook.remove()
        return seen

    with torch.no_grad():
        expected, last = whole(masks), whole(Masks.ones(encoder))
        with Replay(encoder, batches, lambda batch: example.run(model, batch)) as replay:
            walk = Walk(
                replay,
                Side(encoder, masks),
                Side(encoder),
                masked(Side(encoder, masks), lambda b: example.run(model, b)),
            )
            order, gaps = [], {}
            for row, kind in walk.sub_layers():
                order.append((kind, row))

                def add(x, student, target, weights, key=(kind, row)):
                    gaps[key] = x, target - student

                walk.visit(row, kind, add)
    assert sorted(order) == sorted(expected) == sorted(gaps)
    for key, (x, gap) in gaps.items():
        torch.testing.assert_close(x.flatten(0, -2), expected[key].flatten(0, -2), rtol=1e-4, atol=1e-5)
        assert gap.norm() > 0 and last[key].shape == expected[key].shape
    layers = [encoder.layer_rows[layer] for layer in range(encoder.num_layers)]
    assert order == [
        (kind, row)
        for rows in layers
        for kind, row in zip(("heads", "heads", "neurons"), rows, strict=True)
        if row is not None
    ]


def test_a_decoder_needs_what_runs_the_student():
    example = GALLERY["T5"]
    model, batch = example.model(), example.inputs()
    encoder = prunable(model)
    with torch.no_grad(), Replay(encoder, [batch], lambda batch: example.run(model, batch)) as replay:
        walk = Walk(replay, Side(encoder), Side(encoder))
        with pytest.raises(ValueError, match="forward: what runs the student"):
            for row, kind in walk.sub_layers():
                walk.visit(row, kind, None)


def test_layers_that_run_several_times_in_a_pass_are_refused():
    example = GALLERY["ALBERT"]
    model = example.model()
    with pytest.raises(UnsupportedArchitecture, match=r"runs \d times in a pass"):
        Replay(prunable(model), [example.inputs()], lambda batch: example.run(model, batch))


def test_caches_are_left_out_while_a_model_is_watched():
    example = GALLERY["T5"]
    model = example.model()
    assert model.config.use_cache and model.decoder.config.use_cache
    with torch.no_grad(), Replay(prunable(model), [example.inputs()], lambda batch: model(**batch)) as replay:
        assert len(replay.calls) == 1
    assert model.config.use_cache and model.decoder.config.use_cache
    with pytest.raises(ValueError, match="EncoderDecoderCache, which cannot be given to it again"), torch.no_grad():
        Replay(prunable(model), [example.inputs()], lambda batch: model(**batch, use_cache=True))


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
