"""Walking through an encoder one sub-layer at a time, a student beside the teacher that it is to reproduce.

Layer-wise methods fit one sub-layer after the other: what the student's output projection sees and gives there, under
all that was fitted before it, against what the teacher gives, both taken where the sub-layer joins the residual stream.
Student and teacher (`Side`) are an encoder under masks: of one encoder two sets of masks (`lfpr.rescale`), or two
encoders of the same kind.

Running the whole model for each layer costs O(L²) layer passes; keeping all activations in memory grows with the
sample. So the model runs once, up to its first layer, to see with which arguments its layers are called (`Replay`);
from then on `Walk` calls layers directly, and their inputs wait in a temporary file (`Spool`). A batch costs one
teacher pass and at most 2⅓ student passes.

The layers of a decoder are called with what its encoder gives: when the student's encoder is fitted, the student runs
once more to see with which arguments its decoder's are.
"""

from __future__ import annotations

import copy
import inspect
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lfpr.encoder import PrunableEncoder
from lfpr.families import UnsupportedArchitecture
from lfpr.files import saving
from lfpr.masks import Masks
from lfpr.modes import observable, uncached

Add = Callable[[Tensor, Tensor, Tensor, Tensor | None], None]
MASKED = -1000.0  # added to attention logits, it takes a token away: -1e4 and less are in use, biases are far above
HELD_BACK = 5  # one batch, or sample, in so many is not fitted, and tells what fitting is worth


@dataclass(frozen=True)
class Side:
    """A model on one side of a walk: an encoder under masks [A, H] and [F, N], None for ones. The masks are read when a
    layer runs, so a solver may change their values on the way."""

    encoder: PrunableEncoder
    masks: Masks | None = None


Arguments = list[tuple[tuple, dict, str | None]]  # of each layer, or one for all of them


@dataclass
class Call:
    """One call of a stack: the input of its first layer, the other arguments of each, weights of the tokens; and what
    is other if a student calls it."""

    x: Slot
    arguments: Arguments
    weights: Slot | None  # [B, S]
    own: tuple[Slot, Arguments] | None = None  # the student's input and arguments


@dataclass
class Held:
    """A batch that is held back: `batch()` gives it anew, as it came; weights of the tokens [B, S] of each call."""

    batch: Callable[[], Any]
    weights: list[Slot | None]


@dataclass
class LayerRun:
    """What one run of a layer computed; `context` and `activation` are the output projections' inputs before masks."""

    context: Tensor | None = None  # [B, S, H·dh]
    attended: Tensor | None = None  # [B, S, d], output of the attention's output projection
    cross_input: Tensor | None = None  # [B, S, d], what cross-attention asks with
    cross_context: Tensor | None = None  # [B, S, H·dh]
    cross_attended: Tensor | None = None  # [B, S, d]
    ffn_input: Tensor | None = None  # [B, S, d]
    activation: Tensor | None = None  # [B, S, N]
    fed: Tensor | None = None  # [B, S, d], output of the FFN's output projection
    output: Tensor | None = None  # [B, S, d]


