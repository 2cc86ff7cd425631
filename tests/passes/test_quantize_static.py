from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.integers import WEIGHT_BITS
from tests.passes import graphs
from tests.passes.graphs import applied, array_of, normal, operators, optimized

from gossamer.arith.affine import WEIGHT_LIMITS, affine_parameters, dequantize, quantize, quantize_bias, weight_scales
from gossamer.errors import ModelError, OptionError
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Scope, Step
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes import contract

Feeds = dict[str, np.ndarray]


def parse(text: str, **weights: Any) -> Model:
    """As in graphs, but a weight filled from the seed keeps a layer's outputs in the range of its inputs."""
    rng = np.random.default_rng(7)
    for name, weight in weights.items():
        if isinstance(weight, tuple):
            scale = 1 / np.sqrt(max(1, np.prod(weight[1:])))
            weights[name] = rng.normal(0, scale, weight).astype(np.float32)
    return graphs.parse(text, **weights)


def quantized(model: Model, feeds: Feeds, scope: Scope | None = None, **config: Any) -> contract.Result:
    """The pass run with these samples, then checked as ONNX; weights in the most bits whose products are exact here."""
    samples = samples_from_arrays({k: list(v) for k, v in feeds.items()})
    config = {"weight_bits": WEIGHT_BITS, **config}
    return applied(Step("quantize_static", config, scope or Scope()), model, Evidence(samples, 1))


def run(model: Model, feeds: Feeds, optimize: bool = False) -> list[np.ndarray]:
    return graphs.run(model, optimize, **feeds)


def snr_db(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / max(np.square(wanted - got).sum(), 1e-30)))


# --- against numpy


