"""A model's bytes into an archive, smaller, from which the same bytes come back: docs/format.md."""

from __future__ import annotations

import lzma
import re
from collections.abc import Sequence
from hashlib import sha256
from math import gcd, lcm
from typing import NamedTuple
from zlib import crc32

import numpy as np

from gossamer.archive.contexts import Choice, family
from gossamer.archive.neighbours import Fitted, filtered
from gossamer.archive.reader import (
    CLASSED,
    CONSTANT,
    FLOATS,
    MAGIC,
    PHRASES,
    PLANES,
    RAW,
    VERSION,
    Plane,
    coded_in_runs,
)
from gossamer.archive.runs import encode_gaps, encode_numbers, gapped
from gossamer.archive.sources import Source, sources_of, weights_in
from gossamer.archive.symbols import Symbols, Taken
from gossamer.archive.tables import (
    OPTIONS,
    Encoder,
    Written,
    bits_of_tables,
    coded_tables,
    price,
    restored,
    smoothed,
    written,
)
from gossamer.arith.entropy import entropy_of, occurrences

CHUNK_BYTES = 1 << 22  # of a large tensor that are coded together
WORTH = 0.995  # of the bytes as they are: what coding must come to
LITTLE_BYTES = 1 << 15  # of an index, below which LZMA better looks at no byte before
SPELLING = re.compile(b"|".join(map(re.escape, sorted(PHRASES, key=len, reverse=True))) + rb"|[\xc0-\xff]", re.DOTALL)
CODES = {phrase: bytes([192 + at]) for at, phrase in enumerate(PHRASES)} | {
    bytes([high]): bytes([255, high - 192]) for high in range(192, 256)
}


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


class _Coding(NamedTuple):
    """How a plane is coded: what the index says of it, its scales, its symbols as they are coded, stage by stage."""

    plane: Plane
    choice: Choice | None
    symbols: Symbols
    filter: _Filter | None = None


class _Filter(NamedTuple):
    """A filter as it is written."""

    fitted: Fitted
    thresholds: tuple[int, ...]


def pack(data: bytes, base: bytes | None = None) -> Packed:
    """The archive of a model.

    Args:
        data: of an ONNX file.
        base: of a model that whoever unpacks will have: another version of this one.

    Raises:
        ModelError: not an ONNX file.
    """
    sources = sources_of(data, base)
    planes = [plane for source in sources for plane in source.taken.planes]
    codings, counted, filters = _codings(sources)
    counts = smoothed(counted, OPTIONS[1])
    options = {coarse: [written(each, coarse) for each in counts] for coarse in OPTIONS}
    coarse = min(OPTIONS, key=lambda one: bits_of_tables(counts, options[one], one))
    tables = options[coarse]
    slope, coded_table = coded_tables(tables, coarse)
    frequencies = [restored(table) for table in tables]
    index, sections, at = _index_of_tables(tables, slope, coarse), [], 0
    index += _number(len(filters)) + b"".join(map(_filter, filters)) + _number(len(sources))
    spent: list[tuple[Source, int]] = []
    for source in sources:
        own = codings[at : at + len(source.taken.planes)]
        at += len(own)
        chunks = _chunks(source, own)
        index += _stream(source, [coding.plane for coding in own], len(chunks))
        coded = [_coded(source.taken, own, frequencies, part) for _, part in chunks]
        sections += [(part, length) for part, (length, _) in zip(coded, chunks, strict=True)]
        spent.append((source, sum(map(len, coded))))
    cuts, skeleton = _cuts(data, sources)
    index += cuts + SPELLING.sub(lambda found: CODES[found[0]], skeleton)
    literals = (0,) if len(index) < LITTLE_BYTES else (1, 3)
    compressed = min((_compressed(index, each) for each in literals), key=len)
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
        sum(entropy_of(plane.counts) for plane in planes),
    )


# --- how its planes are coded


