"""Attention transfer: where a layer is active, whatever its channels mean (Zagoruyko and Komodakis 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.training.losses.contract import Seen, check_taught
from gossamer.training.losses.embeddings import unit

STRENGTH = 1000.0  # beta of the paper, over the number of positions


class Attention(nn.Module):
    """strength * the mean over pairs and positions of (unit attention of the student - that of the teacher)^2.

    The attention at a position is the mean over channels of the squared activation; over all positions of a sample it
    is scaled to length 1. So it needs no adapter, channels may differ in number and order, and so may the scale.
    The paper sums over pairs of layers; here their mean counts, so that a weight means the same for any number.

    Called with features (B, C, ...) as outputs, of which student and teacher have the same positions.

    Args:
        strength: the factor that the paper recommends beside a cross-entropy.
    """

    def __init__(self, strength: float = STRENGTH) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, seen: Seen) -> Tensor:
        check_taught(seen, "attention")
        pairs = zip(seen.outputs, seen.taught, strict=True)
        apart = [(attention(own) - attention(other.to(own.dtype))).square().mean() for own, other in pairs]
        return self.strength * torch.stack(apart).mean()


def attention(feature_BCP: Tensor) -> Tensor:
    """The map (B, P) of length 1 of a feature (B, C, ...); zero where the feature is."""
    return unit(feature_BCP.square().mean(1).flatten(1), 1)
