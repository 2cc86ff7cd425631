"""Zeros at the least loss: which weights go is chosen by what the others can make up for, and then they do."""

from __future__ import annotations

import numpy as np

from gossamer.arith.damped import factor, plus_damping
from gossamer.arith.forms import Dense
from gossamer.arith.moments import Moments, loss
from gossamer.arith.removal import removed_count
from gossamer.constraints.sparse import Sparse

_FIRM = (0.03, 0.1, 0.3, 1.0, 3.0)  # how strongly weights are drawn to the sparse ones, of H's diagonal, in turn
_TURNS = 12  # at each
_FIRM_LARGE = (0.1, 0.4, 1.6)  # each takes an inverse
_EXCHANGES = 3  # rounds of them, and up to how many multiplications each they are worth a hundredth of the loss
_SMALL = 200_000_000
_STEPS = 40  # of conjugate gradients
_CLOSE = 1e-5
_ONE_BY_ONE = 3_000_000_000  # multiplications for which removal one by one is affordable
_AT_ONCE = 20_000_000  # numbers of inverses in memory


def solve(w_GOK: np.ndarray, constraint: Sparse, moments: Moments, k_shape: tuple[int, ...] = ()) -> Dense:
    """Sparse weights, those that stay fitted again to make up for the others; never worse than magnitude alone.

    Which weights go is found in two ways, of which the better counts. (1) One by one, least w_j^2 / [H^-1]_jj first,
    all others updated each time: Optimal Brain Surgeon (Hassibi and Stork, 1993) for every row by itself, the rows then
    sharing the number of zeros by their losses, as in OBC (Frantar and Alistarh, 2022); for layers small enough, and
    not in blocks. (2) By the alternating direction method, a dense weight and its sparse counterpart ever more firmly
    tied, all rows together, as in ALPS (Meng et al., 2024). Then, in layers that are not large, weights are exchanged
    while that helps. Those kept are the least squares for their places, to what 40 conjugate gradients reach.

    Args:
        w_GOK: float (G, O, K).

    Raises:
        OptionError: the constraint cannot apply to this shape.
        DataError: a moment is NaN or infinite.
    """
    nearest = constraint.project(w_GOK, k_shape)
    h = moments.h_GKK
    if not w_GOK.size or h is None or not np.diagonal(h, axis1=1, axis2=2).any():
        return nearest
    dead_GK = np.diagonal(h, axis1=1, axis2=2) <= 0  # such columns may be anything: they go first
    w = np.where(dead_GK[:, None, :], 0.0, w_GOK)
    damped = plus_damping(h, factor(h).damping_G)
    size_GK = np.sqrt(np.diagonal(damped, axis1=1, axis2=2))
    unit = damped / (size_GK[:, :, None] * size_GK[:, None, :])
    scaled = w * size_GK[:, None, :]  # in units in which every column is as loud as any other
    rows_GO1 = np.ones((1, 1, 1)) if moments.rows_GO is None else np.asarray(moments.rows_GO, np.float64)[:, :, None]
    fitted = [_fitted(scaled, unit, keep) for keep in _choices(scaled, unit, constraint, rows_GO1)]
    best = fitted[0]
    for other in fitted[1:]:
        best = _better(scaled, unit, constraint, rows_GO1, other, best)
    if scaled.size * scaled.shape[2] <= _SMALL:
        best = _exchanged(scaled, unit, constraint, rows_GO1, best)
    found = (best / size_GK[:, None, :]).astype(np.float32)
    lower = loss(w_GOK - found, moments).sum() < loss(w_GOK - nearest.w_GOK, moments).sum()
    return Dense(found) if lower else nearest


def _choices(w: np.ndarray, h: np.ndarray, constraint: Sparse, rows: np.ndarray) -> list[np.ndarray]:
    """Which weights may stay, bool (G, O, K), by each method that applies."""
    found = [_tied(w, h, constraint, rows)]
    if constraint.block == (1, 1) and w.size * w.shape[2] ** 2 <= _ONE_BY_ONE:
        found.append(_one_by_one(w, h, constraint, rows))
    return found


def _tied(w: np.ndarray, h: np.ndarray, constraint: Sparse, rows: np.ndarray) -> np.ndarray:
    """Dense v and sparse u, tied by |v - u|^2 * rho; rho grows, and u comes to rest."""
    w = (w / (np.abs(w).max() or 1.0)).astype(np.float32)  # which weights, not yet how much: single precision will do
    h = h.astype(np.float32)
    heard = w @ h
    u = np.where(constraint.mask(rows * w * w), w, np.float32(0))
    price = np.zeros_like(w)
    identity = np.eye(h.shape[-1], dtype=np.float32)
    for rho in _FIRM if w.size * w.shape[2] <= _SMALL else _FIRM_LARGE:
        inverse = np.linalg.inv(h + rho * identity)
        for _ in range(_TURNS):
            v = (heard + rho * u - price) @ inverse
            wanted = v + price / rho
            u = np.where(_mask(constraint, rows * wanted * wanted), wanted, np.float32(0))
            price += rho * (v - u)
    return constraint.mask(rows * u * u)


