"""Recall with ties, cascades, objectives with a gradient, and distillation, on tiny models and made-up features."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_models as small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import rules
from torch.nn import functional as F

from lfpr.clip import objectives, retrieval
from lfpr.clip.distil import distil, extra, loader
from lfpr.encoder import prunable
from lfpr.gradients import collect_gradients
from lfpr.masks import Masks
from lfpr.shrink import shrink
from lfpr.training.retrain import ReSt

CAPTIONED = "original_caption_to_image.json"  # of the package eccv_caption: caption id -> image ids


def brute_force(images, texts, pairs, k):
    """Recall by sorting each query's answers, equal ones before the right one; integer features keep ties exact."""
    images, texts = (features / features.norm(dim=1, keepdim=True).clamp(min=1e-12) for features in (images, texts))
    table, found = (texts @ images.T).round(decimals=9), {}
    places = []
    for t, i in enumerate(pairs.tolist()):
        answers = sorted(range(len(images)), key=lambda j: (-table[t, j].item(), j == i))
        places.append(answers.index(i))
    found |= {f"r{n}": np.mean([p < n for p in places]) for n in k}
    places = []
    for i in sorted(set(pairs.tolist())):
        own = set((pairs == i).nonzero().flatten().tolist())
        answers = sorted(range(len(texts)), key=lambda t: (-table[t, i].item(), t in own))
        places.append(min(answers.index(t) - len([s for s in answers[: answers.index(t)] if s in own]) for t in own))
    return found | {f"i2t_r{n}": np.mean([p < n for p in places]) for n in k}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(0, 12), st.integers(1, 3))
def test_recall_is_that_of_sorted_answers_ties_counting_against(seed, num_images, more, dim):
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randint(num_images, (num_images + more,), generator=generator)
    images, texts = (torch.randint(-2, 3, (n, dim), generator=generator).double() for n in (num_images, len(pairs)))
    k = (1, 2, 5)
    assert retrieval.recall(images, texts, k, pairs) == pytest.approx(brute_force(images, texts, pairs, k))


def test_recall_counts_by_hand(monkeypatch):
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # the last one looks like the first
    texts = torch.tensor([[2.0, 0.1], [0.0, 3.0], [0.3, 9.0], [1.0, 1.0]])
    found = retrieval.recall(images, texts, (1, 2), torch.tensor([0, 1, 1, 1]))
    # text 0 ties with image 2; text 3 is as near to all three images; image 1 has the best two captions
    assert found == {"r1": 2 / 4, "r2": 3 / 4, "i2t_r1": 1, "i2t_r2": 1}
    random = [torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in (11, 23)]
    pairs = torch.arange(23) % 11
    whole = retrieval.recall(*random, pairs=pairs)
    monkeypatch.setattr(retrieval, "CHUNK", 4)
    assert retrieval.recall(*random, pairs=pairs) == whole


def test_a_collapsed_model_finds_nothing():
    texts = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    for images in (torch.ones(20, 8), torch.zeros(20, 8)):
        found = retrieval.recall(images, texts)
        assert [found[name] for name in ("r1", "r5", "r10")] == [0, 0, 0]
    same = texts.clone()
    assert set(retrieval.recall(same, texts).values()) == {1}


