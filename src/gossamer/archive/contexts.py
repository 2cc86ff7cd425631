"""Which table codes which symbol: planes of one sort share tables, one for each size of number.

How large the numbers of a weight are differs by row and column (output and input channel, place in the kernel), and
what is left once that is known looks alike in all layers. So every row and column has a scale, row and column scale add
up to a class, and a table for each class serves the whole model. Scales are rounded to what costs least, their own bits
and those that a wrong scale wastes: finely where a row is long, hardly at all where it is short (entropy-constrained
quantization, Chou, Lookabaugh and Gray 1989). Planes without scales share a table where they look alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gossamer.archive.reader import MOST_CLASSES
from gossamer.archive.symbols import Symbols
from gossamer.archive.tables import price

FINENESS = (1, 2, 4, 8)  # classes in an octave
FEW_SYMBOLS = 1 << 20  # so few that the finest may pay, too; and of which, where
MOSTLY = 0.5  # of them are the same, every fineness is tried
WORTH_A_CLASS = 86  # symbols for each of the alphabet, of one fineness cubed: what the finest class must have
ROUNDS = 2  # of tables for scales and scales for tables
TURNS = 3  # of prices for scales and scales for prices
SAMPLE = 1 << 16  # symbols of a plane that scales are tried on
BUCKETS = (0.15, 0.4, 0.8, 1.5, 3.0)  # of the usual size of what is foretold, between which a class is lifted alike
LIFT = 8  # classes that the strongest is lifted by, at most
NEVER = 1 << 20  # a size that nothing foretold has
FARTHEST = 64  # step of a scale from the middle, either way


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


class _Measured(NamedTuple):
    """Octaves of a plane: in the middle, and how far rows and columns are from there."""

    middle: float
    row: np.ndarray
    column: np.ndarray


class _Scaled(NamedTuple):
    """A plane and its scales in whole steps: as measured, and as they are stored (None: not at all).

    `middle` is the class of a symbol whose row and column are both as most are.
    """

    values_RC: np.ndarray
    alphabet: int
    middle: int
    measured: tuple[np.ndarray, np.ndarray]
    stored: tuple[np.ndarray | None, np.ndarray | None]
    foretold: np.ndarray | None


def family(planes: Sequence[Symbols]) -> Family:
    """The tables that code some planes, of one alphabet, in the fewest bits."""
    places = [
        place
        for place, one in enumerate(planes)
        if one.foretold is not None or (1 < one.width < len(one.values) and one.level.any())
    ]
    found = _scales_of([planes[place] for place in places])
    together = {place: one for place, one, alone in zip(places, found, _alone(found), strict=True) if not alone}
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


def _scales_of(planes: Sequence[Symbols]) -> list[_Scaled]:
    """In the fineness that is cheapest in all: reckoned, or where most numbers are zero tried until it gets dearer."""
    if not planes:
        return []
    measured = [_measured(plane) for plane in planes]
    counts = np.sum([one.counts for one in planes], axis=0)
    if counts.sum() >= FEW_SYMBOLS or counts.max() < MOSTLY * counts.sum():
        return _in_steps(planes, measured, _fineness(counts))
    best, least = _in_steps(planes, measured, FINENESS[0]), np.inf
    tried = best
    for fineness in FINENESS[1:]:
        least = min(least, _total(tried))
        tried = _in_steps(planes, measured, fineness)
        if _total(tried) >= least:
            break
        best = tried
    return best


def _fineness(counts: np.ndarray) -> int:
    """What coarse classes waste falls with the square of the fineness, what tables take grows with it."""
    total, used = counts.sum(), counts[counts > 0]
    alike = float(np.exp2((used * np.log2(total / used)).sum() / total))  # symbols, were all as frequent
    wanted = (total / (WORTH_A_CLASS * alike)) ** (1 / 3)
    if total < FEW_SYMBOLS:
        return min(FINENESS, key=lambda one: float(abs(np.log(one / wanted))))
    return max([one for one in FINENESS[:-1] if one <= wanted], default=FINENESS[0])


def _in_steps(planes: Sequence[Symbols], measured: Sequence[_Measured], fineness: int) -> list[_Scaled]:
    """Tables and scales by turns: tables for scales, scales for tables."""
    scaled = [_scaled(plane, one, fineness) for plane, one in zip(planes, measured, strict=True)]
    for _ in range(ROUNDS):
        least, counts = _counts(scaled, sampled=True)
        scaled = _stored(scaled, least, counts)
    return scaled


def _alone(scaled: Sequence[_Scaled]) -> list[bool]:
    """Which planes are like no other, so that one table of their own, without scales, is cheaper."""
    if not scaled:
        return []
    least, classes = _span(scaled)
    every = [_sampled(one, least, classes).reshape(classes, -1) for one in scaled]
    counts = np.sum(every, axis=0)
    low, high = _ends(counts)
    inside = _clipped(counts, low, high) + 1e-3
    lengths = -np.log2(inside / inside.sum(axis=1, keepdims=True))
    found = []
    for one, own in zip(scaled, every, strict=True):
        scales = sum(float(price(np.bincount(side - side.min())[None])[0]) for side in one.stored if side is not None)
        shared = float((_clipped(own, low, high) * lengths).sum()) + scales
        found.append(one.foretold is None and bool(price(own.sum(axis=0)[None])[0] < shared))
    return found


def _total(scaled: Sequence[_Scaled]) -> float:
    """Bits of symbols, scales and tables, about."""
    _, counts = _counts(scaled, sampled=True)
    sides = [side for one in scaled for side in one.stored if side is not None]
    scales = sum(float(price(np.bincount(side - side.min())[None])[0]) for side in sides)
    return scales + float(price(_clipped(counts, *_ends(counts))).sum())


def _measured(plane: Symbols) -> _Measured:
    """Mean levels of rows, and of columns once the rows' are known, and again."""
    level_RC = plane.level[plane.values.reshape(-1, plane.width)]
    rows, columns = level_RC.shape
    row, column = np.zeros(rows), np.zeros(columns)
    mean = float(level_RC.mean(dtype=np.float64))
    middle = mean if plane.logarithmic else float(np.log2(max(mean, 0.25 / level_RC.size)))
    if plane.logarithmic:
        return _Measured(middle, level_RC.mean(axis=1) - middle, level_RC.mean(axis=0) - middle)
    for _ in range(2):
        row = _octaves(level_RC @ np.exp2(-column).astype(np.float32) / columns, columns) - middle
        column = _octaves(np.exp2(-row).astype(np.float32) @ level_RC / rows, rows) - middle
    return _Measured(middle, row - np.median(row), column - np.median(column))


