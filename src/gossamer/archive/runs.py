"""Runs of a class's most frequent symbol as gaps between the others: rule 12 of docs/format.md, written.

Gaps in independent symbols have a geometric distribution, so that the class's own table says what theirs is, and they
take the bits that the symbols would; but the coder is asked once for every symbol that is not the common one (Golomb
1966), which in a sparse network is one of ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gossamer.archive.reader import NEAR, NEARNESS, PRECISION, TWELVE_BITS, Runs
from gossamer.archive.tables import Encoder


class Gapped(NamedTuple):
    """The symbols of a class as they are coded.

    Attributes:
        folded: how many are not the common one, less what is expected, the sign at the bottom.
        gaps: before each of them; then of those that are longer than the longest symbol what is left, and so on.
        others: these symbols.
        runs: how they are coded.
    """

    folded: int
    gaps: tuple[np.ndarray, ...]
    others: np.ndarray
    runs: Runs


def gapped(symbols: np.ndarray, runs: Runs) -> Gapped:
    """The symbols of a class, in order."""
    places = np.flatnonzero(symbols != runs.common)
    more = len(places) - (len(symbols) * runs.share >> PRECISION)
    left, most = np.diff(places, prepend=-1) - 1, len(runs.gaps) - 1
    gaps = []
    while len(left):
        gaps.append(np.minimum(left, most))
        left = left[left >= most] - most
    return Gapped(2 * more if more >= 0 else -2 * more - 1, tuple(gaps), symbols[places], runs)


def encode_numbers(coder: Encoder, classes: Sequence[Gapped]) -> None:
    """How many symbols of each class are not its common one, all at once; those far from what is expected in full."""
    folded = np.array([one.folded for one in classes], np.int64)
    coder.encode(np.minimum(folded, NEAR), NEARNESS)
    far = folded[folded >= NEAR]
    coder.encode(far >> 12, TWELVE_BITS)
    coder.encode(far & 4095, TWELVE_BITS)


def encode_gaps(coder: Encoder, one: Gapped) -> None:
    """Of one class, and what lies between them."""
    for gaps in one.gaps:
        coder.encode(gaps, one.runs.gaps)
    coder.encode(one.others, one.runs.others)
