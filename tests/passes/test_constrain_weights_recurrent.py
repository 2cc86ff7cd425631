"""LSTM, GRU and RNN with integer weights: a scale for every row of every gate, and what the integer kernel computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from tests.integers import WEIGHT_BITS
from tests.passes.graphs import applied, array_of, normal, operators, optimized, run

from gossamer.arith.weight_grid import Grid, in_groups, weight_grid
from gossamer.constraints import grid as constraints
from gossamer.constraints.contract import as_text
from gossamer.errors import ModelError, OptionError
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Scope, Step
from gossamer.passes import contract

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
BATCH = 3


def recurrent(
    op_type: str,
    units: int,
    inputs: int,
    directions: int = 1,
    steps: int = 5,
    optional: tuple[str, ...] = ("B",),
    seed: int = 0,
    **attributes: Any,
) -> Model:
    """One layer; the rows of its gates have magnitudes as different as those of trained ones."""
    rng, rows = np.random.default_rng(seed), GATES[op_type] * units
    spread = np.exp(rng.normal(0, 1, (directions, rows, 1)))
    arrays: dict[str, np.ndarray] = {
        "W": rng.normal(0, inputs**-0.5, (directions, rows, inputs)) * spread,
        "R": rng.normal(0, 0.5 * units**-0.5, (directions, rows, units)) * spread,
        "B": rng.normal(0, 0.1, (directions, 2 * rows)),
        "lengths": np.array([steps, 1, max(1, steps - 1)]),
        "h0": rng.normal(0, 0.3, (directions, BATCH, units)),
        "c0": rng.normal(0, 0.3, (directions, BATCH, units)),
        "P": rng.normal(0, 0.1, (directions, 3 * units)),
    }
    names = ["W", "R", *(name if name in optional else "" for name in ("B", "lengths", "h0", "c0", "P"))]
    names = names if op_type == "LSTM" else names[:5]
    node = helper.make_node(
        op_type,
        ["x", *names],
        ["y", "last"],
        name="cell",
        hidden_size=units,
        direction="bidirectional" if directions == 2 else "forward",
        **attributes,
    )
    stored = [
        onnx.numpy_helper.from_array(arrays[name].astype(np.int32 if name == "lengths" else np.float32), name)
        for name in names
        if name
    ]
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info("x", float32, (steps, BATCH, inputs))],
        [
            helper.make_tensor_value_info("y", float32, (steps, directions, BATCH, units)),
            helper.make_tensor_value_info("last", float32, (directions, BATCH, units)),
        ],
        stored,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return Model(ir.serde.deserialize_model(proto), "test")


GRID = ("symmetric", "granularity")


def quantized(model: Model, scope: Scope | None = None, **config: Any) -> contract.Result:
    return applied(step_of(config, scope or Scope()), model)


def step_of(config: dict[str, Any], scope: Scope) -> Step:
    """Bits, symmetric and granularity are of the grid; the rest are options of the pass."""
    grid = as_text(constraints.Grid(config.get("bits", 8), **{key: config[key] for key in GRID if key in config}))
    rest = {key: value for key, value in config.items() if key not in ("bits", *GRID)}
    return Step("constrain_weights", {"constraint": grid, "solver": "nearest", **rest}, scope)


def with_weights(model: Model, **weights: np.ndarray) -> Model:
    clone = model.clone()
    for name, array in weights.items():
        clone.ir.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return clone


def grid_of(w: np.ndarray, config: dict[str, Any]) -> Grid:
    """What arith computes for a weight, by the words of the options alone."""
    bits, symmetric = config.get("bits", 8), config.get("symmetric", True)
    granularity = config.get("granularity", "channel")
    if isinstance(granularity, int):
        return weight_grid(in_groups(w, 2, granularity), (3,), bits, symmetric)
    return weight_grid(w, (2,) if granularity == "channel" else (0, 1, 2), bits, symmetric)


def reals(model: Model, config: dict[str, Any]) -> dict[str, np.ndarray]:
    weights = {name: array_of(model, name) for name in ("W", "R")}
    return {name: grid_of(w, config).real().reshape(w.shape) for name, w in weights.items()}


def snr_db(wanted: np.ndarray, got: np.ndarray) -> float:
    error = float(np.square(wanted.astype(np.float64) - got).sum())
    return np.inf if error == 0 else float(10 * np.log10(np.square(wanted.astype(np.float64)).sum() / error))


layers = st.builds(
    recurrent,
    st.sampled_from(["LSTM", "GRU", "RNN"]),
    st.sampled_from([8, 12]),
    st.sampled_from([8, 20]),
    st.sampled_from([1, 2]),
    optional=st.lists(st.sampled_from(["B", "lengths", "h0", "c0", "P"]), unique=True).map(tuple),
    seed=st.integers(0, 2**16),
)
configs = st.fixed_dictionaries(
    {
        "bits": st.sampled_from([8, 4]),
        "symmetric": st.booleans(),
        "granularity": st.sampled_from(["channel", "tensor", 4]),
        "form": st.sampled_from(["fastest", "cast", "dequantize"]),
    }
)


@given(layers, configs)
@settings(max_examples=30)
def test_the_layer_computes_with_the_floats_of_arith(model: Model, config: dict[str, Any]) -> None:
    result = quantized(model, **config)
    for name in ("W", "R"):
        integers = array_of(result.model, f"{name}_quantized")
        assert np.array_equal(integers.astype(np.int8).ravel(), grid_of(array_of(model, name), config).integers.ravel())
    assert f"INT{config['bits']}" in result.stores
    x = normal(*model.ir.graph.inputs[0].shape.numpy())  # type: ignore[union-attr]  # its shape is known
    for optimize in (False, True):
        wanted = run(with_weights(model, **reals(model, config)), optimize, x=x)
        for a, b in zip(wanted, run(result.model, optimize, x=x), strict=True):
            assert a.shape == b.shape and np.allclose(a, b, rtol=0, atol=1e-5)


# --- the integer kernel


def rounded(x: np.ndarray) -> np.ndarray:
    """What DynamicQuantizeLinear makes of an array: 256 integers from the least to the largest, 0 among them."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return np.asarray((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale, np.float32)