def _scaled(plane: Symbols, measured: _Measured, fineness: int) -> _Scaled:
    sides = (measured.row, measured.column)
    row, column = (np.clip(np.round(side * fineness), -FARTHEST, FARTHEST).astype(np.int64) for side in sides)
    values_RC = plane.values.reshape(-1, plane.width)
    middle = round(measured.middle * fineness)
    return _Scaled(values_RC, len(plane.level), middle, (row, column), (row, column), plane.foretold)


def _octaves(mean: np.ndarray, numbers: int) -> np.ndarray:
    found: np.ndarray = np.log2(np.maximum(mean, 0.25 / numbers).astype(np.float64))
    return found


def _counts(scaled: Sequence[_Scaled], sampled: bool) -> tuple[int, np.ndarray]:
    """The least class, and how often each symbol occurs in each class from there on: (classes, alphabet)."""
    least, classes = _span(scaled)
    each = _sampled if sampled else _occurrences
    counts = np.sum([each(one, least, classes) for one in scaled], axis=0, dtype=np.float64)
    return least, counts.reshape(classes, -1)


def _span(scaled: Sequence[_Scaled]) -> tuple[int, int]:
    """The least class, and how many there are."""
    bounds = [_bounds(one) for one in scaled]
    least = min(low for low, _ in bounds)
    return least, max(high for _, high in bounds) - least + 1


