"""Walking through an encoder one sub-layer at a time, a student beside the teacher that it is to reproduce.

Layer-wise methods fit one sub-layer after the other: what the student's output projection sees and gives there, under
all that was fitted before it, against what the teacher gives, both taken where the sub-layer joins the residual stream.
Student and teacher (`Side`) are an encoder under masks: of one encoder two sets of masks (`lfpr.rescale`), or two
encoders of the same kind.

Running the whole model for each layer costs O(L²) layer passes; keeping all activations in memory grows with the
sample. So the model runs once, up to its first layer, to see with which arguments its layers are called (`Replay`);
from then on `Walk` calls layers directly, and their inputs wait in a temporary file (`Spool`). A batch costs one
teacher pass and at most 2⅓ student passes.
"""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lfpr.encoder import PrunableEncoder
from lfpr.families import UnsupportedArchitecture
from lfpr.masks import Masks

Add = Callable[[Tensor, Tensor, Tensor, Tensor | None], None]


@dataclass(frozen=True)
class Side:
    """A model on one side of a walk: an encoder under masks [L, H] and [L, N], None for ones. The masks are read when a
    layer runs, so a solver may change their values on the way."""

    encoder: PrunableEncoder
    masks: Masks | None = None


@dataclass
class Call:
    """One call of the encoder: the input of its first layer, the other arguments of each, weights of the tokens."""

    x: Slot
    arguments: list[tuple[tuple, dict, str | None]]  # per layer, or one for all of them
    weights: Slot | None  # [B, S]


@dataclass
class LayerRun:
    """What one run of a layer computed; `context` and `activation` are the output projections' inputs before masks."""

    context: Tensor | None = None  # [B, S, H·dh]
    attended: Tensor | None = None  # [B, S, d], output of the attention's output projection
    ffn_input: Tensor | None = None  # [B, S, d]
    activation: Tensor | None = None  # [B, S, N]
    fed: Tensor | None = None  # [B, S, d], output of the FFN's output projection
    output: Tensor | None = None  # [B, S, d]


class Walk:
    """Takes all calls through the layers, student and teacher side by side, one sub-layer at a time."""

    def __init__(self, replay: Replay, student: Side, teacher: Side) -> None:
        self.replay, self.student, self.teacher = replay, student, teacher
        self.inputs = [call.x for call in replay.calls]  # of the student's layer at hand
        self.guides = [replay.spool.put(replay.spool.get(call.x)) for call in replay.calls]  # of the teacher's
        self.targets: list[Slot | None] = [None] * len(replay.calls)  # the teacher's FFN sums, if not in `guides`

    def sub_layers(self) -> Iterator[tuple[int, str]]:
        """(layer, "heads" or "neurons") in the order in which `visit` is to be called."""
        for layer in range(self.student.encoder.num_layers):
            yield layer, "heads"
            yield layer, "neurons"

    def visit(self, layer: int, part: str, add: Add | None, first_token: bool = False) -> None:
        """Call `add(x, student, target, weights)` for each call of the encoder.

        x: inputs of the student's output projection before masks, [B, S, heads · head_dim] or [B, S, neurons]. student,
        target: the residual sums of both sides [B, S, d]. weights: of the tokens [B, S], None for ones. `first_token`
        leaves only the first token of each. Without `add` the walk only goes on.
        """
        for number, call in enumerate(self.replay.calls):
            tensors = (self._attention if part == "heads" else self._ffn)(layer, number, call, add is not None)
            if tensors is None:
                continue
            weights = None if call.weights is None else self.replay.spool.get(call.weights)
            if first_token:
                tensors = tuple(x[:, :1] for x in tensors)
                weights = None if weights is None else weights[:, :1]
            add(*tensors, weights)

    def ffn_target(self, layer: int, run: LayerRun) -> Tensor | None:
        """What the student's FFN is to give, of the teacher's run of the layer; None for the layer's output."""
        return self.replay.ffn_sum(run) if self.replay.post_norm else None

    def _attention(self, layer: int, number: int, call: Call, wanted: bool) -> tuple[Tensor, ...] | None:
        replay, spool = self.replay, self.replay.spool
        x = spool.get(self.inputs[number])
        if layer:  # the layer before is fitted by now
            x = replay.run(self.student, layer - 1, call, x).output
            spool.put(x, self.inputs[number])
        guide = spool.get(self.guides[number])
        run = replay.run(self.teacher, layer, call, guide)
        spool.put(run.output, self.guides[number])
        target = self.ffn_target(layer, run)
        if target is not None:
            self.targets[number] = spool.put(target, self.targets[number])
        if not wanted:
            return None
        own = replay.run(self.student, layer, call, x, attention_only=True)
        return own.context, replay.attention_sum(x, own), replay.attention_sum(guide, run)

    def _ffn(self, layer: int, number: int, call: Call, wanted: bool) -> tuple[Tensor, ...] | None:
        if not wanted:
            return None
        run = self.replay.run(self.student, layer, call, self.replay.spool.get(self.inputs[number]))
        target = self.replay.spool.get(self.targets[number] or self.guides[number])
        return run.activation, self.replay.ffn_sum(run), target


