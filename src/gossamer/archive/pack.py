"""A model's bytes into an archive, smaller, from which the same bytes come back: docs/format.md."""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple
from zlib import crc32

import numpy as np

from gossamer.archive.contexts import Choice, family, price
from gossamer.archive.reader import CLASSED, CONSTANT, FLOATS, INTEGERS, MAGIC, PLANES, RAW, VERSION, WORDS, Plane
from gossamer.archive.spans import Span, spans
from gossamer.archive.symbols import Symbols, Taken, kind_of, taken
from gossamer.archive.tables import OPTIONS, Encoder, Written, code_lengths, coded_tables, restored, written
from gossamer.arith.entropy import entropy_bits

SMALL_BYTES = 2048  # tensors below that are put together
TINY_BYTES = 16  # and below that they stay where they are
CHUNK_BYTES = 1 << 22  # of a large tensor that are coded together
WORTH = 0.995  # of the bytes as they are: what coding must come to
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 23, "pb": 0}]


class Tensor(NamedTuple):
    """What a tensor takes in the archive; of tensors that were put together, each its share."""

    name: str
    numbers: int
    model_bytes: int
    coded_bytes: float


class Packed(NamedTuple):
    """An archive, and what its bytes are.

    Attributes:
        data: the archive.
        header_bytes: magic, header and checksum.
        graph_bytes: of the model without its tensors, and how these are put back.
        table_bytes: of the coder's tables.
        tensors: the rest.
        numbers: of all tensors.
        order0_bits: of all their symbols, each plane coded by its own frequencies, and these for nothing.
    """

    data: bytes
    header_bytes: int
    graph_bytes: int
    table_bytes: int
    tensors: tuple[Tensor, ...]
    numbers: int
    order0_bits: float


class _Source(NamedTuple):
    """A stream before it is coded: its tensors, their bytes one behind the other, and their symbols."""

    members: list[Span]
    data: bytes
    taken: Taken
    bases: list[int]


def pack(data: bytes, base: bytes | None = None) -> Packed:
    """The archive of a model.

    Args:
        data: of an ONNX file.
        base: of a model that whoever unpacks will have: another version of this one.

    Raises:
        ModelError: not an ONNX file.
    """
    sources = _sources(data, base)
    planes = [plane for source in sources for plane in source.taken.planes]
    codings, tables, coarse = _codings(planes, [source.taken for source in sources])
    slope, coded_table = coded_tables(tables, coarse)
    frequencies = [restored(table) for table in tables]
    index, sections, at = _index_of_tables(tables, slope, coarse), [], 0
    index += _number(len(sources))
    spent: list[tuple[_Source, int]] = []
    for source in sources:
        own = codings[at : at + len(source.taken.planes)]
        at += len(own)
        chunks = _chunks(source, own)
        index += _stream(source, [plane for plane, _ in own], [len(raw) for raw, _ in chunks])
        coded = [_coded(source.taken, own, frequencies, part, len(raw)) for raw, part in chunks]
        sections += [(part, len(raw)) for part, (raw, _) in zip(coded, chunks, strict=True)]
        spent.append((source, sum(map(len, coded))))
    cuts, skeleton = _cuts(data, sources)
    index += cuts + skeleton
    compressed = lzma.compress(index, lzma.FORMAT_RAW, filters=FILTERS)
    entries = sum(len(table.entries) for table in tables)
    every = [(compressed, len(index)), (coded_table, entries), *sections]
    header = _header(len(data), base, every)
    body = b"".join(part for part, _ in every)
    return Packed(
        header + body,
        len(header),
        len(compressed),
        len(coded_table),
        tuple(tensor for source, size in spent for tensor in _tensors(source, size)),
        sum(weights_in(span, source.taken.kind, source.taken.unit) for source in sources for span in source.members),
        sum(entropy_bits(plane.values) for plane in planes),
    )


# --- what becomes a stream


def _sources(data: bytes, base: bytes | None) -> list[_Source]:
    """Large tensors by themselves, small ones of a kind together."""
    every = spans(data)
    found = [span for span in every if span.length >= TINY_BYTES and kind_of(span) is not None]
    before = {} if base is None else {(span.name, span.data_type, span.shape): span for span in spans(base)}
    groups: dict[object, list[Span]] = {}
    for place, span in enumerate(found):
        small = span.length < SMALL_BYTES and base is None
        groups.setdefault((kind_of(span), span.data_type) if small else place, []).append(span)
    shapes = {span.name: _shape_in(data, span) for span in every if span.name.endswith("_shape")}
    sources = []
    for members in groups.values():
        raw = b"".join(data[span.offset : span.offset + span.length] for span in members)
        whole = members[0] if len(members) == 1 else Span(0, len(raw), members[0].data_type, (len(raw),), "")
        plain = taken(raw, whole, shapes)
        if plain is None:
            continue
        source = _Source(members, raw, plain, [0] * len(members))
        old = before.get((whole.name, whole.data_type, whole.shape))
        if base is not None and old is not None and old.length == whole.length:
            source = _shorter(source, _against(source, base, old))
        sources.append(source)
    return sources


