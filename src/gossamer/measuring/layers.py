"""What a model is made of: a table of its layers."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import onnx_ir as ir

from gossamer.measuring.macs import node_macs
from gossamer.measuring.shapes import Shapes, static_shapes
from gossamer.measuring.weights import STANDARD_DOMAINS, constants_of, elements, is_parameter, judge
from gossamer.nouns.model import Model


class Layer(msgspec.Struct, frozen=True):
    """One node of the main graph.

    Attributes:
        input_shapes, output_shapes: None where unknown; weights are not among the inputs.
        parameters: elements of its weights (scales, running statistics and whole-number constants are none).
        macs: multiply-accumulates for one sample; None if unknown.
        weight_bytes, output_bytes: as stored; None if unknown.
        compressible: whether the weights can be made smaller.
        reason: why not, or what to expect; empty where there is nothing to say.
    """

    name: str
    op: str
    input_shapes: tuple[tuple[int, ...] | None, ...]
    output_shapes: tuple[tuple[int, ...] | None, ...]
    parameters: int
    macs: int | None
    weight_bytes: int
    output_bytes: int | None
    compressible: bool
    reason: str = ""


def layer_table(model: Model, bindings: Mapping[str, int] | None = None) -> list[Layer]:
    """One row a node of the main graph, for one sample; constants and their conversions belong to their reader."""
    return layers_of(model, static_shapes(model, bindings))


def layers_of(model: Model, shapes: Shapes) -> list[Layer]:
    """The same, from shapes already found."""
    return [_layer(node, shapes) for node in model.ir.graph if constants_of(node.outputs[0]) is None]


def _layer(node: ir.Node, shapes: Shapes) -> Layer:
    sources = [(value, constants_of(value)) for value in node.inputs if value is not None]
    stored = {constant: None for _, constants in sources for constant in constants or ()}  # an ordered set
    weights = [value for value in stored if is_parameter(value)]
    compressible, reason = judge(node, weights)
    outputs = [value.name for value in node.outputs if value.name]
    sizes = [shapes.bytes_of(name) for name in outputs]
    return Layer(
        name=node.name or "",
        op=node.op_type if node.domain in STANDARD_DOMAINS else f"{node.domain}.{node.op_type}",
        input_shapes=tuple(shapes.dims.get(value.name or "") for value, constants in sources if constants is None),
        output_shapes=tuple(shapes.dims.get(name) for name in outputs),
        parameters=sum(elements(value) for value in weights),
        macs=node_macs(node, shapes.dims),
        weight_bytes=sum(value.const_value.nbytes for value in stored if value.const_value is not None),
        output_bytes=None if None in sizes else sum(size or 0 for size in sizes),
        compressible=compressible,
        reason=reason,
    )
