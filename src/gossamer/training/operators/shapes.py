"""What changes the shape of a tensor, and moves its numbers without changing them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from gossamer.training.operators.contract import Attributes, Operator, Table, moves, plain
from gossamer.training.operators.windows import torch_pads
from gossamer.training.tensors import TORCH_TYPES, Numbers, axes_of

Axes = Sequence[int] | int | None
_BEYOND = 2**29  # greater than any size: "to the last", or, negative, "down to the first"


def reshape(x: Tensor, shape: tuple[int, ...], allowzero: int = 0) -> Tensor:
    """Another shape; -1 is what remains and 0 the input's size on that axis, unless `allowzero`."""
    if not allowzero:
        shape = tuple(x.shape[axis] if isinstance(n, int) and n == 0 else n for axis, n in enumerate(shape))
    return x.reshape(shape)


def flatten(x: Tensor, axis: int = 1) -> Tensor:
    """A matrix: the axes before `axis`, and the others."""
    return x.reshape(math.prod(x.shape[: axis if axis >= 0 else x.ndim + axis]), -1) if axis else x.reshape(1, -1)


def transpose(x: Tensor, perm: tuple[int, ...] | None = None) -> Tensor:
    """Axes in another order; reversed if none is given."""
    return x.permute(tuple(reversed(range(x.ndim))) if perm is None else perm)


def squeeze(x: Tensor, axes: Axes = None) -> Tensor:
    """Without these axes, or all, of size 1."""
    return x.squeeze() if axes is None else x.squeeze(axes_of(axes, x.ndim))


def unsqueeze(x: Tensor, axes: Axes) -> Tensor:
    """With axes of size 1 at these places of the result."""
    axes = (axes,) if isinstance(axes, int) else axes or ()
    for axis in sorted(axes_of(axes, x.ndim + len(axes))):
        x = x.unsqueeze(axis)
    return x


