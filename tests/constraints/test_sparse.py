"""Sparse: exact counts, the smallest go, ties by place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gossamer.constraints.sparse import Sparse
from gossamer.errors import OptionError

shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 9))
weights = shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-1, 1, width=16)))


@given(weights, st.floats(0, 0.99))
def test_a_ratio_removes_that_many_of_the_smallest(w: np.ndarray, ratio: float) -> None:
    kept = Sparse(ratio).mask(np.abs(w))
    assert (~kept).sum() == int(np.floor(ratio * w.size + 0.5))
    if kept.any() and not kept.all():
        assert np.abs(w)[kept].min() >= np.abs(w)[~kept].max()
    assert np.array_equal(Sparse(ratio).project(w).w_GOK, np.where(kept, w, 0))


@given(
    hnp.arrays(np.float32, (2, 3, 8), elements=st.floats(-1, 1, width=16)), st.sampled_from([(1, 2), (2, 4), (3, 8)])
)
def test_a_pattern_keeps_the_largest_of_every_few(w: np.ndarray, pattern: tuple[int, int]) -> None:
    n, m = pattern
    real = Sparse(pattern=pattern).project(w).w_GOK.reshape(-1, m)
    largest = np.sort(np.abs(w).reshape(-1, m), axis=1)[:, m - n :]
    assert (np.count_nonzero(real, axis=1) <= n).all()
    assert np.array_equal(np.sort(np.abs(real), axis=1)[:, m - n :], largest)


@given(weights, st.floats(0, 0.99), st.integers(1, 3), st.integers(1, 4))
def test_blocks_go_whole_and_in_number(w: np.ndarray, ratio: float, rows: int, columns: int) -> None:
    kept = Sparse(ratio, block=(rows, columns)).mask(np.abs(w))
    gone = blocks = 0
    for group in kept:
        for top in range(0, group.shape[0], rows):
            for left in range(0, group.shape[1], columns):
                block = group[top : top + rows, left : left + columns]
                assert block.all() or not block.any()
                gone, blocks = gone + (not block.any()), blocks + 1
    assert gone == int(np.floor(ratio * blocks + 0.5))


def test_the_weakest_block_goes_and_of_equals_the_first() -> None:
    w = np.array([[[3, 0, 1, 1], [0, 0, 1, 1]]], np.float32)
    assert Sparse(0.5, block=(2, 2)).project(w).w_GOK.tolist() == [[[3, 0, 0, 0], [0, 0, 0, 0]]]
    assert Sparse(0.5).project(np.ones((1, 2, 3), np.float32)).w_GOK.tolist() == [[[0, 0, 0], [1, 1, 1]]]


def test_too_few_zeros_lie_outside() -> None:
    w = np.array([[[1, 0, 0, 2], [1, 0, 2, 3]]], np.float32)
    assert Sparse(pattern=(3, 4)).contains(w) and not Sparse(pattern=(2, 4)).contains(w)
    assert Sparse(3 / 8).contains(w) and not Sparse(0.5).contains(w)
    assert Sparse(0.25, block=(2, 1)).contains(w) and not Sparse(0.5, block=(2, 1)).contains(w)


def test_what_cannot_be() -> None:
    line = "its rows of 3 weights are not a multiple of 4, which the pattern 2:4 needs"
    assert Sparse(pattern=(2, 4)).obstacle((1, 8, 3)) == line
    assert not Sparse(pattern=(2, 4)).contains(np.zeros((1, 8, 3), np.float32))
    with pytest.raises(OptionError, match=f"sparse: {line}"):
        Sparse(pattern=(2, 4)).project(np.ones((1, 8, 3), np.float32))
    with pytest.raises(OptionError, match="a ratio or a pattern, one of them"):
        Sparse()
    with pytest.raises(OptionError, match=r"4:2 keeps 4 of 2 weights; the first must be 1 to 1"):
        Sparse(pattern=(4, 2))
    with pytest.raises(OptionError, match="blocks with a ratio, not with a pattern"):
        Sparse(pattern=(2, 4), block=(2, 2))
    with pytest.raises(OptionError, match="rows and columns must be 1 or more"):
        Sparse(0.5, block=(0, 1))
