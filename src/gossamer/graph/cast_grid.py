"""Reading back weights on a grid that `weight_forms.cast_weight` put into a graph: integers times a scale, in nodes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from gossamer.graph.edit import constant
from gossamer.graph.packed_bits import integers_of

STORED_TYPES = tuple(ir.DataType[name] for name in ("INT4", "UINT4", "INT8", "UINT8", "INT16", "UINT16"))
AROUND_PLANES = ("Reshape", "Slice", "ReduceSum", "Mul", "Cast", "BitwiseAnd")


class CastGrid(NamedTuple):
    """A Mul of integers and their scales.

    Attributes:
        value: the initializer that holds the integers, or their bit planes (see `packed_bits`).
        integers: int32, in the shape in which they are multiplied.
        zero_point: what is taken from them first; None for nothing.
        scale: shaped to be broadcast against the integers.
        plane_bits: of integers in planes; 0 for those of a type of their own.
    """

    value: ir.Value
    integers: np.ndarray
    zero_point: ir.Value | None
    scale: ir.Value
    plane_bits: int


def cast_grid(node: ir.Node) -> CastGrid | None:
    """What a node multiplies, if it is stored integers and their scales."""
    if node.op_type != "Mul" or node.domain != "" or len(node.inputs) != 2:
        return None
    value, scale = node.inputs
    real = constant(scale)
    if value is None or scale is None or real is None or scale.dtype != ir.DataType.FLOAT:
        return None
    zero_point = None
    maker = value.producer()
    if maker is not None and maker.op_type == "Sub":
        zero_point = _cast_constant(maker.inputs[1])
        value = maker.inputs[0]
        if zero_point is None or value is None:
            return None
    stored = _cast_constant(value)
    if stored is not None:
        found = stored, np.asarray(constant(stored)).astype(np.int32), 0
    else:
        in_planes = _planes(value)
        if in_planes is None:
            return None
        found = in_planes
    if real.ndim not in (0, found[1].ndim):
        return None
    return CastGrid(found[0], found[1], zero_point, scale, found[2])


def _cast_constant(value: ir.Value | None) -> ir.Value | None:
    """The initializer of integers behind a Cast."""
    cast = None if value is None else value.producer()
    source = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
    if source is None or constant(source) is None or source.dtype not in STORED_TYPES:
        return None
    return source


def _planes(value: ir.Value | None) -> tuple[ir.Value, np.ndarray, int] | None:
    """The planes that a Reshape joined, the integers in them, and how many bits those have."""
    last = None if value is None else value.producer()
    shape = constant(last.inputs[1]) if last is not None and last.op_type == "Reshape" else None
    node, signed = last, False
    while node is not None and node.op_type in AROUND_PLANES:
        if node.op_type == "Mul":
            factors = constant(node.inputs[1])
            signed = factors is not None and bool(np.any(factors < 0))
        source = node.inputs[0]
        planes = constant(source)
        if source is not None and planes is not None:
            if shape is None or node.op_type != "BitwiseAnd" or planes.ndim != 3:
                return None
            return source, integers_of(planes, signed, tuple(int(size) for size in shape)), planes.shape[0]
        node = None if source is None else source.producer()
    return None
