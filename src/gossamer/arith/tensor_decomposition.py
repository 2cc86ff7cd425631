"""Matrices and convolution kernels as products of thin factors, at the least squared error.

A kernel is (O, I, S): outputs, inputs, positions. Tucker's form keeps the positions in a core (Kim et al. 2016,
"Compression of deep convolutional neural networks for fast and low power mobile applications"), found by alternating
singular vectors (De Lathauwer et al. 2000, "On the best rank-1 and rank-(R1, R2, ..., RN) approximation of higher-order
tensors"). The canonical form is a sum of R products of three vectors (Lebedev et al. 2015, "Speeding-up convolutional
neural networks using fine-tuned CP-decomposition", with both directions of the kernel kept as one), found by
alternating least squares on the small core of a Tucker form (Bro and Andersson 1998), from where simultaneous
diagonalisation leaves it (Leurgans et al. 1993), which is exact for kernels that are such a sum.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

TUCKER_ROUNDS = 4
CP_ROUNDS = 200
CP_MIXTURES = 4  # of slices that are tried to begin from
CP_POLISH = 3  # rounds on the whole kernel
CP_WORTH = 1e-6  # share of the error that a round must gain
RIDGE = 1e-12  # of the mean diagonal of a system that may be singular


class Tucker(NamedTuple):
    """w[o, i, s] = sum over r, q of outer[o, r] core[r, q, s] inner[q, i], floats of 64 bits."""

    outer_OR: np.ndarray
    core_RQS: np.ndarray
    inner_QI: np.ndarray


class Cp(NamedTuple):
    """w[o, i, s] = sum over r of outer[o, r] inner[r, i] kernel[r, s], floats of 64 bits."""

    outer_OR: np.ndarray
    inner_RI: np.ndarray
    kernel_RS: np.ndarray


def directions(w_GOK: np.ndarray, h_GKK: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Output directions in the order of the energy of their answers, with it.

    The first R of them span what a weight of rank R should keep: W' = U U^T W has the least tr((W - W') H (W - W')^T)
    of all matrices of that rank (Eckart and Young 1936, of W H^(1/2)). No inverse of H is needed.

    Args:
        w_GOK: float64.
        h_GKK: symmetric, positive semidefinite; None means the identity.

    Returns:
        orthonormal columns (G, O, min(O, K)) and their energies (G, min(O, K)), descending, not below 0.
    """
    tall = w_GOK.shape[1] > w_GOK.shape[2]
    basis_GOK, small = np.linalg.qr(w_GOK) if tall else (None, w_GOK)
    answers = small if h_GKK is None else small @ h_GKK
    energy, vectors = np.linalg.eigh(answers @ small.transpose(0, 2, 1))
    vectors = vectors[:, :, ::-1] if basis_GOK is None else basis_GOK @ vectors[:, :, ::-1]
    return vectors, np.maximum(energy[:, ::-1], 0.0)


def rank_for(energy_GR: np.ndarray, ratio: float) -> int:
    """The fewest directions, the same number in every group, that hold a share of all energy."""
    running = np.cumsum(energy_GR.sum(axis=0))
    return min(int(np.searchsorted(running, ratio * running[-1] * (1 - 1e-12))) + 1, len(running))


def solve_right(left_GAR: np.ndarray, system_GRR: np.ndarray) -> np.ndarray:
    """X of X system = left, least squares where the symmetric system is singular: (G, A, R)."""
    size = system_GRR.shape[-1]
    mean_G = np.trace(system_GRR, axis1=-2, axis2=-1) / size
    damped = system_GRR + np.where(mean_G > 0, RIDGE * mean_G, 1.0)[..., None, None] * np.eye(size)
    return np.asarray(np.linalg.solve(damped, left_GAR.swapaxes(-1, -2)).swapaxes(-1, -2))


def tucker_ranks(w_OIS: np.ndarray, rank: int | None, energy_ratio: float | None) -> tuple[int, int]:
    """Ranks along outputs and inputs: the given one where there are as many, or half the allowed loss each."""
    outputs, inputs, _ = w_OIS.shape
    if rank is not None or energy_ratio is None:
        return min(rank or outputs, outputs), min(rank or inputs, inputs)
    share = 1 - (1 - energy_ratio) / 2
    energies = (directions(np.moveaxis(w_OIS, axis, 0).reshape(1, w_OIS.shape[axis], -1))[1] for axis in (0, 1))
    first, second = (rank_for(energy, share) for energy in energies)
    return first, second


def tucker(w_OIS: np.ndarray, ranks: tuple[int, int]) -> Tucker:
    """The core and two bases, by alternating between the two."""
    outer_OR = _basis(w_OIS, ranks[0])
    inner_IQ = np.empty(0)
    for _ in range(TUCKER_ROUNDS):
        inner_IQ = _basis(np.einsum("ois,or->irs", w_OIS, outer_OR, optimize=True), ranks[1])
        outer_OR = _basis(np.einsum("ois,iq->oqs", w_OIS, inner_IQ, optimize=True), ranks[0])
    core_RQS = np.einsum("ois,or,iq->rqs", w_OIS, outer_OR, inner_IQ, optimize=True)
    return Tucker(outer_OR, core_RQS, np.ascontiguousarray(inner_IQ.T))


