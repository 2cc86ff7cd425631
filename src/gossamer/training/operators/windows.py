"""Windows that slide over images: what to pad, by the standard's `auto_pad` and `pads`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


def window_pads(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], auto_pad: str
) -> tuple[int, ...]:
    """Begins and then ends of each axis for SAME_UPPER and SAME_LOWER: the output is the input over the stride."""
    begins, ends = [], []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        needed = max(0, (-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size)
        more, less = needed - needed // 2, needed // 2
        begins.append(less if auto_pad == "SAME_UPPER" else more)
        ends.append(more if auto_pad == "SAME_UPPER" else less)
    return (*begins, *ends)


def padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """The last axes padded: begins of all, then ends of all; negative ones cut off."""
    return functional.pad(x, torch_pads(pads), value=value) if any(pads) else x


def torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX's begins and ends as torch takes them: the last axis first, begin and end side by side."""
    rank = len(pads) // 2
    return [pads[axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]


def is_even(pads: Sequence[int]) -> bool:
    """Whether each axis has the same pad, not negative, at both ends."""
    rank = len(pads) // 2
    return tuple(pads[:rank]) == tuple(pads[rank:]) and min(pads, default=0) >= 0
