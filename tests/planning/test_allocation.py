from __future__ import annotations

import itertools
from time import process_time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import OptionError
from gossamer.planning import allocation
from gossamer.planning.allocation import Allocation, allocate, cheapest

Layers = tuple[list[np.ndarray], list[np.ndarray]]


@st.composite
def layers(draw: st.DrawFn) -> Layers:
    """Up to five layers with up to four options each; small whole numbers, so that ties are common, or any floats."""
    number = st.integers(0, 5).map(float) if draw(st.booleans()) else st.floats(1e-6, 1e3)
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    losses, costs = ([np.array(draw(st.lists(number, min_size=n, max_size=n))) for n in counts] for _ in range(2))
    return losses, costs


def every(losses: list[np.ndarray], costs: list[np.ndarray]) -> list[tuple[float, float]]:
    """Loss and cost of every allocation there is."""
    choices = itertools.product(*(range(len(one)) for one in losses))
    return [
        tuple(sum(part[place] for part, place in zip(parts, one, strict=True)) for parts in (losses, costs))
        for one in choices
    ]  # type: ignore[misc]


def within(losses: list[np.ndarray], costs: list[np.ndarray], share: float) -> float:
    """A limit between the least and the largest cost."""
    least, most = (sum(float(pick(cost)) for cost in costs) for pick in (np.min, np.max))
    return least + max(0.0, share * (most - least))


def check(found: Allocation, losses: list[np.ndarray], costs: list[np.ndarray]) -> None:
    assert found.loss == pytest.approx(sum(loss[i] for loss, i in zip(losses, found.choices, strict=True)))
    assert found.cost == pytest.approx(sum(cost[i] for cost, i in zip(costs, found.choices, strict=True)))


@given(layers(), st.floats(0, 1))
def test_the_limit_holds_and_no_allocation_is_better(given_layers: Layers, share: float) -> None:
    losses, costs = given_layers
    limit = within(losses, costs, share)
    optimum = min(loss for loss, cost in every(losses, costs) if cost <= limit)
    found = allocate(losses, costs, limit)
    check(found, losses, costs)
    assert found.cost <= limit
    assert found.loss <= optimum * (1 + 1.1e-5) + 1e-12
    assert found.least_loss <= optimum + 1e-9 * abs(optimum)


@given(layers(), st.floats(0, 1))
def test_the_cheapest_keeps_the_loss_and_no_allocation_is_cheaper(given_layers: Layers, share: float) -> None:
    losses, costs = given_layers
    limit = within(costs, losses, share)
    optimum = min(cost for loss, cost in every(losses, costs) if loss <= limit)
    found = cheapest(losses, costs, limit)
    check(found, losses, costs)
    assert found.loss <= limit
    assert found.cost <= optimum * (1 + 1.1e-5) + 1e-12


@given(layers(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_limit_never_loses_more(given_layers: Layers, one: float, other: float) -> None:
    losses, costs = given_layers
    tight, loose = (allocate(losses, costs, within(losses, costs, share)) for share in sorted((one, other)))
    assert loose.loss <= tight.loss * (1 + 1.1e-5)


def real_layers(count: int, options: int, seed: int = 0) -> Layers:
    """Sizes over three orders of magnitude, bits from 2 to 9, noise that falls fourfold a bit."""
    random = np.random.default_rng(seed)
    bits = np.linspace(2, 9, options)
    sizes = np.exp(random.uniform(7, 14, count))
    losses = [np.exp(random.normal(0, 2)) * 4.0**-bits for _ in range(count)]
    return losses, [np.ceil(size * bits / 8) for size in sizes]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_hundreds_of_layers_take_a_moment_and_end_close_to_the_bound(share: float) -> None:
    losses, costs = real_layers(300, 20)
    limit = within(losses, costs, share)
    begin = process_time()
    found = allocate(losses, costs, limit)
    assert process_time() - begin < 1.0  # 0.02 to 0.1 s on an idle machine
    check(found, losses, costs)
    assert found.cost <= limit
    assert found.loss <= found.least_loss * 1.0001


def test_thinned_states_cost_no_more_than_their_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    losses, costs = real_layers(30, 8)
    limit = within(losses, costs, 0.3)
    exact = allocate(losses, costs, limit)
    monkeypatch.setattr(allocation, "STATES", 50)
    monkeypatch.setattr(allocation, "NEAR", 0.0)
    thinned = allocate(losses, costs, limit)
    tighter = limit - 30 * (limit - within(losses, costs, 0)) / 50
    assert thinned.cost <= limit
    assert exact.loss <= thinned.loss <= allocate(losses, costs, tighter).loss


def test_an_unreachable_limit_says_the_smallest_and_its_loss() -> None:
    losses, costs = [np.array([0.0, 0.25]), np.array([0.5])], [np.array([4000.0, 1000.0]), np.array([500.0])]
    with pytest.raises(
        OptionError, match=r"10 bytes cannot be reached: the smallest is 1,500 bytes, at a predicted loss of 0\.75"
    ):
        allocate(losses, costs, 10)
    with pytest.raises(
        OptionError, match=r"0\.1 of loss cannot be reached: the smallest is 0\.5 of loss, at a cost of 4\.5e\+03"
    ):
        cheapest(losses, costs, 0.1)


def test_options_without_a_finite_figure_are_left_out() -> None:
    losses = [np.array([np.nan, 0.0, 1.0]), np.array([2.0, np.inf])]
    costs = [np.array([0.0, np.inf, 3.0]), np.array([1.0, 0.0])]
    assert allocate(losses, costs, 100).choices == (2, 0)
    with pytest.raises(OptionError, match="layer 1 has no option with a finite loss and cost"):
        allocate([losses[0], np.array([np.nan])], [costs[0], np.array([1.0])], 100)


def test_a_loss_without_a_cost_is_refused() -> None:
    with pytest.raises(OptionError, match="layer 0 has 2 losses and 1 costs"):
        allocate([np.zeros(2)], [np.zeros(1)], 1)


def test_no_layers_cost_nothing() -> None:
    assert allocate([], [], 0) == Allocation((), 0.0, 0.0, 0.0)
