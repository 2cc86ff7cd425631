"""Integers of a few bits at the least loss: scales chosen by it, then rounding in which each error is made up for."""

from __future__ import annotations

from functools import partial

import msgspec
import numpy as np

from gossamer.arith import weight_grid
from gossamer.arith.affine import SMALLEST_SCALE
from gossamer.arith.damped import activation_order
from gossamer.arith.lattice import Lattice, descend, round_in_order, search_in_order
from gossamer.arith.moments import Moments, loss
from gossamer.constraints.composed import Composed
from gossamer.constraints.grid import Grid, taps_of
from gossamer.constraints.sparse import Sparse
from gossamer.errors import OptionError
from gossamer.solvers import round_at_rate
from gossamer.solvers.code_lengths import lagrangian
from gossamer.solvers.grid_problem import (
    LARGE,
    Point,
    Problem,
    best_of,
    grid_of,
    lattice_of,
    measured,
    pooled,
    problem_of,
    refitted,
    side_by_side,
    with_dead,
    worth_of,
)
from gossamer.solvers.input_steps import steps_of_inputs, worth_of_inputs

_SHRINK = np.geomspace(1.0, 0.25, 41)  # of the scales that reach the largest weights
_NEARBY = ((0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1), (0.96, 0.98, 1.0, 1.02))  # tried in full, around the best so far
_NEARBY_LARGE = ((0.92, 1.0, 1.08),)  # where one try takes long
_ENOUGH = 0.999  # rounds of descent end when they leave more than this of the loss
_ROUNDS = 6
_WIDTH = 16  # of the search where it is affordable, and how much that is
_AFFORDABLE = 100_000_000


