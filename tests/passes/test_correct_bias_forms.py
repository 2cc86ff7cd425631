"""Biases and scales put right behind weights of every form, on small convolutional nets."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.passes.graphs import applied, array_of, operators, parse, run

from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Scope, Step
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes import contract

NOTHING = "correct_bias: no layer with other weights and a bias to put them right"
SEQUENTIAL = {"statistics": "sequential"}


def net(seed: int, opset: int = 21) -> Model:
    """Convolutions, one of them without a bias, one depthwise, one transposed; a Gemm, and a MatMul with an Add."""
    rng = np.random.default_rng(seed)

    def w(*shape: int, fan: int) -> np.ndarray:
        return rng.normal(0.1, np.sqrt(2 / fan), shape).astype(np.float32)

    text = """net (float[N,3,8,8] x) => (float[N,6] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, c1)  a1 = Relu(a)
        b = Conv<pads=[1,1,1,1], group=16>(a1, w2)  b1 = HardSwish(b)
        d = Conv(b1, w3, c3)  d1 = Sigmoid(d)  d2 = Mul(d, d1)
        t = ConvTranspose<strides=[2,2]>(d2, w4, c4)  t1 = Relu(t)
        m = GlobalAveragePool(t1)  f = Flatten(m)
        g = Gemm<transB=1>(f, w5, c5)  g1 = Relu(g)
        h = MatMul(g1, w6)  y = Add(h, c6) }"""
    return parse(
        text,
        opset,
        **{"w1": w(16, 3, 3, 3, fan=27), "w2": w(16, 1, 3, 3, fan=9), "w3": w(16, 16, 1, 1, fan=24)},
        **{"w4": w(16, 16, 2, 2, fan=24), "w5": w(32, 16, fan=16), "w6": w(32, 6, fan=32)},
        **{name: w(size, fan=8) for name, size in (("c1", 16), ("c3", 16), ("c4", 16), ("c5", 32), ("c6", 6))},
    )


def images(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.uniform(-1, 2, (n, 3, 2, 2)), np.ones((1, 1, 4, 4)))
    return (blocks + 0.2 * rng.normal(size=blocks.shape)).astype(np.float32)


def evidence(seed: int) -> Evidence:
    return Evidence(samples_from_arrays({"x": images(24, seed)}))


def constrained(model: Model, constraint: str, form: str = "cast") -> Model:
    config = {"constraint": constraint, "solver": "nearest", "form": form, "embeddings": False}
    if "grid" not in constraint:
        del config["form"]
    result = contract.run(Step("constrain_weights", config), model)
    assert result.modified
    return result.model


def noise(model: Model, reference: Model, x: np.ndarray) -> float:
    wanted, got = (np.asarray(run(m, x=x)[0], np.float64) for m in (reference, model))
    return float(np.square(got - wanted).sum() / np.square(wanted).sum())


FORMS = [
    ("grid:3", "cast"),
    ("grid:4", "dequantize"),
    ("grid:3:tensor", "cast"),
    ("codebook:8", ""),
    ("sparse:0.7", ""),
    ("low_rank:0.8", ""),
]


@pytest.mark.parametrize(("constraint", "form"), FORMS)
@pytest.mark.parametrize("config", [{}, SEQUENTIAL], ids=["fast", "lines"])
def test_truer_on_other_samples_whatever_the_form(constraint: str, form: str, config: dict[str, Any]) -> None:
    ratios = []
    for seed in (1, 2):
        model = net(seed)
        before = constrained(model, constraint, form)
        result = applied(Step("correct_bias", config), before, evidence(seed))
        other = images(64, seed + 100)
        ratios.append(noise(result.model, model, other) / noise(before, model, other))
    assert max(ratios) < 1.05 and min(ratios) < 0.95, ratios


@settings(max_examples=4)
@given(st.integers(0, 2**16), st.sampled_from(FORMS), st.sampled_from([{}, SEQUENTIAL]))
def test_floats_take_no_more_room_than_the_new_biases(seed: int, kind: tuple[str, str], config: dict[str, Any]) -> None:
    model = net(seed)
    before = constrained(model, *kind)
    result = contract.run(Step("correct_bias", config), before, evidence(seed))
    assume(result.modified)
    channels = 24 + 24 + 24 + 16 + 32 + 6
    assert len(to_bytes(result.model)) - len(to_bytes(before)) < 4 * 2 * channels + 6 * 200
    assert re.match(r"correct_bias kept \d of \d layers", result.notes[0])


def test_scales_do_more_than_shifts_at_few_bits() -> None:
    gains = []
    for seed in (1, 2):
        model = net(seed)
        before, other = constrained(model, "grid:3"), images(64, seed + 100)
        shifted, scaled = (
            contract.run(Step("correct_bias", {**SEQUENTIAL, "scales": scales}), before, evidence(seed)).model
            for scales in (False, True)
        )
        gains.append(noise(scaled, model, other) / noise(shifted, model, other))
    assert np.median(gains) < 0.9


def test_products_in_blocks_have_the_bias_of_the_add_behind() -> None:
    model = parse(
        """mlp (float[N,5,32] x) => (float[N,5,8] y, float[N,5,64] b) {
            a = MatMul(x, w)  b = Add(a, c)  d = Relu(b)  e = MatMul(d, v)  y = Relu(e) }""",
        w=np.random.default_rng(1).normal(0.2, 0.2, (32, 64)).astype(np.float32),
        v=np.random.default_rng(2).normal(0.2, 0.2, (64, 8)).astype(np.float32),
        c=np.zeros((1, 64), np.float32),
    )
    x = np.random.default_rng(3).normal(1, 0.3, (32, 5, 32)).astype(np.float32)
    before = constrained(model, "grid:4", "matmulnbits")
    assert operators(before)["MatMulNBits"] == 2
    for config in ({}, SEQUENTIAL):
        result = applied(Step("correct_bias", config), before, Evidence(samples_from_arrays({"x": x})))
        assert re.match("correct_bias kept 1 of 1 layers", result.notes[0])  # the other has no bias
        other = np.random.default_rng(4).normal(1, 0.3, (64, 5, 32)).astype(np.float32)
        wanted, old, new = (np.asarray(run(m, x=other)[1]) for m in (model, before, result.model))
        rows = (0, 1)
        assert np.linalg.norm((new - wanted).mean(rows)) < 0.5 * np.linalg.norm((old - wanted).mean(rows))
    assert array_of(result.model, "c").shape == (1, 64)


def test_dynamic_products_too() -> None:
    model = parse(
        "gemm (float[N,144] x) => (float[N,8] y) { y = Gemm(x, w, c) }",
        w=np.random.default_rng(1).normal(0.2, 0.2, (144, 8)).astype(np.float32),
        c=np.zeros(8, np.float32),
    )
    x = np.random.default_rng(3).normal(1, 0.3, (32, 144)).astype(np.float32)
    before = contract.run(Step("quantize_dynamic"), model, Evidence(samples_from_arrays({"x": x}))).model
    result = applied(Step("correct_bias"), before, Evidence(samples_from_arrays({"x": x})))
    assert result.notes[0].startswith("correct_bias kept 1 of 1")


def test_only_layers_with_other_weights_and_in_scope() -> None:
    model = net(1)
    step = Step(
        "constrain_weights", {"constraint": "grid:3", "solver": "nearest", "form": "cast"}, Scope(("node_[ad]",))
    )
    before = contract.run(step, model).model
    assert re.match(
        r"correct_bias kept \d of 2 layers", contract.run(Step("correct_bias"), before, evidence(1)).notes[0]
    )
    one = contract.run(Step("correct_bias", {}, Scope(("node_d",))), before, evidence(1))
    assert re.match(r"correct_bias kept \d of 1 layers", one.notes[0])
    assert np.array_equal(array_of(one.model, "c1"), array_of(model, "c1"))
    none = contract.run(Step("correct_bias", {}, Scope(("node_g",))), before, evidence(1))
    assert not none.modified and none.notes == (NOTHING,)


@pytest.mark.parametrize("config", [{}, SEQUENTIAL])
def test_repeats_to_the_byte(config: dict[str, Any]) -> None:
    before = constrained(net(1), "grid:3")
    content = to_bytes(before)
    results = [contract.run(Step("correct_bias", config), before, evidence(1)).model for _ in range(2)]
    assert to_bytes(results[0]) == to_bytes(results[1])
    assert to_bytes(before) == content


def test_zeros_stay_zero() -> None:
    before = constrained(net(1), "sparse:0.7")
    after = contract.run(Step("correct_bias", SEQUENTIAL), before, evidence(1)).model
    for name in ("w1", "w3", "w5"):
        assert np.array_equal(array_of(after, name) == 0, array_of(before, name) == 0)
