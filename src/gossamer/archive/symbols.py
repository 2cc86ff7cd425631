"""The bytes of a tensor as planes of symbols: what the reader joins to bytes again, see rule 7 of docs/format.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from gossamer.archive.reader import FEW, FLOATS, INTEGERS, PLANES, WIDE, WORDS
from gossamer.archive.spans import Span
from gossamer.arith.entropy import entropy_of, occurrences

# numbers of TensorProto.DataType
INTEGER_BITS = {2: 8, 3: 8, 9: 8, 21: 4, 22: 4, 25: 2, 26: 2}
SIGNED = (3, 22, 26)
FLOAT_BYTES = {1: 4, 10: 2, 11: 8, 14: 4, 15: 8, 16: 2, 17: 1, 18: 1, 19: 1, 20: 1, 24: 1}  # complex: of each part
EXPONENT_BITS = {10: 5, 11: 11, 15: 11, 17: 4, 18: 4, 19: 5, 20: 5}  # where they are not 8
WORD_BYTES = {4: 2, 5: 2, 6: 4, 7: 8, 12: 4, 13: 8}
MOST_VALUES = 4096  # that a table of few values has
LEAST_BYTES = 64  # of a stream; what is smaller stays in the skeleton
DOMINANT = 0.4  # share of the most common number that makes it zero
TABLE_BITS = 6  # of an entry, about
SAMPLE = 1 << 16  # numbers that are looked at first, to see whether a tensor can have few values


@dataclass(frozen=True, eq=False)
class Symbols:
    """One plane.

    Attributes:
        values: (N,) uint8 or uint16.
        width: symbols in a row.
        level: (alphabet,) float32, how large the number is that each symbol stands for, or
        logarithmic: how many octaves.
        foretold: (N,) how large the neighbours say that a number is, where classes rise with it.
    """

    values: np.ndarray
    width: int
    level: np.ndarray
    logarithmic: bool = False
    foretold: np.ndarray | None = None

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each symbol occurs (alphabet,)."""
        return occurrences(self.values, len(self.level))


class Taken(NamedTuple):
    """A stream before it is coded; fields as in `reader.Stream`."""

    kind: int
    unit: int
    low: int
    values: bytes
    planes: tuple[Symbols, ...]


def kind_of(span: Span) -> tuple[int, int] | None:
    """How a tensor's numbers are taken, and in which unit; None for what stays in the skeleton."""
    if bits := INTEGER_BITS.get(span.data_type):
        return INTEGERS, bits
    if item_bytes := FLOAT_BYTES.get(span.data_type):
        return FLOATS, item_bytes
    if item_bytes := WORD_BYTES.get(span.data_type):
        return WORDS, item_bytes
    return None


def taken(data: bytes, span: Span, shapes: Mapping[str, tuple[int, ...]]) -> Taken | None:
    """A tensor's bytes as symbols.

    Args:
        data: the tensor's bytes.
        shapes: by the names of tensors that hold shapes; those of weights in bit planes are among them.
    """
    found = kind_of(span)
    if found is None or len(data) < _least(found[0]) or len(data) % max(found[1] if found[0] != INTEGERS else 1, 1):
        return None
    kind, unit = found
    width = _width(span.shape)
    if kind == INTEGERS:
        bits = _bits_of_planes(span)
        if bits:
            return _bit_planes(data, bits, _width(shapes.get(span.name.removesuffix("_planes") + "_shape", ())))
        return _integers(data, unit, span.data_type in SIGNED, width)
    few = _few(data, unit, width, kind == FLOATS) if unit > 1 else None
    if kind == WORDS and (wide := _wide(data, unit, width)) and (few is None or _order0(wide) < _order0(few)):
        return wide
    return few or _words(data, unit, width, kind, EXPONENT_BITS.get(span.data_type, 8))


def _least(kind: int) -> int:
    """Bytes below which planes and their tables take more than they save; words have most planes."""
    return LEAST_BYTES * (4 if kind == WORDS else 1)


def _width(shape: tuple[int, ...]) -> int:
    """Rows are what lies along the first axis."""
    return max(int(np.prod(shape[1:], dtype=np.int64)), 1) if len(shape) > 1 else 1


def _bits_of_planes(span: Span) -> int:
    """Weights of odd widths are stored in bit planes (bits, bytes, 1)."""
    if span.data_type != 2 or len(span.shape) != 3 or span.shape[2] != 1 or not span.name.endswith("_planes"):
        return 0
    return span.shape[0] if 1 <= span.shape[0] <= 8 and span.length == span.size else 0


def _integers(data: bytes, bits: int, signed: bool, width: int) -> Taken:
    raw = np.frombuffer(data, np.uint8)
    each = 8 // bits
    if each > 1:
        parts = [raw >> (place * bits) & ((1 << bits) - 1) for place in range(each)]
        raw = np.stack(parts, axis=1).reshape(-1)
    return centred(INTEGERS, raw, bits, width, signed)


