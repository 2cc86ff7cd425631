"""Which table codes which symbol: planes of one sort share tables, one for each size of number.

How large the numbers of a weight are differs by row and column (output and input channel, place in the kernel), and
what is left once that is known looks alike in all layers. So every row and column has a scale (`scales`), row and
column scale add up to a class, and a table for each class serves the whole model. Planes without scales share a table
where they look alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gossamer.archive.reader import MOST_CLASSES
from gossamer.archive.scales import Scaled, alone, clipped, ends, occurrences_in, scales_of, span_of
from gossamer.archive.symbols import Symbols
from gossamer.archive.tables import price

TURNS = 3  # of lifts that are tried, each with the others as they are
BUCKETS = (0.15, 0.4, 0.8, 1.5, 3.0)  # of the usual size of what is foretold, between which a class is lifted alike
LIFT = 8  # classes that the strongest is lifted by, at most
NEVER = 1 << 20  # a size that nothing foretold has


class Choice(NamedTuple):
    """How a plane is coded: the first table of its family's that it takes, how many, and which of them.

    `shift`, `row` and `column` are as in `reader.Plane`; a side without scales is None.
    """

    first: int
    classes: int
    row: np.ndarray | None = None
    column: np.ndarray | None = None
    shift: int = 0


class Family(NamedTuple):
    """What planes of one sort share.

    Attributes:
        tables: those of classes, one behind the other, and those of planes without.
        row, column: of the scales themselves; None where no plane has any.
        choices: of each plane, in the order given.
        thresholds: of what is foretold; each that is reached lifts the class by one.
    """

    tables: tuple[np.ndarray, ...]
    row: np.ndarray | None
    column: np.ndarray | None
    choices: tuple[Choice, ...]
    thresholds: tuple[int, ...]


def family(planes: Sequence[Symbols]) -> Family:
    """The tables that code some planes, of one alphabet, in the fewest bits."""
    places = [
        place
        for place, one in enumerate(planes)
        if one.foretold is not None or (1 < one.width < len(one.values) and one.level.any())
    ]
    found = scales_of([planes[place] for place in places])
    together = {place: one for place, one, apart in zip(places, found, alone(found), strict=True) if not apart}
    choices: dict[int, Choice] = {}
    tables: list[np.ndarray] = []
    row = column = None
    thresholds: tuple[int, ...] = ()
    if together:
        scaled = list(together.values())
        tables, shifts, thresholds = _class_tables(scaled)
        row, column, sides = _sides(scaled)
        for place, shift, side in zip(together, shifts, sides, strict=True):
            choices[place] = Choice(0, len(tables), side.row, side.column, shift + side.lift)
    counts_of = {place: planes[place].counts for place in range(len(planes)) if place not in together}
    for members in _groups(counts_of):
        choices |= dict.fromkeys(members, Choice(len(tables), 1))
        tables.append(np.sum([counts_of[place] for place in members], axis=0))
    return Family(tuple(tables), row, column, tuple(choices[place] for place in range(len(planes))), thresholds)


# --- planes without scales


def _groups(counts_of: dict[int, np.ndarray]) -> list[list[int]]:
    """Planes that share a table, the largest first: each joins where that is cheapest, or opens a group."""
    members: list[list[int]] = []
    totals: list[np.ndarray] = []
    for place in sorted(counts_of, key=lambda one: -int(counts_of[one].sum())):
        counts = counts_of[place].astype(np.float64)
        if totals:
            before = np.stack(totals)
            more = price(before + counts) - price(before)
            best = int(more.argmin())
            if more[best] < price(counts[None])[0]:
                members[best].append(place)
                totals[best] = totals[best] + counts
                continue
        members.append([place])
        totals.append(counts)
    return members


# --- planes with scales


def _class_tables(scaled: Sequence[Scaled]) -> tuple[list[np.ndarray], list[int], tuple[int, ...]]:
    """Tables of all classes, each plane's shift, and thresholds of what is foretold."""
    plain = [one for one in scaled if one.foretold is None]
    aware = [(one, one.foretold) for one in scaled if one.foretold is not None]
    least, classes = span_of(scaled)
    counts = np.zeros((classes, scaled[0].alphabet))
    if plain:
        counts += np.sum([occurrences_in(one, least, classes) for one in plain], axis=0).reshape(counts.shape)
    base = 0
    thresholds: tuple[int, ...] = ()
    if aware:
        counts, base, thresholds = _lifted_counts(aware, counts, least)
        least -= LIFT
    low, high = ends(counts)
    tables = list(clipped(counts, low, min(high, low + MOST_CLASSES - 1)))
    shifts = [least + low - one.middle - (base if one.foretold is not None else 0) for one in scaled]
    return tables, shifts, thresholds