@st.composite
def layers(draw: st.DrawFn) -> tuple[Model, Feeds, str]:
    """One Conv (1 to 3 axes, groups, depthwise), Gemm (with transB) or MatMul, with a bias or none."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    kind = draw(st.sampled_from(["Conv", "Gemm", "MatMul"]))
    biased = kind != "MatMul" and draw(st.booleans())
    names = "x, w, c" if biased else "x, w"
    if kind == "Conv":
        axes, groups = draw(st.integers(1, 3)), draw(st.integers(1, 4))
        inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
        kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
        w, x = rng.normal(size=(outputs, inputs // groups, *kernel)), rng.normal(size=(3, inputs, *[5] * axes))
        text = f"Conv<group={groups}>({names})"
    else:
        inputs, outputs = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        transposed = kind == "Gemm" and draw(st.booleans())
        w, x = rng.normal(size=(outputs, inputs) if transposed else (inputs, outputs)), rng.normal(size=(3, inputs))
        text = f"Gemm<transB={int(transposed)}>({names})" if kind == "Gemm" else f"MatMul({names})"
    bias_shape = draw(st.sampled_from([(outputs,), (1, outputs), (1,), ()])) if kind == "Gemm" else (outputs,)
    weights = {"w": w.astype(np.float32)} | ({"c": rng.normal(size=bias_shape).astype(np.float32)} if biased else {})
    # the second product makes the first one's output worth quantizing; its own stays float
    free, ranks = ",".join(str(n) for n in x.shape[1:]), ",".join("NMKLJ"[: x.ndim])
    tail = "y = Identity(a)" if kind == "Conv" else "y = MatMul(a, eye)"
    if kind != "Conv":
        weights["eye"] = np.eye(outputs, dtype=np.float32)
    return (
        parse(f"test (float[N,{free}] x) => (float[{ranks}] y) {{ a = {text}  {tail} }}", **weights),
        {"x": x.astype(np.float32)},
        draw(st.sampled_from(["channel", "tensor"])),
    )


def product(x: np.ndarray, w: np.ndarray, node: ir.Node) -> np.ndarray:
    """Conv, Gemm or MatMul in float64."""
    if node.op_type != "Conv":
        transposed = "transB" in node.attributes and node.attributes["transB"].as_int()
        return x @ (w.T if transposed else w)
    groups, axes = node.attributes["group"].as_int(), tuple(range(2, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=axes)  # (N, I, ..., k...)
    parts = zip(np.split(windows, groups, axis=1), np.split(w, groups), strict=True)
    letters, kernel = "def"[: len(axes)], "uvw"[: len(axes)]
    return np.concatenate(
        [np.einsum(f"ni{letters}{kernel},oi{kernel}->no{letters}", a, b, optimize=True) for a, b in parts], axis=1
    )


@settings(max_examples=40)
@given(layers())
def test_equals_numpy_and_the_fused_kernels_agree(example: tuple[Model, Feeds, str]) -> None:
    model, feeds, granularity = example
    node = model.ir.graph[0]
    x, w = feeds["x"], array_of(model, "w")
    result = quantized(model, feeds, granularity=granularity)
    a = run(with_output(model, "a"), feeds)[-1]
    a_scale, a_zero = array_of(result.model, "a_scale"), array_of(result.model, "a_zero_point")
    expected = affine_parameters(a.min(), a.max(), "uint8", False)
    assert np.isclose(a_scale, expected[0]) and abs(int(a_zero) - int(expected[1])) <= 1

    axis = None if granularity == "tensor" else int(node.op_type == "MatMul")
    if axis is not None and node.op_type == "Gemm":
        axis = 1 - node.attributes["transB"].as_int()
    x_scale, x_zero = affine_parameters(x.min(), x.max(), "uint8", False)
    w_scale = weight_scales(w, axis, limit=WEIGHT_LIMITS[WEIGHT_BITS])
    steps = product(
        (quantize(x, x_scale, x_zero).astype(np.int64) - int(x_zero)).astype(np.float64),
        quantize(w, w_scale, np.zeros_like(w_scale, np.int8), axis).astype(np.float64),
        node,
    )
    along = [1, -1] + [1] * (a.ndim - 2)
    bias_scale = np.float32(x_scale * w_scale)
    if len(node.inputs) > 2:
        outputs = steps.shape[1]
        bias = np.broadcast_to(array_of(model, "c").reshape(-1), outputs)
        steps = steps + quantize_bias(bias, np.broadcast_to(bias_scale, outputs)).reshape(along)
    real = steps * bias_scale.astype(np.float64).reshape(along if bias_scale.ndim else [1] * a.ndim)
    wanted = dequantize(quantize(real.astype(np.float32), a_scale, a_zero), a_scale, a_zero)

    got = run(with_output(result.model, "a"), feeds)[-1]
    fused = run(with_output(result.model, "a"), feeds, optimize=True)[-1]
    at_tie = np.abs(np.abs(real / a_scale - np.rint(real / a_scale)) - 0.5) < 1e-2  # either neighbour is right
    assert np.abs(got - wanted).max() <= 1.001 * a_scale
    assert np.array_equal(got[~at_tie], wanted[~at_tie])
    assert np.abs(fused - got).max() <= 1.001 * a_scale


def with_output(model: Model, name: str) -> Model:
    clone = model.clone()
    clone.ir.graph.outputs.append(next(v for node in clone.ir.graph for v in node.outputs if v.name == name))
    return clone


# --- what onnxruntime fuses

RESIDUAL = """test (float[N,3,12,12] x) => (float[N,5] y) <float zero = {0}, float six = {6}> {
    s = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w0, c0)
    s6 = Clip(s, zero, six)
    e = Conv(s6, w1, c1)
    en = BatchNormalization(e, g, c1, m, g)
    e6 = Clip(en, zero, six)
    d = Conv<group=16, pads=[1,1,1,1]>(e6, w2, c2)
    d6 = Clip(d, zero, six)
    p = Conv(d6, w3, c3)
    r = Add(p, s6)
    rr = Relu(r)
    pool = GlobalAveragePool(rr)
    flat = Flatten(pool)
    y = Gemm<transB=1>(flat, w4, c4)
}"""
SHAPES = {"w0": (8, 3, 3, 3), "c0": (8,), "w1": (16, 8, 1, 1), "c1": (16,), "w2": (16, 1, 3, 3), "c2": (16,)}
SHAPES |= {"w3": (8, 16, 1, 1), "c3": (8,), "w4": (5, 8), "c4": (5,), "m": (16,)}
X = {"x": normal(16, 3, 12, 12)}


def residual() -> Model:
    model = parse(RESIDUAL, **SHAPES, g=np.linspace(0.5, 2, 16, dtype=np.float32))
    return contract.run(Step("fold_batchnorm"), model).model


def test_residual_net_runs_in_integers_alone(tmp_path: Path) -> None:
    model = residual()
    result = quantized(model, X)
    left = optimized(result.model, tmp_path)
    assert left["QLinearConv"] == 4 and left["QLinearAdd"] == 1 and left["QGemm"] == 1
    assert set(left) <= {
        "QuantizeLinear", "Transpose", "QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "Flatten", "QGemm",
    }  # fmt: skip
    assert left["QuantizeLinear"] == 1
    assert not {"Clip", "Relu"} & set(operators(result.model))
    assert snr_db(run(model, X)[0], run(result.model, X, optimize=True)[0]) > 30


@pytest.mark.parametrize("config", [{"activation": "int8", "symmetric": True}, {"symmetric": True}])
def test_symmetric_activations_keep_their_bounds(config: dict[str, Any]) -> None:
    model = residual()
    result = quantized(model, X, **config)
    assert operators(result.model)["Clip"] == 3 and operators(result.model)["Relu"] == 1
    for optimize in (False, True):
        assert snr_db(run(model, X)[0], run(result.model, X, optimize)[0]) > 30


@pytest.mark.parametrize(("low", "high", "swallowed"), [(-1.0, 1.0, True), (0.0, 6.0, True), (1.0, 6.0, False)])
def test_clip_goes_only_where_its_bounds_are_the_integers_own(low: float, high: float, swallowed: bool) -> None:
    bounds = {"low": np.float32(low).reshape(()), "high": np.float32(high).reshape(())}
    text = "test (float[N,3,6,6] x) => (float[N,4,6,6] y) { a = Conv(x, w)  y = Clip(a, low, high) }"
    model = parse(text, w=(4, 3, 1, 1), **bounds)
    calm, wild = {"x": normal(8, 3, 6, 6)}, {"x": 5 * normal(8, 3, 6, 6, seed=2)}
    result = quantized(model, wild)
    assert operators(result.model)["Clip"] == (not swallowed)
    for feeds in (calm, wild):
        assert snr_db(run(model, feeds)[0], run(result.model, feeds, True)[0]) > 25


def test_activation_types_and_granularity() -> None:
    for activation in ("uint8", "int8"):
        for granularity in ("channel", "tensor"):
            model = quantized(residual(), X, activation=activation, granularity=granularity).model
            assert array_of(model, "x_zero_point").dtype == activation
            assert array_of(model, "w1_quantized").dtype == np.int8
            assert array_of(model, "w1_scale").shape == ((16,) if granularity == "channel" else ())
            assert not array_of(model, "w1_zero_point").any()


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_small_filters_can_keep_their_sums_and_large_ones_are_rounded_as_ever(granularity: str) -> None:
    model = parse(
        "test (float[N,3,8,8] x) => (float[N,8,4,4] y) { a = Conv(x, w0)  y = Conv(a, w1) }",
        w0=normal(6, 3, 3, 3, seed=2),
        w1=normal(8, 6, 3, 3, seed=3),
    )
    feeds = {"x": normal(4, 3, 8, 8)}
    nearest, kept = (
        quantized(model, feeds, granularity=granularity, rounding=how).model for how in ("nearest", "sums")
    )
    scale = array_of(kept, "w0_scale").reshape(-1, 1)
    real = normal(6, 3, 3, 3, seed=2).reshape(6, -1) / scale
    rows = array_of(kept, "w0_quantized").reshape(6, -1)
    assert (np.abs((rows - real).sum(axis=1)) <= 0.5 + 1e-3).all() and (np.abs(rows - real) < 1.001).all()
    assert not np.array_equal(rows, array_of(nearest, "w0_quantized").reshape(6, -1))
    np.testing.assert_array_equal(array_of(kept, "w1_quantized"), array_of(nearest, "w1_quantized"))


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_rounding_by_loss_makes_every_layer_truer(granularity: str) -> None:
    """Weights alone: the activation has so many bits that its own noise is out of the way."""
    model = parse(
        "test (float[N,3,8,8] x) => (float[N,8,6,6] y) { y = Conv(x, w, b) }", w=normal(8, 3, 3, 3, seed=3), b=(8,)
    )
    x = normal(8, 3, 1, 1) + 0.1 * normal(8, 3, 8, 8, seed=1)  # neighbours are alike, as in pictures
    real = run(model, {"x": x})[0]
    noise = [
        float(
            np.square(run(quantized(model, {"x": x}, granularity=granularity, **how).model, {"x": x})[0] - real).sum()
        )
        for how in (
            {"activation": "uint16", "rounding": "nearest"},
            {"activation": "uint16", "rounding": "second_order"},
        )
    ]
    assert noise[1] < 0.5 * noise[0]


def test_in_sequence_later_layers_make_up_for_earlier_ones() -> None:
    model = parse(
        """test (float[N,4,9,9] x) => (float[N,6,3,3] y) {
            a = Conv(x, w1)  p = Relu(a)  b = Conv(p, w2)  q = Relu(b)  y = Conv(q, w3)
        }""",
        w1=(12, 4, 3, 3), w2=(12, 12, 3, 3), w3=(6, 12, 3, 3),
    )  # fmt: skip
    x, unseen = (normal(32, 4, 1, 1, seed=seed) + 0.3 * normal(32, 4, 9, 9, seed=seed + 1) for seed in (0, 2))
    config = {"activation": "uint16", "weight_bits": 3, "rounding": "second_order"}
    alone, sequence = (quantized(model, {"x": x}, sequential=how, **config).model for how in (False, True))
    real, one, other = (run(each, {"x": unseen})[0] for each in (model, alone, sequence))
    assert snr_db(real, other) > snr_db(real, one) + 0.3


def test_only_second_order_knows_a_sequence() -> None:
    model = parse("test (float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Conv(x, w) }", w=(3, 3, 1, 1))
    with pytest.raises(OptionError, match="sequential is of rounding second_order, not of nearest; drop it"):
        quantized(model, {"x": normal(8, 3, 8, 8)}, sequential=True)


def test_a_weight_that_two_layers_read_keeps_its_sums() -> None:
    model = parse(
        "test (float[N,3,8,8] x) => (float[N,3,8,8] y) { a = Conv(x, w)  y = Conv(a, w) }", w=normal(3, 3, 1, 1)
    )
    sums, second = (quantized(model, {"x": normal(8, 3, 8, 8)}, rounding=how).model for how in ("sums", "second_order"))
    np.testing.assert_array_equal(array_of(second, "w_quantized"), array_of(sums, "w_quantized"))


def test_softmax_stays_in_float(tmp_path: Path) -> None:
    model = parse(
        """test (float[N,6,8] x) => (float[N,6,8] y) {
            q = MatMul(x, wq)  k = MatMul(x, wk)  kt = Transpose<perm=[0,2,1]>(k)
            s = MatMul(q, kt)  p = Softmax<axis=-1>(s)  y = MatMul(p, q)
        }""",
        wq=(8, 8), wk=(8, 8),
    )  # fmt: skip
    feeds = {"x": normal(16, 6, 8)}
    result = quantized(model, feeds)
    left = optimized(result.model, tmp_path)
    assert left["Softmax"] == 1 and left["MatMul"] == 0 and left["QLinearSoftmax"] == 0
    assert snr_db(run(model, feeds)[0], run(result.model, feeds, True)[0]) > 25


@pytest.mark.parametrize("shape", ["N,6,8", "N,8"])
def test_product_with_its_bias_runs_in_integers(tmp_path: Path, shape: str) -> None:
    """onnxruntime would make the two one Gemm, and leave that in float."""
    text = f"test (float[{shape}] x) => (float[{shape}] y) {{ a = MatMul(x, w)  b = Add(c, a)  y = Softmax(b) }}"
    model = parse(text, w=(8, 8), c=(8,))
    feeds = {"x": normal(16, 6, 8) if "6" in shape else normal(16, 8)}
    result = quantized(model, feeds).model
    left = optimized(result, tmp_path)
    assert left["MatMulIntegerToFloat"] == 1 and not {"Gemm", "MatMul", "DequantizeLinear"} & set(left)
    assert snr_db(run(model, feeds)[0], run(result, feeds, True)[0]) > 25


# --- names, outputs, shared tensors


def test_names_survive_and_outputs_keep_type_and_shape() -> None:
    model = residual()
    result = quantized(model, X).model
    swallowed = {"s", "en", "e", "d", "r"}
    tensors = {value.name for node in model.ir.graph for value in node.outputs} - swallowed
    assert tensors <= {value.name for node in result.ir.graph for value in node.outputs}
    kept = {node.name for node in result.ir.graph}
    assert {node.name for node in model.ir.graph if node.op_type not in ("Relu", "Clip")} <= kept
    for before, after in zip(model.ir.graph.outputs, result.ir.graph.outputs, strict=True):
        assert (before.name, before.dtype, before.shape) == (after.name, after.dtype, after.shape)
    makers = {value.name: node.op_type for node in result.ir.graph for value in node.outputs}
    assert makers["p"] == makers["s6"] == makers["flat"] == "DequantizeLinear"


def test_names_that_are_taken_are_not_used_again() -> None:
    model = parse(
        """test (float[N,4] x, float[N,4] x_scale) => (float[N,4] y) {
            x_quantized = Relu(x)  a_float = MatMul(x, w)  a = MatMul(a_float, w_quantized)  b = Add(a, x_quantized)
            y = Sub(b, x_scale)
        }""",
        w=(4, 4), w_quantized=(4, 4),
    )  # fmt: skip
    feeds = {"x": normal(8, 4), "x_scale": normal(8, 4, seed=2)}
    once = quantized(model, feeds, operators=("MatMul",)).model
    twice = quantized(once, feeds).model  # a second time, over what is left
    for result in (once, twice):
        assert snr_db(run(model, feeds)[0], run(result, feeds)[0]) > 25


def test_tied_weight_is_stored_once() -> None:
    text = "test (float[N,4,8] x) => (float[N,4,8] y) { a = Conv(x, w, c)  b = Relu(a)  y = Conv(b, w, c) }"
    model = parse(text, w=(4, 4, 1), c=(4,))
    result = quantized(model, {"x": normal(8, 4, 8)}).model
    assert [name for name in result.ir.graph.initializers if name.startswith("w")] == [
        "w_quantized", "w_scale", "w_zero_point",
    ]  # fmt: skip
    assert operators(result)["DequantizeLinear"] == 3 + 2 + 2  # activations, weights, biases: one a reader


def test_weight_with_a_reader_out_of_scope_keeps_its_float_form() -> None:
    text = "test (float[N,4,8] x) => (float[N,4,8] y, float[N,4,8] z) { y = Conv(x, w)  z = Conv(x, w) }"
    model = parse(text, w=(4, 4, 1))
    feeds = {"x": normal(8, 4, 8)}
    result = quantized(model, feeds, Scope(skip=("node_z",))).model
    assert np.array_equal(array_of(result, "w"), array_of(model, "w"))
    assert np.array_equal(run(result, feeds)[1], run(model, feeds)[1])  # z reads x and w as they were
    assert snr_db(run(model, feeds)[0], run(result, feeds)[0]) > 25


def test_tensor_read_twice_by_one_node() -> None:
    model = parse("test (float[N,4,8] x) => (float[N,4,8] y) { a = Conv(x, w)  y = Add(a, a) }", w=(4, 4, 1))
    feeds = {"x": normal(8, 4, 8)}
    result = quantized(model, feeds).model
    assert operators(result)["QuantizeLinear"] == 3
    assert snr_db(run(model, feeds)[0], run(result, feeds, True)[0]) > 25


def test_convolution_output_that_is_also_a_graph_output() -> None:
    text = "test (float[N,4,8] x) => (float[N,4,8] a, float[N,4,8] y) { a = Conv(x, w)  b = Relu(a)  y = Conv(b, w) }"
    model = parse(text, w=(4, 4, 1))
    feeds = {"x": normal(8, 4, 8)}
    result = quantized(model, feeds).model
    assert [value.name for value in result.ir.graph.outputs] == ["a", "y"]
    for wanted, got in zip(run(model, feeds), run(result, feeds, True), strict=True):
        assert snr_db(wanted, got) > 25


def test_input_of_several_convolutions_has_one_pair(tmp_path: Path) -> None:
    text = "test (float[N,4,8] x) => (float[N,4,8] y) { a = Conv(x, w)  b = Conv(x, v)  y = Add(a, b) }"
    result = quantized(parse(text, w=(4, 4, 1), v=(4, 4, 1)), {"x": normal(8, 4, 8)}).model
    assert operators(result)["QuantizeLinear"] == 4  # x, a, b, y
    assert optimized(result, tmp_path)["QLinearConv"] == 2


def test_float_readers_of_a_float_tensor_see_it_unrounded() -> None:
    """A normalization's output goes into a product in integers and into a residual sum in float."""
    model = parse(
        """test (float[N,6,8] x) => (float[N,6,8] y, float[N,6,8] n) {
            n = LayerNormalization<axis=-1>(x, g)  a = MatMul(n, w)  y = Sub(a, n) }""",
        g=np.ones(8, np.float32), w=np.zeros((8, 8), np.float32),
    )  # fmt: skip
    feeds = {"x": normal(4, 6, 8)}
    y, n = run(quantized(model, feeds).model, feeds)
    assert np.array_equal(y, -n)
    assert np.array_equal(n, run(model, feeds)[1])


