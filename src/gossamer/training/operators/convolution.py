"""Convolutions of all kinds, over one to three axes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gossamer.training.operators.contract import Operator, Table
from gossamer.training.operators.windows import is_even, padded, window_pads

_CONVOLUTIONS = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] = (),
    group: int = 1,
    kernel_shape: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> Tensor:
    """A convolution: x (N, C, ...), w (O, C / group, kernel...), b (O)."""
    rank = x.ndim - 2
    strides, dilations, pads = strides or (1,) * rank, dilations or (1,) * rank, pads or (0,) * (2 * rank)
    if auto_pad == "VALID":
        pads = (0,) * (2 * rank)
    elif auto_pad != "NOTSET":
        pads = window_pads(x.shape[2:], w.shape[2:], strides, dilations, auto_pad)
    if not is_even(pads):
        x, pads = padded(x, pads), (0,) * (2 * rank)
    return _CONVOLUTIONS[rank](x, w, b, strides, pads[:rank], dilations, group)


def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] = (),
    group: int = 1,
    kernel_shape: tuple[int, ...] = (),
    output_padding: tuple[int, ...] = (),
    output_shape: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> Tensor:
    """A convolution backwards: x (N, C, ...), w (C, O / group, kernel...), b (O)."""
    rank = x.ndim - 2
    strides, dilations, pads = strides or (1,) * rank, dilations or (1,) * rank, pads or (0,) * (2 * rank)
    extra = output_padding or (0,) * rank
    sizes = output_shape
    if auto_pad in ("SAME_UPPER", "SAME_LOWER") and not sizes:
        sizes = tuple(size * stride for size, stride in zip(x.shape[2:], strides, strict=True))
    if sizes:
        pads = _pads_to_reach(sizes[-rank:], x, w, strides, dilations, extra, auto_pad)
    elif auto_pad == "VALID":
        pads = (0,) * (2 * rank)
    if is_even(pads) and all(
        more < max(stride, dilation) for more, stride, dilation in zip(extra, strides, dilations, strict=True)
    ):
        return _TRANSPOSED[rank](x, w, b, strides, pads[:rank], extra, group, dilations)
    whole = _TRANSPOSED[rank](x, w, None, strides, 0, 0, group, dilations)
    cut = (*(-pad for pad in pads[:rank]), *(more - pad for more, pad in zip(extra, pads[rank:], strict=True)))
    y = padded(whole, cut)
    return y if b is None else y + b.reshape(-1, *[1] * rank)


def _pads_to_reach(
    sizes: tuple[int, ...],
    x: Tensor,
    w: Tensor,
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    extra: tuple[int, ...],
    auto_pad: str,
) -> tuple[int, ...]:
    """What to cut off at begins and ends so that the output has these sizes."""
    begins, ends = [], []
    for axis, size in enumerate(sizes):
        whole = (x.shape[2 + axis] - 1) * strides[axis] + (w.shape[2 + axis] - 1) * dilations[axis] + 1 + extra[axis]
        total = whole - size
        more, less = total - total // 2, total // 2
        begins.append(less if auto_pad == "SAME_UPPER" else more)
        ends.append(more if auto_pad == "SAME_UPPER" else less)
    return (*begins, *ends)


TABLE: Table = {
    "Conv": Operator(conv),
    "ConvTranspose": Operator(conv_transpose),
}
