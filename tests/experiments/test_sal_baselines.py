"""The recipe of the small SaLs, on a handful of images."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from lfpr.experiments.sal_baselines import RECIPES, Binding, begin, train_baseline
from lfpr.sal import SaL, SaLConfig, SaLDataset, batches
from lfpr.sal.checkpoint import SHARED, TIED

NAME = "sal-textvqa"
TINY = replace(RECIPES[NAME], steps=3, batch_size=8, train_images=8, val_images=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the baseline and, in `runs/`, its data."""
    folder = tmp_path_factory.mktemp("baseline")
    train_baseline(NAME, folder, folder / "runs", TINY)
    return folder


@pytest.fixture(scope="module")
def data(folder):
    config = SaLConfig.from_dict(json.loads((folder / f"{NAME}.json").read_text())["config"])
    return SaLDataset(folder / f"runs/data/{NAME}-baseline", "textvqa", "train", config=config, targets=True)


def test_a_baseline_says_how_it_was_made_and_is_the_same_again(folder, tmp_path):
    about = json.loads((folder / f"{NAME}.json").read_text())
    assert about["recipe"]["steps"] == 3 and about["questions"] == 8 and 0 <= about["score"] <= 1
    state = load_file(folder / f"{NAME}.safetensors")
    assert SHARED in state and not state.keys() & set(TIED)
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    train_baseline(NAME, tmp_path, folder / "runs", TINY)
    again = load_file(tmp_path / f"{NAME}.safetensors")
    assert all(torch.equal(state[name], again[name]) for name in state)


def test_training_begins_with_low_logits_and_attention_to_the_same_word(data):
    (batch,) = batches(data, len(data))
    torch.manual_seed(0)
    model = SaL(data.config).eval()
    begin(model)
    with torch.no_grad():
        assert model(batch, batch["previous"][:, :1]).mean() < -2
    attention = model.latr.encoder.block[0].layer[0].SelfAttention
    words = model.embedding.weight[torch.arange(100, 164)]
    scores = (attention.q(words) @ attention.k(words).T).detach()
    assert (scores.argmax(1) == torch.arange(64)).all()


def test_binding_teaches_looks_to_say_classes_and_colours(data):
    (batch,) = batches(data, len(data))
    torch.manual_seed(0)
    model, binding = SaL(data.config), Binding(data.config, data.pieces)
    looks = [model.ocr_vit_fc7, model.obj_vit_fc7]
    optimiser = torch.optim.Adam([p for look in looks for p in look.parameters()], 0.01)
    outputs = torch.zeros(len(data), data.config.length, data.config.d_model)  # which say nothing of roles
    losses = []
    for _ in range(30):
        losses.append(binding(model, batch, outputs))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    roles = 5 * math.log(2)  # what two yes-or-no questions cost that are not answered, one of them four times
    assert losses[0] - roles > 2 and losses[-1] - roles < 1
    assert data.pieces.encode("shirt")[0] in binding.classes and data.pieces.encode("red")[0] in binding.colours