def test_split_and_movers_keep_the_integers(tmp_path: Path) -> None:
    model = parse(
        """test (float[N,4,8,8] x) => (float[N,2,4,4] y) {
            a = Conv(x, w)  m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)  s1, s2 = Split<axis=1, num_outputs=2>(m)
            b = Conv(s1, v)  c = Conv(s2, v)  y = Add(b, c) }""",
        w=(4, 4, 1, 1), v=(2, 2, 1, 1),
    )  # fmt: skip
    feeds = {"x": normal(8, 4, 8, 8)}
    result = quantized(model, feeds).model
    assert (
        sum(
            name.endswith("_zero_point") and "w" not in name and "v" not in name
            for name in result.ir.graph.initializers
        )
        == 5
    )
    assert optimized(result, tmp_path)["DequantizeLinear"] == 1
    assert snr_db(run(model, feeds)[0], run(result, feeds, True)[0]) > 25


# --- numbers at the edge


def test_dead_channel_keeps_a_small_bias_beside_large_activations() -> None:
    w = normal(2, 3, 1) * 0.001
    w[1] = 0
    bias = np.array([0.1, 0.3], np.float32)
    model = parse("test (float[N,3,8] x) => (float[N,2,8] y) { y = Conv(x, w, c) }", w=w, c=bias)
    feeds = {"x": 1000 * normal(8, 3, 8)}  # input scale about 25
    for granularity in ("channel", "tensor"):
        result = quantized(model, feeds, granularity=granularity).model
        step = float(array_of(result, "y_scale"))
        for optimize in (False, True):
            y = run(result, feeds, optimize)[0]
            assert np.abs(y[:, 1] - 0.3).max() < step


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("size", [1e-6, 1e-20, 1e-37])
def test_huge_bias_beside_tiny_activations_does_not_overflow(size: float, granularity: str) -> None:
    bias = np.array([1e4, -1e4, 0, 1], np.float32)
    model = parse("test (float[N,3,8] x) => (float[N,4,8] y) { y = Conv(x, w, c) }", w=(4, 3, 1), c=bias)
    feeds = {"x": (size * normal(8, 3, 8)).astype(np.float32)}
    result = quantized(model, feeds, granularity=granularity, least_snr_db=-100.0).model  # else left in float
    for optimize in (False, True):
        assert np.abs(run(result, feeds, optimize)[0] - bias[:, None]).max() <= float(array_of(result, "y_scale"))


