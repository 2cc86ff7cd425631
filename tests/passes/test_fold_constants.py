from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope, Step
from gossamer.passes.contract import Result, run
from gossamer.runtimes.onnxruntime import open_session


def model(text: str, **weights: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    for node in proto.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(proto)
    return Model(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto)), "test")


def fold(before: Model, skip: tuple[str, ...] = (), **config: int) -> Result:
    return run(Step("fold_constants", config, Scope(skip=skip)), before)


def operators(result: Result) -> list[str]:
    return [node.op_type for node in result.model.ir.graph]


def stored(result: Result) -> list[str]:
    return sorted(result.model.ir.graph.initializers)


def assert_same_outputs(before: Model, result: Result, **feeds: np.ndarray) -> None:
    for wanted, got in zip(open_session(before).run(feeds), open_session(result.model).run(feeds), strict=True):
        assert wanted.dtype == got.dtype
        np.testing.assert_array_equal(wanted, got)


X = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)


def test_a_chain_becomes_one_initializer_with_exact_values() -> None:
    before = model(
        "t (float[2,3] x) => (float[2,3] y) { a = Exp(w) b = Transpose(a) c = Softmax(b) y = MatMul(x, c) }", w=W
    )
    result = fold(before)
    assert operators(result) == ["MatMul"]
    assert stored(result) == ["c"]
    assert_same_outputs(before, result, x=X)


def test_several_outputs_and_constant_nodes() -> None:
    before = model(
        "t (float[2,3] x) => (float[2,3] y) { s = Constant<value_floats=[2.0,3.0,4.0,5.0,6.0,7.0]>() "
        "a, b = Split<num_outputs=2>(s) c = Mul(x, a) y = Add(c, b) }"
    )
    result = fold(before)
    assert operators(result) == ["Mul", "Add"] and stored(result) == ["a", "b"]
    assert_same_outputs(before, result, x=X)


def test_shape_of_a_static_tensor_is_a_constant_and_of_a_free_one_is_not() -> None:
    body = "s = Shape<start=-1>(x) c = Cast<to=1>(s) r = ReduceSum<keepdims=0>(x) y = Div(r, c)"
    before = model(f"t (float[2,3] x) => (float[1] y) {{ {body} }}")
    result = fold(before)
    assert operators(result) == ["ReduceSum", "Div"] and stored(result) == ["c"]
    assert_same_outputs(before, result, x=X)
    assert not fold(model(f"t (float[N,3] x) => (float[1] y) {{ {body} }}")).modified


def test_values_read_inside_a_branch_are_folded_in_front_of_it() -> None:
    before = model(
        "t (float[2,3] x, bool c) => (float[2,3] y) { a = Neg(w) "
        "y = If(c) <then_branch = p () => (float[2,3] t) { t = MatMul(x, a) }, else_branch = q () => (float[2,3] e) "
        "{ k = Constant<value_float=2.0>() e = Mul(x, k) }> }",
        w=W,
    )
    result = fold(before)
    assert operators(result) == ["If"] and stored(result) == ["a"]
    branch = next(iter(result.model.ir.graph)).attributes["else_branch"].as_graph()
    assert [node.op_type for node in branch] == ["Constant", "Mul"]
    for c in (True, False):
        assert_same_outputs(before, result, x=X, c=np.array(c))


@pytest.mark.parametrize(
    "body",
    [
        "a = DequantizeLinear<axis=0>(q, s) y = MatMul(x, a)",
        "a = RandomNormalLike<seed=1.0>(w) y = MatMul(x, a)",
        "a = Bernoulli<seed=1.0>(w) y = MatMul(x, a)",
        "y = Add(w, w)",  # what the model returns stays computed
        "y = MatMul(x, w)",
    ],
)
def test_left_alone(body: str) -> None:
    rest = {"q": W.astype(np.int8), "s": np.abs(W[0]), "w": np.abs(W) / 9}
    before = model(f"t (float[2,3] x) => (float[n,m] y) {{ {body} }}", **rest)
    result = fold(before)
    assert not result.modified and result.model is before


def test_an_initializer_that_the_caller_may_override_is_no_constant() -> None:
    before = model("t (float[2,3] x, float[3,3] w) => (float[2,3] y) { a = Neg(w) y = MatMul(x, a) }")
    before.ir.graph.inputs[1].const_value = ir.tensor(W, name="w")
    before.ir.graph.initializers.add(before.ir.graph.inputs[1])
    assert not fold(before).modified


def test_results_that_would_bloat_the_file_stay_computed() -> None:
    body = "a = ConstantOfShape(n) b = Exp(a) r = ReduceSum<keepdims=1>(x) y = Mul(b, r)"
    before = model(f"t (float[9] x) => (float[300000] y) {{ {body} }}", n=np.array([300_000], np.int64))
    assert not fold(before).modified
    assert stored(fold(before, growth_bytes=2_000_000)) == ["b"]


@pytest.mark.parametrize("size", [20, 600])
def test_weights_are_folded_unless_another_node_reads_them(size: int) -> None:
    body = "t (float[2,SIZE] x) => (float[2,SIZE] y{more}) {{ a = Transpose(w) {node} y = MatMul(x, a) }}"
    body = body.replace("SIZE", str(size))
    w = np.random.default_rng(1).normal(size=(size, size)).astype(np.float32)
    assert stored(fold(model(body.format(more="", node=""), w=w))) == ["a"]
    tied = body.format(more=f", float[2,{size}] z", node="z = MatMul(x, w)")
    assert not fold(model(tied, w=w)).modified


def test_scope_leaves_what_it_skips() -> None:
    before = model("t (float[2,3] x) => (float[2,3] y) { a = Exp(w) b = Neg(a) y = MatMul(x, b) }", w=W)
    assert operators(fold(before, ("b",))) == ["Neg", "MatMul"]
    assert not fold(before, ("a",)).modified


def test_half_precision_and_integers_keep_their_types() -> None:
    before = model(
        "t (float[2,3] x) => (float16[2,3] y, int64[3] z) { h = Cast<to=10>(w) i = Cast<to=7>(w) j = Cast<to=7>(v) "
        "k = Cast<to=10>(x) y = MatMul(k, h) f = Gather(i, j) l = Cast<to=7>(x) m = ReduceMax<keepdims=0>(l, n) "
        "z = Add(m, f) }",
        w=W,
        v=np.float32(1).reshape(()),
        n=np.array([0], np.int64),
    )
    result = fold(before)
    kinds = {name: value.dtype for name, value in result.model.ir.graph.initializers.items()}
    assert kinds == {"h": ir.DataType.FLOAT16, "f": ir.DataType.INT64, "n": ir.DataType.INT64}
    assert_same_outputs(before, result, x=X)
