"""Reads .goss archives with numpy and the standard library alone; docs/format.md has the rules, by number.

The package reads with this file too, and gives it a compiled decoder of symbols. By itself it is a program:

    python reader.py model.goss model.onnx [base.onnx]
"""

from __future__ import annotations

import lzma
import sys
from bisect import bisect_right
from collections.abc import Iterator
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
LARGEST_ALPHABET = 1 << 16
MOST_CLASSES = 1 << 16
ALL_ALPHABETS = 1 << 20  # together, and 64 for each byte of the file
SHORTEST_CUT = 8  # bytes
STORED, LZMA, INTEGERS, WORDS, FLOATS, FEW, PLANES = range(7)  # how the bytes of a stream are made, rule 7
RAW, CONSTANT, CLASSED = range(3)  # how a plane of symbols is coded, rule 9


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
    and is coded with the table `base_table` + class.
    """

    coding: int
    value: int = 0
    width: int = 1
    row_table: int = 0
    column_table: int = 0
    base_table: int = 0
    classes: int = 1
    shift: int = 0


class Stream(NamedTuple):
    """Bytes of one tensor, or of several one behind the other.

    Attributes:
        kind: how symbols become bytes.
        unit: bits of an item in INTEGERS and PLANES, bytes of one in the others.
        low: what symbol 0 stands for; 1 in FLOATS: where the first plane is 0 so are the others, which leave it out.
        values: of FEW, item by item.
        section: the first of as many sections as there are chunks.
        chunks: bytes that each yields.
    """

    kind: int
    unit: int
    low: int
    values: bytes
    planes: tuple[Plane, ...]
    section: int
    chunks: tuple[int, ...]


class Index(NamedTuple):
    """Rule 5: how the model's bytes are put together."""

    tables: tuple[np.ndarray, ...]
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
        value, shift = 0, 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
            if shift > 63:
                raise ArchiveError(f"{self.what} has a number of more than 64 bits; the file is damaged")
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


def unpack(data: bytes, base: bytes | None = None, most: int = LIMIT_BYTES, decoder: type[Decoder] = Words) -> bytes:
    """The model's bytes.

    Args:
        data: of the archive.
        base: of the model that it was packed against, if it was.
        most: bytes of a model that are allocated.

    Raises:
        ArchiveError: not an archive, of another version, damaged, larger than allowed, or of another base.
    """
    try:
        return b"".join(parts(data, base, most, decoder))
    except MemoryError:
        raise ArchiveError("the model does not fit into memory; unpack it where there is more of it") from None


def parts(
    data: bytes, base: bytes | None = None, most: int = LIMIT_BYTES, decoder: type[Decoder] = Words
) -> Iterator[bytes]:
    """The same, piece by piece: of a tensor in several chunks, one is decoded at a time."""
    try:
        yield from _parts(data, base, most, decoder)
    except MemoryError:
        raise ArchiveError("the model does not fit into memory; unpack it where there is more of it") from None


def _parts(data: bytes, base: bytes | None, most: int, decoder: type[Decoder]) -> Iterator[bytes]:
    header = read_header(data, most)
    if header.base and (base is None or sha256(base).digest() != header.base):
        wanted = header.base.hex()[:16]
        got = "none was given" if base is None else f"the one given begins {sha256(base).hexdigest()[:16]}"
        raise ArchiveError(
            f"packed against a model whose SHA-256 begins {wanted}; {got}; give that model: `gossamer unpack --base`"
        )
    index = read_index(data, header, decoder)
    flows = [_Flow(data, header, index, stream, decoder) for stream in index.streams]
    at = 0
    for cut in index.cuts:
        yield index.skeleton[at : at + cut.gap]
        at += cut.gap
        if cut.base:
            yield _added(b"".join(flows[cut.stream].take(cut.length)), base or b"", cut, index.streams[cut.stream].unit)
        else:
            yield from flows[cut.stream].take(cut.length)
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
    if sum(section.decoded for section in sections[2:]) > model_bytes:
        raise ArchiveError("the archive's sections hold more than its model; the file is damaged")
    return Header(model_bytes, base, tuple(sections))