def expand(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x broadcast against a shape."""
    rank = max(x.ndim, len(shape))
    own, wanted = (1,) * (rank - x.ndim) + tuple(x.shape), (1,) * (rank - len(shape)) + tuple(shape)
    return x.expand([b if a == 1 else a for a, b in zip(own, wanted, strict=True)])


def tile(x: Tensor, repeats: tuple[int, ...]) -> Tensor:
    """x repeated along each axis."""
    return x.repeat(repeats)


def concat(*tensors: Tensor, axis: int) -> Tensor:
    """Tensors joined along an axis."""
    return torch.cat(tensors, axis)


def split(x: Tensor, split: tuple[int, ...] | None = None, axis: int = 0, num_outputs: int = 1) -> tuple[Tensor, ...]:
    """Parts along an axis, of these sizes or, the last excepted, of one."""
    return torch.split(x, -(-x.shape[axis] // num_outputs) if split is None else list(split), axis)


def slice_(x: Tensor, starts: Axes, ends: Axes, axes: Axes = None, steps: Axes = None) -> Tensor:
    """A span along each axis given; negative ends count from the back, negative steps go backwards."""
    starts, ends = _tuple(starts), _tuple(ends)
    along = range(len(starts)) if axes is None else axes_of(axes, x.ndim)
    for index, (axis, start, end) in enumerate(zip(along, starts, ends, strict=True)):
        step = 1 if steps is None else _tuple(steps)[index]
        stop = None if abs(end) >= _BEYOND and (end > 0) == (step > 0) else end
        if step > 0:
            x = x[(slice(None),) * axis + (slice(start, stop, step),)]
        else:
            at = range(x.shape[axis])[slice(start, stop, step)]
            x = x.index_select(axis, torch.tensor(at, dtype=torch.int64, device=x.device))
    return x


def _tuple(numbers: Axes) -> tuple[int, ...]:
    return (numbers,) if isinstance(numbers, int) else tuple(numbers or ())


def pad(
    x: Tensor, pads: tuple[int, ...], value: float | Tensor | None = None, axes: Axes = None, mode: str = "constant"
) -> Tensor:
    """Begins of all axes given, then ends, filled with a value, the edge, mirrored, or from the other side."""
    along = axes_of(axes, x.ndim)
    count = len(along)
    full = [0] * (2 * x.ndim)
    for index, axis in enumerate(along):
        full[axis], full[axis + x.ndim] = pads[index], pads[index + count]
    if mode == "constant":
        if isinstance(value, Tensor):
            inside = functional.pad(torch.ones_like(x, dtype=torch.bool), torch_pads(full))
            return torch.where(inside, functional.pad(x, torch_pads(full)), value)
        return functional.pad(x, torch_pads(full), value=value)
    for axis in along:  # torch's own modes take the last axes only
        x = _extended(x, axis, full[axis], full[axis + x.ndim], mode)
    return x


def _extended(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """One axis padded with numbers of x itself."""
    if not before and not after:
        return x
    size = x.shape[axis]
    at = torch.arange(-before, size + after, device=x.device)
    if mode == "edge":
        at = at.clamp(0, size - 1)
    elif mode == "reflect":
        period = max(1, 2 * (size - 1))
        at = (at % period).minimum(period - at % period) if size > 1 else torch.zeros_like(at)
    else:
        at = at % size
    return x.index_select(axis, at)


def constant_of_shape(
    shape: tuple[int, ...], value: float = 0.0, dtype: torch.dtype = torch.float32, like: Tensor | None = None
) -> Tensor:
    """One number everywhere."""
    return torch.full(shape, value, dtype=dtype, device=None if like is None else like.device)


def range_(start: Numbers, limit: Numbers, delta: Numbers, dtype: torch.dtype, like: Tensor | None = None) -> Tensor:
    """Numbers from start on, by delta, up to limit, that excluded."""
    start, limit, delta = (n[0] if isinstance(n, tuple) else n for n in (start, limit, delta))
    return torch.arange(start, limit, delta, dtype=dtype, device=None if like is None else like.device)


def depth_to_space(x: Tensor, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels (N, C b b, H, W) spread over squares of b by b (N, C, H b, W b)."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        return x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)
    return functional.pixel_shuffle(x, b)


def space_to_depth(x: Tensor, blocksize: int, mode: str = "DCR") -> Tensor:
    """Squares of b by b (N, C, H b, W b) put into channels (N, C b b, H, W)."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "CRD":
        return functional.pixel_unshuffle(x, b)
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


def center_crop_pad(x: Tensor, shape: tuple[int, ...], axes: Axes = None) -> Tensor:
    """Each axis cut or padded with zeros about its middle to a size."""
    for size, axis in zip(shape, axes_of(axes, x.ndim), strict=True):
        have = x.shape[axis]
        if have > size:
            x = x.narrow(axis, (have - size) // 2, size)
        elif have < size:
            before = (size - have) // 2
            pads = [0] * (2 * x.ndim)
            pads[axis], pads[axis + x.ndim] = before, size - have - before
            x = functional.pad(x, torch_pads(pads))
    return x


def _counted(node: ir.Node) -> Attributes:
    """Split into as many as there are outputs, if nothing else is said."""
    return {"num_outputs": len(node.outputs), **plain(node)}


def _filled(node: ir.Node) -> Attributes:
    """The number of ConstantOfShape and its type."""
    attribute = node.attributes.get("value")
    if attribute is None:
        return {}
    tensor = attribute.as_tensor()
    return {"value": tensor.numpy().item(), "dtype": TORCH_TYPES[tensor.dtype]}


def _typed(node: ir.Node) -> Attributes:
    """The type of the numbers, as far as the graph says."""
    known = (value.dtype for value in (*node.outputs, *node.inputs) if value is not None and value.dtype is not None)
    return {"dtype": TORCH_TYPES[next(known, ir.DataType.INT64)]}


TABLE: Table = {
    "CenterCropPad": moves(center_crop_pad, sizes=(1,)),
    "Concat": moves(concat),
    "ConstantOfShape": Operator(constant_of_shape, sizes=(0,), attributes=_filled, like=True),
    "DepthToSpace": moves(depth_to_space),
    "Expand": moves(expand, sizes=(1,)),
    "Flatten": moves(flatten),
    "Pad": Operator(pad, sizes=(1, 3), scalars=(2,)),
    "Range": Operator(range_, sizes=(0, 1, 2), attributes=_typed, like=True),
    "Reshape": moves(reshape, since=5, sizes=(1,)),
    "Slice": moves(slice_, sizes=(1, 2, 3, 4)),
    "SpaceToDepth": moves(space_to_depth),
    "Split": moves(split, sizes=(1,))._replace(attributes=_counted, gives_tuple=True),
    "Squeeze": moves(squeeze, sizes=(1,)),
    "Tile": moves(tile, since=6, sizes=(1,)),
    "Transpose": moves(transpose),
    "Unsqueeze": moves(unsqueeze, sizes=(1,)),
}