def test_tiny_weights_beside_tiny_activations_still_have_a_scale() -> None:
    """Their product is below the smallest float32; a bias in steps of nothing would be no number."""
    text = "test (float[N,3,8] x) => (float[N,4,8] y) { y = Conv(x, w, c) }"
    model = parse(text, w=1e-25 * normal(4, 3, 1), c=np.array([0, 0, 1, 2], np.float32))
    result = quantized(model, {"x": 1e-25 * normal(8, 3, 8)}).model
    (scale,) = (array_of(result, name) for name in result.ir.graph.initializers if name.endswith("node_y_scale"))
    assert (scale > 1e-38).all()
    for optimize in (False, True):
        y = run(result, {"x": np.zeros((1, 3, 8), np.float32)}, optimize)[0]
        assert np.abs(y - np.array([0, 0, 1, 2])[:, None]).max() <= float(array_of(result, "y_scale"))


def test_all_zero_weights_and_activations() -> None:
    model = parse(
        "test (float[N,3,8] x) => (float[N,4,8] y) { a = Conv(x, w)  y = Relu(a) }", w=np.zeros((4, 3, 1), np.float32)
    )
    feeds = {"x": np.zeros((8, 3, 8), np.float32)}
    result = quantized(model, feeds).model
    assert not run(result, feeds)[0].any()
    assert not run(result, feeds, optimize=True)[0].any()


