from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.passes.graphs import applied, parse

from gossamer.errors import OptionError
from gossamer.graph.qdq import dequantizer, stored_integers
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Plan, Scope, Step
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes import contract
from gossamer.runtimes.onnxruntime import open_session

STATIC = Step("quantize_static")
CORRECT = Step("correct_bias")


def images(n: int, seed: int, mean: float = 1.0) -> np.ndarray:
    """All positive on average, so that errors of weights do not average out."""
    return np.random.default_rng(seed).normal(mean, 0.3, size=(n, 4, 6, 6)).astype(np.float32)


def uneven(outputs: int, inputs: int) -> np.ndarray:
    """Weights that a grid of one scale rounds down almost everywhere: x.4 steps beside one of 127."""
    w = np.random.default_rng(3).integers(-3, 3, (outputs, inputs)).astype(np.float32) + 0.4
    w[:, 0] = 127
    return w / 127


def evidence(x: np.ndarray) -> Evidence:
    return Evidence(samples_from_arrays({"x": list(x)}), 1)


def corrected(model: Model, x: np.ndarray, scope: Scope | None = None) -> tuple[Model, contract.Result]:
    """The quantized model, and what correction makes of it."""
    known = evidence(x)
    before = contract.run(STATIC, model, known).model
    return before, applied(Step("correct_bias", {}, scope or Scope()), before, known)


def mean_error(model: Model, reference: Model, x: np.ndarray) -> np.ndarray:
    """By channel: what the outputs are too high by, on average."""
    wanted, got = (np.asarray(open_session(m, optimize=False).run({"x": x})[0]) for m in (reference, model))
    return np.asarray((got - wanted).mean(axis=(0, *range(2, wanted.ndim))))


def node_of(model: Model, name: str) -> ir.Node:
    return next(node for node in model.ir.graph if node.name == name)


CONV = "test (float[N,4,6,6] x) => (float[N,8,6,6] y) {{ y = Conv({0}) }}"
GEMM = "test (float[N,4,6,6] x) => (float[N,8] y) {{ f = Flatten(x)  a = Gemm<transB={1}>({0})  y = Tanh(a) }}"


def planted(kind: str, biased: bool) -> Model:
    weights = {"c": np.linspace(-1, 1, 8, dtype=np.float32)} if biased else {}
    names = lambda x: f"{x}, w, c" if biased else f"{x}, w"  # noqa: E731
    if kind == "Conv":
        return parse(CONV.format(names("x")), w=uneven(8, 4).reshape(8, 4, 1, 1), **weights)
    w = uneven(8, 144) / 16
    transposed = kind == "Gemm transposed"
    return parse(GEMM.format(names("f"), int(transposed)), w=w if transposed else w.T.copy(), **weights)


@pytest.mark.parametrize("kind", ["Conv", "Gemm", "Gemm transposed"])
@pytest.mark.parametrize("biased", [True, False])
def test_planted_mean_error_falls_on_other_samples(kind: str, biased: bool) -> None:
    model = planted(kind, biased)
    before, result = corrected(model, images(16, seed=1))
    assert result.modified and result.notes == ("correct_bias kept 1 of 1 layers",)
    other = images(64, seed=2)
    old, new = mean_error(before, model, other), mean_error(result.model, model, other)
    assert np.linalg.norm(new) < 0.5 * np.linalg.norm(old)
    name = "node_y" if kind == "Conv" else "node_a"
    assert (dequantizer(node_of(before, name), 2) is not None) is biased
    bias = dequantizer(node_of(result.model, name), 2)
    assert bias is not None
    stored = stored_integers(bias)
    assert stored is not None and stored.integers.dtype == np.int32


def test_correction_runs_in_integer_kernels_too() -> None:
    model = planted("Conv", False)
    before, result = corrected(model, images(16, seed=1))
    x = images(64, seed=2)
    wanted, old, new = (np.asarray(open_session(m).run({"x": x})[0]) for m in (model, before, result.model))
    assert np.abs((new - wanted).mean()) < 0.5 * np.abs((old - wanted).mean())


