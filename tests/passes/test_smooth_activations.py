from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.integers import WEIGHT_BITS

from gossamer.errors import CandidateError, OptionError
from gossamer.graph.edit import constant
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.noise import powers, ratio, to_db
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope, Step
from gossamer.nouns.samples import Samples, samples_from_arrays
from gossamer.passes.contract import Result, run
from gossamer.runtimes.onnxruntime import open_session

C = 12  # channels of a smoothed activation


def parse(text: str, weights: dict[str, np.ndarray], opset: int = 21) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    used = {name for node in proto.graph.node for name in node.input}
    for name, array in weights.items():
        if name in used:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array, np.float32), name))
    for node in proto.graph.node:
        node.name = node.name or f"make_{node.output[0]}"
    onnx.checker.check_model(proto)
    return Model(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto)), "test")


def smooth(
    model: Model, samples: Samples, scope: Scope | None = None, alpha: float | None = 0.5, products: bool = False
) -> Result:
    config = {"alpha": alpha, "products": products}
    return run(Step("smooth_activations", config, scope or Scope()), model, Evidence(samples))


def outputs(model: Model, samples: Samples) -> dict[str, np.ndarray]:
    session = open_session(model)
    runs = [session.run(batch.feeds) for batch in samples.batches(1)]
    return {name: np.concatenate(arrays) for name, *arrays in zip(session.outputs, *runs, strict=True)}


def assert_equal_outputs(before: Model, after: Model, samples: Samples) -> None:
    wanted, got = outputs(before, samples), outputs(after, samples)
    for name, array in wanted.items():
        assert np.abs(array - got[name]).max() <= 1e-5 * np.abs(array).max()


def weight(model: Model, name: str) -> np.ndarray:
    return np.asarray(constant(model.ir.graph.initializers[name]))


