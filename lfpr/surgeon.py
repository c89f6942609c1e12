"""Optimal brain surgeon over heads and neurons: what removing each costs once the rest is refitted.

For an output projection with inputs x and weights W [n, d], take the loss to second order in the change D of W, with
the curvature as a Kronecker product: G = E[x xᵀ] of the inputs and S = E[g gᵀ] of the gradients g at its outputs
(K-FAC, Martens and Grosse, ICML 2015). Removing the rows of a group, the other rows adapting, then costs

    tr(S W_gᵀ [(G⁻¹)_gg]⁻¹ W_g)

and leaves W - (G⁻¹)_:g [(G⁻¹)_gg]⁻¹ W_g (Hassibi and Stork, NeurIPS 1992; groups in one layer: ZipLM, Kurtic et al.,
NeurIPS 2023; with this curvature: LLM Surgeon, van der Ouderaa et al., ICLR 2024). Greedily, the cheapest group goes,
weights and G⁻¹ follow, and again, until nothing is left. The cost at its turn is the importance of a group, so a part
that others can stand in for is cheap while they are there, and the last of them is dear. S is the same unit for all:
the loss. So `lfpr.search` may compare heads and neurons of all layers, and `lfpr.reconstruct` does the refitting.

The weights enter only through K = W S Wᵀ [n, n]. With C = (G⁻¹)_:g, L Lᵀ = C_g and u = C L⁻ᵀ, a removal is

    G⁻¹ ← G⁻¹ - u uᵀ        K ← K - u pᵀ - p uᵀ,  p = K_:g L⁻ᵀ - ½ u L⁻¹ K_gg L⁻ᵀ

of which costs need only the diagonal blocks. So removals are collected in blocks and the matrices updated once per
block by products of matrices: as exact, and hundreds of times faster than rank-one updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from lfpr.checks import check_above, check_count, check_finite, check_kind, check_run, no_empty_batches
from lfpr.encoder import Part, PrunableEncoder
from lfpr.gradients import slopes
from lfpr.layerwise import attended_rows, first_argument
from lfpr.masks import Importance
from lfpr.modes import evaluating, frozen, observable
from lfpr.progress import bar

BLOCK = 64  # rows that are removed between two updates of the matrices


def surgeon_importance(
    encoder: PrunableEncoder,
    batches: Iterable[Any],
    objective: Callable[[Any], Tensor],
    damping: float = 1e-2,
    progress: str | None = None,
) -> Importance:
    """What removing heads [L, H] and neurons [L, N] adds to the loss, the others refitted, in the order in which a
    layer would lose them: each at least as much as the one before. Float64, on the CPU.

    `objective(batch)` runs the module and returns a scalar, a sum over samples, whose squared gradients are the
    curvature: a loss, or better a random projection of what the model gives (`lfpr.fisher.projection`), which needs no
    labels. `damping` > 0, relative to the mean diagonal of G, is added to it. Tokens that no token attends to do not
    count. Parts whose columns are all zero have importance 0. In evaluation mode; `progress` is the title of a bar.

    Raises ValueError for another damping, if there are no batches, if the layers differ in width, if the objective is
    not a finite scalar that depends on the encoder, or naming the layer if activations or gradients are NaN or
    infinite.
    """
    check_run(encoder, batches, objective=objective)
    damping = check_above("damping", damping)
    check_kind("progress", progress, str, None)
    encoder.require_uniform()
    rows = [[*map(_Factors, parts)] for parts in (encoder.attentions, encoder.ffns)]
    watched = [each for pair in zip_longest(*rows) for each in pair if each]  # as they run
    hooks = [hook for each in watched for hook in each.hooks()]
    try:
        model = encoder.module
        with (
            frozen(model),
            evaluating(model),
            observable(model),
            no_empty_batches(encoder),
            torch.enable_grad(),
        ):
            for number, batch in enumerate(bar(batches, progress)):
                _differentiate(objective(batch), watched, f"batch {number}")
    finally:
        for hook in hooks:
            hook.remove()
    return Importance(
        *(torch.stack([factors.costs(number, damping) for number, factors in enumerate(kind)]) for kind in rows)
    )


def removal_costs(gram: Tensor, kernel: Tensor, size: int = 1, damping: float = 1e-2, block: int = BLOCK) -> Tensor:
    """What removing each group of `size` rows costs, [n / size], greedily and with the other rows refitted; a group
    costs at least as much as those removed before it.

    `gram` G [n, n] of a projection's inputs, `kernel` K = W S Wᵀ [n, n]; float64. See the module. Raises ValueError for
    matrices that are not square, alike and finite, a size that does not divide n, or numbers out of range.
    """
    size, damping, block = check_count("size", size, 1), check_above("damping", damping), check_count("block", block, 1)
    for name, matrix in (("gram", gram), ("kernel", kernel)):
        check_kind(name, matrix, Tensor)
        n = matrix.shape[-1] if matrix.ndim else 0
        if matrix.shape != (n, n) or matrix.shape != gram.shape or n % size or not matrix.is_floating_point():
            raise ValueError(f"{name}: expected floats [n, n], n a multiple of {size}, found {tuple(matrix.shape)}")
        check_finite(name, matrix)
    device = gram.device
    matrix = gram + damping * gram.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny) * torch.eye(
        len(gram), dtype=gram.dtype, device=device
    )
    inverse, kernel = torch.cholesky_inverse(torch.linalg.cholesky(matrix)), kernel.clone()
    left = torch.arange(len(gram) // size, device=device)  # groups that are still there
    costs = gram.new_zeros(len(left))
    dearest = 0.0
    while len(left):
        groups, here = len(left), torch.ones(len(left), dtype=torch.bool, device=device)
        blocks = [_diagonal_blocks(part, size) for part in (inverse, kernel)]  # [groups, size, size] each
        steps = min(groups, max(1, block // size))
        u, p = inverse.new_zeros(2, len(inverse), steps * size)
        for done in range(0, steps * size, size):
            price = (blocks[1] / blocks[0]).flatten() if size == 1 else _traces(*blocks)
            gone = int(price.masked_fill(~here, math.inf).argmin())
            dearest = max(dearest, price[gone].item())
            costs[left[gone]] = dearest
            here[gone] = False
            rows, past = slice(gone * size, (gone + 1) * size), slice(done)
            column = inverse[:, rows] - u[:, past] @ u[rows, past].T
            values = kernel[:, rows] - u[:, past] @ p[rows, past].T - p[:, past] @ u[rows, past].T
            root = torch.linalg.cholesky(column[rows])
            new_u, new_p = (torch.linalg.solve_triangular(root, x.T, upper=False).T for x in (column, values))
            new_p = new_p - new_u @ torch.linalg.solve_triangular(root, new_p[rows], upper=False) / 2
            u[:, done : done + size], p[:, done : done + size] = new_u, new_p
            a, b = (x.unflatten(0, (groups, size)) for x in (new_u, new_p))
            blocks[0] -= a @ a.mT
            blocks[1] -= a @ b.mT + b @ a.mT
            blocks[0][~here], blocks[1][~here] = torch.eye(size, dtype=gram.dtype, device=device), 0.0
        rows = here.repeat_interleave(size).nonzero().flatten()
        u, p, left = u[rows], p[rows], left[here]
        change = u @ p.T
        inverse = inverse[rows][:, rows] - u @ u.T
        kernel = kernel[rows][:, rows] - change - change.T
    return costs


def _diagonal_blocks(matrix: Tensor, size: int) -> Tensor:
    groups = len(matrix) // size
    return matrix.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()


def _traces(inverse: Tensor, kernel: Tensor) -> Tensor:
    """tr(inverse⁻¹ kernel) of each group."""
    return torch.linalg.solve(inverse, kernel).diagonal(dim1=1, dim2=2).sum(1)


def _differentiate(value: Any, watched: list[_Factors], where: str) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.isfinite():
        found = value if not isinstance(value, Tensor) or value.numel() == 1 else f"a tensor {tuple(value.shape)}"
        raise ValueError(f"{where}: the objective must return a finite scalar tensor, found {found}")
    outputs = [y for each in watched for _, y in each.calls]
    gradients = iter(slopes(value, outputs, where))
    for each in watched:
        for rows, _ in each.calls:
            each.add_gradient(next(gradients), rows)
        each.calls.clear()


class _Factors:
    """G and S of one output projection, summed over tokens: products in float32, sums in float64. Watches its calls
    under gradients."""

    def __init__(self, part: Part) -> None:
        self.part, self.linear, self.size = part, part.output, part.size
        (d, n), device = self.linear.weight.shape, self.linear.weight.device
        self.gram, self.curvature = (torch.zeros(k, k, dtype=torch.float64, device=device) for k in (n, d))
        self.tokens = self.samples = 0
        self.rows, self.batch_size = slice(None), 0  # of the layer's call at hand
        self.calls: list[tuple[Tensor | slice, Tensor]] = []  # rows that count, output; until it is differentiated

    def hooks(self) -> list[Any]:
        return [
            self.part.layer.register_forward_pre_hook(self.enter, with_kwargs=True),
            self.linear.register_forward_hook(self.watch),
        ]

    def enter(self, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        self.rows = attended_rows(layer, args, kwargs, self.part.path)
        self.batch_size = len(first_argument(layer, args, kwargs))

    def watch(self, linear: nn.Module, args: tuple, output: Tensor) -> None:
        if torch.is_grad_enabled():  # not while the objective looks at something fixed
            x = args[0].detach().flatten(0, -2)[self.rows].float()
            self.gram += x.T @ x
            self.tokens += len(x)
            self.samples += self.batch_size
            self.calls.append((self.rows, output if output.requires_grad else output.requires_grad_()))

    def add_gradient(self, gradient: Tensor | None, rows: Tensor | slice) -> None:
        if gradient is not None:
            g = gradient.flatten(0, -2)[rows].float()
            self.curvature += g.T @ g

    def costs(self, number: int, damping: float) -> Tensor:
        """What removing each part costs, of what was seen; `number` says which row it is."""
        if not self.tokens:
            what = "there is none with a token that counts, or the objective does not run the encoder"
            raise ValueError(f"batches: {what}")
        if not (self.gram.isfinite().all() and self.curvature.isfinite().all()):
            raise ValueError(f"layer {number}: NaN or infinite activations or gradients")
        weight = self.linear.weight.detach().double()  # K = W S Wᵀ [n, n], S the sum over tokens, the mean over samples
        kernel = (weight.T @ (self.curvature / self.samples) @ weight).cpu()
        return removal_costs((self.gram / self.tokens).cpu(), kernel, self.size, damping)
