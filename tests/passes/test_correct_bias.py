from __future__ import annotations

import re
from functools import cache

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.integers import WEIGHT_BITS
from tests.passes.graphs import applied, parse, run

from gossamer.errors import OptionError
from gossamer.graph.activations import activation
from gossamer.graph.mending import corrected as corrected_by
from gossamer.graph.qdq import dequantizer, stored_integers
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.means import joined
from gossamer.measuring.twins import mean_errors
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Scope, Step
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes import contract, correct_bias
from gossamer.runtimes.onnxruntime import open_session

STATIC = Step("quantize_static")
CORRECT = Step("correct_bias")
NOTHING = "correct_bias: no layer with other weights and a bias to put them right"


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


def mobile(seed: int) -> Model:
    """Like a small MobileNetV3: depthwise and pointwise convolutions with uneven channels, hard swish, gates."""
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    lines = []

    def conv(name: str, x: str, outputs: int, inputs: int, kernel: int, options: str = "") -> None:
        fan_in = inputs * kernel * kernel
        w = rng.normal(0, np.sqrt(2 / fan_in), (outputs, inputs, kernel, kernel))
        gain = np.exp(rng.normal(0, 0.6, (outputs, 1, 1, 1)))  # what folded batch norms leave
        weights[f"w_{name}"] = (w * gain).astype(np.float32)
        weights[f"c_{name}"] = (rng.normal(0.2, 0.5, outputs) * gain.ravel()).astype(np.float32)
        lines.append(f"{name} = Conv{options}({x}, w_{name}, c_{name})")

    conv("stem", "x", 8, 3, 3, "<pads=[1,1,1,1], strides=[2,2]>")
    lines.append("a0 = HardSwish(stem)")
    for k in range(3):
        conv(f"expand{k}", f"a{k}", 24, 8, 1)
        lines.append(f"e{k} = HardSwish(expand{k})")
        conv(f"deep{k}", f"e{k}", 24, 1, 3, "<pads=[1,1,1,1], group=24>")
        lines.append(f"d{k} = HardSwish(deep{k})  p{k} = GlobalAveragePool(d{k})")
        conv(f"squeeze{k}", f"p{k}", 8, 24, 1)
        lines.append(f"r{k} = Relu(squeeze{k})")
        conv(f"excite{k}", f"r{k}", 24, 8, 1)
        lines.append(f"g{k} = HardSigmoid(excite{k})  s{k} = Mul(d{k}, g{k})")
        conv(f"project{k}", f"s{k}", 8, 24, 1)
        lines.append(f"a{k + 1} = Add(a{k}, project{k})")
    conv("last", "a3", 16, 8, 1)
    lines.append("h = HardSwish(last)  m = GlobalAveragePool(h)  y = Flatten(m)")
    text = "\n".join(lines)
    return parse(f"mobile (float[N,3,16,16] x) => (float[N,16] y) {{ {text} }}", **weights)


def scenes(n: int, seed: int) -> np.ndarray:
    """Coarse blocks of colour under fine noise, of different brightness and contrast."""
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.uniform(-1.5, 1.5, (n, 3, 4, 4)), np.ones((1, 1, 4, 4)))
    contrast, brightness = rng.uniform(0.8, 1.2, (n, 1, 1, 1)), rng.normal(0, 0.2, (n, 3, 1, 1))
    return (contrast * blocks + brightness + 0.1 * rng.normal(size=blocks.shape)).astype(np.float32)


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
    assert result.model is float_model and result.notes == (
        "correct_bias: no layer with other weights and a bias to put them right",
    )


def test_a_model_that_came_quantized_is_left() -> None:
    """Its layers have no float form to be held against, whatever their names."""
    x = images(8, seed=1)
    quantized = contract.run(STATIC, planted("Conv", True), evidence(x)).model
    foreign = Model(quantized.ir, "foreign", reference=Model(quantized.ir, "foreign"))
    assert not contract.run(CORRECT, foreign, evidence(x)).modified


def test_options_samples_and_bytes() -> None:
    model, x = planted("Conv", True), images(8, seed=1)
    with pytest.raises(OptionError, match=r"correct_bias: .*strength.*its options are statistics, scales"):
        contract.run(Step("correct_bias", {"strength": 1}), model, evidence(x))
    with pytest.raises(OptionError, match="correct_bias needs calibration samples; give --data"):
        contract.run(CORRECT, model)
    assert to_bytes(corrected(model, x)[1].model) == to_bytes(corrected(model, x)[1].model)


