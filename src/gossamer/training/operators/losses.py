"""Losses that stand in a graph, and numbers drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gossamer.training.operators.contract import Operator, Table

_NEVER = -100  # torch's own sign for "no label is left out"


def negative_log_likelihood_loss(
    scores: Tensor, labels: Tensor, weight: Tensor | None = None, ignore_index: int = _NEVER, reduction: str = "mean"
) -> Tensor:
    """Minus the score (N, C, ...) of each label (N, ...), weighted by class."""
    return functional.nll_loss(scores, labels.long(), weight, ignore_index=ignore_index, reduction=reduction)


def softmax_cross_entropy_loss(
    scores: Tensor, labels: Tensor, weight: Tensor | None = None, ignore_index: int = _NEVER, reduction: str = "mean"
) -> Tensor:
    """Minus the log-probability of each label."""
    return negative_log_likelihood_loss(torch.log_softmax(scores, 1), labels, weight, ignore_index, reduction)


def softmax_cross_entropy_loss_with_log_prob(
    scores: Tensor, labels: Tensor, weight: Tensor | None = None, ignore_index: int = _NEVER, reduction: str = "mean"
) -> tuple[Tensor, Tensor]:
    """The loss and the log-probabilities."""
    shares = torch.log_softmax(scores, 1)
    return negative_log_likelihood_loss(shares, labels, weight, ignore_index, reduction), shares


def bernoulli(x: Tensor, dtype: torch.dtype | None = None, seed: float | None = None) -> Tensor:
    """1 with probability x, else 0; drawn from torch's generator, whatever the seed."""
    return torch.bernoulli(x).to(dtype or x.dtype)


def random_normal_like(
    x: Tensor, dtype: torch.dtype | None = None, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Tensor:
    """Normal numbers in the shape of x; drawn from torch's generator, whatever the seed."""
    return mean + scale * torch.randn_like(x, dtype=dtype or x.dtype)


def random_uniform_like(
    x: Tensor, dtype: torch.dtype | None = None, high: float = 1.0, low: float = 0.0, seed: float | None = None
) -> Tensor:
    """Evenly spread numbers in the shape of x; drawn from torch's generator, whatever the seed."""
    return low + (high - low) * torch.rand_like(x, dtype=dtype or x.dtype)


TABLE: Table = {
    "Bernoulli": Operator(bernoulli),
    "NegativeLogLikelihoodLoss": Operator(negative_log_likelihood_loss),
    "RandomNormalLike": Operator(random_normal_like),
    "RandomUniformLike": Operator(random_uniform_like),
    "SoftmaxCrossEntropyLoss": Operator(softmax_cross_entropy_loss, several=softmax_cross_entropy_loss_with_log_prob),
}
