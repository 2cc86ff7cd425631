from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import OptionError
from gossamer.nouns.plan import Calibration, Plan, Scope, Step, plan_from_yaml

words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
values = st.one_of(st.booleans(), st.integers(-1000, 1000), words, st.lists(words, max_size=3))
scopes = st.builds(Scope, st.lists(words, max_size=2).map(tuple), st.lists(words, max_size=2).map(tuple))
steps = st.builds(Step, words, st.dictionaries(words, values, max_size=3), scopes)
calibrations = st.builds(Calibration, words, st.just({}), st.integers(0, 99), st.integers(1, 8), words)
plans = st.builds(Plan, words, st.lists(steps, max_size=3).map(tuple), calibrations)


@given(plans)
def test_yaml_round_trip(plan: Plan) -> None:
    assert plan_from_yaml(plan.to_yaml()) == plan


@given(steps, steps)
def test_the_key_is_equal_exactly_for_equal_steps(a: Step, b: Step) -> None:
    assert (a.key() == b.key()) == (a == b)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name: [", "plan.yaml"),
        ("steps: []", "name"),
        ("name: a\nsteps:\n- method: b\n  confg: {}", "confg"),
        ("name: a\nsteps: 3", r"\$\.steps"),
        ("name: a\nversion: 2", "reads version 1"),
        ("!!python/object/apply:os.system ['true']", "plan.yaml"),
    ],
)
def test_what_is_no_plan_is_refused_in_one_line(text: str, match: str) -> None:
    with pytest.raises(OptionError, match=match) as raised:
        plan_from_yaml(text)
    assert "\n" not in str(raised.value)
