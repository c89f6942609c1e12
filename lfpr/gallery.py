"""A small model of every family, with random weights and inputs: what `docs/families.md`, notebook 07 and the test of
all families are made from.

    for name, example in GALLERY.items():
        model, inputs = example.model(), example.inputs()

What is prunable in each is read from the models (`lfpr.paper.families`), so the page cannot say what is not so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lfpr.checks import check_count

TEST = "tests/core/test_families.py"
_SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
_TEXT = _SIZES | {"vocab_size": 99, "max_position_embeddings": 40}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_IMAGE = _SIZES | {"image_size": 32, "patch_size": 8}
_SEQ2SEQ = {
    "vocab_size": 99,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "decoder_start_token_id": 2,
} | _SPECIAL
_T5 = {"vocab_size": 99, "d_model": 48, "d_kv": 12, "d_ff": 40, "num_layers": 2, "num_heads": 4}
_T5 |= {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
_WIDTHS = {"hidden_size", "d_model", "dim", "n_embd", "embedding_size", "word_embed_proj_dim", "encoder_hidden_size"}
_WIDTHS |= {"intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "hidden_dim", "n_inner"}
_WIDTHS |= {"head_dim", "d_kv", "coordinate_size", "shape_size", "projection_size"}


def enlarged(model: nn.Module) -> nn.Module:
    """The model, with larger random weights than the usual initialisation's, and biases, so that all parts matter."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
        elif parameter.ndim == 1:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@dataclass(frozen=True)