def _lifted_counts(
    aware: Sequence[tuple[Scaled, np.ndarray]], plain: np.ndarray, least: int
) -> tuple[np.ndarray, int, tuple[int, ...]]:
    """Symbols by class, from LIFT below the least on; what the weakest foretelling lifts it by, and thresholds.

    How much each bucket lifts is tried step by step; the stronger lifts at least as much.
    """
    classes, alphabet = plain.shape
    usual = np.sqrt(np.mean([np.mean(np.square(sizes, dtype=np.float64)) for _, sizes in aware]))
    edges = np.maximum(np.round(usual * np.array(BUCKETS)), 1).astype(np.int64)
    counts_BCA = np.zeros((len(edges) + 1, classes, alphabet))
    for one, sizes in aware:
        bucket = np.digitize(sizes, edges)
        for at in range(len(counts_BCA)):
            counts_BCA[at] += occurrences_in(one, least, classes, among=bucket == at).reshape(classes, alphabet)
    padded = np.pad(plain, ((LIFT, LIFT), (0, 0)))

    def lifted(lifts: Sequence[int]) -> np.ndarray:
        total: np.ndarray = padded.copy()
        for counts_CA, lift in zip(counts_BCA, lifts, strict=True):
            total[LIFT + lift : LIFT + lift + classes] += counts_CA
        return total

    def bits(lifts: Sequence[int]) -> float:
        counts = lifted(lifts)
        return float(price(counts[counts.any(axis=1)]).sum())

    best = [0] * len(counts_BCA)
    least_bits = bits(best)
    for _ in range(TURNS):
        for at in range(len(best)):
            for step in (-2, -1, 1, 2):
                tried = [*best[:at], best[at] + step, *best[at + 1 :]]
                if tried == sorted(tried) and -LIFT <= tried[0] and tried[-1] <= LIFT and bits(tried) < least_bits:
                    best, least_bits = tried, bits(tried)
    thresholds = [int(edge) for edge, step in zip(edges, np.diff(best), strict=True) for _ in range(step)]
    return lifted(best), best[0], tuple(thresholds or [NEVER])


class _Side(NamedTuple):
    """Scales of a plane from 0 on, and what was added to them in all."""

    row: np.ndarray | None
    column: np.ndarray | None
    lift: int


def _sides(scaled: Sequence[Scaled]) -> tuple[np.ndarray | None, np.ndarray | None, list[_Side]]:
    """Tables of rows' and of columns' scales, and these of each plane."""
    rows, row_lift, row = _lifted([one.stored[0] for one in scaled])
    columns, column_lift, column = _lifted([one.stored[1] for one in scaled])
    sides = [
        _Side(one, other, row_lift * (one is not None) + column_lift * (other is not None))
        for one, other in zip(rows, columns, strict=True)
    ]
    return row, column, sides


def _lifted(sides: Sequence[np.ndarray | None]) -> tuple[list[np.ndarray | None], int, np.ndarray | None]:
    """Scales from 0 on, what was added to them, and their table."""
    every = [side for side in sides if side is not None]
    if not every:
        return list(sides), 0, None
    lift = -min(int(side.min()) for side in every)
    counts = np.bincount(np.concatenate(every) + lift, minlength=2)
    return [None if side is None else side + lift for side in sides], lift, counts
