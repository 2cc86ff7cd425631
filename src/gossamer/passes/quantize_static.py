"""Static int8: QuantizeLinear/DequantizeLinear pairs with ranges from calibration, weights stored as int8.

The scheme is that of Jacob et al. 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference": asymmetric activations, symmetric weights per output channel, int32 bias.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.arith.affine import affine_parameters, quantize, quantize_bias, weight_scales
from gossamer.arith.clipping import Estimator, clip_range
from gossamer.errors import CandidateError, OptionError
from gossamer.graph.edit import add_initializer, constant, drop_unused
from gossamer.graph.layers import Layer, bias_array
from gossamer.graph.placement import Placement, place
from gossamer.graph.qdq import Pair, dequantized, insert_pair
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope
from gossamer.passes.contract import Result, in_scope

if TYPE_CHECKING:
    from gossamer.measuring.evidence import Evidence

PRESERVES_FUNCTION = False
NEEDS_SAMPLES = True
STORES: tuple[str, ...] = ("INT8",)
BIAS_LIMIT = 2**30  # half of int32: the products are added to the bias, and must not overflow it

# Softmax is left out on purpose: its integer kernel is slower than the float one and ruins attention.
OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        activation: integer type of activations.
        symmetric: zero point in the middle of the activation type instead of wherever the range asks for.
        granularity: one weight scale an output channel, or one a tensor.
        ranges: how a range is chosen from what was observed.
        operators: which operators run in integers.
    """

    activation: Literal["uint8", "int8"] = "uint8"
    symmetric: bool = False
    granularity: Literal["channel", "tensor"] = "channel"
    ranges: Estimator = "minmax"
    operators: tuple[str, ...] = OPERATORS


def requires(model: Model, config: Config, scope: Scope) -> None:
    """Operators are known; a node asked for by name can be quantized.

    Raises:
        OptionError: names the operator or the node, and why.
    """
    unknown = set(config.operators) - set(OPERATORS)
    if unknown:
        raise OptionError(f"quantize_static: operators {sorted(unknown)}; allowed are {', '.join(OPERATORS)}")
    if not scope.only:
        return
    layout = place(model.ir.graph, config.operators, lambda node: in_scope(scope, node))
    exact = set(scope.only)
    for name, reason in layout.left.items():
        if name in exact:
            raise OptionError(f"quantize_static cannot quantize node {name!r}: {reason}; leave it out of the scope")


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """Insert the pairs. Nothing to quantize gives the model back unchanged."""
    layout = place(model.ir.graph, config.operators, lambda node: in_scope(scope, node))
    if not layout.own or evidence is None:
        return Result(model, False, ("quantize_static: no node can run in integers",))
    names = [value.name or "" for value in layout.own]
    observed = evidence.ranges(model, names, histogram=config.ranges not in ("minmax", "moving_average"))
    ranges = {name: clip_range(observed[name], config.ranges, 256, config.symmetric) for name in names}

    clone = model.clone()
    graph = clone.ir.graph
    layout = place(graph, config.operators, lambda node: in_scope(scope, node))
    pairs = _make_pairs(graph, layout, ranges, config)
    for layer in layout.layers:
        _store_weight(graph, layer, pairs[layer.node.inputs[0]], config)  # type: ignore[index]  # layers have an input
    _swallow(layout, pairs)
    for value, pair in pairs.items():
        insert_pair(graph, value, pair)
    drop_unused(clone.ir)
    notes = tuple(f"quantize_static left {name} in float: {reason}" for name, reason in layout.left.items())
    return Result(replace(clone, reference=model.reference or model), True, notes)


def ensures(before: Model, result: Result, config: Config) -> None:
    """Every stored weight has the promised type.

    Raises:
        CandidateError: names a layer that is still in float.
    """
    if not result.modified:
        return
    for node in result.model.ir.graph:
        if node.op_type == "DequantizeLinear" and (array := constant(node.inputs[0])) is not None:
            if array.dtype not in (np.int8, np.int32):
                raise CandidateError(f"{node.name}: stored as {array.dtype}, promised int8 or int32")


def _make_pairs(
    graph: ir.Graph, layout: Placement, ranges: dict[str, tuple[float, float]], config: Config
) -> dict[ir.Value, Pair]:
    """Scale and zero point of every quantized activation; followers share those of their source."""
    dtype = np.dtype(config.activation)
    limits = np.iinfo(dtype)
    pairs: dict[ir.Value, Pair] = {}
    for value in layout.own:
        low, high = ranges[value.name or ""]
        scale, zero_point = affine_parameters(low, high, config.activation, config.symmetric)
        pairs[value] = Pair(
            add_initializer(graph, f"{value.name}_scale", np.asarray(scale, np.float32)),
            add_initializer(graph, f"{value.name}_zero_point", np.asarray(zero_point, dtype)),
            float(scale) * (limits.min - int(zero_point)),
            float(scale) * (limits.max - int(zero_point)),
        )
    for value in layout.follows:
        source = value
        while source in layout.follows:
            source = layout.follows[source]
        pairs[value] = pairs[source]
    return pairs


def _store_weight(graph: ir.Graph, layer: Layer, pair: Pair, config: Config) -> None:
    """Replace a layer's weight by int8 and its bias by int32, each behind a DequantizeLinear."""
    node, name = layer.node, layer.weight.name or "weight"
    w = np.asarray(constant(layer.weight))
    axis = layer.channel_axis if config.granularity == "channel" else None
    scale = np.asarray(weight_scales(w, axis), np.float32)
    input_scale = np.float32(constant(pair.scale))
    bias = bias_array(layer)
    # int32 must hold bias / (input scale * weight scale): widen the weight scale of channels where it would not
    bound = np.abs(bias) / (input_scale * np.float32(BIAS_LIMIT))
    scale = np.maximum(scale, bound if axis is not None else bound.max(initial=0)).astype(np.float32)
    weight = dequantized(node, name, quantize(w, scale, np.zeros_like(scale, np.int8), axis), scale, axis)
    node.replace_input_with(1, weight)
    if layer.bias is not None:
        bias_scale = (input_scale * scale).astype(np.float32)
        stored = quantize_bias(bias, bias_scale)
        bias_axis = 0 if axis is not None else None
        bias_name = f"{layer.bias.name}/{node.name}"  # scaled by this node's input, so it is this node's own
        node.replace_input_with(2, dequantized(node, bias_name, stored, bias_scale, bias_axis))


def _swallow(layout: Placement, pairs: dict[ir.Value, Pair]) -> None:
    """Remove each Relu or Clip whose pair cannot say anything outside its bounds."""
    for output, node in layout.ends.items():
        low, high = clip_bounds(node)
        pair = pairs[node.outputs[0]]
        tolerance = 1e-6 * (pair.high - pair.low)
        if pair.low < low - tolerance or pair.high > high + tolerance:
            continue
        tail = node.outputs[0]
        name = tail.name
        pairs[output] = pairs.pop(tail)
        tail.replace_all_uses_with(output, replace_graph_outputs=True)
        node.graph.remove(node, safe=True)  # type: ignore[union-attr]  # the node is in a graph
        output.name = name


def clip_bounds(node: ir.Node) -> tuple[float, float]:
    """The bounds of a Relu or of a Clip with constant bounds."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    low, high = ((constant(node.inputs[i]) if len(node.inputs) > i else None) for i in (1, 2))
    return float("-inf") if low is None else float(low), float("inf") if high is None else float(high)
