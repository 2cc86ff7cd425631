"""Similarities: which samples of a batch a layer finds alike (similarity-preserving, Tung and Mori 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.training.losses.contract import Seen, check_taught
from gossamer.training.losses.embeddings import unit

STRENGTH = 3000.0  # gamma of the paper


class Similarities(nn.Module):
    """strength * the mean over pairs of |G_student - G_teacher|^2 / B^2.

    G (B, B) holds the inner products of the samples' activations, each row scaled to length 1. Nothing but the batch
    has to agree: neither channels nor positions, and no turn or scale of the activations matters. A batch of one has
    nothing to compare and gives 0. The paper sums over pairs of layers; here their mean counts.

    Called with features (B, ...), or with the outputs of models that have no tensors to pair.

    Args:
        strength: the factor that the paper recommends beside a cross-entropy.
    """

    def __init__(self, strength: float = STRENGTH) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, seen: Seen) -> Tensor:
        check_taught(seen, "similarities")
        pairs = zip(seen.outputs, seen.taught, strict=True)
        known = [(own, other) for own, other in pairs if own.is_floating_point() and other.numel()]
        apart = [(similarities(own) - similarities(other.to(own.dtype))).square().mean() for own, other in known]
        return self.strength * torch.stack(apart).mean()


def similarities(feature: Tensor) -> Tensor:
    """How alike the samples of a feature (B, ...) are: (B, B), rows of length 1."""
    rows_BD = feature.flatten(1)
    with torch.autocast(rows_BD.device.type, enabled=False):  # products as wide as the values, as they are subtracted
        return unit(rows_BD @ rows_BD.T, 1)