class Walk:
    """Takes all calls through the layers, student and teacher side by side, one sub-layer at a time.

    `forward(batch)` runs the student's model; it is needed where one stack of layers sees another one's output.
    """

    def __init__(
        self, replay: Replay, student: Side, teacher: Side, forward: Callable[[Any], Any] | None = None
    ) -> None:
        self.replay, self.student, self.teacher, self.forward = replay, student, teacher, forward
        self.places = {
            (kind, row): (layer, site)
            for layer, rows in enumerate(student.encoder.layer_rows)
            for site, kind, row in (
                ("heads", "heads", rows[0]),
                ("cross", "heads", rows[1]),
                ("neurons",) * 2 + rows[2:],
            )
        }

    def sub_layers(self) -> Iterator[tuple[int, str]]:
        """(row, "heads" or "neurons") in the order in which `visit` is to be called: an attention or FFN by its row in
        masks; the number of its layer, where layers have one of each."""
        for stack, span in enumerate(self.replay.spans):
            self._start(stack)
            for heads, cross, neurons in self.student.encoder.layer_rows[span]:
                yield heads, "heads"
                if cross is not None:
                    yield cross, "heads"
                yield neurons, "neurons"

    def visit(self, row: int, part: str, add: Add | None, first_token: bool = False) -> None:
        """Call `add(x, student, target, weights)` for each call of the encoder.

        x: inputs of the student's output projection before masks, [B, S, heads · head_dim] or [B, S, neurons]. student,
        target: the residual sums of both sides [B, S, d]. weights: of the tokens [B, S], None for ones. `first_token`
        leaves only the first token of each. Without `add` the walk only goes on.
        """
        layer, site = self.places[part, row]
        look = {"heads": self._attention, "cross": self._cross, "neurons": self._ffn}[site]
        for number, call in enumerate(self.calls):
            tensors = look(layer, number, call, add is not None)
            if tensors is None:
                continue
            weights = None if call.weights is None else self.replay.spool.get(call.weights)
            if first_token:
                tensors = tuple(x[:, :1] for x in tensors)
                weights = None if weights is None else weights[:, :1]
            add(*tensors, weights)

    def ffn_target(self, layer: int, run: LayerRun) -> Tensor | None:
        """What the student's FFN is to give, of the teacher's run of the layer; None for the layer's output."""
        return self.replay.ffn_sum(layer, run) if self.replay.post_norm[layer] else None

    def _start(self, stack: int) -> None:
        replay, spool = self.replay, self.replay.spool
        if stack:
            if self.forward is None:
                raise ValueError("forward: what runs the student is needed for its decoder")
            replay.follow(stack, self.student.encoder, self.forward)
        self.calls, self.first = replay.stacks[stack], replay.spans[stack].start
        self.inputs = [call.own[0] if call.own else call.x for call in self.calls]  # of the student's layer at hand
        self.guides = [spool.put(spool.get(call.x)) for call in self.calls]  # of the teacher's
        self.targets: list[Slot | None] = [None] * len(self.calls)  # the teacher's FFN sums, if not in `guides`
        self.crossed: list[Slot | None] = [None] * len(self.calls)  # and those of its cross-attention

    def _attention(self, layer: int, number: int, call: Call, wanted: bool) -> tuple[Tensor, ...] | None:
        replay, spool = self.replay, self.replay.spool
        x = spool.get(self.inputs[number])
        if layer > self.first:  # the layer before is fitted by now
            x = replay.run(self.student, layer - 1, call, x, own=True).output
            spool.put(x, self.inputs[number])
        guide = spool.get(self.guides[number])
        run = replay.run(self.teacher, layer, call, guide)
        spool.put(run.output, self.guides[number])
        target = self.ffn_target(layer, run)
        if target is not None:
            self.targets[number] = spool.put(target, self.targets[number])
        if run.cross_attended is not None:
            self.crossed[number] = spool.put(replay.cross_sum(layer, guide, run), self.crossed[number])
        if not wanted:
            return None
        own = replay.run(self.student, layer, call, x, until="attended", own=True)
        return own.context, replay.attention_sum(x, own), replay.attention_sum(guide, run)

    def _cross(self, layer: int, number: int, call: Call, wanted: bool) -> tuple[Tensor, ...] | None:
        if not wanted or self.crossed[number] is None:  # a decoder that no encoder was given to
            return None
        x = self.replay.spool.get(self.inputs[number])
        own = self.replay.run(self.student, layer, call, x, until="cross_attended", own=True)
        return own.cross_context, self.replay.cross_sum(layer, x, own), self.replay.spool.get(self.crossed[number])

    def _ffn(self, layer: int, number: int, call: Call, wanted: bool) -> tuple[Tensor, ...] | None:
        if not wanted:
            return None
        run = self.replay.run(self.student, layer, call, self.replay.spool.get(self.inputs[number]), own=True)
        target = self.replay.spool.get(self.targets[number] or self.guides[number])
        return run.activation, self.replay.ffn_sum(layer, run), target


