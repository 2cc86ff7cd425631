"""Grids of 4 or 8 bits for weights: one scale for a tensor, a channel, or a group of consecutive weights.

The integers of 4 bits travel in int8 arrays, from -8 to 7. An integer q stands for (q - zero_point) * scale, computed
in float32, as in `arith.affine`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from gossamer.arith.affine import LARGEST_SCALE, SHRINK_FACTORS, SMALLEST_SCALE
from gossamer.errors import DataError

Bits = Literal[8, 4]


class Grid(NamedTuple):
    """Weights on a grid. The three arrays have as many axes, and broadcast against each other.

    Attributes:
        integers: int8.
        scale: float32, of length 1 along the axes that share one.
        zero_point: int8, the shape of `scale`; all zeros if the grid is symmetric.
        bits: 8 or 4.
    """

    integers: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    bits: Bits

    def real(self) -> np.ndarray:
        """The weights that the integers stand for, float32."""
        steps = self.integers.astype(np.float32) - self.zero_point.astype(np.float32)
        return np.asarray(steps * self.scale)


def in_groups(w: np.ndarray, axis: int, group: int) -> np.ndarray:
    """A view with `axis` split in two: the groups, and the `group` weights of each."""
    return w.reshape(*w.shape[:axis], -1, group, *w.shape[axis + 1 :])


def weight_grid(w: np.ndarray, shared: tuple[int, ...], bits: Bits, symmetric: bool = True, mse: bool = False) -> Grid:
    """The nearest integers to weights, each share of which has a scale that reaches its largest magnitude.

    Symmetric grids have the zero point 0 and reach that magnitude 127 (or 7) steps away. Asymmetric ones spread all
    256 (or 16) integers from the least to the largest weight, 0 included.

    Args:
        w: float weights of any shape.
        shared: the axes along which weights share a scale.
        mse: of the scales shrunk by 1, 0.975, ... 0.5, take each share's best in the sum of squared errors; no share
            is worse than without.

    Raises:
        DataError: a weight is NaN or infinite.
    """
    w = np.asarray(w, np.float32)
    if not np.isfinite(w).all():
        raise DataError("a weight is NaN or infinite; no grid can hold it")
    low = w.min(axis=shared, keepdims=True, initial=0.0).astype(np.float64)
    high = w.max(axis=shared, keepdims=True, initial=0.0).astype(np.float64)
    best = _rounded(w, *_parameters(low, high, bits, symmetric), bits)
    least = _error(w, best, shared)
    for factor in SHRINK_FACTORS[1:] if mse else ():
        tried = _rounded(w, *_parameters(low * factor, high * factor, bits, symmetric), bits)
        error = _error(w, tried, shared)
        better = error < least
        integers, scale, zero_point = (np.where(better, tried[part], best[part]) for part in range(3))
        best = Grid(integers, scale, zero_point, bits)
        least = np.minimum(error, least)
    return best


def _parameters(low: np.ndarray, high: np.ndarray, bits: Bits, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    half = 2 ** (bits - 1)
    width = np.maximum(-low, high) / (half - 1) if symmetric else (high - low) / (2 * half - 1)
    scale = np.where(width == 0, 1.0, np.clip(width, SMALLEST_SCALE, LARGEST_SCALE)).astype(np.float32)
    zero_point = np.zeros(scale.shape) if symmetric else np.rint(-half - low / scale.astype(np.float64))
    return scale, np.clip(zero_point, -half, half - 1).astype(np.int8)


def _rounded(w: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, bits: Bits) -> Grid:
    half = 2 ** (bits - 1)
    with np.errstate(over="ignore", under="ignore"):  # a quotient beyond float32 saturates like any other
        steps = np.rint(w / scale) + zero_point.astype(np.float32)
    return Grid(np.clip(steps, -half, half - 1).astype(np.int8), scale, zero_point, bits)


def _error(w: np.ndarray, grid: Grid, shared: tuple[int, ...]) -> np.ndarray:
    error = (grid.real() - w).astype(np.float64)
    return np.asarray((error * error).sum(axis=shared, keepdims=True))
