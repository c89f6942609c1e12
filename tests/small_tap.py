"""A tiny TAP with random weights, questions for it, and one retraining of it, also from processes launched together:

torchrun --standalone --nproc_per_node 2 tests/small_tap.py RESULT.pt CHECKPOINT
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

import lfpr
from lfpr.experiments import Cell, open_experiment
from lfpr.experiments.runs import Stage
from lfpr.tap.model import TAP, TAPConfig
from lfpr.tap.objectives import labelled

CONFIG = TAPConfig(
    text_layers=1, mmt_layers=2, text_vocab_size=50, num_answers=12, hidden_size=24, num_heads=4, intermediate_size=32,
    question_tokens=5, text_positions=16, num_ocr=6, feature_size=10, fasttext_size=7, phoc_size=9, order_size=3,
    decoding_steps=4, dropout=0.0,
)  # fmt: skip
SETTINGS = lfpr.ReSt(last_layers=1, lr=1e-3, mask_lr=1e-2, cosine=True)


def tap(dropout: float = 0.0) -> TAP:
    torch.manual_seed(0)
    model = TAP(TAPConfig(**CONFIG.to_dict() | {"dropout": dropout})).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


class Questions(Dataset):
    """Questions by rule; answers are of 1 to 4 steps. `read` lists the batches asked for."""

    def __init__(self, count: int) -> None:
        self.count, self.read = count, []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        self.read.append(indices)
        rows = [self.question(i) for i in indices]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    @staticmethod
    def question(i: int) -> dict[str, torch.Tensor]:
        g, c = torch.Generator().manual_seed(i), CONFIG
        targets = (torch.rand(c.decoding_steps, c.num_answers + c.num_ocr, generator=g) < 0.1).float()
        return {
            "text": torch.randint(1, c.text_vocab_size, (11,), generator=g),
            "obj_features": torch.randn(3, c.feature_size, generator=g),
            "obj_boxes": torch.rand(3, 4, generator=g),
            "num_obj": torch.tensor(3),
            "ocr_fasttext": torch.randn(c.num_ocr, c.fasttext_size, generator=g),
            "ocr_phoc": torch.rand(c.num_ocr, c.phoc_size, generator=g),
            "ocr_features": torch.randn(c.num_ocr, c.feature_size, generator=g),
            "ocr_boxes": torch.rand(c.num_ocr, 4, generator=g),
            "num_ocr": torch.tensor(c.num_ocr),
            "previous": torch.randint(0, c.num_answers + c.num_ocr, (c.decoding_steps,), generator=g),
            "targets": targets,
            "loss_mask": (torch.arange(c.decoding_steps) <= i % c.decoding_steps).float(),
        }


def loader(count: int = 16, batch_size: int = 5) -> DataLoader:
    """Three batches of five questions and one of a single question, in an order drawn by torch's global generator."""
    sampler = BatchSampler(torch.utils.data.RandomSampler(range(count)), batch_size, drop_last=False)
    return DataLoader(Questions(count), batch_size=None, sampler=sampler)


def retrain(model: TAP, loss=None, batches=None, settings: lfpr.ReSt = SETTINGS, **options):
    """ReSt of `model`; (model, masks, log)."""
    torch.manual_seed(1)
    heads = [model.classifier, model.ocr_ptr_net]
    loss, batches = loss or labelled(model, "parts"), loader() if batches is None else batches
    return model, *lfpr.retrain(model, lfpr.prunable(model), heads, batches, loss, settings, False, **options)


def numbers(model: TAP, masks, log: list[dict]) -> dict:
    """What two retrainings are compared by."""
    batch = Questions(4)[[0, 1, 2, 3]]
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(batch, batch["previous"])
    return {
        "logits": logits,
        "state": model.state_dict(),
        "masks": masks.state_dict(),
        "log": [{name: value for name, value in row.items() if name != "seconds"} for row in log],
    }


def stage(runs: str | Path, **settings) -> Stage:
    """ReSt of the shipped baseline on a few questions, as a stage."""
    amounts = {"train_images": 24, "val_images": 16, "num_samples": 40, "score_batch": 20, "retrain_batch": 9}
    experiment = open_experiment(runs=runs, **amounts, **settings)
    return experiment.retrain(Cell(constraint=0.4, percent=50, last_layers=1))


if __name__ == "__main__":
    result, checkpoint, runs = sys.argv[1:]
    retrained = retrain(tap(), checkpoint=checkpoint, checkpoint_every=2)
    if torch.distributed.get_rank() == 0:
        torch.save(numbers(*retrained), Path(result))
    built = stage(runs)
    assert stage(runs) == built  # finished: no process waits for another
    torch.distributed.destroy_process_group()
