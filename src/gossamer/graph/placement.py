"""Where quantizers go, so that the runtime really computes in integers.

A node runs in integers only if a QuantizeLinear/DequantizeLinear pair stands on every activation it reads and on what
it writes. Measured on onnxruntime 1.31: one missing pair behind a convolution that feeds a residual Add leaves that
convolution in float; a Relu or Clip in front of a pair disappears if the pair's range says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import onnx_ir as ir

from gossamer.graph.edit import constant, is_float
from gossamer.graph.layers import Layer, layer_of
from gossamer.graph.qdq import dequantizer, pair_of

# These only move or select values, so their output keeps the input's integers.
MOVERS = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "Split"})
LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
PRODUCTS = frozenset({"Gemm", "MatMul"})
ALREADY = "it is quantized already"
NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Placement:
    """The result of `place`.

    Attributes:
        layers: nodes with a constant weight to be stored in integers.
        integer: all nodes that compute in integers, and the movers between them.
        own: activations that get a pair with a range of their own, in graph order.
        follows: activations behind a mover -> the activation whose scale they keep.
        ends: output of an integer node -> its Relu or Clip, a candidate for being swallowed by the pair.
        left: node name -> why it stays in float.
    """

    layers: tuple[Layer, ...]
    integer: frozenset[ir.Node]
    own: tuple[ir.Value, ...]
    follows: dict[ir.Value, ir.Value]
    ends: dict[ir.Value, ir.Node]
    left: dict[str, str]


def place(
    graph: ir.Graph,
    operators: Collection[str],
    wanted: Callable[[ir.Node], bool],
    barred: Mapping[str, str] = NONE,
    free_float: Collection[str] = PRODUCTS,
) -> Placement:
    """Decide the pairs for all nodes of these operators that `wanted` accepts.

    A graph may hold pairs already: nodes between them are left alone, and what they give counts as integers.

    Args:
        barred: activations that no pair may stand on, and why.
        free_float: operators that compute in integers and give float out for free, so that what they give to
            nodes in float needs no pair.
    """
    chosen: dict[ir.Node, None] = {}  # an ordered set, as is the next
    quantized: dict[ir.Value, None] = {}
    layers: list[Layer] = []
    left: dict[str, str] = {}
    for node in graph:
        if node.op_type not in operators or not wanted(node):
            continue
        found = _barred(node, barred, free_float) or _integer_form(node)
        if isinstance(found, str):
            left[node.name or ""] = found
            continue
        chosen[node] = None
        if found is not None:
            layers.append(found)
    for node in _outside_regions(chosen):
        left[node.name or ""] = "an input of it is computed in float, so integers would only add rounding"
        del chosen[node]
    ends: dict[ir.Value, ir.Node] = {}
    for node in chosen:
        quantized.update(dict.fromkeys(_activations(node)))
        output = node.outputs[0]
        end = _activation_behind(output)
        tail = output if end is None else end.outputs[0]
        if tail.name not in barred and not _rounded(tail) and _output_wanted(node, tail, chosen, free_float):
            quantized[tail] = None
            if end is not None:
                ends[output] = end
    follows = _through_movers(quantized)
    movers = {value.producer() for value in follows}
    order = {value: index for index, value in enumerate(_all_values(graph))}
    own = sorted((value for value in quantized if value not in follows), key=order.__getitem__)
    integer = frozenset(node for node in (*chosen, *movers) if node is not None)
    return Placement(tuple(layers), integer, tuple(own), follows, ends, left)


def _outside_regions(chosen: Collection[ir.Node]) -> list[ir.Node]:
    """The element-wise nodes that read something computed in float, the last to find out first.

    The sums and products inside a layer normalization or an activation span ranges that no 8 bits can hold; between
    layers that are integers already, as in a residual sum, nothing is lost.
    """
    inside = set(chosen)
    outside: list[ir.Node] = []
    while True:
        leaving = [
            node
            for node in chosen
            if node in inside
            and node.op_type not in LAYERS
            and not all(_made_in(v, inside) for v in _activations(node))
        ]
        if not leaving:
            return outside
        inside.difference_update(leaving)
        outside.extend(leaving)


def _made_in(value: ir.Value, nodes: Collection[ir.Node]) -> bool:
    """Whether one of these nodes made a value, with only movers and bounds between."""
    producer = value.producer()
    if producer is None or producer in nodes or pair_of(value) is not None:
        return producer is not None
    source = _moved_from(value)
    if source is None and producer.domain == "" and producer.op_type in ("Relu", "Clip"):
        source = producer.inputs[0]
    return source is not None and _made_in(source, nodes)


def _barred(node: ir.Node, barred: Mapping[str, str], free_float: Collection[str]) -> str:
    """Why a node cannot have the pairs it needs, or ""; who gives float for free needs none on what it gives."""
    needed = _activations(node)
    if node.op_type not in free_float:
        end = _activation_behind(node.outputs[0])
        needed = [*needed, node.outputs[0] if end is None else end.outputs[0]]
    return next((barred[value.name or ""] for value in needed if value.name in barred), "")


def _in_integers(node: ir.Node) -> bool:
    """Whether an earlier quantization chose this node."""
    if node.op_type in LAYERS:
        return all(dequantizer(node, index) is not None for index in (0, 1))
    readers = node.outputs[0].consumers()
    given = [*_activations(node)] if any(reader.op_type == "QuantizeLinear" for reader in readers) else []
    return bool(given) and all(pair_of(value) is not None for value in given)


def _rounded(value: ir.Value) -> bool:
    """Whether all that a value is used for is being quantized."""
    readers = value.consumers()
    return bool(readers) and not value.is_graph_output() and all(r.op_type == "QuantizeLinear" for r in readers)


def _integer_form(node: ir.Node) -> Layer | str | None:
    """The layer that a node is, None if it can run in integers without a weight, or why it cannot."""
    if node.domain != "":
        return f"{node.domain}.{node.op_type} is a custom operator"
    if _in_integers(node):
        return ALREADY
    activations = _activations(node)
    if node.op_type in LAYERS and not (node.op_type == "MatMul" and len(activations) == 2):
        return layer_of(node)
    if len(activations) < len(node.inputs):
        return "one of its inputs is a constant"
    if node.op_type == "AveragePool" and "dilations" in node.attributes:
        return "its dilations have no integer form: onnxruntime refuses the whole graph"
    return None if all(is_float(value) for value in activations) else "its inputs are not known to be float32"


def _activations(node: ir.Node) -> list[ir.Value]:
    """The inputs that carry data, not constants."""
    return [value for value in node.inputs if value is not None and constant(value) is None]


def _activation_behind(output: ir.Value) -> ir.Node | None:
    """The Relu or Clip that alone reads this value, in the same graph."""
    consumers = output.consumers()
    if len(consumers) != 1 or output.is_graph_output():
        return None
    end = consumers[0]
    if end.domain != "" or end.op_type not in ("Relu", "Clip") or end.graph is not output.graph:
        return None
    return end if all(value is None or constant(value) is not None for value in end.inputs[1:]) else None


def _output_wanted(node: ir.Node, tail: ir.Value, chosen: Collection[ir.Node], free_float: Collection[str]) -> bool:
    """Most nodes need the pair to run in integers; those that give float for free only if an integer node reads it."""
    if node.op_type not in free_float:
        return True
    return any(_reaches_integer(consumer, chosen) for consumer in tail.consumers())


def _reaches_integer(node: ir.Node, chosen: Collection[ir.Node]) -> bool:
    """Whether a node, or one behind it with only movers between, computes in integers."""
    moved = [output for output in node.outputs if _moved_from(output) is not None]
    return node in chosen or any(_reaches_integer(reader, chosen) for output in moved for reader in output.consumers())


def _through_movers(quantized: dict[ir.Value, None]) -> dict[ir.Value, ir.Value]:
    """Extend the set through movers: a value behind movers keeps the scale of the value in front, if that has one."""
    follows: dict[ir.Value, ir.Value] = {}
    for value in list(quantized):
        chain = [value]
        while (source := _moved_from(chain[-1])) is not None:
            chain.append(source)
            if source in quantized:
                for behind, front in pairwise(chain):
                    follows[behind] = front
                    quantized[behind] = None
                break
    return follows


def _moved_from(value: ir.Value) -> ir.Value | None:
    """What a mover made this value from, or None if no mover made it."""
    mover = value.producer()
    if mover is None or mover.domain != "" or mover.op_type not in MOVERS:
        return None
    return mover.inputs[0] if value.index() == 0 or mover.op_type == "Split" else None  # MaxPool gives indices too


def _all_values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(output for node in graph for output in node.outputs)]
