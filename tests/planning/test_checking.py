from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from tests.planning.test_ledger import evidence, net, predictions

from gossamer.constraints.grid import Grid
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.plan import Plan, Scope, Step
from gossamer.nouns.prediction import Prediction
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes.contract import run_plan
from gossamer.planning.checking import checked, forecast_of
from gossamer.planning.ledger import each, ledger

PLAN = Plan(
    "p",
    (
        Step("constrain_weights", {"constraint": "grid:4"}, Scope(only=("make y",))),
        Step("constrain_weights", {"constraint": "grid:6"}, Scope(only=("make h",))),
    ),
)


def predicted() -> tuple[Prediction, ...]:
    return run_plan(PLAN, net(), evidence()).predicted


def test_a_forecast_holds_every_weight_in_graph_order() -> None:
    known = evidence()
    gain = {one.weight: one.gain for one in ledger(net(), known, each([Grid(4), Grid(6)]))}
    told = forecast_of(predicted(), gain, net(), known, evidence(2).samples.first(64), 20.0)
    assert told is not None
    assert [(one.weight, one.constraint) for one in told.predictions] == [("a", "grid:6"), ("b", ""), ("c", "grid:4")]
    assert [one.float_bytes for one in told.predictions] == [8 * 16 * 4, 16 * 16 * 4, 16 * 4 * 4]
    a, b, c = told.predictions
    assert b.noise_ratio is None and b.measured_noise_ratio is None and b.stored_bytes == b.float_bytes
    for one in (a, c):
        assert one.noise_ratio == pytest.approx(gain[one.weight] * one.loss / one.zero_loss)
        assert one.measured_noise_ratio == pytest.approx(one.noise_ratio, rel=1.0)
    assert told.noise_ratio == pytest.approx((a.noise_ratio or 0) + (c.noise_ratio or 0))
    assert told.measured_noise_ratio == pytest.approx(0.01)


def test_gains_that_nobody_measured_are_measured() -> None:
    told = forecast_of(predicted(), {}, net(), evidence(), evidence(2).samples.first(64), math.nan)
    assert told is not None and told.measured_noise_ratio is None
    for one in (told.predictions[0], told.predictions[2]):
        assert one.measured_noise_ratio == pytest.approx(one.noise_ratio, rel=1.0)


def test_without_time_neighbours_tell_the_gain() -> None:
    clock = itertools.count(step=3)  # seconds at every look
    told = forecast_of(
        predicted(), {}, net(), evidence(), evidence(2).samples.first(64), 20.0, 10.0, lambda: float(next(clock))
    )
    assert told is not None and told.noise_ratio is not None


def test_nothing_constrained_nothing_forecast() -> None:
    assert forecast_of((), {}, net(), evidence(), evidence().samples, 20.0) is None


def test_equal_outputs_have_no_noise() -> None:
    told = forecast_of(predicted(), {"a": 1.0, "c": 1.0}, net(), evidence(), evidence(2).samples.first(8), 200.0)
    assert told is not None and told.measured_noise_ratio == 0


def test_a_weight_without_a_gain_leaves_the_whole_unpredicted() -> None:
    told = forecast_of(predicted(), {"a": 1.0}, net(), evidence(), evidence(2).samples.first(8), 20.0)
    assert told is not None and told.noise_ratio is None and told.predictions[0].noise_ratio is not None


def test_past_its_time_predictions_stand_alone() -> None:
    clock = itertools.count(step=100)
    told = forecast_of(
        predicted(), {"a": 1.0, "c": 1.0}, net(), evidence(), evidence(2).samples.first(8), 20.0, 10.0,
        lambda: float(next(clock)),
    )  # fmt: skip
    assert told is not None and told.noise_ratio is not None
    assert all(one.measured_noise_ratio is None for one in told.predictions)


def test_samples_that_do_not_run_cost_the_measurement_only() -> None:
    wrong = samples_from_arrays({"x": np.zeros((4, 5), np.float32)})
    told = forecast_of(predicted(), {"a": 1.0, "c": 1.0}, net(), evidence(), wrong, 20.0)
    assert told is not None and told.noise_ratio is not None
    assert all(one.measured_noise_ratio is None for one in told.predictions)
    bare = forecast_of(predicted(), {}, net(), Evidence(wrong), wrong, 20.0)
    assert bare is not None and bare.noise_ratio is None and len(bare.predictions) == 3


def test_what_is_measured_first_lies_spread() -> None:
    known = evidence()
    every = predictions(ledger(net(), known, each([Grid(bits) for bits in (2, 4, 8)])))
    ticks = iter([0.0] * 5 + [9.0] * 9)
    found = checked(every, net(), known, known.samples.first(8), 1.0, lambda: next(ticks))
    assert len({one.weight for one in found if one.measured_noise_ratio is not None}) == 3