@settings(max_examples=15)
@given(st.integers(0, 2**16))
def test_kept_only_where_the_other_half_agrees(seed: int) -> None:
    """Even and odd samples lie on two sides of zero, so what helps one half hurts the other."""
    model = planted("Conv", True)
    x = images(16, seed, mean=1.0)
    x[1::2] *= -1
    before, result = corrected(model, x)
    assert not result.modified and result.model is before
    assert result.notes == ("correct_bias kept 0 of 1 layers",)


def test_second_application_changes_little() -> None:
    model, x = planted("Conv", True), images(32, seed=1)
    _, once = corrected(model, x)
    twice = contract.run(CORRECT, once.model, evidence(x))
    other = images(64, seed=2)
    drift = mean_error(twice.model, once.model, other)
    assert np.linalg.norm(drift) < 0.1 * np.linalg.norm(mean_error(once.model, corrected(model, x)[0], other))


def test_only_named_convolutions_and_gemms() -> None:
    text = """test (float[N,4,6,6] x) => (float[N,8,6,8] y) {
        a = Conv(x, w)  b = Relu(a)  m = MatMul(b, v)  y = Conv(m, u) }"""
    weights = {"w": uneven(8, 4).reshape(8, 4, 1, 1), "v": uneven(6, 8), "u": uneven(8, 8).reshape(8, 8, 1, 1)}
    before, result = corrected(parse(text, **weights), images(16, seed=1))
    assert result.notes == ("correct_bias kept 2 of 2 layers",)
    assert len(node_of(result.model, "node_m").inputs) == 2
    before, result = corrected(parse(text, **weights), images(16, seed=1), Scope(only=("node_a",)))
    assert result.notes == ("correct_bias kept 1 of 1 layers",)
    assert len(node_of(result.model, "node_y").inputs) == len(node_of(before, "node_y").inputs) == 2


def test_grouped_and_per_tensor_layers() -> None:
    w = uneven(8, 2).reshape(8, 2, 1, 1)
    model = parse(
        "test (float[N,4,6,6] x) => (float[N,8,4,4] y) { y = Conv<group=2, dilations=[2,2]>(x, w) }",
        w=np.tile(w, (1, 1, 2, 2)),
    )
    x, other = images(16, seed=1), images(64, seed=2)
    for granularity in ("channel", "tensor"):
        before = contract.run(Step("quantize_static", {"granularity": granularity}), model, evidence(x)).model
        after = contract.run(CORRECT, before, evidence(x))
        assert after.modified
        old, new = mean_error(before, model, other), mean_error(after.model, model, other)
        assert np.linalg.norm(new) < 0.5 * np.linalg.norm(old)


@pytest.mark.parametrize("batch", ["1", "4"])
def test_fixed_batch(batch: str) -> None:
    text = CONV.format("x, w").replace("N", batch)
    _, result = corrected(parse(text, w=uneven(8, 4).reshape(8, 4, 1, 1)), images(6, seed=1))
    assert result.modified


def test_nothing_to_correct() -> None:
    x = images(4, seed=1)
    float_model = planted("Conv", True)
    result = contract.run(CORRECT, float_model, evidence(x))
    assert result.model is float_model and result.notes == ("correct_bias: no quantized convolution or Gemm",)
    dynamic = contract.run_plan(Plan("p", (Step("quantize_dynamic"), CORRECT)), planted("Gemm", True), evidence(x))
    assert dynamic.notes[-1] == "correct_bias: no quantized convolution or Gemm"


def test_a_model_that_came_quantized_is_left() -> None:
    """Its layers have no float form to be held against, whatever their names."""
    x = images(8, seed=1)
    quantized = contract.run(STATIC, planted("Conv", True), evidence(x)).model
    foreign = Model(quantized.ir, "foreign", reference=Model(quantized.ir, "foreign"))
    assert not contract.run(CORRECT, foreign, evidence(x)).modified


def test_options_samples_and_bytes() -> None:
    model, x = planted("Conv", True), images(8, seed=1)
    with pytest.raises(OptionError, match=r"correct_bias: .*strength.*its options are none"):
        contract.run(Step("correct_bias", {"strength": 1}), model, evidence(x))
    with pytest.raises(OptionError, match="correct_bias needs calibration samples; give --data"):
        contract.run(CORRECT, model)
    assert to_bytes(corrected(model, x)[1].model) == to_bytes(corrected(model, x)[1].model)
