"""A map times itself, shifted by every offset that two taps of a kernel can have.

There are three ways to the products of the whole map: through its spectrum, which serves all offsets at once; one
product for each offset, for few channels; and every position times every other, for maps of a few pixels. What only
some pairs of taps see, cells at the border, is counted apart. The cheapest way is counted beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np

from gossamer.measuring import spectrum

POSITION_BYTES = 8_000_000  # of products of positions at once: what a cache holds
# costs, in the multiply-adds that BLAS does in the same time
COPIED = 40  # a number written
PICKED = 200  # a number picked out of a large table
CALL = 200_000  # a few small calls
TINY = 20_000  # one product of two tiny matrices
NARROW = 12  # channels that BLAS loads in the time of one more

HEAD = (slice(None), slice(None), slice(None))  # all samples, groups and channels

Offset = tuple[int, ...]  # between two taps, along every axis of the map
Missing = tuple[frozenset[int], ...]  # along every axis, the taps that do not read a cell; () is the whole map
Box = tuple[tuple[int, int], ...]  # from where up to where, along every axis
Parts = Iterator[tuple[Offset, Missing, np.ndarray]]  # the sums (G, C, C) of whole maps and of cells
Way = Callable[[np.ndarray, "Sequence[Axis]"], Parts]


class Step(NamedTuple):
    """One offset between taps: where both ends lie on the map, and the cells there that some pairs do not see."""

    offset: Offset
    live: Box
    cells: tuple[tuple[Missing, Box], ...]


class Axis(NamedTuple):
    """One axis of a map, and what a kernel does along it.

    Attributes:
        size: of the map.
        spans: for each tap, from which position up to which it reads while the kernel moves over the map.
        offsets: from tap t to tap u, in positions of the map; None where the two never work on the same output.
        stride, dilation, before, outputs: of the kernel, for patches; stride 0 has none.
        phases: for each tap, which of `stride` maps it reads, if the map's positions are dealt out to them in turn;
            spans and offsets are in positions of these.
    """

    size: int
    spans: tuple[tuple[int, int], ...]
    offsets: tuple[tuple[int | None, ...], ...]
    stride: int
    dilation: int
    before: int
    outputs: int
    phases: tuple[int, ...]

    @property
    def step(self) -> int:
        """How many maps the positions are dealt out to."""
        return max(1, self.stride)

    @property
    def maps(self) -> tuple[int, ...]:
        """Those that some tap reads."""
        return tuple(sorted(set(self.phases)))

    @property
    def length(self) -> int:
        """Of the longest of these."""
        return -(-self.size // self.step)


def convolved(size: int, kernel: int, stride: int, dilation: int, before: int, outputs: int) -> Axis:
    """An axis under a convolution, padded by `before` at its beginning: output q reads q * stride + t * dilation."""
    firsts, phases = zip(*(divmod(tap * dilation - before, stride) for tap in range(kernel)), strict=True)
    spans = tuple(_within(first, first + outputs, -(-size // stride)) for first in firsts)
    offsets = tuple(tuple(other - first for other in firsts) for first in firsts)
    return Axis(size, spans, offsets, stride, dilation, before, outputs, phases)


def transposed(size: int, kernel: int, stride: int, dilation: int, before: int, outputs: int) -> Axis:
    """An axis under a transposed convolution: position p adds to the outputs p * stride + t * dilation - before."""
    shifts = [before - tap * dilation for tap in range(kernel)]
    spans = tuple(_within(-(-shift // stride), -(-(outputs + shift) // stride), size) for shift in shifts)
    offsets = tuple(
        tuple(None if (t - u) * dilation % stride else (t - u) * dilation // stride for u in range(kernel))
        for t in range(kernel)
    )
    return Axis(size, spans, offsets, 0, dilation, before, outputs, (0,) * kernel)


def _within(start: int, stop: int, size: int) -> tuple[int, int]:
    low = min(max(start, 0), size)
    return low, max(low, min(stop, size))


@lru_cache(maxsize=64)
def plan(axes: tuple[Axis, ...]) -> tuple[Step, ...]:
    """Every offset of at least zero, and the cells of the map that some pairs of taps with that offset do not see."""
    every = product(*(sorted({o for row in axis.offsets for o in row if o is not None}) for axis in axes))
    return tuple(
        Step(
            offset,
            tuple(_live(axis, part) for axis, part in zip(axes, offset, strict=True)),
            tuple(_cells(axes, offset)),
        )
        for offset in every
        if offset >= (0,) * len(axes)
    )


def _live(axis: Axis, offset: int) -> tuple[int, int]:
    """Positions that are still on the map once they are shifted."""
    low = max(0, -offset)
    return low, max(low, min(axis.length, axis.length - offset))


def _cells(axes: Sequence[Axis], offset: Offset) -> Iterator[tuple[Missing, Box]]:
    segments = [_segments(axis, part) for axis, part in zip(axes, offset, strict=True)]
    for cell in product(*segments):
        if any(missing for _, missing in cell):
            yield tuple(missing for _, missing in cell), tuple(span for span, _ in cell)


def _segments(axis: Axis, offset: int) -> list[tuple[tuple[int, int], frozenset[int]]]:
    """Runs of positions that the same taps do not read, as long as the shifted position is on the map."""
    low, high = _live(axis, offset)
    spans = {t: axis.spans[t] for t, row in enumerate(axis.offsets) if offset in row}
    cuts = sorted({low, high, *(edge for span in spans.values() for edge in span if low < edge < high)})
    runs = list(pairwise(cuts)) if low < high else []
    return [
        (run, frozenset(t for t, span in spans.items() if not (span[0] <= run[0] and run[1] <= span[1])))
        for run in runs
    ]


def dealt_out(x_BGCS: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
    """As many smaller maps as some tap reads, as further channels: all channels of the first, then of the next."""
    if all(axis.step == 1 for axis in axes):
        return x_BGCS
    padding = [(0, axis.length * axis.step - axis.size) for axis in axes]
    x = np.pad(x_BGCS, [(0, 0)] * 3 + padding) if any(map(any, padding)) else x_BGCS
    firsts = product(*(axis.maps for axis in axes))
    cuts = [tuple(slice(first, None, axis.step) for first, axis in zip(at, axes, strict=True)) for at in firsts]
    return np.concatenate([x[HEAD + cut] for cut in cuts], 2)


def dealt_shape(x_shape: tuple[int, ...], axes: Sequence[Axis]) -> tuple[int, ...]:
    """Of what `dealt_out` gives."""
    channels = x_shape[2] * int(np.prod([len(axis.maps) for axis in axes]))
    return (*x_shape[:2], channels, *(axis.length for axis in axes))


def cheapest(x_shape: tuple[int, ...], axes: Sequence[Axis]) -> tuple[Way, float]:
    """The way to take for maps (B, G, C, *S) that are dealt out already, and its multiply-adds."""
    batch, groups, channels, *sizes = x_shape
    steps, gaps = plan(tuple(axes)), _gaps(axes)
    square = channels**2 + NARROW * channels if channels > 1 else 6
    spread = int(np.prod([size + gap for size, gap in zip(sizes, gaps, strict=True)]))
    border = sum(_volume(box) for step in steps for _, box in step.cells)
    calls = CALL * sum(1 + len(step.cells) for step in steps)
    apart = batch * groups * border * (channels**2 + 2 * COPIED * channels) + calls
    live = sum(_volume(step.live) for step in steps)
    work: dict[Way, float] = {
        by_spectrum: spectrum.work(x_shape, gaps, len(steps), square) + TINY * groups * spread + apart,
        by_shifts: batch * groups * spread * (len(steps) * square + COPIED * channels) + apart,
        by_positions: batch * groups * (channels * int(np.prod(sizes))) ** 2
        + PICKED * groups * channels**2 * live
        + calls,
    }
    return min(work.items(), key=lambda item: item[1])


def by_spectrum(x_BGCS: np.ndarray, axes: Sequence[Axis]) -> Parts:
    """All offsets at once."""
    steps = plan(tuple(axes))
    wholes = spectrum.shifted_products(x_BGCS, _gaps(axes), [step.offset for step in steps])
    for step, whole_GCC in zip(steps, wholes, strict=True):
        yield step.offset, (), whole_GCC
    yield from _border(x_BGCS, steps)


def by_shifts(x_BGCS: np.ndarray, axes: Sequence[Axis]) -> Parts:
    """A product for each offset.

    The map is written once with zeros between its rows, so that a shift of all its numbers is a shift along all axes.
    """
    gaps, (batch, groups, channels) = _gaps(axes), x_BGCS.shape[:3]
    sizes = [size + gap for size, gap in zip(x_BGCS.shape[3:], gaps, strict=True)]
    spread = np.zeros((groups, channels, batch, *sizes), np.float32)
    spread[HEAD + tuple(slice(0, size) for size in x_BGCS.shape[3:])] = np.moveaxis(x_BGCS, 0, 2)
    flat_GCN = spread.reshape(groups, channels, -1)
    steps = plan(tuple(axes))
    for step in steps:
        shift = sum(part * int(np.prod(sizes[axis + 1 :])) for axis, part in enumerate(step.offset))
        yield step.offset, (), flat_GCN[:, :, : flat_GCN.shape[2] - shift] @ flat_GCN[:, :, shift:].swapaxes(1, 2)
    yield from _border(x_BGCS, steps)


def by_positions(x_BGCS: np.ndarray, axes: Sequence[Axis]) -> Parts:
    """Every position times every other, of which each offset then picks: for maps of a few pixels."""
    batch, groups, channels, *sizes = x_BGCS.shape
    steps, k = plan(tuple(axes)), channels * int(np.prod(sizes))
    several = max(1, POSITION_BYTES // (4 * k * k))
    sums = [np.zeros((groups, channels, channels), np.float32) for step in steps for _ in range(1 + len(step.cells))]
    for first in range(0, groups, several):
        part = slice(first, first + several)
        x_GBK = x_BGCS[:, part].reshape(batch, -1, k).swapaxes(0, 1)
        products = (x_GBK.swapaxes(1, 2) @ x_GBK).reshape(-1, *(channels, *sizes) * 2)
        at = iter(sums)
        for step in steps:
            apart = _apart(products, step)
            next(at)[part] = apart.sum(tuple(range(3, apart.ndim)))
            for _, box in step.cells:
                spans = zip(box, step.live, strict=True)
                cell = apart[HEAD + tuple(slice(low - start, high - start) for (low, high), (start, _) in spans)]
                next(at)[part] = cell.sum(tuple(range(3, cell.ndim)))
    at = iter(sums)
    for step in steps:
        yield step.offset, (), next(at)
        for missing, _ in step.cells:
            yield step.offset, missing, next(at)


def _apart(products: np.ndarray, step: Step) -> np.ndarray:
    """(G, C, C, *live): of all products of positions, those of two that lie an offset apart."""
    rank = len(step.offset)
    here = tuple(slice(low, high) for low, high in step.live)
    there = tuple(slice(low + by, high + by) for (low, high), by in zip(step.live, step.offset, strict=True))
    cut = products[HEAD[:2] + here + HEAD[:1] + there]
    strides = cut.strides
    both = tuple(a + b for a, b in zip(strides[2 : 2 + rank], strides[3 + rank :], strict=True))
    shape = (*cut.shape[:2], cut.shape[2 + rank], *cut.shape[2 : 2 + rank])
    view = np.lib.stride_tricks.as_strided(cut, shape, (*strides[:2], strides[2 + rank], *both), writeable=False)
    return np.ascontiguousarray(view)


def _border(x_BGCS: np.ndarray, steps: Sequence[Step]) -> Parts:
    for step in steps:
        for missing, box in step.cells:
            yield step.offset, missing, _product(x_BGCS, box, step.offset)


def _product(x_BGCS: np.ndarray, box: Box, offset: Offset) -> np.ndarray:
    """(G, C, C) of what lies in a box of the map with what lies in the shifted box."""
    rows = _cut(x_BGCS, box, (0,) * len(box))
    others = _cut(x_BGCS, box, offset) if any(offset) else rows
    return np.asarray(rows @ others.swapaxes(1, 2))


def _cut(x_BGCS: np.ndarray, box: Box, offset: Offset) -> np.ndarray:
    """(G, C, N) of what lies in a shifted box."""
    moved = tuple(slice(low + by, high + by) for (low, high), by in zip(box, offset, strict=True))
    inside = np.moveaxis(x_BGCS[HEAD + moved], 0, 2)
    return np.ascontiguousarray(inside).reshape(*inside.shape[:2], -1)


def _volume(box: Box) -> int:
    return int(np.prod([high - low for low, high in box]))


def _gaps(axes: Sequence[Axis]) -> list[int]:
    return [max(abs(o) for row in axis.offsets for o in row if o is not None) for axis in axes]
