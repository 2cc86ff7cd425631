"""Tied layers: the closed form is the minimum, and stays at the mean where no layer hears."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.arith.moments import Moments, loss
from gossamer.constraints.shared import Shared
from gossamer.solvers import tie_layers


def problem(seed: int, samples: int = 40) -> tuple[np.ndarray, Moments]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, samples, 6)) @ rng.normal(size=(3, 6, 6))
    return rng.normal(size=(3, 4, 6)).astype(np.float32), Moments(np.einsum("gsk,gsl->gkl", x, x) / samples)


def lost(real: np.ndarray, w: np.ndarray, moments: Moments) -> float:
    return float(loss(w.astype(np.float64) - real, moments).sum())


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_never_worse_than_the_mean_and_than_any_step_away(seed: int, samples: int) -> None:
    w, moments = problem(seed, samples)
    tied = tie_layers.solve(w, Shared(), moments).real()
    assert Shared().contains(tied) and tied.dtype == np.float32
    best = lost(tied, w, moments)
    assert best <= lost(Shared().project(w).real(), w, moments) * (1 + 1e-6)
    step = np.random.default_rng(seed).normal(size=(1, 4, 6)) * 0.1
    assert best <= lost(tied + step, w, moments) * (1 + 1e-4)


def test_a_much_heavier_layer_wins() -> None:
    w, moments = problem(0)
    assert moments.h_GKK is not None
    weighted = Moments(moments.h_GKK * np.array([1e6, 1, 1])[:, None, None])
    np.testing.assert_allclose(tie_layers.solve(w, Shared(), weighted).real()[1], w[0], atol=1e-3)


@pytest.mark.parametrize("moments", [Moments(np.zeros((2, 3, 3))), Moments(None), Moments(None, np.zeros((2, 4)))])
def test_the_mean_where_nothing_is_heard(moments: Moments) -> None:
    w = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(tie_layers.solve(w, Shared(), moments).real()[0], w.mean(axis=0), atol=1e-6)


def test_columns_that_no_layer_hears_stay_at_the_mean() -> None:
    w, moments = problem(1)
    assert moments.h_GKK is not None
    h = moments.h_GKK.copy()
    h[:, 2], h[:, :, 2] = 0, 0
    tied = tie_layers.solve(w, Shared(), Moments(h)).real()
    np.testing.assert_allclose(tied[0, :, 2], w[:, :, 2].mean(axis=0), atol=1e-6)


def test_rows_of_tables_by_how_often_they_are_looked_up() -> None:
    w = np.array([[[0.0], [0]], [[4], [8]]], np.float32)
    tied = tie_layers.solve(w, Shared(), Moments(None, np.array([[3.0, 0], [1, 0]]))).real()
    assert tied[0].tolist() == [[1], [4]]
