"""Arithmetic on Python numbers and nested tuples of them, broadcast as numpy does; numbers may be torch's symbols."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from gossamer.training.tensors import Numbers


def rank(value: Numbers) -> int:
    """The number of axes: a number has none, a tuple one more than what it holds."""
    return 1 + (rank(value[0]) if value else 0) if isinstance(value, tuple) else 0


def flat(value: Numbers) -> tuple[Any, ...]:
    """All numbers in order."""
    return tuple(number for item in value for number in flat(item)) if isinstance(value, tuple) else (value,)


def paired(function: Callable[[Any, Any], Any], a: Numbers, b: Numbers) -> Numbers:
    """A function of two numbers over two nested tuples, broadcast."""
    if not isinstance(a, tuple) and not isinstance(b, tuple):
        return function(a, b)
    if rank(a) < rank(b):
        return tuple(paired(function, a, item) for item in b)
    if rank(a) > rank(b):
        return tuple(paired(function, item, b) for item in a)
    count = max(len(a), len(b)) if a and b else 0
    return tuple(paired(function, a[i % len(a)], b[i % len(b)]) for i in range(count))


def _each(function: Callable[[Any], Any], a: Numbers) -> Numbers:
    return tuple(_each(function, item) for item in a) if isinstance(a, tuple) else function(a)


def add(a: Numbers, b: Numbers) -> Numbers:
    """Sums."""
    return paired(operator.add, a, b)


def sub(a: Numbers, b: Numbers) -> Numbers:
    """Differences."""
    return paired(operator.sub, a, b)


def mul(a: Numbers, b: Numbers) -> Numbers:
    """Products."""
    return paired(operator.mul, a, b)


def div(a: Numbers, b: Numbers) -> Numbers:
    """Quotients; those of whole numbers are cut towards zero, as in C."""
    return paired(_quotient, a, b)


def _quotient(a: Any, b: Any) -> Any:
    if isinstance(a, (float, torch.SymFloat)) or isinstance(b, (float, torch.SymFloat)):
        return a / b
    return a // b if (a >= 0) == (b >= 0) else -(-a // b)


def mod(a: Numbers, b: Numbers, fmod: int = 0) -> Numbers:
    """Remainders with the sign of the divisor, or (fmod) of the dividend."""
    return paired(math.fmod if fmod else operator.mod, a, b)


def minimum(*parts: Numbers) -> Numbers:
    """The least of each."""
    least = parts[0]
    for part in parts[1:]:
        least = paired(min, least, part)
    return least


def maximum(*parts: Numbers) -> Numbers:
    """The greatest of each."""
    most = parts[0]
    for part in parts[1:]:
        most = paired(max, most, part)
    return most


def equal(a: Numbers, b: Numbers) -> Numbers:
    """Where both are the same."""
    return paired(operator.eq, a, b)


def less(a: Numbers, b: Numbers) -> Numbers:
    """Where the first is less."""
    return paired(operator.lt, a, b)


def less_or_equal(a: Numbers, b: Numbers) -> Numbers:
    """Where the first is not greater."""
    return paired(operator.le, a, b)


def greater(a: Numbers, b: Numbers) -> Numbers:
    """Where the first is greater."""
    return paired(operator.gt, a, b)


def greater_or_equal(a: Numbers, b: Numbers) -> Numbers:
    """Where the first is not less."""
    return paired(operator.ge, a, b)


def and_(a: Numbers, b: Numbers) -> Numbers:
    """Where both are true."""
    return paired(lambda p, q: p and q, a, b)


def or_(a: Numbers, b: Numbers) -> Numbers:
    """Where one is true."""
    return paired(lambda p, q: p or q, a, b)


def not_(a: Numbers) -> Numbers:
    """Where it is false."""
    return _each(operator.not_, a)


def where(condition: Numbers, a: Numbers, b: Numbers) -> Numbers:
    """The first where the condition holds, else the second."""
    kept = paired(lambda held, number: number if held else None, condition, a)
    return paired(lambda number, other: other if number is None else number, kept, b)


def cast(a: Numbers, to: torch.dtype, saturate: int = 1) -> Numbers:
    """Numbers as those of another type."""
    if to.is_floating_point:
        return _each(_real, a)
    return _each(bool if to == torch.bool else torch.sym_int, a)


def _real(number: Any) -> Any:
    """A number, or a symbol for one, as a float."""
    return torch.sym_float(number)  # type: ignore[no-untyped-call]


def neg(a: Numbers) -> Numbers:
    """With the other sign."""
    return _each(operator.neg, a)


def abs_(a: Numbers) -> Numbers:
    """Without a sign."""
    return _each(operator.abs, a)


def floor(a: Numbers) -> Numbers:
    """The next whole number below, as a float."""
    return _each(lambda number: _real(math.floor(number)), a)


def ceil(a: Numbers) -> Numbers:
    """The next whole number above, as a float."""
    return _each(lambda number: _real(math.ceil(number)), a)


def sqrt(a: Numbers) -> Numbers:
    """Square roots."""
    return _each(lambda number: number**0.5, a)


def reduce_prod(data: Numbers, axes: Numbers = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Numbers:
    """The product of a row of numbers."""
    result = math.prod(flat(data))
    return (result,) if keepdims else result


def reduce_sum(data: Numbers, axes: Numbers = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Numbers:
    """The sum of a row of numbers."""
    result = sum(flat(data))
    return (result,) if keepdims else result


def reduce_min(data: Numbers, axes: Numbers = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Numbers:
    """The least of a row of numbers."""
    result = min(flat(data))
    return (result,) if keepdims else result


def reduce_max(data: Numbers, axes: Numbers = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Numbers:
    """The greatest of a row of numbers."""
    result = max(flat(data))
    return (result,) if keepdims else result
