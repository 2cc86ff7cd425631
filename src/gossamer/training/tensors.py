"""Types and values of ONNX tensors in torch.

torch computes with few unsigned types and none of less than 8 bits: what has no arithmetic there travels in the next
signed type that holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

TORCH_TYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT16: torch.int32,
    ir.DataType.UINT32: torch.int64,
    ir.DataType.UINT64: torch.int64,
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.INT2: torch.int8,
    ir.DataType.UINT2: torch.uint8,
}
TRAINABLE = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

Numbers = Any  # a Python number, or nested tuples of numbers: what torch takes for sizes and axes


def tensor_of(array: np.ndarray) -> Tensor:
    """A copy of a numpy array, of ml_dtypes' types too, in torch's memory."""
    array = np.asarray(array)
    data_type = ir.DataType.from_numpy(array.dtype)
    if data_type == ir.DataType.BFLOAT16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    dtype = TORCH_TYPES.get(data_type)
    if dtype is None:  # the small floats: their values as float32
        return torch.from_numpy(array.astype(np.float32))
    if str(dtype).startswith("torch.float8"):
        return torch.from_numpy(array.view(np.int8).copy()).view(dtype)
    return torch.from_numpy(np.array(array, dtype=str(dtype).removeprefix("torch."), order="C"))


def numpy_of(tensor: Tensor, data_type: ir.DataType) -> np.ndarray:
    """A tensor as a numpy array of this ONNX type, in memory of its own."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()  # exact
    return np.array(tensor.numpy(), dtype=data_type.numpy(), order="C")


def number_of(tensor: ir.TensorProtocol) -> Numbers:
    """A small tensor as a Python number or nested tuples."""
    return frozen(np.asarray(tensor.numpy()).tolist())


def frozen(value: Any) -> Numbers:
    """Lists as tuples, at every depth."""
    return tuple(frozen(item) for item in value) if isinstance(value, list) else value


def integer_range(data_type: ir.DataType) -> tuple[int, int]:
    """The least and greatest integer of an ONNX type."""
    bits = round(data_type.itemsize * 8)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if data_type.is_signed() else (0, 2**bits - 1)


def value_range(dtype: torch.dtype) -> tuple[float, float]:
    """The least and greatest value of a torch type."""
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return info.min, info.max


def axes_of(axes: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Axes counted from the front; None means all."""
    if axes is None:
        return tuple(range(rank))
    return tuple(axis % rank if rank else 0 for axis in ((axes,) if isinstance(axes, int) else axes))
