"""Where pieces are in SaL's input: each part's prefix, its words with a separator after each, zeros.

Words come as T5's pieces, each word ended by 1, with the number of each piece's word; the separator that takes the
place of the 1 has its word's box and appearance (Text Semantic Separate; Fang et al., ACM MM 2023, as published).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lfpr.sal.config import EOS, PREFIX, SaLConfig

INSIDE = 0.999  # the largest relative coordinate of an object


def lay_out(sample: Mapping[str, Any], config: SaLConfig) -> dict[str, np.ndarray]:
    """The model's input of one sample: `question_ids` [Q], and for `ocr` and `obj` `…_ids`, `…_boxes` [n, 4] relative
    to the image and `…_features` [n, F], zero in prefix and padding.

    `sample`: `question`, pieces ended by 1; `image_width`, `image_height`; of OCR words `ocr_t5_token`, pieces,
    `ocr_tokens_index`, the word of each, `ocr_boxes` [words, 4] relative and `ocr_features`; of objects `obj_t5_token`,
    `obj_token_lengths`, which is the object of each piece, `obj_boxes` [objects, 4] in pixels and `obj_features`. Words
    beyond the rows of features have none. Raises ValueError for a word without a box, and a piece that the config's
    vocabulary has not.
    """
    ids = np.zeros(config.question_length, np.int64)
    question = sample["question"]
    if len(question) > len(ids):
        question = [*question[: len(ids) - 1], EOS]
    ids[: len(question)] = question
    scale = np.tile(np.array([sample["image_width"], sample["image_height"]], np.float32), 2)
    objects = np.clip(np.asarray(sample["obj_boxes"], np.float32).reshape(-1, 4) / scale, 0, INSIDE)
    return (
        {"question_ids": ids}
        | _part("ocr", sample, sample["ocr_tokens_index"], sample["ocr_boxes"], config)
        | _part("obj", sample, sample["obj_token_lengths"], objects, config)
    )


def _part(
    name: str, sample: Mapping[str, Any], words: Sequence[int], boxes: np.ndarray, config: SaLConfig
) -> dict[str, np.ndarray]:
    length, prefix = getattr(config, f"{name}_length"), getattr(config, f"{name}_prefix")
    ids, places = np.zeros(length, np.int64), np.zeros((length, 4), np.float32)
    looks = np.zeros((length, config.feature_size), np.float32)
    pieces, words = (np.asarray(values, np.int64)[: length - PREFIX] for values in (sample[f"{name}_t5_token"], words))
    if len(pieces) != len(words) or not (_below(words, len(boxes)) and _below(pieces, config.vocab_size)):
        raise ValueError(
            f"{name}: {len(pieces)} pieces up to {pieces.max(initial=0)} of {config.vocab_size}, with {len(words)} "
            f"words up to {words.max(initial=0)} of {len(boxes)}"
        )
    used = slice(PREFIX, PREFIX + len(pieces))
    ids[:PREFIX] = *prefix, config.separator
    ids[used] = np.where(pieces == EOS, config.separator, pieces)
    places[used] = boxes[words]
    features = sample[f"{name}_features"][: config.max_features]
    seen = words < len(features)
    looks[used][seen] = features[words[seen]]
    return {f"{name}_ids": ids, f"{name}_boxes": places, f"{name}_features": looks}


def _below(numbers: np.ndarray, end: int) -> bool:
    return bool(((numbers >= 0) & (numbers < end)).all())
