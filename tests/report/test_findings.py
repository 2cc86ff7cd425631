"""Findings say what was measured, the most important first, each with what was or can be done about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.nouns.budget import Budget
from gossamer.nouns.diagnosis import LayerBlame, RangeHistogram, StepEffect
from gossamer.nouns.facts import Accuracy, Bytes, Facts, Latency
from gossamer.nouns.plan import Plan, Scope, Step
from gossamer.nouns.record import Candidate, Split, Splits
from gossamer.report.findings import Case, findings, round_up

STATIC = Step("quantize_static", {"activation": "uint8"})
PLAN = Plan("int8", (Step("fold_batchnorm"), STATIC))


def facts(drop: float = 0.001, ratio: float = 2.0, snr_db: float = 30.0, half: float = 0.002, n: int = 1000) -> Facts:
    accuracy = Accuracy("top1", 0.9, 0.9 - drop, drop, drop - half, drop + half, n, snr_db)
    return Facts(accuracy, Bytes(4000, 1000), Latency(1.0, 1.0 / (ratio or 1.0), ratio, ratio, ratio, 1, "ort"))


def case(**changes: Any) -> Case:
    made = Case(
        PLAN, facts(), True, Budget(), Splits(Split(100, ""), Split(300, ""), Split(1000, ""), 0),
        (Candidate(PLAN, facts(), True),), 20, "my net.onnx", "val.npz",
    )  # fmt: skip
    return replace(made, **changes)


def told(**changes: Any) -> str:
    return "\n".join(f"{one.text} | {one.remedy}" for one in findings(case(**changes)))


def layer(node: str = "conv", added: float = 0.01, **fields: Any) -> LayerBlame:
    return LayerBlame(node, "Conv", f"{node}_out", 0, 20.0, added, **fields)


def test_nothing_measured_gives_no_finding() -> None:
    assert findings(case()) == ()


def test_the_costliest_layer_comes_with_the_edit_that_restores_it() -> None:
    layers = (layer("a"), layer("b[0]", restored_db=1.9, restored_latency_ratio=1.034, channel_spread=214.0))
    text = told(layers=layers)
    assert "`b[0]` (Conv) costs most: in float it would make the outputs 1.9 dB truer." in text
    assert "channels' weights differ 214-fold" in text
    assert "3 % more latency: add `b[[]0]` to `skip` of `quantize_static`'s scope in `plan.yaml`" in text
    assert "`gossamer apply plan.yaml 'my net.onnx' -o edited/`" in text


def test_layers_restored_together_are_named_together() -> None:
    text = told(layers=(layer("b", restored_db=1.9, restored_latency_ratio=1.0, restored_with=("a",)),))
    assert "in float, with `a` that it reads from, it would" in text
    assert "no more latency: add `b`, `a` to `skip`" in text


def test_equalized_channels_are_not_called_untreated() -> None:
    plan = Plan("int8", (Step("equalize_channels"), STATIC))
    text = told(plan=plan, layers=(layer(restored_db=1.0, channel_spread=50.0),))
    assert "still differ 50-fold in size, equalized as they are" in text


def test_unmeasured_layers_are_told_by_the_noise_they_add() -> None:
    assert "`b` (Conv) costs most: of all noise that layers add, 75 % is its own." in told(
        layers=(layer("a", 0.01), layer("b", 0.03))
    )


def test_if_no_layer_stands_out_it_says_so() -> None:
    text = told(layers=(layer("a", restored_db=0.1, restored_latency_ratio=1.1),))
    assert "No single layer is to blame" in text and "Nothing to do." in text


@pytest.mark.parametrize(("budget", "options"), [(Budget(), ""), (Budget(minimize="size"), " --minimize size")])
def test_a_broken_floor_comes_with_the_command_that_accepts_it(budget: Budget, options: str) -> None:
    text = told(met=False, facts=facts(drop=0.0231), budget=budget)
    assert "loses 2.31 points" in text
    assert f"`gossamer compress 'my net.onnx' --data val.npz --max-drop 2.4%{options}`" in text


def test_few_samples_are_told_with_how_many_would_do() -> None:
    text = told(facts=facts(drop=0.002, half=0.016, n=100))
    # the interval must shrink from 1.6 to 0.8 points: four times the 100 samples, which were 100 of 140 in all
    splits = Splits(Split(10, ""), Split(30, ""), Split(100, ""), 0)
    text = told(facts=facts(drop=0.002, half=0.016, n=100), splits=splits)
    assert "100 samples leave it open whether the floor holds" in text and "About 560 samples" in text
    assert told(facts=facts(drop=0.002, half=0.007)) == ""


def test_a_faster_candidate_that_misses_the_floor_is_named_with_its_price() -> None:
    faster = Candidate(Plan("int8, all", (STATIC,)), facts(drop=0.018, ratio=3.0), False)
    text = told(candidates=(Candidate(PLAN, facts(), True), faster))
    assert "`int8, all` is 1.50× as fast, but loses 1.80 points" in text and "--max-drop 1.8%" in text


def test_a_net_too_small_to_gain_is_told_apart_from_one_that_converts_too_much() -> None:
    slow = (Candidate(PLAN, facts(ratio=0.98), True),)
    assert "the net is small: 200 operators in 1.000 ms are 5.0 µs each" in told(candidates=slow, operators=200)
    text = told(candidates=slow, operators=10)
    assert "100.0 µs each, and integers save less" in text and "gossamer inspect 'my net.onnx'" in text


def test_ranges_that_are_cut_or_stretched() -> None:
    cut = RangeHistogram("t", -9, 9, (1, 2), -1, 1, 256, "conv", 0.012, 1.5)
    assert "1.2 % of the values of `t` lie outside what its integers cover (−1 to 1)" in told(ranges=(cut,))
    stretched = RangeHistogram("t", -9, 90, (1, 2), -9, 90, 256, "conv", 0.0, 31.0)
    text = told(ranges=(stretched,))
    assert "A few values of `t` reach 90.0, 31 times what" in text and "Set `ranges: l2`" in text
    tried = Candidate(
        Plan("int8, l2", (msgspec.structs.replace(STATIC, config={"ranges": "l2"}),)), facts(snr_db=28.1), True
    )
    assert "`l2` ranges were tried too: 28.1 dB, as `int8, l2`." in told(ranges=(stretched,), candidates=(tried,))


def test_preprocessing_comes_first() -> None:
    advice = "the original is right on only 3 of 200 samples; check --mean"
    first, *_ = findings(case(advice=advice, layers=(layer(restored_db=2.0),)))
    assert first.text == "The original is right on only 3 of 200 samples." and first.remedy == "Check --mean."


def test_the_step_that_brought_the_speed() -> None:
    steps = (StepEffect("Fold", 130.0, 0.98, 1.0), StepEffect("Quantize", 24.0, 0.4, 0.3))
    assert "“Quantize”: from 98 to 40 % of the original's latency, at 24.0 dB." in told(steps=steps)


NUMBER = st.floats(-1e6, 1e6) | st.sampled_from([float("nan"), float("inf"), 0.0])
FACTS = st.builds(facts, NUMBER, NUMBER, NUMBER, NUMBER, st.integers(0, 10**6))
PLANS = st.sampled_from(
    [PLAN, Plan("x", (STATIC,)), Plan("original"), Plan("y", (Step("made_up", {"a": 1}, Scope()),))]
)


@given(
    plan=PLANS,
    measured=FACTS,
    met=st.booleans(),
    confident=st.booleans(),
    tried=st.lists(st.builds(Candidate, PLANS, st.none() | FACTS, st.booleans()), max_size=4),
    layers=st.lists(st.builds(layer, st.text(max_size=3), NUMBER, restored_db=st.none() | NUMBER), max_size=3),
    ratio=NUMBER,
)
def test_whatever_was_measured_can_be_told(
    plan: Plan,
    measured: Facts,
    met: bool,
    confident: bool,
    tried: list[Candidate],
    layers: list[LayerBlame],
    ratio: float,
) -> None:
    found = findings(
        case(
            plan=plan, facts=measured, met=met, budget=Budget(confident=confident), candidates=tuple(tried),
            layers=tuple(layers), steps=(StepEffect("s", ratio, ratio, ratio),),
            ranges=(RangeHistogram("t", 0.0, ratio, (1,), 0.0, ratio, 256, "", abs(ratio), abs(ratio)),),
        )
    )  # fmt: skip
    assert len(found) <= 7
    for one in found:
        assert one.text and one.remedy and "nan" not in f"{one.text} {one.remedy}".split()


@given(st.floats(1, 1e12))
def test_forecasts_have_two_digits(value: float) -> None:
    rounded = round_up(value)
    assert value <= rounded <= 1.1 * value + 1
    assert len(str(rounded).rstrip("0")) <= 2 or rounded < 100