def _shape_in(data: bytes, span: Span) -> tuple[int, ...]:
    if span.data_type != 7 or span.length % 8 or span.length > 64:
        return ()
    return tuple(np.frombuffer(data[span.offset : span.offset + span.length], "<i8").tolist())


def _against(source: _Source, base: bytes, old: Span) -> _Source:
    """A tensor as steps from another version of it: differences of its items as integers, the sign at the bottom."""
    unit = 1 if source.taken.kind == INTEGERS else source.taken.unit
    unit = unit if unit in (1, 2, 4, 8) and len(source.data) % unit == 0 else 1
    now, then = (np.frombuffer(part, f"<u{unit}") for part in (source.data, base[old.offset : old.offset + old.length]))
    step = (now - then).view(f"<i{unit}")
    folded = ((step << 1) ^ (step >> (8 * unit - 1))).view(f"<u{unit}")
    raw = folded.astype(f"<u{unit}").view(np.uint8).reshape(-1, unit)
    width = max(source.taken.planes[0].width, 1)
    width = width if len(folded) % width == 0 else 1
    level = np.arange(256, dtype=np.float32)
    planes = [Symbols(np.ascontiguousarray(raw[:, place]), width, level) for place in range(unit - 1, -1, -1)]
    return _Source(source.members, source.data, Taken(WORDS, unit, 0, b"", tuple(planes)), [old.offset + 1])


def _shorter(plain: _Source, other: _Source) -> _Source:
    return min((plain, other), key=lambda source: sum(entropy_bits(plane.values) for plane in source.taken.planes))


# --- how its planes are coded


def _codings(
    planes: Sequence[Symbols], streams: Sequence[Taken]
) -> tuple[list[tuple[Plane, Choice | None]], list[Written], int]:
    """Each plane's coding, all tables, and in which steps these are written."""
    keys = [(one.kind, one.unit, place) for one in streams for place in range(len(one.planes))]
    codings: list[tuple[Plane, Choice | None]] = [_plain(plane) for plane in planes]
    sorts: dict[object, list[int]] = {}
    for place, (plane, (coding, _)) in enumerate(zip(planes, codings, strict=True)):
        if coding.coding == CLASSED:
            sorts.setdefault((keys[place], len(plane.level)), []).append(place)
    counts: list[np.ndarray] = []
    for places in sorts.values():
        found = family([planes[place] for place in places], OPTIONS[1])
        base, row, column = len(counts) + 1, 0, 0
        counts += found.tables
        for side in (found.row, found.column):
            if side is not None:
                counts.append(side)
        row = base + len(found.tables) if found.row is not None else 0
        column = base + len(found.tables) + (found.row is not None) if found.column is not None else 0
        for at, (place, choice) in enumerate(zip(places, found.choices, strict=True)):
            first, classes = base, len(found.tables)
            if choice.own:
                counts.append(found.own[at])
                first, classes = len(counts), 1
            sides = (row if choice.row is not None else 0, column if choice.column is not None else 0)
            codings[place] = (Plane(CLASSED, 0, planes[place].width, *sides, first, classes, choice.shift), choice)
    coarse = min(OPTIONS, key=lambda one: _bits_of_tables(counts, one))
    return codings, [written(each, coarse) for each in counts], coarse


def _plain(plane: Symbols) -> tuple[Plane, Choice | None]:
    """As it is where it says nothing, or where coding saves nothing."""
    if not len(plane.values) or (plane.values == plane.values[0]).all():
        value = int(plane.values[0]) if len(plane.values) else 0
        if value < 256:
            return Plane(CONSTANT, value), None
    if len(plane.level) <= 256 and price(np.bincount(plane.values)[None])[0] > WORTH * 8 * len(plane.values):
        return Plane(RAW), None
    return Plane(CLASSED), None


def _bits_of_tables(counts: Sequence[np.ndarray], coarse: int) -> float:
    """What the tables take, and what is coded with them."""
    tables = [written(each, coarse) for each in counts]
    coded = sum(float((each * code_lengths(table)).sum()) for each, table in zip(counts, tables, strict=True))
    return coded + 8 * len(coded_tables(tables, coarse)[1])


# --- bytes


