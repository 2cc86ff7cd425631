"""The dispatcher: what it keeps of a method's result, and what it says where it keeps nothing."""

from __future__ import annotations

import numpy as np
import pytest

from gossamer.arith.forms import Dense, Factored, Indexed, floats_of
from gossamer.arith.moments import Moments
from gossamer.arith.weight_grid import in_groups, weight_grid
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.contract import constraint_from_text
from gossamer.constraints.grid import Grid
from gossamer.constraints.low_rank import LowRank
from gossamer.constraints.sparse import Sparse
from gossamer.errors import DataError
from gossamer.solvers import nearest, remove_weights, round_grid, second_order, share_values
from gossamer.solvers.second_order import NO_BETTER, channels_are_free

W = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
MOMENTS = Moments(np.eye(8)[None].repeat(2, axis=0))


def worse_in_the_first_row(form: Dense) -> Dense:
    """Shrunk in one row; in all others nearer to the weights than the nearest point, as no honest method is."""
    w = (form.w_GOK + W) / 2
    w[0, 0] = 0.9 * form.w_GOK[0, 0]
    return Dense(w)


def test_channels_that_are_free_are_chosen_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    constraint = Sparse(pattern=(2, 4))
    plain = floats_of(constraint.project(W))
    monkeypatch.setattr(remove_weights, "solve", lambda *_: worse_in_the_first_row(constraint.project(W)))
    solved = second_order.solve(W, constraint, MOMENTS)
    real = floats_of(solved.form)
    assert solved.loss < solved.nearest_loss and solved.reason == ""
    assert np.array_equal(real[0, 0], plain[0, 0]) and not np.array_equal(real[0, 1], plain[0, 1])


def test_channels_that_are_not_are_kept_together(monkeypatch: pytest.MonkeyPatch) -> None:
    constraint = Sparse(0.5)
    found = worse_in_the_first_row(constraint.project(W))
    monkeypatch.setattr(remove_weights, "solve", lambda *_: found)
    assert np.array_equal(floats_of(second_order.solve(W, constraint, MOMENTS).form), found.w_GOK)


@pytest.mark.parametrize("group", [None, 4])
def test_rows_of_grids(group: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    w, shared = (W, (2,)) if group is None else (in_groups(W, 2, group), (3,))
    fine = weight_grid(w, shared, 4, mse=True)
    spoiled = fine.integers.copy()
    spoiled[:, 1] = 0
    found = fine._replace(integers=spoiled)
    monkeypatch.setattr(round_grid, "solve", lambda *_: found)
    constraint = Grid(4, granularity=group or "channel")
    solved = second_order.solve(W, constraint, MOMENTS)
    real, plain = floats_of(solved.form), floats_of(constraint.project(W))
    assert np.array_equal(real[:, 1], plain[:, 1]) and constraint.contains(real)
    assert np.array_equal(real[:, ::2], floats_of(fine)[:, ::2])


def test_rows_of_codebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    constraint = Codebook(2, "channel")
    plain = constraint.project(W)
    tables = plain.tables_TVD.copy()
    tables[4] = 100
    monkeypatch.setattr(share_values, "solve", lambda *_: Indexed(plain.indices_GOV, tables))
    solved = second_order.solve(W, constraint, MOMENTS)
    assert np.array_equal(floats_of(solved.form), plain.real()) and solved.loss == solved.nearest_loss


@pytest.mark.parametrize("bad", [100.0, np.nan])
def test_what_is_no_better_is_not_kept(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remove_weights, "solve", lambda *_: Dense(np.full_like(W, bad)))
    solved = second_order.solve(W, Sparse(0.5), MOMENTS)
    assert solved == nearest.solve(W, Sparse(0.5), MOMENTS)._replace(form=solved.form, reason=NO_BETTER)
    assert np.array_equal(floats_of(solved.form), floats_of(Sparse(0.5).project(W)))


def test_a_method_that_gives_up_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(*_: object) -> Dense:
        raise DataError("no Cholesky factor\n at any damping")

    monkeypatch.setattr(remove_weights, "solve", give_up)
    assert second_order.solve(W, Sparse(0.5), MOMENTS).reason == "no Cholesky factor at any damping"


@pytest.mark.parametrize(
    ("text", "free"),
    [
        ("grid:4", True),
        ("grid:4:group=4", True),
        ("grid:4:tensor", False),
        ("grid:4:input", False),
        ("sparse:0.5", False),
        ("sparse:2:4", True),
        ("codebook:4", False),
        ("codebook:4:channel", True),
        ("low_rank:2", False),
        ("shared", False),
        ("sparse:2:4+grid:4", True),
        ("sparse:0.5+grid:4", False),
        ("sparse:2:4+codebook:4", False),
        ("low_rank:2+grid:4", False),
    ],
)
def test_which_channels_are_free(text: str, free: bool) -> None:
    assert channels_are_free(constraint_from_text(text)) is free


def test_a_share_of_the_energy_is_compared_at_equal_rank() -> None:
    rng = np.random.default_rng(1)
    w, x = rng.normal(size=(1, 12, 16)).astype(np.float32), rng.normal(size=(300, 4)) @ rng.normal(size=(4, 16))
    moments = Moments((x.T @ x / 300 + 0.01 * np.eye(16))[None])
    solved = second_order.solve(w, LowRank(energy_ratio=0.9), moments)
    assert isinstance(solved.form, Factored) and solved.reason == ""
    rank = solved.form.left_GOR.shape[2] if isinstance(solved.form.left_GOR, np.ndarray) else 0
    assert 1 <= rank <= 4
    assert solved.nearest_loss == nearest.solve(w, LowRank(rank=rank), moments).loss > solved.loss
