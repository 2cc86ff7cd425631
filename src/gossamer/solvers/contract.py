"""The one question every solver answers: a weight, a constraint, and what is known of its input; what comes closest?

minimise over W' in C:   tr((W - W') H (W - W')^T)
"""

from __future__ import annotations

from typing import NamedTuple

from gossamer.arith.forms import Form


class Solved(NamedTuple):
    """A weight that meets its constraint.

    Attributes:
        form: what is stored.
        loss: of the objective, a sample.
        nearest_loss: of the nearest point of the set, without looking at H.
        zero_loss: of all weights gone: the energy of the layer's output. loss / zero_loss is the noise-to-signal ratio.
        reason: why the solver asked for fell back to `nearest`; "" if it did not.
    """

    form: Form
    loss: float
    nearest_loss: float
    zero_loss: float
    reason: str = ""
