"""Channels that nothing depends on go, and the outputs stay."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.graph.edit import constant
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Step
from gossamer.passes.contract import run
from gossamer.runtimes.onnxruntime import open_session

STEP = Step("remove_dead_channels")


def model_of(text: str, **weights: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights.items())
    for node in proto.graph.node:
        node.name = f"node_{node.output[0]}"
    onnx.checker.check_model(proto)
    return Model(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto)), "small")


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    return {
        name: np.asarray(constant(value)).shape
        for name, value in model.ir.graph.initializers.items()
        if constant(value) is not None and np.asarray(constant(value)).dtype == np.float32
    }


def same_outputs(before: Model, after: Model, *shape: int) -> None:
    feeds = {"x": np.random.default_rng(1).normal(size=shape).astype(np.float32)}
    for one, other in zip(open_session(before).run(feeds), open_session(after).run(feeds), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def sparse(rng: np.random.Generator, share: float, *shape: int) -> np.ndarray:
    return (rng.normal(size=shape) * (rng.random(shape) < share)).astype(np.float32)


MLP = """mlp (float[N,12] x) => (float[N,4] y) {
    a = Gemm<transB=1>(x, w1, b1)
    b = Relu(a)
    c = Gemm(b, w2, b2)
    y0 = Gemm<transB=1>(c, w3)
    y = Relu(y0)
}"""

CONV = """conv (float[N,2,9,9] x) => (float[N,3] y) <int64[2] flat = {-1, 96}> {
    a = Conv(x, w1, b1)
    b = MaxPool<kernel_shape=[2,2], strides=[1,1]>(a)
    c = Conv<pads=[1,1,1,1], strides=[2,2]>(b, w2, b2)
    d = Relu(c)
    e = Reshape(d, flat)
    y = Gemm<transB=1>(e, w3, b3)
}"""


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.0, 0.03, 0.1, 0.3]))
def test_sparse_dense_layers_shrink_to_what_is_read_and_heard(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    weights = {"w1": sparse(rng, share, 20, 12), "w2": sparse(rng, share, 20, 10), "w3": sparse(rng, share, 4, 10)}
    before = model_of(MLP, **weights, b1=sparse(rng, 1, 20), b2=sparse(rng, 1, 10))
    result = run(STEP, before)
    same_outputs(before, result.model, 3, 12)
    left = shapes(result.model)
    w1, w2, w3 = (np.asarray(constant(result.model.ir.graph.initializers[name])) for name in ("w1", "w2", "w3"))
    assert left["w1"][0] == left["w2"][0] == left["b1"][0]
    assert w1.any(axis=1).all() or len(w1) == 1
    assert w2.any(axis=1).all() or len(w2) == 1
    assert w3.any(axis=0).all() or w3.shape[1] == 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.02, 0.1, 0.3]))
def test_sparse_convolutions_shrink_through_pools_and_reshapes(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    weights = {"w1": (5, 2, 3, 3), "w2": (6, 5, 2, 2), "w3": (3, 96)}
    arrays = {name: sparse(rng, share, *shape) for name, shape in weights.items()}
    b1 = sparse(rng, 0.5, 5)
    before = model_of(CONV, **arrays, b1=b1, b2=sparse(rng, 1, 6), b3=sparse(rng, 1, 3))
    same_outputs(before, run(STEP, before).model, 2, 2, 9, 9)


def test_a_channel_without_a_reader_takes_its_weights_and_bias_along() -> None:
    rng = np.random.default_rng(0)
    w2 = sparse(rng, 1, 20, 10)
    w2[[3, 7]] = 0
    before = model_of(
        MLP, w1=sparse(rng, 1, 20, 12), w2=w2, w3=sparse(rng, 1, 4, 10), b1=sparse(rng, 1, 20), b2=sparse(rng, 1, 10)
    )
    result = run(STEP, before)
    assert result.notes == ("remove_dead_channels: 2 channels that nothing depended on",)
    assert shapes(result.model) == {"w1": (18, 12), "w2": (18, 10), "w3": (4, 10), "b1": (18,), "b2": (10,)}
    same_outputs(before, result.model, 3, 12)


def test_what_a_silent_channel_says_goes_into_a_bias_that_was_not_there() -> None:
    rng = np.random.default_rng(0)
    w2 = sparse(rng, 1, 20, 10)
    w2[:, 4] = 0  # channel 4 of the second layer is its bias, whatever comes in
    b2 = np.full(10, 0.5, np.float32)
    before = model_of(MLP, w1=sparse(rng, 1, 20, 12), w2=w2, w3=sparse(rng, 1, 4, 10), b1=sparse(rng, 1, 20), b2=b2)
    result = run(STEP, before)
    assert shapes(result.model)["w2"] == (20, 9)
    assert shapes(result.model)["node_y0/bias"] == (4,)
    same_outputs(before, result.model, 3, 12)


def test_a_silent_channel_in_front_of_padding_stays_unless_it_says_zero() -> None:
    rng = np.random.default_rng(0)
    text = """conv (float[N,2,5,5] x) => (float[N,3,5,5] y) {
        a = Conv(x, w1, b1)
        y = Conv<pads=[1,1,1,1]>(a, w2)
    }"""
    w1 = sparse(rng, 1, 4, 2, 1, 1)
    w1[1:3] = 0
    before = model_of(text, w1=w1, b1=np.array([1, 0, 1, 1], np.float32), w2=sparse(rng, 1, 3, 4, 3, 3))
    result = run(STEP, before)
    assert shapes(result.model)["w1"] == (3, 2, 1, 1)
    same_outputs(before, result.model, 2, 2, 5, 5)


@pytest.mark.parametrize(
    "text",
    [
        MLP.replace("=> (float[N,4] y)", "=> (float[N,4] y, float[N,20] b)"),  # somebody looks at the channels
        MLP.replace("b = Relu(a)", "b = Softmax(a)"),  # every channel hears the others
        MLP.replace("c = Gemm(b, w2, b2)", "c0 = Gemm(b, w2, b2)\n c1 = ReduceMax<keepdims=1>(b)\n c = Add(c0, c1)"),
    ],
)
def test_channels_that_others_hear_stay(text: str) -> None:
    rng = np.random.default_rng(0)
    w2 = sparse(rng, 1, 20, 10)
    w2[3] = 0
    weights = {"w1": sparse(rng, 1, 20, 12), "w2": w2, "w3": sparse(rng, 1, 4, 10)}
    before = model_of(text, **weights, b1=sparse(rng, 1, 20), b2=sparse(rng, 1, 10))
    assert not run(STEP, before).modified


def test_a_weight_that_two_layers_share_stays() -> None:
    rng = np.random.default_rng(0)
    text = """tied (float[N,6] x) => (float[N,6] y) {
        a = Gemm(x, w)
        b = Relu(a)
        y = Gemm(b, w)
    }"""
    w = sparse(rng, 1, 6, 6)
    w[2] = 0
    before = model_of(text, w=w)
    assert not run(STEP, before).modified
