from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gossamer.nouns.budget import Budget
from gossamer.nouns.facts import Accuracy, Bytes, Facts, Latency
from gossamer.nouns.plan import ORIGINAL, Plan
from gossamer.nouns.record import Candidate
from gossamer.planning.choice import SAME_SPEED, rank

FAST, SMALL = Budget(minimize="latency"), Budget(minimize="size")


def candidate(
    name: str, speed: float = 1.0, size: int = 1000, drop: float = 0.0, snr_db: float = 30.0, met: bool = True
) -> Candidate:
    accuracy = Accuracy("top1", 0.9, 0.9 - drop, drop, drop - 0.01, drop + 0.01, 100, snr_db)
    latency = Latency(1.0, 1 / speed, speed, speed, speed, 1, "onnxruntime")
    return Candidate(Plan(name), Facts(accuracy, Bytes(1000, size), latency), met)


ORIGIN = candidate(ORIGINAL, snr_db=200)


def names(tried: list[Candidate], budget: Budget = FAST) -> list[str]:
    return [found.plan.name for found in rank(tried, budget)]


def test_fastest_that_meets_the_floor_leads() -> None:
    tried = [ORIGIN, candidate("a", 2.0), candidate("b", 3.0), candidate("fast and wrong", 9.0, drop=0.2, met=False)]
    assert names(tried) == ["b", "a", ORIGINAL, "fast and wrong"]


def test_of_equals_the_truest_leads() -> None:
    tried = [ORIGIN, candidate("a", 3.0, snr_db=20), candidate("b", 2.95, snr_db=35), candidate("c", 2.5, snr_db=99)]
    assert names(tried) == ["b", "a", "c", ORIGINAL]


def test_a_gain_within_the_noise_is_no_gain() -> None:
    assert names([candidate("a", 1.02, snr_db=300), ORIGIN])[0] == ORIGINAL
    assert names([candidate("a", 1.05), ORIGIN])[0] == "a"


def test_all_slower_leaves_it_in_float() -> None:
    """LeNet-5, measured: every int8 variant takes 2.5 times as long."""
    assert (
        names([candidate("int8", 0.4), candidate("dynamic int8", 0.9), ORIGIN, candidate("float", 0.99)])[0] == ORIGINAL
    )


def test_the_clock_has_no_say_about_the_original() -> None:
    odd = candidate(ORIGINAL, 1.5)
    assert names([odd, candidate("a", 1.3)])[0] == "a"


def test_those_that_break_the_floor_follow_by_drop() -> None:
    tried = [candidate(n, s, drop=d, met=False) for n, s, d in (("a", 5, 0.3), ("b", 2, 0.1), ("c", 3, 0.2))]
    assert names(tried) == ["b", "c", "a"]
    assert names([*tried, ORIGIN]) == [ORIGINAL, "b", "c", "a"]


def test_smallest() -> None:
    tried = [
        ORIGIN,
        candidate("slow", 0.5, size=250, snr_db=20),
        candidate("near", 3.0, size=251, snr_db=40),
        candidate("half", 2, 500),
    ]
    assert names(tried, SMALL) == ["near", "slow", "half", ORIGINAL]


def test_failures_are_left_out() -> None:
    assert names([Candidate(Plan("broken"), error="no"), ORIGIN]) == [ORIGINAL]
    assert rank([], FAST) == []


@given(
    st.lists(
        st.tuples(st.floats(0.1, 10), st.integers(1, 2000), st.floats(0, 1), st.floats(-20, 90), st.booleans()),
        max_size=8,
    ),
    st.sampled_from([FAST, SMALL]),
)
def test_rank_keeps_all_and_never_leads_with_a_needless_loss(
    rows: list[tuple[float, int, float, float, bool]], budget: Budget
) -> None:
    tried = [candidate(f"{index}", *row) for index, row in enumerate(rows)]
    ranked = rank([*tried, ORIGIN], budget)
    assert sorted(found.plan.name for found in ranked) == sorted([*(c.plan.name for c in tried), ORIGINAL])
    assert [found.met for found in ranked] == sorted((found.met for found in ranked), reverse=True)
    first = ranked[0]
    assert first.met and first.facts is not None
    if budget is FAST:
        speeds = [c.facts.latency_ms.ratio for c in tried if c.met and c.facts] + [1.0]
        assert first.facts.latency_ms.ratio >= max(speeds) * (1 - SAME_SPEED)
