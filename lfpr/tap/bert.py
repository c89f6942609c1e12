"""The layers of BERT that TAP is made of, and the keys and values of its decoding: post-norm, GELU (erf), PyTorch's
fused attention. Names are those of transformers' `BertLayer`, whose code is not needed, and whose import takes
seconds; the outputs are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-12  # of all norms


@dataclass(frozen=True)
class BertSizes:
    """Sizes of a stack of layers, by the names that transformers' `BertConfig` has for them."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    dropout: float


class Cache(Protocol):
    """Keys and values of earlier positions."""

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Add key and value [B, heads, new, head_dim] of `layer`; those of all positions so far."""
        ...


class GrowingCache:
    """Keys and values of all positions so far, per layer, joined anew at each step, so that gradients flow."""

    def __init__(self, layers: dict[int, tuple[Tensor, Tensor]] | None = None) -> None:
        self.layers = dict(layers or {})

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Add key and value [B, heads, new, head_dim] of `layer`; those of all positions so far."""
        if layer in self.layers:
            key, value = (torch.cat(pair, 2) for pair in zip(self.layers[layer], (key, value), strict=True))
        self.layers[layer] = key, value
        return key, value

    def copy(self) -> Self:
        """One that goes its own way from here."""
        return type(self)(self.layers)


class KeyValueCache:
    """Keys and values of all positions so far, per layer, in buffers that have room for `steps` decoding positions.

    Writes in place, so no gradient flows through it: that is `GrowingCache`'s part, which copies all keys and values at
    each step (6 % of the time of greedy decoding).
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.layers: dict[int, tuple[Tensor, Tensor, int]] = {}

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append key and value [B, heads, new, head_dim] of `layer`; return those of all positions so far."""
        if layer not in self.layers:
            shape = (*key.shape[:2], key.shape[2] + self.steps, key.shape[3])
            self.layers[layer] = key.new_empty(shape), value.new_empty(shape), 0
        keys, values, length = self.layers[layer]
        end = length + key.shape[2]
        keys[:, :, length:end], values[:, :, length:end] = key, value
        self.layers[layer] = keys, values, end
        return keys[:, :, :end], values[:, :, :end]


class SelfAttention(nn.Module):
    """Query, key and value of all heads, and attention of them; `mask` is boolean, True where a query (row) may attend
    to a key (column)."""

    def __init__(self, sizes: BertSizes, number: int) -> None:
        super().__init__()
        self.config, self.number = sizes, number
        self.num_attention_heads = sizes.num_attention_heads
        self.attention_head_size = sizes.hidden_size // sizes.num_attention_heads
        self.all_head_size = sizes.hidden_size
        self.query, self.key, self.value = (nn.Linear(sizes.hidden_size, sizes.hidden_size) for _ in range(3))
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, mask: Tensor, cache: Cache | None = None) -> Tensor:
        """Contexts [B, S, heads · head_dim] of x [B, S, D]."""
        query, key, value = (
            linear(x).unflatten(2, (-1, self.attention_head_size)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        if cache is not None:
            key, value = cache.update(key, value, self.number)
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout.p if self.training else 0.0,
            scale=self.attention_head_size**-0.5,
        )
        return context.transpose(1, 2).flatten(2)


class Output(nn.Module):
    """A projection back into the residual stream, and the norm after the sum."""

    def __init__(self, width: int, sizes: BertSizes) -> None:
        super().__init__()
        self.dense = nn.Linear(width, sizes.hidden_size)
        self.LayerNorm = nn.LayerNorm(sizes.hidden_size, eps=EPS)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, inner: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(inner)) + x)


class Attention(nn.Module):
    """`self` and `output`, as BERT's checkpoints name them."""

    def __init__(self, sizes: BertSizes, number: int) -> None:
        super().__init__()
        self.self, self.output = SelfAttention(sizes, number), Output(sizes.hidden_size, sizes)

    def forward(self, x: Tensor, mask: Tensor, cache: Cache | None = None) -> Tensor:
        return self.output(self.self(x, mask, cache), x)


class Layer(nn.Module):
    """One BERT layer; `number` is its place in a cache."""

    def __init__(self, sizes: BertSizes, number: int) -> None:
        super().__init__()
        self.attention = Attention(sizes, number)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(sizes.hidden_size, sizes.intermediate_size)})
        self.output = Output(sizes.intermediate_size, sizes)

    def forward(self, x: Tensor, attention_mask: Tensor, cache: Cache | None = None) -> Tensor:
        """x [B, S, D] after the layer; `attention_mask` [B, 1, S or 1, keys]."""
        x = self.attention(x, attention_mask, cache)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class Encoder(nn.Module):
    """A stack of BERT layers; `mask` is boolean, True where a query (row) may attend to a key (column)."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.config = sizes
        self.layer = nn.ModuleList(Layer(sizes, i) for i in range(sizes.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor, cache: Cache | None = None) -> Tensor:
        """x [B, positions, D] after all layers; with `cache`, x are further positions after those in it."""
        for layer in self.layer:
            x = layer(x, attention_mask=mask, cache=cache)
        return x


class Embeddings(nn.Module):
    """Words, segments and positions."""

    def __init__(self, words: int, positions: int, sizes: BertSizes) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(words, sizes.hidden_size, padding_idx=0)
        self.position_embeddings = nn.Embedding(positions, sizes.hidden_size)
        self.token_type_embeddings = nn.Embedding(2, sizes.hidden_size)
        self.LayerNorm = nn.LayerNorm(sizes.hidden_size, eps=EPS)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, text: Tensor, segments: Tensor, positions: Tensor) -> Tensor:
        """[B, L, D] of three tensors [B, L] of numbers."""
        x = self.word_embeddings(text) + self.token_type_embeddings(segments) + self.position_embeddings(positions)
        return self.dropout(self.LayerNorm(x))
