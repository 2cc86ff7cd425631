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

from gossamer.arith.affine import (
    LARGEST_SCALE,
    SMALLEST_SCALE,
    affine_parameters,
    dequantize,
    levels_of,
    quantize,
    quantize_bias,
    weight_scales,
)
from gossamer.arith.clipping import Estimator, clip_range, needs_histogram
from gossamer.arith.rounding import keep_sums
from gossamer.errors import CandidateError, OptionError
from gossamer.graph.edit import add_initializer, constant, drop_unused, take_over
from gossamer.graph.layers import Layer, bias_array, check_finite
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
SMALL_FILTER = 49  # weights; the errors of larger filters hardly add up, and measured no gain
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
        rounding: each weight to its nearest integer, or in small filters so that the sum of the weights stays.
        operators: which operators run in integers.
    """

    activation: Literal["uint8", "int8"] = "uint8"
    symmetric: bool = False
    granularity: Literal["channel", "tensor"] = "channel"
    ranges: Estimator = "minmax"
    rounding: Literal["nearest", "sums"] = "nearest"
    operators: tuple[str, ...] = OPERATORS


def requires(model: Model, config: Config, scope: Scope) -> None:
    """Operators are known; a node asked for by name can be quantized.

    Raises:
        OptionError: names the operator or the node, and why.
    """
    unknown = set(config.operators) - set(OPERATORS)
    if unknown:
        raise OptionError(f"quantize_static: operators {sorted(unknown)}; allowed are {', '.join(OPERATORS)}")
    left = place(model.ir.graph, config.operators, lambda node: node.name in scope.only).left
    for node in model.ir.graph:
        reason = left.get(node.name or "", "")
        if node.op_type not in config.operators:
            reason = f"{node.op_type} is not among the operators {', '.join(config.operators)}"
        if node.name in scope.only and reason:
            raise OptionError(
                f"quantize_static cannot quantize node {node.name!r}: {reason}; leave it out of the scope"
            )


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """Insert the pairs. Nothing to quantize gives the model back unchanged.

    Raises:
        ModelError: a weight holds NaN or infinity.
        DataError, CandidateError: see `measuring.ranges.observe`.
    """
    clone = model.clone()
    graph = clone.ir.graph
    layout = place(graph, config.operators, lambda node: in_scope(scope, node))
    notes = _left_notes(layout.left)
    if not layout.layers or evidence is None:
        return Result(model, False, (*notes, "quantize_static: no layer can run in integers"))
    for layer in layout.layers:
        check_finite(layer.node, layer.weight, layer.bias)
    pairs = _make_pairs(graph, layout, _ranges(model, layout, config, evidence), config)
    for layer in layout.layers:
        _store_weight(graph, layer, pairs[layer.x], config)
    for output, end in layout.ends.items():
        if _says_the_same(end, pairs[end.outputs[0]]):
            pairs[output] = pairs.pop(end.outputs[0])
            take_over(end, output)
    for layer in layout.layers:
        _keep_from_becoming_gemm(layer.node)
    for value, pair in pairs.items():
        in_integers = value.producer() in layout.integer
        insert_pair(graph, value, pair, None if in_integers else layout.integer)
    drop_unused(clone.ir)
    return Result(replace(clone, reference=model.reference or model), True, notes)


def ensures(before: Model, result: Result, config: Config) -> None:
    """Every stored weight has the promised type.

    Raises:
        CandidateError: names a layer that is still in float.
    """
    known = {node.name for node in before.ir.graph}
    for node in result.model.ir.graph:
        array = constant(node.inputs[0]) if node.op_type == "DequantizeLinear" and node.name not in known else None
        if array is not None and array.dtype not in (np.int8, np.int32):
            raise CandidateError(f"{node.name}: stored as {array.dtype}, promised int8 or int32")


def _left_notes(left: dict[str, str]) -> tuple[str, ...]:
    """One line a reason, naming the nodes; of many only the first two."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left.items():
        by_reason.setdefault(reason, []).append(name)
    return tuple(f"quantize_static left {_listed(names)} in float: {reason}" for reason, names in by_reason.items())


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} nodes, {names[0]} and {names[1]} among them,"


def _ranges(model: Model, layout: Placement, config: Config, evidence: Evidence) -> dict[str, tuple[float, float]]:
    """The range of every activation that gets a pair of its own, by name."""
    names = [value.name or "" for value in layout.own]
    observed = evidence.ranges(model, names, needs_histogram(config.ranges))
    levels = levels_of(config.activation)
    return {name: clip_range(observed[name], config.ranges, levels, config.symmetric) for name in names}


