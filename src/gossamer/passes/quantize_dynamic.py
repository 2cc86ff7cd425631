"""Dynamic int8: matrix products in integers, the activation's range taken anew at each call; no samples needed.

Weights are int8 per output column (or one scale a matrix). Embedding tables are stored as int8 with a scale a row and
dequantized after the look-up, so only the rows in use are touched. The node pattern is the one onnxruntime fuses
(DynamicQuantizeLinear, MatMulInteger, Cast, Mul).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.arith.affine import quantize, weight_scales
from gossamer.errors import CandidateError, OptionError
from gossamer.graph.edit import add_initializer, add_node, constant, drop_unused, fresh_name
from gossamer.graph.layers import Layer, bias_array, layer_of
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope
from gossamer.passes.contract import Result, nodes_in_scope

if TYPE_CHECKING:
    from gossamer.measuring.evidence import Evidence

PRESERVES_FUNCTION = False
NEEDS_SAMPLES = False
STORES: tuple[str, ...] = ("INT8",)
SMALLEST_TABLE = 4096  # elements; a smaller embedding is not worth two more nodes


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        granularity: one weight scale an output column, or one a matrix.
        embeddings: also store the tables of Gather as int8.
    """

    granularity: Literal["channel", "tensor"] = "channel"
    embeddings: bool = True


def requires(model: Model, config: Config, scope: Scope) -> None:
    """A node asked for by its exact name can be quantized.

    Raises:
        OptionError: names the node, and why it cannot.
    """
    for node in model.ir.graph:
        if node.name in scope.only:
            found = layer_of(node)
            reason = found if isinstance(found, str) else "a Conv has no fast dynamic form; use quantize_static"
            if not _is_table(node) and (isinstance(found, str) or node.op_type == "Conv"):
                raise OptionError(f"quantize_dynamic cannot quantize node {node.name!r}: {reason}")


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """Rewrite every MatMul and Gemm with a constant weight, and the embedding tables."""
    clone = model.clone()
    graph = clone.ir.graph
    inputs: dict[ir.Value, tuple[ir.Value, ...]] = {}  # activation -> its integers, scale, zero point
    notes, changed = [], False
    for node in nodes_in_scope(clone, scope, "MatMul", "Gemm"):
        layer = layer_of(node)
        if isinstance(layer, str):
            if constant(node.inputs[1]) is not None:
                notes.append(f"quantize_dynamic left {node.name} in float: {layer}")
            continue
        _rewrite_product(graph, layer, inputs, config)
        changed = True
    if config.embeddings:
        for node in nodes_in_scope(clone, scope, "Gather"):
            if _is_table(node):
                _rewrite_gather(graph, node)
                changed = True
    if not changed:
        return Result(model, False, (*notes, "quantize_dynamic: no matrix product with a constant weight"))
    drop_unused(clone.ir)
    return Result(replace(clone, reference=model.reference or model), True, tuple(notes))


def ensures(before: Model, result: Result, config: Config) -> None:
    """Every integer product multiplies stored int8.

    Raises:
        CandidateError: names the product that does not.
    """
    for node in result.model.ir.graph:
        if node.op_type == "MatMulInteger" and node.inputs[1] is not None and node.inputs[1].dtype != ir.DataType.INT8:
            raise CandidateError(f"{node.name}: weight is {node.inputs[1].dtype}, promised int8")


