"""Shared values at the least loss: a table by weighted k-means, indices by compensated assignment, both by turns.

The assignment takes the columns one after the other, as Frantar et al. 2022, "GPTQ: accurate post-training quantization
for generative pre-trained transformers", do on a grid: with H = L L^T, the loss is the sum of squares of E L, whose
column j holds the errors of column j and of those taken before; the entry is chosen that makes their sum least. For
vectors (van Baalen et al. 2024, "GPTVQ: the blessing of dimensionality for LLM quantization") columns go by d. Then, by
turns, the table is refitted to the indices by least squares on the whole objective, and each index is moved to the
best entry given all others. Sparse weights are those of `remove_weights`, whose zeros stay.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gossamer.arith.damped import factor
from gossamer.arith.entropy import entropy_bits
from gossamer.arith.forms import Indexed, floats_of
from gossamer.arith.kmeans import count_below
from gossamer.arith.least_squares import improve
from gossamer.arith.moments import Moments, loss
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.composed import Composed
from gossamer.constraints.sparse import Sparse
from gossamer.errors import OptionError
from gossamer.solvers import remove_weights
from gossamer.solvers.code_lengths import lagrangian, prices_of

BLOCK = 64  # columns that hear of each other at once; all others by one matrix product a block
ROUNDS = 12  # of refit and descent, at most
TABLE_STEPS = 6  # of conjugate gradients a refit
TABLE_WORTH = 1e-4  # share of the loss that a step must gain for another to follow
SMALL, LARGE = 1 << 22, 1 << 31  # multiplications of W H. Up to the first: in float64, and from several tables
RATE_ROUNDS = 8  # of prices, assignment, refit and descent, at most
RATE_WORTH = 1e-3  # share of loss + rate * bits that a round must gain for another to follow
WORTH = (1e-4, 5e-3, 2e-2)  # share of the loss that a round must gain for another to follow: small, between, large


class _Task(NamedTuple):
    """What does not change while shares are sought. Floats are all of one type.

    Attributes:
        w_GOK, h_GKK: weight and second moment.
        rows_GO1: how much each row counts.
        removed_GOV: which vectors stay zero; None: none.
        dimension: of a vector.
    """

    w_GOK: np.ndarray
    h_GKK: np.ndarray
    rows_GO1: np.ndarray
    removed_GOV: np.ndarray | None
    dimension: int


class _Shares(NamedTuple):
    """Tables (ascending if d = 1) and which of their entries each vector is; see `Indexed`."""

    indices_GOV: np.ndarray
    tables_TVD: np.ndarray


class _Priced(NamedTuple):
    """What each entry costs beside the loss, and how much the loss of each row counts."""

    price_V: np.ndarray
    rows_GO1: np.ndarray


def solve(
    w_GOK: np.ndarray,
    constraint: Codebook | Composed,
    moments: Moments,
    k_shape: tuple[int, ...] = (),
    rate: float = 0.0,
) -> Indexed:
    """Shared values, with or without zeros that stay, at a loss never above that of the nearest ones.

    Args:
        w_GOK: finite floats (G, O, K).
        constraint: a codebook, or a composition of sparse and codebook.
        moments: without h_GKK, rows are weighted k-means.
        rate: the loss that one bit is worth. Above 0, what is minimised is loss + rate * bits, the bits at the order-0
            entropy of all indices; it is never more than without (entropy-constrained vector quantization: Chou,
            Lookabaugh and Gray, 1989). Without h_GKK it goes unused.

    Raises:
        OptionError: the constraint is another one, or cannot apply to this shape.
    """
    w = np.asarray(w_GOK, np.float32)
    codebook, target, removed_GOV = _parts(w, constraint, moments, k_shape)
    nearest = codebook.project(target, k_shape, None if removed_GOV is None else ~removed_GOV)
    rows_GO1 = _row_weights(w, moments)
    if moments.h_GKK is None:
        weighted = _indexed(codebook, _start(codebook, target, rows_GO1 * np.ones(w.shape), removed_GOV))
        return _least(w, moments, [nearest, weighted])
    kind = np.float64 if w.size * w.shape[2] <= SMALL else np.float32
    task = _Task(w.astype(kind), moments.h_GKK.astype(kind), rows_GO1.astype(kind), removed_GOV, codebook.dimension)
    towards = task._replace(w_GOK=target.astype(kind))
    lower_GKK, order_GK = _factor(task)
    weight_GOK = rows_GO1 * _conditional(lower_GKK, order_GK)[:, None, :]
    tables = _start(codebook, target, weight_GOK, removed_GOV).tables_TVD.astype(kind)
    starts = [_assigned(towards, tables, lower_GKK, order_GK)]
    refitted = _refitted(task, starts[0], _heard(task, starts[0])).tables_TVD
    if codebook.dimension > 1:
        starts = [_assigned(towards, refitted, lower_GKK, order_GK)]
    if kind is np.float64:  # more places to start from, where that costs little
        plain = nearest.tables_TVD.astype(kind)
        starts += [_assigned(towards, table, lower_GKK, order_GK) for table in (plain, refitted)]
        starts.append(_Shares(nearest.indices_GOV.astype(np.intp), plain))
    without = _least(w, moments, [nearest, *(_indexed(codebook, _refined(task, start)) for start in starts)])
    if not rate:
        return without
    at_rate = _indexed(codebook, _at_rate(task, towards, without, lower_GKK, order_GK, rate))
    return min((without, at_rate, nearest), key=lambda form: lagrangian(form, w, moments, rate))


def _at_rate(
    task: _Task, towards: _Task, plain: Indexed, lower_GKK: np.ndarray, order_GK: np.ndarray, rate: float
) -> _Shares:
    """Prices of the indices, indices at these prices, and the table for them, in turn; the best of all rounds."""
    kind = task.w_GOK.dtype
    shares = _Shares(plain.indices_GOV.astype(np.intp), plain.tables_TVD.astype(kind))
    best, least = shares, np.inf
    for _ in range(RATE_ROUNDS):
        prices = _prices(task, shares, rate)
        shares = _assigned(towards, shares.tables_TVD, lower_GKK, order_GK, prices)
        shares = _refitted(task, shares, _heard(task, shares))
        shares, _, lost = _descended(task, shares, _prices(task, shares, rate))
        total = lost + rate * entropy_bits(shares.indices_GOV)
        if total >= least * (1 - RATE_WORTH):
            break
        best, least = shares, total
    return best


def _prices(task: _Task, shares: _Shares, rate: float) -> _Priced:
    price_V = prices_of(shares.indices_GOV, 0, shares.tables_TVD.shape[1] - 1, rate, indices=True).price_V
    return _Priced(price_V.astype(task.w_GOK.dtype), task.rows_GO1)


def _parts(
    w_GOK: np.ndarray, constraint: Codebook | Composed, moments: Moments, k_shape: tuple[int, ...]
) -> tuple[Codebook, np.ndarray, np.ndarray | None]:
    """The codebook, the weight to come close to, and which of its vectors are zero.

    What is removed has been made up for by the rest as well as it can be (nearly), so that to stay close to this rest,
    not to the weight, is what keeps the loss low.
    """
    codebook = constraint.then if isinstance(constraint, Composed) else constraint
    sparse = constraint.first if isinstance(constraint, Composed) else None
    if not isinstance(codebook, Codebook) or not isinstance(sparse, Sparse | None):
        raise OptionError(f"shared values are a codebook, or sparse and a codebook; got {constraint}")
    obstacle = codebook.obstacle(w_GOK.shape, k_shape)
    if obstacle:
        raise OptionError(f"codebook: {obstacle}")
    if sparse is None:
        return codebook, w_GOK, None
    left = floats_of(remove_weights.solve(w_GOK, sparse, moments, k_shape))
    zero_GOVD = (left == 0).reshape(*left.shape[:2], -1, codebook.dimension)
    removed_GOV = zero_GOVD.all(axis=3)
    if not np.array_equal(removed_GOV, zero_GOVD.any(axis=3)):
        raise OptionError(
            f"sparse and a codebook of {codebook.dimension}-vectors: zeros must fill vectors; "
            f"give sparse blocks of 1 row and {codebook.dimension} columns"
        )
    return codebook, left, removed_GOV


def _row_weights(w_GOK: np.ndarray, moments: Moments) -> np.ndarray:
    rows = np.ones(w_GOK.shape[:2]) if moments.rows_GO is None else np.asarray(moments.rows_GO, np.float64)
    return rows[:, :, None]


def _start(codebook: Codebook, w_GOK: np.ndarray, weight_GOK: np.ndarray, removed_GOV: np.ndarray | None) -> _Shares:
    form = codebook.weighted(w_GOK, weight_GOK, None if removed_GOV is None else ~removed_GOV)
    return _Shares(form.indices_GOV.astype(np.intp), form.tables_TVD)


def _indexed(codebook: Codebook, shares: _Shares) -> Indexed:
    return Indexed(codebook.stored_indices(shares.indices_GOV), shares.tables_TVD.astype(np.float32))


def _least(w_GOK: np.ndarray, moments: Moments, forms: list[Indexed]) -> Indexed:
    losses = [float(loss(w_GOK.astype(np.float64) - form.real(), moments).sum()) for form in forms]
    return forms[int(np.argmin(losses))]


def _factor(task: _Task) -> tuple[np.ndarray, np.ndarray]:
    """The factor of H, its vectors in ascending order of what they hear: they are assigned from the last on."""
    power_GK = np.diagonal(task.h_GKK, axis1=1, axis2=2)
    power_GV = power_GK.reshape(len(power_GK), -1, task.dimension).sum(axis=2)
    order_GV = np.argsort(power_GV, axis=1, kind="stable")
    order_GK = (order_GV[:, :, None] * task.dimension + np.arange(task.dimension)).reshape(power_GK.shape)
    return factor(task.h_GKK, order_GK).lower_GKK.astype(task.w_GOK.dtype), order_GK


def _conditional(lower_GKK: np.ndarray, order_GK: np.ndarray) -> np.ndarray:
    """What an error in a column costs once the columns that follow have made up for it: float (G, K)."""
    diagonal_GK = np.diagonal(lower_GKK, axis1=1, axis2=2)
    weight_GK = np.empty_like(diagonal_GK)
    np.put_along_axis(weight_GK, order_GK, diagonal_GK**2, axis=1)
    return weight_GK


def _assigned(
    task: _Task, tables: np.ndarray, lower_GKK: np.ndarray, order_GK: np.ndarray, prices: _Priced | None = None
) -> _Shares:
    """One sweep of assignment with compensation, column by column from the last of the order to the first."""
    groups, outputs, width = task.w_GOK.shape
    d, chooser = task.dimension, _Chooser(tables, (groups, outputs))
    w = np.take_along_axis(task.w_GOK, order_GK[:, None, :], axis=2)
    order_GV = order_GK[:, ::d] // d
    removed = None if task.removed_GOV is None else np.take_along_axis(task.removed_GOV, order_GV[:, None], axis=2)
    error, indices = np.zeros_like(w), np.zeros((groups, outputs, width // d), np.intp)
    block = max(d, BLOCK // d * d)
    for end in range(width, 0, -block):
        start = max(0, end - block)
        carry = error[:, :, end:] @ lower_GKK[:, end:, start:end]
        for at in range(end - d, start - 1, -d):
            own = lower_GKK[:, at : at + d, at : at + d]
            metric, here = own @ own.transpose(0, 2, 1), w[:, :, at : at + d]
            linear = here @ metric + carry[:, :, at - start : at - start + d] @ own.transpose(0, 2, 1)
            chosen = chooser.best(linear, metric, prices)
            if removed is not None:
                chosen = np.where(removed[:, :, at // d], chooser.zero_GO, chosen)
            indices[:, :, at // d] = chosen
            error[:, :, at : at + d] = here - chooser.values(chosen)
            carry[:, :, : at - start] += error[:, :, at : at + d] @ lower_GKK[:, at : at + d, start:at]
    unordered = np.empty_like(indices)
    np.put_along_axis(unordered, np.broadcast_to(order_GV[:, None], indices.shape), indices, axis=2)
    return _Shares(unordered, tables)


def _refined(task: _Task, shares: _Shares) -> _Shares:
    """Tables refitted and indices moved by turns, until a round gains little. Neither step makes the loss rise."""
    work = task.w_GOK.size * task.w_GOK.shape[2]
    worth = WORTH[(work > SMALL) + (work > LARGE)]
    heard, before = _heard(task, shares), np.inf
    for _ in range(ROUNDS):
        shares = _refitted(task, shares, heard)
        shares, heard, after = _descended(task, shares)
        if after >= before * (1 - worth):
            break
        before = after
    return shares


def _heard(task: _Task, shares: _Shares) -> np.ndarray:
    """The errors times H, (G, O, K)."""
    return np.asarray((task.w_GOK - _real(shares)) @ task.h_GKK)


def _loss(task: _Task, real_GOK: np.ndarray, heard_GOK: np.ndarray) -> float:
    error = (task.w_GOK - real_GOK) * task.rows_GO1
    return float(np.einsum("gok,gok->", error, heard_GOK, dtype=np.float64))


def _refitted(task: _Task, shares: _Shares, heard_GOK: np.ndarray) -> _Shares:
    """The tables of least loss for these indices, or close to them."""
    tables = shares.tables_TVD
    flat, shape = _flat(shares), (len(tables), -1)

    def gathered(real_GOK: np.ndarray) -> np.ndarray:
        counted = (real_GOK * task.rows_GO1).reshape(-1, task.dimension)
        sums = [np.bincount(flat, counted[:, part], tables[..., 0].size) for part in range(task.dimension)]
        return np.stack(sums, axis=1).reshape(shape)

    def apply(change_TP: np.ndarray) -> np.ndarray:
        changes = change_TP.reshape(tables.shape).astype(task.w_GOK.dtype)
        return gathered(_real(_Shares(shares.indices_GOV, changes)) @ task.h_GKK)

    residual = gathered(heard_GOK)
    if task.removed_GOV is not None:
        residual *= (tables != 0).reshape(shape)
    power_GK = np.diagonal(task.h_GKK, axis1=1, axis2=2)
    diagonal = gathered(np.broadcast_to(power_GK[:, None, :], task.w_GOK.shape))
    least_gain = TABLE_WORTH * _loss(task, _real(shares), heard_GOK)
    change = improve(apply, residual, diagonal, min(TABLE_STEPS, residual.shape[1]), least_gain)
    return _sorted(_Shares(shares.indices_GOV, tables + change.reshape(tables.shape).astype(tables.dtype)))


def _descended(task: _Task, shares: _Shares, prices: _Priced | None = None) -> tuple[_Shares, np.ndarray, float]:
    """Every index moved to its best entry given all others; then the errors times H, and the loss."""
    groups, outputs, width = task.w_GOK.shape
    d, chooser = task.dimension, _Chooser(shares.tables_TVD, (groups, outputs))
    indices, real = shares.indices_GOV.copy(), _real(shares)
    heard = _heard(task, shares)
    block = max(d, BLOCK // d * d)
    for start in range(0, width, block):
        end = min(start + block, width)
        moved = np.zeros((groups, outputs, end - start), real.dtype)
        near, h_near = heard[:, :, start:end].copy(), task.h_GKK[:, start:end, start:end]
        for at in range(0, end - start, d):
            metric, now = h_near[:, at : at + d, at : at + d], real[:, :, start + at : start + at + d]
            index = indices[:, :, (start + at) // d]
            chosen = chooser.best(now @ metric + near[:, :, at : at + d], metric, prices)
            stays = np.diagonal(metric, axis1=1, axis2=2).max(axis=1)[:, None] <= 0
            if task.removed_GOV is not None:
                stays = stays | task.removed_GOV[:, :, (start + at) // d]
            chosen = np.where(stays, index, chosen)
            if np.array_equal(chosen, index):
                continue
            step = now - chooser.values(chosen)
            indices[:, :, (start + at) // d] = chosen
            moved[:, :, at : at + d] = step
            near[:, :, at + d :] += step @ h_near[:, at : at + d, at + d :]
        if moved.any():
            real[:, :, start:end] -= moved
            heard += moved @ task.h_GKK[:, start:end]
    return _Shares(indices, shares.tables_TVD), heard, _loss(task, real, heard)


class _Chooser:
    """Picks entries of tables by a quadratic form. Everything that depends on the tables only is computed once."""

    def __init__(self, tables_TVD: np.ndarray, shape_GO: tuple[int, int]) -> None:
        self.shape_GO = shape_GO
        self.tables_TVD = tables_TVD
        self.zero_GO = np.broadcast_to(
            np.abs(tables_TVD).sum(axis=2).argmin(axis=1).reshape(-1, 1), (len(tables_TVD), 1)
        )
        per_row = len(tables_TVD) > 1
        self.zero_GO = self.zero_GO.reshape(shape_GO) if per_row else self.zero_GO
        self.base_GO = np.arange(len(tables_TVD)).reshape(shape_GO if per_row else (1, 1)) * tables_TVD.shape[1]
        self.flat = tables_TVD.reshape(-1, tables_TVD.shape[2])
        self.middles_TV = (tables_TVD[:, 1:, 0] + tables_TVD[:, :-1, 0]) / 2

    def values(self, indices_GO: np.ndarray) -> np.ndarray:
        """The vectors that indices stand for, (G, O, d)."""
        return np.asarray(self.flat[indices_GO + self.base_GO])

    def best(self, linear_GOD: np.ndarray, metric_GDD: np.ndarray, prices: _Priced | None = None) -> np.ndarray:
        """The entry c of least c metric c^T - 2 linear c^T, that times the row plus the price if any, int (G, O)."""
        if metric_GDD.shape[1] == 1 and prices is None:
            safe = np.where(metric_GDD > 0, metric_GDD, 1)
            wanted = (linear_GOD / safe).reshape(len(self.tables_TVD), -1)
            return count_below(self.middles_TV, wanted).reshape(self.shape_GO)
        if len(self.tables_TVD) == 1:
            table = self.tables_TVD[0]
            power_G1K = np.einsum("gke,ke->gk", table @ metric_GDD, table)[:, None, :]
            sides = np.concatenate([np.broadcast_to(-2 * table.T, (len(power_G1K), *table.T.shape)), power_G1K], axis=1)
            score = np.concatenate([linear_GOD, np.ones_like(linear_GOD[:, :, :1])], axis=2) @ sides
        else:
            table = self.tables_TVD.reshape(*self.shape_GO, *self.tables_TVD.shape[1:])
            score = np.einsum("gokd,gokd->gok", table @ metric_GDD[:, None] - 2 * linear_GOD[:, :, None, :], table)
        if prices is not None:
            score = score * prices.rows_GO1 + prices.price_V
        return np.asarray(np.argmin(score, axis=2))


def _flat(shares: _Shares) -> np.ndarray:
    """Indices into all tables laid end to end, one axis."""
    rows = shares.indices_GOV.reshape(len(shares.tables_TVD), -1)
    return np.asarray(rows + np.arange(len(rows))[:, None] * shares.tables_TVD.shape[1]).ravel()


def _real(shares: _Shares) -> np.ndarray:
    values = shares.tables_TVD.reshape(-1, shares.tables_TVD.shape[2])[_flat(shares)]
    return np.asarray(values.reshape(*shares.indices_GOV.shape[:2], -1))


def _sorted(shares: _Shares) -> _Shares:
    """The same shares, the tables of single values ascending."""
    tables = shares.tables_TVD
    if tables.shape[2] > 1 or (np.diff(tables[:, :, 0], axis=1) >= 0).all():
        return shares
    order_TV = np.argsort(tables[:, :, 0], axis=1, kind="stable")
    rank_TV = np.argsort(order_TV, axis=1, kind="stable")
    indices = rank_TV.reshape(-1)[_flat(shares)].reshape(shares.indices_GOV.shape)
    return _Shares(indices, np.take_along_axis(tables, order_TV[:, :, None], axis=1))
