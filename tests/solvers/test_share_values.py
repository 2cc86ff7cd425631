"""Shared values by second order: near the optimum where it can be found by trying all, k-means where H says nothing."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.arith.moments import Moments, loss
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.composed import Composed
from gossamer.constraints.grid import Grid
from gossamer.constraints.sparse import Sparse
from gossamer.errors import OptionError
from gossamer.solvers import share_values

books = st.builds(Codebook, st.integers(2, 6), st.sampled_from(["tensor", "channel"]), st.sampled_from([1, 2, 4]))


def correlated(rng: np.random.Generator, groups: int, width: int, samples: int) -> Moments:
    x = rng.normal(size=(groups, samples, width)) @ rng.normal(size=(groups, width, width))
    return Moments(x.transpose(0, 2, 1) @ x / samples, samples=samples)


def lost(w: np.ndarray, real: np.ndarray, moments: Moments) -> float:
    return float(loss(w.astype(np.float64) - real, moments).sum())


def least_loss(w_N: np.ndarray, h_NN: np.ndarray, k: int) -> float:
    """Over all assignments, each with its best table."""
    least = np.inf
    for entries in product(range(k), repeat=len(w_N) - 1):
        one_hot = np.eye(k)[[0, *entries]]
        half = np.linalg.cholesky(h_NN).T
        table = np.linalg.lstsq(half @ one_hot, half @ w_N, rcond=None)[0]
        error = w_N - one_hot @ table
        least = min(least, float(error @ h_NN @ error))
    return least


def test_near_the_optimum_of_all_assignments() -> None:
    ratios, nearest = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rows = 1 + seed % 2
        w = rng.normal(size=(1, rows, 5 - seed % 2)).astype(np.float32)
        moments, book = correlated(rng, 1, w.shape[2], 20), Codebook(2)
        assert moments.h_GKK is not None
        least = least_loss(w.ravel().astype(np.float64), np.kron(np.eye(rows), moments.h_GKK[0]), 2)
        found = lost(w, share_values.solve(w, book, moments).real(), moments)
        assert found >= least * (1 - 1e-5)
        ratios.append(found / least)
        nearest.append(lost(w, book.project(w).real(), moments) / least)
    assert np.median(ratios) <= 1.01 and np.mean(np.array(ratios) < 1.2) > 0.6 and np.median(nearest) > 1.5


@settings(max_examples=50)
@given(books, st.integers(1, 3), st.integers(1, 5), st.sampled_from([1, 5, 40]), st.integers(0, 999))
def test_inside_and_never_worse(book: Codebook, groups: int, outputs: int, samples: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w, moments = rng.normal(size=(groups, outputs, 12)).astype(np.float32), correlated(rng, groups, 12, samples)
    if seed % 2:
        assert moments.h_GKK is not None
        moments.h_GKK[:, 3:5] = moments.h_GKK[:, :, 3:5] = 0
        moments = moments._replace(rows_GO=rng.uniform(0, 2, (groups, outputs)))
    before = w.copy()
    form = share_values.solve(w, book, moments)
    assert book.contains(form.real()) and np.array_equal(w, before)
    assert lost(w, form.real(), moments) <= lost(w, book.project(w).real(), moments) * (1 + 1e-9)
    assert np.array_equal(share_values.solve(w, book, moments).real(), form.real())


@settings(max_examples=30)
@given(st.sampled_from([Sparse(0.5), Sparse(0.7), Sparse(pattern=(2, 4))]), books, st.integers(0, 999))
def test_zeros_stay_and_the_rest_is_shared(sparse: Sparse, book: Codebook, seed: int) -> None:
    rng = np.random.default_rng(seed)
    both = Composed(sparse, Codebook(book.k, book.scope))
    w, moments = rng.normal(size=(2, 4, 12)).astype(np.float32), correlated(rng, 2, 12, 40)
    real = share_values.solve(w, both, moments).real()
    assert sparse.contains(real) and both.contains(real)


def test_whole_vectors_are_removed_or_none() -> None:
    rng = np.random.default_rng(0)
    w, moments = rng.normal(size=(1, 8, 16)).astype(np.float32), correlated(rng, 1, 16, 100)
    both = Composed(Sparse(0.5, block=(1, 4)), Codebook(4, dimension=2))
    assert both.contains(share_values.solve(w, both, moments).real())
    with pytest.raises(OptionError, match="give sparse blocks of 1 row and 2 columns"):
        share_values.solve(w, Composed(Sparse(0.5), Codebook(4, dimension=2)), moments)


@pytest.mark.parametrize("book", [Codebook(4), Codebook(4, "channel"), Codebook(8, dimension=2)])
def test_the_identity_gives_k_means(book: Codebook) -> None:
    w = np.random.default_rng(0).normal(size=(2, 16, 12)).astype(np.float32)
    nearest = lost(w, book.project(w).real(), Moments(None))
    assert lost(w, share_values.solve(w, book, Moments(None)).real(), Moments(None)) == pytest.approx(nearest, rel=1e-6)
    identity = Moments(np.tile(np.eye(12), (2, 1, 1)))
    assert 0.9 * nearest < lost(w, share_values.solve(w, book, identity).real(), identity) <= nearest * (1 + 1e-9)


def test_a_diagonal_weighs_the_columns() -> None:
    w = np.random.default_rng(0).normal(size=(1, 1, 200)).astype(np.float32)
    power = np.where(np.arange(200) < 20, 1000.0, 1.0)
    found = share_values.solve(w, Codebook(8), Moments(np.diag(power)[None]))
    weighted = Codebook(8).weighted(w, power[None, None]).real()
    least = lost(w, weighted, Moments(np.diag(power)[None]))
    assert lost(w, found.real(), Moments(np.diag(power)[None])) <= least * 1.05


def test_rows_that_are_looked_up_often_are_closer() -> None:
    w = np.random.default_rng(0).normal(size=(1, 50, 8)).astype(np.float32)
    moments = Moments(None, np.where(np.arange(50) < 5, 1000.0, 1.0)[None])
    found = share_values.solve(w, Codebook(6), moments)
    assert lost(w, found.real(), moments) < 0.8 * lost(w, Codebook(6).project(w).real(), moments)


@pytest.mark.parametrize("book", [Codebook(16), Codebook(8, "channel"), Codebook(32, dimension=4)])
def test_a_larger_layer_in_single_precision_gains_much(book: Codebook) -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(1, 128, 256)).astype(np.float32)
    assert w.size * 256 > share_values.SMALL
    x = rng.normal(size=(1, 600, 32)) @ rng.normal(size=(1, 32, 256)) + 0.5 * rng.normal(size=(1, 600, 256))
    moments = Moments((x.transpose(0, 2, 1) @ x / 600).astype(np.float32))
    real = share_values.solve(w, book, moments).real()
    assert book.contains(real) and lost(w, real, moments) < 0.35 * lost(w, book.project(w).real(), moments)


def test_no_other_constraint() -> None:
    w = np.ones((1, 2, 4), np.float32)
    with pytest.raises(OptionError, match="shared values are a codebook"):
        share_values.solve(w, Composed(Sparse(0.5), Grid(4)), Moments(None))
    with pytest.raises(OptionError, match="codebook: a codebook of 3-vectors"):
        share_values.solve(w, Codebook(4, dimension=3), Moments(None))
