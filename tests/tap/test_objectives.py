"""TAP's losses, by hand."""

import pytest
import small_tap as small
import torch
from torch.nn import functional as F

from lfpr.tap.objectives import decoding_loss, labelled


def test_bad_reductions_are_named():
    with pytest.raises(ValueError, match=r"reduction = 'max': must be one of \['mean', 'sum', 'parts'\]"):
        decoding_loss(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.ones(1, 1), "max")


def test_losses_by_hand():
    tap, batch = small.tap(), small.Questions(6)[list(range(6))]
    logits = tap(batch, batch["previous"])
    per_step = F.binary_cross_entropy_with_logits(logits, batch["targets"], reduction="none").sum(-1)
    wanted = per_step[batch["loss_mask"] > 0].sum()
    total, steps = labelled(tap, "parts")(batch)
    assert steps == batch["loss_mask"].sum() == 1 + 2 + 3 + 4 + 1 + 2
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(labelled(tap, "sum")(batch), wanted)
    torch.testing.assert_close(labelled(tap)(batch), wanted / steps)
