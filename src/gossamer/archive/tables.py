"""Tables of frequencies: how they are written in few bits, and the compiled coder that uses them.

The coder is asymmetric numeral systems as the package `constriction` has them (Bamler 2022, "Understanding entropy
coding with asymmetric numeral systems"); what it is given are whole numbers, so that no rounding of floats decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import constriction
import numpy as np

from gossamer.archive.reader import PRECISION, STEPS, TOP, frequencies

OPTIONS = (2, 4)
FLOORS = (1.0, 0.5, 0.0)  # of the largest frequency: those of all that occur, where others between them do not
SLOPES = (4, 6, 8, 12, 16, 24, 32, 48, 64)
SLOPE = 16  # that entries are fitted with
TABLE_BITS = 40.0  # what a table takes beside its entries
ENTRY_BITS = 0.4  # of an entry like the one before


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
    part = counts[used[0] : used[-1] + 1].astype(np.float64)
    with np.errstate(divide="ignore"):
        octaves = np.log2(part / part.max()) * STEPS / coarse
    top = TOP // coarse
    entries = np.where(part > 0, np.clip(np.round(octaves + top), 1, top), 0).astype(np.int64)
    entries[part > 0] -= entries[part > 0].min() - 1  # only differences count, and the first entry is a step too
    return Written(len(counts), int(used[0]), entries * coarse)


def smoothed(every: Sequence[np.ndarray], coarse: int) -> list[np.ndarray]:
    """Counts as the tables that are cheapest in all give them back: their entries, and what is coded with them.

    Either all symbols between the first and the last that occur have an entry, or only those that occur.
    """
    found = list(every)
    sizes = {len(counts) for counts in every}
    for size in sizes:
        places = [place for place, counts in enumerate(every) if len(counts) == size]
        full = _fitted(np.array([every[place] for place in places]), coarse)
        for place, between in zip(places, full, strict=True):
            counts = every[place]
            used = counts > 0
            tables = [between]
            if 1 < used.sum() < len(used) - np.argmax(used) - np.argmax(used[::-1]):
                tables += [used * np.maximum(counts, counts.max() * floor) for floor in FLOORS]
            found[place] = (
                tables[0] if len(tables) == 1 else min(tables, key=lambda one: _bits(every[place], one, coarse))
            )
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


def _bits(counts: np.ndarray, weights: np.ndarray, coarse: int) -> float:
    table = written(weights, coarse)
    steps = folded_steps([table], coarse)
    return float((counts * code_lengths(table)).sum() + ENTRY_BITS * len(steps) + (SLOPE / STEPS) * steps.sum())


def _fitted(counts_TA: np.ndarray, coarse: int) -> np.ndarray:
    """Frequencies (tables, alphabet) of the least sum of entry bits and symbol bits.

    Steps from entry to entry cost what their size is; that makes this a fused lasso over the logarithms (Tibshirani et
    al. 2005), solved exactly by dynamic programming over all levels that entries can have, all tables at once.
    """
    totals_T = counts_TA.sum(axis=1)
    tables, alphabet = counts_TA.shape
    reach = min(TOP, int(STEPS * (np.log2(max(totals_T.max(), 1)) + 4)))
    octaves_L = -np.arange(reach // coarse) * (coarse / STEPS)
    step = 2 * SLOPE / STEPS  # bits
    ramp_L = step * np.arange(len(octaves_L))
    best_TL = np.zeros((tables, len(octaves_L)))
    price_TL = totals_T[:, None] * np.exp2(octaves_L) / np.log(2)
    kept = np.empty((alphabet, tables, len(octaves_L)), np.float32)
    for at in range(alphabet):
        if at:  # the cheapest step to each level: from above, then from below
            best_TL = np.minimum.accumulate(best_TL - ramp_L, axis=1) + ramp_L
            best_TL = np.minimum.accumulate((best_TL + ramp_L)[:, ::-1], axis=1)[:, ::-1] - ramp_L
        best_TL = best_TL + price_TL - counts_TA[:, at, None] * octaves_L
        best_TL -= best_TL.min(axis=1, keepdims=True)
        kept[at] = best_TL
    found = np.empty((alphabet, tables), np.int64)
    found[-1] = kept[-1].argmin(axis=1)
    for at in range(alphabet - 2, -1, -1):
        jump_TL = step * np.abs(np.arange(len(octaves_L)) - found[at + 1][:, None])
        found[at] = (kept[at] + jump_TL).argmin(axis=1)
    weights_TA: np.ndarray = np.exp2(octaves_L[found]).T
    used_TA = counts_TA > 0
    weights_TA *= np.maximum.accumulate(used_TA, axis=1) & np.maximum.accumulate(used_TA[:, ::-1], axis=1)[:, ::-1]
    weights_TA *= totals_T[:, None] / np.maximum(weights_TA.sum(axis=1, keepdims=True), 1e-300)
    return weights_TA


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
    return np.where(every >= 0, 2 * every, -2 * every - 1)


def coded_tables(tables: Sequence[Written], coarse: int) -> tuple[int, bytes]:
    """The slope of the distribution that codes them in fewest bits, and the bytes."""
    steps = folded_steps(tables, coarse)
    counts = np.bincount(steps, minlength=2 * TOP + 2)
    slope = min(SLOPES, key=lambda one: float(counts @ _step_lengths(one)))
    coder = Encoder()
    coder.encode(steps, _step_frequencies(slope))
    return slope, coder.to_bytes()


def bits_of_tables(counts: Sequence[np.ndarray], coarse: int) -> float:
    """What the tables of these counts take, and what is coded with them."""
    tables = [written(each, coarse) for each in counts]
    coded = sum(float((each * code_lengths(table)).sum()) for each, table in zip(counts, tables, strict=True))
    return coded + 8 * len(coded_tables(tables, coarse)[1])


def _step_frequencies(slope: int) -> np.ndarray:
    return frequencies(np.maximum(TOP - slope * np.arange(2 * TOP + 2), 1))


@lru_cache
def _step_lengths(slope: int) -> np.ndarray:
    lengths: np.ndarray = PRECISION - np.log2(_step_frequencies(slope).astype(np.float64))
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
