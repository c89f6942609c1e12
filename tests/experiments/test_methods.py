"""Ways to give heads and neurons an importance: the controls."""

import pytest
import small_models as small
import torch

from lfpr.clip.retrieval import vision_cost
from lfpr.encoder import prunable
from lfpr.experiments import methods as controls
from lfpr.importance import magnitude
from lfpr.masks import Importance
from lfpr.search import search_proportional


def test_controls_change_what_they_say():
    clip = small.reference_clip()
    generator = torch.Generator().manual_seed(0)
    fisher = Importance(*(torch.rand(4, n, generator=generator, dtype=torch.float64) for n in (4, 96)))
    other = magnitude(prunable(clip.vision_model))
    mixed = controls.with_neurons_by(fisher, other)
    assert torch.equal(mixed.heads, fisher.heads)
    assert torch.equal(mixed.neurons.sort(1).values, fisher.neurons.sort(1).values)
    assert torch.equal(mixed.neurons.argsort(1), other.neurons.argsort(1))
    cost = vision_cost(clip)
    even = search_proportional(controls.uniform(fisher), cost, 0.5)
    assert even.heads_kept == [2] * 4 and even.neurons_kept == [48] * 4
    for layer in range(4):
        assert (
            fisher.neurons[layer][even.neurons[layer] > 0].min() > fisher.neurons[layer][even.neurons[layer] == 0].max()
        )
    ties = controls.uniform(Importance(torch.zeros(1, 3), torch.ones(1, 2)))
    assert ties.heads.tolist()[0] == pytest.approx([1, 2 / 3, 1 / 3])  # of equal ones, the first is the best
