"""Which nodes give a layer its weights on a grid, and putting them there.

- `cast`: Cast and Mul of constants, which onnxruntime computes once, when it opens the file: float's latency.
- `matmulnbits`: com.microsoft.MatMulNBits in the place of MatMul and Gemm, small in memory too.
- `dequantize`: DequantizeLinear, which most runtimes read; onnxruntime computes most of them at every call.
- `dynamiclstm`: com.microsoft.DynamicQuantizeLSTM, for both weights of an LSTM.
- `rows`: of a table, the integers of the rows looked up; whatever was wished for.

`fastest` takes `matmulnbits` for products, `dynamiclstm` for LSTM of 64 units or more, and `cast` for the rest.
Latency and noise of each are in docs/passes.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import onnx_ir as ir

from gossamer.arith.weight_grid import Grid
from gossamer.graph.edit import attribute_int
from gossamer.graph.layers import Layer, layer_of
from gossamer.graph.packed_bits import OPSET as PLANES_OPSET
from gossamer.graph.recurrent import RECURRENT, WEIGHTS, multiply_in_integers, obstacle_in_kernel
from gossamer.graph.weight_forms import (
    BLOCKS,
    FOUR_BIT_OPSET,
    block_product,
    cast_weight,
    dequantized_weight,
    in_planes,
    look_up,
    product_bits,
    wider,
)
from gossamer.graph.weight_layout import is_natural, reshaped, restored, scales_fit, spread
from gossamer.graph.weight_matrix import CONVOLUTIONS, WeightMatrix, weight_matrices
from gossamer.graph.weight_uses import read_alike

Wish = Literal["fastest", "cast", "dequantize", "matmulnbits", "dynamiclstm"]
Form = Literal["cast", "dequantize", "matmulnbits", "dynamiclstm", "rows"]
NARROWEST_LSTM = 64  # units; below that the integer kernel is slower than the float one


class Kind(Protocol):
    """What is known of a grid before its integers are, as `constraints.grid.Grid` says it."""

    @property
    def bits(self) -> int: ...
    @property
    def symmetric(self) -> bool: ...
    @property
    def granularity(self) -> str | int: ...


class Choice(NamedTuple):
    """The form for all uses of a weight, or, where there is none, why."""

    form: Form = "cast"
    obstacle: str = ""


def choose(uses: Sequence[WeightMatrix], kind: Kind, wish: Wish, opset: int) -> Choice:
    """The form in which a weight goes on a grid."""
    choices = [_choice(use, kind, wish) for use in uses]
    for choice in choices:
        if choice.obstacle:
            return choice
    form = choices[0].form
    # readers that want a tied weight differently get one float tensor made of it, in the first one's layout
    if not read_alike(uses) or any(choice.form != form for choice in choices):
        if wish == "matmulnbits":
            return Choice(obstacle=f"its weight {uses[0].name} is read in different ways; use form cast")
        form = "dequantize" if wish == "dequantize" else "cast"
    obstacle = _obstacle_in_opset(uses[0], form, kind, opset) or _obstacle_by_size(uses[0], form, kind, opset)
    return Choice(form, obstacle)


def store_grid(uses: Sequence[WeightMatrix], form: Form, grid: Grid) -> None:
    """Put a grid, (G, O, K) or (G, O, K / n, n), in the place of a weight."""
    first, name = uses[0], uses[0].name or "weight"
    if form == "dynamiclstm":
        multiply_in_integers(first.node, first.slot, name, grid)
    elif form == "rows":
        for use in uses:
            look_up(use.node, name, _of_matrix(grid))
    elif form == "matmulnbits":
        block = _block(first.shape_GOK[2], grid.bits, _group(grid))
        for layer in (layer_of(use.node) for use in uses):
            if isinstance(layer, Layer):
                block_product(layer, name, _of_tensor(first, grid), block)
    else:  # one float tensor for all: the first reader stands in front of the others
        real = _cast(first, name, grid) if form == "cast" else _dequantized(first, name, grid)
        for use in uses:
            use.node.replace_input_with(use.slot, real)


# --- the choice


def _choice(use: WeightMatrix, kind: Kind, wish: Wish) -> Choice:
    operator = use.node.op_type
    if operator in RECURRENT:
        return _recurrent(use, kind, wish)
    if wish == "dynamiclstm":
        return Choice(obstacle=f"DynamicQuantizeLSTM is no {operator}; use form fastest")
    if use.is_table:
        return Choice("rows" if _rows_fit(use, kind) else "cast")
    if operator in CONVOLUTIONS and wish == "matmulnbits":
        return Choice(obstacle="MatMulNBits is no convolution; use form cast")
    obstacle = _obstacle_in_product(use, kind)
    if wish == "matmulnbits":
        return Choice("matmulnbits", obstacle)
    if wish == "dequantize":
        return Choice("dequantize", _obstacle_in_dequantizing(use, kind))
    return Choice("cast" if wish == "cast" or operator in CONVOLUTIONS or obstacle else "matmulnbits")


def _rows_fit(use: WeightMatrix, kind: Kind) -> bool:
    """Whether the integers of single rows can be looked up; those of 4 bits have a type that Gather does not take."""
    rows = use.node.inputs[1]
    known = rows is not None and rows.shape is not None
    if kind.granularity == "input":
        return False
    return known and (kind.bits == 8 or (kind.bits < 8 and kind.bits != 4 and use.shape_GOK[2] % 8 == 0))


def _obstacle_in_product(use: WeightMatrix, kind: Kind) -> str:
    layer = layer_of(use.node)
    if isinstance(layer, str):
        return layer
    if kind.granularity == "input":
        return "MatMulNBits takes scales of outputs, not of inputs; use form cast"
    if kind.bits > 8:
        return f"MatMulNBits takes up to 8 bits, not {kind.bits}; use form cast"
    if isinstance(kind.granularity, int) and kind.granularity not in BLOCKS:
        return f"MatMulNBits takes granularity {', '.join(map(str, BLOCKS))}, not {kind.granularity}; use form cast"
    return ""


def _obstacle_in_dequantizing(use: WeightMatrix, kind: Kind) -> str:
    if kind.granularity == "input":
        return "scales of inputs come by form cast"
    grouped = isinstance(kind.granularity, int)
    if kind.granularity == "tensor" or is_natural(use) or (use.split[0] == 1 and not (grouped and len(use.shape) > 2)):
        return ""
    return "DequantizeLinear takes scales along one axis, which its weight does not have; use form cast"


def _recurrent(use: WeightMatrix, kind: Kind, wish: Wish) -> Choice:
    """The integer kernel takes both weights of a layer, or none."""
    if wish == "matmulnbits":
        return Choice(obstacle="MatMulNBits is no recurrent layer; use form cast")
    if wish in ("cast", "dequantize"):
        return Choice("dequantize" if wish == "dequantize" else "cast")
    obstacle = _obstacle_in_kernel(use.node, kind)
    if wish == "dynamiclstm":
        return Choice("dynamiclstm", obstacle)
    wide = attribute_int(use.node, "hidden_size", 0) >= NARROWEST_LSTM
    return Choice("dynamiclstm" if wide and not obstacle else "cast")


def _obstacle_in_kernel(node: ir.Node, kind: Kind) -> str:
    if not 5 <= kind.bits <= 8 or not kind.symmetric or kind.granularity not in ("channel", "tensor"):
        return "DynamicQuantizeLSTM takes symmetric weights of 5 to 8 bits and scales of outputs; use form cast"
    matrices = weight_matrices(node)
    if isinstance(matrices, str):
        return obstacle_in_kernel(node) or matrices
    small = (_obstacle_by_size(matrix, "dynamiclstm", kind, FOUR_BIT_OPSET) for matrix in matrices[: len(WEIGHTS)])
    return obstacle_in_kernel(node) or next(filter(None, small), "")


def _obstacle_in_opset(use: WeightMatrix, form: Form, kind: Kind, opset: int) -> str:
    needed, what = 0, f"{kind.bits} bit tensors"
    if form == "dequantize" and (isinstance(kind.granularity, int) or kind.bits in (2, 3, 4, 16)):
        needed = FOUR_BIT_OPSET
        what = what if kind.bits in (2, 3, 4, 16) else "groups in DequantizeLinear"
    elif (form == "cast" and in_planes(_size(use), kind.bits, opset)) or (form == "rows" and kind.bits < 8):
        needed = PLANES_OPSET
    return f"{what} need opset {needed}, the graph has {opset}" if opset < needed else ""


def _obstacle_by_size(use: WeightMatrix, form: Form, kind: Kind, opset: int) -> str:
    stored, size = stored_bytes(use, form, kind, opset), 4 * _size(use)
    return f"integers and scales take {stored} bytes, the floats {size}" if stored >= size else ""


def stored_bytes(use: WeightMatrix, form: Form, kind: Kind, opset: int) -> int:
    """What a weight takes in a form: integers, scales and zero points, without the nodes."""
    groups, outputs, k = use.shape_GOK
    rows, size, bits = groups * outputs, _size(use), kind.bits
    inputs = groups * use.k_shape[0]
    scales = {"tensor": 1, "input": inputs}.get(str(kind.granularity), rows)
    if isinstance(kind.granularity, int):
        scales = size // kind.granularity
    if form == "matmulnbits":
        block = _block(k, kind.bits, kind.granularity if isinstance(kind.granularity, int) else None)
        scales = -(-k // block) * rows
        size, bits = scales * block, product_bits(kind.bits)
    elif form == "dequantize" or (form == "cast" and not in_planes(size, kind.bits, opset)):
        bits = wider(kind.bits, FOUR_BIT_OPSET if form == "dequantize" else opset)
    elif form == "dynamiclstm":
        bits = 8
    return -(-size * bits // 8) + scales * (4 if kind.symmetric and form != "dynamiclstm" else 5)


def _size(use: WeightMatrix) -> int:
    return int(np.prod(use.split))


def _block(k: int, bits: int, group: int | None) -> int:
    """The block of MatMulNBits; for one scale a channel, which is repeated, the one that takes the fewest bytes."""
    if group is not None:
        return group
    return min(reversed(BLOCKS), key=lambda block: -(-k // block) * (block * product_bits(bits) // 8 + 4))


# --- the nodes


def _group(grid: Grid) -> int | None:
    return grid.integers.shape[3] if grid.integers.ndim > 3 else None


def _of_matrix(grid: Grid) -> Grid:
    """The grid as rows (G * O, K), or (G * O, K / n, n)."""
    return _each(grid, lambda part: part.reshape(-1, *part.shape[2:]))


def _of_tensor(use: WeightMatrix, grid: Grid) -> Grid:
    """The grid in the weight's own axes, of which that of a product's inputs is split by groups."""
    if _group(grid) is None:
        integers = use.from_matrix(grid.integers)
        if grid.scale.size > 1 and not scales_fit(use):
            integers = integers.reshape(use.split)
        return Grid(integers, spread(use, grid.scale), spread(use, grid.zero_point), grid.bits)
    rows = _of_matrix(grid)
    return rows if is_natural(use) else _each(rows, lambda part: np.ascontiguousarray(np.moveaxis(part, 0, -1)))


def _each(grid: Grid, change: Callable[[np.ndarray], np.ndarray]) -> Grid:
    return Grid(change(grid.integers), change(grid.scale), change(grid.zero_point), grid.bits)


def _cast(use: WeightMatrix, name: str, grid: Grid) -> ir.Value:
    if _group(grid) is None or is_natural(use) or len(use.shape) == 2:
        return cast_weight(use.node, name, _of_tensor(use, grid), use.shape)
    matrix = (use.shape_GOK[0] * use.shape_GOK[1], use.shape_GOK[2])
    return restored(use.node, name, cast_weight(use.node, name, _of_matrix(grid), matrix), matrix, use)


def _dequantized(use: WeightMatrix, name: str, grid: Grid) -> ir.Value:
    """As a matrix where the scales do not lie along one of the weight's axes, and reshaped then."""
    merged = len(use.shape) < len(use.split)
    own_axis = grid.scale.size == 1 or len(use.shape) == 2
    if own_axis or (_group(grid) is None and (merged or use.split[0] == 1)):
        axis = use.order[1] - merged
        return dequantized_weight(use.node, name, _of_tensor(use, grid), use.shape, axis, 1 - axis)
    matrix = (use.shape_GOK[0] * use.shape_GOK[1], use.shape_GOK[2])
    value = dequantized_weight(use.node, name, _of_matrix(grid), matrix, 0, 1)
    return reshaped(use.node, name, value, use.shape)
