"""Two constraints at once: both hold, and what was removed stays exactly zero."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from gossamer.arith.forms import Indexed, floats_of
from gossamer.arith.weight_grid import Bits
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.composed import Composed
from gossamer.constraints.grid import Grid
from gossamer.constraints.low_rank import LowRank
from gossamer.constraints.sparse import Sparse
from gossamer.errors import OptionError

W = np.random.default_rng(0).normal(0.3, 1, (2, 6, 16)).astype(np.float32)


@pytest.mark.parametrize("first", [Sparse(0.6), Sparse(pattern=(2, 4)), Sparse(0.5, block=(2, 4))])
@pytest.mark.parametrize("then", [Grid(4), Grid(3, False), Grid(4, False, 8), Codebook(8), Codebook(4, "channel")])
def test_both_hold(first: Sparse, then: Grid | Codebook) -> None:
    real = floats_of(Composed(first, then).project(W))
    assert first.contains(real) and then.contains(real) and Composed(first, then).contains(real)
    assert (real[~first.mask(np.square(W))] == 0).all() and np.count_nonzero(real) > 0.3 * W.size
    assert not Composed(first, then).contains(W)


def test_vectors_are_removed_whole() -> None:
    fine = Composed(Sparse(0.5, block=(1, 4)), Codebook(8, dimension=4))
    form = fine.project(W)
    assert isinstance(form, Indexed) and (form.tables_TVD == 0).all(axis=2).any() and fine.contains(form.real())
    coarse = Composed(Sparse(0.5), Codebook(8, dimension=4))
    with pytest.raises(OptionError, match="vectors of 4 weights are removed whole; sparse needs a block of 4 columns"):
        coarse.project(W)


def test_factors_have_other_inputs() -> None:
    with pytest.raises(OptionError, match="low_rank with a grid takes no scale an input"):
        Composed(LowRank(rank=3), Grid(4, granularity="input"))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("granularity", ["channel", "tensor", 4])
def test_low_rank_on_a_grid_is_never_worse_than_nothing(
    bits: Bits, granularity: Literal["channel", "tensor"] | int
) -> None:
    both = Composed(LowRank(rank=3), Grid(bits, granularity=granularity))
    real = floats_of(both.project(W))
    assert both.contains(real) and ((real - W) ** 2).sum() <= (W**2).sum()


def test_more_bits_come_closer_to_the_low_rank_alone() -> None:
    alone = floats_of(LowRank(rank=3).project(W))
    errors = [np.abs(floats_of(Composed(LowRank(rank=3), Grid(b)).project(W)) - alone).max() for b in (4, 8, 16)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3


def test_what_does_not_go_together() -> None:
    with pytest.raises(OptionError, match="low_rank goes with a grid, not with a codebook"):
        Composed(LowRank(rank=2), Codebook(4))
    with pytest.raises(OptionError, match="takes the split svd, not cp"):
        Composed(LowRank(rank=2, split="cp"), Grid(4))
    line = "its rows of 3 weights are not a multiple of 4"
    assert line in Composed(Sparse(pattern=(2, 4)), Grid(4)).obstacle((1, 2, 3))