def cp(w_OIS: np.ndarray, rank: int) -> Cp:
    """A sum of `rank` products, each scaled so that inner and kernel have norm 1; deterministic."""
    outputs, inputs, _ = w_OIS.shape
    small = tucker(w_OIS, (min(rank, outputs), min(rank, inputs)))
    starts = [_spread_start(small.core_RQS, rank)]
    if rank <= min(outputs, inputs) and small.core_RQS.shape[2] > 1:
        starts += [_diagonal_start(small.core_RQS, seed) for seed in range(CP_MIXTURES)]
    found = [_alternated(small.core_RQS, start, CP_ROUNDS) for start in starts]
    best = min(found, key=lambda parts: _cp_error(small.core_RQS, parts))
    whole = Cp(small.outer_OR @ best.outer_OR, best.inner_RI @ small.inner_QI, best.kernel_RS)
    return _alternated(w_OIS, whole, CP_POLISH)


def _basis(tensor: np.ndarray, rank: int) -> np.ndarray:
    """The leading directions of the first axis."""
    found, _ = directions(tensor.reshape(1, len(tensor), -1))
    missing = min(rank, len(tensor)) - found.shape[2]
    if missing > 0:  # fewer columns than the rank: any orthonormal ones complete the basis
        found = np.linalg.qr(np.concatenate([found[0], np.eye(len(tensor))], axis=1))[0][None]
    return np.asarray(found[0, :, :rank])


def _spread_start(core_RQS: np.ndarray, rank: int) -> Cp:
    """Random vectors, the same at every call; the first round of least squares replaces the outer ones."""
    random = np.random.default_rng(0)
    outer, inner, kernel = (random.normal(size=(length, rank)) for length in core_RQS.shape)
    return Cp(outer, inner.T.copy(), kernel.T.copy())


def _diagonal_start(core_RRS: np.ndarray, seed: int) -> Cp:
    """Exact for a core that is a sum of R products: two mixtures of its slices have the same outer eigenvectors."""
    random = np.random.default_rng(seed)
    mixed, other = (core_RRS @ random.normal(size=core_RRS.shape[2]) for _ in range(2))
    outer_RR = np.linalg.eig(mixed @ np.linalg.pinv(other, rcond=1e-9))[1].real
    rest = np.linalg.pinv(outer_RR, rcond=1e-9) @ core_RRS.reshape(len(core_RRS), -1)
    left, value, right = np.linalg.svd(rest.reshape(-1, *core_RRS.shape[1:]), full_matrices=False)
    return Cp(outer_RR, left[:, :, 0] * value[:, :1], np.ascontiguousarray(right[:, 0]))


def _alternated(w_OIS: np.ndarray, start: Cp, rounds: int) -> Cp:
    """Least squares for one factor after the other."""
    (outer, inner, kernel), before = start, np.inf
    total = float((w_OIS * w_OIS).sum())
    for _ in range(rounds):
        mixed_OIR = np.tensordot(w_OIS, kernel, axes=(2, 1))
        outer = solve_right(np.einsum("oir,ri->or", mixed_OIR, inner), (inner @ inner.T) * (kernel @ kernel.T))
        inner = solve_right(np.einsum("oir,or->ir", mixed_OIR, outer), (outer.T @ outer) * (kernel @ kernel.T)).T
        mixed_ISR = np.tensordot(w_OIS, outer, axes=(0, 0))
        along_SR = np.einsum("isr,ri->sr", mixed_ISR, inner)
        system_RR = (outer.T @ outer) * (inner @ inner.T)
        kernel = solve_right(along_SR, system_RR).T
        error = total - 2 * float((along_SR * kernel.T).sum()) + float((system_RR * (kernel @ kernel.T)).sum())
        if error >= before * (1 - CP_WORTH) or error <= 1e-14 * total:
            break
        before = error
    return _normalised(Cp(outer, inner, kernel))


def _normalised(parts: Cp) -> Cp:
    norms = [np.linalg.norm(part, axis=1, keepdims=True) for part in parts[1:]]
    inner, kernel = (part / np.where(norm > 0, norm, 1.0) for part, norm in zip(parts[1:], norms, strict=True))
    return Cp(parts.outer_OR * (norms[0] * norms[1])[:, 0], inner, kernel)


def _cp_error(w_OIS: np.ndarray, parts: Cp) -> float:
    right_RIS = parts.inner_RI[:, :, None] * parts.kernel_RS[:, None, :]
    error = w_OIS - np.tensordot(parts.outer_OR, right_RIS, axes=1)
    return float((error * error).sum())
