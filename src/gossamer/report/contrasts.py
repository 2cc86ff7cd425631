"""What candidates tell that differ from the chosen one in a single step: what that step gained or cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gossamer.errors import GossamerError
from gossamer.nouns.diagnosis import Finding
from gossamer.nouns.facts import Facts
from gossamer.nouns.plan import Plan, Step, quantizing, rounds
from gossamer.nouns.record import Candidate
from gossamer.passes.contract import configure
from gossamer.report.words import number, scope_names, step_name, value_words

MOST = 4
SAME_SPEED = 1.05  # files of the same graph differ by this much from one moment to another
SAME_SIZE = 1.25  # noise is traded against bytes: what a larger file gains in truth, its size has paid for
DOING = {
    "correct_bias": "Correcting the biases",
    "equalize_channels": "Equalizing the channels",
    "smooth_activations": "Smoothing the activations",
    "store_float16": "Storing the rest as float16",
    "quantize_dynamic": "Integers with ranges found while running",
    "fuse_attention": "Attention as one operator",
    "train_weights": "Training with the integers",
}


class Contrast(NamedTuple):
    """What one difference is worth: dB of the outputs' signal to noise (above 0 the choice gained it), and speed."""

    gain_db: float
    finding: Finding
    speed: float


class _Difference(NamedTuple):
    """Of two plans, in one step: whether it is there (`option` is empty), in an option, or in its scope (`skip`).

    `value` is the first plan's. `doing` says it of the first plan if `applied`, else of the other.
    """

    method: str
    option: str
    value: Any
    doing: str
    applied: bool
    edit: str = ""


def contrasts(plan: Plan, candidates: Sequence[Candidate], replay: str) -> list[Contrast]:
    """The largest differences, one of each kind; of alternatives left out, the truest.

    Where no candidate differs from the chosen one in just that, another that shares the choice stands in for it, if it
    rounds by the same method and is about as large. Candidates of unequal sizes are not held against each other, except
    for what is left in float: there the price is the point.

    Args:
        replay: the command that carries out an edited plan.yaml.
    """
    alive = [one for one in candidates if one.facts is not None and _rounds(one.plan)]
    chosen = next((one for one in alive if one.plan.name == plan.name), None)
    firsts = [one for one in alive if chosen is None or _stands_in(one, chosen)]
    found: dict[tuple[str, str], Contrast] = {}
    for first in sorted(firsts, key=lambda one: one.plan.name != plan.name) if plan.steps else ():
        best: dict[tuple[str, str], Contrast] = {}
        for other in alive:
            difference = _difference(first.plan, other.plan)
            if difference is None or not _chosen(difference, plan):
                continue
            if difference.option != "skip" and not _about_as_large(first, other):
                continue
            about, told = (difference.method, difference.option), _told(difference, first.facts, other.facts, replay)
            if told is not None and (about not in best or told.gain_db < best[about].gain_db):
                best[about] = told
        found = best | found
    return sorted(found.values(), key=lambda one: -abs(one.gain_db))[:MOST]


def _rounds(plan: Plan) -> bool:
    """Whether a plan rounds to integers at all: what that is worth, the figures say themselves."""
    return quantizing(plan) is not None


def _stands_in(one: Candidate, chosen: Candidate) -> bool:
    mine, theirs = ({step.method for step in plan.steps if rounds(step)} for plan in (one.plan, chosen.plan))
    return mine == theirs and _about_as_large(one, chosen)


def _about_as_large(one: Candidate, other: Candidate) -> bool:
    if one.facts is None or other.facts is None:
        return False
    sizes = sorted((one.facts.bytes.result, other.facts.bytes.result))
    return sizes[1] <= SAME_SIZE * sizes[0]


def _chosen(difference: _Difference, plan: Plan) -> bool:
    """Whether the chosen plan decided as the first of the two did."""
    steps = [step for step in plan.steps if step.method == difference.method]
    if not difference.option:
        return bool(steps) == difference.applied
    if difference.option == "skip":
        return any(step.scope.skip == difference.value for step in steps)
    return any(step.config.get(difference.option) == difference.value for step in steps)