def _chunks(source: _Source, own: Sequence[tuple[Plane, Choice | None]]) -> list[tuple[bytes, slice]]:
    """The bytes of each chunk, and its items: only whole rows. Bit planes lie all across a tensor; it stays whole."""
    whole, items = len(source.data), len(source.taken.planes[0].values)
    if source.taken.kind == PLANES or max(whole, items) <= CHUNK_BYTES:
        return [(source.data, slice(None))]
    width = max(plane.width for plane, _ in own)  # where others have rows at all, they have these
    each = max(CHUNK_BYTES * items // max(whole, items) // width, 1) * width
    while each * whole % items:  # whole bytes
        each += width
    starts = range(0, items, each)
    return [
        (source.data[start * whole // items : min(start + each, items) * whole // items], slice(start, start + each))
        for start in starts
    ]


def _coded(
    source: Taken, own: Sequence[tuple[Plane, Choice | None]], tables: Sequence[np.ndarray], part: slice, length: int
) -> bytes:
    """A section: the sizes of all planes but the first, then these, then the first."""
    parts: list[bytes] = []
    for symbols, (plane, choice) in zip(source.planes, own, strict=True):
        here = _without_zeros(source, part) if parts and source.kind == FLOATS and source.low else part
        parts.append(_plane(symbols.values[here], plane, choice, tables, here))
    return b"".join([*(_number(len(one)) for one in parts[1:]), *parts[1:], parts[0]])


def _without_zeros(source: Taken, part: slice) -> slice:
    """Where the items of a chunk are in planes that hold only those whose first symbol is not 0."""
    first = source.planes[0].values
    start, count = (int(np.count_nonzero(one)) for one in (first[: part.start or 0], first[part]))
    return slice(start, start + count)


def _plane(values: np.ndarray, plane: Plane, choice: Choice | None, tables: Sequence[np.ndarray], part: slice) -> bytes:
    if plane.coding == CONSTANT:
        return b""
    if plane.coding == RAW or choice is None:
        return values.astype(np.uint8).tobytes()
    coder = Encoder()
    rows = len(values) // plane.width
    first = (part.start or 0) // plane.width
    classes_RC = np.zeros((rows, plane.width), np.int32) - plane.shift
    if choice.row is not None:
        coder.encode(choice.row[first : first + rows], tables[plane.row_table - 1])
        classes_RC += choice.row[first : first + rows, None].astype(np.int32)
    if choice.column is not None:
        coder.encode(choice.column, tables[plane.column_table - 1])
        classes_RC += choice.column[None].astype(np.int32)
    classes = np.clip(classes_RC, 0, plane.classes - 1).reshape(-1).astype(np.uint16)
    ordered = values[np.argsort(classes, kind="stable")] if plane.classes > 1 else values
    ends = np.cumsum(np.bincount(classes, minlength=plane.classes))
    for at, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        coder.encode(ordered[start:stop], tables[plane.base_table - 1 + at])
    return coder.to_bytes()


def _index_of_tables(tables: Sequence[Written], slope: int, coarse: int) -> bytes:
    shapes = b"".join(_number(table.alphabet) + _number(table.first) + _number(len(table.entries)) for table in tables)
    return _number(len(tables)) + shapes + _number(slope) + _number(coarse)


def _stream(source: _Source, planes: Sequence[Plane], chunks: Sequence[int]) -> bytes:
    found = source.taken
    parts = [_number(found.kind), _number(found.unit), _number(found.low)]
    if found.values:
        parts += [_number(len(found.values) // found.unit), found.values]
    parts.append(_number(len(planes)))
    for plane in planes:
        parts.append(_number(plane.coding))
        if plane.coding == CONSTANT:
            parts.append(_number(plane.value))
        if plane.coding == CLASSED:
            numbers = (plane.width, plane.row_table, plane.column_table, plane.base_table, plane.classes)
            shift = 2 * plane.shift if plane.shift >= 0 else -2 * plane.shift - 1
            parts += [*map(_number, numbers), _number(shift)]
    return b"".join([*parts, _number(len(chunks)), *map(_number, chunks)])


def _cuts(data: bytes, sources: Sequence[_Source]) -> tuple[bytes, bytes]:
    """Where tensors go in what is left of the model without them, and this."""
    every = sorted(
        (span.offset, span.length, stream, base)
        for stream, source in enumerate(sources)
        for span, base in zip(source.members, source.bases, strict=True)
    )
    coded, left, at = [_number(len(every))], [], 0
    for offset, length, stream, base in every:
        coded += map(_number, (offset - at, length, stream, base))
        left.append(data[at:offset])
        at = offset + length
    return b"".join(coded), b"".join([*left, data[at:]])


def _header(model_bytes: int, base: bytes | None, sections: Sequence[tuple[bytes, int]]) -> bytes:
    parts = [_number(model_bytes), _number(base is not None), b"" if base is None else sha256(base).digest()]
    parts.append(_number(len(sections)))
    for coded, decoded in sections:
        parts += [_number(len(coded)), _number(decoded), crc32(coded).to_bytes(4, "little")]
    inner = b"".join(parts)
    whole = MAGIC + _number(VERSION) + _number(len(inner)) + inner
    return whole + crc32(whole).to_bytes(4, "little")


def _number(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def weights_in(span: Span, kind: int, unit: int) -> int:
    """How many weights a tensor holds; in bit planes not as many as its shape says."""
    return span.length * 8 // unit if kind == PLANES else span.size


def _tensors(source: _Source, coded_bytes: int) -> list[Tensor]:
    total = max(len(source.data), 1)
    return [Tensor(span.name, span.size, span.length, coded_bytes * span.length / total) for span in source.members]
