"""docs/families.md, and the README's list of families: what the models of `lfpr.gallery` say of themselves.

python -m lfpr families --write docs/families.md --readme README.md
"""

from __future__ import annotations

import argparse
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from lfpr.checks import check_count
from lfpr.cost import ParameterCost
from lfpr.encoder import Part, PrunableEncoder, Transposed, prunable
from lfpr.families import FAMILIES, LAYOUTS, UnsupportedArchitecture
from lfpr.gallery import GALLERY, REFUSED, TEST, Example, alike
from lfpr.importance import random_importance
from lfpr.latency.compare import side_by_side
from lfpr.paper.schema import write_file
from lfpr.paper.tables import update_readme
from lfpr.search import search
from lfpr.shrink import shrink

MARKER = "families"
LINES = (
    'encoder = lfpr.prunable(AutoModel.from_pretrained("{bert}"))  # an encoder, or a decoder alone',
    'tower = lfpr.prunable(CLIPModel.from_pretrained("{clip}").vision_model)  # of several, one by its part',
    'whole = lfpr.prunable(AutoModelForSeq2SeqLM.from_pretrained("{t5}"))  # encoder and decoder, of one budget',
)
"""How the parts of a model are found: an encoder, one tower, an encoder with its decoder."""

_PAGE = """# Families

This page is written by `python -m lfpr families --write docs/families.md --readme README.md`, from small models with
random weights (`lfpr/gallery.py`) and what `lfpr.prunable` finds in them. [{test}](../{test})
asks each family the same: is the shrunk model the masked one, and as large as the cost says; is pruning twice pruning
once; do gradients agree with finite differences; does a saved model come back; does it generate with a cache what it
does without; is it exported to ONNX with equal outputs. A family alone: `pytest {test} -k NAME`.

{families}

- **heads**: of which attentions, and how many heads are one part, where several share a key and a value (then all of
  them stay or go). *Fused*: query, key and value are one matrix. *Conv1D*: its weights are transposed. *Biases of
  positions*: they are made for all heads, of which each layer takes those that it has left. *One mask*: a layer runs
  several times.
- **neurons**: *gated* FFNs have two matrices in, *fused* ones have them in one.
- **all may go** from a layer: of what a layer may lose everything. Where heads or neurons are missing there, `shrink`
  refuses masks that leave none in a layer; so it does where a decoder's cache needs one ([limits.md](limits.md)).
- **found by**: the class name of the layer, in `lfpr.FAMILIES`, or else its structure: the first of
  `lfpr.families.LAYOUTS` whose paths it has, if it has no other parameter that could belong to heads or neurons, and
  its attention reads no number of heads that would stay as it was.
- **ONNX**: *as* another, whose layers run the same code.

## Also found by structure

Small models of these are found, and their shrunk models equal the masked ones, in the same file's
`test_models_that_are_alike_are_found_and_exact`:

{alike}

A model whose layers are of none of these, but of a class derived from one of theirs, is found too. A composite model
(`EncoderDecoderModel`, `VisionEncoderDecoderModel`) is pruned as one, if its parts have one head size and widths;
otherwise each part alone.

## Refused

With the reason that `prunable` gives. A row in `lfpr.FAMILIES` makes another architecture known, where it can be
pruned at all: [lfpr/families.py](../lfpr/families.py) shows how.

{refused}
"""


def page() -> str:
    """The text of docs/families.md."""
    rows = [row(name, example) for name, example in GALLERY.items()]
    refused = [
        {"family": name, "model": f"`{example.name}`", "reason": reason(example)} for name, example in REFUSED.items()
    ]
    layouts = defaultdict(list)
    for name, example in alike().items():
        layouts[_found(prunable(example.model()))].append(f"`{name}`")
    found = "\n".join(f"- {layout}: {', '.join(names)}" for layout, names in layouts.items())
    return _PAGE.format(test=TEST, families=_table(rows), alike=found, refused=_table(refused))


def readme() -> str:
    """What stands in the README between the markers: how a model's parts are found, and the names of families."""
    lines = "\n".join(LINES).format(bert="BERT", clip="CLIP", t5="T5")
    known, refused = (
        ", ".join(dict.fromkeys(name.partition(",")[0] for name in names)) for names in (GALLERY, REFUSED)
    )
    text = (
        f"Families, all tested alike: {known}; {len(alike())} more models are known to be like one of them. Refused, "
        f"with the reason: {refused}. What is prunable in each, and by which test it is verified: "
        "[docs/families.md](docs/families.md)."
    )
    return f"```python\n{lines}\n```\n\n{textwrap.fill(text, 120, break_on_hyphens=False)}"


