"""Intervals: against published values, and by their exact coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.measuring.intervals import matched_pairs, student_t, t_quantile, wilson


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.706205), (2, 4.302653), (5, 2.570582), (7, 2.364624), (10, 2.228139), (30, 2.042272), (1000, 1.962339)],
)
def test_t_quantile_is_the_tables(freedom: int, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, abs=1e-4)


def test_wilson_is_the_published_example() -> None:
    # 10 of 20: 0.2993 to 0.7007; 0 of 10: 0 to 0.2775
    assert wilson(10, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("truth", [(0.0, 0.0), (0.02, 0.0), (0.1, 0.02), (0.3, 0.1), (0.2, 0.2)])
def test_matched_pairs_covers_the_truth(n: int, truth: tuple[float, float]) -> None:
    """The probability, over all outcomes, that the interval holds the true difference."""
    first, second = truth
    covered = 0.0
    for lost, won in itertools.product(range(n + 1), repeat=2):
        if lost + won > n:
            continue
        ways = math.comb(n, lost) * math.comb(n - lost, won)
        chance = ways * first**lost * second**won * (1 - first - second) ** (n - lost - won)
        low, high = matched_pairs(lost, won, n)
        covered += chance * (low <= first - second <= high)
    assert covered >= 0.93


@given(lost=st.integers(0, 150), won=st.integers(0, 150), same=st.integers(0, 150))
def test_shares_lie_in_their_interval(lost: int, won: int, same: int) -> None:
    n = max(1, lost + won + same)
    low, high = matched_pairs(lost, won, n)
    assert -1 <= low <= (lost - won) / n <= high <= 1
    low, high = wilson(lost, n)
    assert 0 <= low <= lost / n <= high <= 1


def test_student_t_is_the_textbook_formula() -> None:
    low, high = student_t(np.array([1.0, 2.0, 3.0, 4.0]))
    assert (low, high) == pytest.approx((2.5 - 3.182446 * 1.290994 / 2, 2.5 + 3.182446 * 1.290994 / 2), abs=1e-5)


def test_one_difference_says_nothing() -> None:
    assert student_t(np.array([0.25])) == (-1.0, 1.0)
    assert student_t(np.array([7.0])) == (-1.0, 7.0)
