"""Estimators: the ranges they promise, judged on the raw numbers with the real grid."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gossamer.arith.affine import affine_parameters, dequantize, quantize
from gossamer.arith.clipping import (
    Estimator,
    clip_range,
    entropy,
    minmax,
    moving_average,
    needs_histogram,
    percentile,
    sigma,
)
from gossamer.arith.histogram import Observed, observed_of
from gossamer.errors import OptionError

ESTIMATORS = get_args(Estimator)
SHAPES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "relu": lambda rng, n: np.maximum(rng.normal(size=n), 0),
    "relu6": lambda rng, n: np.clip(rng.normal(size=n) * 3, 0, 6),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "student": lambda rng, n: rng.standard_t(2.5, size=n),
    "outlier": lambda rng, n: np.append(rng.normal(size=n), 300.0),
    "shifted": lambda rng, n: rng.normal(size=n) - 3,
    "positive": lambda rng, n: 5 + rng.uniform(size=n),
    "silu": lambda rng, n: (lambda v: v / (1 + np.exp(-v)))(rng.normal(size=n) * 2),
    "negative": lambda rng, n: -rng.exponential(size=n),
    "lopsided": lambda rng, n: np.append(rng.normal(size=n), 10 * np.abs(rng.standard_t(1.5, size=n // 10))),
    "lognormal": lambda rng, n: rng.lognormal(0, 2, size=n),
}
shapes = st.sampled_from(sorted(SHAPES))
seeds = st.integers(0, 2**16)


def draw(shape: str, seed: int, n: int = 4000) -> np.ndarray:
    return SHAPES[shape](np.random.default_rng(seed), n).astype(np.float32)


def observe(x: np.ndarray) -> Observed:
    return observed_of(x[:, None])


def error(x: np.ndarray, low: float, high: float, symmetric: bool, power: int) -> float:
    """Mean |error|**power of 8-bit integers, or the largest error for power 0."""
    scale, zero = affine_parameters(low, high, "uint8", symmetric)
    off = np.abs(dequantize(quantize(x, scale, zero), scale, zero) - x).astype(np.float64)
    return float(off.max() if power == 0 else (off**power).mean())


def least(x: np.ndarray, symmetric: bool, power: int) -> float:
    """The least error of any range on a geometric grid of ends, by quantizing with each."""
    low, high = minmax(observe(x))
    factors = np.append(2.0 ** -np.arange(0, 7, 0.25), 0.0)
    if symmetric:
        ends = [(-high_end, high_end) for high_end in max(-low, high) * 2.0 ** -np.arange(0, 9, 0.03)]
    else:
        ends = [(low * a, high * b) for a in (factors if low else [1]) for b in (factors if high else [1]) if a or b]
    return min(error(x, *end, symmetric, power) for end in ends)


@settings(max_examples=30)
@given(shapes, seeds, st.booleans(), st.sampled_from([("l2", 2), ("l1", 1), ("chebyshev", 0)]))
def test_as_good_as_trying_all_on_the_raw_numbers(
    shape: str, seed: int, symmetric: bool, method: tuple[Estimator, int]
) -> None:
    x = draw(shape, seed)
    chosen = error(x, *clip_range(observe(x), method[0], 256, symmetric), symmetric, method[1])
    assert chosen <= least(x, symmetric, method[1]) * 1.03


@given(shapes, seeds, st.booleans(), st.sampled_from([("l2", 2), ("l1", 1), ("chebyshev", 0)]))
def test_no_worse_than_minmax(shape: str, seed: int, symmetric: bool, method: tuple[Estimator, int]) -> None:
    x = draw(shape, seed)
    chosen = error(x, *clip_range(observe(x), method[0], 256, symmetric), symmetric, method[1])
    assert chosen <= error(x, *minmax(observe(x)), symmetric, method[1]) * 1.02


def test_clipping_pays_on_long_tails() -> None:
    x = draw("student", 0, 20000)
    for method, power, factor in [("l2", 2, 0.97), ("l1", 1, 0.6)]:
        chosen = clip_range(observe(x), method, 256, symmetric=False)  # type: ignore[arg-type]
        assert error(x, *chosen, False, power) < factor * error(x, *minmax(observe(x)), False, power)


@example("laplace", 1, "entropy", 65536, False)  # looked for on fewer steps
@given(shapes, seeds, st.sampled_from(ESTIMATORS), st.sampled_from([16, 256, 65536]), st.booleans())
def test_every_range_contains_zero_and_stays_inside(
    shape: str, seed: int, method: Estimator, levels: int, symmetric: bool
) -> None:
    seen = observe(draw(shape, seed, 500))
    low, high = clip_range(seen, method, levels, symmetric)
    widest_low, widest_high = minmax(seen)
    assert low <= 0 <= high and low < high
    if symmetric:
        assert low == -high <= 0
        assert high <= max(-widest_low, widest_high) * (1 + 1e-6)
    else:  # rounding the zero point moves the ends by at most half a step
        step = (high - low) / (levels - 1)
        assert widest_low - 0.51 * step <= low and high <= widest_high + 0.51 * step


@given(shapes, seeds, st.sampled_from(ESTIMATORS), st.integers(-60, 60))
def test_scaling_by_a_power_of_two_scales_the_range(shape: str, seed: int, method: Estimator, exponent: int) -> None:
    x = draw(shape, seed, 300)
    low, high = clip_range(observe(x), method, 256, symmetric=False)
    scaled = clip_range(observe(x * np.float32(2.0**exponent)), method, 256, symmetric=False)
    np.testing.assert_allclose(scaled, (low * 2.0**exponent, high * 2.0**exponent), rtol=1e-9)


@given(shapes, seeds)
def test_wider_options_give_wider_ranges(shape: str, seed: int) -> None:
    seen = observe(draw(shape, seed))
    for ranges in (
        [percentile(seen, percent) for percent in (50, 90, 99, 99.9, 100)],
        [sigma(seen, k) for k in (0.5, 1, 2, 4, 100)],
    ):
        lows, highs = zip(*ranges, strict=True)
        assert list(lows) == sorted(lows, reverse=True) and list(highs) == sorted(highs)
        assert ranges[-1] == minmax(seen)


@given(st.sampled_from(["normal", "laplace"]), seeds, st.sampled_from(["l2", "l1"]))
def test_more_levels_clip_less(shape: str, seed: int, method: Estimator) -> None:
    seen = observe(draw(shape, seed))
    ends = [clip_range(seen, method, levels, symmetric=True)[1] for levels in (4, 16, 256, 65536)]
    assert all(narrow <= wide * 1.01 for narrow, wide in pairwise(ends))
    assert ends[0] < 0.8 * ends[-1]


@given(shapes, seeds)
def test_percentile_and_sigma_are_what_they_say(shape: str, seed: int) -> None:
    x = draw(shape, seed)
    low, high = percentile(observe(x), 98)
    if low < 0:
        assert np.mean(x < low - abs(low) / 64) <= 0.01 <= np.mean(x <= low + abs(low) / 64)
    if high > 0:
        assert np.mean(x > high * (1 + 1 / 64)) <= 0.01 <= np.mean(x >= high * (1 - 1 / 64))
    mean, deviation = x.mean(dtype=np.float64), x.std(dtype=np.float64)
    expected = min(max(mean - 2 * deviation, x.min()), 0), max(min(mean + 2 * deviation, x.max()), 0)
    np.testing.assert_allclose(sigma(observe(x), 2), expected, rtol=0.02, atol=0.01 * deviation)


@given(seeds, st.integers(1, 20), st.floats(0, 0.99))
def test_moving_average_equals_its_recurrence(seed: int, count: int, momentum: float) -> None:
    x = np.random.default_rng(seed).normal(size=(count, 30)).astype(np.float32)
    low, high = x[0].min().astype(float), x[0].max().astype(float)
    for sample in x[1:]:
        low = momentum * low + (1 - momentum) * sample.min()
        high = momentum * high + (1 - momentum) * sample.max()
    np.testing.assert_allclose(moving_average(observed_of(x), momentum), (low, high), rtol=1e-6)


def test_entropy_cuts_a_lone_outlier_and_keeps_a_bounded_bulk() -> None:
    outlier = draw("outlier", 0, 20000)
    low, high = entropy(observe(outlier), 256, symmetric=False)
    assert 3 < high < 150 and -5 < low < -2
    bulk = np.random.default_rng(0).uniform(-1, 1, 20000).astype(np.float32)
    np.testing.assert_allclose(entropy(observe(bulk), 256, symmetric=False), (-1, 1), rtol=0.02)


@settings(max_examples=15)
@given(st.sampled_from(["normal", "laplace", "relu", "shifted"]), seeds)
def test_entropy_is_no_farther_than_minmax(shape: str, seed: int) -> None:
    """The divergence between finely binned numbers before and after, from the raw numbers."""
    x = draw(shape, seed, 20000)
    x = x[x != 0]

    def divergence(low: float, high: float) -> float:
        scale, zero = affine_parameters(low, high, "uint8", symmetric=False)
        codes = quantize(x, scale, zero)
        parts = np.floor(np.clip(x, low, high) / (scale / 4)).astype(int)
        kept = (x >= low) & (x <= high)
        _, part_of, counts = np.unique(parts, return_inverse=True, return_counts=True)
        p = counts / x.size
        cell_of_part = np.zeros(p.size, int)
        cell_of_part[part_of] = codes
        filled = np.bincount(cell_of_part, minlength=256)
        q = (np.bincount(codes[kept], minlength=256) / np.maximum(filled, 1))[cell_of_part] / kept.sum()
        return float((p * np.log(p / np.maximum(q, 1e-12))).sum())

    assert divergence(*entropy(observe(x), 256, symmetric=False)) <= divergence(*minmax(observe(x))) * 1.5


@pytest.mark.parametrize("method", ESTIMATORS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_degenerate_tensors(method: Estimator, symmetric: bool) -> None:
    zeros = observed_of(np.zeros((3, 4), np.float32))
    assert clip_range(zeros, method, 256, symmetric) == (0.0, 0.0)
    assert str(clip_range(observed_of(-np.zeros((3, 4), np.float32)), method, 256, symmetric)[0]) == "0.0"
    constant = np.full((3, 4), 2.5, np.float32)
    low, high = clip_range(observed_of(constant), method, 256, symmetric)
    assert error(constant, low, high, symmetric, 0) <= 0.011
    single = clip_range(observed_of(np.full((1, 1), -1.0, np.float32)), method, 256, symmetric)
    assert -1.01 < single[0] < -0.98
    tiny = clip_range(observed_of(np.full((1, 2), 1e-44, np.float32)), method, 256, symmetric)
    assert 0 <= tiny[1] <= 2e-44
    huge = observed_of(np.array([[-3e38, 3e38]], np.float32))
    assert np.isfinite(clip_range(huge, method, 256, symmetric)).all()


def test_wrong_asks_are_refused() -> None:
    x = np.ones((2, 3), np.float32)
    with pytest.raises(OptionError, match="estimator is 'max'; allowed are minmax, moving_average, percentile"):
        clip_range(observed_of(x), "max", 256, False)  # type: ignore[arg-type]
    for method in ESTIMATORS:
        if needs_histogram(method):
            with pytest.raises(OptionError, match=f"'{method}' needs a histogram; observe with histogram=True"):
                clip_range(observed_of(x, histogram=False), method, 256, False)
        else:
            assert clip_range(observed_of(x, histogram=False), method, 256, False)[1] > 0.9
