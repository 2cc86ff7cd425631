"""Quantized graphs in torch: what the runtime gives, and gradients that pass the rounding."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[torch]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tests.integers import WEIGHT_BITS  # noqa: E402
from tests.passes.graphs import normal, parse  # noqa: E402
from tests.training.test_lower import RESIDUAL, RESIDUAL_WEIGHTS, assert_agrees, by_runtime  # noqa: E402

from gossamer.errors import ModelError  # noqa: E402
from gossamer.measuring.evidence import Evidence  # noqa: E402
from gossamer.nouns.model import Model  # noqa: E402
from gossamer.nouns.plan import Scope, Step  # noqa: E402
from gossamer.nouns.samples import samples_from_arrays  # noqa: E402
from gossamer.passes import contract  # noqa: E402
from gossamer.training.lower import lower  # noqa: E402

PAIR = "g (float[4,8] x) => (float[4,8] y) { q = QuantizeLinear<AXIS>(x, s, z) y = DequantizeLinear<AXIS>(q, s, z) }"
PERCEPTRON = "g (float[N,64] x) => (float[N,16] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
ROUNDED_INPUTS = 0.03  # of the output: the runtime rounds activations to 8 bits as well, the module does not


def pair(dtype: Any, axis: str, scale: np.ndarray) -> Model:
    low, high = ir.DataType.from_numpy(np.dtype(dtype)), np.dtype(dtype)
    zero = np.zeros(scale.shape, high) if low.is_signed() else np.full(scale.shape, 3).astype(high)
    return parse(PAIR.replace("<AXIS>", axis), s=scale, z=zero)


@settings(max_examples=30)
@given(
    dtype=st.sampled_from([np.int8, np.uint8, np.int16, np.uint16, ml_dtypes.int4, ml_dtypes.uint4]),
    axis=st.sampled_from([0, 1, -1]),
    grain=st.sampled_from(["tensor", "axis", "block"]),
    seed=st.integers(0, 99),
)
def test_the_pair_rounds_as_the_runtime_does(dtype: Any, axis: int, grain: str, seed: int) -> None:
    size = (4, 8)[axis]
    scale = np.random.default_rng(seed).uniform(0.05, 0.4, size).astype(np.float32)
    text = f"<axis={axis}>"
    if grain == "tensor":
        scale, text = scale[:1].reshape(()), ""
    elif grain == "block":
        scale = np.abs(normal(2, 8, seed=seed) if size == 4 else normal(4, 4, seed=seed)) + np.float32(0.05)
        text = f"<axis={axis}, block_size=2>"
    assert_agrees(pair(dtype, text, scale), {"x": 2 * normal(4, 8, seed=seed)})


def test_gradients_pass_straight_through_inside_the_range() -> None:
    module = lower(pair(np.int8, "", np.float32(0.01)))
    x = torch.linspace(-2, 2, 32).reshape(4, 8).requires_grad_()
    module(x).sum().backward()
    assert torch.equal(x.grad, (x.detach().abs() < 1.28).float())


def test_mixed_precision_rounds_by_the_same_grid() -> None:
    model = parse(
        "g (float[4,8] x) => (float[4,8] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
        s=np.float32(0.0173),
        z=np.uint8(100),
    )
    x = torch.from_numpy(2 * normal(4, 8)).bfloat16()
    assert torch.equal(lower(model)(x), lower(model)(x.float()))


def test_integers_behind_a_pair_stay_integers_for_those_who_read_them() -> None:
    text = """g (float[4,8] x) => (int8[8,4] q_t, float[4,8] y) {
        q = QuantizeLinear(x, s, z)
        q_t = Transpose(q)
        back = Transpose(q_t)
        y = DequantizeLinear(back, s, z)
    }"""
    model = parse(text, s=np.float32(0.1), z=np.int8(0))
    assert_agrees(model, {"x": normal(4, 8)})
    module, x = lower(model), torch.from_numpy(normal(4, 8)).requires_grad_()
    q, y = module(x)
    assert q.dtype == torch.int8
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(4, 8))


def quantized(step: Step, model: Model, **arrays: np.ndarray) -> Model:
    return contract.run(step, model, Evidence(samples_from_arrays(arrays), 1)).model


def test_what_quantize_static_writes_is_trained_as_it_runs() -> None:
    x = normal(32, 3, 8, 8)
    before = parse(RESIDUAL, **RESIDUAL_WEIGHTS)
    model = quantized(Step("quantize_static", {}, Scope()), before, x=x)
    assert any(node.op_type == "QuantizeLinear" for node in model.ir.graph)
    assert_agrees(model, {"x": x})
    module = lower(model).train()
    module(torch.from_numpy(x)).square().mean().backward()
    assert all(weight.grad is not None for weight in module.parameters() if weight.requires_grad)


GRIDS = ("grid:8", "grid:4", "grid:3:asymmetric", "grid:4:group=16")


@pytest.mark.parametrize(
    ("constraint", "form"),
    [*((grid, form) for grid in GRIDS for form in ("cast", "dequantize")), ("codebook:16", "cast")],
)
def test_weights_in_other_forms_are_read(constraint: str, form: str) -> None:
    config = {"constraint": constraint, "form": form, "solver": "nearest"}
    before = parse(PERCEPTRON, w=(64, 256), v=(256, 16))
    model = quantized(Step("constrain_weights", config, Scope()), before, x=normal(64, 64))
    assert {node.op_type for node in model.ir.graph} != {node.op_type for node in before.ir.graph}
    assert_agrees(model, {"x": normal(5, 64)})


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
def test_matmul_nbits_is_a_product_with_the_weight_it_stores(bits: int, kind: str) -> None:
    config = {"constraint": f"grid:{bits}:{kind}:group=32", "form": "matmulnbits", "solver": "nearest"}
    before = parse(PERCEPTRON, w=(64, 256), v=(256, 16))
    model = quantized(Step("constrain_weights", config, Scope()), before, x=normal(64, 64))
    for node in model.ir.graph:
        node.attributes.pop("accuracy_level", None)  # else the runtime rounds activations, too
    assert any(node.op_type == "MatMulNBits" for node in model.ir.graph)
    assert_agrees(model, {"x": normal(5, 64)})


def test_dynamic_quantization_is_that_of_the_runtime() -> None:
    before = parse(PERCEPTRON, w=(64, 256), v=(256, 16))
    model = quantized(Step("quantize_dynamic", {"weight_bits": WEIGHT_BITS}, Scope()), before, x=normal(64, 64))
    assert_agrees(model, {"x": normal(5, 64)})
    module, x = lower(model), torch.from_numpy(normal(5, 64)).requires_grad_()
    module(x).sum().backward()
    assert (x.grad != 0).any(dim=1).all()


def test_an_lstm_of_integers_is_an_lstm_of_their_values() -> None:
    text = "g (float[6,2,64] x) => (float[6,1,2,64] y) { y = LSTM<hidden_size=64>(x, w, r, b) }"
    before = parse(text, w=(1, 256, 64), r=(1, 256, 64), b=(1, 512))
    for name in ("w", "r"):
        value = before.ir.graph.initializers[name]
        value.const_value = ir.tensor(value.const_value.numpy() / 16, name=name)
    config = {"constraint": f"grid:{WEIGHT_BITS}", "form": "dynamiclstm", "solver": "nearest"}
    model = quantized(Step("constrain_weights", config, Scope()), before, x=normal(6, 2, 64)[None])
    assert [node.op_type for node in model.ir.graph] == ["DynamicQuantizeLSTM"]
    x = normal(6, 2, 64)
    (expected,) = by_runtime(model, {"x": x})
    got = lower(model)(torch.from_numpy(x)).detach().numpy()
    assert np.abs(got - expected).max() < ROUNDED_INPUTS * np.abs(expected).max()


def test_rounding_to_small_floats_is_refused() -> None:
    text = "g (float[4] x) => (float[4] y) { [it] q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    model = parse(text, s=np.float32(0.1), z=np.zeros((), ml_dtypes.float8_e4m3fn))
    expected = "QuantizeLinear it cannot be lowered: it rounds to FLOAT8E4M3FN; integers of 2 to 16 bits are supported"
    with pytest.raises(ModelError, match=expected):
        lower(model)
