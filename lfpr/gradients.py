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

from lfpr.checks import check_choice, check_finite, check_flag, check_kind, check_run, no_empty_batches
from lfpr.encoder import PrunableEncoder
from lfpr.masks import Importance, Masks, PerLayer
from lfpr.modes import frozen
from lfpr.progress import bar

BLOCK = 2**17  # values in float64 that stay in a core's cache


class MaskGradients(PerLayer):
    """Gradients with respect to masks: `heads` [B, L, H], `neurons` [B, L, N]; B counts batches or samples."""

    _ndim = 3

    def check(self, name: str) -> None:
        """ValueError unless there are gradients, and all are finite; `name` says whose."""
        if not len(self.heads):
            raise ValueError(f"{name}: of no batches")
        check_finite(f"{name}.heads", self.heads)
        check_finite(f"{name}.neurons", self.neurons)

    def importance(self, kind: Literal["squared", "absolute"] = "squared") -> Importance:
        """Sum over B, in float64, of squared gradients (Fisher information) or of absolute ones (the absolute loss
        gradient of Michel, Levy and Neubig, NeurIPS 2019). Raises ValueError for another kind, for no gradients (B =
        0), of which every sum is 0, or if one is NaN or infinite."""
        kind = check_choice("kind", kind, ("squared", "absolute"))
        totals = [_total(part, kind) for part in (self.heads, self.neurons)]
        if not len(self.heads) or not all(total.isfinite().all() for total in totals):
            self.check("gradients")  # says which are not, and passes what is only large
        return Importance(*totals)


def _total(gradients: Tensor, kind: str) -> Tensor:
    """The sum over B in float64, of which copies are made block by block."""
    total = torch.zeros(gradients.shape[1:], dtype=torch.float64, device=gradients.device)
    for block in gradients.split(max(1, BLOCK // max(1, total.numel()))):
        values = block.to(torch.float64, copy=True)  # never the caller's own
        total += (values.square_() if kind == "squared" else values.abs_()).sum(0)
    return total


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
    Gradient checkpointing, chunked FFNs and compiled code are off meanwhile. Raises ValueError naming the batch if the
    objective is not a finite scalar that depends on the encoder, or if a gradient is NaN or infinite, and ValueError
    for arguments of other kinds, masks of other shapes, if there are no batches, or in `torch.inference_mode`.
    """
    check_run(encoder, batches, objective=objective)
    per_sample = check_flag("per_sample", per_sample)
    check_kind("progress", progress, str, None)
    if torch.is_inference_mode_enabled() or any(p.is_inference() for p in encoder.module.parameters()):
        raise ValueError(
            "collect_gradients: tensors of torch.inference_mode have no gradients: use torch.no_grad instead"
        )
    if masks is not None:
        check_kind("masks", masks, Masks)
        masks = Masks(*map(torch.stack, encoder.rows(masks)))
    start = Masks.ones(encoder) if masks is None else masks
    heads, neurons = [], []
    with frozen(encoder.module), no_empty_batches(encoder):
        for number, batch in enumerate(bar(batches, progress)):
            with torch.enable_grad():
                taps = _SampleMasks(start) if per_sample else _BatchMasks(start)
                with encoder.hooked(taps.head, taps.neuron):
                    head, neuron = _differentiate(objective(batch), taps, f"batch {number}")
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
            first = next(iter(self.made.values()), x)  # an FFN may see all tokens in one row (OPT)
            samples = len(first if x.ndim == 2 else x)
            self.made[part, layer] = row.detach().expand(samples, -1).clone().requires_grad_()
        return self.made[part, layer]

    @property
    def leaves(self) -> list[Tensor]:
        """All leaves, heads first; those of layers that no call reached too. Empty if no call reached any."""
        if not self.made:
            return []
        samples = next(iter(self.made.values()))
        return [
            self._leaf(part, i, samples) for part in ("heads", "neurons") for i in range(len(getattr(self.start, part)))
        ]

    def stack(self, gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
        heads = len(self.start.heads)
        return torch.stack(gradients[:heads], 1), torch.stack(gradients[heads:], 1)


def slopes(value: Tensor, tensors: list[Tensor], where: str) -> list[Tensor | None]:
    """Gradients of a scalar with respect to tensors, None of those it does not depend on. Raises ValueError if that is
    all of them."""
    found = torch.autograd.grad(value, tensors, allow_unused=True) if value.requires_grad and tensors else []
    if all(gradient is None for gradient in found):
        raise ValueError(f"{where}: the objective does not depend on the encoder")
    return list(found)


def _differentiate(value: Any, taps: _BatchMasks | _SampleMasks, where: str) -> tuple[Tensor, Tensor]:
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{where}: the objective must return a scalar tensor, found {found}")
    if not value.isfinite():
        raise ValueError(f"{where}: the objective is {value.item()}")
    leaves = taps.leaves
    gradients = slopes(value, leaves, where)
    # a part that the objective does not see, such as the last layer's neurons, has gradient zero
    gradients = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients, strict=True)]
    head, neuron = taps.stack(gradients)
    for part, gradient in (("heads", head), ("neurons", neuron)):
        if not gradient.isfinite().all():
            layers = (~gradient.isfinite()).any(-1).any(0).nonzero().flatten().tolist()
            raise ValueError(f"{where}: NaN or infinite gradients of {part} in layers {layers}")
    return head, neuron
