"""What the records' tables say of test images."""

from __future__ import annotations

import numpy as np

from gossamer.measuring.intervals import student_t


def spread(hits_SN: np.ndarray) -> str:
    """Accuracy: the mean over seeds, the lowest and the highest."""
    each = hits_SN.mean(1)
    return f"{each.mean():.2%} ({each.min():.2%}-{each.max():.2%})"


def change(hits_SN: np.ndarray, base_SN: np.ndarray) -> str:
    """Points of accuracy to others, mean over seeds, with the interval of a test image's mean."""
    change_N = (hits_SN.astype(float) - base_SN).mean(0)
    if not np.ptp(change_N):
        return f"{100 * change_N[0]:+.2f}"
    low, high = student_t(change_N)
    return f"{100 * change_N.mean():+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
