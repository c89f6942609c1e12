"""Training recipes of the small baselines in `data/mini/`; `python -m lfpr.experiments.tap_baselines` trains them anew.

What makes a small TAP learn in minutes is help with *binding* words to the objects that carry them:

* objects and OCR tokens share the box encoder; question words share the OCR tokens' n-gram projection (both are ties
  during training only: the saved state dict is a plain TAP);
* an auxiliary loss, in the spirit of TAP's relative-position pre-training, asks each OCR token's output for the look of
  the object around it (first 70 % of training);
* softmax cross-entropy joins M4C's binary cross-entropy, and pointer and classifier start at low logits.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from lfpr.checks import check_choice
from lfpr.experiments.specs import SPECS
from lfpr.experiments.tap import TAPTask
from lfpr.files import SHIPPED, write_json, write_whole
from lfpr.mini.datasets import answer_words, word_pieces, write_tap
from lfpr.tap.data import Questions, TAPDataset, batches
from lfpr.tap.evaluate import evaluate
from lfpr.tap.layout import TEXT_VOCAB
from lfpr.tap.model import TAP, Batch, TAPConfig
from lfpr.tap.objectives import decoding_loss
from lfpr.tap.vectors import HashedNgrams


@dataclass(frozen=True)
class Recipe:
    """AdamW with warm-up and cosine decay; `auxiliary` is the share of the steps with the binding loss."""

    steps: int = 2600
    batch_size: int = 64
    lr: float = 1e-3
    warm_up: int = 100
    weight_decay: float = 0.01
    auxiliary: float = 0.7
    output_scale: float = 1.0  # factor on the output projections at the start; deep stacks need less than 1
    start: str = ""  # shipped baseline to start from, as TAP's ST-VQA models start from pre-training on TextVQA too
    seed: int = 0


class SharedWords(nn.Module):
    """Word-piece embeddings as a free part plus the OCR tokens' n-gram projection of each whole word."""

    def __init__(self, free: nn.Embedding, ngrams: Tensor, linear: nn.Linear) -> None:
        super().__init__()
        self.free, self.linear = free, linear
        self.register_buffer("ngrams", ngrams)  # [vocabulary, fasttext_size]

    def table(self) -> Tensor:
        return self.free.weight + self.ngrams @ self.linear.weight[:, : self.ngrams.shape[1]].T

    def forward(self, ids: Tensor) -> Tensor:
        words = F.linear(F.embedding(ids, self.ngrams), self.linear.weight[:, : self.ngrams.shape[1]])
        return self.free(ids) + words


class Binding(nn.Module):
    """What each OCR token's MMT output should know: the features of the object around it, and whether the question
    mentions it."""

    def __init__(self, config: TAPConfig, ngrams: Tensor) -> None:
        super().__init__()
        self.question_tokens = config.question_tokens
        self.look = nn.Linear(config.hidden_size, config.feature_size)
        self.mentioned = nn.Linear(config.hidden_size, 1)
        self.register_buffer("ngrams", ngrams)

    def forward(self, outputs: Tensor, batch: Batch) -> Tensor:
        """outputs [B, C, D] of the first C OCR slots -> a scalar loss; targets come from boxes and spellings alone."""
        slots, objects = outputs.shape[1], int(batch["num_obj"].max())
        ocr, boxes = batch["ocr_boxes"][:, :slots], batch["obj_boxes"][:, :objects]
        centre = (ocr[..., :2] + ocr[..., 2:]) / 2
        inside = ((centre[:, :, None] >= boxes[:, None, :, :2]) & (centre[:, :, None] <= boxes[:, None, :, 2:])).all(-1)
        inside &= torch.arange(objects) < batch["num_obj"][:, None, None]
        valid = torch.arange(slots) < batch["num_ocr"][:, None]
        inside &= valid[..., None]
        carrier = inside.float().argmax(-1)  # [B, C]; objects rarely overlap
        features = batch["obj_features"][:, :objects]
        target = features.gather(1, carrier[..., None].expand(-1, -1, features.shape[-1]))
        carried = inside.any(-1)
        look = F.mse_loss(self.look(outputs[carried]), target[carried]) / target[carried].var()
        question = F.embedding(batch["text"][:, : self.question_tokens], self.ngrams)
        similar = (batch["ocr_fasttext"][:, :slots] @ question.transpose(1, 2)).amax(-1) > 0.7
        said = self.mentioned(outputs)[..., 0]
        return look + F.binary_cross_entropy_with_logits(said[valid], similar[valid].float())


