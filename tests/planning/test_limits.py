from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.planning.limits import Attempt, best, next_limit

LIMITS = st.floats(1, 1e9)


def search(least: float, most: float, holds: float, start: float | None = None) -> list[Attempt]:
    """All that is tried where every limit from `holds` on meets the floor."""
    tried: list[Attempt] = []
    while (limit := next_limit(tried, least, most, start)) is not None:
        tried.append(Attempt(limit, limit >= holds))
        assert len(tried) < 40, "the search does not end"
    return tried


@given(LIMITS, LIMITS, LIMITS, st.none() | LIMITS)
def test_it_ends_within_the_range_at_the_smallest_that_holds(
    a: float, b: float, holds: float, start: float | None
) -> None:
    least, most = sorted((a, b))
    tried = search(least, most, holds, start)
    assert all(least <= one.limit <= most for one in tried)
    assert len(tried) <= 4 + math.log2(1 + math.log(most / least) / math.log(1.03))
    place = best(tried)
    if holds > most:
        assert place is None and tried[-1].limit == most
    else:
        assert place is not None
        assert tried[place].limit <= max(holds, least) * 1.0301


@given(st.lists(st.tuples(LIMITS, st.booleans()), max_size=8), LIMITS, LIMITS)
def test_whatever_was_measured_the_next_limit_can_only_improve_the_best(
    pairs: list[tuple[float, bool]], a: float, b: float
) -> None:
    least, most = sorted((a, b))
    tried = [Attempt(min(max(limit, least), most), met) for limit, met in pairs]
    limit, place = next_limit(tried, least, most), best(tried)
    if limit is not None and place is not None:
        assert least <= limit < tried[place].limit


def test_a_larger_limit_that_failed_by_chance_is_passed_over() -> None:
    tried = [Attempt(100.0, True), Attempt(200.0, False)]
    assert next_limit(tried, 1.0, 1000.0) == pytest.approx(10.0)
    assert best(tried) == 0


def test_what_starts_the_search_is_kept_within_reach() -> None:
    assert next_limit([], 10.0, 100.0, start=1.0) == 10.0
    assert next_limit([], 10.0, 1000.0) == pytest.approx(100.0)
