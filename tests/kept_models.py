"""Models that differ from what their configurations build, and a close look at whether one comes back."""

import json

import small_models as small
import torch
import transformers as hf
from torch import nn


def bert(kind=hf.BertModel, edit=None, **config):
    torch.manual_seed(0)
    model = kind(hf.BertConfig(**small.BERT | config)).eval()
    if edit:
        edit(model)
    return model


def classifier(edit):
    return bert(hf.BertForSequenceClassification, edit)


def set_to(path, value):
    """Sets an attribute by its path."""
    owner, _, name = path.rpartition(".")
    return lambda model: setattr(model.get_submodule(owner), name, value)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def fewer(layers):
    return lambda model: setattr(model.encoder, "layer", model.encoder.layer[layers])


def vision_pair():
    decoder = hf.BertConfig(**small.BERT, is_decoder=True, add_cross_attention=True)
    vision = hf.ViTModel(hf.ViTConfig(**small.VIT), add_pooling_layer=False)
    return hf.VisionEncoderDecoderModel(encoder=vision, decoder=hf.BertLMHeadModel(decoder)).eval()


def later_than(model):
    model.resize_token_embeddings(120)
    model.config.vocab_size = 99


def mixed(model):
    model.half()
    model.encoder.layer[1].float()


KEPT = {
    "no pooling layer": lambda: hf.BertModel(hf.BertConfig(**small.BERT), add_pooling_layer=False),
    "pooler None": lambda: bert(edit=set_to("pooler", None)),
    "ViT without pooler": lambda: hf.ViTModel(hf.ViTConfig(**small.VIT), add_pooling_layer=False),
    "ViT in a composite without pooler": vision_pair,
    "mask token": lambda: hf.ViTModel(hf.ViTConfig(**small.VIT), use_mask_token=True),
    "head of other size": lambda: classifier(set_to("classifier", nn.Linear(48, 7))),
    "head without bias": lambda: classifier(set_to("classifier", nn.Linear(48, 7, bias=False))),
    "head None": lambda: classifier(set_to("classifier", None)),
    "first layers": lambda: bert(edit=fewer(slice(2))),
    "last layers": lambda: bert(edit=fewer(slice(1, None))),
    "tied": lambda: bert(hf.BertForMaskedLM),
    "not tied": lambda: bert(hf.BertForMaskedLM, tie_word_embeddings=False),
    "longer vocabulary": lambda: bert(hf.BertForMaskedLM, lambda model: model.resize_token_embeddings(120)),
    "longer vocabulary than the config's": lambda: bert(edit=later_than),
    "attention of one's own choice": lambda: bert(edit=lambda model: model.set_attn_implementation("eager")),
    "no dropout": lambda: bert(edit=without_dropout),
    "another eps": lambda: bert(edit=set_to("embeddings.LayerNorm.eps", 1e-3)),
    "another scale of attention": lambda: bert(edit=set_to("encoder.layer.1.attention.self.scaling", 0.5)),
    "other positions": lambda: bert(edit=lambda model: model.embeddings.position_ids.copy_(torch.arange(40).flip(0))),
    "a Linear without bias": lambda: bert(edit=set_to("pooler.dense.bias", None)),
    "checkpointing": lambda: bert(edit=lambda model: model.gradient_checkpointing_enable()),
    "half": lambda: bert(edit=lambda model: model.half()),
    "two precisions": lambda: bert(edit=mixed),
    "code on the hub, which was not used": lambda: bert(
        edit=lambda model: setattr(model.config, "auto_map", {"AutoModel": "org/code--m.C"})
    ),
}


def small_decoder():
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    return hf.BertLMHeadModel(hf.BertConfig(**sizes, vocab_size=99, is_decoder=True)).eval()


def assert_same(loaded, pruned):
    """All tensors bit by bit, tied ones too, classes of modules, their plain attributes, and the way of attention."""
    shown = [
        [(name, type(module), module.extra_repr()) for name, module in m.named_modules()] for m in (loaded, pruned)
    ]
    assert shown[0] == shown[1] and not loaded.training
    for kind in ("named_parameters", "named_buffers"):
        own, others = (dict(getattr(model, kind)()) for model in (loaded, pruned))
        assert own.keys() == others.keys()
        assert all(
            value.dtype == others[name].dtype and torch.equal(value, others[name]) for name, value in own.items()
        )
    for path, module in pruned.named_modules():
        other = vars(loaded.get_submodule(path))
        for name, value in vars(module).items():
            if isinstance(value, int | float | str | None) and name[0] != "_" and name != "gradient_checkpointing":
                assert other.get(name, value) == value, f"{path}.{name}"
    assert loaded.config._attn_implementation == pruned.config._attn_implementation
    own, others = (json.loads(model.config.to_json_string(use_diff=False)) for model in (loaded, pruned))
    assert own == {name: value for name, value in others.items() if name != "auto_map"}
