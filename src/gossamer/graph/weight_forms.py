"""Weights on a grid in a graph: integers and scales as initializers, and the nodes that make floats or products of it.

A grid's arrays have the weight's axes, or, in groups, one more: the axis of input channels is split in two. Zero points
are stored only where one is not zero. Equal initializers made for a tied weight are found by name and shared.

Integers of 8, 16 and (opset 21) 4 bits have an ONNX type. Those between are stored in bit planes where nodes compute
with them in float anyway, see `packed_bits`; DequantizeLinear and MatMulNBits take them in the next wider type.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gossamer.arith.weight_grid import Grid
from gossamer.graph.edit import add_node, constant, graph_of, shared_initializer, take_over
from gossamer.graph.layers import Layer, bias_array
from gossamer.graph.packed_bits import joined, planes_of, stored_integers
from gossamer.graph.weight_layout import reshaped

BLOCKS = (16, 32, 64, 128, 256)  # what MatMulNBits takes
FOUR_BIT_OPSET = 21
PLANES_WORTH_BYTES = 800  # the nodes that join planes take about as many
FLOAT = ir.DataType.FLOAT
TO_FLOAT = {"to": int(FLOAT)}


def in_planes(size: int, bits: int, opset: int) -> bool:
    """Whether so many integers are stored in bit planes rather than in the next wider type."""
    return size * (wider(bits, opset) - bits) > 8 * PLANES_WORTH_BYTES


def wider(bits: int, opset: int) -> int:
    """Bits of the narrowest type that holds integers of `bits` and that the opset and the runtime know."""
    return next(width for width in (4, 8, 16) if width >= bits and (width > 4 or opset >= FOUR_BIT_OPSET))


def cast_weight(before: ir.Node, name: str, grid: Grid, shape: tuple[int, ...]) -> ir.Value:
    """Cast and Mul of constants in front of a node, which onnxruntime folds when it opens the file."""
    opset = graph_of(before).opset_imports.get("", 0)
    parts = _initializers(
        before, name, grid, grid, wider(grid.bits, opset), in_planes(grid.integers.size, grid.bits, opset)
    )
    value = _arithmetic(before, f"{name}_dequantized", parts)
    return value if grid.integers.shape == shape else reshaped(before, name, value, shape)


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
    parts = _initializers(before, name, grid, stored, wider(grid.bits, FOUR_BIT_OPSET))
    return add_node(before, "DequantizeLinear", parts, f"{name}_dequantized", FLOAT, ir.Shape(shape), attributes)


def look_up(gather: ir.Node, name: str, grid: Grid) -> None:
    """Rows of a table of integers, with their scales and zero points; the arithmetic is done on what was found.

    The rank of the indices must be known; a table of other than 8 bits needs columns that fill its bytes, and opset 18.
    """
    rows, base, width = gather.inputs[1], gather.outputs[0].name or "output", int(np.prod(grid.integers.shape[1:]))
    rank = 0 if rows is None or rows.shape is None else len(rows.shape)
    as_found = (0,) * rank  # Reshape's sign for "as in the input"
    if grid.bits == 8:
        stored = _initializers(gather, name, grid, grid, 8)
    else:
        planes = shared_initializer(
            graph_of(gather), f"{name}_planes", planes_of(grid.integers.reshape(-1, width), grid.bits)
        )
        stored = [planes, *_parameters(gather, name, grid, 8)]
    shared = grid.scale.shape[0] != grid.integers.shape[0]  # one scale for the table
    looked_up = [
        part
        if shared and index
        else add_node(gather, "Gather", [part, rows], f"{base}_{part.name}", part.dtype or FLOAT, None)
        for index, part in enumerate(stored)
    ]
    if grid.bits != 8:
        value = joined(gather, looked_up[0], grid.bits, True, rank)
        looked_up[0] = reshaped(gather, f"{base}_row", value, (*as_found, *grid.integers.shape[1:]))
    value = _arithmetic(gather, base, looked_up)
    if grid.integers.ndim > 2:
        value = reshaped(gather, base, value, (*as_found, width))
    value.shape = gather.outputs[0].shape
    take_over(gather, value)


def block_product(layer: Layer, name: str, grid: Grid, block: int) -> None:
    """com.microsoft.MatMulNBits in the place of a MatMul or Gemm.

    Its weights are unsigned bytes (N, blocks, block * bits / 8), several in a byte, the first one low; scales and zero
    points are (N, blocks). Those of a whole channel or tensor are repeated. Bits between 2, 4 and 8 are stored in the
    next wider ones.
    """
    graph, node, outputs_first = graph_of(layer.node), layer.node, layer.channel_axis == 0
    w_shape = np.asarray(constant(layer.weight)).shape
    n, k = w_shape if outputs_first else w_shape[::-1]
    blocks = -(-k // block)
    bits = product_bits(grid.bits)
    half = 1 << (bits - 1)

    def per_block(part: np.ndarray) -> np.ndarray:
        flat = np.squeeze(part, 2 if outputs_first else 1) if part.ndim > 2 else part
        return np.ascontiguousarray(np.broadcast_to(flat if outputs_first else flat.T, (n, blocks)))

    def stored(values_NX: np.ndarray) -> np.ndarray:
        return _packed((values_NX.astype(np.int16) + half).astype(np.uint8), bits)

    w = grid.integers.reshape(w_shape)
    w_NK = np.pad(w if outputs_first else w.T, ((0, 0), (0, blocks * block - k)))
    inputs: list[ir.Value | None] = [
        layer.x,
        shared_initializer(graph, f"{name}_quantized", stored(w_NK).reshape(n, blocks, -1)),
        shared_initializer(graph, f"{name}_scale", per_block(grid.scale)),
    ]
    if grid.zero_point.any():
        inputs.append(shared_initializer(graph, f"{name}_zero_point", stored(per_block(grid.zero_point))))
    attributes = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": 4}
    base, shape = node.outputs[0].name or "output", node.outputs[0].shape
    result = add_node(node, "MatMulNBits", inputs, f"{base}_product", FLOAT, shape, attributes, "com.microsoft")
    if layer.bias is not None:
        bias = shared_initializer(graph, f"{layer.bias.name}_row", bias_array(layer))
        result = add_node(node, "Add", [result, bias], f"{base}_biased", FLOAT, shape)
    graph.opset_imports.setdefault("com.microsoft", 1)
    take_over(node, result)


def product_bits(bits: int) -> int:
    """What MatMulNBits stores integers of `bits` in."""
    return next(width for width in (2, 4, 8) if width >= bits)


def _initializers(
    before: ir.Node, name: str, grid: Grid, arrays: Grid, width: int, planes: bool = False
) -> list[ir.Value]:
    """Integers, of so many bits or in planes, scale and, if one is not zero, zero points."""
    if planes:
        integers = stored_integers(before, name, arrays.integers, grid.bits, signed=True)
    else:
        integers = shared_initializer(graph_of(before), f"{name}_quantized", arrays.integers.astype(_dtype(width)))
    return [integers, *_parameters(before, name, arrays, 8 if planes and width < 8 else width)]


def _parameters(before: ir.Node, name: str, arrays: Grid, width: int) -> list[ir.Value]:
    graph = graph_of(before)
    values = [shared_initializer(graph, f"{name}_scale", arrays.scale)]
    if arrays.zero_point.any():
        values.append(shared_initializer(graph, f"{name}_zero_point", arrays.zero_point.astype(_dtype(width))))
    return values


def _dtype(width: int) -> np.dtype:
    return np.dtype({4: ir.DataType.INT4, 8: ir.DataType.INT8, 16: ir.DataType.INT16}[width].numpy())


def _arithmetic(before: ir.Node, base: str, parts: list[ir.Value]) -> ir.Value:
    """(integers - zero point) * scale in float."""
    value = parts[0]
    if value.dtype != FLOAT:
        value = add_node(before, "Cast", [value], f"{base}_cast", FLOAT, value.shape, TO_FLOAT)
    if len(parts) > 2:
        zero = add_node(before, "Cast", [parts[2]], f"{base}_zero", FLOAT, parts[2].shape, TO_FLOAT)
        value = add_node(before, "Sub", [value, zero], f"{base}_centred", FLOAT, value.shape)
    return add_node(before, "Mul", [value, parts[1]], f"{base}_scaled", FLOAT, value.shape)


def _packed(values_NX: np.ndarray, bits: int) -> np.ndarray:
    """Bytes of the rows, several values in a byte; a row that does not fill its last one is filled up with zeros."""
    each = 8 // bits
    padded = np.pad(values_NX, ((0, 0), (0, -values_NX.shape[1] % each)))
    shifted = padded.reshape(len(padded), -1, each) << np.arange(0, 8, bits, dtype=np.uint8)
    return np.asarray(np.bitwise_or.reduce(shifted, axis=2)).astype(np.uint8)
