"""Small edits that several passes need: new initializers, new nodes, constants read as arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer, or None if the value is computed, fed or absent."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is known to be a float32 tensor."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def fresh_name(graph: ir.Graph, wanted: str) -> str:
    """`wanted`, or the first of `wanted_1`, `wanted_2`, ... that names no initializer yet."""
    name, count = wanted, 0
    while name in graph.initializers:
        count += 1
        name = f"{wanted}_{count}"
    return name


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Register a new constant; the name is made unique among the initializers."""
    name = fresh_name(graph, name)
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def add_node(
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    output_name: str,
    dtype: ir.DataType,
    shape: ir.ShapeProtocol | None,
    attributes: dict[str, int] | None = None,
) -> ir.Value:
    """Insert a node with one output in front of another node; the node's name is `output_name` + its operator."""
    node = ir.node(op_type, inputs, attributes or {}, name=f"{output_name}/{op_type}")
    output = node.outputs[0]
    output.name, output.dtype = output_name, dtype
    output.shape = None if shape is None else ir.Shape(list(shape))
    before.prepend(node)
    return output


def drop_unused(model: ir.Model) -> None:
    """Remove nodes and initializers that nothing uses any more."""
    RemoveUnusedNodesPass()(model)


def attribute_int(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def attribute_float(node: ir.Node, name: str, default: float) -> float:
    """A float attribute or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()
