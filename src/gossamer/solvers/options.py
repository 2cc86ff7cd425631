"""What each constraint would cost one weight: predicted loss and stored bytes, for the allocation to choose from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import NamedTuple

import numpy as np

from gossamer.arith.forms import stored_bits
from gossamer.arith.moments import Moments, loss
from gossamer.constraints.contract import Constraint
from gossamer.solvers.contract import Solved

Solve = Callable[[np.ndarray, Constraint, Moments | None, tuple[int, ...]], Solved]


class Option(NamedTuple):
    """One weight under one constraint.

    Attributes:
        constraint: None: left in float32.
        loss, nearest_loss, zero_loss, reason: see `Solved`.
        stored_bytes: of the weight as stored.
    """

    constraint: Constraint | None
    loss: float
    nearest_loss: float
    zero_loss: float
    stored_bytes: int
    reason: str = ""

    @property
    def noise_ratio(self) -> float:
        """Predicted noise over signal of the layer's outputs; a layer without a signal makes no noise either."""
        return self.loss / self.zero_loss if self.zero_loss > 0 else 0.0


def options(
    w_GOK: np.ndarray,
    constraints: Sequence[Constraint],
    moments: Moments,
    solve: Solve,
    k_shape: tuple[int, ...] = (),
) -> tuple[Option, ...]:
    """The weight left in float, and under every constraint that can apply to its shape.

    Args:
        solve: `solvers.nearest.solve` or `solvers.second_order.solve`.
    """
    zero_loss = float(loss(w_GOK, moments).sum())
    found = [Option(None, 0.0, 0.0, zero_loss, 4 * w_GOK.size)]
    for constraint in constraints:
        if constraint.obstacle(w_GOK.shape, k_shape):
            continue
        form, after, nearest, zero, reason = solve(w_GOK, constraint, moments, k_shape)
        found.append(Option(constraint, after, nearest, zero, ceil(stored_bits(form) / 8), reason))
    return tuple(found)
