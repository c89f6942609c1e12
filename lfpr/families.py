"""Where each architecture keeps its prunable parts: one row per kind of layer.

A `Family` names, in a layer of one architecture, the query, key, value and output projections of self-attention and
the Linear layers of the feed-forward network (FFN). A layer is found by its structure: it is of a family of `LAYOUTS`
if it has Linear layers at these paths, and its attention nothing else that could belong to heads (`lfpr.structure`). A
row of your own, for what structure does not say, is found by the class name of the layer, and comes first:

    FAMILIES["MyLayer"] = Family(            # the class name of one layer
        attention="attn",                    # what holds query, key, value, and the head size
        query="attn.q", key="attn.k", value="attn.v", attention_output="attn.o",
        ffn_in=("mlp.up",), ffn_out="mlp.down",
        head_dim="head_dim",                 # attribute of the attention: size of a head
        head_count=("num_heads",),           # attributes of the attention to refresh after shrinking
        full_heads="num_attention_heads",    # attributes of the attention's `config`: the unpruned sizes
        full_neurons="intermediate_size",
    )

provided that its attention splits heads with `view(..., -1, head_dim)` and the output projection sees [B, S, H·dh]. A
Linear that is named several times is fused: it holds what it is named for in blocks, one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


class UnsupportedArchitecture(ValueError):
    """No prunable layers, more than one place they could be, or a layer that is not as its family's row says."""


