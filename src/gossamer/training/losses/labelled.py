"""Labels of several tasks: which column speaks of which output."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn

from gossamer.training.losses.contract import Seen


class Column(NamedTuple):
    """Labels of one task: what they speak of.

    Attributes:
        output: which of the student's outputs has the scores.
        column: of the labels (N, tasks); None stands for labels (N, ...) as they are.
    """

    output: int = 0
    column: int | None = None

    def of(self, labels: Tensor) -> Tensor:
        """This task's labels."""
        return labels if self.column is None else labels[:, self.column]


ONLY = (Column(),)


class Labelled(nn.Module):
    """A loss that sees the labels of one task, or none.

    Args:
        loss: the loss.
        column: what it sees; None hides labels that speak of other outputs.
        columns: all of them, by which right answers are counted.
    """

    def __init__(self, loss: nn.Module, column: Column | None, columns: tuple[Column, ...]) -> None:
        super().__init__()
        self.loss = loss
        self.column = column
        self.columns = columns
        settings = {name: value for name, value in vars(loss).items() if name[0] != "_" and name != "training"}
        self.described = f"{type(loss).__name__}{settings}"  # tells one run from another

    def forward(self, seen: Seen) -> Tensor:
        labels = None if self.column is None or seen.labels is None else self.column.of(seen.labels)
        given: Tensor = self.loss(seen._replace(labels=labels))
        return given


def columns_of(losses: Iterable[nn.Module]) -> tuple[Column, ...]:
    """What labels speak of, as far as losses know; else of the first output."""
    return next((loss.columns for loss in losses if isinstance(loss, Labelled)), ONLY)
