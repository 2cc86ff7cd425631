"""Tables: optimal on a line, exact where there are few values, the same at every call."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gossamer.arith import kmeans

values = hnp.arrays(np.float64, (3, 9), elements=st.floats(-4, 4, width=16))


def error(x_TN: np.ndarray, tables_TK: np.ndarray, weight_TN: np.ndarray) -> np.ndarray:
    found = np.take_along_axis(tables_TK, kmeans.nearest_entries(x_TN, tables_TK), axis=1)
    return np.asarray((weight_TN * (x_TN - found) ** 2).sum(axis=1))


def least_error(x_N: np.ndarray, weight_N: np.ndarray, k: int) -> float:
    """Of all ways to cut the sorted values into k runs."""
    order = np.argsort(x_N)
    x, weight = x_N[order], weight_N[order]

    def within(start: int, end: int) -> float:
        mean = np.average(x[start:end], weights=weight[start:end])
        return float((weight[start:end] * (x[start:end] - mean) ** 2).sum())

    cuts = ((0, *inner, len(x)) for inner in combinations(range(1, len(x)), k - 1))
    return min(sum(within(*pair) for pair in pairwise(cut)) for cut in cuts)


@settings(max_examples=30)
@given(values, st.integers(2, 4), st.integers(0, 99))
def test_few_values_are_grouped_at_the_least_error(x: np.ndarray, k: int, seed: int) -> None:
    weight = np.random.default_rng(seed).uniform(0.1, 2, x.shape)
    tables = kmeans.scalar_tables(x, k, weight)
    assert (np.diff(tables, axis=1) >= 0).all()
    least = [least_error(*row, k) for row in zip(x, weight, strict=True)]
    np.testing.assert_allclose(error(x, tables, weight), least, rtol=1e-6, atol=1e-9)


@given(values, st.integers(9, 12))
def test_as_many_entries_as_values_lose_nothing(x: np.ndarray, k: int) -> None:
    tables = kmeans.scalar_tables(x, k)
    assert np.array_equal(np.take_along_axis(tables, kmeans.nearest_entries(x, tables), axis=1), x)


@pytest.mark.parametrize("k", [4, 16, 64])
def test_both_starts_come_to_about_the_same(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_t(4, size=(2, 4000))
    errors = []
    for limit in (0.0, 1e12):
        monkeypatch.setattr(kmeans, "PROGRAM_LIMIT", limit)
        errors.append(error(x, kmeans.scalar_tables(x, k), np.ones_like(x)))
    assert (errors[0] <= 1.25 * errors[1]).all() and (errors[1] <= 1.1 * errors[0]).all()
    uniform = np.linspace(x.min(axis=1), x.max(axis=1), k, axis=1)
    assert (errors[1] < 0.7 * error(x, uniform, np.ones_like(x))).all()


def test_weights_draw_the_entries() -> None:
    x = np.array([[0.0, 1.0, 10.0, 11.0]])
    np.testing.assert_allclose(kmeans.scalar_tables(x, 2, np.array([[1, 3, 3, 1]])), [[0.75, 10.25]], atol=1e-6)
    np.testing.assert_allclose(kmeans.scalar_tables(x, 2, np.zeros((1, 4))), [[0.5, 10.5]])


@given(values)
def test_count_below(x: np.ndarray) -> None:
    ascending, wanted = np.sort(x, axis=1), x[:, ::2]
    counted = (ascending[:, None, :] < wanted[:, :, None]).sum(axis=2)
    assert np.array_equal(kmeans.count_below(ascending, wanted), counted)


@pytest.mark.parametrize("rows", [1, 3])
def test_few_vectors_are_kept_exactly(rows: int) -> None:
    rng = np.random.default_rng(rows)
    entries = rng.normal(size=(rows, 5, 4)).astype(np.float32)
    x = np.take_along_axis(entries, rng.integers(0, 5, (rows, 300))[:, :, None], axis=1)
    for k in (5, 8):
        tables = kmeans.vector_tables(x, k)
        found = np.take_along_axis(tables, kmeans.nearest_vectors(x, tables)[:, :, None], axis=1)
        assert np.array_equal(found, x)


def test_vectors_find_their_clusters_whatever_their_weights() -> None:
    rng = np.random.default_rng(0)
    middles = rng.normal(size=(1, 16, 3)) * 10
    x = middles[:, rng.integers(0, 16, 800)] + 0.1 * rng.normal(size=(1, 800, 3))
    weight = rng.uniform(0.5, 2, x.shape)
    for counted in (None, weight):
        tables = kmeans.vector_tables(x, 16, counted)
        found = np.take_along_axis(tables, kmeans.nearest_vectors(x, tables, counted)[:, :, None], axis=1)
        assert ((x - found) ** 2).mean() < 0.02


def test_large_tables_and_more_entries_than_vectors_and_the_same_again() -> None:
    x = np.random.default_rng(0).normal(size=(1, 3000, 2)).astype(np.float32)
    first, again = (kmeans.vector_tables(x, 600) for _ in range(2))
    assert np.array_equal(first, again) and first.shape == (1, 600, 2)
    found = first[0, kmeans.nearest_vectors(x, first)[0]]
    assert ((x[0] - found) ** 2).mean() < 0.01
    assert np.array_equal(np.unique(kmeans.vector_tables(x[:, :5], 8)[0], axis=0), np.unique(x[0, :5], axis=0))