@dataclass(frozen=True)
class Family:
    """Where a layer of one architecture keeps its parts: paths inside a layer ("-1" is the last of a list), but from
    `head_dim` on names of attributes."""

    attention: str
    query: str
    key: str
    value: str
    attention_output: str
    ffn_in: tuple[str, ...]  # two of them for gated FFNs
    ffn_out: str
    head_dim: str
    head_count: tuple[str, ...]
    full_heads: str | tuple[str, ...] = "num_attention_heads"  # the first that the configuration has
    full_neurons: str | tuple[str, ...] = "intermediate_size"
    head_width: tuple[str, ...] = ()  # attributes of the attention that hold heads · head_dim
    positions: tuple[str, ...] = ()  # more Linear layers of the attention with rows of heads, if it has them
    bias: tuple[str, ...] = ()  # arguments of the attention's forward [.., H, S, S], H the unpruned heads
    shared_bias: bool = False  # whether that is made in one layer for all, and handed on (T5)
    cross: tuple[str, str] = ("", "")  # how paths of self-attention begin, and those of cross-attention, if it is there
    norm: str = ""  # a norm in the attention that follows its residual sum
    needs: tuple[str, ...] = ()  # more submodules, without which a layer is of another kind
    passes: str = ""  # attribute of the configuration: how often the layers run, if more than once (ALBERT)
    headless: bool = True  # whether attention runs without any head,
    neuronless: bool = True  # and the FFN without any neuron
    forward: str = ""  # a class that attention becomes when heads are removed


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
    cross=("attention", "crossattention"),
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
    full_neurons=("intermediate_size", "mlp_ratio"),
)
_DINO = replace(_VIT, ffn_in=("mlp.gate_proj", "mlp.up_proj"), ffn_out="mlp.down_proj", head_count=("num_heads",))
_CLIP = Family(
    attention="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_output="self_attn.out_proj",
    ffn_in=("mlp.fc1",),
    ffn_out="mlp.fc2",
    head_dim="head_dim",
    head_count=("num_heads",),
)
_BART = replace(
    _CLIP,
    ffn_in=("fc1",),
    ffn_out="fc2",
    full_heads=("encoder_attention_heads", "num_attention_heads"),
    full_neurons=("encoder_ffn_dim", "ffn_dim", "intermediate_size"),
)
_BART_DECODER = replace(
    _BART,
    full_heads=("decoder_attention_heads", "num_attention_heads"),
    full_neurons=("decoder_ffn_dim", "ffn_dim", "intermediate_size"),
    cross=("self_attn", "encoder_attn"),
    needs=("encoder_attn",),  # an encoder's layer is the same without, and may be of other sizes
)
_WIDE, _WIDE_DECODER = (replace(row, head_width=("embed_dim",), headless=False) for row in (_BART, _BART_DECODER))
_T5 = Family(
    attention="layer.0.SelfAttention",
    query="layer.0.SelfAttention.q",
    key="layer.0.SelfAttention.k",
    value="layer.0.SelfAttention.v",
    attention_output="layer.0.SelfAttention.o",
    ffn_in=("layer.-1.DenseReluDense.wi",),
    ffn_out="layer.-1.DenseReluDense.wo",
    head_dim="key_value_proj_dim",
    head_count=(),  # its heads are counted where the bias of all of them is made
    full_heads="num_heads",
    full_neurons="d_ff",
    bias=("position_bias",),
    shared_bias=True,
    cross=("layer.0.SelfAttention", "layer.1.EncDecAttention"),
)
_T5_GATED = replace(_T5, ffn_in=("layer.-1.DenseReluDense.wi_0", "layer.-1.DenseReluDense.wi_1"))
_DISTILBERT = Family(
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
)
_GPT2 = Family(
    attention="attn",
    query="attn.c_attn",
    key="attn.c_attn",
    value="attn.c_attn",
    attention_output="attn.c_proj",
    ffn_in=("mlp.c_fc",),
    ffn_out="mlp.c_proj",
    head_dim="head_dim",
    head_count=("num_heads",),
    full_neurons=("n_inner", "4 * hidden_size"),
    head_width=("split_size",),
    headless=False,
    neuronless=False,
)
_MODERNBERT = Family(
    attention="attn",
    query="attn.Wqkv",
    key="attn.Wqkv",
    value="attn.Wqkv",
    attention_output="attn.Wo",
    ffn_in=("mlp.Wi", "mlp.Wi"),
    ffn_out="mlp.Wo",
    head_dim="head_dim",
    head_count=(),
)
_MODERNBERT_DECODER = replace(
    _MODERNBERT, query="attn.q_proj", key="attn.k_proj", value="attn.v_proj", head_count=("num_heads",)
)
_LLAMA = Family(
    attention="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_output="self_attn.o_proj",
    ffn_in=("mlp.gate_proj", "mlp.up_proj"),
    ffn_out="mlp.down_proj",
    head_dim="head_dim",
    head_count=(),
    full_heads=("num_key_value_heads", "num_attention_heads"),
)
_GPTJ = Family(
    attention="attn",
    query="attn.q_proj",
    key="attn.k_proj",
    value="attn.v_proj",
    attention_output="attn.out_proj",
    ffn_in=("mlp.fc_in",),
    ffn_out="mlp.fc_out",
    head_dim="head_dim",
    head_count=("num_attention_heads",),
    full_neurons=("n_inner", "4 * hidden_size"),
)
_BLIP = replace(
    _CLIP,
    query="self_attn.qkv",
    key="self_attn.qkv",
    value="self_attn.qkv",
    attention_output="self_attn.projection",
    forward="lfpr.blip.PrunedBlipAttention",  # whose head size does not follow from the number of heads
)

