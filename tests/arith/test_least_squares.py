"""Conjugate gradients: exact after as many steps as unknowns, never worse on the way."""

from __future__ import annotations

import numpy as np
import pytest

from gossamer.arith.least_squares import improve


def _systems(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(3, 6, 6)) * rng.uniform(0.1, 5, size=(3, 1, 6))
    return roots @ roots.transpose(0, 2, 1), rng.normal(size=(3, 6))


@pytest.mark.parametrize("seed", range(5))
def test_solves_and_never_rises(seed: int) -> None:
    systems, right = _systems(seed)
    diagonal = np.diagonal(systems, axis1=1, axis2=2)

    def apply(x: np.ndarray) -> np.ndarray:
        return np.asarray((systems @ x[:, :, None])[:, :, 0])

    before = 0.0
    for steps in range(1, 13):
        x = improve(apply, right, diagonal, steps)
        value = float((x * apply(x) / 2 - right * x).sum())
        assert value <= before + 1e-9
        before = value
    best = np.linalg.solve(systems, right[:, :, None])[:, :, 0]
    assert before == pytest.approx(float((best * apply(best) / 2 - right * best).sum()), rel=1e-3)


def test_what_has_no_curvature_or_no_residual_stays() -> None:
    systems, right = _systems(0)
    systems[:, 2] = systems[:, :, 2] = 0
    right[:, 4] = 0
    diagonal = np.diagonal(systems, axis1=1, axis2=2)
    x = improve(lambda part: (systems @ part[:, :, None])[:, :, 0], right, diagonal, 1)
    assert (x[:, [2, 4]] == 0).all() and (x[:, 0] != 0).all()
    assert (improve(lambda part: part, np.zeros((2, 3)), np.ones((2, 3)), 5) == 0).all()
