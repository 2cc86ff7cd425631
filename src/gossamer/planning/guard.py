"""The guard's plans: where integers break the floor, the layers to blame are raised, cheapest relief first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from glob import escape

import msgspec

from gossamer.nouns.budget import Minimize
from gossamer.nouns.diagnosis import LayerBlame
from gossamer.nouns.plan import Plan, Scope, Step, quantizing
from gossamer.nouns.record import Candidate
from gossamer.planning.choice import NEAR, SAME_SPEED, gain

LEAST_PRICE = 0.005  # shares of latency below this are noise


def raised(plan: Plan, nodes: Collection[str]) -> Plan:
    """The plan with these nodes taken out of its first quantizing step: in float, or in what a later step gives them.

    Raises:
        ValueError: no step quantizes.
    """
    at = quantizing(plan)
    if at is None:
        raise ValueError(f"{plan.name} does not quantize")
    step = plan.steps[at]
    if step.scope.only:
        scope = Scope(only=tuple(name for name in step.scope.only if name not in nodes), skip=step.scope.skip)
    else:
        skip = dict.fromkeys((*step.scope.skip, *(escape(name) for name in nodes)))  # a scope holds patterns
        scope = Scope(skip=tuple(skip))
    steps = (*plan.steps[:at], msgspec.structs.replace(step, scope=scope), *plan.steps[at + 1 :])
    return Plan(f"{plan.name}, {len(nodes)} layer{'s' if len(nodes) > 1 else ''} raised", steps)


def through_quantizing(plan: Plan) -> Plan:
    """The plan up to and with its quantizing steps: what comes behind mends, and costs time to make."""
    last = max((at for at, step in enumerate(plan.steps) if step.method.startswith("quantize_")), default=-1)
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


def to_mend(tried: Sequence[Candidate], minimize: Minimize) -> Plan | None:
    """The truest of the best quantizing plans that break the floor, if it would beat all that hold it."""
    breaking = [candidate for candidate in tried if not candidate.met and quantizing(candidate.plan) is not None]
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
