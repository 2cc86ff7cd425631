"""Both solvers put every constraint's weights inside the set, and the second-order one is never worse than nearest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.arith.forms import floats_of
from gossamer.arith.moments import Moments, loss
from gossamer.constraints.contract import Constraint, constraint_from_text
from gossamer.errors import OptionError
from gossamer.solvers import nearest, second_order
from gossamer.solvers.contract import Solved

ALL = (
    "grid:4 grid:2 grid:3:tensor grid:3:input grid:3:asymmetric grid:5:group=4 grid:8 grid:16 sparse:0.7 sparse:2:4 "
    "sparse:0.5:block=2x2 codebook:4 codebook:3:channel codebook:4:dimension=2 low_rank:1 low_rank:2 low_rank:0.8 "
    "shared sparse:0.5+grid:4 sparse:2:4+grid:3:asymmetric sparse:0.5+codebook:4 sparse:2:4+codebook:4:channel "
    "low_rank:2+grid:4"
).split()
CASES = ("full", "few", "one", "dead", "tiny", "huge", "float32")


def moments_of(case: str, groups: int, length: int, rng: np.random.Generator) -> Moments:
    """H of many samples, of fewer than columns, of one, or with columns that are always zero."""
    samples = {"few": max(1, length // 3), "one": 1}.get(case, 4 * length)
    x = rng.normal(size=(groups, samples, length)) @ rng.normal(size=(groups, length, length))
    x *= {"tiny": 1e-12, "huge": 1e8}.get(case, 1.0)
    if case == "dead":
        x[:, :, ::2] = 0
    h_GKK = np.einsum("gsk,gsl->gkl", x, x) / samples
    return Moments(h_GKK.astype(np.float32) if case == "float32" else h_GKK, samples=samples)


def check(solved: Solved, constraint: Constraint, w_GOK: np.ndarray, moments: Moments | None) -> None:
    """Inside, finite, not written elsewhere than it says, and losses that are those of the form."""
    real = floats_of(solved.form)
    assert real.shape == w_GOK.shape and real.dtype == np.float32 and np.isfinite(real).all()
    assert constraint.contains(real)
    assert 0 <= solved.loss <= solved.nearest_loss and solved.zero_loss >= 0
    counted = loss(w_GOK.astype(np.float64) - real, moments or Moments(None)).sum()
    assert solved.loss == pytest.approx(counted, rel=1e-6, abs=1e-9 * solved.zero_loss)


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("case", CASES)
@settings(max_examples=2)
@given(seed=st.integers(0, 2**32 - 1))
def test_inside_and_never_worse(text: str, case: str, seed: int) -> None:
    rng, constraint = np.random.default_rng(seed), constraint_from_text(text)
    w = rng.normal(size=(2, int(rng.integers(3, 7)), int(rng.choice([8, 12, 20])))).astype(np.float32)
    moments = moments_of(case, 2, w.shape[2], rng)
    check(nearest.solve(w, constraint, moments), constraint, w, moments)
    check(second_order.solve(w, constraint, moments), constraint, w, moments)


@pytest.mark.parametrize("text", ALL)
def test_it_pays_where_inputs_go_together(text: str) -> None:
    rng, constraint = np.random.default_rng(0), constraint_from_text(text)
    w = rng.normal(size=(2, 16, 32)).astype(np.float32)
    x = rng.normal(size=(2, 500, 8)) @ rng.normal(size=(2, 8, 32)) + 0.3 * rng.normal(size=(2, 500, 32))
    solved = second_order.solve(w, constraint, Moments(np.einsum("gsk,gsl->gkl", x, x) / 500, samples=500))
    assert solved.reason == "" and solved.loss < 0.9 * solved.nearest_loss < solved.zero_loss


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30, 1e10])
def test_constant_weights(text: str, value: float) -> None:
    constraint = constraint_from_text(text)
    w, moments = np.full((2, 3, 8), value, np.float32), moments_of("full", 2, 8, np.random.default_rng(0))
    check(second_order.solve(w, constraint, moments), constraint, w, moments)


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 1), (1, 1, 4), (5, 1, 9)])
def test_narrow_shapes(text: str, shape: tuple[int, int, int]) -> None:
    rng, constraint = np.random.default_rng(3), constraint_from_text(text)
    w, moments = rng.normal(size=shape).astype(np.float32), moments_of("full", shape[0], shape[2], rng)
    if constraint.obstacle(shape):
        with pytest.raises(OptionError):
            second_order.solve(w, constraint, moments)
        return
    check(second_order.solve(w, constraint, moments), constraint, w, moments)


@pytest.mark.parametrize("text", ALL)
def test_it_says_why_it_fell_back(text: str) -> None:
    constraint, w = constraint_from_text(text), np.random.default_rng(1).normal(size=(2, 4, 8)).astype(np.float32)
    plain = nearest.solve(w, constraint, None)
    broken = np.eye(8)[None].repeat(2, axis=0)
    broken[1, 2, 2] = np.nan
    for moments, reason in [
        (None, "there are no moments of its input"),
        (Moments(np.zeros((2, 8, 8))), "its input was zero in every sample"),
        (Moments(broken), "the moments of its input are NaN or infinite; look for NaN or Inf in the activations"),
        (Moments(None, np.zeros((2, 4))), "no sample looks up any of its rows"),
    ]:
        solved = second_order.solve(w, constraint, moments)
        assert solved.reason == reason
        assert np.array_equal(floats_of(solved.form), floats_of(plain.form))


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("rows", [True, False])
def test_tables_have_counts_of_rows_or_nothing(text: str, rows: bool) -> None:
    rng, constraint = np.random.default_rng(2), constraint_from_text(text)
    w = rng.normal(size=(2, 6, 8)).astype(np.float32)
    counts = rng.integers(0, 5, (2, 6)).astype(np.float64) if rows else None
    moments = Moments(None, counts, 10)
    check(second_order.solve(w, constraint, moments), constraint, w, moments)
