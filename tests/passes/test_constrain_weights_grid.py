"""Weight-only integers: the file holds what arith computes, and the runtime computes what the file says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.passes.graphs import applied, normal, operators, optimized, parse, run

from gossamer.arith.weight_grid import Grid, in_groups, weight_grid
from gossamer.constraints import grid as constraints
from gossamer.constraints.contract import as_text
from gossamer.errors import CandidateError, ModelError, OptionError
from gossamer.graph.edit import constant
from gossamer.graph.weight_forms import BLOCKS
from gossamer.nouns.model import Model, save, to_bytes
from gossamer.nouns.plan import Scope, Step
from gossamer.passes import constrain_weights, contract

GRID = ("symmetric", "granularity")


def quantized(model: Model, scope: Scope | None = None, **config: Any) -> contract.Result:
    return applied(step_of(config, scope or Scope()), model)


def step_of(config: dict[str, Any], scope: Scope) -> Step:
    """Bits, symmetric and granularity are of the grid; the rest are options of the pass."""
    grid = as_text(constraints.Grid(config.get("bits", 8), **{key: config[key] for key in GRID if key in config}))
    rest = {key: value for key, value in config.items() if key not in ("bits", *GRID)}
    return Step("constrain_weights", {"constraint": grid, "solver": "nearest", **rest}, scope)


def stored(model: Model) -> dict[str, np.ndarray]:
    return {name: np.asarray(constant(value)) for name, value in model.ir.graph.initializers.items()}


def expected_grid(w: np.ndarray, channel_axis: int, config: dict[str, Any]) -> Grid:
    """What arith computes for a weight, by the words of the options alone."""
    granularity = config.get("granularity", "channel")
    shared: tuple[int, ...] = tuple(range(w.ndim))
    if isinstance(granularity, int):
        w, shared = in_groups(w, 1 - channel_axis, granularity), (2 - channel_axis,)
    elif granularity == "channel":
        shared = tuple(axis for axis in shared if axis != channel_axis)
    return weight_grid(w, shared, config["bits"], config["symmetric"])


def rounded_by_kernel(x_MK: np.ndarray, block: int) -> np.ndarray:
    """What MatMulNBits with accuracy_level 4 multiplies with: symmetric int8 of every block of a row."""
    k = x_MK.shape[1]
    x_MBX = np.pad(x_MK, ((0, 0), (0, -k % block))).reshape(len(x_MK), -1, block)
    scale = np.abs(x_MBX).max(axis=2, keepdims=True) / np.float32(127)
    steps = np.rint(x_MBX / np.where(scale == 0, 1, scale))
    return np.asarray((steps * scale).reshape(len(x_MK), -1)[:, :k])


configs = st.fixed_dictionaries(
    {
        "bits": st.sampled_from([8, 4]),
        "symmetric": st.booleans(),
        "granularity": st.sampled_from(["channel", "tensor", 5, 16, 32]),
    }
)


@st.composite
def products(draw: st.DrawFn, groups_of: int) -> tuple[Model, np.ndarray, np.ndarray, int, np.ndarray]:
    """A product big enough to shrink; its input, weight, channel axis and bias."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    outputs = draw(st.integers(8, 12))
    inputs = draw(st.integers(1, 3)) * groups_of if groups_of else draw(st.integers(24, 70))
    w = (rng.normal(draw(st.sampled_from([0.0, 2.0])), size=(inputs, outputs))).astype(np.float32)
    if draw(st.booleans()):
        shape = draw(st.sampled_from([(3,), (2, 3), (2, 1, 3)]))
        x = rng.normal(size=(*shape, inputs)).astype(np.float32)
        sides = ",".join(map(str, x.shape)), ",".join(map(str, (*shape, outputs)))
        model = parse(f"test (float[{sides[0]}] x) => (float[{sides[1]}] y) {{ y = MatMul(x, w) }}", w=w)
        return model, x, w, 1, np.zeros(outputs, np.float32)
    x, transposed = rng.normal(size=(5, inputs)).astype(np.float32), draw(st.booleans())
    bias = rng.normal(size=draw(st.sampled_from([(outputs,), (1, outputs), (1,)]))).astype(np.float32)
    w = w.T.copy() if transposed else w
    text = f"test (float[5,{inputs}] x) => (float[5,{outputs}] y) {{ y = Gemm<transB={int(transposed)}>(x, w, c) }}"
    return parse(text, w=w, c=bias), x, w, 0 if transposed else 1, bias


