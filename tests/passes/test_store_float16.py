from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.passes import graphs
from tests.passes.graphs import applied, normal

from gossamer.errors import OptionError
from gossamer.graph.edit import constant
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Scope, Step
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes import contract
from gossamer.runtimes.onnxruntime import open_session

TEXT = """test (float[N,64] x) => (float[N,32] y) {
    a = MatMul(x, w)  b = Add(a, c)  d = Relu(b)  y = MatMul(d, v) }"""


def parse(text: str = TEXT, **weights: np.ndarray) -> Model:
    return graphs.parse(text, **weights)


def weights() -> dict[str, np.ndarray]:
    return {"w": normal(64, 128), "c": normal(128), "v": normal(128, 32)}


def stored(model: Model, scope: Scope | None = None, **config: Any) -> contract.Result:
    return applied(Step("store_float16", config, scope or Scope()), model)


def dtypes(model: Model) -> dict[str, np.dtype]:
    return {name: np.asarray(constant(value)).dtype for name, value in model.ir.graph.initializers.items()}


def run(model: Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(open_session(model).run({"x": x})[0])


def test_half_the_bytes_and_the_function_of_the_rounded_weights() -> None:
    model = parse(**weights())
    result = stored(model).model
    assert dtypes(result) == {"w_float16": np.float16, "c": np.float32, "v_float16": np.float16}
    assert result.weight_bytes() < 0.51 * model.weight_bytes()
    assert len(to_bytes(result)) < 0.55 * len(to_bytes(model))
    rounded = {name: w.astype(np.float16).astype(np.float32) if w.size >= 256 else w for name, w in weights().items()}
    x = normal(4, 64)
    assert np.array_equal(run(result, x), run(parse(**rounded), x))
    assert [value.name for value in result.ir.graph.outputs] == ["y"]
    assert to_bytes(stored(model).model) == to_bytes(result)


@given(st.integers(-30, 30), st.integers(0, 1000))
def test_what_is_stored_is_within_float16_rounding(exponent: int, seed: int) -> None:
    """Tensors of any size: those that float16 cannot hold, too large or too small, stay as they are."""
    w = (normal(64, 128, seed=seed) * 2.0**exponent).astype(np.float32)
    result = stored(parse(**{**weights(), "w": w}))
    kind = dtypes(result.model)
    if "w" in kind:
        assert exponent > 13 or exponent < -13
        assert any(note.startswith("store_float16 left w in float32: its ") for note in result.notes)
    else:
        assert -30 < exponent < 17
        kept = np.asarray(constant(result.model.ir.graph.initializers["w_float16"])).astype(np.float32)
        assert np.linalg.norm(kept - w) <= 1e-3 * np.linalg.norm(w)


def test_a_few_values_below_the_normal_floats_do_no_harm() -> None:
    w = normal(64, 128)
    w[0] *= 1e-6
    w[1] *= 1e-12
    result = stored(parse(**{**weights(), "w": w})).model
    assert dtypes(result)["w_float16"] == np.float16
    x = normal(4, 64)
    wanted, got = run(parse(**{**weights(), "w": w}), x), run(result, x)
    assert np.abs(wanted - got).max() < 2e-3 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("value", "reason"),
    [(1e5, "its largest magnitude is beyond 65504"), (np.inf, "it holds NaN or infinity"), (np.nan, "it holds NaN")],
)
def test_values_that_float16_cannot_hold_stay(value: float, reason: str) -> None:
    w = normal(64, 128)
    w[3, 3] = value
    result = stored(parse(**{**weights(), "w": w}))
    assert dtypes(result.model)["w"] == np.float32
    assert f"store_float16 left w in float32: {reason}" in result.notes[0]


def test_tied_weight_is_stored_once_and_cast_once() -> None:
    model = parse("test (float[N,64] x) => (float[N,64] y) { a = MatMul(x, w)  y = MatMul(a, w) }", w=normal(64, 64))
    result = stored(model).model
    assert set(dtypes(result)) == {"w_float16"}
    assert sum(node.op_type == "Cast" for node in result.ir.graph) == 1


def test_weight_read_in_a_branch_or_out_of_scope_stays() -> None:
    text = """test (float[4,64] x) => (float[4,64] y) {
        a = MatMul(x, w)
        m = ReduceSum<keepdims=0>(a)
        c = Greater(m, zero)
        y = If(c) < then_branch = t () => (float[4,64] t1) { t1 = MatMul(a, w) },
                    else_branch = e () => (float[4,64] e1) { e1 = MatMul(a, v) } > }"""
    model = parse(text, w=normal(64, 64), v=normal(64, 64), zero=np.array(0, np.float32))
    assert not stored(model).modified
    two = parse("test (float[N,64] x) => (float[N,64] y) { a = MatMul(x, w)  y = MatMul(a, w) }", w=normal(64, 64))
    assert not stored(two, Scope(skip=("node_y",))).modified
    assert set(dtypes(stored(parse(**weights()), Scope(only=("node_y",))).model)) == {"w", "c", "v_float16"}


def test_smallest_size() -> None:
    assert dtypes(stored(parse(**weights()), smallest_size=1).model).keys() == {"w_float16", "c_float16", "v_float16"}
    result = stored(parse(**weights()), smallest_size=10**6)
    assert not result.modified and result.notes == ("store_float16: no float32 weight is large enough",)
    with pytest.raises(OptionError, match=r"store_float16: .*size.*its options are smallest_size"):
        stored(parse(**weights()), size=3)


def test_scales_of_quantizers_stay_float32() -> None:
    """Rounded scales would shift all weights alike, and the runtime fuses constants only."""
    model = parse(
        "test (float[N,16] x) => (float[N,512] y) { y = Gemm<transB=1>(x, w, c) }", w=normal(512, 16), c=normal(512)
    )
    samples = samples_from_arrays({"x": list(normal(8, 16))})
    integers = contract.run(Step("quantize_static"), model, Evidence(samples, 1)).model
    assert dtypes(integers)["w_scale"] == np.float32
    assert not stored(integers).modified
