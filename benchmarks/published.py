"""The published ways, as their code goes, to compare with: they give what ours do, up to rounding."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lfpr.encoder import LayerParts, PrunableEncoder
from lfpr.masks import Masks
from lfpr.tap.model import TAP, Batch


def decode(model: TAP, batch: Batch, steps: int) -> Tensor:
    """Logits [B, steps, V + 100]: each step runs TextBERT and the multimodal layers over all positions (TAP, LFPR)."""
    encoded = model.encode(batch)
    kept = torch.arange(batch["text"].shape[1])
    inputs = encoded.x[:, len(kept) :]
    previous = torch.zeros(len(batch["text"]), model.config.decoding_steps, dtype=torch.long)
    previous[:, 0] = model.config.bos_index
    for step in range(steps):
        if step:
            words = model.text_bert(batch["text"], kept, batch["text"] != 0)
            encoded.x = torch.cat([words, inputs], 1)
        logits = model.decode(encoded, previous)
        previous = torch.cat([previous[:, :1], logits.argmax(-1)[:, :-1]], 1)
    return logits[:, :steps]


def search(heads: Tensor, neurons: Tensor, head_cost: int, neuron_cost: int, budget: float) -> tuple[Tensor, Tensor]:
    """0/1 masks [L, H] and [L, N] from gradients [B, L, H] and [B, L, N]: squares added, two sorts, and for each number
    of heads two sums (Kwon et al., `search/mac.py`)."""
    values, orders = zip(*(x.pow(2).sum(0).view(-1).sort(descending=True) for x in (heads, neurons)), strict=True)
    most, best = 0.0, (0, 0)
    for count in range(1, len(values[0]) + 1):
        others = max(0, int((budget - head_cost * count) / neuron_cost))
        total = values[0][:count].sum() + values[1][:others].sum()
        if total > most:
            most, best = total, (count, others)
    masks = [torch.zeros(x.shape[1:]) for x in (heads, neurons)]
    for mask, order, count in zip(masks, orders, best, strict=True):
        mask.view(-1)[order[:count]] = 1
    return masks[0], masks[1]


def rearrange(mask: Tensor, gradients: Tensor) -> Tensor:
    """Rearranged 0/1 mask [N] from gradients [B, N], the sum over set and batches taken anew in each step (Kwon et al.,
    `rearrange.py`)."""
    vectors = gradients.T.contiguous()
    order = vectors.square().sum(1).argsort().tolist()
    pruned = order[: int((mask == 0).sum())]
    for index in order[len(pruned) :]:
        pruned.append(index)
        members = vectors[pruned]
        rests = (members.sum(0) - members).square().sum(1)
        del pruned[int(rests.argmin())]
    result = torch.ones_like(mask)
    result[pruned] = 0
    return result


@torch.no_grad()
def rescale(encoder: PrunableEncoder, masks: Masks, first: list[Tensor], design_matrix: bool = False) -> Masks:
    """Rescaled masks, `first` being the first layer's inputs [B, S, d]: six passes of each layer over kept inputs, both
    sides to go on, both for the heads, both for the neurons (Kwon et al., `rescale.py`). Neurons by products of
    activations, or with `design_matrix` as the fork for CLIP, by a row for each token and feature."""
    masks = Masks(masks.heads.clone(), masks.neurons.clone())
    teacher, student = list(first), list(first)
    for i, part in enumerate(encoder.parts):
        heads, neurons = masks.heads[i], masks.neurons[i]
        if i:
            last = encoder.parts[i - 1]
            teacher = [_run(last, x, None, None)["output"] for x in teacher]
            student = [_run(last, x, masks.heads[i - 1], masks.neurons[i - 1])["output"] for x in student]
        kept = heads.nonzero().flatten()
        weight = part.attention_output.weight.T.unflatten(0, (len(heads), -1))[kept]  # [H, dh, d]
        gram, right = torch.zeros(len(kept) + 1, len(kept) + 1), torch.zeros(len(kept) + 1)
        for t, s in zip(teacher, student, strict=True):
            goal = _run(part, t, None, None)["attended"] + t - part.attention_output.bias - s
            context = _run(part, s, heads, neurons)["context"].flatten(0, 1)
            outputs = context.unflatten(1, (len(heads), -1))[:, kept].transpose(0, 1) @ weight  # [H, T, d]
            columns = torch.cat([outputs.flatten(1), torch.ones(1, outputs[0].numel())]).T
            gram += columns.T @ columns
            right += columns.T @ goal.flatten()
        if i:
            heads[kept] *= _solve(gram, right)[:-1].float()
        kept = neurons.nonzero().flatten()
        weight = part.ffn_out.weight.T[kept]  # [n, d]
        gram, right = torch.zeros(len(kept), len(kept)), torch.zeros(len(kept))
        for t, s in zip(teacher, student, strict=True):
            seen = _run(part, s, heads, neurons)
            goal = _run(part, t, None, None)["output"] - part.ffn_out.bias - seen["attended"] - s
            goal, x = goal.flatten(0, 1), seen["activation"].flatten(0, 1)[:, kept]
            if design_matrix:
                for sample in range(0, len(x), t.shape[1]):  # one at a time, to save memory
                    rows = slice(sample, sample + t.shape[1])
                    columns = (x[rows, None] * weight.T).flatten(0, 1)
                    gram += columns.T @ columns
                    right += columns.T @ goal[rows].flatten()
            else:
                gram += (weight @ weight.T) * (x.T @ x)
                right += ((goal @ weight.T) * x).sum(0)
        neurons[kept] *= _solve(gram, right).float()
    return masks


def _run(part: LayerParts, x: Tensor, heads: Tensor | None, neurons: Tensor | None) -> dict[str, Tensor]:
    """One pass of a layer: the output projections' inputs, the attention's output, the layer's output."""
    seen = {}

    def before(name: str, mask: Tensor | None) -> Callable:
        def hook(_: nn.Module, inputs: tuple) -> tuple | None:
            seen[name] = inputs[0]
            return None if mask is None else (inputs[0] * mask,)

        return hook

    hooks = [
        part.attention_output.register_forward_pre_hook(
            before("context", None if heads is None else heads.repeat_interleave(part.head_dim))
        ),
        part.attention_output.register_forward_hook(lambda _, inputs, out: seen.__setitem__("attended", out)),
        part.ffn_out.register_forward_pre_hook(before("activation", neurons)),
    ]
    seen["output"] = part.module(x)
    for hook in hooks:
        hook.remove()
    return seen


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    gram, right = gram.double(), right.double()
    values, vectors = torch.linalg.eigh(gram)
    return 1 + vectors @ (values / (values.square() + 1) * (vectors.T @ (right - gram.sum(1))))
