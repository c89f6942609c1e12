"""BLIP's vision attention for any number of heads: transformers' own takes the size of a head from their number."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.blip.modeling_blip import BlipAttention


class PrunedBlipAttention(BlipAttention):
    """Attention of `num_heads` heads of `head_dim`, which need not fill the hidden size."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Output [B, S, d] and attention [B, heads, S, S], of [B, S, d]."""
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, S, dh] each
        attention = self.dropout((query @ key.mT * self.scale).softmax(-1))
        return self.projection((attention @ value).transpose(1, 2).flatten(2)), attention
