"""The Keras and TFLite doors without their packages, and the shapes they leave; what needs them is in tests/doors."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gossamer.errors import MissingExtraError, ModelError
from gossamer.intake.computed_shapes import fix_shapes
from gossamer.intake.onnx_file import load
from gossamer.nouns.model import Model
from gossamer.runtimes.onnxruntime import open_session

NO_BUFFERS = b"\x10\0\0\0TFL3" + b"\0" * 24


def test_without_its_packages_a_keras_file_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    (tmp_path / "net.keras").write_bytes(b"PK")
    with pytest.raises(MissingExtraError, match=r"net\.keras is a Keras model.*pip install 'gossamer\[keras\]'"):
        load(tmp_path / "net.keras")


@pytest.mark.parametrize("content", [b"hello", NO_BUFFERS, NO_BUFFERS[:12], b"\xff\xff\xff\xffTFL3"])
def test_a_tflite_file_cut_short_never_reaches_tensorflow(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.tflite").write_bytes(content)
    with pytest.raises(ModelError, match=r"net\.tflite is not a TFLite file, or is cut short"):
        load(tmp_path / "net.tflite")


def flatten(shape: str, axes: str = "N,3,4,5") -> ir.Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> net (float[{axes}] x) => (float[a,b] y) {{'
        "zero = Constant <value_ints: ints = [0]> () one = Constant <value_ints: ints = [1]> ()"
        f"minus = Constant <value_ints: ints = [-1]> () s = Shape(x) {shape} y = Reshape(x, target) }}"
    )
    return ir.serde.deserialize_model(proto)


@pytest.mark.parametrize(
    "shape",
    [
        "first = Slice(s, zero, one) target = Concat <axis = 0> (first, minus)",
        "all = ReduceProd <keepdims = 1> (s) first = Slice(s, zero, one) rest = Div(all, first) "
        "target = Concat <axis = 0> (first, rest)",
        "two = Add(one, one) first = Slice(s, zero, two) rows = ReduceProd <keepdims = 1> (first) "
        "target = Concat <axis = 0> (rows, minus)",
    ],
)
def test_a_shape_of_one_free_axis_becomes_constant_and_means_the_same(shape: str) -> None:
    given = {"x": np.arange(420, dtype=np.float32).reshape(7, 3, 4, 5)}
    before = Model(flatten(shape), "before")
    wanted = open_session(before).run(given)[0]
    after = before.clone()
    fix_shapes(after.ir)
    (reshape,) = [node for node in after.ir.graph if node.op_type == "Reshape"]
    assert reshape.inputs[1] is not None and reshape.inputs[1].const_value is not None
    np.testing.assert_array_equal(open_session(after).run(given)[0], wanted)


def test_a_shape_of_two_free_axes_stays() -> None:
    model = flatten(
        "two = Add(one, one) first = Slice(s, zero, one) second = Slice(s, one, two) rows = Mul(first, second) "
        "rest = Div(rows, second) many = Mul(second, one) k = Concat <axis = 0> (rest, many) "
        "p = ReduceProd <keepdims = 1> (s) q = Div(p, first) target = Concat <axis = 0> (first, q)",
        "N,M,4,5",
    )
    fix_shapes(model)
    (reshape,) = [node for node in model.graph if node.op_type == "Reshape"]
    assert reshape.inputs[1] is not None and reshape.inputs[1].producer() is not None
