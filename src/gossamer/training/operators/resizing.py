"""Images in other sizes: each axis is a product with a matrix of the weights of the numbers around a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gossamer.training.operators.contract import Operator, Table
from gossamer.training.tensors import axes_of

Numbers = Sequence[float]


class _Axis(NamedTuple):
    """How one axis is resized."""

    axis: int
    size: int
    scale: float
    span: tuple[float, float]  # of the axis that a crop takes, as shares


def resize(
    x: Tensor,
    roi: Numbers | None = None,
    scales: Numbers | None = None,
    sizes: Sequence[int] | None = None,
    antialias: int = 0,
    axes: tuple[int, ...] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """x with axes scaled, or brought to sizes, by the nearest number, lines or cubics (Keys, 1981) between numbers."""
    where = coordinate_transformation_mode
    plan = _plan(x, roi, scales, sizes, axes_of(axes, x.ndim), keep_aspect_ratio_policy)
    fast = _by_torch(x, plan, where, mode, nearest_mode, antialias)
    if fast is not None:
        return fast
    outside = torch.zeros((), dtype=torch.bool, device=x.device)
    for step in plan:
        at = _points(step, x.shape[step.axis], where, x.device)
        if where == "tf_crop_and_resize":
            away = (at < 0) | (at > x.shape[step.axis] - 1)
            outside = outside | away.reshape(-1, *[1] * (x.ndim - 1 - step.axis))
        if mode == "nearest":
            x = x.index_select(step.axis, _nearest(at, nearest_mode).clamp(0, x.shape[step.axis] - 1))
        else:
            cubic = None if mode == "linear" else cubic_coeff_a
            weights = _weights(at, x.shape[step.axis], step.scale if antialias else 1.0, cubic, bool(exclude_outside))
            x = (x.movedim(step.axis, -1) @ weights.to(x.dtype).mT).movedim(-1, step.axis)
    if where != "tf_crop_and_resize":
        return x
    return torch.where(outside, torch.full((), extrapolation_value, dtype=x.dtype, device=x.device), x)


def _plan(
    x: Tensor,
    roi: Numbers | None,
    scales: Numbers | None,
    sizes: Sequence[int] | None,
    axes: tuple[int, ...],
    policy: str,
) -> list[_Axis]:
    """The axes whose size or place changes."""
    have = [x.shape[axis] for axis in axes]
    if sizes:
        scales = [size / old for size, old in zip(sizes, have, strict=True)]
        if policy != "stretch":
            scale = min(scales) if policy == "not_larger" else max(scales)
            sizes, scales = [math.floor(scale * old + 0.5) for old in have], [scale] * len(axes)
    elif scales:
        sizes = [math.floor(scale * old) for scale, old in zip(scales, have, strict=True)]
    spans = [(0.0, 1.0)] * len(axes)
    if roi:
        spans = list(zip(roi[: len(axes)], roi[len(axes) :], strict=True))
    steps = map(_Axis, axes, sizes or have, scales or [1.0] * len(axes), spans)
    return [step for step in steps if step.size != x.shape[step.axis] or step.scale != 1.0 or step.span != (0.0, 1.0)]


def _by_torch(x: Tensor, plan: list[_Axis], where: str, mode: str, nearest_mode: str, antialias: int) -> Tensor | None:
    """What torch's own kernels do in the same way: nearest by whole factors, and lines or cubics, of images."""
    if x.ndim != 4 or antialias or [step.axis for step in plan] != [2, 3] or not x.is_floating_point():
        return None
    sizes = [step.size for step in plan]
    exact = all(step.size == step.scale * x.shape[step.axis] for step in plan)
    whole = exact and all(step.scale == int(step.scale) for step in plan)
    if mode == "nearest" and whole and (where, nearest_mode) in _FACTORS:
        return functional.interpolate(x, sizes, mode="nearest")
    if mode == "linear" and exact and where in ("half_pixel", "align_corners"):
        return functional.interpolate(x, sizes, mode="bilinear", align_corners=where == "align_corners")
    return None


_FACTORS = (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil"))


def _points(step: _Axis, old: int, where: str, device: torch.device) -> Tensor:
    """Where each new number lies among the old ones."""
    y, scale, exact = torch.arange(step.size, dtype=torch.float64, device=device), step.scale, step.scale * old
    if where == "align_corners":
        return y * ((old - 1) / (exact - 1)) if exact != 1 else torch.zeros_like(y)
    if where == "asymmetric":
        return y / scale
    if where == "tf_crop_and_resize":
        begin, end = step.span
        inside = y * ((end - begin) * (old - 1) / (exact - 1)) if exact != 1 else y + (end - begin) * (old - 1) / 2
        return inside + begin * (old - 1)
    if where == "pytorch_half_pixel" and exact == 1:
        return torch.full_like(y, -0.5)
    offset = old / 2 * (1 - step.size / exact) if where == "half_pixel_symmetric" else 0.0
    return offset + (y + 0.5) / scale - 0.5


def _nearest(at: Tensor, mode: str) -> Tensor:
    """The index of the nearest number."""
    if mode in ("floor", "ceil"):
        return (torch.floor if mode == "floor" else torch.ceil)(at).long()
    down = mode == "round_prefer_floor"
    return (torch.ceil(at - 0.5) if down else torch.floor(at + 0.5)).long()


def _weights(at: Tensor, old: int, scale: float, cubic: float | None, exclude_outside: bool) -> Tensor:
    """(new, old): the share of each old number in each new one; what lies outside is the number at the edge.

    With a scale below 1 the kernel is as much wider, which keeps fine patterns from turning into coarse ones.
    """
    narrow = min(scale, 1.0)
    beyond = math.ceil((1 if cubic is None else 2) / narrow) + 1
    places = torch.arange(-beyond, old + beyond, dtype=at.dtype, device=at.device)
    away = ((places - at[:, None]) * narrow).abs()
    shares = torch.clamp(1 - away, min=0) if cubic is None else _cubic(away, cubic)
    if exclude_outside:
        shares = torch.where((places >= 0) & (places < old), shares, torch.zeros_like(shares))
    shares = shares / shares.sum(1, keepdim=True)
    edges = places.clamp(0, old - 1).long()
    return torch.zeros(len(at), old, dtype=at.dtype, device=at.device).index_add(1, edges, shares)


def _cubic(t: Tensor, a: float) -> Tensor:
    """Keys' kernel at distances t."""
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((t - 5) * t + 8) * t * a - 4 * a
    return torch.where(t <= 1, near, torch.where(t < 2, far, torch.zeros_like(t)))


def upsample(x: Tensor, scales: Numbers, mode: str = "nearest") -> Tensor:
    """x with axes scaled up, as before opset 11."""
    return resize(x, None, scales, None, coordinate_transformation_mode="asymmetric", mode=mode, nearest_mode="floor")


TABLE: Table = {
    "Resize": (
        Operator(upsample, since=10, sizes=(1,)),
        Operator(resize, since=11, sizes=(1, 2, 3), carries=(0,), integers="moved"),
    ),
    "Upsample": Operator(upsample, sizes=(1,)),
}
