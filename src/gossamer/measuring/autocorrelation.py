"""The second moment of the patches that a convolution sees, without writing the patches out.

H[(c, t), (c', u)] sums x_c x_c' over all places where taps t and u of the kernel lie at once. It depends on the offset
between the two taps alone, but for the border: so one product of the whole map with itself, shifted by the offset,
serves every pair of taps with that offset, and what some pairs do not see, a few rows and columns at the border, is
counted apart and taken off. A 3 x 3 kernel has 81 pairs of taps and 13 offsets, as H is symmetric. That is 13 / 9 of
the convolution's own work, where patches cost 9 / 2 and nine times the memory.

With a stride, few pairs share a product, and maps of a few pixels are all border: there the patches are written out.
What is cheaper is counted beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np

PATCH_BYTES = 8_000_000  # written out at once: what a cache holds
FEW_ROWS = 32
CALL = 30_000  # multiply-adds that BLAS does in the time of one small call
COPIED = 8  # and in that of writing one number

Offset = tuple[int, ...]  # between two taps, along every axis of the map
Missing = tuple[frozenset[int], ...]  # along every axis, the taps that do not read a cell; () is the whole map
Box = tuple[tuple[int, int], ...]  # from where up to where, along every axis


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
        strides, dilation, before, outputs: of the kernel, for patches.
    """

    size: int
    spans: tuple[tuple[int, int], ...]
    offsets: tuple[tuple[int | None, ...], ...]
    stride: int
    dilation: int
    before: int
    outputs: int


def convolved(size: int, kernel: int, stride: int, dilation: int, before: int, outputs: int) -> Axis:
    """An axis under a convolution, padded by `before` at its beginning: output q reads q * stride + t * dilation."""
    firsts = [tap * dilation - before for tap in range(kernel)]
    spans = tuple(_within(first, first + outputs, size) for first in firsts)
    offsets = tuple(tuple((u - t) * dilation for u in range(kernel)) for t in range(kernel))
    return Axis(size, spans, offsets, stride, dilation, before, outputs)


