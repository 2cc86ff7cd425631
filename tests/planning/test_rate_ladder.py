"""The ladder: what is solved lies on it, what is not lies close to it, and what cannot be solved in time is guessed."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.arith.moments import Moments
from gossamer.constraints.contract import as_text, constraint_from_text, rate_of
from gossamer.constraints.grid import Grid
from gossamer.planning.ledger import ESTIMATED, Entry
from gossamer.planning.rate_ladder import ANCHORS, FLOAT_BITS, RUNGS_DB, ladder, on_rung
from gossamer.solvers import second_order
from gossamer.solvers.code_lengths import written_bits

GRIDS = slice(1, 1 + len(RUNGS_DB))


def layer(seed: int, outputs: int = 24, columns: int = 36) -> tuple[np.ndarray, Moments]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(400, columns)) @ rng.normal(size=(columns, columns))
    return rng.laplace(size=(1, outputs, columns)).astype(np.float32), Moments((x.T @ x / 400)[None])


@pytest.mark.parametrize("seed", [0, 1])
def test_rungs_between_anchors_are_where_solving_puts_them(seed: int) -> None:
    w, moments = layer(seed)
    options = ladder(w, moments, (), second_order.solve, ())
    assert options[0].constraint is None and options[0].noise_ratio == 0
    for rung, option in enumerate(options[GRIDS]):
        assert option.constraint is not None
        solved = second_order.solve(w, option.constraint, moments)
        bits = written_bits(solved.form) + FLOAT_BITS * solved.form.scale.size
        exact = rung in ANCHORS
        off = 1e-9 if exact else 0.3 if rung >= 17 else 0.6
        assert option.noise_ratio == pytest.approx(solved.loss / solved.zero_loss, rel=off)
        beyond = rung > ANCHORS[-1]
        assert 8 * option.stored_bytes == pytest.approx(bits, abs=16, rel=0 if exact else 0.35 if beyond else 0.12)


def test_noise_rises_and_bytes_fall_along_the_ladder() -> None:
    w, moments = layer(2)
    options = ladder(w, moments, (), second_order.solve, ())[GRIDS]
    assert (np.diff([one.noise_ratio for one in options]) > 0).all()
    assert (np.diff([one.stored_bytes for one in options]) < 0).all()
    kinds = [(one.constraint.granularity, one.constraint.bits) for one in options]
    assert (
        kinds[0] == ("tensor", 16) and kinds[-1] == ("tensor", 8) and kinds == sorted(kinds, key=lambda kind: -kind[1])
    )
    asked = 10 ** (RUNGS_DB / 10)
    assert np.abs(np.log10([one.noise_ratio for one in options] / asked)).max() < 0.2


def test_inputs_that_differ_in_energy_have_steps_of_their_own() -> None:
    """What the ladder says of them comes true, from few bits to 16."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2000, 600)) * np.exp(rng.normal(size=600))
    w = rng.laplace(size=(1, 96, 600)).astype(np.float32)
    moments = Moments((x.T @ x / 2000)[None], None, 2000, "samples", 2000)
    options = ladder(w, moments, (), second_order.solve, ())[GRIDS]
    assert {one.constraint.granularity for one in options} == {"input"}
    assert options[0].constraint.bits == 16 and options[-1].constraint.bits == 8
    for option in options[2::4]:
        solved = second_order.solve(w, option.constraint, moments)
        assert option.noise_ratio == pytest.approx(solved.loss / solved.zero_loss, rel=0.3)
        assert 8 * option.stored_bytes == pytest.approx(written_bits(solved.form), rel=0.15)


@settings(max_examples=50)
@given(st.integers(0, 19), st.integers(1, 10**8))
def test_all_weights_meet_on_the_same_rates(rung: int, weights: int) -> None:
    found = on_rung(Grid(8), rung, weights)
    assert constraint_from_text(as_text(found)) == found
    assert 0 < rate_of(found) <= 1
    twins = {rate_of(on_rung(Grid(8), other, 4 * weights)) for other in range(20)}
    assert rung > 16 or rate_of(found) in twins or rate_of(found) == 1


def test_without_time_a_weight_takes_what_others_took() -> None:
    w, moments = layer(3)
    known = Entry("a", ("a",), ladder(w, moments, (), second_order.solve, ()))
    guessed = ladder(*layer(4, 48), (), None, [known])
    assert {one.reason for one in guessed[GRIDS]} == {ESTIMATED}
    real = ladder(*layer(4, 48), (), second_order.solve, ())
    for one, other in zip(guessed[GRIDS], real[GRIDS], strict=True):
        assert one.constraint == other.constraint
        assert one.stored_bytes == pytest.approx(other.stored_bytes, rel=0.5)  # another H
    alone = ladder(w, moments, (), None, [])
    assert all(
        0.4 < one.stored_bytes / other.stored_bytes < 2.5
        for one, other in zip(alone[1:17], known.options[1:17], strict=True)
    )


def test_what_no_output_hears_of_costs_nothing() -> None:
    w, _ = layer(5)
    options = ladder(w, Moments(np.zeros((1, 36, 36))), (), second_order.solve, ())
    assert [as_text(one.constraint) for one in options[1:] if one.constraint] == ["grid:2"]
    assert options[1].noise_ratio == 0


def test_rows_of_tables_have_scales_of_their_own() -> None:
    w, _ = layer(6, 50, 16)
    options = ladder(w, Moments(None, np.geomspace(1, 1e3, 50)[None]), (), partial(second_order.solve), ())
    assert options[1].constraint is not None and as_text(options[1].constraint).startswith("grid:16:rate=")
    last = options[GRIDS][-1].constraint
    assert last is not None and as_text(last).startswith("grid:8:rate=")