def _bit_planes(data: bytes, bits: int, width: int) -> Taken:
    planes = np.unpackbits(np.frombuffer(data, np.uint8).reshape(bits, -1), axis=1, bitorder="little")
    unsigned = (planes * (1 << np.arange(bits, dtype=np.uint8))[:, None]).sum(axis=0, dtype=np.uint8)
    counts = np.bincount(unsigned, minlength=1 << bits)
    return centred(PLANES, unsigned, bits, width, bool(counts[0] > counts[1 << (bits - 1)]))


def centred(kind: int, raw: np.ndarray, bits: int, width: int, signed: bool) -> Taken:
    """Symbols with zero in the middle, so that tensors share tables; levels are distances from it.

    Of unsigned numbers, zero is what most are, as in sparse codebooks, or else the middle if their mean is about there.
    """
    alphabet, half = 1 << bits, 1 << (bits - 1)
    counts = occurrences(raw, alphabet)
    zero, centre = 0 if signed else half, float(half)
    if not signed and len(raw):
        most, mean = int(counts.argmax()), float(counts @ np.arange(alphabet)) / len(raw)
        if counts[most] > DOMINANT * len(raw) and bits > 1:
            zero = most
        else:
            zero = round(mean) if abs(mean - half) > max(alphabet // 16, 1) else half
            centre += mean - zero
    low = (zero - half) % alphabet
    values = (raw - np.uint8(low)) & np.uint8(alphabet - 1)
    width = width if len(values) % width == 0 else 1
    level = np.abs(np.arange(alphabet) - (centre if bits > 1 else 0)).astype(np.float32)

    return Taken(kind, bits, low, b"", (Symbols(values, width, level),))


def _few(data: bytes, unit: int, width: int, floats: bool) -> Taken | None:
    """Numbers that repeat as indices into the table of those that occur."""
    items = np.frombuffer(data, f"<u{unit}")
    if len(items) < 16 or len(np.unique(items[:SAMPLE])) > MOST_VALUES:
        return None
    found, indices = np.unique(items, return_inverse=True)
    if len(found) > MOST_VALUES or len(found) * unit * 4 > len(data):
        return None
    level = np.abs(np.arange(len(found)) - len(found) // 2).astype(np.float32)
    if floats and (size := _sizes(found, unit)) is not None:
        order = np.argsort(size, kind="stable")
        found, indices, size = found[order], np.argsort(order)[indices], np.abs(size[order])
        level = (size * (len(found) / max(float(size.max()), 1e-300))).astype(np.float32)
    width = width if len(items) % width == 0 else 1
    symbols = Symbols(indices.reshape(-1).astype(np.uint16), width, level)
    return Taken(FEW, unit, 0, found.astype(f"<u{unit}").tobytes(), (symbols,))


def _wide(data: bytes, unit: int, width: int) -> Taken | None:
    """Integers that need no more than 16 bits: the highest eight, as integers of that many are taken, and the rest.

    The lower a bit, the less it depends on the others; and tables of 256 symbols are soon written.
    """
    items = np.frombuffer(data, f"<i{unit}")
    low = max(int(max(items.max(), ~items.min())).bit_length() - 7, 0)
    if low > 8:
        return None
    width = width if len(items) % width == 0 else 1
    first = ((items >> low) + 128).astype(np.uint8)
    level = np.abs(np.arange(256) - 128).astype(np.float32)
    rest = Symbols((items & ((1 << low) - 1)).astype(np.uint8), 1, np.zeros(256, np.float32))
    return Taken(WIDE, unit, low, b"", (Symbols(first, width, level), rest))


def _order0(found: Taken) -> float:
    """Bits at the entropy of each plane, with its table and values."""
    tables = sum(TABLE_BITS * np.count_nonzero(plane.counts) for plane in found.planes)
    return 8 * len(found.values) + float(tables) + sum(entropy_of(plane.counts) for plane in found.planes)


def _sizes(found: np.ndarray, unit: int) -> np.ndarray | None:
    """Floats as numbers, where all are finite; of the two types of 16 bits, the order and the sizes are about alike."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        size = found.view(f"<f{unit}").astype(np.float64)
    return size if np.isfinite(size).all() else None


def _words(data: bytes, unit: int, width: int, kind: int, exponent_bits: int = 8) -> Taken:
    """Byte planes, the highest first; of floats with the sign at the bottom, so that the first is the exponent."""
    whole = np.frombuffer(data, f"<u{unit}")
    if kind == FLOATS:
        whole = (whole << 1) | (whole >> (8 * unit - 1))
    raw = whole.astype(f"<u{unit}").view(np.uint8).reshape(-1, unit)
    planes = [np.ascontiguousarray(raw[:, place]) for place in range(unit - 1, -1, -1)]
    low = 0
    if kind == FLOATS and unit > 1:
        none = planes[0] == 0
        low = int(none.any() and not any(plane[none].any() for plane in planes[1:]))
        if low:
            planes[1:] = [plane[~none] for plane in planes[1:]]
    width = width if len(whole) % width == 0 else 1
    first = Symbols(
        planes[0], width, np.arange(256, dtype=np.float32) * np.float32(2.0 ** (exponent_bits - 8)), logarithmic=True
    )
    rest = [Symbols(plane, 1, np.zeros(256, np.float32)) for plane in planes[1:]]
    return Taken(kind, unit, low, b"", (first, *rest))
