"""The tiny SaL of the reference numbers: its sizes, weights and inputs, all by rule, and its inputs as files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import lmdb
import numpy as np
import torch
from reference import sal_rules as rules
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import Unigram

from lfpr.sal.config import SaLConfig
from lfpr.sal.data import LAYOUTS, SPLITS
from lfpr.sal.layout import lay_out
from lfpr.sal.model import SaL

CLOSE = {"rtol": 1e-3, "atol": 1e-4}  # how far from the published numbers
REFERENCE = Path(__file__).parent / "reference"
SHAPES = json.loads((REFERENCE / "sal_state_dict_shapes.json").read_text())
CONFIG = SaLConfig(
    d_model=48, d_kv=12, d_ff=96, num_layers=2, num_decoder_layers=2, num_heads=4, vocab_size=rules.VOCABULARY,
    feature_size=rules.FEATURE_SIZE, max_features=rules.MAX_FEATURES, question_length=rules.QUESTION_LENGTH,
    ocr_length=rules.OCR_LENGTH, obj_length=rules.OBJECT_LENGTH, ocr_prefix=rules.OCR_PREFIX,
    obj_prefix=rules.OBJECT_PREFIX, separator=rules.SEPARATOR, answer_steps=rules.ANSWER_STEPS,
    new_tokens=rules.MAX_NEW_TOKENS,
)  # fmt: skip


def config(**changes) -> SaLConfig:
    return SaLConfig.from_dict(CONFIG.to_dict() | changes)


def state(scp: str = "add", seed: int = 7) -> dict[str, torch.Tensor]:
    """A published state dict; without the Spatial Circle Position if that is off."""
    values = {name: torch.from_numpy(value) for name, value in rules.sal_weights(SHAPES, seed).items()}
    return {name: value for name, value in values.items() if scp != "off" or name != rules.CIRCLE_TABLE}


def sal(scp: str = "add", seed: int = 7) -> SaL:
    model = SaL(config(scp=scp)).eval()
    model.load_state_dict(state(scp, seed))
    return model


def batch(seed: int = 7) -> dict[str, torch.Tensor]:
    """The four samples of the reference."""
    rows = [lay_out(sample, CONFIG) for sample in rules.sal_samples(seed)]
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def half(batch: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    """Samples 0-1 or 2-3."""
    return {name: value[2 * number : 2 * number + 2] for name, value in batch.items()}


def masked(model: SaL, masks: dict[str, torch.Tensor]) -> list:
    """Hooks that multiply contexts and activations by masks of the five kinds; the hooks."""
    hooks = []

    def scale(linear: torch.nn.Module, mask: torch.Tensor) -> None:
        def hook(module, args):
            return (args[0] * mask.repeat_interleave(args[0].shape[-1] // len(mask)),)

        hooks.append(linear.register_forward_pre_hook(hook))

    for kind, mask in masks.items():
        stack = model.latr.encoder if kind.startswith("encoder") else model.latr.decoder
        for block, row in zip(stack.block, mask, strict=True):
            if kind.endswith("neurons"):
                scale(block.layer[-1].DenseReluDense.wo, row)
            elif kind == "cross_heads":
                scale(block.layer[1].EncDecAttention.o, row)
            else:
                scale(block.layer[0].SelfAttention.o, row)
    return hooks


MARKS = {20: "▁context:", 21: "▁objects:", 22: "▁question:"}


def write_tokenizer(
    path: Path,
    words: dict[int, str] | None = None,
    size: int = rules.VOCABULARY,
    separator: int = rules.SEPARATOR,
    marks: dict[int, str] = MARKS,
) -> Path:
    """T5's tokenizer in miniature: piece 25 is the word w25, and so on; `marks` and `words` are others."""
    pieces = [f"▁w{number}" for number in range(size)]
    special = {0: "<pad>", 1: "</s>", 2: "<unk>", separator: "<extra_id_0>"}
    for number, word in (marks | special | (words or {})).items():
        pieces[number] = word
    tokenizer = Tokenizer(Unigram([(piece, 0.0 if piece in special.values() else -1.0) for piece in pieces], 2, False))
    space = {"replacement": "▁", "prepend_scheme": "always"}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**space)]
    )
    tokenizer.decoder = decoders.Metaspace(**space)
    tokenizer.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(list(special.values()))
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def text(pieces: tuple[int, ...]) -> str:
    return " ".join(f"w{piece}" for piece in pieces)


def write_lmdb(path: Path, values: dict[str, object]) -> None:
    path.mkdir(parents=True)
    with lmdb.open(str(path), 1 << 28, lock=False) as environment, environment.begin(write=True) as transaction:
        for key, value in ({"keys": [key.encode() for key in values]} | values).items():
            transaction.put(key.encode(), value if isinstance(value, bytes) else pickle.dumps(value))


def write_imdb(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = np.empty(1 + len(rows), object)
    table[:] = [{"dataset_name": "tiny"}, *rows]
    np.save(path, table)


def rows(dataset: str = "textvqa") -> list[dict]:
    """The reference's samples as an imdb has them; sample 1, without OCR words, has a list of no boxes."""
    samples = zip(rules.sal_samples(7), rules.sal_answers(7), strict=True)
    folder = "coco-text/" if dataset == "stvqa" else ""
    return [
        {
            "question": text(tuple(sample["question"][:-1])).upper(),
            "question_id": 100 + i,
            "image_id": f"image{i}",
            "image_path": f"train/image{i}.jpg",
            "feature_path": f"{folder}image{i}.npy",
            "image_width": sample["image_width"],
            "image_height": sample["image_height"],
            "answers": [text(answer) for answer in answers],
            "ocr_t5_token": sample["ocr_t5_token"],
            "ocr_tokens_index": np.array(sample["ocr_tokens_index"]),
            "wordlevel_ocr_normalized_boxes": np.pad(sample["ocr_boxes"], ((0, 0), (0, 2)), constant_values=7)
            if len(sample["ocr_boxes"])
            else np.zeros(0, np.float32),
        }
        for i, (sample, answers) in enumerate(samples)
    ]


def write_files(root: Path, dataset: str = "textvqa", split: str = "train") -> Path:
    """The reference's samples in SaL's published files; the folder."""
    places = LAYOUTS[dataset]
    write_imdb(root / "data" / places["imdb"][0].format(split), rows(dataset))
    write_tokenizer(root / "t5-base/tokenizer.json")
    names = {"textvqa": "train/image{}", "stvqa": SPLITS[split] + "/coco-text/image{}"}[dataset]
    objects, ocr = {}, {}
    for i, sample in enumerate(rules.sal_samples(7)):
        about = {name: sample[name] for name in ("obj_t5_token", "obj_token_lengths")}
        boxes = np.pad(sample["obj_boxes"], ((0, 0), (0, 2)), constant_values=9)
        objects[names.format(i) + ".npy"] = about | {"features": sample["obj_features"], "bbox": boxes}
        ocr[names.format(i)] = {"features": sample["ocr_features"]}
    write_lmdb(root / "data" / places["objects"][0], objects)
    write_lmdb(root / "data" / places["ocr"][0], ocr)
    return root
