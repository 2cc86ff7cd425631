"""Where quantizers go, so that the runtime really computes in integers.

A node runs in integers only if a QuantizeLinear/DequantizeLinear pair stands on every activation it reads and on what
it writes. Measured on onnxruntime 1.31: one missing pair behind a convolution that feeds a residual Add leaves that
convolution in float; a Relu or Clip in front of a pair disappears if the pair's range says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import onnx_ir as ir

from gossamer.graph.edit import constant, is_float
from gossamer.graph.layers import Layer, layer_of

# These only move or select values, so their output keeps the input's integers.
MOVERS = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "Split"})
LAYERS = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Placement:
    """The result of `place`.

    Attributes:
        layers: nodes with a constant weight to be stored in integers.
        own: activations that get a pair with a range of their own, in graph order.
        follows: activations behind a mover -> the activation whose scale they keep.
        ends: output of an integer node -> its Relu or Clip, a candidate for being swallowed by the pair.
        left: node name -> why it stays in float.
    """

    layers: tuple[Layer, ...]
    own: tuple[ir.Value, ...]
    follows: dict[ir.Value, ir.Value]
    ends: dict[ir.Value, ir.Node]
    left: dict[str, str]


def place(graph: ir.Graph, operators: Collection[str], wanted: Callable[[ir.Node], bool]) -> Placement:
    """Decide the pairs for all nodes of these operators that `wanted` accepts."""
    integer: list[ir.Node] = []
    layers: list[Layer] = []
    left: dict[str, str] = {}
    for node in graph:
        if node.op_type not in operators or not wanted(node):
            continue
        reason = _obstacle(node, layers)
        if reason:
            left[node.name or ""] = reason
        else:
            integer.append(node)
    chosen = set(integer)
    quantized: dict[ir.Value, None] = {}  # an ordered set
    ends: dict[ir.Value, ir.Node] = {}
    for node in integer:
        for value in _activations(node):
            quantized[value] = None
        output = node.outputs[0]
        end = _activation_behind(output)
        tail = end.outputs[0] if end is not None else output
        if _output_wanted(node, tail, chosen):
            quantized[tail] = None
            if end is not None:
                ends[output] = end
    follows = _through_movers(quantized)
    order = {value: index for index, value in enumerate(_all_values(graph))}
    own = sorted((value for value in quantized if value not in follows), key=order.__getitem__)
    return Placement(tuple(layers), tuple(own), follows, ends, left)


def _obstacle(node: ir.Node, layers: list[Layer]) -> str:
    """Why a node cannot run in integers, or "". Layers found are appended."""
    if node.op_type in LAYERS:
        if node.op_type == "MatMul" and all(constant(value) is None for value in node.inputs):
            return "" if all(is_float(value) for value in node.inputs) else "its inputs are not known to be float32"
        found = layer_of(node)
        if isinstance(found, str):
            return found
        layers.append(found)
        return ""
    if len(_activations(node)) != len([value for value in node.inputs if value is not None]):
        return "one of its inputs is a constant"
    return "" if all(is_float(value) for value in _activations(node)) else "its inputs are not known to be float32"


def _activations(node: ir.Node) -> list[ir.Value]:
    """The inputs that carry data, not constants."""
    return [value for value in node.inputs if value is not None and constant(value) is None]


def _activation_behind(output: ir.Value) -> ir.Node | None:
    """The Relu or Clip that alone reads this value."""
    consumers = output.consumers()
    if len(consumers) != 1 or output.is_graph_output() or consumers[0].op_type not in ("Relu", "Clip"):
        return None
    clip = consumers[0]
    return clip if all(value is None or constant(value) is not None for value in clip.inputs[1:]) else None


def _output_wanted(node: ir.Node, tail: ir.Value, chosen: set[ir.Node]) -> bool:
    """Convolutions and element-wise nodes need the pair to run in integers; matrix products give float for free."""
    if node.op_type not in ("Gemm", "MatMul"):
        return True
    return any(_reaches_integer(consumer, chosen) for consumer in tail.consumers())


def _reaches_integer(node: ir.Node, chosen: set[ir.Node]) -> bool:
    if node in chosen:
        return True
    return node.op_type in MOVERS and any(_reaches_integer(next_node, chosen) for next_node in node.outputs[0].consumers())


def _through_movers(quantized: dict[ir.Value, None]) -> dict[ir.Value, ir.Value]:
    """Extend the set through movers: a value behind movers keeps the scale of the value in front, if that has one."""
    follows: dict[ir.Value, ir.Value] = {}
    for value in list(quantized):
        chain = [value]
        producer = value.producer()
        while producer is not None and producer.op_type in MOVERS and len(producer.outputs) == 1:
            source = producer.inputs[0]
            if source is None:
                break
            chain.append(source)
            if source in quantized:
                break
            producer = source.producer()
        if len(chain) > 1 and chain[-1] in quantized:
            for behind, front in zip(chain[:-1], chain[1:], strict=True):
                follows[behind] = front
                quantized[behind] = None
    return follows


def _all_values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(output for node in graph for output in node.outputs)]
