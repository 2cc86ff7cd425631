"""Tables of frequencies: how they are written in few bits, and the compiled coder that uses them.

The coder is asymmetric numeral systems as the package `constriction` has them (Bamler 2022, "Understanding entropy
coding with asymmetric numeral systems"); what it is given are whole numbers, so that no rounding of floats decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import NamedTuple

import constriction
import numpy as np

from gossamer.archive.reader import PRECISION, STEPS, TOP, WEIGHTS, frequencies

OPTIONS = (2, 4)
FLOORS = (1.0, 0.5, 0.0)  # of the largest frequency: those of all that occur, where others between them do not
SLOPES = (4, 6, 8, 12, 16, 24, 32, 48, 64)
SMALL_ALPHABET = 32
SLOPE_OF_SMALL, SLOPE_OF_LARGE = 8, 24  # that entries are fitted with
TABLE_BITS = 40.0  # what a table takes beside its entries
ENTRY_BITS = 0.4  # of an entry like the one before
NORMED = 16  # symbols after which the least cost is 0 again, so that float32 tells costs apart


class Written(NamedTuple):
    """A table as it is stored: its alphabet, the first symbol that occurs and the entries from there to the last."""

    alphabet: int
    first: int
    entries: np.ndarray


def written(counts: np.ndarray, coarse: int) -> Written:
    """The entries of the symbols that occur, in steps of `coarse` sixteenths of an octave."""
    used = np.flatnonzero(counts)
    if not len(used):
        return Written(len(counts), 0, np.full(1, coarse, np.int64))
    return Written(len(counts), int(used[0]), _entries(counts[None, used[0] : used[-1] + 1], coarse)[0])


def _entries(counts_TA: np.ndarray, coarse: int) -> np.ndarray:
    """Of several tables, each of which has a symbol that occurs; 0 for those that do not (tables, alphabet)."""
    with np.errstate(divide="ignore"):
        octaves_TA = np.log2(counts_TA / counts_TA.max(axis=1, keepdims=True)) * (STEPS / coarse)
    top = TOP // coarse
    entries_TA = np.clip(np.round(octaves_TA + top), 1, top)  # only differences count, and the first entry is a step
    lowest_T = np.min(entries_TA, axis=1, keepdims=True, where=counts_TA > 0, initial=top) - 1
    found: np.ndarray = np.where(counts_TA > 0, (entries_TA - lowest_T) * coarse, 0).astype(np.int64)
    return found


def smoothed(every: Sequence[np.ndarray], coarse: int) -> list[np.ndarray]:
    """Counts as the tables that are cheapest in all give them back: their entries, and what is coded with them.

    Either all symbols between the first and the last that occur have an entry, or only those that occur.
    """
    found = list(every)
    for size in {len(counts) for counts in every}:
        places = [place for place, counts in enumerate(every) if len(counts) == size and counts.any()]
        if not places:
            continue
        counts_TA = np.array([every[place] for place in places], np.float64)
        best_TA = _fitted(counts_TA, coarse)
        gaps = np.flatnonzero(((counts_TA > 0) != (best_TA > 0)).any(axis=1))
        if len(gaps):
            mine_TA = counts_TA[gaps]
            floors_TA = [mine_TA.max(axis=1, keepdims=True) * floor * (mine_TA > 0) for floor in FLOORS]
            tried_CTA = np.stack([best_TA[gaps], *(np.maximum(mine_TA, floor_TA) for floor_TA in floors_TA)])
            cheapest_T = np.argmin([_bits(mine_TA, each_TA, coarse) for each_TA in tried_CTA], axis=0)
            best_TA[gaps] = tried_CTA[cheapest_T, np.arange(len(gaps))]
        for place, best_A in zip(places, best_TA, strict=True):
            found[place] = best_A
    return found


def price(counts_GA: np.ndarray) -> np.ndarray:
    """Bits of the symbols of each group and of a table that codes them, about.

    A table takes half a logarithm for each entry (Rissanen 1978).
    """
    total_G = np.maximum(counts_GA.sum(axis=1), 1)
    used_G = np.maximum((counts_GA > 0).sum(axis=1), 1)
    bits_G = total_G * np.log2(total_G) - (counts_GA * np.log2(np.maximum(counts_GA, 1))).sum(axis=1)
    found: np.ndarray = bits_G + TABLE_BITS + used_G / 2 * np.log2(1 + total_G / used_G)
    return found


def _bits(counts_TA: np.ndarray, weights_TA: np.ndarray, coarse: int) -> np.ndarray:
    """Of each table, and of what is coded with it, about."""
    entries_TA = _entries(weights_TA, coarse)
    shares_TA = WEIGHTS[entries_TA] / WEIGHTS[entries_TA].sum(axis=1, keepdims=True)
    between_TA = _between(entries_TA > 0)
    folded_TA = between_TA * _folded(np.diff(entries_TA, axis=1, prepend=0) // coarse)
    symbols_T = (counts_TA * -np.log2(np.maximum(shares_TA, 2.0**-PRECISION))).sum(axis=1)
    bits_T: np.ndarray = (
        symbols_T + ENTRY_BITS * between_TA.sum(axis=1) + _slope(counts_TA.shape[1]) / STEPS * folded_TA.sum(axis=1)
    )
    return bits_T


def _slope(alphabet: int) -> int:
    """Steps between the entries of few symbols are larger, and so are to be dear for many alone."""
    return SLOPE_OF_SMALL if alphabet <= SMALL_ALPHABET else SLOPE_OF_LARGE


def _fitted(counts_TA: np.ndarray, coarse: int) -> np.ndarray:
    """Frequencies (tables, alphabet) of the least sum of entry bits and symbol bits.

    Steps from entry to entry cost what their size is; that makes this a fused lasso over the logarithms (Tibshirani et
    al. 2005), solved exactly by dynamic programming over all levels that entries can have: of all tables at once, and
    of each from both ends to the middle. There are two symbols or more.
    """
    totals_T = counts_TA.sum(axis=1)
    tables, alphabet = counts_TA.shape
    reach = min(TOP, int(STEPS * (np.log2(max(totals_T.max(), 1)) + 4)))
    octaves_L = -np.arange(reach // coarse, dtype=np.float32) * np.float32(coarse / STEPS)
    ramp_L = np.float32(2 * _slope(alphabet) / STEPS) * np.arange(len(octaves_L), dtype=np.float32)  # bits
    cost_ATL = counts_TA.T.astype(np.float32)[:, :, None] * -octaves_L
    cost_ATL += totals_T.astype(np.float32)[:, None] * (np.exp2(octaves_L) / np.float32(np.log(2)))
    half = alphabet // 2
    best_HSL = np.concatenate([cost_ATL[:half], cost_ATL[: -half - 1 : -1]], axis=1)  # S: tables from either side
    for at, (before_SL, now_SL) in enumerate(pairwise(best_HSL)):
        if at % NORMED == 0:
            before_SL -= np.minimum.reduce(before_SL, axis=1, keepdims=True)
        now_SL += _reached(before_SL, ramp_L)
    middle_TL = _reached(best_HSL[-1], ramp_L).reshape(2, tables, -1).sum(axis=0)
    if alphabet % 2:
        middle_TL += cost_ATL[half]
    level_T = middle_TL.argmin(axis=1)
    jump_LL, level_S, found_HS = np.abs(ramp_L - ramp_L[:, None]), np.tile(level_T, 2), []
    for best_SL in best_HSL[::-1]:
        level_S = (best_SL + jump_LL[level_S]).argmin(axis=1)
        found_HS.append(level_S)
    left_HT, right_HT = np.split(np.array(found_HS), 2, axis=1)
    found_AT = np.concatenate([left_HT[::-1], level_T[None, :][: alphabet % 2], right_HT])
    weights_TA: np.ndarray = np.exp2(octaves_L[found_AT].astype(np.float64)).T
    weights_TA *= _between(counts_TA > 0)
    weights_TA *= totals_T[:, None] / np.maximum(weights_TA.sum(axis=1, keepdims=True), 1e-300)
    return weights_TA


def _reached(best_SL: np.ndarray, ramp_L: np.ndarray) -> np.ndarray:
    """The least cost of each level by one step: from above, then from below."""
    found_SL: np.ndarray = best_SL - ramp_L
    np.minimum.accumulate(found_SL, 1, None, found_SL)
    found_SL += 2 * ramp_L
    np.minimum.accumulate(found_SL[:, ::-1], 1, None, found_SL[:, ::-1])
    found_SL -= ramp_L
    return found_SL


def restored(table: Written) -> np.ndarray:
    """Frequencies, as the reader makes them."""
    entries = np.zeros(table.alphabet, np.int64)
    entries[table.first : table.first + len(table.entries)] = table.entries
    return frequencies(entries)


def code_lengths(table: Written) -> np.ndarray:
    """Bits of each symbol, float64."""
    return PRECISION - np.log2(restored(table).astype(np.float64))


def folded_steps(tables: Sequence[Written], coarse: int) -> np.ndarray:
    """The entries of all tables as steps from the one before, the sign at the bottom."""
    steps = [np.diff(table.entries, prepend=0) // coarse for table in tables]
    every = np.concatenate(steps) if steps else np.zeros(0, np.int64)
    return _folded(every)


def _folded(steps: np.ndarray) -> np.ndarray:
    return np.where(steps >= 0, 2 * steps, -2 * steps - 1)


def _between(used_TA: np.ndarray) -> np.ndarray:
    """From the first symbol of each table that occurs to the last."""
    found: np.ndarray = np.maximum.accumulate(used_TA, axis=1)
    return found & np.maximum.accumulate(used_TA[:, ::-1], axis=1)[:, ::-1]


def coded_tables(tables: Sequence[Written], coarse: int) -> tuple[int, bytes]:
    """The slope of the distribution that codes them in fewest bits, and the bytes."""
    steps = folded_steps(tables, coarse)
    slope = int(SLOPES[_step_bits(steps).argmin()])
    coder = Encoder()
    coder.encode(steps, _step_frequencies(slope))
    return slope, coder.to_bytes()


def bits_of_tables(counts: Sequence[np.ndarray], tables: Sequence[Written], coarse: int) -> float:
    """What tables take, and what so many symbols of each take with them."""
    coded = sum(float((each * code_lengths(table)).sum()) for each, table in zip(counts, tables, strict=True))
    return coded + float(_step_bits(folded_steps(tables, coarse)).min())


def _step_bits(steps: np.ndarray) -> np.ndarray:
    """Of all steps together, with each of the slopes."""
    bits: np.ndarray = _step_lengths() @ np.bincount(steps, minlength=2 * TOP + 2)
    return bits


def _step_frequencies(slope: int) -> np.ndarray:
    return frequencies(np.maximum(TOP - slope * np.arange(2 * TOP + 2), 1))


@cache
def _step_lengths() -> np.ndarray:
    """Bits of each step (slopes, steps)."""
    lengths: np.ndarray = PRECISION - np.log2([_step_frequencies(slope) for slope in SLOPES])
    return lengths


class Encoder:
    """Takes symbols in the order in which they are decoded; they are coded the other way round."""

    def __init__(self) -> None:
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []

    def encode(self, symbols: np.ndarray, table: np.ndarray) -> None:
        self.parts.append((symbols, table))

    def to_bytes(self) -> bytes:
        """The words, as little-endian bytes."""
        coder = constriction.stream.stack.AnsCoder()
        for symbols, table in reversed(self.parts):
            if len(symbols):
                coder.encode_reverse(symbols.astype(np.int32), _model(table.tobytes()))
        return np.asarray(coder.get_compressed(), "<u4").tobytes()


class Decoder:
    """The compiled form of `reader.Words`."""

    def __init__(self, words: np.ndarray) -> None:
        self.coder = constriction.stream.stack.AnsCoder(words)

    def decode(self, table: np.ndarray, count: int) -> np.ndarray:
        """So many symbols of one table of frequencies, int32."""
        return np.asarray(self.coder.decode(_model(table.tobytes()), count)) if count else np.zeros(0, np.int32)

    def is_empty(self) -> bool:
        """Whether all words were used."""
        return bool(self.coder.is_empty())


@lru_cache(maxsize=128)
def _model(table: bytes) -> constriction.stream.model.Categorical:
    """The coder adds 1 to every frequency, and what it is given sums up to what is left then: nothing is rounded."""
    return constriction.stream.model.Categorical((np.frombuffer(table, np.int64) - 1).astype(np.float64), perfect=False)
