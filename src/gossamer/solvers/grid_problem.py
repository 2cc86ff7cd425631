"""A weight's grid as a problem of integers and scales: what all ways to round it have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gossamer.arith import weight_grid
from gossamer.arith.affine import SMALLEST_SCALE
from gossamer.arith.damped import Factor, activation_order, column_worth, factor, plus_damping
from gossamer.arith.lattice import Lattice
from gossamer.arith.moments import Moments
from gossamer.constraints.grid import Grid
from gossamer.constraints.sparse import Sparse
from gossamer.solvers import remove_weights

LARGE = 500_000_000  # multiplications of a try
TOGETHER = 4_000_000  # unknowns of several tries that are solved side by side
# target (G, K, O), what each row counts (G, O), lattice -> integers, and the loss of each row before it is counted so
Rounded = Callable[[np.ndarray, np.ndarray, Lattice], tuple[np.ndarray, np.ndarray]]


class Problem(NamedTuple):
    """Find integers: target (G, K, O), H damped, or None for the identity, H target, and the factor of H.

    `per` is how many columns share a scale, or 0 if the whole tensor does; rows_GO weighs rows.
    """

    target_GKO: np.ndarray
    h_GKK: np.ndarray | None
    heard_GKO: np.ndarray | None
    factor: Factor | None
    dead_GK: np.ndarray
    keep_GKO: np.ndarray | None
    rows_GO: np.ndarray
    per: int
    bits: weight_grid.Bits


class Point(NamedTuple):
    """Integers (G, K, O), scales and zero points (G, N, O) or (1, 1, 1), float32, and the loss of each row, (G, O)."""

    integers: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    loss_GO: np.ndarray


def problem_of(
    w_GOK: np.ndarray,
    grid: Grid,
    sparse: Sparse | None,
    moments: Moments,
    at: weight_grid.Grid | None,
    order_GK: np.ndarray | None = None,
) -> tuple[Problem, Point]:
    """What is to be found, and plain rounding as a start, at the scales of `at` or of the weights that count.

    Args:
        order_GK: in which columns are rounded; from the least to the most active one, if None.
    """
    h, keep = moments.h_GKK, None
    dead = np.zeros(w_GOK.shape[::2], bool) if h is None else np.diagonal(h, axis1=1, axis2=2) <= 0
    aim = np.where(dead[:, None, :], np.float32(0), w_GOK)  # what is never heard must not stretch the scale of what is
    if sparse is not None:
        # For integers that are zero where `aim` is, the loss is that of `aim` plus that of moving on from there.
        aim = remove_weights.solve(w_GOK, sparse, moments).w_GOK
        keep = columns_first(aim != 0)
    made = None if h is None else factor(h, activation_order(h) if order_GK is None else order_GK)
    damped = None if h is None or made is None else plus_damping(h, made.damping_G)
    rows = np.ones(w_GOK.shape[:2]) if moments.rows_GO is None else np.asarray(moments.rows_GO, np.float64)
    per = {"tensor": 0, "channel": w_GOK.shape[2]}.get(str(grid.granularity), grid.granularity)
    target = columns_first(np.asarray(aim, np.float64))
    heard = None if damped is None else damped @ target
    problem = Problem(target, damped, heard, made, dead, keep, rows, int(per), grid.bits)
    first = grid.project(aim) if at is None else at
    scale, zero = (
        columns_first(part.reshape(*part.shape[:2], -1)).astype(np.float32) for part in (first.scale, first.zero_point)
    )
    integers = lattice_of(problem, scale, zero).nearest(target)
    return problem, measured(problem, integers, scale, zero)


def refitted(problem: Problem, values: np.ndarray, scale: np.ndarray, pressure: np.ndarray) -> np.ndarray:
    """The scales of least squares for these integers; those of a row's groups one after the other.

    Args:
        pressure: H (target - values), kept up to date in place.
    """
    h, rows, found = problem.h_GKK, problem.rows_GO[:, None], scale.copy()
    groups = scale.shape[1]
    width = values.shape[1] // groups
    for group in range(groups):
        columns = slice(group * width, (group + 1) * width)
        mine = values[:, columns]
        if h is None:
            heard = mine
        elif groups == 1 and problem.heard_GKO is not None:
            heard = problem.heard_GKO - pressure
        else:
            heard = h[:, columns, columns] @ mine
        energy = (rows * mine * heard).sum(axis=1, keepdims=True)
        gain = (rows * mine * pressure[:, columns]).sum(axis=1, keepdims=True)
        if problem.per == 0:
            energy, gain = energy.sum(keepdims=True), gain.sum(keepdims=True)
        by = np.divide(gain, energy, out=np.zeros_like(gain), where=energy > 0)
        old = scale[:, group : group + 1]
        new = (old * (1 + by)).astype(np.float32)
        new = np.where(new > SMALLEST_SCALE, new, old)
        found[:, group : group + 1] = new
        by = new.astype(np.float64) / old - 1
        if h is None or groups == 1:
            pressure[:, columns] -= by * heard
        else:
            pressure -= h[:, :, columns] @ (by * mine)
    return np.asarray(found)


def lattice_of(problem: Problem, scale: np.ndarray, zero: np.ndarray) -> Lattice:
    half = 2 ** (problem.bits - 1)
    return Lattice(_spread(scale, problem), _spread(zero, problem), -half, half - 1, problem.keep_GKO)


def _spread(shared: np.ndarray, problem: Problem) -> np.ndarray:
    """Scales or zero points, (G, N, O), as they apply to columns."""
    return np.repeat(shared, problem.per, axis=1) if shared.shape[1] > 1 else shared


def pooled(problem: Problem, x_GKO: np.ndarray) -> np.ndarray:
    """Sums over what shares a scale, in the shape of the scales."""
    if problem.per == 0:
        return np.asarray(x_GKO.sum(keepdims=True))
    groups, columns, outputs = x_GKO.shape
    return np.asarray(x_GKO.reshape(groups, columns // problem.per, problem.per, outputs).sum(axis=2))


def measured(problem: Problem, integers: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> Point:
    error = problem.target_GKO - lattice_of(problem, scale, zero).values(integers)
    heard = error if problem.h_GKK is None else problem.h_GKK @ error
    return Point(integers, scale, zero, np.einsum("gko,gko->go", error, heard) * problem.rows_GO)


def best_of(problem: Problem, tried: list[Point], best: Point) -> Point:
    """Of each row the best point, or of the whole tensor where it shares one scale."""
    for one in tried:
        better_GO = one.loss_GO < best.loss_GO
        if problem.per == 0:
            better_GO = np.full(better_GO.shape, one.loss_GO.sum() < best.loss_GO.sum())
        rows = better_GO[:, None]
        shared = rows[:1, :, :1] if problem.per == 0 else rows
        best = Point(
            np.where(rows, one.integers, best.integers),
            np.where(shared, one.scale, best.scale),
            np.where(shared, one.zero, best.zero),
            np.where(better_GO, one.loss_GO, best.loss_GO),
        )
    return best


def with_dead(problem: Problem, point: Point, w_GOK: np.ndarray) -> np.ndarray:
    """Integers in which columns that are always zero, free to be anything, are the nearest ones."""
    if problem.h_GKK is None or problem.keep_GKO is not None:
        return point.integers
    nearest = lattice_of(problem, point.scale, point.zero).nearest(columns_first(w_GOK))
    return np.where(problem.dead_GK[:, :, None], nearest, point.integers)


def grid_of(point: Point, problem: Problem, like: weight_grid.Grid) -> weight_grid.Grid:
    integers, scale, zero = (columns_last(part) for part in point[:3])
    kind = like.integers.dtype
    return weight_grid.Grid(
        integers.reshape(like.integers.shape).astype(kind),
        scale.reshape(like.scale.shape),
        zero.reshape(like.zero_point.shape).astype(kind),
        problem.bits,
    )


def columns_first(x_GOK: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x_GOK.transpose(0, 2, 1))


def columns_last(x_GKO: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x_GKO.transpose(0, 2, 1))


def worth_of(problem: Problem) -> np.ndarray:
    """What an error of each unknown costs once the columns after it have made up for it, (G, K, O) or (G, 1, O)."""
    rows = problem.rows_GO[:, None]
    if problem.factor is None:
        return rows
    return np.asarray(column_worth(problem.factor)[:, :, None] * rows)


def side_by_side(problem: Problem, scales: Sequence[np.ndarray], zero: np.ndarray, rounded: Rounded) -> list[Point]:
    """Integers at several scales; tries that are solved together share each step along the columns."""
    shape, together = problem.target_GKO.shape, max(1, TOGETHER // problem.target_GKO.size)
    found: list[Point] = []
    for first in range(0, len(scales), together):
        some = scales[first : first + together]
        lattices = [lattice_of(problem, one, zero).arranged(shape) for one in some]
        lattice = Lattice(
            np.concatenate([one.scale_GKO for one in lattices], axis=2),
            np.concatenate([one.zero_GKO for one in lattices], axis=2),
            lattices[0].low,
            lattices[0].high,
            None if problem.keep_GKO is None else np.concatenate([problem.keep_GKO] * len(some), axis=2),
        )
        target = np.concatenate([problem.target_GKO] * len(some), axis=2)
        integers, cost = rounded(target, np.concatenate([problem.rows_GO] * len(some), axis=1), lattice)
        parts = zip(np.split(integers, len(some), axis=2), some, np.split(cost, len(some), axis=1), strict=True)
        found += [Point(part, one, zero, loss_GO * problem.rows_GO) for part, one, loss_GO in parts]
    return found
