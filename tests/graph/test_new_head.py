"""A new last layer: found past softmaxes and means, drawn by the seed, the rest untouched, and the graph runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.passes.graphs import parse

from gossamer.errors import ModelError, OptionError
from gossamer.graph.edit import constant
from gossamer.graph.new_head import find_head, with_new_head
from gossamer.nouns.model import Model, to_bytes
from gossamer.runtimes.onnxruntime import open_session

DENSE = "h = MatMul(x, body) r = Relu(h)"
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemm": ("y = Gemm<transB=1>(r, w, b)", {"w": (5, 8), "b": (5,)}),
    "gemm upright": ("y = Gemm(r, w)", {"w": (8, 5)}),
    "matmul": ("y = MatMul(r, w)", {"w": (8, 5)}),
    "matmul, bias": ("s = MatMul(r, w) t = Add(b, s) y = Softmax(t)", {"w": (8, 5), "b": (1, 5)}),
    "one bias for all": ("s = MatMul(r, w) y = Add(s, b)", {"w": (8, 5), "b": (1,)}),
    "reshaped": ("s = MatMul(r, w) y = Reshape(s, to)", {"w": (8, 5), "to": np.int64([-1, 5])}),
}


def dense(tail: str, weights: dict[str, Any]) -> Model:
    return parse(f"g (float[N,6] x) => (float[N,5] y) {{ {DENSE} {tail} }}", body=(6, 8), **weights)


def pictures(tail: str = "c = Conv(r, w, b) p = GlobalAveragePool(c) y = Flatten(p)", kernel: int = 1) -> Model:
    text = f"g (float[N,3,4,4] x) => (float[N,5] y) {{ a = Conv(x, body) r = Relu(a) {tail} }}"
    return parse(text, body=(8, 3, 1, 1), w=(5, 8, kernel, kernel), b=(5,))


def run(model: Model, seed: int = 0) -> np.ndarray:
    onnx.checker.check_model(onnx.load_from_string(to_bytes(model)), full_check=True)
    session = open_session(model)
    shape = [size if isinstance(size, int) else 3 for size in session.inputs["x"][1]]
    return session.run({"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)})[0]


@settings(max_examples=30)
@given(st.sampled_from([*BODIES, "conv"]), st.integers(2, 40), st.integers(0, 3))
def test_the_head_gives_new_classes_and_nothing_else_changes(kind: str, classes: int, seed: int) -> None:
    model = pictures() if kind == "conv" else dense(*BODIES[kind])
    before = to_bytes(model)
    changed = with_new_head(model, classes, seed)
    assert run(changed).shape == (3, classes)
    assert to_bytes(model) == before
    assert np.array_equal(
        constant(changed.ir.graph.initializers["body"]), constant(model.ir.graph.initializers["body"])
    )
    assert list(changed.ir.graph.outputs[0].shape)[1] == classes
    assert to_bytes(with_new_head(model, classes, seed)) == to_bytes(changed)
    assert to_bytes(with_new_head(model, classes, seed + 1)) != to_bytes(changed)
    weight = constant(changed.ir.graph.initializers["w"])
    assert 0.5 < np.abs(weight).max() * np.sqrt(8) <= 1
    bias = changed.ir.graph.initializers.get("b")
    assert bias is None or not constant(bias).any()
    assert f"was drawn anew for {classes} classes; it gave 5" in changed.notes[-1]


def test_a_weight_that_others_read_stays_theirs() -> None:
    model = parse(
        "g (float[N,6] x) => (float[N,5] y, float[N,5] z) { y = MatMul(x, w) q = Relu(x) z = MatMul(q, w) }", w=(6, 5)
    )
    session = open_session(with_new_head(model, 9))
    y, z = session.run({"x": np.ones((2, 6), np.float32)})
    assert (y.shape, z.shape) == ((2, 9), (2, 5))
    assert np.array_equal(z, open_session(model).run({"x": np.ones((2, 6), np.float32)})[1])


def test_the_head_is_found_with_its_bias() -> None:
    head = find_head(dense(*BODIES["matmul, bias"]))
    assert [node.op_type for node in head.nodes] == ["MatMul", "Add"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (dense("y = MatMul(r, w) ", {"w": (8, 5)}), ""),
        (
            pictures("c = Conv(r, w, b) y = Flatten(c)", kernel=4),
            r"Conv node_c, .* has a kernel of 4x4 in 1 groups; a new",
        ),
        (
            dense("s = MatMul(r, w) y = Mul(s, s)", {"w": (8, 5)}),
            "Mul node_y, the last node before the scores, is no lay",
        ),
        (parse("g (float[5,N] x) => (float[5,5] y) { t = Transpose(x) y = MatMul(x, t) }"), "has no weight of floats"),
        (parse("g (float[N,5] x) => (float[N,5] y) { y = Softmax(x) }"), "no layer makes its output y, so it cannot"),
    ],
)
def test_what_is_no_head_is_named(model: Model, message: str) -> None:
    if not message:
        assert find_head(model).bias is None
        return
    with pytest.raises(ModelError, match=message):
        with_new_head(model, 3)


def test_a_head_of_one_class_is_refused() -> None:
    with pytest.raises(OptionError, match="head is 1; allowed is a number of classes from 2 up"):
        with_new_head(dense(*BODIES["gemm"]), 1)
