from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.planning.sensitivity import gains

GAINS = st.lists(st.floats(0.1, 10), min_size=1, max_size=30)


def names(count: int) -> list[str]:
    return [f"layer {place}" for place in range(count)]


@given(GAINS, st.floats(1e-6, 0.5))
def test_with_time_for_all_every_gain_is_the_one_measured(true: list[float], noise: float) -> None:
    layers = names(len(true))
    by_name = dict(zip(layers, true, strict=True))
    found = gains(layers, dict.fromkeys(layers, noise), lambda layer: by_name[layer] * noise, budget_s=float("inf"))
    assert list(found) == layers
    assert found == pytest.approx(by_name)


@given(GAINS, st.integers(1, 30))
def test_what_is_left_out_lies_between_its_neighbours(true: list[float], affordable: int) -> None:
    layers, clock = names(len(true)), itertools.count()
    by_name, asked = dict(zip(layers, true, strict=True)), []

    def measure(layer: str) -> float:
        asked.append(layer)
        return by_name[layer]

    found = gains(layers, dict.fromkeys(layers, 1.0), measure, affordable - 0.5, lambda: float(next(clock)))
    assert 1 <= len(asked) <= max(1, affordable)
    assert len(set(asked)) == len(asked)
    known = [by_name[layer] for layer in asked]
    assert all(min(known) * (1 - 1e-9) <= found[layer] <= max(known) * (1 + 1e-9) for layer in layers)


def test_a_layer_that_no_sample_hears_is_not_taken_for_deaf() -> None:
    layers = names(3)
    loud = {"layer 0": 1.0, "layer 1": 0.0, "layer 2": 1.0}
    assert gains(layers, dict.fromkeys(layers, 1.0), loud.__getitem__)["layer 1"] == pytest.approx(1e-3)


def test_without_any_noise_all_layers_count_alike() -> None:
    assert gains(names(2), dict.fromkeys(names(2), 0.0), lambda _: 1.0) == {"layer 0": 1.0, "layer 1": 1.0}
    assert gains([], {}, lambda _: 1.0) == {}
