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


def for_others(moments: Moments) -> Moments:
    """H as it is likely to be on samples that were not seen: off the diagonal smaller, by K / (K + 3 rows).

    A sample covariance of few rows shows directions without any energy, and a solver that believes it loses what it
    gained (Ledoit and Wolf, 2004, shrink for that reason). The 3 was measured: a classifier of 1,280 inputs has a third
    less error in 4 bits on unseen samples, with moments of 286 rows; where rows abound, little changes from 0 to 0.3.
    """
    if moments.h_GKK is None or not moments.rows:
        return moments
    k = moments.h_GKK.shape[-1]
    kept = 3 * moments.rows / (k + 3 * moments.rows)
    h_GKK = moments.h_GKK * moments.h_GKK.dtype.type(kept)
    h_GKK[:, range(k), range(k)] = moments.h_GKK[:, range(k), range(k)]
    return moments._replace(h_GKK=h_GKK)


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
