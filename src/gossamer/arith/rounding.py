"""Rounding that keeps what a filter does to a plain area: the sum of its weights.

Nearest rounding leaves each weight right within half a step, but the errors of a filter add up. An edge detector,
whose large weights sum to zero, then answers to plain areas as well. Guo et al. 2022, "SQuant: on-the-fly data-free
quantization via diagonal Hessian approximation", flips the roundings that were closest calls until the errors of a
kernel sum to about zero; this is that step for whole filters.
"""

from __future__ import annotations

import numpy as np


def keep_sums(integers_RK: np.ndarray, real_RK: np.ndarray) -> np.ndarray:
    """Move the weights with the largest rounding error to their other neighbour until each row's errors cancel.

    Args:
        integers_RK: weights rounded to the nearest step, int8.
        real_RK: the weights in steps, before rounding.

    Returns:
        int8 (R, K): each entry less than one step from its weight, each row's sum of errors at most half a step,
        save where that would need a number beyond the 127 steps of the type.
    """
    error_RK = integers_RK.astype(np.float64) - real_RK
    surplus_R = np.rint(error_RK.sum(axis=1))
    direction_R1 = np.sign(surplus_R)[:, None]
    order_RK = np.argsort(-error_RK * direction_R1, axis=1, kind="stable")
    rank_RK = np.argsort(order_RK, axis=1, kind="stable")
    moved_RK = integers_RK - direction_R1 * (rank_RK < np.abs(surplus_R)[:, None])
    return np.asarray(np.clip(moved_RK, -127, 127)).astype(np.int8)
