"""Image-text retrieval: Recall@K both ways, and cascades in which a pruned model ranks and the full one re-ranks.

Cascades (bi-encoder cascades, arXiv 2303.15595): all images are encoded by a cheap model; only those that some query
brings among its top m are ever encoded by the full one. With f the fraction of images to which that ever happens, image
encoding costs t(pruned) + f · t(full) an image instead of t(full).

Ties count against the query: an image that scores as high as the right one ranks before it. A collapsed model, whose
image features are all alike, thus finds nothing instead of everything. Similarities are cosines in float64, in chunks,
so that 5,000 images by 25,000 captions take no more memory than some rows of that table.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfpr.checks import (
    check_above,
    check_batches,
    check_count,
    check_entries,
    check_kind,
    check_list,
    check_named,
    check_number,
)
from lfpr.clip.objectives import Batch, check_clip, image_features, text_features
from lfpr.cost import MacCost
from lfpr.device import OnDevice
from lfpr.encoder import prunable
from lfpr.latency.compare import side_by_side
from lfpr.modes import evaluating
from lfpr.progress import bar

TIE = 1e-12  # cosines that differ by less are equal up to the order of summation
SHARE = {"allowed": "in [0, 1]", "fits": lambda share: 0 <= share <= 1}
CHUNK = 256  # rows of the similarity table in memory


class Encoded(NamedTuple):
    """Raw features [n, D], whose image each row is or describes [n], and COCO's caption ids [n] (None for images)."""

    features: Tensor
    image_id: Tensor
    caption_id: Tensor | None = None


def encode_images(clip: nn.Module, batches: Iterable[Batch], progress: str | None = None) -> Encoded:
    """Raw image features [n, D] of all batches, in order, in evaluation mode; float32, on the CPU.

    `progress` titles a progress bar. Raises ValueError without batches, or naming images whose features are not
    finite.
    """
    features, ids = _encode(clip, batches, image_features, ("image_id",), progress)
    check_finite("image features", features, ids["image_id"])
    return Encoded(features, ids["image_id"])


def encode_texts(clip: nn.Module, batches: Iterable[Batch], progress: str | None = None) -> Encoded:
    """Raw caption features [n, D] of all batches, as `encode_images`; raises as it does, naming captions."""
    features, ids = _encode(clip, batches, text_features, ("image_id", "caption_id"), progress)
    check_finite("text features", features, ids["caption_id"])
    return Encoded(features, **ids)


@torch.no_grad()
def _encode(clip: nn.Module, batches: Iterable[Batch], encode: Callable, names: tuple[str, ...], progress: str | None):
    check_clip(clip)
    check_batches("batches", batches)
    check_kind("progress", progress, str, None)
    features, ids = [], {name: [] for name in names}
    with evaluating(clip):
        for batch in bar(OnDevice(batches, next(clip.parameters()).device), progress):
            features.append(encode(clip, batch).float().cpu())
            check_entries("batch", batch, *names)
            for name in names:
                ids[name].append(batch[name].cpu())
    if not features:
        raise ValueError("batches: there is none, so there is nothing to encode")
    return torch.cat(features), {name: torch.cat(values) for name, values in ids.items()}


def check_finite(name: str, features: Tensor, ids: Tensor | None = None) -> None:
    """ValueError naming the rows (by `ids`, otherwise by number) with NaN or infinite features."""
    bad = (~features.isfinite()).any(-1).nonzero().flatten()
    if len(bad):
        which = (bad if ids is None else ids[bad])[:5].tolist()
        raise ValueError(f"{name}: {len(bad)} of {len(features)} are NaN or infinite, the first {which}")


