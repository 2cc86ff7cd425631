"""Nearest: the projection, and what it loses under the moments given."""

from __future__ import annotations

import numpy as np
import pytest

from gossamer.arith.forms import floats_of
from gossamer.arith.moments import Moments
from gossamer.constraints.grid import Grid
from gossamer.constraints.sparse import Sparse
from gossamer.errors import DataError, OptionError
from gossamer.solvers import nearest

RNG = np.random.default_rng(0)
W = RNG.normal(size=(2, 3, 8)).astype(np.float32)
X = RNG.normal(size=(2, 50, 8))


def test_the_loss_is_the_squared_error_of_the_outputs() -> None:
    moments = Moments(np.einsum("gsk,gsl->gkl", X, X) / 50, samples=50)
    solved = nearest.solve(W, Grid(4), moments)
    error = W - floats_of(Grid(4).project(W))
    assert solved.loss == solved.nearest_loss == pytest.approx(((X @ error.transpose(0, 2, 1)) ** 2).sum() / 50)
    assert solved.zero_loss == pytest.approx(((X @ W.transpose(0, 2, 1)) ** 2).sum() / 50)
    assert solved.reason == ""


@pytest.mark.parametrize("moments", [None, Moments(np.full((2, 8, 8), np.nan))])
def test_without_usable_moments_it_is_that_of_the_weights(moments: Moments | None) -> None:
    solved = nearest.solve(W, Sparse(0.5), moments)
    smallest = np.sort(np.square(W, dtype=np.float64), axis=None)[:24]
    assert solved.loss == pytest.approx(smallest.sum())


def test_rows_count_as_often_as_they_are_looked_up() -> None:
    rows = np.array([[1.0, 0, 2], [0, 0, 0.5]])
    solved = nearest.solve(W, Grid(3), Moments(None, rows))
    error = W - floats_of(Grid(3).project(W))
    assert solved.loss == pytest.approx((np.square(error).sum(axis=2) * rows).sum())


def test_rounding_makes_no_loss_negative() -> None:
    h = np.array([[[1, 1], [1, 1 - 1e-9]]])
    w = np.array([[[1, -1]]], np.float32)
    assert nearest.solve(w, Sparse(0.99), Moments(h)).zero_loss == 0


def test_what_cannot_be() -> None:
    with pytest.raises(DataError, match="a weight is NaN or infinite; no constraint can hold it"):
        nearest.solve(np.array([[[np.inf]]], np.float32), Sparse(0.5), None)
    with pytest.raises(OptionError, match="its rows of 8 weights are not a multiple of the group 3"):
        nearest.solve(W, Grid(4, granularity=3), None)
