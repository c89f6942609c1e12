"""What would give a plausible wrong result without a word: refused, and what is merely unusual: taken, with the same
result."""

import math

import numpy as np
import pytest
import small_models as small
import torch
import transformers as hf
from torch import nn

import lfpr
from lfpr import clip, kprune, latency, released, tap
from lfpr.cost import LinearCost
from lfpr.latency.compare import side_by_side
from lfpr.masks import Importance, Masks


@pytest.fixture(scope="module")
def bert():
    model = small.build("bert")
    return model, lfpr.prunable(model), small.batch("bert")


@pytest.fixture(scope="module")
def other():
    """Another encoder: of two layers, four heads and 64 neurons."""
    sizes = {"num_hidden_layers": 2, "intermediate_size": 64}
    return lfpr.prunable(hf.BertModel(hf.BertConfig(**small.BERT | sizes)).eval())


def first_row(model, batch):
    return small.forward(model, batch)[:, 0]


def test_importance_and_masks_of_another_encoder(bert, other):
    model, encoder, batch = bert
    foreign, ones = lfpr.random_importance(other, 0), Masks.ones(other)
    for cost in (lfpr.ParameterCost(encoder), lfpr.MacCost(encoder, 9), released.parameter_cost(encoder)):
        for find in (lfpr.search, lfpr.search_proportional, released.search):
            with pytest.raises(
                ValueError, match=r"importance: heads \(2, 4\) and neurons \(2, 64\), the cost is of \(3, 4\)"
            ):
                find(foreign, cost, 0.5)
        for count in (cost.kept, cost.fraction):
            with pytest.raises(ValueError, match=r"masks: heads \(2, 4\) and neurons \(2, 64\)"):
                count(ones)
        with pytest.raises(ValueError, match="model: heads"):
            kprune.kprune(other.module, [batch], first_row, cost, 0.5)
        with pytest.raises(ValueError, match="masks: heads"):
            lfpr.all_but_one(other, [batch], lambda b: first_row(other.module, b).sum(), cost=cost)
    with pytest.raises(ValueError, match=r"masks\.heads: shape \(3, 4\), but PrunableEncoder.* has \(2, 4\)"):
        lfpr.all_but_one(other, [batch], lambda b: first_row(other.module, b).sum(), masks=Masks.ones(encoder))
    with pytest.raises(ValueError, match="encoder: .* is no part of the model, BertModel"):
        lfpr.retrain(model, other, [], [batch], lambda b: first_row(model, b).sum(), lfpr.ReSt())


def test_the_cost_of_a_shrunk_encoder_counts_masks_of_it_and_of_the_unpruned_one(bert):
    model, encoder, _ = bert
    masks = Masks(torch.ones(3, 4), torch.ones(3, 40))
    masks.heads[:, 1:] = 0
    narrow = lfpr.prunable(lfpr.shrink(model, masks))
    own, whole = lfpr.ParameterCost(narrow), lfpr.ParameterCost(encoder)
    assert own.kept(Masks.ones(narrow)) == own.kept(masks) == whole.kept(masks) == narrow.num_parameters
    assert lfpr.search(lfpr.random_importance(narrow, 0), own, 0.5).heads.shape == (3, 1)
    with pytest.raises(
        ValueError, match=r"masks: heads \(3, 1\) and neurons \(3, 40\), the cost is of \(3, 4\) and \(3, 40\)$"
    ):
        whole.kept(Masks.ones(narrow))
    masks.neurons[0, 0] = 0
    ragged = lfpr.ParameterCost(lfpr.prunable(lfpr.shrink(model, masks)))
    assert ragged.kept(masks) == whole.kept(masks)
    with pytest.raises(ValueError, match=r"the cost is of \(3, 4\) and \(3, 40\)$"):
        ragged.kept(Masks(torch.ones(3, 1), torch.ones(3, 40)))


def test_negative_and_missing_scores():
    with pytest.raises(ValueError, match=r"importance\.heads: 1 values are negative"):
        lfpr.search_threshold(Importance(torch.tensor([[-1.0, 2]]), torch.ones(1, 3)), 50)
    with pytest.raises(ValueError, match=r"importance\.neurons: shape \(1, 0\) holds nothing"):
        lfpr.search_threshold(Importance(torch.ones(1, 2), torch.ones(1, 0)), 50)
    none = lfpr.MaskGradients(torch.ones(0, 2, 3), torch.ones(0, 2, 5))
    endless = lfpr.MaskGradients(torch.ones(1, 2, 3), torch.full((1, 2, 5), math.inf))
    for gradients, message in ((none, "of no batches"), (endless, r"\.neurons: 10 values are NaN or infinite")):
        with pytest.raises(ValueError, match=f"gradients.*{message}"):
            gradients.importance()
        with pytest.raises(ValueError, match=f"grads.*{message}"):
            lfpr.rearrange(Masks(torch.ones(2, 3), torch.ones(2, 5)), gradients)


