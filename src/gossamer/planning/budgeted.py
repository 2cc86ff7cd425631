"""From a limit on bytes to a plan: the allocation over all weights, corrected by what the file really comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gossamer.constraints.contract import Constraint
from gossamer.errors import OptionError
from gossamer.nouns.plan import Plan
from gossamer.planning.allocated import allocated
from gossamer.planning.allocation import Allocation, allocate
from gossamer.planning.ledger import Entry

ROUNDS = 6  # files tried
MARGIN = 0.001  # of the limit, more in every round


class Unit(NamedTuple):
    """Weights that must meet the same constraint, as the same nodes read them; mostly one.

    Attributes:
        constraints: of each option; None for float.
        noise_J, bytes_J: of each option.
    """

    nodes: tuple[str, ...]
    constraints: tuple[Constraint | None, ...]
    noise_J: np.ndarray
    bytes_J: np.ndarray


class Budgeted(NamedTuple):
    """A plan within a limit, and what is expected of it: `allocation.loss` is the predicted noise over signal of the
    network's outputs, `allocation.cost` the bytes with everything that is not a weight."""

    plan: Plan
    allocation: Allocation


def units(entries: Sequence[Entry]) -> tuple[Unit, ...]:
    """Weights by the nodes that read them, each group with the constraints that all of it can meet."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.nodes, []).append(entry)
    return tuple(_unit(nodes, group) for nodes, group in groups.items())


def within(
    entries: Sequence[Entry],
    limit_bytes: float,
    other_bytes: int,
    before: Plan,
    config: Mapping[str, Any],
    name: str,
) -> Budgeted:
    """The plan with the least predicted noise whose weights and `other_bytes` are within a limit.

    Args:
        other_bytes: of all that is no weight here: the file with these weights in float, less 4 bytes for each.
        before: see `allocated`, as are `config` and `name`.

    Raises:
        OptionError: it cannot be reached; the text says the smallest that can and its predicted noise.
    """
    every = units(entries)
    rest = (np.zeros(1), np.array([float(other_bytes)]))  # one more layer without a choice
    found = allocate(
        [*(unit.noise_J for unit in every), rest[0]], [*(unit.bytes_J for unit in every), rest[1]], limit_bytes
    )
    chosen = [unit.constraints[choice] for unit, choice in zip(every, found.choices, strict=False)]
    nodes = [node for unit in every for node in unit.nodes]
    each = [constraint for unit, constraint in zip(every, chosen, strict=True) for _ in unit.nodes]
    return Budgeted(allocated(before, nodes, each, config, name), found)


def fitted(
    entries: Sequence[Entry],
    limit_bytes: float,
    other_bytes: int,
    before: Plan,
    config: Mapping[str, Any],
    name: str,
    size_of: Callable[[Plan], int],
) -> Budgeted:
    """The same, within the limit as a file: what nodes and padding take beyond the forms counts with the other bytes.

    Args:
        size_of: plan -> bytes of the file it leads to; the solver does not matter for that.

    Raises:
        OptionError: no file within the limit was found; the text says the smallest that can be reached.
    """
    closest = np.inf
    for attempt in range(ROUNDS):
        found = within(entries, limit_bytes, other_bytes, before, config, name)
        real_bytes = size_of(found.plan)
        if real_bytes <= limit_bytes:
            return found
        closest = min(closest, real_bytes)
        margin = MARGIN * attempt * limit_bytes  # another allocation has other nodes
        other_bytes += int(np.ceil(max(real_bytes - found.allocation.cost, real_bytes - limit_bytes, 1) + margin))
    raise OptionError(
        f"no file within {limit_bytes:,.0f} bytes was found in {ROUNDS} attempts; the closest has "
        f"{closest:,.0f} bytes; allow at least that much"
    )


def _unit(nodes: tuple[str, ...], group: Sequence[Entry]) -> Unit:
    first, *others = ({option.constraint: place for place, option in enumerate(entry.options)} for entry in group)
    shared = tuple(constraint for constraint in first if all(constraint in other for other in others))
    places = [[places[constraint] for constraint in shared] for places in (first, *others)]
    noise_J = np.sum([entry.noise_ratios()[at] for entry, at in zip(group, places, strict=True)], axis=0)
    sizes = [[entry.options[place].stored_bytes for place in at] for entry, at in zip(group, places, strict=True)]
    return Unit(nodes, shared, np.asarray(noise_J), np.sum(sizes, axis=0).astype(np.float64))
