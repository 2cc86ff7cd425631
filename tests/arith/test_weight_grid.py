"""Grids of weights: errors within half a step, zero exact, the search never worse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gossamer.arith.affine import quantize, weight_scales, weight_scales_mse
from gossamer.arith.weight_grid import Bits, in_groups, weight_grid
from gossamer.errors import DataError

weights = hnp.arrays(np.float32, (4, 6), elements=st.floats(-(2.0**60), 2.0**60, width=32))
bit_counts = st.sampled_from([8, 4, 2, 3, 5, 6, 7, 16])


@given(weights, bit_counts, st.booleans(), st.sampled_from([(0, 1), (1,), (0,)]))
def test_error_is_at_most_half_a_step_and_zero_is_exact(
    w: np.ndarray, bits: Bits, symmetric: bool, shared: tuple[int, ...]
) -> None:
    grid = weight_grid(w, shared, bits, symmetric)
    half = 1 << (bits - 1)
    assert grid.integers.dtype == grid.zero_point.dtype == (np.int16 if bits == 16 else np.int8)
    assert grid.scale.dtype == np.float32
    assert grid.integers.min() >= -half and grid.integers.max() < half
    assert grid.scale.shape == tuple(1 if axis in shared else n for axis, n in enumerate(w.shape))
    reach = np.abs(w).max(axis=shared, keepdims=True)
    slack = grid.scale * (0.5 if symmetric else 1.0) + 1e-6 * reach  # the zero point is rounded as well
    assert (np.abs(grid.real() - w) <= slack).all()
    assert (grid.real()[w == 0] == 0).all()
    assert (grid.zero_point == 0).all() or not symmetric


@given(weights)
def test_8_bits_a_channel_are_those_of_affine(w: np.ndarray) -> None:
    for mse, scales in ((False, weight_scales), (True, weight_scales_mse)):
        grid = weight_grid(w, (1,), 8, mse=mse)
        assert np.array_equal(grid.scale[:, 0], scales(w, 0))
        assert np.array_equal(grid.integers, quantize(w, grid.scale[:, 0], grid.zero_point[:, 0], 0))


@given(weights, bit_counts, st.booleans())
def test_the_search_is_never_worse_for_any_group(w: np.ndarray, bits: Bits, symmetric: bool) -> None:
    groups = in_groups(w, 1, 3)
    plain, best = (weight_grid(groups, (2,), bits, symmetric, mse).real() for mse in (False, True))
    errors = [((real - groups).astype(np.float64) ** 2).sum(axis=2) for real in (plain, best)]
    assert (errors[1] <= errors[0]).all()


def test_the_search_gains_where_one_weight_stands_out() -> None:
    w = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    errors = [((weight_grid(w, (1,), 4, mse=mse).real() - w) ** 2).sum() for mse in (False, True)]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize(("axis", "shape"), [(0, (2, 3, 4)), (1, (6, 2, 2))])
def test_groups_are_consecutive(axis: int, shape: tuple[int, ...]) -> None:
    w = np.arange(24, dtype=np.float32).reshape(6, 4)
    groups = in_groups(w, axis, 3 if axis == 0 else 2)
    assert groups.shape == shape
    first = groups[0, :, 0] if axis == 0 else groups[0, 0]
    assert first.tolist() == ([0, 4, 8] if axis == 0 else [0, 1])


def test_asymmetric_uses_all_integers() -> None:
    grid = weight_grid(np.linspace(0, 15, 16, dtype=np.float32), (0,), 4, symmetric=False)
    assert grid.integers.tolist() == list(range(-8, 8)) and grid.zero_point.item() == -8 and grid.scale.item() == 1


def test_zeros_and_what_is_not_finite() -> None:
    assert weight_grid(np.zeros((2, 3), np.float32), (1,), 4).scale.tolist() == [[1], [1]]
    with pytest.raises(DataError, match="a weight is NaN or infinite"):
        weight_grid(np.array([1, np.inf], np.float32), (0,), 8)
