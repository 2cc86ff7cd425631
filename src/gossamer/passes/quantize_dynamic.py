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

from gossamer.arith.affine import WEIGHT_LIMITS, quantize, weight_scales
from gossamer.errors import CandidateError, OptionError
from gossamer.graph.edit import add_node, constant, drop_unused, fresh_name, graph_of, shared_initializer, take_over
from gossamer.graph.layers import Layer, bias_array, check_finite, layer_of, reads_table
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope
from gossamer.passes.contract import Result, in_scope, nodes_in_scope

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
        weight_bits: 7 keeps within ±64, for processors that sum products of bytes in 16 bits.
        embeddings: also store the tables of Gather as int8.
    """

    granularity: Literal["channel", "tensor"] = "channel"
    weight_bits: Literal[7, 8] = 8
    embeddings: bool = True


def requires(model: Model, config: Config, scope: Scope) -> None:
    """A node asked for by its exact name can be quantized.

    Raises:
        OptionError: names the node, and why it cannot.
    """
    for node in model.ir.graph:
        reason = _obstacle(node, config, scope) if node.name in scope.only and in_scope(scope, node) else ""
        if reason:
            raise OptionError(
                f"quantize_dynamic cannot quantize node {node.name!r}: {reason}; leave it out of the scope"
            )


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """Rewrite every MatMul and Gemm with a constant weight, and the embedding tables.

    Raises:
        ModelError: a weight holds NaN or infinity.
    """
    clone = model.clone()
    inputs: dict[ir.Value, tuple[ir.Value, ...]] = {}  # activation -> its integers, scale, zero point
    notes, changed = [], False
    # what is rewritten is decided first, as the readers of a table say whether it can be
    chosen = {node: _obstacle(node, config, scope) for node in nodes_in_scope(clone, scope, "MatMul", "Gemm", "Gather")}
    for node, reason in chosen.items():
        if reason and (reads_table(node) or (node.op_type != "Gather" and constant(node.inputs[1]) is not None)):
            notes.append(f"quantize_dynamic left {node.name} in float: {reason}")
        elif not reason:
            changed = True
            layer = layer_of(node)
            if isinstance(layer, Layer):
                _rewrite_product(layer, inputs, config)
            else:
                _rewrite_gather(node)
    if not changed:
        return Result(model, False, (*notes, "quantize_dynamic: no matrix product with a constant weight"))
    drop_unused(clone.ir)
    return Result(replace(clone, reference=model.reference or model), True, tuple(notes))


def ensures(before: Model, result: Result, config: Config) -> None:
    """Every integer product multiplies stored int8.

    Raises:
        CandidateError: names the product that does not.
    """
    known = {node.name for node in before.ir.graph}
    for node in result.model.ir.graph:
        weight = node.inputs[1] if node.op_type == "MatMulInteger" and node.name not in known else None
        if weight is not None and weight.dtype != ir.DataType.INT8:
            raise CandidateError(f"{node.name}: weight is {weight.dtype}, promised int8")


def _obstacle(node: ir.Node, config: Config, scope: Scope) -> str:
    """Why a node cannot be quantized, or ""."""
    if node.domain == "" and node.op_type == "Conv":
        return "a Conv has no fast dynamic form; use quantize_static"
    if node.domain != "" or node.op_type != "Gather":
        layer = layer_of(node)
        return layer if isinstance(layer, str) else ""
    if not reads_table(node):
        return "it does not look up rows of a constant float32 matrix"
    table = node.inputs[0]
    if not config.embeddings:
        return "the option embeddings is off"
    if table is None or table.is_graph_output() or np.asarray(constant(table)).size < SMALLEST_TABLE:
        return f"its table has fewer than {SMALLEST_TABLE} elements"
    if not all(reads_table(user) and user.graph is node.graph and in_scope(scope, user) for user in table.consumers()):
        return f"its table {table.name} has other readers, and would be stored twice"
    return ""


def _rewrite_product(layer: Layer, inputs: dict[ir.Value, tuple[ir.Value, ...]], config: Config) -> None:
    check_finite(layer.node, layer.weight, layer.bias)
    graph, node, x = graph_of(layer.node), layer.node, layer.x
    name = layer.weight.name or "weight"
    w_KN = np.asarray(constant(layer.weight))
    if layer.channel_axis == 0:  # Gemm with transB: MatMulInteger has no transposed form
        w_KN = w_KN.T
    axis = 1 if config.granularity == "channel" else None
    scale_N = weight_scales(w_KN, axis, limit=WEIGHT_LIMITS[config.weight_bits])
    stored_KN = quantize(w_KN, scale_N, np.zeros_like(scale_N, np.int8), axis)
    if x not in inputs:
        inputs[x] = _quantize_input(node, x)
    x_integer, x_scale, x_zero_point = inputs[x]
    weight = shared_initializer(graph, f"{name}_quantized", stored_KN)
    scale = shared_initializer(graph, f"{name}_scale", scale_N)
    base, shape = node.outputs[0].name or "output", node.outputs[0].shape
    product = add_node(
        node, "MatMulInteger", [x_integer, weight, x_zero_point], f"{base}_int32", ir.DataType.INT32, shape
    )
    real = add_node(node, "Cast", [product], f"{base}_cast", ir.DataType.FLOAT, shape, {"to": int(ir.DataType.FLOAT)})
    both = add_node(node, "Mul", [x_scale, scale], f"{base}_scale", ir.DataType.FLOAT, ir.Shape(scale_N.shape))
    result = add_node(node, "Mul", [real, both], f"{base}_scaled", ir.DataType.FLOAT, shape)
    if layer.bias is not None:
        bias = shared_initializer(graph, f"{layer.bias.name}_row", bias_array(layer))
        result = add_node(node, "Add", [result, bias], f"{base}_biased", ir.DataType.FLOAT, shape)
    take_over(node, result)


def _quantize_input(node: ir.Node, x: ir.Value) -> tuple[ir.Value, ...]:
    """One DynamicQuantizeLinear for all products that read the same activation, in front of the first."""
    graph, scalar = graph_of(node), ir.Shape([])
    quantizer = ir.node("DynamicQuantizeLinear", [x], name=f"{x.name}/DynamicQuantizeLinear", num_outputs=3)
    integers, scale, zero_point = quantizer.outputs
    integers.dtype, integers.shape = ir.DataType.UINT8, x.shape
    scale.dtype, scale.shape = ir.DataType.FLOAT, scalar
    zero_point.dtype, zero_point.shape = ir.DataType.UINT8, scalar
    for output, suffix in zip(quantizer.outputs, ("quantized", "scale", "zero_point"), strict=True):
        output.name = fresh_name(graph, f"{x.name}_{suffix}")
    graph.insert_before(node, quantizer)
    return integers, scale, zero_point


def _rewrite_gather(node: ir.Node) -> None:
    graph, table, rows = graph_of(node), node.inputs[0], node.inputs[1]
    check_finite(node, table)
    w_VD = np.asarray(constant(table))
    scale_V = weight_scales(w_VD, 0)
    stored_VD = quantize(w_VD, scale_V, np.zeros_like(scale_V, np.int8), 0)
    name = table.name if table is not None else "table"
    stored = shared_initializer(graph, f"{name}_quantized", stored_VD)
    scale = shared_initializer(graph, f"{name}_scale", scale_V[:, None])
    base, shape = node.outputs[0].name or "output", node.outputs[0].shape
    picked = add_node(node, "Gather", [stored, rows], f"{base}_int8", ir.DataType.INT8, shape)
    real = add_node(node, "Cast", [picked], f"{base}_cast", ir.DataType.FLOAT, shape, {"to": int(ir.DataType.FLOAT)})
    scales = add_node(node, "Gather", [scale, rows], f"{base}_scale", ir.DataType.FLOAT, None)
    take_over(node, add_node(node, "Mul", [real, scales], f"{base}_scaled", ir.DataType.FLOAT, shape))
