"""Which tensors of a model become a stream together, and what of their symbols is coded: see rules 6 and 7."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from gossamer.archive.neighbours import kernels_of
from gossamer.archive.reader import INTEGERS, PLANES, WORDS
from gossamer.archive.spans import Span, spans
from gossamer.archive.symbols import Symbols, Taken, kind_of, taken
from gossamer.arith.entropy import entropy_of

SMALL_BYTES = 2048  # tensors below that are put together
TINY_BYTES = 16  # and below that they stay where they are


class Source(NamedTuple):
    """A stream before it is coded: its tensors, their bytes one behind the other, and their symbols."""

    members: list[Span]
    data: bytes
    taken: Taken
    bases: list[int]
    kernels: list[tuple[int, int]]


def sources_of(data: bytes, base: bytes | None) -> list[Source]:
    """Large tensors by themselves, small ones of a kind together."""
    every = spans(data)
    found = [span for span in every if span.length >= TINY_BYTES and kind_of(span) is not None]
    before = {} if base is None else {(span.name, span.data_type, span.shape): span for span in spans(base)}
    groups: dict[object, list[Span]] = {}
    for place, span in enumerate(found):
        small = span.length < SMALL_BYTES and base is None
        groups.setdefault((kind_of(span), span.data_type, _kernel(span.shape)) if small else place, []).append(span)
    shapes = {span.name: _shape_in(data, span) for span in every if span.name.endswith("_shape")}
    sources = []
    for members in groups.values():
        raw = b"".join(data[span.offset : span.offset + span.length] for span in members)
        whole = members[0] if len(members) == 1 else _together(members)
        plain = taken(raw, whole, shapes)
        if plain is None:
            continue
        integers = plain.kind in (INTEGERS, PLANES)
        source = Source(members, raw, plain, [0] * len(members), _kernels(whole, plain) if integers else [])
        old = before.get((whole.name, whole.data_type, whole.shape))
        if base is not None and old is not None and old.length == whole.length:
            source = _shorter(source, _against(source, base, old))
        sources.append(source)
    return sources


def _kernel(shape: Sequence[int]) -> tuple[int, ...]:
    """Of a tensor whose shape says it."""
    return tuple(shape[2:]) if len(shape) > 2 and prod(shape[2:]) > 1 else ()


def _together(members: Sequence[Span]) -> Span:
    """Small tensors one behind the other, in rows of a kernel if they have the same."""
    kernel = _kernel(members[0].shape)
    size = sum(span.size for span in members)
    length = sum(span.length for span in members)
    return Span(0, length, members[0].data_type, (size // prod(kernel), 1, *kernel) if kernel else (size,), "")


def _kernels(span: Span, found: Taken) -> list[tuple[int, int]]:
    """That the tensor may have; of bit planes the shape says nothing."""
    width = found.planes[0].width
    sizes = kernels_of(span.shape if found.kind == INTEGERS else (), width)
    return [one for one in sizes if len(found.planes[0].values) % prod(one) == 0]


def _shape_in(data: bytes, span: Span) -> tuple[int, ...]:
    if span.data_type != 7 or span.length % 8 or span.length > 64:
        return ()
    return tuple(np.frombuffer(data[span.offset : span.offset + span.length], "<i8").tolist())


def _against(source: Source, base: bytes, old: Span) -> Source:
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
    return Source(source.members, source.data, Taken(WORDS, unit, 0, b"", tuple(planes)), [old.offset + 1], [])


def _shorter(plain: Source, other: Source) -> Source:
    return min((plain, other), key=lambda source: sum(entropy_of(plane.counts) for plane in source.taken.planes))


def weights_in(span: Span, kind: int, unit: int) -> int:
    """How many weights a tensor holds; in bit planes not as many as its shape says."""
    return span.length * 8 // unit if kind == PLANES else span.size
