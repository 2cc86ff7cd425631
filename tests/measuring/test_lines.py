from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.measuring.lines import LEAST, MOST, best_line, falls
from gossamer.measuring.means import mean_of


def means(got_NPO: np.ndarray, wanted_NPO: np.ndarray) -> np.ndarray:
    parts = (got_NPO, wanted_NPO, got_NPO**2, got_NPO * wanted_NPO)
    return np.stack([part.mean(axis=1) for part in parts], axis=1)


@given(st.integers(0, 2**16))
def test_a_planted_line_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    got, scale_O, shift_O = rng.normal(1, 1, (16, 50, 4)), rng.uniform(0.6, 1.8, 4), rng.normal(0, 1, 4)
    line = best_line(means(got, got * scale_O - shift_O), True)
    assert line is not None and line[1] is not None
    np.testing.assert_allclose(line[1], scale_O, rtol=1e-6)
    np.testing.assert_allclose(line[0], shift_O, atol=1e-3 + 1e-6)


def test_without_scales_the_mean_error_is_the_shift() -> None:
    got = np.random.default_rng(0).normal(1, 1, (16, 50, 4))
    for parts, scalable in ((means(got, got - 3), False), (means(got, got - 3)[:, :2], True)):
        shift_O, scale_O = best_line(parts, scalable) or (np.zeros(4), None)
        assert scale_O is None
        np.testing.assert_allclose(shift_O, 3, rtol=1e-9)


def test_halves_that_contradict_each_other_get_nothing() -> None:
    got = np.random.default_rng(0).normal(0, 1, (16, 50, 4))
    error = np.where(np.arange(16) % 2, 1.0, -1.0)[:, None, None]
    assert best_line(means(got, got - error), True) is None


@pytest.mark.parametrize("factor", [0.0, 100.0])
def test_scales_are_bounded_and_dead_channels_stay(factor: float) -> None:
    got = np.random.default_rng(0).normal(0, 1, (16, 50, 2))
    got[..., 1] = 5.0  # stands still
    line = best_line(means(got, got * [factor, 1.0]), True)
    assert line is not None and line[1] is not None
    assert line[1].tolist() == [LEAST if factor == 0 else MOST, 1.0]


def test_a_shift_that_goes_too_far_does_not_fall() -> None:
    mean = mean_of(np.full((4, 3), 2.0))
    assert falls(np.full(3, 2.0), mean) and falls(np.full(3, 3.9), mean)
    assert not falls(np.full(3, 4.1), mean) and not falls(np.full(3, -0.1), mean)
