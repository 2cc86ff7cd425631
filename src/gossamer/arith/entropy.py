"""What numbers take at least, each coded by how often it occurs among them."""

from __future__ import annotations

import numpy as np

MANY = 1 << 18  # bytes, from which on they are counted in pairs


def entropy_bits(integers: np.ndarray) -> float:
    """Of all integers together at their order-0 entropy: what a static code takes, without its table."""
    return entropy_of(_counts(integers))


def integer_bits(integers: np.ndarray) -> float:
    """Of all integers together at the order-0 entropy of cells of neighbours, and of where in its cell each lies.

    Of single integers it would tell next to nothing where they hardly repeat: any, however fine, would seem to take
    log2(N) bits, and a table of them is what a code would have to begin with. See `cells_of`.
    """
    cells, doublings = cells_of(_counts(integers))
    return entropy_of(cells) + doublings * integers.size


def cells_of(counts: np.ndarray) -> tuple[np.ndarray, int]:
    """Counts of the cells of 2^n neighbours that take the fewest bits together with their table; and n.

    Numbers of 8 bits are not put together: there are too few to make much of, and archives tell them apart.
    """
    if len(counts) <= 256:
        return counts, 0
    size, wider = int(counts.sum()), counts
    best, doublings, least = counts, 0, entropy_of(counts) + _table_bits(counts, size)
    for more in range(1, len(counts).bit_length()):
        wider = np.pad(wider, (0, len(wider) % 2)).reshape(-1, 2).sum(axis=1)
        taken = entropy_of(wider) + more * size + _table_bits(wider, size)
        if taken < least:
            best, doublings, least = wider, more, taken
    return best, doublings


def _table_bits(counts: np.ndarray, size: int) -> float:
    """Which cells are taken, and how often: a frequency of N numbers is known to log2(N) / 2 bits (Rissanen, 1978)."""
    taken = np.count_nonzero(counts)
    which = entropy_of(np.array([taken, len(counts) - taken]))
    return float(which + taken * np.log2(max(size, 2)) / 2)


def _counts(integers: np.ndarray) -> np.ndarray:
    """How often each integer occurs; of those of 8 bits by their bytes."""
    if not integers.size:
        return np.zeros(0, np.intp)
    if integers.dtype.itemsize == 1:
        return occurrences(integers.ravel().view(np.uint8), 256)
    whole = integers.astype(np.intp).ravel()
    return np.bincount(whole - whole.min())


def entropy_of(counts: np.ndarray) -> float:
    """Bits of numbers that occur so often."""
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum())


def best_step(bit_loss: float, worth: np.ndarray) -> np.ndarray:
    """The step of a grid with many levels that is best where a bit is worth so much loss.

    A step s loses s^2 / 12 of what an error of 1 costs, its worth, and saves log2(s) bits a number (Gish and Pierce,
    1968).
    """
    least = np.finfo(np.float32).tiny
    return np.asarray(np.sqrt(6 * bit_loss / (np.log(2) * np.maximum(worth, least))))


def occurrences(symbols: np.ndarray, alphabet: int) -> np.ndarray:
    """How often each symbol below `alphabet` occurs, int64; bytes in pairs, which takes a third of the time."""
    if symbols.dtype != np.uint8 or len(symbols) < MANY or not symbols.flags.c_contiguous:
        return np.bincount(symbols, minlength=alphabet)
    pairs = np.bincount(symbols[: len(symbols) // 2 * 2].view(np.uint16), minlength=1 << 16).reshape(256, 256)
    counts: np.ndarray = pairs.sum(axis=0) + pairs.sum(axis=1)
    counts[symbols[-1]] += len(symbols) % 2
    return counts[:alphabet]
