from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.integers import WEIGHT_BITS
from tests.passes.graphs import applied, normal, operators, optimized, parse, run

from gossamer.arith.affine import WEIGHT_LIMITS, dequantize, quantize, weight_scales
from gossamer.errors import ModelError, OptionError
from gossamer.graph.edit import constant
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Scope, Step
from gossamer.passes import contract


def quantized(model: Model, scope: Scope | None = None, **config: Any) -> contract.Result:
    """Weights in the most bits whose products are exact on this machine."""
    config = {"weight_bits": WEIGHT_BITS, **config}
    return applied(Step("quantize_dynamic", config, scope or Scope()), model)


def simulated(x: np.ndarray, w_KN: np.ndarray, bias: np.ndarray, per_channel: bool) -> np.ndarray:
    """DynamicQuantizeLinear (ONNX's definition, float32 throughout), MatMulInteger and the rescaling, in numpy."""
    low, high = np.float32(min(0, x.min())), np.float32(max(0, x.max()))
    scale = np.float32((high - low) / np.float32(255)) if high > low else np.float32(1)
    zero = np.uint8(np.clip(np.rint(np.float32(0 - low) / scale), 0, 255))
    steps = quantize(x, scale, np.asarray(zero)).astype(np.int64) - int(zero)
    w_scale = weight_scales(w_KN, 1 if per_channel else None, limit=WEIGHT_LIMITS[WEIGHT_BITS])
    w = quantize(w_KN, w_scale, np.zeros_like(w_scale, np.int8), 1).astype(np.int64)
    return np.asarray((steps @ w).astype(np.float32) * (scale * w_scale) + bias)


