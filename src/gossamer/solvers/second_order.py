"""Into a constraint at the least loss to the layer's output, not at the least distance.

    minimise over W' in C:   tr((W - W') H (W - W')^T)

Each kind of constraint has a method in a file of its own, all of the Optimal Brain Surgeon family (Hassibi and Stork
1993) or weighted forms of what `nearest` does. Here the method is found, and its result weighed against the nearest
point: what is kept is never worse in the objective, for every output channel alone where the constraint leaves channels
free of each other.
"""

from __future__ import annotations

import numpy as np

from gossamer.arith.forms import Dense, Factored, Form, Indexed, floats_in
from gossamer.arith.moments import Moments, for_others, loss
from gossamer.arith.weight_grid import Grid as OnGrid
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.composed import Composed
from gossamer.constraints.contract import Constraint, rate_of
from gossamer.constraints.grid import Grid
from gossamer.constraints.low_rank import LowRank
from gossamer.constraints.shared import Shared
from gossamer.constraints.sparse import Sparse
from gossamer.errors import DataError
from gossamer.solvers import nearest, reduce_rank, remove_weights, round_grid, share_values, tie_layers
from gossamer.solvers.code_lengths import lagrangian
from gossamer.solvers.contract import Solved

NO_BETTER = "second order comes out no better than nearest here"


def solve(
    w_GOK: np.ndarray,
    constraint: Constraint,
    moments: Moments | None,
    k_shape: tuple[int, ...] = (),
) -> Solved:
    """The better of what the constraint's method and `nearest` make of a weight.

    Args:
        w_GOK: float32 weights, see `arith.forms`.
        constraint: one with a rate minimises loss / signal + rate * bits: signal the energy of the layer's outputs,
            bits the order-0 entropy of all integers or indices. Without usable moments the rate goes unused.
        moments: of the layer's input; without usable ones the result is that of `nearest`, with the reason.
        k_shape: what K was made of, (I, kh, kw) for a convolution.

    Raises:
        OptionError: the constraint cannot apply to this shape, the text says why.
        DataError: a weight is NaN or infinite.
    """
    if moments is None or obstacle_in(moments):
        reason = "there are no moments of its input" if moments is None else obstacle_in(moments)
        return nearest.solve(w_GOK, constraint, moments, k_shape)._replace(reason=reason)
    expected = for_others(moments)
    plain = nearest.solve(w_GOK, constraint, expected, k_shape)
    signal = float(loss(w_GOK, moments).sum())  # as it was seen
    try:
        w = np.asarray(w_GOK, np.float32)
        if rate := rate_of(constraint) * signal:
            return _at_rate(w, constraint, expected, k_shape, rate, plain)._replace(zero_loss=signal)
        found = _found(w, constraint, expected, k_shape)
    except (DataError, np.linalg.LinAlgError) as error:
        return plain._replace(zero_loss=signal, reason=" ".join(str(error).split()))
    alike = of_equal_rank(constraint, found)
    if alike != constraint and not alike.obstacle(w_GOK.shape, k_shape):
        plain = nearest.solve(w_GOK, alike, expected, k_shape)
    return _better(found, plain, w_GOK, constraint, expected)._replace(zero_loss=signal)


def of_equal_rank(constraint: Constraint, found: Form) -> Constraint:
    """Low rank by a share of the energy becomes low rank by the rank found; any other constraint is itself.

    H says how much each direction holds, so the same share takes fewer directions than it does of the weight alone.
    """
    if not isinstance(found, Factored):
        return constraint
    rank = LowRank(rank=floats_in(found.right_GRK).shape[1])
    match constraint:
        case LowRank(rank=None):
            return rank
        case Composed(first=LowRank(rank=None), then=then):
            return Composed(rank, then)
        case _:
            return constraint


def obstacle_in(moments: Moments) -> str:
    """Why moments say nothing of how much weights matter, or ""."""
    if not nearest.is_finite(moments):
        return "the moments of its input are NaN or infinite; look for NaN or Inf in the activations"
    if moments.h_GKK is not None and not np.any(moments.h_GKK):
        return "its input was zero in every sample"
    if moments.rows_GO is not None and not np.any(moments.rows_GO):
        return "no sample looks up any of its rows"
    return ""