def _mask(constraint: Sparse, score: np.ndarray) -> np.ndarray:
    """Like `constraint.mask`, but quick; of equal scores at the edge all stay."""
    count = removed_count(constraint.ratio or 0.0, score.size)
    if constraint.pattern is not None or constraint.block != (1, 1) or count == score.size:
        return constraint.mask(score)
    return np.asarray(score >= np.partition(score, count, axis=None)[count])


def _one_by_one(w: np.ndarray, h: np.ndarray, constraint: Sparse, rows: np.ndarray) -> np.ndarray:
    """Every row's weights in the order in which they are missed least; then the same loss for the last of each row."""
    groups, outputs, columns = w.shape
    inverse = np.linalg.inv(h)
    cost_RT, order_RT = np.empty((2, groups * outputs, columns))
    flat = w.reshape(-1, columns)
    for first in range(0, len(flat), max(1, _AT_ONCE // columns**2)):
        some = slice(first, first + max(1, _AT_ONCE // columns**2))
        which = np.arange(len(flat))[some] // outputs
        order_RT[some], cost_RT[some] = _removed(flat[some], inverse[which], constraint.pattern)
    rank = np.empty(order_RT.shape)
    np.put_along_axis(rank, order_RT.astype(np.intp), np.arange(columns)[None] + np.zeros_like(rank), axis=1)
    if constraint.pattern is not None:
        return constraint.mask(rank.reshape(w.shape))
    rising = np.maximum.accumulate(cost_RT * np.broadcast_to(rows, w.shape).reshape(-1, columns), axis=1)
    score = np.empty(order_RT.shape)
    np.put_along_axis(score, order_RT.astype(np.intp), rising, axis=1)
    place = np.lexsort((rank.ravel(), score.ravel()))  # equal scores of a row in the order of their removal
    ordered = np.empty(place.size)
    ordered[place] = np.arange(place.size)
    return constraint.mask(ordered.reshape(w.shape))


def _removed(w: np.ndarray, inverse: np.ndarray, pattern: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Order of removal and what each adds to the loss, (rows, K) each, for rows with an inverse of H each."""
    w, inverse = w.copy(), inverse.copy()
    count, columns = w.shape
    row = np.arange(count)
    gone = np.zeros(w.shape, bool)
    order, cost = np.empty((count, columns), np.intp), np.empty((count, columns))
    for step in range(columns):
        diagonal = np.diagonal(inverse, axis1=1, axis2=2)
        each = np.where(gone, np.inf, w * w / np.where(gone, 1.0, np.maximum(diagonal, 1e-30)))
        if pattern is not None and step < columns * (pattern[1] - pattern[0]) // pattern[1]:
            full = gone.reshape(count, -1, pattern[1]).sum(axis=2) >= pattern[1] - pattern[0]
            each = np.where(np.repeat(full, pattern[1], axis=1), np.inf, each)
        j = each.argmin(axis=1)
        order[:, step], cost[:, step] = j, each[row, j]
        gone[row, j] = True
        column = inverse[row, :, j]
        pivot = np.maximum(column[row, j], 1e-30)
        w -= column * (w[row, j] / pivot)[:, None]
        inverse -= column[:, :, None] * (column / pivot[:, None])[:, None, :]
        w[gone] = 0.0
    return order, cost


def _fitted(w: np.ndarray, h: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Least squares for the weights kept, by conjugate gradients over all rows at once; h has a diagonal of ones."""
    u = np.where(keep, w, 0.0)
    residual = np.where(keep, (w - u) @ h, 0.0)
    direction = residual.copy()
    square = (residual * residual).sum(axis=2, keepdims=True)
    enough = _CLOSE**2 * ((w @ h) ** 2).sum(axis=2, keepdims=True)
    for _ in range(min(_STEPS, 2 * w.shape[2] + 2)):
        if (square <= enough).all():
            break
        curved = np.where(keep, direction @ h, 0.0)
        energy = (direction * curved).sum(axis=2, keepdims=True)
        by = np.divide(square, energy, out=np.zeros_like(square), where=(energy > 0) & (square > enough))
        u += by * direction
        residual -= by * curved
        before, square = square, (residual * residual).sum(axis=2, keepdims=True)
        direction = residual + direction * np.divide(square, before, out=np.zeros_like(square), where=before > 0)
    return u


def _exchanged(w: np.ndarray, h: np.ndarray, constraint: Sparse, rows: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Weights in and out by what one alone would gain or cost, as long as fitting again bears it out."""
    for _ in range(_EXCHANGES):
        wanted = u + (w - u) @ h
        keep = constraint.mask(rows * wanted * wanted)
        if (keep == (u != 0)).all():
            break
        tried = _better(w, h, constraint, rows, _fitted(w, h, keep), u)
        if tried is u or (tried == u).all():
            break
        u = tried
    return u


def _better(
    w: np.ndarray, h: np.ndarray, constraint: Sparse, rows: np.ndarray, one: np.ndarray, other: np.ndarray
) -> np.ndarray:
    """The one with less loss: row by row where every row has its own zeros, else as a whole."""
    lost, lost_other = (rows[:, :, 0] * np.einsum("gok,gok->go", (w - u) @ h, w - u) for u in (one, other))
    if constraint.pattern is not None:
        return np.where((lost < lost_other)[:, :, None], one, other)
    return one if lost.sum() < lost_other.sum() else other
