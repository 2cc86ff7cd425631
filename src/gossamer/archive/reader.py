"""Reads .goss archives with numpy and the standard library alone; docs/format.md has the rules, by number.

The package reads with this file too, and gives it a compiled decoder of symbols. By itself it is a program:

    python reader.py model.goss model.onnx [base.onnx]
"""

from __future__ import annotations

import lzma
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol
from zlib import crc32

import numpy as np

try:
    from gossamer.errors import ArchiveError
except ImportError:  # this file alone

    class ArchiveError(ValueError):  # type: ignore[no-redef]
        """The file is no archive, or not whole."""


MAGIC = b"\x89GOSS\r\n\x1a"
VERSION = 1
LIMIT_BYTES = 2**31  # of a model, unless the caller allows more: what ONNX files can hold
FILTERS = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 23}]
PRECISION = 24  # bits of a probability
STEPS = 16  # of an octave in which table entries are written
MANTISSAS = (1024, 1069, 1117, 1166, 1218, 1272, 1328, 1387, 1448, 1512, 1579, 1649, 1722, 1798, 1878, 1961)
TOP = 24 * STEPS  # the largest entry
WEIGHTS = np.array([0, *(MANTISSAS[entry % STEPS] << entry // STEPS for entry in range(1, TOP + 1))])  # of entries
LARGEST_ALPHABET = 1 << 16
MOST_CLASSES = 256
MOST_SCALES = 256  # of rows, or of columns
MOST_SHIFT = 1 << 12  # either way
MOST_FILTERS = 64
MOST_TAPS = 64
MOST_THRESHOLDS = 32
ALL_ALPHABETS = 1 << 20  # together, and 64 for each byte of the file
SHORTEST_CUT = 8  # bytes
RUN_SYMBOLS = 1024  # of a class, from which on runs of its most frequent symbol may be coded as such
RUN_FREQUENCY = 3 << PRECISION - 2  # that this symbol has then at least
LONGEST_GAP = 512  # coded as one symbol
RARE_GAP = 512  # one gap in so many takes more than one
BLOCK = 1 << 16  # symbols that are sorted by class together
NEAR = 511  # numbers of others that lie no farther from what is expected are one symbol
PHRASES = (  # of graphs, each a byte from 192 on, rule 5
    b'\x05batch|\x12\x13\n\x11\x08\x01\x12\r\n\x07\x12\x05batch\n\x02\x08|"\x03Add|"\x04Cast*\t\n\x02to\x18|'
    b'"\x04Cast*\t\n\x02to\x18\x01\xa0\x01\x02|"\x04Clip|"\x04Conv|"\x04Gelu|"\x04Gemm|"\x04Relu|"\x06Gather|'
    b'"\x06MatMul|"\x07MaxPool|"\x07Reshape|"\tTranspose|"\tUnsqueeze|"\nReduceMean|"\x10DequantizeLinear|'
    b'"\x12BatchNormalization|"\x12LayerNormalization|"\x15DynamicQuantizeLinear|*\x0b\n\x04axis\x18|'
    b"*\x0c\n\x05group\x18|*\x0c\n\x05group\x18\x01\xa0\x01\x02|*\r\n\x06transA\x18\x00\xa0\x01\x02|"
    b"*\r\n\x06transB\x18\x01\xa0\x01\x02|*\x0e\n\x04beta\x15\x00\x00\x80?\xa0\x01\x01|"
    b"*\x0f\n\x05alpha\x15\x00\x00\x80?\xa0\x01\x01|*\x0f\n\x08keepdims\x18\x01\xa0\x01\x02|*\x10\n\tallowzero\x18|"
    b"*\x10\n\tceil_mode\x18\x00\xa0\x01\x02|*\x11\n\x04pads@|*\x11\n\x04pads@\x00@\x00@\x00@\x00\xa0\x01\x07|"
    b"*\x11\n\x07epsilon\x15|*\x12\n\tdilations@\x01@\x01\xa0\x01\x07|*\x14\n\rstorage_order\x18\x00\xa0\x01\x02|"
    b'*\x15\n\x08auto_pad"\x06NOTSET\xa0\x01\x03|*\x15\n\x0ckernel_shape@|'
    b"*\x15\n\x0ckernel_shape@\x03@\x03\xa0\x01\x07|*\x1b\n\x14noop_with_empty_axes\x18\x00\xa0\x01\x02|.bias|"
    b".running_|.weight|B\x04\n\x00\x10|QuantizeLinear|_DequantizeLinear_Output|_dequantized|_dequantized_cast|"
    b"_dequantized_scaled|_indices|_quantized|_scale|_shape|_zero_point|conv|input|linear|main_graph|node_|output|"
    b"pytorch|\xa0\x01\x02|\xa0\x01\x07"
).split(b"|")
INTEGERS, WORDS, FLOATS, FEW, PLANES, WIDE = range(6)  # how the bytes of a stream are made, rule 7
RAW, CONSTANT, CLASSED = range(3)  # how a plane of symbols is coded, rule 9
SUMS = "the archive's index does not add up to its model"


class Decoder(Protocol):
    """An entropy decoder over the words of one plane."""

    def decode(self, table: np.ndarray, count: int) -> np.ndarray: ...
    def is_empty(self) -> bool: ...


class Section(NamedTuple):
    """A run of coded bytes: where it lies, what it holds once decoded, and its checksum."""

    offset: int
    length: int
    decoded: int
    checksum: int


class Header(NamedTuple):
    """Rule 2. `base` is the digest of the model that this one was packed against, or empty."""

    model_bytes: int
    base: bytes
    sections: tuple[Section, ...]


class Cut(NamedTuple):
    """A tensor's bytes, taken out of the model: where in what is left, how many, and from which stream they come.

    `base` is where the same tensor lies in the model that this one was packed against, plus 1; 0 for none.
    """

    gap: int
    length: int
    stream: int
    base: int


class Plane(NamedTuple):
    """Symbols of a stream, rule 9. Tables are counted from 1; 0 stands for none.

    Of rows of `width` symbols, that in row r and column c belongs to class row[r] + column[c] - shift, within bounds,
    and is coded with the table `base_table` + class. `filter` is the one that knows a symbol by its neighbours.
    """

    coding: int
    value: int = 0
    width: int = 1
    row_table: int = 0
    column_table: int = 0
    base_table: int = 0
    classes: int = 1
    shift: int = 0
    filter: int = 0


class Filter(NamedTuple):
    """Symbols of a kernel by those decoded before, rule 11: stage by stage, all kernels of a tensor at once.

    Attributes:
        taps: in the order of stages.
        ends: of each stage, among them.
        weights_TT: of each tap, how much each other one says of it, both in that order.
        thresholds: sizes of what is foretold, in sixteenths, that lift the class by one each; without any it is added.
    """

    taps: np.ndarray
    ends: tuple[int, ...]
    weights_TT: np.ndarray
    thresholds: tuple[int, ...]


class Stream(NamedTuple):
    """Bytes of one tensor, or of several one behind the other.

    Attributes:
        kind: how symbols become bytes.
        unit: bits of an item in INTEGERS and PLANES, bytes of one in the others.
        low: what symbol 0 stands for; 1 in FLOATS: where the first plane is 0 so are the others, which leave it out;
            in WIDE the bits that the second plane holds.
        values: of FEW, item by item.
        known: how many symbols there are.
        section: the first of as many sections as there are chunks.
        chunks: bytes that each yields.
    """

    kind: int
    unit: int
    low: int
    values: bytes
    known: int
    planes: tuple[Plane, ...]
    section: int
    chunks: tuple[int, ...]


class Index(NamedTuple):
    """Rule 5: how the model's bytes are put together."""

    tables: tuple[np.ndarray, ...]
    filters: tuple[Filter, ...]
    streams: tuple[Stream, ...]
    cuts: tuple[Cut, ...]
    skeleton: bytes


class Words:
    """Decodes symbols from 32-bit words, rule 10: asymmetric numeral systems with a state of 64 bits (Duda 2013)."""

    def __init__(self, words: np.ndarray) -> None:
        self.words = words.tolist()
        self.state = self.words.pop() if self.words else 0
        if self.words:
            self.state = self.state << 32 | self.words.pop()

    def decode(self, table: np.ndarray, count: int) -> np.ndarray:
        """So many symbols of one table of frequencies, int32."""
        starts = (np.cumsum(table) - table).tolist()
        frequencies, mask, symbols = table.tolist(), (1 << PRECISION) - 1, np.empty(count, np.int32)
        state, words = self.state, self.words
        for at in range(count):
            place = state & mask
            symbol = bisect_right(starts, place) - 1
            state = (state >> PRECISION) * frequencies[symbol] + place - starts[symbol]
            if state < 1 << 32 and words:
                state = state << 32 | words.pop()
            symbols[at] = symbol
        self.state = state
        return symbols

    def is_empty(self) -> bool:
        """Whether all words were used, which they are where decoding went as encoding."""
        return not self.words and self.state == 0


class Bytes:
    """Numbers read one after the other; what is asked for beyond the end is refused."""

    def __init__(self, data: bytes, what: str) -> None:
        self.data, self.what, self.at = data, what, 0

    def take(self, count: int) -> bytes:
        """So many bytes."""
        if count > len(self.data) - self.at:
            raise ArchiveError(f"{self.what} ends after {len(self.data)} bytes; the file is cut short or damaged")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, most: int = 2**63 - 1) -> int:
        """An unsigned number, seven bits a byte, the lowest first."""
        value, shift, byte = 0, 0, 128
        if self.at < len(self.data) and self.data[self.at] < 128:  # most are
            value = byte = self.data[self.at]
            self.at += 1
        while byte > 127:
            if shift > 63:
                raise ArchiveError(f"{self.what} has a number of more than 64 bits; the file is damaged")
            byte = self.data[self.at] if self.at < len(self.data) else self.take(1)[0]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
        if value > most:
            raise ArchiveError(f"{self.what} has {value:,} where at most {most:,} is allowed; the file is damaged")
        return value

    def signed(self, most: int) -> int:
        """A number whose lowest bit is its sign, up to so much before it is taken apart."""
        value = self.number(most)
        return value >> 1 if value % 2 == 0 else -(value >> 1) - 1

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self.data) - self.at)


