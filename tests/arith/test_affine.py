"""Integer grids: equal to onnxruntime's operators, zero always exact, ranges always covered."""

from __future__ import annotations

from functools import cache
from typing import get_args

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gossamer.arith.affine import (
    SMALLEST_SCALE,
    IntegerName,
    affine_parameters,
    dequantize,
    integer_ends,
    quantize,
    weight_scales,
    weight_scales_mse,
)
from gossamer.errors import DataError

TYPES = get_args(IntegerName)
floats = st.floats(-(2.0**100), 2.0**100, width=32)
dtype_names = st.sampled_from(TYPES)


@cache
def runtime(dtype_name: str, axis: int | None) -> ort.InferenceSession:
    shape = "" if axis is None else "C"
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[R, C] x, float[{shape}] s, {dtype_name}[{shape}] z) => ({dtype_name}[R, C] q, float[R, C] y) {{
            q = QuantizeLinear <axis = 1> (x, s, z)
            y = DequantizeLinear <axis = 1> (q, s, z) }}"""
    return ort.InferenceSession(onnx.parser.parse_model(text).SerializeToString(), providers=["CPUExecutionProvider"])


@given(
    hnp.arrays(np.float32, (3, 5), elements=floats),
    hnp.arrays(np.float32, 5, elements=st.floats(0, 2**20, width=32)),
    dtype_names,
    st.booleans(),
    st.booleans(),
)
def test_equal_to_onnxruntime(
    x: np.ndarray, width: np.ndarray, dtype_name: IntegerName, symmetric: bool, per_channel: bool
) -> None:
    scale, zero = affine_parameters(-width / 3, width, dtype_name, symmetric)
    axis = 1 if per_channel else None
    if not per_channel:
        scale, zero = scale[0], zero[0]
    q, y = runtime(dtype_name, axis).run(None, {"x": x, "s": np.asarray(scale), "z": np.asarray(zero)})
    ours = quantize(x, np.asarray(scale), np.asarray(zero), axis)
    np.testing.assert_array_equal(ours, q)
    assert ours.dtype == dtype_name
    np.testing.assert_array_equal(dequantize(ours, np.asarray(scale), np.asarray(zero), axis), y)


@pytest.mark.parametrize("dtype_name", TYPES)
def test_half_goes_to_even_as_in_onnxruntime(dtype_name: IntegerName) -> None:
    zero = affine_parameters(-1, 1, dtype_name, symmetric=True)[1]
    x = np.arange(-10, 10, 0.5, dtype=np.float32).reshape(5, 8)
    q, _ = runtime(dtype_name, None).run(None, {"x": x, "s": np.ones((), np.float32), "z": zero})
    np.testing.assert_array_equal(quantize(x, np.ones((), np.float32), zero), q)
    assert len(np.unique(q)) < 23  # halves really met halves


@given(floats, floats, dtype_names, st.booleans())
def test_range_is_covered_and_zero_exact(low: float, high: float, dtype_name: IntegerName, symmetric: bool) -> None:
    scale, zero = affine_parameters(low, high, dtype_name, symmetric)
    assert scale.dtype == np.float32 and zero.dtype == dtype_name and scale.shape == zero.shape == ()
    assert SMALLEST_SCALE <= scale < np.inf
    zeros = np.zeros(1, np.float32)
    assert dequantize(quantize(zeros, scale, zero), scale, zero)[0] == 0
    ends = np.array([min(low, 0), max(high, 0)], np.float32)
    back = dequantize(quantize(ends, scale, zero), scale, zero)
    assert np.all(np.abs(back - ends) <= scale * 0.5001 + np.abs(ends) * 1e-6)


@given(dtype_names, st.booleans(), st.floats(0.01, 100))
def test_every_integer_comes_back(dtype_name: IntegerName, symmetric: bool, high: float) -> None:
    scale, zero = affine_parameters(-1.0, high, dtype_name, symmetric)
    limits = np.iinfo(dtype_name)
    q = np.arange(limits.min, limits.max + 1).astype(dtype_name)
    assert len(q) == integer_ends(dtype_name)[1] - integer_ends(dtype_name)[0] + 1
    np.testing.assert_array_equal(quantize(dequantize(q, scale, zero), scale, zero), q)


def test_documented_grids() -> None:
    scale, zero = affine_parameters(0.0, 0.0, "uint8", symmetric=False)
    assert scale == 1 and zero == 0
    assert affine_parameters(-3.0, 1.0, "uint8", symmetric=True)[1] == 128
    assert affine_parameters(-3.0, 1.0, "uint16", symmetric=True)[1] == 32768
    scale, zero = affine_parameters(-1.27, 1.0, "int8", symmetric=True)
    assert zero == 0 and scale == np.float32(0.01)
    scale, zero = affine_parameters(2.0, 5.1, "uint8", symmetric=False)  # widened to 0
    assert zero == 0 and scale == np.float32(0.02)
    assert affine_parameters(0.0, 2.55, "int8", symmetric=False)[1] == -128
    assert affine_parameters(-1e-44, 0.0, "uint8", symmetric=False)[0] == SMALLEST_SCALE
    widest = float(np.finfo(np.float32).max)
    assert np.isfinite(affine_parameters(-widest, widest, "uint8", symmetric=False)[0])


def test_arrays_equal_scalars() -> None:
    lows, highs = np.array([-1.0, 0.0, 2.0]), np.array([3.0, 0.0, 5.0])
    scale, zero = affine_parameters(lows, highs, "int8", symmetric=False)
    for index, (low, high) in enumerate(zip(lows, highs, strict=True)):
        one = affine_parameters(float(low), float(high), "int8", symmetric=False)
        assert (scale[index], zero[index]) == one


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(DataError, match="not finite; look for NaN or Inf"):
        affine_parameters(bad, 1.0, "uint8", symmetric=False)
    with pytest.raises(DataError, match="not finite"):
        weight_scales(np.array([[1.0, bad]], np.float32), 0)


weights = hnp.arrays(np.float32, (4, 3, 2), elements=st.floats(-1e6, 1e6, width=32))


@given(weights, st.sampled_from([0, 1, 2, None]), st.sampled_from(["int8", "int16"]))
def test_weight_scales_reach_every_weight(w: np.ndarray, axis: int | None, dtype_name: IntegerName) -> None:
    scale = weight_scales(w, axis, dtype_name)
    assert scale.shape == (() if axis is None else (w.shape[axis],))
    zero = np.zeros(scale.shape, dtype_name)
    q = quantize(w, scale, zero, axis)
    assert np.abs(q.astype(int)).max() <= np.iinfo(dtype_name).max
    if axis is not None:
        for index in range(w.shape[axis]):
            assert scale[index] == weight_scales(np.take(w, index, axis), None, dtype_name)
    shape = [-1 if i == axis else 1 for i in range(3)]
    assert np.all(
        np.abs(dequantize(q, scale, zero, axis) - w) <= scale.reshape(shape if axis is not None else ()) * 0.51
    )


@given(weights, st.sampled_from([0, 2, None]))
def test_mse_scales_are_never_worse(w: np.ndarray, axis: int | None) -> None:
    assert np.all(squared(w, weight_scales_mse(w, axis), axis) <= squared(w, weight_scales(w, axis), axis))


def test_mse_scales_cut_tails() -> None:
    w = np.random.default_rng(0).standard_t(4, (8, 4096)).astype(np.float32)
    ratio = squared(w, weight_scales_mse(w, 0), 0) / squared(w, weight_scales(w, 0), 0)
    assert ratio.max() <= 1 and ratio.mean() < 0.985


def squared(w: np.ndarray, scale: np.ndarray, axis: int | None) -> np.ndarray:
    zero = np.zeros(scale.shape, np.int8)
    error = (dequantize(quantize(w, scale, zero, axis), scale, zero, axis) - w).astype(np.float64)
    others = tuple(i for i in range(w.ndim) if i != axis)
    return np.asarray((error**2).sum(axis=others))