def _codings(sources: Sequence[Source]) -> tuple[list[_Coding], list[np.ndarray], list[_Filter]]:
    """Each plane's coding, the counts of all tables, and the filters."""
    every = [(source, place) for source in sources for place in range(len(source.taken.planes))]
    codings = [_plain(source.taken.planes[place]) for source, place in every]
    sorts: dict[object, list[int]] = {}
    for at, ((source, place), coding) in enumerate(zip(every, codings, strict=True)):
        if coding.plane.coding == CLASSED:
            key = (source.taken.kind, source.taken.unit, place, len(coding.symbols.level))
            sorts.setdefault(key, []).append(at)
    counts: list[np.ndarray] = []
    filters: list[_Filter] = []
    for places in sorts.values():
        aware = filtered([codings[at].symbols for at in places], [every[at][0].kernels for at in places])
        found = family(aware.planes)
        fitted = [_Filter(one, found.thresholds if one.folds else ()) for one in aware.filters]
        base = len(counts) + 1
        row = base + len(found.tables) if found.row is not None else 0
        column = base + len(found.tables) + (row > 0) if found.column is not None else 0
        counts += [*found.tables, *(side for side in (found.row, found.column) if side is not None)]
        for at, choice, symbols, number in zip(places, found.choices, aware.planes, aware.filter_of, strict=True):
            sides = (row if choice.row is not None else 0, column if choice.column is not None else 0)
            filter = number and number + len(filters)
            plane = Plane(CLASSED, 0, symbols.width, *sides, base + choice.first, choice.classes, choice.shift, filter)
            codings[at] = _Coding(plane, choice, symbols, fitted[number - 1] if number else None)
        filters += fitted
    return codings, counts, filters


def _plain(plane: Symbols) -> _Coding:
    """As it is where it says nothing, or where coding saves nothing."""
    if not len(plane.values) or (plane.values == plane.values[0]).all():
        value = int(plane.values[0]) if len(plane.values) else 0
        if value < 256:
            return _Coding(Plane(CONSTANT, value), None, plane)
    if len(plane.level) <= 256 and price(plane.counts[None])[0] > WORTH * 8 * len(plane.values):
        return _Coding(Plane(RAW), None, plane)
    return _Coding(Plane(CLASSED), None, plane)


# --- bytes


