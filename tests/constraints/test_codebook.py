"""Shared values: as many as asked for, nearest, left alone where they are shared already."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gossamer.constraints.codebook import Codebook
from gossamer.errors import OptionError

weights = hnp.arrays(np.float32, (2, 3, 8), elements=st.floats(-10, 10, width=16))
books = st.builds(Codebook, st.integers(2, 9), st.sampled_from(["tensor", "channel"]), st.sampled_from([1, 2, 4]))


@settings(max_examples=60)
@given(weights, books)
def test_inside_and_the_same_again(w: np.ndarray, book: Codebook) -> None:
    form = book.project(w)
    real = form.real()
    assert book.contains(real) and np.array_equal(book.project(real).real(), real)
    assert form.indices_GOV.dtype == np.uint8 and form.tables_TVD.dtype == np.float32
    assert len(form.tables_TVD) == (6 if book.scope == "channel" else 1) and form.tables_TVD.shape[1] <= book.k
    vectors = real.reshape(len(form.tables_TVD), -1, book.dimension)
    assert all(len(np.unique(row, axis=0)) <= book.k for row in vectors)


@settings(max_examples=60)
@given(weights, books, st.integers(0, 99))
def test_what_is_not_kept_is_zero_and_the_rest_stays_where_it_is_shared(
    w: np.ndarray, book: Codebook, seed: int
) -> None:
    kept = np.random.default_rng(seed).random((2, 3, 8 // book.dimension)) < 0.5
    real = book.project(w, (), kept).real()
    assert (real[~np.repeat(kept, book.dimension, axis=2)] == 0).all()
    assert book.contains(real) and np.array_equal(book.project(real, (), kept).real(), real)


def test_k_means_loses_far_less_than_a_grid_of_as_many_levels() -> None:
    w = np.random.default_rng(0).standard_t(3, size=(1, 64, 64)).astype(np.float32)
    levels = np.linspace(w.min(), w.max(), 16)
    on_grid = levels[np.abs(w[..., None] - levels).argmin(axis=-1)]
    errors = {scope: float(((Codebook(16, scope).project(w).real() - w) ** 2).sum()) for scope in ("tensor", "channel")}
    assert errors["channel"] < errors["tensor"] < 0.5 * ((on_grid - w) ** 2).sum()


def test_random_weights_lie_outside() -> None:
    w = np.random.default_rng(0).normal(size=(1, 4, 8)).astype(np.float32)
    assert not Codebook(4).contains(w) and not Codebook(4, "channel").contains(w)
    assert not Codebook(4, dimension=2).contains(w) and Codebook(32).contains(w)


def test_more_than_256_entries_take_two_bytes() -> None:
    w = np.random.default_rng(0).normal(size=(1, 20, 50)).astype(np.float32)
    form = Codebook(300).project(w)
    assert form.indices_GOV.dtype == np.uint16 and form.tables_TVD.shape == (1, 300, 1)
    assert ((form.real() - w) ** 2).mean() < 1e-4


def test_rows_that_vectors_do_not_divide_are_refused() -> None:
    assert Codebook(4, dimension=2).obstacle((1, 3, 8)) == ""
    assert "multiple of that, not 9 wide" in Codebook(4, dimension=2).obstacle((1, 3, 9))
    with pytest.raises(OptionError, match=r"codebook: a codebook of 2-vectors needs rows .* not 9 wide"):
        Codebook(4, dimension=2).project(np.zeros((1, 3, 9), np.float32))
    assert not Codebook(4, dimension=2).contains(np.zeros((1, 3, 9), np.float32))


def test_heavier_weights_are_closer() -> None:
    w = np.random.default_rng(0).normal(size=(1, 1, 200)).astype(np.float32)
    heavy = np.where(np.arange(200) < 20, 1000.0, 1.0)[None, None]
    plain, weighted = (
        (book - w) ** 2 for book in (Codebook(8).project(w).real(), Codebook(8).weighted(w, heavy).real())
    )
    assert weighted[0, 0, :20].sum() < 0.5 * plain[0, 0, :20].sum() and weighted.sum() > plain.sum()