@pytest.mark.parametrize("name", ["w", "c"])
def test_weights_that_are_not_finite_are_refused(name: str) -> None:
    weights = {"w": normal(4, 3, 1), "c": normal(4)}
    weights[name].flat[1] = np.nan
    model = parse("test (float[N,3,8] x) => (float[N,4,8] y) { y = Conv(x, w, c) }", **weights)
    with pytest.raises(ModelError, match=f"weight '{name}' of node 'node_y' holds NaN or infinity"):
        quantized(model, {"x": normal(8, 3, 8)})


def test_bias_along_the_batch_is_no_bias_of_channels() -> None:
    """(4, 1) has as many values as there are channels, but they belong to the rows."""
    model = parse("test (float[4,4] x) => (float[4,4] y) { y = Gemm(x, w, c) }", w=(4, 4), c=normal(4, 1))
    samples = samples_from_arrays({"x": list(normal(8, 4))})
    result = contract.run(Step("quantize_static"), model, Evidence(samples, 1))
    assert not result.modified
    assert "its bias has shape (4, 1), not one value a channel" in result.notes[0]


# --- subgraphs

BRANCH = """test (float[N,4,8] x) => (float[N,4,8] y) <float zero = {0}> {
    a = Conv(x, w, c)
    b = Relu(a)
    total = ReduceSum<keepdims=0>(b)
    yes = Greater(total, zero)
    y = If(yes) <
        then_branch = t () => (float[N,4,8] t1) { t0 = Relu(INNER)  t1 = Add(t0, x) },
        else_branch = e () => (float[N,4,8] e1) { e1 = Identity(INNER) }
    >
}"""