def unpack(
    data: bytes,
    base: bytes | None = None,
    most: int = LIMIT_BYTES,
    decoder: type[Decoder] = Words,
    run: Callable[..., Iterator[bytes]] = map,
) -> bytes:
    """The model's bytes.

    Args:
        data: of the archive.
        base: of the model that it was packed against, if it was.
        most: bytes of a model that are allowed.
        run: decodes chunks as `map` does, which makes one when it is wanted; that of an executor makes all at once.

    Raises:
        ArchiveError: not an archive, of another version, damaged, larger than allowed, or of another base.
    """
    try:
        return b"".join(parts(data, base, most, decoder, run))
    except MemoryError:
        raise ArchiveError("the model does not fit into memory; unpack it where there is more of it") from None


def parts(
    data: bytes,
    base: bytes | None = None,
    most: int = LIMIT_BYTES,
    decoder: type[Decoder] = Words,
    run: Callable[..., Iterator[bytes]] = map,
) -> Iterator[bytes]:
    """The same, piece by piece: of a tensor in several chunks, one is decoded at a time."""
    header = read_header(data, most)
    yield from pieces(data, header, read_index(data, header, decoder), base, decoder, run)


def pieces(
    data: bytes,
    header: Header,
    index: Index,
    base: bytes | None = None,
    decoder: type[Decoder] = Words,
    run: Callable[..., Iterator[bytes]] = map,
) -> Iterator[bytes]:
    """The same of an archive whose index is read already."""
    if header.base and (base is None or sha256(base).digest() != header.base):
        got = "none was given" if base is None else f"the one given begins {sha256(base).hexdigest()[:16]}"
        raise ArchiveError(
            f"packed against a model whose SHA-256 begins {header.base.hex()[:16]}; {got}; give that model as its "
            "base, or `gossamer unpack --base` first"
        )
    known = index._replace(cuts=(), skeleton=b"", streams=())  # all that decoding needs
    flows = [_Flow(data, header, known, stream, decoder, run) for stream in index.streams]
    at = 0
    for cut in index.cuts:
        yield index.skeleton[at : at + cut.gap]
        at += cut.gap
        pieces = flows[cut.stream].take(cut.length)
        yield from [_added(b"".join(pieces), base or b"", cut, index.streams[cut.stream].unit)] if cut.base else pieces
    yield index.skeleton[at:]