def transposed(size: int, kernel: int, stride: int, dilation: int, before: int, outputs: int) -> Axis:
    """An axis under a transposed convolution: position p adds to the outputs p * stride + t * dilation - before."""
    shifts = [before - tap * dilation for tap in range(kernel)]
    spans = tuple(_within(-(-shift // stride), -(-(outputs + shift) // stride), size) for shift in shifts)
    offsets = tuple(
        tuple(None if (t - u) * dilation % stride else (t - u) * dilation // stride for u in range(kernel))
        for t in range(kernel)
    )
    return Axis(size, spans, offsets, 0, dilation, before, outputs)


def _within(start: int, stop: int, size: int) -> tuple[int, int]:
    low = min(max(start, 0), size)
    return low, max(low, min(stop, size))


class Patches:
    """Sums of the second moment, by patches written out; for kernels of one tap, strides and small maps."""

    def __init__(self, h_GKK: np.ndarray) -> None:
        self.h_GKK = h_GKK

    def add(self, x_BGCS: np.ndarray, axes: Sequence[Axis]) -> None:
        """Take in a batch."""
        padding = [_padding(axis) for axis in axes]
        padded = np.pad(x_BGCS, [(0, 0)] * 3 + padding) if any(map(any, padding)) else x_BGCS
        windows = _windows(padded, axes)  # (B, G, C, *kernel, *outputs)
        group_bytes = max(windows[:1, :1].size * windows.itemsize, 1)
        groups = max(1, min(len(self.h_GKK), PATCH_BYTES // group_bytes))
        samples = max(1, PATCH_BYTES // (groups * group_bytes))
        starts = product(range(0, len(windows), samples), range(0, len(self.h_GKK), groups))
        for sample, group in starts:
            part = windows[sample : sample + samples, group : group + groups]
            turned = np.ascontiguousarray(np.moveaxis(part, 0, 2 + len(axes)))
            _add_products(self.h_GKK[group : group + groups], turned.reshape(len(turned), self.h_GKK.shape[1], -1))


def _add_products(h_GKK: np.ndarray, rows_GKN: np.ndarray) -> None:
    """Add all products of rows; of few rows one after the other, which BLAS does several times faster."""
    if len(h_GKK) == 1 or h_GKK.shape[1] > FEW_ROWS:
        h_GKK += rows_GKN @ rows_GKN.swapaxes(1, 2)
        return
    for row in range(h_GKK.shape[1]):
        line_GK = (rows_GKN[:, row : row + 1] @ rows_GKN[:, row:].swapaxes(1, 2))[:, 0]
        h_GKK[:, row, row:] += line_GK
        h_GKK[:, row + 1 :, row] += line_GK[:, 1:]


def _padding(axis: Axis) -> tuple[int, int]:
    reach = (axis.outputs - 1) * axis.stride + (len(axis.spans) - 1) * axis.dilation + 1
    return axis.before, max(0, reach - axis.size - axis.before)


def _windows(padded: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
    head, steps = padded.strides[:3], padded.strides[3:]
    kernel = tuple(len(axis.spans) for axis in axes)
    shape = (*padded.shape[:3], *kernel, *(axis.outputs for axis in axes))
    taps = tuple(step * axis.dilation for step, axis in zip(steps, axes, strict=True))
    moves = tuple(step * axis.stride for step, axis in zip(steps, axes, strict=True))
    return np.lib.stride_tricks.as_strided(padded, shape, (*head, *taps, *moves), writeable=False)


class Offsets:
    """Sums of the second moment, by offset between taps; products are float32, their sums over batches float64.

    The map is written once with zeros between its rows, so that a shift of all its numbers is a shift along all axes.
    Where that wastes more than it saves, as in maps of a few pixels, what lies on the map after the shift is copied.
    """

    def __init__(self, groups: int, channels: int, zeros: Callable[[tuple[int, ...], type], np.ndarray]) -> None:
        self.shape = (groups, channels, channels)
        self.zeros = zeros
        self.sums: dict[tuple[Offset, Missing], np.ndarray] = {}

    def add(self, x_BGCS: np.ndarray, axes: Sequence[Axis]) -> None:
        """Take in a batch."""
        gaps = _gaps(axes)
        sizes = [axis.size + gap for axis, gap in zip(axes, gaps, strict=True)]
        steps = [int(np.prod(sizes[index + 1 :])) for index in range(len(sizes))]
        spread = np.zeros((*x_BGCS.shape[1:3], len(x_BGCS), *sizes), np.float32)  # zeros between rows stop the wrapping
        image = (slice(None),) * 3 + tuple(slice(0, axis.size) for axis in axes)
        inside = spread[image]
        inside[...] = np.moveaxis(x_BGCS, 0, 2)
        flat_GCN = spread.reshape(*x_BGCS.shape[1:3], -1)
        for offset, live, cells in plan(tuple(axes)):
            shift = sum(part * step for part, step in zip(offset, steps, strict=True))
            if any(offset) and _volume(live) * (1 + 2 * COPIED / x_BGCS.shape[2]) < int(np.prod(sizes)):
                self._add(offset, (), _product(inside, live, offset))
            else:
                stop = flat_GCN.shape[2] - shift
                self._add(offset, (), flat_GCN[:, :, :stop] @ flat_GCN[:, :, shift:].swapaxes(1, 2))
            for missing, box in cells:
                self._add(offset, missing, _product(inside, box, offset))

    def _add(self, offset: Offset, missing: Missing, sum_GCC: np.ndarray) -> None:
        key = (offset, missing)
        if key not in self.sums:
            self.sums[key] = self.zeros(self.shape, np.float64)
        self.sums[key] += sum_GCC

    def result(self, axes: Sequence[Axis], out_GKK: np.ndarray) -> np.ndarray:
        """The sum over all batches, into zeros (G, C * taps, C * taps); only the kernel counts of the axes."""
        groups, channels, _ = self.shape
        taps = [len(axis.spans) for axis in axes]
        h_GCTCU = out_GKK.reshape(groups, channels, int(np.prod(taps)), channels, int(np.prod(taps)))
        for offset in {offset for offset, _ in self.sums}:
            parts = [(missing, sum_GCC) for (which, missing), sum_GCC in self.sums.items() if which == offset]
            for t, u in _pairs(axes, offset):
                total = sum(sign * part for sign, part in _seen(parts, t))
                i, j = np.ravel_multi_index(t, taps), np.ravel_multi_index(u, taps)
                h_GCTCU[:, :, i, :, j] = total
                h_GCTCU[:, :, j, :, i] = np.swapaxes(total, 1, 2)
        return out_GKK


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
    return low, max(low, min(axis.size, axis.size - offset))


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


def _product(inside: np.ndarray, box: Box, offset: Offset) -> np.ndarray:
    """(G, C, C) of what lies in a box of the map with what lies in the shifted box."""
    rows = _cut(inside, box, (0,) * len(box))
    others = _cut(inside, box, offset) if any(offset) else rows
    return np.asarray(rows @ others.swapaxes(1, 2))


def _cut(inside: np.ndarray, box: Box, offset: Offset) -> np.ndarray:
    """(G, C, N) of what lies in a shifted box."""
    moved = tuple(slice(low + by, high + by) for (low, high), by in zip(box, offset, strict=True))
    return np.ascontiguousarray(inside[(slice(None),) * 3 + moved]).reshape(*inside.shape[:2], -1)


def _volume(box: Box) -> int:
    return int(np.prod([high - low for low, high in box]))


def _pairs(axes: Sequence[Axis], offset: Offset) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every two taps that lie this far apart."""
    along = [
        [(t, u) for t, row in enumerate(axis.offsets) for u, part in enumerate(row) if part == wanted]
        for axis, wanted in zip(axes, offset, strict=True)
    ]
    for pairs in product(*along):
        yield tuple(t for t, _ in pairs), tuple(u for _, u in pairs)


def _seen(parts: list[tuple[Missing, np.ndarray]], t: tuple[int, ...]) -> Iterator[tuple[int, np.ndarray]]:
    """The whole map's sum, less the cells that this tap does not read."""
    for missing, part in parts:
        if not missing:
            yield 1, part
        elif any(tap in gone for tap, gone in zip(t, missing, strict=True)):
            yield -1, part


def _gaps(axes: Sequence[Axis]) -> list[int]:
    return [max(abs(o) for row in axis.offsets for o in row if o is not None) for axis in axes]


def offsets_are_cheaper(x_shape: tuple[int, ...], axes: Sequence[Axis]) -> bool:
    """Which of the two takes fewer multiply-adds for a batch (B, G, C, *S), small calls and copies counted in."""
    if any(axis.stride != 1 for axis in axes):
        return not all(axis.stride for axis in axes)  # a transposed convolution has no patches here
    batch, groups, channels = x_shape[:3]
    taps = int(np.prod([len(axis.spans) for axis in axes]))
    if taps == 1:
        return False
    seen = batch * groups * channels * taps * int(np.prod([axis.outputs for axis in axes]))
    patches = seen * (channels * taps / 2 + COPIED)
    steps = plan(tuple(axes))
    spread = int(np.prod([axis.size + gap for axis, gap in zip(axes, _gaps(axes), strict=True)]))
    copied = 1 + 2 * COPIED / channels
    work = sum(min(spread, _volume(step.live) * copied) for step in steps) - spread / 2
    work += sum(_volume(box) * copied for step in steps for _, box in step.cells)
    calls = len(steps) + sum(len(step.cells) for step in steps)
    return batch * groups * channels**2 * work + CALL * calls < patches
