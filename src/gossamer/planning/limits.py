"""Which limit to try next: the search for the smallest that holds the floor, by measurement."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple


class Attempt(NamedTuple):
    """A limit that was tried.

    Attributes:
        limit: of bytes or milliseconds. Of one that met the floor, what its artifact really came to may stand here.
        met: whether the exported artifact kept the floor.
    """

    limit: float
    met: bool


def next_limit(
    tried: Sequence[Attempt], least: float, most: float, start: float | None = None, tolerance: float = 0.03
) -> float | None:
    """The limit to try next, bisecting on a logarithmic scale; None once nothing is left to gain.

    The best so far is always the smallest limit that held. A larger one that failed, as measurement is noisy, does not
    count against it.

    Args:
        tried: everything so far, in any order.
        least, most: the smallest that any allocation reaches, and that at which all is gained that can be; above 0.
        start: what to begin with; by default the middle.
        tolerance: relative; limits closer than this are one.
    """
    held = min((one.limit for one in tried if one.met), default=None)
    if not tried:
        return _within(start if start is not None else sqrt(least * most), least, most)
    failed = max((one.limit for one in tried if not one.met and (held is None or one.limit < held)), default=None)
    if held is None:
        above = failed if failed is not None else least
        return None if above >= most else _middle(above, most, tolerance) or most
    return _middle(max(failed or 0.0, least), held, tolerance)


def best(tried: Sequence[Attempt]) -> int | None:
    """Place of the smallest limit that held; None if none did."""
    held = [place for place, one in enumerate(tried) if one.met]
    return min(held, key=lambda place: tried[place].limit, default=None)


def _middle(low: float, high: float, tolerance: float) -> float | None:
    """The geometric mean, or None where the two are one."""
    return sqrt(low * high) if high > low * (1 + tolerance) else None


def _within(limit: float, least: float, most: float) -> float:
    return min(max(limit, least), most)
