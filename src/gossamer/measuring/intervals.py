"""95 % confidence intervals, two-sided, in the plain formulas that hold for few samples too."""

from __future__ import annotations

import math

import numpy as np

Z = 1.959963984540054  # the normal distribution's 97.5 % quantile
T_FIRST = (12.706204736, 4.302652730, 3.182446305, 2.776445105, 2.570581836, 2.446911851)  # Student, 1 to 6 degrees


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Bounds of a share, `hits` of `n` (Wilson 1927, score interval).

    Unlike the textbook formula it is not empty at 0 of n.
    """
    share = hits / n
    centre = share + Z * Z / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    # at the ends a bound equals the share, but for rounding
    low = 0.0 if hits == 0 else (centre - half) / scale
    high = 1.0 if hits == n else (centre + half) / scale
    return low, high


def matched_pairs(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """Bounds of the difference of two shares over the same `n` samples (Agresti and Min 2005, adjusted Wald).

    Args:
        only_first, only_second: samples that only the one, or only the other, got right.
    """
    total = n + 2  # half a sample is added to each cell of the two-by-two table
    first, second = (only_first + 0.5) / total, (only_second + 0.5) / total
    centre = first - second
    half = Z * math.sqrt((first + second - centre * centre) / total)
    return max(-1.0, centre - half), min(1.0, centre + half)


def student_t(differences_N: np.ndarray) -> tuple[float, float]:
    """Bounds of the mean of paired differences (Student 1908). One difference tells nothing of the spread: -1 to 1."""
    n = len(differences_N)
    if n == 1:
        return min(-1.0, float(differences_N[0])), max(1.0, float(differences_N[0]))
    mean = float(np.mean(differences_N))
    half = t_quantile(n - 1) * float(np.std(differences_N, ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def t_quantile(freedom: int) -> float:
    """Student's t at 97.5 %, within 1e-4 (Abramowitz and Stegun 1964, 26.7.5; a table up to 6 degrees)."""
    if freedom <= len(T_FIRST):
        return T_FIRST[freedom - 1]
    terms = (
        Z,
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
        (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))
