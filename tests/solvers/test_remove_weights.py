import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.arith.moments import Moments, loss
from gossamer.constraints.sparse import Sparse
from gossamer.errors import OptionError
from gossamer.solvers.remove_weights import solve

SPARSE = st.one_of(
    st.builds(Sparse, ratio=st.floats(0, 0.95)),
    st.sampled_from([Sparse(pattern=(2, 4)), Sparse(pattern=(1, 2)), Sparse(pattern=(1, 4))]),
    st.builds(Sparse, ratio=st.floats(0, 0.9), block=st.sampled_from([(1, 4), (2, 2), (3, 1)])),
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
    return loss(w - form.w_GOK, moments).sum()


@settings(max_examples=50, deadline=None)
@given(
    sparse=SPARSE,
    seed=st.integers(0, 10_000),
    groups=st.integers(1, 3),
    outputs=st.integers(1, 4),
    fours=st.integers(1, 4),
    samples=st.integers(1, 40),
    dead=st.integers(0, 4),
)
def test_never_worse_than_magnitude_and_as_sparse(sparse, seed, groups, outputs, fours, samples, dead):
    w, moments = layer(seed, groups, outputs, 4 * fours, samples, dead)
    found, nearest = solve(w, sparse, moments), sparse.project(w)
    assert found.w_GOK.dtype == np.float32
    assert sparse.contains(found.w_GOK)
    assert lost(w, found, moments) <= lost(w, nearest, moments)


def test_the_count_of_zeros_is_exact():
    w, moments = layer(0, 3, 5, 16, 60)
    for ratio in (0.1, 0.5, 0.77, 0.9):
        found = solve(w, Sparse(ratio=ratio), moments).w_GOK
        assert np.count_nonzero(found == 0) == int(np.floor(ratio * w.size + 0.5))


def test_close_to_the_optimum_where_all_places_can_be_tried():
    ratios = {}
    for seed in range(45):
        columns = (6, 8, 12)[seed % 3]
        w, moments = layer(seed, 1, 1, columns, 60)
        for sparse in (Sparse(ratio=0.5), Sparse(pattern=(2, 4))) if columns != 6 else (Sparse(ratio=0.5),):
            optimum = min(
                exact(w[0, 0], moments.h_GKK[0], list(keep))
                for keep in itertools.combinations(range(columns), columns // 2)
                if sparse.pattern is None or np.bincount(np.array(keep) // 4, minlength=columns // 4).max() <= 2
            )
            ratios.setdefault(sparse, []).append(lost(w, solve(w, sparse, moments), moments) / optimum)
    for sparse, some in ratios.items():
        print(f"{sparse}: loss over the optimum: median {np.median(some):.4f}, worst {max(some):.2f}")
        assert min(some) >= 1 - 1e-6
        assert np.median(some) <= 1.2


def exact(w, h, keep):
    """The least loss with weights at these places only."""
    fitted = np.zeros(len(w))
    fitted[keep] = np.linalg.solve(h[np.ix_(keep, keep)].astype(np.float64), (h.astype(np.float64) @ w)[keep])
    return float((w - fitted) @ h @ (w - fitted))


@settings(max_examples=30, deadline=None)
@given(sparse=SPARSE, seed=st.integers(0, 10_000))
def test_where_h_is_diagonal_the_same_places_as_magnitude_times_activity(sparse, seed):
    w, _ = layer(seed, 2, 3, 8, 1)
    diagonal = np.random.default_rng(seed).lognormal(size=(2, 8))
    found = solve(w, sparse, Moments(np.stack([np.diag(one) for one in diagonal]))).w_GOK
    damped = diagonal + 0.01 * diagonal.mean(axis=1, keepdims=True)
    keep = sparse.mask(w.astype(np.float64) ** 2 * damped[:, None])
    assert np.allclose(found, np.where(keep, w, 0), rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(sparse=SPARSE, seed=st.integers(0, 10_000), samples=st.integers(1, 30))
def test_weights_as_sparse_already_stay_as_they_are(sparse, seed, samples):
    w, moments = layer(seed, 2, 3, 8, samples)
    there = sparse.project(w).w_GOK
    assert lost(there, solve(there, sparse, moments), moments) == 0


def test_those_kept_are_the_least_squares_for_their_places():
    w, moments = layer(7, 2, 3, 12, 100)
    found = solve(w, Sparse(pattern=(2, 4)), moments).w_GOK
    pull = np.where(found != 0, (w - found) @ moments.h_GKK, 0)
    assert np.abs(pull).max() < 0.05 * np.abs(w @ moments.h_GKK).max()  # all but the damping's share


@pytest.mark.parametrize("sparse", [Sparse(ratio=0.5), Sparse(ratio=0.7), Sparse(pattern=(2, 4))])
def test_a_third_of_the_loss_of_magnitude_where_inputs_are_correlated(sparse):
    w, moments = layer(1, 1, 24, 192, 600)
    assert lost(w, solve(w, sparse, moments), moments) < lost(w, sparse.project(w), moments) / 3


def test_dead_columns_go_first():
    w, moments = layer(0, 1, 4, 16, 60, dead=4)
    w[:, :, 12:] *= 100
    found = solve(w, Sparse(ratio=0.25), moments)
    assert lost(w, found, moments) < 1e-3 * loss(w, moments).sum()


def test_without_moments_or_input_magnitude_is_all_there_is():
    w, moments = layer(0, 1, 4, 8, 20, dead=8)
    nearest = Sparse(ratio=0.5).project(w).w_GOK
    assert (solve(w, Sparse(ratio=0.5), moments).w_GOK == nearest).all()
    assert (solve(w, Sparse(ratio=0.5), Moments(None)).w_GOK == nearest).all()


def test_a_pattern_that_does_not_fit_is_refused():
    w, moments = layer(0, 1, 4, 9, 20)
    with pytest.raises(OptionError, match="rows of 9 weights are not a multiple of 4"):
        solve(w, Sparse(pattern=(2, 4)), moments)