def row(name: str, example: Example) -> dict[str, str]:
    """What the table says of a family."""
    encoder = prunable(example.prunable(example.model()))
    families = [stack.family for stack in encoder.stacks]
    bare = {"heads": all(f.headless for f in families), "neurons": all(f.neuronless for f in families)}
    onnx = f"as {example.like}" if example.like else f"no: {example.onnx}" if example.onnx else "✓"
    return {
        "family": name,
        "model": f"`{example.name}`" + f", `{example.part}`" * bool(example.part),
        "heads": ", ".join(_heads(encoder)),
        "neurons": ", ".join(_neurons(encoder.ffns[0])),
        "all may go": ", ".join(kind for kind, may in bare.items() if may) or "–",
        "generates": "✓" if example.generates else "–",
        "ONNX": onnx,
        "found by": _found(encoder),
        "test": f"[✓](../{TEST})",
    }


def halved(factor: int = 8, samples: int = 16, repeats: int = 5) -> pd.DataFrame:
    """Each family's model, `factor` times as wide, pruned to half of its layers' parameters by random importance.

    A row a family: its prunable attentions and FFNs, parameters of its layers (millions), megabytes of its weights, and
    milliseconds of a forward pass of `samples`, all before and after; and the share of size and time that stays. Raises
    ValueError for counts below 1.
    """
    factor, samples = check_count("factor", factor, 1), check_count("samples", samples, 1)
    table = {}
    for name, example in GALLERY.items():
        example = example.wider(factor)
        model, inputs = example.model(), example.inputs(samples)
        encoder = prunable(example.prunable(model))
        masks = search(random_importance(encoder, 0), ParameterCost(encoder), 0.5, min_heads=1, min_neurons=1)
        small = shrink(model, masks, example.prunable(model))
        with torch.no_grad():
            before, after = side_by_side(
                {"before": model, "after": small},
                run=lambda each, example=example, inputs=inputs: example.run(each, inputs),
                encoder=lambda each, example=example: prunable(example.prunable(each)),
                sequence_length=9,
                samples=1,
                sample="batch",
                repeats=repeats,
            ).values()
        table[name] = {
            "attentions": len(encoder.attentions),
            "FFNs": len(encoder.ffns),
            "layers (M)": f"{before['parameters'] / 1e6:.2f} → {after['parameters'] / 1e6:.2f}",
            "MB": f"{before['megabytes']:.1f} → {after['megabytes']:.1f}",
            "ms": f"{before['ms_per_batch']:.1f} → {after['ms_per_batch']:.1f}",
            "size kept": after["parameters"] / before["parameters"],
            "time kept": round(after["ms_per_batch"] / before["ms_per_batch"], 2),
        }
    return pd.DataFrame.from_dict(table, orient="index")


def reason(example: Example) -> str:
    """Why `prunable` refuses it. Raises ValueError if it does not."""
    try:
        encoder = prunable(example.model())
    except UnsupportedArchitecture as error:
        return str(error).partition(" has no prunable encoder. ")[2].partition(" Layers found")[0].strip()
    raise ValueError(f"REFUSED: {example.name} is not refused: {encoder!r}")


def _heads(encoder: PrunableEncoder) -> Iterator[str]:
    own, families = encoder.parts[0], [stack.family for stack in encoder.stacks]
    crossing = any(part.cross for part in encoder.attentions)
    yield "self and cross" if crossing else "self"
    dim = getattr(own.attention, families[0].head_dim)
    if own.heads.size > dim:
        yield f"groups of {own.heads.size // dim}"
    yield from _kinds(own.heads)
    if any(family.bias for family in families):
        yield "biases of positions"
    if any(family.positions for family in families):
        yield "projections of positions"
    if encoder.passes > 1:
        yield "one mask for all passes"


def _neurons(part: Part) -> Iterator[str]:
    if len(part.inputs) == 2 or part.inputs[0].blocks == 2:
        yield "gated"
    yield from _kinds(part)
    if part.inputs[0].blocks == 1 and len(part.inputs) == 1:
        yield "plain"


def _kinds(part: Part) -> Iterator[str]:
    if part.inputs[0].blocks > 1:
        yield "fused"
    if isinstance(part.output, Transposed):
        yield "Conv1D"


def _found(encoder: PrunableEncoder) -> str:
    """By which row or structure, of each kind of layer."""
    names = []
    for stack in encoder.stacks:
        kind, family = type(stack.layers[0]), replace(stack.family, headless=True)
        known = next((c.__name__ for c in kind.__mro__ if c.__name__ in FAMILIES), None)
        layout = next((name for name, row in LAYOUTS.items() if row == family), None)
        names.append(f"`{known}`" if known else f"structure of {layout}")
    return ", ".join(dict.fromkeys(names))


def _table(rows: list[dict[str, str]]) -> str:
    lines = [[*rows[0]], ["---"] * len(rows[0]), *([*each.values()] for each in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--write", metavar="FILE", help="where the page goes; printed without")
    options.add_argument("--readme", metavar="FILE", help="the file whose list of families is renewed")
    arguments = options.parse_args()
    if arguments.readme:
        update_readme(arguments.readme, MARKER, readme())
    if arguments.write:
        write_file(Path(arguments.write), page().encode())
    elif not arguments.readme:
        print(page(), end="")


if __name__ == "__main__":
    main()