def _chunks(source: Source, own: Sequence[_Coding]) -> list[tuple[int, slice]]:
    """The bytes that each chunk gives, and its items: only whole rows and kernels."""
    whole, items = len(source.data), len(source.taken.planes[0].values)
    if max(whole, items) <= CHUNK_BYTES:
        return [(whole, slice(None))]
    width = lcm(*(each.plane.width for each in own), *(len(each.filter.fitted.stages) for each in own if each.filter))
    width = lcm(width, items // gcd(items, whole))  # and whole bytes
    width = lcm(width, 8) if source.taken.kind == PLANES else width
    each = max(CHUNK_BYTES * items // max(whole, items) // width, 1) * width
    return [
        ((min(start + each, items) - start) * whole // items, slice(start, start + each))
        for start in range(0, items, each)
    ]


def _coded(source: Taken, own: Sequence[_Coding], tables: Sequence[np.ndarray], part: slice) -> bytes:
    """A section: the sizes of all planes but the first, then these, then the first."""
    parts: list[bytes] = []
    for coding in own:
        here = _without_zeros(source, part) if parts and source.kind == FLOATS and source.low else part
        parts.append(_plane(coding, tables, here))
    return b"".join([*(_number(len(one)) for one in parts[1:]), *parts[1:], parts[0]])


def _without_zeros(source: Taken, part: slice) -> slice:
    """Where the items of a chunk are in planes that hold only those whose first symbol is not 0."""
    first = source.planes[0].values
    start, count = (int(np.count_nonzero(one)) for one in (first[: part.start or 0], first[part]))
    return slice(start, start + count)


def _plane(coding: _Coding, tables: Sequence[np.ndarray], part: slice) -> bytes:
    plane, choice, symbols, filter = coding
    values = symbols.values[part]
    if plane.coding == CONSTANT:
        return b""
    if plane.coding == RAW or choice is None:
        return values.astype(np.uint8).tobytes()
    coder = Encoder()
    rows = len(values) // plane.width
    first = (part.start or 0) // plane.width
    classes_RC = np.full((rows, plane.width), -plane.shift, np.int32)
    if choice.row is not None:
        coder.encode(choice.row[first : first + rows], tables[plane.row_table - 1])
        classes_RC += choice.row[first : first + rows, None].astype(np.int32)
    if choice.column is not None:
        coder.encode(choice.column, tables[plane.column_table - 1])
        classes_RC += choice.column.astype(np.int32)
    used, classes = tables[plane.base_table - 1 : plane.base_table - 1 + plane.classes], classes_RC.reshape(-1)
    if filter is None or symbols.foretold is None:
        _encode(coder, values, classes, used)
        return coder.to_bytes()
    classes += np.searchsorted(filter.thresholds, symbols.foretold[part], side="right").astype(np.int32)
    taps = len(filter.fitted.stages)
    for stage in np.unique(filter.fitted.stages):
        here = np.flatnonzero(filter.fitted.stages == stage)
        now, its_classes = (one.reshape(-1, taps)[:, here].T.reshape(-1) for one in (values, classes))
        _encode(coder, now, its_classes, used)
    return coder.to_bytes()


def _encode(coder: Encoder, values: np.ndarray, classes: np.ndarray, tables: Sequence[np.ndarray]) -> None:
    """Class by class; numbers of what is in runs come before all of them."""
    short = np.clip(classes, 0, len(tables) - 1).astype(np.uint8)
    ordered = values[np.argsort(short, kind="stable")] if len(tables) > 1 else values
    sizes = occurrences(short, len(tables))
    parts = np.split(ordered, np.cumsum(sizes)[:-1])
    runs = coded_in_runs(tables, sizes.tolist())
    in_runs = [None if run is None else gapped(part, run) for part, run in zip(parts, runs, strict=True)]
    encode_numbers(coder, [one for one in in_runs if one is not None])
    for part, table, one in zip(parts, tables, in_runs, strict=True):
        if one is None:
            coder.encode(part, table)
        else:
            encode_gaps(coder, one)


def _index_of_tables(tables: Sequence[Written], slope: int, coarse: int) -> bytes:
    shapes = b"".join(_number(table.alphabet) + _number(table.first) + _number(len(table.entries)) for table in tables)
    return _number(len(tables)) + shapes + _number(slope) + _number(coarse)


def _filter(filter: _Filter) -> bytes:
    stages, weights_TT, _ = filter.fitted
    weights = weights_TT[stages[:, None] > stages].astype(np.int8).tobytes()
    parts = [_number(len(stages)), *map(_number, stages.tolist()), weights]
    return b"".join([*parts, _number(len(filter.thresholds)), *map(_number, filter.thresholds)])


def _stream(source: Source, planes: Sequence[Plane], chunks: int) -> bytes:
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
            parts += [*map(_number, numbers), _signed(plane.shift), _number(plane.filter)]
    return b"".join([*parts, _number(chunks)])


def _cuts(data: bytes, sources: Sequence[Source]) -> tuple[bytes, bytes]:
    """Where tensors go in what is left of the model without them, and this."""
    every = sorted(
        (span.offset, span.length, stream, base)
        for stream, source in enumerate(sources)
        for span, base in zip(source.members, source.bases, strict=True)
    )
    left, gaps, at = [], [], 0
    for offset, length, _, _ in every:
        gaps.append(offset - at)
        left.append(data[at:offset])
        at = offset + length
    columns = [gaps, *([one[place] for one in every] for place in (1, 2, 3))]
    coded = _number(len(every)) + b"".join(_number(value) for column in columns for value in column)
    return coded, b"".join([*left, data[at:]])


def _compressed(index: bytes, literals: int) -> bytes:
    """With so many bits of the byte before as context; a dictionary as small as it may be takes less time."""
    reach = min(max(1 << len(index).bit_length(), 1 << 12), 1 << 23)
    preset = 9 | lzma.PRESET_EXTREME
    options = {"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": reach, "lc": literals, "pb": 0}
    return lzma.compress(index, lzma.FORMAT_RAW, filters=[options])


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


def _signed(value: int) -> bytes:
    return _number(2 * value if value >= 0 else -2 * value - 1)


def _tensors(source: Source, coded_bytes: int) -> list[Tensor]:
    total = max(len(source.data), 1)
    return [Tensor(span.name, span.size, span.length, coded_bytes * span.length / total) for span in source.members]