def _make_pairs(
    graph: ir.Graph, layout: Placement, ranges: dict[str, tuple[float, float]], config: Config
) -> dict[ir.Value, Pair]:
    """Scale and zero point of every quantized activation; followers share those of their source."""
    pairs: dict[ir.Value, Pair] = {}
    for value in layout.own:
        scale, zero_point = affine_parameters(*ranges[value.name or ""], config.activation, config.symmetric)
        pairs[value] = Pair(
            add_initializer(graph, f"{value.name}_scale", scale),
            add_initializer(graph, f"{value.name}_zero_point", zero_point),
        )
    for value in layout.follows:
        source = value
        while source in layout.follows:
            source = layout.follows[source]
        pairs[value] = pairs[source]
    return pairs


def _store_weight(graph: ir.Graph, layer: Layer, pair: Pair, config: Config) -> None:
    """Replace a layer's weight by int8 and its bias by int32, each behind a DequantizeLinear."""
    node, w, bias_O = layer.node, np.asarray(constant(layer.weight)), bias_array(layer)
    axis = layer.channel_axis if config.granularity == "channel" else None
    input_scale = np.asarray(constant(pair.scale))
    scale = _scale_with_room(w, axis, bias_O, input_scale)
    integers = quantize(w, scale, np.zeros(scale.shape, np.int8), axis)
    if config.rounding == "sums" and w.size <= SMALL_FILTER * layer.channels:
        integers = _with_sums(integers, w, scale, layer.channel_axis)
    node.replace_input_with(1, dequantized(node, layer.weight.name or "weight", integers, scale, axis))
    if layer.bias is not None:
        bias_scale = np.asarray(input_scale * scale, np.float32)
        name = f"{layer.bias.name}/{node.name}"  # scaled by this node's input, so it is this node's own
        bias_axis = None if axis is None else 0
        node.replace_input_with(2, dequantized(node, name, quantize_bias(bias_O, bias_scale), bias_scale, bias_axis))


def _with_sums(integers: np.ndarray, w: np.ndarray, scale: np.ndarray, axis: int) -> np.ndarray:
    """The integers with each output channel's sum kept."""
    by_channel = np.moveaxis(w, axis, 0)
    real_OK = by_channel.reshape(len(by_channel), -1).astype(np.float64) / scale.reshape(-1, 1)
    kept_OK = keep_sums(np.moveaxis(integers, axis, 0).reshape(real_OK.shape), real_OK)
    return np.moveaxis(kept_OK.reshape(by_channel.shape), 0, axis)


def _scale_with_room(w: np.ndarray, axis: int | None, bias_O: np.ndarray, input_scale: np.ndarray) -> np.ndarray:
    """Weight scales, float32, widened where the bias in steps of input scale * weight scale would overflow int32.

    Where all weights are zero any scale serves them, so the bias gets the finest.
    """
    magnitude = np.abs(bias_O.astype(np.float64))
    if axis is None:
        magnitude = magnitude.max(initial=0)
    dead = ~np.any(w, axis=tuple(index for index in range(w.ndim) if index != axis))
    scale = np.where(dead & (magnitude > 0), 0, weight_scales(w, axis))
    least = np.maximum(magnitude / BIAS_LIMIT, SMALLEST_SCALE) / float(input_scale)
    return np.asarray(np.clip(np.maximum(scale, least), SMALLEST_SCALE, LARGEST_SCALE), np.float32)


def _keep_from_becoming_gemm(node: ir.Node) -> None:
    """Write the Add of a constant behind a MatMul as Sum of the same two inputs.

    onnxruntime (1.31) makes MatMul and Add one Gemm before it looks for quantizers, and then, unless the sum is
    quantized as well, leaves that Gemm in float: the 36 products of a 6-layer, 384-wide encoder take 49 ms instead of
    15 (33 in float). It knows no such rewrite of Sum.
    """
    readers = node.outputs[0].consumers()
    if node.op_type != "MatMul" or len(readers) != 1:
        return
    add = readers[0]
    if add.domain == "" and add.op_type == "Add" and any(constant(value) is not None for value in add.inputs):
        add.op_type = "Sum"


def _says_the_same(end: ir.Node, pair: Pair) -> bool:
    """Whether a pair cannot say anything beyond a Relu's or Clip's bounds, save for the rounding of the bounds."""
    low, high = clip_bounds(end)
    scale, zero_point = np.asarray(constant(pair.scale)), np.asarray(constant(pair.zero_point))
    limits = np.iinfo(zero_point.dtype)
    ends = dequantize(np.array([limits.min, limits.max], zero_point.dtype), scale, zero_point)
    half_step = 0.5001 * float(scale)
    return bool(ends[0] >= low - half_step and ends[1] <= high + half_step)


def clip_bounds(node: ir.Node) -> tuple[float, float]:
    """The bounds of a Relu or of a Clip with constant bounds."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    low, high = ((constant(node.inputs[i]) if len(node.inputs) > i else None) for i in (1, 2))
    return float("-inf") if low is None else float(low), float("inf") if high is None else float(high)
