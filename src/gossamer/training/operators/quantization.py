"""Integers and scales. What QuantizeLinear rounds is held in floats, so that gradients pass it straight through
(Bengio et al., 2013); numbers outside of the range get none, as they do not move the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from gossamer.training.operators.contract import Attributes, Operator, Table, plain
from gossamer.training.operators.convolution import conv
from gossamer.training.tensors import integer_range

Range = tuple[float, float]


def rounded(x: Tensor) -> Tensor:
    """The nearest whole numbers, halves to even, with the gradient of x."""
    return x + (x.round() - x).detach()


def as_integers(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Whole numbers in floats as integers, for what takes no floats; no gradient passes."""
    return x.to(dtype)


def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    axis: int = 1,
    block_size: int = 0,
    bounds: Range = (0, 255),
) -> Tensor:
    """x / scale + zero point, rounded and kept in bounds; whole numbers in floats.

    Scale and zero point are one number, or one for each slice along `axis`, or for each block of `block_size` there.
    """
    wide = x.to(torch.promote_types(x.dtype, scale.dtype))  # under autocast x has too few bits to be rounded by
    integers = rounded(wide / spread(scale, x, axis, block_size))
    if zero_point is not None:
        integers = integers + spread(zero_point, x, axis, block_size).to(integers.dtype)
    return integers.clamp(*bounds)


def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """(x - zero point) scale."""
    dtype = output_dtype or scale.dtype
    real = x.to(dtype)
    if zero_point is not None:
        real = real - spread(zero_point, x, axis, block_size).to(dtype)
    return real * spread(scale, x, axis, block_size).to(dtype)


def spread(part: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point, shaped to be broadcast against x."""
    if part.numel() == 1:
        return part.reshape(())
    if part.ndim == x.ndim and not block_size and part.ndim > 1:
        return part  # shaped for it already
    if block_size:
        return part.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    return part.reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim))


def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x in 8 bits over its own range, which takes in 0; integers in floats, scale and zero point."""
    low, high = torch.clamp(x.amin(), max=0), torch.clamp(x.amax(), min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale).detach()
    zero_point = torch.clamp(torch.round(-low / scale), 0, 255).detach()
    return (rounded(x / scale) + zero_point).clamp(0, 255), scale, zero_point.to(torch.uint8)


def matmul_integer(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    """Products of integers, in floats: exact up to 2**24."""
    return torch.matmul(_centred(a, a_zero, -2), _centred(b, b_zero, -1))


def _centred(x: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    """Integers less their zero point, one or one for each slice along an axis, in floats."""
    real = x if x.is_floating_point() else x.float()
    if zero_point is None:
        return real
    zero = zero_point.to(real.dtype)
    return real - (zero.unsqueeze(-1) if zero.ndim == 1 and zero.numel() > 1 and axis == -2 else zero)


def conv_integer(
    x: Tensor,
    w: Tensor,
    x_zero: Tensor | None = None,
    w_zero: Tensor | None = None,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] = (),
    group: int = 1,
    kernel_shape: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> Tensor:
    """A convolution of integers, in floats: exact up to 2**24."""
    zero = None if w_zero is None else w_zero.reshape(-1, *[1] * (w.ndim - 1)) if w_zero.numel() > 1 else w_zero
    return conv(
        _centred(x, x_zero, -1), _centred(w, zero, -1), None, auto_pad, dilations, group, kernel_shape, pads, strides
    )


def q_linear_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bounds: Range = (0, 255),
) -> Tensor:
    """A product of quantized matrices, quantized again."""
    rows = a_scale.unsqueeze(-1) if a_scale.ndim == 1 and a_scale.numel() > 1 else a_scale
    real = matmul_integer(a, b, a_zero, b_zero) * rows * b_scale
    return quantize_linear(real, y_scale, y_zero, -1, 0, bounds)


def q_linear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    b: Tensor | None = None,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] = (),
    group: int = 1,
    kernel_shape: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
    bounds: Range = (0, 255),
) -> Tensor:
    """A convolution of quantized images, quantized again; the bias is integers of scale `x_scale w_scale`."""
    total = conv_integer(x, w, x_zero, w_zero, auto_pad, dilations, group, kernel_shape, pads, strides)
    each = [-1, *[1] * (x.ndim - 2)]
    if b is not None:
        total = total + b.to(total.dtype).reshape(each)
    scale = x_scale * (w_scale.reshape(each) if w_scale.numel() > 1 else w_scale)
    return quantize_linear(total * scale, y_scale, y_zero, 1, 0, bounds)


def _bounded(zero_slot: int) -> Callable[[ir.Node], Attributes]:
    """Attributes with the bounds of the integers: of the type that the node names, or of its zero point."""

    def attributes(node: ir.Node) -> Attributes:
        named: dict[str, Any] = plain(node)
        for name in ("output_dtype", "saturate", "precision"):
            named.pop(name, None)
        wanted = node.attributes.get("output_dtype")
        zero = node.inputs[zero_slot] if len(node.inputs) > zero_slot else None
        dtype = ir.DataType(wanted.as_int()) if wanted is not None and wanted.as_int() else None
        dtype = dtype or (zero.dtype if zero is not None else None) or node.outputs[0].dtype
        return {**named, "bounds": integer_range(dtype or ir.DataType.UINT8)}

    return attributes


def _float8(node: ir.Node) -> str:
    """Quantizers to small floats are none of integers."""
    types = [value.dtype for value in (*node.inputs[2:3], *node.outputs) if value is not None]
    small = [dtype.name for dtype in types if dtype is not None and dtype.is_floating_point()]
    return f"it rounds to {small[0]}; integers of 2 to 16 bits are supported" if small else ""


TABLE: Table = {
    "ConvInteger": Operator(conv_integer, carries=(0, 1), integers="made"),
    "DequantizeLinear": Operator(dequantize_linear, carries=(0,)),
    "DynamicQuantizeLinear": Operator(dynamic_quantize_linear, gives_tuple=True, integers="made"),
    "MatMulInteger": Operator(matmul_integer, carries=(0, 1), integers="made"),
    "QLinearConv": Operator(q_linear_conv, attributes=_bounded(7), carries=(0, 3), integers="made"),
    "QLinearMatMul": Operator(q_linear_matmul, attributes=_bounded(7), carries=(0, 3), integers="made"),
    "QuantizeLinear": Operator(quantize_linear, attributes=_bounded(2), integers="made", obstacle=_float8),
}
