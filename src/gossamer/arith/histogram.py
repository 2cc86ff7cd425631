"""A histogram of float32 numbers that needs no range in advance.

The upper 16 bits of a float32 (sign, exponent, 7 bits of mantissa: its truncation to bfloat16) are the number of its
bin. The 65,536 bins are the same for every tensor, each at most 1/128 of its value wide, so two histograms merge by
addition and a histogram gathered in pieces equals the one gathered at once, exactly. Little-endian machines only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

BINS = 1 << 16
TINIEST = 2.0**-133  # the bins of zero hold all below this
_CHUNK = 1 << 15  # elements, so that a chunk and its int64 copy stay in the level-2 cache


@dataclass(frozen=True, eq=False)
class Observed:
    """What was seen of one tensor.

    Attributes:
        sample_low_N, sample_high_N: float32, the smallest and largest value of each sample, in order.
            A sample without any element counts as a zero.
        counts: int64 (65536,), how many numbers had these upper 16 bits; None if only the extremes were asked for.
        size: numbers seen.
    """

    sample_low_N: np.ndarray
    sample_high_N: np.ndarray
    counts: np.ndarray | None
    size: int

    @property
    def finite(self) -> bool:
        """Whether no NaN and no infinity was seen."""
        return bool(np.isfinite(self.sample_low_N).all() and np.isfinite(self.sample_high_N).all())


class Tally:
    """Gathers an `Observed` batch by batch."""

    def __init__(self, histogram: bool) -> None:
        self._lows: list[np.ndarray] = []
        self._highs: list[np.ndarray] = []
        self._size = 0
        self._counts = np.zeros(BINS, np.int64) if histogram else None

    def add(self, x_N: np.ndarray) -> None:
        """Take in a batch: any float type, first axis = samples. It is read before this returns, and not kept."""
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is reported as that
            x_NK = np.ascontiguousarray(x_N, np.float32).reshape(len(x_N), -1 if x_N.size else 0)
        self._size += x_NK.size
        self._lows.append(x_NK.min(axis=1) if x_NK.size else np.zeros(len(x_NK), np.float32))
        self._highs.append(x_NK.max(axis=1) if x_NK.size else np.zeros(len(x_NK), np.float32))
        if self._counts is not None:
            _count(x_NK.reshape(-1).view(np.uint16)[1::2], self._counts)

    def result(self) -> Observed:
        """All that was taken in. The counts are handed over, not copied: add nothing after this."""
        lows = np.concatenate([np.zeros(0, np.float32), *self._lows])
        highs = np.concatenate([np.zeros(0, np.float32), *self._highs])
        return Observed(lows, highs, self._counts, self._size)


def _count(codes: np.ndarray, counts: np.ndarray) -> None:
    # add.at beats bincount here: no 65,536 fresh bins to zero and add for each small batch, and bins that no number
    # falls in are never touched, so their memory is never claimed
    indices = np.empty(min(codes.size, _CHUNK), np.int64)
    for start in range(0, codes.size, _CHUNK):
        chunk = codes[start : start + _CHUNK]
        indices[: chunk.size] = chunk
        np.add.at(counts, indices[: chunk.size], 1)


def observed_of(x_N: np.ndarray, histogram: bool = True) -> Observed:
    """What is seen of one array whose first axis counts the samples."""
    tally = Tally(histogram)
    tally.add(x_N)
    return tally.result()


def merge(first: Observed, second: Observed) -> Observed:
    """Both together, the samples of `first` before those of `second`; a histogram only if both have one."""
    counts = None if first.counts is None or second.counts is None else first.counts + second.counts
    return Observed(
        np.concatenate([first.sample_low_N, second.sample_low_N]),
        np.concatenate([first.sample_high_N, second.sample_high_N]),
        counts,
        first.size + second.size,
    )


class Cumulative(NamedTuple):
    """A histogram's running sums, from the smallest number seen to any point; bins count as evenly filled.

    Attributes:
        edges: float64 (E + 1,), the borders of the bins that hold the numbers seen; the outermost are the extremes.
        counts: float64 (E,), numbers in each bin.
        sums: float64 (E + 1, 4), over all numbers below the border: how many, their sum, the sum of their magnitudes
            and of their squares.
    """

    edges: np.ndarray
    counts: np.ndarray
    sums: np.ndarray

    def below(self, x: np.ndarray) -> np.ndarray:
        """The four sums over all numbers below `x`: shape of `x` + (4,)."""
        bins = np.clip(np.searchsorted(self.edges, x, side="right") - 1, 0, len(self.counts) - 1)
        start, end = self.edges[bins], self.edges[bins + 1]
        share = np.divide(x - start, end - start, out=np.where(x < start, 0.0, 1.0), where=end > start)
        part = self.counts[bins] * np.clip(share, 0.0, 1.0)
        return np.asarray(self.sums[bins] + _moments(part, start, np.clip(x, start, end)))


def cumulative(observed: Observed) -> Cumulative:
    """Running sums of a histogram of at least one number, all finite."""
    if observed.counts is None:
        raise ValueError("this Observed has no histogram; observe with histogram=True")
    counts = observed.counts[_ascending_codes()]
    seen = np.flatnonzero(counts)
    counts = counts[seen[0] : seen[-1] + 1].astype(np.float64)
    edges = _ascending_edges()[seen[0] : seen[-1] + 2].copy()
    edges[0] = max(edges[0], float(observed.sample_low_N.min()))
    edges[-1] = min(edges[-1], float(observed.sample_high_N.max()))
    moments = _moments(counts, edges[:-1], edges[1:])
    return Cumulative(edges, counts, np.concatenate([np.zeros((1, 4)), np.cumsum(moments, axis=0)]))


def _moments(count: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Number, sum, sum of magnitudes and of squares of numbers spread evenly from `low` to `high`, of one sign."""
    mean = (low + high) / 2
    square = (low * low + low * high + high * high) / 3
    return np.stack([count, count * mean, count * np.abs(mean), count * square], axis=-1)


@cache
def _ascending_codes() -> np.ndarray:
    """The bins of finite numbers, from the most negative to the most positive: uint16 (65280,)."""
    magnitudes = np.arange(0x7F80, dtype=np.uint16)
    return np.concatenate([magnitudes[::-1] | np.uint16(0x8000), magnitudes])


@cache
def _ascending_edges() -> np.ndarray:
    """The borders of the ascending bins: float64 (65281,), from -2**128 to 2**128. Bin i lies in edges[i:i+2]."""
    bits = np.arange(0x7F80, dtype=np.uint32) << 16
    upper = np.append(bits.view(np.float32).astype(np.float64), 2.0**128)
    return np.concatenate([-upper[:0:-1], upper])
