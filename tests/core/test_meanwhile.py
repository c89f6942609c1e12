"""What may happen meanwhile: masks that act elsewhere, modules that are replaced, memory that is used again."""

import copy
import pickle
import threading

import pytest
import small_models as small
import torch
from torch import nn

import lfpr
from lfpr.checks import BudgetError
from lfpr.encoder import prunable
from lfpr.masks import Masks
from lfpr.modes import observable
from lfpr.oddities import copy_of
from lfpr.shrink import NotEquivalent, shrink, verify_equivalent
from lfpr.training import retrain as training

BATCH = small.batch("bert")


@pytest.fixture
def bert():
    return small.build("bert")


@pytest.fixture
def masks(bert):
    return small.random_masks(prunable(bert), 3)


def outputs(model):
    with torch.no_grad():
        return small.forward(model, BATCH)


def test_a_copy_takes_no_masks_along(bert, masks):
    expected = outputs(shrink(bert, masks))
    with prunable(bert).masked(masks):
        small_model, copied = shrink(bert, masks), copy_of(bert)
    assert torch.equal(outputs(small_model), expected) and torch.equal(outputs(copied), outputs(bert))
    assert not any(m._forward_pre_hooks for m in [*small_model.modules(), *copied.modules()])
    own = bert.encoder.layer[0].output.dense.register_forward_pre_hook(lambda _, args: None)
    assert len(copy_of(bert).encoder.layer[0].output.dense._forward_pre_hooks) == 1  # the user's own stay
    own.remove()


@pytest.mark.parametrize("path", ["", "encoder.layer.1.output"])
def test_a_forward_that_would_run_the_original_is_refused(bert, masks, path):
    module = bert.get_submodule(path)
    forward = module.forward
    module.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    with pytest.raises(ValueError, match=rf"{path or 'BertModel'}: its forward was replaced by a function"):
        shrink(bert, masks)
    del module.forward
    assert shrink(bert, masks)


def test_masks_of_two_threads_act_on_compiled_models(bert, masks):
    seen = {}
    entered, left = threading.Event(), threading.Event()

    def other():
        with observable(small.build("vit")):
            entered.set()
            left.wait(10)

    expected = outputs(shrink(bert, masks))
    bert.compile(backend="eager")
    outputs(bert)
    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(10)
    with prunable(bert).masked(masks):
        left.set()
        thread.join()
        seen["masked"] = outputs(bert)
    torch.testing.assert_close(seen["masked"], expected, rtol=1e-4, atol=1e-4)
    assert torch._dynamo.eval_frame._stance.stance == "default"
    torch._dynamo.reset()


def test_an_encoder_of_modules_that_were_replaced_is_refused(bert, masks):
    encoder = prunable(bert)
    bert.encoder.layer[0].output.dense = copy.deepcopy(bert.encoder.layer[0].output.dense)
    objective = lambda batch: small.forward(bert, batch).sum()  # noqa: E731
    for use in (
        lambda: encoder.masked(masks).__enter__(),
        lambda: lfpr.collect_gradients(encoder, [BATCH], objective),
        lambda: lfpr.activation_importance(encoder, [BATCH], objective),
    ):
        with pytest.raises(
            ValueError, match=r"encoder\.layer\.0\.output\.dense was replaced since: call lfpr\.prunable"
        ):
            use()
    assert prunable(bert).masked(masks)


def test_a_forward_that_uses_its_memory_again_hides_nothing(bert, masks):
    wrong, memory = shrink(bert, masks), torch.zeros_like(outputs(bert))
    with torch.no_grad():
        wrong.encoder.layer[2].output.LayerNorm.bias += 1
    with pytest.raises(NotEquivalent):
        verify_equivalent(bert, masks, wrong, [BATCH], lambda m, b: memory.copy_(small.forward(m, b)))


def test_a_buffer_beside_a_weight_is_no_reparametrisation(bert, masks):
    bert.encoder.layer[0].output.dense.register_buffer("scaler_row", torch.zeros(40))  # as Wanda keeps
    assert verify_equivalent(bert, masks, shrink(bert, masks), [BATCH], small.forward) < 1e-4


@pytest.mark.parametrize("error", [BudgetError(0.1, 0.25, "MACs"), NotEquivalent("they differ", 0.5)])
def test_errors_come_through_processes(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)


def test_masks_are_float32_whatever_the_default(bert):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        made = Masks.ones(prunable(bert))
        trained = training.TrainableMasks(prunable(bert))
    finally:
        torch.set_default_dtype(before)
    assert made.heads.dtype == made.neurons.dtype == torch.float32
    assert {p.dtype for p in trained.parameters()} == {torch.float32}


def test_a_loss_that_trains_nothing_is_refused(bert):
    other = small.build("bert")

    def train(loss):
        lfpr.retrain(bert, prunable(bert), [nn.Linear(2, 2)], [BATCH], loss, lfpr.ReSt(last_layers=1), progress=False)

    for loss in (
        lambda b: small.forward(other, b).square().mean(),
        lambda b: small.forward(bert, b).square().mean().detach(),
    ):
        with pytest.raises(ValueError, match="loss: does not depend on what is trained"):
            train(loss)
    with torch.no_grad(), pytest.raises(ValueError, match="loss: does not depend on what is trained"):
        train(lambda b: small.forward(bert, b).square().mean())


def test_batches_without_samples_or_tokens_are_named(bert):
    encoder = prunable(bert)
    nobody = {name: value[:0] for name, value in BATCH.items()}
    with pytest.raises(ValueError, match="batches: one of them has no samples"):
        lfpr.collect_gradients(encoder, [nobody], lambda b: small.forward(bert, b).sum())
    padding = BATCH | {"attention_mask": torch.zeros_like(BATCH["attention_mask"])}
    for score in (lfpr.activation_importance, lfpr.surgeon_importance):
        with pytest.raises(ValueError, match="batches: there is none with a token that counts"):
            score(encoder, [padding], lambda b: small.forward(bert, b).sum())
