"""What a grid keeps of a tensor: as measured on the numbers themselves, and of the bulk beside far spikes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.arith.affine import affine_parameters, dequantize, integer_ends, quantize
from gossamer.arith.bulk import grid_snr_db
from gossamer.arith.histogram import observed_of

seeds = st.integers(0, 2**16)


def kept_db(x: np.ndarray, low: float | None = None, high: float | None = None, dtype: str = "uint8") -> float:
    grid = affine_parameters(x.min() if low is None else low, x.max() if high is None else high, dtype, False)  # type: ignore[arg-type]
    return grid_snr_db(observed_of(x[None]), *grid, integer_ends(str(grid[1].dtype)))


def measured_db(x: np.ndarray, dtype: str = "uint8") -> float:
    grid = affine_parameters(x.min(), x.max(), dtype, False)  # type: ignore[arg-type]
    error = dequantize(quantize(x, *grid), *grid) - x
    return float(10 * np.log10(np.square(x, dtype=np.float64).sum() / np.square(error, dtype=np.float64).sum()))


@settings(deadline=None)
@given(seeds, st.sampled_from(["normal", "laplace", "uniform", "exponential"]), st.floats(-20, 20))
def test_estimate_is_what_the_grid_really_keeps(seed: int, shape: str, octaves: float) -> None:
    x = np.float32(2.0**octaves * getattr(np.random.default_rng(seed), shape)(size=20_000))
    assert kept_db(x) == pytest.approx(measured_db(x), abs=0.5)


@settings(deadline=None)
@given(seeds, st.sampled_from([-1e4, -1e9, float(np.finfo(np.float32).min)]), st.floats(0.01, 0.99))
def test_bulk_beside_a_mask_is_lost_however_many_are_masked(seed: int, mask: float, share: float) -> None:
    rng = np.random.default_rng(seed)
    x = np.float32(5 * rng.normal(size=20_000))
    x[rng.random(len(x)) < share] += np.float32(mask)
    assert kept_db(x) < 1
    assert kept_db(x[x > -1e3]) > 25


@given(seeds)
def test_sixteen_bits_hold_a_small_mask(seed: int) -> None:
    x = np.float32(5 * np.random.default_rng(seed).normal(size=20_000))
    x[::3] -= 1e4
    assert kept_db(x) < 1
    assert kept_db(x, dtype="uint16") > 35


@given(seeds)
def test_a_long_tail_is_no_spike(seed: int) -> None:
    """Its largest numbers stand apart too, but carry the signal."""
    x = np.float32(np.random.default_rng(seed).standard_t(3, size=50_000))
    assert kept_db(x) == pytest.approx(measured_db(x), abs=1.0)


def test_zeros_and_few_values_are_kept() -> None:
    for values in ([0.0], [0.0, 1.0], [-1.0, 1.0], [5.0], [-3.0, 0.0, 100.0]):
        x = np.resize(np.array(values, np.float32), 3000)
        assert kept_db(x) > 20


def test_a_few_stray_numbers_are_no_bulk() -> None:
    x = np.float32(100 + np.random.default_rng(0).normal(size=50_000))
    x[:20] = 1e-3
    assert kept_db(x) > 40


def test_clipping_counts() -> None:
    x = np.float32(np.random.default_rng(0).normal(size=20_000))
    assert kept_db(x, -4, 4) > 35 and kept_db(x, -0.5, 0.5) < 10


def test_minus_infinity_is_left_aside() -> None:
    x = np.float32(np.random.default_rng(0).normal(size=(1, 5000)))
    x[0, ::7] = -np.inf
    assert grid_snr_db(observed_of(x), *affine_parameters(-4, 4, "uint8", False), (0, 255)) > 30
