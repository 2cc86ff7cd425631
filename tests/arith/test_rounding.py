from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gossamer.arith.rounding import keep_sums


@given(st.integers(1, 6), st.integers(1, 49), st.integers(0, 10_000), st.floats(0.1, 126))
def test_sums_are_kept_within_half_a_step_and_weights_within_one(rows: int, size: int, seed: int, span: float) -> None:
    real = np.random.default_rng(seed).uniform(-span, span, (rows, size))
    nearest = np.rint(real).astype(np.int8)
    kept = keep_sums(nearest, real)
    assert kept.dtype == np.int8
    assert (np.abs(kept - real) < 1 + 1e-9).all()
    assert (np.abs((kept - real).sum(axis=1)) <= 0.5 + 1e-9).all()


@given(st.integers(1, 12), st.integers(0, 10_000))
def test_no_other_choice_of_neighbours_keeps_the_sum_at_a_smaller_squared_error(size: int, seed: int) -> None:
    real = np.random.default_rng(seed).uniform(-5, 5, (1, size))
    kept = keep_sums(np.rint(real).astype(np.int8), real)
    low = np.floor(real[0])
    choices = low + ((np.arange(2**size)[:, None] >> np.arange(size)) & 1)
    errors = choices - real[0]
    allowed = np.abs(errors.sum(axis=1)) <= 0.5
    best = np.square(errors[allowed]).sum(axis=1).min()
    assert np.square(kept - real).sum() <= best + 1e-9


def test_a_filter_that_sums_to_nothing_still_does() -> None:
    real = np.array([[40.4, -20.45, -20.45, 0.5], [3.0, -1.0, -2.0, 0.0]])
    kept = keep_sums(np.rint(real).astype(np.int8), real)
    np.testing.assert_array_equal(kept.sum(axis=1), [0, 0])
    np.testing.assert_array_equal(kept[1], [3, -1, -2, 0])  # what was right stays


def test_the_type_is_not_left() -> None:
    real = np.full((1, 9), 126.6)
    assert keep_sums(np.rint(real).astype(np.int8), real).max() <= 127
