"""Images read at computed points."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gossamer.training.operators.contract import Operator, Table

_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def grid_sample(
    x: Tensor, grid: Tensor, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    """x (N, C, ...) at points between -1 and 1, whose last axis is x, y, ... (Jaderberg et al., 2015)."""
    return functional.grid_sample(x, grid, _MODES.get(mode, mode), padding_mode, bool(align_corners))


def affine_grid(theta: Tensor, size: tuple[int, ...], align_corners: int = 0) -> Tensor:
    """The points of an image of a size, turned and moved by matrices theta (N, 2, 3) or (N, 3, 4)."""
    return functional.affine_grid(theta, list(size), bool(align_corners))


def roi_align(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """Boxes (R, 4) cut out of x (N, C, H, W) and brought to one size (He et al., 2017), (R, C, height, width).

    Without a sampling ratio each box has its own number of points, so boxes are taken one by one.
    """
    offset = 0.5 if coordinate_transformation_mode == "half_pixel" else 0.0
    parts = []
    for box, image in zip(rois * spatial_scale - offset, x[batch_indices.long()], strict=True):
        left, top, right, bottom = box.unbind()
        width, height = right - left, bottom - top
        if not offset:
            width, height = width.clamp(min=1), height.clamp(min=1)
        rows = _spread(top, height, output_height, sampling_ratio)
        columns = _spread(left, width, output_width, sampling_ratio)
        values = _between(image, rows.reshape(-1), columns.reshape(-1))
        grouped = values.reshape(-1, *rows.shape, *columns.shape)  # (C, height, points, width, points)
        parts.append(grouped.mean((2, 4)) if mode == "avg" else _greatest(image, rows, columns))
    return torch.stack(parts)


def _spread(start: Tensor, length: Tensor, bins: int, ratio: int) -> Tensor:
    """(bins, points): evenly spread points in equal bins."""
    count = ratio or max(1, int(torch.ceil(length / bins)))
    steps = (torch.arange(count, dtype=start.dtype, device=start.device) + 0.5) / count
    return start + (torch.arange(bins, dtype=start.dtype, device=start.device)[:, None] + steps) * (length / bins)


def _corners(at: Tensor, size: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """For points on an axis the indices before and behind and their shares; further than 1 outside there is nothing."""
    inside = ((at >= -1) & (at <= size)).to(at.dtype)
    at = at.clamp(0, size - 1)
    low = at.detach().floor().clamp(max=size - 1)
    share = at - low
    return (low.long(), (1 - share) * inside), ((low + 1).clamp(max=size - 1).long(), share * inside)


def _between(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(C, rows, columns): an image (C, H, W) at points between its numbers."""
    parts = [
        image[:, y][:, :, x] * (y_share[:, None] * x_share)
        for y, y_share in _corners(rows, image.shape[1])
        for x, x_share in _corners(columns, image.shape[2])
    ]
    return torch.stack(parts).sum(0)


def _greatest(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(C, height, width): the greatest weighted corner of all points of a bin, as the standard's "max" has it."""
    parts = [
        image[:, y][:, :, x] * (y_share[:, None] * x_share)
        for y, y_share in _corners(rows.reshape(-1), image.shape[1])
        for x, x_share in _corners(columns.reshape(-1), image.shape[2])
    ]
    return torch.stack(parts).amax(0).reshape(-1, *rows.shape, *columns.shape).amax((2, 4))


def col2im(
    x: Tensor,
    image_shape: tuple[int, ...],
    block_shape: tuple[int, ...],
    dilations: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> Tensor:
    """Blocks (N, C * block, L) summed into the images that they were taken of."""
    rank = len(image_shape)
    dilations, strides, pads = dilations or (1,) * rank, strides or (1,) * rank, pads or (0,) * (2 * rank)
    wide = [size + pads[i] + pads[rank + i] for i, size in enumerate(image_shape)]
    flat = torch.zeros((), dtype=torch.int64, device=x.device)
    for i in range(rank):  # where each number of each block goes, (block..., blocks...)
        count = (wide[i] - (block_shape[i] - 1) * dilations[i] - 1) // strides[i] + 1
        inner = torch.arange(block_shape[i], device=x.device) * dilations[i]
        outer = torch.arange(count, device=x.device) * strides[i]
        shape = [1] * (2 * rank)
        shape[i], shape[rank + i] = block_shape[i], count
        flat = flat * wide[i] + (inner[:, None] + outer).reshape(shape)
    n, total = x.shape[0], int(torch.tensor(block_shape).prod())
    whole = torch.zeros(n, x.shape[1] // total, int(torch.tensor(wide).prod()), dtype=x.dtype, device=x.device)
    places = flat.reshape(total, -1).reshape(-1)
    whole = whole.index_add(2, places, x.reshape(n, x.shape[1] // total, -1)).reshape(n, -1, *wide)
    for i, size in enumerate(image_shape):
        whole = whole.narrow(2 + i, pads[i], size)
    return whole


def deform_conv(
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    dilations: tuple[int, ...] = (1, 1),
    group: int = 1,
    kernel_shape: tuple[int, ...] = (),
    offset_group: int = 1,
    pads: tuple[int, ...] = (0, 0, 0, 0),
    strides: tuple[int, ...] = (1, 1),
) -> Tensor:
    """A convolution of x (N, C, H, W) that reads each number at a place moved by an offset (Dai et al., 2017)."""
    n, c, height, width = x.shape
    kh, kw = w.shape[2:]
    out_h, out_w = offset.shape[2:]
    rows = torch.arange(out_h, dtype=x.dtype, device=x.device)[:, None] * strides[0] - pads[0]
    columns = torch.arange(out_w, dtype=x.dtype, device=x.device) * strides[1] - pads[1]
    moved = offset.reshape(n, offset_group, kh * kw, 2, out_h, out_w)
    across = torch.arange(kh * kw, device=x.device)
    y = moved[:, :, :, 0] + rows + (across // kw * dilations[0]).reshape(-1, 1, 1)
    z = moved[:, :, :, 1] + columns + (across % kw * dilations[1]).reshape(-1, 1, 1)
    grid = torch.stack([(2 * z + 1) / width - 1, (2 * y + 1) / height - 1], -1)  # as grid_sample counts
    images = x.reshape(n * offset_group, c // offset_group, height, width)
    read = functional.grid_sample(
        images, grid.reshape(n * offset_group, kh * kw * out_h, out_w, 2), align_corners=False
    )
    read = read.reshape(n, offset_group, c // offset_group, kh * kw, out_h, out_w)
    if mask is not None:
        read = read * mask.reshape(n, offset_group, 1, kh * kw, out_h, out_w)
    columns_GK = read.reshape(n, group, c // group * kh * kw, out_h * out_w)
    weights_GOK = w.reshape(group, w.shape[0] // group, -1)
    result = (weights_GOK @ columns_GK).reshape(n, w.shape[0], out_h, out_w)
    return result if b is None else result + b.reshape(-1, 1, 1)


TABLE: Table = {
    "AffineGrid": Operator(affine_grid, sizes=(1,)),
    "Col2Im": Operator(col2im, sizes=(1, 2)),
    "DeformConv": Operator(deform_conv),
    "GridSample": Operator(grid_sample),
    "RoiAlign": Operator(roi_align),
}
