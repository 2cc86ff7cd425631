"""The student and its losses as one module, so that processes share the gradients of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from gossamer.training.lessons import Piece
from gossamer.training.losses.contract import Seen
from gossamer.training.losses.features import Features


class WeightedLoss(NamedTuple):
    """A loss (see `losses.contract`) and its share of the sum."""

    loss: nn.Module
    weight: float = 1.0


class Pupil(nn.Module):
    """A student with the losses that it is to lessen.

    Called with a piece it gives the weighted sum of its losses, in float32, and the student's outputs.

    Attributes:
        hints: how many of the student's outputs, from the last, are features.
    """

    def __init__(self, student: nn.Module, losses: Sequence[WeightedLoss]) -> None:
        super().__init__()
        self.student = student
        self.losses = nn.ModuleList(loss.loss for loss in losses)
        self.weights = tuple(loss.weight for loss in losses)
        self.hints = sum(len(loss.loss.hints) for loss in losses if isinstance(loss.loss, Features))

    def forward(self, piece: Piece) -> tuple[Tensor, tuple[Tensor, ...]]:
        outputs = self.outputs(piece)
        seen = Seen(outputs, piece.taught, piece.labels)
        first, *others = (loss(seen) * weight for loss, weight in zip(self.losses, self.weights, strict=True))
        return sum(others, start=first), outputs

    def outputs(self, piece: Piece) -> tuple[Tensor, ...]:
        """What the student gives, one tensor an output, floats as wide as float32."""
        given = self.student(*piece.inputs)
        outputs = given if isinstance(given, tuple) else (given,)
        return tuple(output.float() if output.is_floating_point() else output for output in outputs)
