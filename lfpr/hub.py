"""Pruned models the Hugging Face way: `from_pretrained`, `save_pretrained`, `push_to_hub`, `Trainer`, `pipeline`.

A configuration of transformers knows one width for all layers. What it does know is an entry `quantization_config`,
whose `quant_method` names the registered class that prepares an empty model for the weights of its file. That hook is
the one that lets a package change a model between its construction and its weights, so it is the one used here: the
entry says what `pruning.json` does, and `Pruner` narrows the empty model by it. Nothing else of quantisation applies:
once loaded, a model is a plain one, trainable and of any dtype, and its configuration keeps the entry, so that it is
saved as it was loaded.

`import lfpr` has this module imported as soon as transformers can load a model (`lfpr.lazy.when_imported`). Without it,
transformers warns of an unknown type "lfpr", builds the unpruned model and raises RuntimeError, since the sizes of the
weights are others.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lfpr.checks import check_count, check_kind, check_list
from lfpr.encoder import PrunableEncoder
from lfpr.pruned_attention import check_kept
from lfpr.rebuild import ATTN, check_harmless, narrow, put, widths

METHOD = "lfpr"
SAID = ("class", "parts", "attributes", "tensors", ATTN)  # of pruning.json


def entry(pruning: dict[str, Any]) -> dict[str, Any]:
    """What a configuration says of a model that `pruning` describes."""
    return {"quant_method": METHOD} | {name: pruning[name] for name in SAID if name in pruning}


def mark(encoder: PrunableEncoder) -> None:
    """Have the configurations of a model, and of the models of transformers in it, say how many heads and neurons the
    layers of its encoder keep: whatever is then saved by `save_pretrained` can be loaded. What they say of other
    encoders stays, and so does the entry of a method that quantises."""
    seen: list[Any] = []
    for path, module in encoder.module.named_modules():
        inside, config = f"{path}." if path else "", getattr(module, "config", None)
        if not hasattr(module, "save_pretrained") or any(config is other for other in seen):
            continue
        seen.append(config)
        parts = {name[len(inside) :]: sizes for name, sizes in widths(encoder).items() if name.startswith(inside)}
        said = getattr(config, "quantization_config", None) or entry({})
        if parts and isinstance(said, dict) and said.get("quant_method") == METHOD:
            config.quantization_config = said | {"parts": said.get("parts", {}) | parts}


@register_quantization_config(METHOD)
class PrunedConfig(QuantizationConfigMixin):
    """The entry as transformers hands it on, of whatever content it is."""

    def __init__(self, quant_method: str = METHOD, **said: Any) -> None:
        self.quant_method, self.said = METHOD, said

    def to_dict(self) -> dict[str, Any]:
        """As it is written to config.json."""
        return entry(self.said)


@register_quantizer(METHOD)
class Pruner(HfQuantizer):
    """Gives an empty model the widths, and what else its configuration's entry says, before its weights are loaded.

    Raises ValueError naming the config.json that says what the model cannot have.
    """

    is_trainable = True

    def is_serializable(self) -> bool:
        """Whether `save_pretrained` may be called."""
        return True

    def update_attn_implementation(self, config: Any) -> Any:
        """The implementation that the saved model had, if the caller asks for none."""
        chosen = self.quantization_config.said.get(ATTN)
        check_harmless({ATTN: chosen}, _where(config))
        if chosen and config._attn_implementation is None:
            config._attn_implementation = chosen
        return config

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
        self.said = _as_called_in(model, self.quantization_config.said)
        where = _where(model.config)
        narrow(model, self.said["parts"], where)
        put(model, self.said["attributes"], where)
        for name, shape in self.said["tensors"].items():
            _await(model, name, shape, where)

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        check_kept(model, Path(model.config.name_or_path))
        self.remove_quantization_config(model)
        for module in model.modules():
            vars(getattr(module, "config", model)).pop("_is_quantized", None)
        model.config.quantization_config = entry(self.said)
        return model


def _where(config: Any) -> Path:
    return Path(config.name_or_path, "config.json")


def _as_called_in(model: nn.Module, said: dict[str, Any]) -> dict[str, Any]:
    """What is said of the saved model, by the paths that `model` has: it may have that as its base model, or be its
    base model, or another model of the same configuration; then what it has not is left out."""
    parts, attributes, tensors = (said.get(name, {}) for name in SAID[1:4])
    for name, values in zip(SAID[1:4], (parts, attributes, tensors), strict=True):
        check_kind(f"{_where(model.config)}: {name}", values, dict)
    prefix, modules = f"{model.base_model_prefix}.", dict(model.named_modules())
    ways: tuple[Callable[[str], str], ...] = (
        str,
        lambda path: prefix + path,
        lambda path: path.removeprefix(prefix) if path.startswith(prefix) else "..",  # of which no model has a part
    )
    way = next((way for way in ways if any(way(path) in modules for path in parts)), str)

    def known(path: str) -> bool:
        owner, _, name = path.rpartition(".")
        return said.get("class") == type(model).__name__ or hasattr(modules.get(owner), name)

    own = {way(path): sizes for path, sizes in parts.items() if way(path) in modules}
    return said | {
        "class": type(model).__name__,
        "parts": own or parts,  # all unknown: an error
        "attributes": {way(path): value for path, value in attributes.items() if known(way(path))},
        "tensors": {way(path): shape for path, shape in tensors.items() if known(way(path))},
    }


def _await(model: nn.Module, path: str, shape: Any, where: Path) -> None:
    """Make room for a tensor of the file that the configuration does not say: of another shape, or where there is None,
    or a buffer that is not saved as a rule."""
    owner, _, name = path.rpartition(".")
    module = dict(model.named_modules()).get(owner, nn.Module())
    sizes = check_list(f"{where}: tensors.{path}", shape, check_count, 0)
    if getattr(module, name, module) is None or name in module._parameters:
        value = torch.empty(sizes, device="meta")
        setattr(module, name, value if name in module._buffers else nn.Parameter(value))
    elif name in module._buffers:
        module._non_persistent_buffers_set.discard(name)
    else:
        raise ValueError(f"{where}: tensors: a {type(model).__name__} has no place for {path:.200}")
