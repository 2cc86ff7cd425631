from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gossamer.errors import ModelError
from gossamer.graph.layers import (
    Layer,
    bias_array,
    check_finite,
    is_depthwise,
    is_narrow_stem,
    layer_of,
    reads_table,
)


def node(text: str, x: str = "float[2,4]", **weights: np.ndarray) -> ir.Node:
    graph = f"test ({x} x, float[4,4] v, float[4] d) => (float[M,K] y) {{ y = {text} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21, "com.example" : 1]>\n{graph}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return ir.serde.deserialize_model(proto).graph[0]


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_channel_axis_and_bias() -> None:
    for text, w, axis in (
        ("Conv(x, w, c)", ones(3, 4, 1), 0),
        ("Gemm(x, w, c)", ones(4, 3), 1),
        ("Gemm<transB=1>(x, w, c)", ones(3, 4), 0),
    ):
        layer = layer_of(node(text, w=w, c=np.arange(3, dtype=np.float32)))
        assert isinstance(layer, Layer) and (layer.channel_axis, layer.channels) == (axis, 3)
        assert layer.x.name == "x" and layer.weight.name == "w"
        assert np.array_equal(bias_array(layer), [0, 1, 2])
    layer = layer_of(node("MatMul(x, w)", w=ones(4, 3)))
    assert isinstance(layer, Layer) and layer.channels == 3 and layer.bias is None
    assert np.array_equal(bias_array(layer), np.zeros(3, np.float32))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3,), (1, 3)])
def test_bias_of_a_gemm_broadcasts(shape: tuple[int, ...]) -> None:
    layer = layer_of(node("Gemm(x, w, c)", w=ones(4, 3), c=np.full(shape, 5, np.float32)))
    assert isinstance(layer, Layer) and bias_array(layer).tolist() == [5, 5, 5]


@pytest.mark.parametrize(
    ("text", "weight", "reason"),
    [
        ("Relu(x)", (), "Relu has no weight"),
        ("com.example.Conv(x, w)", (3, 4, 1), "com.example.Conv is a custom operator"),
        ("MatMul(x, v)", (), "its weight is computed at run time"),
        ("MatMul(w, x)", (2, 2), "its weight is computed at run time"),
        ("Conv(x, w, d)", (4, 4, 1), "its bias is computed at run time"),
        ("MatMul(x, w)", (1, 4, 3), "its weight has 3 axes"),
        ("MatMul(x, w)", (4,), "its weight has 1 axes"),
        ("Gemm<transA=1>(x, w)", (2, 3), "its input is transposed"),
        ("Gemm<alpha=0.5>(x, w)", (4, 3), "alpha and beta are not 1"),
        ("Gemm(x, w, c)", (4, 2), r"its bias has shape \(2, 1\), not one value a channel"),
    ],
)
def test_reasons(text: str, weight: tuple[int, ...], reason: str) -> None:
    found = layer_of(node(text, w=ones(*weight), c=ones(2, 1)))
    assert isinstance(found, str)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(found)


def test_types() -> None:
    half = layer_of(node("MatMul(x, w)", w=np.ones((4, 3), np.float16)))
    assert half == "its weight is float16, not float32"
    assert layer_of(node("MatMul(x, w)", x="float16[2,4]", w=ones(4, 3))) == "its input is not known to be float32"


def test_depthwise_and_stems() -> None:
    assert is_depthwise(node("Conv<group=4>(x, w)", w=ones(4, 1, 3)))
    assert not is_depthwise(node("Conv(x, w)", w=ones(4, 1, 3)))
    assert not is_depthwise(node("Conv<group=2>(x, w)", w=ones(4, 2, 3)))
    assert is_narrow_stem(node("Conv(x, w)", w=ones(8, 3, 3)))
    assert not is_narrow_stem(node("Conv<group=4>(x, w)", w=ones(4, 1, 3)))
    assert not is_narrow_stem(node("Conv(x, w)", w=ones(8, 5, 3)))
    assert not is_narrow_stem(node("MatMul(x, w)", w=ones(4, 3)))


def test_tables() -> None:
    assert reads_table(node("Gather(w, x)", x="int64[N]", w=ones(4, 3)))
    assert not reads_table(node("Gather<axis=1>(w, x)", x="int64[N]", w=ones(4, 3)))
    assert not reads_table(node("Gather(w, x)", x="int64[N]", w=ones(4, 3, 2)))
    assert not reads_table(node("Gather(w, x)", x="int64[N]", w=np.ones((4, 3), np.int64)))
    assert not reads_table(node("Gather(x, w)", w=np.ones(2, np.int64)))


def test_finite() -> None:
    whole = node("MatMul(x, w)", w=ones(4, 3))
    check_finite(whole, *whole.inputs, None)
    broken = node("MatMul(x, w)", w=np.full((4, 3), -np.inf, np.float32))
    broken.name = "last"
    with pytest.raises(ModelError, match="weight 'w' of node 'last' holds NaN or infinity and cannot be quantized"):
        check_finite(broken, broken.inputs[1])