def uneven(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Values whose last axis differs by up to a hundred times in range."""
    return np.asarray(rng.normal(size=shape) * 10 ** rng.uniform(-1, 1, shape[-1]), np.float32)


def draw_samples(rng: np.random.Generator, *shape: int) -> Samples:
    return samples_from_arrays({"x": [uneven(rng, *shape) for _ in range(4)]})


# What makes the activation `a` (N, 5, 12) from `x` (N, 5, 8) or, where it stands, from `h`, a layer's output.
FOLDS = {
    "layer": "a = MatMul(x, w0)",
    "layer and bias": "h = MatMul(x, w0)  a = Add(b0, h)",
    "relu": "h = MatMul(x, w0)  i = Add(h, b0)  a = Relu(i)",
    "leaky relu": "h = MatMul(x, w0)  a = LeakyRelu<alpha=0.2>(h)",
    "norm": "h = MatMul(x, w0)  g = Tanh(h)  a = LayerNormalization<axis=-1>(g, scale, b0)",
    "norm, axis counted from the front, no bias": "h = MatMul(x, w0)  g = Tanh(h)  "
    "a = LayerNormalization<axis=2>(g, scale)",
    "norm and affine": "h = MatMul(x, w0)  g = Tanh(h)  n = LayerNormalization<axis=-1>(g, one)  a = Mul(n, scale)",
    "affine": "h = MatMul(x, w0)  g = Tanh(h)  m = Mul(g, scale)  a = Add(m, b0)",
    "affine by numbers": "h = MatMul(x, w0)  g = Tanh(h)  m = Mul(half, g)  a = Add(m, three)",
    "affine by rows": "h = MatMul(x, w0)  g = Tanh(h)  m = Mul(g, rows)  a = Sub(rows, m)",
    "divided": "h = MatMul(x, w0)  g = Tanh(h)  a = Div(g, scale)",
    "a constant over it": "h = MatMul(x, w0)  t = Tanh(h)  g = Exp(t)  a = Div(scale, g)",
    "sum of a constant": "h = MatMul(x, w0)  a = Sum(h, b0)",
    "subtracted": "h = MatMul(x, w0)  a = Sub(h, three)",
    "gated": "h = MatMul(x, w0)  u = MatMul(x, w1)  g = Sigmoid(u)  a = Mul(g, h)",
    "attention, one head": "v = MatMul(x, w0)  p = Softmax<axis=-1>(scores)  a = MatMul(p, v)",
    "attention, four heads": """
        h = MatMul(x, w0)  v0 = Add(h, b0)  v1 = Reshape(v0, parted)  v = Transpose<perm=[0,2,1,3]>(v1)
        p = Softmax<axis=-1>(scores4)  o = MatMul(p, v)  t = Transpose<perm=[0,2,1,3]>(o)  a = Reshape(t, joined)""",
}


def fold(kind: str, rng: np.random.Generator, behind: str = "y = MatMul(a, w)") -> Model:
    text = f"""fold (float[N,5,8] x) => (float[N,5,7] y)
        <int64[4] parted = {{0, 0, 4, 3}}, int64[3] joined = {{0, 0, 12}}, float half = {{0.5}}, float three = {{3}}> {{
        {FOLDS[kind]}
        {behind}
    }}"""
    weights = {"w0": uneven(rng, 8, C), "w1": uneven(rng, 8, C), "w": uneven(rng, 7, C).T, "b0": rng.normal(size=C)}
    weights |= {"scale": uneven(rng, C), "rows": uneven(rng, 5, C), "one": np.ones(1)}
    weights |= {"scores": rng.normal(size=(1, 5, 5)), "scores4": rng.normal(size=(1, 4, 5, 5))}
    return parse(text, weights)


@given(st.sampled_from(sorted(FOLDS)), st.integers(0, 2**16), st.floats(0, 1))
def test_keeps_the_function_and_a_second_run_finds_nothing(kind: str, seed: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    model, samples = fold(kind, rng), draw_samples(rng, 5, 8)
    result = smooth(model, samples, alpha=alpha)
    assert result.modified
    assert_equal_outputs(model, result.model, samples)
    assert not smooth(result.model, samples, alpha=alpha).modified


@given(st.sampled_from(sorted(FOLDS)), st.integers(0, 2**16), st.floats(0, 1))
def test_scales_are_those_of_the_paper(kind: str, seed: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    model, samples = fold(kind, rng), draw_samples(rng, 5, 8)
    after = smooth(model, samples, alpha=alpha).model
    x_peak_C = Evidence(samples).channel_peaks(model, ["a"])["a"]
    w_peak_C = np.abs(weight(model, "w")).max(1)
    s_C = np.where(x_peak_C > 0, x_peak_C**alpha / w_peak_C ** (1 - alpha), 1.0)  # a Relu may leave dead channels
    np.testing.assert_allclose(weight(after, "w"), weight(model, "w") * s_C[:, None], rtol=2e-3)
    np.testing.assert_allclose(Evidence(samples).channel_peaks(after, ["a"])["a"], x_peak_C / s_C, rtol=2e-3)


READERS = {
    "gemm": "y = Gemm(a, w, c)",
    "gemm, transposed": "y = Gemm<transB=1>(a, wt)",
    "both": "q = Gemm(a, w, c)  k = MatMul(a, v)  y = Mul(q, k)",
}


@given(st.sampled_from(sorted(READERS)), st.booleans(), st.integers(0, 2**16))
def test_layers_of_any_writing(kind: str, gemm_in_front: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = "a = Gemm<transB=1>(x, w0, b0)" if gemm_in_front else "a = MatMul(x, w1)"
    weights = {"w0": uneven(rng, 8, C).T, "w1": uneven(rng, 8, C), "b0": rng.normal(size=(1, C))}
    weights |= {"w": uneven(rng, 7, C).T, "wt": uneven(rng, 7, C), "v": uneven(rng, 7, C).T, "c": rng.normal(size=7)}
    model = parse(f"test (float[N,8] x) => (float[N,7] y) {{ {first}  {READERS[kind]} }}", weights)
    samples = draw_samples(rng, 8)
    after = smooth(model, samples).model
    assert_equal_outputs(model, after, samples)
    readers = [
        np.abs(weight(after, name)).max(axis) for name, axis in (("w", 1), ("v", 1), ("wt", 0)) if name in kept(after)
    ]
    peak_C = Evidence(samples).channel_peaks(after, ["a"])["a"]
    np.testing.assert_allclose(np.max(readers, axis=0), peak_C, rtol=1e-4)  # alpha 0.5 makes them meet


def kept(model: Model) -> set[str]:
    return set(model.ir.graph.initializers)


def test_attention_operator() -> None:
    rng = np.random.default_rng(0)
    text = """test (float[N,5,8] x) => (float[N,5,7] y) {
        q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, w0)
        a = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v)
        y = MatMul(a, w)
    }"""
    square = {name: uneven(rng, 8, C) for name in ("wq", "wk", "w0")}
    model = parse(text, {**square, "w": uneven(rng, 7, C).T}, opset=23)
    samples = draw_samples(rng, 5, 8)
    result = smooth(model, samples)
    assert result.modified
    assert np.array_equal(weight(result.model, "wq"), square["wq"])
    assert_equal_outputs(model, result.model, samples)


def test_chains_are_smoothed_in_one_run() -> None:
    rng = np.random.default_rng(0)
    layers = " ".join(f"h{i} = MatMul(x{i}, w{i})  x{i + 1} = Relu(h{i})" for i in range(4))
    text = f"test (float[N,{C}] x) => (float[N,{C}] x4) {{ x0 = Mul(x, scale)  {layers} }}"
    model = parse(text, {"scale": uneven(rng, C), **{f"w{i}": uneven(rng, C, C) for i in range(4)}})
    samples = draw_samples(rng, C)
    result = smooth(model, samples)
    assert result.notes == ("smooth_activations: 4 activations smoothed",)
    assert_equal_outputs(model, result.model, samples)
    assert not smooth(result.model, samples).modified


# nodes -> which layer is left alone, and why
LEFT = {
    "a = Tanh(x8)  y = MatMul(a, w)": ("make_y", "a scale does not pass through Tanh"),
    "a = Gelu(h)  y = MatMul(a, w)": ("make_y", "a scale does not pass through Gelu"),
    "y = MatMul(x8, w)": ("make_y", "they read an input of the model"),
    "a = Relu(h)  z = MatMul(a, w)  r = ReduceSum(a)  y = Add(z, r)": ("make_z", "ReduceSum reads the same"),
    "z = MatMul(h, w)  a = Relu(h)  r = MatMul(a, v)  y = Add(z, r)": ("make_r", "what makes their activation is read"),
    "a = Relu(h)  z = MatMul(a, w)  r = MatMul(a, w)  y = Add(z, r)": ("make_z", "their weights are tied"),
    "i = Tanh(h)  a = Add(h, i)  y = MatMul(a, w)": ("make_y", "both sides of Add make_a, which makes their"),
    "a = MatMul(h, square)  b = MatMul(a, square)  y = MatMul(b, w)": ("make_y", "the weight of make_b, which makes"),
    "i = Unsqueeze(h, first)  a = LayerNormalization<axis=1>(i, table)  z = MatMul(a, w)  y = Squeeze(z, first)": (
        "make_z",
        "LayerNormalization make_a is over more than the last axis",
    ),
    "i = ReduceMax(h, last)  a = Add(i, b0)  y = MatMul(a, w)": ("make_y", "Add make_a widens its input"),
    "i = Mul(h, thin)  y = MatMul(i, w)": ("make_y", "the constant of Mul make_i would grow"),
    "i = Reshape(h, turned)  y = MatMul(i, w6)": ("make_y", "the channels cannot be followed through Reshape make_i"),
    "i = Transpose<perm=[1,0]>(h)  y = MatMul(i, w)": ("make_y", "MatMul stands where the channels are parted"),
    "i = ReduceMax<keepdims=0>(h, last)  z = MatMul(x8, i)  y = MatMul(z, w)": (
        "make_y",
        "MatMul make_z does not keep",
    ),
    "i = Relu(h)  y = MatMul(h, i)  z = MatMul(y, w)": ("make_z", "they read an output of the model"),
}


def left(nodes: str) -> tuple[Model, Samples]:
    rng = np.random.default_rng(0)
    text = f"""test (float[{C},8] x, float[{C},{C}] x8) => (float[ANY] y)
        <int64[1] first = {{0}}, int64[1] last = {{1}}, int64[2] turned = {{-1, 6}}> {{ h = MatMul(x, w0)  {nodes} }}"""
    text = text.replace("float[ANY]", "float[7]" if "keepdims" in nodes else "float[P,Q]")
    weights = {"w0": uneven(rng, 8, C), "w": uneven(rng, C, 7), "v": uneven(rng, C, 7), "square": uneven(rng, C, C)}
    weights |= {"table": uneven(rng, C, C), "b0": uneven(rng, C), "thin": uneven(rng, C, 1), "w6": uneven(rng, 6, 3)}
    model = parse(text, weights)
    columns = {"x": [uneven(rng, 8) for _ in range(C)], "x8": [uneven(rng, C) for _ in range(C)]}
    return model, samples_from_arrays(columns)


@pytest.mark.parametrize("nodes", LEFT)
def test_left_alone_with_the_reason(nodes: str) -> None:
    model, samples = left(nodes)
    result = smooth(model, samples)
    layer, reason = LEFT[nodes]
    assert any(layer in note and f" alone: {reason}" in note for note in result.notes), result.notes
    before, after = ({node.name: node for node in m.ir.graph}[layer].inputs[1] for m in (model, result.model))
    assert np.array_equal(np.asarray(constant(before)), np.asarray(constant(after)))


@pytest.mark.parametrize("nodes", LEFT)
@pytest.mark.parametrize("alpha", [0.5, None])
def test_with_products_only_tied_weights_are_left_alone(nodes: str, alpha: float | None) -> None:
    model, samples = left(nodes)
    result = smooth(model, samples, alpha=alpha, products=True)
    layer, reason = LEFT[nodes]
    if "tied" in reason:
        assert any(layer in note for note in result.notes)
    elif alpha is not None:
        assert not any(layer in note for note in result.notes) and result.modified
    assert_equal_outputs(model, result.model, samples)


def test_all_layers_of_an_activation_must_be_in_scope() -> None:
    rng = np.random.default_rng(0)
    text = (
        "test (float[N,8] x) => (float[N,7] y, float[N,7] z) { a = MatMul(x, w0)  y = MatMul(a, w)  z = MatMul(a, v) }"
    )
    model = parse(text, {"w0": uneven(rng, 8, C), "w": uneven(rng, 7, C).T, "v": uneven(rng, 7, C).T})
    samples = draw_samples(rng, 8)
    result = smooth(model, samples, Scope(skip=("make_z",)))
    assert not result.modified
    assert "smooth_activations left make_y alone: a layer out of scope reads the same activation" in result.notes
    assert smooth(model, samples, Scope(only=("make_y", "make_z"))).modified


def test_alpha_is_given_layer_by_layer_through_scopes() -> None:
    rng = np.random.default_rng(0)
    text = """test (float[N,8] x) => (float[N,7] y, float[N,7] z) {
        a = MatMul(x, w0)  b = MatMul(x, w1)  y = MatMul(a, w)  z = MatMul(b, v)
    }"""
    weights = {"w0": uneven(rng, 8, C), "w1": uneven(rng, 8, C), "w": uneven(rng, 7, C).T, "v": uneven(rng, 7, C).T}
    model, samples = parse(text, weights), draw_samples(rng, 8)
    half = smooth(model, samples, Scope(only=("make_y",)), 0.5)
    assert np.array_equal(weight(half.model, "w1"), weights["w1"])
    both = smooth(half.model, samples, Scope(skip=("make_y",)), 0.8)
    for name, alpha in (("make_y", 0.5), ("make_z", 0.8)):
        assert not smooth(both.model, samples, Scope(only=(name,)), alpha).modified
        assert smooth(both.model, samples, Scope(only=(name,)), 1.3 - alpha).modified
    assert_equal_outputs(model, both.model, samples)


def test_shared_small_constants_are_copied() -> None:
    rng = np.random.default_rng(0)
    model = fold(
        "affine",
        rng,
        "y0 = MatMul(a, w)  t = Tanh(x)  o = MatMul(t, w1)  i = Mul(o, scale)  j = ReduceSum(i)  y = Add(y0, j)",
    )
    samples = draw_samples(rng, 5, 8)
    after = smooth(model, samples).model
    assert np.array_equal(weight(after, "scale"), weight(model, "scale"))
    assert kept(after) - kept(model) == {"scale/make_m"}
    assert_equal_outputs(model, after, samples)


def test_dead_and_extreme_channels_keep_their_weights() -> None:
    rng = np.random.default_rng(0)
    w0, w = uneven(rng, 8, C), np.ascontiguousarray(uneven(rng, 7, C).T)
    w0[:, 0], w[1], w0[:, 2] = 0, 0, w0[:, 2] * 1e-16
    model = parse("test (float[N,8] x) => (float[N,7] y) { a = MatMul(x, w0)  y = MatMul(a, w) }", {"w0": w0, "w": w})
    samples = draw_samples(rng, 8)
    after = smooth(model, samples).model
    assert np.array_equal(weight(after, "w")[:3], w[:3])
    assert np.array_equal(weight(after, "w0")[:, :3], w0[:, :3])
    assert (weight(after, "w")[3:] != w[3:]).all()
    assert_equal_outputs(model, after, samples)


def test_an_overflow_is_refused_with_the_node() -> None:
    x = samples_from_arrays({"x": np.full((1, 2), 1e-3, np.float32)})
    weights = {"w0": np.full((2, 2), 1e-3), "b0": np.full(2, 3e38), "w": np.full((2, 3), 1e3)}
    weights["low"] = np.full(2, -2.9e38)
    text = """test (float[N,2] x) => (float[N,3] y) {
        h = MatMul(x, w0)  g = Add(h, b0)  a = Add(g, low)  y = MatMul(a, w)
    }"""
    with pytest.raises(CandidateError, match=r"made a constant of make_. infinite; skip this layer"):
        smooth(parse(text, weights), x, alpha=0)


@pytest.mark.parametrize("alpha", [-0.1, 1.01, float("nan")])
def test_a_senseless_exponent_is_refused(alpha: float) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(OptionError, match=r"alpha is .*; allowed is 0 to 1"):
        smooth(fold("layer", rng), draw_samples(rng, 5, 8), alpha=alpha)


def block(rng: np.random.Generator, width: int = 64, outliers: int = 4) -> Model:
    """A pre-norm transformer block whose norms raise a few channels 60-fold, as trained language models do."""
    text = f"""block (float[N,16,{width}] x) => (float[N,16,{width}] y)
        <int64[4] parted = {{0, 0, 4, {width // 4}}}, int64[3] joined = {{0, 0, {width}}}, float half = {{0.25}}> {{
        n = LayerNormalization<axis=-1>(x, g1, b1)
        q0 = MatMul(n, wq)  q1 = Reshape(q0, parted)  q = Transpose<perm=[0,2,1,3]>(q1)
        k0 = MatMul(n, wk)  k1 = Reshape(k0, parted)  k = Transpose<perm=[0,2,3,1]>(k1)
        v0 = MatMul(n, wv)  v1 = Reshape(v0, parted)  v = Transpose<perm=[0,2,1,3]>(v1)
        s0 = MatMul(q, k)  s = Mul(s0, half)  p = Softmax<axis=-1>(s)
        o0 = MatMul(p, v)  o1 = Transpose<perm=[0,2,1,3]>(o0)  o = Reshape(o1, joined)
        z = MatMul(o, wo)  r = Add(x, z)
        m = LayerNormalization<axis=-1>(r, g2, b2)
        u0 = MatMul(m, wu)  u1 = Add(u0, bu)  u = Gelu(u1)  d = MatMul(u, wd)
        y = Add(r, d)
    }}"""
    spread = 1 / np.sqrt(width)
    weights: dict[str, Any] = {name: rng.normal(0, spread, (width, width)) for name in ("wq", "wk", "wv", "wo")}
    weights |= {"wu": rng.normal(0, spread, (width, 4 * width)), "wd": rng.normal(0, spread / 2, (4 * width, width))}
    weights |= {"b1": rng.normal(0, 0.1, width), "b2": rng.normal(0, 0.1, width), "bu": rng.normal(0, 0.1, 4 * width)}
    for gain, readers in (("g1", ("wq", "wk", "wv")), ("g2", ("wu",))):
        chosen = rng.choice(width, outliers, replace=False)
        weights[gain] = rng.uniform(0.8, 1.2, width)
        weights[gain][chosen] *= 60
        for name in readers:
            weights[name][chosen] /= 20  # training leaves them small weights
    return parse(text, weights)


def snr_db(wanted: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> float:
    noise, signal = powers(got, wanted, len(next(iter(wanted.values()))))
    return to_db(float(ratio(noise.sum(), signal.sum())))


def quantized_snr_db(model: Model, reference: Model, samples: Samples, ranges: str) -> float:
    config = {"operators": ["Gemm", "MatMul"], "granularity": "channel", "ranges": ranges, "weight_bits": WEIGHT_BITS}
    quantized = run(Step("quantize_static", config), model, Evidence(samples)).model
    return snr_db(outputs(reference, samples), outputs(quantized, samples))


@pytest.mark.parametrize("ranges", ["minmax", "percentile"])
def test_planted_outliers_cost_less_noise(ranges: str) -> None:
    rng = np.random.default_rng(3)
    model = block(rng)
    samples = samples_from_arrays({"x": rng.normal(size=(8, 16, 64)).astype(np.float32)})
    smoothed = smooth(model, samples)
    assert_equal_outputs(model, smoothed.model, samples)
    plain_db = quantized_snr_db(model, model, samples, ranges)
    assert quantized_snr_db(smoothed.model, model, samples, ranges) > plain_db + 20


@pytest.mark.parametrize("method", ["quantize_static", "quantize_dynamic"])
def test_outliers_of_a_residual_stream_are_taken_out_by_a_product(method: str) -> None:
    """A post-norm encoder: the sum behind the layers reads the normalization too, so its scale cannot change."""
    rng = np.random.default_rng(5)
    text = """block (float[N,16,64] x) => (float[N,16,64] y) {
        n = LayerNormalization<axis=-1>(x, gain, bias)
        u0 = MatMul(n, wu)  u = Gelu(u0)  d = MatMul(u, wd)
        r = Add(n, d)  y = LayerNormalization<axis=-1>(r, one, bias)
    }"""
    gain = rng.uniform(0.8, 1.2, 64)
    gain[:3] *= 60
    weights = {"wu": rng.normal(0, 0.1, (64, 256)), "wd": rng.normal(0, 0.05, (256, 64)), "gain": gain}
    weights |= {"bias": rng.normal(0, 0.1, 64), "one": np.ones(64)}
    weights["wu"][:3] /= 20
    model = parse(text, weights)
    samples = samples_from_arrays({"x": rng.normal(size=(8, 16, 64)).astype(np.float32)})
    config = {"operators": ["MatMul"]} if method == "quantize_static" else {}

    def noise_db(prepared: Model) -> float:
        result = run(Step(method, config), prepared, Evidence(samples)).model
        return snr_db(outputs(model, samples), outputs(result, samples))

    assert not smooth(model, samples, Scope(only=("make_u0",))).modified
    smoothed = smooth(model, samples, alpha=None, products=True)
    assert_equal_outputs(model, smoothed.model, samples)
    assert "Mul" in {node.op_type for node in smoothed.model.ir.graph}
    assert noise_db(smoothed.model) > noise_db(model) + 8
