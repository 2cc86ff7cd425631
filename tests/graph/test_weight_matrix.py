from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.graph.weight_matrix import WeightMatrix, matrices_by_weight, weight_matrices


def initializer(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)


def fed(name: str = "x") -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))


def node(op: str, w: np.ndarray, slot: int = 1, **attributes: int) -> ir.Node:
    weight = initializer("w", w)
    return ir.node(op, [weight, fed()] if slot == 0 else [fed(), weight], attributes, name="layer")


def only(layer: ir.Node) -> WeightMatrix:
    found = weight_matrices(layer)
    assert not isinstance(found, str), found
    assert len(found) == 1
    return found[0]


def numbered(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@st.composite
def layers(draw: st.DrawFn) -> ir.Node:
    op = draw(st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "LSTM"]))
    size = st.integers(1, 4)
    if op in ("Conv", "ConvTranspose"):
        group, kernel = draw(size), draw(st.lists(size, min_size=1, max_size=3))
        return node(op, numbered(group * draw(size), draw(size), *kernel), group=group)
    if op == "LSTM":
        dirs, units, inputs = draw(st.integers(1, 2)), draw(size), draw(size)
        weights = [numbered(dirs, 4 * units, inputs), numbered(dirs, 4 * units, units)]
        return ir.node(op, [fed(), initializer("w", weights[0]), initializer("r", weights[1])], {"hidden_size": units})
    w = numbered(draw(size), draw(size))
    if op == "Gemm":
        return node(op, w, transB=draw(st.integers(0, 1)))
    return node(op, w, 0 if op == "Gather" else draw(st.integers(0, 1)))


@given(layers())
def test_there_and_back(layer: ir.Node) -> None:
    found = weight_matrices(layer)
    assert not isinstance(found, str)
    for matrix in found:
        w = matrix.value.const_value
        assert w is not None
        w_GOK = matrix.to_matrix(w.numpy())
        assert w_GOK.shape == matrix.shape_GOK and int(np.prod(matrix.k_shape)) == w_GOK.shape[2]
        assert np.array_equal(matrix.from_matrix(w_GOK), w.numpy()) and matrix.shape == w.numpy().shape
        assert np.array_equal(matrix.to_matrix(matrix.from_matrix(w_GOK * 2)), w_GOK * 2)


def test_where_the_numbers_go() -> None:
    conv = numbered(4, 3, 2, 2)
    matrix = only(node("Conv", conv, group=2))
    assert matrix.k_shape == (3, 2, 2) and matrix.shape_GOK == (2, 2, 12)
    assert matrix.to_matrix(conv)[1, 0, 5] == conv[2, 1, 0, 1]
    matrix = only(node("ConvTranspose", conv, group=2))  # (I, O / g, ...): 2 groups of 2 inputs and 3 outputs
    assert matrix.k_shape == (2, 2, 2) and matrix.shape_GOK == (2, 3, 8)
    assert matrix.to_matrix(conv)[1, 2, 4 + 1] == conv[3, 2, 0, 1]
    depthwise = only(node("Conv", numbered(5, 1, 3, 3), group=5))
    assert depthwise.shape_GOK == (5, 1, 9)
    w = numbered(3, 2)
    for layer, expected in (
        (node("MatMul", w), w.T),
        (node("MatMul", w, 0), w),
        (node("Gemm", w), w.T),
        (node("Gemm", w, transB=1), w),
        (node("Gather", w, 0), w),
    ):
        assert np.array_equal(only(layer).to_matrix(w), expected[None])
        assert only(layer).is_table == (layer.op_type == "Gather")


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (ir.node("Relu", [fed()]), "Relu has no weight matrix"),
        (ir.node("MatMul", [fed(), fed("y")]), "its weight is computed at run time"),
        (node("MatMul", numbered(2, 3, 4)), "its weight has 3 axes, not 2"),
        (node("MatMul", numbered(2, 3).astype(np.float16)), "its weight is float16, not float32"),
        (node("Gather", numbered(2, 3), 0, axis=1), "it looks columns up, not rows"),
        (node("Gather", np.arange(6), 0), "its table is int64 with 1 axes, not a float32 matrix"),
        (ir.node("Mul", [fed(), fed("y")], domain="com.x"), "com.x.Mul is a custom operator"),
        (ir.node("LSTM", [fed(), fed("w"), fed("r")]), "its weight is computed at run time"),
        (ir.node("MatMul", [initializer("a", numbered(2, 2)), initializer("b", numbered(2, 2))]), "input is a const"),
    ],
)
def test_reasons(layer: ir.Node, reason: str) -> None:
    found = weight_matrices(layer)
    assert isinstance(found, str) and reason in found


def test_uses_of_a_shared_weight() -> None:
    weight, x = initializer("w", numbered(3, 3)), fed()
    first = ir.node("MatMul", [x, weight], name="first")
    second = ir.node("Gemm", [first.outputs[0], weight], {"transB": 1}, name="second")
    table = ir.node("Gather", [weight, ir.Value(name="ids")], name="table")
    graph = ir.Graph([x], [second.outputs[0]], nodes=[first, second, table], initializers=[weight])
    one, two, three = matrices_by_weight(graph)["w"]
    assert not one.same_layout(two) and two.same_layout(three) and one.same_layout(one)
    assert matrices_by_weight(graph, ["v"]) == {}
