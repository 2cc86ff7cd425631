"""Second moments made safe to factorise, whatever their rank."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gossamer.errors import DataError

DAMPING = 0.01  # of the mean diagonal, as in GPTQ (Frantar et al., 2022)
_TRIES = 8


class Factor(NamedTuple):
    """A Cholesky factor of H + damping * I, its columns in an order of their own.

    Attributes:
        lower_GKK: float64: h[order][:, order] + damping * I = lower @ lower^T, a group at a time.
        order_GK: which column of H stands where.
        damping_G: float64, what was added to the diagonal.
    """

    lower_GKK: np.ndarray
    order_GK: np.ndarray
    damping_G: np.ndarray


def factor(h_GKK: np.ndarray, order_GK: np.ndarray | None = None, share: float = DAMPING) -> Factor:
    """The factor at the least damping that has one: `share` of the mean diagonal, then 10 times that, and so on.

    Damping stands for what few samples cannot show: columns that varied together so far may not do so later. A group
    whose diagonal is all zero gets the identity.

    Args:
        h_GKK: float32 or float64 (G, K, K), symmetric up to rounding; not written to, so it may be a memory map.
        order_GK: of the columns; None keeps theirs.
        share: of the mean of the diagonal.

    Raises:
        DataError: an entry is NaN or infinite, or so far from positive semidefinite that no damping helps.
    """
    groups, columns = h_GKK.shape[:2]
    order = np.broadcast_to(np.arange(columns), (groups, columns)) if order_GK is None else order_GK
    h = np.asarray(h_GKK)[np.arange(groups)[:, None, None], order[:, :, None], order[:, None, :]].astype(np.float64)
    if not np.isfinite(h.sum()):
        raise DataError("a second moment of a layer's input is NaN or infinite; look for NaN or Inf in the activations")
    diagonal = np.arange(columns)
    mean_G = h[:, diagonal, diagonal].mean(axis=1)
    added_G = np.zeros(groups)
    for power in range(_TRIES):
        damping_G = np.where(mean_G > 0, mean_G * share * 10.0**power, 1.0)
        h[:, diagonal, diagonal] += (damping_G - added_G)[:, None]
        added_G = damping_G
        try:
            return Factor(np.linalg.cholesky(h), order, damping_G)
        except np.linalg.LinAlgError:
            continue
    raise DataError("a second moment of a layer's input has no Cholesky factor at any damping; it must be symmetric")


def column_worth(made: Factor) -> np.ndarray:
    """What an error of each column costs once those behind it have made up for it, by columns of H; float64 (G, K)."""
    worth_GK = np.empty(made.order_GK.shape)
    np.put_along_axis(worth_GK, made.order_GK, np.diagonal(made.lower_GKK, axis1=1, axis2=2) ** 2, axis=1)
    return worth_GK


def plus_damping(h_GKK: np.ndarray, damping_G: np.ndarray) -> np.ndarray:
    """H + damping * I as float64, a copy."""
    h = np.array(h_GKK, np.float64)
    diagonal = np.arange(h.shape[-1])
    h[:, diagonal, diagonal] += damping_G[:, None]
    return h


def activation_order(h_GKK: np.ndarray) -> np.ndarray:
    """The columns of every group from the least to the largest diagonal entry, int (G, K); stable among equal ones."""
    return np.argsort(np.diagonal(h_GKK, axis1=1, axis2=2), axis=1, kind="stable")
