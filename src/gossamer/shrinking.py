"""The smallest file or archive that keeps the floor: a form for every weight, from a limit that measurement moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from gossamer.archive.pack import pack
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
from gossamer.planning.budgeted import Budgeted, fitted, units, within
from gossamer.planning.candidates import CLEAN
from gossamer.planning.ledger import Entry, each, ledger
from gossamer.planning.limits import Attempt, next_limit
from gossamer.planning.rate_ladder import ladder

BITS: tuple[Bits, ...] = (2, 3, 4, 5, 6, 8)
ENTRIES = (4, 8, 16, 32)  # of codebooks, which lose less than grids of as many bits in about half of all layers
MENU: tuple[Constraint, ...] = (*(Grid(bits) for bits in BITS), *(Codebook(entries) for entries in ENTRIES))
THIN = (1 / 8, 1 / 4, 1 / 2)  # of the weights: factors on a grid of 4 bits, below what 2 bits a weight reach
CONFIG: dict[str, Any] = {"solver": "second_order", "form": "cast"}
FIRST_RATIO = 1 / 6  # of the float bytes: where weights of some five bits lead, and most nets keep their accuracy
FIRST_ARCHIVE_RATIO = 1 / 12  # the same of archives, where weights take some three bits then
MOST_ATTEMPTS = 6
MOST_IN_ORDER = 3
DARING = 0.85  # of the smallest limit that held: what may hold too, once layers make up for each other
MOST_TRAINED = 3
SMALLER = 0.7  # of the smallest limit that held: what may hold once it is trained
LEDGER_S, ARCHIVE_LEDGER_S = 120.0, 240.0
MENDING_BYTES = 16  # that a layer may grow by when it is mended: biases and scales have a place already, names do not
AFTER = (Step("correct_bias", {"statistics": "sequential"}),)  # gains 2 to 4 dB behind few bits, the fast form half
AFTER_RATE = (*AFTER, Step("round_floats"))


@dataclass(frozen=True)
class Ledger:
    """What every weight could become, and what the file holds besides.

    Attributes:
        entries: see `planning.ledger`.
        before: what plans begin with.
        model: as that leaves it.
        other_bytes: of the file, without the weights of the entries.
        first_ratio: of the original's bytes: the first limit.
    """

    entries: tuple[Entry, ...]
    before: Plan
    model: Model
    other_bytes: int
    first_ratio: float = FIRST_RATIO

    @property
    def least_bytes(self) -> float:
        """Of the smallest allocation."""
        return self.other_bytes + sum(float(unit.bytes_J.min()) for unit in units(self.entries))

    def within(self, limit_bytes: float) -> Budgeted:
        """The plan of least predicted noise whose file is no larger than a limit.

        Raises:
            OptionError: there is none; the text says the smallest that can be reached, and its predicted noise.
        """
        name = f"{_size_name(limit_bytes)} of weights"
        found = fitted(self.entries, limit_bytes, self.other_bytes, self.before, CONFIG, name, self._size_of)
        return _followed_by(found, AFTER)

    def corrected(self, expected_bytes: float, real_bytes: float) -> Ledger:
        """Itself: files are made to fit."""
        return self

    def _size_of(self, plan: Plan) -> int:
        """Of the file that a plan leads to; the solver does not matter for that."""
        quick = {**CONFIG, "solver": "nearest"}
        steps = tuple(
            msgspec.structs.replace(step, config={**step.config, **quick})
            for step in plan.steps
            if step.method == METHOD
        )
        return len(to_bytes(run_plan(Plan(plan.name, steps), self.model).model)) + MENDING_BYTES * len(self.entries)


@dataclass(frozen=True)
class ArchiveLedger(Ledger):
    """The same of an archive, whose bytes are known once it is packed.

    Attributes:
        factor: bytes that weights took, over those expected of them.
    """

    first_ratio: float = FIRST_ARCHIVE_RATIO
    factor: float = 1.0

    @property
    def least_bytes(self) -> float:
        """Of the smallest allocation."""
        return self.other_bytes + self.factor * (super().least_bytes - self.other_bytes)

    def within(self, limit_bytes: float) -> Budgeted:
        """The plan of least predicted noise whose archive is expected to be no larger than a limit.

        Raises:
            OptionError: there is none; the text says the smallest that can be reached, and its predicted noise.
        """
        name = f"{_size_name(limit_bytes)} to download"
        limit_bytes = self.other_bytes + (limit_bytes - self.other_bytes) / self.factor
        found = within(self.entries, limit_bytes, self.other_bytes, self.before, CONFIG, name)
        cost = self.other_bytes + (found.allocation.cost - self.other_bytes) * self.factor
        return _followed_by(found._replace(allocation=found.allocation._replace(cost=cost)), AFTER_RATE)

    def corrected(self, expected_bytes: float, real_bytes: float) -> Ledger:
        """With what an archive took of what was expected of it."""
        share = (real_bytes - self.other_bytes) / max(expected_bytes - self.other_bytes, 1.0)
        return replace(self, factor=self.factor * min(max(share, 0.5), 2.0))


def weigh(model: Model, evidence: Evidence, memo: Memo, budget_s: float = LEDGER_S) -> Ledger:
    """Every weight solved for every grid and codebook, and what its noise does to the network's outputs.

    Raises:
        ModelError, DataError, CandidateError: see `planning.ledger.ledger`.
    """
    clean = run_plan(CLEAN, model, evidence, memo).model
    entries = ledger(clean, evidence, each(MENU, THIN), budget_s=min(LEDGER_S, budget_s))
    other_bytes = len(to_bytes(clean)) - sum(entry.options[0].stored_bytes for entry in entries)
    return Ledger(entries, CLEAN, clean, other_bytes)


def weigh_archives(model: Model, evidence: Evidence, memo: Memo, budget_s: float = ARCHIVE_LEDGER_S) -> ArchiveLedger:
    """Every weight solved at several rates, see `planning.rate_ladder`, and what its noise does to the outputs.

    Raises:
        ModelError, DataError, CandidateError: see `planning.ledger.ledger`.
    """
    clean = run_plan(CLEAN, model, evidence, memo).model
    entries = ledger(clean, evidence, ladder, budget_s=min(ARCHIVE_LEDGER_S, budget_s))
    packed, weights = pack(to_bytes(clean)), {entry.weight for entry in entries}
    of_weights = sum(tensor.coded_bytes for tensor in packed.tensors if tensor.name in weights)
    return ArchiveLedger(entries, CLEAN, clean, round(len(packed.data) - of_weights))


def shrink(
    found: Ledger, full_bytes: int, limit_bytes: int | None, smallest: bool, attempt: Callable[[Plan], Attempt | None]
) -> None:
    """Try limits, each with the plan of least predicted noise, until the smallest that holds the floor is known.

    Then smaller ones are tried layer by layer, which is truer and takes several times as long; so is a limit that must
    hold and does not.

    Args:
        full_bytes: of the original.
        limit_bytes: the largest allowed; None for no limit.
        smallest: whether to go on below a limit that holds.
        attempt: makes a candidate and measures its bytes and whether it met the floor; None if it failed.

    Raises:
        OptionError: the limit cannot be reached.
    """
    most = float(limit_bytes or full_bytes)
    if found.least_bytes > most:
        found.within(most)  # says the smallest that can be reached
    tried: list[Attempt] = []
    held: Plan | None = None
    limit: float | None = most if limit_bytes else min(most, max(found.first_ratio * full_bytes, found.least_bytes))
    while limit is not None and len(tried) < MOST_ATTEMPTS:
        plan, found = _tried(found, limit, tried, attempt, any(one.met for one in tried))
        held = plan if tried[-1].met else held
        if plan and limit_bytes and not tried[0].met:
            attempt(in_order(plan))
            return
        limit = next_limit(tried, found.least_bytes, most) if smallest else None
    if held is None:
        return
    least = min(one.limit for one in tried if one.met)
    better: list[Attempt] = []
    limit = DARING * least if smallest else None
    while limit is not None and len(better) < MOST_IN_ORDER and limit > found.least_bytes:
        _, found = _tried(found, limit, better, lambda plan: attempt(in_order(plan)), True)
        limit = next_limit(better, max(found.least_bytes, DARING**2 * least), least)
    if not any(one.met for one in better):
        attempt(in_order(held))


def train_smaller(
    found: Ledger, held_bytes: float | None, limit_bytes: int | None, attempt: Callable[[Plan], Attempt | None]
) -> None:
    """Limits that nothing held, with plans that are trained, until the smallest that then holds is known.

    Args:
        held_bytes: the smallest that held so far; None if nothing did.
        limit_bytes: the largest allowed; None for no limit.
        attempt: makes a candidate, trains it and measures its bytes and whether it met the floor; None if it failed.
    """
    tried = [] if held_bytes is None else [Attempt(held_bytes, True)]
    most = float(limit_bytes or 0) if held_bytes is None else held_bytes
    limit: float | None = most if held_bytes is None else SMALLER * held_bytes
    for _ in range(MOST_TRAINED):
        if limit is None or limit <= found.least_bytes:
            return
        _, found = _tried(found, limit, tried, lambda plan: attempt(in_order(plan)), True)
        if held_bytes is None and not tried[0].met:
            return
        least = min(one.limit for one in tried if one.met)
        limit = next_limit(tried, max(found.least_bytes, SMALLER**2 * least), least)


def _tried(
    found: Ledger, limit: float, tried: list[Attempt], attempt: Callable[[Plan], Attempt | None], any_held: bool
) -> tuple[Plan | None, Ledger]:
    """The plan within a limit and what became of it, put down; None where nodes put it out of reach, but others held.

    Raises:
        OptionError: none held.
    """
    try:
        budgeted = found.within(limit)
    except OptionError:
        if not any_held:
            raise
        tried.append(Attempt(limit, False))
        return None, found
    made = attempt(budgeted.plan)
    tried.append(made or Attempt(limit, False))
    return budgeted.plan, found if made is None else found.corrected(budgeted.allocation.cost, made.limit)


def in_order(plan: Plan) -> Plan:
    """The plan with each layer solved behind those that are constrained already."""
    steps = tuple(
        msgspec.structs.replace(step, config={**step.config, "sequential": True}) if step.method == METHOD else step
        for step in plan.steps
    )
    return Plan(f"{plan.name}, in order", steps)


def _size_name(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:.3g} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.3g} kB"


def _followed_by(found: Budgeted, steps: Sequence[Step]) -> Budgeted:
    return found._replace(plan=msgspec.structs.replace(found.plan, steps=(*found.plan.steps, *steps)))
