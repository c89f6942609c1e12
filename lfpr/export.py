"""ONNX files of pruned models, checked in onnxruntime before they are written.

The batch size stays free, the other dimensions are those of the example inputs. ONNX cannot reshape a tensor without
elements to "as many heads as there are", so an attention layer without heads is exported with one head of zero
weights, which adds exactly zero; everything else is exported as it is.

Needs the extra: `pip install lfpr[onnx]`.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lfpr.checks import check_count, check_kind, check_number
from lfpr.encoder import Part, encoders, prunable, unwrapped
from lfpr.files import write_whole
from lfpr.oddities import copy_of
from lfpr.pruned_attention import adapt
from lfpr.shrink import NotEquivalent


def export_onnx(
    pruned: nn.Module, inputs: Mapping[str, Tensor], path: str | Path, opset: int = 18, atol: float = 1e-4
) -> float:
    """Write `pruned`, a model that is or contains a prunable encoder, as one ONNX file; returns the largest difference.

    inputs: example arguments of `pruned.forward` by name, the batch first in each; they name the ONNX inputs. The
    outputs are the tensors that `forward` returns (a tensor, a tuple or transformers' output), named as there. The file
    is run in onnxruntime on the whole batch and on its first sample, and written only if no output differs from the
    model's by more than `atol`. The model is left as it is.

    Raises `NotEquivalent` with the difference, `UnsupportedArchitecture`, ImportError if the extra is not installed,
    and ValueError for inputs without a common batch, for weights in bfloat16, which onnxruntime's CPU kernels lack, and
    for what the exporter or onnxruntime refuses, such as flex_attention.
    """
    _require_extra()
    check_kind("pruned", pruned, nn.Module)
    check_kind("inputs", inputs, Mapping)
    check_kind("path", path, str, Path)
    opset = check_count("opset", opset, 1)
    atol = check_number("atol", atol, "at least 0", lambda value: value >= 0)
    if not inputs or any(not isinstance(x, Tensor) or not x.ndim for x in inputs.values()):
        raise ValueError("inputs: expected tensors by name, with the batch as the first dimension")
    if len({len(x) for x in inputs.values()}) > 1 or not len(next(iter(inputs.values()))):
        raise ValueError(f"inputs: batch sizes {[len(x) for x in inputs.values()]}, expected one above zero")
    if any(p.dtype == torch.bfloat16 for p in pruned.parameters()):
        raise ValueError("pruned has bfloat16 weights, which onnxruntime does not run on CPUs: export pruned.float()")
    exact = copy_of(unwrapped(pruned)).cpu().eval()
    for child in exact.modules():  # a cache is no tensor
        if getattr(getattr(child, "config", None), "use_cache", False):
            child.config.use_cache = False
    model = copy.deepcopy(exact)
    for encoder in encoders(model, declared=False) or [prunable(model)]:  # the latter raises, naming what was found
        for stack in encoder.stacks:
            for part in (encoder.attentions[row] for row in encoder.of_stack(stack)[0]):
                if not part.count:
                    _add_zero_head(part)
                    adapt(part, stack.family, torch.ones(1, dtype=torch.bool))
    batch = {name: x.detach().cpu() for name, x in inputs.items()}
    names = list(_run(exact, batch))
    traced = {name: torch.cat([x, x]) for name, x in batch.items()}  # a batch of one would be taken for a constant
    largest = 0.0

    def write(partial: Path) -> None:
        nonlocal largest
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                model,
                (),
                partial,
                kwargs=traced,
                output_names=names,
                opset_version=opset,
                custom_translation_table=_translations(),
                dynamo=True,
                external_data=False,
                verbose=False,
                dynamic_shapes={name: {0: "batch"} for name in traced},
            )
        largest = max(_difference(partial, exact, x, atol) for x in (batch, {k: v[:1] for k, v in batch.items()}))

    try:
        write_whole(path, write)
    except (ValueError, OSError):
        raise
    except Exception as error:  # of the exporter or onnxruntime, which raise many kinds
        reason = f"{type(error).__name__} ({(str(error).splitlines() or [''])[0][:200]})"
        raise ValueError(
            f"{type(exact).__name__} cannot be exported with opset {opset}: {reason}. "
            "Attention other than 'sdpa' and 'eager' cannot be: pruned.set_attn_implementation('sdpa')"
        ) from error
    return largest


def _require_extra() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"export_onnx needs {error.name}: pip install lfpr[onnx]") from error


def _translations() -> dict[Any, Callable]:
    """What torch computes where the exporter differs: attention of a token that may attend to none gives zeros, as of a
    sample of padding alone, and not the mean of all."""
    from onnxscript import FLOAT, ir
    from onnxscript import opset18 as op
    from onnxscript.function_libs.torch_lib.ops import nn as library

    @wraps(library.aten_scaled_dot_product_attention)
    def attend(query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        found = library.aten_scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)
        if attn_mask is None or attn_mask.dtype != ir.DataType.BOOL:
            return found
        some = op.ReduceMax(op.Cast(attn_mask, to=FLOAT.dtype), op.Constant(value_ints=[-1]), keepdims=1)
        return op.Mul(found, op.CastLike(some, found))

    return {torch.ops.aten.scaled_dot_product_attention.default: attend}


def _run(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs by name."""
    with torch.no_grad():
        outputs = model(**batch)
    if isinstance(outputs, Tensor):
        outputs = {"output": outputs}
    elif isinstance(outputs, tuple):
        outputs = {f"output_{i}": value for i, value in enumerate(outputs)}
    if not isinstance(outputs, Mapping) or not all(isinstance(value, Tensor) for value in outputs.values()):
        raise ValueError(
            f"{type(model).__name__}.forward must return a tensor or several, found {type(outputs).__name__}"
        )
    return dict(outputs)


def _difference(path: Path, model: nn.Module, batch: Mapping[str, Tensor], atol: float) -> float:
    """The largest difference between the file's outputs and the model's; NotEquivalent if it exceeds `atol`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = _run(model, batch)
    found = session.run(list(expected), {name: x.cpu().numpy() for name, x in batch.items()})
    largest = 0.0
    for (name, wanted), array in zip(expected.items(), found, strict=True):
        if wanted.shape != array.shape:
            message = f"{name}: shapes {tuple(wanted.shape)} (torch) and {array.shape} (onnxruntime)"
            raise NotEquivalent(message, float("inf"))
        difference = (wanted.cpu().double() - torch.from_numpy(array).double()).abs().max().item()
        if not difference <= atol:  # also when it is NaN
            message = f"{name}: onnxruntime and torch differ by {difference:.3g} > atol = {atol:.3g}"
            raise NotEquivalent(message, difference)
        largest = max(largest, difference)
    return largest


def _add_zero_head(part: Part) -> None:
    """Give an attention without heads one whose weights are all zero."""

    def widen(linear: nn.Linear, rows: int, columns: int) -> None:
        linear.weight = nn.Parameter(linear.weight.new_zeros(rows, columns))
        linear.out_features, linear.in_features = rows, columns

    for linear, rows, blocks in part.inputs:
        widen(linear, rows * blocks, linear.in_features)
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.new_zeros(rows * blocks))
    widen(part.output, part.output.out_features, part.size)
    if hasattr(part.module, "kept_heads"):  # of the biases, any will do
        part.module.kept_heads = part.module.kept_heads.new_zeros(1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on packages that it could also serve, and on its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*treespec", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*axis name")
            yield
    finally:
        logger.setLevel(level)
