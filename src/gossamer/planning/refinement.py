"""The rounds after the first: variations of the best integer plan that differ in truth, not in speed.

They take most of a search's time. Where the best plan is true enough as it is (see `choice.is_true_enough`), only the
one is tried that gains most as a rule, for all the others together gain less than it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gossamer.nouns.budget import Budget
from gossamer.nouns.plan import Plan, Step
from gossamer.nouns.record import Candidate
from gossamer.planning.choice import is_true_enough, leader
from gossamer.planning.features import Features
from gossamer.planning.guard import to_mend

RANGES = ("minmax", "percentile", "l2")  # entropy and the others were never the best on real nets
IN_ORDER = Step("correct_bias", {"statistics": "sequential"})
LIKELIEST = "l2"  # to be the truest of them
RANGES_OF_ENCODERS = ("minmax", "l2")  # clipping the outliers of a real encoder to a percentile cost 8 dB


def refine(found: Features, tried: Sequence[Candidate], budget: Budget) -> tuple[Plan, ...]:
    """The leading static plan with other ranges, with channels equalized, with other corrections and with none.

    Where even that one breaks the floor, the truest static plan is varied as well, though it be slower. Where it is
    true enough, there is one variation.
    """
    static = [c for c in tried if c.facts and any(step.method == "quantize_static" for step in c.plan.steps)]
    if not static:
        return ()
    best = leader(static, budget.minimize)
    if is_true_enough(best, budget):
        return (_variation(best.plan, LIKELIEST, False),)
    truest = max(static, key=lambda candidate: candidate.facts.accuracy.snr_db if candidate.facts else 0.0)
    bases = [best] if best.met or truest is best else [best, truest]
    return tuple(plan for base in bases for plan in _variations(base.plan, found))


def _variations(plan: Plan, found: Features) -> list[Plan]:
    step = next(step for step in plan.steps if step.method == "quantize_static")
    worth = RANGES_OF_ENCODERS if found.layer_norms else RANGES
    plans = [_variation(plan, ranges, False) for ranges in worth if ranges != step.config.get("ranges", "minmax")]
    if found.depthwise:
        plans.extend(_variation(plan, ranges, True) for ranges in (None, "l2"))
    without = tuple(step for step in plan.steps if step.method != "correct_bias")
    if without != plan.steps:
        plans.append(Plan(f"{plan.name}, biases as they were", without))
    return plans


def mend_by_rounding(found: Features, tried: Sequence[Candidate], budget: Budget) -> tuple[Plan, ...]:
    """Where the best integer plan breaks the floor: the same, rounded for the least error of what each layer computes.

    It costs no latency, as layers that are raised do; what is raised afterwards begins from it if it is truer.
    """
    broken = to_mend(tried, budget)
    if broken is None or not found.convolutions:
        return ()
    return _rounded_by_loss(broken)


def round_by_loss(found: Features, tried: Sequence[Candidate], budget: Budget) -> tuple[Plan, ...]:
    """The leading plan of all with weights rounded for the least error of what each layer computes.

    Only where there are convolutions, whose weights are narrow and few, and where that plan is not true enough; it
    takes as long as several other candidates.
    """
    best = _best(tried, budget)
    if not found.convolutions or is_true_enough(best, budget):
        return ()
    return _rounded_by_loss(best.plan)


def quantized_with(steps: Sequence[Step], options: Mapping[str, Any]) -> tuple[Step, ...]:
    """The steps with these options for every `quantize_static`, beside those that it has."""
    return tuple(
        msgspec.structs.replace(step, config={**step.config, **options}) if step.method == "quantize_static" else step
        for step in steps
    )


def correct_in_order(found: Features, tried: Sequence[Candidate], budget: Budget) -> tuple[Plan, ...]:
    """The leading plan of all with its biases corrected in order: the statistics taken anew behind corrected layers.

    Only for depthwise nets, where errors add up over many narrow layers, and where that plan is not true enough; it
    takes as long as several other candidates.
    """
    best = _best(tried, budget)
    steps = tuple(IN_ORDER if step.method == "correct_bias" else step for step in best.plan.steps)
    if steps == best.plan.steps or not found.depthwise or is_true_enough(best, budget):
        return ()
    return (Plan(f"{best.plan.name}, biases in order", steps),)


def _rounded_by_loss(plan: Plan) -> tuple[Plan, ...]:
    steps = quantized_with(plan.steps, {"rounding": "second_order"})
    return () if steps == plan.steps else (Plan(f"{plan.name}, rounded by loss", steps),)


def _best(tried: Sequence[Candidate], budget: Budget) -> Candidate:
    alive = [candidate for candidate in tried if candidate.facts]
    return leader([candidate for candidate in alive if candidate.met] or alive, budget.minimize)


def _variation(plan: Plan, ranges: str | None, equalized: bool) -> Plan:
    steps: list[Step] = []
    for step in plan.steps:
        if step.method != "quantize_static":
            steps.append(step)
            continue
        if equalized:
            steps.append(Step("equalize_channels"))
        config = {**step.config, "ranges": ranges} if ranges else step.config
        steps.append(msgspec.structs.replace(step, config=config))
    words = [plan.name, *([f"{ranges} ranges"] if ranges else []), *(["equalized"] if equalized else [])]
    return Plan(", ".join(words), tuple(steps))
