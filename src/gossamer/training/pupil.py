"""The student and all that is to be lessened as one module, so that processes share the gradients of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from gossamer.training.lessons import Piece
from gossamer.training.losses.contract import Seen
from gossamer.training.losses.features import Features
from gossamer.training.penalties.weighted import Penalties
from gossamer.training.sparsity.contract import Shaper


class WeightedLoss(NamedTuple):
    """A loss (see `losses.contract`) and its share of the sum."""

    loss: nn.Module
    weight: float = 1.0


class Pupil(nn.Module):
    """A student with the losses that it is to lessen, what its weights cost, and what makes them sparse.

    Called with a piece it gives the weighted sum of its losses and penalties, in float32, and the student's outputs.
    Pieces are shares of a step that sum to 1, so that penalties count once a step.

    Attributes:
        hints: how many of the student's outputs, from the last, are features.
        penalties: of the weights alone; None without any.
        shaper: chooses zeros while they are trained; None where they stay as they are.
    """

    def __init__(
        self,
        student: nn.Module,
        losses: Sequence[WeightedLoss],
        penalties: Penalties | None = None,
        shaper: Shaper | None = None,
    ) -> None:
        super().__init__()
        self.penalties = penalties
        self.shaper = shaper
        self.student = student
        self.losses = nn.ModuleList(loss.loss for loss in losses)
        self.weights = tuple(loss.weight for loss in losses)
        self.hints = sum(len(loss.loss.hints) for loss in losses if isinstance(loss.loss, Features))

    def forward(self, piece: Piece) -> tuple[Tensor, tuple[Tensor, ...]]:
        outputs = self.outputs(piece)
        seen = Seen(outputs, piece.taught, piece.labels)
        first, *others = (loss(seen) * weight for loss, weight in zip(self.losses, self.weights, strict=True))
        if self.penalties is not None:
            others.append(self.penalties())
        return sum(others, start=first), outputs

    def outputs(self, piece: Piece) -> tuple[Tensor, ...]:
        """What the student gives, one tensor an output, floats as wide as float32."""
        given = self.student(*piece.inputs)
        outputs = given if isinstance(given, tuple) else (given,)
        return tuple(output.float() if output.is_floating_point() else output for output in outputs)
