"""The weight that gives a layer's float output from the input behind what is compressed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.arith.float_target import Drift, change_in_loss, pooled, step, target
from gossamer.errors import DataError


def drift(x_GNK: np.ndarray, now_GNK: np.ndarray) -> Drift:
    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(a.swapaxes(1, 2) @ b / a.shape[1], np.float32)

    return Drift(product(now_GNK, now_GNK), product(x_GNK - now_GNK, now_GNK), x_GNK.shape[1])


def error(w_GOK: np.ndarray, x_GNK: np.ndarray, other_GOK: np.ndarray, now_GNK: np.ndarray) -> float:
    """Mean over samples of the squared distance of outputs."""
    parts = (x.astype(np.float64) @ w.swapaxes(1, 2) for x, w in ((x_GNK, w_GOK), (now_GNK, other_GOK)))
    wanted, got = parts
    return float(np.square(wanted - got).sum() / x_GNK.shape[1])


def inputs(seed: int, samples: int = 400, noise: float = 0.4, columns: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Correlated inputs in the float network, and behind rounding that pulls and shakes them."""
    rng = np.random.default_rng(seed)
    x_GNK = rng.normal(size=(2, samples, columns)) @ rng.normal(size=(2, columns, columns))
    pulled_GNK = x_GNK * rng.uniform(0.8, 1.1, columns) + noise * rng.normal(size=x_GNK.shape)
    return x_GNK.astype(np.float32), pulled_GNK.astype(np.float32)


def weight(seed: int, columns: int = 6) -> np.ndarray:
    return np.random.default_rng(seed + 1000).normal(size=(2, 4, columns)).astype(np.float32)


@given(st.integers(0, 10**6))
def test_the_step_is_the_ridge_regression_of_the_float_outputs(seed: int) -> None:
    (x, now), w = inputs(seed), weight(seed)
    found = w + step(w, drift(x, now), 0.1)
    for group in range(2):
        a = now[group].astype(np.float64)
        damping = 0.1 * len(a) * np.square(a).sum(axis=0).mean() / len(a)
        gram = a.T @ a + damping * np.eye(6)
        wanted = np.linalg.solve(gram, a.T @ (x[group] @ w[group].T.astype(np.float64)) + damping * w[group].T).T
        assert np.allclose(found[group], wanted, rtol=1e-3, atol=1e-3)


@given(st.integers(0, 10**6))
def test_the_step_makes_up_for_what_comes_past_the_layer(seed: int) -> None:
    """Ridge regression of the sum: the layer's float output, and what is now missing from what is added to it."""
    (x, now), w = inputs(seed), weight(seed)
    missing = np.random.default_rng(seed).normal(size=(2, 400, 4)) + now[:, :, :4]
    seen = drift(x, now)._replace(beside_GOK=missing.swapaxes(1, 2) @ now / 400)
    found = w + step(w, seen, 0.1)
    for group in range(2):
        a = now[group].astype(np.float64)
        damping = 0.1 * np.square(a).sum(axis=0).mean()
        aim = x[group] @ w[group].T.astype(np.float64) + missing[group]
        wanted = np.linalg.solve(a.T @ a + damping * np.eye(6), a.T @ aim + damping * w[group].T).T
        assert np.allclose(found[group], wanted, rtol=1e-3, atol=1e-3)
    assert target(w, drift(x, x)._replace(beside_GOK=seen.beside_GOK), seen).gain > 0
    assert pooled([seen, seen]).beside_GOK == pytest.approx(seen.beside_GOK)


@given(st.integers(0, 10**6), st.floats(0.0, 1.0))
def test_the_change_in_loss_is_what_samples_say(seed: int, share: float) -> None:
    (x, now), w = inputs(seed), weight(seed)
    seen, by = drift(x, now), step(w, drift(*inputs(seed + 1)), 0.1)
    a, b = change_in_loss(w, by, seen)
    before, after = error(w, x, w, now), error(w, x, w + share * by, now)
    assert after - before == pytest.approx(share**2 * b - 2 * share * a, abs=1e-3 * before)


@given(st.integers(0, 10**6))
def test_the_target_helps_on_samples_that_were_not_fitted(seed: int) -> None:
    x, now = inputs(seed, 1200)
    w, parts = weight(seed), [slice(0, 400), slice(400, 600), slice(600, 1200)]
    fitted, held = (drift(x[:, part], now[:, part]) for part in parts[:2])
    found = target(w, fitted, held)
    assert found.w_GOK.dtype == np.float32 and 0 < found.share <= 1 and found.gain > 0
    fresh = x[:, parts[2]], now[:, parts[2]]
    assert error(w, fresh[0], found.w_GOK, fresh[1]) < error(w, fresh[0], w, fresh[1])


@given(st.integers(0, 10**6), st.integers(2, 5))
def test_few_samples_cannot_do_harm_where_they_are_held_out(seed: int, samples: int) -> None:
    """Fewer than columns, and a change that is all noise: the fit is of nothing, and little of it is taken."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, samples + 300, 6)).astype(np.float32)
    now = x + 0.3 * rng.normal(size=x.shape).astype(np.float32)
    w = weight(seed)
    fitted, held = drift(x[:, :samples], now[:, :samples]), drift(x[:, samples:], now[:, samples:])
    found = target(w, fitted, held)
    a, b = change_in_loss(w, found.w_GOK.astype(np.float64) - w, held)
    assert np.isfinite(found.w_GOK).all() and b - 2 * a <= 1e-6
    assert found.gain == 0 or found.gain <= error(w, x[:, samples:], w, now[:, samples:])


@given(st.integers(0, 10**6))
def test_nothing_moves_where_nothing_changed_or_nothing_is_held_out(seed: int) -> None:
    (x, now), w = inputs(seed), weight(seed)
    assert target(w, drift(x, x), drift(now, now)).w_GOK is w
    assert target(w, drift(x, now), None) == (w, 0.0, 0.0)


@given(st.integers(0, 10**6), st.integers(1, 40))
def test_dead_inputs_and_any_rank(seed: int, samples: int) -> None:
    """Columns that are always zero now keep their weights; whole dead groups too; twins do not blow up."""
    (x, now), w = inputs(seed, samples), weight(seed)
    now[:, :, 2] = 0.0
    now[:, :, 4] = now[:, :, 5]
    now[1] = 0.0
    found = target(w, drift(x, now), drift(x, now)).w_GOK
    assert np.isfinite(found).all() and np.abs(found).max() < 100 * np.abs(w).max()
    assert np.array_equal(found[:, :, 2], w[:, :, 2]) and np.array_equal(found[1], w[1])


def test_parts_count_by_their_samples() -> None:
    x, now = inputs(1)
    whole, parts = drift(x, now), [drift(x[:, :100], now[:, :100]), drift(x[:, 100:], now[:, 100:])]
    together = pooled(parts)
    assert together.samples == 400
    for one, other in zip(together[:2], whole[:2], strict=True):
        assert np.allclose(one, other, rtol=1e-4, atol=1e-4)
    assert pooled(parts[:1]) is parts[0]


def test_what_is_not_finite_is_an_error() -> None:
    x, now = inputs(2)
    seen = drift(x, now)
    seen.shift_GKK[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="a cross moment of a layer's inputs is NaN or infinite"):
        step(weight(2), seen, 0.1)
