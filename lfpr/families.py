"""Where each architecture keeps its prunable parts: one row per class of layer.

A `Family` names, in a layer of one architecture, the query, key, value and output projections of self-attention and
the Linear layers of the feed-forward network (FFN). Adding an architecture is one row:

    FAMILIES["MyLayer"] = Family(            # the class name of one layer
        attention="attn",                    # what holds query, key, value, and the head size
        query="attn.q", key="attn.k", value="attn.v", attention_output="attn.o",
        ffn_in=("mlp.up",), ffn_out="mlp.down",
        head_dim="head_dim",                 # attribute of the attention: size of a head
        head_count=("num_heads",),           # attributes of the attention to refresh after shrinking
        full_heads="num_attention_heads",    # attributes of the attention's `config`: the unpruned sizes
        full_neurons="intermediate_size",
    )

provided that its attention splits heads with `view(..., -1, head_dim)` and the output projection sees [B, S, H·dh].

T5 is not carried by this form: layer 0 computes the position bias of *its* heads, and all other layers add it to the
attention logits of theirs, so layers cannot keep different heads without a modified forward pass. `NOT_CARRIED` says
so.
"""

from __future__ import annotations

from dataclasses import dataclass


class UnsupportedArchitecture(ValueError):
    """No prunable layers, more than one place they could be, or a layer that is not as its family's row says."""


@dataclass(frozen=True)
class Family:
    """Where a layer of one architecture keeps its parts; all but the last five are paths inside a layer."""

    attention: str
    query: str
    key: str
    value: str
    attention_output: str
    ffn_in: tuple[str, ...]  # two of them for gated FFNs
    ffn_out: str
    head_dim: str
    head_count: tuple[str, ...]
    full_heads: str = "num_attention_heads"
    full_neurons: str = "intermediate_size"
    head_width: tuple[str, ...] = ()  # attributes of the attention that hold heads · head_dim


_BERT = Family(
    attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    ffn_in=("intermediate.dense",),
    ffn_out="output.dense",
    head_dim="attention_head_size",
    head_count=("num_attention_heads",),
    head_width=("all_head_size",),
)
_VIT = Family(
    attention="attention",
    query="attention.q_proj",
    key="attention.k_proj",
    value="attention.v_proj",
    attention_output="attention.o_proj",
    ffn_in=("mlp.fc1",),
    ffn_out="mlp.fc2",
    head_dim="head_dim",
    head_count=("num_attention_heads",),
)

FAMILIES: dict[str, Family] = {
    "BertLayer": _BERT,
    "RobertaLayer": _BERT,
    "ElectraLayer": _BERT,
    "TransformerBlock": Family(  # DistilBERT
        attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_output="attention.out_lin",
        ffn_in=("ffn.lin1",),
        ffn_out="ffn.lin2",
        head_dim="attention_head_size",
        head_count=("n_heads",),
        full_heads="n_heads",
        full_neurons="hidden_dim",
    ),
    "ViTLayer": _VIT,
    "DeiTLayer": _VIT,
    "CLIPEncoderLayer": Family(  # both towers
        attention="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        attention_output="self_attn.out_proj",
        ffn_in=("mlp.fc1",),
        ffn_out="mlp.fc2",
        head_dim="head_dim",
        head_count=("num_heads",),
    ),
}
"""Class name of a layer -> its `Family`. A row of your own makes `prunable` find another architecture."""

NOT_CARRIED: dict[str, str] = {  # class name of a layer -> why it has no row
    "T5Block": "layer 0 computes a position bias per head that all layers share, so layers cannot keep different heads",
}