def match(images: Encoded, texts: Encoded) -> Tensor:
    """For each text, the row of its image: int64 [T], the `pairs` of `recall`. ValueError if an image is not
    there."""
    check_kind("images", images, Encoded)
    check_kind("texts", texts, Encoded)
    row = {image_id: i for i, image_id in enumerate(images.image_id.tolist())}
    missing = [image_id for image_id in texts.image_id.tolist() if image_id not in row]
    if missing:
        raise ValueError(f"texts: {len(missing)} describe images that were not encoded, such as {missing[:3]}")
    return torch.tensor([row[image_id] for image_id in texts.image_id.tolist()], device=images.features.device)


def recall(
    image_features: Tensor, text_features: Tensor, k: tuple[int, ...] = (1, 5, 10), pairs: Tensor | None = None
) -> dict[str, float]:
    """Recall@K: `r1`, `r5`, `r10` (text→image) and `i2t_r1` ... (image→text), the share in [0, 1] of queries
    with a right answer among the first K.

    image_features [I, D], text_features [T, D], finite, of any length. pairs [T]: the row of each text's image, by
    default the same row. An image's captions do not compete with each other. Images without captions are no queries,
    but can be found. Raises ValueError for other shapes or values.
    """
    k, (images, texts, pairs) = _counts(k), _checked(image_features, text_features, pairs)
    image_ranks = _image_ranks(images, texts, pairs)
    return _at(k, _text_ranks(images, texts, pairs)) | _at(k, image_ranks, "i2t_")


def ranks(image_features: Tensor, text_features: Tensor, pairs: Tensor | None = None) -> Tensor:
    """For each text, how many other images score at least as its own: int64 [T], 0 where it is found first. Arguments
    and errors as of `recall`."""
    return _text_ranks(*_checked(image_features, text_features, pairs))


def _text_ranks(images: Tensor, texts: Tensor, pairs: Tensor) -> Tensor:
    return torch.cat([rank for _, _, rank in _ranks(images, texts, pairs)])


def _checked(images: Tensor, texts: Tensor, pairs: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Unit features in float64, and the row of each text's image."""
    for name, features in (("image_features", images), ("text_features", texts)):
        check_kind(name, features, Tensor)
        if features.is_complex():
            raise ValueError(f"{name}: expected real numbers, found {features.dtype}")
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1] or not len(texts):
        raise ValueError(f"features: shapes {tuple(images.shape)} of images and {tuple(texts.shape)} of texts")
    if pairs is None and len(images) != len(texts):
        raise ValueError(f"pairs: needed to match {len(texts)} texts with {len(images)} images")
    try:
        pairs = torch.as_tensor(range(len(texts)) if pairs is None else pairs, device=texts.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"pairs: expected a row of images for each text, found {pairs!r:.80}") from error
    if pairs.is_floating_point() or pairs.is_complex() or pairs.dtype == torch.bool:
        raise ValueError(f"pairs: expected rows, whole numbers, found {pairs.dtype}")
    if pairs.shape != texts.shape[:1] or not 0 <= pairs.min() <= pairs.max() < len(images):
        raise ValueError(f"pairs: expected a row of {len(images)} images for each of {len(texts)} texts")
    check_finite("image features", images)
    check_finite("text features", texts)
    return F.normalize(images.double(), dim=-1), F.normalize(texts.double(), dim=-1), pairs.long()


def _counts(k: Any) -> tuple[int, ...]:
    return check_list("k", k, partial(check_count, least=1))


