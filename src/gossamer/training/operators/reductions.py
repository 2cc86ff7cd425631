"""Reductions along axes; without axes over all of them, unless `noop_with_empty_axes` says none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gossamer.training.operators.contract import Operator, Table
from gossamer.training.tensors import axes_of

Axes = Sequence[int] | int | None


def _over(x: Tensor, axes: Axes, noop: int) -> tuple[int, ...]:
    """The axes to reduce."""
    if axes is None or (isinstance(axes, tuple) and not axes):
        return () if noop else tuple(range(x.ndim))
    return axes_of(axes, x.ndim)


def reduce_sum(x: Tensor, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Sums."""
    over = _over(x, axes, noop_with_empty_axes)
    return x.sum(over, keepdim=bool(keepdims), dtype=x.dtype) if over else x


def reduce_mean(x: Tensor, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Means."""
    over = _over(x, axes, noop_with_empty_axes)
    return x.mean(over, keepdim=bool(keepdims)) if over else x


def reduce_max(x: Tensor, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """The greatest."""
    return _extreme(torch.amax, x, _over(x, axes, noop_with_empty_axes), bool(keepdims))


def reduce_min(x: Tensor, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """The least."""
    return _extreme(torch.amin, x, _over(x, axes, noop_with_empty_axes), bool(keepdims))


def _extreme(function: Callable[..., Tensor], x: Tensor, over: tuple[int, ...], keepdims: bool) -> Tensor:
    if not over:
        return x
    if 0 in [x.shape[axis] for axis in over]:  # of nothing: the type's own limit
        shape = [1 if axis in over else size for axis, size in enumerate(x.shape)]
        sign = 1 if function is torch.amin else -1
        empty = torch.full(shape, sign * torch.inf, dtype=x.dtype, device=x.device)
        return empty if keepdims else empty.squeeze(over)
    return function(x, over, keepdim=keepdims)


def reduce_prod(x: Tensor, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Products."""
    for axis in sorted(_over(x, axes, noop_with_empty_axes), reverse=True):
        x = x.prod(axis, keepdim=bool(keepdims), dtype=x.dtype)
    return x


def reduce_l1(x: Tensor, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Sums of absolute values."""
    return reduce_sum(x.abs(), axes, keepdims, noop_with_empty_axes)


def reduce_l2(x: Tensor, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Roots of sums of squares; the gradient at zero is zero."""
    over = _over(x, axes, noop_with_empty_axes)
    return torch.linalg.vector_norm(x, 2, over, keepdim=bool(keepdims)) if over else x.abs()


def reduce_sum_square(x: Tensor, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Sums of squares."""
    return reduce_sum(x.square(), axes, keepdims, noop_with_empty_axes)


def reduce_log_sum(x: Tensor, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Logarithms of sums."""
    return reduce_sum(x, axes, keepdims, noop_with_empty_axes).log()


def reduce_log_sum_exp(x: Tensor, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Logarithms of sums of exponentials."""
    over = _over(x, axes, noop_with_empty_axes)
    return torch.logsumexp(x, over, keepdim=bool(keepdims)) if over else x


def arg_max(x: Tensor, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Where the greatest is along an axis: the first of equals, or the last."""
    if select_last_index:
        return x.shape[axis] - 1 - x.flip(axis).argmax(axis, keepdim=bool(keepdims))
    return x.argmax(axis, keepdim=bool(keepdims))


def arg_min(x: Tensor, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Where the least is along an axis: the first of equals, or the last."""
    if select_last_index:
        return x.shape[axis] - 1 - x.flip(axis).argmin(axis, keepdim=bool(keepdims))
    return x.argmin(axis, keepdim=bool(keepdims))


def top_k(
    x: Tensor, k: tuple[int, ...] | int, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    """The k greatest (or least) along an axis in order, and where they are; of equals the first."""
    count = k if isinstance(k, int) else k[0]
    values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


def cum_sum(x: Tensor, axis: tuple[int, ...] | int, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Sums of all up to each along an axis; without itself if exclusive, from the end if reverse."""
    along = axis if isinstance(axis, int) else axis[0]
    x = x.flip(along) if reverse else x
    total = x.cumsum(along, dtype=x.dtype)
    total = total - x if exclusive else total
    return total.flip(along) if reverse else total


def cum_prod(x: Tensor, axis: tuple[int, ...] | int, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Products of all up to each along an axis; without itself if exclusive, from the end if reverse."""
    along = axis if isinstance(axis, int) else axis[0]
    x = x.flip(along) if reverse else x
    if exclusive:
        x = torch.cat([torch.ones_like(x.narrow(along, 0, 1)), x.narrow(along, 0, x.shape[along] - 1)], along)
    total = x.cumprod(along, dtype=x.dtype)
    return total.flip(along) if reverse else total


TABLE: Table = {
    "ArgMax": Operator(arg_max, carries=(0,)),
    "ArgMin": Operator(arg_min, carries=(0,)),
    "CumProd": Operator(cum_prod, sizes=(1,)),
    "CumSum": Operator(cum_sum, sizes=(1,)),
    "ReduceL1": Operator(reduce_l1, sizes=(1,)),
    "ReduceL2": Operator(reduce_l2, sizes=(1,)),
    "ReduceLogSum": Operator(reduce_log_sum, sizes=(1,)),
    "ReduceLogSumExp": Operator(reduce_log_sum_exp, sizes=(1,)),
    "ReduceMax": Operator(reduce_max, sizes=(1,)),
    "ReduceMean": Operator(reduce_mean, sizes=(1,)),
    "ReduceMin": Operator(reduce_min, sizes=(1,)),
    "ReduceProd": Operator(reduce_prod, sizes=(1,)),
    "ReduceSum": Operator(reduce_sum, sizes=(1,)),
    "ReduceSumSquare": Operator(reduce_sum_square, sizes=(1,)),
    "TopK": Operator(top_k, sizes=(1,), gives_tuple=True),
}
