"""Where training runs: its device, its precision, and the processes that share each batch (Hugging Face accelerate).

Started as usual, training is one process, on the device that the model is on. Started by `accelerate launch` (on CPUs
by `torchrun`), N processes each compute their share of every batch on a device of their own: the batch size is that of
all of them together, and N processes give the result of one. `accelerate` is imported where it has something to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

T = TypeVar("T")
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
PATIENCE = timedelta(days=1)  # how long processes wait for the main one, which also scores and saves


class OneProcess:
    """What training uses of `accelerate.Accelerator`, for one process on `device`.

    An Accelerator's precision is that of the whole Python process: after a Hugging Face `Trainer` in the same notebook,
    no other could be chosen. This one's is its own.
    """

    num_processes, process_index, is_main_process = 1, 0, True

    def __init__(self, device: torch.device, mixed_precision: str = "no") -> None:
        self.device, self.dtype = device, PRECISIONS[mixed_precision]
        self.scaler = torch.amp.GradScaler(device.type) if self.dtype == torch.float16 else None

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    def prepare(self, optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
        self.optimiser = optimiser
        return optimiser

    def backward(self, loss: Tensor) -> None:
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def clip_grad_norm_(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        if self.scaler:
            self.scaler.unscale_(self.optimiser)
        return nn.utils.clip_grad_norm_(parameters, most)


def processes() -> int:
    """How many processes were launched together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def find_accelerator(mixed_precision: str, device: torch.device):
    """An `accelerate.Accelerator` if several processes were launched, else `OneProcess`, which trains on `device`.

    Raises `ValueError` for fp16 on a CPU, or if several processes have already used another precision.
    """
    if processes() > 1:
        from accelerate import Accelerator, PartialState

        device = PartialState(timeout=PATIENCE).device
    if device.type == "cpu" and mixed_precision == "fp16":
        raise ValueError("mixed_precision = 'fp16': needs a GPU; on a CPU there are 'no' and 'bf16'")
    if processes() == 1:
        return OneProcess(device, mixed_precision)
    return Accelerator(mixed_precision=mixed_precision, cpu=device.type == "cpu")


def take_step(optimiser: torch.optim.Optimizer, accelerator) -> bool:
    """A step of what `accelerator` has prepared; False if it was left out, as fp16 does while it looks for a scale."""
    if not isinstance(accelerator, OneProcess):
        optimiser.step()
        return not accelerator.optimizer_step_was_skipped
    if accelerator.scaler is None:
        optimiser.step()
        return True
    scale = accelerator.scaler.get_scale()
    accelerator.scaler.step(optimiser)
    accelerator.scaler.update()
    return accelerator.scaler.get_scale() >= scale


def with_helpers(main: Callable[[Callable[[], None]], T], help: Callable[[], object]) -> T:
    """`main(call)` in the main process, and `help()` in the others if `main` has called them; main's result in
    all. So only one process decides whether there is work and writes, and the others join it in training."""
    if processes() == 1:
        return main(lambda: None)
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    if not PartialState(timeout=PATIENCE).is_main_process:
        if broadcast_object_list([None])[0]:
            help()
        return broadcast_object_list([None])[0]
    called = []

    def call() -> None:
        called.append(broadcast_object_list([True]))

    result = main(call)
    if not called:
        broadcast_object_list([False])
    return broadcast_object_list([result])[0]


def same_start(module: nn.Module) -> None:
    """Give a module the main process's parameters and buffers in all processes."""
    if processes() > 1:
        from accelerate.utils import broadcast

        for tensor in [*module.parameters(), *module.buffers()]:
            broadcast(tensor.data)


def gather(value: T) -> list[T]:
    """Each process's `value`, in their order."""
    if processes() == 1:
        return [value]
    from accelerate.utils import gather_object

    return gather_object([value])


def add_gradients(parameters: Sequence[nn.Parameter], accelerator) -> None:
    """Sum the gradients over all processes, in one exchange; a missing one counts as zeros."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    total = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "sum")
    for p, part in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)


# ---- batches


def plan(batches: Iterable) -> list | None:
    """The indices of each batch that a `DataLoader` will read, in order, the same in all processes; None if
    `batches` is something else."""
    if not isinstance(batches, DataLoader) or isinstance(batches.dataset, IterableDataset):
        return None
    order = list(batches.sampler if batches.batch_sampler is None else batches.batch_sampler)
    if processes() > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(order)
    return order


def shares(batches: Iterable, order: list | None, start: int, accelerator) -> Iterator[tuple[Any, bool]]:
    """This process's share of each batch from number `start` on, and whether it counts.

    `order` is the batches' `plan`: of a DataLoader, only the share is read, and nothing of the batches before
    `start`. Other batches are tensors, or mappings, lists or tuples of them, whose first dimension is the samples. A
    batch with fewer samples than processes gives some of them a sample that does not count.
    """
    rank, count = accelerator.process_index, accelerator.num_processes
    if order and isinstance(order[0], list):
        own = [rows[rank::count] or rows[:1] for rows in order[start:]]
        return zip(_reading(batches, own), (rank < len(rows) for rows in order[start:]), strict=True)
    if order is not None:
        rest = _reading(batches, order[start:])
    elif isinstance(batches, Sequence):
        rest = (batches[i] for i in range(start, len(batches)))
    else:
        rest = islice(batches, start, None)
    if count == 1:
        return ((batch, True) for batch in rest)
    return ((each(batch, lambda t: t[rank::count] if rank < len(t) else t[:1]), rank < _rows(batch)) for batch in rest)


def each(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`batch` with `change` applied to its tensors."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {name: each(value, change) for name, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(each(value, change) for value in batch)
    raise ValueError(f"a batch holds {type(batch).__name__}: expected tensors in mappings, lists or tuples")


def _rows(batch: Any) -> int:
    sizes: list[int] = []
    each(batch, lambda t: sizes.append(len(t)) or t)
    return sizes[0]


_READING = ("collate_fn", "num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context",
            "generator", "prefetch_factor", "persistent_workers")  # fmt: skip


def _reading(loader: DataLoader, order: list) -> DataLoader:
    """A loader like `loader` that reads these indices."""
    options = {name: getattr(loader, name) for name in _READING}
    if loader.batch_sampler is None:
        return DataLoader(loader.dataset, batch_size=None, sampler=order, **options)
    return DataLoader(loader.dataset, batch_sampler=order, **options)
