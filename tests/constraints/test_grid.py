"""Grids as constraints: integers in range, ends reached, and whatever any scale can make counts as inside."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gossamer.arith.forms import floats_of
from gossamer.arith.weight_grid import Bits
from gossamer.constraints.grid import Grid
from gossamer.errors import DataError, OptionError

BITS: tuple[Bits, ...] = (2, 3, 4, 5, 6, 7, 8, 16)
weights = hnp.arrays(np.float32, (2, 3, 8), elements=st.floats(-(2.0**60), 2.0**60, width=32))
grids = st.builds(Grid, st.sampled_from(BITS), st.booleans(), st.sampled_from(["channel", "tensor", "input", 4]))


@given(weights, grids)
def test_the_result_projects_to_itself_within_a_rounding(w: np.ndarray, grid: Grid) -> None:
    once = grid.project(w)
    twice = grid.project(floats_of(once))
    np.testing.assert_allclose(floats_of(twice), floats_of(once), rtol=1e-6, atol=0)
    assert grid.contains(floats_of(once))


@given(weights, grids)
def test_errors_are_within_a_step_and_zeros_stay(w: np.ndarray, grid: Grid) -> None:
    form = grid.project(w)
    step = np.broadcast_to(form.scale, form.integers.shape).reshape(w.shape)
    assert (np.abs(floats_of(form) - w) <= step * (0.51 if grid.symmetric else 1.01)).all()
    assert (floats_of(form)[w == 0] == 0).all()


@pytest.mark.parametrize("granularity", ["channel", "tensor", "input", 4])
def test_shapes_and_types(granularity: Literal["channel", "tensor", "input"] | int) -> None:
    w = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    form = Grid(16, False, granularity).project(w)
    scales = {"channel": (2, 3, 1), "tensor": (1, 1, 1), "input": (2, 1, 8), 4: (2, 3, 2, 1)}
    assert form.integers.dtype == form.zero_point.dtype == np.int16 and form.scale.dtype == np.float32
    assert form.scale.shape == form.zero_point.shape == scales[granularity]
    assert form.integers.shape == ((2, 3, 2, 4) if granularity == 4 else w.shape)
    assert form.integers.min() == -(2**15) and form.integers.max() == 2**15 - 1


@given(st.integers(0, 2**32 - 1), st.sampled_from(BITS), st.booleans())
def test_any_integers_times_any_scale_lie_inside(seed: int, bits: Bits, symmetric: bool) -> None:
    rng = np.random.default_rng(seed)
    half = 2 ** (bits - 1)
    top = int(rng.integers(1, half)) if bits < 16 else half - 1  # the last integer need not be in use
    integers = rng.integers(-top, top + 1, (2, 3, 40))
    if not symmetric:
        integers -= rng.integers(0, half - top + 1)
    w = (integers * rng.uniform(0.001, 10, (2, 3, 1))).astype(np.float32)
    assert Grid(bits, symmetric).contains(w)


@pytest.mark.parametrize("bits", BITS[:-1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_one_integer_too_many_lies_outside(bits: Bits, symmetric: bool) -> None:
    half = 2 ** (bits - 1)
    every = np.arange(-half, half, dtype=np.float32)[None, None] * np.float32(0.37)
    above = np.append(every, np.float32(half * 0.37))[None, None]
    assert Grid(bits, symmetric).contains(every) and not Grid(bits, symmetric).contains(above)
    assert not Grid(bits, symmetric).contains(np.random.default_rng(0).normal(size=(1, 1, 600)).astype(np.float32))


def test_an_end_half_way_between_two_integers_is_still_reached() -> None:
    w = np.array([[[-1.5, 1.5]]], np.float32)  # a scale of 1 with 2 bits: -1.5 and 1.5 both round to even
    form = Grid(2, False).project(w)
    assert form.integers.tolist() == [[[-2, 1]]]
    np.testing.assert_array_equal(floats_of(Grid(2, False).project(floats_of(form))), floats_of(form))


def test_what_cannot_be() -> None:
    w = np.ones((1, 2, 27), np.float32)
    line = "its rows of 27 weights are not a multiple of the group 64"
    assert Grid(4, granularity=64).obstacle(w.shape) == line and Grid(4).obstacle(w.shape) == ""
    assert not Grid(4, granularity=64).contains(w)
    with pytest.raises(OptionError, match=f"grid: {line}"):
        Grid(4, granularity=64).project(w)
    with pytest.raises(DataError, match="a weight is NaN or infinite"):
        Grid(4).project(np.full((1, 1, 2), np.nan, np.float32))