@pytest.mark.parametrize("at", [0, 1])
def test_a_batch_of_no_samples(bert, at):
    model, encoder, batch = bert
    batches = [batch, batch]
    batches[at] = {name: value[:0] for name, value in batch.items()}
    masks, cost = small.random_masks(encoder, 0), lfpr.ParameterCost(encoder)
    student = lfpr.shrink(model, masks)
    forward, loss = lambda b: small.forward(model, b), lambda b: first_row(model, b).sum()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    settings = lfpr.ReSt(lr=1e-30, mask_lr=1e-30)
    for call in (
        lambda: lfpr.activation_importance(encoder, batches, forward),
        lambda: lfpr.surgeon_importance(encoder, batches, loss),
        lambda: lfpr.rescale(encoder, masks, batches, forward),
        lambda: released.rescale(encoder, masks, batches, forward),
        lambda: lfpr.reconstruct(model, student, batches, small.forward),
        lambda: kprune.kprune(model, batches, first_row, cost, 0.5),
        lambda: lfpr.LatencyCost.measure(encoder, batches[at], forward, repeats=1),
        lambda: lfpr.retrain(model, encoder, [], batches, loss, settings, progress=False),
    ):
        with pytest.raises(ValueError, match="batches: one of them has no samples or no tokens"):
            call()
    assert not any(module._forward_pre_hooks for module in model.modules())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name])


def test_masks_that_are_neither_kept_nor_removed(bert, tmp_path):
    model, encoder, batch = bert
    for bad in (math.nan, math.inf, -math.inf):
        for make in (Masks, lambda *parts: lfpr.Rescaled(*parts, ())):
            with pytest.raises(ValueError, match=r"Masks\.heads: 4 values are NaN or infinite"):
                make(torch.full((1, 4), bad), torch.ones(1, 5))
        masks = Masks.ones(encoder)
        masks.neurons[1, 3] = bad  # afterwards
        cost, gradients = lfpr.ParameterCost(encoder), lfpr.MaskGradients(torch.ones(1, 3, 4), torch.ones(1, 3, 40))
        for call in (
            lambda masks=masks: masks.heads_kept,
            lambda masks=masks: masks.neurons_kept,
            lambda masks=masks: masks.binary(),
            lambda masks=masks: masks.to(torch.float64),
            lambda masks=masks, cost=cost: cost.fraction(masks),
            lambda masks=masks: latency.LatencyCost(range(5), range(41), 3).kept(masks),
            lambda masks=masks, gradients=gradients: lfpr.rearrange(masks, gradients),
            lambda masks=masks: lfpr.rescale(encoder, masks, [batch], lambda b: small.forward(model, b)),
            lambda masks=masks: lfpr.all_but_one(encoder, [batch], lambda b: first_row(model, b).sum(), masks),
        ):
            with pytest.raises(ValueError, match=r"asks\.neurons: (1 values are NaN|expected zeros and ones)"):
                call()
    Importance(torch.full((1, 4), math.nan), torch.ones(1, 5)).save(tmp_path / "scores")
    data = (tmp_path / "scores").read_bytes().replace(b"Importance", b"Masks     ")
    (tmp_path / "masks").write_bytes(data.replace(b'"Masks     "', b'     "Masks"'))
    with pytest.raises(ValueError, match=r"masks: Masks\.heads: 4 values are NaN"):
        Masks.load(tmp_path / "masks")


@pytest.mark.parametrize("kind", [Masks, Importance, lfpr.MaskGradients])
def test_tensors_that_hold_no_real_numbers(kind):
    ndim = kind._ndim
    good = torch.ones(*[1] * (ndim - 1), 3)
    for bad in (
        good.to(torch.complex64),
        good.to("meta"),
        good.to_sparse(),
        torch.nested.nested_tensor([torch.ones(3)], layout=torch.jagged),
    ):
        with pytest.raises(ValueError, match=rf"{kind.__name__}\.neurons: expected a tensor"):
            kind(good, bad)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.int32], ids=str)
