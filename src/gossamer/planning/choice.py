"""Which candidate to return: the fastest or smallest that meets the floor; among equals, the truest."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from gossamer.nouns.budget import Budget, Minimize
from gossamer.nouns.facts import Facts
from gossamer.nouns.plan import ORIGINAL
from gossamer.nouns.record import Candidate

SAME_SPEED = 0.03  # two files of the same graph differ by this much on a noisy machine
SAME_SIZE = 0.005
NEAR = 0.1  # what one race may turn around of what was timed at different moments
MOST_FINALISTS = 10
TRUE_DB = 33.0  # noise of a 45th of the outputs' size, which turns one answer in some hundreds


def rank(tried: Sequence[Candidate], budget: Budget) -> list[Candidate]:
    """All candidates that passed the gate, the one to return first.

    Those that meet the floor come first, by gain; of equals (see `leader`) the truest leads. A gain within the noise
    over the original is no gain: the original, untouched, leads its equals. The others follow by `shortfall`.
    """
    alive = [candidate for candidate in tried if candidate.facts is not None]
    meeting = [candidate for candidate in alive if candidate.met]
    breaking = [candidate for candidate in alive if not candidate.met]
    ranked: list[Candidate] = []
    while meeting:
        ranked.append(leader(meeting, budget.minimize))
        meeting.remove(ranked[-1])
    return ranked + sorted(breaking, key=lambda candidate: shortfall(_facts(candidate), budget))


def shortfall(facts: Facts, budget: Budget) -> tuple[float, float]:
    """How far a result is from what was asked, to be sorted by: limits first, and then the drop.

    A file that is too large cannot be used at all; one that is less true can. But if none is small enough, then it is
    the smallest of those which keep the floor.
    """
    excess_ratio, drop = budget.excess_ratio(facts), facts.accuracy.drop
    if excess_ratio > 1 and drop > budget.max_drop:
        return inf, drop
    return excess_ratio, drop


def leader(candidates: Sequence[Candidate], minimize: Minimize) -> Candidate:
    """The best of some candidates that passed the gate.

    Whoever is within measurement noise of the best gain counts as equal to it; of equals the one with the highest
    signal-to-noise ratio leads, but for the original, which leads any.
    """
    tolerance = SAME_SPEED if minimize == "latency" else SAME_SIZE
    best = max(gain(candidate, minimize) for candidate in candidates)
    equal = [candidate for candidate in candidates if gain(candidate, minimize) >= best * (1 - tolerance)]
    return max(equal, key=lambda candidate: (candidate.plan.name == ORIGINAL, _facts(candidate).accuracy.snr_db))


def finalists(tried: Sequence[Candidate], budget: Budget) -> list[Candidate]:
    """Those whose latency decides, and lies too close together for what was timed minutes apart; the best first."""
    meeting = [candidate for candidate in rank(tried, budget) if candidate.met and candidate.plan.name != ORIGINAL]
    if budget.minimize != "latency" or not meeting:
        return []
    best = max(gain(candidate, "latency") for candidate in meeting)
    near = [candidate for candidate in meeting if gain(candidate, "latency") >= best * (1 - NEAR)]
    return near[:MOST_FINALISTS]


def is_true_enough(candidate: Candidate, budget: Budget) -> bool:
    """Whether a truer one would be no more use: the floor holds on the whole interval, and the noise is faint."""
    accuracy = _facts(candidate).accuracy
    return candidate.met and accuracy.high <= budget.max_drop and accuracy.snr_db >= TRUE_DB


def gain(candidate: Candidate, minimize: Minimize) -> float:
    """How many times faster or smaller than the original."""
    if candidate.plan.name == ORIGINAL:  # exactly, whatever the clock says
        return 1.0
    facts = _facts(candidate)
    return facts.latency_ms.ratio if minimize == "latency" else facts.bytes.original / facts.bytes.result


def _facts(candidate: Candidate) -> Facts:
    if candidate.facts is None:
        raise ValueError(f"{candidate.plan.name} did not pass the gate")  # those who ask have sorted these out
    return candidate.facts
