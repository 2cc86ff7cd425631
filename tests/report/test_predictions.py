from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.nouns.prediction import Forecast, Prediction
from gossamer.report.predictions import (
    bits_of,
    noise_text,
    prediction_rows,
    prediction_text,
    rank_correlation,
    sentences,
    summary,
    verdict,
)

VALUES = st.lists(st.integers(-50, 50).map(float), min_size=3, max_size=30)


def layer(name: str, loss: float, measured: float | None = None, constraint: str = "grid:4") -> Prediction:
    return Prediction(name, f"{name}.w", constraint, loss, 2 * loss, 100.0, 1200, measured_loss=measured)


@given(VALUES, st.randoms(use_true_random=False))
def test_the_correlation_is_that_of_the_ranks(first: list[float], random: np.random.RandomState) -> None:
    second = list(first)
    random.shuffle(second)
    found = rank_correlation(first, second)
    ranks = [
        [sum(x < y for x in values) + (sum(x == y for x in values) + 1) / 2 for y in values]
        for values in (first, second)
    ]
    if len(set(first)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(np.corrcoef(np.array(ranks))[0, 1], abs=1e-9)


@given(VALUES)
def test_any_rising_function_keeps_ranks_and_any_falling_one_turns_them(values: list[float]) -> None:
    if len(set(values)) > 1:
        assert rank_correlation(values, [np.exp(x / 10) for x in values]) == pytest.approx(1.0)
        assert rank_correlation(values, [-(x**3) for x in values]) == pytest.approx(-1.0)


def test_too_few_pairs_say_nothing() -> None:
    assert rank_correlation([1.0, 2.0], [1.0, 2.0]) is None
    assert rank_correlation([1.0, 2.0, 3.0], [1.0, 2.0]) is None


def test_rows_are_the_constrained_layers_the_loudest_first() -> None:
    rows = prediction_rows([layer("quiet", 1.0, 1.5), layer("loud", 9.0), layer("float", 0.0, 0.0, "")])
    assert rows == [
        ("loud", "grid:4", "1.20 kB", "9 %", "—"),
        ("quiet", "grid:4", "1.20 kB", "1 %", "1.5 %"),
    ]


def test_outputs_count_where_they_were_predicted() -> None:
    one = Prediction("a", "w", "sparse:2:4", 5.0, 5.0, 10.0, 64, noise_ratio=0.02, measured_noise_ratio=0.03)
    assert prediction_rows([one]) == [("a", "sparse:2:4", "64 bytes", "2 %", "3 %")]


def test_the_text_says_how_far_to_trust_it() -> None:
    many = [layer(f"layer {place}", float(place), place + 0.1) for place in range(1, 5)]
    text = prediction_text(many, whole=(0.001, 0.0012))
    assert "the whole: predicted 0.1 % noise, measured 0.12 %" in text
    assert "rank correlation of predicted and measured, 4 layers: 1.00" in text
    assert len({len(line.split("  ")[0]) for line in text.splitlines()[1:2]}) == 1
    assert prediction_text([]) == ""
    assert verdict([layer("a", 1.0)]) == []


@pytest.mark.parametrize(
    ("constraint", "bits"),
    [
        ("grid:4", 4),
        ("grid:16:asymmetric:group=64", 16),
        ("sparse:0.7+grid:3", 3),
        ("sparse:2:4+codebook:16", 4),
        ("codebook:17:channel", 5),
        ("codebook:256:dimension=4", None),
        ("low_rank:32+grid:8", None),
        ("sparse:2:4", None),
        ("", None),
        ("shared", None),
    ],
)
def test_bits_are_those_of_one_weight(constraint: str, bits: int | None) -> None:
    assert bits_of(layer("a", 1.0, constraint=constraint)) == bits


def test_the_average_counts_weights_not_layers() -> None:
    wide, thin = (
        Prediction(name, name, f"grid:{bits}", 0.0, 0.0, 1.0, 1, float_bytes=size)
        for name, bits, size in (("wide", 2, 9000), ("thin", 8, 1000))
    )
    assert summary(Forecast((wide, thin))) == "2 weights at 2 to 8 bits, 2.6 on average"
    assert summary(Forecast((thin,), None, 0.021)) == "1 weight at 8 bits; measured noise 2.1 %"
    assert sentences(Forecast((wide,), 0.5))[1].endswith("noise of 50 % of the outputs' power was predicted.")
    assert (
        "0.5" not in sentences(Forecast((wide,), None, 0.25))[1]
        and "25 %" in sentences(Forecast((wide,), None, 0.25))[1]
    )


def test_constraints_without_bits_are_named_or_counted() -> None:
    kinds = ["sparse:2:4", "low_rank:32", "grid:4"]
    every = [layer(kind, 1.0, constraint=kind) for kind in kinds]
    assert summary(Forecast(tuple(every[:2]))) == "2 weights under sparse:2:4, low_rank:32"
    assert summary(Forecast(tuple(every))) == "3 weights under 3 constraints"


def test_noise_is_told_in_digits_that_count() -> None:
    told = [noise_text(ratio) for ratio in (None, float("nan"), 0.0, 1e-9, 0.0123456, 2.5)]
    assert told == ["—", "—", "0 %", "below 0.0001 %", "1.23 %", "250 %"]
