"""Activations and weights of 16 bits, weights of 7, and several sentences over one graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.passes.graphs import applied, array_of, normal, parse, run

from gossamer.arith.affine import WEIGHT_LIMITS
from gossamer.arith.histogram import Observed
from gossamer.errors import OptionError
from gossamer.gate import check_types
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model, save
from gossamer.nouns.plan import Plan, Scope, Step
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes import contract
from gossamer.runtimes.onnxruntime import open_session

X = {"x": normal(16, 4, 12, 12)}
NET = """test (float[N,4,12,12] x) => (float[N,5] y) <float zero = {0}> {
    a = Conv<pads=[1,1,1,1]>(x, w1, c1)
    ar = Relu(a)
    b = Conv<pads=[1,1,1,1]>(ar, w2, c2)
    br = Relu(b)
    c = Conv<pads=[1,1,1,1]>(br, w3, c3)
    d = Add(c, ar)
    dr = Relu(d)
    p = GlobalAveragePool(dr)
    q = Flatten(p)
    y = Gemm<transB=1>(q, w4, c4)
}"""


def net(opset: int = 21) -> Model:
    shapes = {"w1": (8, 4, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 3, 3), "w4": (5, 8)}
    weights = {name: np.float32(normal(*s, seed=3) / np.sqrt(np.prod(s[1:]))) for name, s in shapes.items()}
    biases = {f"c{index}": normal(5 if index == 4 else 8, seed=index) / 4 for index in range(1, 5)}
    return parse(NET, opset, **weights, **biases)


def evidence(feeds: dict[str, np.ndarray] = X) -> Evidence:
    return Evidence(samples_from_arrays({name: list(array) for name, array in feeds.items()}), 1)


def quantized(model: Model, feeds: dict[str, np.ndarray] = X, scope: Scope | None = None, **config: Any) -> Model:
    return applied(Step("quantize_static", config, scope or Scope()), model, evidence(feeds)).model


def snr_db(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / max(np.square(wanted - got).sum(), 1e-30)))


def loss_db(model: Model, result: Model, optimize: bool = False, feeds: dict[str, np.ndarray] = X) -> float:
    return snr_db(run(model, False, **feeds)[0], run(result, optimize, **feeds)[0])


# --- 16 bits


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from(["Conv", "MatMul"]), st.booleans())
def test_eight_more_bits_take_48_db_off_the_noise_of_an_exact_layer(seed: int, kind: str, symmetric: bool) -> None:
    """Its weights are integers times a power of two, so all noise is that of the two activations."""
    rng = np.random.default_rng(seed)
    w = rng.integers(-127, 128, (6, 5, 1) if kind == "Conv" else (5, 6)).astype(np.float32) / 64
    w[(slice(None), 0) if kind == "Conv" else 0] = 127 / 64  # so that every channel's scale is exactly 1 / 64
    shape = "N,5,40" if kind == "Conv" else "N,40,5"
    model = parse(f"test (float[{shape}] x) => (float[N,M,K] y) {{ y = {kind}(x, w) }}", w=w)
    feeds = {"x": rng.normal(size=(64, 5, 40) if kind == "Conv" else (64, 40, 5)).astype(np.float32)}
    coarse, fine = (
        loss_db(model, quantized(model, feeds, activation=activation, symmetric=symmetric), feeds=feeds)
        for activation in ("uint8", "uint16")
    )
    assert 47 < fine - coarse < 49.5


@pytest.mark.parametrize("activation", ["uint16", "int16"])
@pytest.mark.parametrize("opset", [17, 20, 21])
def test_runtime_opens_both_forms(activation: str, opset: int) -> None:
    model = net(opset)
    result = quantized(model, activation=activation, weight_bits=16)
    domains = {node.domain for node in result.ir.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    assert domains == ({""} if opset == 21 else {"", "com.microsoft"})  # int32 biases were always standard
    assert array_of(result, "x_zero_point").dtype == activation
    assert array_of(result, "w1_quantized").dtype == np.int16
    assert min(loss_db(model, result), loss_db(model, result, optimize=True)) > 80


@pytest.mark.parametrize(("activation", "bits", "floor_db"), [("uint8", 16, 30), ("uint16", 8, 38), ("uint16", 16, 80)])
def test_bits_of_weights_and_activations_add_up(activation: str, bits: int, floor_db: float, tmp_path: Path) -> None:
    model = net()
    result = applied(Step("quantize_static", {"activation": activation, "weight_bits": bits}), model, evidence())
    assert loss_db(model, result.model) > floor_db
    assert result.stores == (f"INT{bits}",)
    save(result.model, tmp_path / "model.onnx")
    check_types(tmp_path / "model.onnx", result.stores)


# --- 7 bits


@settings(max_examples=25, deadline=None)
@given(
    hnp.arrays(np.float32, (4, 3, 3, 3), elements=st.floats(-100, 100, width=32)),
    st.sampled_from(["channel", "tensor"]),
    st.sampled_from(["nearest", "sums", "second_order"]),
)
def test_no_two_products_of_seven_bit_weights_leave_int16(w: np.ndarray, granularity: str, rounding: str) -> None:
    """vpmaddubsw adds two products of an unsigned and a signed byte in int16; all inputs at 255 are the worst case."""
    w[:, 0, 0, :2] = 100  # two largest weights side by side, as may be
    model = parse("test (float[N,3,6,6] x) => (float[N,4,4,4] y) { y = Conv(x, w) }", w=w)
    feeds = {"x": np.abs(normal(4, 3, 6, 6))}
    seven, eight = (
        array_of(
            quantized(model, feeds, weight_bits=bits, granularity=granularity, rounding=rounding, least_snr_db=0.0),
            "w_quantized",
        )
        for bits in (7, 8)
    )
    assert seven.dtype == eight.dtype == np.int8
    assert 2 * 255 * int(np.abs(seven.astype(int)).max()) <= np.iinfo(np.int16).max
    assert 2 * 255 * int(np.abs(eight.astype(int)).max()) > np.iinfo(np.int16).max
    if rounding != "second_order":
        assert (np.abs(seven.reshape(4, -1)).max(axis=1) == WEIGHT_LIMITS[7]).all()


def test_seven_bits_cost_about_the_one_bit() -> None:
    model = net()
    seven, eight = (loss_db(model, quantized(model, weight_bits=bits)) for bits in (7, 8))
    assert eight - 9 < seven < eight


# --- two sentences


def two(
    culprits: tuple[str, ...], first: str = "uint8", second: str = "uint16"
) -> tuple[Model, Model, contract.Applied]:
    model = net()
    steps = (
        Step("quantize_static", {"activation": first}, Scope(skip=culprits)),
        Step("quantize_static", {"activation": second}, Scope(only=culprits)),
    )
    gathered = evidence()
    return model, contract.run(steps[0], model, gathered).model, contract.run_plan(Plan("two", steps), model, gathered)


LAYERS = ("node_a", "node_b", "node_c", "node_y")


@pytest.mark.parametrize("culprits", [LAYERS[:1], LAYERS[1:2], LAYERS[1:3], ("node_d",), LAYERS[3:], LAYERS[1::2]])
@pytest.mark.parametrize("order", [("uint8", "uint16"), ("uint16", "uint8")])
def test_culprits_get_a_sentence_of_their_own(culprits: tuple[str, ...], order: tuple[str, str]) -> None:
    model, first, both = two(culprits, *order)
    assert both.modified
    assert all("an input of it is computed in float" in note for note in both.notes)
    stored = {name for name in both.model.ir.graph.initializers if name.endswith("_quantized")}
    assert stored == {f"w{index}_quantized" for index in range(1, 5)} | {
        name for name in stored if name.startswith("c")
    }
    for optimize in (False, True):
        assert loss_db(model, both.model, optimize) > 30
    sizes = Counter(zero_point(node).dtype.itemsize for node in both.model.ir.graph if node.op_type == "QuantizeLinear")
    assert sizes[1] and sizes[2]
    before = Counter(node.op_type for node in first.ir.graph)["QuantizeLinear"]
    assert sizes.total() <= before + 2 * len(culprits)


def zero_point(node: ir.Node) -> np.ndarray:
    value = node.inputs[2]
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def test_finer_layers_help() -> None:
    model = net()
    coarse = loss_db(model, quantized(model))
    _, _, mixed = two(("node_y", "node_a"))
    assert loss_db(model, mixed.model) > coarse + 0.5


def test_ranges_of_a_later_sentence_are_those_of_the_float_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the second sentence needs was observed for the first, or is observed on the float model."""
    model, gathered, asked = net(), evidence(), []
    known = gathered.ranges

    def ranges(observed: Model, names: list[str], histogram: bool) -> dict[str, Observed]:
        asked.append((observed is model, set(names)))
        return known(observed, names, histogram)

    monkeypatch.setattr(gathered, "ranges", ranges)
    steps = (
        Step("quantize_static", {}, Scope(skip=("node_b",))),
        Step("quantize_static", {"activation": "uint16"}, Scope(only=("node_b",))),
    )
    result = contract.run_plan(Plan("two", steps), model, gathered).model
    assert all(float_model for float_model, names in asked if names)
    assert array_of(result, "w2_quantized").dtype == np.int8


