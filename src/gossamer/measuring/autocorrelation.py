"""The second moment of the patches that a convolution sees, without writing the patches out.

H[(c, t), (c', u)] sums x_c x_c' over all places where taps t and u of the kernel lie at once. It depends on the offset
between the two taps alone, but for the border: so one product of the whole map with itself, shifted by the offset,
serves every pair of taps with that offset, and what some pairs do not see, a few rows and columns at the border, is
counted apart and taken off. A 3 x 3 kernel has 81 pairs of taps and 13 offsets, as H is symmetric; `offsets` has the
ways to their sums.

A stride s deals the positions of an axis out to s maps, of which each tap reads one: with these as further channels it
is a convolution without strides. Most of their pairs no two taps ask for, so that with many channels patches written
out are cheaper; which is, is counted beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np

from gossamer.measuring.offsets import COPIED, Axis, Missing, Offset, cheapest, dealt_out, dealt_shape

PATCH_BYTES = 8_000_000  # written at once: what a cache holds
FEW_ROWS = 32

Taps = tuple[int, ...]  # one tap: its place along every axis
Sums = list[tuple[Missing, np.ndarray]]  # of one offset


class Patches:
    """Sums of the second moment, by patches written out; for kernels of one tap, strides and small maps."""

    def __init__(self, h_GKK: np.ndarray) -> None:
        self.h_GKK = h_GKK

    def add(self, x_BGCS: np.ndarray, axes: Sequence[Axis]) -> None:
        """Take in a batch."""
        patches = windows(x_BGCS, axes)
        group_bytes = max(patches[:1, :1].size * patches.itemsize, 1)
        groups = max(1, min(len(self.h_GKK), PATCH_BYTES // group_bytes))
        samples = max(1, PATCH_BYTES // (groups * group_bytes))
        starts = product(range(0, len(patches), samples), range(0, len(self.h_GKK), groups))
        for sample, group in starts:
            part = patches[sample : sample + samples, group : group + groups]
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


def windows(x_BGCS: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
    """A map (B, G, C, *S) as its patches (B, G, C, *kernel, *outputs), a view of the padded map."""
    padding = [_padding(axis) for axis in axes]
    padded = np.pad(x_BGCS, [(0, 0)] * 3 + padding) if any(map(any, padding)) else x_BGCS
    head, steps = padded.strides[:3], padded.strides[3:]
    kernel = tuple(len(axis.spans) for axis in axes)
    shape = (*padded.shape[:3], *kernel, *(axis.outputs for axis in axes))
    taps = tuple(step * axis.dilation for step, axis in zip(steps, axes, strict=True))
    moves = tuple(step * axis.stride for step, axis in zip(steps, axes, strict=True))
    return np.lib.stride_tricks.as_strided(padded, shape, (*head, *taps, *moves), writeable=False)


class Offsets:
    """Sums of the second moment, by offset between taps; products are float32, their sums over batches float64.

    Channels are all channels of the first phase that some tap reads, then those of the next.
    """

    def __init__(self, groups: int, channels: int, zeros: Callable[[tuple[int, ...], type], np.ndarray]) -> None:
        self.shape = (groups, channels, channels)
        self.zeros = zeros
        self.sums: dict[tuple[Offset, Missing], np.ndarray] = {}

    def add(self, x_BGCS: np.ndarray, axes: Sequence[Axis]) -> None:
        """Take in a batch."""
        x_BGCS = dealt_out(x_BGCS, axes)
        way, _ = cheapest(x_BGCS.shape, axes)
        for part in way(x_BGCS, axes):
            self._add(*part)

    def _add(self, offset: Offset, missing: Missing, sum_GCC: np.ndarray) -> None:
        key = (offset, missing)
        if key not in self.sums:
            self.sums[key] = self.zeros(sum_GCC.shape, np.float64)
        self.sums[key] += sum_GCC if any(offset) else (sum_GCC + sum_GCC.swapaxes(1, 2)) / 2

    def result(self, axes: Sequence[Axis], out_GKK: np.ndarray) -> np.ndarray:
        """The sum over all batches, into zeros (G, C * taps, C * taps); only the kernel counts of the axes."""
        groups, channels, _ = self.shape
        taps = [len(axis.spans) for axis in axes]
        count = int(np.prod(taps))
        h_GCTCU = out_GKK.reshape(groups, channels, count, channels, count)
        several = max(1, PATCH_BYTES // (4 * groups * channels * count**2))
        for first in range(0, channels, several):  # rows of the blocks of taps: gathered in a cache, turned once
            stop = min(first + several, channels)
            block_TGRUC = np.zeros((count, groups, stop - first, count, channels), np.float32)
            for parts, t, u, i, j in self._pairs(axes, taps):
                a, b = _first_channel(axes, t, channels), _first_channel(axes, u, channels)
                block_TGRUC[i, :, :, j] = _seen(parts, t, slice(a + first, a + stop), slice(b, b + channels))
                if i != j:
                    turned_GCR = _seen(parts, t, slice(a, a + channels), slice(b + first, b + stop))
                    block_TGRUC[j, :, :, i] = turned_GCR.swapaxes(1, 2)
            h_GCTCU[:, first:stop] = block_TGRUC.transpose(1, 2, 0, 4, 3)
        return out_GKK

    def _pairs(self, axes: Sequence[Axis], taps: Sequence[int]) -> Iterator[tuple[Sums, Taps, Taps, int, int]]:
        """Every two taps that work on the same output, one way round, with their numbers and their offset's sums."""
        for offset in dict.fromkeys(offset for offset, _ in self.sums):
            parts = [(missing, sum_GCC) for (which, missing), sum_GCC in self.sums.items() if which == offset]
            for t, u in _apart(axes, offset):
                if any(offset) or t <= u:
                    yield parts, t, u, int(np.ravel_multi_index(t, taps)), int(np.ravel_multi_index(u, taps))