@given(st.data(), configs, st.sampled_from(["cast", "dequantize"]))
def test_floats_of_the_file_are_those_of_arith(data: st.DataObject, config: dict[str, Any], form: str) -> None:
    group = config["granularity"] if isinstance(config["granularity"], int) else 0
    model, x, w, axis, bias = data.draw(products(group))
    result = quantized(model, form=form, **config).model
    grid = expected_grid(w, axis, config)
    w_real = grid.real().reshape(w.shape)
    integers = stored(result)["w_quantized"]
    assert integers.dtype.name == f"int{config['bits']}"
    assert np.array_equal(integers.astype(np.int8).ravel(), grid.integers.ravel())
    assert ("w_zero_point" in stored(result)) is bool(grid.zero_point.any())
    (real,) = (v for node in result.ir.graph for v in node.outputs if any(use.idx == 1 for use in v.uses()
               if use.node.op_type in ("MatMul", "Gemm")))  # fmt: skip
    assert real.shape is not None and tuple(real.shape) == w.shape
    result.ir.graph.outputs.append(real)
    for optimize in (False, True):
        y, w_file = run(result, optimize, x=x)
        assert np.array_equal(w_file, w_real)
        wanted = x @ (w_real if axis == 1 else w_real.T) + bias
        assert y.shape == wanted.shape and np.allclose(y, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@given(st.data(), configs.filter(lambda config: config["granularity"] != 5))
def test_block_products_equal_numpy(data: st.DataObject, config: dict[str, Any]) -> None:
    group = config["granularity"] if isinstance(config["granularity"], int) else 0
    model, x, w, axis, bias = data.draw(products(group))
    result = quantized(model, form="matmulnbits", **config).model
    (node,) = (node for node in result.ir.graph if node.op_type == "MatMulNBits")
    block, k = node.attributes["block_size"].as_int(), x.shape[-1]
    assert block == group or (not group and block in BLOCKS)
    w_real = expected_grid(w, axis, config).real().reshape(w.shape)
    w_KN = w_real if axis == 1 else w_real.T
    wanted = (rounded_by_kernel(x.reshape(-1, k), block) @ w_KN).reshape(*x.shape[:-1], -1) + bias
    (y,) = run(result, x=x)
    assert y.shape == wanted.shape
    assert np.allclose(y, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    assert np.abs(y - wanted).max() < 0.2 * np.abs(x @ w_KN + bias - y).max() + 1e-4  # its int8 rounding was simulated


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("granularity", ["channel", "tensor", 4])
@pytest.mark.parametrize("form", ["fastest", "dequantize"])
def test_convolutions(bits: int, granularity: Any, form: str) -> None:
    model = parse(
        "test (float[1,4,9,9] x) => (float[1,6,9,9] y) { y = Conv<pads=[1,1,1,1]>(x, w, c) }", w=(6, 4, 3, 3), c=(6,)
    )
    w, x = stored(model)["w"], normal(1, 4, 9, 9)
    result = quantized(model, bits=bits, granularity=granularity, form=form).model
    grid = expected_grid(w.reshape(6, -1), 0, {"bits": bits, "granularity": granularity, "symmetric": True})
    model.ir.graph.initializers["w"].const_value = ir.tensor(grid.real().reshape(w.shape), name="w")
    (wanted,) = run(model, x=x)
    for optimize in (False, True):
        assert np.allclose(run(result, optimize, x=x)[0], wanted, rtol=1e-5, atol=1e-5)
    assert operators(result)["DequantizeLinear" if form == "dequantize" else "Cast"] == 1


@pytest.mark.parametrize("shape", [(3, 5, 1, 3), (7, 3, 3, 3)])
def test_an_odd_number_of_4_bit_integers_fills_the_last_byte(shape: tuple[int, ...]) -> None:
    text = f"test (float[1,{shape[1]},9,9] x) => (float[1,{shape[0]},A,B] y) {{ y = Conv(x, w) }}"
    result = quantized(parse(text, w=shape), bits=4).model
    size = int(np.prod(shape))
    assert size % 2 and result.weight_bytes() == (size + 1) // 2 + 4 * shape[0]
    grid = expected_grid(normal(*shape, seed=7), 0, {"bits": 4, "symmetric": True})
    again = onnx.load_from_string(to_bytes(result)).graph.initializer
    integers = next(tensor for tensor in again if tensor.name == "w_quantized")
    assert integers.data_type == onnx.TensorProto.INT4 and len(integers.raw_data) == (size + 1) // 2
    assert np.array_equal(onnx.numpy_helper.to_array(integers).astype(np.int8), grid.integers)


@pytest.mark.parametrize(
    ("config", "per_weight"),
    [
        ({}, 1 + 4 / 256),
        ({"form": "cast"}, 1 + 4 / 512),
        ({"form": "dequantize"}, 1 + 4 / 512),
        ({"granularity": "tensor", "form": "cast"}, 1),
        ({"bits": 4}, 1 / 2 + 4 / 256),
        ({"bits": 4, "granularity": 32}, 1 / 2 + 4 / 32),
        ({"bits": 4, "granularity": 64, "form": "dequantize"}, 1 / 2 + 4 / 64),
        ({"bits": 4, "granularity": 64, "form": "cast", "symmetric": False}, 1 / 2 + 4.5 / 64),
        ({"bits": 4, "granularity": 64, "symmetric": False}, 1 / 2 + 4.5 / 64),
    ],
)
def test_bytes(config: dict[str, Any], per_weight: float, tmp_path: Path) -> None:
    model = parse("test (float[M,512] x) => (float[M,384] y) { y = MatMul(x, w) }", w=(512, 384))
    result = quantized(model, **config).model
    floats = 4 * 512 * 384
    assert result.weight_bytes() == pytest.approx(per_weight * floats / 4, abs=40)  # the shape of a Reshape
    assert save(result, tmp_path / "a.onnx") < per_weight * floats / 4 + 2000


@pytest.mark.parametrize("k", [100, 384, 391, 1000])
def test_a_repeated_scale_costs_little(k: int) -> None:
    """MatMulNBits knows only blocks; those of a channel are chosen so that neither padding nor scales cost much."""
    model = parse(f"test (float[M,{k}] x) => (float[M,64] y) {{ y = MatMul(x, w) }}", w=(k, 64))
    for bits, most in ((8, 1.35), (4, 1.45)):
        assert quantized(model, bits=bits).model.weight_bytes() < most * k * 64 * bits / 8


# --- what the runtime makes of it


def test_casts_are_folded_and_nothing_else_is(tmp_path: Path) -> None:
    """The claim of the module's text: a cast costs nothing, a DequantizeLinear is fused or stays."""
    text = """test (float[N,4,8] x) => (float[N,8] y) {
        a = Conv(x, k)  b = Flatten(a)  c = MatMul(b, w)  y = Gemm<transB=1>(c, v) }"""
    model = parse(text, k=(4, 4, 1), w=(32, 32), v=(8, 32))
    cast = optimized(quantized(model, bits=4, form="cast").model, tmp_path)
    assert not cast["Cast"] and not cast["Mul"] and not cast["DequantizeLinear"]
    standard = optimized(quantized(model, form="dequantize").model, tmp_path)
    assert standard["MatMulNBits"] == 1 and standard["DequantizeLinear"] == 2  # of Conv, and of Gemm with transB
    fastest = optimized(quantized(model).model, tmp_path)
    assert fastest["MatMulNBits"] == 2 and not fastest["Cast"]


@pytest.mark.parametrize(
    ("config", "made"),
    [
        ({}, "MatMulNBits"),
        ({"granularity": "tensor"}, "MatMulNBits"),
        ({"granularity": 16, "bits": 4}, "MatMulNBits"),
        ({"granularity": 8}, "Cast"),
        ({"granularity": 48}, "Cast"),
    ],
)
def test_fastest(config: dict[str, Any], made: str) -> None:
    model = parse("test (float[M,96] x) => (float[M,24] y) { y = MatMul(x, w) }", w=(96, 24))
    assert operators(quantized(model, **config).model)[made] == 1


# --- tables


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["channel", "tensor", 8])
def test_rows_of_a_table(optimize: bool, bits: int, symmetric: bool, granularity: Any) -> None:
    table = normal(300, 16) + np.linspace(-2, 2, 300, dtype=np.float32)[:, None]
    model = parse("test (int64[N,T] rows) => (float[N,T,16] y) { y = Gather(table, rows) }", table=table)
    config = {"bits": bits, "symmetric": symmetric, "granularity": granularity}
    result = quantized(model, **config).model
    rows = np.array([[0, 7, 299, -1], [-300, -2, 5, 5]])
    wanted = expected_grid(table, 0, {**config}).real().reshape(table.shape)
    (y,) = run(result, optimize, rows=rows)
    assert np.array_equal(y, wanted[rows])
    scales = {"channel": 300, "tensor": 1, 8: 600}[granularity]
    assert result.weight_bytes() <= table.size * bits / 8 + 5 * scales + 24
    assert next(node.op_type for node in result.ir.graph) == ("Gather" if bits == 8 else "Cast")


def test_small_tables_and_unwanted_ones_are_left() -> None:
    text = "test (int64[M] rows) => (float[M,16] y) { y = Gather(table, rows) }"
    small = quantized(parse(text, table=(30, 16)))
    assert not small.modified and "its table has fewer than 4096 elements" in small.notes[0]
    left = quantized(parse(text, table=(300, 16)), embeddings=False)
    assert not left.modified and "the option embeddings is off" in left.notes[0]


# --- tied weights


@pytest.mark.parametrize("form", ["fastest", "cast", "dequantize", "matmulnbits"])
def test_tied_matrix_is_stored_once(form: str) -> None:
    text = "test (float[4,48] x) => (float[4,48] y) { a = MatMul(x, w)  b = Tanh(a)  y = MatMul(b, w) }"
    model, x = parse(text, w=(48, 48)), normal(4, 48)
    result = quantized(model, form=form).model
    assert {name for name in stored(result) if "shape" not in name} == {"w_quantized", "w_scale"}
    wanted = run(model, x=x)[0]
    assert np.abs(run(result, x=x)[0] - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize("form", ["fastest", "cast", "dequantize"])
def test_table_that_is_also_a_matrix_is_stored_once(form: str) -> None:
    text = """test (int64[N] rows) => (float[N,300] y) { a = Gather(table, rows)  y = Gemm<transB=1>(a, table) }"""
    model, rows = parse(text, table=(300, 16)), np.array([3, 1, 299])
    result = quantized(model, form=form).model
    assert {name for name in stored(result) if "shape" not in name} == {"table_quantized", "table_scale"}
    w = expected_grid(stored(model)["table"], 0, {"bits": 8, "symmetric": True}).real()
    assert np.allclose(run(result, rows=rows)[0], w[rows] @ w.T, rtol=1e-5, atol=1e-4)


def test_weights_with_other_readers_stay_in_float() -> None:
    text = """test (float[4,32] x) => (float[4,32] y) {
        a = MatMul(x, w)
        m = ReduceSum<keepdims=0>(a)
        c = Greater(m, zero)
        b = If(c) < then_branch = t () => (float[4,32] t1) { t1 = MatMul(a, w) },
                    else_branch = e () => (float[4,32] e1) { e1 = Identity(a) } >
        y = MatMul(b, v) }"""
    model = parse(text, w=(32, 32), v=(32, 32), zero=np.array(-1e9, np.float32))
    result = quantized(model)
    assert {"w", "v_quantized"} <= set(stored(result.model)) and "v" not in stored(result.model)
    reason = "constrain_weights left node_a as it was: its weight w has other readers, and would be stored twice"
    assert result.notes == (reason,)
    both = parse("test (float[4,32] x) => (float[4,32] y) { a = MatMul(x, w)  y = MatMul(a, w) }", w=(32, 32))
    with pytest.raises(OptionError, match="'node_a' into grid:8: its weight w has other readers"):
        quantized(both, Scope(only=("node_a",)))


# --- options and refusals

REFUSED = """test (float[N,6,8] x, float[8,8] u) => (float[N,6,8] y) {
    a = Conv(x, k)  b = Relu(a)  c = MatMul(b, u)  d = MatMul(c, w)  y = MatMul(d, cube) }"""


@pytest.mark.parametrize(
    ("node", "config", "reason"),
    [
        ("node_a", {"form": "matmulnbits"}, "MatMulNBits is no convolution; use form cast"),
        ("node_a", {"granularity": 4}, "its rows of 6 weights are not a multiple of the group 4"),
        ("node_d", {"granularity": 16}, "its rows of 8 weights are not a multiple of the group 16"),
        (
            "node_d",
            {"granularity": 4, "form": "matmulnbits"},
            "MatMulNBits takes granularity 16, 32, 64, 128, 256, not",
        ),
        ("node_b", {}, "Relu has no weight"),
        ("node_c", {}, "its weight is computed at run time"),
        ("node_y", {}, "its weight has 3 axes"),
    ],
)
def test_what_cannot_apply(node: str, config: dict[str, Any], reason: str) -> None:
    """Asked for by name it is an error; else the node stays in float with a note, if there is a weight in it."""
    model = parse(REFUSED, k=(6, 6, 1), w=(8, 8), cube=(1, 8, 8))
    with pytest.raises(OptionError, match=f"constrain_weights cannot put node '{node}' into grid:.*: {reason}"):
        quantized(model, Scope(only=(node,)), **config)
    noted = [note for note in quantized(model, **config).notes if f"left {node} as it was: {reason}" in note]
    assert len(noted) == (node not in ("node_b", "node_c"))


def test_old_opsets_have_no_4_bits() -> None:
    """A type of 4 bits, and groups in DequantizeLinear, came with opset 21; bit planes need 18."""
    model = parse("test (float[M,32] x) => (float[M,8] y) { y = MatMul(x, w) }", opset=20, w=(32, 8))
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"bits": 4, "form": "dequantize"}, "4 bit tensors need opset 21, the graph has 20"),
        ({"granularity": 16, "form": "dequantize"}, "groups in DequantizeLinear need opset 21, the graph has 20"),
    )
    for config, what in refused:
        assert what in quantized(model, **config).notes[0]
    for form in ("cast", "dequantize", "matmulnbits"):
        assert quantized(model, form=form).modified
    assert quantized(model, bits=4).modified
    text = """test (int64[N] rows) => (float[N,300] y) { a = Gather(table, rows)  y = Gemm<transB=1>(a, table) }"""
    for opset, made in ((20, "BitwiseAnd"), (21, "Cast")):  # together they need a cast
        tied = quantized(parse(text, opset=opset, table=(300, 16)), bits=4).model
        assert operators(tied)[made] == 1 and tied.weight_bytes() < 300 * 16 / 2 + 300 * 4 + 200
    old = quantized(parse(text.replace("300", "1300"), opset=17, table=(1300, 16)), bits=5)
    assert not old.modified and "5 bit tensors need opset 18, the graph has 17" in old.notes[0]


