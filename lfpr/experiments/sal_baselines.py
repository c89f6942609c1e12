"""Training recipe of the small SaLs in `data/mini/`; `python -m lfpr.experiments.sal_baselines` trains them anew.

The loss is SaL's, so that logits mean the same. What makes a small T5 learn in minutes is ours:

* attention begins by comparing and copying: in the encoder, queries equal keys and half of the heads look away from
  where they are (mimetic initialisation, Trockman and Kolter, ICML 2023); in cross-attention, outputs undo values;
* auxiliary losses help *binding* words to the objects that carry them (`Binding`, first 70 % of training);
* softmax cross-entropy joins the binary cross-entropy, and logits start low.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from lfpr.experiments.tap_baselines import cross_entropy, descend, half_precision, passes, train_named, warm_cosine
from lfpr.files import write_json, write_whole
from lfpr.mini.features import FEATURE_SIZE
from lfpr.mini.sal import write_sal
from lfpr.mini.scenes import CLASSES, COLOURS
from lfpr.sal import Pieces, SaL, SaLConfig, SaLDataset, batches, evaluate
from lfpr.sal.checkpoint import TIED
from lfpr.sal.config import EOS, PREFIX
from lfpr.sal.data import T5
from lfpr.sal.model import Batch
from lfpr.tap.objectives import decoding_loss

CONFIG = {"d_model": 96, "d_kv": 12, "d_ff": 384, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 8,
          "feature_size": FEATURE_SIZE, "question_length": 16, "ocr_length": 24, "obj_length": 10, "answer_steps": 12,
          "new_tokens": 13, "dropout": 0.0}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A data set, how many of its images are made, and AdamW with warm-up and cosine decay; `auxiliary` is the share of
    the steps with the binding losses."""

    dataset: str
    steps: int = 2600
    batch_size: int = 32
    lr: float = 1.5e-3
    warm_up: int = 100
    weight_decay: float = 0.01
    auxiliary: float = 0.7
    train_images: int = 15000
    val_images: int = 600
    seed: int = 0


RECIPES = {f"sal-{dataset}": Recipe(dataset) for dataset in ("textvqa", "stvqa")}


class Binding(nn.Module):
    """What binds words to objects, taught from pieces, boxes and answers alone: looks of objects and of the words on
    them should say the object's class and, where the question names it, its colour, in terms of the embeddings of these
    words; and what the encoder makes of an OCR piece should say whether it is asked about, and whether it is answered.
    """

    def __init__(self, config: SaLConfig, pieces: Pieces) -> None:
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.tensor(4 / config.d_model**0.5))
        self.role = nn.Linear(config.d_model, 2)
        for name, words in (("classes", CLASSES), ("colours", COLOURS)):
            ids = torch.tensor([pieces.encode(word)[0] for word in words])
            self.register_buffer(name, ids.sort().values)

    def forward(self, model: SaL, batch: Batch, outputs: Tensor) -> Tensor:
        """outputs [B, S, D] of the encoder -> a scalar loss."""
        question, ocr, objects = batch["question_ids"], batch["ocr_ids"], batch["obj_ids"]
        named = torch.isin(objects, self.classes)
        centre = (batch["ocr_boxes"][..., :2] + batch["ocr_boxes"][..., 2:]) / 2
        boxes = batch["obj_boxes"][:, None]
        inside = ((centre[:, :, None] >= boxes[..., :2]) & (centre[:, :, None] <= boxes[..., 2:])).all(-1)
        inside &= named[:, None] & (ocr > 0)[..., None]  # [B, O, N]; objects rarely overlap
        inside[:, :PREFIX] = False
        carriers = objects.gather(1, inside.int().argmax(-1)) * inside.any(-1)
        names = torch.cat([carriers, objects * named], 1)  # [B, O + N]: the class that a look shows, or 0
        looks = torch.cat([_looks(model, batch, part) for part in ("ocr", "obj")], 1)
        embeddings = model.embedding.weight
        loss = self._told(looks, names, self.classes, embeddings)

        pair = torch.isin(question[:, :-1], self.colours) & torch.isin(question[:, 1:], self.classes)
        first = pair.int().argmax(1, keepdim=True)
        name = question.gather(1, first + 1)
        clear = pair.any(1, keepdim=True) & ((objects * named == name).sum(1, keepdim=True) == 1)
        colours = question.gather(1, first) * ((names == name) & clear)
        loss = loss + self._told(looks, colours, self.colours, embeddings)

        written = (ocr > EOS) & (ocr != self.config.separator)
        written[:, :PREFIX] = False
        start = self.config.question_length
        role = self.role(outputs[:, start : start + ocr.shape[1]][written])
        asked, answered = (
            (ocr[..., None] == ids[:, None]).any(-1)[written].float() for ids in (question, batch["previous"])
        )
        loss = loss + F.binary_cross_entropy_with_logits(role[:, 0], asked)
        return loss + 4 * F.binary_cross_entropy_with_logits(role[:, 1], answered)

    def _told(self, looks: Tensor, words: Tensor, among: Tensor, embeddings: Tensor) -> Tensor:
        """Cross-entropy of `words` [B, n] where they are not 0, `among` these, by likeness of looks [B, n, D]."""
        told = words > 0
        likeness = looks[told] @ embeddings[among].T * self.scale
        right = torch.searchsorted(among, words[told])
        return F.cross_entropy(likeness, right, reduction="sum") / max(1, len(right))


