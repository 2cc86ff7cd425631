"""Integers of a few bits at the least loss: scales chosen by it, then rounding in which each error is made up for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gossamer.arith import weight_grid
from gossamer.arith.affine import SMALLEST_SCALE
from gossamer.arith.damped import Factor, activation_order, factor, plus_damping
from gossamer.arith.lattice import Lattice, descend, round_in_order, search_in_order
from gossamer.arith.moments import Moments, loss
from gossamer.constraints.composed import Composed
from gossamer.constraints.grid import Grid
from gossamer.constraints.sparse import Sparse
from gossamer.errors import OptionError
from gossamer.solvers import remove_weights

_SHRINK = np.geomspace(1.0, 0.25, 41)  # of the scales that reach the largest weights
_NEARBY = ((0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1), (0.96, 0.98, 1.0, 1.02))  # tried in full, around the best so far
_NEARBY_LARGE = ((0.92, 1.0, 1.08),)  # where one try takes long
_LARGE = 500_000_000  # multiplications of a try
_TOGETHER = 4_000_000  # unknowns of several tries that are solved side by side
_ENOUGH = 0.999  # rounds of descent end when they leave more than this of the loss
_ROUNDS = 6
_WIDTH = 16  # of the search where it is affordable, and how much that is
_AFFORDABLE = 100_000_000


class _Problem(NamedTuple):
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


class _Point(NamedTuple):
    """Integers (G, K, O), scales and zero points (G, N, O) or (1, 1, 1), float32, and the loss of each row, (G, O)."""

    integers: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    loss_GO: np.ndarray


def solve(
    w_GOK: np.ndarray,
    constraint: Grid | Composed,
    moments: Moments,
    k_shape: tuple[int, ...] = (),
    *,
    compensate: bool = True,
    search: bool = True,
) -> weight_grid.Grid:
    """Weights as integers, chosen for the layer's output rather than one by one; never worse than the nearest ones.

    The scales are shrunk from those of `constraint.project` by what is best for every channel (or group, or tensor) in
    the error that rounding with compensation will leave. Then columns are rounded from the most to the least active,
    each making up for the errors before it (OBQ and GPTQ, Frantar et al., 2022), at several scales around the chosen
    ones; the best of each row goes on to coordinate descent on its integers (QuantEase, Behdin et al., 2023) in turn
    with least squares on its scales. With few columns several beginnings are followed at once (a K-best sphere
    decoder). A sparse weight is pruned and rounded in the same sweep: `remove_weights` says which weights stay, and
    their integers are chosen to make up for the others too.

    If H is diagonal and `search` is off, this is plain rounding; with `search`, it is plain rounding at better scales.

    Args:
        w_GOK: float (G, O, K).
        compensate: False rounds every weight for itself at the scales of `project`: the nearest solver's result.
        search: False keeps the scales of `project`.

    Raises:
        OptionError: the constraint cannot apply to this shape.
        DataError: a weight or a moment is NaN or infinite.
    """
    match constraint:
        case Grid():
            grid, sparse = constraint, None
        case Composed(first=Sparse() as sparse, then=Grid() as grid):
            pass
        case _:
            raise OptionError(f"only weights on a grid, sparse or not, can be rounded; got {constraint}")
    nearest = grid.project(w_GOK if sparse is None else sparse.project(w_GOK).w_GOK)  # as constraint.project has it
    if not compensate or not w_GOK.size:
        return nearest
    h = moments.h_GKK
    if h is not None and not np.diagonal(h, axis1=1, axis2=2).any():
        return nearest
    problem, start = _problem(w_GOK, grid, sparse, moments, None if search else nearest)
    if search:
        point = _improved(problem, start)
    else:
        point = _best(problem, _tried(problem, start.scale, start.zero, (1.0,)), start)
        point = _descended(problem, point, refit=False)
    point = point._replace(integers=_with_dead(problem, point, w_GOK))
    whole = problem.per == 0 or problem.keep_GKO is not None  # rows from two results would have other zeros in all
    return _better(_grid(point, problem, nearest), nearest, w_GOK, moments, whole)


def _problem(
    w_GOK: np.ndarray, grid: Grid, sparse: Sparse | None, moments: Moments, at: weight_grid.Grid | None
) -> tuple[_Problem, _Point]:
    """What is to be found, and plain rounding as a start, at the scales of `at` or of the weights that count."""
    h, keep = moments.h_GKK, None
    dead = np.zeros(w_GOK.shape[::2], bool) if h is None else np.diagonal(h, axis1=1, axis2=2) <= 0
    aim = np.where(dead[:, None, :], np.float32(0), w_GOK)  # what is never heard must not stretch the scale of what is
    if sparse is not None:
        # For integers that are zero where `aim` is, the loss is that of `aim` plus that of moving on from there.
        aim = remove_weights.solve(w_GOK, sparse, moments).w_GOK
        keep = _columns_first(aim != 0)
    made = None if h is None else factor(h, activation_order(h))
    damped = None if h is None or made is None else plus_damping(h, made.damping_G)
    rows = np.ones(w_GOK.shape[:2]) if moments.rows_GO is None else np.asarray(moments.rows_GO, np.float64)
    per = {"tensor": 0, "channel": w_GOK.shape[2]}.get(str(grid.granularity), grid.granularity)
    target = _columns_first(np.asarray(aim, np.float64))
    heard = None if damped is None else damped @ target
    problem = _Problem(target, damped, heard, made, dead, keep, rows, int(per), grid.bits)
    first = grid.project(aim) if at is None else at
    scale, zero = (
        _columns_first(part.reshape(*part.shape[:2], -1)).astype(np.float32) for part in (first.scale, first.zero_point)
    )
    integers = _lattice(problem, scale, zero).nearest(target)
    return problem, _measured(problem, integers, scale, zero)


def _improved(problem: _Problem, start: _Point) -> _Point:
    scale = _promising(problem, start.scale, start.zero)
    point = start
    large = problem.target_GKO.size * problem.target_GKO.shape[1] > _LARGE
    for factors in _NEARBY_LARGE if large else _NEARBY:
        point = _best(problem, _tried(problem, scale, start.zero, factors), point)
        point = _descended(problem, point, refit=True)
        scale = point.scale
    return point


def _promising(problem: _Problem, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """Of shrunk scales, each share's best in the error that compensation cannot remove.

    A rounding error of column j costs its square times L_jj^2, whatever the columns settled before it did; H_jj would
    count what the columns after it make up for as well.
    """
    target = problem.target_GKO
    weight = problem.rows_GO[:, None]
    if problem.factor is not None:
        square_GK = np.diagonal(problem.factor.lower_GKK, axis1=1, axis2=2) ** 2
        weight_GK = np.empty_like(square_GK)
        np.put_along_axis(weight_GK, problem.factor.order_GK, square_GK, axis=1)
        weight = weight * weight_GK[:, :, None]
    best, least = scale, None
    for shrink in _SHRINK.astype(np.float32):
        tried = np.maximum(scale * shrink, SMALLEST_SCALE).astype(np.float32)
        lattice = _lattice(problem, tried, zero)
        error = _pooled(problem, weight * (target - lattice.values(lattice.nearest(target))) ** 2)
        best = best if least is None else np.where(error < least, tried, best)
        least = error if least is None else np.minimum(error, least)
    return np.asarray(best, np.float32)


def _tried(problem: _Problem, scale: np.ndarray, zero: np.ndarray, factors: tuple[float, ...]) -> list[_Point]:
    """Rounding with compensation at several scales; several tries side by side share each step along the columns."""
    shape = problem.target_GKO.shape
    scales = [np.maximum(scale * np.float32(by), SMALLEST_SCALE).astype(np.float32) for by in factors]
    together = max(1, _TOGETHER // problem.target_GKO.size)
    found: list[_Point] = []
    for first in range(0, len(scales), together):
        some = scales[first : first + together]
        lattices = [_lattice(problem, one, zero).arranged(shape) for one in some]
        side_by_side = Lattice(
            np.concatenate([one.scale_GKO for one in lattices], axis=2),
            np.concatenate([one.zero_GKO for one in lattices], axis=2),
            lattices[0].low,
            lattices[0].high,
            None if problem.keep_GKO is None else np.concatenate([problem.keep_GKO] * len(some), axis=2),
        )
        target = np.concatenate([problem.target_GKO] * len(some), axis=2)
        integers, cost = _rounded(problem, target, side_by_side)
        parts = zip(np.split(integers, len(some), axis=2), some, np.split(cost, len(some), axis=1), strict=True)
        found += [_Point(part, one, zero, loss_GO * problem.rows_GO) for part, one, loss_GO in parts]
    return found


def _rounded(problem: _Problem, target: np.ndarray, lattice: Lattice) -> tuple[np.ndarray, np.ndarray]:
    if problem.factor is None:
        integers = lattice.nearest(target)
        return integers, ((target - lattice.values(integers)) ** 2).sum(axis=1)
    if target.size * target.shape[1] * _WIDTH <= _AFFORDABLE:
        return search_in_order(target, lattice, problem.factor, _WIDTH)
    return round_in_order(target, lattice, problem.factor)


def _descended(problem: _Problem, point: _Point, refit: bool) -> _Point:
    """Coordinate descent in turn with least squares on the scales, until neither gains."""
    target, h, heard = problem.target_GKO, problem.h_GKK, problem.heard_GKO
    if h is None or heard is None:
        return _alternated(problem, point) if refit else point
    start, loss_GO = point, point.loss_GO
    integers, scale = point.integers, point.scale
    values = _lattice(problem, scale, point.zero).values(integers)
    pressure = heard - h @ values
    for _ in range(_ROUNDS):
        before = loss_GO.sum()
        integers = descend(target, integers, _lattice(problem, scale, point.zero), h, pressure)
        values = _lattice(problem, scale, point.zero).values(integers)
        if refit:
            scale = _refit(problem, values, scale, pressure)
            values = _lattice(problem, scale, point.zero).values(integers)
        loss_GO = np.einsum("gko,gko->go", target - values, pressure) * problem.rows_GO
        if loss_GO.sum() >= before * _ENOUGH:
            break
    return _best(problem, [_Point(integers, scale, point.zero, loss_GO)], start)


def _alternated(problem: _Problem, point: _Point) -> _Point:
    """Without H: rounding in turn with least squares on the scales."""
    for _ in range(_ROUNDS):
        before = point.loss_GO.sum()
        values = _lattice(problem, point.scale, point.zero).values(point.integers)
        scale = _refit(problem, values, point.scale, problem.target_GKO - values)
        integers = _lattice(problem, scale, point.zero).nearest(problem.target_GKO)
        point = _best(problem, [_measured(problem, integers, scale, point.zero)], point)
        if point.loss_GO.sum() >= before * _ENOUGH:
            break
    return point


def _refit(problem: _Problem, values: np.ndarray, scale: np.ndarray, pressure: np.ndarray) -> np.ndarray:
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


def _lattice(problem: _Problem, scale: np.ndarray, zero: np.ndarray) -> Lattice:
    half = 2 ** (problem.bits - 1)
    return Lattice(_spread(scale, problem), _spread(zero, problem), -half, half - 1, problem.keep_GKO)


def _spread(shared: np.ndarray, problem: _Problem) -> np.ndarray:
    """Scales or zero points, (G, N, O), as they apply to columns."""
    return np.repeat(shared, problem.per, axis=1) if shared.shape[1] > 1 else shared


def _pooled(problem: _Problem, x_GKO: np.ndarray) -> np.ndarray:
    """Sums over what shares a scale, in the shape of the scales."""
    if problem.per == 0:
        return np.asarray(x_GKO.sum(keepdims=True))
    groups, columns, outputs = x_GKO.shape
    return np.asarray(x_GKO.reshape(groups, columns // problem.per, problem.per, outputs).sum(axis=2))


def _measured(problem: _Problem, integers: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> _Point:
    error = problem.target_GKO - _lattice(problem, scale, zero).values(integers)
    heard = error if problem.h_GKK is None else problem.h_GKK @ error
    return _Point(integers, scale, zero, np.einsum("gko,gko->go", error, heard) * problem.rows_GO)


def _best(problem: _Problem, tried: list[_Point], best: _Point) -> _Point:
    """Of each row the best point, or of the whole tensor where it shares one scale."""
    for one in tried:
        better_GO = one.loss_GO < best.loss_GO
        if problem.per == 0:
            better_GO = np.full(better_GO.shape, one.loss_GO.sum() < best.loss_GO.sum())
        rows = better_GO[:, None]
        shared = rows[:1, :, :1] if problem.per == 0 else rows
        best = _Point(
            np.where(rows, one.integers, best.integers),
            np.where(shared, one.scale, best.scale),
            np.where(shared, one.zero, best.zero),
            np.where(better_GO, one.loss_GO, best.loss_GO),
        )
    return best


def _with_dead(problem: _Problem, point: _Point, w_GOK: np.ndarray) -> np.ndarray:
    """Integers in which columns that are always zero, free to be anything, are the nearest ones."""
    if problem.h_GKK is None or problem.keep_GKO is not None:
        return point.integers
    nearest = _lattice(problem, point.scale, point.zero).nearest(_columns_first(w_GOK))
    return np.where(problem.dead_GK[:, :, None], nearest, point.integers)


def _grid(point: _Point, problem: _Problem, like: weight_grid.Grid) -> weight_grid.Grid:
    integers, scale, zero = (_columns_last(part) for part in point[:3])
    kind = like.integers.dtype
    return weight_grid.Grid(
        integers.reshape(like.integers.shape).astype(kind),
        scale.reshape(like.scale.shape),
        zero.reshape(like.zero_point.shape).astype(kind),
        problem.bits,
    )


def _better(
    found: weight_grid.Grid, nearest: weight_grid.Grid, w_GOK: np.ndarray, moments: Moments, whole: bool
) -> weight_grid.Grid:
    """The better one by the objective itself, without damping: row by row, or as a whole; of equals the nearest."""
    w = np.asarray(w_GOK, np.float64)
    found_GO, nearest_GO = (loss(w - grid.real().reshape(w.shape), moments) for grid in (found, nearest))
    if whole:
        return found if found_GO.sum() < nearest_GO.sum() else nearest
    keep = (found_GO < nearest_GO).reshape(found_GO.shape + (1,) * (nearest.integers.ndim - 2))
    integers, scale, zero_point = (np.where(keep, found[part], nearest[part]) for part in range(3))
    return weight_grid.Grid(integers, scale, zero_point, nearest.bits)


def _columns_first(x_GOK: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x_GOK.transpose(0, 2, 1))


def _columns_last(x_GKO: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x_GKO.transpose(0, 2, 1))
