"""QuantizeLinear and DequantizeLinear in a graph: the pair on an activation, the stored integers of a weight."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.graph.edit import add_node, attribute_int, constant, fresh_name, graph_of, shared_initializer


class Pair(msgspec.Struct, frozen=True):
    """The one representation of an activation quantizer between measurement and graph: scalars in initializers."""

    scale: ir.Value
    zero_point: ir.Value


class Stored(msgspec.Struct, frozen=True):
    """What a DequantizeLinear of constants holds; `axis` is that of the scale, None if it is a scalar."""

    integers: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None


def dequantized(node: ir.Node, name: str, integers: np.ndarray, scale: np.ndarray, axis: int | None) -> ir.Value:
    """Symmetric integers and their scale as initializers, and a DequantizeLinear in front of `node`.

    Equal initializers made for a tied weight are found by name and shared.
    """
    graph = graph_of(node)
    zero_point = np.zeros(scale.shape, integers.dtype)
    parts = (("quantized", integers), ("scale", scale), ("zero_point", zero_point))
    inputs = [shared_initializer(graph, f"{name}_{part}", array) for part, array in parts]
    output_name, shape = f"{name}_dequantized/{node.name}", ir.Shape(integers.shape)
    attributes = {} if axis is None else {"axis": axis}
    return add_node(node, "DequantizeLinear", inputs, output_name, ir.DataType.FLOAT, shape, attributes)


def insert_pair(graph: ir.Graph, value: ir.Value, pair: Pair, readers: Collection[ir.Node] | None = None) -> None:
    """Put Q and DQ behind a value.

    Where nobody is left who reads the value itself, the DQ's output takes over its name, so that graphs can be
    compared by name. A graph input keeps its name.

    Args:
        readers: only these of the value's readers see the pair; None means all, and the graph's outputs.
    """
    name, producer = value.name or "value", value.producer()
    uses = [use for use in value.uses() if readers is None or use.node in readers]
    complete = readers is None or (len(uses) == len(value.uses()) and not value.is_graph_output())
    out = _pair_behind(graph, value, pair)
    for node, index in uses:
        node.replace_input_with(index, out)
    if not complete or producer is None:
        out.name = fresh_name(graph, f"{name}_dequantized")
        return
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = out
    value.name, out.name = fresh_name(graph, f"{name}_float"), name


def _pair_behind(graph: ir.Graph, value: ir.Value, pair: Pair) -> ir.Value:
    """The two nodes in their place; the result has no name yet."""
    integer = ir.node("QuantizeLinear", [value, pair.scale, pair.zero_point], name=f"{value.name}/QuantizeLinear")
    inputs = [integer.outputs[0], pair.scale, pair.zero_point]
    real = ir.node("DequantizeLinear", inputs, name=f"{value.name}/DequantizeLinear")
    integer.outputs[0].name = fresh_name(graph, f"{value.name}_quantized")
    integer.outputs[0].type, integer.outputs[0].shape = pair.zero_point.type, value.shape
    real.outputs[0].type, real.outputs[0].shape = value.type, value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], (integer, real))
    else:
        graph.insert_after(producer, (integer, real))
    return real.outputs[0]


def dequantizer(node: ir.Node, index: int) -> ir.Node | None:
    """The DequantizeLinear that makes a node's input, if one does."""
    value = node.inputs[index] if len(node.inputs) > index else None
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def stored_integers(node: ir.Node) -> Stored | None:
    """What a DequantizeLinear of constants holds; None if it dequantizes a computed tensor, or blocks of one."""
    integers, scale = constant(node.inputs[0]), constant(node.inputs[1])
    zero_point = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if integers is None or scale is None or scale.ndim > 1:
        return None
    if zero_point is None:
        zero_point = np.zeros(scale.shape, integers.dtype)
    return Stored(integers, scale, zero_point, attribute_int(node, "axis", 1) if scale.ndim else None)
