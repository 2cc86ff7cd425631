import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.arith.moments import Moments, loss
from gossamer.constraints.composed import Composed
from gossamer.constraints.grid import Grid
from gossamer.constraints.low_rank import LowRank
from gossamer.constraints.sparse import Sparse
from gossamer.errors import DataError, OptionError
from gossamer.solvers.round_grid import solve

GRIDS = st.builds(
    Grid,
    bits=st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16]),
    symmetric=st.booleans(),
    granularity=st.sampled_from(["channel", "tensor", 4]),
)


def layer(seed, groups, outputs, columns, samples, dead=0):
    """Random weights and the moments of correlated inputs, some of which are always zero."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(groups, columns, columns)) + 2 * rng.normal(size=(groups, 1, columns))
    x = rng.normal(size=(groups, samples, columns)) @ mix
    x[:, :, columns - dead :] = 0
    h = x.transpose(0, 2, 1) @ x / max(samples, 1)
    w = rng.normal(size=(groups, outputs, columns)) * rng.lognormal(size=(groups, outputs, 1))
    return w.astype(np.float32), Moments(h.astype(np.float32), samples=samples)


def lost(w, form, moments):
    return loss(w - form.real().reshape(w.shape), moments)


@settings(max_examples=40, deadline=None)
@given(
    grid=GRIDS,
    seed=st.integers(0, 10_000),
    groups=st.integers(1, 3),
    outputs=st.integers(1, 4),
    fours=st.integers(1, 4),
    samples=st.integers(1, 40),
    dead=st.integers(0, 4),
)
def test_never_worse_than_nearest_and_on_the_grid(grid, seed, groups, outputs, fours, samples, dead):
    w, moments = layer(seed, groups, outputs, 4 * fours, samples, dead)
    found, nearest = solve(w, grid, moments), grid.project(w)
    assert lost(w, found, moments).sum() <= lost(w, nearest, moments).sum()
    half = 2 ** (grid.bits - 1)
    assert found.integers.min() >= -half and found.integers.max() <= half - 1
    assert [part.shape for part in found[:3]] == [part.shape for part in nearest[:3]]
    assert [part.dtype for part in found[:3]] == [part.dtype for part in nearest[:3]]
    assert (found.scale > 0).all()
    assert grid.symmetric is False or not found.zero_point.any()


@settings(max_examples=30, deadline=None)
@given(
    grid=GRIDS,
    sparse=st.one_of(
        st.builds(Sparse, ratio=st.sampled_from([0.25, 0.5, 0.8])),
        st.just(Sparse(pattern=(2, 4))),
        st.just(Sparse(ratio=0.5, block=(2, 2))),
    ),
    seed=st.integers(0, 10_000),
    groups=st.integers(1, 2),
    samples=st.integers(1, 40),
)
def test_sparse_and_on_a_grid_in_one_sweep(grid, sparse, seed, groups, samples):
    w, moments = layer(seed, groups, 3, 8, samples)
    both = Composed(sparse, grid)
    found, nearest = solve(w, both, moments), both.project(w)
    assert sparse.contains(found.real().reshape(w.shape))
    assert lost(w, found, moments).sum() <= lost(w, nearest, moments).sum()


def test_pruning_and_rounding_together_beat_one_after_the_other():
    w, moments = layer(0, 1, 16, 64, 200)
    both = Composed(Sparse(ratio=0.5), Grid(bits=4))
    one_after_the_other = Grid(bits=4).project(both.first.project(w).w_GOK)
    assert lost(w, solve(w, both, moments), moments).sum() < 0.3 * lost(w, one_after_the_other, moments).sum()


@pytest.mark.parametrize("granularity", ["channel", "tensor", 16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_third_of_the_loss_of_nearest_where_inputs_are_correlated(bits, symmetric, granularity):
    w, moments = layer(1, 1, 32, 192, 400)
    grid = Grid(bits=bits, symmetric=symmetric, granularity=granularity)
    assert lost(w, solve(w, grid, moments), moments).sum() < lost(w, grid.project(w), moments).sum() / 3


def test_close_to_the_optimum_where_all_integers_can_be_tried():
    ratios = []
    for seed in range(60):
        bits = 2 + seed % 2
        w, moments = layer(seed, 1, 1, 6 if bits == 2 else 4, 30)
        grid = Grid(bits=bits)
        found, nearest = solve(w, grid, moments, search=False), grid.project(w)
        assert (found.scale == nearest.scale).all()
        half = 2 ** (bits - 1)
        every = np.array(list(itertools.product(range(-half, half), repeat=w.shape[2])), np.float32)
        optimum = loss(
            w - every[:, None] * nearest.scale,
            Moments(np.broadcast_to(moments.h_GKK, (len(every), *moments.h_GKK.shape[1:]))),
        ).min()
        ratios.append(lost(w, found, moments).sum() / optimum)
        assert lost(w, solve(w, grid, moments), moments).sum() <= lost(w, nearest, moments).sum()
    print(f"loss over the optimum: median {np.median(ratios):.4f}, worst {max(ratios):.3f}")
    assert min(ratios) >= 1 - 1e-6
    assert np.median(ratios) <= 1.02


@settings(max_examples=40, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 10_000), groups=st.integers(1, 3))
def test_equal_to_plain_rounding_when_h_is_diagonal(grid, seed, groups):
    w, _ = layer(seed, groups, 3, 8, 1)
    diagonal = np.random.default_rng(seed).lognormal(size=(groups, 8))
    moments = Moments(np.stack([np.diag(one) for one in diagonal]))
    found, nearest = solve(w, grid, moments, search=False), grid.project(w)
    assert all((one == other).all() for one, other in zip(found[:3], nearest[:3], strict=True))
    at_its_scales = (found.real().reshape(w.shape), solve(w, grid, moments).real().reshape(w.shape))
    assert loss(w - at_its_scales[1], moments).sum() <= loss(w - at_its_scales[0], moments).sum()


@settings(max_examples=40, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 10_000), groups=st.integers(1, 3))
def test_compensation_off_is_nearest(grid, seed, groups):
    w, moments = layer(seed, groups, 3, 8, 20)
    found, nearest = solve(w, grid, moments, compensate=False), grid.project(w)
    assert all((one == other).all() for one, other in zip(found[:3], nearest[:3], strict=True))


@settings(max_examples=40, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 10_000), groups=st.integers(1, 3))
def test_weights_on_the_grid_stay_there(grid, seed, groups):
    w, moments = layer(seed, groups, 3, 8, 20)
    there = grid.project(w).real().reshape(w.shape)
    found, nearest = solve(there, grid, moments), grid.project(there)
    assert lost(there, found, moments).sum() <= lost(there, nearest, moments).sum()
    if grid.symmetric:
        assert lost(there, found, moments).sum() == 0


def test_an_input_that_is_always_zero_leaves_nearest():
    w, moments = layer(0, 2, 3, 8, 20, dead=8)
    found, nearest = solve(w, Grid(bits=4), moments), Grid(bits=4).project(w)
    assert (found.integers == nearest.integers).all()


def test_a_dead_column_does_not_stretch_the_scale():
    w, moments = layer(0, 1, 2, 16, 40, dead=1)
    w[:, :, -1] = 1000
    found = solve(w, Grid(bits=4), moments)
    assert (found.scale < 2).all()
    assert lost(w, found, moments).sum() < 0.01 * loss(w, moments).sum()


def test_rows_looked_up_often_count_in_a_scale_of_the_tensor():
    w = np.array([[[0.9, -0.31, 0.22, 0.13]], [[8.0, -4.1, 3.2, 1.7]]], np.float32).transpose(1, 0, 2)
    often, seldom = Moments(None, np.array([[1e6, 1.0]])), Moments(None, np.array([[1.0, 1e6]]))
    grid = Grid(bits=3, granularity="tensor")
    assert solve(w, grid, often).scale < solve(w, grid, seldom).scale
    assert loss(w - solve(w, grid, often).real(), often).sum() < loss(w - grid.project(w).real(), often).sum()


def test_moments_in_float32_and_from_a_file_are_the_same(tmp_path):
    w, moments = layer(3, 1, 4, 12, 40)
    mapped = np.memmap(tmp_path / "h", np.float32, "w+", shape=moments.h_GKK.shape)
    mapped[:] = moments.h_GKK
    mapped.flush()
    read_only = np.memmap(tmp_path / "h", np.float32, "r", shape=moments.h_GKK.shape)
    found, again = solve(w, Grid(bits=3), moments), solve(w, Grid(bits=3), Moments(read_only))
    assert (found.integers == again.integers).all()


def test_more_columns_than_a_block_are_rounded_alike():
    w, moments = layer(5, 1, 3, 300, 50)
    found, nearest = solve(w, Grid(bits=4), moments), Grid(bits=4).project(w)
    assert lost(w, found, moments).sum() < 0.05 * lost(w, nearest, moments).sum()


def test_only_grids_are_rounded():
    w, moments = layer(0, 1, 4, 4, 20)
    with pytest.raises(OptionError, match="only weights on a grid, sparse or not, can be rounded; got Composed"):
        solve(w, Composed(LowRank(rank=1), Grid(bits=8)), moments)


def test_a_moment_that_is_not_finite_is_refused():
    w, _ = layer(0, 1, 4, 4, 20)
    with pytest.raises(DataError, match="second moment of a layer's input is NaN or infinite"):
        solve(w, Grid(bits=4), Moments(np.full((1, 4, 4), np.nan)))


@pytest.mark.parametrize("size", [1e30, 1e-30, 1e-38, 0.0])
@pytest.mark.parametrize("grid", [Grid(bits=2), Grid(bits=16, symmetric=False), Grid(bits=4, granularity="tensor")])
def test_weights_at_the_ends_of_float32(size, grid):
    w, moments = layer(0, 2, 3, 8, 20)
    w = (w * size).astype(np.float32)
    found = solve(w, grid, moments)
    assert np.isfinite(found.real()).all()
    assert lost(w, found, moments).sum() <= lost(w, grid.project(w), moments).sum()


def test_an_empty_weight_stays_empty():
    assert solve(np.zeros((1, 0, 4), np.float32), Grid(bits=4), Moments(np.eye(4)[None])).integers.shape == (1, 0, 4)
