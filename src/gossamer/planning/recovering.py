"""What is worth training: the plan that would be best of all if it were only true enough."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gossamer.nouns.budget import Budget
from gossamer.nouns.plan import ORIGINAL, Plan, Step
from gossamer.nouns.record import Candidate
from gossamer.nouns.schooling import Schooling
from gossamer.planning.choice import leader
from gossamer.planning.guard import to_mend
from gossamer.planning.refinement import quantized_with

METHOD = "train_quantized"
FEWER_BITS = 4  # of weights that are multiplied as bytes: files hold no integers narrower than that


def to_train(tried: Sequence[Candidate], budget: Budget) -> tuple[Plan, ...]:
    """Plans that training may lift above the floor, each of which would then be the best; none if nothing is to gain.

    The truest of the fastest static plans that break the floor. Where bytes are the aim, also the leading static plan
    with weights of 4 bits.
    """
    static = [candidate for candidate in tried if candidate.facts and _is_static(candidate.plan)]
    if not static:
        return ()
    others = [candidate for candidate in tried if candidate.met or candidate.plan.name == ORIGINAL]
    broken = to_mend([*static, *(one for one in others if one not in static)], budget)
    plans = () if broken is None else (broken,)
    if budget.minimize == "latency":
        return plans
    narrow = with_bits(leader(static, budget.minimize).plan, FEWER_BITS)
    return (narrow, *(plan for plan in plans if plan.steps != narrow.steps))


def with_bits(plan: Plan, bits: int) -> Plan:
    """The plan with weights of so many bits, rounded for the least error of what each layer computes."""
    steps = quantized_with(plan.steps, {"weight_bits": bits, "rounding": "second_order"})
    return Plan(f"{plan.name}, {bits} bit weights", steps)


def trained(plan: Plan, schooling: Schooling) -> Plan:
    """The plan with training behind all else."""
    config = msgspec.to_builtins(schooling)
    return Plan(f"{plan.name}, trained", (*plan.steps, Step(METHOD, config)))


def _is_static(plan: Plan) -> bool:
    methods = [step.method for step in plan.steps]
    return "quantize_static" in methods and "store_float16" not in methods
