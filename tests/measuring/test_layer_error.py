"""Layer errors: against numpy, and in the presence of quantizers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import CandidateError
from gossamer.measuring.layer_error import layer_errors
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples, samples_from_arrays

PLAIN = "h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)"
QUANTIZED = "h = MatMul(x, w) r = Relu(h) q = QuantizeLinear(r, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, v)"


def network(body: str, batch: int | str = "n", seed: int = 0, shift: float = 0.0) -> Model:
    text = f'<ir_version: 10, opset_import: ["" : 20]> g (float[{batch}, 6] x) => (float[{batch}, 3] y) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    constants: dict[str, np.ndarray] = {
        "w": rng.standard_normal((6, 5)).astype(np.float32),
        "v": (rng.standard_normal((5, 3)) + shift).astype(np.float32),
        "s": np.array(0.05, np.float32),
        "z": np.array(0, np.uint8),
    }
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(a, name) for name, a in constants.items() if name in body
    )
    return Model(ir.from_proto(proto), "m")


def data(n: int) -> Samples:
    return samples_from_arrays({"x": np.random.default_rng(1).standard_normal((n, 6)).astype(np.float32)})


def test_tensors_before_the_quantizer_are_untouched() -> None:
    found = {error.tensor: error for error in layer_errors(network(PLAIN), network(QUANTIZED), data(30))}
    assert (found["h"].snr_db, found["r"].snr_db) == (200, 200)
    assert 20 < found["y"].snr_db < 50
    assert [found[name].op for name in ("h", "r", "y")] == ["MatMul", "Relu", "MatMul"]
    assert [found[name].position for name in ("h", "r", "y")] == [0, 1, 2]
    assert set(found) == {"h", "r", "y"}


@given(n=st.integers(1, 40), batch=st.sampled_from(["n", 1, 4]))
def test_noise_is_that_of_all_samples_at_once(n: int, batch: int | str) -> None:
    a, b = network(PLAIN, batch), network(PLAIN, batch, shift=0.1)
    x = np.asarray(data(n).columns["x"])
    w, v = (a.ir.graph.initializers[name].const_value.numpy() for name in "wv")  # type: ignore[union-attr]
    hidden = np.maximum(x @ w, 0)
    expected = 10 * np.log10(np.square(hidden @ v).sum() / np.square(hidden @ (v + 0.1) - hidden @ v).sum())
    (worst,) = layer_errors(a, b, data(n), limit=1)
    assert worst.tensor == "y"
    assert worst.snr_db == pytest.approx(expected, abs=1e-2)


def test_worst_comes_first_and_the_models_stay_whole() -> None:
    a, b = network(PLAIN), network(PLAIN, seed=5)
    before = [ir.to_proto(model.ir).SerializeToString(deterministic=True) for model in (a, b)]
    found = layer_errors(a, b, data(10))
    assert [error.snr_db for error in found] == sorted(error.snr_db for error in found)
    assert [ir.to_proto(model.ir).SerializeToString(deterministic=True) for model in (a, b)] == before


def test_tensors_of_other_shapes_are_left_out() -> None:
    other = "h = MatMul(x, w) t = Transpose(h) r = Relu(t) u = Transpose(r) y = MatMul(u, v)"
    assert [error.tensor for error in layer_errors(network(PLAIN), network(other), data(8))] == ["h", "y"]


def test_nothing_in_common() -> None:
    other = "h2 = MatMul(x, w) r2 = Relu(h2) y2 = MatMul(r2, v) y = Identity(y2)"
    assert [error.tensor for error in layer_errors(network(PLAIN), network(other), data(8))] == ["y"]


def test_a_graph_that_fails_on_the_samples() -> None:
    wrong = samples_from_arrays({"x": np.zeros((3, 7), np.float32)})
    with pytest.raises(CandidateError, match="comparing layers of the two models fails: "):
        layer_errors(network(PLAIN), network(PLAIN), wrong)
