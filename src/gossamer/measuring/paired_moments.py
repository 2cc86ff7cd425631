"""The moments of a layer's input in two graphs at once: as it is now, and how it differs from the float graph's.

Both are stacked along the axis that the weight sums over, and the stack's second moment, taken like any other, holds
all four blocks: of the difference, of the input, and of one with the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from gossamer.arith.float_target import Drift
from gossamer.graph.recurrent import RECURRENT
from gossamer.graph.weight_matrix import CONVOLUTIONS, WeightMatrix

Arrays = Mapping[str, np.ndarray]
IN_FLOAT = " in the float graph"  # behind a tensor's name


def can_pair(use: WeightMatrix) -> bool:
    """Whether a use reads one tensor, row by row or patch by patch."""
    return not use.is_table and use.node.op_type not in RECURRENT


def doubled(use: WeightMatrix) -> WeightMatrix:
    """The same use with twice the inputs."""
    split = list(use.split)
    split[use.order[2]] *= 2
    return replace(use, split=tuple(split))


def stacking(use: WeightMatrix, axis: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """What puts the difference of two tensors in front of the second one, float32, along what the weight sums over.

    Args:
        axis: of a product's input.
    """
    groups = use.shape_GOK[0]

    def stacked(x: np.ndarray, now: np.ndarray) -> np.ndarray:
        x, now = x.astype(np.float32, copy=False), now.astype(np.float32, copy=False)
        if use.node.op_type not in CONVOLUTIONS:
            along = -1 if x.ndim == 1 else axis
            return np.concatenate([x - now, now], along)
        shape = (len(x), groups, -1, *x.shape[2:])
        x, now = x.reshape(shape), now.reshape(shape)
        both = np.concatenate([x - now, now], 2)
        return both.reshape(len(x), groups * both.shape[2], *x.shape[3:])

    return stacked


def drift_of(h_GKK: np.ndarray, samples: int, beside_GOK: np.ndarray | None = None) -> Drift:
    """Cut a stack's moments into blocks; and what comes past the layer, see `skips`."""
    k = h_GKK.shape[1] // 2
    return Drift(np.array(h_GKK[:, k:, k:]), np.array(h_GKK[:, :k, k:]), samples, beside_GOK)
