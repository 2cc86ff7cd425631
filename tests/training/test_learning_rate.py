"""The learning rate: how it runs, and the test that finds it."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")

from hypothesis import given
from hypothesis import strategies as st
from tests.training.small_jobs import job, network, same_bits

from gossamer.errors import CandidateError
from gossamer.training.learning_rate import BACK, HIGHEST, LOWEST, range_test, rate_at, smoothed
from gossamer.training.loop import train
from gossamer.training.options import Options
from gossamer.training.watching import Watch


@given(st.integers(1, 500), st.floats(0, 0.9), st.sampled_from(["cosine", "constant"]), st.floats(1e-5, 1))
def test_a_rate_is_above_zero_and_never_above_its_peak(steps: int, warm_up: float, schedule: str, peak: float) -> None:
    options = Options(warm_up=warm_up, schedule=schedule)  # type: ignore[arg-type]
    rates = [rate_at(step, steps, options, peak) for step in range(steps)]
    rising = min(steps, math.ceil(steps * warm_up))
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    assert rates[:rising] == sorted(rates[:rising])
    assert rates[rising:] == sorted(rates[rising:], reverse=True)


def test_a_cosine_ends_near_zero_and_a_constant_where_it_was() -> None:
    assert rate_at(999, 1000, Options(), 1.0) < 1e-5
    assert rate_at(999, 1000, Options(schedule="constant"), 1.0) == 1.0


@given(st.floats(0.1, 9), st.integers(1, 30))
def test_losses_that_do_not_change_are_their_own_average(loss: float, count: int) -> None:
    assert smoothed([loss] * count) == pytest.approx([loss] * count)


@given(st.floats(-3.5, -0.8))
def test_the_rate_found_lies_safely_below_the_one_of_the_least_loss(exponent: float) -> None:
    """A valley around 10^exponent."""
    rate = range_test(lambda _, rate: 1 + 2 * (math.log10(rate) - exponent) ** 2, "adamw")
    assert LOWEST / BACK <= rate
    assert 10 ** (exponent - 0.3) / BACK < rate < 10 ** (exponent + 0.6) / BACK


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_the_test_ends_where_the_loss_is_no_longer_finite(loss: float) -> None:
    tried: list[float] = []

    def step(_: int, rate: float) -> float:
        tried.append(rate)
        return 1 / rate if rate < 0.01 else loss

    assert range_test(step, "adamw") == pytest.approx(tried[-2] / BACK)
    assert tried[-1] < HIGHEST["adamw"]


def test_a_loss_that_is_nan_from_the_start_is_said() -> None:
    with pytest.raises(CandidateError, match="the loss is NaN or infinite before the first step; look at the model's"):
        range_test(lambda *_: math.nan, "sgd")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_test_leaves_no_trace_but_the_rate(optimizer: str) -> None:
    said: list[str] = []
    found, given_ = network(dropout=0.1), network(dropout=0.1)
    trained = train(job(found, watch=Watch(said.append), options={"rate": None, "optimizer": optimizer}))
    train(job(given_, options={"rate": trained.rate, "optimizer": optimizer}))
    assert same_bits(found, given_)
    assert said[0] == f"a range test found the learning rate {trained.rate:.2g}"


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_rate_found_teaches_about_as_well_as_the_best_of_many(optimizer: str) -> None:
    def loss(rate: float | None) -> float:
        options = {"rate": rate, "optimizer": optimizer, "epochs": 6}
        return min(epoch.validation_loss for epoch in train(job(options=options)).epochs)

    best = min(loss(rate) for rate in (1e-4, 1e-3, 1e-2, 1e-1))
    assert loss(None) < best + 0.1
