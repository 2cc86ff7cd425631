"""Mean outputs over two halves of the samples: one half to estimate with, the other to check on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from gossamer.measuring.batches import Outputs, ahead, batch_size, opened
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Batch, Samples
from gossamer.runtimes.onnxruntime import open_session

KEPT_BYTES = 64_000_000  # of outputs
CALL_BYTES = 500_000  # of inputs in a call: samples of small pictures go together, where a call costs more than they do


class Mean(NamedTuple):
    """A mean over samples.

    Attributes:
        mean_O: float64 (O,).
        variance_O: what is to be expected of the mean's own squared error, (O,); 0 if there is one sample only.
        samples: how many.
    """

    mean_O: np.ndarray
    variance_O: np.ndarray
    samples: int


class Kept:
    """Some outputs of a model for evenly spread calls, as many as a limit allows, streaming.

    Args:
        names: of the outputs.
        limit_bytes: where they take more, every second call is forgotten, and again, until one is left.

    Attributes:
        outputs: by the number of the call, in order.
    """

    def __init__(self, names: Sequence[str], limit_bytes: int = KEPT_BYTES) -> None:
        self.names = list(names)
        self.limit_bytes = limit_bytes
        self.outputs: dict[int, Outputs] = {}
        self._sizes: list[int] = []
        self._step = 1

    def add(self, rows: int, outputs: Outputs) -> None:
        """The next call, on so many samples."""
        call = len(self._sizes)
        self._sizes.append(rows)
        if call % self._step == 0:
            self.outputs[call] = outputs
        while len(self.outputs) > 1 and self._bytes() > self.limit_bytes:
            self._step *= 2
            self.outputs = {one: kept for one, kept in self.outputs.items() if one % self._step == 0}

    def of(self, samples: Samples) -> list[Samples]:
        """Those of all samples whose outputs are kept, call by call."""
        ends = np.cumsum(self._sizes)
        return [samples.take(np.arange(ends[call] - self._sizes[call], ends[call])) for call in self.outputs]

    def _bytes(self) -> int:
        return sum(array.nbytes for outputs in self.outputs.values() for array in outputs.values())


def half_means(
    model: Model, names: Sequence[str], samples: Samples, threads: int = 1, kept: Kept | None = None
) -> dict[str, tuple[Mean, Mean]]:
    """The mean over the first axis of some outputs, for the even and for the odd samples, streaming.

    The first axis counts the samples, or the rows of one sample after those of the other. If it is no multiple of the
    batch size, the whole batch counts as one sample.

    Args:
        names: outputs of the model, each (rows, O).
        kept: takes its outputs of each call, rows that fill up cut off.

    Returns:
        name -> (over even samples, over odd samples). A single sample serves as both.

    Raises:
        CandidateError: the runtime refuses the model.
    """
    session, workers = opened(partial(open_session, model), model.weight_bytes(), samples, threads)
    most = batch_size(session, samples, CALL_BYTES)
    kept = kept or Kept(())
    sums: dict[str, np.ndarray] = {}  # (2 halves, 2 powers, O)
    counts = dict.fromkeys(names, np.zeros(2))
    wanted = list(dict.fromkeys((*names, *kept.names)))

    def run(batch: Batch) -> list[np.ndarray]:
        rows = len(next(iter(batch.feeds.values())))
        filled = np.minimum(np.arange(session.static_batch or rows), rows - 1)  # the last one fills up a fixed batch
        return session.run({name: array[filled] for name, array in batch.feeds.items()}, wanted)

    for batch, given in ahead(run, samples.batches(most), workers):
        rows = len(next(iter(batch.feeds.values())))
        size = session.static_batch or rows
        arrays = dict(zip(wanted, given, strict=True))
        kept.add(rows, {name: _rows(arrays[name], rows, size) for name in kept.names})
        for name in names:
            means_NO = sample_means(arrays[name], size)[:rows]
            halves = (np.arange(len(means_NO)) + counts[name].sum()) % 2 == np.array([[0], [1]])
            sums[name] = sums.get(name, 0.0) + np.stack([halves @ means_NO, halves @ np.square(means_NO)], axis=1)
            counts[name] = counts[name] + halves.sum(axis=1)
    return {name: _two_means(sums[name], counts[name]) for name in names}


def _rows(array: np.ndarray, rows: int, size: int) -> np.ndarray:
    return array[:rows] if array.ndim and len(array) == size else array


def sample_means(rows: np.ndarray, size: int) -> np.ndarray:
    """The mean row of each of the `size` samples of a batch, float64 (size, O), or (1, O) if rows belong to nobody."""
    wide = rows.astype(np.float64)
    if len(wide) % size:
        return np.asarray(wide.mean(axis=0, keepdims=True))
    return np.asarray(wide.reshape(size, -1, *wide.shape[1:]).mean(axis=1))


def mean_of(means_NO: np.ndarray) -> Mean:
    """The mean of the samples' own means."""
    return _mean(means_NO.sum(axis=0), np.square(means_NO).sum(axis=0), len(means_NO))


def joined(one: Mean, other: Mean) -> Mean:
    """The mean over the samples of both."""
    share = one.samples / (one.samples + other.samples)
    mean_O = share * one.mean_O + (1 - share) * other.mean_O
    return Mean(mean_O, share**2 * one.variance_O + (1 - share) ** 2 * other.variance_O, one.samples + other.samples)


def shrunk(mean: Mean) -> np.ndarray:
    """The mean drawn towards zero by as much as chance may have made it, (O,).

    m * m^2 / (m^2 + variance of m): a mean that stands clear of its error is kept, one that does not all but vanishes.
    """
    square_O = np.square(mean.mean_O)
    whole_O = square_O + mean.variance_O
    share_O = np.divide(square_O, whole_O, out=np.zeros_like(square_O), where=whole_O > 0)
    return np.asarray(mean.mean_O * share_O)


def _two_means(sums: np.ndarray, counts: np.ndarray) -> tuple[Mean, Mean]:
    even, odd = (_mean(sums[half, 0], sums[half, 1], int(counts[half])) for half in (0, 1))
    return even, odd if odd.samples else even


def _mean(sum_O: np.ndarray, square_sum_O: np.ndarray, count: int) -> Mean:
    mean_O = sum_O / max(count, 1)
    spread_O = np.maximum(square_sum_O - count * np.square(mean_O), 0.0)
    return Mean(mean_O, spread_O / max(count * (count - 1), 1), count)