def test_a_tensor_rescaled_since_the_first_sentence_is_observed_anew() -> None:
    """Else the range would be that of the tensor before it was made a thousand times larger."""
    text = (
        "test (float[N,4,8] x) => (float[N,4,8] y, float[N,4,8] z) { a = Conv(x, w)  y = Conv(a, v)  z = Conv(x, u) }"
    )
    model = parse(text, w=(4, 4, 1), v=(4, 4, 1), u=(4, 4, 1))
    feeds = {"x": normal(8, 4, 8)}
    first = quantized(model, feeds, Scope(only=("node_z",)))
    for name, factor in (("w", 1000), ("v", 1e-3)):
        tensor = ir.tensor(array_of(first, name) * np.float32(factor), name=name)
        first.ir.graph.initializers[name].const_value = tensor
    both = quantized(first, feeds, Scope(skip=("node_z",)))
    assert array_of(both, "a_scale") > 1000 * 4 / 255
    assert snr_db(run(model, False, **feeds)[0], run(both, False, **feeds)[0]) > 25


def test_second_run_over_all_changes_nothing_and_says_little() -> None:
    model = quantized(net())
    for activation in ("uint8", "uint16"):
        again = applied(Step("quantize_static", {"activation": activation}), model, evidence())
        assert not again.modified and again.model is model
        assert again.notes == ("quantize_static: no layer can run in integers",)


def test_a_quantized_node_asked_for_by_name_is_refused() -> None:
    with pytest.raises(OptionError, match="cannot quantize node 'node_b': it is quantized already"):
        quantized(quantized(net()), scope=Scope(only=("node_b",)), activation="uint16")


@pytest.mark.parametrize("activation", ["uint8", "int8"])
@pytest.mark.parametrize("bits", [2, 4, 7])
def test_activations_of_few_bits_stay_within_them(activation: str, bits: int) -> None:
    """What comes out of every pair takes no more values than the bits can tell apart, zero among them."""
    model = parse(
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { a = Conv(x, w) y = Relu(a) }", w=normal(4, 3, 3, 3, seed=3)
    )
    x = normal(8, 3, 8, 8)
    evidence = Evidence(samples_from_arrays({"x": x}))
    config = {"activation": activation, "activation_bits": bits}
    result = contract.run(Step("quantize_static", config), model, evidence).model
    assert any(node.op_type == "Clip" for node in result.ir.graph)
    y = open_session(result).run({"x": x})[0]
    assert len(np.unique(y)) <= 2**bits and (y == 0).any() and len(np.unique(y)) > 2 ** (bits - 2)
    again = contract.run(Step("quantize_static", config), result, evidence)
    assert not again.modified