def read_index(data: bytes, header: Header, decoder: type[Decoder] = Words) -> Index:
    """Rules 5 to 8; everything is checked to add up to the model."""
    first, second = header.sections[:2]
    if first.decoded > header.model_bytes + 64 * len(data) or second.decoded > 64 * len(data):
        raise ArchiveError("the archive's index is too large for its model; the file is damaged")
    index = Bytes(_lzma(section_of(data, first), first.decoded), "the archive's index")
    tables = _tables(index, section_of(data, second), second.decoded, len(data), decoder)
    streams: list[Stream] = []
    section = 2
    for _ in range(index.number(len(header.sections) - 2)):
        streams.append(_stream(index, section, len(header.sections), tables))
        section += len(streams[-1].chunks)
    cuts = tuple(_cut(index, header, streams) for _ in range(index.number(header.model_bytes // SHORTEST_CUT)))
    skeleton, held = index.rest(), [sum(stream.chunks) for stream in streams]
    taken = [0] * len(streams)
    for cut in cuts:
        taken[cut.stream] += cut.length
    whole = sum(cut.gap for cut in cuts) <= len(skeleton) and len(skeleton) + sum(held) == header.model_bytes
    chunks = [chunk for stream in streams for chunk in stream.chunks]
    if chunks != [each.decoded for each in header.sections[2:]] or taken != held or not whole:
        raise ArchiveError("the archive's index does not add up to its model; the file is damaged")
    return Index(tuple(tables), tuple(streams), cuts, skeleton)


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
    entries = np.asarray(entries, np.int64)
    weights = np.where(entries > 0, np.array(MANTISSAS, np.int64)[entries % STEPS] << entries // STEPS, 0)
    total = max(int(weights.sum()), 1)
    found = 1 + weights * ((1 << PRECISION) - len(entries)) // total
    found[int(weights.argmax())] += (1 << PRECISION) - int(found.sum())
    return found


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
        if alphabet < 2 or not shapes[-1][2] or len(shapes) > entries:
            raise ArchiveError("a table of the archive has nothing to tell apart; the file is damaged")
    slope, coarse = index.number(TOP), index.number(STEPS)
    if sum(count for _, _, count in shapes) != entries or not coarse:
        raise ArchiveError("the archive's tables are not what its index promises; the file is damaged")
    if sum(alphabet for alphabet, _, _ in shapes) > ALL_ALPHABETS + 64 * file_bytes:
        raise ArchiveError("the archive's tables are too large for it; the file is damaged")
    words = _words(coded, decoder)
    steps = words.decode(frequencies(np.maximum(TOP - slope * np.arange(2 * TOP + 2), 1)), entries).astype(np.int64)
    steps = np.where(steps % 2 == 0, steps // 2, -(steps // 2) - 1) * coarse
    if not words.is_empty():
        raise ArchiveError("the archive's tables do not end where they should; the file is damaged")
    found, at = [], 0
    for alphabet, first, count in shapes:
        table = np.zeros(alphabet, np.int64)
        table[first : first + count] = np.cumsum(steps[at : at + count])
        if table.min() < 0 or table.max() > TOP:
            raise ArchiveError("a table of the archive has an entry out of bounds; the file is damaged")
        found.append(frequencies(table))
        at += count
    return found


def _stream(index: Bytes, section: int, sections: int, tables: list[np.ndarray]) -> Stream:
    kind, unit, low = index.number(PLANES), index.number(16), index.number(255)
    values = index.take(index.number(LARGEST_ALPHABET) * unit) if kind == FEW else b""
    wanted = {STORED: 0, LZMA: 0, WORDS: unit, FLOATS: unit}.get(kind, 1)
    if not unit or (kind in (WORDS, FLOATS) and unit not in (1, 2, 4, 8)) or index.number(16) != wanted:
        raise ArchiveError("a stream of the archive has planes that its kind has not; the file is damaged")
    if kind in (INTEGERS, PLANES) and (unit > 8 or (kind == INTEGERS and 8 % unit)):
        raise ArchiveError(f"a stream of the archive has integers of {unit} bits; the file is damaged")
    planes = tuple(_plane(index, tables) for _ in range(wanted))
    chunks = tuple(index.number() for _ in range(index.number(sections - section)))
    if not chunks or not all(chunks):
        raise ArchiveError("a stream of the archive has a chunk of no bytes; the file is damaged")
    return Stream(kind, unit, low, values, planes, section, chunks)


def _plane(index: Bytes, tables: list[np.ndarray]) -> Plane:
    coding = index.number(CLASSED)
    if coding == RAW:
        return Plane(RAW)
    if coding == CONSTANT:
        return Plane(CONSTANT, index.number(255))
    most = len(tables)
    width, row, column, base = index.number(), index.number(most), index.number(most), index.number(most)
    plane = Plane(CLASSED, 0, width, row, column, base, index.number(MOST_CLASSES), index.signed(2 * MOST_CLASSES))
    if not width or not plane.base_table or not plane.classes or plane.base_table + plane.classes - 1 > most:
        raise ArchiveError("a plane of the archive names tables that it has not; the file is damaged")
    return plane


def _cut(index: Bytes, header: Header, streams: list[Stream]) -> Cut:
    cut = Cut(index.number(len(index.data)), index.number(header.model_bytes), index.number(), index.number())
    if cut.stream >= len(streams) or cut.length < SHORTEST_CUT:
        raise ArchiveError("a tensor of the archive is in no stream; the file is damaged")
    stream = streams[cut.stream]
    if cut.base and (not header.base or stream.kind != WORDS or cut.length % stream.unit):
        raise ArchiveError("a tensor of the archive cannot be steps from a base; the file is damaged")
    return cut


class _Flow:
    """The bytes of one stream, taken from the front; one chunk is held at a time."""

    def __init__(self, data: bytes, header: Header, index: Index, stream: Stream, decoder: type[Decoder]) -> None:
        self.data, self.header, self.tables, self.stream, self.decoder = data, header, index.tables, stream, decoder
        self.next, self.held, self.at = 0, b"", 0

    def take(self, length: int) -> Iterator[bytes]:
        """So many bytes, in pieces; the index was checked to have as many."""
        while length:
            if self.at == len(self.held):
                section = self.header.sections[self.stream.section + self.next]
                coded = section_of(self.data, section)
                self.held, self.at = b"", 0  # let go of before there is another
                self.held = chunk_of(coded, section.decoded, self.stream, self.tables, self.decoder)
                self.next += 1
            piece = self.held[self.at : self.at + length]
            self.at += len(piece)
            length -= len(piece)
            yield piece


def chunk_of(
    coded: bytes, length: int, stream: Stream, tables: tuple[np.ndarray, ...], decoder: type[Decoder] = Words
) -> bytes:
    """The bytes that a section holds, rule 7."""
    if stream.kind == STORED:
        if len(coded) != length:
            raise ArchiveError(f"a stored part has {len(coded):,} bytes, promised are {length:,}; the file is damaged")
        return coded
    if stream.kind == LZMA:
        return _lzma(coded, length)
    bits = stream.unit if stream.kind in (INTEGERS, PLANES) else 8 * stream.unit
    items = length * 8 // bits
    if items * bits != length * 8 or (stream.kind == PLANES and items % 8):
        raise ArchiveError(f"{length:,} bytes are no whole number of items of {bits} bits; the file is damaged")
    file = Bytes(coded, "a part of the archive")
    sizes = [file.number(len(coded)) for _ in stream.planes[1:]]
    parts = [file.take(size) for size in sizes]
    parts.insert(0, file.rest())  # the first takes what is left
    planes = [_symbols(parts[0], stream, 0, items, tables, decoder)]
    some = np.flatnonzero(planes[0]) if stream.kind == FLOATS and stream.low else None
    for at, part in enumerate(parts[1:], 1):
        found = _symbols(part, stream, at, items if some is None else len(some), tables, decoder)
        if some is not None:
            found, there = np.zeros(items, np.uint8), found
            found[some] = there
        planes.append(found)
    return _joined(planes, stream, items)


def _symbols(
    coded: bytes, stream: Stream, at: int, count: int, tables: tuple[np.ndarray, ...], decoder: type[Decoder]
) -> np.ndarray:
    """Rule 9: the symbols of one plane, all of them such as rule 7 has a meaning for."""
    symbols = _decoded(coded, stream.planes[at], count, tables, decoder)
    known = 1 << stream.unit if stream.kind in (INTEGERS, PLANES) else 256
    known = len(stream.values) // stream.unit if stream.kind == FEW else known
    if count and int(symbols.max()) >= known:
        raise ArchiveError(f"a part of the archive has symbols beyond the {known:,} that it may; the file is damaged")
    return symbols


def _decoded(
    coded: bytes, plane: Plane, count: int, tables: tuple[np.ndarray, ...], decoder: type[Decoder]
) -> np.ndarray:
    if plane.coding == CONSTANT or not count:
        if coded:
            raise ArchiveError("a plane of the archive that needs no bytes has some; the file is damaged")
        return np.full(count, plane.value, np.uint8)
    if plane.coding == RAW:
        if len(coded) != count:
            raise ArchiveError(f"a plane of the archive has {len(coded):,} of {count:,} bytes; the file is damaged")
        return np.frombuffer(coded, np.uint8)
    if count % plane.width:
        raise ArchiveError(f"{count:,} symbols are no rows of {plane.width:,}; the file is damaged")
    words = _words(coded, decoder)
    rows, columns = count // plane.width, plane.width
    classes_RC = np.zeros((rows, columns), np.int32) - plane.shift
    if plane.row_table:
        classes_RC += words.decode(tables[plane.row_table - 1], rows)[:, None]
    if plane.column_table:
        classes_RC += words.decode(tables[plane.column_table - 1], columns)[None]
    classes = np.clip(classes_RC, 0, plane.classes - 1).reshape(-1).astype(np.uint16)
    order = np.argsort(classes, kind="stable") if plane.classes > 1 else np.arange(count)
    sizes = np.bincount(classes)
    found = [words.decode(tables[plane.base_table - 1 + at], int(sizes[at])) for at in np.flatnonzero(sizes)]
    symbols = np.empty(count, np.int32)
    symbols[order] = np.concatenate(found)
    if not words.is_empty():
        raise ArchiveError("a part of the archive does not end where it should; the file is damaged")
    return symbols


def _words(coded: bytes, decoder: type[Decoder]) -> Decoder:
    if len(coded) % 4:
        raise ArchiveError(f"{len(coded):,} bytes are no whole number of words; the file is damaged")
    words = np.frombuffer(coded, "<u4").astype(np.uint32)
    if len(words) and not words[-1]:
        raise ArchiveError("the words of a part of the archive end with a zero; the file is damaged")
    return decoder(words)  # type: ignore[call-arg]  # a protocol says nothing of how an instance is made


def _joined(planes: list[np.ndarray], stream: Stream, items: int) -> bytes:
    """Rule 7: bytes of symbols."""
    if stream.kind == FEW:
        values = np.frombuffer(stream.values, np.uint8).reshape(-1, stream.unit)
        chosen: bytes = values[planes[0]].tobytes()
        return chosen
    if stream.kind in (WORDS, FLOATS):
        raw = np.stack([plane.astype(np.uint8) for plane in planes[::-1]], axis=1)  # the lowest byte comes first
        whole = raw.reshape(-1).view(f"<u{stream.unit}")
        if stream.kind == FLOATS:
            whole = (whole >> 1) | (whole << (8 * stream.unit - 1))  # the sign was at the bottom
        joined: bytes = whole.astype(f"<u{stream.unit}").tobytes()
        return joined
    unsigned = ((planes[0].astype(np.int64) + stream.low) & ((1 << stream.unit) - 1)).astype(np.uint8)
    if stream.kind == PLANES:
        bits = unsigned.reshape(1, -1, 8) >> np.arange(stream.unit, dtype=np.uint8).reshape(-1, 1, 1) & 1
        return np.packbits(bits, axis=2, bitorder="little").tobytes()
    each = 8 // stream.unit
    packed = np.zeros(len(unsigned) // each, np.uint8)
    for place in range(each):
        packed |= unsigned[place::each] << (place * stream.unit)
    return packed.tobytes()


def _added(steps: bytes, base: bytes, cut: Cut, unit: int) -> bytes:
    """Rule 11: the base's integers and the steps from them, which lie in the bytes as signed numbers folded."""
    if cut.base - 1 + cut.length > len(base):
        raise ArchiveError("a tensor of the archive lies outside of its base; the file is damaged")
    folded = np.frombuffer(steps, f"<u{unit}")
    before = np.frombuffer(base[cut.base - 1 : cut.base - 1 + cut.length], f"<u{unit}")
    found: bytes = (before + ((folded >> 1) ^ (0 - (folded & 1)))).astype(f"<u{unit}").tobytes()
    return found


def main(words: list[str]) -> str:
    """Unpack one file into another; what went wrong, or ""."""
    if len(words) not in (2, 3):
        return "usage: python reader.py model.goss model.onnx [base.onnx]"
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