class Replay:
    """Records how `encoder` is called, once per batch, and runs its layers one by one.

    `forward(batch)` runs the module. `tokens(batch)` gives the weights [B, S] of the encoder's positions (booleans or
    numbers >= 0; of an encoder–decoder, a pair of them); by default they are read from the attention mask of the call:
    a token that no token attends to is padding. With `hold_back`, one batch in `HELD_BACK` waits in `held` and is no
    call; of a single batch it is the same one. Use as a context manager, with the module in evaluation mode and without
    gradients; gradient checkpointing, chunked FFNs and compiled code are off while layers run. Raises
    `UnsupportedArchitecture` if a layer's input is not the output of the one before, or layers run several times in a
    pass, and ValueError for calls that cannot be repeated, such as those with a cache.
    """

    def __init__(
        self,
        encoder: PrunableEncoder,
        batches: Iterable[Any],
        forward: Callable[[Any], Any],
        tokens: Callable[[Any], Tensor] | None = None,
        folder: str | Path | None = None,
        hold_back: bool = False,
    ) -> None:
        encoder.require_weights()
        if encoder.passes > 1:
            raise UnsupportedArchitecture(
                f"{encoder.path}: runs {encoder.passes} times in a pass, so no layer comes last"
            )
        self.encoder, self.forward, self.tokens, self.hold_back = encoder, forward, tokens, hold_back
        self.spool, self.held = Spool(folder), []
        ends = [0, *accumulate(len(stack.layers) for stack in encoder.stacks)]
        self.spans = [slice(*pair) for pair in pairwise(ends)]  # the layers of each stack
        self.stacks: list[list[Call]] = [[] for _ in self.spans]
        self.batches: list[Callable[[], Any]] = []  # those of the calls, if a student is to run them again
        # whether normalisation follows the residual sum of a layer (BERT) or precedes the sub-layer
        self.post_norm = [False] * encoder.num_layers
        try:
            self._record(batches)
        except BaseException:
            self.spool.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.spool.close()

    @property
    def calls(self) -> list[Call]:
        """The calls of the first stack."""
        return self.stacks[0]

    @property
    def samples(self) -> int:
        """How many samples the calls have in all."""
        return sum(call.x.shape[0] for call in self.calls)

    def run(
        self, side: Side, layer: int, call: Call, x: Tensor, until: str | None = None, own: bool = False
    ) -> LayerRun:
        """Run one layer of `side` on `x` [B, S, d]; with `until` no further than to the output of that name; `own`
        says that it is the student's call."""
        parts, seen = side.encoder.parts[layer], LayerRun()
        hooks = []
        for part, row, names in (
            (parts.heads, 0, ("context", "attended")),
            (parts.cross, 1, ("cross_context", "cross_attended")),
            (parts.neurons, 2, ("activation", "fed")),
        ):
            if part is not None:
                mask = (
                    None if side.masks is None else getattr(side.masks, part.kind)[side.encoder.layer_rows[layer][row]]
                )
                scale = None if mask is None else mask.repeat_interleave(part.size)
                hooks.append(part.output.register_forward_pre_hook(_masking(seen, names[0], scale)))
                hooks.append(part.output.register_forward_hook(_keeping(seen, names[1], until == names[1])))
        hooks.append(parts.ffn_in[0].register_forward_pre_hook(_masking(seen, "ffn_input", None)))
        if parts.cross is not None:
            asks = parts.cross.inputs[0].linear
            hooks.append(asks.register_forward_pre_hook(_masking(seen, "cross_input", None)))
        arguments = call.own[1] if own and call.own else call.arguments
        first = next(span.start for span in self.spans if span.start <= layer < span.stop)
        args, kwargs, name = self.load(arguments[(layer - first) % len(arguments)])
        try:
            with observable(parts.module):
                seen.output = _first(parts.module(**{name: x}, **kwargs) if name else parts.module(x, *args, **kwargs))
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        for name in ("ffn_input", "activation", "fed"):  # an FFN may see all tokens in one row (OPT)
            value = getattr(seen, name)
            setattr(seen, name, value if value is None else value.view(*x.shape[:2], value.shape[-1]))
        return seen

    def attention_sum(self, x: Tensor, run: LayerRun) -> Tensor:
        """The layer's input plus its attention's output, before normalisation if that follows."""
        return x + run.attended

    def cross_sum(self, layer: int, x: Tensor, run: LayerRun) -> Tensor:
        """The residual stream plus the output of cross-attention, before normalisation if that follows."""
        return (run.cross_input if self.post_norm[layer] else x + run.attended) + run.cross_attended

    def ffn_sum(self, layer: int, run: LayerRun) -> Tensor:
        """The residual stream plus the FFN's output, before normalisation if that follows."""
        return run.ffn_input + run.fed if self.post_norm[layer] else run.output

    def follow(self, stack: int, encoder: PrunableEncoder, forward: Callable[[Any], Any]) -> None:
        """Run a student on all batches again, to see with what the layers of one stack of its `encoder` are called."""
        calls = iter(self.stacks[stack])
        for number, batch in enumerate(self.batches):
            seen: list[list[_Seen]] = [[] for _ in encoder.layers]
            with _watching(encoder, seen, [self.spans[stack].start], only_first=False):
                forward(batch())
            for of_layers in zip(*seen[self.spans[stack]], strict=True):
                call = next(calls, None)
                if call is None:
                    raise ValueError(f"batch {number}: the student's decoder was called more often than the teacher's")
                call.own = self.spool.put(of_layers[0].x), self._arguments(of_layers, {}, f"batch {number}")
        if next(calls, None) is not None:
            raise ValueError("forward: the student's decoder was called less often than the teacher's")

    def _record(self, batches: Iterable[Any]) -> None:
        alike = False  # whether all layers get the same arguments, so that the first one says it all
        firsts, several = [span.start for span in self.spans], len(self.spans) > 1
        for number, batch in enumerate(batches):
            where, held = f"batch {number}", self.hold_back and number % HELD_BACK == 1
            kept_batch = self._keep(batch) if held or several or (self.hold_back and number == 0) else None
            seen: list[list[_Seen]] = [[] for _ in self.encoder.layers]
            with _watching(self.encoder, seen, firsts, only_first=alike):
                self.forward(batch)
            for span in self.spans:
                if not seen[span.start] or (not alike and len({len(calls) for calls in seen[span]}) > 1):
                    raise ValueError(f"{where}: forward called the layers {[len(calls) for calls in seen[span]]} times")
            told, stored, spots = self._told(batch, where), {}, []
            for stack, span in enumerate(self.spans):
                for calls in zip(*seen[span][: 1 if alike else None], strict=True):
                    first = calls[0]
                    weights = (
                        attention_weights(first.attention_mask, first.x, where)
                        if told is None
                        else _checked(told[stack], first.x, where)
                    )
                    spots.append(None if weights is None else self.spool.put(weights.float()))
                    if not held:
                        arguments = self._arguments(calls, stored, where)
                        self.stacks[stack].append(Call(self.spool.put(first.x), arguments, spots[-1]))
            if self.hold_back and (held or number == 0):
                self.held = [*(self.held if number > 1 else []), Held(kept_batch, spots)]
            if several and not held:
                self.batches.append(kept_batch)
            if number == 0:
                self._check(seen)
                alike = not several and len(seen[0]) == 1 and len(self.calls[0].arguments) == 1
        if not self.calls:
            raise ValueError("batches: there is none")

    def _told(self, batch: Any, where: str) -> tuple[Any, ...] | None:
        """Weights of the tokens by stack, as the user gives them."""
        if self.tokens is None:
            return None
        told = self.tokens(batch)
        if len(self.spans) == 1:
            return (told,)
        if not isinstance(told, tuple | list) or len(told) != len(self.spans):
            raise ValueError(f"{where}: tokens: expected weights of each of the {len(self.spans)} stacks of layers")
        return tuple(told)

    def _arguments(self, calls: Sequence[_Seen], stored: dict[int, Slot], where: str) -> Arguments:
        kept = calls[:1] if all(_same(calls[0], other) for other in calls) else calls
        return [(*self._store((c.args, c.kwargs), stored, where), c.name) for c in kept]

    def _check(self, seen: list[list[_Seen]]) -> None:
        parts = self.encoder.parts
        for span, calls in zip(self.spans, self.stacks, strict=True):
            for i, (before, following) in enumerate(pairwise(seen[span]), span.start + 1):
                if not all(_equal(a.output, b.x) for a, b in zip(before, following, strict=True)):
                    raise UnsupportedArchitecture(
                        f"{parts[i].path}: its input is not the output of the layer before it"
                    )
            first = seen[span.start][0]
            post_norm = _equal(first.query_input, first.x)
            self.post_norm[span] = [post_norm] * (span.stop - span.start)
            if post_norm:
                continue
            # the output must be a plain sum with the FFN's: move the FFN's, see the output move
            side, call = Side(self.encoder), calls[0]
            before = self.run(side, span.start, call, first.x).output
            hook = parts[span.start].ffn_out.register_forward_hook(lambda _, args, out, x=first.x: out + x.view_as(out))
            try:
                moved = self.run(side, span.start, call, first.x).output - before
            finally:
                hook.remove()
            if not (moved - first.x).norm() <= 0.05 * first.x.norm():
                path = parts[span.start].path
                raise UnsupportedArchitecture(f"{path}: its output is not the residual stream plus the FFN's output")

    def _keep(self, batch: Any) -> Callable[[], Any]:
        """What gives a batch anew: from the file, or a copy of what cannot be written there."""
        if _is_plain(batch):
            tree = self._store(batch, {}, "")
            return lambda: self.load(tree)
        kept = _copied(batch)
        return lambda: _copied(kept)

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