def read_header(data: bytes, most: int = LIMIT_BYTES) -> Header:
    """Rules 1 to 4; sections are checked to fill the file exactly, and to hold no more than the model."""
    if data[: len(MAGIC)] != MAGIC:
        raise ArchiveError("not a .goss archive: it does not begin as one; give a file that `gossamer pack` wrote")
    file = Bytes(data, "the archive's header")
    file.take(len(MAGIC))
    version = file.number()
    if version != VERSION:
        raise ArchiveError(f"an archive of version {version}; this reader knows version {VERSION}; update gossamer")
    length = file.number(len(data))
    header = Bytes(file.take(length), "the archive's header")
    end = file.at
    if crc32(data[:end]) != int.from_bytes(file.take(4), "little"):
        raise ArchiveError("the archive's header does not match its checksum; the file is damaged, get it again")
    model_bytes = header.number()
    base = header.take(32) if header.number(1) else b""
    offset, sections = file.at, []
    for _ in range(header.number(length)):
        coded, decoded = header.number(len(data)), header.number()
        sections.append(Section(offset, coded, decoded, int.from_bytes(header.take(4), "little")))
        offset += coded
    if header.rest() or offset != len(data) or len(sections) < 2:
        raise ArchiveError(
            f"the archive's header promises {offset:,} bytes, the file has {len(data):,}; it is cut short or extended"
        )
    if model_bytes > most:
        raise ArchiveError(f"the model has {model_bytes:,} bytes, allowed are {most:,}; allow more if you want it")
    _refuse(sum(section.decoded for section in sections[2:]) > model_bytes, "the sections hold more than its model")
    return Header(model_bytes, base, tuple(sections))


def read_index(data: bytes, header: Header, decoder: type[Decoder] = Words) -> Index:
    """Rules 5 to 8; everything is checked to add up to the model."""
    first, second = header.sections[:2]
    most = 64 * len(data)
    _refuse(first.decoded > header.model_bytes + most or second.decoded > most, "the index is too large for its model")
    index = Bytes(_lzma(section_of(data, first), first.decoded), "the archive's index")
    tables = _tables(index, section_of(data, second), second.decoded, len(data), decoder)
    filters = tuple(_filter(index) for _ in range(index.number(MOST_FILTERS)))
    streams: list[Stream] = []
    section = 2
    for _ in range(index.number(len(header.sections) - 2)):
        streams.append(_stream(index, header, section, tables, filters))
        section += len(streams[-1].chunks)
    cuts = _cuts(index, header, streams)
    held, taken = [sum(stream.chunks) for stream in streams], [0] * len(streams)
    for cut in cuts:
        taken[cut.stream] += cut.length
    skeleton = _spelled(index.rest(), header.model_bytes - sum(held))
    _refuse(section != len(header.sections) or taken != held or sum(cut.gap for cut in cuts) > len(skeleton), SUMS)
    return Index(tuple(tables), filters, tuple(streams), cuts, skeleton)


