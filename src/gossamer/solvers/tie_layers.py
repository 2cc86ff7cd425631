"""Shared: one weight for several layers, at the least loss to all of them together.

    minimise over S:   sum over g of tr((W_g - S) H_g (W_g - S)^T)

has a closed form, the mean weighted with the moments: S = (sum W_g H_g) (sum H_g)^-1. The same regression merges models
in Jin et al. 2023, "Dataless knowledge fusion by merging weights of language models" (RegMean); here it ties layers.
"""

from __future__ import annotations

import numpy as np

from gossamer.arith.forms import Dense
from gossamer.arith.moments import Moments
from gossamer.constraints.shared import Shared

DAMPING = 1e-6  # of the mean diagonal: directions no layer hears stay at the plain mean


def solve(w_GOK: np.ndarray, constraint: Shared, moments: Moments, k_shape: tuple[int, ...] = ()) -> Dense:
    """The weighted mean of the layers' weights, G times.

    The damping pulls towards the plain mean, so the result is never worse than that, without the damping too.

    Args:
        w_GOK: float32, one layer for each g; moments: theirs, finite, in the same order.
    """
    w = np.asarray(w_GOK, np.float64)
    mean_OK = w.mean(axis=0)
    if moments.h_GKK is None:
        tied_OK = mean_OK if moments.rows_GO is None else _mean_of_rows(w, moments.rows_GO, mean_OK)
    else:
        h_GKK = np.asarray(moments.h_GKK, np.float64)
        if moments.rows_GO is not None:
            h_GKK = h_GKK * moments.rows_GO.mean(axis=1)[:, None, None]
        total_KK = h_GKK.sum(axis=0)
        damping = DAMPING * float(np.trace(total_KK)) / len(total_KK) or 1.0
        pull_OK = ((w - mean_OK) @ h_GKK).sum(axis=0)
        tied_OK = mean_OK + np.linalg.solve(total_KK + damping * np.eye(len(total_KK)), pull_OK.T).T
    return Dense(tied_OK.astype(np.float32)[None].repeat(len(w), axis=0))


def _mean_of_rows(w_GOK: np.ndarray, rows_GO: np.ndarray, mean_OK: np.ndarray) -> np.ndarray:
    """The mean over G by how often each row is looked up; the plain mean for rows that nobody does."""
    total_O1 = rows_GO.sum(axis=0)[:, None]
    weighted_OK = (w_GOK * rows_GO[:, :, None]).sum(axis=0)
    return np.asarray(np.divide(weighted_OK, total_O1, out=mean_OK.copy(), where=total_O1 > 0))
