"""A layer's weight and bias as integers in a graph: int8 or int16 per channel or tensor, and an int32 bias."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec
import numpy as np

from gossamer.arith.affine import (
    COARSE_BITS,
    LARGEST_SCALE,
    SMALLEST_SCALE,
    WEIGHT_LIMITS,
    WeightBits,
    quantize,
    quantize_bias,
    weight_scales,
    weight_scales_mse,
)
from gossamer.arith.rounding import keep_sums
from gossamer.graph.edit import constant
from gossamer.graph.layers import Layer, bias_array
from gossamer.graph.qdq import Pair, dequantized

SMALL_FILTER = 49  # weights; the errors of larger filters hardly add up, and measured no gain
BIAS_LIMIT = 2**30  # half of int32: the products are added to the bias, and must not overflow it


class Form(msgspec.Struct, frozen=True):
    """How weights are stored; the options of `quantize_static`."""

    bits: WeightBits
    granularity: Literal["channel", "tensor"]
    rounding: Literal["nearest", "sums", "second_order"]


class Chosen(NamedTuple):
    """Integers that a solver found: int8 or int16 of the weight's shape; their scales, float32 (O,) or ()."""

    integers: np.ndarray
    scale: np.ndarray


def store_layer(layer: Layer, pair: Pair, form: Form, chosen: Chosen | None = None) -> None:
    """Replace a layer's weight by integers and its bias by int32, each behind a DequantizeLinear.

    Args:
        pair: the quantizer of the layer's input; the bias is in steps of its scale times the weight's.
        chosen: the integers, if they are not to be the nearest; not taken for a channel whose bias would overflow at
            their scale, as where hardly any weight is left beside it.
    """
    node, w, bias_O = layer.node, np.asarray(constant(layer.weight)), bias_array(layer)
    axis = layer.channel_axis if form.granularity == "channel" else None
    limit, zero = WEIGHT_LIMITS[form.bits], np.int16(0) if form.bits == 16 else np.int8(0)
    input_scale = np.asarray(constant(pair.scale))
    scale = _scale_with_room(w, axis, bias_O, input_scale, form.bits)
    integers = np.clip(quantize(w, scale, np.full(scale.shape, zero), axis), -limit, limit)
    if form.rounding != "nearest" and form.bits <= 8 and w.size <= SMALL_FILTER * layer.channels:
        integers = np.clip(_with_sums(integers, w, scale, layer.channel_axis), -limit, limit)
    if chosen is not None:
        fits = chosen.scale >= _least_scale(bias_O, axis, input_scale)
        by_channel = fits if axis is None else fits.reshape(-1, *[1] * (w.ndim - 1 - axis % w.ndim))
        integers = np.where(by_channel, chosen.integers, integers).astype(integers.dtype)
        scale = np.where(fits, chosen.scale, scale).astype(np.float32)
    name = layer.weight.name or "weight"
    node.replace_input_with(1, dequantized(node, name, integers, scale, axis, min(form.bits, 8)))
    if layer.bias is not None:
        bias_scale = np.asarray(input_scale * scale, np.float32)
        name = f"{layer.bias.name}/{node.name}"  # scaled by this node's input, so it is this node's own
        bias_axis = None if axis is None else 0
        node.replace_input_with(2, dequantized(node, name, quantize_bias(bias_O, bias_scale), bias_scale, bias_axis))


def _with_sums(integers: np.ndarray, w: np.ndarray, scale: np.ndarray, axis: int) -> np.ndarray:
    """The integers with each output channel's sum kept."""
    by_channel = np.moveaxis(w, axis, 0)
    real_OK = by_channel.reshape(len(by_channel), -1).astype(np.float64) / scale.reshape(-1, 1)
    kept_OK = keep_sums(np.moveaxis(integers, axis, 0).reshape(real_OK.shape), real_OK)
    return np.moveaxis(kept_OK.reshape(by_channel.shape), 0, axis)


def _scale_with_room(
    w: np.ndarray, axis: int | None, bias_O: np.ndarray, input_scale: np.ndarray, bits: WeightBits
) -> np.ndarray:
    """Weight scales, float32, widened where the bias in steps of input scale * weight scale would overflow int32.

    Where all weights are zero any scale serves them, so the bias gets the finest.
    """
    biased = np.any(bias_O) if axis is None else bias_O != 0
    dead = ~np.any(w, axis=tuple(index for index in range(w.ndim) if index != axis))
    scales = weight_scales_mse if bits <= COARSE_BITS else weight_scales
    scale = np.where(dead & biased, 0, scales(w, axis, limit=WEIGHT_LIMITS[bits]))
    least = _least_scale(bias_O, axis, input_scale)
    return np.asarray(np.clip(np.maximum(scale, least), SMALLEST_SCALE, LARGEST_SCALE), np.float32)


def _least_scale(bias_O: np.ndarray, axis: int | None, input_scale: np.ndarray) -> np.ndarray:
    """Below it, the bias in steps of input scale * weight scale would overflow."""
    magnitude = np.abs(bias_O.astype(np.float64))
    if axis is None:
        magnitude = magnitude.max(initial=0)
    return np.asarray(np.maximum(magnitude / BIAS_LIMIT, SMALLEST_SCALE) / float(input_scale))
