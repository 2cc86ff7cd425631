from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.arith.moments import Moments, loss
from gossamer.constraints.grid import Grid
from gossamer.constraints.sparse import Sparse
from gossamer.solvers import nearest
from gossamer.solvers.options import options

BITS = (2, 3, 4, 6, 8)


@given(st.integers(1, 2), st.integers(1, 5), st.integers(2, 9), st.integers(0, 2**31))
def test_options_begin_with_float_and_price_every_constraint_that_applies(g: int, o: int, k: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    w_GOK = random.normal(size=(g, o, k)).astype(np.float32)
    x_GNK = random.normal(size=(g, 20, k))
    moments = Moments(np.einsum("gnk,gnl->gkl", x_GNK, x_GNK), samples=20)
    found = options(w_GOK, [*(Grid(bits) for bits in BITS), Sparse(pattern=(2, 100))], moments, nearest.solve)
    whole, *grids = found
    assert whole.constraint is None and whole.loss == 0 and whole.stored_bytes == 4 * w_GOK.size
    assert whole.zero_loss == pytest.approx(loss(w_GOK, moments).sum())
    assert [option.constraint for option in grids] == [Grid(bits) for bits in BITS]  # the pattern fits no row
    assert [option.stored_bytes for option in grids] == [-(-(w_GOK.size * bits + 32 * g * o) // 8) for bits in BITS]
    assert all(0 <= option.noise_ratio for option in found)


def test_a_layer_without_a_signal_makes_no_noise() -> None:
    moments = Moments(np.zeros((1, 4, 4)), samples=3)
    w_GOK = np.ones((1, 2, 4), np.float32)
    assert [one.noise_ratio for one in options(w_GOK, [Grid(2)], moments, nearest.solve)] == [0.0, 0.0]