def _ranks(images: Tensor, texts: Tensor, pairs: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Per chunk of texts: which, similarities [c, I], and how many other images score at least as the right one [c]."""
    for start in range(0, len(texts), CHUNK):
        part = slice(start, start + CHUNK)
        similarity = texts[part] @ images.T
        own = similarity.gather(1, pairs[part, None])
        yield part, similarity, (similarity >= own - TIE).sum(1) - 1


def _image_ranks(images: Tensor, texts: Tensor, pairs: Tensor) -> Tensor:
    """For each image with captions, how many other images' captions score at least as its best own one."""
    captioned, ranks = pairs.unique(), []
    for rows in captioned.split(CHUNK):
        similarity = images[rows] @ texts.T
        own = pairs == rows[:, None]
        best = similarity.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        ranks.append(((similarity >= best - TIE) & ~own).sum(1))
    return torch.cat(ranks)


def _at(k: Iterable[int], ranks: Tensor, prefix: str = "") -> dict[str, float]:
    return {f"{prefix}r{n}": (ranks < n).double().mean().item() for n in k}


class Level(NamedTuple):
    """What a model of a cascade gives: features of images [I, D], or a function that encodes images given by their rows
    [n], and of texts [T, D]."""

    images: Tensor | Callable[[Tensor], Tensor]
    texts: Tensor


def cascade(
    pruned_features: Tensor,
    full: Tensor | Callable[[Tensor], Tensor],
    text_features: Tensor,
    m: int = 50,
    k: tuple[int, ...] = (1, 5, 10),
    pairs: Tensor | None = None,
) -> dict:
    """`cascade_levels` of two models that share their text features: text→image Recall@K when the pruned model ranks
    all images and the full one re-ranks each query's top `m` (bi-encoder cascades, arXiv 2303.15595).

    pruned_features [I, D], text_features [T, D], pairs as in `recall`; full: as `Level.images`. Returns `r1` ..., `m`,
    `reranked` (f: share of images that were re-ranked for some query) and `growth`: [queries, f] after the first 1, 2,
    4, 8, ... queries.
    """
    m = check_count("m", m, 1)
    check_kind("pruned_features", pruned_features, Tensor)
    check_kind("full", full, Tensor, Callable)
    check_kind("text_features", text_features, Tensor)
    levels = [Level(pruned_features, text_features), Level(full, text_features)]
    found = cascade_levels(levels, [m], k, pairs)
    return found | {"m": m, "reranked": found["reranked"][0]}


def cascade_levels(
    levels: Sequence[Level], m: Sequence[int], k: tuple[int, ...] = (1, 5, 10), pairs: Tensor | None = None
) -> dict:
    """Text→image Recall@K of a cascade of any number of models, each with its own features of images and texts: the
    first ranks all images, each later one re-ranks the best `m` of the one before (arXiv 2303.15595).

    levels: two or more; the first one's images are a tensor, a later function is called once, with the rows that reach
    it. m: a number for each later level, none above the one before. pairs: as in `recall`. Returns `r1` ..., `m`,
    `reranked` (for each later level the share of images that reached it for some query) and `growth`: [queries, shares
    ...] after the first 1, 2, 4, 8, ... queries. Below a level's images the order before it stays. Raises ValueError
    for other shapes, numbers or values.
    """
    k, m = _counts(k), list(check_list("m", m, partial(check_count, least=1), 0))
    check_kind("levels", levels, Sequence)
    for number, level in enumerate(levels):
        check_kind(f"levels[{number}]", level, Level)
        check_kind(f"levels[{number}].texts", level.texts, Tensor)
        check_kind(f"levels[{number}].images", level.images, Tensor, *([Callable] if number else []))
    if len(levels) != len(m) + 1 or not m:
        raise ValueError(f"m = {m}: must hold a number for each of the levels after the first, of {len(levels)}")
    images, texts, pairs = _checked(*levels[0], pairs)
    for most, number in zip([len(images), *m], m, strict=False):
        if not 1 <= number <= most:
            raise ValueError(f"m = {number}: must be from 1 to the {most} images")
    shortlists, ranks = [], []
    for _, similarity, rank in _ranks(images, texts, pairs):
        shortlists.append(similarity.topk(m[0]).indices)
        ranks.append(rank)
    shortlist, rank, firsts = torch.cat(shortlists), torch.cat(ranks), []
    for level, keep in zip(levels[1:], [*m[1:], 0], strict=True):
        firsts.append(_first_query(shortlist, len(images)))
        shortlist = _rerank(level, shortlist, rank, pairs, firsts[-1], keep)
    numbers = [2**i for i in range((len(texts) - 1).bit_length())] + [len(texts)]
    growth = [[number, *((first < number).double().mean().item() for first in firsts)] for number in numbers]
    return _at(k, rank) | {"m": m, "reranked": growth[-1][1:], "growth": growth}


def _rerank(level: Level, shortlist: Tensor, rank: Tensor, pairs: Tensor, first: Tensor, keep: int) -> Tensor:
    """Put into `rank` [T] the place among its `shortlist` [T, m] of each right image that is there by its rank; returns
    the best `keep` images of each. first [I]: as of `_first_query`."""
    if level.texts.shape[:1] != rank.shape:
        raise ValueError(f"texts: features {tuple(level.texts.shape)}, expected rows for {len(rank)} queries")
    check_finite("text features", level.texts)
    texts = F.normalize(level.texts.double(), dim=-1)
    strong = _strong(level.images, len(first), texts.shape[1], (first < len(rank)).nonzero().flatten())
    kept = []
    for start in range(0, len(texts), CHUNK):
        part = slice(start, start + CHUNK)
        similarity = torch.einsum("cmd,cd->cm", strong[shortlist[part]], texts[part])
        own = (strong[pairs[part]] * texts[part]).sum(1, keepdim=True)
        others = shortlist[part] != pairs[part, None]
        reranked = ((similarity >= own - TIE) & others).sum(1)
        rank[part] = torch.where(rank[part] < shortlist.shape[1], reranked, rank[part])
        kept.append(shortlist[part].gather(1, similarity.topk(keep).indices))
    return torch.cat(kept)


def _first_query(shortlist: Tensor, images: int) -> Tensor:
    """For each image, the first query whose shortlist [T, m] holds it; T if none does."""
    first = torch.full((images,), len(shortlist), device=shortlist.device)
    query = torch.arange(len(shortlist), device=shortlist.device)[:, None].expand_as(shortlist)
    return first.scatter_reduce(0, shortlist.flatten(), query.flatten(), "amin")


def _strong(full: Tensor | Callable[[Tensor], Tensor], count: int, size: int, rows: Tensor) -> Tensor:
    """A later model's unit features [count, size] in float64; zeros for images that no query needs."""
    if not callable(full) and full.shape != (count, size):
        raise ValueError(f"full: features {tuple(full.shape)}, expected {(count, size)}")
    features = full(rows) if callable(full) else full[rows]
    check_kind("full(rows)", features, Tensor)
    if features.shape != (len(rows), size):
        raise ValueError(f"full: it gave {tuple(features.shape)}, expected {(len(rows), size)}")
    check_finite("full features", features, rows)
    strong = torch.zeros(count, size, dtype=torch.float64, device=features.device)
    strong[rows] = F.normalize(features.double(), dim=-1)
    return strong


def image_speedup(full_time: float, pruned_time: float, fraction: float) -> float:
    """How much less time a cascade takes to encode all images: t(full) / (t(pruned) + f · t(full)), times of one image
    in the same unit (arXiv 2303.15595).

    With f = m / I it is the speed-up of answering the first query over a collection of I new images. Raises ValueError
    for times that are not above 0, or a fraction outside [0, 1].
    """
    full_time, pruned_time = check_above("full_time", full_time), check_above("pruned_time", pruned_time)
    fraction = check_number("fraction", fraction, **SHARE)
    return levels_speedup([pruned_time, full_time], [fraction])


def levels_speedup(times: Sequence[float], shares: Sequence[float]) -> float:
    """How much less time a cascade of any number of models takes to encode all images than its last one alone: times of
    one image by each model, shares of all images that each later one encodes. Raises ValueError for times that are not
    above 0, or shares that are not in [0, 1], one for each later model."""
    times, shares = (
        check_list("times", times, check_above),
        check_list("shares", shares, partial(check_number, **SHARE), 0),
    )
    if len(shares) != len(times) - 1:
        raise ValueError(f"shares = {list(shares)}: must be {len(times) - 1}, one for each model after the first")
    return times[-1] / (times[0] + sum(share * time for share, time in zip(shares, times[1:], strict=True)))


@torch.no_grad()
def compare(models: dict[str, nn.Module], batch: Batch, repeats: int = 25) -> dict[str, dict]:
    """For each CLIP model: `parameters` and `macs` of its vision layers, `megabytes` (10⁶ bytes) of all its
    weights in float32, and `ms_per_image` of image encoding of `batch`, the median of `repeats` runs that
    alternate between the models."""
    check_named("models", models)
    check_entries("batch", batch, "pixel_values")
    length, run = vision_tokens(next(iter(models.values()))), partial(image_features, batch=batch)
    images = len(batch["pixel_values"])
    return side_by_side(models, run, lambda clip: prunable(clip.vision_model), length, images, "image", repeats)


def vision_cost(clip: nn.Module) -> MacCost:
    """MACs of the vision layers for one image: its patches and the class token."""
    check_clip(clip)
    return MacCost(prunable(clip.vision_model), vision_tokens(clip))


def vision_tokens(clip: nn.Module) -> int:
    """Positions of one image in the vision layers: its patches and the class token."""
    check_clip(clip)
    vision = clip.config.vision_config
    return (vision.image_size // vision.patch_size) ** 2 + 1


def eccv_metrics(
    image_features: Tensor, text_features: Tensor, image_id: Tensor, caption_id: Tensor
) -> dict[str, float]:
    """ECCV-Caption, CxC and COCO metrics (arXiv 2204.03359) by the package `eccv_caption`, such as `eccv_r1_t2i`.

    For COCO's Karpathy test split: features of its 5,000 images [I, D] and 25,000 captions [T, D], COCO's ids of both.
    Raises ImportError naming the extra if the package is absent, ValueError if captions of that split are.
    """
    given = {"image_features": image_features, "text_features": text_features}
    for name, value in (given | {"image_id": image_id, "caption_id": caption_id}).items():
        check_kind(name, value, Tensor)
    try:
        from eccv_caption import Metrics
    except ImportError:
        raise ImportError("ECCV-Caption metrics need the package eccv_caption: pip install 'lfpr[eccv]'") from None
    metrics = Metrics()
    missing = {int(i) for i in metrics.coco_ids} - set(caption_id.tolist())
    if missing:
        raise ValueError(
            f"caption_id: lacks {len(missing)} captions of the Karpathy test split, such as {min(missing)}"
        )
    check_finite("image features", image_features, image_id)
    check_finite("text features", text_features, caption_id)
    images, texts = (F.normalize(features.double(), dim=-1) for features in (image_features, text_features))
    recalls, eccv = ("coco_1k_recalls", "coco_5k_recalls", "cxc_recalls"), ("eccv_r1", "eccv_map_at_r")
    scores = metrics.compute_all_metrics(
        best_answers(images, texts, image_id, caption_id),
        best_answers(texts, images, caption_id, image_id),
        target_metrics=(*recalls, *eccv, "eccv_rprecision"),
        Ks=(1, 5, 10),
    )
    return {f"{name}_{way}": float(value) for name, ways in scores.items() for way, value in ways.items()}


def best_answers(
    queries: Tensor, answers: Tensor, query_id: Tensor, answer_id: Tensor, top: int = 50
) -> dict[int, list[int]]:
    """Query id -> ids of the `top` most similar answers, best first; unit features [Q, D] and [A, D].

    ECCV-Caption has at most 48 right answers to a query, so that 50 are enough.
    """
    best = {}
    for part in torch.arange(len(queries), device=queries.device).split(CHUNK):
        rows = (queries[part] @ answers.T).topk(min(top, len(answers))).indices
        best |= zip(query_id[part].tolist(), answer_id[rows].tolist(), strict=True)
    return best
