"""What stands for a sample where samples are compared with each other: a row of numbers, or its direction alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gossamer.training.losses.hard_labels import as_scores

SHORTEST = 1e-8  # a vector that is no longer than this has no direction


class Embedding(NamedTuple):
    """Where the rows that stand for samples come from.

    Attributes:
        output: which of the outputs.
        pooled: it is a feature (B, C, ...), of which the mean over positions counts.
        probabilities: it ends in a softmax, so that its logarithms count.
    """

    output: int = 0
    pooled: bool = False
    probabilities: bool = False

    def of(self, outputs: tuple[Tensor, ...]) -> Tensor:
        """The rows (B, D)."""
        chosen = outputs[self.output]
        if self.pooled:
            return chosen.flatten(2).mean(2) if chosen.ndim > 2 else chosen
        return as_scores(chosen, self.probabilities).flatten(1)


def unit(vectors: Tensor, axis: int) -> Tensor:
    """Vectors along an axis, each divided by its length; those without a direction become 0 and let no gradient by."""
    length = torch.linalg.vector_norm(vectors, dim=axis, keepdim=True)
    return torch.where(length > SHORTEST, vectors / length.clamp(min=SHORTEST), 0.0)
