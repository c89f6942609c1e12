"""Objectives from a model's own answers: no labels, and not zero where the model agrees with itself.

The Fisher information of the masks is the expectation of squared gradients of the log-likelihood over the answers that
the *model* gives. Kwon et al. (NeurIPS 2022) put the data set's labels in their place, which is called the empirical
Fisher (Kunstner, Balles and Hennig, NeurIPS 2019). Without labels there are two ways:

`best`: the model's best answer as the label. Its gradient is large where the model is unsure.

Projections: let H be the covariance that the gradient of the log-likelihood with respect to the outputs z has over
drawn answers. Any random r of mean 0 and covariance H gives, by the gradient of rᵀz, the same expected squares as drawn
answers do: the true Fisher information. And with less noise, since a sure model nearly always draws its best answer,
and now and then an unlikely one with a huge gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lfpr.checks import check_kind, check_tensor


def best(logits: Tensor) -> Tensor:
    """The sum over rows of minus the log-likelihood of the likeliest class; logits [rows, classes], otherwise
    ValueError."""
    check_tensor("logits", logits, 2)
    return F.cross_entropy(logits, logits.detach().argmax(-1), reduction="sum")


def gaussian_projection(values: Tensor, generator: torch.Generator) -> Tensor:
    """As `independent_projection`, of answers that are the vectors [rows, d] themselves with unit normal noise, as one
    may look at embeddings: the sum over rows of rᵀ value, r normal. In expectation, the squared norms of gradients.
    Raises ValueError for another shape or no generator."""
    check_tensor("values", values, 2)
    check_kind("generator", generator, torch.Generator)
    return (torch.randn(values.shape, generator=generator).to(values.device) * values).sum()


def independent_projection(logits: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
    """A random projection of logits z [rows, classes] of classes that are each answered yes or no, with probability p =
    sigmoid(z): the sum over rows, by their `weights` [rows], and classes of ±√(p (1 - p)) z, the sign random.
    Raises ValueError for other shapes or no generator."""
    check_tensor("logits", logits, 2)
    check_tensor("weights", weights, 1, len(logits))
    check_kind("generator", generator, torch.Generator)
    p = logits.detach().float().sigmoid()
    sign = torch.randint(2, p.shape, generator=generator).to(p.device) * 2 - 1
    return ((sign * (p * (1 - p)).sqrt() * logits).sum(-1) * weights).sum()