def _found(w_GOK: np.ndarray, constraint: Constraint, moments: Moments, k_shape: tuple[int, ...]) -> Form:
    match constraint:
        case Grid() | Composed(first=Sparse(), then=Grid()):
            return round_grid.solve(w_GOK, constraint, moments, k_shape)
        case Sparse():
            return remove_weights.solve(w_GOK, constraint, moments, k_shape)
        case Codebook() | Composed(first=Sparse(), then=Codebook()):
            return share_values.solve(w_GOK, constraint, moments, k_shape)
        case Shared():
            return tie_layers.solve(w_GOK, constraint, moments, k_shape)
        case LowRank() | Composed():
            return reduce_rank.solve(w_GOK, constraint, moments, k_shape)


def _at_rate(
    w_GOK: np.ndarray, constraint: Constraint, moments: Moments, k_shape: tuple[int, ...], rate: float, plain: Solved
) -> Solved:
    """The form of least loss + rate * bits; of equals the nearest."""
    rivals: list[Form] = [plain.form]
    match constraint:
        case Grid() | Composed(then=Grid()):
            rivals.append(round_grid.solve(w_GOK, constraint, moments, k_shape, rate=rate))
        case Codebook() | Composed():
            rivals.append(share_values.solve(w_GOK, constraint, moments, k_shape, rate))
    if not isinstance(constraint, Grid) and channels_are_free(constraint):  # channels of two results could be best
        rivals.append(_better(_found(w_GOK, constraint, moments, k_shape), plain, w_GOK, constraint, moments).form)
    coded = [form for form in rivals if isinstance(form, OnGrid | Indexed)]
    best = min(coded, key=lambda form: lagrangian(form, w_GOK, moments, rate))
    if best is plain.form:
        return plain._replace(reason=NO_BETTER)
    return plain._replace(form=best, loss=float(nearest.loss_of(best, w_GOK, moments).sum()))


def _better(found: Form, plain: Solved, w_GOK: np.ndarray, constraint: Constraint, moments: Moments) -> Solved:
    lost_GO, plain_GO = (nearest.loss_of(form, w_GOK, moments) for form in (found, plain.form))
    gains_GO = lost_GO <= plain_GO  # also False where a loss is NaN
    if not gains_GO.all() and gains_GO.any() and channels_are_free(constraint):
        found = _channels_of(found, plain.form, gains_GO)
        lost_GO = nearest.loss_of(found, w_GOK, moments)
    lost = float(lost_GO.sum())
    if not lost <= plain.loss or not gains_GO.any():
        return plain._replace(reason=NO_BETTER)
    return plain._replace(form=found, loss=lost)


def channels_are_free(constraint: Constraint) -> bool:
    """Whether each output channel can be chosen without regard to the others."""
    match constraint:
        case Grid(granularity=granularity):
            return granularity not in ("tensor", "input")
        case Codebook(scope=scope):
            return scope == "channel"
        case Sparse(pattern=pattern):
            return pattern is not None
        case Composed(first=Sparse() as first, then=then):
            return channels_are_free(first) and channels_are_free(then)
        case _:
            return False


def _channels_of(found: Form, plain: Form, from_found_GO: np.ndarray) -> Form:
    """Some channels of one form, the others of another of the same type; of the first alone if they do not match."""
    match found, plain:
        case OnGrid(), OnGrid() if found.integers.shape == plain.integers.shape:
            chosen = from_found_GO.reshape(*from_found_GO.shape, *(1,) * (found.integers.ndim - 2))
            integers, scale, zero_point = (np.where(chosen, found[part], plain[part]) for part in range(3))
            return OnGrid(integers, scale, zero_point, found.bits)
        case Dense(), Dense():
            return Dense(np.where(from_found_GO[:, :, None], found.w_GOK, plain.w_GOK))
        case Indexed(), Indexed() if found.tables_TVD.shape == plain.tables_TVD.shape:
            tables = np.where(from_found_GO.reshape(-1, 1, 1), found.tables_TVD, plain.tables_TVD)
            return Indexed(np.where(from_found_GO[:, :, None], found.indices_GOV, plain.indices_GOV), tables)
        case _:
            return found
