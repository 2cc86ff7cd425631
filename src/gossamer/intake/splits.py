"""Three seeded sets of samples: one calibrates, one chooses between candidates, one verifies what is returned."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from gossamer.errors import DataError, OptionError
from gossamer.nouns.samples import Samples

ENOUGH_FOR_THREE = 30
ENOUGH_FOR_TWO = 8
MOST_TO_CALIBRATE = 256
MOST_TO_SELECT = 1000


def split(samples: Samples, seed: int = 0) -> tuple[Samples, Samples, Samples, tuple[str, ...]]:
    """Samples that calibrate, select and verify, and the figures of the record that are optimistic.

    Samples of equal content count as one and stay in one set. With at least 30 different samples the sets are disjoint:
    at most a quarter (256) calibrates, at most a third (1000) selects, the rest verifies. From 8 to 29 the first two
    are one set, so the candidates' figures are optimistic; below 8 all three are the same and every figure is.
    The sets keep the samples' order. One pass over the data is hashed (about 1 s a gigabyte).

    Raises:
        OptionError: the seed is no whole number from 0 up.
        DataError: no samples.
    """
    if not isinstance(seed, int) or seed < 0:
        raise OptionError(f"seed is {seed!r}; allowed is a whole number from 0 up")
    if not len(samples):
        raise DataError(f"{samples.source}: the data set is empty; give at least one sample")
    groups = equal_samples(samples)
    if len(groups) < ENOUGH_FOR_TWO:
        return samples, samples, samples, ("accuracy", "candidates.accuracy")
    order = np.random.default_rng(seed).permutation(len(groups))
    shuffled = [groups[position] for position in order]
    n = len(samples)
    if len(groups) < ENOUGH_FOR_THREE:
        tuning, verify = fill(shuffled, (n // 2,))
        return samples.take(tuning), samples.take(tuning), samples.take(verify), ("candidates.accuracy",)
    sizes = (min(MOST_TO_CALIBRATE, n // 4), min(MOST_TO_SELECT, n // 3))
    calibrate, select, verify = fill(shuffled, sizes)
    return samples.take(calibrate), samples.take(select), samples.take(verify), ()


def equal_samples(samples: Samples) -> list[list[int]]:
    """Positions of samples, those of equal content together, in order of first appearance."""
    groups: dict[bytes, list[int]] = {}
    for position, row in enumerate(samples.rows):
        groups.setdefault(_fingerprint(samples, int(row)), []).append(position)
    return list(groups.values())


def without(samples: Samples, others: Sequence[Samples]) -> Samples:
    """The samples whose content is in none of the others."""
    known = {_fingerprint(other, int(row)) for other in others for row in other.rows}
    kept = [position for position, row in enumerate(samples.rows) if _fingerprint(samples, int(row)) not in known]
    return samples.take(np.array(kept, dtype=np.int64))


def _fingerprint(samples: Samples, row: int) -> bytes:
    """A digest of one sample's inputs; two samples that differ in the label alone count as equal."""
    sha = hashlib.sha1(usedforsecurity=False)
    for name in sorted(samples.columns):
        column = samples.columns[name]
        if hasattr(column, "fingerprint"):  # a column read on demand knows a cheaper one than decoding
            sha.update(column.fingerprint(row))
            continue
        array = np.ascontiguousarray(column[row])
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())
    return sha.digest()


def fill(groups: list[list[int]], sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Groups put into sets of at most these sizes, first come first served, and the rest into a last set."""
    sets: list[list[int]] = [[] for _ in range(len(sizes) + 1)]
    for group in groups:
        fits = (i for i, size in enumerate(sizes) if len(sets[i]) + len(group) <= size)
        sets[next(fits, len(sizes))] += group
    return [np.sort(np.array(positions, dtype=np.int64)) for positions in sets]
