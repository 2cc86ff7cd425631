from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gossamer.nouns.budget import Budget
from gossamer.nouns.diagnosis import LayerBlame
from gossamer.nouns.facts import Accuracy, Bytes, Facts, Latency
from gossamer.nouns.plan import ORIGINAL, Plan, Scope, Step, quantizing
from gossamer.nouns.record import Candidate
from gossamer.planning.guard import culprits, fewest, raised, through_quantizing, to_mend, worth_mending

FOLD, BIAS = Step("fold_constants"), Step("correct_bias")
INT8 = Plan("int8", (FOLD, Step("quantize_static"), BIAS))


def candidate(plan: Plan, speed: float, met: bool, snr_db: float = 30.0) -> Candidate:
    accuracy = Accuracy("top1", 0.9, 0.9, 0.0, 0.0, 0.0, 100, snr_db)
    return Candidate(plan, Facts(accuracy, Bytes(1000, 500), Latency(1, 1 / speed, speed, speed, speed, 1, "r")), met)


def layer(node: str, added: float, db: float | None = None, price: float | None = None, *others: str) -> LayerBlame:
    return LayerBlame(node, "Conv", f"{node}_out", 0, 20.0, added, db, price, others)


ORIGIN = candidate(Plan(ORIGINAL), 1.0, True)


def test_raised_nodes_are_left_out_of_the_first_quantizing_step_only() -> None:
    plan = Plan("two", (FOLD, Step("constrain_weights", {"constraint": "grid:4"}), Step("constrain_weights")))
    steps = raised(plan, ["a", "b[0]"]).steps
    assert steps[1].scope.skip == ("a", "b[[]0]")  # a scope holds patterns
    assert steps[2] == plan.steps[2] and steps[0] == FOLD


def test_what_was_skipped_before_stays_skipped() -> None:
    plan = Plan("int8", (Step("quantize_static", scope=Scope(skip=("stem",))),))
    assert raised(plan, ["a", "stem"]).steps[0].scope.skip == ("stem", "a")


def test_a_node_is_taken_out_of_the_step_that_names_it() -> None:
    named = Step("constrain_weights", scope=Scope(only=("lstm[[]0]",)))
    plan = Plan("int8", (Step("quantize_static"), named))
    found = raised(plan, ["lstm[0]", "conv"]).steps
    assert found[0].scope == Scope(skip=("conv",))
    assert found[1].scope == Scope(("lstm[[]0]",), ("lstm[[]0]",))  # which leaves nothing, not everything


def test_the_cheapest_relief_comes_first_and_layers_not_measured_come_last() -> None:
    blames = [
        layer("worst but not measured", 9.0),
        layer("dear", 0.5, 3.0, 1.5),
        layer("cheap", 0.4, 2.9, 1.01, "its maker"),
        layer("harmful", 0.3, -1.0, 0.9),
        layer("less", 1.0),
    ]
    first, second, third, *rest = culprits(blames)
    assert (first, second, third) == (("cheap", "its maker"), ("dear",), ("harmful",))
    assert rest == [("worst but not measured",), ("less",)]


@given(st.permutations(range(6)), st.lists(st.integers(-3, 20), min_size=6, max_size=6))
def test_at_equal_price_the_order_is_that_of_the_relief(order: list[int], reliefs_db: list[int]) -> None:
    blames = [layer(str(at), 0.1, reliefs_db[at], 1.1) for at in order]
    found = [reliefs_db[int(node)] for (node,) in culprits(blames)]
    assert found == sorted(found, reverse=True)


def test_the_truest_of_the_fast_plans_that_break_the_floor_is_mended() -> None:
    true, wrong = Plan("true", INT8.steps), Plan("wrong", INT8.steps)
    tried = [ORIGIN, candidate(wrong, 3.0, False, 5.0), candidate(true, 2.9, False, 15.0)]
    assert to_mend(tried, Budget()) == true
    assert to_mend([ORIGIN, candidate(INT8, 3.0, True)], Budget()) is None


def test_nothing_is_mended_that_would_not_be_faster_in_the_end() -> None:
    slow = candidate(INT8, 2.0, False)
    assert not worth_mending(slow, [ORIGIN, candidate(Plan("other", INT8.steps), 2.0, True), slow], "latency")
    assert to_mend([ORIGIN, candidate(Plan("float", (FOLD,)), 3.0, False)], Budget()) is None
    assert to_mend([ORIGIN, Candidate(INT8, error="no")], Budget()) is None


def test_a_plan_without_corrections_is_made_for_looking_into() -> None:
    assert [step.method for step in through_quantizing(INT8).steps] == ["fold_constants", "quantize_static"]
    mixed = Plan("mixed", (*INT8.steps, Step("quantize_dynamic"), Step("store_float16")))
    assert [step.method for step in through_quantizing(mixed).steps] == [
        "fold_constants",
        "quantize_static",
        "quantize_dynamic",
    ]
    assert quantizing(Plan("float", (FOLD,))) is None and through_quantizing(Plan("float", (FOLD,))).steps == ()


@given(st.integers(0, 40), st.integers(1, 60))
def test_the_search_finds_the_fewest_that_hold(most: int, needed: int) -> None:
    asked: list[int] = []

    def holds(count: int) -> bool:
        asked.append(count)
        return count >= needed

    assert fewest(most, holds) == (needed if needed <= most else 0)
    assert len(asked) == len(set(asked)) <= 2 * max(1, most).bit_length() + 1
    assert all(1 <= count <= most for count in asked)


def test_the_search_ends_where_more_is_of_no_use() -> None:
    asked: list[int] = []
    assert fewest(16, lambda count: asked.append(count) or (None if count > 2 else False)) == 0  # type: ignore[func-returns-value]
    assert asked == [1, 2, 4]
