"""Integers at the least loss + rate * bits: coarser scales, and levels that are short to write."""

from __future__ import annotations

from functools import partial

import numpy as np

from gossamer.arith.affine import SMALLEST_SCALE
from gossamer.arith.entropy import best_step, integer_bits
from gossamer.arith.lattice import Lattice, descend, round_in_order
from gossamer.solvers.code_lengths import Prices, choose, priced, prices_of
from gossamer.solvers.grid_problem import (
    LARGE,
    Point,
    Problem,
    best_of,
    lattice_of,
    measured,
    pooled,
    refitted,
    side_by_side,
    worth_of,
)

_AROUND = np.geomspace(0.3, 2.5, 8)  # of the step that theory has for many bits a weight
_NEARBY = (np.geomspace(0.6, 1.65, 7), np.geomspace(0.84, 1.19, 11))  # tried in full, around the best so far
_NEARBY_LARGE = (np.geomspace(0.84, 1.19, 3), np.geomspace(0.94, 1.06, 3))  # where one try takes long
FAR, NEARLY_ALL = 2.0, 0.9  # times the scales that reach the largest weights
_ENOUGH = 0.999  # rounds end when they leave more than this of the total
_ROUNDS = (1, 8)  # behind the first scales, and behind those near them


def improved(problem: Problem, plain: Point, rate: float, search: bool) -> Point:
    """A point of less loss + rate * bits than the plain one, or that one; bits as `arith.entropy` has them.

    Integers for a code, then the code for the integers, by turns (entropy-constrained quantization: Chou, Lookabaugh
    and Gray, 1989); in each turn the sweep, coordinate descent, and least squares for the scales.

    Args:
        plain: what comes out without a rate.
        search: False keeps its scales.
    """
    best, least = plain, total(plain, rate)
    large = problem.target_GKO.size * problem.target_GKO.shape[1] > LARGE
    alone = large and problem.factor is None  # a large table: theory's step is as good as any, and a try takes long
    point = _coarser(problem, plain, rate, np.ones(1) if alone else _AROUND[large :: 1 + large]) if search else plain
    nearby = (np.ones(1), np.ones(1)) if alone else _NEARBY_LARGE if large else _NEARBY
    for rounds, factors in zip(_ROUNDS, nearby if search else (np.ones(1), np.ones(1)), strict=True):
        point = _settled(problem, _swept(problem, point, rate, factors), rate, search, rounds)
        now = total(point, rate)
        best, least = (point, now) if now < least else (best, least)
    return best


def is_far(problem: Problem, start: Point, rate: float) -> bool:
    """Whether the rate asks for coarser scales than would be chosen without it, for nearly all that have one."""
    return bool((_step(problem, rate) > FAR * start.scale).mean() > NEARLY_ALL)


def total(point: Point, rate: float) -> float:
    """What is minimised."""
    return float(point.loss_GO.sum()) + rate * integer_bits(point.integers)


def _coarser(problem: Problem, plain: Point, rate: float, around: np.ndarray) -> Point:
    """Scales to begin with: where the plain one is finer, the step that is worth its bits.

    The best step at a rate depends on what an error costs and on nothing else (`best_step`): rows of one layer share
    it. Steps around it are judged without compensation, each unknown for itself. (Plain scales all coarser by one
    factor were up to 11 % worse in the total, and seldom better.)
    """
    worth, step = worth_of(problem), _step(problem, rate)
    zero = plain.scale * np.float64(2) ** problem.bits  # a step that leaves nothing but zeros
    scales = [_safe(np.clip(by * step, plain.scale, zero)) for by in around]
    tried = [_alone(problem, plain._replace(scale=scale), worth, rate) for scale in scales]
    return min(tried, key=lambda one: total(one, rate))


def _step(problem: Problem, rate: float) -> np.ndarray:
    """In the shape of the scales."""
    shape = problem.target_GKO.shape
    mean = pooled(problem, np.broadcast_to(worth_of(problem), shape)) / pooled(problem, np.ones(shape))
    return best_step(rate, mean)


def _alone(problem: Problem, at: Point, worth: np.ndarray, rate: float) -> Point:
    """Every unknown for itself at some scales; the loss is what compensation cannot remove."""
    lattice = lattice_of(problem, at.scale, at.zero)
    integers = lattice.nearest(problem.target_GKO)
    prices = prices_of(integers, lattice.low, lattice.high, rate)
    integers = choose(problem.target_GKO, lattice, worth, prices)
    error = problem.target_GKO - lattice.values(integers)
    return Point(integers, at.scale, at.zero, (worth * error**2).sum(axis=1))


def _swept(problem: Problem, point: Point, rate: float, factors: np.ndarray) -> Point:
    """The best of sweeps at several scales, under the code of the point's integers."""
    scales = [_safe(point.scale * by) for by in factors]
    first = lattice_of(problem, point.scale, point.zero)
    prices = prices_of(point.integers, first.low, first.high, rate)
    found = side_by_side(problem, scales, point.zero, partial(_rounded, problem, prices))
    totals = [one._replace(loss_GO=one.loss_GO + prices.of(one.integers).sum(axis=1)) for one in found]
    best = best_of(problem, totals[1:], totals[0])
    return measured(problem, *best[:3])


def _rounded(
    problem: Problem, prices: Prices, target: np.ndarray, rows_GO: np.ndarray, lattice: Lattice
) -> tuple[np.ndarray, np.ndarray]:
    if problem.factor is None:
        integers = choose(target, lattice, rows_GO[:, None], prices)
        return integers, ((target - lattice.values(integers)) ** 2).sum(axis=1)
    return round_in_order(target, lattice, problem.factor, priced(rows_GO, prices))


def _settled(problem: Problem, point: Point, rate: float, refit: bool, rounds: int) -> Point:
    """Coordinate descent, least squares for the scales and the code of the integers, in turn until nothing gains."""
    target, h = problem.target_GKO, problem.h_GKK
    best, least = point, total(point, rate)
    for _ in range(rounds):
        integers, scale, zero, _ = point
        lattice = lattice_of(problem, scale, zero)
        prices = prices_of(integers, lattice.low, lattice.high, rate)
        if h is None:
            integers = choose(target, lattice, problem.rows_GO[:, None], prices, integers)
            pressure = target - lattice.values(integers)
        else:
            pressure = h @ (target - lattice.values(integers))
            integers = descend(integers, lattice, h, pressure, priced(problem.rows_GO, prices))
        if refit:
            scale = refitted(problem, lattice.values(integers), scale, pressure)
            lattice = lattice_of(problem, scale, zero)
        lost_GO = np.einsum("gko,gko->go", target - lattice.values(integers), pressure) * problem.rows_GO
        point = Point(integers, scale, zero, lost_GO)
        now = total(point, rate)
        gains = now < least * _ENOUGH
        best, least = (point, now) if now < least else (best, least)
        if not gains:
            break
    return best


def _safe(scale: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(scale, SMALLEST_SCALE), np.float32)
