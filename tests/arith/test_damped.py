import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.arith.damped import activation_order, factor, plus_damping
from gossamer.errors import DataError


@given(seed=st.integers(0, 10_000), groups=st.integers(1, 3), columns=st.integers(1, 9), samples=st.integers(0, 12))
def test_the_factor_is_that_of_the_damped_matrix_in_its_order_whatever_the_rank(seed, groups, columns, samples):
    x = np.random.default_rng(seed).normal(size=(groups, samples, columns)) * 10.0 ** np.arange(columns)
    h = x.transpose(0, 2, 1) @ x
    order = activation_order(h)
    made = factor(h.astype(np.float32), order)
    damped = plus_damping(h.astype(np.float32), made.damping_G)
    expected = np.stack([one[np.ix_(o, o)] for one, o in zip(damped, order, strict=True)])
    rebuilt = made.lower_GKK @ made.lower_GKK.transpose(0, 2, 1)
    assert np.abs(rebuilt - expected).max() <= 1e-9 * max(1.0, np.abs(expected).max())
    mean_G = np.diagonal(h, axis1=1, axis2=2).mean(axis=1)
    assert np.allclose(made.damping_G, np.where(mean_G > 0, 0.01 * mean_G, 1.0), rtol=1e-5)


def test_damping_rises_until_a_factor_exists():
    h = np.array([[[1.0, 1.05], [1.05, 1.0]]])  # not quite positive semidefinite, as sums in float32 may be
    assert factor(h).damping_G == pytest.approx([0.1])


def test_the_order_is_from_the_quietest_column_to_the_loudest():
    assert activation_order(np.diag([3.0, 1.0, 0.0, 1.0])[None]).tolist() == [[2, 1, 3, 0]]


def test_a_moment_that_is_not_finite_is_refused():
    with pytest.raises(DataError, match="second moment of a layer's input is NaN or infinite; look for NaN or Inf"):
        factor(np.full((1, 2, 2), np.nan))


def test_a_matrix_that_is_no_moment_is_refused():
    with pytest.raises(DataError, match="no Cholesky factor at any damping"):
        factor(np.array([[[1.0, 1e9], [1e9, 1.0]]]))


def test_the_moments_are_not_written_to():
    h = np.eye(3)[None]
    h.flags.writeable = False
    factor(h)
    plus_damping(h, np.ones(1))
