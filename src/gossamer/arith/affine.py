"""Integer grids: scale, zero point, rounding. The single source of these for every stage.

An integer q stands for the real number (q - zero_point) * scale. Rounding is half to even and saturating, exactly as
ONNX QuantizeLinear does it, so what is computed here is what the runtime computes. A zero point is an array of the
integer type itself, as in the graph: the grid's type travels with it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from gossamer.errors import DataError

IntegerName = Literal["uint8", "int8", "uint16", "int16"]
WeightBits = Literal[2, 3, 4, 5, 6, 7, 8, 16]

# The largest weight integer. 7 bits are for processors that add two products of an unsigned and a signed byte in int16,
# as vpmaddubsw does: 2 * 255 * 64 fits into it, 2 * 255 * 127 does not, and saturates.
WEIGHT_LIMITS: dict[WeightBits, int] = {2: 1, 3: 3, 4: 7, 5: 15, 6: 31, 7: 64, 8: 127, 16: 32767}
COARSE_BITS = 6  # up to here, scales below the largest weight's gain much

SMALLEST_SCALE = np.finfo(np.float32).tiny  # below it float32 is denormal, which runtimes may flush to zero
LARGEST_SCALE = np.finfo(np.float32).max
SHRINK_FACTORS = np.linspace(1.0, 0.5, 21)


def integer_ends(dtype_name: IntegerName, bits: int | None = None) -> tuple[int, int]:
    """The least and greatest integer of so many bits of a type; None means all of them."""
    limits = np.iinfo(dtype_name)
    count = limits.bits if bits is None else bits
    return (-(1 << (count - 1)), (1 << (count - 1)) - 1) if limits.min < 0 else (0, (1 << count) - 1)


def affine_parameters(
    low: float | np.ndarray,
    high: float | np.ndarray,
    dtype_name: IntegerName,
    symmetric: bool,
    bits: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The grid of a type that covers [low, high], after widening the range to contain 0, which is then exact.

    Asymmetric grids use every integer. Symmetric ones put zero in the middle (128 for uint8, 0 for int8) and reach
    max(-low, high) with the integer 127 steps away on either side (32767 for 16 bits). A range of zero width gets
    scale 1.

    Args:
        low, high: scalars, or arrays of equal shape (one grid an entry).
        bits: uses only so many of the type's, see `integer_ends`.

    Returns:
        scale: float32, the shape of `low`; positive, finite, never denormal.
        zero_point: of type `dtype_name`, the shape of `low`.

    Raises:
        DataError: an end of a range is NaN or infinite.
    """
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise DataError(f"range [{low}, {high}] is not finite; look for NaN or Inf in the weights or activations")
    low64 = np.minimum(np.asarray(low, np.float64), 0.0)
    high64 = np.maximum(np.asarray(high, np.float64), 0.0)
    least, most = integer_ends(dtype_name, bits)
    half = most if least < 0 else most // 2  # 127 steps each way for 8 bits
    if symmetric:
        scale = _usable_scale(np.maximum(-low64, high64) / half)
        middle = most - half
        return scale, np.full(scale.shape, middle, dtype_name)
    scale = _usable_scale((high64 - low64) / (most - least))
    zero_point = np.rint(least - low64 / scale.astype(np.float64))
    return scale, np.asarray(np.clip(zero_point, least, most)).astype(dtype_name)


def quantize(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The integers nearest to `x`, of the zero point's type: ONNX QuantizeLinear in float32.

    Args:
        x: float32 of any shape, without NaN.
        scale, zero_point: scalars, or one entry for each index of `axis`.
    """
    limits = np.iinfo(zero_point.dtype)
    scale = _along(scale, x.ndim, axis)
    zero = _along(zero_point, x.ndim, axis).astype(np.float32)
    with np.errstate(over="ignore"):  # a quotient beyond float32 saturates like any other
        steps = np.rint(np.asarray(x, np.float32) / scale)
    return np.asarray(np.clip(steps, limits.min - zero, limits.max - zero) + zero).astype(zero_point.dtype)


def dequantize(q: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The real numbers that integers stand for, float32: ONNX DequantizeLinear."""
    zero = _along(zero_point, q.ndim, axis).astype(np.int32)
    return np.asarray((q.astype(np.int32) - zero).astype(np.float32) * _along(scale, q.ndim, axis))


def weight_scales(
    w: np.ndarray, axis: int | None, dtype_name: IntegerName = "int8", limit: int | None = None
) -> np.ndarray:
    """Symmetric scales that reach the largest magnitude of each channel.

    Args:
        w: float weights of any shape.
        axis: the channels' axis, or None for one scale of the whole tensor.
        limit: the integer that the largest magnitude becomes; None means the type's largest.

    Returns:
        float32, (channels,) or a scalar array.

    Raises:
        DataError: a weight is NaN or infinite.
    """
    largest = np.abs(_rows(w, axis)).max(axis=1, initial=0.0)
    scale_C, _ = affine_parameters(-largest, largest, dtype_name, symmetric=True)
    if limit is not None:
        scale_C = _usable_scale(largest.astype(np.float64) / limit)
    return scale_C if axis is not None else scale_C.reshape(())


def weight_scales_mse(
    w: np.ndarray, axis: int | None, dtype_name: IntegerName = "int8", limit: int | None = None
) -> np.ndarray:
    """Symmetric scales with the least squared rounding error of each channel, among shrunken max-abs scales.

    The factors 1, 0.975, ... 0.5 are tried for each channel, so no channel is worse than under `weight_scales`.
    Arguments, result and errors are those of `weight_scales`.
    """
    rows_CK = _rows(w, axis).astype(np.float32)
    full_C = weight_scales(rows_CK, 0, dtype_name, limit)
    best_C, least_C = full_C, np.full(full_C.shape, np.inf)
    zero_C = affine_parameters(-full_C, full_C, dtype_name, symmetric=True)[1]
    ends = np.iinfo(dtype_name).max if limit is None else limit
    for factor in SHRINK_FACTORS:
        scale_C = _usable_scale(full_C * factor)
        integers_CK = np.clip(quantize(rows_CK, scale_C, zero_C, 0), zero_C[:, None] - ends, zero_C[:, None] + ends)
        error_CK = dequantize(integers_CK, scale_C, zero_C, 0) - rows_CK
        error_C = np.einsum("ck,ck->c", error_CK, error_CK, dtype=np.float64)
        best_C = np.where(error_C < least_C, scale_C, best_C)
        least_C = np.minimum(error_C, least_C)
    return best_C if axis is not None else best_C.reshape(())


def _usable_scale(scale: np.ndarray) -> np.ndarray:
    usable = np.where(scale == 0, 1.0, np.clip(scale, SMALLEST_SCALE, LARGEST_SCALE))
    return np.asarray(usable).astype(np.float32)


def _along(values: np.ndarray, ndim: int, axis: int | None) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim == 0 or axis is None:
        return values
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)


def _rows(w: np.ndarray, axis: int | None) -> np.ndarray:
    if axis is None:
        return w.reshape(1, -1)
    return np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)


def quantize_bias(bias_O: np.ndarray, scale_O: np.ndarray) -> np.ndarray:
    """int32 steps of a bias, saturating; in float64, since float32 has too few digits for int32."""
    limit = np.iinfo(np.int32).max
    steps = np.rint(bias_O.astype(np.float64) / scale_O.astype(np.float64))
    return np.asarray(np.clip(steps, -limit, limit)).astype(np.int32)