@st.composite
def products(draw: st.DrawFn) -> tuple[Model, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    inputs, outputs = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    shift = draw(st.sampled_from([-3.0, 0.0, 3.0]))
    w = rng.normal(size=(inputs, outputs)).astype(np.float32)
    if draw(st.booleans()):
        rank = draw(st.integers(1, 4))
        x = rng.normal(shift, size=(2, 3, 4, inputs)[4 - rank :]).astype(np.float32)
        sides = ",".join(map(str, x.shape)), ",".join(map(str, (*x.shape[:-1], outputs)))
        model = parse(f"test (float[{sides[0]}] x) => (float[{sides[1]}] y) {{ y = MatMul(x, w) }}", w=w)
        return model, x, w, np.zeros(outputs, np.float32)
    x = rng.normal(shift, size=(5, inputs)).astype(np.float32)
    transposed = draw(st.booleans())
    bias_shape = draw(st.sampled_from([None, (outputs,), (1, outputs), (1,), (1, 1), ()]))
    bias = np.zeros(outputs, np.float32) if bias_shape is None else rng.normal(size=bias_shape).astype(np.float32)
    text = f"Gemm<transB={int(transposed)}>(x, w{'' if bias_shape is None else ', c'})"
    weights = {"w": w.T.copy() if transposed else w} | ({} if bias_shape is None else {"c": bias})
    model = parse(f"test (float[5,{inputs}] x) => (float[5,{outputs}] y) {{ y = {text} }}", **weights)
    return model, x, w, bias


@given(products(), st.sampled_from(["channel", "tensor"]))
def test_equals_numpy(example: tuple[Model, np.ndarray, np.ndarray, np.ndarray], granularity: str) -> None:
    model, x, w, bias = example
    result = quantized(model, granularity=granularity).model
    wanted = simulated(x, w, bias, granularity == "channel")
    for optimize in (False, True):
        (y,) = run(result, optimize, x=x)
        assert y.shape == wanted.shape and y.dtype == np.float32
        assert np.allclose(y, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    for value in result.ir.graph.initializers.values():
        if value.name == "w_scale":
            assert np.asarray(constant(value)).shape == ((w.shape[1],) if granularity == "channel" else ())


ATTENTION = """test (float[N,T,16] x) => (float[N,T,16] y) {
    q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)
    qb = Add(q, b)
    kt = Transpose<perm=[0,2,1]>(k)
    s = MatMul(qb, kt)
    p = Softmax<axis=-1>(s)
    o = MatMul(p, v)
    y = MatMul(o, wo)
}"""


def test_products_of_one_activation_share_its_quantizer_and_are_fused(tmp_path: Path) -> None:
    model = parse(ATTENTION, **dict.fromkeys(("wq", "wk", "wv", "wo"), (16, 16)), b=(16,))
    result = quantized(model).model
    assert operators(result)["DynamicQuantizeLinear"] == 2  # of x for q, k and v, and of o
    assert operators(result)["MatMulInteger"] == 4 and operators(result)["MatMul"] == 2
    left = optimized(result, tmp_path)
    assert left["MatMulIntegerToFloat"] == 3 and left["DynamicQuantizeMatMul"] == 1
    assert not left["MatMulInteger"] and not left["Cast"]


def test_names_survive_and_results_are_the_same_twice() -> None:
    model = parse(ATTENTION, **dict.fromkeys(("wq", "wk", "wv", "wo"), (16, 16)), b=(16,))
    result = quantized(model).model
    assert {v.name for n in model.ir.graph for v in n.outputs} <= {v.name for n in result.ir.graph for v in n.outputs}
    assert [value.name for value in result.ir.graph.outputs] == ["y"]
    assert to_bytes(result) == to_bytes(quantized(model).model)


def test_names_that_are_taken_are_not_used_again() -> None:
    text = """test (float[4,4] x, float[4,4] x_scale) => (float[4,4] y) {
        x_quantized = MatMul(x, w)  y_int32 = MatMul(x_quantized, w_quantized)  y = Mul(y_int32, x_scale) }"""
    model = parse(text, w=(4, 4), w_quantized=(4, 4))
    feeds = {"x": normal(4, 4), "x_scale": normal(4, 4, seed=2)}
    wanted, got = run(model, **feeds)[0], run(quantized(model).model, **feeds)[0]
    assert np.abs(wanted - got).max() < 0.1 * np.abs(wanted).max()


def test_tied_weight_is_stored_once() -> None:
    model = parse("test (float[4,8] x) => (float[4,8] y) { a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, w) }", w=(8, 8))
    names = set(quantized(model).model.ir.graph.initializers)
    assert names == {"w_quantized", "w_scale"}


def test_products_in_subgraphs_are_left() -> None:
    text = """test (float[4,8] x) => (float[4,8] y) {
        a = MatMul(x, w)
        m = ReduceSum<keepdims=0>(a)
        c = Greater(m, zero)
        y = If(c) < then_branch = t () => (float[4,8] t1) { t1 = MatMul(a, w) },
                    else_branch = e () => (float[4,8] e1) { e1 = Identity(a) } >
    }"""
    model = parse(text, w=(8, 8), zero=np.array(-1e9, np.float32))
    result = quantized(model).model
    assert operators(result)["MatMulInteger"] == 1 and {"w", "w_quantized"} <= set(result.ir.graph.initializers)
    x = normal(4, 8)
    wanted, got = run(model, x=x)[0], run(result, x=x)[0]
    assert np.abs(wanted - got).max() < 0.05 * np.abs(wanted).max()


# --- tables

TABLE = "test (int64[N,T] rows) => (float[N,T,16] y) { y = Gather(table, rows) }"


@pytest.mark.parametrize("optimize", [False, True])
def test_rows_of_a_table(optimize: bool) -> None:
    table = normal(300, 16) * np.logspace(-3, 3, 300, dtype=np.float32)[:, None]
    table[7] = 0
    result = quantized(parse(TABLE, table=table)).model
    rows = np.array([[0, 7, 299, -1], [-300, -2, 5, 5]])
    (y,) = run(result, optimize, rows=rows)
    scale = weight_scales(table, 0)
    stored = dequantize(quantize(table, scale, np.zeros(300, np.int8), 0), scale, np.zeros(300, np.int8), 0)
    assert np.array_equal(y, stored[rows])
    assert np.abs(y - table[rows]).max() > 0
    assert (np.abs(y - table[rows]) <= scale[rows][..., None] * 0.5001).all()
    assert result.weight_bytes() < 0.33 * table.nbytes


def test_two_look_ups_share_the_stored_table() -> None:
    text = (
        "test (int64[N] i, int64[N] j) => (float[N,16] y) { a = Gather(table, i)  b = Gather(table, j)  y = Sub(a, b) }"
    )
    result = quantized(parse(text, table=(300, 16))).model
    assert set(result.ir.graph.initializers) == {"table_quantized", "table_scale"}


@pytest.mark.parametrize(
    ("table", "text", "reason"),
    [
        ((10, 4), "y = Gather(table, rows)", "its table has fewer than 4096 elements"),
        ((300, 16), "y = Gather<axis=1>(table, rows)", ""),
        ((300, 300), "a = Gather(table, rows)  y = Mul(a, table)", "its table table has other readers, and would be"),
    ],
)
def test_tables_that_stay_in_float(table: tuple[int, int], text: str, reason: str) -> None:
    model = parse(f"test (int64[300] rows) => (float[M,K] y) {{ {text} }}", table=table)
    result = quantized(model)
    assert not result.modified and result.model is model
    assert result.notes[0].startswith(f"quantize_dynamic left node_{text[0]} in float: {reason}" if reason else "")


def test_embeddings_can_be_left() -> None:
    assert not quantized(parse(TABLE, table=(300, 16)), embeddings=False).modified


def test_table_read_inside_a_branch_is_left() -> None:
    text = """test (int64[N] rows, bool c) => (float[N,16] y, float[N,16] z) {
        z = Gather(table, rows)
        y = If(c) < then_branch = t () => (float[N,16] t1) { t1 = Gather(table, rows) },
                    else_branch = e () => (float[N,16] e1) { e1 = Neg(z) } >
    }"""
    assert not quantized(parse(text, table=(300, 16))).modified


# --- options and refusals


def test_weights_that_are_not_finite_are_refused() -> None:
    w = normal(4, 4)
    w[1, 1] = np.inf
    with pytest.raises(ModelError, match="weight 'w' of node 'node_y' holds NaN or infinity"):
        quantized(parse("test (float[4,4] x) => (float[4,4] y) { y = MatMul(x, w) }", w=w))
    table = normal(300, 16)
    table[2, 2] = np.nan
    with pytest.raises(ModelError, match="weight 'table' of node 'node_y'"):
        quantized(parse(TABLE, table=table))


def test_node_asked_for_by_name_must_be_possible() -> None:
    text = """test (float[N,4,8] x, float[8,8] v) => (float[N,4,8] y) {
        a = Conv(x, w)  b = Relu(a)  c = MatMul(b, v)  d = MatMul(c, cube)  y = Relu(d) }"""
    model = parse(text, w=(4, 4, 1), cube=(1, 8, 8))
    for name, reason in (
        ("node_a", "a Conv has no fast dynamic form; use quantize_static"),
        ("node_b", "Relu has no weight"),
        ("node_c", "its weight is computed at run time"),
        ("node_d", "its weight has 3 axes"),
    ):
        with pytest.raises(OptionError, match=f"quantize_dynamic cannot quantize node '{name}': {reason}"):
            quantized(model, Scope(only=(name,)))
    notes = quantized(model).notes
    assert (
        notes[0] == "quantize_dynamic left node_d in float: its weight has 3 axes; the runtime's integer MatMul takes 2"
    )
    assert len(notes) == 2


def test_scope_and_unknown_options() -> None:
    model = parse(ATTENTION, **dict.fromkeys(("wq", "wk", "wv", "wo"), (16, 16)), b=(16,))
    assert operators(quantized(model, Scope(only=("node_[qk]",))).model)["MatMulInteger"] == 2
    assert operators(quantized(model, Scope(skip=("node_q",))).model)["MatMulInteger"] == 3
    with pytest.raises(OptionError, match=r"bits.*its options are granularity, weight_bits, embeddings"):
        quantized(model, bits=4)


def test_products_that_were_integers_before_are_no_broken_promise() -> None:
    text = """test (uint8[4,4] x, float[4,4] z) => (int32[4,4] y, float[4,4] p) {
        y = MatMulInteger(x, u)  p = MatMul(z, w) }"""
    model = parse(text, u=np.ones((4, 4), np.uint8), w=(4, 4))
    assert operators(quantized(model).model)["MatMulInteger"] == 2


@pytest.mark.parametrize(("bits", "limit"), [(8, 127), (7, 64)])
def test_weights_of_seven_bits_leave_room_for_sums_of_sixteen(bits: int, limit: int) -> None:
    result = quantized(parse("test (float[2,8] x) => (float[2,6] y) { y = MatMul(x, w) }", w=(8, 6)), weight_bits=bits)
    weights = next(node.inputs[1] for node in result.model.ir.graph if node.op_type == "MatMulInteger")
    integers = np.asarray(constant(weights)).astype(np.int64)
    assert np.abs(integers).max() == limit
    assert (2 * 255 * np.abs(integers).max() <= 32767) == (bits == 7)
