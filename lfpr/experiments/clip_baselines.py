"""Training recipe of the small CLIP in `data/mini/clip-mscoco`.

`python -m lfpr.experiments.clip_baselines` trains it anew. A ViT on 64-pixel images and a text transformer learn CLIP's
symmetric contrastive loss on rendered COCO pairs. The result is a Hugging Face folder like any released CLIP's: its
tokenizer is CLIP's byte-pair encoding, with merges learned from the captions so that each of their words is one token.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save as to_bytes
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm, trange
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lfpr.clip.coco import COCOCaptions, captions, images
from lfpr.clip.processor import Processor
from lfpr.clip.retrieval import encode_images, encode_texts, recall
from lfpr.experiments.tap_baselines import command_line, descend, half_precision, warm_cosine
from lfpr.files import write_json, write_whole
from lfpr.mini.coco import CAPTIONS, SCENE, write_coco

NAME = "clip-mscoco"
VISION = {"image_size": SCENE["size"], "patch_size": 16, "hidden_size": 128, "num_hidden_layers": 6,
          "num_attention_heads": 8, "intermediate_size": 512}  # fmt: skip
TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256,
        "max_position_embeddings": 32}  # fmt: skip
PROJECTION = 64


@dataclass(frozen=True)
class Recipe:
    """AdamW with warm-up and cosine decay on images in random order, each with a random one of its captions."""

    steps: int = 900
    batch_size: int = 128
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.1
    warm_up: int = 50
    train_images: int = 20000
    val_images: int = 1000
    seed: int = 0


def write_processor(folder: Path, texts: list[str]) -> None:
    """CLIP's preprocessing at this image size and a byte-pair tokenizer of `texts`, as files of a model folder."""
    size = SCENE["size"]
    CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(
        folder
    )
    byte_pair_tokenizer(texts, TEXT["max_position_embeddings"]).save_pretrained(folder)


def byte_pair_tokenizer(texts: Iterable[str], positions: int, entries: int = 0) -> CLIPTokenizer:
    """CLIP's tokenizer with merges learned from `texts`, which cuts after `positions` tokens; entries that no text
    leads to fill its vocabulary up to `entries`. The last two are the tokens of start and end."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = CLIPTokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator([text.lower() for text in texts], trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*characters, *(f"{character}</w>" for character in characters), *("".join(merge) for merge in merges)]
    tokens, special = list(dict.fromkeys(tokens)), ["<|startoftext|>", "<|endoftext|>"]
    tokens += [f"<entry {i}>" for i in range(entries - len(tokens) - len(special))] + special
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocabulary, merges, model_max_length=positions)


def new_model(folder: Path) -> CLIPModel:
    """An untrained CLIP for the tokenizer in `folder`."""
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
               "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    text = TEXT | special | {"vocab_size": len(tokenizer), "projection_dim": PROJECTION}
    vision = VISION | {"projection_dim": PROJECTION}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION))


def in_memory(data: COCOCaptions, processor: Processor) -> tuple[np.ndarray, Tensor]:
    """All pixels, uint8 [N, H, W, 3], and the token ids of all captions [N, captions, T] of a rendered set."""
    first = range(0, len(data), CAPTIONS)
    pixels = np.stack([processor.crop(data.image(i)) for i in tqdm(first, desc="decode", mininterval=5)])
    ids = processor.tokens([pair.text for pair in data.pairs])["input_ids"]
    return pixels, ids.view(len(pixels), CAPTIONS, -1)


def train(model: CLIPModel, pixels: np.ndarray, ids: Tensor, processor: Processor, recipe: Recipe) -> None:
    """Train in place with CLIP's loss: the cross-entropy of each image's own caption in its batch, and the reverse."""
    rng = np.random.default_rng(recipe.seed)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]  # biases, layer norms, logit scale: no decay
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, recipe.lr, recipe.betas, weight_decay=recipe.weight_decay, foreach=True)
    schedule = warm_cosine(optimiser, recipe.warm_up, recipe.steps)
    order = np.empty(0, int)
    model.train()
    for _ in (bar := trange(recipe.steps, desc="train", mininterval=5)):
        if len(order) < recipe.batch_size:
            order = rng.permutation(len(pixels))
        rows, order = np.split(order, [recipe.batch_size])
        sampled = ids[rows, rng.integers(CAPTIONS, size=len(rows))]
        loss = model(input_ids=sampled, pixel_values=processor.normalise(pixels[rows]), return_loss=True).loss
        descend(loss, model.parameters(), optimiser, schedule)
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))  # as CLIP does
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


def save(model: CLIPModel, folder: Path) -> None:
    """The model's configuration and float16 weights, to be loaded as float32."""
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"architectures": ["CLIPModel"], "dtype": "float32"})
    whole = to_bytes(half_precision(model), {"format": "pt"})
    write_whole(folder / "model.safetensors", lambda partial: partial.write_bytes(whole))


def score(folder: Path, root: Path) -> dict:
    """Recall of the saved model in `folder` on the val images under `root`, with the first caption of each."""
    model, processor = CLIPModel.from_pretrained(folder), Processor(folder)
    data = COCOCaptions(root, "val", "first")
    encoded = encode_images(model, images(data, 250, processor)), encode_texts(model, captions(data, 250, processor))
    return {"val_images": len(data)} | recall(*(part.features for part in encoded))


def train_baseline(folder: Path, runs: Path, recipe: Recipe) -> dict:
    """Train the small CLIP and write its folder: model, processor, and `recipe.json` with the recipe and scores."""
    root = runs / "data" / "coco-baseline"
    write_coco(root, recipe.train_images, recipe.val_images, progress=True)
    data = COCOCaptions(root, "train", "all")
    unfinished = folder / f"{NAME}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write_processor(unfinished, [pair.text for pair in data.pairs])
    processor = Processor(unfinished)
    pixels, ids = in_memory(data, processor)
    torch.manual_seed(recipe.seed)
    model = new_model(unfinished)
    start = time.perf_counter()
    train(model, pixels, ids, processor, recipe)
    minutes = (time.perf_counter() - start) / 60
    save(model, unfinished)
    result = score(unfinished, root) | {"minutes": minutes, "threads": torch.get_num_threads()}
    write_json(unfinished / "recipe.json", {"recipe": asdict(recipe)} | result)
    shutil.rmtree(folder / NAME, ignore_errors=True)
    unfinished.rename(folder / NAME)
    return result


def main() -> None:
    arguments = command_line(__doc__).parse_args()
    print(train_baseline(arguments.folder, arguments.runs, Recipe(steps=arguments.steps or Recipe.steps)))


if __name__ == "__main__":
    main()
