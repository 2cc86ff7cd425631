"""How much of a tensor an integer grid would keep: its signal-to-noise ratio, far spikes left aside.

A few constants far from everything else, such as the mask added to attention scores, stretch the range until all other
numbers fall on one integer. The power of the whole then says that all is well, as it is the power of the spikes; so the
part of the distribution nearest to zero is judged on its own, once a wide empty gap sets it apart.
"""

from __future__ import annotations

import numpy as np

from gossamer.arith.histogram import TINIEST, Observed, cumulative

GAP = 1 / 16  # of the range; narrower ones occur among the largest of any long-tailed numbers
SHARE = 0.001  # of the numbers other than zero: less than this is no bulk
FEWEST = 100  # numbers: gaps between fewer say nothing


def grid_snr_db(observed: Observed, scale: np.ndarray, zero_point: np.ndarray, ends: tuple[int, int]) -> float:
    """Signal-to-noise ratio to expect of a tensor on a grid, or of its bulk beside far spikes if that is lower.

    Numbers inside the grid err by a twelfth of the squared step, those that round to zero by themselves, those outside
    by their distance. Infinite for a tensor of zeros.

    Args:
        observed: with a histogram; infinities are not in it.
        scale, zero_point: scalar arrays, see `affine.affine_parameters`.
        ends: the least and greatest integer.
    """
    running, step = cumulative(observed), float(scale)
    low, high = ((end - int(zero_point)) * step for end in ends)
    x = (running.edges[:-1] + running.edges[1:]) / 2
    power = running.counts * x**2
    inside = np.where(np.abs(x) < step / 2, x**2, step**2 / 12)
    error = running.counts * (inside + np.maximum(x - high, 0) ** 2 + np.maximum(low - x, 0) ** 2)
    parts = (slice(None), _bulk(running.edges, running.counts))
    ratios = [power[part].sum() / error[part].sum() for part in parts if power[part].sum() > 0]
    return 10 * float(np.log10(min(ratios, default=np.inf)))


def _bulk(edges: np.ndarray, counts: np.ndarray) -> slice:
    """The bins of the part nearest to zero, between gaps; zeros, which every grid keeps, belong to none."""
    seen = np.flatnonzero((counts > 0) & (np.maximum(np.abs(edges[:-1]), np.abs(edges[1:])) > TINIEST))
    if not len(seen):
        return slice(None)
    gaps = edges[seen[1:]] - edges[seen[:-1] + 1]
    ends = np.flatnonzero(gaps >= GAP * (edges[-1] - edges[0]))
    least = max(FEWEST, SHARE * counts[seen].sum())
    groups = [group for group in np.split(seen, ends + 1) if counts[group].sum() >= least]
    nearest = min(groups, key=lambda group: min(abs(edges[group[0]]), abs(edges[group[-1] + 1])), default=seen)
    return slice(nearest[0], nearest[-1] + 1)
