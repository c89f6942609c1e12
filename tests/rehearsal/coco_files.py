"""Made-up files of CLIP on MSCOCO in their published layouts and sizes, for a rehearsal of the profile `full`.

COCO 2017's captions and JPEGs, and a Hugging Face folder as OpenAI's CLIP ViT-B/16 has it, with random weights. What is
odd in the real files is odd here too: captions in no order, some images with six or seven of them, stray spaces and
line breaks, letters beyond ASCII, a text longer than the model reads, a greyscale JPEG; in the model's folder settings
as they were written in 2021, and buffers that models no longer have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from lfpr.experiments.clip_baselines import byte_pair_tokenizer, save
from lfpr.files import write_json

SIZES = ((640, 480), (480, 640), (640, 427), (427, 640), (500, 375), (640, 213), (333, 500), (612, 612))
"""Width and height in pixels of the images in turn."""
CAPTIONS = (5, 5, 6, 5, 7)  # of the images in turn
GREYSCALE = 2  # the image of each split that has no colours
SUBJECTS = ("A man in a red shirt", "Two dogs", "a black cat", "An old-fashioned bus", "Three people", "A woman's bike")
DOINGS = ("standing next to", "waiting in front of", "is seen near", "sitting on", "parked, illegally, behind")
PLACES = ("a wooden bench.", "the kitchen sink", "a stop sign.", "an open box of 12 doughnuts.", "tall trees")
LONG = "A photo of " + ", ".join(f"a {colour} car" for colour in ("red", "blue", "green", "white", "black") * 5) + "."
ODD = (
    "A picture of a modern  looking kitchen area\n",
    " A plate of crème brûlée at the café “Zoë”. ",
    LONG,
    "Αθήνα – a street, $5 or $6 a ride…",
)
"""First captions of a split's first images: line break, two spaces, letters beyond ASCII, too many tokens, dollars."""

TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
        "vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}  # fmt: skip
VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
          "image_size": 224, "patch_size": 16}  # fmt: skip
PROJECTION = 512
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Places(NamedTuple):
    """Where files are below the data root: the folder of captions, and that of a split's images."""

    captions: str = "annotations"
    images: str = "{}2017"


KEPT = {
    "one folder": Places(),
    "own": Places("coco/annotations", "coco/{}2017"),
    "zips in folders": Places("annotations_trainval2017/annotations", "{0}2017/{0}2017"),
    "fork, pruning": Places("dataset/annotations_trainval2017/annotations", "dataset/{}2017"),
    "fork, folder": Places("fisher_pruning/dataset/annotations", "fisher_pruning/dataset/{0}2017/{0}2017"),
    "fork, cascades": Places("datasets/mscoco/annotations", "datasets/mscoco/{}2017"),
}
"""Ways to keep what was downloaded."""


def write_coco_files(root: str | Path, images: dict[str, int], places: Places = KEPT["one folder"]) -> None:
    """Write `images` (split "train" or "val" -> how many) with their captions as COCO 2017 lays them out."""
    about = {"description": "COCO 2017 Dataset", "url": "http://cocodataset.org", "version": "1.0", "year": 2017}
    about |= {"contributor": "COCO Consortium", "date_created": "2017/09/01"}
    licences = [
        {"url": f"http://creativecommons.org/licenses/{name}/2.0/", "id": number, "name": f"{name} License"}
        for number, name in enumerate(("by-nc-sa", "by-nc", "by-nc-nd", "by", "by-sa", "by-nd"), 1)
    ]
    for split, count in images.items():
        rng = np.random.default_rng([*split.encode()])
        ids = 2 * rng.choice(290_000, count, replace=False) + 1 + (split == "val")  # no image is in both splits
        folder = Path(root, places.images.format(split))
        listed = [_write_image(folder, split, i, int(ids[i]), rng) for i in range(count)]
        table = {"info": about, "licenses": licences, "images": listed, "annotations": _annotations(ids, rng)}
        write_json(Path(root, places.captions, f"captions_{split}2017.json"), table)