@pytest.mark.parametrize("inner", ["a", "b", "x"])
def test_if_sees_the_right_tensor(inner: str) -> None:
    """Its branches read a quantized tensor, a swallowed Relu's output, or the input, by name from outside."""
    model = parse(BRANCH.replace("INNER", inner), w=(4, 4, 1), c=(4,))
    feeds = {"x": normal(8, 4, 8)}
    result = quantized(model, feeds).model
    assert operators(result)["QuantizeLinear"] >= 2
    for optimize in (False, True):
        assert snr_db(run(model, feeds)[0], run(result, feeds, optimize)[0]) > 25
    before, after = (list(m.ir.graph)[-1].attributes["then_branch"].as_graph() for m in (model, result))
    assert [node.op_type for node in before] == [node.op_type for node in after]
    assert after[0].inputs[0] is not None and after[0].inputs[0].name == inner


def test_relu_that_only_a_branch_applies_is_not_swallowed() -> None:
    model = parse(
        """test (float[N,4,8] x) => (float[N,4,8] y) {
            a = Conv(x, w)
            most = ReduceMax<keepdims=0>(x)
            large = Greater(most, hundred)
            y = If(large) < then_branch = t () => (float[N,4,8] t1) { t1 = Relu(a) },
                            else_branch = e () => (float[N,4,8] e1) { e1 = Exp(x) } >
        }""",
        w=(4, 4, 1), hundred=np.array(100, np.float32),
    )  # fmt: skip
    calm, loud = {"x": normal(8, 4, 8)}, {"x": 200 * np.abs(normal(8, 4, 8))}
    result = quantized(model, loud).model
    assert np.array_equal(run(model, calm)[0], run(result, calm)[0])
    assert snr_db(run(model, loud)[0], run(result, loud)[0]) > 25


