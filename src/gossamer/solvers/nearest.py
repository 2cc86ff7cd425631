"""The nearest point of a constraint's set, without data: rounding, magnitude, k-means, singular values, the mean."""

from __future__ import annotations

import numpy as np

from gossamer.arith.forms import Form, floats_of
from gossamer.arith.moments import Moments, loss
from gossamer.constraints.contract import Constraint, as_text
from gossamer.errors import DataError, OptionError
from gossamer.solvers.contract import Solved


def solve(w_GOK: np.ndarray, constraint: Constraint, moments: Moments | None, k_shape: tuple[int, ...] = ()) -> Solved:
    """Project, and say what that loses.

    Args:
        w_GOK: float32 weights, see `arith.forms`.
        moments: of the input, which the losses are measured with; None (or not finite) means the identity.
        k_shape: what K was made of, (I, kh, kw) for a convolution.

    Raises:
        OptionError: the constraint cannot apply to this shape; the text says why.
        DataError: a weight is NaN or infinite.
    """
    if not np.isfinite(w_GOK).all():
        raise DataError("a weight is NaN or infinite; no constraint can hold it")
    obstacle = constraint.obstacle(w_GOK.shape, k_shape)
    if obstacle:
        raise OptionError(f"{as_text(constraint)} cannot apply: {obstacle}")
    form = constraint.project(w_GOK, k_shape)
    seen = moments if moments is not None and is_finite(moments) else Moments(None)
    lost = float(loss_of(form, w_GOK, seen).sum())
    return Solved(form, lost, lost, float(_not_negative(loss(w_GOK, seen)).sum()))


def loss_of(form: Form, w_GOK: np.ndarray, moments: Moments) -> np.ndarray:
    """The loss of every output channel, float64 (G, O); what rounding makes negative is zero."""
    return _not_negative(loss(np.asarray(w_GOK, np.float64) - floats_of(form), moments))


def is_finite(moments: Moments) -> bool:
    """Whether the moments are numbers throughout."""
    return all(part is None or bool(np.isfinite(part).all()) for part in (moments.h_GKK, moments.rows_GO))


def _not_negative(loss_GO: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(loss_GO, 0.0))
