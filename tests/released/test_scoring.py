"""Label-free scoring as in LFPR's code, with dropout, against the plain objective and the released order of work."""

import copy

import numpy as np
import pytest
import small_tap as small
import torch

import lfpr
from lfpr.files import DataError
from lfpr.released import load_scores, save_scores, scoring
from lfpr.tap.objectives import label_free


@pytest.fixture(scope="module")
def tap():
    return small.tap()


@pytest.fixture(scope="module")
def batch():
    return small.Questions(6)[list(range(6))]


def gradients(tap, batch, objective, per_sample=False):
    return lfpr.collect_gradients(lfpr.prunable(tap), [batch], objective, per_sample)


@pytest.mark.parametrize("step", [0, 1, 3])
def test_scoring_without_dropout_is_the_plain_one(tap, batch, step):
    plain, released = (gradients(tap, batch, f) for f in (label_free(tap, step), scoring.label_free(tap, step, 0.0)))
    torch.testing.assert_close(released.heads, plain.heads, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(released.neurons, plain.neurons, rtol=1e-4, atol=1e-5)


def test_scoring_drops_out_the_same_in_each_call(tap, batch):
    objective = scoring.label_free(tap, 2, 0.1)
    before = torch.get_rng_state()
    first, second = gradients(tap, batch, objective), gradients(tap, batch, objective)
    assert first.equal(second)  # the seed is reset at each call
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in tap.modules())
    assert {module.p for module in tap.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    assert not first.equal(gradients(tap, batch, scoring.label_free(tap, 2, 0.1, seed=1)))
    assert not first.equal(gradients(tap, batch, label_free(tap, 2)))


def test_scoring_restores_the_model_after_an_error(tap, batch):
    broken = {name: value for name, value in batch.items() if name != "ocr_phoc"}
    with pytest.raises(ValueError, match=r"batch: has no tensor \['ocr_phoc'\]"):
        scoring.label_free(tap, 1, 0.1)(broken)
    assert not tap.training and tap.input_dropout.p == 0


def released_loop(model, batch, step: int, dropout: float) -> torch.Tensor:
    """The order of work in LFPR's code, every pass whole and with gradient: seed, inputs, then step + 1 times TextBERT,
    MMT over all decoding positions, and the argmax of all of them as the next pass's previous answers."""
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    torch.manual_seed(0)
    encoded = model.encode(batch)
    kept, words = torch.arange(11), 11
    previous = torch.zeros(6, step + 1, dtype=torch.long)
    previous[:, 0] = model.config.bos_index
    for t in range(step + 1):
        if t:
            text = model.text_bert(batch["text"], kept, batch["text"] != 0)
            encoded.x = torch.cat([text, encoded.x[:, words:]], 1)
        logits = model.decode(encoded, previous)
        previous = torch.cat([previous[:, :1], logits.argmax(-1)[:, :-1]], 1)
    return logits[:, step].amax(-1).sum()


@pytest.mark.parametrize("step", [0, 1, 3])
def test_scoring_works_in_the_released_order(tap, batch, step):
    with torch.random.fork_rng():
        wanted = released_loop(tap, batch, step, 0.3)
    torch.testing.assert_close(scoring.label_free(tap, step, 0.3)(batch), wanted)


def test_scoring_sums_over_samples(tap, batch):
    apart = gradients(tap, batch, scoring.label_free(tap, 1, 0.1), per_sample=True)
    together = gradients(tap, batch, scoring.label_free(tap, 1, 0.1))
    torch.testing.assert_close(apart.neurons.sum(0), together.neurons[0], rtol=1e-3, atol=1e-5)


def test_bad_parameters_are_named(tap):
    for dropout in (-0.1, 1):
        with pytest.raises(ValueError, match=rf"dropout = {dropout}: must be in \[0, 1\)"):
            scoring.label_free(tap, 1, dropout)
    with pytest.raises(ValueError, match="step = 4: must be a whole number from 0 to 3"):
        scoring.label_free(tap, 4)


def test_scores_are_written_as_pruning_reads_them(tap, batch, tmp_path):
    found = gradients(tap, batch, scoring.label_free(tap, 1, 0.1))
    save_scores(tmp_path / "score", found, 1)
    assert sorted(path.name for path in (tmp_path / "score").iterdir()) == sorted(scoring.FILES)
    head, ffn = (np.load(tmp_path / "score" / f"{part}_grads.npy") for part in ("head", "ffn"))
    assert head.dtype == ffn.dtype == np.float32 and head.shape == (1, 2, 4) and ffn.shape == (1, 2, 32)
    assert (tmp_path / "score/tmax_q2.txt").read_text() == "1"
    # LFPR's pruning.py sums squares over the first dimension, whatever a row is of
    samples = gradients(tap, batch, label_free(tap, 1), per_sample=True)
    save_scores(tmp_path / "score", samples, 1)
    summed = torch.tensor(np.load(tmp_path / "score/head_grads.npy")).pow(2).sum(dim=0)
    torch.testing.assert_close(summed.double(), samples.importance().heads)
    (tmp_path / "score/tmax_q2.txt").write_text(" 3\n")
    loaded, step = load_scores(tmp_path / "score")
    assert loaded.equal(samples) and step == 3


def test_score_folders_are_checked(tmp_path):
    heads, neurons = torch.ones(2, 3, 4), torch.ones(2, 3, 5)
    whole = lfpr.MaskGradients(heads, neurons)

    def refused(message, **files):
        folder = tmp_path / "score"
        save_scores(folder, whole, 2)
        for name, content in files.items():
            path = folder / {"heads": "head_grads.npy", "neurons": "ffn_grads.npy", "step": "tmax_q2.txt"}[name]
            if content is None:
                path.unlink()
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                np.save(path, content, allow_pickle=True)
        with pytest.raises(DataError, match=message):
            load_scores(folder)

    for name, file in (("heads", "head_grads"), ("neurons", "ffn_grads"), ("step", "tmax_q2")):
        refused(rf"no file .*{file}\.(npy|txt): a score folder of LFPR has head_grads", **{name: None})
    refused(r"head_grads\.npy is not a complete \.npy file", heads=b"")
    refused(r"head_grads\.npy is not a complete \.npy file", heads=np.array([{"a": 1}], object))  # a pickle, not run
    refused(r"head_grads\.npy: expected floats .*, found float32 \[3, 4\]", heads=heads[0].numpy())
    refused(r"ffn_grads\.npy: expected floats .*, found int64", neurons=np.ones((2, 3, 5), np.int64))
    refused(r"ffn_grads\.npy: NaN or infinite gradients", neurons=np.full((2, 3, 5), np.nan, np.float32))
    refused(r"head_grads\.npy \[1, 3, 4\] and ffn_grads\.npy \[2, 3, 5\] must agree", heads=heads[:1].numpy())
    for text in (b"", b"1.0", b"-1", b"two"):
        refused(r"tmax_q2\.txt: expected the decoding step, a whole number, found", step=text)