def test_loop_body_sees_the_right_tensor() -> None:
    model = parse(
        """test (float[N,4,8] x) => (float[N,4,8] y) <int64 three = {3}, bool go = {1}> {
            a = Conv(x, w, c)  b = Relu(a)
            y = Loop(three, go, b) < body = l (int64 i, bool c_in, float[N,4,8] s) => (bool c_out, float[N,4,8] s_out) {
                c_out = Identity(c_in)  s_out = Add(s, b) } >
        }""",
        w=(4, 4, 1), c=(4,),
    )  # fmt: skip
    feeds = {"x": normal(8, 4, 8)}
    result = quantized(model, feeds).model
    assert operators(result)["Relu"] == 0
    for optimize in (False, True):
        assert snr_db(run(model, feeds)[0], run(result, feeds, optimize)[0]) > 25


def test_float16_parts_stay_as_they_are() -> None:
    model = parse(
        """test (float16[N,4,8] x) => (float16[N,4,8] y) {
            h = Conv(x, w16)  f = Cast<to=1>(h)  a = Conv(f, w)  y = Cast<to=10>(a) }""",
        w16=normal(4, 4, 1).astype(np.float16), w=(4, 4, 1),
    )  # fmt: skip
    feeds = {"x": normal(8, 4, 8).astype(np.float16)}
    result = quantized(model, feeds)
    assert "quantize_static left node_h in float: its weight is float16, not float32" in result.notes
    assert array_of(result.model, "w16").dtype == np.float16 and array_of(result.model, "w_quantized").dtype == np.int8
    assert snr_db(run(model, feeds)[0].astype(np.float32), run(result.model, feeds)[0].astype(np.float32)) > 25


