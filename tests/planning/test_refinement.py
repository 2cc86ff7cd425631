from __future__ import annotations

from tests.planning.graphs import by_name, cnn, encoder, step

from gossamer.nouns.budget import Budget
from gossamer.nouns.facts import Accuracy, Bytes, Facts, Latency
from gossamer.nouns.plan import Plan
from gossamer.nouns.record import Candidate
from gossamer.planning.candidates import propose
from gossamer.planning.choice import TRUE_DB
from gossamer.planning.features import features
from gossamer.planning.refinement import RANGES, correct_in_order, mend_by_rounding, refine, round_by_loss
from gossamer.runtimes import onnxruntime


def tried(
    plan: Plan, speed: float, size: int = 500, snr_db: float = 30.0, met: bool = True, high: float = 0.0
) -> Candidate:
    accuracy = Accuracy("top1", 0.9, 0.9, 0.0, 0.0, high, 100, snr_db)
    return Candidate(plan, Facts(accuracy, Bytes(1000, size), Latency(1, 1 / speed, speed, speed, speed, 1, "r")), met)


def test_refine_varies_the_fastest_static_plan() -> None:
    plans = by_name(propose(features(cnn()), onnxruntime, "latency"))
    first = [tried(plans["int8"], 2.0), tried(plans["int8, stem in float"], 2.5), tried(plans["dynamic int8"], 9.0)]
    second = by_name(refine(features(cnn()), [*first, Candidate(plans["float"], error="no")], Budget()))
    others = [ranges for ranges in RANGES if ranges != "minmax"]
    base = "int8, stem in float"
    assert list(second) == [
        *(f"{base}, {ranges} ranges" for ranges in others),
        f"{base}, equalized",
        f"{base}, l2 ranges, equalized",
        f"{base}, biases as they were",
    ]
    assert not set(second) & set(plans)
    equalized = [s.method for s in second[f"{base}, equalized"].steps]
    assert equalized.index("equalize_channels") == equalized.index("quantize_static") - 1
    assert step(second[f"{base}, l2 ranges"], "quantize_static").scope.skip == ("stem",)
    assert "correct_bias" not in [s.method for s in second[f"{base}, biases as they were"].steps]


def test_refine_does_not_repeat_the_ranges_of_its_base() -> None:
    plans = by_name(propose(features(encoder()), onnxruntime, "latency"))
    second = by_name(refine(features(encoder()), [tried(plans["int8 products"], 2.0)], Budget()))
    configs = [step(plan, "quantize_static").config["ranges"] for plan in second.values() if "ranges" in plan.name]
    assert configs == ["l2"]
    assert not any("equalized" in name for name in second)


def test_refine_for_size_varies_the_smallest() -> None:
    plans = by_name(propose(features(cnn()), onnxruntime, "size"))
    first = [tried(plans["int8"], 3.0, 300), tried(plans["int8, rest float16"], 2.0, 200)]
    assert all(
        plan.name.startswith("int8, rest float16") for plan in refine(features(cnn()), first, Budget(minimize="size"))
    )
    assert not any(
        plan.name.startswith("int8, rest") for plan in refine(features(cnn()), first, Budget(minimize="latency"))
    )


def test_refine_without_a_static_plan() -> None:
    plans = by_name(propose(features(encoder()), onnxruntime, "latency"))
    first = [tried(plans["dynamic int8"], 3.0), Candidate(plans["int8 products"], error="no")]
    assert refine(features(encoder()), first, Budget()) == ()
    assert refine(features(cnn()), [tried(plans["dynamic int8"], 3.0)], Budget()) == ()


def test_of_equally_fast_plans_the_truest_is_varied() -> None:
    plans = by_name(propose(features(cnn()), onnxruntime, "latency"))
    first = [tried(plans["int8"], 2.02, snr_db=19), tried(plans["int8, stem in float"], 2.0, snr_db=25)]
    assert all(plan.name.startswith("int8, stem in float") for plan in refine(features(cnn()), first, Budget()))


def test_the_truest_is_varied_too_where_the_fastest_breaks_the_floor() -> None:
    plans = by_name(propose(features(cnn()), onnxruntime, "latency"))
    stem = tried(plans["int8, stem in float"], 1.5, snr_db=25)
    kept = refine(features(cnn()), [tried(plans["int8"], 3.0, snr_db=19), stem], Budget())
    broken = refine(features(cnn()), [tried(plans["int8"], 3.0, snr_db=19, met=False), stem], Budget())
    assert not any(plan.name.startswith("int8, stem") for plan in kept)
    assert len(broken) == 2 * len(kept)


