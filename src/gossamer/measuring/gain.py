"""Whether a change makes a network's outputs truer, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from gossamer.measuring.batches import Outputs, ahead, batch_size, opened, run_batch
from gossamer.measuring.means import CALL_BYTES
from gossamer.measuring.noise import powers, ratio
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples
from gossamer.runtimes.onnxruntime import open_session


class Judge:
    """Holds outputs against the original's, on the same samples.

    Args:
        expected: the original's outputs, call by call.
        calls: the samples that each call is of, all of one shape.
    """

    def __init__(self, expected: Sequence[Outputs], calls: Sequence[Samples], threads: int = 1) -> None:
        self._expected = expected
        self._calls = calls
        self._threads = threads

    def noise(self, model: Model) -> np.ndarray:
        """Noise of every sample as a share of the signal of all, outputs counting alike, float64 (N,).

        Raises:
            CandidateError: the runtime refuses the model, or it misses an output.
        """
        session, workers = opened(partial(open_session, model), model.weight_bytes(), self._calls[0], self._threads)
        size = batch_size(session, self._calls[0], CALL_BYTES)
        batches = (batch for call in self._calls for batch in call.batches(len(call)))
        runs = ahead(lambda batch: run_batch(session, batch.feeds, size), batches, workers)
        both = [
            powers(got, expected, len(next(iter(batch.feeds.values()))))
            for (batch, got), expected in zip(runs, self._expected, strict=True)
        ]
        noise_ON, signal_ON = (np.concatenate(parts, axis=1) for parts in zip(*both, strict=True))
        total_O1 = np.broadcast_to(signal_ON.sum(axis=1, keepdims=True), noise_ON.shape)
        return np.asarray(ratio(noise_ON, total_O1).mean(axis=0))


def is_gain(before_N: np.ndarray, after_N: np.ndarray) -> bool:
    """Whether the noise fell by more than chance: by over one standard error, and on more than half of the samples."""
    gain_N = before_N - after_N
    error = gain_N.std(ddof=1) / np.sqrt(len(gain_N)) if len(gain_N) > 1 else 0.0
    return bool(gain_N.mean() > error and np.mean(gain_N > 0) > 0.5)
