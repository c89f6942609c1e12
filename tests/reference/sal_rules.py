"""How ``sal_seed7.npz`` was fed: weights, raw samples, answers and masks by rule, so that none are stored.

All of it is NumPy; no model code is here. What the npz holds is listed in README.md. Float32, evaluation mode, CPU.
"""

import zlib

import numpy as np

CONFIG = {  # of T5; published (T5-base): 768, 64, 3072, 12, 12, 12, 32128, the rest alike
    "d_model": 48,
    "d_kv": 12,
    "d_ff": 96,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "vocab_size": 120,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
QUESTION_LENGTH, OCR_LENGTH, OBJECT_LENGTH = 10, 24, 12  # published: 45, 350, 250
FEATURE_SIZE, MAX_FEATURES = 16, 32  # published: 2048, 512; feature rows beyond the last word or object are zero
ANSWER_STEPS = 8  # published: 24
MAX_NEW_TOKENS = 25  # as published
VOCABULARY = 120
PAD, EOS, SEPARATOR = 0, 1, 119  # published separator: 32099, "<extra_id_0>"
OCR_PREFIX, OBJECT_PREFIX = (20, 10), (21, 10)  # published: (2625, 10) "context:" and (4820, 10) "objects:"
CIRCLE_TABLE = "latr.encoder.block.0.layer.0.SelfAttention.spatial_circle_bias.weight"  # our name, see README.md
TIED = (  # other names of latr.shared.weight
    "embedding.weight",
    "latr.encoder.embed_tokens.weight",
    "latr.decoder.embed_tokens.weight",
    "latr.lm_head.weight",
)


def sal_weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Float32 array for the state-dict entry ``name``; depends on the name, the seed and nothing else."""
    if name in TIED:
        name = "latr.shared.weight"
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    x = rng.standard_normal(shape, dtype=np.float32)
    if "layer_norm" in name:
        return 1 + np.float32(0.1) * x
    if name.endswith(".bias"):
        return np.float32(0.05) * x
    if "_bias.weight" in name:  # relative_attention_bias and the circle table
        return np.float32(1.5) * x
    if name == "type_embed.weight":
        return np.float32(0.35) * x
    if name == "latr.shared.weight":
        x *= np.float32(0.35)
        x[EOS] *= np.float32(1.4)  # so that some answers end early
        return x
    if name.endswith((".q.weight", ".k.weight")):
        return np.float32(0.2) * x
    return np.float32(0.4) * x


def sal_weights(shapes: dict[str, list[int]], seed: int) -> dict[str, np.ndarray]:
    """Whole state dict from ``sal_state_dict_shapes.json``; the five tied entries are equal."""
    return {name: sal_weight(name, tuple(shape), seed) for name, shape in shapes.items()}


def sal_samples(seed: int, batch: int = 4) -> list[dict]:
    """Raw samples as a dataset holds them, before they are laid out in the model's positions.

    ``ocr_t5_token``: the word pieces of all OCR words, each word ended by EOS; ``ocr_tokens_index``: for each
    of them the number of its word, a row of ``ocr_boxes`` (relative x1, y1, x2, y2; a few lie outside 0..1) and
    of ``ocr_features``. ``obj_t5_token``, ``obj_token_lengths``, ``obj_boxes`` (pixels) and ``obj_features``: the
    same for the names of detected objects. ``question``: word pieces, ended by EOS. Sample 1 has no OCR words;
    in sample 2 the OCR pieces do not all fit.
    """
    rng = np.random.default_rng([seed, 4])

    def words(count: int) -> tuple[list[int], list[int]]:
        tokens, index = [], []
        for word in range(count):
            pieces = [*rng.integers(22, SEPARATOR, int(rng.integers(1, 4))).tolist(), EOS]
            tokens += pieces
            index += [word] * len(pieces)
        return tokens, index

    def features(count: int) -> np.ndarray:
        x = np.zeros((MAX_FEATURES, FEATURE_SIZE), np.float32)
        x[:count] = np.abs(rng.standard_normal((count, FEATURE_SIZE), dtype=np.float32))
        return x

    samples = []
    for i in range(batch):
        n_ocr = 0 if i == 1 else 11 if i == 2 else int(rng.integers(3, 7))
        n_obj = int(rng.integers(1, 5))
        width, height = int(rng.integers(300, 1025)), int(rng.integers(300, 1025))
        question = [*rng.integers(22, SEPARATOR, int(rng.integers(3, QUESTION_LENGTH))).tolist(), EOS]
        ocr_tokens, ocr_index = words(n_ocr)
        obj_tokens, obj_index = words(n_obj)
        corners = np.sort(rng.random((max(n_ocr, 1), 2, 2), dtype=np.float32) * np.float32(1.1), axis=1)
        ocr_boxes = np.concatenate([corners[:, 0], corners[:, 1]], -1)[:n_ocr]
        corners = np.sort(rng.random((n_obj, 2, 2), dtype=np.float32) * np.float32(1.2), axis=1)
        obj_boxes = np.concatenate([corners[:, 0], corners[:, 1]], -1) * np.float32([width, height, width, height])
        samples.append(
            {
                "question": question,
                "image_width": width,
                "image_height": height,
                "ocr_t5_token": ocr_tokens,
                "ocr_tokens_index": ocr_index,
                "ocr_boxes": ocr_boxes,
                "ocr_features": features(n_ocr),
                "obj_t5_token": obj_tokens,
                "obj_token_lengths": obj_index,
                "obj_boxes": obj_boxes,
                "obj_features": features(n_obj),
            }
        )
    return samples


def sal_answers(seed: int, batch: int = 4) -> list[list[tuple[int, ...]]]:
    """Ten answers a sample, each as its word pieces without EOS.

    Sample ``i`` is trained on its answer ``i`` (the published code draws one at random); that of sample 3 is too
    long and is cut.
    """
    rng = np.random.default_rng([seed, 5])
    out = []
    for i in range(batch):
        distinct = [tuple(rng.integers(22, SEPARATOR, int(rng.integers(1, 5))).tolist()) for _ in range(3)]
        answers = [distinct[int(j)] for j in rng.choice(3, 10, p=[0.6, 0.3, 0.1])]
        if i == 3:
            answers[i] = tuple(rng.integers(22, SEPARATOR, ANSWER_STEPS + 3).tolist())
        out.append(answers)
    return out


def sal_masks(seed: int) -> dict[str, np.ndarray]:
    """A fixed 0/1 mask of each kind, [layers, heads] or [layers, neurons]; about 60 % ones, unlike in each layer."""
    rng = np.random.default_rng([seed, 6])
    shapes = {
        "encoder_heads": (2, 4),
        "decoder_heads": (2, 4),
        "cross_heads": (2, 4),
        "encoder_neurons": (2, 96),
        "decoder_neurons": (2, 96),
    }
    return {kind: (rng.random(shape) < 0.6).astype(np.float32) for kind, shape in shapes.items()}