def truth_db(model: Model, reference: Model, x: np.ndarray) -> float:
    """Signal over noise in dB, the mean over samples: a held-out sample beyond the ranges counts as one, not as all."""
    wanted, got = (np.asarray(run(m, x=x)[0], np.float64) for m in (reference, model))
    noise_N = np.square(got - wanted).sum(axis=1)
    return float(np.mean(10 * np.log10(np.square(wanted).sum() / len(x) / noise_N)))


@cache
def outcome(seed: int) -> tuple[float, float, float, float]:
    """dB on held-out samples: as quantized, every mean taken off without a rule, fast, sequential."""
    model, known, other = mobile(seed), evidence(scenes(48, seed)), scenes(96, seed + 1000)
    before = contract.run(Step("quantize_static", {"weight_bits": WEIGHT_BITS}), model, known).model
    layers = correct_bias._find(before, model, Scope())
    means, _ = mean_errors(model, layers, known.samples, 1)
    every = {layer.name: joined(*both).mean_O for layer, both in zip(layers, means, strict=True)}
    models = [before, corrected_by(before, layers, every)]
    for statistics in ("fast", "sequential"):
        result = contract.run(Step("correct_bias", {"statistics": statistics}), before, known)
        assert re.match(r"correct_bias kept \d+ of 17 layers", result.notes[0])
        models.append(result.model)
    before_db, naive_db, fast_db, sequential_db = (truth_db(m, model, other) for m in models)
    return before_db, naive_db, fast_db, sequential_db


SEEDS = (0, 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_never_worse_where_correction_without_a_rule_ruins(seed: int) -> None:
    before_db, _, fast_db, sequential_db = outcome(seed)
    assert fast_db > before_db - 0.1 and sequential_db > before_db - 0.1


def test_rule_and_order_matter() -> None:
    before, naive, fast, sequential = (np.array(column) for column in zip(*map(outcome, SEEDS), strict=True))
    assert np.min(naive - before) < -0.2  # some nets gain all the same
    assert np.median(sequential - fast) > 0.2


def test_activation_of_a_layer() -> None:
    text = """test (float[N,4,6,6] x) => (float[N,8,6,6] y) {
        a = Conv(x, w)  b = HardSigmoid(a)  c = Mul(a, b)  d = Relu(c)
        e = Conv(d, u)  f = Sigmoid(e)  g = Mul(f, d)  h = Add(f, g)
        y = Conv(h, u) }"""
    w = np.ones((8, 4, 1, 1), np.float32), np.ones((8, 8, 1, 1), np.float32)
    model = parse(text, w=w[0], u=w[1])
    chains = [
        [node.op_type for node in activation(node_of(model, name).outputs[0])]
        for name in ("node_a", "node_e", "node_y")
    ]
    assert chains == [["HardSigmoid", "Mul", "Relu"], ["Sigmoid"], []]


@pytest.mark.parametrize("batch", ["N", "1", "4"])
def test_sequential_on_graphs_of_every_batch(batch: str) -> None:
    """Two layers in a row, a branch, and an If that reads from outside."""
    text = """test (float[N,4,6,6] x) => (float[N,8,6,6] y) <float zero = {0}> {
        a = Conv(x, w)  b = Relu(a)  c = Conv(b, u)  d = Conv(b, v)  e = Add(c, d)
        s = ReduceSum<keepdims=0>(e)  t = Greater(s, zero)
        f = If(t) < then_branch = g1 () => (float[N,8,6,6] p) { p = Neg(d) },
                    else_branch = g2 () => (float[N,8,6,6] q) { q = Neg(e) } >
        y = Conv(f, u) }""".replace("N,", f"{batch},")
    u = uneven(8, 8).reshape(8, 8, 1, 1)
    model, x = parse(text, w=uneven(8, 4).reshape(8, 4, 1, 1), u=u, v=u[::-1].copy()), images(10, seed=1)
    before = contract.run(STATIC, model, evidence(x)).model
    results = [applied(Step("correct_bias", {"statistics": "sequential"}), before, evidence(x)) for _ in range(2)]
    assert results[0].modified and to_bytes(results[0].model) == to_bytes(results[1].model)
    other = images(8, seed=2)
    wanted, old, new = (
        np.concatenate([run(m, x=other[k : k + size])[0] for k in range(0, 8, size)])
        for m in (model, before, results[0].model)
        for size in [4 if batch == "4" else 1]
    )
    assert np.square(new - wanted).sum() < np.square(old - wanted).sum()
