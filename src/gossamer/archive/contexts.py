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

from gossamer.archive.symbols import Symbols
from gossamer.archive.tables import smoothed

FINENESS = (1, 2, 4, 8)  # classes in an octave
FEW_SYMBOLS = 1 << 20  # so few that every fineness is tried
WORTH_A_CLASS = 86  # symbols for each of the alphabet, of one fineness cubed: what the finest class must have
ROUNDS = 2  # of tables for scales and scales for tables
TURNS = 3  # of prices for scales and scales for prices
SAMPLE = 1 << 16  # symbols of a plane that scales are tried on
FARTHEST = 64  # step of a scale from the middle, either way
TABLE_BITS = 40.0  # what a table takes beside its entries


class Choice(NamedTuple):
    """How a plane is coded: by the tables of its family, or by a table of its own (`own`).

    `shift`, `row` and `column` are as in `reader.Plane`; a side without scales is None.
    """

    own: bool
    row: np.ndarray | None
    column: np.ndarray | None
    shift: int


class Family(NamedTuple):
    """What planes of one sort share.

    Attributes:
        tables: one for each class.
        row, column: of the scales themselves; None where no plane has any.
        choices: of each plane, in the order given.
        own: tables of single planes, by their place.
    """

    tables: tuple[np.ndarray, ...]
    row: np.ndarray | None
    column: np.ndarray | None
    choices: tuple[Choice, ...]
    own: dict[int, np.ndarray]


class _Scaled(NamedTuple):
    """A plane and its scales in whole steps: as measured, and as they are stored (None: not at all).

    `middle` is the class of a symbol whose row and column are both as most are.
    """

    values_RC: np.ndarray
    alphabet: int
    middle: int
    measured: tuple[np.ndarray, np.ndarray]
    stored: tuple[np.ndarray | None, np.ndarray | None]


def family(planes: Sequence[Symbols], coarse: int) -> Family:
    """The tables that code some planes in the fewest bits.

    Args:
        planes: of one alphabet.
        coarse: of the tables, see `tables.written`.
    """
    places = [place for place, one in enumerate(planes) if 1 < one.width < len(one.values) and one.level.any()]
    found = _scales_of([planes[place] for place in places])
    together = {place: one for place, one, alone in zip(places, found, _alone(found), strict=True) if not alone}
    choices: dict[int, Choice] = {}
    tables: list[np.ndarray] = []
    row = column = None
    if together:
        scaled = list(together.values())
        tables, shifts = _class_tables(scaled, coarse)
        row, column, sides = _sides(scaled, coarse)
        for place, shift, side in zip(together, shifts, sides, strict=True):
            choices[place] = Choice(False, side.row, side.column, shift + side.lift)
    counts_of = {
        place: np.bincount(planes[place].values, minlength=len(planes[place].level))
        for place in range(len(planes))
        if place not in together
    }
    own: dict[int, np.ndarray] = {}
    for members, table in _shared(counts_of, coarse):
        if len(members) == 1:
            own[members[0]] = table
            choices[members[0]] = Choice(True, None, None, 0)
        else:
            choices |= {place: Choice(False, None, None, -len(tables)) for place in members}
            tables.append(table)
    return Family(tuple(tables), row, column, tuple(choices[place] for place in range(len(planes))), own)


# --- planes without scales


def _shared(counts_of: dict[int, np.ndarray], coarse: int) -> list[tuple[list[int], np.ndarray]]:
    """Groups of planes, and the table of each."""
    groups = _groups(counts_of)
    if not groups:
        return []
    counts_GA = np.array([np.sum([counts_of[place] for place in members], axis=0) for members in groups])
    return list(zip(groups, smoothed(counts_GA, coarse), strict=True))


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


def price(counts_GA: np.ndarray) -> np.ndarray:
    """Bits of the symbols of each group and of a table that codes them, about.

    A table takes half a logarithm for each entry (Rissanen 1978).
    """
    total_G = np.maximum(counts_GA.sum(axis=1), 1)
    used_G = np.maximum((counts_GA > 0).sum(axis=1), 1)
    bits_G = total_G * np.log2(total_G) - (counts_GA * np.log2(np.maximum(counts_GA, 1))).sum(axis=1)
    found: np.ndarray = bits_G + TABLE_BITS + used_G / 2 * np.log2(1 + total_G / used_G)
    return found


# --- planes with scales


def _scales_of(planes: Sequence[Symbols]) -> list[_Scaled]:
    """In the fineness that is cheapest in all; for many symbols that is reckoned, not tried."""
    if not planes:
        return []
    counts = np.sum([np.bincount(one.values, minlength=len(one.level)) for one in planes], axis=0)
    if counts.sum() < FEW_SYMBOLS:
        return min((_in_steps(planes, fineness) for fineness in FINENESS), key=_total)
    return _in_steps(planes, _fineness(counts))


def _fineness(counts: np.ndarray) -> int:
    """What coarse classes waste falls with the square of the fineness, what tables take grows with it."""
    total, used = counts.sum(), counts[counts > 0]
    alike = float(np.exp2((used * np.log2(total / used)).sum() / total))  # symbols, were all as frequent
    wanted = (total / (WORTH_A_CLASS * alike)) ** (1 / 3)
    return max([one for one in FINENESS[:-1] if one <= wanted], default=FINENESS[0])


