"""Archives made of choices: whatever tables, streams, planes and chunks rules 5 to 9 of docs/format.md let one have."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from tests.archive import building
from tests.archive.building import Kernels, Opened, Stream, number, numbers

from gossamer.archive.reader import CLASSED, CONSTANT, FEW, FLOATS, INTEGERS, PLANES, TOP, WIDE, WORDS

UNITS = {
    INTEGERS: (1, 2, 4, 8),
    WORDS: (1, 2, 4, 8),
    FLOATS: (1, 2, 4, 8),
    FEW: (*range(1, 17),),
    PLANES: (*range(1, 9),),
    WIDE: (1, 2, 4, 8),
}
Choose = Callable[[int], int]  # from 0 up to that
Table = tuple[int, int, list[int]]


def composed(source: Iterator[int], digest: bytes) -> Opened:
    """An archive for any bytes; it adds up, though its chunks are wrong where the bytes say so."""

    def choose(most: int) -> int:
        value = next(source, 0)
        return (value if most < 256 else value << 8 | next(source, 0)) % (most + 1)

    tables = [_table(choose) for _ in range(choose(4))]
    filters = [_filter(choose) for _ in range(choose(2))]
    streams = [_stream(choose, tables, filters, source) for _ in range(1 + choose(2))]
    cuts = [(choose(1), sum(size for _, size in stream.chunks), at, 0) for at, stream in enumerate(streams)]
    if choose(3) == 3:
        cuts[0] = (*cuts[0][:3], choose(80))
    return building.archive_of(
        streams, cuts, b"skeleton", tables, digest if choose(1) else b"", choose(TOP), filters=filters
    )


def _table(choose: Choose) -> Table:
    alphabet = (2, 4, 8, 16, 256, 2 + choose(300))[choose(5)]
    first = choose(alphabet - 1)
    return alphabet, first, [choose(TOP) for _ in range(1 + choose(min(alphabet - first, 20) - 1))]


def _filter(choose: Choose) -> Kernels:
    found = Kernels(tuple(choose(3) for _ in range(1 + choose(8))), {})
    weights = {pair: choose(255) - 128 for pair in found.pairs() if choose(1)}
    return found._replace(weights=weights, thresholds=tuple(1 + choose(400) for _ in range(choose(3))))


def _stream(choose: Choose, tables: list[Table], filters: list[Kernels], source: Iterator[int]) -> Stream:
    kind = choose(WIDE)
    low = choose(9 if kind == WIDE else 255)
    unit = UNITS[kind][choose(len(UNITS[kind]) - 1)]
    values = bytes(choose(255) for _ in range(unit * (1 + choose(20)))) if kind == FEW else b""
    bits, known = (unit, 1 << unit) if kind in (INTEGERS, PLANES) else (8 * unit, 256)
    known = len(values) // unit if kind == FEW else known
    usable = len(filters) if kind in (INTEGERS, PLANES) else 0
    planes = [_plane(choose, tables, usable) for _ in range(unit if kind in (WORDS, FLOATS) else 1 + (kind == WIDE))]
    chunks = []
    for _ in range(1 + choose(2)):
        count = items = 8 * (1 + choose(7)) * (8 if kind == INTEGERS else 1)
        parts = []
        for at, plane in enumerate(planes):
            part, symbols = _coded(choose, plane, count, known, tables, filters)
            parts.append(_wrong(part, choose, source))
            if at == 0 and kind == FLOATS and low:
                count = int(np.count_nonzero(symbols))
        chunk = b"".join(number(len(part)) for part in parts[1:]) + b"".join(parts[1:]) + parts[0]
        chunks.append((chunk, items * bits // 8))
    return Stream(kind, unit, low, tuple(map(_written, planes)), tuple(chunks), values)


def _plane(choose: Choose, tables: list[Table], filters: int) -> tuple[int, ...]:
    """Coding, then as in the format; shift and filter last."""
    coding = choose(2)
    if coding == CONSTANT:
        return CONSTANT, choose(255)
    if coding != CLASSED or not tables:
        return (0,)
    base = 1 + choose(len(tables) - 1)
    width = (1, 2, 4, 8, 16, 3)[choose(5)]
    sides = choose(len(tables)), choose(len(tables))
    return CLASSED, width, *sides, base, 1 + choose(len(tables) - base), choose(8) - 4, choose(filters)


def _written(plane: tuple[int, ...]) -> bytes:
    return building.classed(*plane[1:]) if plane[0] == CLASSED else numbers(*plane)


def _coded(
    choose: Choose, plane: tuple[int, ...], count: int, known: int, tables: list[Table], filters: list[Kernels]
) -> tuple[bytes, list[int]]:
    """Bytes of a plane of so many symbols, and these."""
    if plane[0] == CONSTANT:
        return b"", [plane[1]] * count
    if plane[0] != CLASSED:
        symbols = [choose(known - 1) for _ in range(count)]
        return bytes(symbols), symbols
    _, width, row_table, column_table, base, classes, shift, number_of_filter = plane
    filter = filters[number_of_filter - 1] if number_of_filter else Kernels((0,), {})
    if count % width or count % len(filter.stages) or not count:
        return b"", [0] * count
    rows, columns = [0] * (count // width), [0] * width
    parts = []
    for table, side in ((row_table, rows), (column_table, columns)):
        if table:
            side[:] = [choose(tables[table - 1][0] - 1) for _ in side]
            parts.append((side, building.table(*tables[table - 1])))
    plain = [row + column - shift for row in rows for column in columns]
    symbols = [known // 2] * count
    for stage in filter.order(count) if filter.thresholds else [list(range(count))]:
        lifts, sums = filter.lifts(symbols, known), filter.sums(symbols, known)
        of_class = [min(max(plain[at] + lifts[at], 0), classes - 1) for at in stage]
        codes = [choose(min(tables[base - 1 + one][0], known) - 1) for one in of_class]
        for each in range(classes):
            mine = [code for code, one in zip(codes, of_class, strict=True) if one == each]
            parts.append((mine, building.table(*tables[base - 1 + each])))
        for at, code in zip(stage, codes, strict=True):
            symbols[at] = -code % known if sums[at] < 0 else code
    return building.coded(parts), symbols


def _wrong(part: bytes, choose: Choose, source: Iterator[int]) -> bytes:
    """Mostly as it is."""
    way = choose(60)
    if way == 1:
        return part[: choose(len(part))]
    if way == 2:
        return part + bytes(next(source, 1) for _ in range(4))
    if way == 3 and part:
        at = choose(len(part) - 1)
        return part[:at] + bytes([choose(255)]) + part[at + 1 :]
    return part
