"""How large the numbers of each row and column are, in steps that cost what they save.

Scales are rounded to what costs least, their own bits and those that a wrong scale wastes: finely where a row is long,
hardly at all where it is short (entropy-constrained quantization, Chou, Lookabaugh and Gray 1989).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gossamer.archive.symbols import Symbols
from gossamer.archive.tables import price

FINENESS = (1, 2, 4, 8)  # classes in an octave
FEW_SYMBOLS = 1 << 20  # so few that the finest may pay, too; and of which, where
MOSTLY = 0.5  # of them are the same, every fineness is tried
WORTH_A_CLASS = 86  # symbols for each of the alphabet, of one fineness cubed: what the finest class must have
ROUNDS = 2  # of tables for scales and scales for tables
TURNS = 3  # of prices for scales and scales for prices
SAMPLE = 1 << 16  # symbols of a plane that scales are tried on
FARTHEST = 64  # step of a scale from the middle, either way


class _Measured(NamedTuple):
    """Octaves of a plane: in the middle, and how far rows and columns are from there."""

    middle: float
    row: np.ndarray
    column: np.ndarray


class Scaled(NamedTuple):
    """A plane and its scales in whole steps: as measured, and as they are stored (None: not at all).

    `middle` is the class of a symbol whose row and column are both as most are.
    """

    values_RC: np.ndarray
    alphabet: int
    middle: int
    measured: tuple[np.ndarray, np.ndarray]
    stored: tuple[np.ndarray | None, np.ndarray | None]
    foretold: np.ndarray | None


def scales_of(planes: Sequence[Symbols]) -> list[Scaled]:
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


def _in_steps(planes: Sequence[Symbols], measured: Sequence[_Measured], fineness: int) -> list[Scaled]:
    """Tables and scales by turns: tables for scales, scales for tables."""
    scaled = [_scaled(plane, one, fineness) for plane, one in zip(planes, measured, strict=True)]
    for _ in range(ROUNDS):
        least, counts = _counts(scaled)
        scaled = _stored(scaled, least, counts)
    return scaled


def alone(scaled: Sequence[Scaled]) -> list[bool]:
    """Which planes are like no other, so that one table of their own, without scales, is cheaper."""
    if not scaled:
        return []
    least, classes = span_of(scaled)
    every = [_sampled(one, least, classes).reshape(classes, -1) for one in scaled]
    counts = np.sum(every, axis=0)
    low, high = ends(counts)
    inside = clipped(counts, low, high) + 1e-3
    lengths = -np.log2(inside / inside.sum(axis=1, keepdims=True))
    found = []
    for one, own in zip(scaled, every, strict=True):
        scales = sum(float(price(np.bincount(side - side.min())[None])[0]) for side in one.stored if side is not None)
        shared = float((clipped(own, low, high) * lengths).sum()) + scales
        found.append(one.foretold is None and bool(price(own.sum(axis=0)[None])[0] < shared))
    return found


def _total(scaled: Sequence[Scaled]) -> float:
    """Bits of symbols, scales and tables, about."""
    _, counts = _counts(scaled)
    sides = [side for one in scaled for side in one.stored if side is not None]
    scales = sum(float(price(np.bincount(side - side.min())[None])[0]) for side in sides)
    return scales + float(price(clipped(counts, *ends(counts))).sum())


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


def _scaled(plane: Symbols, measured: _Measured, fineness: int) -> Scaled:
    sides = (measured.row, measured.column)
    row, column = (np.clip(np.round(side * fineness), -FARTHEST, FARTHEST).astype(np.int64) for side in sides)
    values_RC = plane.values.reshape(-1, plane.width)
    middle = round(measured.middle * fineness)
    return Scaled(values_RC, len(plane.level), middle, (row, column), (row, column), plane.foretold)


def _octaves(mean: np.ndarray, numbers: int) -> np.ndarray:
    found: np.ndarray = np.log2(np.maximum(mean, 0.25 / numbers).astype(np.float64))
    return found


def _counts(scaled: Sequence[Scaled]) -> tuple[int, np.ndarray]:
    """The least class, and how often each symbol occurs in each class from there on: (classes, alphabet)."""
    least, classes = span_of(scaled)
    counts = np.sum([_sampled(one, least, classes) for one in scaled], axis=0, dtype=np.float64)
    return least, counts.reshape(classes, -1)


def span_of(scaled: Sequence[Scaled]) -> tuple[int, int]:
    """The least class, and how many there are."""
    bounds = [_bounds(one) for one in scaled]
    least = min(low for low, _ in bounds)
    return least, max(high for _, high in bounds) - least + 1


def _sampled(one: Scaled, least: int, classes: int) -> np.ndarray:
    """From every so many rows alone."""
    every = min(max(one.values_RC.size // SAMPLE, 1), max(len(one.values_RC) // 16, 1))
    return occurrences_in(one, least, classes, every) * every


def _bounds(one: Scaled) -> tuple[int, int]:
    low = one.middle + sum(int(side.min()) for side in one.stored if side is not None)
    return low, one.middle + sum(int(side.max()) for side in one.stored if side is not None)


def occurrences_in(
    one: Scaled, least: int, classes: int, every: int = 1, among: np.ndarray | None = None
) -> np.ndarray:
    """Of each symbol in each class, (classes * alphabet,); of every so many rows, or of those marked."""
    values_RC = one.values_RC[::every]
    row, column = one.stored
    start_R = np.full(len(values_RC), one.middle - least) + (0 if row is None else row[::every])
    start_C = np.zeros(values_RC.shape[1], np.int64) if column is None else column
    start_RC = (start_R * one.alphabet).astype(np.int32)[:, None] + (start_C * one.alphabet).astype(np.int32)[None]
    places = (start_RC + values_RC).reshape(-1)
    return np.bincount(places if among is None else places[among], minlength=classes * one.alphabet)


def _stored(scaled: list[Scaled], least: int, counts: np.ndarray) -> list[Scaled]:
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
    low, high = ends(counts)
    padded = np.pad(clipped(counts, low, high), ((1, 1), (0, 0)), mode="edge")
    shares: np.ndarray = padded[1:-1] + 0.5 * (padded[:-2] + padded[2:]) + 1e-3
    shares /= shares.sum(axis=1, keepdims=True)
    found: np.ndarray = -shares @ np.log2(shares).T
    at = np.clip(np.arange(len(counts)) - low, 0, high - low)
    every: np.ndarray = found[np.ix_(at, at)]
    return every


def _waste(one: Scaled, side: int, cross: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def ends(counts: np.ndarray) -> tuple[int, int]:
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


def clipped(counts: np.ndarray, low: int, high: int) -> np.ndarray:
    inside: np.ndarray = counts[low : high + 1].copy()
    inside[0] += counts[:low].sum(axis=0)
    inside[-1] += counts[high + 1 :].sum(axis=0)
    return inside
