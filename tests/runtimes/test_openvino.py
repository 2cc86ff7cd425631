"""OpenVINO: what the contract's tests do not ask; integer files, texts of refusals, and the binding of inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("openvino", reason="the second runtime: pip install openvino")

from tests.integers import WEIGHT_BITS

from gossamer.errors import CandidateError, ModelError
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model, save
from gossamer.nouns.plan import Step
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes.contract import run
from gossamer.runtimes import onnxruntime, openvino

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
NET = """net (float[N,4,8,8] x) => (float[N,5] y) {
    a = Conv <pads=[1,1,1,1]> (x, w1, b1)
    b = Relu(a)
    c = Conv <pads=[1,1,1,1], group=8> (b, w2, b2)
    d = Clip(c, zero, six)
    e = Conv(d, w3, b3)
    s = Add(e, a)
    m = GlobalAveragePool(s)
    f = Flatten(m)
    y = Gemm <transB=1> (f, w4, b4)
}"""
SHAPES = {"w1": (8, 4, 3, 3), "w2": (8, 1, 3, 3), "w3": (8, 8, 1, 1), "w4": (5, 8)}


def model(text: str = NET) -> Model:
    proto = onnx.parser.parse_model(HEAD + text)
    rng = np.random.default_rng(5)
    weights = {"zero": np.float32(0), "six": np.float32(6)} if text is NET else {}
    for name, shape in SHAPES.items() if text is NET else ():
        weights[name] = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)
        weights["b" + name[1:]] = rng.normal(0, 0.1, shape[0]).astype(np.float32)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items())
    for node in proto.graph.node:
        node.name = f"node_{node.output[0]}"
    return Model(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto)), "small")


def pictures(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 4, 8, 8)).astype(np.float32)


def snr_db(got: np.ndarray, expected: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(expected**2) / max(np.sum((got - expected) ** 2), 1e-30)))


def test_it_reads_the_file_that_onnxruntime_reads(tmp_path: Path) -> None:
    """The same integers: both differ from float, and hardly from each other."""
    evidence = Evidence(samples_from_arrays({"x": pictures(16)}))
    integer = run(Step("quantize_static", {"weight_bits": WEIGHT_BITS}), model(), evidence).model
    save(integer, tmp_path / "int8.onnx")
    x = {"x": pictures(16, seed=1)}
    exact = onnxruntime.open_session(model()).run(x)[0]
    one = onnxruntime.open_session(tmp_path / "int8.onnx").run(x)[0]
    other = openvino.open_session(tmp_path / "int8.onnx").run(x)[0]
    assert snr_db(one, exact) > 25
    assert snr_db(other, exact) > snr_db(one, exact) - 3
    assert snr_db(other, one) > 30


def test_integer_layers_really_run_in_integers() -> None:
    """The layout that the constants of the module ask for leaves no convolution in float, depthwise ones included."""
    config = {"activation": openvino.ACTIVATION, "operators": list(openvino.INTEGER_OPERATORS)}
    integer = run(Step("quantize_static", config), model(), Evidence(samples_from_arrays({"x": pictures(16)}))).model
    compiled = openvino.ov.Core().compile_model(openvino._read(integer), "CPU", {"INFERENCE_NUM_THREADS": 1})
    kinds = {
        node.friendly_name: str(node.rt_info["runtimePrecision"].value)
        for node in compiled.get_runtime_model().get_ordered_ops()
        if "Convolution" in str(node.rt_info["layerType"].value)
    }
    assert len(kinds) == 3 and set(kinds.values()) <= {"u8", "i8"}, kinds


@given(batches=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_calls_do_not_depend_on_the_calls_before(batches: list[int]) -> None:
    session = SESSION
    expected = {rows: session.run({"x": pictures(rows)})[0] for rows in set(batches)}
    for rows in batches:
        np.testing.assert_array_equal(session.run({"x": pictures(rows)})[0], expected[rows])


SESSION = openvino.open_session(model())


def test_its_float_is_that_of_the_machine() -> None:
    compiled = openvino.ov.Core().compile_model(openvino._read(model()), "CPU")
    short = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    assert {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[short] == openvino.FLOAT


def test_text_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"input 'words' has type string; .* use runtime onnxruntime for text"):
        openvino.open_session(model("text (string[N] words) => (string[N] y) { y = Identity(words) }"))


def test_types_that_numpy_lacks() -> None:
    with pytest.raises(ModelError, match=r"input 'x' has type bf16; "):
        openvino.open_session(model("brain (bfloat16[N,2] x) => (float[N,2] y) { y = Cast <to=1> (x) }"))
    session = openvino.open_session(model("brain (float[N,2] x) => (bfloat16[N,2] y) { y = Cast <to=16> (x) }"))
    assert session.outputs == {"y": None}


def test_a_conflict_of_shapes_names_the_node() -> None:
    with pytest.raises(CandidateError, match=r"openvino refuses the model: .*shapes are inconsistent") as caught:
        openvino.open_session(model("odd (float[2,4] x, float[3,5] z) => (float[M,N] y) { y = Add(x, z) }"))
    assert "Add" in str(caught.value) and "\n" not in str(caught.value) and "src/" not in str(caught.value)


def test_wrong_feeds_say_what_is_wanted() -> None:
    with pytest.raises(CandidateError, match=r"openvino: input 'x' is missing; the model takes x"):
        SESSION.run({"y": pictures(1)})
    with pytest.raises(CandidateError, match=r"the model input \(shape=\[\?,4,8,8\]\) and the tensor .* incompatible"):
        SESSION.run({"x": pictures(1)[:, :2]})
    with pytest.raises(CandidateError, match=r"precision: f64, since the model input tensor precision is: f32"):
        SESSION.run({"x": pictures(1).astype(np.float64)})
    assert SESSION.run({"x": pictures(1)})[0].shape == (1, 5)  # none of them spoilt the session


def test_numbers_without_axes() -> None:
    session = openvino.open_session(model("point (float x) => (float y) { y = Neg(x) }"))
    assert session.inputs == {"x": (np.dtype(np.float32), ())}
    assert session.call(None, {"x": np.array(3, np.float32)})[0] == -3