def kernels(model: Model, **config: Any) -> Model:
    result = quantized(model, form="dynamiclstm", **config).model
    assert operators(result) == {"DynamicQuantizeLSTM": 1}
    return result


@given(
    st.integers(0, 2**16),
    st.sampled_from([1, 2]),
    st.sampled_from(["channel", "tensor"]),
    st.lists(st.sampled_from(["B", "lengths", "c0", "P"]), unique=True).map(tuple),
)
def test_one_step_of_the_kernel_equals_numpy_rounding(
    seed: int, directions: int, granularity: str, optional: tuple[str, ...]
) -> None:
    """Without a state before it, a step multiplies the rounded input with the floats of arith."""
    model = recurrent("LSTM", 12, 20, directions, 1, optional, seed)
    config: dict[str, Any] = {"bits": WEIGHT_BITS, "granularity": granularity}
    x = normal(1, BATCH, 20, seed=seed)
    wanted = run(with_weights(model, **reals(model, config)), x=rounded(x))
    result = kernels(model, **config)
    for name in ("W", "R"):
        integers = array_of(result, f"{name}_quantized")
        assert integers.dtype == np.int8
        assert np.array_equal(integers, grid_of(array_of(model, name), config).integers.transpose(0, 2, 1))
    for a, b in zip(wanted, run(result, x=x), strict=True):
        assert a.shape == b.shape and np.allclose(a, b, rtol=0, atol=2e-5)


@given(st.integers(0, 2**16), st.sampled_from([1, 2]), st.sampled_from([64, 70]))
@settings(max_examples=15)
def test_many_steps_of_the_kernel_stay_close(seed: int, directions: int, units: int) -> None:
    optional = ("B", "lengths", "h0", "c0", "P")
    model = recurrent("LSTM", units, 20, directions, 30, optional, seed, clip=3.0)
    x = normal(30, BATCH, 20, seed=seed)
    result = quantized(model, bits=WEIGHT_BITS).model
    assert operators(result) == {"DynamicQuantizeLSTM": 1}
    for a, b in zip(run(model, x=x), run(result, x=x), strict=True):
        assert snr_db(a, b) > 28


def test_rows_of_gates_need_scales_of_their_own() -> None:
    """The reason why a scale a matrix, as others give, ruins recurrent layers."""
    model, x = recurrent("LSTM", 32, 20, steps=30), normal(30, BATCH, 20)
    (wanted, *_), config = run(model, x=x), ("channel", "tensor")
    for form, bits, least in (("cast", 8, 38), ("dynamiclstm", WEIGHT_BITS, 32)):
        rows, matrix = (
            snr_db(wanted, run(quantized(model, form=form, bits=bits, granularity=each).model, x=x)[0])
            for each in config
        )
        assert rows > least and rows > matrix + 8


# --- which form, and how many bytes


@pytest.mark.parametrize(
    ("op_type", "units", "config", "made"),
    [
        ("LSTM", 64, {}, "DynamicQuantizeLSTM"),
        ("LSTM", 63, {}, "LSTM"),
        ("LSTM", 64, {"bits": 4}, "LSTM"),
        ("LSTM", 64, {"symmetric": False}, "LSTM"),
        ("LSTM", 64, {"granularity": 4}, "LSTM"),
        ("LSTM", 64, {"form": "cast"}, "LSTM"),
        ("LSTM", 8, {"form": "dynamiclstm"}, "DynamicQuantizeLSTM"),
        ("GRU", 64, {}, "GRU"),
        ("RNN", 64, {}, "RNN"),
    ],
)
def test_fastest(op_type: str, units: int, config: dict[str, Any], made: str) -> None:
    result = quantized(recurrent(op_type, units, 20), **config)
    assert result.modified and operators(result.model)[made] == 1
    assert ("com.microsoft" in result.model.ir.graph.opset_imports) is (made == "DynamicQuantizeLSTM")


