"""What is worth training: the plan that would be best of all if it were only true enough."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gossamer.nouns.budget import Budget
from gossamer.nouns.plan import ORIGINAL, Plan, Step
from gossamer.nouns.record import Candidate
from gossamer.nouns.schooling import Schooling
from gossamer.planning.guard import to_mend

METHOD = "train_weights"
LAST = "round_floats"


def to_train(tried: Sequence[Candidate], budget: Budget) -> Plan | None:
    """The plan that training may lift above the floor, to be the fastest then: the truest of the fastest static plans
    that break it; None if nothing is to gain."""
    static = [candidate for candidate in tried if candidate.facts and _is_static(candidate.plan)]
    if not static:
        return None
    others = [candidate for candidate in tried if candidate.met or candidate.plan.name == ORIGINAL]
    return to_mend([*static, *(one for one in others if one not in static)], budget)


def trained(plan: Plan, schooling: Schooling) -> Plan:
    """The plan with training behind all else but the rounding of what training leaves in float."""
    step = Step(METHOD, msgspec.to_builtins(schooling))
    last = len(plan.steps) - (plan.steps[-1].method == LAST)
    return Plan(f"{plan.name}, trained", (*plan.steps[:last], step, *plan.steps[last:]))


def _is_static(plan: Plan) -> bool:
    methods = [step.method for step in plan.steps]
    return "quantize_static" in methods and "store_float16" not in methods
