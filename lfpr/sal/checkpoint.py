"""Published checkpoints of SaL: which of their entries are a model's."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lfpr.files import CheckpointError, a_path
from lfpr.tap.checkpoint import check_fits, read_checkpoint

SHARED = "latr.shared.weight"
TIED = ("embedding.weight", "latr.encoder.embed_tokens.weight", "latr.decoder.embed_tokens.weight")
TIED += ("latr.lm_head.weight",)
"""Other names of one table."""
CIRCLES = "latr.encoder.block.0.layer.0.SelfAttention.spatial_circle_bias.weight"


def fitting(path: str | Path, model: nn.Module) -> dict[str, Tensor]:
    """The state dict in `path` as the SaL `model` takes it. Raises CheckpointError, see `SaL.load_checkpoint`."""
    state, own = read_checkpoint(a_path(path, "path")), model.state_dict()
    state |= {name: state[SHARED] for name in TIED if SHARED in state and name not in state}
    others = [name for name in state if name not in own]
    if CIRCLES in own and CIRCLES not in state and len(others) == 1:  # whatever it is called
        state[CIRCLES] = state.pop(others.pop())
    missing = [name for name in own if name not in state]
    wrong = [f"lacks {len(missing)} of the {len(own)} entries of SaL, first {missing[0]}"] if missing else []
    if others:
        found = ", ".join(f"{name} {list(state[name].shape)}" for name in others[:3])
        wrong.append(
            f"has {len(others)} entries that SaL with scp = {model.config.scp!r} has not ({found}); one table of the "
            "Spatial Circle Position, [distances, heads], can be taken, and with scp = 'off' none"
        )
    if wrong:
        raise CheckpointError(f"{path}: {'; '.join(wrong)}")
    if CIRCLES in own:
        table, (rows, heads) = state[CIRCLES], own[CIRCLES].shape
        if table.ndim != 2 or table.shape[1] != heads or len(table) < rows:
            raise CheckpointError(
                f"{path}: its Spatial Circle Position is {list(table.shape)}, expected a number for each distance and "
                f"head, [{rows} or more, {heads}]: it is not the one that this package defines"
            )
        state[CIRCLES] = table[:rows]  # no distance is larger
    check_fits(path, state, own, "SaLConfig")
    if apart := [name for name in TIED if not torch.equal(state[name], state[SHARED])]:
        raise CheckpointError(f"{path}: {apart[0]} is not {SHARED}, which T5 shares")
    return state
