from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gossamer.arith.smoothing import ALPHAS, best_scales, scales, soft_peaks
from gossamer.arith.smoothing import product_noise as noise_beside


def outliers(seed: int, channels: int = 24, loud: float = 40.0) -> tuple[list[np.ndarray], np.ndarray]:
    """Three calls' activations with two loud channels, and weights."""
    rng = np.random.default_rng(seed)
    x_NRC = rng.normal(size=(3, 32, channels)).astype(np.float32)
    x_NRC[..., :2] *= loud
    return list(x_NRC), rng.normal(size=(channels, 16)).astype(np.float32)


def product_noise(parts_RC: list[np.ndarray], w_CO: np.ndarray, s_C: np.ndarray) -> float:
    return noise_beside(parts_RC, np.concatenate(parts_RC) @ w_CO, w_CO, s_C)


def peak(parts_RC: list[np.ndarray]) -> np.ndarray:
    return np.max([np.abs(x).max(axis=0) for x in parts_RC], axis=0).astype(np.float64)


@given(st.integers(0, 50), st.sampled_from(ALPHAS))
def test_the_scale_shares_the_range_between_both_sides(seed: int, alpha: float) -> None:
    parts_RC, w_CO = outliers(seed)
    w_peak_C = np.abs(w_CO).max(axis=1).astype(np.float64)
    s_C = scales(peak(parts_RC), w_peak_C, alpha)
    x_after_C, w_after_C = peak(parts_RC) / s_C, w_peak_C * s_C
    assert np.allclose(np.log(x_after_C) * alpha, np.log(w_after_C) * (1 - alpha))


def test_dead_channels_stay_as_they_are() -> None:
    assert scales(np.array([0.0, 2.0, 1e30]), np.array([1.0, 0.0, 1e-30]), 0.5).tolist() == [1.0, 1.0, 1.0]


@given(st.integers(0, 50))
def test_the_best_scales_are_never_worse_than_none(seed: int) -> None:
    parts_RC, w_CO = outliers(seed, loud=np.random.default_rng(seed).choice([0.1, 1.0, 5.0, 100.0]))
    s_C = best_scales(parts_RC, w_CO, 0.0)
    assert product_noise(parts_RC, w_CO, s_C) <= product_noise(parts_RC, w_CO, np.ones(len(w_CO)))


def test_outlier_channels_cost_ten_decibels_and_more() -> None:
    parts_RC, w_CO = outliers(1)
    alone = product_noise(parts_RC, w_CO, np.ones(len(w_CO)))
    assert product_noise(parts_RC, w_CO, best_scales(parts_RC, w_CO, 0.0)) < alone / 10


def test_a_gain_below_the_least_is_left_alone() -> None:
    parts_RC, w_CO = outliers(2, loud=1.0)
    assert best_scales(parts_RC, w_CO, 30.0).tolist() == [1.0] * len(w_CO)


def test_the_noise_is_that_of_the_rounding() -> None:
    """Integers up to 255 behind integer weights of full range are exact in 8 bits."""
    rng = np.random.default_rng(0)
    x_RC = rng.integers(0, 256, (20, 8)).astype(np.float32)
    x_RC[0, 0] = 255
    w_CO = rng.integers(-127, 128, (8, 4)).astype(np.float32)
    w_CO[0] = 127
    assert product_noise([x_RC], w_CO, np.ones(8)) < 1e-3
    assert product_noise([x_RC + 0.5], w_CO, np.ones(8)) > 1


@given(st.integers(0, 50), st.floats(1e-3, 1e3))
def test_soft_peaks_lie_between_the_root_mean_square_and_the_peak(seed: int, factor: float) -> None:
    parts_RC, _ = outliers(seed)
    soft_C = soft_peaks(parts_RC)
    x_NC = np.concatenate(parts_RC)
    assert (soft_C <= np.abs(x_NC).max(axis=0)).all() and (soft_C >= np.sqrt(np.mean(x_NC**2, axis=0)) * 0.999).all()
    np.testing.assert_allclose(soft_peaks([x * np.float32(factor) for x in parts_RC]), soft_C * factor, rtol=1e-4)
