"""The TFLite door: float files compress, quantized ones compute what TFLite computes, to the step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from gossamer.errors import ModelError
from gossamer.intake.onnx_file import load
from gossamer.runtimes.onnxruntime import open_session

KINDS = ("float", "float16", "dynamic", "int8", "int8 in and out", "uint8 in and out")


@pytest.fixture(scope="session")
def files(trained: Any, pictures: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The network in every form that TensorFlow's own converter writes."""
    import tensorflow as tf

    def examples() -> Iterator[list[np.ndarray]]:
        return ([pictures["image"][place : place + 1]] for place in range(64))

    made = {}
    for kind in KINDS:
        converter = tf.lite.TFLiteConverter.from_keras_model(trained)
        if kind != "float":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if "int8" in kind:
            converter.representative_dataset = examples
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        if "in and out" in kind:
            kind_type = tf.uint8 if kind.startswith("uint8") else tf.int8
            converter.inference_input_type = converter.inference_output_type = kind_type
        made[kind] = tmp_path_factory.mktemp("tflite") / "net.tflite"
        made[kind].write_bytes(converter.convert())
    return made


def run_tflite(path: Path, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What goes into and comes out of TFLite's own interpreter, picture by picture."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    (entry,), (end,) = interpreter.get_input_details(), interpreter.get_output_details()
    if entry["dtype"] != np.float32:
        scale, zero = entry["quantization"]
        bounds = np.iinfo(entry["dtype"])
        given = np.clip(np.round(given / scale) + zero, bounds.min, bounds.max).astype(entry["dtype"])
    results = []
    for picture in given:
        interpreter.set_tensor(entry["index"], picture[None])
        interpreter.invoke()
        results.append(interpreter.get_tensor(end["index"])[0])
    return given, np.stack(results)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_computes_what_tflite_does(files: dict[str, Path], pictures: dict[str, np.ndarray], kind: str) -> None:
    given, wanted = run_tflite(files[kind], pictures["image"][-100:])
    model = load(files[kind])
    got = open_session(model).run({"image": given})[0]
    assert got.dtype == wanted.dtype and len(np.unique(wanted.argmax(1))) > 5
    # dynamic ranges are TFLite's own arithmetic at run time; else only the order of summation differs
    slack = {"dynamic": 0.02, "int8": 1 / 256}.get(kind, 1e-4 if got.dtype == np.float32 else 1)
    np.testing.assert_allclose(got.astype(float), wanted.astype(float), atol=slack)
    assert any("TFLite file converted by tf2onnx" in note for note in model.notes)
    assert [str(size) for size in model.ir.graph.inputs[0].shape or ()] == ["batch", "28", "28", "1"]


def test_integer_files_stay_small(files: dict[str, Path]) -> None:
    for kind in ("dynamic", "int8"):
        assert load(files[kind]).weight_bytes() < 0.3 * load(files["float"]).weight_bytes()


def test_a_float_file_compresses(files: dict[str, Path], rest_npz: Path, tmp_path: Path) -> None:
    record = gossamer.compress(files["float"], rest_npz, gossamer.Budget(max_drop=0.02), out=tmp_path)
    assert record.met and record.chosen != "original"
    assert record.bytes.result < 0.3 * record.bytes.original


def test_a_quantized_file_goes_through_and_never_gets_worse(
    files: dict[str, Path], rest_npz: Path, tmp_path: Path
) -> None:
    record = gossamer.compress(files["int8"], rest_npz, gossamer.Budget(max_drop=0.02), out=tmp_path)
    assert record.met and record.bytes.result <= record.bytes.original


@pytest.mark.parametrize("kind", ["empty", "text", "cut short", "magic only"])
def test_a_damaged_file_is_one_line(files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    whole = files["float"].read_bytes()
    content = {"empty": b"", "text": b"hello", "cut short": whole[:50_000], "magic only": whole[:8]}[kind]
    (tmp_path / "bad.tflite").write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.tflite(:| is not a TFLite file)") as caught:
        load(tmp_path / "bad.tflite")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_the_original_can_be_compared_with_a_result(files: dict[str, Path], pictures: dict[str, np.ndarray]) -> None:
    comparison = gossamer.compare(files["float"], files["int8"], pictures["image"][:64])
    assert comparison.accuracy.snr_db > 15 and comparison.latency_ms.original > 0