def section_of(data: bytes, section: Section) -> bytes:
    """Its coded bytes, checked."""
    coded = data[section.offset : section.offset + section.length]
    if crc32(coded) != section.checksum:
        raise ArchiveError(
            f"{section.length:,} bytes from {section.offset:,} on do not match their checksum; "
            "the file is damaged, get it again"
        )
    return coded


def frequencies(entries: np.ndarray) -> np.ndarray:
    """Rule 8: the frequencies of a table from logarithms in sixteenths of an octave, 0 for what does not occur.

    Every symbol has at least one of the 2^24, so that all can be coded; what rounding leaves goes to the most frequent.
    """
    return _in_proportion(WEIGHTS[entries], [len(entries)])


def _in_proportion(weights: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The same of weights, for tables of such sizes one behind the other."""
    starts = np.cumsum([0, *sizes[:-1]])
    totals = np.maximum(np.add.reduceat(weights, starts), 1)
    found: np.ndarray = 1 + weights * np.repeat((1 << PRECISION) - np.array(sizes), sizes) // np.repeat(totals, sizes)
    missing = (1 << PRECISION) - np.add.reduceat(found, starts)
    for start, size, rest in zip(starts.tolist(), sizes, missing.tolist(), strict=True):
        found[start + int(weights[start : start + size].argmax())] += rest
    return found


class Runs(NamedTuple):
    """How a class is coded most of whose symbols are the same, rule 12.

    Attributes:
        common: that symbol.
        gaps: frequencies of how many of it come before another one; the last: at least so many.
        others: frequencies of the other ones.
        share: frequency of any of these.
    """

    common: int
    gaps: np.ndarray
    others: np.ndarray
    share: int


@lru_cache(maxsize=512)
def runs_of(table: bytes) -> Runs | None:
    """Of a table of frequencies, int64; None where no symbol is that frequent."""
    frequency = np.frombuffer(table, np.int64)
    common = int(frequency.argmax())
    often, one = int(frequency[common]), 1 << PRECISION
    if often < RUN_FREQUENCY:
        return None
    gaps: list[int] = []
    reached = one  # by so many gaps of 2^24
    while reached > one // RARE_GAP and len(gaps) < LONGEST_GAP:
        gaps.append(reached * (one - often) >> PRECISION)
        reached = reached * often >> PRECISION
    weights = np.array([*gaps, reached, *frequency.tolist()])
    sizes = [len(gaps) + 1, len(frequency)]
    weights[sizes[0] + common] = 0
    found = _in_proportion(weights, sizes)
    return Runs(common, found[: sizes[0]], found[sizes[0] :], one - often)


def coded_in_runs(tables: Sequence[np.ndarray], sizes: Sequence[int]) -> list[Runs | None]:
    """Of each class of so many symbols."""
    return [
        runs_of(table.tobytes()) if size >= RUN_SYMBOLS else None for table, size in zip(tables, sizes, strict=True)
    ]


NEARNESS = _in_proportion(
    (1 << 20) // np.arange(1, NEAR + 2), [NEAR + 1]
)  # frequencies of differences, and of larger ones
TWELVE_BITS = np.full(1 << 12, 1 << PRECISION - 12)


def _refuse(damaged: object, what: str) -> None:
    if damaged:
        raise ArchiveError(f"{what}; the file is damaged")


def _lzma(data: bytes, length: int) -> bytes:
    """Exactly so many bytes; no more than that is allocated."""
    coder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=FILTERS)
    try:
        found = coder.decompress(data, length) if length else b""
        more = b"" if coder.eof else coder.decompress(b"", 1)
    except (lzma.LZMAError, EOFError) as error:
        raise ArchiveError(f"a part of the archive cannot be decompressed ({error}); the file is damaged") from None
    if len(found) != length or more or bool(data) != bool(length) or (length and (not coder.eof or coder.unused_data)):
        raise ArchiveError(f"a part of the archive is not the {length:,} bytes that it promises; the file is damaged")
    return found


def _tables(index: Bytes, coded: bytes, entries: int, file_bytes: int, decoder: type[Decoder]) -> list[np.ndarray]:
    """Rule 8: sizes from the index, and from the section of tables all entries, as steps from the one before."""
    shapes = []
    for _ in range(index.number(len(index.data))):
        alphabet = index.number(LARGEST_ALPHABET)
        first = index.number(max(alphabet - 1, 0))
        shapes.append((alphabet, first, index.number(alphabet - first)))
        _refuse(alphabet < 2 or not shapes[-1][2] or len(shapes) > entries, "a table has nothing to tell apart")
    slope, coarse = index.number(TOP), index.number(STEPS)
    _refuse(sum(count for _, _, count in shapes) != entries or not coarse, "the tables are not what its index promises")
    if sum(alphabet for alphabet, _, _ in shapes) > ALL_ALPHABETS + 64 * file_bytes:
        raise ArchiveError("the tables are too large for it; the file is damaged")
    words = _words(coded, decoder)
    steps = words.decode(frequencies(np.maximum(TOP - slope * np.arange(2 * TOP + 2), 1)), entries).astype(np.int64)
    steps = np.where(steps % 2 == 0, steps // 2, -(steps // 2) - 1) * coarse
    _refuse(not words.is_empty(), "the tables do not end where they should")
    if not shapes:
        return []
    sizes, firsts, counts = (list(each) for each in zip(*shapes, strict=True))
    starts, ends = np.cumsum([0, *sizes]), np.cumsum([0, *counts])
    entries_of_all = np.zeros(int(starts[-1]), np.int64)
    sums = np.cumsum(steps)
    before = np.concatenate([[0], sums])[ends[:-1]]
    places = np.arange(len(steps)) + np.repeat(starts[:-1] + firsts - ends[:-1], counts)
    entries_of_all[places] = sums - np.repeat(before, counts)
    _refuse(
        entries_of_all.min(initial=0) < 0 or entries_of_all.max(initial=0) > TOP, "a table has an entry out of bounds"
    )
    return np.split(_in_proportion(WEIGHTS[entries_of_all], sizes), starts[1:-1])


def _filter(index: Bytes) -> Filter:
    """Rule 11."""
    taps = index.number(MOST_TAPS)
    stages, weights_TT = np.array([index.number(MOST_TAPS) for _ in range(taps)]), np.zeros((taps, taps), np.float32)
    known_TT = stages[:, None] > stages
    weights_TT[known_TT] = np.frombuffer(index.take(int(known_TT.sum())), np.int8) / 16
    thresholds = tuple(index.number(1 << 20) for _ in range(index.number(MOST_THRESHOLDS)))
    _refuse(not taps or not all(thresholds), "a filter has no taps, or a threshold of nothing")
    order = stages.argsort(kind="stable")
    ends = np.cumsum(np.unique(stages, return_counts=True)[1]).tolist()
    return Filter(order, tuple(ends), weights_TT[np.ix_(order, order)], thresholds)


def _stream(
    index: Bytes, header: Header, section: int, tables: list[np.ndarray], filters: tuple[Filter, ...]
) -> Stream:
    kind, unit, low = index.number(WIDE), index.number(16), index.number(255)
    values = index.take(index.number(LARGEST_ALPHABET) * unit) if kind == FEW else b""
    wanted = unit if kind in (WORDS, FLOATS) else 1 + (kind == WIDE)
    if not unit or (kind in (WORDS, FLOATS, WIDE) and unit not in (1, 2, 4, 8)) or index.number(16) != wanted:
        raise ArchiveError("a stream has planes that its kind has not; the file is damaged")
    if kind in (INTEGERS, PLANES) and (unit > 8 or (kind == INTEGERS and 8 % unit)):
        raise ArchiveError(f"a stream has integers of {unit} bits; the file is damaged")
    _refuse(kind == WIDE and low > 8, f"a stream has {low} bits in its second plane")
    known = 1 << unit if kind in (INTEGERS, PLANES) else len(values) // unit if kind == FEW else 256
    usable = len(filters) if kind in (INTEGERS, PLANES) else 0
    planes = tuple(_plane(index, known, tables, usable) for _ in range(wanted))
    count = index.number(len(header.sections) - section)
    chunks = tuple(each.decoded for each in header.sections[section : section + count])
    _refuse(not chunks or not all(chunks), "a stream has a chunk of no bytes")
    return Stream(kind, unit, low, values, known, planes, section, chunks)


def _plane(index: Bytes, known: int, tables: list[np.ndarray], filters: int) -> Plane:
    coding = index.number(CLASSED)
    if coding == RAW:
        return Plane(RAW)
    if coding == CONSTANT:
        return Plane(CONSTANT, index.number(255))
    most = len(tables)
    width, row, column, base = index.number(), index.number(most), index.number(most), index.number(most)
    classes, shift = index.number(MOST_CLASSES), index.signed(2 * MOST_SHIFT)
    filter = index.number(filters)
    _refuse(not width or not base or not classes or base + classes - 1 > most, "a plane names tables that it has not")
    scales = max((len(tables[side - 1]) for side in (row, column) if side), default=0)
    _refuse(scales > MOST_SCALES, f"a plane has a table of {scales:,} scales, at most {MOST_SCALES} are allowed")
    symbols = max(map(len, tables[base - 1 : base - 1 + classes]))
    _refuse(symbols > known, f"a plane has symbols beyond the {known:,} that it may")
    return Plane(CLASSED, 0, width, row, column, base, classes, shift, filter)


def _cuts(index: Bytes, header: Header, streams: list[Stream]) -> tuple[Cut, ...]:
    """Rule 6: all gaps, then all lengths, streams and bases."""
    count = index.number(header.model_bytes // SHORTEST_CUT)
    columns = ([index.number() for _ in range(count)] for _ in range(4))
    cuts = tuple(map(Cut, *columns))
    for cut in cuts:
        _refuse(cut.stream >= len(streams) or cut.length < SHORTEST_CUT, "a tensor is in no stream")
        plain = streams[cut.stream].kind != WORDS or cut.length % streams[cut.stream].unit
        _refuse(cut.base and (plain or not header.base), "a tensor cannot be steps from a base")
    return cuts


def _spelled(data: bytes, length: int) -> bytes:
    """Rule 5: the skeleton, with its phrases written out."""
    lengths = np.ones(256, np.uint8)
    lengths[192:] = [*map(len, PHRASES), 0]
    _refuse(int(lengths[np.frombuffer(data, np.uint8)].sum()) != length, SUMS)
    for at, phrase in enumerate(PHRASES):
        data = data.replace(bytes([192 + at]), phrase)
    first, *rest = data.split(b"\xff")
    _refuse(not all(part and part[0] < 64 for part in rest), SUMS)
    return first + b"".join(bytes([part[0] + 192]) + part[1:] for part in rest)


class _Flow:
    """The bytes of one stream, taken from the front; one chunk is held at a time, of bit planes all of them."""

    def __init__(
        self,
        data: bytes,
        header: Header,
        index: Index,
        stream: Stream,
        decoder: type[Decoder],
        run: Callable[..., Iterator[bytes]],
    ) -> None:
        sections = header.sections[stream.section : stream.section + len(stream.chunks)]
        coded = (section_of(data, section) for section in sections)
        decode = partial(chunk_of, stream=stream, index=index, decoder=decoder)
        self.chunks = run(decode, coded, [section.decoded for section in sections])
        self.stream, self.held, self.at = stream, b"", 0

    def take(self, length: int) -> Iterator[bytes]:
        """So many bytes, in pieces; the index was checked to have as many."""
        while length:
            if not self.held:
                self.held = self._planes() if self.stream.kind == PLANES else next(self.chunks)
            piece = self.held[self.at : self.at + length]
            self.at += len(piece)
            length -= len(piece)
            if self.at == len(self.held):
                self.held, self.at = b"", 0  # let go of before there is another
            yield piece
            del piece

    def _planes(self) -> bytes:
        """Rule 7: the lowest bits of all chunks, then the next."""
        parts = list(self.chunks)
        each = [len(part) // self.stream.unit for part in parts]
        return b"".join(
            part[bit * size : (bit + 1) * size]
            for bit in range(self.stream.unit)
            for part, size in zip(parts, each, strict=True)
        )


def chunk_of(coded: bytes, length: int, stream: Stream, index: Index, decoder: type[Decoder] = Words) -> bytes:
    """The bytes that a section holds, rule 7."""
    bits = stream.unit if stream.kind in (INTEGERS, PLANES) else 8 * stream.unit
    items = length * 8 // bits
    if items * bits != length * 8 or (stream.kind == PLANES and items % 8):
        raise ArchiveError(f"{length:,} bytes are no whole number of items of {bits} bits; the file is damaged")
    file = Bytes(coded, "a part of the archive")
    sizes = [file.number(len(coded)) for _ in stream.planes[1:]]
    parts = [file.take(size) for size in sizes]
    planes = [_symbols(file.rest(), stream, 0, items, index, decoder)]  # the first takes what is left
    some = np.flatnonzero(planes[0]) if stream.kind == FLOATS and stream.low else None
    for at, part in enumerate(parts, 1):
        found = _symbols(part, stream, at, items if some is None else len(some), index, decoder)
        if some is not None:
            found, there = np.zeros(items, np.uint8), found
            found[some] = there
        planes.append(found)
    return _joined(planes, stream)


def _symbols(coded: bytes, stream: Stream, at: int, count: int, index: Index, decoder: type[Decoder]) -> np.ndarray:
    """Rule 9: the symbols of one plane, uint8 or uint16, all of them such as rule 7 has a meaning for."""
    plane = stream.planes[at]
    if plane.coding == CLASSED and count:
        return _classed(coded, plane, count, stream.known, index, decoder)
    raw = plane.coding == RAW
    _refuse(len(coded) != count * raw, f"a plane has {len(coded):,} of {count * raw:,} bytes")
    symbols = np.frombuffer(coded, np.uint8) if raw else np.full(count, plane.value, np.uint8)
    _refuse(symbols.max(initial=0) >= stream.known, f"a plane has symbols beyond the {stream.known:,} that it may")
    return symbols


def _classed(coded: bytes, plane: Plane, count: int, known: int, index: Index, decoder: type[Decoder]) -> np.ndarray:
    filter = index.filters[plane.filter - 1] if plane.filter else None
    taps = 1 if filter is None else len(filter.taps)
    _refuse(
        count % plane.width or count % taps, f"{count:,} symbols are no rows of {plane.width:,} and kernels of {taps}"
    )
    words = _words(coded, decoder)
    row = column = np.zeros(1, np.int16)
    if plane.row_table:
        row = words.decode(index.tables[plane.row_table - 1], count // plane.width).astype(np.int16)
    if plane.column_table:
        column = words.decode(index.tables[plane.column_table - 1], plane.width).astype(np.int16)
    classes_RC = np.broadcast_to((row - plane.shift)[:, None] + column, (count // plane.width, plane.width))
    tables = index.tables[plane.base_table - 1 : plane.base_table - 1 + plane.classes]
    if filter is not None and filter.thresholds:
        symbols = _folded(words, classes_RC.reshape(-1, taps), tables, filter, known)
    else:
        symbols = _by_class(words, classes_RC.reshape(-1), tables, known)
    _refuse(not words.is_empty(), "a part of the archive does not end where it should")
    return symbols if filter is None or filter.thresholds else _summed(symbols.reshape(-1, taps), filter, known)


def _by_class(words: Decoder, classes_N: np.ndarray, tables: tuple[np.ndarray, ...], known: int) -> np.ndarray:
    """Rule 9: symbols of class 0, then of class 1 and so on, each put where it belongs."""
    kind = np.uint8 if known <= 256 else np.uint16
    places = _places_by_class(classes_N, len(tables))
    sizes = [len(here) for here in places]
    runs = coded_in_runs(tables, sizes)
    if len(tables) == 1 and runs[0] is None:
        return words.decode(tables[0], sizes[0]).astype(kind)
    numbers = _numbers_of_others(words, [(size, run) for size, run in zip(sizes, runs, strict=True) if run is not None])
    common = next((run.common for run in runs if run is not None), 0)
    symbols_N = np.full(len(classes_N), common, kind)
    for table, run, here in zip(tables, runs, places, strict=True):
        if run is None:
            symbols_N[here] = words.decode(table, len(here)).astype(kind)
            continue
        if run.common != common:
            symbols_N[here] = run.common
        others = here[_places_of_others(words, run, numbers.pop(0), len(here))]
        symbols_N[others] = words.decode(run.others, len(others)).astype(kind)
    return symbols_N


def _places_by_class(classes_N: np.ndarray, classes: int) -> list[np.ndarray]:
    """Where the symbols of each class are; sorted in blocks that the processor's cache holds."""
    if classes == 1:
        return [np.arange(len(classes_N))]
    found: list[list[np.ndarray]] = [[] for _ in range(classes)]
    for start in range(0, len(classes_N), BLOCK):
        short = np.clip(classes_N[start : start + BLOCK], 0, classes - 1).astype(np.uint8)
        order = short.argsort(kind="stable")
        ends = short.searchsorted(np.arange(classes, dtype=np.uint8), side="right", sorter=order).tolist()
        order += start
        for parts, first, end in zip(found, [0, *ends], ends, strict=False):
            parts.append(order[first:end])
    return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in found]


