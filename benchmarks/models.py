"""Models of the real sizes with random weights, small ones of the same kinds, and random inputs that use all positions.

TAP (hidden 768; 4 multimodal layers with 3 of TextBERT, 5,000 answers; 170 text, 100 object and 100 OCR positions), its
multimodal transformer alone, ViT-B/16, and layers of BERT's kind of any width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lfpr.tap.model import TAP, Batch, TAPConfig

TINY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


def tap(small: bool = False, layers: int = 4, text_layers: int = 3) -> TAP:
    """In evaluation mode; its answers differ between questions and steps."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "intermediate_size": 384, "feature_size": 128} if small else {}
    model = TAP(TAPConfig(text_layers, layers, **sizes)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=2 / model.config.hidden_size**0.5)
    return model


def questions(config: TAPConfig, batch: int) -> Batch:
    """A batch of questions for a TAP."""
    g, slots = torch.Generator().manual_seed(1), (batch, 100)
    return {
        "text": torch.randint(1, config.text_vocab_size, (batch, 170), generator=g),
        "obj_features": torch.rand(*slots, config.feature_size, generator=g),
        "obj_boxes": torch.rand(*slots, 4, generator=g),
        "num_obj": torch.full((batch,), 100),
        "ocr_fasttext": torch.randn(*slots, 300, generator=g),
        "ocr_phoc": (torch.rand(*slots, 604, generator=g) < 0.1).float(),
        "ocr_features": torch.rand(*slots, config.feature_size, generator=g),
        "ocr_boxes": torch.rand(*slots, 4, generator=g),
        "num_ocr": torch.full((batch,), 100),
    }


def bert(layers: int, hidden: int = 768, small: bool = False) -> nn.Module:
    """Layers of BERT's kind, heads of 64 features and four times as many neurons as features: TAP's multimodal
    transformer, BERT-base without its words. In evaluation mode."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "num_attention_heads": hidden // 64, "intermediate_size": 4 * hidden}
    sizes = TINY if small else sizes | {"num_hidden_layers": layers}
    return BertModel(BertConfig(vocab_size=100, **sizes), add_pooling_layer=False).eval()


def vit(small: bool = False, layers: int = 12) -> nn.Module:
    """ViT-B/16, in evaluation mode."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes = TINY | {"image_size": 32, "patch_size": 8} if small else {"num_hidden_layers": layers}
    return ViTModel(ViTConfig(**sizes), add_pooling_layer=False).eval()


def inputs(model: nn.Module, samples: int, batch: int, tokens: int = 182) -> Iterator[Tensor]:
    """Batches for `forward`, made when they are asked for: images [B, 3, H, W], or embeddings [B, tokens, d]."""
    config = model.config
    side = getattr(config, "image_size", None)
    shape = (3, side, side) if side else (tokens, config.hidden_size)
    for start in range(0, samples, batch):
        size = min(batch, samples - start)
        yield torch.randn(size, *shape, generator=torch.Generator().manual_seed(start))


def forward(model: nn.Module, x: Tensor) -> Tensor:
    """Hidden states [B, S, d] of the last layer."""
    return model(**{"pixel_values" if x.ndim == 4 else "inputs_embeds": x}).last_hidden_state
