from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.arith.moments import Moments, for_others, loss


def moments(seed: int, k: int, rows: int) -> Moments:
    x_NK = np.random.default_rng(seed).normal(size=(rows, k)) @ np.random.default_rng(seed + 1).normal(size=(k, k))
    return Moments((x_NK.T @ x_NK / rows)[None], None, rows, rows=rows)


@given(st.integers(0, 99), st.integers(1, 12), st.integers(1, 40), st.integers(1, 50))
def test_shrinking_keeps_the_energy_and_opens_every_direction(seed: int, k: int, samples: int, each: int) -> None:
    seen = moments(seed, k, samples)._replace(rows=samples * each)
    h_KK, shrunk_KK = (np.asarray(one.h_GKK)[0] for one in (seen, for_others(seen)))
    assert np.trace(shrunk_KK) == pytest.approx(np.trace(h_KK))
    off, known = ~np.eye(k, dtype=bool), 3 * samples * each**0.5
    assert np.allclose(shrunk_KK[off], h_KK[off] * known / (k + known) * samples / (samples + 3))
    order = np.argsort(np.diagonal(h_KK))
    assert np.all(np.diff(np.diagonal(shrunk_KK)[order]) >= 0)  # loud columns stay louder
    assert np.linalg.eigvalsh(shrunk_KK)[0] > 0


def test_a_silent_channel_may_speak_yet() -> None:
    rng = np.random.default_rng(0)
    h_G11 = rng.lognormal(size=(6, 1, 1))
    h_G11[2] = 0
    for samples, share in ((3, 0.5), (297, 0.01)):
        found = np.asarray(for_others(Moments(h_G11, None, samples, rows=49 * samples)).h_GKK)
        assert found[2, 0, 0] == pytest.approx(share * h_G11.mean())


def test_rows_that_no_sample_looked_up_may_be_looked_up_yet() -> None:
    rng = np.random.default_rng(0)
    often_V = 1 / np.arange(1, 2001.0)  # words of a language
    looks = rng.choice(2000, (40, 25), p=often_V / often_V.sum())
    seen_V = np.bincount(looks.ravel(), minlength=2000) / 40
    found_V = np.asarray(for_others(Moments(None, seen_V[None], 40)).rows_GO)[0]
    assert found_V.sum() == pytest.approx(seen_V.sum()) and found_V.min() > 0
    truly, expected = (each[seen_V == 0].sum() / each.sum() for each in (often_V, found_V))
    assert 0.5 * truly < expected < 2 * truly
    assert (np.diff(found_V[np.argsort(seen_V)]) >= 0).all()


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
