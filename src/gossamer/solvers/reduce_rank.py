"""Low rank at the least loss: the directions of the outputs that carry most of the layer's answers.

For two factors this is the optimum: truncated singular vectors of W H^(1/2) (Eckart and Young 1936; for networks, Chen
et al. 2021, "DRONE: data-aware low-rank compression for large NLP models"), here by the eigenvectors of W H W^T, so
that H may be singular. Convolutions in three factors start from the nearest ones; then each factor in turn is fitted by
least squares in the norm of H. Factors on a grid: the right one is rounded with H, the left one fitted to what came of
it and rounded with that one's second moment.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from gossamer.arith.forms import Chained, Factored, floats_in
from gossamer.arith.least_squares import improve
from gossamer.arith.moments import Moments
from gossamer.arith.tensor_decomposition import cp, directions, solve_right, tucker, tucker_ranks
from gossamer.constraints.composed import Composed
from gossamer.constraints.grid import Grid
from gossamer.constraints.low_rank import LowRank, chained, factored
from gossamer.errors import OptionError
from gossamer.solvers import round_grid

SHARE = 1e-9  # of the mean diagonal, added to H: directions that no sample heard are kept by their size
ROUNDS = 3  # of fitting every factor of a convolution
STEPS = 6  # of conjugate gradients a factor


def solve(
    w_GOK: np.ndarray, constraint: LowRank | Composed, moments: Moments, k_shape: tuple[int, ...] = ()
) -> Factored | Chained:
    """Thin factors whose product answers most nearly as the weight does.

    Args:
        w_GOK: finite floats (G, O, K).
        constraint: low rank, or a composition of low rank and grid.

    Raises:
        OptionError: the constraint is another one, or cannot apply to this shape.
    """
    low_rank = constraint.first if isinstance(constraint, Composed) else constraint
    obstacle = low_rank.obstacle(w_GOK.shape, k_shape)
    if obstacle or not isinstance(low_rank, LowRank):
        raise OptionError(f"low_rank: {obstacle or f'got {constraint}'}")
    w = np.asarray(w_GOK, np.float64)
    rows_GO1 = _row_weights(w, moments)
    h_GKK = None if moments.h_GKK is None else _lifted(moments.h_GKK)
    if low_rank.split != "svd":
        w_OIS = (w * np.sqrt(rows_GO1)).reshape(w.shape[1], k_shape[0], -1)
        h_KK = np.eye(w.shape[2]) if h_GKK is None else h_GKK[0]
        form = (_tucker if low_rank.split == "tucker" else _cp)(w_OIS, h_KK, low_rank)
        return form._replace(outer_OR=(form.outer_OR / np.sqrt(rows_GO1[0])).astype(np.float32))
    vectors_GOR, energy_GR = directions(w * np.sqrt(rows_GO1), h_GKK)
    found = factored(vectors_GOR[:, :, : low_rank.rank_of(energy_GR)], w, rows_GO1)
    if isinstance(constraint, Composed):
        return _on_grids(w, found, constraint, moments)
    return found


def _row_weights(w_GOK: np.ndarray, moments: Moments) -> np.ndarray:
    """How much each row counts, with a floor for those that no sample looked up: float64 (G, O, 1)."""
    if moments.rows_GO is None or not np.any(moments.rows_GO):
        return np.ones((*w_GOK.shape[:2], 1))
    rows = np.asarray(moments.rows_GO, np.float64)[:, :, None]
    return np.asarray(np.maximum(rows, 1e-6 * rows.mean()))


def _lifted(h_GKK: np.ndarray) -> np.ndarray:
    h = np.array(h_GKK, np.float64)
    diagonal = np.arange(h.shape[1])
    mean_G1 = h[:, diagonal, diagonal].mean(axis=1, keepdims=True)
    h[:, diagonal, diagonal] += np.where(mean_G1 > 0, SHARE * mean_G1, 1.0)
    return h


def _tucker(w_OIS: np.ndarray, h_KK: np.ndarray, constraint: LowRank) -> Chained:
    ranks = tucker_ranks(w_OIS, constraint.rank, constraint.energy_ratio)
    outer, core, inner_QI = tucker(w_OIS, ranks)
    w_OK, positions = w_OIS.reshape(len(w_OIS), -1), w_OIS.shape[2]
    heard_OK = w_OK @ h_KK
    for turn in range(ROUNDS):
        if turn:
            right = _Right(outer.T @ w_OK, np.eye(ranks[0]), h_KK, positions)
            inner_QI = inner_QI + right.inner_change(core, inner_QI)
        small_QSQS, heard_OQS = _within(h_KK, heard_OK, inner_QI, positions)
        fitted_OQS = solve_right(heard_OQS[None], small_QSQS[None])[0]
        energy = fitted_OQS @ heard_OQS.T
        outer = np.linalg.eigh((energy + energy.T) / 2)[1][:, ::-1][:, : ranks[0]]
        core = (outer.T @ fitted_OQS).reshape(-1, len(inner_QI), positions)
    return chained(outer, core, inner_QI)


def _within(
    h_KK: np.ndarray, heard_OK: np.ndarray, inner_QI: np.ndarray, positions: int
) -> tuple[np.ndarray, np.ndarray]:
    """H and W H as seen behind the inner factor: (Q * S, Q * S) and (O, Q * S)."""
    inputs, wide = inner_QI.shape[1], len(inner_QI) * positions
    half = np.tensordot(inner_QI, h_KK.reshape(inputs, positions, -1), axes=1)
    half = half.reshape(wide, inputs, positions)
    small = np.einsum("aiq,ri->arq", half, inner_QI, optimize=True).reshape(wide, wide)
    heard = np.einsum("ois,qi->oqs", heard_OK.reshape(-1, inputs, positions), inner_QI, optimize=True)
    return small, heard.reshape(len(heard), wide)


def _cp(w_OIS: np.ndarray, h_KK: np.ndarray, constraint: LowRank) -> Chained:
    outer, inner_RI, kernel_RS = cp(w_OIS, constraint.rank or 1)
    w_OK, positions = w_OIS.reshape(len(w_OIS), -1), w_OIS.shape[2]
    heard_OK = w_OK @ h_KK
    for turn in range(ROUNDS):
        if turn:
            right = _Right(outer.T @ w_OK, outer.T @ outer, h_KK, positions)
            inner_RI = inner_RI + right.own_inner_change(inner_RI, kernel_RS)
            kernel_RS = kernel_RS + right.own_kernel_change(inner_RI, kernel_RS)
        right_RK = (inner_RI[:, :, None] * kernel_RS[:, None, :]).reshape(len(inner_RI), -1)
        outer = solve_right((heard_OK @ right_RK.T)[None], (right_RK @ h_KK @ right_RK.T)[None])[0]
    return chained(outer, kernel_RS[:, None], inner_RI)


class _Right:
    """What the outer factor A leaves to do: Z of least tr((W - A Z) H (W - A Z)^T), Z being linear in what is sought.

    Attributes:
        target_RK, gram_RR: A^T W and A^T A.
        h_KK, positions: K = I * positions.
    """

    def __init__(self, target_RK: np.ndarray, gram_RR: np.ndarray, h_KK: np.ndarray, positions: int) -> None:
        self.target_RK, self.gram_RR, self.h_KK, self.positions = target_RK, gram_RR, h_KK, positions
        self.h_ISIS = h_KK.reshape(-1, positions, len(h_KK) // positions, positions)

    def inner_change(self, core_RQS: np.ndarray, inner_QI: np.ndarray) -> np.ndarray:
        """Of the inner factor of Tucker's form."""
        near_IST = np.einsum("isit->ist", self.h_ISIS)
        mixed_QST = np.einsum("rqs,rp,pqt->qst", core_RQS, self.gram_RR, core_RQS, optimize=True)
        return self._change(
            inner_QI,
            lambda inner: np.einsum("rqs,qi->ris", core_RQS, inner, optimize=True),
            lambda heard_RIS: np.einsum("rqs,ris->qi", core_RQS, heard_RIS, optimize=True),
            np.einsum("ist,qst->qi", near_IST, mixed_QST, optimize=True),
        )

    def own_inner_change(self, inner_RI: np.ndarray, kernel_RS: np.ndarray) -> np.ndarray:
        """Of the inner factor of the canonical form."""
        near_IST = np.einsum("isit->ist", self.h_ISIS)
        diagonal = np.einsum("ist,rs,rt->ri", near_IST, kernel_RS, kernel_RS, optimize=True)
        return self._change(
            inner_RI,
            lambda inner: inner[:, :, None] * kernel_RS[:, None, :],
            lambda heard_RIS: np.einsum("ris,rs->ri", heard_RIS, kernel_RS),
            diagonal * np.diagonal(self.gram_RR)[:, None],
        )

    def own_kernel_change(self, inner_RI: np.ndarray, kernel_RS: np.ndarray) -> np.ndarray:
        """Of the kernels of the canonical form."""
        same = [(inner_RI @ self.h_ISIS[:, s, :, s] * inner_RI).sum(axis=1) for s in range(self.positions)]
        return self._change(
            kernel_RS,
            lambda kernel: inner_RI[:, :, None] * kernel[:, None, :],
            lambda heard_RIS: np.einsum("ris,ri->rs", heard_RIS, inner_RI),
            np.stack(same, axis=1) * np.diagonal(self.gram_RR)[:, None],
        )

    def _change(
        self,
        now: np.ndarray,
        forward: Callable[[np.ndarray], np.ndarray],
        adjoint: Callable[[np.ndarray], np.ndarray],
        diagonal: np.ndarray,
    ) -> np.ndarray:
        def heard(left_RK: np.ndarray) -> np.ndarray:
            return adjoint((left_RK @ self.h_KK).reshape(len(left_RK), -1, self.positions)).reshape(1, -1)

        def right(part: np.ndarray) -> np.ndarray:
            return np.asarray(self.gram_RR @ forward(part.reshape(now.shape)).reshape(self.target_RK.shape))

        residual = heard(self.target_RK - right(now))
        change = improve(lambda part: heard(right(part)), residual, diagonal.reshape(1, -1), STEPS)
        return np.asarray(change.reshape(now.shape))


