"""Steps that differ by input: few sizes, one for the taps of an input, and the bits that theory promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.arith.damped import activation_order, factor
from gossamer.arith.forms import floats_of
from gossamer.arith.moments import Moments
from gossamer.arith.weight_grid import Grid as OnGrid
from gossamer.constraints.grid import Grid
from gossamer.solvers import round_grid, second_order
from gossamer.solvers.code_lengths import written_bits
from gossamer.solvers.input_steps import AN_OCTAVE, FARTHEST, Worth, steps_of_inputs, worth_of_inputs


def layer(columns: int = 48, spread: float = 1.0, groups: int = 1, seed: int = 0) -> tuple[np.ndarray, Moments]:
    """Weights of 64 outputs, and inputs that go together and differ in energy."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(groups, 2000, columns)) @ (np.eye(columns) + rng.normal(size=(columns, columns)) / 8)
    x *= np.exp(spread * rng.normal(size=(groups, 1, columns)))
    w = rng.normal(size=(groups, 64, columns)).astype(np.float32)
    return w, Moments(x.swapaxes(1, 2) @ x / 2000, None, 2000, "samples", 2000)


def worth_of(moments: Moments, taps: int = 1) -> Worth:
    found = worth_of_inputs(moments, taps)
    assert found is not None
    return found


@given(st.integers(0, 1000), st.sampled_from([0.0, 1.0, 5.0]), st.sampled_from([1, 4]), st.sampled_from([0.0, 1e-3]))
def test_they_are_of_few_sizes(seed: int, spread: float, taps: int, bit_loss: float) -> None:
    w, moments = layer(spread=spread, groups=2, seed=seed)
    steps = steps_of_inputs(worth_of(moments, taps), w, 127, bit_loss)
    octaves = np.log2(steps.astype(np.float64)) * AN_OCTAVE
    assert steps.shape == (2, 1, 48) and steps.dtype == np.float32
    np.testing.assert_allclose(octaves, np.rint(octaves), atol=1e-4)
    assert bit_loss or np.abs(octaves).max() <= FARTHEST * AN_OCTAVE + 1e-4
    assert (np.ptp(steps.reshape(2, -1, taps), axis=2) == 0).all()


@pytest.mark.parametrize("bit_loss", [1e-4, 1e-2, 1.0])
def test_they_reach_the_largest_weight_of_an_input(bit_loss: float) -> None:
    w, moments = layer(spread=2.0)
    worth = worth_of(moments)
    steps = steps_of_inputs(worth, w, 127, bit_loss)
    assert (np.abs(w).max(axis=1, keepdims=True) <= 127.01 * worth.step(bit_loss, True) * steps).all()
    unbound = steps_of_inputs(worth, w, 127, 0)
    assert (steps >= unbound).all() and (steps == unbound).any() == (bit_loss > 1e-4)


def test_loud_inputs_have_fine_ones() -> None:
    _, moments = layer()
    assert moments.h_GKK is not None
    made = factor(moments.h_GKK, activation_order(moments.h_GKK))
    worth = np.diagonal(made.lower_GKK[0]) ** 2
    evened = worth * worth_of(moments).steps_GI1[0, made.order_GK[0], 0] ** 2
    assert worth.max() > 100 * worth.min() and evened.max() < 2.0 ** (2 / AN_OCTAVE) * evened.min() * 1.01


def test_without_moments_all_are_alike() -> None:
    assert worth_of_inputs(Moments(None), 1) is None
    assert worth_of_inputs(Moments(np.zeros((1, 4, 4))), 1) is None
    w, _ = layer()
    found = round_grid.solve(w, Grid(4, granularity="input"), Moments(None))
    assert Grid(4, granularity="input").contains(floats_of(found))


@pytest.mark.parametrize("noise_db", [-34, -24])
def test_they_save_the_bits_that_theory_promises(noise_db: int) -> None:
    """At the same rate, noise is alike and bits are fewer by what the energies of columns say."""
    w, moments = layer(spread=0.8)
    rate = 2 * np.log(2) * 10 ** (noise_db / 10) / w.size
    plain, found = (
        second_order.solve(w, Grid(8, granularity=each, rate=rate), moments) for each in ("tensor", "input")
    )
    assert isinstance(plain.form, OnGrid) and isinstance(found.form, OnGrid)
    bits = [written_bits(each.form) / w.size for each in (plain, found)]
    decibels = [10 * np.log10(each.loss / each.zero_loss) for each in (plain, found)]
    saved = bits[0] - bits[1] - (decibels[1] - decibels[0]) / (20 * np.log10(2))
    assert saved > 0.8 * worth_of(moments).saved_bits > 0.2


def test_by_the_nearest_point_each_input_reaches_its_largest_weight() -> None:
    w, moments = layer(groups=2)
    grid = Grid(4, granularity="input")
    plain = grid.project(w)
    assert plain.scale.shape == (2, 1, 48) and (np.abs(plain.integers).max(axis=1) == 7).all()
    held = round_grid.solve(w, grid, moments, search=False)
    np.testing.assert_allclose(held.scale, plain.scale, rtol=1e-6)
    assert grid.contains(floats_of(held))


def test_taps_of_an_input_share_their_scale() -> None:
    w, moments = layer()
    for form in (Grid(4, granularity="input").project(w, (12, 2, 2)), _solved(w, moments)):
        assert (np.ptp(form.scale.reshape(12, 4), axis=1) == 0).all() and len(np.unique(form.scale)) > 4
        assert Grid(4, granularity="input").contains(floats_of(form), (12, 2, 2))


def _solved(w: np.ndarray, moments: Moments) -> OnGrid:
    found = second_order.solve(w, Grid(4, granularity="input"), moments, (12, 2, 2)).form
    assert isinstance(found, OnGrid)
    return found
