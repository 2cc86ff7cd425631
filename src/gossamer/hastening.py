"""The truest plan within a limit on latency: a way to compute every layer, by prices that measurement corrects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from typing import Any, NamedTuple

import msgspec
import numpy as np

from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Plan, Scope, Step, quantizing
from gossamer.passes.contract import Memo, run_plan
from gossamer.planning.allocated import allocated
from gossamer.planning.allocation import Allocation, allocate
from gossamer.planning.limits import Attempt, next_limit
from gossamer.planning.priced import Place, Priced, price
from gossamer.planning.ways import Way

CONFIG: Mapping[str, Any] = {"solver": "second_order", "form": "fastest"}
MOST_ATTEMPTS = 6
PRICES_S = 120.0
LEAST_ROOM = 0.03  # of the limit: less that is left over buys nothing that could be measured
MARGIN = 0.005  # of the limit, more each time that measurement is above it
MENDING = "correct_bias"
STATIC = ("quantize_static", MENDING)


class Measured(NamedTuple):
    """An artifact.

    Attributes:
        latency_ratio: its latency over that of the original, both of one race.
        held: whether it kept the floor.
    """

    latency_ratio: float
    held: bool


class Hastened(NamedTuple):
    """A plan, and what is expected of it: `allocation.loss` is the predicted noise over signal of the network's
    outputs, `allocation.cost` the milliseconds with everything that is no priced layer."""

    plan: Plan
    allocation: Allocation


@dataclass(frozen=True)
class Table:
    """What every layer could become, and what the rest takes.

    Attributes:
        priced: see `planning.priced`.
        base: the plan that is varied: its steps in front of quantizers, and its quantizers where it has any.
        full_ms: of the original.
        notes: what was not offered, in plain words.
    """

    priced: tuple[Priced, ...]
    base: Plan
    full_ms: float
    notes: tuple[str, ...] = ()

    @property
    def other_ms(self) -> float:
        """Of the original without the priced layers; below 0 where layers alone take longer than together."""
        return self.full_ms - sum(float(one.ms_W[0]) for one in self.priced)

    @property
    def least_ms(self) -> float:
        """Of the fastest allocation."""
        return self.other_ms + sum(float(one.ms_W.min()) for one in self.priced)

    def within(self, limit_ms: float, more_ms: float = 0.0) -> Hastened:
        """The plan of least predicted noise that is predicted to be no slower than a limit.

        Args:
            more_ms: what measurement found beyond predictions.

        Raises:
            OptionError: there is none; the text says the fastest that can be reached, and its predicted noise.
        """
        rest = self.other_ms + more_ms
        losses, costs = [one.noise_W for one in self.priced], [one.ms_W for one in self.priced]
        found = allocate([*losses, np.zeros(1)], [*costs, np.array([rest])], limit_ms, "ms")
        chosen = zip(self.priced, found.choices, strict=False)
        ways = {node: one.ways[choice] for one, choice in chosen for node in one.nodes}
        return Hastened(_plan(ways, self.base, f"layers priced for {limit_ms / self.full_ms:.1%} of the time"), found)


def time_layers(
    model: Model, evidence: Evidence, memo: Memo, place: Place, base: Plan, full_ms: float, budget_s: float = PRICES_S
) -> Table:
    """Every layer timed in every way, as a plan's steps in front of its quantizers leave the network.

    Args:
        base: a plan to vary, such as the best static one so far; one without quantizers gives float activations.
        full_ms: latency of the original.

    Raises:
        ModelError, DataError, CandidateError: see `planning.priced.price`.
    """
    clean = run_plan(Plan("ahead", base.steps[: quantizing(base)]), model, evidence, memo).model
    weight_bits: Any = next((step.config["weight_bits"] for step in base.steps if "weight_bits" in step.config), 8)
    offers = price(clean, evidence, place, min(PRICES_S, budget_s), weight_bits)
    keep = any(step.method == "quantize_static" for step in base.steps)
    priced = offers.priced if keep else tuple(map(_in_float, offers.priced))
    return Table(priced, base, full_ms, offers.notes)


def hasten(
    found: Table, limit_ms: float | None, best_ms: float, fastest: bool, attempt: Callable[[Plan], Measured | None]
) -> None:
    """Try plans, each with what measurement taught of the one before it.

    First, until one is measured to be within the limit; then below that and below the best so far, as `shrink` does
    with bytes, until the fastest that keeps the floor is known.

    Args:
        limit_ms: the most allowed; None for no limit.
        best_ms: of the fastest that keeps the floor so far, such as the original.
        fastest: whether to go on below a limit that holds.
        attempt: makes a candidate and measures it; None if it failed, or is the same as one before.

    Raises:
        OptionError: the limit cannot be reached.
    """
    search = _Search(found, attempt)
    most_ms = best_ms
    if limit_ms is not None and best_ms > limit_ms:
        _reach(search, limit_ms)
        held = [one.limit for one in search.tried if one.met and one.limit <= limit_ms]
        if not held:
            return
        most_ms = min(held)
    while fastest and len(search.tried) < MOST_ATTEMPTS:
        least_ms = found.least_ms + search.more_ms
        limit = next_limit(search.tried, least_ms, most_ms) if 0 < least_ms < most_ms else None
        if limit is None or search.measure(limit) is None:
            return


def _reach(search: _Search, limit_ms: float) -> None:
    """Down to a limit; where a plan is far below it and yet misses the floor, the room is spent on truth."""
    margin_ms = 0.0
    while len(search.tried) < MOST_ATTEMPTS:
        last = search.measure(limit_ms - margin_ms)
        if last is None or (last.limit <= limit_ms and (last.met or last.limit > (1 - LEAST_ROOM) * limit_ms)):
            return
        if last.limit > limit_ms:
            margin_ms += MARGIN * limit_ms


@dataclass
class _Search:
    """What was measured, and what that says of the next.

    Attributes:
        tried: measured milliseconds, and whether the floor held.
        more_ms: what the last one took beyond its layers' prices.
    """

    found: Table
    attempt: Callable[[Plan], Measured | None]
    tried: list[Attempt] = field(default_factory=list)
    more_ms: float = 0.0
    _seen: set[bytes] = field(default_factory=set)

    def measure(self, limit_ms: float) -> Attempt | None:
        """Of the truest plan predicted to be within a limit; None where that was measured before, or fails."""
        plan, allocation = self.found.within(limit_ms, self.more_ms)
        key = msgspec.json.encode(plan.steps, order="sorted")
        measured = None if key in self._seen else self.attempt(plan)
        if measured is None:
            return None
        self._seen.add(key)
        real_ms = measured.latency_ratio * self.found.full_ms
        self.more_ms += real_ms - allocation.cost
        self.tried.append(Attempt(real_ms, measured.held))
        return self.tried[-1]


def _in_float(one: Priced) -> Priced:
    """Without the ways in integers."""
    kept = [at for at, way in enumerate(one.ways) if not way.integer]
    return one._replace(ways=tuple(one.ways[at] for at in kept), noise_W=one.noise_W[kept], ms_W=one.ms_W[kept])


def _plan(ways: Mapping[str, Way], base: Plan, name: str) -> Plan:
    """The base with every layer in its way.

    Factors that are to run in integers come first, then the quantizers, which leave out all other layers, and then what
    these become, so that every step meets the names it gives.
    """
    at = quantizing(base)
    ahead, behind = base.steps[:at], base.steps[len(base.steps) if at is None else at :]
    whole = [node for node, way in ways.items() if not way.integer]
    first = _constrained(Plan(name, ahead), {node: way for node, way in ways.items() if way.integer})
    every = any(way.integer for way in ways.values())
    kept = [_without(step, whole) for step in behind if every or step.method not in STATIC]
    quantizers = [step for step in kept if step.method != MENDING]
    last = _constrained(Plan(name, (*first.steps, *quantizers)), {node: ways[node] for node in whole})
    return Plan(name, (*last.steps, *(step for step in kept if step.method == MENDING)))


def _constrained(plan: Plan, ways: Mapping[str, Way]) -> Plan:
    return allocated(plan, list(ways), [way.constraint for way in ways.values()], CONFIG, plan.name)


def _without(step: Step, nodes: Sequence[str]) -> Step:
    """The quantizing step with some nodes left out."""
    if step.method != "quantize_static" or not nodes:
        return step
    skip = dict.fromkeys((*step.scope.skip, *map(escape, nodes)))
    return msgspec.structs.replace(step, scope=Scope(step.scope.only, tuple(skip)))
