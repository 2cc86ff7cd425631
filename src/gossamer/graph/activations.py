"""Activation functions behind a layer, as nodes."""

from __future__ import annotations

import onnx_ir as ir

ACTIVATIONS = ("Relu", "LeakyRelu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Elu", "Gelu", "Swish")


def activation(value: ir.Value) -> tuple[ir.Node, ...]:
    """The nodes behind a tensor that work on each number of it by itself: f(y), or y * f(y)."""
    chain: tuple[ir.Node, ...] = ()
    while not value.is_graph_output() and len(readers := value.consumers()) in (1, 2):
        first = next((node for node in readers if _is_activation(node, value)), None)
        if first is None:
            break
        link = (first,) if len(readers) == 1 else _gate(value, first, next(node for node in readers if node != first))
        if not link:
            break
        chain = (*chain, *link)
        value = chain[-1].outputs[0]
    return chain


def _is_activation(node: ir.Node, value: ir.Value) -> bool:
    return node.op_type in ACTIVATIONS and node.domain == "" and node.inputs[0] is value


def _gate(value: ir.Value, first: ir.Node, other: ir.Node) -> tuple[ir.Node, ...]:
    """The two nodes of y * f(y), or none if they are something else."""
    inner = first.outputs[0]
    product = other.op_type == "Mul" and set(other.inputs) == {value, inner}
    return (first, other) if product and len(inner.uses()) == 1 and not inner.is_graph_output() else ()
