"""Pooling over windows, and over all of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gossamer.training.operators.contract import Operator, Table, moves
from gossamer.training.operators.windows import is_even, padded, window_pads
from gossamer.training.tensors import value_range

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEAN = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


class _Window(NamedTuple):
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]


def _window(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    auto_pad: str,
    ceil_mode: int = 0,
) -> _Window:
    """Defaults filled in; with `ceil_mode` what is added at the ends so that the last, partial window counts."""
    rank = len(kernel)
    strides, dilations = tuple(strides) or (1,) * rank, tuple(dilations) or (1,) * rank
    pads = tuple(pads) or (0,) * (2 * rank)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        pads = window_pads(x.shape[2:], kernel, strides, dilations, auto_pad)
    elif auto_pad == "VALID":
        pads = (0,) * (2 * rank)
    if not ceil_mode or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        return _Window(tuple(kernel), strides, dilations, pads)
    ends = list(pads[rank:])
    for axis in range(rank):
        span = (kernel[axis] - 1) * dilations[axis] + 1
        room = x.shape[2 + axis] + pads[axis] + pads[rank + axis] - span
        count = -(-room // strides[axis])
        if count * strides[axis] < x.shape[2 + axis] + pads[axis]:  # a window must begin in the image or its first pad
            ends[axis] += max(0, count * strides[axis] - room)
    return _Window(tuple(kernel), strides, dilations, (*pads[:rank], *ends))


def max_pool(
    x: Tensor,
    kernel_shape: tuple[int, ...],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    storage_order: int = 0,
    strides: tuple[int, ...] = (),
) -> Tensor:
    """The greatest of each window of x (N, C, ...)."""
    window = _window(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    x, begins = _with_lowest(x, window)
    return _MAX[len(kernel_shape)](x, window.kernel, window.strides, begins, window.dilations)


def max_pool_with_indices(
    x: Tensor,
    kernel_shape: tuple[int, ...],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    storage_order: int = 0,
    strides: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor]:
    """The greatest of each window and where it is, counted through the whole of x."""
    window, rank = _window(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode), len(kernel_shape)
    sizes = x.shape[2:]
    extended, begins = _with_lowest(x, window)
    y, flat = _MAX[rank](extended, window.kernel, window.strides, begins, window.dilations, return_indices=True)
    offsets = (0,) * rank if extended is x else window.pads[:rank]
    places = []
    for size in reversed(extended.shape[2:]):  # counted through the padded image, last axis first
        places.append(flat % size)
        flat = flat // size
    indices = torch.zeros_like(flat)
    order = range(rank) if storage_order == 0 else reversed(range(rank))
    for axis in order:
        indices = indices * sizes[axis] + places[rank - 1 - axis] - offsets[axis]
    images = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * rank)
    return y, indices + images * math.prod(sizes)


def _with_lowest(x: Tensor, window: _Window) -> tuple[Tensor, tuple[int, ...]]:
    """x with pads that torch cannot take itself, and the pads that it can."""
    rank = len(window.kernel)
    begins = window.pads[:rank]
    if is_even(window.pads) and all(2 * pad <= width for pad, width in zip(begins, window.kernel, strict=True)):
        return x, begins
    return padded(x, window.pads, value_range(x.dtype)[0] if x.dtype.is_floating_point else 0), (0,) * rank


def average_pool(
    x: Tensor,
    kernel_shape: tuple[int, ...],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> Tensor:
    """The mean of each window of x (N, C, ...), of the image's own numbers only unless `count_include_pad`."""
    plain = _window(x, kernel_shape, strides, dilations, pads, auto_pad)
    window = _window(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    rank = len(kernel_shape)
    if window.pads == plain.pads and is_even(window.pads) and set(window.dilations) == {1}:
        half = all(2 * pad <= width for pad, width in zip(window.pads[:rank], window.kernel, strict=True))
        if half:
            return _MEAN[rank](x, window.kernel, window.strides, window.pads[:rank], False, bool(count_include_pad))
    counted = torch.ones_like(x[:1, :1])
    if count_include_pad:  # the pads count, what ceil_mode added behind them does not
        counted = padded(counted, plain.pads, 1.0)
        counted = padded(counted, tuple(b - a for a, b in zip(plain.pads, window.pads, strict=True)))
    else:
        counted = padded(counted, window.pads)
    return _window_sum(padded(x, window.pads), window) / _window_sum(counted, window)


def lp_pool(
    x: Tensor,
    kernel_shape: tuple[int, ...],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: tuple[int, ...] = (),
    p: int = 2,
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> Tensor:
    """The p-norm of each window of x (N, C, ...)."""
    window = _window(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    return _window_sum(padded(x.abs() ** p, window.pads), window) ** (1 / p)


def _window_sum(x: Tensor, window: _Window) -> Tensor:
    """Sums over windows, without pads."""
    for axis, (width, stride, dilation) in enumerate(
        zip(window.kernel, window.strides, window.dilations, strict=True), start=2
    ):
        parts = x.unfold(axis, (width - 1) * dilation + 1, stride)
        x = parts[..., ::dilation].sum(-1)
    return x


def global_average_pool(x: Tensor) -> Tensor:
    """The mean of each channel of x (N, C, ...)."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    """The greatest of each channel of x (N, C, ...)."""
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


def global_lp_pool(x: Tensor, p: int = 2) -> Tensor:
    """The p-norm of each channel of x (N, C, ...)."""
    norms: Tensor = torch.linalg.vector_norm(x, p, tuple(range(2, x.ndim)), keepdim=True)
    return norms


def max_unpool(
    x: Tensor,
    indices: Tensor,
    output_shape: tuple[int, ...] | None = None,
    kernel_shape: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> Tensor:
    """Numbers put back to where MaxPool found them, with zeros elsewhere."""
    rank = len(kernel_shape)
    strides, pads = strides or (1,) * rank, pads or (0,) * (2 * rank)
    own = tuple((x.shape[2 + i] - 1) * strides[i] + kernel_shape[i] - pads[i] - pads[rank + i] for i in range(rank))
    shape = tuple(output_shape) if output_shape is not None else (*x.shape[:2], *own)
    per_image = math.prod(own)
    at = indices % per_image
    places = torch.zeros_like(at)
    step = 1
    for size, wide in zip(reversed(own), reversed(shape[2:]), strict=True):
        places, at, step = places + at % size * step, at // size, step * wide
    images = torch.zeros(*shape[:2], math.prod(shape[2:]), dtype=x.dtype, device=x.device)
    return images.scatter(2, places.flatten(2), x.flatten(2)).reshape(shape)


TABLE: Table = {
    "AveragePool": Operator(average_pool),
    "GlobalAveragePool": Operator(global_average_pool),
    "GlobalLpPool": Operator(global_lp_pool),
    "GlobalMaxPool": moves(global_max_pool),
    "LpPool": Operator(lp_pool),
    "MaxPool": moves(max_pool)._replace(several=max_pool_with_indices),
    "MaxUnpool": Operator(max_unpool, sizes=(2,)),
}
