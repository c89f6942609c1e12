"""ReSt: retraining a pruned model on the unpruned model's own answers (LFPR, Poh et al. 2024).

Trainable are a mask value per kept head and neuron, the modules that score the answers, and the last k layers; all
else stays frozen. Adam, its own learning rate for masks, clipped gradients, one pass. In the end the mask values are
folded into the output projections, so that the retrained model costs nothing extra.

Training runs where the model is, or in several processes (`processes`), and goes on from its last checkpoint as if it
had never been interrupted (`resume`).
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lfpr.checks import (
    check_above,
    check_callable,
    check_choice,
    check_count,
    check_encoder,
    check_flag,
    check_folder,
    check_kind,
    check_list,
    check_run,
    no_empty_batches,
    plain,
    settle,
)
from lfpr.device import moved
from lfpr.encoder import PrunableEncoder
from lfpr.masks import Masks
from lfpr.modes import evaluating
from lfpr.progress import bar
from lfpr.shrink import fold as fold_masks
from lfpr.training.processes import (
    PRECISIONS,
    add_gradients,
    find_accelerator,
    gather,
    plan,
    same_start,
    shares,
    take_step,
)
from lfpr.training.resume import load_checkpoint, random_state, restore_random, save_checkpoint

Loss = Callable[[Any], Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ReSt:
    """Settings of ReSt; the defaults are those of the paper (LFPR, Poh et al. 2024).

    last_layers: k, how many of the last layers are trained wholly, of an encoder–decoder on each side. lr, mask_lr:
    Adam's learning rates of the parameters and of the masks. clip: largest gradient norm. cosine: decay both rates to
    zero along a half cosine. mixed_precision: "no", "bf16" or (on a GPU) "fp16". Raises ValueError naming a setting
    that is out of range.
    """

    last_layers: int = 0
    lr: float = 5e-5
    mask_lr: float = 1e-3
    clip: float = 0.25
    cosine: bool = False
    mixed_precision: str = "no"

    def __post_init__(self) -> None:
        settle(self, check_count, "last_layers")
        settle(self, check_above, "lr", "mask_lr")
        settle(self, lambda name, value: check_above(name, value, finite=False), "clip")  # infinite: none is clipped
        settle(self, check_flag, "cosine")
        check_choice("mixed_precision", self.mixed_precision, PRECISIONS)


class TrainableMasks(nn.Module):
    """A trainable value per head and neuron of each layer, ones at first: `heads` and `neurons` are lists of a
    parameter [h] or [n] for each layer, which may have none left."""

    def __init__(self, encoder: PrunableEncoder) -> None:
        super().__init__()
        check_encoder(encoder)
        self.heads, self.neurons = (
            nn.ParameterList(nn.Parameter(torch.ones(n, dtype=torch.float32, device="cpu")) for n in widths)
            for widths in (encoder.heads_per_layer, encoder.neurons_per_layer)
        )

    def spread(self, masks: Masks) -> Masks:
        """The values at the places of the kept heads and neurons of `masks` [L, H] and [L, N], zeros elsewhere. Raises
        ValueError for masks that keep other numbers of them."""
        check_kind("masks", masks, Masks)
        for name, parts, kept in (
            ("heads", self.heads, masks.heads_kept),
            ("neurons", self.neurons, masks.neurons_kept),
        ):
            if [len(part) for part in parts] != kept:
                raise ValueError(f"masks.{name}: {kept} are kept per layer, expected {[len(part) for part in parts]}")
        heads, neurons = masks.heads.clone(), masks.neurons.clone()
        for whole, parts in ((heads, self.heads), (neurons, self.neurons)):
            for row, part in zip(whole, parts, strict=True):
                row[row != 0] = part.detach().to(row.device)
        return Masks(heads, neurons)


def retrain(
    model: nn.Module,
    encoder: PrunableEncoder,
    heads: Iterable[nn.Module],
    batches: Iterable[Any],
    loss: Loss,
    settings: ReSt,
    progress: bool = True,
    *,
    parameters: Iterable[nn.Parameter] = (),
    fold: bool = True,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 100,
    score: Callable[[], float] | None = None,
    score_every: int = 0,
) -> tuple[TrainableMasks, list[dict]]:
    """Retrain `model` in place by one pass over `batches`; returns the final mask values and the log.

    model: contains the pruned `encoder`. heads: modules trained wholly beside masks and last layers (TAP: classifier
    and OCR pointer network). parameters: others to train, for example of LayerNorms. In the end the masks are folded
    into `model`, or with `fold=False` left to `lfpr.fold(encoder, masks)`, without which the model is not the retrained
    one; its device and its parameters' `requires_grad` are as before.

    loss(batch): a scalar, or a pair of the sum over the batch and the count it is to be divided by. Several processes
    (`lfpr.training.processes`) need the pair: sums and counts are added over all shares of a batch, so the gradient is
    exactly that of the whole batch (the random numbers of dropout aside).

    checkpoint: a folder. Every `checkpoint_every` iterations and at the end, the main process writes there all that
    training needs to go on. Called again with the same arguments and the model as it was at first, `retrain` goes on
    from there, with the result of an uninterrupted training (bit for bit on a CPU). Remove the folder when the result
    is kept.

    score(): a number to log after every `score_every` iterations and the last one, with `model` masked, in
    evaluation mode and on its first device; its time does not count.

    The log has loss, gradient norm and seconds since the start (interruptions left out) of each iteration, and scores.
    Raises `ValueError` for bad arguments, among them no batches and `settings.last_layers` above the encoder's layers,
    for a batch without samples, a loss that is no scalar or pair of scalars, or without count in several processes, or
    if the checkpoint is damaged or of another training; `FloatingPointError` at a loss of NaN; `NotSaved` where no
    checkpoint can be written. An interruption (KeyboardInterrupt) says where it goes on from.
    """
    check_kind("model", model, nn.Module)
    check_run(encoder, batches, loss=loss)
    if not {*encoder.layers} <= {*model.modules()}:
        raise ValueError(f"encoder: {encoder!r} is no part of the model, {type(model).__name__}")
    check_kind("settings", settings, ReSt)
    progress, fold = check_flag("progress", progress), check_flag("fold", fold)
    heads = check_list("heads", heads, lambda name, value: check_kind(name, value, nn.Module), 0, "modules")
    parameters = check_list(
        "parameters", parameters, lambda name, value: check_kind(name, value, nn.Parameter), 0, "parameters"
    )
    check_folder("checkpoint", checkpoint, made=True)
    check_callable("score", score, optional=True)
    checkpoint_every, score_every = (
        check_count("checkpoint_every", checkpoint_every, 1),
        check_count("score_every", score_every),
    )
    last = encoder.last(settings.last_layers)
    if (score_every > 0) != (score is not None):
        raise ValueError(f"score_every = {score_every}: must be above 0 with score, and 0 without")
    try:
        total = len(batches)
    except TypeError:  # what has no length, or a loader of such
        total = len(batches := list(batches))
    if not total:
        raise ValueError("batches: there is none")
    home = next(model.parameters()).device
    accelerator = find_accelerator(settings.mixed_precision, home)
    masks, order = TrainableMasks(encoder), plan(batches)
    modules = [model, masks, *heads]
    trained = [p for module in modules[2:] for p in module.parameters()] + [*parameters]
    trained += [p for layer in last for p in layer.parameters()]
    before = [(p, p.requires_grad) for p in {*model.parameters(), *trained}]
    try:
        for p, _ in before:
            p.requires_grad_(False)
        for module in modules:
            same_start(module.to(accelerator.device))
        run = _Training(list(dict.fromkeys(trained)), masks, list(model.buffers()), settings, total, accelerator)
        run.about["order of the data"] = zlib.crc32(repr(order).encode())
        stream = run.start(batches, order, checkpoint)
        if progress and accelerator.is_main_process:
            stream = bar(stream, "retrain", total=total, initial=len(run.log))
        with encoder.masked(masks), no_empty_batches(encoder):
            for batch, counts in stream:
                row = run.step(batch, loss, counts)
                done = row["iteration"]
                if score and accelerator.is_main_process and (done % score_every == 0 or done == total):
                    row["score"] = _scored(score, model, home, accelerator.device)
                    run.clock = time.perf_counter()
                if checkpoint and (done % checkpoint_every == 0 or done == total):
                    run.save(checkpoint)
    except KeyboardInterrupt as stopped:
        if checkpoint:
            stopped.add_note(
                f"retraining was interrupted: called again, it goes on from the checkpoint in {checkpoint}"
            )
        raise
    finally:
        for p, flag in before:
            p.requires_grad_(flag)
            p.grad = None
        for module in modules:
            module.to(home)
    if fold:
        fold_masks(encoder, masks)
    return masks, run.log


class _Training:
    """What changes while training, and how one batch changes it."""

    def __init__(
        self, trained: list[nn.Parameter], masks: TrainableMasks, buffers: list, settings: ReSt, total: int, accelerator
    ) -> None:
        values = [p for p in masks.parameters() if p.numel()]
        self.parameters, self.buffers = trained + values, buffers
        for p in self.parameters:
            p.requires_grad_(True)
        groups = [{"params": trained, "lr": settings.lr}, {"params": values, "lr": settings.mask_lr}]
        optimiser = torch.optim.Adam([group for group in groups if group["params"]], eps=1e-8, foreach=True)
        decay = (lambda i: 0.5 * (1 + math.cos(math.pi * i / total))) if settings.cosine else (lambda i: 1.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, decay)
        self.optimiser, self.accelerator = accelerator.prepare(optimiser), accelerator
        self.settings = settings
        self.log: list[dict] = []
        self.seconds, self.clock = 0.0, time.perf_counter()
        shapes = [list(p.shape) for p in self.parameters]
        sizes = {"batches": total, "processes": accelerator.num_processes}
        self.about = {"settings": asdict(settings), "shapes": shapes} | sizes  # what a checkpoint must agree in

    def start(self, batches: Iterable[Any], order: list | None, checkpoint: str | Path | None) -> Iterator:
        """The batches to train on (`shares`): all, or those after the checkpoint, which is loaded."""
        saved = load_checkpoint(checkpoint, self.about) if checkpoint else None
        if self.accelerator.process_index:
            torch.manual_seed(torch.initial_seed() + self.accelerator.process_index)  # dropout of its own
        stream = shares(batches, order, len(saved["log"]) if saved else 0, self.accelerator)
        if saved:
            self.restore(saved)  # after the loader has started, which may draw a random number
        return stream

    def step(self, batch: Any, loss: Loss, counts: bool) -> dict:
        """Train on one batch, or this process's share of it; `counts` is False for a share that is empty."""
        accelerator, several, iteration = self.accelerator, self.accelerator.num_processes > 1, len(self.log) + 1
        batch = moved(batch, accelerator.device)
        with accelerator.autocast():
            result = loss(batch)
        parts, number = (result, 2) if isinstance(result, tuple) else ((result,), 1)
        if len(parts) != number or not all(isinstance(part, Tensor) and part.numel() == 1 for part in parts):
            found = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
            raise ValueError(f"loss: expected a scalar tensor, or a pair of sum and count, found {found}")
        if isinstance(result, tuple):
            total, count = result[0] * counts, result[1] * counts
            sums = torch.stack([total.detach(), count.detach().to(total)])
            sums = accelerator.reduce(sums, "sum") if several else sums
            whole = torch.where(sums[1] > 0, sums[1], 1)
            value, shown = total / whole, sums[0] / whole
        elif several:
            raise ValueError("loss: several processes need a pair of sum and count, found one number")
        else:
            value, shown = result, result.detach()
        if not shown.isfinite():
            raise FloatingPointError(f"the loss of iteration {iteration} is {shown.item()}; lower lr or mask_lr")
        self.optimiser.zero_grad(set_to_none=True)
        if value.requires_grad:
            accelerator.backward(value)
        if all(p.grad is None for p in self.parameters):
            raise ValueError("loss: does not depend on what is trained, or runs without gradients (torch.no_grad)")
        if several:
            add_gradients(self.parameters, accelerator)
        norm = accelerator.clip_grad_norm_(self.parameters, self.settings.clip)
        if take_step(self.optimiser, accelerator):
            self.schedule.step()
        row = {"iteration": iteration, "loss": shown.item(), "grad_norm": norm.item()}
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        self.log.append(row | {"seconds": round(self.seconds, 2)})
        return self.log[-1]

    def save(self, folder: str | Path) -> None:
        draws = gather(random_state(self.accelerator.device))
        if self.accelerator.is_main_process:
            state = {
                "tensors": [t.detach() for t in self.parameters + self.buffers],
                "optimiser": self.optimiser.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": self.accelerator.scaler and self.accelerator.scaler.state_dict(),
                "random": draws,
                "log": self.log,
                "seconds": self.seconds,  # those of interrupted parts add up
            }
            save_checkpoint(folder, self.about, state)

    @torch.no_grad()
    def restore(self, state: dict) -> None:
        for tensor, value in zip(self.parameters + self.buffers, state["tensors"], strict=True):
            tensor.copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.log, self.seconds, self.clock = state["log"], state["seconds"], time.perf_counter()
        restore_random(state["random"][self.accelerator.process_index], self.accelerator.device)


def _scored(score: Callable[[], float], model: nn.Module, home: torch.device, device: torch.device) -> float:
    """`score()` on the device the caller had `model` on, without effect on the random numbers of training."""
    state = random_state(device)
    model.to(home)
    with evaluating(model), torch.no_grad():
        value = plain(score())
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"score: expected a number, found {type(value).__name__}")
    model.to(device)
    restore_random(state, device)
    return float(value)