@pytest.mark.parametrize("images, texts, pairs, message", [
    ((4, 3), (4, 2), None, r"shapes \(4, 3\) of images and \(4, 2\) of texts"),
    ((4, 3), (5, 3), None, "pairs: needed to match 5 texts with 4 images"),
    ((4, 3), (5, 3), [0, 1, 2, 3, 4], "pairs: expected a row of 4 images"),
    ((4, 3), (0, 3), [], "shapes"),
])  # fmt: skip
def test_recall_refuses_what_does_not_match(images, texts, pairs, message):
    pairs = None if pairs is None else torch.tensor(pairs, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        retrieval.recall(torch.ones(images), torch.ones(texts), pairs=pairs)


def test_features_that_are_not_finite_are_named():
    good, bad = torch.ones(4, 3), torch.ones(4, 3)
    bad[2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"image features: 1 of 4 are NaN or infinite, the first \[2\]"):
        retrieval.recall(bad, good)
    with pytest.raises(ValueError, match="text features"):
        retrieval.recall(good, bad)
    with pytest.raises(ValueError, match="full features"):
        retrieval.cascade(good, bad, good, m=4)


# ---- cascades


@pytest.fixture
def features():
    """Features of 40 images by a good and by a worse model, and of 60 captions."""
    generator = torch.Generator().manual_seed(3)
    texts = torch.randn(60, 6, generator=generator)
    pairs = torch.cat([torch.arange(40), torch.arange(20)])
    full = texts[:40] + 0.7 * torch.randn(40, 6, generator=generator)
    return full + 0.8 * torch.randn(40, 6, generator=generator), full, texts, pairs


def test_a_cascade_of_all_images_is_the_full_model(features):
    pruned, full, texts, pairs = features
    whole, small = (retrieval.recall(f, texts, pairs=pairs) for f in (full, pruned))
    found = retrieval.cascade(pruned, full, texts, m=40, pairs=pairs)
    assert {name: found[name] for name in ("r1", "r5", "r10")} == {name: whole[name] for name in ("r1", "r5", "r10")}
    assert found["reranked"] == 1 and found["m"] == 40
    assert retrieval.cascade(pruned, full, texts, m=1, pairs=pairs)["r1"] == small["r1"] < whole["r1"]
    ten = retrieval.cascade(pruned, full, texts, m=10, pairs=pairs)
    assert ten["r10"] == small["r10"]  # the order within the top m does not change what is in it
    assert small["r1"] < ten["r1"]


def test_a_cascade_by_hand(features, monkeypatch):
    pruned, full, texts, pairs = features
    m, places = 5, []
    weak, strong = (F.normalize(texts) @ F.normalize(f).T for f in (pruned, full))
    touched = set()
    for t, i in enumerate(pairs.tolist()):
        order = weak[t].argsort(descending=True).tolist()
        top = sorted(order[:m], key=lambda j: -strong[t, j].item())
        touched |= set(top)
        places.append((top + order[m:]).index(i))
    asked = []

    def encode(rows):
        asked.append(rows)
        return full[rows]

    monkeypatch.setattr(retrieval, "CHUNK", 7)
    found = retrieval.cascade(pruned, encode, texts, m=m, pairs=pairs)
    for n in (1, 5, 10):
        assert found[f"r{n}"] == pytest.approx(np.mean([place < n for place in places]))
    assert found["reranked"] == len(touched) / 40 and [rows.tolist() for rows in asked] == [sorted(touched)]
    queries, shares = zip(*found["growth"], strict=True)
    assert queries == (1, 2, 4, 8, 16, 32, 60) and shares[0] == m / 40 and list(shares) == sorted(shares)


@pytest.mark.parametrize("m", [[12, 5], [40, 40], [1, 1], [9, 4, 2]])
def test_a_cascade_of_levels_by_hand(features, monkeypatch, m):
    """Each level has its own texts, of its own width."""
    pairs = features[-1]
    generator = torch.Generator().manual_seed(len(m))
    levels = []
    for width in (6, 3, 9, 5)[: len(m) + 1]:
        texts = torch.randn(60, width, generator=generator)
        images = texts[:40] + torch.randn(40, width, generator=generator)
        levels.append(retrieval.Level(images, texts))
    places, reached = [], [set() for _ in m]
    for t, i in enumerate(pairs.tolist()):
        order = list(range(40))
        for number, (images, texts) in enumerate(levels):
            top, rest = (order, []) if not number else (order[: m[number - 1]], order[m[number - 1] :])
            if number:
                reached[number - 1] |= set(top)
            similarity = F.cosine_similarity(texts[t][None].double(), images.double())
            order = sorted(top, key=lambda j, s=similarity: -s[j].item()) + rest
        places.append(order.index(i))
    monkeypatch.setattr(retrieval, "CHUNK", 7)
    found = retrieval.cascade_levels(levels, m, pairs=pairs)
    for n in (1, 5, 10):
        assert found[f"r{n}"] == pytest.approx(np.mean([place < n for place in places]))
    assert found["reranked"] == [len(images) / 40 for images in reached] and found["m"] == m
    assert found["growth"][-1] == [60, *found["reranked"]] and found["growth"][0] == [1, *(n / 40 for n in m)]


def test_levels_that_share_their_texts_are_a_cascade_of_two(features):
    pruned, full, texts, pairs = features
    two = retrieval.cascade(pruned, full, texts, m=7, pairs=pairs)
    levels = [retrieval.Level(pruned, texts), retrieval.Level(full, texts)]
    assert retrieval.cascade_levels(levels, [7], pairs=pairs) == two | {"m": [7], "reranked": [two["reranked"]]}
    again = retrieval.cascade_levels([*levels, levels[-1]], [7, 3], pairs=pairs)  # which changes no order
    assert [again[f"r{k}"] for k in (1, 5, 10)] == [two[f"r{k}"] for k in (1, 5, 10)]
    for m, message in (([7], "a number for each of the levels"), ([3, 4], "m = 4: must be from 1 to the 3 images")):
        with pytest.raises(ValueError, match=message):
            retrieval.cascade_levels([*levels, levels[-1]], m, pairs=pairs)
    with pytest.raises(ValueError, match=r"texts: features \(59, 6\), expected rows for 60 queries"):
        retrieval.cascade_levels([levels[0], retrieval.Level(full, texts[:59])], [7], pairs=pairs)


def test_cascades_refuse_bad_arguments(features):
    pruned, full, texts, pairs = features
    for m in (0, 41):
        with pytest.raises(ValueError, match=f"m = {m}: must be "):
            retrieval.cascade(pruned, full, texts, m=m, pairs=pairs)
    with pytest.raises(ValueError, match="full: features"):
        retrieval.cascade(pruned, full[:30], texts, m=3, pairs=pairs)
    with pytest.raises(ValueError, match="full: it gave"):
        retrieval.cascade(pruned, lambda rows: full, texts, m=1, pairs=pairs)


def test_speedup_is_the_published_formula():
    assert retrieval.image_speedup(1.0, 0.4, 0.1) == pytest.approx(2)
    assert retrieval.image_speedup(1.0, 0.4, 0.8) < 1  # beyond the break-even share the full model is cheaper
    assert retrieval.levels_speedup([0.2, 0.4, 1.0], [0.1, 0.05]) == pytest.approx(1 / (0.2 + 0.04 + 0.05))
    with pytest.raises(ValueError, match="fraction = 1.1"):
        retrieval.image_speedup(1.0, 0.4, 1.1)


def test_eccv_metrics_need_the_extra_and_the_split(monkeypatch):
    images, texts = torch.eye(3), torch.eye(3)[[0, 0, 1, 2]]
    arguments = images, texts, torch.tensor([7, 8, 9]), torch.tensor([70, 71, 80, 90])
    monkeypatch.setitem(sys.modules, "eccv_caption", None)
    with pytest.raises(ImportError, match=r"pip install 'lfpr\[eccv\]'"):
        retrieval.eccv_metrics(*arguments)

    class Metrics:
        coco_ids = np.array([70, 71, 80, 90])

        def compute_all_metrics(self, i2t, t2i, target_metrics, Ks):
            assert i2t[7][:2] in ([70, 71], [71, 70]) and t2i[80][0] == 8 and len(t2i[80]) == 3
            return {"eccv_r1": {"i2t": 1.0, "t2i": 0.5}}

    monkeypatch.setitem(sys.modules, "eccv_caption", SimpleNamespace(Metrics=Metrics))
    assert retrieval.eccv_metrics(*arguments) == {"eccv_r1_i2t": 1.0, "eccv_r1_t2i": 0.5}
    Metrics.coco_ids = np.array([70, 99])
    with pytest.raises(ValueError, match=r"lacks 1 captions of the Karpathy test split, such as 99"):
        retrieval.eccv_metrics(*arguments)


@pytest.mark.filterwarnings("ignore:failed to import `ujson`")
def test_the_real_eccv_package_counts_the_recall_that_we_count():
    package = pytest.importorskip("eccv_caption", reason="needs the extra: pip install 'lfpr[eccv]'")
    described = json.loads(Path(package.__file__).with_name("data").joinpath(CAPTIONED).read_text())
    caption_id = torch.tensor([int(caption) for caption in described])  # of the Karpathy test split, five an image
    image_id, pairs = torch.tensor([images[0] for images in described.values()]).unique(return_inverse=True)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(len(image_id), 16, generator=generator)
    texts = images[pairs] + 0.7 * torch.randn(len(pairs), 16, generator=generator)
    theirs, ours = (
        retrieval.eccv_metrics(images, texts, image_id, caption_id),
        retrieval.recall(images, texts, pairs=pairs),
    )
    assert len(image_id) == 5000 and 0.1 < ours["r1"] < 0.9
    for k in (1, 5, 10):
        assert theirs[f"coco_5k_r{k}_t2i"] == pytest.approx(ours[f"r{k}"], abs=1e-9)
        assert theirs[f"coco_5k_r{k}_i2t"] == pytest.approx(ours[f"i2t_r{k}"], abs=1e-9)
    assert all(0 <= theirs[f"eccv_{name}"] <= 1 for name in ("r1_t2i", "map_at_r_i2t", "rprecision_t2i"))


# ---- objectives


@pytest.fixture(scope="module")
def clip():
    return small.reference_clip()


@pytest.fixture(scope="module")
def inputs():
    return {name: torch.from_numpy(value) for name, value in rules.clip_inputs(7).items()}


def image_batches(inputs, count=32, size=8):
    ids = torch.arange(count)
    return [{"pixel_values": inputs["pixel_values"][r], "image_id": ids[r]} for r in ids.split(size)]


def test_fisher_gradients_are_the_published_ones(clip, inputs):
    expected = np.load(small.REFERENCE / "clip_seed7.npz")
    batches = [{name: value[i : i + 8] for name, value in inputs.items()} for i in range(0, 64, 8)]
    found = collect_gradients(prunable(clip.vision_model), batches, objectives.contrastive(clip))
    np.testing.assert_allclose(found.heads, expected["head_grads"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.neurons, expected["neuron_grads"], rtol=1e-3, atol=1e-5)
    assert all(parameter.requires_grad for parameter in clip.parameters())


def test_contrastive_loss_is_the_models_own(clip, inputs):
    ids = torch.tensor([[97, 5, 6, 98], [97, 9, 3, 98], [97, 8, 98, 1]])
    batch = {"input_ids": ids, "attention_mask": (ids != 1).long(), "pixel_values": inputs["pixel_values"][:3]}
    with torch.no_grad():
        texts = objectives.text_features(clip, batch)
        found = objectives.contrastive(clip)(batch | {"text_features": texts})
        torch.testing.assert_close(found, clip(**batch, return_loss=True).loss)


def test_the_label_free_gradient_does_not_vanish_as_that_of_the_cosine_does(clip, inputs):
    encoder = prunable(clip.vision_model)

    def features(batch):
        return objectives.image_features(clip, batch)

    batches = list(objectives.Attached(image_batches(inputs), "image_features", features))

    def self_similarity(batch):
        return F.cosine_similarity(features(batch), batch["image_features"]).sum()

    ours = collect_gradients(encoder, batches, objectives.label_free(clip), per_sample=True)
    cosine = collect_gradients(encoder, batches, self_similarity, per_sample=True)
    for part in ("heads", "neurons"):
        assert getattr(cosine, part).abs().max() < 1e-5  # rounding
        assert getattr(ours, part).square().sum(0).min() > 1e-10  # each head and each neuron has a score
        assert getattr(ours, part).abs().max() > 1e4 * getattr(cosine, part).abs().max()
    assert len(ours.heads) == 32
    summed = collect_gradients(encoder, batches, objectives.label_free(clip))
    torch.testing.assert_close(ours.heads.view(4, 8, 4, 4).sum(1), summed.heads, rtol=1e-3, atol=1e-4)


def test_features_are_computed_once_and_without_gradient(inputs):
    calls = []

    def encode(batch):
        assert not torch.is_grad_enabled()
        calls.append(len(batch["image_id"]))
        return batch["image_id"][:, None].double()

    batches = image_batches(inputs, 8, 4)
    attached = objectives.Attached(batches, "image_features", encode)
    assert len(attached) == 2
    first = [batch["image_features"].flatten().tolist() for batch in attached]
    again = [batch["image_features"].flatten().tolist() for batch in attached]
    assert first == again == [[0, 1, 2, 3], [4, 5, 6, 7]] and calls == [4, 4]
    attached.batches = [{"image_id": torch.tensor([6, 1])}]  # another order, as when shuffled
    assert next(iter(attached))["image_features"].flatten().tolist() == [6, 1] and calls == [4, 4]


def test_encoding_streams_and_names_images_that_are_not_finite(clip, inputs):
    clip.train()
    found = retrieval.encode_images(clip, iter(image_batches(inputs, 12, 5)))
    assert clip.training and clip.vision_model.training
    clip.eval()
    with torch.no_grad():
        whole = objectives.image_features(clip, {"pixel_values": inputs["pixel_values"][:12]})
    torch.testing.assert_close(found.features, whole)
    assert found.image_id.tolist() == list(range(12)) and not found.features.requires_grad
    broken = {"pixel_values": torch.full((2, 3, 32, 32), torch.nan), "image_id": torch.tensor([3, 4])}
    with pytest.raises(ValueError, match=r"image features: 2 of 2 are NaN or infinite, the first \[3, 4\]"):
        retrieval.encode_images(clip, [broken])
    with pytest.raises(ValueError, match="nothing to encode"):
        retrieval.encode_images(clip, [])
    texts = retrieval.Encoded(torch.ones(2, 3), torch.tensor([11, 12]), torch.tensor([1, 2]))
    assert retrieval.match(found, texts._replace(image_id=torch.tensor([11, 2]))).tolist() == [11, 2]
    with pytest.raises(ValueError, match=r"1 describe images that were not encoded, such as \[12\]"):
        retrieval.match(found, texts)


# ---- distillation and controls


class Images(torch.utils.data.Dataset):
    def __init__(self, pixels):
        self.pixels = pixels

    def __getitem__(self, rows):
        bad = [(row, "x.jpg", f"image {row} is gone") for row in rows if row == 13]
        return {"pixel_values": self.pixels[rows], "image_id": torch.tensor(rows)}, bad


@pytest.mark.parametrize("trained, touched", [
    ("masks", ["layer_norm1.weight", "out_proj.weight"]),
    ("last", ["layer_norm1.weight", "out_proj.weight", "layers.3.self_attn.q_proj.weight"]),
    ("all", ["embeddings.class_embedding", "layers.0.mlp.fc1.weight"]),
])  # fmt: skip
def test_distillation_trains_what_it_should_towards_the_unpruned_features(clip, inputs, trained, touched):
    encoder = prunable(clip.vision_model)
    masks = Masks.ones(encoder)
    masks.heads[:, 0] = masks.neurons[:, :48] = 0
    pruned = shrink(clip, masks, clip.vision_model)
    with torch.no_grad():
        features = objectives.image_features(clip, inputs)
    batches = loader(Images(inputs["pixel_values"]), features, range(12), 6, 12, seed=0)
    rows = [batch["image_id"].tolist() for batch in batches]
    assert len(batches) == 12 and sorted(rows[0] + rows[1]) == sorted(rows[2] + rows[3]) == list(range(12))
    before = {name: value.clone() for name, value in pruned.state_dict().items()}
    settings = ReSt(last_layers=1, lr=1e-3, mask_lr=1e-2, clip=1.0)
    masks, log = distil(pruned, batches, settings, trained, progress=False)
    assert log[-1]["loss"] < 0.8 * log[0]["loss"] and masks.heads[0].shape == (3,)
    changed = {name for name, value in pruned.state_dict().items() if not torch.equal(value, before[name])}
    assert all(any(part in name for name in changed) for part in touched)
    assert all(name.startswith("vision_model") for name in changed)
    q_proj = {name for name in changed if "q_proj.weight" in name}
    assert len(q_proj) == {"masks": 0, "last": 1, "all": 4}[trained]


def test_a_batch_larger_than_a_pass_is_filled_from_the_next(inputs):
    batches = loader(Images(inputs["pixel_values"]), torch.ones(12, 32), [0, 4, 7], 8, 2, seed=0)
    rows = [row for batch in batches for row in batch["image_id"].tolist()]
    assert len(batches) == 2 and len(rows) == 16
    assert all(sorted(rows[start : start + 3]) == [0, 4, 7] for start in range(0, 15, 3))  # pass after pass


def test_distillation_names_what_it_cannot_do(clip, inputs):
    with pytest.raises(ValueError, match="trained = 'head': must be one of"):
        extra(clip.vision_model, "head")
    batches = loader(Images(inputs["pixel_values"]), torch.ones(64, 32), [13], 1, 1, seed=0)
    with pytest.raises(ValueError, match="image 13 is gone"):
        next(iter(batches))
