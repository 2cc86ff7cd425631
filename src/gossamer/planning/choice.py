"""Which candidate to return: the fastest or smallest that meets the floor; among equals, the truest."""

from __future__ import annotations

from collections.abc import Sequence

from gossamer.nouns.budget import Budget
from gossamer.nouns.facts import Facts
from gossamer.nouns.record import Candidate
from gossamer.planning.candidates import ORIGINAL, gain

SAME_SPEED = 0.03  # two files of the same graph differ by this much on a noisy machine
SAME_SIZE = 0.005


def rank(tried: Sequence[Candidate], budget: Budget) -> list[Candidate]:
    """All candidates that passed the gate, the one to return first.

    Those that meet the floor come first, by gain; whoever is within measurement noise of the best remaining gain
    counts as equal to it, and of equals the one with the highest signal-to-noise ratio leads. A gain within the noise
    over the original is no gain: the original, untouched, leads its equals. Those that break the floor follow by drop.
    """
    alive = [candidate for candidate in tried if candidate.facts is not None]
    meeting = [candidate for candidate in alive if candidate.met]
    breaking = [candidate for candidate in alive if not candidate.met]
    tolerance = SAME_SPEED if budget.minimize == "latency" else SAME_SIZE
    ranked: list[Candidate] = []
    while meeting:
        best = max(gain(candidate, budget.minimize) for candidate in meeting)
        equal = [candidate for candidate in meeting if gain(candidate, budget.minimize) >= best * (1 - tolerance)]
        first = max(equal, key=lambda candidate: (candidate.plan.name == ORIGINAL, _facts(candidate).accuracy.snr_db))
        ranked.append(first)
        meeting.remove(first)
    return ranked + sorted(breaking, key=lambda candidate: _facts(candidate).accuracy.drop)


def _facts(candidate: Candidate) -> Facts:
    if candidate.facts is None:
        raise ValueError(f"{candidate.plan.name} did not pass the gate")  # `rank` lets none of these through
    return candidate.facts
