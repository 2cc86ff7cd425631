"""The histogram without a range: pieces equal the whole, no number is lost, none is far from its bin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gossamer.arith.histogram import BINS, Observed, Tally, cumulative, merge, observed_of

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
batches = hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 9)), elements=floats)


def same(first: Observed, second: Observed) -> None:
    np.testing.assert_array_equal(first.sample_low_N, second.sample_low_N)
    np.testing.assert_array_equal(first.sample_high_N, second.sample_high_N)
    assert first.size == second.size
    if first.counts is None or second.counts is None:
        assert first.counts is second.counts
    else:
        np.testing.assert_array_equal(first.counts, second.counts)


@given(batches, st.lists(st.integers(0, 12), max_size=4), st.booleans())
def test_pieces_equal_the_whole(x: np.ndarray, cuts: list[int], histogram: bool) -> None:
    whole = observed_of(x, histogram)
    pieces = [piece for piece in np.split(x, sorted(min(cut, len(x)) for cut in cuts)) if len(piece)]
    tally = Tally(histogram)
    for piece in pieces:
        tally.add(piece)
    same(tally.result(), whole)
    merged = observed_of(pieces[0], histogram)
    for piece in pieces[1:]:
        merged = merge(merged, observed_of(piece, histogram))
    same(merged, whole)


def test_pieces_equal_the_whole_beyond_one_chunk() -> None:
    x = np.random.default_rng(0).normal(size=(7, 100_003)).astype(np.float32)
    same(merge(observed_of(x[:3]), observed_of(x[3:])), observed_of(x))
    expected = np.bincount((x.view(np.uint32) >> 16).ravel(), minlength=BINS)
    np.testing.assert_array_equal(observed_of(x).counts, expected)


@given(batches)
def test_extremes_are_exact(x: np.ndarray) -> None:
    seen = observed_of(x)
    np.testing.assert_array_equal(seen.sample_low_N, x.min(axis=1))
    np.testing.assert_array_equal(seen.sample_high_N, x.max(axis=1))
    assert seen.finite and seen.counts is not None
    assert seen.counts.sum() == seen.size == x.size


@given(batches)
def test_running_sums(x: np.ndarray) -> None:
    running = cumulative(observed_of(x))
    assert running.edges[0] == x.min() and running.edges[-1] == x.max()
    assert np.all(np.diff(running.edges) >= 0) and np.all(np.diff(running.sums[:, 0]) >= 0)
    exact = x.astype(np.float64).ravel()
    sums = [exact.size, exact.sum(), np.abs(exact).sum(), (exact**2).sum()]
    tolerance = np.array([0.0, np.abs(exact).sum(), np.abs(exact).sum(), (exact**2).sum()]) / 64 + 1e-30
    assert np.all(np.abs(running.sums[-1] - sums) <= tolerance)
    edges = running.edges[1:-1]
    fewest = (exact[None, :] < edges[:, None]).sum(axis=1)  # a number on a border may count on either side
    most = (exact[None, :] <= edges[:, None]).sum(axis=1)
    counts = running.below(edges)[:, 0]
    assert np.all((fewest <= counts) & (counts <= most))


def test_below_outside_and_between() -> None:
    running = cumulative(observed_of(np.array([[-2.0, 0.0, 0.0, 1.0, 1.004]], np.float32)))
    below = running.below(np.array([-5.0, -1.0, 0.5, 1.002, 9.0]))[:, 0]
    assert list(below[[0, 1, 2, 4]]) == [0, 1, 3, 5]
    assert 3 < below[3] < 5


def test_a_bin_counts_as_evenly_filled() -> None:
    x = np.linspace(1, 1 + 1 / 128, 10_001, dtype=np.float32)[:-1]
    assert len(np.unique(x.view(np.uint32) >> 16)) == 1
    running = cumulative(observed_of(x[None]))
    for y in (1.001, 1.006, 2.0):
        below = x[x < y].astype(np.float64)
        sums = [below.size, below.sum(), below.sum(), (below**2).sum()]
        np.testing.assert_allclose(running.below(np.array(y)) / x.size, np.array(sums) / x.size, atol=2e-4)
    np.testing.assert_allclose(running.sums[-1, 3], (x.astype(np.float64) ** 2).sum(), rtol=1e-6)


def test_equal_numbers_lie_exactly() -> None:
    running = cumulative(observed_of(np.full((1, 10), 6.0, np.float32)))
    assert list(running.sums[-1]) == [10, 60, 60, 360]
    assert list(running.edges) == [6.0, 6.0]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats(dtype: type) -> None:
    x: np.ndarray = np.random.default_rng(0).normal(size=(4, 50)).astype(dtype)
    same(observed_of(x), observed_of(x.astype(np.float32)))


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 60), (2, 1, 60)])
def test_layout_does_not_matter(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(2, 60)).astype(np.float32)
    same(observed_of(x.reshape(shape)), observed_of(x))
    same(observed_of(np.asfortranarray(x)), observed_of(x))


@pytest.mark.parametrize("histogram", [True, False])
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0xFFC00000, 0x7F800000, 0xFF800000])
def test_nan_and_infinity_are_noticed(bits: int, histogram: bool) -> None:
    x = np.ones((3, 100), np.float32)
    x[1, 70] = np.array(bits, np.uint32).view(np.float32)
    seen = observed_of(x, histogram)
    assert not seen.finite
    assert list(np.isfinite(seen.sample_low_N) & np.isfinite(seen.sample_high_N)) == [True, False, True]


def test_float64_beyond_float32_is_noticed() -> None:
    assert not observed_of(np.array([[1e300]])).finite


def test_nothing_is_seen() -> None:
    seen = Tally(histogram=True).result()
    assert seen.size == 0 and len(seen.sample_low_N) == 0 and seen.finite
    empty = observed_of(np.zeros((2, 0, 3), np.float32))
    assert empty.size == 0 and list(empty.sample_high_N) == [0, 0]


def test_merging_with_a_range_only_keeps_the_range() -> None:
    x = np.ones((2, 3), np.float32)
    assert merge(observed_of(x, True), observed_of(x, False)).counts is None
