"""What attention needs to run with fewer heads, where that does not follow from the sizes of its Linear layers.

Position biases are made for the heads of the unpruned model, often once for all layers (T5, MPNet, LayoutLMv3): each
attention takes those of the heads that it has left, by its buffer `kept_heads`. Layers without heads need a word in a
decoder, whose cache counts tokens by their keys, and with flex_attention, which divides by the number of heads.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lfpr.encoder import LayerParts, Part
from lfpr.families import Family

NO_HEADS = "no_heads"  # implementations of attention: that of a layer without heads,
KEPT = "+kept_heads"  # and others, of the biases of some heads


def adapt(part: Part, family: Family, kept: Tensor) -> None:
    """Make an attention whose weights are of the heads where `kept` is true run as such."""
    attention = part.module
    for name in family.head_count:
        setattr(attention, name, int(kept.sum()))
    for name in family.head_width:
        setattr(attention, name, int(kept.sum()) * part.size)
    if kept.all():
        return
    if family.forward:
        module, _, name = family.forward.rpartition(".")
        attention.__class__ = getattr(import_module(module), name)
    if family.bias:
        _take_biases(attention, family, part.full, kept)


def admit_headless(layers: Sequence[LayerParts]) -> None:
    """Let layers of one stack run without heads in whatever model they are. In a decoder, whose cache has the length of
    its first slot, they take the last ones, and the first layer of T5's tells positions by that length."""
    if all(getattr(layer.attention, "layer_idx", None) is not None for layer in layers):
        for slot, layer in enumerate(sorted(layers, key=lambda layer: not layer.heads.count)):
            layer.attention.layer_idx = slot
    for layer in layers:
        for part in (layer.heads, layer.cross):
            if part is None or part.count:
                continue
            attention = part.module
            if getattr(attention, "has_relative_attention_bias", False) and hasattr(attention, "compute_bias"):
                attention.register_forward_pre_hook(_place, with_kwargs=True)
            if getattr(getattr(attention, "config", None), "_attn_implementation", None):
                attention.config = _HeadlessConfig(attention.config)


def _no_heads(module: nn.Module, query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    return query.transpose(1, 2), None  # [B, S, 0, dh]


def _place(attention: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A pre-hook of T5's first layer, if it has no heads: its own slot of the cache does not tell how long that is."""
    cache, x = kwargs.get("past_key_values"), args[0]
    if kwargs.get("position_bias") is None and cache is not None:
        keys, _ = cache.get_mask_sizes(x.shape[1], 0)  # once they are in it: of a static cache, always all
        bias = attention.compute_bias(x.shape[1], keys, device=x.device, past_seen_tokens=cache.get_seq_length())
        kwargs = kwargs | {"position_bias": bias}
    return args, kwargs


def _take_biases(attention: nn.Module, family: Family, full: int, kept: Tensor) -> None:
    before = getattr(attention, "kept_heads", None)
    index = kept.nonzero().flatten().to(next(attention.parameters()).device)
    if before is not None:
        attention.kept_heads = before[index]
        return
    attention.register_buffer("kept_heads", index)
    attention.all_heads = full
    if family.shared_bias:  # what the attention hands on is of all heads: only the computation inside may take some
        attention.config = _KeptConfig(attention.config)
    else:
        attention.register_forward_pre_hook(partial(_take_arguments, family.bias), with_kwargs=True)


def check_kept(model: nn.Module, where: Path) -> None:
    """Raises ValueError naming the file `where` if an attention's `kept_heads` that were read from it are no heads of
    the unpruned model: they would be looked up in a bias beyond its end."""
    for path, module in model.named_modules():
        kept = module._buffers.get("kept_heads")
        if kept is not None and len(kept) and not 0 <= kept.min() <= kept.max() < module.all_heads:
            raise ValueError(
                f"{where}: {path}.kept_heads = {kept.tolist()!r:.80}: must be numbers from 0 to {module.all_heads - 1}"
            )


def _take(attention: nn.Module, bias: Any) -> Any:
    """Of a bias [.., all heads, S, S], that of the heads that are left; anything else as it is."""
    if isinstance(bias, Tensor) and bias.ndim > 2 and bias.shape[-3] == attention.all_heads > 1:
        return bias.index_select(-3, attention.kept_heads)
    return bias


def _take_arguments(names: tuple[str, ...], attention: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    bound = inspect.signature(attention.forward).bind(*args, **kwargs)
    for name in names:
        if name in bound.arguments:
            bound.arguments[name] = _take(attention, bound.arguments[name])
    return bound.args, bound.kwargs


class _LiveConfig:
    """The configuration of an attention, as that is now, but for the implementation: the model's may be changed after
    pruning."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __getattr__(self, name: str) -> Any:
        if name == "config" or name.startswith("__"):  # while it is copied
            raise AttributeError(name)
        return getattr(self.config, name)


class _KeptConfig(_LiveConfig):
    """Its implementation takes the biases of the kept heads."""

    @property
    def _attn_implementation(self) -> str:
        name = f"{self.config._attn_implementation}{KEPT}"
        return _registered(name, partial(_attend, self.config._attn_implementation))


class _HeadlessConfig(_LiveConfig):
    """Its implementation admits no heads."""

    @property
    def _attn_implementation(self) -> str:
        name = self.config._attn_implementation
        return _registered(NO_HEADS, _no_heads) if name.startswith("flex_attention") else name


def _registered(name: str, function: Callable) -> str:
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register(name, function)
    return name


def _attend(
    implementation: str,
    attention: nn.Module,
    *args: Any,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    sources = (sys.modules[c.__module__] for c in type(attention).__mro__)
    eager = next(f for f in (getattr(source, "eager_attention_forward", None) for source in sources) if f)
    function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
    return function(attention, *args, position_bias=_take(attention, position_bias), **kwargs)
