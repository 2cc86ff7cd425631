"""QuantizeLinear and DequantizeLinear in a graph: the pair on an activation, the stored integers of a weight."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.errors import CandidateError
from gossamer.graph.edit import add_initializer, add_node, constant


class Pair(msgspec.Struct, frozen=True):
    """The one representation of an activation quantizer between measurement and graph."""

    scale: ir.Value
    zero_point: ir.Value
    low: float  # smallest and largest real value the integers can say
    high: float


def dequantized(node: ir.Node, name: str, stored: np.ndarray, scale: np.ndarray, axis: int | None) -> ir.Value:
    """Integers, their scale and zero point as initializers, and a DequantizeLinear in front of `node`.

    Equal initializers made for a tied weight are found by name and shared.
    """
    graph = node.graph
    inputs = []
    zero = np.zeros(scale.shape, stored.dtype)
    for suffix, array in (("_quantized", stored), ("_scale", scale), ("_zero_point", zero)):
        known = graph.initializers.get(name + suffix)  # type: ignore[union-attr]  # the node is in a graph
        same = known is not None and np.array_equal(np.asarray(constant(known)), array)
        inputs.append(known if same else add_initializer(graph, name + suffix, array))  # type: ignore[arg-type]
    attributes = {} if axis is None else {"axis": axis}
    output_name = f"{name}_dequantized/{node.name}"
    return add_node(node, "DequantizeLinear", inputs, output_name, ir.DataType.FLOAT, ir.Shape(stored.shape), attributes)


def insert_pair(graph: ir.Graph, value: ir.Value, pair: Pair) -> None:
    """Put Q and DQ behind a value; the DQ's output takes over its name, so that tensors can be compared by name."""
    name, producer = value.name or "", value.producer()
    consumers = [(use.node, use.idx) for use in value.uses()]
    integer = ir.node("QuantizeLinear", [value, pair.scale, pair.zero_point], name=f"{name}/QuantizeLinear")
    real = ir.node("DequantizeLinear", [integer.outputs[0], pair.scale, pair.zero_point], name=f"{name}/DequantizeLinear")
    integer.outputs[0].name = f"{name}_quantized"
    integer.outputs[0].dtype, integer.outputs[0].shape = pair.zero_point.dtype, value.shape
    out = real.outputs[0]
    out.dtype, out.shape = ir.DataType.FLOAT, value.shape
    if producer is None:  # a graph input keeps its name
        out.name = f"{name}_dequantized"
        graph.insert_before(graph[0], (integer, real))
    else:
        value.name, out.name = f"{name}_float", name
        producer.append((integer, real))
    for node, index in consumers:
        node.replace_input_with(index, out)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = out


def dequantizer(node: ir.Node, index: int) -> ir.Node | None:
    """The DequantizeLinear that makes a node's input, if one does."""
    value = node.inputs[index] if len(node.inputs) > index else None
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def stored_integers(node: ir.Node) -> tuple[np.ndarray, np.ndarray, int | None]:
    """What a DequantizeLinear of constants holds: the integers, the scale, the axis of the scale or None.

    Raises:
        CandidateError: it dequantizes an activation.
    """
    stored, scale = constant(node.inputs[0]), constant(node.inputs[1])
    if stored is None or scale is None:
        raise CandidateError(f"{node.name} dequantizes a computed tensor, not a stored weight")
    return stored, scale, node.attributes["axis"].as_int() if scale.ndim and "axis" in node.attributes else None
