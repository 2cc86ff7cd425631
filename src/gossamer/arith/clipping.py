"""From what was observed of a tensor to the range its integers should cover.

Wide ranges round coarsely, narrow ones clip: each estimator is one answer to that. The optimising ones (l2, l1,
entropy) know the error of a range from running sums over the histogram, so that trying thousands costs milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from gossamer.arith.histogram import TINIEST, Cumulative, Observed, cumulative
from gossamer.errors import OptionError

Estimator = Literal["minmax", "moving_average", "percentile", "sigma", "l2", "l1", "chebyshev", "entropy"]
Range = tuple[float, float]

OCTAVES = 16  # the optimising searches go down to the 2**-16th of the largest magnitude
ENTROPY_CELLS = 2048  # with more levels than this the divergence is lost in the histogram's own resolution
ENTROPY_PARTS = 8  # bins of the reference distribution in one step of the grid
ENTROPY_FLOOR = 1e-12  # stands in for a probability of zero, whose logarithm is infinite


def needs_histogram(method: Estimator) -> bool:
    """Whether the estimator reads more than the extremes of the samples."""
    return method in ("percentile", "sigma", "l2", "l1", "entropy")


def clip_range(observed: Observed, method: Estimator, levels: int, symmetric: bool) -> Range:
    """The range [low, high] that the integers should cover. It always contains 0; if symmetric, low is -high.

    Args:
        observed: with a histogram if `needs_histogram(method)`; finite.
        levels: how many integers there are, 256 or 65536.
        symmetric: whether the grid will have its zero in the middle.

    Raises:
        OptionError: no such estimator, or it needs a histogram and there is none.
    """
    if method not in get_args(Estimator):
        raise OptionError(f"estimator is {method!r}; allowed are {', '.join(get_args(Estimator))}")
    if needs_histogram(method) and observed.counts is None:
        raise OptionError(f"estimator {method!r} needs a histogram; observe with histogram=True, or choose minmax")
    if minmax(observed) == (0.0, 0.0):
        return 0.0, 0.0
    if method == "minmax":
        low, high = minmax(observed)
    elif method == "moving_average":
        low, high = moving_average(observed)
    elif method == "percentile":
        low, high = percentile(observed)
    elif method == "sigma":
        low, high = sigma(observed)
    elif method == "chebyshev":
        low, high = chebyshev(observed, levels, symmetric)
    elif method == "l2":
        low, high = least_error(observed, levels, symmetric, power=2)
    elif method == "l1":
        low, high = least_error(observed, levels, symmetric, power=1)
    else:
        low, high = entropy(observed, levels, symmetric)
    return (-max(-low, high), max(-low, high)) if symmetric else (low, high)


def minmax(observed: Observed) -> Range:
    """The smallest and largest number seen."""
    return _around_zero(observed.sample_low_N.min(initial=0.0), observed.sample_high_N.max(initial=0.0))


def moving_average(observed: Observed, momentum: float = 0.9) -> Range:
    """Exponential moving average of the samples' extremes, in their order, begun at the first sample.

    Each sample enters with weight 1 - momentum (Jacob et al., 2018, there with a momentum near 1 in training).
    """
    age = np.arange(len(observed.sample_low_N))[::-1]
    weight_N = np.where(age == age[0], 1.0, 1 - momentum) * momentum**age
    return _around_zero(weight_N @ observed.sample_low_N, weight_N @ observed.sample_high_N)


def percentile(observed: Observed, percent: float = 99.99) -> Range:
    """The range that holds `percent` of all numbers, with half of the others on either side.

    The default leaves out one number in 10,000: enough to lose lone outliers, too little to harm an 8-bit grid that
    has none.
    """
    running = cumulative(observed)
    counts = running.sums[:, 0]
    tail = counts[-1] * (1 - percent / 100) / 2
    low, high = np.interp([tail, counts[-1] - tail], counts, running.edges)
    return _around_zero(low, high)


def sigma(observed: Observed, k: float = 4.0) -> Range:
    """Mean +- k standard deviations, no wider than what was seen.

    Four is near the least squared error of 256 levels on a normal distribution (Banner et al., 2019).
    """
    count, total, _, squares = cumulative(observed).sums[-1]
    mean = total / count
    deviation = np.sqrt(max(squares / count - mean**2, 0.0))
    low, high = minmax(observed)
    return _around_zero(max(low, mean - k * deviation), min(high, mean + k * deviation))


def chebyshev(observed: Observed, levels: int, symmetric: bool) -> Range:
    """The least possible largest error: the extremes lie half a step outside, no farther off than a step's middle.

    With z integers below zero a step must be at least high / (levels - 1 - z + 1/2) and -low / (z + 1/2); the z with
    the smallest step is taken.
    """
    low, high = minmax(observed)
    if symmetric:
        end = max(-low, high) * (levels - 2) / (levels - 1)
        return -end, end
    below = np.arange(levels)
    above = levels - 1 - below
    step = np.maximum(high / (above + 0.5), -low / (below + 0.5))
    best = int(np.argmin(step))
    return _around_zero(-below[best] * step[best], above[best] * step[best])


def least_error(observed: Observed, levels: int, symmetric: bool, power: Literal[1, 2]) -> Range:
    """The range with the least mean absolute (power 1) or squared (power 2) error, and no worse than `minmax`.

    First among all pairs of ends on a coarse geometric grid, by an estimate that costs the same for any histogram;
    then around the best of them with the error of every bin on the very grid that the range will give.
    """
    running = cumulative(observed)
    widest = minmax(observed)

    def estimated(low: np.ndarray, high: np.ndarray, step: np.ndarray) -> np.ndarray:
        return _estimated_error(running, low, high, step, power)

    def exact(low: np.ndarray, high: np.ndarray, step: np.ndarray) -> np.ndarray:
        return _grid_error(running, low, high, step, power)

    start = _best(widest, 2.0 ** -np.arange(0, OCTAVES, 0.25), widest, levels, symmetric, estimated)
    found = _refined(start, (0.25, 0.12, 0.06, 0.03, 0.015), widest, levels, symmetric, exact)
    both = np.array([found, widest])
    lows, highs, steps = _grids(both[:, 0], both[:, 1], levels, symmetric)
    best = np.argmin(exact(lows, highs, steps))
    return _around_zero(lows[best], highs[best])


def _estimated_error(
    running: Cumulative, low: np.ndarray, high: np.ndarray, step: np.ndarray, power: Literal[1, 2]
) -> np.ndarray:
    """Error sum of ranges: clipped numbers cost their distance to the range, those that round to zero their magnitude,
    all others what is usual on a fine grid, a quarter of a step or a twelfth of its square (Banner et al., 2019)."""
    at_low, at_high, total = running.below(low), running.below(high), running.sums[-1]
    dead = running.below(np.minimum(step / 2, high)) - running.below(np.maximum(-step / 2, low))
    inside = (at_high - at_low - dead)[..., 0]
    above = total - at_high
    if power == 1:
        clipped = above[..., 1] - high * above[..., 0] + low * at_low[..., 0] - at_low[..., 1]
        return np.asarray(clipped + dead[..., 2] + inside * step / 4)
    clipped = above[..., 3] - 2 * high * above[..., 1] + high**2 * above[..., 0]
    clipped += at_low[..., 3] - 2 * low * at_low[..., 1] + low**2 * at_low[..., 0]
    return np.asarray(clipped + dead[..., 3] + inside * step**2 / 12)


def _grid_error(
    running: Cumulative, low: np.ndarray, high: np.ndarray, step: np.ndarray, power: Literal[1, 2]
) -> np.ndarray:
    """Error sum of grids: for every bin the integral of the error over its width. In steps, t from the nearest integer
    k the error's integral from 0 is k/4 + t|t|/2, the squared error's k/12 + t^3/3; outside the grid t just grows."""
    first, last = np.searchsorted(running.edges, [-step.min() / 2, step.min() / 2])
    first = min(first, len(running.counts))
    last = max(first, last - 1)  # the many small bins between these round to zero on every grid
    to_zero = (running.sums[last] - running.sums[first])[power + 1]
    counts = np.concatenate([running.counts[:first], [0.0], running.counts[last:]])
    edges = np.concatenate([running.edges[: first + 1], running.edges[last:]]) / step[..., None]
    nearest = np.rint(np.clip(edges, (low / step)[..., None], (high / step)[..., None]))
    off = edges - nearest
    if power == 1:
        integral, at_edge = nearest / 4 + off * np.abs(off) / 2, np.abs(off)
    else:
        integral, at_edge = nearest / 12 + off * off * off / 3, off * off
    width = np.diff(edges)
    mean = np.divide(np.diff(integral), width, out=at_edge[..., 1:].copy(), where=width > 0)
    return np.asarray(to_zero + mean @ counts * step**power)


def entropy(observed: Observed, levels: int, symmetric: bool) -> Range:
    """The range with the least Kullback-Leibler divergence between the clipped distribution and its quantized form.

    After Migacz (8-bit inference with TensorRT, 2017), with both ends free. It is looked for around the range of least
    squared error. Exact zeros are left aside: every grid keeps them, and after a ReLU they would outweigh the rest.
    """
    running = cumulative(observed)
    edges = running.edges
    zeros = (edges[:-1] >= -TINIEST) & (edges[1:] <= TINIEST)
    below = np.concatenate([[0.0], np.cumsum(np.where(zeros, 0.0, running.counts))])
    cells = min(levels, ENTROPY_CELLS)
    if not below[-1]:
        return 0.0, 0.0

    def errors(low: np.ndarray, high: np.ndarray, step: np.ndarray) -> np.ndarray:
        ends = zip(low.ravel(), high.ravel(), step.ravel(), strict=True)
        return np.asarray([_divergence(edges, below, *end) for end in ends]).reshape(low.shape)

    start = least_error(observed, cells, symmetric, power=2)
    widest = minmax(observed)
    low, high = _refined(start, (2.0, 1.0, 0.5, 0.25, 0.12, 0.06), widest, cells, symmetric, errors)
    if cells == levels:
        return low, high
    return max(low, widest[0]), min(high, widest[1])  # zero lies on steps that are wider than those of the grid


def _divergence(edges: np.ndarray, below: np.ndarray, low: float, high: float, step: float) -> float:
    """Kullback-Leibler divergence in nats, from the numbers below each of the histogram's edges."""
    cells = round((high - low) / step) + 1
    parts = low + step * (np.arange(cells * ENTROPY_PARTS + 1) / ENTROPY_PARTS - 0.5)
    at_parts = np.interp(parts, edges, below)
    inside = np.diff(at_parts)
    if at_parts[-1] == at_parts[0]:
        return np.inf
    clipped = inside.copy()
    clipped[0] += at_parts[0]
    clipped[-1] += below[-1] - at_parts[-1]
    by_cell = inside.reshape(cells, ENTROPY_PARTS)
    filled = by_cell > 0
    level = by_cell.sum(axis=1) / np.maximum(filled.sum(axis=1), 1)
    quantized = np.where(filled, level[:, None], 0.0).ravel()
    p, q = clipped / below[-1], quantized / (at_parts[-1] - at_parts[0])
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], ENTROPY_FLOOR))))


