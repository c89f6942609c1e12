"""One number per attention head and one per feed-forward (FFN) neuron of every layer: masks, importance, gradients.

A mask multiplies the context of its head before the attention's output projection, or its neuron's activation before
the FFN's output projection. Zero removes the part; other values scale it and can be folded into the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from lfpr.checks import check_encoder, check_finite, check_kind, is_hollow
from lfpr.files import a_path, read_tensors, write_whole

if TYPE_CHECKING:
    from lfpr.encoder import PrunableEncoder


@dataclass(frozen=True, eq=False)
class PerLayer:
    """A tensor over heads and one over neurons; the base of masks, importance and gradients.

    Whole numbers and booleans become floating point. Raises ValueError for tensors of another number of dimensions, of
    rows that no encoder has (as many for heads as for neurons, or up to two attentions to an FFN), that are complex or
    sparse, or have no values, on the meta device.
    """

    heads: Tensor
    neurons: Tensor

    _ndim, _dtype = 2, torch.float64  # which whole numbers become

    def __post_init__(self) -> None:
        name = type(self).__name__
        for part, value in (("heads", self.heads), ("neurons", self.neurons)):
            check_kind(f"{name}.{part}", value, Tensor)
            if value.is_complex() or value.is_nested or value.layout is not torch.strided or is_hollow(value):
                raise ValueError(f"{name}.{part}: expected a tensor of real numbers, dense and not on the meta device")
            if value.ndim != self._ndim:
                found = tuple(value.shape)
                raise ValueError(f"{name}.{part}: expected a tensor of {self._ndim} dimensions, found {found}")
            if not value.is_floating_point() or value.itemsize < 2:  # nothing is computed in eight bits
                object.__setattr__(self, part, value.to(self._dtype))
        heads, neurons = tuple(self.heads.shape), tuple(self.neurons.shape)
        if heads[:-2] != neurons[:-2] or not neurons[-2] <= heads[-2] <= 2 * neurons[-2]:
            raise ValueError(
                f"{name}: heads {heads} and neurons {neurons} must agree in all but the last dimension (but that a "
                "decoder's layer has two attentions)"
            )

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Both tensors moved or cast as by `torch.Tensor.to`, but to floating point."""
        return type(self)(self.heads.to(*args, **kwargs), self.neurons.to(*args, **kwargs))

    def equal(self, other: PerLayer) -> bool:
        """Whether both have the same shapes and hold the same values. ValueError for anything else than such a pair."""
        check_kind("other", other, PerLayer)
        return torch.equal(self.heads, other.heads) and torch.equal(self.neurons, other.neurons)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        a_path(path, "path")
        tensors = {"heads": self.heads.detach().cpu().contiguous(), "neurons": self.neurons.detach().cpu().contiguous()}
        write_whole(path, lambda partial: save_file(tensors, partial, metadata={"kind": type(self).__name__}))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError for any other kind of file."""
        a_path(path, "path")
        tensors, about = read_tensors(path, f"one written by {cls.__name__}.save")
        kind, names = about.get("kind"), set(tensors)
        if kind != cls.__name__ or names != {"heads", "neurons"}:
            raise ValueError(f"{path} holds {kind or sorted(names)!s:.80}, expected {cls.__name__}")
        try:
            return cls(**tensors)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


class Masks(PerLayer):
    """Masks of an encoder: `heads` [L, H] and `neurons` [L, N], real-valued; zero means removed. In an encoder–decoder,
    rows are those of `PrunableEncoder.attentions` and `.ffns`: [A, H] and [F, N].

    Raises ValueError for NaN and infinite values, which are neither kept nor removed, too."""

    _dtype = torch.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check()

    def _check(self) -> None:
        check_finite("Masks.heads", self.heads)
        check_finite("Masks.neurons", self.neurons)

    @classmethod
    def ones(cls, encoder: PrunableEncoder) -> Masks:
        """The mask that changes nothing, float32, on the encoder's device. ValueError if the layers' widths differ."""
        check_encoder(encoder)
        heads, neurons = encoder.require_uniform()
        return cls(
            torch.ones(len(encoder.attentions), heads, device=encoder.device, dtype=torch.float32),
            torch.ones(len(encoder.ffns), neurons, device=encoder.device, dtype=torch.float32),
        )

    @property
    def heads_kept(self) -> list[int]:
        """Heads with a non-zero mask, per layer: L numbers. ValueError if values have become NaN, as of all below."""
        self._check()
        return self.heads.count_nonzero(1).tolist()

    @property
    def neurons_kept(self) -> list[int]:
        """Neurons with a non-zero mask, per layer: L numbers."""
        self._check()
        return self.neurons.count_nonzero(1).tolist()

    def binary(self) -> Masks:
        """Ones where a part is kept, zeros elsewhere; float32."""
        self._check()
        return Masks((self.heads != 0).float(), (self.neurons != 0).float())


class Importance(PerLayer):
    """Importance of an encoder's heads [L, H] and neurons [L, N]; larger means keep."""
