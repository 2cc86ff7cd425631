"""Integers of any number of bits, stored in bytes without a gap, and the nodes that take them apart again.

ONNX has types of 2 (opset 25), 4 (opset 21), 8 and 16 bits. Anything else is stored in bit planes: of every 8 integers
one byte holds the lowest bits, one the next, and so on. BitwiseAnd, Cast, Mul and ReduceSum (opset 18) put them
together; onnxruntime does that once, when it opens the file, so that it costs no time later.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gossamer.graph.edit import add_node, graph_of, shared_initializer

OPSET = 18  # has BitwiseAnd, and ReduceSum with its axes as an input
FLOAT = ir.DataType.FLOAT
STEP = "bits"  # what nodes in between are called
_MASKS = 1 << np.arange(8)


def planes_of(values: np.ndarray, bits: int) -> np.ndarray:
    """Integers (..., N) as bytes (..., bits, ceil(N / 8), 1), uint8.

    Args:
        values: unsigned below 2 ** bits, or signed in two's complement of as many.
    """
    padded = np.pad(values.astype(np.int64), [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % 8)])
    eights = padded.reshape(*values.shape[:-1], 1, -1, 8)
    planes = eights >> np.arange(bits).reshape(bits, 1, 1) & 1
    return np.asarray((planes * _MASKS).sum(axis=-1, keepdims=True)).astype(np.uint8)


def integers_of(planes: np.ndarray, signed: bool, shape: tuple[int, ...]) -> np.ndarray:
    """What `planes_of` put into planes (bits, bytes, 1), int32."""
    bits = planes.shape[-3]
    worth = 1 << np.arange(bits)
    worth[-1] *= -1 if signed else 1
    ones = np.unpackbits(planes.reshape(bits, -1), axis=-1, bitorder="little").astype(np.int32)
    return np.asarray((worth @ ones)[: int(np.prod(shape))].reshape(shape), np.int32)


def joined(before: ir.Node, planes: ir.Value, bits: int, signed: bool, rank: int = 0) -> ir.Value:
    """Nodes that make float32 integers (..., bytes, 8) of planes (..., bits, bytes, 1), with `rank` axes in front.

    Their names are short, as they are a good part of what a small weight takes.
    """
    graph = graph_of(before)
    worth = (1 << np.arange(bits)).astype(np.float32)
    if signed:
        worth[-1] *= -1
    table = (worth.reshape(bits, 1, 1) / _MASKS).astype(np.float32)
    sign = "int" if signed else "uint"
    masks = shared_initializer(graph, "bits_of_a_byte", _MASKS.astype(np.uint8))
    factors = shared_initializer(graph, f"worth_of_{sign}{bits}", table)
    axes = shared_initializer(graph, f"planes_at_{rank}", np.array([rank], np.int64))
    value = add_node(before, "BitwiseAnd", [planes, masks], STEP, ir.DataType.UINT8, None)
    value = add_node(before, "Cast", [value], STEP, FLOAT, None, {"to": int(FLOAT)})
    value = add_node(before, "Mul", [value, factors], STEP, FLOAT, None)
    return add_node(before, "ReduceSum", [value, axes], STEP, FLOAT, None, {"keepdims": 0})


def stored_integers(before: ir.Node, name: str, values: np.ndarray, bits: int, signed: bool) -> ir.Value:
    """Integers in bit planes as an initializer, and the nodes that make floats of the same shape of them."""
    graph = graph_of(before)
    planes = shared_initializer(graph, f"{name}_planes", planes_of(values.reshape(-1), bits))
    value = joined(before, planes, bits, signed)
    if values.size % 8:
        flat = shared_initializer(graph, "flat", np.array([-1], np.int64))
        value = add_node(before, "Reshape", [value, flat], STEP, FLOAT, None)
        bounds = [np.array([bound], np.int64) for bound in (0, values.size)]
        ends = [shared_initializer(graph, f"at_{bound[0]}", bound) for bound in bounds]
        value = add_node(before, "Slice", [value, *ends], STEP, FLOAT, None)
    shape = shared_initializer(graph, f"{name}_shape", np.array(values.shape, np.int64))
    return add_node(before, "Reshape", [value, shape], f"{name}_integers", FLOAT, ir.Shape(values.shape))