def solve(
    w_GOK: np.ndarray,
    constraint: Grid | Composed,
    moments: Moments,
    k_shape: tuple[int, ...] = (),
    *,
    compensate: bool = True,
    search: bool = True,
    rate: float = 0.0,
    order_GK: np.ndarray | None = None,
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
        rate: the loss that one bit is worth. Above 0, loss + rate * bits is minimised, see `round_at_rate`, and never
            more than it is without.
        order_GK: in which columns are rounded; from the least to the most active one, if None.

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
    nearest = grid.project(w_GOK if sparse is None else sparse.project(w_GOK).w_GOK, k_shape)  # as the constraint does
    if not compensate or not w_GOK.size:
        return nearest
    h = moments.h_GKK
    if h is not None and not np.diagonal(h, axis1=1, axis2=2).any():
        return nearest
    if grid.granularity == "input":
        worth = worth_of_inputs(moments, taps_of(k_shape)) if search else None
        steps = [] if worth is None else [steps_of_inputs(worth, w_GOK, 2 ** (grid.bits - 1) - 1, rate)]
        if not steps or not rate:  # with few levels what counts is to reach the largest weights
            steps.append(nearest.scale)
        tried = [_in_steps(each, w_GOK, grid, sparse, moments, search, rate) for each in steps]
        return min(tried, key=lambda one: float(loss(np.asarray(w_GOK, np.float64) - one.real(), moments).sum()))
    problem, start = problem_of(w_GOK, grid, sparse, moments, None if search else nearest, order_GK)
    if search and rate and round_at_rate.is_far(problem, start, rate):
        point = start  # what is best without a rate would only be where the search begins
    elif search:
        point = _improved(problem, start)
    else:
        point = best_of(problem, _tried(problem, start.scale, start.zero, (1.0,)), start)
        point = _descended(problem, point, refit=False)
    whole = problem.per == 0 or problem.keep_GKO is not None  # rows from two results would have other zeros in all
    plain = grid_of(point._replace(integers=with_dead(problem, point, w_GOK)), problem, nearest)
    plain = _better(plain, nearest, w_GOK, moments, whole)
    if not rate:
        return plain
    found = grid_of(round_at_rate.improved(problem, point, rate, search), problem, nearest)
    return min((found, plain, nearest), key=lambda grid: lagrangian(grid, w_GOK, moments, rate))


def _in_steps(
    steps_G1K: np.ndarray,
    w_GOK: np.ndarray,
    grid: Grid,
    sparse: Sparse | None,
    moments: Moments,
    search: bool,
    rate: float,
) -> weight_grid.Grid:
    """With one scale for all weights, each measured in the step of its input; H is measured so, too."""
    alike = msgspec.structs.replace(grid, granularity="tensor")
    h, order = moments.h_GKK, None
    if h is not None:
        order, h = activation_order(h), h * steps_G1K.swapaxes(1, 2) * steps_G1K
    found = solve(
        w_GOK / steps_G1K,
        alike if sparse is None else Composed(sparse, alike),
        moments._replace(h_GKK=h),
        search=search,
        rate=rate,
        order_GK=order,
    )
    scale = (found.scale * steps_G1K).astype(np.float32)
    return weight_grid.Grid(found.integers, scale, np.broadcast_to(found.zero_point, scale.shape), found.bits)


def _improved(problem: Problem, start: Point) -> Point:
    scale = _promising(problem, start.scale, start.zero)
    point = start
    large = problem.target_GKO.size * problem.target_GKO.shape[1] > LARGE
    for factors in _NEARBY_LARGE if large else _NEARBY:
        point = best_of(problem, _tried(problem, scale, start.zero, factors), point)
        point = _descended(problem, point, refit=True)
        scale = point.scale
    return point


def _promising(problem: Problem, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """Of shrunk scales, each share's best in the error that compensation cannot remove.

    A rounding error of column j costs its square times L_jj^2, whatever the columns settled before it did; H_jj would
    count what the columns after it make up for as well.
    """
    target = problem.target_GKO
    weight = worth_of(problem)
    best, least = scale, None
    for shrink in _SHRINK.astype(np.float32):
        tried = np.maximum(scale * shrink, SMALLEST_SCALE).astype(np.float32)
        lattice = lattice_of(problem, tried, zero)
        error = pooled(problem, weight * (target - lattice.values(lattice.nearest(target))) ** 2)
        best = best if least is None else np.where(error < least, tried, best)
        least = error if least is None else np.minimum(error, least)
    return np.asarray(best, np.float32)


def _tried(problem: Problem, scale: np.ndarray, zero: np.ndarray, factors: tuple[float, ...]) -> list[Point]:
    """Rounding with compensation at several scales; several tries side by side share each step along the columns."""
    scales = [np.maximum(scale * np.float32(by), SMALLEST_SCALE).astype(np.float32) for by in factors]
    return side_by_side(problem, scales, zero, partial(_rounded, problem))


def _rounded(
    problem: Problem, target: np.ndarray, rows_GO: np.ndarray, lattice: Lattice
) -> tuple[np.ndarray, np.ndarray]:
    if problem.factor is None:
        integers = lattice.nearest(target)
        return integers, ((target - lattice.values(integers)) ** 2).sum(axis=1)
    if target.size * target.shape[1] * _WIDTH <= _AFFORDABLE:
        return search_in_order(target, lattice, problem.factor, _WIDTH)
    return round_in_order(target, lattice, problem.factor)


def _descended(problem: Problem, point: Point, refit: bool) -> Point:
    """Coordinate descent in turn with least squares on the scales, until neither gains."""
    target, h, heard = problem.target_GKO, problem.h_GKK, problem.heard_GKO
    if h is None or heard is None:
        return _alternated(problem, point) if refit else point
    start, loss_GO = point, point.loss_GO
    integers, scale = point.integers, point.scale
    values = lattice_of(problem, scale, point.zero).values(integers)
    pressure = heard - h @ values
    for _ in range(_ROUNDS):
        before = loss_GO.sum()
        integers = descend(integers, lattice_of(problem, scale, point.zero), h, pressure)
        values = lattice_of(problem, scale, point.zero).values(integers)
        if refit:
            scale = refitted(problem, values, scale, pressure)
            values = lattice_of(problem, scale, point.zero).values(integers)
        loss_GO = np.einsum("gko,gko->go", target - values, pressure) * problem.rows_GO
        if loss_GO.sum() >= before * _ENOUGH:
            break
    return best_of(problem, [Point(integers, scale, point.zero, loss_GO)], start)


def _alternated(problem: Problem, point: Point) -> Point:
    """Without H: rounding in turn with least squares on the scales."""
    for _ in range(_ROUNDS):
        before = point.loss_GO.sum()
        values = lattice_of(problem, point.scale, point.zero).values(point.integers)
        scale = refitted(problem, values, point.scale, problem.target_GKO - values)
        integers = lattice_of(problem, scale, point.zero).nearest(problem.target_GKO)
        point = best_of(problem, [measured(problem, integers, scale, point.zero)], point)
        if point.loss_GO.sum() >= before * _ENOUGH:
            break
    return point


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