def test_casts_are_folded(tmp_path: Path) -> None:
    for op_type in GATES:
        assert optimized(quantized(recurrent(op_type, 32, 20, 2)).model, tmp_path) == {op_type: 1}


@pytest.mark.parametrize("form", ["cast", "dynamiclstm"])
@pytest.mark.parametrize("directions", [1, 2])
def test_bytes(form: str, directions: int) -> None:
    model = recurrent("LSTM", 64, 32, directions)
    rows, bias = 4 * 64 * directions, 4 * 2 * 4 * 64 * directions
    per_row = 32 + 64 + 2 * (4 if form == "cast" else 5)
    assert quantized(model, form=form).model.weight_bytes() == rows * per_row + bias


def test_a_weight_that_would_not_shrink_stays() -> None:
    """One input a step: a scale for each weight would be more than the weight. The other weight is stored."""
    for name in ("cell", "*"):
        result = quantized(recurrent("LSTM", 64, 1), Scope(only=(name,)))
        assert {"W", "R_quantized"} <= set(result.model.ir.graph.initializers)
        assert operators(result.model) == {"Cast": 1, "Mul": 1, "LSTM": 1}
        assert not result.notes
    with pytest.raises(OptionError, match="'cell' into grid:8: integers and scales take 1536 bytes, the floats 1024"):
        quantized(recurrent("LSTM", 64, 1), Scope(only=("cell",)), form="dynamiclstm")


# --- tied weights, refusals


def two_cells(form: str) -> Model:
    """Two layers that share their weights."""
    model = recurrent("LSTM", 64, 64)
    proto = onnx.load_from_string(to_bytes(model))
    first = proto.graph.node[0]
    second = onnx.NodeProto.FromString(first.SerializeToString())
    second.name, second.input[0] = "second", "z"
    first.output[0] = "a"
    first.output[1] = ""
    squeeze = helper.make_node("Squeeze", ["a", "one"], ["z"], name="squeeze")
    del proto.graph.node[:]
    proto.graph.node.extend([first, squeeze, second])
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    return Model(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto)), form)


@pytest.mark.parametrize("form", ["fastest", "cast", "dequantize"])
def test_tied_weights_are_stored_once(form: str) -> None:
    model, x = two_cells(form), normal(5, BATCH, 64)
    result = quantized(model, form=form).model
    stored = {name for name in result.ir.graph.initializers if name[0] in "WR"}
    assert stored == {"W_quantized", "W_scale", "R_quantized", "R_scale"}
    for a, b in zip(run(model, x=x), run(result, x=x), strict=True):
        assert snr_db(a, b) > 30
    alone = quantized(model, Scope(only=("second*",)), form=form)
    assert not alone.modified and "other readers, and would be stored twice" in alone.notes[0]


@pytest.mark.parametrize(
    ("op_type", "attributes", "config", "reason"),
    [
        ("GRU", {}, {"form": "dynamiclstm"}, "DynamicQuantizeLSTM is no GRU; use form cast"),
        ("LSTM", {}, {"form": "matmulnbits"}, "MatMulNBits is no recurrent layer; use form cast"),
        ("LSTM", {"layout": 1}, {"form": "dynamiclstm"}, r"DynamicQuantizeLSTM takes the time axis first \(layout 0\)"),
        ("LSTM", {}, {"form": "dynamiclstm", "bits": 4}, "DynamicQuantizeLSTM takes symmetric weights of 5 to 8 bits"),
        ("LSTM", {}, {"granularity": 16}, "its rows of 20 weights are not a multiple of the group 16"),
    ],
)
def test_what_cannot_apply(op_type: str, attributes: dict[str, Any], config: dict[str, Any], reason: str) -> None:
    model = recurrent(op_type, 20, 20, **attributes)
    with pytest.raises(OptionError, match=f"constrain_weights cannot put node 'cell' into grid:.*: {reason}"):
        contract.run(step_of(config, Scope(only=("cell",))), model)
    result = contract.run(step_of(config, Scope()), model)
    assert not result.modified and result.notes[0].startswith("constrain_weights left cell as it was: ")


def test_tied_weights_have_no_kernel_and_products_no_lstm() -> None:
    with pytest.raises(OptionError, match="its weight W has other readers"):
        quantized(two_cells("tied"), Scope(only=("second",)), form="dynamiclstm")


def test_weights_that_are_not_finite_are_refused() -> None:
    model = recurrent("GRU", 20, 20)
    w = array_of(model, "R").copy()
    w[0, 1, 1] = np.inf
    with pytest.raises(ModelError, match="weight 'R' of node 'cell' holds NaN or infinity"):
        quantized(with_weights(model, R=w))


@pytest.mark.parametrize("form", ["cast", "dynamiclstm"])
def test_the_same_bytes_twice_and_the_input_untouched(form: str) -> None:
    model = recurrent("LSTM", 64, 20, 2)
    before = to_bytes(model)
    once, again = (to_bytes(quantized(model, form=form).model) for _ in range(2))
    assert once == again and to_bytes(model) == before