def _sampled(one: _Scaled, least: int, classes: int) -> np.ndarray:
    """From every so many rows alone."""
    every = min(max(one.values_RC.size // SAMPLE, 1), max(len(one.values_RC) // 16, 1))
    return _occurrences(one, least, classes, every) * every


def _bounds(one: _Scaled) -> tuple[int, int]:
    low = one.middle + sum(int(side.min()) for side in one.stored if side is not None)
    return low, one.middle + sum(int(side.max()) for side in one.stored if side is not None)


def _occurrences(one: _Scaled, least: int, classes: int, every: int = 1, among: np.ndarray | None = None) -> np.ndarray:
    """Of each symbol in each class, (classes * alphabet,); of every so many rows, or of those marked."""
    values_RC = one.values_RC[::every]
    row, column = one.stored
    start_R = np.full(len(values_RC), one.middle - least) + (0 if row is None else row[::every])
    start_C = np.zeros(values_RC.shape[1], np.int64) if column is None else column
    start_RC = (start_R * one.alphabet).astype(np.int32)[:, None] + (start_C * one.alphabet).astype(np.int32)[None]
    places = (start_RC + values_RC).reshape(-1)
    return np.bincount(places if among is None else places[among], minlength=classes * one.alphabet)


def _stored(scaled: list[_Scaled], least: int, counts: np.ndarray) -> list[_Scaled]:
    """Scales rounded to what costs least with the tables that these counts make: first rows', then columns'."""
    cross = _cross(counts)
    for side in (0, 1):
        found = [one.stored[side] for one in scaled]
        wastes = [_waste(one, side, cross, least) for one in scaled]
        for _ in range(TURNS):
            prices = _prices(found)
            found = [_rounded(*waste, prices) for waste in wastes]
        scaled = [
            one._replace(stored=(new, one.stored[1]) if side == 0 else (one.stored[0], new))
            for one, new in zip(scaled, found, strict=True)
        ]
    return scaled


def _prices(sides: Sequence[np.ndarray | None]) -> np.ndarray:
    """Bits of a scale, from -FARTHEST on, by how often each was taken."""
    counts = np.full(2 * FARTHEST + 1, 0.01)
    for side in sides:
        if side is not None:
            counts += np.bincount(side + FARTHEST, minlength=len(counts))
    bits: np.ndarray = np.log2(counts.sum() / counts)
    return bits


def _cross(counts: np.ndarray) -> np.ndarray:
    """Bits of a symbol of class a that is coded as one of class b, (classes, classes); neighbours help each other."""
    low, high = _ends(counts)
    padded = np.pad(_clipped(counts, low, high), ((1, 1), (0, 0)), mode="edge")
    shares: np.ndarray = padded[1:-1] + 0.5 * (padded[:-2] + padded[2:]) + 1e-3
    shares /= shares.sum(axis=1, keepdims=True)
    found: np.ndarray = -shares @ np.log2(shares).T
    at = np.clip(np.arange(len(counts)) - low, 0, high - low)
    every: np.ndarray = found[np.ix_(at, at)]
    return every


def _waste(one: _Scaled, side: int, cross: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A side's steps, each step's number of rows, and bits of a row of each step if coded as one of every other."""
    steps = one.measured[side]
    first, last = int(steps.min()), int(steps.max())
    numbers = np.bincount(steps - first)
    other = one.stored[1 - side]
    offsets, shares = (np.zeros(1, np.int64), np.ones(1)) if other is None else _histogram(other)
    shares = shares * (one.values_RC.size / len(steps) / shares.sum())
    classes_OS = np.clip(np.arange(first, last + 1) + (offsets[:, None] + one.middle - least), 0, len(cross) - 1)
    bits_SS = np.einsum("o,oab->ab", shares, cross[classes_OS[:, :, None], classes_OS[:, None, :]])
    return steps, numbers, bits_SS


def _histogram(steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first = int(steps.min())
    counts = np.bincount(steps - first)
    used = np.flatnonzero(counts)
    return used + first, counts[used]


def _rounded(steps: np.ndarray, numbers: np.ndarray, bits_SS: np.ndarray, prices: np.ndarray) -> np.ndarray | None:
    """Of one side; None where one scale for all is as good."""
    first = int(steps.min())
    priced_SS = bits_SS + prices[FARTHEST + first : FARTHEST + first + len(numbers)]
    best = priced_SS.argmin(axis=1)
    middle = min(max(-first, 0), len(numbers) - 1)
    if numbers @ priced_SS[np.arange(len(numbers)), best] >= numbers @ bits_SS[:, middle]:
        return None
    rounded: np.ndarray = (best + first)[steps - first]
    return rounded


def _ends(counts: np.ndarray) -> tuple[int, int]:
    """The first and the last class that pay for a table; those beyond are counted in with them."""
    used = np.flatnonzero(counts.any(axis=1))
    if not len(used):
        return 0, 0
    low, high = int(used[0]), int(used[-1])
    alone = price(counts[low : high + 1])
    below, above = (
        price(np.cumsum(counts[low : high + 1], axis=0)),
        price(np.cumsum(counts[low : high + 1][::-1], axis=0)),
    )
    first = last = 0
    while first < high - low and below[first + 1] <= below[first] + alone[first + 1]:
        first += 1
    while last < high - low - first and above[last + 1] <= above[last] + alone[-last - 2]:
        last += 1
    return low + first, high - last


def _clipped(counts: np.ndarray, low: int, high: int) -> np.ndarray:
    inside: np.ndarray = counts[low : high + 1].copy()
    inside[0] += counts[:low].sum(axis=0)
    inside[-1] += counts[high + 1 :].sum(axis=0)
    return inside


def _class_tables(scaled: Sequence[_Scaled]) -> tuple[list[np.ndarray], list[int], tuple[int, ...]]:
    """Tables of all classes, each plane's shift, and thresholds of what is foretold."""
    plain = [one for one in scaled if one.foretold is None]
    aware = [(one, one.foretold) for one in scaled if one.foretold is not None]
    least, classes = _span(scaled)
    counts = np.zeros((classes, scaled[0].alphabet))
    if plain:
        counts += np.sum([_occurrences(one, least, classes) for one in plain], axis=0).reshape(counts.shape)
    base = 0
    thresholds: tuple[int, ...] = ()
    if aware:
        counts, base, thresholds = _lifted_counts(aware, counts, least)
        least -= LIFT
    low, high = _ends(counts)
    tables = list(_clipped(counts, low, min(high, low + MOST_CLASSES - 1)))
    shifts = [least + low - one.middle - (base if one.foretold is not None else 0) for one in scaled]
    return tables, shifts, thresholds


def _lifted_counts(
    aware: Sequence[tuple[_Scaled, np.ndarray]], plain: np.ndarray, least: int
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
            counts_BCA[at] += _occurrences(one, least, classes, among=bucket == at).reshape(classes, alphabet)
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


def _sides(scaled: Sequence[_Scaled]) -> tuple[np.ndarray | None, np.ndarray | None, list[_Side]]:
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