def _rewrite_product(
    graph: ir.Graph, layer: Layer, inputs: dict[ir.Value, tuple[ir.Value, ...]], config: Config
) -> None:
    node, x = layer.node, layer.node.inputs[0]
    name = layer.weight.name or "weight"
    w_KN = np.asarray(constant(layer.weight))
    if layer.channel_axis == 0:  # Gemm with transB: MatMulInteger has no transposed form
        w_KN = w_KN.T
    axis = 1 if config.granularity == "channel" else None
    scale_N = np.asarray(weight_scales(w_KN, axis), np.float32)
    stored_KN = quantize(w_KN, scale_N, np.zeros_like(scale_N, np.int8), axis)
    if x not in inputs:
        inputs[x] = _quantize_input(node, x)  # type: ignore[arg-type,index]  # a layer has an input
    x_integer, x_scale, x_zero_point = inputs[x]  # type: ignore[index]
    weight, scale = (
        _shared(graph, name + suffix, array) for suffix, array in (("_quantized", stored_KN), ("_scale", scale_N))
    )
    output = node.outputs[0]
    base, shape = output.name or "output", output.shape
    product = add_node(node, "MatMulInteger", [x_integer, weight, x_zero_point], f"{base}_int32", ir.DataType.INT32, shape)
    real = add_node(node, "Cast", [product], f"{base}_cast", ir.DataType.FLOAT, shape, {"to": int(ir.DataType.FLOAT)})
    both = add_node(node, "Mul", [x_scale, scale], f"{base}_scale", ir.DataType.FLOAT, ir.Shape(scale_N.shape))
    result = add_node(node, "Mul", [real, both], f"{base}_scaled", ir.DataType.FLOAT, shape)
    if layer.bias is not None:
        bias = _shared(graph, f"{layer.bias.name}_row", bias_array(layer))
        result = add_node(node, "Add", [result, bias], f"{base}_biased", ir.DataType.FLOAT, shape)
    _take_over(graph, node, result)


def _quantize_input(node: ir.Node, x: ir.Value) -> tuple[ir.Value, ...]:
    """One DynamicQuantizeLinear for all products that read the same activation, in front of the first."""
    quantizer = ir.node("DynamicQuantizeLinear", [x], name=f"{x.name}/DynamicQuantizeLinear", num_outputs=3)
    parts = (("_quantized", ir.DataType.UINT8, x.shape), ("_scale", ir.DataType.FLOAT, ir.Shape([])), ("_zero_point", ir.DataType.UINT8, ir.Shape([])))
    for output, (suffix, dtype, shape) in zip(quantizer.outputs, parts, strict=True):
        output.name, output.dtype, output.shape = f"{x.name}{suffix}", dtype, shape
    node.prepend(quantizer)
    return tuple(quantizer.outputs)


def _is_table(node: ir.Node) -> bool:
    """A look-up of rows in a large float matrix that nothing but look-ups reads."""
    if node.op_type != "Gather" or ("axis" in node.attributes and node.attributes["axis"].as_int() != 0):
        return False
    table = constant(node.inputs[0])
    if table is None or table.dtype != np.float32 or table.ndim != 2 or table.size < SMALLEST_TABLE:
        return False
    return constant(node.inputs[1]) is None and all(user.op_type == "Gather" for user in node.inputs[0].consumers())  # type: ignore[union-attr]


def _rewrite_gather(graph: ir.Graph, node: ir.Node) -> None:
    table, rows = node.inputs[0], node.inputs[1]
    w_VD = np.asarray(constant(table))
    scale_V = np.asarray(weight_scales(w_VD, 0), np.float32)
    stored_VD = quantize(w_VD, scale_V, np.zeros_like(scale_V, np.int8), 0)
    name = table.name if table is not None else "table"
    stored, scale = (
        _shared(graph, f"{name}{suffix}", array)
        for suffix, array in (("_quantized", stored_VD), ("_scale", scale_V[:, None]))
    )
    output = node.outputs[0]
    base, shape = output.name or "output", output.shape
    picked = add_node(node, "Gather", [stored, rows], f"{base}_int8", ir.DataType.INT8, shape)
    real = add_node(node, "Cast", [picked], f"{base}_cast", ir.DataType.FLOAT, shape, {"to": int(ir.DataType.FLOAT)})
    scales = add_node(node, "Gather", [scale, rows], f"{base}_scale", ir.DataType.FLOAT, None)
    _take_over(graph, node, add_node(node, "Mul", [real, scales], f"{base}_scaled", ir.DataType.FLOAT, shape))


def _shared(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """An initializer, found again by name if an equal one was made for another use of a tied weight."""
    known = graph.initializers.get(name)
    if known is not None and np.array_equal(np.asarray(constant(known)), array):
        return known
    return add_initializer(graph, name, array)


def _take_over(graph: ir.Graph, node: ir.Node, result: ir.Value) -> None:
    """`result` replaces the node's output and its name, so that tensors can be compared by name."""
    output = node.outputs[0]
    name = output.name
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = name