def _difference(chosen: Plan, other: Plan) -> _Difference | None:
    """The one difference of two plans; None if there is none or more than one."""
    if not other.steps:
        return None
    mine = [step for step in chosen.steps if step not in other.steps]
    theirs = [step for step in other.steps if step not in chosen.steps]
    if len(mine) == 1 and not theirs:
        return _Difference(mine[0].method, "", None, _doing(mine[0]), True)
    if not mine and len(theirs) == 1:
        edit = f"Add `method: {theirs[0].method}` to the steps in `plan.yaml`"
        return _Difference(theirs[0].method, "", None, _doing(theirs[0]), False, edit)
    if len(mine) == len(theirs) == 1 and mine[0].method == theirs[0].method:
        return _within_a_step(mine[0], theirs[0])
    return None


def _doing(step: Step) -> str:
    return DOING.get(step.method, f"“{step_name(step)}”")


def _within_a_step(mine: Step, theirs: Step) -> _Difference | None:
    options = sorted({*mine.config, *theirs.config})
    changed = [option for option in options if mine.config.get(option) != theirs.config.get(option)]
    if "by_layer" in changed:  # another share for every layer: no single difference
        return None
    if mine.scope == theirs.scope and len(changed) == 1:
        return _other_value(mine, theirs, changed[0])
    if changed or mine.scope.only != theirs.scope.only:
        return None
    kept = [name for name in mine.scope.skip if name not in theirs.scope.skip]
    more = [name for name in theirs.scope.skip if name not in mine.scope.skip]
    if kept and not more:
        return _Difference(mine.method, "skip", mine.scope.skip, f"Leaving {scope_names(kept)} in float", True)
    if more and not kept:
        edit = f"Add {scope_names(more)} to `skip` of `{mine.method}`'s scope in `plan.yaml`"
        doing = f"Leaving {scope_names(more)} in float as well"
        return _Difference(mine.method, "skip", mine.scope.skip, doing, False, edit)
    return None


def _other_value(mine: Step, theirs: Step, option: str) -> _Difference:
    here, there = (value_words(step.config.get(option, _default(step, option))) for step in (mine, theirs))
    if option not in theirs.config:  # the first plan departs from the default
        doing = f"`{option}: {here}` instead of {there}"
        return _Difference(mine.method, option, mine.config[option], doing, True)
    edit = f"Set `{option}: {there}` in `{mine.method}`'s config in `plan.yaml`"
    doing = f"`{option}: {there}` instead of {here}"
    return _Difference(mine.method, option, mine.config.get(option), doing, False, edit)


def _default(step: Step, option: str) -> object:
    """What an option is where the plan does not say."""
    try:
        return getattr(configure(step), option, "the default")
    except GossamerError:  # a method of another version; its name is all that is known
        return "the default"


def _told(difference: _Difference, mine: Facts | None, other: Facts | None, replay: str) -> Contrast | None:
    if mine is None or other is None or not other.latency_ms.ratio > 0:
        return None
    gain_db = mine.accuracy.snr_db - other.accuracy.snr_db
    speed = mine.latency_ms.ratio / other.latency_ms.ratio
    if not (math.isfinite(gain_db) and math.isfinite(speed) and speed > 0):
        return None
    truer = gain_db if difference.applied else -gain_db
    effect = f"{number(abs(truer), 1)} dB {'truer' if truer > 0 else 'less true'}"
    ratio = speed if difference.applied else 1 / speed
    pace = "at the same speed" if 1 / SAME_SPEED < ratio < SAME_SPEED else f"at {number(ratio, 2)}× the speed"
    verb = "made" if difference.applied else "would make"
    text = f"{difference.doing} {verb} the outputs {effect}, {pace}."
    if difference.applied:
        remedy = "Applied."
    elif truer > 0:
        remedy = f"{difference.edit}, then `{replay}`."
    else:
        remedy = "Tried and left out."
    return Contrast(gain_db, Finding(f"{text[0].upper()}{text[1:]}", remedy), speed)
