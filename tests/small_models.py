"""Small models of every family with random weights, and inputs for them."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from reference import rules
from torch import nn

from lfpr.encoder import prunable
from lfpr.gallery import enlarged
from lfpr.gradients import MaskGradients
from lfpr.masks import Importance, Masks
from lfpr.tap.model import TAP, TAPConfig

REFERENCE = Path(__file__).parent / "reference"
RELEASED_MASKS = Path(__file__).parents[1] / "data" / "published" / "clip-masks"
SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}
BERT = SIZES | {"vocab_size": 99, "max_position_embeddings": 40}
VIT = SIZES | {"image_size": 32, "patch_size": 8}
CLIP_TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CLIP_TEXT |= {"vocab_size": 99, "max_position_embeddings": 16, "projection_dim": 32}
CLIP_TEXT |= {"bos_token_id": 97, "eos_token_id": 98, "pad_token_id": 1}


def build(family: str) -> nn.Module:
    """A model of the family in evaluation mode, `enlarged`."""
    torch.manual_seed(0)
    match family:
        case "bert":
            model = hf.BertModel(hf.BertConfig(**BERT))
        case "roberta":
            model = hf.RobertaModel(hf.RobertaConfig(**BERT))
        case "electra":
            model = hf.ElectraModel(hf.ElectraConfig(**BERT, embedding_size=48))
        case "distilbert":
            sizes = {"dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 40, "vocab_size": 99}
            model = hf.DistilBertModel(hf.DistilBertConfig(**sizes, max_position_embeddings=40))
        case "vit":
            model = hf.ViTModel(hf.ViTConfig(**VIT))
        case "deit":
            model = hf.DeiTModel(hf.DeiTConfig(**VIT))
        case "clip_vision":
            model = hf.CLIPVisionModel(hf.CLIPVisionConfig(**VIT))
        case "clip_text":
            model = hf.CLIPTextModel(hf.CLIPTextConfig(**CLIP_TEXT))
    return enlarged(model).eval()


def tap(std: float | None = None) -> tuple[TAP, dict[str, torch.Tensor], torch.Tensor]:
    """A TAP with random weights, those of matrices of deviation `std` if it is given, a batch and answers so far."""
    sizes = {"num_answers": 9, "hidden_size": 24, "num_heads": 4, "intermediate_size": 30}
    torch.manual_seed(0)
    model = TAP(TAPConfig(text_layers=1, mmt_layers=2, text_vocab_size=1000, **sizes)).eval()
    for parameter in model.parameters() if std else ():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=std)
    batch = {name: torch.from_numpy(value) for name, value in rules.tap_inputs(3).items()}
    return model, batch, torch.randint(9, (4, 3))


FAMILIES = ["bert", "roberta", "electra", "distilbert", "vit", "deit", "clip_vision", "clip_text"]


def batch(family: str, samples: int = 3, seed: int = 1) -> dict[str, torch.Tensor]:
    """Inputs for `build(family)`; text has padding."""
    generator = torch.Generator().manual_seed(seed)
    if family in ("vit", "deit", "clip_vision"):
        return {"pixel_values": torch.randn(samples, 3, 32, 32, generator=generator)}
    ids = torch.randint(3, 98, (samples, 9), generator=generator)
    mask = (torch.arange(9) < torch.randint(4, 10, (samples, 1), generator=generator)).long()
    return {"input_ids": ids * mask + (1 - mask), "attention_mask": mask}


def forward(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs).last_hidden_state


def reference_bert() -> nn.Module:
    """The model of `bert_seed7.npz`."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
    config = hf.BertConfig(**sizes, vocab_size=200, max_position_embeddings=32, num_labels=3)
    return _load(hf.BertForSequenceClassification(config), "bert_state_dict_shapes.json")


def reference_clip() -> nn.Module:
    """The model of `clip_seed7.npz`."""
    vision = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
    vision |= {"image_size": 32, "patch_size": 8, "projection_dim": 32}
    return _load(
        hf.CLIPModel(
            hf.CLIPConfig(vision_config=vision, text_config=CLIP_TEXT | {"num_hidden_layers": 1}, projection_dim=32)
        ),
        "clip_state_dict_shapes.json",
    )


def reference(name):
    """Model that is called, its encoder, batches of 8, and the released masks by name and constraint."""
    arrays = np.load(REFERENCE / f"{name}_seed7.npz")
    if name == "bert":
        model, inputs = reference_bert(), rules.bert_inputs(7)
    else:
        model, inputs = reference_clip().vision_model, {"pixel_values": rules.clip_inputs(7)["pixel_values"]}
    batches = [{key: torch.from_numpy(value[i : i + 8]) for key, value in inputs.items()} for i in range(0, 64, 8)]

    def masks(kind, constraint):
        return Masks(*(torch.from_numpy(arrays[f"{kind}_{constraint}_{part}"]) for part in ("head", "neuron")))

    return model, prunable(model), batches, masks


def reference_importance(name: str) -> tuple[dict[str, np.ndarray], Importance]:
    """The arrays of `NAME_seed7.npz` and the importance that its gradients give."""
    arrays = np.load(REFERENCE / f"{name}_seed7.npz")
    gradients = MaskGradients(torch.from_numpy(arrays["head_grads"]), torch.from_numpy(arrays["neuron_grads"]))
    return arrays, gradients.importance()


def _load(model: nn.Module, shapes: str) -> nn.Module:
    weights = rules.weights(json.loads((REFERENCE / shapes).read_text()), 7, 0.2)
    state = model.state_dict()  # the file also lists position_ids, and BERT's layers a second time under an alias
    missing = state.keys() - weights.keys()
    assert not missing, missing
    weights["logit_scale"] = state.get("logit_scale")
    model.load_state_dict({name: torch.as_tensor(weights[name]) for name in state})
    return model.eval()


def random_masks(encoder, seed: int, keep: float = 0.6, real: bool = True):
    """Random masks with a layer without heads and one without neurons."""
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> torch.Tensor:
        kept = (torch.rand(encoder.num_layers, width, generator=generator) < keep).float()
        return kept * (0.5 + torch.rand(kept.shape, generator=generator)) if real else kept

    masks = Masks(draw(encoder.num_heads), draw(encoder.num_neurons))
    masks.heads[0] = 0
    masks.neurons[-1] = 0
    return masks


def live_numbers() -> int:
    """How many numbers are in tensors that something holds on to."""
    gc.collect()
    return sum(x.numel() for x in gc.get_objects() if type(x) is torch.Tensor)
