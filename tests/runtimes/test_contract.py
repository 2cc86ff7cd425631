"""Every runtime keeps the contract of `gossamer.runtimes.contract`.

Runtimes are found by name, so a new file in `gossamer/runtimes` is tested here without an edit.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from time import process_time, thread_time

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from gossamer.errors import CandidateError, OptionError
from gossamer.nouns.model import Model
from gossamer.runtimes import contract
from gossamer.runtimes.contract import Runtime

HEAD = '<ir_version: 10, opset_import: ["" : 21, "custom" : 1]>\n'
TWO_INPUTS = """two (float[batch,2,6,6] image, int64[batch,4] counts) => (float[batch,4] sum, float[batch,4] mean) {
    convolved = Conv(image, w)
    bent = Relu(convolved)
    mean4 = GlobalAveragePool(bent)
    mean = Flatten(mean4)
    real = Cast <to=1> (counts)
    sum = Add(mean, real)
}"""
LEAST_SNR_DB = {"float32": 100.0, "float16": 50.0, "bfloat16": 30.0}


def proto_of(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(HEAD + text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    for node in proto.graph.node:
        node.name = f"node_{node.output[0]}"
    return proto


def model_of(proto: onnx.ModelProto) -> Model:
    return Model(ir.serde.deserialize_model(proto), "small")


def two_inputs() -> onnx.ModelProto:
    return proto_of(TWO_INPUTS, w=np.random.default_rng(1).normal(size=(4, 2, 3, 3)).astype(np.float32))


def feeds(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    image = rng.normal(size=(rows, 2, 6, 6)).astype(np.float32)
    return {"counts": rng.integers(0, 3, (rows, 4)), "image": image}


def snr_db(got: np.ndarray, expected: np.ndarray) -> float:
    noise = np.sum((got - expected) ** 2, dtype=np.float64)
    return float(10 * np.log10(np.sum(expected**2, dtype=np.float64) / max(noise, 1e-30)))


@pytest.fixture(params=contract.names())
def runtime(request: pytest.FixtureRequest) -> Runtime:
    try:
        module: Runtime = importlib.import_module(f"gossamer.runtimes.{request.param}")
    except ImportError as error:
        pytest.skip(f"runtime {request.param} is not installed: {error}")
    return module


def test_it_says_who_it_is_and_what_it_gains_from(runtime: Runtime) -> None:
    assert contract.find(runtime.NAME) is runtime
    assert runtime.VERSION[0].isdigit()
    assert runtime.FLOAT in LEAST_SNR_DB
    assert runtime.ACTIVATION in ("uint8", "int8")
    assert set(runtime.INTEGER_PRODUCTS) <= set(runtime.INTEGER_OPERATORS)
    assert isinstance(runtime.FAST_DYNAMIC, bool)
    passes = importlib.import_module("gossamer.passes.contract").names()
    assert {*runtime.SLOW_FUSIONS, *runtime.FAST_FORMS} <= set(passes)


def test_any_batch_comes_out_as_the_operators_say(runtime: Runtime) -> None:
    proto = two_inputs()
    session = runtime.open_session(model_of(proto))
    for rows in (1, 5, 2):
        expected = ReferenceEvaluator(proto).run(None, feeds(rows))
        for got, wanted in zip(session.run(feeds(rows)), expected, strict=True):
            assert got.shape == wanted.shape
            assert snr_db(got, wanted) > LEAST_SNR_DB[runtime.FLOAT]


def test_inputs_and_outputs_are_those_of_the_file(runtime: Runtime) -> None:
    session = runtime.open_session(model_of(two_inputs()))
    assert list(session.inputs) == ["image", "counts"]
    dtype, shape = session.inputs["image"]
    assert (dtype, shape[1:]) == (np.float32, (2, 6, 6)) and not isinstance(shape[0], int)
    assert session.inputs["counts"][0] == np.int64
    assert session.outputs == {"sum": np.float32, "mean": np.float32} and list(session.outputs) == ["sum", "mean"]
    assert session.static_batch is None
    assert session.threads == 1 and session.runtime == f"{runtime.NAME} {runtime.VERSION}"


def test_outputs_are_chosen_by_name_and_in_that_order(runtime: Runtime) -> None:
    session = runtime.open_session(model_of(two_inputs()))
    total, mean = session.run(feeds(3))
    np.testing.assert_array_equal(session.run(feeds(3), ["mean"])[0], mean)
    turned = session.run(feeds(3), ["mean", "sum"])
    np.testing.assert_array_equal(turned[0], mean)
    np.testing.assert_array_equal(turned[1], total)


def test_names_survive_where_tensors_are_equal(runtime: Runtime) -> None:
    proto = proto_of("same (float[2,3] x) => (float[2,3] b, float[2,3] a) { b = Relu(x)\n a = Identity(b) }")
    session = runtime.open_session(model_of(proto))
    x = np.array([[-1, 0, 1], [2, -3, 4]], np.float32)
    assert list(session.outputs) == ["b", "a"]
    for y in session.run({"x": x}):
        np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_a_batch_smaller_than_a_static_one_is_padded_and_cut_back(runtime: Runtime) -> None:
    proto = proto_of("fixed (float[4,3] x) => (float[4,3] y) { y = Relu(x) }")
    session = runtime.open_session(model_of(proto))
    x = np.array([[-1, 2, 3]], np.float32)
    assert session.static_batch == 4
    (y,) = session.run({"x": x})
    np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_results_stay_when_the_next_batch_runs(runtime: Runtime) -> None:
    proto = proto_of("keep (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    session = runtime.open_session(model_of(proto))
    (first,) = session.run({"x": np.full((2, 3), 1, np.float32)})
    (second,) = session.run({"x": np.full((2, 3), 2, np.float32)})
    assert (first == 1).all() and (second == 2).all()


def test_an_array_that_was_changed_in_place_is_read_again(runtime: Runtime) -> None:
    session = runtime.open_session(model_of(proto_of("read (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")))
    x = np.ones((2, 3), np.float32)
    session.run({"x": x})
    x[:] = 5
    assert (session.run({"x": x})[0] == 5).all()


def test_strided_and_read_only_arrays_are_taken(runtime: Runtime) -> None:
    session = runtime.open_session(model_of(proto_of("any (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")))
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(session.run({"x": x.T})[0], x.T)
    x.flags.writeable = False
    np.testing.assert_array_equal(session.run({"x": x[:, 1:]})[0], x[:, 1:])
    np.testing.assert_array_equal(session.run({"x": x.reshape(4, 3)})[0], x.reshape(4, 3))


def test_a_file_with_its_weights_beside_it_is_opened(runtime: Runtime, tmp_path: Path) -> None:
    proto = two_inputs()
    onnx.save(proto, tmp_path / "whole.onnx")
    onnx.save(proto, tmp_path / "split.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").stat().st_size >= 4 * 2 * 3 * 3 * 4
    whole, split = (runtime.open_session(tmp_path / f"{name}.onnx").run(feeds(2)) for name in ("whole", "split"))
    np.testing.assert_array_equal(whole[0], split[0])


def test_what_it_cannot_run_is_refused_in_one_line(runtime: Runtime) -> None:
    proto = proto_of("odd (float[N,3] x) => (float[N,3] y) { y = custom.Bar(x) }")
    with pytest.raises(CandidateError, match=rf"{runtime.NAME} refuses the model: .*Bar") as caught:
        runtime.open_session(model_of(proto))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_model_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match=rf"{runtime.NAME} refuses the model: .*missing\.onnx"):
        runtime.open_session(tmp_path / "missing.onnx")


def test_with_one_thread_the_calling_thread_does_the_work(runtime: Runtime) -> None:
    """`measuring.latency` reads the calling thread's processor time, and would miss what a pool of workers does."""
    w = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    chain = "\n".join(f"x{i + 1} = MatMul(x{i}, w)" for i in range(4))
    proto = proto_of(f"chain (float[N,512] x0) => (float[N,512] x4) {{ {chain} }}", w=w)
    session = runtime.open_session(model_of(proto), threads=1)
    x = np.ones((64, 512), np.float32)
    session.run({"x0": x})
    own, all_threads = thread_time(), process_time()
    for _ in range(20):
        session.run({"x0": x})
    own, all_threads = thread_time() - own, process_time() - all_threads
    assert own > 0.005 and own > 0.9 * all_threads


def test_threads_are_passed_on(runtime: Runtime) -> None:
    session = runtime.open_session(model_of(two_inputs()), threads=2)
    assert session.threads == 2 and session.run(feeds(2))[0].shape == (2, 4)


def test_an_unknown_runtime_names_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"runtime 'openvin' is unknown, did you mean openvino\? allowed are .*"):
        contract.find("openvin")


@pytest.mark.parametrize("name", contract.names())
def test_a_missing_package_says_how_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"gossamer.runtimes.{name}", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(OptionError, match=rf'runtime {name}: .*pip install "gossamer\[{name}\]"'):
        contract.find(name)
