"""Multiply-accumulates, counted: a product of ones adds one, so the sum of the outputs is their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.measuring.layers import layer_table
from gossamer.nouns.model import Model
from gossamer.runtimes.onnxruntime import open_session

small = st.integers(1, 3)


def model(op: str, shapes: Sequence[tuple[int, ...]], weights: int = 0, **attributes: Any) -> Model:
    """One node; the last `weights` of its inputs are initializers of ones."""
    names = [f"i{index}" for index in range(len(shapes))]
    node = onnx.helper.make_node(op, names, ["y"], name="node", **attributes)
    fed = len(shapes) - weights
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in zip(names[:fed], shapes[:fed], strict=True)],
        [onnx.helper.make_tensor_value_info("y", 1, None)],
        [
            onnx.numpy_helper.from_array(np.ones(s, np.float32), n)
            for n, s in zip(names[fed:], shapes[fed:], strict=True)
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 20)]
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return Model(ir.from_proto(proto), op)


def counted(tested: Model) -> int:
    """The sum over all outputs for inputs of ones."""
    session = open_session(tested, optimize=False)
    feeds = {name: np.ones([int(dim or 0) for dim in shape], np.float32) for name, (_, shape) in session.inputs.items()}
    return int(session.call(None, feeds)[0].sum())


def told(tested: Model) -> int | None:
    return layer_table(tested)[0].macs


@given(small, small, small, small, small, small, st.integers(7, 9))
def test_convolution(groups: int, c: int, m: int, kernel: int, stride: int, dilation: int, width: int) -> None:
    tested = model(
        "Conv",
        [(1, groups * c, width, width + 1), (groups * m, c, kernel, 1)],
        weights=1,
        group=groups,
        strides=[stride, 1],
        dilations=[dilation, 1],
    )
    assert told(tested) == counted(tested)


@given(small, small, small, small, small)
def test_transposed_convolution(groups: int, c: int, m: int, kernel: int, stride: int) -> None:
    shapes = [(1, groups * c, 4, 3), (groups * c, m, kernel, kernel)]
    tested = model("ConvTranspose", shapes, weights=1, group=groups, strides=[stride, stride])
    assert told(tested) == counted(tested)


@given(small, small, small, small, st.booleans())
def test_matrix_product(b: int, m: int, k: int, n: int, shared: bool) -> None:
    tested = model("MatMul", [(b, m, k), (k, n) if shared else (b, k, n)], weights=int(shared))
    assert told(tested) == counted(tested)


@given(small, small, small, st.booleans(), st.booleans())
def test_gemm(m: int, k: int, n: int, flip_a: bool, flip_b: bool) -> None:
    shapes = [(k, m) if flip_a else (m, k), (n, k) if flip_b else (k, n)]
    tested = model("Gemm", shapes, weights=1, transA=int(flip_a), transB=int(flip_b))
    assert told(tested) == counted(tested)


@pytest.mark.parametrize("equation", ["bij,bjk->bik", "bhqd,bhkd->bhqk", "ij,j->i", "i,j->ij"])
def test_einsum(equation: str) -> None:
    length = {"b": 2, "h": 3, "i": 4, "j": 5, "k": 6, "q": 4, "d": 7}
    shapes = [tuple(length[letter] for letter in term) for term in equation.split("->")[0].split(",")]
    tested = model("Einsum", shapes, equation=equation)
    assert told(tested) == counted(tested)


def test_einsum_of_three_is_not_guessed() -> None:
    assert told(model("Einsum", [(2, 3), (3, 4), (4, 5)], equation="ij,jk,kl->il")) is None


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent(op: str, gates: int) -> None:
    time, batch, features, hidden = 5, 2, 3, 4
    shapes = [(time, batch, features), (1, gates * hidden, features), (1, gates * hidden, hidden)]
    step = gates * (hidden * features + hidden * hidden)  # one matrix for the input, one for the state
    assert told(model(op, shapes, weights=2, hidden_size=hidden)) == time * batch * step


def test_integer_operators_count_as_their_float_ones() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (uint8[1, 3, 8, 8] x, uint8[2, 5] a) => (int32[1, 4, 6, 6] y, int32[2, 7] b, uint8[1, 4, 6, 6] q, uint8[2, 7] p)
    <float s = {1.0}, uint8 z = {0}>
    {
        y = ConvInteger(x, w)
        b = MatMulInteger(a, v)
        q = QLinearConv(x, s, z, w, s, z, s, z)
        p = QLinearMatMul(a, s, z, v, s, z, s, z)
    }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.uint8), "w"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((5, 7), np.uint8), "v"))
    conv, product = 4 * 6 * 6 * 3 * 3 * 3, 2 * 5 * 7
    assert [layer.macs for layer in layer_table(Model(ir.from_proto(proto), "int"))] == [conv, product, conv, product]


def test_what_does_not_multiply_matrices_counts_nothing() -> None:
    assert told(model("Relu", [(2, 3)])) == 0
    assert told(model("Add", [(2, 3), (3,)], weights=1)) == 0


def test_products_inside_a_subgraph_are_not_guessed() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (bool c, float[2, 2] x) => (float[2, 2] y) {
        y = If(c) <then_branch = t () => (float[2, 2] a) { a = MatMul(x, x) },
                   else_branch = e () => (float[2, 2] b) { b = Relu(x) }>
    }"""
    assert told(Model(ir.from_proto(onnx.parser.parse_model(text)), "if")) is None
