"""Archives made of choices: whatever tables, streams, planes and chunks rules 5 to 9 of docs/format.md let one have."""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterator

import numpy as np
from tests.archive import building
from tests.archive.building import Opened, Stream, number, numbers

from gossamer.archive.reader import CLASSED, CONSTANT, FEW, FLOATS, INTEGERS, LZMA, PLANES, STORED, TOP, WORDS

UNITS = {
    INTEGERS: (1, 2, 4, 8),
    WORDS: (1, 2, 4, 8),
    FLOATS: (1, 2, 4, 8),
    FEW: (*range(1, 17),),
    PLANES: (*range(1, 9),),
}
Choose = Callable[[int], int]  # from 0 up to that
Table = tuple[int, int, list[int]]


def composed(source: Iterator[int], digest: bytes) -> Opened:
    """An archive for any bytes; it adds up, though its chunks are wrong where the bytes say so."""

    def choose(most: int) -> int:
        value = next(source, 0)
        return (value if most < 256 else value << 8 | next(source, 0)) % (most + 1)

    tables = [_table(choose) for _ in range(choose(4))]
    streams = [_stream(choose, tables, source) for _ in range(1 + choose(2))]
    cuts = [(choose(1), sum(size for _, size in stream.chunks), at, 0) for at, stream in enumerate(streams)]
    if choose(3) == 3:
        cuts[0] = (*cuts[0][:3], choose(80))
    return building.archive_of(streams, cuts, b"skeleton", tables, digest if choose(1) else b"", choose(TOP))


def _table(choose: Choose) -> Table:
    alphabet = 2 + choose(300)
    first = choose(alphabet - 1)
    return alphabet, first, [choose(TOP) for _ in range(1 + choose(min(alphabet - first, 20) - 1))]


def _stream(choose: Choose, tables: list[Table], source: Iterator[int]) -> Stream:
    kind, low = choose(PLANES), choose(255)
    if kind in (STORED, LZMA):
        data = bytes(choose(255) for _ in range(8 + choose(20)))
        packed = lzma.compress(data, lzma.FORMAT_RAW, filters=building.QUICK) if kind == LZMA else data
        return Stream(kind, 1, low, (), ((_wrong(packed, choose, source), len(data)),))
    unit = UNITS[kind][choose(len(UNITS[kind]) - 1)]
    values = bytes(choose(255) for _ in range(unit * (1 + choose(20)))) if kind == FEW else b""
    bits, known = (unit, 1 << unit) if kind in (INTEGERS, PLANES) else (8 * unit, 256)
    known = len(values) // unit if kind == FEW else known
    planes = [_plane(choose, tables) for _ in range(unit if kind in (WORDS, FLOATS) else 1)]
    chunks = []
    for _ in range(1 + choose(2)):
        count = items = 8 * (1 + choose(7)) * (8 if kind == INTEGERS else 1)
        parts = []
        for at, plane in enumerate(planes):
            part, symbols = _coded(choose, plane, count, known, tables)
            parts.append(_wrong(part, choose, source))
            if at == 0 and kind == FLOATS and low:
                count = int(np.count_nonzero(symbols))
        chunk = b"".join(number(len(part)) for part in parts[1:]) + b"".join(parts[1:]) + parts[0]
        chunks.append((chunk, items * bits // 8))
    return Stream(kind, unit, low, tuple(map(_written, planes)), tuple(chunks), values)


def _plane(choose: Choose, tables: list[Table]) -> tuple[int, ...]:
    """Coding, then as in the format; the shift last."""
    coding = choose(2)
    if coding == CONSTANT:
        return CONSTANT, choose(255)
    if coding != CLASSED or not tables:
        return (0,)
    base = 1 + choose(len(tables) - 1)
    width = (1, 2, 4, 8, 16, 3)[choose(5)]
    sides = choose(len(tables)), choose(len(tables))
    return CLASSED, width, *sides, base, 1 + choose(len(tables) - base), choose(8) - 4


def _written(plane: tuple[int, ...]) -> bytes:
    return building.classed(*plane[1:]) if plane[0] == CLASSED else numbers(*plane)


def _coded(
    choose: Choose, plane: tuple[int, ...], count: int, known: int, tables: list[Table]
) -> tuple[bytes, list[int]]:
    """Bytes of a plane of so many symbols, and these."""
    if plane[0] == CONSTANT:
        return b"", [plane[1]] * count
    if plane[0] != CLASSED:
        symbols = [choose(known - 1) for _ in range(count)]
        return bytes(symbols), symbols
    _, width, row_table, column_table, base, classes, shift = plane
    if count % width or not count:
        return b"", [0] * count
    rows, columns = [0] * (count // width), [0] * width
    parts = []
    for table, side in ((row_table, rows), (column_table, columns)):
        if table:
            side[:] = [choose(tables[table - 1][0] - 1) for _ in side]
            parts.append((side, building.table(*tables[table - 1])))
    of_class = [min(max(row + column - shift, 0), classes - 1) for row in rows for column in columns]
    symbols = [choose(min(tables[base - 1 + one][0], known) - 1) for one in of_class]
    for each in range(classes):
        mine = [symbol for symbol, one in zip(symbols, of_class, strict=True) if one == each]
        parts.append((mine, building.table(*tables[base - 1 + each])))
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