def _numbers_of_others(words: Decoder, classes: list[tuple[int, Runs]]) -> list[int]:
    """Rule 12: how many symbols of each class are not its common one, by how far that is from what is expected."""
    if not classes:
        return []
    folded = words.decode(NEARNESS, len(classes)).astype(np.int64)
    far = np.flatnonzero(folded == NEAR)
    if len(far):
        high, low = (words.decode(TWELVE_BITS, len(far)).astype(np.int64) for _ in range(2))
        folded[far] = high << 12 | low
    expected = [size * run.share >> PRECISION for size, run in classes]
    numbers = (np.array(expected) + np.where(folded % 2 == 0, folded // 2, -(folded // 2) - 1)).tolist()
    wrong = any(not 0 <= number <= size for number, (size, _) in zip(numbers, classes, strict=True))
    _refuse(wrong, "a class has more symbols of one kind than symbols")
    return list(numbers)


def _places_of_others(words: Decoder, run: Runs, number: int, size: int) -> np.ndarray:
    """Rule 12: where they are among the symbols of a class, from the gaps before them."""
    gaps = words.decode(run.gaps, number).astype(np.int64)
    most = len(run.gaps) - 1
    longer = np.flatnonzero(gaps == most)
    while len(longer):
        more = words.decode(run.gaps, len(longer))
        gaps[longer] += more
        _refuse(gaps[longer].max() > size, "a run is longer than its class")
        longer = longer[more == most]
    places: np.ndarray = np.cumsum(gaps + 1) - 1
    _refuse(len(places) and places[-1] >= size, "a run is longer than its class")
    return places


def _summed(symbols_NT: np.ndarray, filter: Filter, known: int) -> np.ndarray:
    """Rule 11 without thresholds. Sums are sixteenths below 2^16, which float32 adds up without a rest in any order."""
    symbols_TN, start = np.take(symbols_NT.T, filter.taps, 0), 0
    numbers_TN = np.empty(symbols_TN.shape, np.float32)
    for stop in filter.ends:
        if start:
            foretold_TN = filter.weights_TT[start:stop, :start] @ numbers_TN[:start] + np.float32(0.5)
            symbols_TN[start:stop] += np.floor(foretold_TN, out=foretold_TN).astype(np.int32).astype(np.uint8)
            symbols_TN[start:stop] &= known - 1
        numbers_TN[start:stop] = symbols_TN[start:stop]
        numbers_TN[start:stop] -= known // 2
        start = stop
    return _in_place(symbols_TN, filter)


def _folded(
    words: Decoder, classes_NT: np.ndarray, tables: tuple[np.ndarray, ...], filter: Filter, known: int
) -> np.ndarray:
    """Rule 11 with thresholds."""
    classes_TN, start = np.take(classes_NT.T, filter.taps, 0), 0
    symbols_TN, numbers_TN = np.empty(classes_TN.shape, np.uint8), np.empty(classes_TN.shape, np.float32)
    for stop in filter.ends:
        foretold_TN = filter.weights_TT[start:stop, :start] @ numbers_TN[:start]
        if start:  # before, nothing is foretold
            sizes_TN, lifts_TN = np.abs(foretold_TN), np.zeros(foretold_TN.shape, np.uint8)
            for threshold in sorted(set(filter.thresholds)):
                lifts_TN += (sizes_TN >= threshold / 16) * np.uint8(filter.thresholds.count(threshold))
            classes_TN[start:stop] += lifts_TN
        found_N = _by_class(words, classes_TN[start:stop].reshape(-1), tables, known)
        turned_TN = np.negative((foretold_TN < 0).view(np.uint8))  # 0 or 255
        symbols_TN[start:stop] = ((found_N.reshape(turned_TN.shape) ^ turned_TN) - turned_TN) & (known - 1)
        numbers_TN[start:stop] = symbols_TN[start:stop]
        numbers_TN[start:stop] -= known // 2
        start = stop
    return _in_place(symbols_TN, filter)


def _in_place(symbols_TN: np.ndarray, filter: Filter) -> np.ndarray:
    """Kernel by kernel, from the order of stages."""
    found_TN = np.empty_like(symbols_TN)
    found_TN[filter.taps] = symbols_TN
    found: np.ndarray = found_TN.T.reshape(-1)
    return found


def _words(coded: bytes, decoder: type[Decoder]) -> Decoder:
    _refuse(len(coded) % 4, f"{len(coded):,} bytes are no whole number of words")
    words = np.frombuffer(coded, "<u4").astype(np.uint32)
    _refuse(len(words) and not words[-1], "the words of a part of the archive end with a zero")
    return decoder(words)  # type: ignore[call-arg]  # a protocol says nothing of how an instance is made


def _joined(planes: list[np.ndarray], stream: Stream) -> bytes:
    """Rule 7: bytes of symbols."""
    if stream.kind == FEW:
        values = np.frombuffer(stream.values, np.uint8).reshape(-1, stream.unit)
        chosen: bytes = values[planes[0]].tobytes()
        return chosen
    if stream.kind in (WORDS, FLOATS):
        raw = np.stack(planes[::-1], axis=1)  # the lowest byte comes first
        whole = raw.reshape(-1).view(f"<u{stream.unit}")
        if stream.kind == FLOATS:
            whole = (whole >> 1) | (whole << (8 * stream.unit - 1))  # the sign was at the bottom
        joined: bytes = whole.astype(f"<u{stream.unit}").tobytes()
        return joined
    if stream.kind == WIDE:
        wide: bytes = (
            ((planes[0].astype(np.int64) - 128 << stream.low) + planes[1]).astype(f"<u{stream.unit}").tobytes()
        )
        return wide
    unsigned = (planes[0] + np.uint8(stream.low)) & np.uint8((1 << stream.unit) - 1)
    if stream.kind == PLANES:
        bits = unsigned.reshape(1, -1, 8) >> np.arange(stream.unit, dtype=np.uint8).reshape(-1, 1, 1) & 1
        return np.packbits(bits, axis=2, bitorder="little").tobytes()
    each = 8 // stream.unit
    packed: np.ndarray = unsigned[::each].copy()
    for place in range(1, each):
        packed |= unsigned[place::each] << (place * stream.unit)
    return packed.tobytes()


def _added(steps: bytes, base: bytes, cut: Cut, unit: int) -> bytes:
    """Rule 13: the base's integers and the steps from them, which lie in the bytes as signed numbers folded."""
    _refuse(cut.base - 1 + cut.length > len(base), "a tensor lies outside of its base")
    folded = np.frombuffer(steps, f"<u{unit}")
    before = np.frombuffer(base[cut.base - 1 : cut.base - 1 + cut.length], f"<u{unit}")
    found: bytes = (before + ((folded >> 1) ^ (0 - (folded & 1)))).astype(f"<u{unit}").tobytes()
    return found


def main(words: list[str]) -> str:
    """Unpack one file into another; what went wrong, or ""."""
    if len(words) not in (2, 3):
        return "usage: python reader.py model.goss model.onnx [base.onnx]"
    if any(Path(words[1]).resolve() == Path(one).resolve() for one in (words[0], *words[2:])):
        return f"error: {words[1]} is read as well, and would be lost; give another name to write to"
    try:
        base = Path(words[2]).read_bytes() if len(words) == 3 else None
        model = unpack(Path(words[0]).read_bytes(), base)
        Path(words[1] + ".part").write_bytes(model)
        Path(words[1] + ".part").replace(words[1])
    except (ArchiveError, OSError) as error:
        return f"error: {error}"
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) or 0)
