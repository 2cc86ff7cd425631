"""Weights as a product of thin factors: one node becomes two, or three.

MatMul and Gemm: two of them. Gather: the look-up of thin rows, and a product. Conv and ConvTranspose: to R channels,
then 1 x 1 (Zhang et al. 2016, "Accelerating very deep convolutional networks"); with a Tucker split 1 x 1, kernel,
1 x 1 (Kim et al. 2016, "Compression of deep convolutional neural networks"); with CP 1 x 1, depthwise, 1 x 1 (Lebedev
et al. 2015, "Speeding-up convolutional neural networks using fine-tuned CP-decomposition").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from gossamer.arith.forms import Chained, Factored, floats_in
from gossamer.arith.weight_grid import Grid
from gossamer.graph.edit import add_node, attribute_int, constant, graph_of, shared_initializer, take_over
from gossamer.graph.grid_form import Wish, choose, store_grid
from gossamer.graph.recurrent import RECURRENT
from gossamer.graph.weight_matrix import WeightMatrix, weight_matrices
from gossamer.graph.weight_uses import read_alike

FLOAT = ir.DataType.FLOAT


class Parts(NamedTuple):
    """A weight taken apart, from the input's side to the output's.

    Attributes:
        reduce_GSI: to fewer input channels, before the kernel; None if the kernel does that.
        kernel_GRK: to R channels, (G, R, I or S, *kernel); with CP (G, R, 1, *kernel).
        expand_GOR: to the outputs.
    """

    reduce_GSI: np.ndarray | None
    kernel_GRK: np.ndarray
    expand_GOR: np.ndarray


def obstacle(uses: Sequence[WeightMatrix]) -> str:
    """Why a weight cannot be taken apart, or ""."""
    if any(use.node.op_type in RECURRENT for use in uses):
        return "a recurrent layer's weights cannot be taken apart"
    return "" if read_alike(uses) else f"its weight {uses[0].name} is read in different ways"


def parts_of(use: WeightMatrix, form: Factored | Chained) -> Parts:
    """The factors with the axes of the layer."""
    if isinstance(form, Factored):
        right = floats_in(form.right_GRK)
        return Parts(None, right.reshape(*right.shape[:2], *use.k_shape), floats_in(form.left_GOR))
    core = form.core_RQS.reshape(1, *form.core_RQS.shape[:2], *use.k_shape[1:])
    return Parts(form.inner_QI[None], core, form.outer_OR[None])


def saving_obstacle(use: WeightMatrix, parts: Parts) -> str:
    """Why taking a weight apart would not pay, or "": it must take fewer weights and fewer multiply-adds."""
    size = int(np.prod(use.shape_GOK))
    taken = sum(part.size for part in parts if part is not None)
    rank = parts.expand_GOR.shape[2]
    if taken >= size:
        return f"at rank {rank} its factors have {taken} weights, and it has {size}"
    if parts.reduce_GSI is not None:  # at every position of the input, of which strides leave fewer to the output
        strides = use.node.attributes.get("strides")
        taken += parts.reduce_GSI.size * (int(np.prod(strides.as_ints())) - 1 if strides else 0)
    if taken >= size and use.node.op_type == "Conv":
        return f"at rank {rank} its factors multiply {taken} times for an output position, and it {size} times"
    return ""


def store_factored(uses: Sequence[WeightMatrix], form: Factored | Chained, wish: Wish = "fastest") -> None:
    """Put factors in the place of a weight; factors on a grid go there as `grid_form` would put them."""
    parts = parts_of(uses[0], form)
    for use in uses:
        match use.node.op_type:
            case "Conv" | "ConvTranspose":
                built = _convolutions(use, parts)
            case "Gather":
                built = _thin_rows(use, parts)
            case "Gemm":
                built = _gemms(use, parts)
            case _:
                built = _products(use, parts)
        take_over(use.node, built.result)
    factors = (form.left_GOR, form.right_GRK) if isinstance(form, Factored) else ()
    for weight, factor in zip((built.left, built.right), factors, strict=False):
        if isinstance(factor, Grid):
            by_rows = use.is_table and weight is built.right  # its scales lie along the axis that is summed over
            _store_on_grid(weight, factor, "cast" if by_rows else wish, by_rows)


# --- the nodes


class _Built(NamedTuple):
    """The output of the new nodes, and their factors."""

    result: ir.Value
    left: ir.Value
    right: ir.Value


def _convolutions(use: WeightMatrix, parts: Parts) -> _Built:
    node, kernel, reduce_GSI = use.node, parts.kernel_GRK, parts.reduce_GSI
    groups, ones = use.shape_GOK[0], (1,) * (kernel.ndim - 3)
    x, own_groups = node.inputs[0], groups
    if reduce_GSI is not None:
        reduce = _weight(use, "reduce", reduce_GSI.reshape(-1, reduce_GSI.shape[2], *ones))
        x = _node(use, "Conv", [x, reduce], "reduced", _group(groups))
        if kernel.shape[2] == 1 and reduce_GSI.shape[1] == kernel.shape[1]:  # CP: each of the channels by itself
            own_groups = groups * kernel.shape[1]
    if node.op_type == "ConvTranspose" and own_groups == groups:
        kernel = kernel.swapaxes(1, 2)
    right = _weight(use, "right", kernel.reshape(-1, *kernel.shape[2:]))
    inner = {key: value for key, value in node.attributes.items() if key != "group"} | _group(own_groups)
    thin = _node(use, node.op_type, [x, right], "thin", inner)
    left = _weight(use, "left", parts.expand_GOR.reshape(-1, parts.expand_GOR.shape[2], *ones))
    return _Built(_node(use, "Conv", [thin, left, *node.inputs[2:3]], "expanded", _group(groups)), left, right)


def _products(use: WeightMatrix, parts: Parts) -> _Built:
    """The constant may be the second input of MatMul, transposed then, or the first."""
    a, b = use.node.inputs
    right_RK, left_OR = parts.kernel_GRK[0], parts.expand_GOR[0]
    if use.slot == 0:
        right, left = _weight(use, "right", right_RK), _weight(use, "left", left_OR)
        inputs = [left, _node(use, "MatMul", [right, b], "thin", {})]
    else:
        right, left = _weight(use, "right", right_RK.T), _weight(use, "left", left_OR.T)
        inputs = [_node(use, "MatMul", [a, right], "thin", {}), left]
    return _Built(_node(use, "MatMul", inputs, "expanded", {}), left, right)


def _gemms(use: WeightMatrix, parts: Parts) -> _Built:
    node, transposed = use.node, attribute_int(use.node, "transB", 0)
    factors = [part if transposed else part.T for part in (parts.kernel_GRK[0], parts.expand_GOR[0])]
    right, left = _weight(use, "right", factors[0]), _weight(use, "left", factors[1])
    inner = {key: value for key, value in node.attributes.items() if key.startswith("trans")}
    outer = {key: value for key, value in node.attributes.items() if key != "transA"}
    thin = _node(use, "Gemm", [node.inputs[0], right], "thin", inner)
    return _Built(_node(use, "Gemm", [thin, left, *node.inputs[2:3]], "expanded", outer), left, right)


def _thin_rows(use: WeightMatrix, parts: Parts) -> _Built:
    left, right = _weight(use, "left", parts.expand_GOR[0]), _weight(use, "right", parts.kernel_GRK[0])
    thin = _node(use, "Gather", [left, use.node.inputs[1]], "thin", {})
    return _Built(_node(use, "MatMul", [thin, right], "expanded", {}), left, right)


def _node(
    use: WeightMatrix, op_type: str, inputs: Sequence[ir.Value | None], word: str, attributes: dict[str, ir.Attr]
) -> ir.Value:
    """In front of the layer; what is called "expanded" has the shape of its output."""
    output = use.node.outputs[0]
    shape = output.shape if word == "expanded" else None
    value = add_node(use.node, op_type, inputs, f"{output.name}_{word}", FLOAT, shape)
    maker = value.producer()
    if maker is not None:
        maker.attributes.update(attributes)
    return value


def _weight(use: WeightMatrix, part: str, array: np.ndarray) -> ir.Value:
    return shared_initializer(graph_of(use.node), f"{use.name}_{part}", np.ascontiguousarray(array, np.float32))


def _group(groups: int) -> dict[str, ir.Attr]:
    return {"group": ir.AttrInt64("group", groups)} if groups > 1 else {}


def _store_on_grid(weight: ir.Value, grid: Grid, wish: Wish, by_rows: bool) -> None:
    uses: list[WeightMatrix] = []
    for node, slot in [(use.node, use.idx) for use in weight.uses()]:
        matrices = weight_matrices(node)
        if by_rows:
            uses.append(WeightMatrix(node, slot, weight, (1, *np.asarray(constant(weight)).shape), (0, 1, 2)))
        elif not isinstance(matrices, str):
            uses += [matrix for matrix in matrices if matrix.slot == slot]
    choice = choose(uses, _KindOf(grid), wish, graph_of(uses[0].node).opset_imports.get("", 0))
    if not choice.obstacle:
        store_grid(uses, choice.form, grid)


class _KindOf(NamedTuple):
    """What is known of a grid from its arrays."""

    grid: Grid

    @property
    def bits(self) -> int:
        return self.grid.bits

    @property
    def symmetric(self) -> bool:
        return not self.grid.zero_point.any()

    @property
    def granularity(self) -> str | int:
        if self.grid.integers.ndim > 3:
            return int(self.grid.integers.shape[3])
        return "tensor" if self.grid.scale.size == 1 else "channel"