def train_tap(
    config: TAPConfig, data: TAPDataset, ngrams: Tensor, recipe: Recipe, start: dict[str, Tensor] | None = None
) -> TAP:
    """Train a TAP on questions with targets; `ngrams` [vocabulary, 300] are the vectors of the word pieces.

    `start`: a state dict of the same sizes to start from (`translated`).
    """
    torch.manual_seed(recipe.seed)
    model = TAP(config)
    _start_wide(model, recipe)
    _start_low(model)
    words = SharedWords(model.text_bert.embeddings.word_embeddings, ngrams, model.linear_ocr_feat_to_mmt_in)
    if start:
        model.load_state_dict(start)
        with torch.no_grad():
            words.free.weight.copy_(2 * words.free.weight - words.table())
    model.text_bert.embeddings.word_embeddings = words
    model.linear_ocr_bbox_to_mmt_in = model.linear_obj_bbox_to_mmt_in
    model.ocr_bbox_layer_norm = model.obj_bbox_layer_norm
    binding = Binding(config, ngrams)
    parameters = list({id(p): p for p in [*model.parameters(), *binding.parameters()]}.values())
    optimiser = torch.optim.AdamW(parameters, recipe.lr, weight_decay=recipe.weight_decay, foreach=True)
    schedule = warm_cosine(optimiser, recipe.warm_up, recipe.steps)
    pointed: list[Tensor] = [torch.empty(0)]  # the OCR slots' MMT outputs, as the pointer network gets them
    model.ocr_ptr_net.key.register_forward_pre_hook(lambda module, inputs: pointed.__setitem__(0, inputs[0]))
    loader = batches(data, recipe.batch_size, recipe.seed, drop_last=True)
    model.train()
    for step, batch, say in passes(data, loader, recipe.steps):
        logits = model(batch, batch["previous"])
        loss = decoding_loss(logits, batch["targets"], batch["loss_mask"])
        loss = loss + cross_entropy(logits, batch["targets"], batch["loss_mask"])
        if step < recipe.auxiliary * recipe.steps:
            loss = loss + binding(pointed[0], batch)
        descend(loss, parameters, optimiser, schedule)
        say(loss)
    return _untie(model, words)


def passes(data: Questions, loader: DataLoader, steps: int) -> Iterator[tuple[int, dict, Callable[[Tensor], None]]]:
    """`steps` batches under a bar, in a new order and with other answers in each pass, cut after the longest answer:
    its number, the batch, and what says its loss on the bar."""
    step, bar = 0, tqdm(total=steps, desc="train", mininterval=5)
    while step < steps:
        data.set_epoch(step)
        for batch in islice(loader, steps - step):
            longest = int(batch["loss_mask"].sum(1).max())
            batch |= {name: batch[name][:, :longest] for name in ("targets", "previous", "loss_mask")}
            yield step, batch, lambda loss: bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
            step += 1
            bar.update()


def warm_cosine(optimiser: Optimizer, warm_up: int, steps: int) -> LambdaLR:
    """The learning rates rise for `warm_up` steps and follow half a cosine to zero at `steps`."""
    return LambdaLR(optimiser, lambda i: min((i + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * i / steps))))


def descend(loss: Tensor, parameters: Iterable[nn.Parameter], optimiser: Optimizer, schedule: LambdaLR) -> None:
    """One step of training, with gradients of norm 1 at most."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()
    schedule.step()


def half_precision(model: nn.Module) -> dict[str, Tensor]:
    """The model's state in float16, as baselines are shipped."""
    state = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    return {name: tensor.contiguous() for name, tensor in state.items()}


def cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Softmax cross-entropy against the targets [B, T, C] scaled to sum 1, averaged over the valid steps."""
    shares = targets / targets.sum(-1, keepdim=True).clamp(min=1e-6)
    return -((shares * logits.log_softmax(-1)).sum(-1) * mask).sum() / mask.sum().clamp(min=1)


def _start_wide(model: TAP, recipe: Recipe) -> None:
    """Start the matrices for a narrow model: BERT's standard deviation of 0.02 is made for widths near 768.

    Queries and keys start equal, so that attention begins by matching like with like (mimetic initialisation, Trockman
    and Kolter, ICML 2023), and what a word spells outweighs its other features: an OCR token then finds the same word
    in the question from the first step on.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embeddings" not in name:
            parameter.data *= 3
    model.linear_ocr_feat_to_mmt_in.weight.data[:, : model.config.fasttext_size] *= 2
    for layer in [*model.mmt.encoder.layer, *model.text_bert.encoder.layer]:
        layer.attention.self.query.weight.data *= 1.7
        layer.attention.self.key.weight.data.copy_(layer.attention.self.query.weight.data)
        layer.attention.output.dense.weight.data *= recipe.output_scale
        layer.output.dense.weight.data *= recipe.output_scale


def _start_low(model: TAP, logit: float = -3.0) -> None:
    """Start all logits at about `logit`: most classes are wrong, and training need not learn that first."""
    nn.init.constant_(model.classifier["module"].bias, logit)
    width = model.config.hidden_size
    nn.init.constant_(model.ocr_ptr_net.query.bias, abs(logit) ** 0.5 / width**0.25)
    nn.init.constant_(model.ocr_ptr_net.key.bias, -(abs(logit) ** 0.5) / width**0.25)


def _untie(model: TAP, words: SharedWords) -> TAP:
    """A plain TAP of the same weights."""
    model.text_bert.embeddings.word_embeddings = words.free
    with torch.no_grad():
        words.free.weight.copy_(words.table())
    plain = TAP(model.config).eval()
    plain.load_state_dict(model.state_dict())
    return plain


