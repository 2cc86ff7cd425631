"""What is added to a layer's output on the way past it, as in residual networks, and how that goes with its input.

Behind compressed layers the tensor that comes past is not what it is in the float network either. A layer that aims at
the float network's sum makes up for a part of that, where it would hand on all of it if it aimed at its own output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from gossamer.graph.edit import attribute_float, attribute_int, constant
from gossamer.graph.weight_matrix import WeightMatrix
from gossamer.measuring.autocorrelation import windows
from gossamer.measuring.offsets import Axis

SUMS = ("Add", "Sum")


def skip_of(use: WeightMatrix, depth: Mapping[str, int], level: int) -> str:
    """The tensor that is added to a layer's output, be it behind a constant bias; "" if none is, or not a settled one.

    Args:
        depth: of every tensor, see `staged.depths`.
        level: of the layer; what lies no deeper is settled when its turn comes.
    """
    if not _can_aim(use):
        return ""
    value = use.node.outputs[0]
    while True:
        readers = value.consumers()
        if len(readers) != 1 or value.is_graph_output() or readers[0].op_type not in SUMS or readers[0].domain:
            return ""
        others = [other for other in readers[0].inputs if other is not value and other is not None]
        if len(others) != 1 or len(readers[0].inputs) != 2:
            return ""
        if constant(others[0]) is None:
            return _settled(others[0], value, depth, level)
        value = readers[0].outputs[0]


def with_input(use: WeightMatrix, change: np.ndarray, x: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
    """The sum over positions of (what was added in the float network - what is now) times the layer's input.

    Args:
        change: of the layer's output shape: (B, G * O, *S) of a convolution, (..., O) of a product.
        x: the input now, (B, G * C, *S) or (..., K).
        axes: of a convolution's map.

    Returns:
        float32 (G, O, K); zeros where what is added was spread over the output from a smaller tensor.
    """
    groups, outputs, k = use.shape_GOK
    if use.node.op_type != "Conv":
        rows_NK = x.reshape(-1, k)
        if change.size != len(rows_NK) * outputs:
            return np.zeros(use.shape_GOK, np.float32)
        return np.asarray((change.reshape(-1, outputs).T @ rows_NK)[None])
    sizes = tuple(axis.outputs for axis in axes)
    if change.shape != (len(x), groups * outputs, *sizes):
        return np.zeros(use.shape_GOK, np.float32)
    patches = windows(x.reshape(len(x), groups, -1, *x.shape[2:]), axes)  # (B, G, C, *kernel, *outputs)
    turned = change.reshape(len(x), groups, outputs, -1)
    total_GOK = np.zeros(use.shape_GOK, np.float32)
    for sample, change_GOS in zip(patches, turned, strict=True):  # written out one by one: taps times the map
        total_GOK += change_GOS @ sample.reshape(groups, k, -1).swapaxes(1, 2)
    return total_GOK


def _can_aim(use: WeightMatrix) -> bool:
    node = use.node
    if node.op_type == "Gemm":
        return attribute_float(node, "alpha", 1.0) == 1.0 and not attribute_int(node, "transA", 0)
    return node.op_type == "Conv" or (node.op_type == "MatMul" and use.slot == 1)


def _settled(skip: ir.Value, beside: ir.Value, depth: Mapping[str, int], level: int) -> str:
    name = skip.name or ""
    spread = skip.shape is not None and beside.shape is not None and len(skip.shape) != len(beside.shape)
    return "" if spread or not 0 < depth.get(name, 0) <= level else name
