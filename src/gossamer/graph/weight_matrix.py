"""Weights as stacks of matrices: (G, O, K), whatever axes the operator keeps them in.

G counts the groups of a convolution or the directions of a recurrent layer, O the outputs of a group, and K is
everything that is summed over. A table's rows are its outputs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gossamer.graph.edit import attribute_int, constant
from gossamer.graph.recurrent import RECURRENT, WEIGHTS, obstacle_in_weight

CONVOLUTIONS = ("Conv", "ConvTranspose")
PRODUCTS = ("Gemm", "MatMul")


@dataclass(frozen=True)
class WeightMatrix:
    """One use of a constant weight by a node, and how its axes make (G, O, K).

    Attributes:
        node: what reads it.
        slot: at which input.
        value: the initializer.
        split: the weight's shape with groups as an axis of their own.
        order: of the split axes: groups, outputs, and then those that make K.
    """

    node: ir.Node
    slot: int
    value: ir.Value
    split: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the initializer."""
        return self.value.name or ""

    @property
    def is_table(self) -> bool:
        """Whether rows are looked up; else it is multiplied with."""
        return self.node.op_type == "Gather"

    @property
    def k_shape(self) -> tuple[int, ...]:
        """What K is made of: (I, *kernel) for a convolution, (K,) else."""
        return tuple(self.split[axis] for axis in self.order[2:])

    @property
    def shape_GOK(self) -> tuple[int, int, int]:
        """Groups, outputs of a group, and what is summed over."""
        groups, outputs = (self.split[axis] for axis in self.order[:2])
        return groups, outputs, int(np.prod(self.k_shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return tuple(np.asarray(constant(self.value)).shape)

    def to_matrix(self, w: np.ndarray) -> np.ndarray:
        """A tensor of the weight's shape as (G, O, K)."""
        return np.ascontiguousarray(w.reshape(self.split).transpose(self.order)).reshape(self.shape_GOK)

    def from_matrix(self, w_GOK: np.ndarray) -> np.ndarray:
        """The exact inverse of `to_matrix`."""
        parts = w_GOK.reshape([self.split[axis] for axis in self.order])
        return np.ascontiguousarray(parts.transpose(np.argsort(self.order))).reshape(self.shape)

    def same_layout(self, other: WeightMatrix) -> bool:
        """Whether another use of the weight sums over the same axes in the same groups."""
        same = self.split[self.order[0]] == other.split[other.order[0]]
        return same and self._stored_axes() == other._stored_axes()

    def _stored_axes(self) -> tuple[bool, bool]:
        """Whether outputs come before inputs, and whether there is a kernel."""
        return self.order[1] < self.order[2], len(self.order) > 3


def weight_matrices(node: ir.Node) -> tuple[WeightMatrix, ...] | str:
    """A node's weights (two of a recurrent one, one else) as matrices, or the reason why it has none.

    Conv and ConvTranspose of any groups and axes, Gemm, MatMul with a matrix on either side, Gather of a table's rows,
    LSTM, GRU and RNN; weights are float32 initializers.
    """
    if node.domain != "":
        return f"{node.domain}.{node.op_type} is a custom operator"
    if node.op_type in RECURRENT:
        obstacles = [obstacle_in_weight(node, slot) for slot in WEIGHTS]
        return next(filter(None, obstacles), "") or tuple(_matrix(node, slot) for slot in WEIGHTS)
    if node.op_type == "Gather":
        return _table(node)
    if node.op_type not in (*CONVOLUTIONS, *PRODUCTS):
        return f"{node.op_type} has no weight matrix"
    slot = 0 if node.op_type == "MatMul" and constant(node.inputs[1]) is None else 1
    return _obstacle(node, slot) or (_matrix(node, slot),)


def matrices_by_weight(graph: ir.Graph, names: Collection[str] | None = None) -> dict[str, tuple[WeightMatrix, ...]]:
    """Initializer name -> its uses as a matrix or table by the nodes of the main graph, in graph order.

    Args:
        names: of initializers to look for; all if None.
    """
    found: dict[str, tuple[WeightMatrix, ...]] = {}
    for node in graph:
        matrices = weight_matrices(node)
        for matrix in () if isinstance(matrices, str) else matrices:
            if names is None or matrix.name in names:
                found[matrix.name] = (*found.get(matrix.name, ()), matrix)
    return found


def _obstacle(node: ir.Node, slot: int) -> str:
    array = constant(node.inputs[slot])
    if array is None:
        return "its weight is computed at run time"
    if array.dtype != np.float32:
        return f"its weight is {array.dtype}, not float32"
    if node.op_type in PRODUCTS and array.ndim != 2:
        return f"its weight has {array.ndim} axes, not 2"
    if node.op_type in CONVOLUTIONS and array.ndim < 3:
        return f"its weight has {array.ndim} axes, not 3 or more"
    if not array.size:
        return "its weight is empty"
    if constant(node.inputs[1 - slot]) is not None:
        return "its input is a constant"
    return ""


def _table(node: ir.Node) -> tuple[WeightMatrix, ...] | str:
    table = constant(node.inputs[0])
    if table is None:
        return "its table is computed at run time"
    if table.dtype != np.float32 or table.ndim != 2 or not table.size:
        return f"its table is {table.dtype} with {table.ndim} axes, not a float32 matrix"
    if attribute_int(node, "axis", 0) % 2:
        return "it looks columns up, not rows"
    if constant(node.inputs[1]) is not None:
        return "its indices are constant"
    return (_matrix(node, 0),)


def _matrix(node: ir.Node, slot: int) -> WeightMatrix:
    value = node.inputs[slot]
    split, order = layout(node, slot, np.asarray(constant(value)).shape)
    return WeightMatrix(node, slot, value, split, order)  # type: ignore[arg-type]  # the caller saw the constant


def layout(node: ir.Node, slot: int, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How the axes of a weight of this shape, constant or not, make (G, O, K): see `WeightMatrix` split and order.

    Args:
        node: Conv, ConvTranspose, Gemm, MatMul, Gather, LSTM, GRU or RNN.
        slot: where it reads the weight.
    """
    groups = attribute_int(node, "group", 1)
    split = (1, *shape)
    swapped = node.op_type == "ConvTranspose" or (node.op_type == "MatMul" and slot == 1)
    if node.op_type in CONVOLUTIONS:
        split = (groups, shape[0] // groups, *shape[1:])
    elif node.op_type in RECURRENT:
        split = shape
    elif node.op_type == "Gemm":
        swapped = not attribute_int(node, "transB", 0)
    order = (0, 2, 1, *range(3, len(split))) if swapped else tuple(range(len(split)))
    return split, order