def test_whole_numbers_and_booleans_are_taken_as_numbers(bert, dtype):
    model, encoder, batch = bert
    masks = small.random_masks(encoder, 0, real=False)
    whole = Masks(masks.heads.to(dtype), masks.neurons.to(dtype))
    assert whole.equal(masks) and whole.heads.dtype == torch.float32 and masks.to(dtype).equal(masks)
    forward, cost = lambda b: small.forward(model, b), lfpr.ParameterCost(encoder)

    def objective(b):
        return first_row(model, b).square().sum()

    gradients = lfpr.collect_gradients(encoder, [batch], objective, masks=masks)
    assert lfpr.collect_gradients(encoder, [batch], objective, masks=whole).equal(gradients)
    assert cost.fraction(whole) == cost.fraction(masks)
    assert lfpr.rearrange(whole, gradients).equal(lfpr.rearrange(masks, gradients))
    assert lfpr.rescale(encoder, whole, [batch], forward).equal(lfpr.rescale(encoder, masks, [batch], forward))
    shrunk, expected = (lfpr.shrink(model, each) for each in (whole, masks))
    assert torch.equal(small.forward(shrunk, batch), small.forward(expected, batch))
    steps, wanted = (list(lfpr.all_but_one(encoder, [batch], objective, each)) for each in (whole, masks))
    assert all(a[1].equal(b[1]) for a, b in zip(steps, wanted, strict=True)) and len(steps) == len(wanted)
    scores = Importance((masks.heads * 9).to(dtype), (masks.neurons * 7).to(dtype))
    floats = Importance(scores.heads.float(), scores.neurons.float())
    for find in (lfpr.search, lfpr.search_proportional, released.search):
        assert find(scores, cost, 0.5).equal(find(floats, cost, 0.5))


def test_large_whole_numbers_keep_their_order():
    scores = Importance(torch.tensor([[2**40, 2**40 + 1]]), torch.tensor([[2**40 + 2, 1]]))
    assert lfpr.search_threshold(scores, 60).neurons.tolist() == [[1, 0]] and scores.heads.dtype == torch.float64


def test_a_model_that_gives_nan_has_no_score():
    model, batch, _ = small.tap()
    with torch.no_grad():
        model.classifier["module"].bias[3] = math.nan
    for call in (
        lambda: model.generate(batch),
        lambda: model.generate(batch, stop=True),
        lambda: tap.peak_step(model, [batch]),
        lambda: tap.first_logits(model, batch),
    ):
        with pytest.raises(ValueError, match="logits: NaN or infinite: the model's weights or its inputs are broken"):
            call()
    features = torch.rand(4, 8)
    for bad in (math.nan, math.inf):
        broken = features.clone()
        broken[2, 1] = bad
        for call in (
            lambda broken=broken: clip.recall(broken, features),
            lambda broken=broken: clip.recall(features, broken),
            lambda broken=broken: clip.cascade(broken, features, features, m=2),
            lambda broken=broken: clip.cascade(features, broken, features, m=4),
            lambda broken=broken: clip.cascade(features, lambda rows, broken=broken: broken[rows], features, m=4),
        ):
            with pytest.raises(ValueError, match=r"features: 1 of 4 are NaN or infinite, the first \[2\]"):
                call()