class Replay:
    """Records how `encoder` is called, once per batch, and runs its layers one by one.

    `forward(batch)` runs the module. `tokens(batch)` gives the weights [B, S] of the encoder's positions (booleans or
    numbers >= 0); by default they are read from the attention mask of the call: a token that no token attends to is
    padding. Use as a context manager, with the module in evaluation mode and without gradients. Raises
    `UnsupportedArchitecture` if a layer's input is not the output of the one before, and ValueError for calls that
    cannot be repeated, such as those with a cache.
    """

    def __init__(
        self,
        encoder: PrunableEncoder,
        batches: Iterable[Any],
        forward: Callable[[Any], Any],
        tokens: Callable[[Any], Tensor] | None = None,
        folder: str | Path | None = None,
    ) -> None:
        self.encoder, self.forward, self.tokens = encoder, forward, tokens
        self.spool, self.calls = Spool(folder), []
        self.post_norm = False  # whether normalisation follows the residual sum (BERT) or precedes the sub-layer
        try:
            self._record(batches)
        except BaseException:
            self.spool.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.spool.close()

    def run(self, side: Side, layer: int, call: Call, x: Tensor, attention_only: bool = False) -> LayerRun:
        """Run one layer of `side` on `x` [B, S, d]; with `attention_only` up to its residual sum, without neurons."""
        part, seen = side.encoder.parts[layer], LayerRun()
        heads, neurons = (None, None) if side.masks is None else (side.masks.heads[layer], side.masks.neurons[layer])
        scale = None if heads is None else heads.repeat_interleave(part.head_dim)
        hooks = [
            part.attention_output.register_forward_pre_hook(_masking(seen, "context", scale)),
            part.attention_output.register_forward_hook(_keeping(seen, "attended", attention_only)),
            part.ffn_in[0].register_forward_pre_hook(_masking(seen, "ffn_input", None)),
            part.ffn_out.register_forward_pre_hook(_masking(seen, "activation", neurons)),
            part.ffn_out.register_forward_hook(_keeping(seen, "fed")),
        ]
        args, kwargs, name = self.load(call.arguments[layer % len(call.arguments)])
        try:
            seen.output = _first(part.module(**{name: x}, **kwargs) if name else part.module(x, *args, **kwargs))
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def attention_sum(self, x: Tensor, run: LayerRun) -> Tensor:
        """The layer's input plus its attention's output, before normalisation if that follows."""
        return x + run.attended

    def ffn_sum(self, run: LayerRun) -> Tensor:
        """The residual stream plus the FFN's output, before normalisation if that follows."""
        return run.ffn_input + run.fed if self.post_norm else run.output

    def _record(self, batches: Iterable[Any]) -> None:
        alike = False  # whether all layers get the same arguments, so that the first one says it all
        for number, batch in enumerate(batches):
            seen: list[list[_Seen]] = [[] for _ in self.encoder.layers]
            with _watching(self.encoder, seen, only_first=alike):
                self.forward(batch)
            if not seen[0] or (not alike and len({len(calls) for calls in seen}) > 1):
                raise ValueError(f"batch {number}: forward called the layers {[len(calls) for calls in seen]} times")
            where, stored = f"batch {number}", {}
            told = None if self.tokens is None else (self.tokens(batch),)
            for calls in zip(*seen[: 1 if alike else None], strict=True):
                first = calls[0]
                if told is None:
                    weights = attention_weights(first.attention_mask, first.x, where)
                else:
                    weights = _checked(*told, first.x, where)
                kept = [first] if all(_same(first, other) for other in calls) else calls
                arguments = [(*self._store((c.args, c.kwargs), stored, where), c.name) for c in kept]
                weights = None if weights is None else self.spool.put(weights.float())
                self.calls.append(Call(self.spool.put(first.x), arguments, weights))
            if number == 0:
                self._check(seen)
                alike = len(seen[0]) == 1 and len(self.calls[0].arguments) == 1
        if not self.calls:
            raise ValueError("batches: there is none")

    def _check(self, seen: list[list[_Seen]]) -> None:
        for i, (calls, following) in enumerate(pairwise(seen)):
            if not all(_equal(a.output, b.x) for a, b in zip(calls, following, strict=True)):
                path = self.encoder.parts[i + 1].path
                raise UnsupportedArchitecture(f"{path}: its input is not the output of the layer before it")
        first = seen[0][0]
        self.post_norm = _equal(first.query_input, first.x)
        if not self.post_norm:  # the output must be a plain sum with the FFN's: move the FFN's, see the output move
            side, call = Side(self.encoder), self.calls[0]
            before = self.run(side, 0, call, first.x).output
            hook = self.encoder.parts[0].ffn_out.register_forward_hook(lambda _, args, out: out + first.x)
            try:
                moved = self.run(side, 0, call, first.x).output - before
            finally:
                hook.remove()
            if not (moved - first.x).norm() <= 0.05 * first.x.norm():
                path = self.encoder.parts[0].path
                raise UnsupportedArchitecture(f"{path}: its output is not the residual stream plus the FFN's output")

    def _store(self, tree: Any, stored: dict[int, Slot], where: str) -> Any:
        """Tensors replaced by slots, each tensor written once."""
        if isinstance(tree, Tensor):
            if id(tree) not in stored:
                stored[id(tree)] = self.spool.put(tree)
            return stored[id(tree)]
        if isinstance(tree, (tuple, list)):
            return type(tree)(self._store(item, stored, where) for item in tree)
        if isinstance(tree, dict):
            return {name: self._store(item, stored, where) for name, item in tree.items()}
        if tree is None or isinstance(tree, (bool, int, float, str, torch.dtype, torch.device)):
            return tree
        raise ValueError(
            f"{where}: a layer was called with a {type(tree).__name__}, which cannot be given to it again. "
            "If it is a cache, run the model without one"
        )

    def load(self, tree: Any) -> Any:
        """Stored arguments with their tensors read back."""
        if isinstance(tree, Slot):
            return self.spool.get(tree)
        if isinstance(tree, (tuple, list)):
            return type(tree)(self.load(item) for item in tree)
        return {name: self.load(item) for name, item in tree.items()} if isinstance(tree, dict) else tree


