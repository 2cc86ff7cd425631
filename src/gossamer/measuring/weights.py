"""Weights: which constants a node computes with, which of them are parameters, and whether they can shrink."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from gossamer.graph.layers import is_depthwise, is_narrow_stem, layer_of
from gossamer.measuring.macs import WEIGHT_INPUT

STANDARD_DOMAINS = ("", "ai.onnx")
FEW = 65_536  # parameters, under which an operator without integer kernel is not worth a word
INTEGERS = frozenset({"INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2"})
# inputs that hold no weights, by operator: scales, zero points, running statistics
OTHER_INPUTS = {
    "BatchNormalization": (3, 4),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
}
WIDE_BIAS = {"DequantizeLinear": 0, "QLinearConv": 8}  # where int32 numbers are weights too


def is_parameter(value: ir.Value) -> bool:
    """Whether an initializer is a weight: not a scale, a running mean, a shape, an index or a lone number."""
    tensor = value.const_value
    if tensor is None or not len(tensor.shape):
        return False
    uses = [use for use in value.uses() if use.idx not in OTHER_INPUTS.get(use.node.op_type, ())]
    if tensor.dtype.is_floating_point() or tensor.dtype.name in INTEGERS:
        return bool(uses)
    return any(WIDE_BIAS.get(use.node.op_type) == use.idx for use in uses)


def constants_of(value: ir.Value | None) -> list[ir.Value] | None:
    """The initializers a tensor is computed from, if from nothing else; None if it depends on an input."""
    if value is None:
        return []
    if value.const_value is not None and value.is_initializer():
        return [value]
    node = value.producer()
    if node is None or (not node.inputs and node.op_type != "Constant"):
        return None
    found: list[ir.Value] = []
    for source in node.inputs:
        constants = constants_of(source)
        if constants is None:
            return None
        found += [constant for constant in constants if constant not in found]
    return found


def judge(node: ir.Node, weights: Sequence[ir.Value]) -> tuple[bool, str]:
    """Whether a node's weights can be made smaller, and why not or what to expect."""
    if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
        return False, f"{node.op_type} subgraph: left intact inside"
    if node.domain not in STANDARD_DOMAINS:
        return False, f"custom domain {node.domain}: kept as it is"
    if not weights:
        return False, "no weights" if node.op_type in WEIGHT_INPUT else ""
    types = {value.const_value.dtype for value in weights if value.const_value is not None}
    if any(dtype.name in INTEGERS for dtype in types):
        return False, "already integer"
    if ir.DataType.FLOAT not in types:
        return False, f"already {min(dtype.name for dtype in types).lower()}"
    if is_narrow_stem(node):
        channels = weights[0].const_value.shape[1] if weights[0].const_value is not None else "few"
        return False, f"narrow stem: {channels} input channel{'s' if channels != 1 else ''}"
    layer = layer_of(node)
    if isinstance(layer, str):
        few = sum(elements(value) for value in weights) < FEW and node.op_type not in WEIGHT_INPUT
        return (False, "too few weights to matter") if few else (True, f"float16 only: {layer}")
    tied = _tied_to(node, weights)
    if tied:
        return True, f"weights tied to {tied}"
    return True, "depthwise" if is_depthwise(node) else ""


def _tied_to(node: ir.Node, weights: Sequence[ir.Value]) -> str:
    """The name of the first other layer that reads one of the same weights, or nothing."""
    for weight in weights:
        for reader in weight.consumers():
            if reader is not node and reader.op_type in WEIGHT_INPUT and weight.const_value is not None:
                return reader.name or reader.op_type
    return ""


def elements(value: ir.Value) -> int:
    """Numbers in an initializer."""
    return int(value.const_value.size) if value.const_value is not None else 0
