"""One number per attention head and one per feed-forward (FFN) neuron of every layer: masks, importance, gradients.

A mask multiplies the context of its head before the attention's output projection, or its neuron's activation before
the FFN's output projection. Zero removes the part; other values scale it and can be folded into the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lfpr.files import write_whole

if TYPE_CHECKING:
    from lfpr.encoder import PrunableEncoder


@dataclass(frozen=True, eq=False)
class PerLayer:
    """A tensor over heads and one over neurons; the base of masks, importance and gradients.

    Raises ValueError for tensors of another number of dimensions, or that differ in all but the last one.
    """

    heads: Tensor
    neurons: Tensor

    _ndim = 2

    def __post_init__(self) -> None:
        name = type(self).__name__
        for part, value in (("heads", self.heads), ("neurons", self.neurons)):
            if not isinstance(value, Tensor) or value.ndim != self._ndim:
                found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"{name}.{part}: expected a tensor of {self._ndim} dimensions, found {found}")
        if self.heads.shape[:-1] != self.neurons.shape[:-1]:
            raise ValueError(
                f"{name}: heads {tuple(self.heads.shape)} and neurons {tuple(self.neurons.shape)} "
                "must agree in all but the last dimension"
            )

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Both tensors moved or cast as by `torch.Tensor.to`."""
        return type(self)(self.heads.to(*args, **kwargs), self.neurons.to(*args, **kwargs))

    def equal(self, other: PerLayer) -> bool:
        """Whether both have the same shapes and hold the same values."""
        return torch.equal(self.heads, other.heads) and torch.equal(self.neurons, other.neurons)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {"heads": self.heads.detach().cpu().contiguous(), "neurons": self.neurons.detach().cpu().contiguous()}
        write_whole(path, lambda partial: save_file(tensors, partial, metadata={"kind": type(self).__name__}))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError for any other kind of file."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"{cls.__name__}.load: no file {path}")
        try:
            with safe_open(path, "pt") as file:
                kind, names = (file.metadata() or {}).get("kind"), set(file.keys())
                if kind != cls.__name__ or names != {"heads", "neurons"}:
                    raise ValueError(f"{path} holds {kind or sorted(names)}, expected {cls.__name__}")
                return cls(file.get_tensor("heads"), file.get_tensor("neurons"))
        except SafetensorError as error:
            raise ValueError(f"{path} is not a complete safetensors file: {error}") from error


class Masks(PerLayer):
    """Masks of an encoder: `heads` [L, H] and `neurons` [L, N], real-valued; zero means removed."""

    @classmethod
    def ones(cls, encoder: PrunableEncoder) -> Masks:
        """The mask that changes nothing, float32, on the encoder's device. ValueError if the layers' widths differ."""
        heads, neurons = encoder.require_uniform()
        return cls(
            torch.ones(encoder.num_layers, heads, device=encoder.device),
            torch.ones(encoder.num_layers, neurons, device=encoder.device),
        )

    @property
    def heads_kept(self) -> list[int]:
        """Heads with a non-zero mask, per layer: L numbers."""
        return self.heads.count_nonzero(1).tolist()

    @property
    def neurons_kept(self) -> list[int]:
        """Neurons with a non-zero mask, per layer: L numbers."""
        return self.neurons.count_nonzero(1).tolist()

    def binary(self) -> Masks:
        """Ones where a part is kept, zeros elsewhere; float32."""
        return Masks((self.heads != 0).float(), (self.neurons != 0).float())


class Importance(PerLayer):
    """Importance of an encoder's heads [L, H] and neurons [L, N]; larger means keep."""
