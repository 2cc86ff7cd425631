"""Integers that come close to a real vector in the norm of a matrix: the closest vector problem, approximately.

Arrays are (G, K, O): groups with a matrix of their own, the K unknowns, and O vectors side by side. An integer q stands
for (q - zero) * scale; scale and zero broadcast against the integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gossamer.arith.damped import Factor

_BLOCK = 128  # unknowns settled one by one before one matrix product tells all the others


class Lattice(NamedTuple):
    """Which values there are to choose from.

    Attributes:
        scale_GKO: float32, positive.
        zero_GKO: float32, whole numbers.
        low, high: the first and the last integer.
        keep_GKO: where it is False the value is 0, which every lattice has; None is True everywhere.
    """

    scale_GKO: np.ndarray
    zero_GKO: np.ndarray
    low: int
    high: int
    keep_GKO: np.ndarray | None = None

    def values(self, integers_GKO: np.ndarray) -> np.ndarray:
        """What the integers stand for, float64, as float32 arithmetic has it."""
        steps = integers_GKO.astype(np.float32) - self.zero_GKO
        return np.asarray(steps * self.scale_GKO).astype(np.float64)

    def nearest(self, target_GKO: np.ndarray) -> np.ndarray:
        """The integers of the values nearest to real numbers, each for itself, float32."""
        with np.errstate(over="ignore", under="ignore"):  # a quotient beyond float32 saturates like any other
            steps = np.rint(target_GKO.astype(np.float32) / self.scale_GKO) + self.zero_GKO
        integers = np.clip(steps, self.low, self.high)
        return integers if self.keep_GKO is None else np.where(self.keep_GKO, integers, self.zero_GKO)

    def arranged(self, shape: tuple[int, ...], order_GK: np.ndarray | None = None) -> Lattice:
        """The same lattice with arrays of a full shape, its columns in another order."""
        parts = [np.broadcast_to(part, shape) for part in (self.scale_GKO, self.zero_GKO)]
        parts += [] if self.keep_GKO is None else [np.broadcast_to(self.keep_GKO, shape)]
        if order_GK is not None:
            parts = [np.take_along_axis(part, order_GK[:, :, None], axis=1) for part in parts]
        return Lattice(parts[0], parts[1], self.low, self.high, parts[2] if len(parts) > 2 else None)

    def column(self, j: int) -> Lattice:
        """Of one unknown, arrays (G, O); `arranged` lattices only."""
        keep = None if self.keep_GKO is None else self.keep_GKO[:, j]
        return Lattice(self.scale_GKO[:, j], self.zero_GKO[:, j], self.low, self.high, keep)

    def for_each_beginning(self) -> Lattice:
        """With one more axis, of length 1, at the end."""
        keep = None if self.keep_GKO is None else self.keep_GKO[..., None]
        return Lattice(self.scale_GKO[..., None], self.zero_GKO[..., None], self.low, self.high, keep)


# what a column becomes: wanted (G, O), its lattice, what a squared error costs (G, 1), and the integers that it has
Choose = Callable[[np.ndarray, Lattice, np.ndarray, np.ndarray | None], np.ndarray]


def nearest(wanted: np.ndarray, column: Lattice, worth: np.ndarray, now: np.ndarray | None = None) -> np.ndarray:
    """The nearest integer, whatever its error costs."""
    return column.nearest(wanted)


def round_in_order(
    target_GKO: np.ndarray, lattice: Lattice, factor: Factor, choose: Choose = nearest
) -> tuple[np.ndarray, np.ndarray]:
    """Integers rounded one after the other; each makes up for the errors of those before it.

    With H = L L^T, |L^T (w - v)|^2 is a sum of squares of which the last involves one unknown, the one before it two,
    and so on: from the last to the first, each is rounded to what is best given those already settled. This is Babai's
    nearest plane (1986), which GPTQ (Frantar et al., 2022) and OBQ with a fixed order compute too (Chen et al., 2025,
    "The geometry of LLM quantization"), but without the inverse of H.

    Args:
        choose: what each number becomes.

    Returns:
        float32 (G, K, O), whole numbers; and |L^T (w - v)|^2, float64 (G, O).
    """
    target = np.take_along_axis(target_GKO, factor.order_GK[:, :, None], axis=1)
    lattice = lattice.arranged(target.shape, factor.order_GK)
    diagonal_GK = np.diagonal(factor.lower_GKK, axis1=1, axis2=2)
    pull = factor.lower_GKK.transpose(0, 2, 1) / diagonal_GK[:, :, None]
    integers = np.empty(target.shape, np.float32)
    error = np.zeros(target.shape)
    cost = np.zeros((target.shape[0], target.shape[2]))
    for stop in range(target.shape[1], 0, -_BLOCK):
        start = max(0, stop - _BLOCK)
        moved = target[:, start:stop] + pull[:, start:stop, stop:] @ error[:, stop:]
        for j in range(stop - 1, start - 1, -1):
            wanted = moved[:, j - start] + (pull[:, j : j + 1, j + 1 : stop] @ error[:, j + 1 : stop])[:, 0]
            column = lattice.column(j)
            integers[:, j] = choose(wanted, column, diagonal_GK[:, j, None] ** 2, None)
            values = column.values(integers[:, j])
            error[:, j] = target[:, j] - values
            cost += (diagonal_GK[:, j, None] * (wanted - values)) ** 2
    return _back(integers, factor), cost


def search_in_order(
    target_GKO: np.ndarray, lattice: Lattice, factor: Factor, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Like `round_in_order`, but follows the `width` best beginnings instead of one (the K-best sphere decoder).

    Time and memory are width times as much and more: for few unknowns.

    Returns:
        float32 (G, K, O), whole numbers; and |L^T (w - v)|^2, float64 (G, O).
    """
    target = np.take_along_axis(target_GKO, factor.order_GK[:, :, None], axis=1)
    lattice = lattice.arranged(target.shape, factor.order_GK)
    diagonal_GK = np.diagonal(factor.lower_GKK, axis1=1, axis2=2)
    pull = factor.lower_GKK.transpose(0, 2, 1) / diagonal_GK[:, :, None]
    groups, columns, outputs = target.shape
    left = np.repeat(target[..., None], 1, axis=3)  # what each beginning wants of the columns to come
    cost = np.zeros((groups, outputs, 1))
    chosen: list[np.ndarray] = []
    parents: list[np.ndarray] = []
    for j in range(columns - 1, -1, -1):
        wanted = left[:, j]
        column = lattice.column(j).for_each_beginning()
        first = column.nearest(wanted)
        gap = wanted - column.values(first)
        second = np.clip(first + np.where(gap < 0, -1, 1), lattice.low, lattice.high).astype(np.float32)
        second = second if column.keep_GKO is None else np.where(column.keep_GKO, second, first)
        other_gap = wanted - column.values(second)
        square = diagonal_GK[:, j, None, None] ** 2
        costs = [cost + square * gap**2, np.where(second == first, np.inf, cost + square * other_gap**2)]
        best = np.argsort(np.concatenate(costs, axis=2), axis=2, kind="stable")[:, :, :width]
        cost = np.take_along_axis(np.concatenate(costs, axis=2), best, axis=2)
        parents.append(best % first.shape[2])
        chosen.append(np.take_along_axis(np.concatenate([first, second], axis=2), best, axis=2))
        wanted = np.take_along_axis(wanted, parents[-1], axis=2)
        error = target[:, j, :, None] - (chosen[-1] - column.zero_GKO) * column.scale_GKO
        error = np.where(np.isfinite(cost), error, 0.0)
        left = np.take_along_axis(left[:, :j], parents[-1][:, None], axis=3)
        left += pull[:, :j, j, None, None] * error[:, None]
    return _back(_traced(chosen, parents), factor), cost[:, :, 0]