@dataclass
class _Seen:
    x: Tensor
    args: tuple
    kwargs: dict
    name: str | None  # under which x was passed; None if it was the first positional argument
    attention_mask: Any
    output: Tensor | None = field(default=None)
    query_input: Tensor | None = field(default=None)


class _Enough(Exception):
    """Raised inside a forward pass that need not go on."""


@contextmanager
def _watching(encoder: PrunableEncoder, seen: list[list[_Seen]], only_first: bool) -> Iterator[None]:
    """While active, calls of the layers are noted in `seen`; if `only_first`, the pass ends at the first layer."""

    def entered(i: int) -> Callable:
        def hook(layer: nn.Module, args: tuple, kwargs: dict) -> None:
            bound = inspect.signature(layer.forward).bind(*args, **kwargs).arguments
            mask = bound.get("attention_mask")
            if args:
                seen[i].append(_Seen(args[0], args[1:], kwargs, None, mask))
            else:
                name = next(iter(bound))
                rest = {key: value for key, value in kwargs.items() if key != name}
                seen[i].append(_Seen(kwargs[name], (), rest, name, mask))
            if only_first:
                raise _Enough

        return hook

    def left(i: int) -> Callable:
        def hook(layer: nn.Module, args: tuple, output: Any) -> None:
            seen[i][-1].output = _first(output)

        return hook

    def queried(linear: nn.Module, args: tuple) -> None:
        seen[0][-1].query_input = args[0]

    hooks = [encoder.parts[0].query.register_forward_pre_hook(queried)]
    for i, layer in enumerate(encoder.layers):
        hooks += [layer.register_forward_pre_hook(entered(i), with_kwargs=True), layer.register_forward_hook(left(i))]
    try:
        yield
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()