def test_weights_that_would_not_shrink_stay() -> None:
    result = quantized(parse("test (float[M,1] x) => (float[M,8] y) { y = MatMul(x, w) }", w=(1, 8)), form="cast")
    assert (
        not result.modified and "node_y as it was: integers and scales take 40 bytes, the floats 32" in result.notes[0]
    )


def test_options_are_checked() -> None:
    model = parse("test (float[M,32] x) => (float[M,8] y) { y = MatMul(x, w) }", w=(32, 8))
    for text in ("grid:9", "grid:8:group=1", "grid:8:row", "grind:8", "grid"):
        with pytest.raises(OptionError, match=re.escape(repr(text)[1:-1])):
            contract.run(Step("constrain_weights", {"constraint": text}), model)
    for option, value in {"form": "qdq", "solver": "gptq", "sequential": "yes"}.items():
        with pytest.raises(OptionError, match=rf"constrain_weights: .*{option}.*its options are constraint"):
            contract.run(Step("constrain_weights", {option: value}), model)


def test_weights_that_are_not_finite_are_refused() -> None:
    w = normal(32, 8)
    w[1, 1] = np.nan
    with pytest.raises(ModelError, match="weight 'w' of node 'node_y' holds NaN or infinity"):
        quantized(parse("test (float[4,32] x) => (float[4,8] y) { y = MatMul(x, w) }", w=w))