Errors = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # of (low, high, step), all of one shape


def _best(around: Range, factors: np.ndarray, widest: Range, levels: int, symmetric: bool, errors: Errors) -> Range:
    """The best of the ranges whose ends are `around` times any two of the factors, and inside `widest`."""
    lows = np.unique(np.maximum(around[0] * factors, widest[0]))[:, None]
    highs = np.unique(np.minimum(around[1] * factors, widest[1]))[None, :]
    if symmetric:
        highs = np.unique(np.minimum(max(-around[0], around[1]) * factors, max(-widest[0], widest[1])))[None, :]
        lows = -highs
    lows, highs, steps = _grids(lows, highs, levels, symmetric)
    best = np.unravel_index(np.argmin(errors(lows, highs, steps)), steps.shape)
    return _around_zero(lows[best], highs[best])


def _refined(
    start: Range, octaves: tuple[float, ...], widest: Range, levels: int, symmetric: bool, errors: Errors
) -> Range:
    """Search on around `start`, ever closer; each number of octaves is how far either end may move in one round."""
    for spread in octaves:
        start = _best(start, 2.0 ** (spread * np.linspace(-1, 1, 5)), widest, levels, symmetric, errors)
    return start


def _grids(
    low: np.ndarray, high: np.ndarray, levels: int, symmetric: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lowest and highest number and the step of the grids that ranges become, on which zero is an integer."""
    if symmetric:
        high = np.maximum(high, -low)
        return -high, high, high / (levels // 2 - 1)
    step = (high - low) / (levels - 1)
    below = np.rint(-low / step)
    return -below * step, (levels - 1 - below) * step, step


def _around_zero(low: float, high: float) -> Range:
    return min(float(low), 0.0) + 0.0, max(float(high), 0.0) + 0.0  # + 0.0 makes -0.0 plain
