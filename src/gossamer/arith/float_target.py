"""The weight that gives a layer's float output from the input that it has once the layers in front are compressed.

Where x is the input in the float network and x^ the one behind what is compressed, the layer should give W x, not W x^:

    minimise over W*:   E |W x - W* x^|^2,   so   W* = W + W D (H + damping)^-1,   H = E[x^ x^T],  D = E[(x - x^) x^T]

with D = C - H of the cross moment C = E[x x^T]; D itself is taken from samples, so that it is zero where nothing
changed. Where s comes past the layer and is added to what it gives, and s^ now, it should give W x + s - s^, and
W D + E[(s - s^) x^^T] takes the place of W D. What a solver then puts into a constraint under H is W*: the loss to W x
is a constant and tr(E H E^T) of E = W* - W'. As in GPTAQ (Li et al. 2025, "GPTAQ: efficient finetuning-free
quantization for asymmetric calibration") and Qronos (Zhang et al. 2025); how far to go is measured here, on samples
that the fit does not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gossamer.arith.damped import factor, plus_damping
from gossamer.arith.moments import Moments, pooled_moments
from gossamer.errors import DataError

DAMPINGS = (0.01, 0.1, 1.0)  # of the mean of H's diagonal


class Drift(NamedTuple):
    """How a layer's input moved when the layers in front were compressed; sums over positions, a sample.

    Attributes:
        h_GKK: E[x^ x^T] of the input as it is now.
        shift_GKK: E[(x - x^) x^T], not symmetric; x is the input in the float network.
        samples: how many were seen.
        beside_GOK: E[(s - s^) x^^T], of what is added to the layer's output; None where nothing is.
    """

    h_GKK: np.ndarray
    shift_GKK: np.ndarray
    samples: int
    beside_GOK: np.ndarray | None = None

    def wanted(self, w_GOK: np.ndarray) -> np.ndarray:
        """What a step should give with the input as it is now: its cross moment with that, float64 (G, O, K)."""
        wanted_GOK = np.asarray(w_GOK, np.float64) @ self.shift_GKK
        return np.asarray(wanted_GOK if self.beside_GOK is None else wanted_GOK + self.beside_GOK)

    @property
    def moved(self) -> bool:
        """Whether anything changed."""
        return bool(np.any(self.shift_GKK)) or (self.beside_GOK is not None and bool(np.any(self.beside_GOK)))


class Target(NamedTuple):
    """What to aim at.

    Attributes:
        w_GOK: float32; the weight itself where nothing better was found.
        share: how much of the fitted step was taken, from 0 to 1.
        gain: by how much that lowers the squared error of the layer's output on samples held out, a sample.
    """

    w_GOK: np.ndarray
    share: float = 0.0
    gain: float = 0.0


def pooled(parts: Sequence[Drift]) -> Drift:
    """All samples of several parts, which must have been seen; arrays of a single part are not copied."""
    if len(parts) == 1:
        return parts[0]
    h = pooled_moments([Moments(part.h_GKK, None, part.samples) for part in parts])
    shift = pooled_moments([Moments(part.shift_GKK, None, part.samples) for part in parts])
    weighed = [part.beside_GOK * (part.samples / max(h.samples, 1)) for part in parts if part.beside_GOK is not None]
    beside_GOK = np.sum(weighed, axis=0) if weighed else None
    return Drift(np.asarray(h.h_GKK), np.asarray(shift.h_GKK), h.samples, beside_GOK)


def target(w_GOK: np.ndarray, fitted: Drift, held: Drift | None) -> Target:
    """The weight moved so far as helps on samples that were not fitted: the best damping, then the best length of step.

    What an input that is always zero now is multiplied with stays.

    Args:
        w_GOK: float32 weights.
        fitted: of the samples that show where to go.
        held: of those that say how far; None, and the weight stays.

    Raises:
        DataError: the moments are not finite.
    """
    best, share_taken = Target(w_GOK), 0.0
    if held is None or not fitted.moved:
        return best
    for damping in DAMPINGS:
        step_GOK = step(w_GOK, fitted, damping)
        share, gain = _best_share(w_GOK, step_GOK, held)
        if gain > best.gain:
            best, share_taken = Target(w_GOK, share, gain), damping
    if not best.share:
        return best
    every = step(w_GOK, pooled((fitted, held)), share_taken)
    return best._replace(w_GOK=(w_GOK + best.share * every).astype(np.float32))


def step(w_GOK: np.ndarray, drift: Drift, damping: float) -> np.ndarray:
    """From W to the least squares fit: W D (H + damping)^-1, float64 (G, O, K).

    Args:
        damping: share of the mean of H's diagonal; ten times that, and so on, where H is not positive definite with it.

    Raises:
        DataError: the moments are not finite.
    """
    if not np.isfinite(drift.shift_GKK.sum()):
        raise DataError("a cross moment of a layer's inputs is NaN or infinite; look for NaN or Inf in the activations")
    damped_GKK = plus_damping(drift.h_GKK, factor(drift.h_GKK, share=damping).damping_G)
    found_GKO = np.linalg.solve(damped_GKK, drift.wanted(w_GOK).swapaxes(1, 2))
    alive_GK = np.diagonal(drift.h_GKK, axis1=1, axis2=2) > 0
    return np.asarray(found_GKO.swapaxes(1, 2) * alive_GK[:, None])


def change_in_loss(w_GOK: np.ndarray, step_GOK: np.ndarray, drift: Drift) -> tuple[float, float]:
    """E|W x + s - s^ - (W + t step) x^|^2 less that at t = 0 is t^2 b - 2 t a; a and b."""
    a = float(np.vdot(drift.wanted(w_GOK), step_GOK))
    return a, float(np.vdot(step_GOK @ drift.h_GKK, step_GOK))


def _best_share(w_GOK: np.ndarray, step_GOK: np.ndarray, held: Drift) -> tuple[float, float]:
    a, b = change_in_loss(w_GOK, step_GOK, held)
    if not (a > 0 and b > 0):
        return 0.0, 0.0
    share = min(1.0, a / b)
    return share, 2 * share * a - share**2 * b
