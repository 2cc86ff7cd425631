"""The line that takes what a layer's channels give to what they should: a scale and a shift for each channel.

The scale is that of least squares, as weights that were rounded or removed leave a channel too large or too small
(Jordan et al. 2022, "REPAIR: renormalizing permuted activations for interpolation repair", match the deviation itself,
which did no better here, and less well behind plain rounding to 2 and 3 bits). All is found on one half of the samples
first, and kept where it holds on the other.
"""

from __future__ import annotations

import numpy as np

from gossamer.measuring.means import Mean, mean_of, shrunk

LEAST, MOST = 0.5, 2.0  # of a scale
DEAD = 1e-3  # of the other's variance: below that a channel stands still, and no scale brings it to life


def best_line(means_NMO: np.ndarray, scalable: bool) -> tuple[np.ndarray, np.ndarray | None] | None:
    """What a layer's channels should be shifted down by, (O,), after they are scaled by (O,), or by nothing.

    Args:
        means_NMO: of every sample what it gives and should, and for a scale the former's square and their product.

    Returns:
        None if the other half of the samples does not agree.
    """
    even_NMO, odd_NMO = means_NMO[::2], means_NMO[1::2] if len(means_NMO) > 1 else means_NMO
    with_scale = scalable and means_NMO.shape[1] == 4
    if with_scale:
        scale_O = _slope(even_NMO)
        with_scale = _loss(odd_NMO, scale_O, _shift(even_NMO, scale_O)) < _loss(odd_NMO, None, _shift(even_NMO, None))
        if with_scale and _loss(odd_NMO, scale_O, _shift(even_NMO, scale_O)) < _loss(odd_NMO, None, None):
            scale_O = _slope(means_NMO)
            return _shift(means_NMO, scale_O), scale_O
    even, odd = (mean_of(half[:, 0] - half[:, 1]) for half in (even_NMO, odd_NMO))
    return (_shift(means_NMO, None), None) if falls(shrunk(even), odd) else None


def falls(shift_O: np.ndarray, other: Mean) -> bool:
    """Whether the squared error falls if the shift is taken off: its mean part does, the rest stays as it is."""
    return bool(np.square(other.mean_O - shift_O).sum() < np.square(other.mean_O).sum())


def _slope(means_NMO: np.ndarray) -> np.ndarray:
    got_O, wanted_O, square_O, product_O = means_NMO.mean(axis=0)
    variance_O = square_O - np.square(got_O)
    slope_O = np.divide(
        product_O - got_O * wanted_O, variance_O, out=np.ones_like(got_O), where=variance_O > DEAD * square_O
    )
    return np.asarray(np.clip(slope_O, LEAST, MOST))


def _shift(means_NMO: np.ndarray, scale_O: np.ndarray | None) -> np.ndarray:
    got_NO = means_NMO[:, 0] if scale_O is None else scale_O * means_NMO[:, 0]
    return shrunk(mean_of(got_NO - means_NMO[:, 1]))


def _loss(means_NMO: np.ndarray, scale_O: np.ndarray | None, shift_O: np.ndarray | None) -> float:
    """The mean squared error, summed over channels, less what does not depend on the line."""
    got_O, wanted_O, square_O, product_O = means_NMO.mean(axis=0)
    scale = np.ones_like(got_O) if scale_O is None else scale_O
    shift = np.zeros_like(got_O) if shift_O is None else shift_O
    loss_O = scale**2 * square_O - 2 * scale * product_O + shift**2 - 2 * shift * (scale * got_O - wanted_O)
    return float(loss_O.sum())