def test_the_leader_of_all_is_rounded_by_loss() -> None:
    plans = by_name(propose(features(cnn()), onnxruntime, "latency"))
    first = [tried(plans["int8"], 2.0), tried(plans["int8, stem in float"], 2.5)]
    (better,) = round_by_loss(features(cnn()), first, Budget())
    assert better.name == "int8, stem in float, rounded by loss"
    assert step(better, "quantize_static").config["rounding"] == "second_order"
    assert round_by_loss(features(cnn()), [*first, tried(better, 2.5, snr_db=32.0)], Budget()) == ()
    assert round_by_loss(features(cnn()), [tried(plans["dynamic int8"], 2.0)], Budget()) == ()
    words = by_name(propose(features(encoder()), onnxruntime, "latency"))
    assert round_by_loss(features(encoder()), [tried(words["int8 products"], 2.0)], Budget()) == ()


def test_what_breaks_the_floor_is_rounded_by_loss_before_layers_are_raised() -> None:
    plans = by_name(propose(features(cnn()), onnxruntime, "latency"))
    kept = [tried(plans["float"], 1.0), tried(plans["dynamic int8"], 1.1)]
    broken = tried(plans["int8"], 2.0, snr_db=19, met=False)
    (better,) = mend_by_rounding(features(cnn()), [*kept, broken], Budget())
    assert better.name == "int8, rounded by loss"
    assert mend_by_rounding(features(cnn()), [*kept, tried(better, 2.0, snr_db=25, met=False)], Budget()) == ()
    assert mend_by_rounding(features(cnn()), [*kept, tried(plans["int8"], 2.0)], Budget()) == ()
    assert mend_by_rounding(features(cnn()), [tried(plans["float"], 3.0), broken], Budget()) == ()
    words = by_name(propose(features(encoder()), onnxruntime, "latency"))
    slow = [tried(words["float"], 1.0), tried(words["int8 products"], 2.0, met=False)]
    assert mend_by_rounding(features(encoder()), slow, Budget()) == ()


def test_the_leader_of_all_is_polished_at_last() -> None:
    plans = by_name(propose(features(cnn()), onnxruntime, "latency"))
    first = [tried(plans["int8"], 2.0), tried(plans["int8, stem in float"], 2.5), Candidate(plans["float"], error="no")]
    (last,) = correct_in_order(features(cnn()), first, Budget())
    assert last.name == "int8, stem in float, biases in order"
    assert step(last, "correct_bias").config == {"statistics": "sequential"}
    assert correct_in_order(features(cnn()), [*first, tried(last, 2.5, snr_db=32.0)], Budget()) == ()


def test_nothing_is_polished_that_has_no_biases_to_correct() -> None:
    plans = by_name(propose(features(encoder()), onnxruntime, "latency"))
    assert correct_in_order(features(encoder()), [tried(plans["int8 products"], 2.0)], Budget()) == ()
    dynamic = by_name(propose(features(cnn()), onnxruntime, "latency"))["dynamic int8"]
    assert correct_in_order(features(cnn()), [tried(dynamic, 2.0)], Budget()) == ()


def test_where_the_best_is_true_enough_only_the_likeliest_variation_is_left() -> None:
    plans = by_name(propose(features(cnn()), onnxruntime, "latency"))
    loud, faint = ([tried(plans["int8"], 2.0, snr_db=snr_db)] for snr_db in (TRUE_DB - 1, TRUE_DB + 1))
    assert [plan.name for plan in refine(features(cnn()), faint, Budget())] == ["int8, l2 ranges"]
    assert len(refine(features(cnn()), loud, Budget())) > 1
    assert not round_by_loss(features(cnn()), faint, Budget()) and round_by_loss(features(cnn()), loud, Budget())
    assert not correct_in_order(features(cnn()), faint, Budget()) and correct_in_order(features(cnn()), loud, Budget())


def test_a_floor_that_may_not_hold_is_worth_every_variation() -> None:
    """Whatever the noise: the drop's interval reaches beyond the floor, or the point itself does."""
    plans = by_name(propose(features(cnn()), onnxruntime, "latency"))
    unsure = tried(plans["int8"], 2.0, snr_db=50.0, high=0.02)
    assert len(refine(features(cnn()), [unsure], Budget())) > 1 and round_by_loss(features(cnn()), [unsure], Budget())
    assert len(refine(features(cnn()), [unsure], Budget(max_drop=0.02))) == 1
    assert len(refine(features(cnn()), [tried(plans["int8"], 2.0, snr_db=50.0, met=False)], Budget())) > 1
