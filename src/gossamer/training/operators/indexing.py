"""Reading and writing at computed places."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.training.operators.contract import Operator, Table, moves

_REDUCTIONS = {"add": "sum", "mul": "prod", "min": "amin", "max": "amax"}


def _from_front(indices: Tensor, size: int) -> Tensor:
    """Indices that may count from the back, counted from the front."""
    return torch.where(indices < 0, indices + size, indices).long()


def gather(x: Tensor, indices: Tensor | int, axis: int = 0) -> Tensor:
    """Slices along an axis; the axes of the indices take the axis' place."""
    if isinstance(indices, int):
        return x.select(axis, indices)
    axis = axis % x.ndim
    at = _from_front(indices, x.shape[axis])
    if axis == 0 and x.ndim == 2 and x.is_floating_point():
        return torch.nn.functional.embedding(at, x)
    found = x.index_select(axis, at.reshape(-1))
    return found.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def gather_elements(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """For every index the number of x at the same place, but on `axis` at the index."""
    return torch.gather(x, axis, _from_front(indices, x.shape[axis]))


def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0) -> Tensor:
    """Slices at tuples of indices, the last axis of `indices`."""
    depth = indices.shape[-1]
    batch = [
        torch.arange(x.shape[axis], device=x.device).reshape(-1, *[1] * (indices.ndim - 2 - axis))
        for axis in range(batch_dims)
    ]
    at = [_from_front(indices[..., i], x.shape[batch_dims + i]) for i in range(depth)]
    places = (*batch, *at)
    return x[places]


def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, reduction: str = "none") -> Tensor:
    """x with updates at the indices along an axis, in place of what is there or joined with it."""
    at = _from_front(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, at, updates)
    return x.scatter_reduce(axis, at, updates, _REDUCTIONS[reduction])


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str = "none") -> Tensor:
    """x with slices at tuples of indices (the last axis of `indices`) written over or joined with."""
    depth = indices.shape[-1]
    at = tuple(_from_front(indices[..., i], x.shape[i]) for i in range(depth))
    if reduction in ("none", "add"):
        return x.index_put(at, updates, accumulate=reduction == "add")
    rows = torch.zeros_like(at[0])
    for index, size in zip(at, x.shape[:depth], strict=True):
        rows = rows * size + index
    flat = x.reshape(-1, *x.shape[depth:])
    values = updates.reshape(-1, *x.shape[depth:])
    places = rows.reshape(-1, *[1] * (flat.ndim - 1)).expand_as(values)
    return flat.scatter_reduce(0, places, values, _REDUCTIONS[reduction]).reshape(x.shape)


def tensor_scatter(
    x: Tensor, update: Tensor, write_indices: Tensor | None = None, axis: int = -2, mode: str = "linear"
) -> Tensor:
    """A cache x (B, ..., M, ...) with an update (B, ..., S, ...) written from each sample's own place on."""
    axis, length = axis % x.ndim, update.shape[axis]
    first = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device) if write_indices is None else write_indices
    at = first.reshape(-1, 1) + torch.arange(length, device=x.device)
    at = at % x.shape[axis] if mode == "circular" else at
    shape = [1] * x.ndim
    shape[0], shape[axis] = x.shape[0], length
    return x.scatter(axis, at.reshape(shape).expand_as(update), update)


def one_hot(indices: Tensor, depth: tuple[int, ...] | int, values: Tensor, axis: int = -1) -> Tensor:
    """The second of two values at the index along a new axis, the first elsewhere; nothing outside of 0 to depth."""
    count = int(depth[0] if isinstance(depth, tuple) else depth)
    at = torch.where(indices < 0, indices + count, indices)
    places = torch.arange(count, device=indices.device)
    axis = axis % (indices.ndim + 1)
    hit = at.unsqueeze(axis) == places.reshape(-1, *[1] * (indices.ndim - axis))
    return torch.where(hit, values[1], values[0])


def compress(x: Tensor, condition: Tensor, axis: int | None = None) -> Tensor:
    """What lies where a condition holds, along an axis or of the flattened tensor."""
    x = x.reshape(-1) if axis is None else x
    return x.index_select(axis or 0, condition.nonzero().reshape(-1))


def non_zero(x: Tensor) -> Tensor:
    """The places (axes, count) of what is not zero."""
    return x.nonzero().mT


def reverse_sequence(x: Tensor, lengths: Tensor, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """The first `lengths` steps of each sample backwards."""
    steps = torch.arange(x.shape[time_axis], device=x.device)
    at = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
    at = at if batch_axis < time_axis else at.mT
    return x.gather(time_axis, at.reshape(*at.shape, *[1] * (x.ndim - 2)).expand_as(x))


def trilu(x: Tensor, k: tuple[int, ...] | int = 0, upper: int = 1) -> Tensor:
    """The upper or lower triangle of matrices, from a diagonal on."""
    diagonal = k if isinstance(k, int) else k[0]
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


def eye_like(x: Tensor, dtype: torch.dtype | None = None, k: int = 0) -> Tensor:
    """Ones on a diagonal, in the shape of a matrix."""
    return torch.diag_embed(torch.ones(max(x.shape), dtype=dtype or x.dtype, device=x.device), k)[
        : x.shape[0], : x.shape[1]
    ]


def unique(x: Tensor, axis: int | None = None, sorted: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Different entries, where each was first, which of them each entry is, and how often each is."""
    _, inverse, counts = torch.unique(x.detach(), True, True, True, dim=axis)
    places = torch.arange(inverse.numel(), device=x.device)
    first = torch.full((counts.numel(),), inverse.numel(), device=x.device)
    first = first.scatter_reduce(0, inverse.reshape(-1), places, "amin")
    inverse = inverse.reshape(-1)
    if not sorted:
        order = first.argsort()
        first, counts, inverse = first[order], counts[order], order.argsort()[inverse]
    values = x.reshape(-1)[first] if axis is None else x.index_select(axis, first)
    return values, first, inverse, counts


TABLE: Table = {
    "Compress": moves(compress),
    "EyeLike": Operator(eye_like),
    "Gather": Operator(gather, scalars=(1,), carries=(0,), integers="moved"),
    "GatherElements": Operator(gather_elements, carries=(0,), integers="moved"),
    "GatherND": Operator(gather_nd, carries=(0,), integers="moved"),
    "NonZero": Operator(non_zero),
    "OneHot": Operator(one_hot, sizes=(1,)),
    "ReverseSequence": Operator(reverse_sequence, carries=(0,), integers="moved"),
    "Scatter": Operator(scatter_elements, since=9),
    "ScatterElements": Operator(scatter_elements),
    "ScatterND": Operator(scatter_nd),
    "TensorScatter": Operator(tensor_scatter),
    "Trilu": Operator(trilu, sizes=(1,), carries=(0,), integers="moved"),
    "Unique": Operator(unique, gives_tuple=True),
}
