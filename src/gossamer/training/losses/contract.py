"""What a loss is: a module that is called with what was `Seen` and gives one number, the mean over samples.

A loss that learns something itself, such as an adapter, holds it as parameters; they train beside the student's and are
thrown away.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gossamer.errors import DataError


class Seen(NamedTuple):
    """One piece of a batch, gone through.

    Attributes:
        outputs: the student's, (B, ...) each, as wide as float32.
        taught: the teacher's, in the same order; empty without a teacher.
        labels: (B, ...), or None.
    """

    outputs: tuple[Tensor, ...]
    taught: tuple[Tensor, ...]
    labels: Tensor | None


def check_taught(seen: Seen, name: str) -> None:
    """See that there is a teacher to learn from.

    Raises:
        DataError: there is none.
    """
    if not seen.taught:
        raise DataError(f"{name} needs a teacher; give one, or learn from labels: hard_labels")