def _looks(model: SaL, batch: Batch, part: str) -> Tensor:
    look, norm = (getattr(model, f"{part}_{name}") for name in ("vit_fc7", "feat_layer_norm"))
    return norm(look(batch[f"{part}_features"]))


@torch.no_grad()
def begin(model: SaL) -> None:
    """Set starting weights with which attention compares and copies, what a piece says outweighs which part it is in,
    and all logits are low: in each embedding the first number is the same, and the decoder's last norm turns its
    sign."""
    t5, config = model.latr, model.config
    for block in t5.encoder.block:
        attention = block.layer[0].SelfAttention
        attention.q.weight.copy_(attention.k.weight * 2.5 / config.d_kv**0.5)
    away = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # [buckets, H]; 0: at itself
    away[0, : config.num_heads // 2] -= 4
    for block in t5.decoder.block:
        attention = block.layer[1].EncDecAttention
        attention.o.weight.copy_(attention.v.weight.T)
    model.type_embed.weight *= 0.3
    t5.shared.weight[:, 0] = 3
    t5.decoder.final_layer_norm.weight[0] = -5


def train_sal(config: SaLConfig, data: SaLDataset, recipe: Recipe) -> SaL:
    """A SaL trained on questions with targets, in evaluation mode."""
    torch.manual_seed(recipe.seed)
    model = SaL(config)
    begin(model)
    binding = Binding(config, data.pieces)
    parameters = [*model.parameters(), *binding.parameters()]
    optimiser = torch.optim.AdamW(parameters, recipe.lr, weight_decay=recipe.weight_decay, foreach=True)
    schedule = warm_cosine(optimiser, recipe.warm_up, recipe.steps)
    loader = batches(data, recipe.batch_size, shuffle_seed=recipe.seed, drop_last=True)
    model.train()
    for step, batch, say in passes(data, loader, recipe.steps):
        encoded = model.encode(batch)
        logits, wanted = model.decode(encoded, batch["previous"]), (batch["targets"], batch["loss_mask"])
        loss = decoding_loss(logits, *wanted) + cross_entropy(logits, *wanted)
        if step < recipe.auxiliary * recipe.steps:
            loss = loss + binding(model, batch, encoded.x)
        descend(loss, parameters, optimiser, schedule)
        say(loss)
    return model.eval()


def train_baseline(name: str, folder: Path, runs: Path, recipe: Recipe) -> dict:
    """Train baseline `name`, write `NAME.safetensors` (float16) and `NAME.json` (config, recipe, score)."""
    root = runs / "data" / f"{name}-baseline"
    write_sal(root, recipe.dataset, recipe.train_images, recipe.val_images)
    pieces = Pieces(root / T5)
    config = SaLConfig(
        vocab_size=len(pieces),
        separator=pieces.separator,
        ocr_prefix=pieces.encode("context:")[:-1],
        obj_prefix=pieces.encode("objects:")[:-1],
        **CONFIG,
    )
    data = SaLDataset(root, recipe.dataset, "train", config=config, targets=True, seed=recipe.seed).preload()
    began = time.perf_counter()
    model = train_sal(config, data, recipe)
    minutes = (time.perf_counter() - began) / 60
    state = {key: value for key, value in half_precision(model).items() if key not in TIED}
    write_whole(folder / f"{name}.safetensors", lambda partial: save_file(state, partial))
    model.load_checkpoint(folder / f"{name}.safetensors")
    val = SaLDataset(root, recipe.dataset, "val", config=config)
    result = evaluate(model, val, 200) | {"minutes": minutes, "threads": torch.get_num_threads()}
    write_json(folder / f"{name}.json", {"config": config.to_dict(), "recipe": asdict(recipe)} | result)
    return result


if __name__ == "__main__":
    train_named(__doc__, RECIPES, train_baseline)
