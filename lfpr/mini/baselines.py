"""Training recipes of the small baselines in ``data/mini/``; ``python -m lfpr.mini.baselines`` trains them anew.

What makes a small TAP learn in minutes is help with *binding* words to the objects that carry them:

* objects and OCR tokens share the box encoder; question words share the OCR tokens' n-gram projection (both are ties
  during training only: the saved state dict is a plain TAP);
* an auxiliary loss, in the spirit of TAP's relative-position pre-training, asks each OCR token's output for the look of
  the object around it (first 70 % of training);
* softmax cross-entropy joins M4C's binary cross-entropy, and pointer and classifier start at low scores.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from lfpr.runs import write_json
from lfpr.tap.label_free import decoding_loss
from lfpr.tap.model import TAP, Batch, TAPConfig


@dataclass(frozen=True)
class Recipe:
    """AdamW with warm-up and cosine decay; ``auxiliary`` is the share of the steps with the binding loss."""

    steps: int = 2200
    batch_size: int = 64
    lr: float = 1e-3
    warm_up: int = 100
    weight_decay: float = 0.01
    auxiliary: float = 0.7
    output_scale: float = 1.0  # factor on the output projections at the start; deep stacks need less than 1
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
    """Predicts the features of the object around each OCR token from the token's MMT output."""

    def __init__(self, config: TAPConfig) -> None:
        super().__init__()
        self.look = nn.Linear(config.hidden_size, config.feature_size)

    def forward(self, outputs: Tensor, batch: Batch) -> Tensor:
        """outputs [B, C, D] of the first C OCR slots -> mean squared error of the carriers' features."""
        slots, objects = outputs.shape[1], int(batch["num_obj"].max())
        ocr, boxes = batch["ocr_boxes"][:, :slots], batch["obj_boxes"][:, :objects]
        centre = (ocr[..., :2] + ocr[..., 2:]) / 2
        inside = ((centre[:, :, None] >= boxes[:, None, :, :2]) & (centre[:, :, None] <= boxes[:, None, :, 2:])).all(-1)
        inside &= torch.arange(objects) < batch["num_obj"][:, None, None]
        inside &= (torch.arange(slots) < batch["num_ocr"][:, None])[..., None]
        carrier = inside.float().argmax(-1)  # [B, C]; objects rarely overlap
        features = batch["obj_features"][:, :objects]
        target = features.gather(1, carrier[..., None].expand(-1, -1, features.shape[-1]))
        carried = inside.any(-1)
        return F.mse_loss(self.look(outputs[carried]), target[carried]) / target[carried].var()


def train_tap(config: TAPConfig, batches, ngrams: Tensor, recipe: Recipe) -> TAP:
    """Train a TAP on batches with ``previous``, ``targets`` and ``loss_mask``, going round them for ``recipe.steps``."""
    torch.manual_seed(recipe.seed)
    model = TAP(config)
    for layer in [*model.mmt.encoder.layer, *model.text_bert.encoder.layer]:
        layer.attention.output.dense.weight.data *= recipe.output_scale
        layer.output.dense.weight.data *= recipe.output_scale
    _start_low(model)
    words = SharedWords(model.text_bert.embeddings.word_embeddings, ngrams, model.linear_ocr_feat_to_mmt_in)
    model.text_bert.embeddings.word_embeddings = words
    model.linear_ocr_bbox_to_mmt_in = model.linear_obj_bbox_to_mmt_in
    model.ocr_bbox_layer_norm = model.obj_bbox_layer_norm
    binding = Binding(config)
    parameters = list({id(p): p for p in [*model.parameters(), *binding.parameters()]}.values())
    optimiser = torch.optim.AdamW(parameters, recipe.lr, weight_decay=recipe.weight_decay, foreach=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda i: min((i + 1) / recipe.warm_up, 0.5 * (1 + math.cos(math.pi * i / recipe.steps))),
    )
    pointed: list[Tensor] = [torch.empty(0)]  # the OCR slots' MMT outputs, as the pointer network gets them
    model.ocr_ptr_net.key.register_forward_pre_hook(lambda module, inputs: pointed.__setitem__(0, inputs[0]))
    model.train()
    step, bar = 0, tqdm(total=recipe.steps, desc="train", mininterval=5)
    while step < recipe.steps:
        for batch in batches:
            steps = int(batch["loss_mask"].sum(1).max())
            targets, mask = batch["targets"][:, :steps], batch["loss_mask"][:, :steps]
            scores = model(batch, batch["previous"][:, :steps])
            loss = decoding_loss(scores, targets, mask) + _cross_entropy(scores, targets, mask)
            if step < recipe.auxiliary * recipe.steps:
                loss = loss + binding(pointed[0], batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            step += 1
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
            if step == recipe.steps:
                break
    return _untie(model, words)


def _cross_entropy(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Softmax cross-entropy against the targets [B, T, C] scaled to sum 1, averaged over the valid steps."""
    shares = targets / targets.sum(-1, keepdim=True).clamp(min=1e-6)
    return -((shares * scores.log_softmax(-1)).sum(-1) * mask).sum() / mask.sum().clamp(min=1)


def _start_low(model: TAP, score: float = -3.0) -> None:
    """Start all scores at about ``score``: most classes are wrong, and binary cross-entropy need not learn that first."""
    nn.init.constant_(model.classifier["module"].bias, score)
    width = model.config.hidden_size
    nn.init.constant_(model.ocr_ptr_net.query.bias, abs(score) ** 0.5 / width**0.25)
    nn.init.constant_(model.ocr_ptr_net.key.bias, -(abs(score) ** 0.5) / width**0.25)


def _untie(model: TAP, words: SharedWords) -> TAP:
    """A plain TAP of the same weights."""
    model.text_bert.embeddings.word_embeddings = words.free
    with torch.no_grad():
        words.free.weight.copy_(words.table())
    plain = TAP(model.config).eval()
    plain.load_state_dict(model.state_dict())
    return plain