def translated(state: dict[str, Tensor], model: TAP, source: str, target: str) -> dict[str, Tensor]:
    """A TAP's state dict for another mini data set: known words and answers moved, new ones as in `model`.

    `source`, `target`: the data sets, "textvqa" or "stvqa".
    """
    state = {name: value.float() for name, value in state.items()}
    own = model.state_dict()
    for names, lists in (
        (["text_bert.embeddings.word_embeddings.weight"], word_pieces),
        (["classifier.module.weight", "classifier.module.bias"], answer_words),
    ):
        indices = {word: i for i, word in enumerate(lists(source))}
        pairs = torch.tensor([(i, indices[word]) for i, word in enumerate(lists(target)) if word in indices])
        for name in names:
            state[name] = own[name].clone().index_copy_(0, pairs[:, 0], state[name][pairs[:, 1]])
    return state


TAP_CONFIG = {"text_layers": 2, "mmt_layers": 4, "hidden_size": 96, "num_heads": 12, "intermediate_size": 384,
              "text_positions": 64, "num_ocr": 12, "feature_size": 128, "dropout": 0.0}  # fmt: skip


TAP12_CONFIG = TAP_CONFIG | {"text_layers": 0, "mmt_layers": 12}


@dataclass(frozen=True)
class Baseline:
    """A shipped baseline: its model's sizes (what the data does not fix), its recipe, its training images."""

    config: dict
    recipe: Recipe
    train_images: int = 15000


BASELINES = {
    "tap-textvqa": Baseline(TAP_CONFIG, Recipe()),
    "tap-stvqa": Baseline(TAP_CONFIG, Recipe(steps=1000, lr=5e-4, start="tap-textvqa")),
    "tap12-textvqa": Baseline(TAP12_CONFIG, Recipe(steps=2200, lr=8e-4, output_scale=0.4)),
    "tap12-stvqa": Baseline(TAP12_CONFIG, Recipe(steps=800, lr=4e-4, start="tap12-textvqa")),
}


def train_baseline(name: str, folder: Path, runs: Path, recipe: Recipe) -> dict:
    """Train baseline `name`, write `NAME.safetensors` (float16) and `NAME.json` (config, recipe, score)."""
    baseline = BASELINES[name]
    dataset = SPECS[name].arguments["dataset"]
    root = runs / "data" / f"{dataset}-baseline"
    settings = TAPTask.SETTINGS["mini"]
    write_tap(root, dataset, baseline.train_images, settings.val_images)
    embed = HashedNgrams(settings.sizes.fasttext_size)
    data = TAPDataset(root, dataset, "train", sizes=settings.sizes, targets=True, embed=embed, seed=recipe.seed)
    config = TAPConfig(text_vocab_size=len(data.pieces), num_answers=len(data.vocab), bos_index=data.vocab.bos,
                       eos_index=data.vocab.eos, **baseline.config)  # fmt: skip
    words = (root / TEXT_VOCAB).read_text().split("\n")[: len(data.pieces)]
    ngrams = torch.from_numpy(embed(words))
    ngrams[[not word.isalnum() for word in words]] = 0  # specials, punctuation and parts of words
    start = None
    if recipe.start:
        state = load_file(folder / f"{recipe.start}.safetensors")
        start = translated(state, TAP(config), SPECS[recipe.start].arguments["dataset"], dataset)
    began = time.perf_counter()
    model = train_tap(config, data.preload(), ngrams, recipe, start)
    minutes = (time.perf_counter() - began) / 60
    state = half_precision(model)
    write_whole(folder / f"{name}.safetensors", lambda partial: save_file(state, partial))
    model.load_state_dict({key: value.float() for key, value in state.items()})
    val = TAPDataset(root, dataset, "val", sizes=settings.sizes, embed=embed)
    result = evaluate(model, val, settings.eval_batch) | {"minutes": minutes, "threads": torch.get_num_threads()}
    description = {"config": config.to_dict(), "recipe": asdict(recipe), "train_images": baseline.train_images}
    write_json(folder / f"{name}.json", description | result)
    return result


def command_line(description: str) -> argparse.ArgumentParser:
    """What the recipes' commands take."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=SHIPPED, help="where to write")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the training data are made")
    parser.add_argument("--steps", type=int, help="training steps, instead of the recipe's")
    return parser


def train_named(description: str, recipes: Mapping[str, Any], train: Callable[[str, Path, Path, Any], dict]) -> None:
    """A command that trains baselines, by default all, with `train(name, folder, runs, recipe)`."""
    parser = command_line(description)
    parser.add_argument("names", nargs="*", default=list(recipes), help=f"of {list(recipes)}; all by default")
    arguments = parser.parse_args()
    for name in arguments.names:
        recipe = recipes[check_choice("name", name, recipes)]
        recipe = replace(recipe, steps=arguments.steps) if arguments.steps else recipe
        print(name, train(name, arguments.folder, arguments.runs, recipe))


if __name__ == "__main__":
    train_named(__doc__, {name: baseline.recipe for name, baseline in BASELINES.items()}, train_baseline)
