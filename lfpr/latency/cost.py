"""What heads and neurons cost in measured time: a table of a layer's latency by its number of heads and of neurons.

Latency is not linear in width: below some width it is flat (launch overhead, memory), so narrowing a sub-layer further
gains nothing and dropping it whole gains much. `LatencyCost.measure` times the model's own layers, physically shrunk to
some widths, splits each run into attention and feed-forward sub-layer, takes medians, makes them monotone (isotonic
least squares: noise cannot make a wider sub-layer faster) and interpolates.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lfpr.checks import (
    check_at_least,
    check_callable,
    check_count,
    check_encoder,
    check_kind,
    check_list,
    check_number,
    no_empty_batches,
)
from lfpr.device import synchronise
from lfpr.encoder import PrunableEncoder, Stack
from lfpr.files import a_path, write_whole
from lfpr.layerwise import Replay
from lfpr.masks import Masks
from lfpr.modes import evaluating
from lfpr.oddities import check_one_stack
from lfpr.shrink import resize

FORMAT = 1


class LatencyCost:
    """Latency of an encoder's layers, `attention[h]` for a layer with h heads plus `ffn[n]` for one with n neurons.

    `attention` [H + 1] and `ffn` [N + 1] are in `unit`, index 0 being what is left when all are removed; `full` is the
    latency of all `num_layers` unpruned layers. `measured` keeps the widths and medians behind the tables, if any.
    Raises ValueError for tables that are empty, negative or not finite, or where the full width costs nothing.
    """

    def __init__(
        self,
        attention: Sequence[float],
        ffn: Sequence[float],
        num_layers: int,
        unit: str = "seconds",
        measured: dict[str, Any] | None = None,
    ) -> None:
        num_layers = check_count("num_layers", num_layers, 1)
        check_kind("unit", unit, str)
        check_kind("measured", measured, dict, None)
        self.attention, self.ffn = latency_table("attention", attention), latency_table("ffn", ffn)
        self.num_layers, self.unit, self.measured = num_layers, unit, measured
        self.full = self.of([len(self.attention) - 1] * num_layers, [len(self.ffn) - 1] * num_layers)

    def of(self, heads: Sequence[int], neurons: Sequence[int]) -> float:
        """Latency, in `unit`, of an encoder whose layers keep these numbers of heads and neurons. ValueError for
        numbers that are not in the table, or not one for each layer."""
        heads, neurons = (
            check_list(name, counts, partial(check_count, most=len(table) - 1))
            for name, counts, table in (("heads", heads, self.attention), ("neurons", neurons, self.ffn))
        )
        if not len(heads) == len(neurons) == self.num_layers:
            raise ValueError(f"heads, neurons = {heads}, {neurons}: must be one each for {self.num_layers} layers")
        return math.fsum([*self.attention[list(heads)], *self.ffn[list(neurons)]])

    def kept(self, masks: Masks) -> float:
        """Latency, in `unit`, of what `masks` keep (their non-zero entries). ValueError for masks of another shape."""
        check_kind("masks", masks, Masks)
        for name, mask, table in (("heads", masks.heads, self.attention), ("neurons", masks.neurons, self.ffn)):
            if mask.shape != (self.num_layers, len(table) - 1):
                raise ValueError(
                    f"masks.{name}: shape {tuple(mask.shape)}, the table is for {(self.num_layers, len(table) - 1)}"
                )
        return self.of(masks.heads_kept, masks.neurons_kept)

    def fraction(self, masks: Masks) -> float:
        """`kept` divided by `full`."""
        return self.kept(masks) / self.full

    @classmethod
    @torch.no_grad()
    def measure(
        cls,
        encoder: PrunableEncoder,
        batch: Any,
        forward: Callable[[Any], Any],
        heads: Iterable[int] | None = None,
        neurons: Iterable[int] | None = None,
        repeats: int = 30,
        warmup: int = 5,
        clock: Callable[[], float] = time.perf_counter,
    ) -> LatencyCost:
        """Time copies of the encoder's first layer, shrunk to some widths, on the input that `forward(batch)` gives it.

        `heads` and `neurons` are the widths to measure (by default, every number of heads up to 16 of them, and nine
        numbers of neurons); 0 and the full width are always measured, others interpolated. Each of `repeats` rounds
        runs all widths once, after `warmup` rounds, so that a disturbance meets all of them; a width's latency is its
        median. The time up to the attention's output projection is the attention's, the rest the FFN's; on a GPU both
        ends are synchronised. In evaluation mode. `clock` returns seconds. Raises ValueError for widths that a layer
        cannot have, too few repeats, or an encoder whose layers differ in width.
        """
        check_encoder(encoder)
        check_callable("forward", forward)
        check_callable("clock", clock)
        repeats, warmup = check_count("repeats", repeats, 1), check_count("warmup", warmup)
        num_heads, num_neurons = encoder.require_uniform()
        check_one_stack(encoder, "LatencyCost.measure")
        heads = _widths("heads", heads, num_heads, steps=16)
        neurons = _widths("neurons", neurons, num_neurons, steps=8)
        layers = []
        for i in range(max(len(heads), len(neurons))):
            one = PrunableEncoder(
                encoder.module, [Stack("", (copy.deepcopy(encoder.layers[0]),), encoder.parts[0].family)]
            )
            resize(one, [heads[min(i, len(heads) - 1)]], [neurons[min(i, len(neurons) - 1)]])
            layers.append(one)
        samples = np.empty((repeats, len(layers), 2))
        with (
            evaluating(encoder.module, *(one.layers[0] for one in layers)),
            no_empty_batches(encoder),
            Replay(encoder, [batch], forward) as replay,
        ):
            call = replay.calls[0]
            x, arguments = replay.spool.get(call.x), replay.load(call.arguments[0])
            for number in range(warmup + repeats):
                for i, one in enumerate(layers):
                    samples[max(0, number - warmup), i] = _time(one, x, arguments, clock)
        medians = np.median(samples, 0)
        attention = [float(np.median(samples[:, i, 0])) for i in range(len(heads))]
        attention[-1] = float(np.median(samples[:, len(heads) - 1 :, 0]))
        ffn = medians[: len(neurons), 1].tolist()
        ffn[-1] = float(np.median(samples[:, len(neurons) - 1 :, 1]))
        measured = {
            "heads": heads,
            "attention": attention,
            "neurons": neurons,
            "ffn": ffn,
            "input": list(x.shape),
            "repeats": repeats,
            "device": str(x.device),
            "dtype": str(x.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }
        tables = (
            np.interp(np.arange(full + 1), widths, monotone(medians))
            for full, widths, medians in ((num_heads, heads, attention), (num_neurons, neurons, ffn))
        )
        return cls(*tables, encoder.num_layers, measured=measured)

    def save(self, path: str | Path) -> None:
        """Write the tables as JSON, whole or not at all."""
        a_path(path, "path")
        values = {
            "format": FORMAT,
            "unit": self.unit,
            "num_layers": self.num_layers,
            "attention": self.attention.tolist(),
            "ffn": self.ffn.tolist(),
            "measured": self.measured,
        }
        write_whole(path, lambda partial: partial.write_text(json.dumps(values) + "\n"))

    @classmethod
    def load(cls, path: str | Path) -> LatencyCost:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError naming the file and what is wrong with it."""
        a_path(path, "path")
        if not Path(path).is_file():
            raise FileNotFoundError(f"LatencyCost.load: no file {path}")
        try:
            values = json.loads(Path(path).read_text())
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']!r}, expected {FORMAT}")
            names = ("attention", "ffn", "num_layers", "unit", "measured")
            return cls(*(values[name] for name in names))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a latency table: {error}") from error


