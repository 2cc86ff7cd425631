"""QuantizeLinear and DequantizeLinear in a graph: the pair on an activation, the stored integers of a weight.

The standard's operators take 16 bits from opset 21 on. In a graph of an older one (intake raises all it can) those of
16 bits are onnxruntime's own, of the domain com.microsoft, which it reads since 1.16: it opens both at any opset that
has them, and runs both in the same way and time.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.graph.edit import add_node, attribute_int, constant, fresh_name, graph_of, shared_initializer

OPSET_OF_16_BITS = 21
OPSET_OF_4_BITS = 21


class Pair(msgspec.Struct, frozen=True):
    """The one representation of an activation quantizer between measurement and graph: scalars in initializers.

    Attributes:
        ends: the least and greatest integer, where they are not the type's.
    """

    scale: ir.Value
    zero_point: ir.Value
    ends: tuple[int, int] | None = None


class Stored(msgspec.Struct, frozen=True):
    """What a DequantizeLinear of constants holds; `axis` is that of the scale, None if it is a scalar."""

    integers: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None


def dequantized(
    node: ir.Node, name: str, integers: np.ndarray, scale: np.ndarray, axis: int | None, bits: int = 8
) -> ir.Value:
    """Symmetric integers and their scale as initializers, and a DequantizeLinear in front of `node`.

    Equal initializers made for a tied weight are found by name and shared. Integers of up to 4 bits are stored as int4,
    and cast to int8 when the file is opened: onnxruntime has integer kernels for bytes, and none for int4.
    """
    graph = graph_of(node)
    zero_point = np.zeros(scale.shape, integers.dtype)
    narrow = bits <= 4 and integers.dtype == np.int8 and graph.opset_imports.get("", 0) >= OPSET_OF_4_BITS
    stored = integers.astype(ir.DataType.INT4.numpy()) if narrow else integers
    parts = (("quantized", stored), ("scale", scale), ("zero_point", zero_point))
    inputs = [shared_initializer(graph, f"{name}_{part}", array) for part, array in parts]
    if narrow:
        inputs[0] = _in_bytes(node, inputs[0])
    output_name, shape = f"{name}_dequantized/{node.name}", ir.Shape(integers.shape)
    attributes = {} if axis is None else {"axis": axis}
    domain = _domain(graph, integers.dtype)
    return add_node(node, "DequantizeLinear", inputs, output_name, ir.DataType.FLOAT, shape, attributes, domain)


def _in_bytes(node: ir.Node, value: ir.Value) -> ir.Value:
    """int4 as int8, by one Cast for all that read it."""
    for reader in value.consumers():
        if reader.op_type == "Cast":
            return reader.outputs[0]
    to = {"to": int(ir.DataType.INT8)}
    return add_node(node, "Cast", [value], f"{value.name}_bytes", ir.DataType.INT8, value.shape, to)


def _domain(graph: ir.Graph, dtype: np.dtype) -> str:
    """Where the operators for this integer type are; the graph imports it."""
    if dtype.itemsize != 2 or graph.opset_imports.get("", OPSET_OF_16_BITS) >= OPSET_OF_16_BITS:
        return ""
    graph.opset_imports.setdefault("com.microsoft", 1)
    return "com.microsoft"


def insert_pair(graph: ir.Graph, value: ir.Value, pair: Pair, readers: Collection[ir.Node] | None = None) -> None:
    """Put Q and DQ behind a value; if that comes out of a pair itself, beside the other pair, on the same tensor.

    Where nobody is left who reads the value itself, the DQ's output takes over its name, so that graphs can be
    compared by name. A graph input keeps its name.

    Args:
        readers: only these of the value's readers see the pair; None means all but other quantizers, and the graph's
            outputs.
    """
    name, producer = value.name or "value", value.producer()
    uses = [
        use
        for use in value.uses()
        if (use.node.op_type != "QuantizeLinear" if readers is None else use.node in readers)
    ]
    complete = readers is None or (len(uses) == len(value.uses()) and not value.is_graph_output())
    source = quantized_tensor(value)
    out = _pair_behind(graph, source or value, name, pair)
    for node, index in uses:
        node.replace_input_with(index, out)
    if not complete or producer is None or source is not None:
        out.name = fresh_name(graph, f"{name}_dequantized")
        return
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = out
    value.name, out.name = fresh_name(graph, f"{name}_float"), name


def _pair_behind(graph: ir.Graph, value: ir.Value, name: str, pair: Pair) -> ir.Value:
    """The two nodes in their place; the result has no name yet."""
    domain = _domain(graph, np.asarray(constant(pair.zero_point)).dtype)
    parts, quantized = [pair.scale, pair.zero_point], fresh_name(graph, f"{name}_quantized")
    count = quantized.removeprefix(f"{name}_quantized")  # beside another pair the nodes need new names too
    integer = ir.node("QuantizeLinear", [value, *parts], domain=domain, name=f"{name}/QuantizeLinear{count}")
    integers = integer.outputs[0]
    between: tuple[ir.Node, ...] = ()
    if pair.ends is not None:
        integers, between = _kept_within(graph, integers, pair, name, count)
    inputs = [integers, *parts]
    real = ir.node("DequantizeLinear", inputs, domain=domain, name=f"{name}/DequantizeLinear{count}")
    integer.outputs[0].name = quantized
    integer.outputs[0].type, integer.outputs[0].shape = pair.zero_point.type, value.shape
    real.outputs[0].type, real.outputs[0].shape = value.type, value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], (integer, *between, real))
    else:
        graph.insert_after(producer, (integer, *between, real))
    return real.outputs[0]


def _kept_within(
    graph: ir.Graph, integers: ir.Value, pair: Pair, name: str, count: str
) -> tuple[ir.Value, tuple[ir.Node, ...]]:
    """A Clip of the integers themselves, which leaves the layer in front of it to its integer kernel."""
    dtype = np.asarray(constant(pair.zero_point)).dtype
    parts = zip(("least", "most"), pair.ends or (), strict=True)
    ends = [shared_initializer(graph, f"{word}_{dtype}_{end}", np.array(end, dtype)) for word, end in parts]
    clip = ir.node("Clip", [integers, *ends], name=f"{name}/Clip{count}")
    clip.outputs[0].name = f"{name}_clipped{count}"
    clip.outputs[0].type, clip.outputs[0].shape = integers.type, integers.shape
    return clip.outputs[0], (clip,)


def quantized_tensor(value: ir.Value) -> ir.Value | None:
    """The tensor that a quantizer rounded to this value, if one did."""
    real = value.producer()
    integer = None if real is None or pair_of(value) is None else quantizer_of(real)
    return None if integer is None else integer.inputs[0]


def quantizer_of(real: ir.Node) -> ir.Node | None:
    """The QuantizeLinear in front of a DequantizeLinear; a Clip between is looked through."""
    above = None if real.inputs[0] is None else real.inputs[0].producer()
    if above is not None and _ends_of(above) is not None and above.inputs[0] is not None:
        above = above.inputs[0].producer()
    return above if above is not None and above.op_type == "QuantizeLinear" else None


def ends_of(real: ir.Node) -> tuple[int, int] | None:
    """The least and greatest integer that come to a DequantizeLinear, if a Clip keeps them within."""
    above = None if real.inputs[0] is None else real.inputs[0].producer()
    return None if above is None else _ends_of(above)


def _ends_of(node: ir.Node) -> tuple[int, int] | None:
    if node.op_type != "Clip" or node.domain != "" or len(node.inputs) < 3:
        return None
    ends = [constant(value) for value in node.inputs[1:3]]
    if any(end is None or end.dtype.kind not in "iu" for end in ends):
        return None
    low, high = (int(np.asarray(end)) for end in ends)
    return low, high


def dequantizer(node: ir.Node, index: int) -> ir.Node | None:
    """The DequantizeLinear that makes a node's input, if one does."""
    value = node.inputs[index] if len(node.inputs) > index else None
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def pair_of(value: ir.Value) -> Pair | None:
    """The quantizer that a value comes out of, if it does: a QuantizeLinear and DequantizeLinear of one grid."""
    real = value.producer()
    integer = quantizer_of(real) if real is not None and real.op_type == "DequantizeLinear" else None
    if real is None or integer is None or len(real.inputs) < 3:
        return None
    scale, zero_point = real.inputs[1:3]
    if scale is None or zero_point is None or constant(scale) is None or constant(zero_point) is None:
        return None
    return Pair(scale, zero_point, ends_of(real)) if np.asarray(constant(scale)).ndim == 0 else None


def integers_behind(node: ir.Node) -> ir.Value | None:
    """The initializer of integers that a DequantizeLinear reads, if there is one; a Cast between is looked through."""
    value = node.inputs[0]
    above = None if value is None else value.producer()
    if above is not None and above.op_type == "Cast" and above.domain == "":
        value = above.inputs[0]
    if value is None or constant(value) is None or value.dtype is None or not value.dtype.is_integer():
        return None
    return value


def stored_integers(node: ir.Node) -> Stored | None:
    """What a DequantizeLinear of constants holds; None if it dequantizes a computed tensor, or blocks of one."""
    value = integers_behind(node)
    integers, scale = None if value is None else np.asarray(constant(value)), constant(node.inputs[1])
    zero_point = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if integers is None or scale is None or scale.ndim > 1:
        return None
    if zero_point is None:
        zero_point = np.zeros(scale.shape, integers.dtype)
    return Stored(integers, scale, zero_point, attribute_int(node, "axis", 1) if scale.ndim else None)
