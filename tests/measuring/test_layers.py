"""The layer table and the totals: shapes, weights, what can shrink and why not."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gossamer.measuring.inspection import Inspection, inspect
from gossamer.measuring.layers import Layer, layer_table
from gossamer.measuring.shapes import static_shapes
from gossamer.nouns.model import Model


def built(text: str, **initializers: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20, "my.house" : 1]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in initializers.items())
    inferred = onnx.shape_inference.infer_shapes(proto)
    return Model(ir.from_proto(inferred), "m.onnx")


def ones(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


def only(model: Model) -> Layer:
    (layer,) = layer_table(model)
    return layer


def test_a_row_tells_everything() -> None:
    text = "g (float[batch, 8, 6, 6] x) => (float[batch, 4, 5, 5] y) { [conv] y = Conv(x, w, b) }"
    assert only(built(text, w=ones(4, 8, 2, 2), b=ones(4))) == Layer(
        name="conv",
        op="Conv",
        input_shapes=((1, 8, 6, 6),),
        output_shapes=((1, 4, 5, 5),),
        parameters=4 * 8 * 4 + 4,
        macs=25 * 4 * 8 * 4,
        weight_bytes=4 * (4 * 8 * 4 + 4),
        output_bytes=400,
        compressible=True,
    )


@pytest.mark.parametrize(
    ("text", "weights", "verdict"),
    [
        ("g (float[n, 8] x) => (float[n, 4] y) { y = MatMul(x, w) }", {"w": ones(8, 4)}, (True, "")),
        (
            "g (float[n, 3, 6, 6] x) => (float[n, 4, 4, 4] y) { y = Conv(x, w) }",
            {"w": ones(4, 3, 3, 3)},
            (False, "narrow stem: 3 input channels"),
        ),
        (
            "g (float[n, 8, 6, 6] x) => (float[n, 8, 4, 4] y) { y = Conv<group=8>(x, w) }",
            {"w": ones(8, 1, 3, 3)},
            (True, "depthwise"),
        ),
        (
            "g (float[n, 8] x) => (float[n, 8] y) { y = Mul(x, w) }",
            {"w": ones(8)},
            (False, "too few weights to matter"),
        ),
        ("g (float[2, 2] x) => (float[2, 2] y) { y = MatMul(x, x) }", {}, (False, "no weights")),
        ("g (float[n, 8] x) => (float[n, 8] y) { y = Relu(x) }", {}, (False, "")),
        (
            "g (float16[n, 8] x) => (float16[n, 4] y) { y = MatMul(x, w) }",
            {"w": ones(8, 4, dtype=np.float16)},
            (False, "already float16"),
        ),
        (
            "g (uint8[n, 8] x) => (int32[n, 4] y) { y = MatMulInteger(x, w) }",
            {"w": ones(8, 4, dtype=np.uint8)},
            (False, "already integer"),
        ),
    ],
)
def test_verdict(text: str, weights: dict[str, np.ndarray], verdict: tuple[bool, str]) -> None:
    layer = only(built(text, **weights))
    assert (layer.compressible, layer.reason) == verdict


def test_an_embedding_can_only_become_float16() -> None:
    layer = only(built("g (int64[n, 5] x) => (float[n, 5, 64] y) { y = Gather(w, x) }", w=ones(2000, 64)))
    assert layer.compressible
    assert layer.reason.startswith("float16 only: ")


def test_custom_domains_are_named() -> None:
    text = "g (float[n, 8] x) => (float[n, 8] y) { y = my.house.Twist(x, w) }"
    layer = only(built(text, w=ones(8, 8)))
    assert (layer.op, layer.compressible) == ("my.house.Twist", False)
    assert layer.reason == "custom domain my.house: kept as it is"


def test_subgraphs_are_left_intact() -> None:
    then = "then_branch = t () => (float[n, 4] a) { a = MatMul(x, w) }"
    branches = f"{then}, else_branch = e () => (float[n, 4] b) {{ b = MatMul(x, v) }}"
    text = f"g (bool c, float[n, 8] x) => (float[n, 4] y) {{ y = If(c) <{branches}> }}"
    layer = only(built(text, w=ones(8, 4), v=ones(8, 4)))
    assert (layer.compressible, layer.reason) == (False, "If subgraph: left intact inside")


def test_tied_weights_are_told_and_counted_once() -> None:
    text = "g (float[n, 8] x) => (float[n, 8] y) { [first] a = MatMul(x, w) [second] y = MatMul(a, w) }"
    model = built(text, w=ones(8, 8))
    assert [layer.reason for layer in layer_table(model)] == ["weights tied to second", "weights tied to first"]
    assert inspect(model).parameters == 64


def test_a_quantized_layer_owns_what_its_dequantizer_reads() -> None:
    text = """g (float[n, 8] x) => (float[n, 4] y) {
        wd = DequantizeLinear<axis=1>(w, s, z) bd = DequantizeLinear<axis=0>(b, s, bz) y = Gemm(x, wd, bd)
    }"""
    weights = {"w": ones(8, 4, dtype=np.int8), "b": ones(4, dtype=np.int32), "s": ones(4)}
    layer = only(built(text, **weights, z=np.zeros(4, np.int8), bz=np.zeros(4, np.int32)))
    assert (layer.op, layer.parameters, layer.macs) == ("Gemm", 36, 32)
    assert layer.weight_bytes == 32 + 16 + 16 + 4 + 16
    assert layer.reason == "already integer"


def test_running_statistics_shapes_and_lone_numbers_are_no_parameters() -> None:
    text = """g (float[n, 2, 4] x) => (float[n, 8] y) {
        a = BatchNormalization(x, scale, bias, mean, var) b = Mul(a, half) y = Reshape(b, shape)
    }"""
    parts = {name: ones(2) for name in ("scale", "bias", "mean", "var")}
    model = built(text, **parts, half=np.array(0.5, np.float32), shape=np.array([-1, 8]))
    assert inspect(model).parameters == 4


def test_weights_inside_subgraphs_are_counted() -> None:
    branch = (
        "() => (float[n, 4] {0}) <float[3] {0}c = {{1.0, 2.0, 3.0}}> {{ {0}r = ReduceSum({0}c) {0} = Add(x, {0}r) }}"
    )
    branches = f"then_branch = t {branch.format('a')}, else_branch = e {branch.format('b')}"
    assert inspect(built(f"g (bool c, float[n, 4] x) => (float[n, 4] y) {{ y = If(c) <{branches}> }}")).parameters == 6


# Shapes


def test_bindings_fix_free_axes() -> None:
    text = "g (float[batch, time, 8] x) => (float[batch, time, 4] y) { y = MatMul(x, w) }"
    model = built(text, w=ones(8, 4))
    free = inspect(model)
    assert (free.macs, free.peak_activation_bytes) == (None, None)
    assert free.notes[0] == "dimension time (x axis 1) is free: without a length for it, shapes are unknown"
    assert free.inputs[0].shape == ("batch", "time", 8)
    assert free.inputs[0].dynamic == (0, 1)
    bound = inspect(model, {"time": 16})
    assert (bound.macs, bound.peak_activation_bytes, bound.notes) == (16 * 8 * 4, 16 * 4 * (8 + 4), ())


def test_stale_shapes_inside_do_not_mislead() -> None:
    model = built("g (float[batch, 8] x) => (float[batch, 4] y) { a = Relu(x) y = MatMul(a, w) }", w=ones(8, 4))
    model.ir.graph[0].outputs[0].shape = ir.Shape([77, 8])
    assert layer_table(model)[0].output_shapes == ((1, 8),)


def test_shapes_that_only_a_run_tells() -> None:
    text = "g (float[n, 6] x) => (int64[r, k] y) { a = Relu(x) b = NonZero(a) y = Identity(b) }"
    assert static_shapes(built(text)).dims["y"] == (2, 0)  # zeros were fed


def test_what_cannot_be_run_is_said() -> None:
    text = "g (float[n, 8] x) => (float[n, 8] y) { y = my.house.Twist(x) }"
    found = inspect(built(text))
    assert found.peak_activation_bytes is None
    assert "shapes of 1 tensors are unknown; onnxruntime refuses the model" in found.notes[0]


def test_big_weights_are_not_read(tmp_path: Path) -> None:
    """The weights' file holds nothing: reading them would fail."""
    model = built("g (float[n, 3000] x) => (float[n, 3000] y) { y = Mul(x, w) }", w=ones(3000))
    onnx.save_model(
        ir.to_proto(model.ir), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="w"
    )
    loaded = Model(ir.load(tmp_path / "m.onnx"), "m")
    (tmp_path / "w").write_bytes(b"")
    assert static_shapes(loaded).dims == {"x": (1, 3000), "w": (3000,), "y": (1, 3000)}


# Totals


def test_inspection_survives_json(tmp_path: Path) -> None:
    model = built("g (float[n, 8] x) => (float[n, 4] y) { y = MatMul(x, w) }", w=ones(8, 4))
    onnx.save_model(ir.to_proto(model.ir), tmp_path / "m.onnx")
    found = inspect(Model(ir.load(tmp_path / "m.onnx"), "m.onnx", tmp_path / "m.onnx"))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Inspection) == found
    assert found.bytes == (tmp_path / "m.onnx").stat().st_size
    assert found.opset == {"": 20, "my.house": 1}
    assert (found.parameters, found.macs) == (32, 32)


def test_inspecting_changes_nothing() -> None:
    model = built("g (float[batch, 8] x) => (float[batch, 4] y) { y = MatMul(x, w) }", w=ones(8, 4))
    before = ir.to_proto(model.ir).SerializeToString(deterministic=True)
    inspect(model)
    assert ir.to_proto(model.ir).SerializeToString(deterministic=True) == before
