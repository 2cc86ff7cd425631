"""Which weights stay when a part of them has to go: those with the largest scores.

With the magnitude as score this is magnitude pruning (Han et al. 2015, "Learning both weights and connections for
efficient neural networks"); a solver brings scores of its own. Of equal scores the first go first.
"""

from __future__ import annotations

import numpy as np


def removed_count(ratio: float, blocks: int) -> int:
    """How many of so many blocks go: the nearest to the ratio, half rounded up."""
    return int(np.floor(ratio * blocks + 0.5))


def keep_of_blocks(score_GOK: np.ndarray, ratio: float, rows: int = 1, columns: int = 1) -> np.ndarray:
    """Keep the blocks with the largest sums of scores, in the whole tensor.

    A block is `rows` output channels of a group times `columns` consecutive weights along K. Blocks at the end of an
    axis may be smaller, and count like any other.

    Returns:
        bool (G, O, K): False for `removed_count` blocks.
    """
    sums_GXY = block_sums(score_GOK, rows, columns)
    kept_B = np.ones(sums_GXY.size, bool)
    kept_B[np.argsort(sums_GXY, axis=None, kind="stable")[: removed_count(ratio, sums_GXY.size)]] = False
    spread = kept_B.reshape(sums_GXY.shape).repeat(rows, axis=1).repeat(columns, axis=2)
    return np.asarray(spread[:, : score_GOK.shape[1], : score_GOK.shape[2]])


def keep_of_every(score_GOK: np.ndarray, n: int, m: int) -> np.ndarray:
    """Keep the n largest of every m consecutive scores along K, which m divides.

    N:M sparsity (Mishra et al. 2021, "Accelerating sparse deep neural networks").

    Returns:
        bool (G, O, K).
    """
    score_XM = score_GOK.reshape(-1, m)
    order_XM = np.argsort(score_XM, axis=1, kind="stable")
    kept_XM = np.ones(score_XM.shape, bool)
    np.put_along_axis(kept_XM, order_XM[:, : m - n], False, axis=1)
    return kept_XM.reshape(score_GOK.shape)


def block_sums(x_GOK: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Sums over the blocks, float64 (G, ceil(O / rows), ceil(K / columns))."""
    groups, outputs, length = x_GOK.shape
    padding = ((0, 0), (0, -outputs % rows), (0, -length % columns))
    whole = np.pad(np.asarray(x_GOK, np.float64), padding)
    blocks = whole.reshape(groups, whole.shape[1] // rows, rows, whole.shape[2] // columns, columns)
    return np.asarray(blocks.sum(axis=(2, 4)))
