from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gossamer.arith.moments import Moments, for_others, loss


def moments(seed: int, k: int, rows: int) -> Moments:
    x_NK = np.random.default_rng(seed).normal(size=(rows, k)) @ np.random.default_rng(seed + 1).normal(size=(k, k))
    return Moments((x_NK.T @ x_NK / rows)[None], None, rows, rows=rows)


@given(st.integers(0, 99), st.integers(1, 12), st.integers(1, 40))
def test_shrinking_keeps_the_diagonal_and_opens_every_direction(seed: int, k: int, rows: int) -> None:
    seen = moments(seed, k, rows)
    h_KK, shrunk_KK = (np.asarray(each.h_GKK)[0] for each in (seen, for_others(seen)))
    assert np.array_equal(np.diagonal(shrunk_KK), np.diagonal(h_KK))
    off = ~np.eye(k, dtype=bool)
    assert np.allclose(shrunk_KK[off], h_KK[off] * 3 * rows / (k + 3 * rows))
    assert np.linalg.eigvalsh(shrunk_KK)[0] >= h_KK.diagonal().min() * k / (k + 3 * rows) * (1 - 1e-9)


def test_rows_that_nobody_counted_change_nothing() -> None:
    seen = moments(0, 4, 9)._replace(rows=0)
    assert for_others(seen) is seen
    assert for_others(Moments(None, rows=5)).h_GKK is None


def test_few_rows_no_longer_promise_what_others_do_not_keep() -> None:
    """An error in the directions that no row showed costs something, though not in the sample."""
    seen, truth = moments(3, 32, 8), moments(3, 32, 4000)
    _, directions = np.linalg.eigh(np.asarray(seen.h_GKK)[0])
    hidden = directions.T[None, :8]  # the smallest eigenvalues, zero
    real = loss(hidden, truth).sum()
    assert loss(hidden, seen).sum() < 1e-9 * real
    assert loss(hidden, for_others(seen)).sum() > 0.1 * real