def test_dilated_average_stays_in_float() -> None:
    """onnxruntime 1.31 refuses the graph when it has a pair on either side."""
    model = parse(
        """test (float[N,4,8,8] x) => (float[N,4,6,6] y) {
            a = Conv(x, w)  y = AveragePool<kernel_shape=[2,2], dilations=[2,2]>(a) }""",
        w=(4, 4, 1, 1),
    )  # fmt: skip
    feeds = {"x": normal(8, 4, 8, 8)}
    assert snr_db(run(model, feeds)[0], run(quantized(model, feeds).model, feeds, True)[0]) > 25


# --- options


def test_unknown_options_and_operators() -> None:
    for config, text in (
        ({"granularity": "group"}, r"granularity|'group'"),
        (
            {"bits": 4},
            "`bits`; its options are activation, weight_bits, activation_bits, symmetric, granularity, ranges",
        ),
        ({"operators": ["Softmax"]}, r"operators \['Softmax'\]; allowed are Conv"),
    ):
        with pytest.raises(OptionError, match=text):
            quantized(residual(), X, **config)


def test_node_asked_for_by_name_must_be_possible() -> None:
    model = parse(
        "test (float[N,4,8] x, float[4,4,1] v) => (float[N,4,8] y) { a = Conv(x, w)  b = Relu(a)  y = Conv(b, v) }",
        w=(4, 4, 1),
    )
    feeds = {"x": normal(8, 4, 8), "v": normal(8, 4, 4, 1)}
    for name, reason in (
        ("node_y", "its weight is computed at run time"),
        ("node_b", "Relu is not among the operators Conv"),
    ):
        with pytest.raises(OptionError, match=f"cannot quantize node '{name}': {reason}"):
            quantized(model, feeds, Scope(only=("node_a", name)))


def test_scope_patterns() -> None:
    model = residual()
    only = quantized(model, X, Scope(only=("node_e", "node_p"))).model
    assert {"w0", "w1_quantized", "w2", "w3_quantized", "w4"} <= set(only.ir.graph.initializers)
    skipped = quantized(model, X, Scope(skip=("node_[sy]",))).model
    assert {"w0", "w4"} <= set(skipped.ir.graph.initializers) and "w2" not in skipped.ir.graph.initializers


def test_same_bytes_twice() -> None:
    assert to_bytes(quantized(residual(), X).model) == to_bytes(quantized(residual(), X).model)


def test_no_layer_to_store() -> None:
    """A model without a weight comes back as it is, though its Add could run in integers."""
    model = parse("test (float[N,4] x) => (float[N,4] y) { y = Add(x, x) }")
    result = quantized(model, {"x": normal(8, 4)})
    assert not result.modified and result.model is model
    assert result.notes[-1] == "quantize_static: no layer can run in integers"
