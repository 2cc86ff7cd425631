"""Low rank by second order: the optimum for two factors, better than nearest for three."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.arith.forms import Chained, Factored, floats_of
from gossamer.arith.moments import Moments, loss
from gossamer.arith.weight_grid import Grid as OnGrid
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.composed import Composed
from gossamer.constraints.grid import Grid
from gossamer.constraints.low_rank import LowRank
from gossamer.errors import OptionError
from gossamer.solvers import reduce_rank

KERNEL = (6, 3, 3)


def correlated(rng: np.random.Generator, groups: int, width: int, samples: int) -> Moments:
    x = rng.normal(size=(groups, samples, width)) @ rng.normal(size=(groups, width, width))
    return Moments(x.transpose(0, 2, 1) @ x / samples, samples=samples)


def lost(w: np.ndarray, real: np.ndarray, moments: Moments) -> float:
    return float(loss(w.astype(np.float64) - real, moments).sum())


@settings(max_examples=60)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 8), st.integers(0, 999))
def test_two_factors_are_the_optimum(outputs: int, width: int, rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w, moments = rng.normal(size=(2, outputs, width)).astype(np.float32), correlated(rng, 2, width, 40)
    rank = min(rank, outputs - 1, width - 1)
    if seed % 2:
        moments = moments._replace(rows_GO=rng.uniform(0.1, 5, (2, outputs)))
    found = reduce_rank.solve(w, LowRank(rank), moments)
    assert isinstance(found, Factored) and LowRank(rank).contains(found.real())
    assert moments.h_GKK is not None
    rows = np.ones((2, outputs)) if moments.rows_GO is None else moments.rows_GO
    whitened = np.sqrt(rows)[:, :, None] * (w @ np.linalg.cholesky(moments.h_GKK))
    values = np.linalg.svd(whitened, compute_uv=False)
    least = float((values[:, rank:] ** 2).sum())
    assert lost(w, found.real(), moments) == pytest.approx(least, rel=1e-4, abs=1e-6 * float((values**2).sum()))


@pytest.mark.parametrize("samples", [1, 3, 8])
def test_few_samples_or_none_leave_the_rest_to_its_size(samples: int) -> None:
    rng = np.random.default_rng(0)
    w, moments = rng.normal(size=(1, 10, 16)).astype(np.float32), correlated(rng, 1, 16, samples)
    real = reduce_rank.solve(w, LowRank(8), moments).real()
    zero_loss = lost(w, np.zeros_like(w), moments)
    assert np.isfinite(real).all() and lost(w, real, moments) <= 1e-6 * zero_loss
    assert ((w - real) ** 2).sum() < 0.5 * (w**2).sum()
    silent = reduce_rank.solve(w, LowRank(4), Moments(np.zeros((1, 16, 16))))
    np.testing.assert_allclose(silent.real(), LowRank(4).project(w).real(), atol=1e-5)


def test_the_identity_gives_singular_vectors() -> None:
    w = np.random.default_rng(0).normal(size=(2, 6, 9)).astype(np.float32)
    nearest = LowRank(3).project(w).real()
    for moments in (Moments(None), Moments(np.tile(np.eye(9), (2, 1, 1)))):
        np.testing.assert_allclose(reduce_rank.solve(w, LowRank(3), moments).real(), nearest, atol=1e-5)


def test_a_share_of_the_energy_is_that_of_the_answers() -> None:
    rng = np.random.default_rng(0)
    w, moments = rng.normal(size=(1, 20, 30)).astype(np.float32), correlated(rng, 1, 30, 90)
    found = reduce_rank.solve(w, LowRank(energy_ratio=0.9), moments)
    assert isinstance(found, Factored) and isinstance(found.left_GOR, np.ndarray)
    rank, zero_loss = found.left_GOR.shape[2], lost(w, np.zeros_like(w), moments)
    assert lost(w, found.real(), moments) <= 0.1 * zero_loss
    assert lost(w, reduce_rank.solve(w, LowRank(rank - 1), moments).real(), moments) > 0.1 * zero_loss
    nearest = LowRank(energy_ratio=0.9).project(w)
    assert isinstance(nearest, Factored) and isinstance(nearest.left_GOR, np.ndarray)
    assert rank < nearest.left_GOR.shape[2]


@pytest.mark.parametrize("split", ["tucker", "cp"])
@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("samples", [20, 200])
def test_three_factors_beat_nearest(split: str, rank: int, samples: int) -> None:
    rng = np.random.default_rng(rank)
    w, moments = rng.normal(size=(1, 10, 54)).astype(np.float32), correlated(rng, 1, 54, samples)
    low = LowRank(rank, split=split)  # type: ignore[arg-type]
    found = reduce_rank.solve(w, low, moments, KERNEL)
    assert isinstance(found, Chained) and [part.shape for part in found] == [
        part.shape for part in low.project(w, KERNEL)
    ]
    assert low.contains(found.real(), KERNEL)
    assert lost(w, found.real(), moments) < 0.95 * lost(w, low.project(w, KERNEL).real(), moments)
    weighted = moments._replace(rows_GO=rng.uniform(0, 3, (1, 10)))
    found = reduce_rank.solve(w, low, weighted, KERNEL)
    assert lost(w, found.real(), weighted) < lost(w, low.project(w, KERNEL).real(), weighted)


@pytest.mark.parametrize("split", ["tucker", "cp"])
def test_three_factors_that_fit_stay(split: str) -> None:
    rng = np.random.default_rng(0)
    low = LowRank(3, split=split)  # type: ignore[arg-type]
    w = low.project(rng.normal(size=(1, 10, 54)).astype(np.float32), KERNEL).real()
    moments = correlated(rng, 1, 54, 200)
    real = reduce_rank.solve(w, low, moments, KERNEL).real()
    assert lost(w, real, moments) < 1e-3 * lost(w, np.zeros_like(w), moments)


@pytest.mark.parametrize("grid", [Grid(8), Grid(4), Grid(4, granularity="tensor"), Grid(4, False, 4)])
def test_factors_on_a_grid(grid: Grid) -> None:
    rng = np.random.default_rng(0)
    w, moments = rng.normal(size=(2, 16, 24)).astype(np.float32), correlated(rng, 2, 24, 100)
    both = Composed(LowRank(6), grid)
    found = reduce_rank.solve(w, both, moments)
    assert isinstance(found, Factored) and isinstance(found.left_GOR, OnGrid) and isinstance(found.right_GRK, OnGrid)
    after, nearest = (lost(w, floats_of(form), moments) for form in (found, both.project(w)))
    floats = lost(w, reduce_rank.solve(w, LowRank(6), moments).real(), moments)
    assert floats < after < 0.95 * nearest and (grid.bits < 8 or after < 1.01 * floats)


def test_what_cannot_be_is_said() -> None:
    w = np.ones((1, 4, 6), np.float32)
    with pytest.raises(OptionError, match="rank 4 is not below"):
        reduce_rank.solve(w, LowRank(4), Moments(None))
    with pytest.raises(OptionError, match="cp takes apart kernels"):
        reduce_rank.solve(w, LowRank(2, split="cp"), Moments(None))
    with pytest.raises(OptionError, match="low_rank goes with a grid"):
        Composed(LowRank(2), Codebook(4))