def _on_grids(w_GOK: np.ndarray, found: Factored, constraint: Composed, moments: Moments) -> Factored:
    """Both factors as integers; the left one makes up for the rounding of the right one."""
    grid = constraint.then
    if not isinstance(grid, Grid):
        raise OptionError(f"low_rank goes with a grid, got {grid}")
    left, right_GRK = floats_in(found.left_GOR), floats_in(found.right_GRK)
    if grid.granularity == "tensor":  # one scale for all rows: they share the norms
        norm_GR1 = np.sqrt(np.linalg.norm(right_GRK, axis=2, keepdims=True))
        right_GRK = right_GRK / np.where(norm_GR1 > 0, norm_GR1, 1)
    on_grid = round_grid.solve(right_GRK, grid, Moments(moments.h_GKK))
    right = floats_in(on_grid).astype(np.float64)
    heard = right if moments.h_GKK is None else right @ moments.h_GKK
    system_GRR = heard @ right.transpose(0, 2, 1)
    left = solve_right(w_GOK @ heard.transpose(0, 2, 1), system_GRR).astype(np.float32)
    if not isinstance(grid.granularity, str) and left.shape[2] % grid.granularity:
        grid = msgspec.structs.replace(grid, granularity="channel")
    return Factored(round_grid.solve(left, grid, Moments(system_GRR, moments.rows_GO)), on_grid)