LAYOUTS: dict[str, Family] = {
    "BERT": _BERT,
    "ViT": _VIT,
    "CLIP": _CLIP,
    "BART decoder": _BART_DECODER,
    "BART": _BART,
    "DistilBERT": _DISTILBERT,
    "T5": _T5,
    "T5 gated": _T5_GATED,
    "Llama": _LLAMA,
    "Llama, plain FFN": replace(_LLAMA, ffn_in=("mlp.up_proj",)),
    "GLM": replace(_LLAMA, ffn_in=("mlp.gate_up_proj", "mlp.gate_up_proj")),
    "Starcoder2": replace(_LLAMA, ffn_in=("mlp.c_fc",), ffn_out="mlp.c_proj"),
    "Phi": replace(_LLAMA, attention_output="self_attn.dense", ffn_in=("mlp.fc1",), ffn_out="mlp.fc2"),
    "NanoChat": replace(_LLAMA, ffn_in=("mlp.fc1",), ffn_out="mlp.fc2"),
    "GPT-J": _GPTJ,
    "GPT-Neo": replace(
        _GPTJ,
        attention="attn.attention",
        query="attn.attention.q_proj",
        key="attn.attention.k_proj",
        value="attn.attention.v_proj",
        attention_output="attn.attention.out_proj",
        ffn_in=("mlp.c_fc",),
        ffn_out="mlp.c_proj",
        head_count=("num_heads",),
        full_heads="num_heads",
        full_neurons=("intermediate_size", "4 * hidden_size"),
    ),
    "MPNet": replace(
        _BERT,
        attention="attention.attn",
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attention_output="attention.attn.o",
        bias=("position_bias",),
        cross=("", ""),
    ),
    "ALBERT": replace(
        _BERT,
        attention="attention",
        query="attention.query",
        key="attention.key",
        value="attention.value",
        attention_output="attention.dense",
        ffn_in=("ffn",),
        ffn_out="ffn_output",
        norm="LayerNorm",
        passes="num_hidden_layers",
        cross=("", ""),
    ),
    "ViLT": replace(
        _BERT,
        attention="attention.attention",
        query="attention.attention.query",
        key="attention.attention.key",
        value="attention.attention.value",
        cross=("", ""),
    ),
    "ModernBERT": _MODERNBERT,
    "ModernBERT decoder": _MODERNBERT_DECODER,
    "DINOv3 gated": _DINO,
    "DINOv3": replace(_DINO, ffn_in=("mlp.up_proj",)),
    "DINOv2 gated": replace(_DINO, head_count=("num_attention_heads",), full_neurons=()),  # ⅔ of `mlp_ratio`, rounded
    "Wav2Vec2": replace(
        _VIT,
        attention_output="attention.out_proj",
        ffn_in=("feed_forward.intermediate_dense",),
        ffn_out="feed_forward.output_dense",
        head_count=("num_heads",),
    ),
}
"""Kinds of layers that are found by their structure, the first that fits."""

FAMILIES: dict[str, Family] = {
    "BertLayer": _BERT,
    "RobertaLayer": _BERT,
    "ElectraLayer": _BERT,
    "TransformerBlock": _DISTILBERT,
    "ViTLayer": _VIT,
    "DeiTLayer": _VIT,
    "CLIPEncoderLayer": _CLIP,
    # what their structure does not say
    "WhisperEncoderLayer": replace(_BART, headless=False),
    "WhisperDecoderLayer": replace(_BART_DECODER, headless=False),
    "BeitLayer": replace(_VIT, bias=("attention_mask",)),
    "BlipEncoderLayer": _BLIP,
    "DebertaV2Layer": replace(
        _BERT,
        query="attention.self.query_proj",
        key="attention.self.key_proj",
        value="attention.self.value_proj",
        positions=("pos_key_proj", "pos_query_proj"),
        headless=False,
        cross=("", ""),
    ),
    "GPT2Block": _GPT2,
    "OPTDecoderLayer": replace(_BART, headless=False),
    "MvpEncoderLayer": _WIDE,
    "MvpDecoderLayer": _WIDE_DECODER,
    "XGLMDecoderLayer": _WIDE_DECODER,
    "UMT5Block": replace(_T5_GATED, head_count=("n_heads",), headless=False),
    "LayoutLMv3Layer": replace(_BERT, bias=("rel_pos", "rel_2d_pos"), headless=False, cross=("", "")),
}
"""Class name of a layer -> its `Family`. A row of your own makes `prunable` find another architecture."""

_BESIDE = "query, key and value of each head lie beside each other in one matrix"
_FILLED = "its attention takes all heads together for as wide as the model"
NOT_CARRIED: dict[str, str] = {
    **dict.fromkeys(["BloomBlock", "FalconDecoderLayer", "GPTNeoXLayer", "PersimmonDecoderLayer"], _BESIDE),
    **dict.fromkeys(["GroupViTEncoderLayer", "LEDDecoderLayer", "PegasusXEncoderLayer", "TrOCRDecoderLayer"], _FILLED),
    "BigBirdLayer": "its attention is made anew, for all heads, whenever a short sequence follows a long one",
    "MobileViTTransformerLayer": "stages have layers of different widths, which the configuration does not name",
    "Phi3DecoderLayer": "query, key and value are blocks of different sizes in one matrix",
    "SwinStage": "stages have layers of different widths, and biases of positions within windows",
}
"""Class name of a layer -> why it has no row, where the reason cannot be seen by the structure."""
