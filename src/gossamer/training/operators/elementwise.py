"""Arithmetic, comparisons and casts, number by number, with numpy's broadcasting."""

from __future__ import annotations

from functools import reduce

import onnx_ir as ir
import torch
from torch import Tensor

from gossamer.training.operators.contract import Operator, Table
from gossamer.training.tensors import TORCH_TYPES, value_range


def div(a: Tensor, b: Tensor) -> Tensor:
    """Quotients; those of integers are cut towards zero."""
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def mod(a: Tensor, b: Tensor, fmod: int = 0) -> Tensor:
    """Remainders with the sign of the divisor, or (fmod) of the dividend."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def pow_(a: Tensor, b: Tensor | float) -> Tensor:
    """Powers, in the type of the base."""
    power = torch.pow(a, b)
    return power if power.dtype == a.dtype else power.to(a.dtype)


def maximum(*tensors: Tensor) -> Tensor:
    """The greatest of each."""
    return reduce(torch.maximum, tensors)


def minimum(*tensors: Tensor) -> Tensor:
    """The least of each."""
    return reduce(torch.minimum, tensors)


def sum_(*tensors: Tensor) -> Tensor:
    """The sum of all."""
    return reduce(torch.add, tensors)


def mean(*tensors: Tensor) -> Tensor:
    """The mean of all."""
    return reduce(torch.add, tensors) / len(tensors)


def clip(x: Tensor, min: Tensor | float | None = None, max: Tensor | float | None = None) -> Tensor:
    """Numbers moved into bounds, each of which may be absent."""
    if min is None and max is None:
        return x
    if isinstance(min, Tensor) == isinstance(max, Tensor) or min is None or max is None:
        return torch.clamp(x, min, max)  # type: ignore[arg-type]  # both numbers or both tensors
    return torch.clamp(torch.clamp(x, min=min), max=max)


def cast(x: Tensor, to: torch.dtype, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Numbers in another type; into the small floats too great ones are cut off, as `saturate` asks."""
    if saturate and to.is_floating_point and to.itemsize == 1:
        low, high = value_range(to)
        return torch.where(x.isfinite(), x.clamp(low, high), x).to(to)
    return x.to(to)


def _narrow(node: ir.Node) -> str:
    """Types that torch cannot count in: a number would not be cut to them."""
    to = ir.DataType(node.attributes["to"].as_int())
    return f"it casts to {to.name}, in which torch does not compute" if to not in TORCH_TYPES or to in _NARROW else ""


def cast_like(x: Tensor, target: Tensor, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Numbers in the type of another tensor."""
    return cast(x, target.dtype, saturate)


def bit_cast(x: Tensor, to: torch.dtype) -> Tensor:
    """The same bits read as another type of the same width."""
    return x.view(to)


def is_infinite(x: Tensor, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Where a number is infinite, of the signs asked for."""
    found = torch.zeros_like(x, dtype=torch.bool)
    if detect_positive:
        found = found | torch.isposinf(x)
    return found | torch.isneginf(x) if detect_negative else found


def bit_shift(a: Tensor, b: Tensor, direction: str) -> Tensor:
    """Bits moved to the left or right."""
    return torch.bitwise_left_shift(a, b) if direction == "LEFT" else torch.bitwise_right_shift(a, b)


_NARROW = (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2, ir.DataType.UINT2)
TABLE: Table = {
    "Abs": Operator(torch.abs),
    "Acos": Operator(torch.acos),
    "Acosh": Operator(torch.acosh),
    "Add": Operator(torch.add, since=7),
    "And": Operator(torch.logical_and, since=7),
    "Asin": Operator(torch.asin),
    "Asinh": Operator(torch.asinh),
    "Atan": Operator(torch.atan),
    "Atanh": Operator(torch.atanh),
    "BitCast": Operator(bit_cast),
    "BitShift": Operator(bit_shift),
    "BitwiseAnd": Operator(torch.bitwise_and),
    "BitwiseNot": Operator(torch.bitwise_not),
    "BitwiseOr": Operator(torch.bitwise_or),
    "BitwiseXor": Operator(torch.bitwise_xor),
    "Cast": Operator(cast, since=6, carries=(0,), obstacle=_narrow),
    "CastLike": Operator(cast_like, carries=(0,)),
    "Ceil": Operator(torch.ceil),
    "Clip": Operator(clip, scalars=(1, 2)),
    "Cos": Operator(torch.cos),
    "Cosh": Operator(torch.cosh),
    "Div": Operator(div, since=7),
    "Equal": Operator(torch.eq, since=7),
    "Erf": Operator(torch.erf),
    "Exp": Operator(torch.exp),
    "Floor": Operator(torch.floor),
    "Greater": Operator(torch.gt, since=7),
    "GreaterOrEqual": Operator(torch.ge),
    "IsInf": Operator(is_infinite),
    "IsNaN": Operator(torch.isnan),
    "Less": Operator(torch.lt, since=7),
    "LessOrEqual": Operator(torch.le),
    "Log": Operator(torch.log),
    "Max": Operator(maximum, since=8),
    "Mean": Operator(mean, since=8),
    "Min": Operator(minimum, since=8),
    "Mod": Operator(mod),
    "Mul": Operator(torch.mul, since=7),
    "Neg": Operator(torch.neg),
    "Not": Operator(torch.logical_not),
    "Or": Operator(torch.logical_or, since=7),
    "Pow": Operator(pow_, since=7, scalars=(1,)),
    "Reciprocal": Operator(torch.reciprocal),
    "Round": Operator(torch.round),
    "Sign": Operator(torch.sign),
    "Sin": Operator(torch.sin),
    "Sinh": Operator(torch.sinh),
    "Sqrt": Operator(torch.sqrt),
    "Sub": Operator(torch.sub, since=7),
    "Sum": Operator(sum_, since=8),
    "Tan": Operator(torch.tan),
    "Where": Operator(torch.where),
    "Xor": Operator(torch.logical_xor, since=7),
}
