"""The smallest file that keeps the floor: a grid or codebook for every weight, from a limit that measurement moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gossamer.arith.weight_grid import Bits
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.contract import Constraint
from gossamer.constraints.grid import Grid
from gossamer.errors import OptionError
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Plan, Step
from gossamer.passes.contract import Memo, run_plan
from gossamer.planning.allocated import METHOD
from gossamer.planning.budgeted import Budgeted, fitted, units
from gossamer.planning.candidates import CLEAN
from gossamer.planning.ledger import Entry, ledger
from gossamer.planning.limits import Attempt, next_limit

BITS: tuple[Bits, ...] = (2, 3, 4, 5, 6, 8)
ENTRIES = (4, 8, 16, 32)  # of codebooks, which lose less than grids of as many bits in about half of all layers
MENU: tuple[Constraint, ...] = (*(Grid(bits) for bits in BITS), *(Codebook(entries) for entries in ENTRIES))
CONFIG: dict[str, Any] = {"solver": "second_order", "form": "cast"}
FIRST_RATIO = 1 / 6  # of the float bytes: where weights of some five bits lead, and most nets keep their accuracy
MOST_ATTEMPTS = 6
LEDGER_S = 120.0
MENDING_BYTES = 16  # that a layer may grow by when it is mended: biases and scales have a place already, names do not
AFTER = Step("correct_bias", {"statistics": "sequential"})  # gains 2 to 4 dB behind few bits, the fast form half of one


@dataclass(frozen=True)
class Ledger:
    """What every weight could become, and what the file holds besides.

    Attributes:
        entries: see `planning.ledger`.
        before: what plans begin with.
        model: as that leaves it.
        other_bytes: of the file, without the weights of the entries.
    """

    entries: tuple[Entry, ...]
    before: Plan
    model: Model
    other_bytes: int

    @property
    def least_bytes(self) -> float:
        """Of the smallest allocation."""
        return self.other_bytes + sum(float(unit.bytes_J.min()) for unit in units(self.entries))

    def within(self, limit_bytes: float) -> Budgeted:
        """The plan of least predicted noise whose file is no larger than a limit.

        Raises:
            OptionError: there is none; the text says the smallest that can be reached, and its predicted noise.
        """
        name = (
            f"{limit_bytes / 1e6:.3g} MB of weights" if limit_bytes >= 1e6 else f"{limit_bytes / 1e3:.3g} kB of weights"
        )
        found = fitted(self.entries, limit_bytes, self.other_bytes, self.before, CONFIG, name, self._size_of)
        return found._replace(plan=msgspec.structs.replace(found.plan, steps=(*found.plan.steps, AFTER)))

    def _size_of(self, plan: Plan) -> int:
        """Of the file that a plan leads to; the solver does not matter for that."""
        quick = {**CONFIG, "solver": "nearest"}
        steps = tuple(
            msgspec.structs.replace(step, config={**step.config, **quick})
            for step in plan.steps
            if step.method == METHOD
        )
        return len(to_bytes(run_plan(Plan(plan.name, steps), self.model).model)) + MENDING_BYTES * len(self.entries)


def weigh(model: Model, evidence: Evidence, memo: Memo, budget_s: float = LEDGER_S) -> Ledger:
    """Every weight solved for every grid and codebook, and what its noise does to the network's outputs.

    Raises:
        ModelError, DataError, CandidateError: see `planning.ledger.ledger`.
    """
    clean = run_plan(CLEAN, model, evidence, memo).model
    entries = ledger(clean, evidence, MENU, budget_s=min(LEDGER_S, budget_s))
    other_bytes = len(to_bytes(clean)) - sum(entry.options[0].stored_bytes for entry in entries)
    return Ledger(entries, CLEAN, clean, other_bytes)


def shrink(
    found: Ledger, full_bytes: int, limit_bytes: int | None, smallest: bool, attempt: Callable[[Plan], bool | None]
) -> None:
    """Try limits, each with the plan of least predicted noise, until the smallest that holds the floor is known.

    The last is made once more layer by layer, which is truer and takes several times as long; so is a limit that must
    hold and does not.

    Args:
        full_bytes: of the original.
        limit_bytes: the largest allowed; None for no limit.
        smallest: whether to go on below a limit that holds.
        attempt: makes a candidate and measures it; whether it met the floor, None if it failed.

    Raises:
        OptionError: the limit cannot be reached.
    """
    most = float(limit_bytes or full_bytes)
    if found.least_bytes > most:
        found.within(most)  # says the smallest that can be reached
    tried: list[Attempt] = []
    held: Plan | None = None
    limit: float | None = most if limit_bytes else min(most, max(FIRST_RATIO * full_bytes, found.least_bytes))
    while limit is not None and len(tried) < MOST_ATTEMPTS:
        plan = _within(found, limit, tried)
        met = plan is not None and bool(attempt(plan))
        tried.append(Attempt(limit, met))
        held = plan if met else held
        if plan and limit_bytes and not tried[0].met:
            attempt(in_order(plan))
            return
        limit = next_limit(tried, found.least_bytes, most) if smallest else None
    if held is not None:
        attempt(in_order(held))


def _within(found: Ledger, limit: float, tried: Sequence[Attempt]) -> Plan | None:
    """The plan within a limit; None where nodes put it out of reach, with what they take, but larger limits held."""
    try:
        return found.within(limit).plan
    except OptionError:
        if not any(one.met for one in tried):
            raise
        return None


def in_order(plan: Plan) -> Plan:
    """The plan with each layer solved behind those that are constrained already."""
    steps = tuple(
        msgspec.structs.replace(step, config={**step.config, "sequential": True}) if step.method == METHOD else step
        for step in plan.steps
    )
    return Plan(f"{plan.name}, in order", steps)
