"""Shape arithmetic on Python numbers gives what numpy gives on arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[torch]'")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from gossamer.training.operators import size_arithmetic as arithmetic  # noqa: E402
from gossamer.training.operators import sizes  # noqa: E402
from gossamer.training.tensors import frozen  # noqa: E402

SHAPES = ((), (1,), (3,), (2, 3), (1, 3))
PAIRED = {
    arithmetic.add: np.add,
    arithmetic.sub: np.subtract,
    arithmetic.mul: np.multiply,
    arithmetic.mod: np.mod,
    arithmetic.minimum: np.minimum,
    arithmetic.maximum: np.maximum,
    arithmetic.equal: np.equal,
    arithmetic.less: np.less,
    arithmetic.less_or_equal: np.less_equal,
    arithmetic.greater: np.greater,
    arithmetic.greater_or_equal: np.greater_equal,
}


def arrays(shapes: Any = SHAPES, least: int = -9) -> st.SearchStrategy[np.ndarray]:
    def of(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
        count = int(np.prod(shape))
        numbers = st.lists(st.integers(least, 9), min_size=count, max_size=count)
        return numbers.map(lambda values: np.array(values, np.int64).reshape(shape))

    return st.sampled_from(shapes).flatmap(of)


def same(numbers: Any, array: Any) -> bool:
    return bool(numbers == frozen(np.asarray(array).tolist()))


def numbers(array: np.ndarray) -> Any:
    return frozen(array.tolist())


@given(a=arrays(), b=arrays(least=1), pair=st.sampled_from(list(PAIRED.items())))
def test_two_are_joined_with_broadcasting(a: np.ndarray, b: np.ndarray, pair: Any) -> None:
    mine, theirs = pair
    assert same(mine(numbers(a), numbers(b)), theirs(a, b))


@given(a=arrays(), b=arrays(least=1), sign=st.sampled_from([1, -1]))
def test_whole_quotients_are_cut_towards_zero(a: np.ndarray, b: np.ndarray, sign: int) -> None:
    assert same(arithmetic.div(numbers(a), numbers(sign * b)), np.trunc(a / (sign * b)).astype(np.int64))


@given(a=arrays(), b=arrays(), held=arrays(least=0))
def test_where_takes_the_first_where_it_holds(a: np.ndarray, b: np.ndarray, held: np.ndarray) -> None:
    assert same(arithmetic.where(numbers(held > 4), numbers(a), numbers(b)), np.where(held > 4, a, b))


@given(a=arrays(((6,), (2, 3))), start=st.integers(-7, 7), end=st.integers(-7, 7), step=st.sampled_from([1, 2, -1, -2]))
def test_spans_are_cut_out(a: np.ndarray, start: int, end: int, step: int) -> None:
    axis = a.ndim - 1
    assert same(
        sizes.slice_(numbers(a), (start,), (end,), (axis,), (step,)), a[(slice(None),) * axis + np.s_[start:end:step,]]
    )


@given(a=arrays(((6,), (2, 3))), at=arrays(((), (2,), (2, 2)), least=-1))
def test_entries_are_gathered(a: np.ndarray, at: np.ndarray) -> None:
    at = at % a.shape[-1]
    assert same(sizes.gather(numbers(a), numbers(at), axis=-1), np.take(a, at, axis=-1))


@given(a=arrays(((6,), (2, 3), (1, 6))))
def test_shapes_are_changed(a: np.ndarray) -> None:
    given_ = numbers(a)
    assert sizes.lengths(given_) == a.shape
    assert same(sizes.reshape(given_, (-1, 2)), a.reshape(-1, 2))
    assert same(sizes.unsqueeze(given_, (0, -1)), a[None, ..., None])
    assert same(sizes.squeeze(sizes.unsqueeze(given_, (1,)), (1,)), a)
    assert same(sizes.transpose(given_), a.T)
    assert same(sizes.concat(given_, given_, axis=-1), np.concatenate([a, a], axis=-1))
    assert same(arithmetic.neg(arithmetic.abs_(given_)), -np.abs(a))
    assert same(arithmetic.reduce_prod(given_, keepdims=0), a.prod())


def test_numbers_and_tensors_are_made_of_each_other() -> None:
    assert sizes.as_tensor((2, 3)).dtype == torch.int64
    assert sizes.as_tensor(()).dtype == torch.int64
    assert sizes.as_tensor(0.5).dtype == torch.float32
    assert sizes.numbers_of(torch.tensor([[1, 2], [3, 4]])) == ((1, 2), (3, 4))
    assert arithmetic.cast((1, 0), torch.bool) == (True, False)
    assert arithmetic.cast((2.7, -2.7), torch.int64) == (2, -2)
    assert sizes.range_(1, 7, 2) == (1, 3, 5)
    assert sizes.split((1, 2, 3), count=2) == ((1, 2), (3,))
