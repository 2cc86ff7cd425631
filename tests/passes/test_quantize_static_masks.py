"""Masks and other large constants beside activations: no range may be stretched by them, and none may be refused."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.integers import WEIGHT_BITS
from tests.passes.graphs import applied, array_of, normal, parse, run

from gossamer.errors import DataError
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Step
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes.contract import Result
from gossamer.passes.quantize_static import OPERATORS

LOWEST = float(np.finfo(np.float32).min)
T, HIDDEN, INNER = 12, 32, 64

# One post-norm encoder layer; MASKED makes `masked` from the scores and the padding, 1 where a token is padding.
BLOCK = f"""test (float[N,{T},{HIDDEN}] x, float[N,1,{T}] padding, float[N,{T},1] column) => (float[N,{T},{HIDDEN}] y)
    <float large = {{LARGE}}, float factor = {{0.1767767}}, float one = {{1}}> {{
    q = MatMul(x, wq)  qb = Add(q, bq)  qs = Mul(qb, factor)
    k = MatMul(x, wk)  kb = Add(k, bk)  kt = Transpose<perm=[0,2,1]>(kb)
    v = MatMul(x, wv)  vb = Add(v, bv)
    s = MatMul(qs, kt)
    MASKED
    p = Softmax<axis=-1>(masked)
    m = MatMul(p, vb)
    o = MatMul(m, wo)  ob = Add(o, bo)
    r = Add(ob, x)
    n = LayerNormalization<axis=-1>(r, g, g0)
    u = MatMul(n, w1)  ub = Add(u, b1)  ug = Gelu(ub)
    z = MatMul(ug, w2)  zb = Add(z, b2)
    r2 = Add(zb, n)
    y = LayerNormalization<axis=-1>(r2, g, g0)
}}"""
FORMS = {
    "added": "a = Mul(padding, large)  masked = Add(s, a)",
    "chosen": "i = Cast<to=9>(padding)  masked = Where(i, large, s)",
    # the mask as a product of its own, so that it lies between integers
    "outer product": "a = MatMul(column, padding)  masked = Add(s, a)",
    "outer product, twice": "a = MatMul(column, padding)  a2 = Add(s, a)  masked = Add(a2, a)",
    "concatenated": "a = MatMul(column, padding)  c = Concat<axis=2>(s, a)  masked = Slice(c, zero, end, two)",
}


def block(form: str, large: float) -> Model:
    rng = np.random.default_rng(5)

    def weight(*shape: int) -> np.ndarray:
        return np.asarray(rng.normal(0, 1.5 / np.sqrt(shape[0]), shape), np.float32)

    text = BLOCK.replace("MASKED", FORMS[form]).replace("LARGE", "0")
    weights: dict[str, Any] = {name: weight(HIDDEN, HIDDEN) for name in ("wq", "wk", "wv", "wo")}
    weights |= {"w1": weight(HIDDEN, INNER), "w2": weight(INNER, HIDDEN), "b1": weight(INNER), "g0": weight(HIDDEN) / 9}
    weights |= {name: weight(HIDDEN) for name in ("bq", "bk", "bv", "bo", "b2")}
    weights |= {"g": np.ones(HIDDEN, np.float32)}
    weights |= {"zero": np.array([0]), "end": np.array([T]), "two": np.array([2])}
    model = parse(text, **weights)
    model.ir.graph.initializers["large"].const_value = ir.tensor(np.float32(large), name="large")
    return model


def feeds(large: float, count: int = 48) -> dict[str, np.ndarray]:
    """Sentences of 3 to 12 tokens."""
    lengths = np.random.default_rng(2).integers(3, T + 1, count)
    padding = np.float32(np.arange(T) >= lengths[:, None])[:, None, :]
    return {"x": normal(count, T, HIDDEN), "padding": padding, "column": np.full((count, T, 1), large, np.float32)}


def quantized(model: Model, fed: dict[str, np.ndarray], **config: Any) -> Result:
    """Weights in the most bits whose products are exact on this machine."""
    samples = samples_from_arrays({name: list(array) for name, array in fed.items()})
    config = {"operators": OPERATORS, "weight_bits": WEIGHT_BITS, **config}
    return applied(Step("quantize_static", config), model, Evidence(samples, 1))


def snr_db(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / max(np.square(wanted - got).sum(), 1e-30)))


@pytest.mark.parametrize("large", [-1e4, -1e9, LOWEST])
@pytest.mark.parametrize("form", FORMS)
def test_all_operators_of_a_masked_encoder(form: str, large: float) -> None:
    model, fed = block(form, large), feeds(large)
    wanted = run(model, False, **fed)[0]
    result = quantized(model, fed)
    for optimize in (False, True):
        assert snr_db(wanted, run(result.model, optimize, **fed)[0]) > 25
    stored = [name for name in result.model.ir.graph.initializers if name.endswith("_quantized")]
    assert sorted(stored) == [f"w{name}_quantized" for name in ("1", "2", "k", "o", "q", "v")]


@pytest.mark.parametrize("form", ["added", "chosen"])
def test_a_mask_of_minus_infinity(form: str) -> None:
    fed = feeds(0.0)
    if form == "added":  # zero times infinity is no number, so the mask is given as it is
        fed["padding"] = np.where(fed["padding"] > 0, -np.inf, 0).astype(np.float32)
    model = block(form, 1.0 if form == "added" else -np.inf)
    wanted, result = run(model, False, **fed)[0], quantized(model, fed)
    assert snr_db(wanted, run(result.model, True, **fed)[0]) > 25


def test_the_note_names_the_activation_and_what_it_spans() -> None:
    model, fed = block("outer product", -1e4), feeds(-1e4)
    notes = " ".join(quantized(model, fed).notes)
    assert "node_masked in float: its activation 'masked' runs from -1" in notes
    assert re.search("in steps of 39.3 most of it would keep -?[0-3] dB", notes)
    loose = quantized(model, fed, least_snr_db=-100.0)
    assert "masked" not in " ".join(loose.notes)
    assert snr_db(run(model, False, **fed)[0], run(loose.model, False, **fed)[0]) < 15  # what the rule is for


def test_an_activation_of_minus_infinity_is_left_in_float_by_name() -> None:
    text = """test (float[N,4,8] x) => (float[N,4,1] y) <float zero = {0}, float low = {0}> {
        a = Conv(x, w)  c = Greater(x, zero)  b = Where(c, a, low)
        d = Add(b, b)  e = Conv(b, v)  f = Conv(a, v)  g = Add(e, f)
        y = ReduceMax<axes=[2]>(g) }""".replace("ReduceMax<axes=[2]>(g)", "ReduceMax(g, two)")
    model = parse(text, w=np.abs(normal(4, 4, 1)), v=np.abs(normal(4, 4, 1)), two=np.array([2]))
    model.ir.graph.initializers["low"].const_value = ir.tensor(np.float32(-np.inf), name="low")
    fed = {"x": normal(16, 4, 8)}
    result = quantized(model, fed)
    assert any("node_e in float: its activation 'b' holds minus infinity" in note for note in result.notes)
    assert array_of(result.model, "w_quantized").dtype == np.int8
    wanted, got = run(model, False, **fed)[0], run(result.model, True, **fed)[0]
    np.testing.assert_array_equal(np.isfinite(wanted), np.isfinite(got))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_plus_infinity_are_still_errors(bad: float) -> None:
    model = parse("test (float[N,4,8] x) => (float[N,4,8] y) { y = Conv(x, w) }", w=(4, 4, 1))
    fed = {"x": normal(8, 4, 8)}
    fed["x"][3, 1, 2] = bad
    with pytest.raises(DataError, match="'x' is NaN or infinite on sample 3"):
        quantized(model, fed)


def test_sentinels_in_the_data_do_not_take_the_other_numbers_along() -> None:
    """Missing values written as -1e9: that layer stays in float, the next one does not."""
    text = (
        "test (float[N,8] x) => (float[N,4] y) { a = Gemm(x, w)  b = Clip(a, lo, hi)  c = Gemm(b, v)  y = Softmax(c) }"
    )
    bounds = {"lo": np.float32(-4).reshape(()), "hi": np.float32(4).reshape(())}
    model = parse(text, w=(8, 16), v=(16, 4), **bounds)
    fed = {"x": normal(256, 8)}
    fed["x"][::9, 2] = -1e9
    result = quantized(model, fed)
    assert Counter(node.op_type for node in result.model.ir.graph)["QuantizeLinear"] == 1
    assert "its activation 'x' runs from -1e+09" in result.notes[0]
    assert snr_db(run(model, False, **fed)[0], run(result.model, True, **fed)[0]) > 30
