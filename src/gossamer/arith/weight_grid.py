"""Grids of 2 to 8 or 16 bits for weights: one scale for a tensor, a channel, or a group of consecutive weights.

Integers of fewer than 8 bits travel in int8 arrays, those of 4 bits from -8 to 7. An integer q stands for
(q - zero_point) * scale, computed in float32, as in `arith.affine`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from gossamer.arith.affine import LARGEST_SCALE, SHRINK_FACTORS, SMALLEST_SCALE
from gossamer.errors import DataError

Bits = Literal[2, 3, 4, 5, 6, 7, 8, 16]
TRIED_AT_ONCE = 1 << 18  # shares times scales, to see whether weights lie on a grid


class Grid(NamedTuple):
    """Weights on a grid. The three arrays have as many axes, and broadcast against each other.

    Attributes:
        integers: int8; int16 if they have 16 bits.
        scale: float32, of length 1 along the axes that share one.
        zero_point: of the integers' type, the shape of `scale`; all zeros if the grid is symmetric.
        bits: of an integer.
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

    Symmetric grids have the zero point 0 and reach that magnitude 127 steps away (7 with 4 bits, 1 with 2). Asymmetric
    ones spread all 256 (16, 4) integers from the least to the largest weight, 0 included.

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


def reach_both_ends(w: np.ndarray, grid: Grid, shared: tuple[int, ...]) -> Grid:
    """An asymmetric grid whose least and largest weights take the first and the last integer.

    Both are within half a step of theirs, but where that half is exact one may have been rounded to the integer beside
    it. The weights of such a grid span a step less than it has, and would get a finer grid the next time.

    Args:
        w, shared: what `weight_grid` made the grid of.
    """
    half = 2 ** (grid.bits - 1)
    low, high = w.min(axis=shared, keepdims=True, initial=0.0), w.max(axis=shared, keepdims=True, initial=0.0)
    steps = (high.astype(np.float64) - low) / grid.scale
    spans = steps > 2 * half - 1.5  # not so where the smallest scale is larger than the weights ask for
    integers = np.where(spans & (w == low), -half, np.where(spans & (w == high), half - 1, grid.integers))
    return grid._replace(integers=integers.astype(grid.integers.dtype))


def lies_on_grid(w_SN: np.ndarray, bits: Bits, symmetric: bool) -> bool:
    """Whether each share (row) has a scale under which its weights are integers, within the rounding of float32.

    The largest magnitude is some number of steps; all numbers are tried.
    """
    half = 2 ** (bits - 1)
    most = half if symmetric else 2 * half - 1
    left_SN = np.asarray(w_SN[(w_SN != 0).any(axis=1)], np.float64)
    left_SN = np.take_along_axis(left_SN, np.argsort(-np.abs(left_SN), axis=1), axis=1)
    at_once = max(1, TRIED_AT_ONCE // max(1, len(left_SN)))
    for first in range(most, 0, -at_once):
        if not len(left_SN):
            break
        steps_C = np.arange(first, max(first - at_once, 0), -1)
        scale_SC = np.abs(left_SN[:, :1]) / steps_C
        fits_SC = _near_integers(left_SN[:, None, :6] / scale_SC[:, :, None])  # a few weights rule most scales out
        for column in np.flatnonzero(fits_SC.any(axis=0)):
            rows = fits_SC[:, column]
            fits_SC[rows, column] = _fits(left_SN[rows] / scale_SC[rows, column, None], half, symmetric)
        left_SN = left_SN[~fits_SC.any(axis=1)]
    return not len(left_SN)


def integers_type(bits: Bits) -> type[np.signedinteger]:
    """What an array of such integers is made of."""
    return np.int16 if bits == 16 else np.int8


def _near_integers(steps: np.ndarray) -> np.ndarray:
    """Whether all numbers along the last axis are."""
    return np.asarray((np.abs(steps - np.rint(steps)) <= 3e-7 * np.maximum(np.abs(steps), 1)).all(axis=-1))


def _fits(steps_SN: np.ndarray, half: int, symmetric: bool) -> np.ndarray:
    integers_SN = np.rint(steps_SN)
    low_S, high_S = integers_SN.min(axis=1, initial=0), integers_SN.max(axis=1, initial=0)
    inside_S = (low_S >= -half) & (high_S < half) if symmetric else high_S - low_S < 2 * half
    return np.asarray(inside_S & _near_integers(steps_SN))


def _parameters(low: np.ndarray, high: np.ndarray, bits: Bits, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    half = 2 ** (bits - 1)
    width = np.maximum(-low, high) / (half - 1) if symmetric else (high - low) / (2 * half - 1)
    scale = np.where(width == 0, 1.0, np.clip(width, SMALLEST_SCALE, LARGEST_SCALE)).astype(np.float32)
    zero_point = np.zeros(scale.shape) if symmetric else np.rint(-half - low / scale.astype(np.float64))
    return scale, np.clip(zero_point, -half, half - 1).astype(integers_type(bits))


def _rounded(w: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, bits: Bits) -> Grid:
    half = 2 ** (bits - 1)
    with np.errstate(over="ignore", under="ignore"):  # a quotient beyond float32 saturates like any other
        steps = np.rint(w / scale) + zero_point.astype(np.float32)
    return Grid(np.clip(steps, -half, half - 1).astype(integers_type(bits)), scale, zero_point, bits)


def _error(w: np.ndarray, grid: Grid, shared: tuple[int, ...]) -> np.ndarray:
    error = (grid.real() - w).astype(np.float64)
    return np.asarray((error * error).sum(axis=shared, keepdims=True))