def descend(
    integers_GKO: np.ndarray,
    lattice: Lattice,
    h_GKK: np.ndarray,
    pressure_GKO: np.ndarray,
    choose: Choose = nearest,
) -> np.ndarray:
    """One round of coordinate descent: every integer in turn takes its best value given all the others.

    As in QuantEase (Behdin et al., 2023). The objective never grows, and where the diagonal of H is 0 nothing moves.

    Args:
        pressure_GKO: H (target - values), the negative half of the gradient; is kept up to date in place.

    Returns:
        float32 (G, K, O), whole numbers.
    """
    integers = np.array(integers_GKO, np.float32)
    lattice = lattice.arranged(integers.shape)
    diagonal_GK = np.diagonal(h_GKK, axis1=1, axis2=2)
    gain_GK = np.divide(1.0, diagonal_GK, out=np.zeros(diagonal_GK.shape), where=diagonal_GK > 0)
    values = lattice.values(integers)
    for start in range(0, integers.shape[1], _BLOCK):
        stop = min(start + _BLOCK, integers.shape[1])
        step = np.zeros((len(integers), stop - start, integers.shape[2]))
        for j in range(start, stop):
            pressure = pressure_GKO[:, j] - (h_GKK[:, j : j + 1, start:j] @ step[:, : j - start])[:, 0]
            column = lattice.column(j)
            wanted = values[:, j] + pressure * gain_GK[:, j, None]
            integers[:, j] = choose(wanted, column, diagonal_GK[:, j, None], integers[:, j])
            step[:, j - start] = column.values(integers[:, j]) - values[:, j]
        pressure_GKO -= h_GKK[:, :, start:stop] @ step
    return integers


def _traced(chosen: list[np.ndarray], parents: list[np.ndarray]) -> np.ndarray:
    """The integers of the best ending, from the first column settled, the last of all, on."""
    groups, outputs = chosen[-1].shape[:2]
    integers = np.empty((groups, len(chosen), outputs), np.float32)
    which = np.zeros((groups, outputs, 1), np.intp)
    for j in range(len(chosen)):
        integers[:, j] = np.take_along_axis(chosen[-1 - j], which, axis=2)[:, :, 0]
        which = np.take_along_axis(parents[-1 - j], which, axis=2)
    return integers


def _back(integers: np.ndarray, factor: Factor) -> np.ndarray:
    restored = np.empty_like(integers)
    np.put_along_axis(restored, factor.order_GK[:, :, None], integers, axis=1)
    return restored
