"""Linear least squares by conjugate gradients (Hestenes and Stiefel 1952), many independent systems at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def improve(
    apply: Callable[[np.ndarray], np.ndarray],
    residual_TP: np.ndarray,
    diagonal_TP: np.ndarray,
    steps: int,
    least_gain: float = 0.0,
) -> np.ndarray:
    """What to add to the parameters so that x^T A x / 2 - residual^T x falls; no step makes it rise.

    Args:
        apply: A times (T, P) parameters, a positive semidefinite system for each entry of T.
        residual_TP: the right-hand side at the present parameters. Zero where parameters must stay.
        diagonal_TP: of A, to precondition with; parameters where it is not positive stay.
        steps: at most so many; fewer once a step gains less than a ten-thousandth of all so far, or than `least_gain`
            (of x^T A x - 2 residual^T x).

    Returns:
        float64 (T, P).
    """
    residual = np.asarray(residual_TP, np.float64)
    moves = (diagonal_TP > 0) & (residual != 0)
    inverse = np.where(moves, 1.0 / np.where(moves, diagonal_TP, 1.0), 0.0)
    change = np.zeros_like(residual)
    direction = inverse * residual
    power_T1 = (residual * direction).sum(axis=1, keepdims=True)
    gained = 0.0
    for _ in range(steps):
        image = apply(direction)
        curvature_T1 = (direction * image).sum(axis=1, keepdims=True)
        usable = (curvature_T1 > 1e-12 * (direction**2 * diagonal_TP).sum(axis=1, keepdims=True)) & (power_T1 > 0)
        length_T1 = np.where(usable, power_T1 / np.where(usable, curvature_T1, 1.0), 0.0)
        change += length_T1 * direction
        residual = residual - length_T1 * image
        gain = float((length_T1 * power_T1).sum())
        gained += gain
        if gain <= max(least_gain, 1e-4 * gained):
            break
        scaled = inverse * residual
        before_T1, power_T1 = power_T1, (residual * scaled).sum(axis=1, keepdims=True)
        direction = (
            scaled + np.where(before_T1 > 0, power_T1 / np.where(before_T1 > 0, before_T1, 1.0), 0.0) * direction
        )
    return change