def _first_channel(axes: Sequence[Axis], tap: Taps, channels: int) -> int:
    """Of the map that a tap reads."""
    index = 0
    for axis, t in zip(axes, tap, strict=True):
        index = index * len(axis.maps) + axis.maps.index(axis.phases[t])
    return index * channels


def _apart(axes: Sequence[Axis], offset: Offset) -> Iterator[tuple[Taps, Taps]]:
    """Every two taps that lie this far apart."""
    along = [
        [(t, u) for t, row in enumerate(axis.offsets) for u, part in enumerate(row) if part == wanted]
        for axis, wanted in zip(axes, offset, strict=True)
    ]
    for pairs in product(*along):
        yield tuple(t for t, _ in pairs), tuple(u for _, u in pairs)


def _seen(parts: Sums, tap: Taps, rows: slice, columns: slice) -> np.ndarray:
    """The whole map's sum, less the cells that this tap does not read; some channels by some, (G, R, C)."""
    whole = next(sum_GCC for missing, sum_GCC in parts if not missing)
    seen_GRC = np.array(whole[:, rows, columns])
    for missing, sum_GCC in parts:
        if any(t in gone for t, gone in zip(tap, missing, strict=False)):
            seen_GRC -= sum_GCC[:, rows, columns]
    return seen_GRC


def offsets_are_cheaper(x_shape: tuple[int, ...], axes: Sequence[Axis]) -> bool:
    """Whether sums by offset take less than patches for a batch (B, G, C, *S); multiply-adds, with copies as such."""
    if not all(axis.stride for axis in axes):
        return True  # a transposed convolution has no patches here
    batch, groups, channels = x_shape[:3]
    taps = int(np.prod([len(axis.spans) for axis in axes]))
    if taps == 1:
        return False
    seen = batch * groups * channels * taps * int(np.prod([axis.outputs for axis in axes]))
    dealt = dealt_shape(x_shape, axes)
    copied = 0 if dealt == tuple(x_shape) else COPIED * int(np.prod(dealt))
    return cheapest(dealt, axes)[1] + copied < seen * (channels * taps / 3 + COPIED)  # large ones go faster than half
