"""SaL's losses against the published ones, and the label-free objective's value and gradients."""

import numpy as np
import pytest
import small_sal as small
import torch
from reference import sal_rules as rules

from lfpr.sal.objectives import Answered, label_free, labelled, peak_step, peak_steps, projected

KINDS = {
    "encoder_heads": (2, 4),
    "decoder_heads": (2, 4),
    "cross_heads": (2, 4),
    "encoder_neurons": (2, 96),
    "decoder_neurons": (2, 96),
}


@pytest.fixture(scope="module")
def models():
    return {"plain": small.sal("off"), "scp": small.sal("add")}


def taught(batch, published) -> dict[str, torch.Tensor]:
    """The batch with the reference's answers."""
    labels, targets, mask = (torch.from_numpy(published[name]) for name in ("labels", "targets", "loss_mask"))
    previous = torch.nn.functional.pad(labels.long()[:, :-1], (1, 0))
    return batch | {"previous": previous, "targets": targets, "loss_mask": mask}


@pytest.mark.parametrize("prefix", ["plain", "scp"])
def test_loss_equals_the_published_one(prefix, models, batch, published):
    model, batch = models[prefix], taught(batch, published)
    loss, (total, steps) = labelled(model)(batch), labelled(model, "parts")(batch)
    np.testing.assert_allclose(loss.item(), published[f"{prefix}_loss"], rtol=1e-3)
    torch.testing.assert_close(total / steps, loss)
    logits = model(batch, batch["previous"])
    unused = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(published["labels"]).flatten().long()
    )
    np.testing.assert_allclose(unused.item(), published[f"{prefix}_loss_t5"], rtol=1e-3)


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("prefix", ["plain", "scp"])
def test_mask_gradients_equal_the_published_ones(prefix, step, models, batch, published):
    model = models[prefix]
    for number in (0, 1):
        masks = {kind: torch.ones(shape, requires_grad=True) for kind, shape in KINDS.items()}
        hooks = small.masked(model, masks)
        value = label_free(model, step)(small.half(batch, number))
        gradients = torch.autograd.grad(value, list(masks.values()))
        for hook in hooks:
            hook.remove()
        own = published[f"{prefix}_greedy_logits"][2 * number : 2 * number + 2, step].max(-1).sum()
        np.testing.assert_allclose(value.item(), own, **small.CLOSE)
        for kind, gradient in zip(masks, gradients, strict=True):
            np.testing.assert_allclose(
                gradient.numpy(), published[f"{prefix}_grad_step{step}_{kind}"][number], **small.CLOSE
            )


@pytest.mark.parametrize("prefix", ["plain", "scp"])
def test_peak_steps_end_with_the_answer(prefix, models, batch, published):
    highest, ids = published[f"{prefix}_greedy_logits"].max(-1), published[f"{prefix}_greedy_ids"]
    wanted = []
    for row, answer in zip(highest, ids.tolist(), strict=True):
        steps = answer.index(1) if 1 in answer else 25
        wanted.append(int(row[:steps].argmax()))
    assert peak_steps(models[prefix], batch).tolist() == wanted
    halves = [small.half(batch, number) for number in (0, 1)]
    assert peak_step(models[prefix], halves) == int(np.median(wanted))


def test_objective_after_all_answers_have_ended(models, batch):
    one = {name: value[1:2] for name, value in batch.items()}  # its answer ends at once
    model = models["scp"]
    previous = torch.zeros(1, 6, dtype=torch.long)
    previous[0, 1] = 1
    wanted = model(one, previous)[:, 5].max()
    torch.testing.assert_close(label_free(model, 5)(one), wanted)
    assert peak_steps(model, one).tolist() == [0]


def test_own_answers_as_labels(models, batch):
    model = models["scp"]
    (own,) = Answered([batch], model)
    logits, ids = model.generate(batch)
    steps = [row.index(1) if 1 in row else logits.shape[1] for row in ids.tolist()]
    assert own["loss_mask"].sum(1).tolist() == steps and own["targets"].shape == logits.shape
    assert torch.equal(own["previous"], ids[:, :-1][:, : logits.shape[1]])
    assert all(own["targets"][i, t].nonzero().item() == ids[i, t + 1] for i, n in enumerate(steps) for t in range(n))
    one, other, again = (projected(model, seed)(own) for seed in (1, 2, 1))
    assert one == again and one != other and one.requires_grad
    assert len(Answered([batch, batch], model)) == 2


def test_what_is_refused(models, batch):
    model = models["scp"]
    for make, told in (
        (lambda: label_free(model, 25), "step = 25: must be a whole number from 0 to 24"),
        (lambda: label_free(model.latr, 0), "model: expected SaL, found T5ForConditionalGeneration"),
        (lambda: labelled(model, "max"), "reduction = 'max'"),
        (lambda: labelled(model)(batch), r"batch: has no tensor \['previous', 'targets', 'loss_mask'\]"),
        (lambda: peak_step(model, []), "batches: there is none"),
        (lambda: Answered(batch, model), "batches: expected a list of batches"),
    ):
        with pytest.raises(ValueError, match=told):
            make()


def test_rules_are_the_config():
    assert {name: value for name, value in small.CONFIG.t5().to_dict().items() if name in rules.CONFIG} == {
        name: value for name, value in rules.CONFIG.items() if name != "tie_word_embeddings"
    } | {"tie_word_embeddings": True}
