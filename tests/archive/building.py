"""Archives made by hand from docs/format.md, right or wrong; nothing of the package writes here but its constants."""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np

from gossamer.archive.reader import FEW, FILTERS, MAGIC, TOP, VERSION, frequencies, read_header

QUICK = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 16}]  # what any reader of larger ones reads too


class Stream(NamedTuple):
    """`planes` are bytes as rule 9 has them; chunks are what a section holds, and how many bytes it gives."""

    kind: int
    unit: int
    low: int
    planes: tuple[bytes, ...]
    chunks: tuple[tuple[bytes, int], ...]
    values: bytes = b""


class Kernels(NamedTuple):
    """A filter: the stage of each tap, weights by tap and other tap in sixteenths, and thresholds."""

    stages: tuple[int, ...]
    weights: dict[tuple[int, int], int]
    thresholds: tuple[int, ...] = ()

    def pairs(self) -> list[tuple[int, int]]:
        """Taps and those of earlier stages, in the order of the format."""
        taps = range(len(self.stages))
        return [(tap, other) for tap in taps for other in taps if self.stages[other] < self.stages[tap]]

    def written(self) -> bytes:
        weights = bytes(self.weights.get(pair, 0) % 256 for pair in self.pairs())
        found = number(len(self.stages)) + numbers(*self.stages) + weights
        return found + number(len(self.thresholds)) + numbers(*self.thresholds)

    def sums(self, symbols: Sequence[int], alphabet: int) -> list[int]:
        """What is foretold of each symbol, in sixteenths, by those of its kernel."""
        size, half = len(self.stages), alphabet // 2
        found = []
        for at in range(len(symbols)):
            start, tap = at - at % size, at % size
            before = [other for one, other in self.pairs() if one == tap]
            found.append(sum(self.weights.get((tap, o), 0) * (symbols[start + o] - half) for o in before))
        return found

    def coded(self, symbols: Sequence[int], alphabet: int) -> list[int]:
        """Symbols as they are coded."""
        pairs = zip(symbols, self.sums(symbols, alphabet), strict=True)
        if self.thresholds:
            return [(-one if total < 0 else one) % alphabet for one, total in pairs]
        return [(one - (total + 8) // 16) % alphabet for one, total in pairs]

    def lifts(self, symbols: Sequence[int], alphabet: int) -> list[int]:
        """How far each is lifted above the class of its row and column."""
        return [sum(abs(total) >= each for each in self.thresholds) for total in self.sums(symbols, alphabet)]

    def order(self, count: int) -> list[list[int]]:
        """Of so many symbols, those of each stage, tap by tap."""
        size = len(self.stages)
        return [
            [at for tap in range(size) if self.stages[tap] == stage for at in range(tap, count, size)]
            for stage in sorted(set(self.stages))
        ]


class Opened(NamedTuple):
    """An archive before checksums and the index's compression; sections from 1 on, coded and decoded sizes."""

    model_bytes: int
    base: bytes
    index: bytes
    sections: tuple[tuple[bytes, int], ...]


def number(value: int) -> bytes:
    """Seven bits a byte."""
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def signed(value: int) -> bytes:
    return number(2 * value if value >= 0 else -2 * value - 1)


def numbers(*values: int) -> bytes:
    return b"".join(map(number, values))


def classed(width: int, row: int, column: int, base: int, classes: int, shift: int = 0, filter: int = 0) -> bytes:
    """A plane of coding 2."""
    return numbers(2, width, row, column, base, classes) + signed(shift) + number(filter)


def spelled(skeleton: bytes) -> bytes:
    """Without phrases: bytes from 192 on take two."""
    return b"".join(bytes([byte]) if byte < 192 else bytes([255, byte - 192]) for byte in skeleton)


def coded(parts: Sequence[tuple[Sequence[int], np.ndarray]]) -> bytes:
    """Words for the symbols of some tables, in the order in which they are decoded."""
    state, words = 0, []
    for symbols, table in reversed(parts):
        starts = np.cumsum(table) - table
        for symbol in reversed(symbols):
            frequency, start = int(table[symbol]), int(starts[symbol])
            if state >> 40 >= frequency:
                words.append(state & 0xFFFFFFFF)
                state >>= 32
            state = (state // frequency) << 24 | (state % frequency + start)
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    return np.array(words, "<u4").tobytes()


def table(alphabet: int, first: int, entries: Sequence[int]) -> np.ndarray:
    """The frequencies of a table."""
    whole = np.zeros(alphabet, np.int64)
    whole[first : first + len(entries)] = entries
    return frequencies(whole)


def in_proportion(weights: Sequence[int]) -> np.ndarray:
    """Frequencies of weights, as rule 8 has them."""
    found = [1 + weight * (2**24 - len(weights)) // max(sum(weights), 1) for weight in weights]
    found[weights.index(max(weights))] += 2**24 - sum(found)
    return np.array(found)


def by_runs(symbols: Sequence[int], table: np.ndarray) -> tuple[int, list[tuple[Sequence[int], np.ndarray]]]:
    """A class as rule 12 has it: how many others it has beyond what is expected, and what stands in its place."""
    common, often, left = int(table.argmax()), int(table.max()), 2**24
    weights = []
    while left > 2**15 and len(weights) < 512:
        weights.append(left * (2**24 - often) // 2**24)
        left = left * often // 2**24
    gap_table, longest = in_proportion([*weights, left]), len(weights)
    places = [at for at, symbol in enumerate(symbols) if symbol != common]
    gaps = [place - before - 1 for before, place in zip([-1, *places], places, strict=False)]
    parts: list[tuple[Sequence[int], np.ndarray]] = []
    while gaps:
        parts.append(([min(gap, longest) for gap in gaps], gap_table))
        gaps = [gap - longest for gap in gaps if gap >= longest]
    others = in_proportion([0 if at == common else int(each) for at, each in enumerate(table)])
    more = len(places) - len(symbols) * (2**24 - often) // 2**24
    return more, [*parts, ([symbols[place] for place in places], others)]


def numbers_of_others(more: Sequence[int]) -> list[tuple[Sequence[int], np.ndarray]]:
    """What comes before all classes by runs."""
    folded = [2 * one if one >= 0 else -2 * one - 1 for one in more]
    far, even = [one for one in folded if one >= 511], np.full(4096, 4096)
    near = ([min(one, 511) for one in folded], in_proportion([2**20 // (1 + n) for n in range(512)]))
    return [near, ([one // 4096 for one in far], even), ([one % 4096 for one in far], even)]


def archive_of(
    streams: Sequence[Stream],
    cuts: Sequence[tuple[int, int, int, int]],
    skeleton: bytes,
    tables: Sequence[tuple[int, int, Sequence[int]]] = (),
    base: bytes = b"",
    slope: int = 16,
    coarse: int = 1,
    filters: Sequence[Kernels] = (),
) -> Opened:
    """Cuts one by one, tables as alphabet, first symbol and entries, the skeleton as it is."""
    index = number(len(tables)) + b"".join(numbers(size, first, len(entries)) for size, first, entries in tables)
    index += numbers(slope, coarse, len(filters)) + b"".join(one.written() for one in filters) + number(len(streams))
    for stream in streams:
        index += numbers(stream.kind, stream.unit, stream.low)
        if stream.kind == FEW:
            index += number(len(stream.values) // stream.unit) + stream.values
        index += number(len(stream.planes)) + b"".join(stream.planes)
        index += number(len(stream.chunks))
    index += number(len(cuts)) + b"".join(number(cut[place]) for place in range(4) for cut in cuts) + spelled(skeleton)
    chunks = [chunk for stream in streams for chunk in stream.chunks]
    entries = [entry for _, _, entries in tables for entry in entries]
    model_bytes = len(skeleton) + sum(size for _, size in chunks)
    return Opened(
        model_bytes, base, index, ((table_section([each for *_, each in tables], slope, coarse), len(entries)), *chunks)
    )


def table_section(tables: Sequence[Sequence[int]], slope: int, coarse: int) -> bytes:
    """Section 1."""
    steps = [int(step) // coarse for entries in tables for step in np.diff(entries, prepend=0)]
    folded = [2 * step if step >= 0 else -2 * step - 1 for step in steps]
    return coded([(folded, frequencies(np.maximum(TOP - slope * np.arange(770), 1)))])


def closed(opened: Opened, index: bytes | None = None) -> bytes:
    """The archive's bytes, all checksums right; `index` instead of the compressed one."""
    first = lzma.compress(opened.index, lzma.FORMAT_RAW, filters=QUICK) if index is None else index
    sections = [(first, len(opened.index)), *opened.sections]
    header = number(opened.model_bytes) + (b"\1" + opened.base if opened.base else b"\0") + number(len(sections))
    header += b"".join(numbers(len(part), size) + crc32(part).to_bytes(4, "little") for part, size in sections)
    whole = MAGIC + numbers(VERSION, len(header)) + header
    return whole + crc32(whole).to_bytes(4, "little") + b"".join(part for part, _ in sections)


def opened(data: bytes) -> Opened:
    """An archive taken apart, to be put together another way."""
    header = read_header(data)
    parts = [(data[each.offset : each.offset + each.length], each.decoded) for each in header.sections]
    coder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=FILTERS)
    return Opened(header.model_bytes, header.base, coder.decompress(parts[0][0]), tuple(parts[1:]))
