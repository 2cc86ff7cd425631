"""Shape arithmetic on Python numbers: a shape is a tuple of ints, or of torch's symbols for them, and no tensor.

Values are numbers (no axes) or nested tuples of them (one axis a level).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gossamer.training.operators import size_arithmetic
from gossamer.training.operators.size_arithmetic import flat, paired, rank
from gossamer.training.tensors import Numbers, axes_of, frozen

# --- between tensors and numbers


def as_tensor(numbers: Numbers, dtype: torch.dtype | None = None, like: Tensor | None = None) -> Tensor:
    """Numbers as a tensor, on the device of `like`; floats are float32 if no type is given."""
    device = None if like is None else like.device
    if not isinstance(numbers, tuple):
        return torch.tensor(numbers, dtype=dtype, device=device)
    empty = torch.int64 if dtype is None and not numbers else dtype
    return torch.tensor(numbers, dtype=empty, device=device)


def numbers_of(tensor: Tensor | Numbers) -> Numbers:
    """A tensor read back as Python numbers; `torch.compile` breaks its graph here."""
    return frozen(tensor.tolist()) if isinstance(tensor, Tensor) else tensor


def shape(x: Tensor, start: int = 0, end: int | None = None) -> tuple[int, ...]:
    """The sizes of axes start to end."""
    return tuple(x.shape)[start:end]


def size(x: Tensor) -> int:
    """The number of elements."""
    return x.numel()


# --- structure


def _at(value: Numbers, axis: int, change: Callable[[tuple[Any, ...]], Numbers]) -> Numbers:
    """`change` applied to every tuple along an axis."""
    if axis < 0:
        axis += rank(value)
    return change(value) if axis == 0 else tuple(_at(item, axis - 1, change) for item in value)


def lengths(value: Numbers) -> tuple[int, ...]:
    """The shape of what numbers stand for."""
    if not isinstance(value, tuple):
        return ()
    return (len(value), *(lengths(value[0]) if value else ()))


def _shaped(row: tuple[Any, ...], shape: Sequence[int]) -> Numbers:
    """Numbers in a row brought into a shape."""
    if not shape:
        return row[0]
    step = len(row) // shape[0] if shape[0] else 0
    return tuple(_shaped(row[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0]))


def gather(data: Numbers, indices: Numbers, axis: int = 0) -> Numbers:
    """Entries along an axis."""

    def pick(row: tuple[Any, ...], at: Numbers = indices) -> Numbers:
        return tuple(pick(row, item) for item in at) if isinstance(at, tuple) else row[at]

    return _at(data, axis, pick)


def concat(*parts: Numbers, axis: int = 0) -> Numbers:
    """Parts joined along an axis."""
    if axis % rank(parts[0]) == 0:
        return tuple(item for part in parts for item in part)
    return tuple(concat(*rows, axis=axis % rank(parts[0]) - 1) for rows in zip(*parts, strict=True))


def slice_(data: Numbers, starts: Numbers, ends: Numbers, axes: Numbers = None, steps: Numbers = None) -> Numbers:
    """Spans along axes, as `operators.shapes.slice_` takes them of a tensor."""
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        step = 1 if steps is None else steps[index]
        stop = None if step < 0 and end < -(2**30) else end
        data = _at(data, index if axes is None else axes[index], operator.itemgetter(slice(start, stop, step)))
    return data


def squeeze(data: Numbers, axes: Numbers = None) -> Numbers:
    """Without these axes of one entry, or without all of them."""
    sizes = lengths(data)
    gone = [i for i, n in enumerate(sizes) if n == 1] if axes is None else axes_of(axes, len(sizes))
    return _shaped(flat(data), [n for i, n in enumerate(sizes) if i not in gone])


def unsqueeze(data: Numbers, axes: Numbers) -> Numbers:
    """With axes of one entry at these places of the result."""
    sizes = list(lengths(data))
    axes = (axes,) if isinstance(axes, int) else axes
    for axis in sorted(axes_of(axes, len(sizes) + len(axes))):
        sizes.insert(axis, 1)
    return _shaped(flat(data), sizes)


def reshape(data: Numbers, shape: Numbers, allowzero: int = 0) -> Numbers:
    """The same numbers in another shape."""
    old, numbers = lengths(data), flat(data)
    sizes = [old[i] if n == 0 and not allowzero else n for i, n in enumerate(shape)]
    known = math.prod([n for n in sizes if n != -1])
    return _shaped(numbers, [len(numbers) // known if n == -1 else n for n in sizes])


def transpose(data: Numbers, perm: tuple[int, ...] | None = None) -> Numbers:
    """Axes in reverse; only matrices have two."""
    if rank(data) < 2 or perm == tuple(range(rank(data))):
        return data
    return tuple(zip(*data, strict=True))


def split(data: Numbers, split: Numbers = None, axis: int = 0, num_outputs: int = 0, count: int = 1) -> Numbers:
    """Consecutive parts of a row of numbers."""
    length = -(-len(data) // count)
    sizes = split if split is not None else [length] * count
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return tuple(data[end - n : end] for n, end in zip(sizes, ends, strict=True))


def constant_of_shape(shape: Numbers, value: Numbers = (0.0,)) -> Numbers:
    """One number in a shape."""
    return _shaped((value[0],) * math.prod(shape), shape)


def expand(data: Numbers, shape: Numbers) -> Numbers:
    """Numbers repeated to fill a shape."""
    return paired(lambda a, _: a, data, constant_of_shape(shape, (0,)))


def range_(start: Any, limit: Any, delta: Any) -> Numbers:
    """Numbers from start to limit, that excluded."""
    return tuple(start + i * delta for i in range(max(0, math.ceil((limit - start) / delta))))


OF_TENSORS = ("Shape", "Size")
FILLING = ("ConstantOfShape", "Expand", "Range")  # may give any number of numbers: only of constants
SIZES: dict[str, Callable[..., Any]] = {
    "Abs": size_arithmetic.abs_,
    "Add": size_arithmetic.add,
    "And": size_arithmetic.and_,
    "Cast": size_arithmetic.cast,
    "Ceil": size_arithmetic.ceil,
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "Div": size_arithmetic.div,
    "Equal": size_arithmetic.equal,
    "Expand": expand,
    "Floor": size_arithmetic.floor,
    "Gather": gather,
    "Greater": size_arithmetic.greater,
    "GreaterOrEqual": size_arithmetic.greater_or_equal,
    "Less": size_arithmetic.less,
    "LessOrEqual": size_arithmetic.less_or_equal,
    "Max": size_arithmetic.maximum,
    "Min": size_arithmetic.minimum,
    "Mod": size_arithmetic.mod,
    "Mul": size_arithmetic.mul,
    "Neg": size_arithmetic.neg,
    "Not": size_arithmetic.not_,
    "Or": size_arithmetic.or_,
    "Range": range_,
    "ReduceMax": size_arithmetic.reduce_max,
    "ReduceMin": size_arithmetic.reduce_min,
    "ReduceProd": size_arithmetic.reduce_prod,
    "ReduceSum": size_arithmetic.reduce_sum,
    "Reshape": reshape,
    "Shape": shape,
    "Size": size,
    "Slice": slice_,
    "Split": split,
    "Sqrt": size_arithmetic.sqrt,
    "Squeeze": squeeze,
    "Sub": size_arithmetic.sub,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "Where": size_arithmetic.where,
}
