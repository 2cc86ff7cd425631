"""Mean outputs over two halves of the samples: one half to estimate with, the other to check on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples
from gossamer.runtimes.onnxruntime import open_session


def half_means(
    model: Model, names: Sequence[str], samples: Samples, threads: int = 1
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The mean over the first axis of some outputs, for the even and for the odd samples, streaming.

    The first axis counts the samples, or the rows of one sample after those of the other. If it is no multiple of the
    batch size, the whole batch counts as one sample.

    Args:
        names: outputs of the model, each (rows, O).

    Returns:
        name -> (mean over even samples, mean over odd samples), float64 (O,). A single sample serves as both.

    Raises:
        CandidateError: the runtime refuses the model.
    """
    session = open_session(model, threads)
    size = session.static_batch or 1
    sums: dict[str, np.ndarray] = {}  # (2, O)
    counts = dict.fromkeys(names, np.zeros((2, 1)))
    for batch in samples.batches(size):
        kept = len(next(iter(batch.feeds.values())))
        filled = np.minimum(np.arange(size), kept - 1)  # the last sample fills up a batch of fixed size
        arrays = session.run({name: array[filled] for name, array in batch.feeds.items()}, names)
        for name, array in zip(names, arrays, strict=True):
            means = _sample_means(array, size, kept)
            halves = (np.arange(len(means)) + counts[name].sum()) % 2 == np.array([[0], [1]])
            sums[name] = sums.get(name, 0.0) + halves @ means
            counts[name] = counts[name] + halves.sum(axis=1, keepdims=True)
    return {name: _two_means(sums[name], counts[name]) for name in names}


def _sample_means(array: np.ndarray, size: int, kept: int) -> np.ndarray:
    """The mean row of each of the first `kept` samples of a batch, float64."""
    rows = array.astype(np.float64)
    if len(rows) % size:
        return np.asarray(rows.mean(axis=0, keepdims=True))
    return np.asarray(rows.reshape(size, -1, *rows.shape[1:]).mean(axis=1)[:kept])


def _two_means(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    even, odd = sums / np.maximum(counts, 1)
    return even, odd if counts[1] else even