def _write_image(folder: Path, split: str, number: int, image_id: int, rng: np.random.Generator) -> dict:
    """Write a JPEG of soft blotches; returns what the list of images says of it."""
    width, height = SIZES[number % len(SIZES)]
    name = f"{image_id:012}.jpg"
    folder.mkdir(parents=True, exist_ok=True)
    blotches = rng.integers(0, 256, (height // 40, width // 40, 3), np.uint8)
    image = Image.fromarray(blotches).resize((width, height), Image.Resampling.BICUBIC)
    (image.convert("L") if number == GREYSCALE else image).save(folder / name, quality=92)
    return {
        "license": number % 6 + 1,
        "file_name": name,
        "coco_url": f"http://images.cocodataset.org/{split}2017/{name}",
        "height": height,
        "width": width,
        "date_captured": f"2013-11-{14 + number % 10} 11:{number % 60:02}:45",
        "flickr_url": f"http://farm{number % 9 + 1}.staticflickr.com/8186/{image_id}_4e622c8349_z.jpg",
        "id": image_id,
    }


def _annotations(image_ids: np.ndarray, rng: np.random.Generator) -> list[dict]:
    """Captions of all images, neither sorted by image nor by id; the odd ones come first."""
    told = list(zip(image_ids.tolist(), ODD, strict=False))
    others = [
        (image_id, " ".join(map(str, (rng.choice(SUBJECTS), rng.choice(DOINGS), rng.choice(PLACES)))))
        for number, image_id in enumerate(image_ids.tolist())
        for _ in range(CAPTIONS[number % len(CAPTIONS)] - (number < len(told)))
    ]
    told += [others[i] for i in rng.permutation(len(others))]
    ids = rng.choice(800_000, len(told), replace=False).tolist()
    return [{"image_id": image_id, "id": i, "caption": text} for i, (image_id, text) in zip(ids, told, strict=True)]


def write_clip(
    folder: str | Path, captions: Iterable[str], text: dict = TEXT, vision: dict = VISION, projection: int = PROJECTION
) -> None:
    """Write a model folder: random weights, drawn from torch's global generator, and a byte-pair tokenizer of
    `captions`. text, vision: sizes of the towers; projection: of the features."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(folder, captions, text)
    size = vision["image_size"]
    steps = {name: True for name in ("do_resize", "do_center_crop", "do_normalize")}  # no rescaling: it went unsaid
    sizes = {"crop_size": size, "size": size, "resample": 3, "image_mean": MEAN, "image_std": STD}
    write_json(folder / "preprocessor_config.json", steps | sizes | {"feature_extractor_type": "CLIPFeatureExtractor"})
    towers = {"text_config": text, "vision_config": vision}
    towers = {name: sizes | {"projection_dim": projection} for name, sizes in towers.items()}
    model = CLIPModel(CLIPConfig(**towers, projection_dim=projection))
    for tower in (model.text_model, model.vision_model):  # by now a buffer that is not saved
        tower.embeddings.register_buffer("position_ids", tower.embeddings.position_ids)
    save(model, folder)


def _write_tokenizer(folder: Path, captions: Iterable[str], text: dict) -> None:
    """The tokenizer whole, and in parts as it was before there was `tokenizer.json`; merges are strings in both."""
    byte_pair_tokenizer(captions, text["max_position_embeddings"], text["vocab_size"]).save_pretrained(folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    merges = whole["model"]["merges"] = [" ".join(merge) for merge in whole["model"]["merges"]]
    write_json(folder / "tokenizer.json", whole)
    write_json(folder / "vocab.json", whole["model"]["vocab"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    start, end = (
        {"content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
        for token in ("<|startoftext|>", "<|endoftext|>")
    )
    special = {"bos_token": start, "eos_token": end, "unk_token": end}
    write_json(folder / "special_tokens_map.json", special | {"pad_token": "<|endoftext|>"})
    typed = {name: token | {"__type": "AddedToken"} for name, token in special.items()}
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": text["max_position_embeddings"]}
    about |= {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "pad_token": "<|endoftext|>"}
    write_json(folder / "tokenizer_config.json", typed | about)
