"""Weights that stay floats: with zeros, which this runtime computes with like any other number, or tied to others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from gossamer.graph.weight_matrix import WeightMatrix

PATTERN_KEY = "gossamer.sparsity"  # in the initializer's metadata: "2:4 along K of (groups, outputs, K)"


def store_dense(uses: Sequence[WeightMatrix], w_GOK: np.ndarray, pattern: str = "") -> None:
    """Put floats in the place of a weight; nothing but these uses may read it.

    Args:
        pattern: of zeros, as "2:4", for runtimes that use it; written to the metadata of the initializer.
    """
    first = uses[0]
    tensor = ir.tensor(first.from_matrix(w_GOK.astype(np.float32)), name=first.name)
    if pattern:
        tensor.metadata_props[PATTERN_KEY] = f"{pattern} along K of (groups, outputs, K)"
    first.value.const_value = tensor
    for use in uses:
        use.node.replace_input_with(use.slot, first.value)