def test_a_broken_promise_is_noticed() -> None:
    model = parse("test (float[M,32] x) => (float[M,8] y) { y = MatMul(x, w) }", w=(32, 8))
    result = quantized(model, bits=8, form="cast")
    with pytest.raises(CandidateError, match="w_quantized is INT8, promised INT4 or UINT8"):
        constrain_weights.ensures(model, result, constrain_weights.Config("grid:4"))
    with pytest.raises(CandidateError, match="grid:8 saved nothing"):
        constrain_weights.ensures(result.model, contract.Result(model, True), constrain_weights.Config())


@pytest.mark.parametrize("form", ["fastest", "cast", "dequantize"])
def test_the_same_bytes_twice(form: str) -> None:
    model = parse(REFUSED, k=(6, 6, 1), w=(8, 8), cube=(1, 8, 8))
    config: dict[str, Any] = {"bits": 4, "symmetric": False, "form": form}
    assert to_bytes(quantized(model, **config).model) == to_bytes(quantized(model, **config).model)


def test_names_of_values_survive_and_the_reference_is_kept() -> None:
    model = parse(REFUSED, k=(6, 6, 1), w=(8, 8), cube=(1, 8, 8))
    result = quantized(model).model
    assert {v.name for n in model.ir.graph for v in n.outputs} <= {v.name for n in result.ir.graph for v in n.outputs}
    assert result.reference is model