def _is_plain(tree: Any) -> bool:
    """Whether it is made of dense tensors, numbers and text, in dicts, lists and tuples and nothing like them."""
    if type(tree) in (list, tuple):
        return all(map(_is_plain, tree))
    if type(tree) is dict:
        return all(map(_is_plain, tree.values()))
    if type(tree) is Tensor:
        return tree.layout is torch.strided and not (tree.is_nested or tree.is_conj() or tree.is_neg())
    return tree is None or type(tree) in (bool, int, float, str)


def _copied(batch: Any) -> Any:
    """A batch whose tensors and containers nobody else changes, as far as it can be copied."""
    try:
        return copy.deepcopy(batch)
    except Exception:  # of whatever kind its parts raise
        return batch


class _Enough(Exception):
    """Raised inside a forward pass that need not go on."""


@contextmanager
def _watching(
    encoder: PrunableEncoder, seen: list[list[_Seen]], firsts: Sequence[int], only_first: bool
) -> Iterator[None]:
    """While active, calls of the layers are noted in `seen`, of the `firsts` with what attention asks with; if
    `only_first`, the pass ends at the first layer."""

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

    def queried(i: int) -> Callable:
        def hook(linear: nn.Module, args: tuple) -> None:
            seen[i][-1].query_input = args[0]

        return hook

    hooks = [encoder.parts[i].query.register_forward_pre_hook(queried(i)) for i in firsts]
    for i, layer in enumerate(encoder.layers):
        # before the hooks of the user's own, which run again whenever the layer does
        hooks.append(layer.register_forward_pre_hook(entered(i), with_kwargs=True, prepend=True))
        hooks.append(layer.register_forward_hook(left(i)))
    try:
        with observable(encoder.module), uncached(encoder.module):
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
        mask = mask > MASKED
    attended = mask.bool().flatten(1, -2).any(1) if mask.ndim == 4 else mask.bool()
    return attended[:, -x.shape[1] :].expand(x.shape[:2])


def attended_rows(layer: nn.Module, args: tuple, kwargs: dict, where: str) -> Tensor | slice:
    """Of the tokens [B · S] that a call gives to a layer, those that any token attends to: their indices, or all."""
    x = first_argument(layer, args, kwargs)
    mask = inspect.signature(layer.forward).bind(*args, **kwargs).arguments.get("attention_mask")
    weights = attention_weights(mask, x, where)
    return slice(None) if weights is None else weights.flatten().nonzero().flatten()


def first_argument(layer: nn.Module, args: tuple, kwargs: dict) -> Tensor:
    """What a call gives to a layer first, however it is passed: its input [B, S, d]."""
    return next(iter(inspect.signature(layer.forward).bind(*args, **kwargs).arguments.values()))


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
        self.folder = folder or tempfile.gettempdir()
        with saving(self.folder):
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
        with saving(self.folder):
            self.file.seek(slot.offset)
            self.file.write(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            self.file.flush()
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
