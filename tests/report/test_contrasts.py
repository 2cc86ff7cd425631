"""Candidates that differ in one thing tell what it is worth; those that differ in two tell nothing."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from tests.report.test_findings import facts

from gossamer.nouns.facts import Bytes
from gossamer.nouns.plan import Plan, Scope, Step
from gossamer.nouns.record import Candidate
from gossamer.report.contrasts import contrasts

STATIC = Step("quantize_static", {"activation": "uint8"})
L2 = msgspec.structs.replace(STATIC, config={"activation": "uint8", "ranges": "l2"})
SKIPPING = msgspec.structs.replace(STATIC, scope=Scope(skip=("stem",)))
CORRECT, EQUALIZE = Step("correct_bias"), Step("equalize_channels")
REPLAY = "gossamer apply plan.yaml m.onnx -o edited/"


def told(chosen: tuple[Step, ...], *others: tuple[tuple[Step, ...], float, float], snr_db: float = 30.0) -> list[str]:
    plan = Plan("chosen", chosen)
    tried = [Candidate(plan, facts(snr_db=snr_db), True)]
    tried += [
        Candidate(Plan(f"other {place}", steps), facts(ratio=ratio, snr_db=db), True)
        for place, (steps, db, ratio) in enumerate(others)
    ]
    return [f"{one.finding.text} | {one.finding.remedy}" for one in contrasts(plan, tried, REPLAY)]


@pytest.mark.parametrize(
    ("chosen", "other", "expected"),
    [
        (
            (STATIC, CORRECT),
            (STATIC,),
            "Correcting the biases made the outputs 1.3 dB truer, at the same speed. | Applied.",
        ),
        (
            (STATIC,),
            (EQUALIZE, STATIC),
            "Equalizing the channels would make the outputs 1.3 dB less true, at the same speed. | Tried and left out.",
        ),
        (
            (L2,),
            (STATIC,),
            "`ranges: l2` instead of minmax made the outputs 1.3 dB truer, at the same speed. | Applied.",
        ),
        (
            (STATIC,),
            (L2,),
            "`ranges: l2` instead of minmax would make the outputs 1.3 dB less true, at the same speed. | "
            "Tried and left out.",
        ),
        (
            (SKIPPING,),
            (STATIC,),
            "Leaving `stem` in float made the outputs 1.3 dB truer, at the same speed. | Applied.",
        ),
    ],
)
def test_one_difference_is_told(chosen: tuple[Step, ...], other: tuple[Step, ...], expected: str) -> None:
    assert told(chosen, (other, 28.7, 2.0)) == [expected]


def test_what_would_have_been_truer_comes_with_the_edit() -> None:
    (line,) = told((STATIC,), ((SKIPPING,), 32.0, 1.6))
    assert line.startswith("Leaving `stem` in float as well would make the outputs 2.0 dB truer, at 0.80× the speed.")
    assert f"Add `stem` to `skip` of `quantize_static`'s scope in `plan.yaml`, then `{REPLAY}`." in line


def test_two_differences_tell_nothing() -> None:
    assert told((STATIC,), ((EQUALIZE, L2), 20.0, 2.0)) == []


def test_another_constraint_for_every_layer_tells_nothing() -> None:
    one, other = (
        Step("constrain_weights", {"constraint": "grid:4", "by_layer": {"a": text}}) for text in ("grid:5", "grid:6")
    )
    assert told((one,), ((other,), 20.0, 2.0)) == []


def test_a_pair_beside_the_chosen_one_stands_in_for_it() -> None:
    lines = told((EQUALIZE, L2, CORRECT), ((STATIC, CORRECT), 28.0, 2.0), ((STATIC,), 27.0, 2.0))
    assert lines == ["Correcting the biases made the outputs 1.0 dB truer, at the same speed. | Applied."]


def test_a_float_candidate_is_no_contrast() -> None:
    assert told((STATIC,), ((), 200.0, 1.0), ((Step("fold_batchnorm"),), 130.0, 1.0)) == []


def test_of_ranges_left_out_the_truest_is_told() -> None:
    percentile = msgspec.structs.replace(STATIC, config={"activation": "uint8", "ranges": "percentile"})
    (line,) = told((STATIC,), ((percentile,), 25.0, 2.0), ((L2,), 29.0, 2.0))
    assert "`ranges: l2`" in line and "1.0 dB less true" in line


def sized(name: str, steps: tuple[Step, ...], snr_db: float, size: int) -> Candidate:
    measured = facts(snr_db=snr_db)
    return Candidate(Plan(name, steps), replace(measured, bytes=Bytes(4000, size)), True)


def test_noise_of_files_of_unequal_sizes_is_no_contrast() -> None:
    eight, four = (Step("quantize_weights", {"bits": bits}) for bits in (8, 4))
    tried = [sized("a", (four,), 20.0, 500), sized("b", (eight,), 34.0, 1000)]
    assert contrasts(tried[0].plan, tried, REPLAY) == []
    alike = [sized("a", (four,), 20.0, 900), sized("b", (eight,), 34.0, 1000)]
    assert len(contrasts(alike[0].plan, alike, REPLAY)) == 1


def test_what_is_left_in_float_is_told_with_any_size() -> None:
    tried = [sized("a", (STATIC,), 20.0, 500), sized("b", (SKIPPING,), 34.0, 1000)]
    assert len(contrasts(tried[0].plan, tried, REPLAY)) == 1


def test_a_plan_that_rounds_otherwise_does_not_stand_in() -> None:
    constrain = (Step("constrain_weights", {"constraint": "grid:4"}), CORRECT)
    others = [sized("a", (STATIC, CORRECT), 34.0, 1000), sized("b", (STATIC,), 30.0, 1000)]
    tried = [sized("chosen", constrain, 20.0, 1000), *others]
    assert contrasts(tried[0].plan, tried, REPLAY) == []
    tried.append(sized("plain", constrain[:1], 18.0, 1000))
    (one,) = contrasts(tried[0].plan, tried, REPLAY)
    assert one.finding.text == "Correcting the biases made the outputs 2.0 dB truer, at the same speed."


def test_a_plan_of_another_size_does_not_stand_in() -> None:
    tried = [sized("chosen", (EQUALIZE, L2, CORRECT), 20.0, 300), *(
        sized(name, steps, snr_db, 1000)
        for name, steps, snr_db in (("a", (STATIC, CORRECT), 28.0), ("b", (STATIC,), 27.0))
    )]  # fmt: skip
    assert contrasts(tried[0].plan, tried, REPLAY) == []
