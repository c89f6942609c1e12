"""Mask gradients against the published implementations, and per sample against per batch."""

import numpy as np
import pytest
import small_models as small
import torch
from reference import rules
from torch.nn import functional as F

from lfpr.encoder import prunable
from lfpr.gradients import MaskGradients, collect_gradients
from lfpr.masks import Importance, Masks


@pytest.fixture(scope="module")
def bert():
    return small.reference_bert()


@pytest.fixture(scope="module")
def batches():
    inputs = {name: torch.from_numpy(value) for name, value in rules.bert_inputs(7).items()}
    return [{name: value[i : i + 8] for name, value in inputs.items()} for i in range(0, 64, 8)]


def test_labelled_gradients_equal_the_published_ones_on_bert(bert, batches):
    published = np.load(small.REFERENCE / "bert_seed7.npz")
    found = collect_gradients(prunable(bert), batches, lambda batch: bert(**batch).loss)
    np.testing.assert_allclose(found.heads.numpy(), published["head_grads"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.neurons.numpy(), published["neuron_grads"], rtol=1e-3, atol=1e-5)


def test_contrastive_gradients_equal_the_published_ones_on_clip():
    clip, published = small.reference_clip(), np.load(small.REFERENCE / "clip_seed7.npz")
    inputs = {name: torch.from_numpy(value) for name, value in rules.clip_inputs(7).items()}

    def objective(i):
        images = clip.visual_projection(clip.vision_model(inputs["pixel_values"][i : i + 8]).pooler_output)
        logits = F.normalize(images) @ F.normalize(inputs["text_features"][i : i + 8]).T * clip.logit_scale.exp()
        return (F.cross_entropy(logits, torch.arange(8)) + F.cross_entropy(logits.T, torch.arange(8))) / 2

    found = collect_gradients(prunable(clip.vision_model), range(0, 64, 8), objective)
    np.testing.assert_allclose(found.heads.numpy(), published["head_grads"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.neurons.numpy(), published["neuron_grads"], rtol=1e-3, atol=1e-4)


def test_per_sample_gradients_sum_to_the_batch_gradient(bert, batches):
    def objective(batch):
        return F.cross_entropy(
            bert(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"], reduction="sum"
        )

    encoder = prunable(bert)
    whole = collect_gradients(encoder, batches[:2], objective)
    each = collect_gradients(encoder, batches[:2], objective, per_sample=True)
    assert each.heads.shape == (16, 4, 4) and each.neurons.shape == (16, 4, 96)
    torch.testing.assert_close(each.heads.view(2, 8, 4, 4).sum(1), whole.heads, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(each.neurons.view(2, 8, 4, 96).sum(1), whole.neurons, rtol=1e-4, atol=1e-5)
    alone = collect_gradients(encoder, [{k: v[3:4] for k, v in batches[0].items()}], objective)
    torch.testing.assert_close(alone.neurons[0], each.neurons[3], rtol=1e-4, atol=1e-5)


def test_per_sample_gradients_may_follow_passes_without_gradient(bert, batches):
    def objective(batch):
        with torch.no_grad():
            bert(batch["input_ids"][:, :5].repeat(2, 1))
        return bert(**batch).loss * 8

    plain = collect_gradients(prunable(bert), batches[:1], lambda b: bert(**b).loss * 8, per_sample=True)
    torch.testing.assert_close(collect_gradients(prunable(bert), batches[:1], objective, True).heads, plain.heads)


def test_gradients_at_a_mask(bert, batches):
    encoder, masks = prunable(bert), small.random_masks(prunable(bert), 0)
    found = collect_gradients(encoder, batches[:1], lambda b: bert(**b).loss.double(), masks=masks)
    step, moved = 1e-2, []
    for sign in (1, -1):
        other = Masks(masks.heads.clone(), masks.neurons.clone())
        other.heads[2, 1] += sign * step
        with encoder.masked(other), torch.no_grad():
            moved.append(bert(**batches[0]).loss.item())
    assert found.heads[0, 2, 1].item() == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=0.02, abs=1e-4)


def test_the_model_is_left_as_it_was(bert, batches):
    bert.bert.embeddings.requires_grad_(False)
    before = [p.requires_grad for p in bert.parameters()]
    for training in (True, False):
        bert.train(training)
        collect_gradients(prunable(bert), batches[:1], lambda batch: bert(**batch).loss)
        assert bert.training is training
    assert [p.requires_grad for p in bert.parameters()] == before and not all(before)
    assert all(p.grad is None for p in bert.parameters())
    bert.requires_grad_(True)


def test_dropout_is_on_in_training_mode(bert, batches):
    bert.train()
    torch.manual_seed(0)
    a, b = (collect_gradients(prunable(bert), batches[:1], lambda batch: bert(**batch).loss) for _ in range(2))
    bert.eval()
    assert not a.equal(b)


def test_bad_objectives_and_gradients_name_the_batch(bert, batches):
    encoder = prunable(bert)
    cases = {
        "batch 0: the objective must return a scalar tensor, found a tensor": lambda b: bert(**b).logits,
        "batch 0: the objective must return a scalar tensor, found float": lambda b: 1.0,
        "batch 0: the objective is nan": lambda b: bert(**b).loss * float("nan"),
        "batch 0: the objective does not depend": lambda b: torch.zeros(()),
    }
    for message, objective in cases.items():
        for per_sample in (False, True):
            with pytest.raises(ValueError, match=message):
                collect_gradients(encoder, batches, objective, per_sample)
    with pytest.raises(ValueError, match="batches: there is none"):
        collect_gradients(encoder, [], lambda b: bert(**b).loss)
    flags = [p.requires_grad for p in bert.parameters()]
    assert all(flags)

    def root_of_zero(batch):  # finite, with an infinite gradient, from the second batch on
        loss = bert(**batch).loss
        return (loss - loss.detach()).sqrt() if batch is not batches[0] else loss

    with pytest.raises(ValueError, match="batch 1: NaN or infinite gradients of heads in layers"):
        collect_gradients(encoder, batches, root_of_zero)


def test_bfloat16_models_give_float32_gradients(batches):
    model = small.reference_bert()
    exact = collect_gradients(prunable(model), batches[:1], lambda b: model(**b).loss)
    model = model.bfloat16()
    found = collect_gradients(prunable(model), batches[:1], lambda b: model(**b).loss)
    assert found.heads.dtype == torch.float32
    assert F.cosine_similarity(found.neurons.flatten(), exact.neurons.flatten(), dim=0) > 0.98


def test_importance_is_the_sum_of_squares_and_saves(tmp_path):
    gradients = MaskGradients(torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]]), torch.ones(2, 1, 3))
    importance = gradients.importance()
    assert importance.heads.tolist() == [[10.0, 4.0]] and importance.neurons.tolist() == [[2.0, 2.0, 2.0]]
    importance.save(tmp_path / "i")
    assert Importance.load(tmp_path / "i").equal(importance)
    gradients.save(tmp_path / "g")
    assert MaskGradients.load(tmp_path / "g").equal(gradients)