def _masking(seen: LayerRun, name: str, mask: Tensor | None) -> Callable:
    def hook(linear: nn.Module, args: tuple) -> tuple | None:
        setattr(seen, name, args[0])
        return None if mask is None else (args[0] * mask.to(args[0].device, args[0].dtype), *args[1:])

    return hook


def _keeping(seen: LayerRun, name: str, stop: bool = False) -> Callable:
    def hook(linear: nn.Module, args: tuple, output: Tensor) -> None:
        setattr(seen, name, output)
        if stop:
            raise _Enough

    return hook


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, (tuple, list)) else output


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or torch.equal(a, b)  # one with NaNs equals itself


def _same(a: _Seen, b: _Seen) -> bool:
    """Whether two layers got the same objects beside their inputs."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, (tuple, list)) and type(a) is type(b):
            return len(a) == len(b) and all(map(same, a, b))
        if isinstance(a, dict) and isinstance(b, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        return a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and type(a) is type(b) and a == b)

    return a.name == b.name and same(a.args, b.args) and same(a.kwargs, b.kwargs)


def attention_weights(mask: Any, x: Tensor, where: str) -> Tensor | None:
    """Which tokens of `x` [B, S, d] any token attends to, [B, S], by the `attention_mask` given to a layer: boolean or
    additive [B, heads, queries, keys], or [B, keys]. None if there is no mask; S may be the last of the keys."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4) or mask.shape[-1] < x.shape[1]:
        found = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"{where}: cannot tell padding from an attention mask {found}: give `tokens`")
    if mask.is_floating_point() and mask.ndim == 4:
        mask = mask > torch.finfo(mask.dtype).min / 2
    attended = mask.bool().flatten(1, -2).any(1) if mask.ndim == 4 else mask.bool()
    return attended[:, -x.shape[1] :].expand(x.shape[:2])


def _checked(weights: Any, x: Tensor, where: str) -> Tensor:
    shape = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
    if shape != tuple(x.shape[:2]):
        raise ValueError(
            f"{where}: tokens: expected weights {tuple(x.shape[:2])} for the encoder's input, found {shape}"
        )
    weights = weights.float()
    if not (weights.isfinite() & (weights >= 0)).all():
        raise ValueError(f"{where}: tokens: weights must be finite and not negative")
    return weights


@dataclass(frozen=True)
class Slot:
    """Where a tensor is in a `Spool`."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class Spool:
    """Tensors in an unnamed temporary file in `folder` (by default, the system's place for such files).

    Those of an accelerator stay there while half of the memory that was free at first still is: another process may
    take its share meanwhile.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as this object is
        self.end = 0
        self.kept: dict[Slot, Tensor] = {}
        self.spared = free_memory() // 2

    def put(self, x: Tensor, slot: Slot | None = None) -> Slot:
        """Write a tensor, in the place of another one of its size if `slot` is given."""
        if slot is None:
            slot = Slot(self.end, x.shape, x.dtype, x.device)
            self.end += x.nbytes
            if x.device.type != "cpu" and x.nbytes and free_memory() - x.nbytes >= self.spared:
                self.kept[slot] = x
        elif (slot.shape, slot.dtype) != (x.shape, x.dtype):
            raise ValueError(f"a tensor {tuple(x.shape)} of {x.dtype} in the place of {tuple(slot.shape)}")
        if slot in self.kept:
            self.kept[slot] = x.detach().clone()  # whoever has put it may change it later
            return slot
        self.file.seek(slot.offset)
        self.file.write(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return slot

    def get(self, slot: Slot) -> Tensor:
        """The tensor written last to `slot`, on the device it came from."""
        if slot in self.kept:
            return self.kept[slot]
        count = math.prod(slot.shape)
        if not count:
            return torch.empty(slot.shape, dtype=slot.dtype, device=slot.device)
        data = bytearray(count * slot.dtype.itemsize)
        self.file.seek(slot.offset)
        self.file.readinto(data)
        return torch.frombuffer(data, dtype=slot.dtype).view(slot.shape).to(slot.device)

    def close(self) -> None:
        """Remove the file."""
        self.kept.clear()
        self.file.close()


def free_memory() -> int:
    """Bytes that are free on the current accelerator, what torch holds and does not use among them; 0 without one, or
    where it does not tell."""
    if not torch.accelerator.is_available():
        return 0
    try:
        unused = torch.accelerator.memory_reserved() - torch.accelerator.memory_allocated()
        return torch.accelerator.get_memory_info()[0] + unused
    except (RuntimeError, NotImplementedError):
        return 0
