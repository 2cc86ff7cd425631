"""Weights on a grid in a graph: integers and scales as initializers, and the nodes that make floats or products of it.

A grid's arrays have the weight's axes, or, in groups, one more: the axis of input channels is split in two. Zero points
are stored only where one is not zero. Equal initializers made for a tied weight are found by name and shared.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gossamer.arith.weight_grid import Grid
from gossamer.graph.edit import add_node, constant, graph_of, shared_initializer, take_over
from gossamer.graph.layers import Layer, bias_array

BLOCKS = (16, 32, 64, 128, 256)  # what MatMulNBits takes
FLOAT = ir.DataType.FLOAT
TO_FLOAT = {"to": int(FLOAT)}


def cast_weight(before: ir.Node, name: str, grid: Grid, shape: tuple[int, ...]) -> ir.Value:
    """Cast and Mul of constants in front of a node, which onnxruntime folds when it opens the file."""
    parts = _initializers(before, name, grid, grid)
    value = _arithmetic(before, f"{name}_dequantized", parts)
    return value if grid.integers.shape == shape else _reshape(before, name, value, shape)


def dequantized_weight(
    before: ir.Node, name: str, grid: Grid, shape: tuple[int, ...], channel_axis: int, k_axis: int
) -> ir.Value:
    """DequantizeLinear in front of a node, with blocks (opset 21) if the grid has groups."""
    attributes: dict[str, int] = {}
    if grid.integers.ndim > len(shape):
        attributes = {"axis": k_axis, "block_size": grid.integers.shape[k_axis + 1]}
        scale, zero_point = (np.squeeze(part, k_axis + 1) for part in (grid.scale, grid.zero_point))
    elif grid.scale.size > 1:
        attributes = {"axis": channel_axis}
        scale, zero_point = grid.scale.reshape(-1), grid.zero_point.reshape(-1)
    else:
        scale, zero_point = grid.scale.reshape(()), grid.zero_point.reshape(())
    stored = Grid(grid.integers.reshape(shape), scale, zero_point, grid.bits)
    parts = _initializers(before, name, grid, stored)
    return add_node(before, "DequantizeLinear", parts, f"{name}_dequantized", FLOAT, ir.Shape(shape), attributes)


def look_up(gather: ir.Node, name: str, grid: Grid) -> None:
    """Rows of a table of 8 bit integers, with their scales and zero points; the arithmetic is done on what was found.

    The rank of the indices must be known.
    """
    rows, base = gather.inputs[1], gather.outputs[0].name or "output"
    parts = _initializers(gather, name, grid, grid)
    shared = grid.scale.shape[0] != grid.integers.shape[0]  # one scale for the table
    looked_up = [
        part
        if shared and index
        else add_node(gather, "Gather", [part, rows], f"{base}_{part.name}", part.dtype or FLOAT, None)
        for index, part in enumerate(parts)
    ]
    value = _arithmetic(gather, base, looked_up)
    if grid.integers.ndim > 2 and rows is not None and rows.shape is not None:
        as_found = (0,) * len(rows.shape)  # Reshape's sign for "as in the input"
        value = _reshape(gather, base, value, (*as_found, int(np.prod(grid.integers.shape[1:]))))
    value.shape = gather.outputs[0].shape
    take_over(gather, value)


def block_product(layer: Layer, name: str, grid: Grid, block: int) -> None:
    """com.microsoft.MatMulNBits in the place of a MatMul or Gemm.

    Its weights are unsigned bytes (N, blocks, block * bits / 8), two of 4 bits in a byte, the first one low; scales and
    zero points are (N, blocks). Those of a whole channel or tensor are repeated.
    """
    graph, node, outputs_first = graph_of(layer.node), layer.node, layer.channel_axis == 0
    w_shape = np.asarray(constant(layer.weight)).shape
    n, k = w_shape if outputs_first else w_shape[::-1]
    blocks = -(-k // block)
    half = 1 << (grid.bits - 1)

    def per_block(part: np.ndarray) -> np.ndarray:
        flat = np.squeeze(part, 2 if outputs_first else 1) if part.ndim > 2 else part
        return np.ascontiguousarray(np.broadcast_to(flat if outputs_first else flat.T, (n, blocks)))

    def stored(values_NX: np.ndarray) -> np.ndarray:
        return _packed((values_NX.astype(np.int16) + half).astype(np.uint8), grid.bits)

    w = grid.integers.reshape(w_shape)
    w_NK = np.pad(w if outputs_first else w.T, ((0, 0), (0, blocks * block - k)))
    inputs: list[ir.Value | None] = [
        layer.x,
        shared_initializer(graph, f"{name}_quantized", stored(w_NK).reshape(n, blocks, -1)),
        shared_initializer(graph, f"{name}_scale", per_block(grid.scale)),
    ]
    if grid.zero_point.any():
        inputs.append(shared_initializer(graph, f"{name}_zero_point", stored(per_block(grid.zero_point))))
    attributes = {"K": k, "N": n, "bits": grid.bits, "block_size": block, "accuracy_level": 4}
    base, shape = node.outputs[0].name or "output", node.outputs[0].shape
    result = add_node(node, "MatMulNBits", inputs, f"{base}_product", FLOAT, shape, attributes, "com.microsoft")
    if layer.bias is not None:
        bias = shared_initializer(graph, f"{layer.bias.name}_row", bias_array(layer))
        result = add_node(node, "Add", [result, bias], f"{base}_biased", FLOAT, shape)
    graph.opset_imports.setdefault("com.microsoft", 1)
    take_over(node, result)


def _initializers(before: ir.Node, name: str, grid: Grid, arrays: Grid) -> list[ir.Value]:
    """Integers, scale and, if one is not zero, zero points."""
    graph = graph_of(before)
    dtype = (ir.DataType.INT8 if grid.bits == 8 else ir.DataType.INT4).numpy()
    values = [
        shared_initializer(graph, f"{name}_quantized", arrays.integers.astype(dtype)),
        shared_initializer(graph, f"{name}_scale", arrays.scale),
    ]
    if grid.zero_point.any():
        values.append(shared_initializer(graph, f"{name}_zero_point", arrays.zero_point.astype(dtype)))
    return values


def _arithmetic(before: ir.Node, base: str, parts: list[ir.Value]) -> ir.Value:
    """(integers - zero point) * scale in float."""
    value = add_node(before, "Cast", [parts[0]], f"{base}_cast", FLOAT, parts[0].shape, TO_FLOAT)
    if len(parts) > 2:
        zero = add_node(before, "Cast", [parts[2]], f"{base}_zero", FLOAT, parts[2].shape, TO_FLOAT)
        value = add_node(before, "Sub", [value, zero], f"{base}_centred", FLOAT, value.shape)
    return add_node(before, "Mul", [value, parts[1]], f"{base}_scaled", FLOAT, value.shape)


def _reshape(before: ir.Node, base: str, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    wanted = shared_initializer(graph_of(before), f"{base}_shape", np.array(shape, np.int64))
    known = None if 0 in shape else ir.Shape(shape)
    return add_node(before, "Reshape", [value, wanted], f"{base}_whole", FLOAT, known)


def _packed(values_NX: np.ndarray, bits: int) -> np.ndarray:
    """Bytes of the rows; two values of 4 bits in a byte, and a row of odd length is filled up with a zero."""
    if bits == 8:
        return values_NX
    even = np.pad(values_NX, ((0, 0), (0, values_NX.shape[1] % 2)))
    return np.asarray(even[:, ::2] | even[:, 1::2] << 4).astype(np.uint8)
