"""Gradients of any objective with respect to head and neuron masks of ones, and the importance they give.

A mask's gradient at one says how the objective changes when its head or neuron is turned down. The sum of squared
gradients over a sample is the diagonal of the empirical Fisher information of the masks (Kwon et al., NeurIPS 2022);
with a label-free objective, it is the importance of LFPR (Poh, Chan and Lim, Pattern Recognition Letters 183, 2024).

One gradient per *batch* is what both publish: squares of sums over the batch. One per *sample* costs the same single
backward pass, each sample having its own copy of the masks, and gives a less noisy score from the same data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from lfpr.encoder import PrunableEncoder
from lfpr.masks import Importance, Masks, PerLayer
from lfpr.modes import frozen
from lfpr.progress import bar


class MaskGradients(PerLayer):
    """Gradients with respect to masks: `heads` [B, L, H], `neurons` [B, L, N]; B counts batches or samples."""

    _ndim = 3

    def importance(self, kind: Literal["squared", "absolute"] = "squared") -> Importance:
        """Sum over B, in float64, of squared gradients (Fisher information) or of absolute ones (the absolute loss
        gradient of Michel, Levy and Neubig, NeurIPS 2019). Raises ValueError for another kind."""
        if kind not in ("squared", "absolute"):
            raise ValueError(f"kind = {kind!r}: must be 'squared' or 'absolute'")
        heads, neurons = (
            (part.square() if kind == "squared" else part.abs()).sum(0)
            for part in (self.heads.double(), self.neurons.double())
        )
        return Importance(heads, neurons)


def collect_gradients(
    encoder: PrunableEncoder,
    batches: Iterable[Any],
    objective: Callable[[Any], Tensor],
    per_sample: bool = False,
    masks: Masks | None = None,
    progress: str | None = None,
) -> MaskGradients:
    """Gradients of `objective(batch)` with respect to the masks, [B, L, H] and [B, L, N], for B batches or samples.

    `objective` runs the module and returns a scalar tensor: for `per_sample`, a *sum* over the batch of terms that each
    depend on one sample (all gradient-carrying calls of the encoder must then see the samples as the first
    dimension). The module's training mode is left as it is. Gradients are taken at `masks`, all ones by default;
    `progress` is the title of a progress bar. Float32, on the CPU.

    No gradient reaches the parameters: they are frozen meanwhile, which also saves the memory of their backward pass.
    Raises ValueError naming the batch if the objective is not a finite scalar that depends on the encoder, or if a
    gradient is NaN or infinite, and ValueError if there are no batches.
    """
    start = masks or Masks.ones(encoder)
    heads, neurons = [], []
    with frozen(encoder.module):
        for number, batch in enumerate(bar(batches, progress)):
            with torch.enable_grad():
                taps = _SampleMasks(start) if per_sample else _BatchMasks(start)
                with encoder.hooked(taps.head, taps.neuron):
                    value = objective(batch)
                head, neuron = _differentiate(value, taps, f"batch {number}")
            heads.append(head.float().cpu())
            neurons.append(neuron.float().cpu())
    if not heads:
        raise ValueError("batches: there is none, so there are no gradients")
    return MaskGradients(torch.cat(heads), torch.cat(neurons))


class _BatchMasks:
    """One leaf for all heads, one for all neurons."""

    def __init__(self, start: Masks) -> None:
        self.leaves = [part.detach().clone().requires_grad_() for part in (start.heads, start.neurons)]
        self.heads, self.neurons = (leaf.unbind() for leaf in self.leaves)

    def head(self, layer: int, x: Tensor) -> Tensor:
        return self.heads[layer]

    def neuron(self, layer: int, x: Tensor) -> Tensor:
        return self.neurons[layer]

    def stack(self, gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
        return gradients[0][None], gradients[1][None]


class _SampleMasks:
    """One leaf [B, width] per layer, made at the first gradient-carrying call, when the batch size B is known."""

    def __init__(self, start: Masks) -> None:
        self.start = start
        self.made: dict[tuple[str, int], Tensor] = {}

    def head(self, layer: int, x: Tensor) -> Tensor:
        return self._leaf("heads", layer, x)

    def neuron(self, layer: int, x: Tensor) -> Tensor:
        return self._leaf("neurons", layer, x)

    def _leaf(self, part: str, layer: int, x: Tensor) -> Tensor:
        row = getattr(self.start, part)[layer]
        if not torch.is_grad_enabled():  # for example decoding before the step that is scored
            return row
        if (part, layer) not in self.made:
            self.made[part, layer] = row.detach().expand(len(x), -1).clone().requires_grad_()
        return self.made[part, layer]

    @property
    def leaves(self) -> list[Tensor]:
        """All leaves, heads first; those of layers that no call reached too. Empty if no call reached any."""
        if not self.made:
            return []
        samples = next(iter(self.made.values()))
        return [self._leaf(part, i, samples) for part in ("heads", "neurons") for i in range(len(self.start.heads))]

    def stack(self, gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
        half = len(gradients) // 2
        return torch.stack(gradients[:half], 1), torch.stack(gradients[half:], 1)


def _differentiate(value: Any, taps: _BatchMasks | _SampleMasks, where: str) -> tuple[Tensor, Tensor]:
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{where}: the objective must return a scalar tensor, found {found}")
    if not value.isfinite():
        raise ValueError(f"{where}: the objective is {value.item()}")
    leaves = taps.leaves
    gradients = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad and leaves else [None]
    if all(g is None for g in gradients):
        raise ValueError(f"{where}: the objective does not depend on the encoder")
    # a part that the objective does not see, such as the last layer's neurons, has gradient zero
    gradients = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients, strict=True)]
    head, neuron = taps.stack(gradients)
    for part, gradient in (("heads", head), ("neurons", neuron)):
        if not gradient.isfinite().all():
            layers = (~gradient.isfinite()).any(-1).any(0).nonzero().flatten().tolist()
            raise ValueError(f"{where}: NaN or infinite gradients of {part} in layers {layers}")
    return head, neuron
