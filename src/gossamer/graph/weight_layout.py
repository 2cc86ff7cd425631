"""From arrays and values laid out as (G, O, K) to tensors of a weight's own axes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gossamer.graph.edit import add_node, graph_of, shared_initializer
from gossamer.graph.weight_matrix import WeightMatrix

FLOAT = ir.DataType.FLOAT


def is_natural(matrix: WeightMatrix) -> bool:
    """Whether the numbers of the tensor follow each other as those of the matrix do."""
    return matrix.order == tuple(range(len(matrix.order)))


def scales_fit(matrix: WeightMatrix) -> bool:
    """Whether one number for each (G, O) can be an array of the tensor's own axes."""
    return is_natural(matrix) or matrix.split[0] == 1


def spread(matrix: WeightMatrix, part: np.ndarray) -> np.ndarray:
    """Numbers (G or 1, O or 1, 1 or K) as an array that broadcasts against the tensor.

    Where they do not fit, against the tensor with its groups as an axis of their own, `matrix.split`. Of numbers for
    each of K that are the same for all taps of an input there is one for the input.
    """
    if part.size == 1:
        return part.reshape((1,) * len(matrix.shape))
    k_shape = matrix.k_shape if part.shape[2] > 1 else (1,) * len(matrix.k_shape)
    part = part.reshape(*part.shape[:2], *k_shape)
    taps = (slice(None),) * 3 + (slice(1),) * (part.ndim - 3)
    part = part[taps] if (part == part[taps]).all() else part
    merged = len(matrix.shape) < len(matrix.split) and scales_fit(matrix)
    if merged and part.shape[0] > 1:  # groups and their outputs are one axis of the tensor
        part = np.broadcast_to(part, (part.shape[0], matrix.shape_GOK[1], *part.shape[2:]))
    moved = part.transpose(np.argsort(matrix.order))
    if not merged:
        return np.ascontiguousarray(moved)
    return np.ascontiguousarray(moved.reshape(-1, *moved.shape[2:]))


def restored(before: ir.Node, base: str, value: ir.Value, shape: tuple[int, ...], matrix: WeightMatrix) -> ir.Value:
    """Nodes that make the tensor of a value whose numbers follow each other as those of the matrix do.

    Args:
        shape: of the value.
    """
    if is_natural(matrix):
        return value if shape == matrix.shape else reshaped(before, base, value, matrix.shape)
    expanded = tuple(matrix.split[axis] for axis in matrix.order)
    if matrix.split[0] == 1 and shape == expanded[1:]:
        expanded = shape  # no groups: the axis can be left out
    elif shape != expanded:
        value = reshaped(before, f"{base}_apart", value, expanded)
    order = tuple(int(axis) for axis in np.argsort(matrix.order))
    order = tuple(axis - 1 for axis in order[1:]) if len(expanded) < len(order) else order
    turned = tuple(expanded[axis] for axis in order)
    value = add_node(before, "Transpose", [value], f"{base}_turned", FLOAT, ir.Shape(turned), {"perm": order})
    return value if turned == matrix.shape else reshaped(before, base, value, matrix.shape)


def reshaped(before: ir.Node, base: str, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    """A Reshape in front of a node; 0 stands for the length that the axis has."""
    wanted = shared_initializer(graph_of(before), f"{base}_shape", np.array(shape, np.int64))
    known = None if 0 in shape or -1 in shape else ir.Shape(shape)
    return add_node(before, "Reshape", [value, wanted], f"{base}_whole", FLOAT, known)
