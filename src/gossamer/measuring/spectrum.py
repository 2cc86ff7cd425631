"""Products of a map with itself at many shifts at once, from its spectrum (Wiener 1930, Khinchin 1934).

The sum over p of x_c[p] x_d[p + offset] is, for every offset, a cosine sum over the cross spectrum of c and d: the sum
over samples of conj(X_c[f]) X_d[f], one product of channels with channels at each frequency. The map is taken to go on
with as many zeros as the largest offset is long, so that nothing wraps around.

The transform is written as products with cosines and sines, axis after axis: at the sizes of feature maps BLAS does
these four times faster than a fast transform goes, and any length is as good as another. Numbers are float32, whose
rounding leaves errors of about 1e-6 of the sum of all squares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

BLOCK_BYTES = 64_000_000  # of cross spectra at once
FREQUENCIES = 32  # at once, at least: fewer make slow products

Offset = tuple[int, ...]


def shifted_products(x_BGCS: np.ndarray, gaps: Sequence[int], offsets: Sequence[Offset]) -> np.ndarray:
    """The map times itself shifted, summed over samples and positions: float32 (offsets, G, C, C).

    Args:
        x_BGCS: float32 (samples, groups, channels, *map).
        gaps: along every axis, the largest offset.
        offsets: entry [n, g, c, d] sums x_c[p] x_d[p + offsets[n]].
    """
    batch, groups, channels, *sizes = x_BGCS.shape
    lengths = tuple(size + gap for size, gap in zip(sizes, gaps, strict=True))
    rows, squares = batch * groups * channels, groups * channels**2
    lines = _lines(x_BGCS.reshape(rows, -1, sizes[-1]), lengths[-1])
    even_odd = np.zeros((2, len(offsets), squares), np.float32)
    added = np.empty_like(even_odd)
    kept: dict[int, np.ndarray] = {}  # large arrays are made once: fresh memory costs more than what is written there
    for start, stop in _blocks(len(lines), int(np.prod(lengths[:-1])), squares):
        z = lines[start:stop]
        for axis, (size, length) in enumerate(zip(sizes[:-1], lengths[:-1], strict=True)):
            z = z.reshape(-1, 2 * size, rows * int(np.prod(sizes[axis + 1 : -1])))
            shape = (len(z), 2 * length, z.shape[2])
            z = np.matmul(_turn(size, length), z, out=_part(kept, axis, shape))
        spectrum = z.reshape(-1, 2, batch, groups, channels)
        waves = _waves(lengths, tuple(offsets), start, stop)
        several = max(1, BLOCK_BYTES // (8 * squares))
        for first in range(0, len(spectrum), several):
            part = spectrum[first : first + several]
            cross = _part(kept, -1, (2, len(part), groups, channels, channels))
            _cross(part, cross)
            some = waves[:, :, first : first + several]
            even_odd += np.matmul(some, cross.reshape(2, -1, squares), out=added)
    even, odd = even_odd.reshape(2, len(offsets), groups, channels, channels)
    even -= odd
    even += odd.swapaxes(2, 3)
    return np.asarray(even)


def work(x_shape: tuple[int, ...], gaps: Sequence[int], offsets: int, square: int) -> float:
    """Multiply-adds; `square` are those that channels times channels are worth."""
    batch, groups, channels, *sizes = x_shape
    lengths = [size + gap for size, gap in zip(sizes, gaps, strict=True)]
    count = lengths[-1] // 2 + 1
    transform = 2.0 * count * int(np.prod(sizes))
    for axis in range(len(sizes) - 1):
        transform += 4.0 * count * lengths[axis] * int(np.prod(sizes[axis:-1]))
        count *= lengths[axis]
    products = 3.0 * count * groups * square
    return batch * (groups * channels * transform + products) + 2.0 * offsets * count * groups * channels**2


def _blocks(lines: int, line: int, squares: int) -> Iterator[tuple[int, int]]:
    """From which line of the spectrum up to which, `line` frequencies each."""
    step = max(1, min(-(-FREQUENCIES // line), BLOCK_BYTES // (8 * line * squares)))
    yield from ((start, min(start + step, lines)) for start in range(0, lines, step))


def _lines(x_NRS: np.ndarray, length: int) -> np.ndarray:
    """The last axis transformed, real and imaginary parts apart: (F, 2, R, N) for the half of the spectrum that counts.

    BLAS reads the map as it lies; samples and channels come to stand last, which all later products want.
    """
    n, rest, size = x_NRS.shape
    waves = _wave_rows(size, length)
    out = np.empty((len(waves), rest, n), np.float32)
    np.matmul(waves, x_NRS.transpose(1, 2, 0), out=out.swapaxes(0, 1))
    return np.asarray(out.reshape(-1, 2, rest, n))


@lru_cache(maxsize=8)
def _wave_rows(size: int, length: int) -> np.ndarray:
    """(F * 2, S): cosines and negative sines of the frequencies of a real signal."""
    angle = _angles(np.arange(length // 2 + 1), np.arange(size), length)
    return np.stack([np.cos(angle), -np.sin(angle)], 1).reshape(-1, size).astype(np.float32)


@lru_cache(maxsize=8)
def _turn(size: int, length: int) -> np.ndarray:
    """(P * 2, 2 * S): the transform of a complex signal, of which and into which real and imaginary parts are apart."""
    angle = _angles(np.arange(length), np.arange(size), length)
    cos, sin = np.cos(angle), np.sin(angle)
    rows = np.stack([np.concatenate([cos, sin], 1), np.concatenate([-sin, cos], 1)], 1)
    return rows.reshape(2 * length, 2 * size).astype(np.float32)


def _angles(frequencies: np.ndarray, positions: np.ndarray, length: int) -> np.ndarray:
    turns = np.multiply.outer(frequencies, positions) % length  # exact, where cosines of large angles are not
    return np.asarray(2 * np.pi / length * turns)


def _cross(z_F2BGC: np.ndarray, out_2FGCC: np.ndarray) -> None:
    """The real part of the cross spectrum, and what less its transpose is the imaginary part."""
    f, _, batch, groups, channels = z_F2BGC.shape
    both = z_F2BGC.reshape(f, 2 * batch, groups, channels).swapaxes(1, 2)
    real, imaginary = z_F2BGC.transpose(1, 0, 3, 2, 4)
    np.matmul(both.swapaxes(2, 3), both, out=out_2FGCC[0])
    np.matmul(real.swapaxes(2, 3), imaginary, out=out_2FGCC[1])


def _part(kept: dict[int, np.ndarray], key: int, shape: tuple[int, ...]) -> np.ndarray:
    """An array out of memory kept under a key; the first asked for is the largest."""
    size = int(np.prod(shape))
    if key not in kept:
        kept[key] = np.empty(size, np.float32)
    return np.asarray(kept[key][:size].reshape(shape))


@lru_cache(maxsize=64)
def _waves(lengths: tuple[int, ...], offsets: tuple[Offset, ...], start: int, stop: int) -> np.ndarray:
    """(2, offsets, frequencies): what a block of the cross spectrum adds to the sum at each offset."""
    at = [np.arange(start, stop), *(np.arange(length) for length in lengths[:-1])]  # the last axis varies slowest
    grid = np.meshgrid(*at, indexing="ij")
    angle = np.zeros((len(offsets), grid[0].size))
    for axis, (frequencies, length) in enumerate(zip([*grid[1:], grid[0]], lengths, strict=True)):
        angle += _angles(np.array([offset[axis] for offset in offsets]), frequencies.ravel(), length)
    alone = (2 * grid[0].ravel()) % lengths[-1] == 0  # its own mirror image; all others stand for two
    share = np.where(alone, 1.0, 2.0) / np.prod(lengths)
    return (np.stack([np.cos(angle), np.sin(angle)]) * share).astype(np.float32)