class Mode(nn.Module):
    """Notes the mode in which it runs."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.modes = inner, set()

    def forward(self, *args, **kwargs):
        self.modes.add(self.training)
        return self.inner(*args, **kwargs)


def test_what_is_measured_or_decoded_runs_in_evaluation_mode(bert):
    _, _, batch = bert
    model = small.build("bert").train()
    noted = model.encoder.layer[0].output = Mode(model.encoder.layer[0].output)
    side_by_side({"a": model}, lambda m: small.forward(m, batch), lambda m: bert[1], 9, 3, "text", 1)
    assert noted.modes == {False} and model.training and noted.training
    answers, questions, _ = small.tap()
    answers.train()
    noted = answers.obj_faster_rcnn_fc7 = Mode(answers.obj_faster_rcnn_fc7)
    again = [tap.peak_steps(answers, questions) for _ in range(2)]
    assert torch.equal(*again) and noted.modes == {False} and answers.training


def test_errors_say_what_gives_the_right_kind(bert):
    model, encoder, batch = bert
    masks, cost = Masks.ones(encoder), lfpr.ParameterCost(encoder)
    for call, message in (
        (
            lambda: lfpr.ParameterCost(model),
            r"encoder: expected PrunableEncoder, found BertModel; lfpr\.prunable\(model\)",
        ),
        (
            lambda: lfpr.search(masks, cost, 0.5),
            r"importance: expected Importance, found Masks; gradients\.importance\(\)",
        ),
        (lambda: cost.fraction(lfpr.magnitude(encoder)), r"masks: expected Masks, found Importance; lfpr\.search\("),
        (lambda: lfpr.rearrange(masks, masks), r"grads: expected MaskGradients, found Masks; lfpr\.collect_gradients"),
        (
            lambda: lfpr.search_proportional(lfpr.magnitude(encoder), {}, 0.5),
            r"cost: .*; lfpr\.ParameterCost\(encoder\)",
        ),
        (
            lambda: lfpr.activation_importance(encoder, batch, print),
            "batches: expected a list of batches, or what else gives them, found dict",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_whole_numbers_may_be_written_as_floats(bert):
    _, encoder, _ = bert
    importance, cost = lfpr.magnitude(encoder), lfpr.ParameterCost(encoder)
    assert lfpr.search(importance, cost, 0.5, 2.0, 1.0, 4.0).equal(lfpr.search(importance, cost, 0.5, 2, 1, 4))
    assert lfpr.MacCost(encoder, 9.0) == lfpr.MacCost(encoder, 9)
    assert (
        lfpr.ReSt(last_layers=2.0) == lfpr.ReSt(last_layers=2) and type(lfpr.ReSt(last_layers=2.0).last_layers) is int
    )
    assert lfpr.random_importance(encoder, 3.0).equal(lfpr.random_importance(encoder, 3))


@pytest.mark.parametrize("kind", [torch.tensor, np.float32, np.array, np.float64, lambda x: torch.tensor(x).bfloat16()])
def test_a_number_in_single_precision_is_the_one_that_was_written(bert, kind):
    _, encoder, _ = bert
    importance, cost = lfpr.magnitude(encoder), lfpr.ParameterCost(encoder)
    for constraint in (0.25, 0.375) if "lambda" in repr(kind) else (0.3, 0.4, 0.9):
        assert lfpr.search(importance, cost, kind(constraint)).equal(lfpr.search(importance, cost, constraint))
        assert lfpr.ReSt(lr=kind(constraint)) == lfpr.ReSt(lr=constraint)
    tenths = LinearCost("units", 10, 0, 1, 1)
    assert tenths.kept(lfpr.search(Importance(torch.ones(1, 4), torch.ones(1, 6)), tenths, kind(0.3))) <= 3


def test_batches_may_be_whatever_gives_them(bert):
    model, encoder, batch = bert

    class Indexed:
        """A sequence by the old protocol, as some data sets are."""

        def __getitem__(self, index):
            return [batch][index]

    expected = lfpr.activation_importance(encoder, [batch], lambda b: small.forward(model, b))
    for batches in ((batch,), iter([batch]), (b for b in [batch]), Indexed(), {1: batch}.values()):
        assert lfpr.activation_importance(encoder, batches, lambda b: small.forward(model, b)).equal(expected)


def test_training_takes_batches_without_a_length(bert):
    model, encoder, batch = bert

    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([batch, batch])

    loader = torch.utils.data.DataLoader(Endless(), batch_size=None)
    for batches in (loader, iter([batch, batch])):
        settings = lfpr.ReSt(lr=1e-30, mask_lr=1e-30)
        _, log = lfpr.retrain(model, encoder, [], batches, lambda b: first_row(model, b).sum(), settings, False)
        assert [row["iteration"] for row in log] == [1, 2]


def test_losses_that_cannot_be_differentiated(bert):
    model, encoder, batch = bert
    for loss, found in (
        (lambda b: None, "NoneType"),
        (lambda b: 1.0, "float"),
        (lambda b: first_row(model, b), r"\(3, 48\)"),
        (lambda b: (first_row(model, b).sum(),) * 3, r"\(\), \(\), \(\)"),
        (lambda b: (first_row(model, b).sum(), 3), r"\(\), .int"),
        (lambda b: (first_row(model, b).sum(),), r"\[\(\)\]"),
    ):
        with pytest.raises(
            ValueError, match=f"loss: expected a scalar tensor, or a pair of sum and count, found .*{found}"
        ):
            lfpr.retrain(model, encoder, [], [batch], loss, lfpr.ReSt(), progress=False, fold=False)
    with pytest.raises(ValueError, match="score: expected a number, found str"):
        run = lambda b: first_row(model, b).sum()  # noqa: E731
        lfpr.retrain(
            model,
            encoder,
            [],
            [batch],
            run,
            lfpr.ReSt(lr=1e-30),
            False,
            score=lambda: "good",
            score_every=1,
            fold=False,
        )
