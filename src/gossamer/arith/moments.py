"""The second moment of what a weight is multiplied with, and the objective it defines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Of one weight (G, O, K), summed over all its uses and positions, and divided by the number of samples.

    Attributes:
        h_GKK: float32 or float64 (G, K, K), symmetric; None means the identity, as for tables.
        rows_GO: float64 (G, O): how often a sample looks a table's row up; None means once, as for matrices.
        samples: how many were seen.
        source: "samples", or "batch norm" or "noise" where there were none.
        rows: vectors that were summed, those of all samples together; 0 where it is not known.
    """

    h_GKK: np.ndarray | None
    rows_GO: np.ndarray | None = None
    samples: int = 0
    source: str = "samples"
    rows: int = 0


def loss(error_GOK: np.ndarray, moments: Moments) -> np.ndarray:
    """tr(E H E^T) of every output channel, float64 (G, O): the expected squared error of its outputs, a sample."""
    error = np.asarray(error_GOK, np.float64)
    heard = error if moments.h_GKK is None else error @ moments.h_GKK
    each = np.einsum("gok,gok->go", heard, error)
    return np.asarray(each if moments.rows_GO is None else each * moments.rows_GO)


LOUD = 3  # samples as loud as the mean that are taken to have been seen, too


def for_others(moments: Moments) -> Moments:
    """H as it is likely to be on samples that were not seen.

    A sample covariance of few rows shows directions without any energy, and a solver that believes it loses what it
    gained (Ledoit and Wolf, 2004, shrink for that reason): off the diagonal it is smaller, by K / (K + 3 n). Positions
    of one sample are alike, so n is the geometric mean of rows and samples. And a column that was silent may speak yet:
    as if three more samples of white noise had been seen, as loud as the mean of all columns of all groups.

    Both were measured: 1,280 inputs of a classifier and 286 samples, a third less error in 4 bits on unseen ones; 1,152
    channels of 7 x 7 and 96 samples, 5 bits a weight at a rate, -32 instead of -24 dB, 2 to 4 dB of it by the first.

    Rows of a table that no sample looked up may be looked up yet: all of them together as often as the samples saw a
    row for the first and only time (Good, 1953).
    """
    if moments.h_GKK is None and moments.rows_GO is not None and moments.samples and moments.source == "samples":
        return moments._replace(rows_GO=_with_unseen(moments.rows_GO, moments.samples))
    if moments.h_GKK is None or not moments.rows or not moments.samples:
        return moments
    k = moments.h_GKK.shape[-1]
    known, seen = 3 * (moments.rows * moments.samples) ** 0.5, moments.samples / (moments.samples + LOUD)
    h_GKK = moments.h_GKK * moments.h_GKK.dtype.type(seen * known / (k + known))
    energy_GK = moments.h_GKK[:, range(k), range(k)]
    h_GKK[:, range(k), range(k)] = seen * energy_GK + (1 - seen) * energy_GK.mean(dtype=np.float64)
    return moments._replace(h_GKK=h_GKK)


def _with_unseen(rows_GO: np.ndarray, samples: int) -> np.ndarray:
    """The same number of looks in all, a share of them spread evenly."""
    counts = np.rint(rows_GO * samples)
    share = min(float((counts == 1).sum()) / max(float(counts.sum()), 1.0), 0.5)
    return np.asarray((1 - share) * rows_GO + share * rows_GO.mean())


def pooled_moments(parts: Sequence[Moments]) -> Moments:
    """Of one weight, from the moments of several parts of the samples, all of which were seen."""
    count = sum(part.samples for part in parts)
    if len(parts) == 1 or not count:
        return parts[0]
    h_GKK, rows_GO = parts[0][:2]
    if h_GKK is not None:
        h_GKK = _mean([np.asarray(part.h_GKK) for part in parts], [part.samples / count for part in parts])
    if rows_GO is not None:
        rows_GO = _mean([np.asarray(part.rows_GO) for part in parts], [part.samples / count for part in parts])
    rows = sum(part.rows for part in parts)
    return parts[0]._replace(h_GKK=h_GKK, rows_GO=rows_GO, samples=count, rows=rows)


def stacked(parts: Sequence[Moments | None]) -> Moments | None:
    """Of weights stacked along G; None where something is not known of all of them."""
    known = [each for each in parts if each is not None]
    if len(known) < len(parts):
        return None
    h = [each.h_GKK for each in known if each.h_GKK is not None]
    rows = [each.rows_GO for each in known if each.rows_GO is not None]
    if len(h) == len(known):
        return Moments(np.concatenate(h), None, known[0].samples, known[0].source)
    return Moments(None, np.concatenate(rows), known[0].samples) if len(rows) == len(known) else None


def _mean(arrays: Sequence[np.ndarray], shares: Sequence[float]) -> np.ndarray:
    total = arrays[0] * arrays[0].dtype.type(shares[0])
    for array, share in zip(arrays[1:], shares[1:], strict=True):
        total += array * array.dtype.type(share)
    return np.asarray(total)
