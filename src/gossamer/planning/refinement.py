"""The second round: variations of the best integer plan of the first that differ in truth, not in speed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gossamer.nouns.budget import Minimize
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Plan, Step
from gossamer.nouns.record import Candidate
from gossamer.planning.candidates import features
from gossamer.planning.choice import leader

RANGES = ("minmax", "percentile", "l2")  # entropy and the others were never the best on real nets
DYNAMIC = "quantize_dynamic"


def refine(model: Model, tried: Sequence[Candidate], minimize: Minimize = "latency") -> tuple[Plan, ...]:
    """The leading static plan with other ranges, with channels equalized, and without correction; smoothed encoders.

    Where even that one breaks the floor, the truest static plan is varied as well, though it be slower.
    """
    found = features(model)
    smooth = _smoothed_dynamic(tried, minimize) if found.layer_norms else ()
    static = [c for c in tried if c.facts and any(step.method == "quantize_static" for step in c.plan.steps)]
    if not static:
        return smooth
    best = leader(static, minimize)
    truest = max(static, key=lambda candidate: candidate.facts.accuracy.snr_db if candidate.facts else 0.0)
    bases = [best] if best.met or truest is best else [best, truest]
    return smooth + tuple(
        plan for base in bases for plan in _variations(base.plan, found.depthwise, found.layer_norms > 0)
    )


def _variations(plan: Plan, depthwise: bool, layer_norms: bool) -> list[Plan]:
    step = next(step for step in plan.steps if step.method == "quantize_static")
    others = [ranges for ranges in RANGES if ranges != step.config.get("ranges", "minmax")]
    plans = [_variation(plan, ranges, False) for ranges in others]
    if depthwise:
        plans.extend(_variation(plan, ranges, True) for ranges in (None, "l2"))
    if layer_norms:  # outlier channels behind a normalization are what ruins static ranges
        plans.append(_smoothed(plan, "quantize_static"))
    without = tuple(step for step in plan.steps if step.method != "correct_bias")
    if without != plan.steps:
        plans.append(Plan(f"{plan.name}, biases as they were", without))
    return plans


def _smoothed_dynamic(tried: Sequence[Candidate], minimize: Minimize) -> tuple[Plan, ...]:
    """The leading plan of those with dynamic ranges alone, with the outlier channels taken out that ruin these too."""
    dynamic = [c for c in tried if c.facts and [s.method for s in c.plan.steps if "quantize" in s.method] == [DYNAMIC]]
    return (_smoothed(leader(dynamic, minimize).plan, DYNAMIC),) if dynamic else ()


def _smoothed(plan: Plan, method: str) -> Plan:
    """The plan with the outlier channels smoothed right before it quantizes."""
    at = next(at for at, step in enumerate(plan.steps) if step.method == method)
    smooth = Step("smooth_activations", {"alpha": None, "products": True})
    return Plan(f"{plan.name}, smoothed", (*plan.steps[:at], smooth, *plan.steps[at:]))


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