def take_turns(calls: Mapping[Any, Callable[[], object]], repeats: int) -> dict[Any, list[float]]:
    """Seconds of `repeats` calls of each. They take turns, and in which one is first, so that drift of the machine
    hits all alike; a first round warms up and is not counted. Raises ValueError for no calls or fewer than one repeat.
    """
    check_kind("calls", calls, Mapping)
    if not calls:
        raise ValueError("calls: there is none")
    for name, call in calls.items():
        check_callable(f"calls[{name!r}]", call)
    repeats = check_count("repeats", repeats, 1)
    seconds: dict[Any, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(-1, repeats):
        for offset in range(len(names)):
            name = names[(offset + turn) % len(names)]
            synchronise()
            start = time.perf_counter()
            calls[name]()
            synchronise()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def monotone(values: Sequence[float]) -> np.ndarray:
    """The non-decreasing sequence nearest to `values` in squares. ValueError for anything but numbers."""
    from scipy.optimize import isotonic_regression  # takes a while to import, and only measuring needs it

    return isotonic_regression(np.array(check_list("values", values, check_number), dtype=np.float64)).x


def _time(one: PrunableEncoder, x: Tensor, arguments: tuple, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of the attention and of the FFN sub-layer in one run of a layer."""

    def now() -> float:
        synchronise(x.device)
        return clock()

    between = []
    hook = one.parts[0].attention_output.register_forward_hook(lambda *_: between.append(now()))
    args, kwargs, name = arguments
    try:
        start = now()
        one.layers[0](**{name: x}, **kwargs) if name else one.layers[0](x, *args, **kwargs)
        end = now()
    finally:
        hook.remove()
    return between[-1] - start, end - between[-1]


def _widths(name: str, widths: Iterable[int] | None, full: int, steps: int) -> list[int]:
    if widths is None:
        widths = range(full + 1) if full <= steps else [round(full * i / steps) for i in range(steps + 1)]
    return sorted({0, full, *check_list(name, widths, partial(check_count, most=full), 0)})


def latency_table(name: str, values: Sequence[float]) -> np.ndarray:
    """A table as float64. ValueError unless it is finite, not negative, and its last entry above 0."""
    table = np.array(check_list(name, values, check_at_least, 2), dtype=np.float64)
    if not table[-1] > 0:
        raise ValueError(f"{name}: the last of its latencies, of the full width, must be above 0")
    return table