class Example:
    """A small model of transformers' class `name`, of a configuration `sizes`; `part` is the path of what is pruned.

    takes: what its inputs are: "text", "image", "text and image", "boxes" (text with a box a token), "sequence to
    sequence", "sound to text", "waves" or "causal". A causal model, or one that gives text, may `generate`. `onnx` says
    why it cannot be exported, empty if it can; `like` names the one whose layers run the same code.
    """

    name: str
    sizes: Mapping[str, Any] = field(default_factory=dict)
    takes: str = "text"
    part: str = ""
    generates: bool = False
    onnx: str = ""
    like: str = ""

    def model(self, seed: int = 0) -> nn.Module:
        """The model in evaluation mode, `enlarged`."""
        import transformers

        seed, model_class = check_count("seed", seed), getattr(transformers, self.name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return enlarged(model_class(model_class.config_class(**self.sizes))).eval()

    def wider(self, factor: int) -> Example:
        """The same with features, heads and neurons of `factor` times the width."""
        factor = check_count("factor", factor, 1)
        return replace(self, sizes={k: v * factor if k in _WIDTHS else v for k, v in self.sizes.items()})

    def prunable(self, model: nn.Module) -> nn.Module:
        """What of the model is pruned: what to pass as `part`."""
        return model.get_submodule(self.part)

    def inputs(self, samples: int = 3, seed: int = 1) -> dict[str, Tensor]:
        """Arguments of `forward`; text has padding."""
        samples, generator = (
            check_count("samples", samples, 1),
            torch.Generator().manual_seed(check_count("seed", seed)),
        )

        def text(length: int = 9) -> dict[str, Tensor]:
            lengths = torch.randint(4, length + 1, (samples, 1), generator=generator)
            mask = (torch.arange(length) < lengths).long()
            return {
                "input_ids": torch.randint(3, 98, (samples, length), generator=generator) * mask,
                "attention_mask": mask,
            }

        image = {"pixel_values": torch.randn(samples, 3, 32, 32, generator=generator)}
        found = {
            "text": text,
            "causal": text,
            "image": lambda: image,
            "text and image": lambda: text() | image,
            "boxes": lambda: (
                text() | {"bbox": torch.randint(0, 30, (samples, 9, 4), generator=generator).sort(-1).values}
            ),
            "waves": lambda: {"input_values": torch.randn(samples, 2000, generator=generator)},
            "sequence to sequence": text,
            "sound to text": lambda: {"input_features": torch.randn(samples, 8, 60, generator=generator)},
        }[self.takes]()
        if self.takes in ("sequence to sequence", "sound to text"):
            found["decoder_input_ids"] = torch.randint(3, 98, (samples, 5), generator=generator)
        return found

    def run(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Its logits, or hidden states, where there is a token."""
        with torch.random.fork_rng(devices=[]):  # ViLT and ViTMAE draw the order of patches
            torch.manual_seed(0)
            output = model(**inputs)
        found = output.logits if "logits" in output else output.last_hidden_state
        mask = inputs.get("attention_mask")
        if mask is not None and found.shape[:2] == mask.shape:
            found = found * mask[..., None]
        return found


_WAVES = {"conv_dim": (16, 16), "conv_stride": (10, 8), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
_WAVES |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}
_WHISPER = _SEQ2SEQ | {"num_mel_bins": 8, "max_source_positions": 30, "max_target_positions": 20}
GALLERY: dict[str, Example] = {
    "BERT": Example("BertModel", _TEXT),
    "RoBERTa": Example("RobertaModel", _TEXT | {"pad_token_id": 0}, like="BERT"),
    "XLM-RoBERTa": Example("XLMRobertaModel", _TEXT | {"pad_token_id": 0}, like="BERT"),
    "CamemBERT": Example("CamembertModel", _TEXT | {"pad_token_id": 0}, like="BERT"),
    "ELECTRA": Example("ElectraModel", _TEXT | {"embedding_size": 48}, like="BERT"),
    "DistilBERT": Example(
        "DistilBertModel", {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "vocab_size": 99}
    ),
    "MPNet": Example("MPNetModel", _TEXT | {"pad_token_id": 0}),
    "DeBERTa-v2": Example("DebertaV2Model", _TEXT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "ALBERT": Example("AlbertModel", _TEXT | {"embedding_size": 16}),
    "ModernBERT": Example(
        "ModernBertModel", _TEXT | _SPECIAL | {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 8}
    ),
    "LayoutLM": Example("LayoutLMModel", _TEXT, "boxes"),
    "LayoutLMv3": Example(
        "LayoutLMv3Model",
        _TEXT | {"coordinate_size": 8, "shape_size": 8, "pad_token_id": 0, "visual_embed": False},
        "boxes",
    ),
    "ViLT": Example(
        "ViltModel",
        _TEXT | {"image_size": 32, "patch_size": 8},
        "text and image",
        onnx="it resizes its positions to the size of each image, which cannot be traced",
    ),
    "BLIP, vision": Example("BlipVisionModel", _IMAGE, "image"),
    "BLIP, text": Example(
        "BlipTextModel", _TEXT | _SPECIAL | {"sep_token_id": 2, "encoder_hidden_size": 48, "is_decoder": False}
    ),
    "ViT": Example("ViTModel", _IMAGE, "image"),
    "DeiT": Example("DeiTModel", _IMAGE, "image", like="ViT"),
    "BEiT": Example("BeitModel", _IMAGE | {"use_relative_position_bias": True}, "image"),
    "DINOv2": Example(
        "Dinov2Model",
        {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2, "image_size": 32}
        | {"patch_size": 8},
        "image",
    ),
    "DINOv3": Example("DINOv3ViTModel", _IMAGE, "image"),
    "ViTMAE": Example(
        "ViTMAEModel", _IMAGE | {"mask_ratio": 0.0}, "image", onnx="it draws the order of its patches at random"
    ),
    "SigLIP, vision": Example("SiglipVisionModel", _IMAGE, "image"),
    "SigLIP, text": Example("SiglipTextModel", _TEXT | _SPECIAL | {"projection_size": 48}),
    "CLIP, vision": Example("CLIPVisionModel", _IMAGE, "image"),
    "CLIP, text": Example("CLIPTextModel", _TEXT | _SPECIAL),
    "Wav2Vec2": Example("Wav2Vec2Model", _SIZES | _WAVES, "waves"),
    "Whisper, encoder": Example("WhisperModel", _WHISPER, "sound to text", "encoder"),
    "Whisper": Example("WhisperForConditionalGeneration", _WHISPER, "sound to text", generates=True),
    "T5": Example("T5ForConditionalGeneration", _T5, "sequence to sequence", generates=True),
    "mT5": Example("MT5ForConditionalGeneration", _T5, "sequence to sequence", generates=True, like="Flan-T5"),
    "Flan-T5": Example(
        "T5ForConditionalGeneration",
        _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        "sequence to sequence",
        generates=True,
    ),
    "UMT5": Example("UMT5ForConditionalGeneration", _T5, "sequence to sequence", generates=True),
    "BART": Example(
        "BartForConditionalGeneration",
        _SEQ2SEQ | {"max_position_embeddings": 40},
        "sequence to sequence",
        generates=True,
    ),
    "GPT-2": Example(
        "GPT2LMHeadModel",
        {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_inner": 40, "vocab_size": 99, "n_positions": 40} | _SPECIAL,
        "causal",
        generates=True,
    ),
    "OPT": Example(
        "OPTForCausalLM",
        {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 40, "vocab_size": 99}
        | {"word_embed_proj_dim": 48, "max_position_embeddings": 40}
        | _SPECIAL,
        "causal",
        generates=True,
    ),
    "Llama": Example("LlamaForCausalLM", _TEXT | _SPECIAL | {"num_key_value_heads": 2}, "causal", generates=True),
    "Qwen3": Example(
        "Qwen3ForCausalLM", _TEXT | _SPECIAL | {"num_key_value_heads": 2, "head_dim": 12}, "causal", generates=True
    ),
    "GLM": Example(
        "GlmForCausalLM", _TEXT | _SPECIAL | {"num_key_value_heads": 2, "head_dim": 12}, "causal", generates=True
    ),
    "Phi": Example("PhiForCausalLM", _TEXT | _SPECIAL | {"num_key_value_heads": 2}, "causal", generates=True),
    "GPT-J": Example(
        "GPTJForCausalLM",
        {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_inner": 40, "vocab_size": 99, "n_positions": 40, "rotary_dim": 4}
        | _SPECIAL,
        "causal",
        generates=True,
    ),
}
"""Name of a family -> a small model of it."""

REFUSED: dict[str, Example] = {
    "DeBERTa": Example("DebertaModel", _TEXT),
    "I-BERT": Example("IBertModel", _TEXT),
    "LiLT": Example("LiltModel", _TEXT, "boxes"),
    "Nyströmformer": Example("NystromformerModel", _TEXT),
    "TrOCR, decoder": Example(
        "TrOCRForCausalLM",
        {"d_model": 48, "decoder_layers": 2, "decoder_attention_heads": 4, "vocab_size": 99},
        "causal",
    ),
    "DiffLlama": Example("DiffLlamaModel", _TEXT | _SPECIAL | {"num_key_value_heads": 2}, "causal"),
    "Phi-3": Example("Phi3Model", _TEXT | _SPECIAL | {"num_key_value_heads": 2}, "causal"),
    "BLOOM": Example("BloomModel", {"hidden_size": 48, "n_layer": 2, "n_head": 4, "vocab_size": 99}, "causal"),
    "GPT-NeoX": Example("GPTNeoXModel", _TEXT, "causal"),
    "Mixtral": Example("MixtralModel", _TEXT | {"num_key_value_heads": 2, "num_local_experts": 2}, "causal"),
    "OLMo 2": Example("Olmo2Model", _TEXT | _SPECIAL, "causal"),
    "Swin": Example(
        "SwinModel",
        {"image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2]},
        "image",
    ),
}
"""Families that cannot be pruned exactly, or not yet; what `prunable` says of them is the reason."""

_ANY = {  # widths that tell heads, groups and neurons apart, under the names that configurations have for them
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "embedding_size"], 96),
    **dict.fromkeys(["num_hidden_layers", "num_layers", "n_layer", "encoder_layers", "decoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "num_heads", "attention_heads"], 8),
    **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 8),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim"], 40),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"], 40),
    "num_key_value_heads": 4,
    "head_dim": 12,
    "rotary_dim": 4,
    "sliding_window": 8,
    "vocab_size": 99,
    "image_size": 32,
    "patch_size": 8,
    "decoder_start_token_id": 2,
    "attention_types": [[["global", "local"], 1]],
    "languages": ["en_XX"],
    "default_language": "en_XX",
    **_SPECIAL,
    **_WAVES,
}
_ALIKE = {
    "text": "ErnieModel Data2VecTextModel XmodModel RobertaPreLayerNormModel XLMRobertaXLModel MegatronBertModel "
    "RemBertModel EsmModel RoFormerModel YosoModel TapasModel MarkupLMModel VisualBertModel SplinterModel "
    "RoCBertModel EuroBertModel NomicBertModel BertGenerationEncoder ChineseCLIPTextModel "
    "AltCLIPTextModel ClapTextModel CLIPSegTextModel Owlv2TextModel Siglip2TextModel XCLIPTextModel "
    "FlavaTextModel",
    "image": "Data2VecVisionModel Dinov2WithRegistersModel IJepaModel ViTMSNModel DPTModel FlavaImageModel "
    "ChineseCLIPVisionModel AltCLIPVisionModel CLIPSegVisionModel MetaClip2VisionModel",
    "waves": "HubertModel UniSpeechModel Data2VecAudioModel SEWModel",
    "sequence to sequence": "MBartModel PegasusModel MarianModel M2M100Model BlenderbotModel BlenderbotSmallModel "
    "PLBartModel MvpModel",
    "causal": "MistralModel GemmaModel Gemma2Model Gemma3TextModel Qwen2Model CohereModel Cohere2Model OlmoModel "
    "SmolLM3Model GraniteModel Starcoder2Model NemotronModel ArceeModel ApertusModel HeliumModel "
    "Exaone4Model Ernie4_5Model SeedOssModel HunYuanDenseV1Model NanoChatModel BioGptModel GPTNeoModel XGLMModel "
    "ModernBertDecoderModel BertLMHeadModel",
}


def alike() -> dict[str, Example]:
    """More of transformers' models that are found, and by name the sizes of a small one: what of `_ANY` it knows."""
    import transformers

    found = {}
    for takes, names in _ALIKE.items():
        for name in names.split():
            known = getattr(transformers, name).config_class()
            found[name] = Example(name, {key: value for key, value in _ANY.items() if hasattr(known, key)}, takes)
    return found
