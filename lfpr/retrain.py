"""ReSt: retraining a pruned model on the unpruned model's own answers (LFPR, Poh et al. 2024).

Trainable are a mask value per kept head and neuron, the modules that score the answers, and the last k layers; all
else stays frozen. Adam, its own learning rate for masks, clipped gradients, one pass. In the end the mask values are
folded into the output projections, so that the retrained model costs nothing extra.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lfpr.encoder import PrunableEncoder
from lfpr.shrink import fold


@dataclass(frozen=True)
class ReSt:
    """Settings of ReSt; the defaults are the published ones.

    last_layers: k, how many of the last encoder layers are trained wholly. lr, mask_lr: Adam's learning rates of the
    parameters and of the masks. clip: largest gradient norm. cosine: decay both rates to zero along a half cosine.
    """

    last_layers: int = 0
    lr: float = 5e-5
    mask_lr: float = 1e-3
    clip: float = 0.25
    cosine: bool = False

    def __post_init__(self) -> None:
        if self.last_layers < 0:
            raise ValueError(f"last_layers = {self.last_layers}: must be at least 0")
        for name in ("lr", "mask_lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be above 0")


class TrainableMasks(nn.Module):
    """A trainable value per head and neuron of each layer, ones at first; a layer may have none left."""

    def __init__(self, encoder: PrunableEncoder) -> None:
        super().__init__()
        self.heads = nn.ParameterList(nn.Parameter(torch.ones(n)) for n in encoder.heads_per_layer)
        self.neurons = nn.ParameterList(nn.Parameter(torch.ones(n)) for n in encoder.neurons_per_layer)


def retrain(
    model: nn.Module,
    encoder: PrunableEncoder,
    heads: Iterable[nn.Module],
    batches: Iterable[dict[str, Tensor]],
    loss: Callable[[dict[str, Tensor]], Tensor],
    settings: ReSt,
    progress: bool = True,
) -> tuple[TrainableMasks, list[dict]]:
    """Retrain ``model`` in place by one pass over ``batches``; returns the final mask values and the log.

    model: contains the pruned ``encoder``. heads: modules that score the answers, trained wholly (TAP: classifier and
    OCR pointer network). loss(batch): scalar. The masks are folded into ``model`` in the end, and its parameters'
    ``requires_grad`` is as before. The log has loss, gradient norm and seconds of each iteration. Raises
    ``ValueError`` if ``settings.last_layers`` exceeds the encoder's layers, ``FloatingPointError`` at a loss of NaN.
    """
    batches = list(batches) if not hasattr(batches, "__len__") else batches
    if settings.last_layers > encoder.num_layers:
        raise ValueError(f"last_layers = {settings.last_layers}: the encoder has only {encoder.num_layers} layers")
    masks = TrainableMasks(encoder).to(next(model.parameters()).device)
    trained = [p for module in heads for p in module.parameters()]
    trained += [p for layer in encoder.layers[encoder.num_layers - settings.last_layers :] for p in layer.parameters()]
    before = [(p, p.requires_grad) for p in model.parameters()]
    model.requires_grad_(False)
    for p in trained:
        p.requires_grad_(True)
    values = [p for p in masks.parameters() if p.numel()]
    groups = [{"params": trained, "lr": settings.lr}, {"params": values, "lr": settings.mask_lr}]
    optimiser = torch.optim.Adam([group for group in groups if group["params"]], eps=1e-8, foreach=True)
    decay = (lambda i: 0.5 * (1 + math.cos(math.pi * i / len(batches)))) if settings.cosine else (lambda i: 1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, decay)
    log, start = [], time.perf_counter()
    try:
        with encoder.masked(masks):
            for i, batch in enumerate(tqdm(batches, desc="retrain") if progress else batches):
                value = loss(batch)
                if not value.isfinite():
                    raise FloatingPointError(f"the loss of iteration {i} is {value.item()}; lower lr or mask_lr")
                optimiser.zero_grad(set_to_none=True)
                value.backward()
                norm = nn.utils.clip_grad_norm_(trained + values, settings.clip)
                optimiser.step()
                schedule.step()
                seconds = round(time.perf_counter() - start, 2)
                log.append({"iteration": i + 1, "loss": value.item(), "grad_norm": norm.item(), "seconds": seconds})
    finally:
        for p, flag in before:
            p.requires_grad_(flag)
            p.grad = None
    fold(encoder, masks)
    return masks, log
