"""Thin factors: optimal for matrices, exact for tensors of their rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.arith.tensor_decomposition import Cp, cp, directions, rank_for, solve_right, tucker, tucker_ranks


def real(parts: Cp) -> np.ndarray:
    return np.einsum("or,ri,rs->ois", parts.outer_OR, parts.inner_RI, parts.kernel_RS)


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 999))
def test_directions_are_those_of_the_singular_values(outputs: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w, root = rng.normal(size=(2, outputs, width)), rng.normal(size=(2, width, width))
    for h, half in ((None, np.eye(width)), (root @ root.transpose(0, 2, 1), root)):
        vectors, energy = directions(w, h)
        least = min(outputs, width)
        np.testing.assert_allclose(vectors.transpose(0, 2, 1) @ vectors, np.tile(np.eye(least), (2, 1, 1)), atol=1e-9)
        values = np.linalg.svd(w @ half, compute_uv=False)
        np.testing.assert_allclose(energy, values**2, rtol=1e-6, atol=1e-9 * energy.max())


def test_the_fewest_directions_that_hold_a_share() -> None:
    energy = np.array([[6.0, 2, 1, 0], [2, 2, 1, 0]])
    assert [rank_for(energy, ratio) for ratio in (0.1, 8 / 14, 0.6, 12 / 14, 0.99, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert rank_for(np.zeros((1, 3)), 0.9) == 1


def test_a_singular_system_has_a_solution() -> None:
    left = np.array([[[2.0, 2.0]]])
    np.testing.assert_allclose(solve_right(left, np.ones((1, 2, 2))) @ np.ones((1, 2, 2)), left, rtol=1e-6)
    assert (solve_right(np.zeros((1, 1, 2)), np.zeros((1, 2, 2))) == 0).all()


@pytest.mark.parametrize(
    ("shape", "ranks"), [((8, 6, 9), (3, 2)), ((4, 9, 2), (4, 5)), ((9, 1, 4), (2, 1)), ((9, 5, 1), (7, 5))]
)
def test_tucker_is_exact_for_its_ranks_and_orthonormal(shape: tuple[int, int, int], ranks: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    core = rng.normal(size=(*ranks, shape[2]))
    w = np.einsum("rqs,or,iq->ois", core, rng.normal(size=(shape[0], ranks[0])), rng.normal(size=(shape[1], ranks[1])))
    outer, found, inner = tucker(w, ranks)
    assert outer.shape == (shape[0], ranks[0]) and inner.shape == (ranks[1], shape[1])
    np.testing.assert_allclose(np.einsum("or,rqs,qi->ois", outer, found, inner), w, atol=1e-9 * np.abs(w).max())
    np.testing.assert_allclose(inner @ inner.T, np.eye(ranks[1]), atol=1e-9)


def test_tucker_beats_truncation_of_each_side() -> None:
    w = np.random.default_rng(0).normal(size=(10, 8, 9))
    core = tucker(w, (3, 3)).core_RQS
    sides = [directions(np.moveaxis(w, axis, 0).reshape(1, w.shape[axis], -1))[0][0, :, :3] for axis in (0, 1)]
    truncated = np.einsum("ois,or,iq->rqs", w, *sides)
    assert (core**2).sum() > (truncated**2).sum()


def test_tucker_ranks() -> None:
    w = np.random.default_rng(0).normal(size=(10, 4, 9))
    assert tucker_ranks(w, 6, None) == (6, 4)
    first, second = tucker_ranks(w, None, 0.8)
    assert first < 10 and second <= 4
    outer, core, _ = tucker(w, (first, second))
    assert (core**2).sum() >= 0.8 * (w**2).sum() and outer.shape[1] == first


@pytest.mark.parametrize(
    ("shape", "rank"), [((8, 6, 9), 3), ((8, 6, 9), 5), ((6, 4, 4), 1), ((4, 8, 2), 3), ((5, 5, 1), 2)]
)
def test_cp_is_exact_for_a_sum_of_as_many_products(shape: tuple[int, int, int], rank: int) -> None:
    rng = np.random.default_rng(2)
    w = real(
        Cp(rng.normal(size=(shape[0], rank)), rng.normal(size=(rank, shape[1])), rng.normal(size=(rank, shape[2])))
    )
    parts = cp(w, rank)
    np.testing.assert_allclose(real(parts), w, atol=1e-4 * np.abs(w).max())
    np.testing.assert_allclose(np.linalg.norm(parts.inner_RI, axis=1), 1)


def test_cp_falls_with_the_rank_beyond_both_sides_and_repeats() -> None:
    w = np.random.default_rng(0).normal(size=(6, 5, 9))
    errors = [((w - real(cp(w, rank))) ** 2).sum() / (w**2).sum() for rank in (1, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True) and errors[0] < 0.95 and errors[-1] < 0.4
    assert all(np.array_equal(*pair) for pair in zip(cp(w, 4), cp(w, 4), strict=True))