def _in_steps(planes: Sequence[Symbols], fineness: int) -> list[_Scaled]:
    """Tables and scales by turns: tables for scales, scales for tables."""
    scaled = [_scaled(plane, fineness) for plane in planes]
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
        found.append(bool(price(own.sum(axis=0)[None])[0] < shared))
    return found


def _total(scaled: Sequence[_Scaled]) -> float:
    """Bits of symbols, scales and tables, about."""
    _, counts = _counts(scaled, sampled=True)
    sides = [side for one in scaled for side in one.stored if side is not None]
    scales = sum(float(price(np.bincount(side - side.min())[None])[0]) for side in sides)
    return scales + float(price(_clipped(counts, *_ends(counts))).sum())


def _scaled(plane: Symbols, fineness: int) -> _Scaled:
    """Scales as measured: mean levels of rows, and of columns once the rows' are known, and again."""
    values_RC = plane.values.reshape(-1, plane.width)
    rows, columns = values_RC.shape
    level_RC = plane.level[values_RC]
    row, column = np.zeros(rows), np.zeros(columns)
    mean = float(level_RC.mean(dtype=np.float64))
    middle = mean if plane.logarithmic else float(np.log2(max(mean, 0.25 / level_RC.size)))
    if plane.logarithmic:
        row, column = level_RC.mean(axis=1) - middle, level_RC.mean(axis=0) - middle
    else:
        for _ in range(2):
            row = _octaves(level_RC @ np.exp2(-column).astype(np.float32) / columns, columns) - middle
            column = _octaves(np.exp2(-row).astype(np.float32) @ level_RC / rows, rows) - middle
        row, column = row - np.median(row), column - np.median(column)
    steps = [np.clip(np.round(side * fineness), -FARTHEST, FARTHEST).astype(np.int64) for side in (row, column)]
    return _Scaled(values_RC, len(plane.level), round(middle * fineness), (steps[0], steps[1]), (steps[0], steps[1]))


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


def _occurrences(one: _Scaled, least: int, classes: int, every: int = 1) -> np.ndarray:
    values_RC = one.values_RC[::every]
    row, column = one.stored
    start_R = np.full(len(values_RC), one.middle - least) + (0 if row is None else row[::every])
    start_C = np.zeros(values_RC.shape[1], np.int64) if column is None else column
    start_RC = (start_R * one.alphabet).astype(np.int32)[:, None] + (start_C * one.alphabet).astype(np.int32)[None]
    return np.bincount((start_RC + values_RC).reshape(-1), minlength=classes * one.alphabet)


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
    sizes = counts.sum(axis=1)
    low, high = int(np.argmax(sizes > 0)), len(sizes) - 1 - int(np.argmax(sizes[::-1] > 0))
    while low < high and _joins(counts[: low + 1].sum(axis=0), counts[low + 1]):
        low += 1
    while low < high and _joins(counts[high:].sum(axis=0), counts[high - 1]):
        high -= 1
    return low, high


def _joins(one: np.ndarray, other: np.ndarray) -> bool:
    apart, together = price(np.stack([one, other])).sum(), price((one + other)[None])[0]
    return bool(together <= apart)


def _clipped(counts: np.ndarray, low: int, high: int) -> np.ndarray:
    inside: np.ndarray = counts[low : high + 1].copy()
    inside[0] += counts[:low].sum(axis=0)
    inside[-1] += counts[high + 1 :].sum(axis=0)
    return inside


def _class_tables(scaled: Sequence[_Scaled], coarse: int) -> tuple[list[np.ndarray], list[int]]:
    """Tables of all classes, and each plane's shift; other tables follow, so that the highest classes stay."""
    least, counts = _counts(scaled, sampled=False)
    low, _ = _ends(counts)
    tables = smoothed(_clipped(counts, low, len(counts) - 1), coarse)
    return tables, [least + low - one.middle for one in scaled]


class _Side(NamedTuple):
    """Scales of a plane from 0 on, and what was added to them in all."""

    row: np.ndarray | None
    column: np.ndarray | None
    lift: int


def _sides(scaled: Sequence[_Scaled], coarse: int) -> tuple[np.ndarray | None, np.ndarray | None, list[_Side]]:
    """Tables of rows' and of columns' scales, and these of each plane."""
    rows, row_lift, row = _lifted([one.stored[0] for one in scaled], coarse)
    columns, column_lift, column = _lifted([one.stored[1] for one in scaled], coarse)
    sides = [
        _Side(one, other, row_lift * (one is not None) + column_lift * (other is not None))
        for one, other in zip(rows, columns, strict=True)
    ]
    return row, column, sides


def _lifted(sides: Sequence[np.ndarray | None], coarse: int) -> tuple[list[np.ndarray | None], int, np.ndarray | None]:
    """Scales from 0 on, what was added to them, and their table."""
    every = [side for side in sides if side is not None]
    if not every:
        return list(sides), 0, None
    lift = -min(int(side.min()) for side in every)
    counts = np.bincount(np.concatenate(every) + lift, minlength=2)
    return [None if side is None else side + lift for side in sides], lift, smoothed(counts[None], coarse)[0]
