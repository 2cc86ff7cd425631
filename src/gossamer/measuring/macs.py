"""Multiply-accumulates of one node, by its shapes. Padding counts, as it does in the kernels; additions do not."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import onnx_ir as ir

Dims = Mapping[str, tuple[int, ...]]  # tensor name -> shape

# which inputs are the data and the weights
CONVOLUTIONS = {
    "Conv": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearConv": (0, 3),
    "DeformConv": (0, 1),
    "FusedConv": (0, 1),
    "NhwcFusedConv": (0, 1),
    "ConvTranspose": (0, 1),
}
PRODUCTS = {
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearMatMul": (0, 3),
    "FusedMatMul": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "Gemm": (0, 1),
    "FusedGemm": (0, 1),
    "QGemm": (0, 3),
}
RECURRENT = {"LSTM": (0, 1), "GRU": (0, 1), "RNN": (0, 1)}
WEIGHT_INPUT = {op: places[1] for table in (CONVOLUTIONS, PRODUCTS, RECURRENT) for op, places in table.items()}


def node_macs(node: ir.Node, dims: Dims) -> int | None:
    """Multiply-accumulates of one call of a node; 0 if it does not multiply matrices, None if a shape is unknown."""
    try:
        if node.op_type in CONVOLUTIONS:
            return _convolution(node, dims)
        if node.op_type in PRODUCTS:
            return _product(node, dims)
        if node.op_type in RECURRENT:
            sequence = _dims(node, 0, dims)  # (time, batch, features), or batch first
            return sequence[0] * sequence[1] * (prod(_dims(node, 1, dims)) + prod(_dims(node, 2, dims)))
        if node.op_type == "Einsum":
            return _einsum(node, dims)
        if node.op_type == "MatMulNBits":
            rows = prod(_dims(node, 0, dims)[:-1])
            return rows * node.attributes["K"].as_int() * node.attributes["N"].as_int()
        if node.op_type == "Attention" and node.domain == "":
            return _attention(node, dims)
    except KeyError:
        return None
    return None if _hides_products(node) else 0


def _hides_products(node: ir.Node) -> bool:
    """Whether a subgraph multiplies matrices, a number of times that only running it tells."""
    graphs = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    return any(inner.op_type in WEIGHT_INPUT for graph in graphs for inner in graph.all_nodes())


def _dims(node: ir.Node, index: int, dims: Dims) -> tuple[int, ...]:
    """Shape of an input. Raises KeyError if it is unknown."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return dims[value.name or "" if value is not None else ""]


def _convolution(node: ir.Node, dims: Dims) -> int:
    data, weight = CONVOLUTIONS[node.op_type]
    w = _dims(node, weight, dims)
    if node.op_type == "ConvTranspose":  # w is (C, M/groups, k...): each input element meets all but its first axis
        return prod(_dims(node, data, dims)) * prod(w[1:])
    return prod(dims[node.outputs[0].name or ""]) * prod(w[1:])  # w is (M, C/groups, k...): one dot product an output


def _product(node: ir.Node, dims: Dims) -> int:
    data, _ = PRODUCTS[node.op_type]
    a = _dims(node, data, dims)
    transposed = node.attributes.get("transA")
    depth = a[-2] if transposed is not None and transposed.as_int() else a[-1]
    return prod(dims[node.outputs[0].name or ""]) * depth


def _einsum(node: ir.Node, dims: Dims) -> int | None:
    """Two operands without ellipsis: the product of all extents. More operands are contracted in an unknown order."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if len(terms) == 1:
        return 0
    if len(terms) > 2 or "." in equation:
        return None
    extents: dict[str, int] = {}
    for index, term in enumerate(terms):
        for letter, length in zip(term, _dims(node, index, dims), strict=True):
            extents[letter] = max(length, extents.get(letter, 1))
    return prod(extents.values())


def _attention(node: ir.Node, dims: Dims) -> int:
    """Scores and their weighted sum; (batch, heads, time, depth) or heads folded into the last axis."""
    keys = _dims(node, 1, dims)[-2]
    if len(node.inputs) > 4 and node.inputs[4] is not None:  # keys of earlier calls
        keys += _dims(node, 4, dims)[-2]
    return (prod(_dims(node, 0, dims)) + prod(dims[node.outputs[0].name or ""])) * keys
