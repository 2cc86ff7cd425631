"""The guard's plans: where integers break the floor, the layers to blame are raised, cheapest relief first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase
from glob import escape

import msgspec

from gossamer.nouns.budget import Budget, Minimize
from gossamer.nouns.diagnosis import LayerBlame
from gossamer.nouns.plan import ORIGINAL, Plan, Scope, Step, quantizing, rounds
from gossamer.nouns.record import Candidate
from gossamer.planning.choice import NEAR, SAME_SPEED, gain

LEAST_PRICE = 0.005  # shares of latency below this are noise


def raised(plan: Plan, nodes: Collection[str]) -> Plan:
    """The plan with these nodes taken out of the step that quantizes them: in float, or in what a later step gives.

    Raises:
        ValueError: no step quantizes.
    """
    if quantizing(plan) is None:
        raise ValueError(f"{plan.name} does not quantize")
    steps = list(plan.steps)
    for node in nodes:
        at = _step_of(plan, node)
        scope = steps[at].scope
        skip = dict.fromkeys((*scope.skip, escape(node)))  # a scope holds patterns
        steps[at] = msgspec.structs.replace(steps[at], scope=Scope(scope.only, tuple(skip)))
    return Plan(f"{plan.name}, {len(nodes)} layer{'s' if len(nodes) > 1 else ''} raised", tuple(steps))


def _step_of(plan: Plan, node: str) -> int:
    """The quantizing step that names a node, or the first that takes all."""
    steps = [(at, step) for at, step in enumerate(plan.steps) if rounds(step)]
    naming = [at for at, step in steps if any(fnmatchcase(node, pattern) for pattern in step.scope.only)]
    return next(iter(naming or [at for at, step in steps if not step.scope.only] or [at for at, _ in steps]))


def fewest(most: int, holds: Callable[[int], bool | None]) -> int:
    """The smallest count from 1 to `most` that holds, asking of few: doubled until one does, then halved down.

    Args:
        holds: whether a count does, if so every larger one does too; None ends the search.

    Returns:
        The smallest that was found to hold; 0 if none was.
    """
    found, misses, count = most + 1, 0, 1
    while misses + 1 < found and count <= most:
        answer = holds(count)
        if answer is None:
            break
        if answer:
            found = count
        else:
            misses = count
        count = min(2 * count, most) if found > most else (misses + found) // 2
    return found if found <= most else 0


def through_quantizing(plan: Plan) -> Plan:
    """The plan up to and with its quantizing steps: what comes behind mends, and costs time to make."""
    last = max((at for at, step in enumerate(plan.steps) if rounds(step)), default=-1)
    return Plan(plan.name, tuple(step for step in plan.steps[: last + 1] if not _mends(step)))


def _mends(step: Step) -> bool:
    return step.method == "correct_bias"


def culprits(blames: Sequence[LayerBlame]) -> tuple[tuple[str, ...], ...]:
    """Nodes, each with those that go with it, in the order in which they should be raised.

    By noise taken away per latency paid, as far as that was measured; then by the noise that they add.
    """
    measured = [blame for blame in blames if blame.restored_db is not None]
    others = [blame for blame in blames if blame.restored_db is None]
    measured.sort(key=relief_by_price, reverse=True)
    others.sort(key=lambda blame: blame.added_ratio, reverse=True)
    return tuple((blame.node, *blame.restored_with) for blame in (*measured, *others))


def relief_by_price(blame: LayerBlame) -> float:
    """The share of the outputs' noise that restoring the layer takes away, for each share of latency it costs."""
    relief = 1.0 - float(10.0 ** (-(blame.restored_db or 0.0) / 10))
    price = max((blame.restored_latency_ratio or 1.0) - 1.0, LEAST_PRICE)
    return relief / price if relief > 0 else relief * price  # what makes things worse comes last, dear or cheap


def to_mend(tried: Sequence[Candidate], budget: Budget) -> Plan | None:
    """The truest of the best plans that round, within the limits but below the floor, if it would beat all that hold.

    None where even the original breaks it, as it may with `confident` and few samples.
    """
    minimize = budget.minimize
    within = [candidate for candidate in tried if candidate.facts and budget.excess_ratio(candidate.facts) == 1]
    if any(candidate.plan.name == ORIGINAL and not candidate.met for candidate in within):
        return None
    breaking = [candidate for candidate in within if not candidate.met and quantizing(candidate.plan) is not None]
    worth = [candidate for candidate in breaking if worth_mending(candidate, tried, minimize)]
    best = max((gain(candidate, minimize) for candidate in worth), default=0.0)
    near = [candidate for candidate in worth if gain(candidate, minimize) >= best * (1 - NEAR)]
    return (
        max(near, key=lambda candidate: candidate.facts.accuracy.snr_db if candidate.facts else 0.0).plan
        if near
        else None
    )


def worth_mending(candidate: Candidate, tried: Sequence[Candidate], minimize: Minimize) -> bool:
    """Whether it is still clearly better than every candidate that holds the floor."""
    holding = [gain(other, minimize) for other in tried if other.met and other.facts]
    return candidate.facts is not None and gain(candidate, minimize) > max(holding, default=0.0) * (1 + SAME_SPEED)
