"""Whether a change makes a network's outputs truer, sample by sample."""

from __future__ import annotations

import numpy as np

from gossamer.measuring.batches import Outputs, batch_size, run_batch
from gossamer.measuring.noise import powers, ratio
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples
from gossamer.runtimes.contract import Session
from gossamer.runtimes.onnxruntime import open_session

LARGEST_BATCH = 4  # as peak memory grows with it


class Judge:
    """The original's outputs on some samples, and the noise of others against them.

    Args:
        reference: the original.
        samples: to judge on; its outputs for them are held.
    """

    def __init__(self, reference: Model, samples: Samples, threads: int = 1) -> None:
        self._samples = samples
        self._threads = threads
        session = open_session(reference, threads)
        self._size = session.static_batch or min(LARGEST_BATCH, batch_size(session, samples))
        self._expected = list(self._outputs(session))

    def noise(self, model: Model) -> np.ndarray:
        """Noise of every sample as a share of the signal of all, outputs counting alike, float64 (N,).

        Raises:
            CandidateError: the runtime refuses the model, or it misses an output.
        """
        session = open_session(model, self._threads)
        pairs = zip(self._outputs(session), self._expected, strict=True)
        both = [powers(got, expected, count) for (got, count), (expected, _) in pairs]
        noise_ON, signal_ON = (np.concatenate(parts, axis=1) for parts in zip(*both, strict=True))
        total_O1 = np.broadcast_to(signal_ON.sum(axis=1, keepdims=True), noise_ON.shape)
        return np.asarray(ratio(noise_ON, total_O1).mean(axis=0))

    def _outputs(self, session: Session) -> list[tuple[Outputs, int]]:
        return [
            (run_batch(session, batch.feeds, self._size), len(next(iter(batch.feeds.values()))))
            for batch in self._samples.batches(self._size)
        ]


def is_gain(before_N: np.ndarray, after_N: np.ndarray) -> bool:
    """Whether the noise fell by more than chance: by over one standard error, and on more than half of the samples."""
    gain_N = before_N - after_N
    error = gain_N.std(ddof=1) / np.sqrt(len(gain_N)) if len(gain_N) > 1 else 0.0
    return bool(gain_N.mean() > error and np.mean(gain_N > 0) > 0.5)
