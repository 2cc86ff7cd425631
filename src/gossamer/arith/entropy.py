"""What numbers take at least, each coded by how often it occurs among them."""

from __future__ import annotations

import numpy as np


def entropy_bits(integers: np.ndarray) -> float:
    """Of all integers together at their order-0 entropy: what a static code takes, without its table."""
    if not integers.size:
        return 0.0
    whole = integers.astype(np.intp).ravel()
    counts = np.bincount(whole - whole.min())
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum())
