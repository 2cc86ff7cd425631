"""The Keras door: the graph computes what the model computes, and shrinks like any other."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from gossamer.errors import ModelError
from gossamer.intake.onnx_file import load
from gossamer.nouns.model import Model, to_bytes
from gossamer.runtimes.onnxruntime import open_session


def outputs(model: Model, *arrays: np.ndarray) -> list[np.ndarray]:
    return open_session(model).run(dict(zip([str(v.name) for v in model.ir.graph.inputs], arrays, strict=True)))


def assert_same(model: Any, *arrays: np.ndarray) -> Model:
    import keras

    ours = load(model)
    flat = keras.Model(model.inputs, model.outputs)
    theirs = flat(list(arrays) if len(arrays) > 1 else arrays[0], training=False)
    theirs = theirs if isinstance(theirs, (list, tuple)) else [theirs]
    for got, wanted in zip(outputs(ours, *arrays), map(np.asarray, theirs), strict=True):
        assert got.shape == wanted.shape and np.ptp(wanted) > 1e-3, (
            "the outputs must differ for the test to see anything"
        )
        np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max())
    return ours


def operators(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.ir.graph)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_file_computes_what_the_model_does(
    trained: Any, pictures: dict[str, np.ndarray], tmp_path: Path, suffix: str
) -> None:
    trained.save(tmp_path / f"net{suffix}")
    model = load(tmp_path / f"net{suffix}")
    given = pictures["image"][:7]
    np.testing.assert_allclose(outputs(model, given)[0], trained.predict(given, verbose=0), atol=1e-5)
    assert model.path is None and model.name == f"net{suffix}"
    assert any("tf2onnx" in note and "Keras 3" in note for note in model.notes)
    (value,) = model.ir.graph.inputs
    assert (value.name, [str(size) for size in value.shape or ()]) == ("image", ["batch", "28", "28", "1"])


def test_no_shape_is_computed_at_run_time(trained: Any) -> None:
    assert set(operators(load(trained))) == {
        "Reshape",
        "Conv",
        "Relu",
        "MaxPool",
        "Transpose",
        "MatMul",
        "Add",
        "Softmax",
    }


def test_the_case_shrinks_and_gets_faster(trained: Any, rest_npz: Path, tmp_path: Path) -> None:
    trained.save(tmp_path / "net.keras")
    record = gossamer.compress(tmp_path / "net.keras", rest_npz, gossamer.Budget(max_drop=0.02), out=tmp_path / "out")
    assert record.met and record.chosen != "original"
    assert record.bytes.result < 0.3 * record.bytes.original
    assert record.latency_ms is not None and record.latency_ms.result < record.latency_ms.original
    assert (tmp_path / "out" / "original.onnx").exists()  # what the result was held against


def test_the_terminal_stays_clean_and_the_bytes_are_the_same_in_every_run(trained: Any, tmp_path: Path) -> None:
    trained.save(tmp_path / "net.keras")
    code = "import gossamer, sys; from gossamer.nouns.model import to_bytes; "
    code += "open(sys.argv[2], 'wb').write(to_bytes(gossamer.load(sys.argv[1])))"
    for seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "net.keras"), str(tmp_path / seed)],
            capture_output=True,
            env={"PATH": "", "PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            check=True,
        )
        assert ran.stdout == b"" and ran.stderr == b""
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes() == to_bytes(load(tmp_path / "net.keras"))


def test_gelu_and_attention_come_in() -> None:
    import keras

    keras.utils.set_random_seed(1)
    layers = keras.layers
    tokens = keras.Input((16,), dtype="int32", name="tokens")
    x = layers.Embedding(50, 32)(tokens)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 16)(x, x))
    x = layers.Dense(32)(layers.Dense(64, activation="gelu")(x))
    model = keras.Model(tokens, layers.Dense(2)(layers.Flatten()(x)))
    assert_same(model, np.random.default_rng(0).integers(0, 50, (3, 16)).astype(np.int32))


def test_no_transpose_stays_between_convolutions_even_with_scalar_additions() -> None:
    """tf2onnx 1.17 alone gives up on all of them once an Add has a scalar constant, as a hard swish has."""
    import keras

    keras.utils.set_random_seed(1)
    layers = keras.layers
    x = image = keras.Input((16, 16, 3))
    for _ in range(3):
        x = layers.Conv2D(8, 3, padding="same")(x)
        x = x * (layers.ReLU(6.0)(x + 3.0) / 6.0)
    grouped = layers.Conv2D(8, 3, groups=4)(x)  # a function of its own in TensorFlow's graph
    model = keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(grouped)))
    ours = assert_same(model, np.random.default_rng(0).normal(0, 3, (2, 16, 16, 3)).astype(np.float32))
    assert operators(ours)["Conv"] == 4
    assert operators(ours)["Transpose"] <= 2  # at the entrance, and in front of the pooling


def test_several_inputs_and_outputs_keep_names_and_order() -> None:
    import keras

    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    both = keras.layers.Concatenate()([left, right])
    model = keras.Model(
        [right, left], [keras.layers.Dense(2, name="two")(both), keras.layers.Dense(3, name="one")(both)]
    )
    random = np.random.default_rng(0)
    ours = assert_same(model, *(random.random((5, 4), np.float32) for _ in range(2)))
    assert [value.name for value in ours.ir.graph.inputs] == ["right", "left"]
    assert [value.name for value in ours.ir.graph.outputs] == ["two", "one"]


def test_a_lambda_in_a_file_is_not_run(tmp_path: Path) -> None:
    import keras

    mark = tmp_path / "ran"
    code = keras.layers.Lambda(lambda x, where=str(mark): (open(where, "w").close(), x)[1])
    keras.Sequential([keras.Input((2,)), code]).save(tmp_path / "bad.keras")
    mark.unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"bad\.keras holds a Lambda layer, which is Python code and is not run"):
        load(tmp_path / "bad.keras")
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x89HDF\r\n\x1a\n"])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"bad{suffix}").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be loaded by Keras") as caught:
        load(tmp_path / f"bad{suffix}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_what_cannot_be_converted_is_named() -> None:
    import keras

    class Odd(keras.layers.Layer):  # type: ignore[misc, name-defined]
        def call(self, x):  # type: ignore[no-untyped-def]
            import tensorflow as tf

            return tf.math.lgamma(x)

    x = keras.Input((3,))
    with pytest.raises(ModelError, match=r"tf2onnx .* cannot convert Lgamma"):
        load(keras.Model(x, Odd()(x)))


def test_a_model_without_known_inputs_says_how_to_give_it_some() -> None:
    import keras

    class Own(keras.Model):  # type: ignore[misc, name-defined]
        def call(self, x):  # type: ignore[no-untyped-def]
            return x + 1

    with pytest.raises(ModelError, match=r"has no known inputs; wrap it: x = keras\.Input"):
        load(Own())
